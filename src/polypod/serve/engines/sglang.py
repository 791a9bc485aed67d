"""SGLang, on a loopback port behind a bearer token. Written from its documents; not run here."""

from dataclasses import dataclass
from typing import Final

from polypod.serve.engines.python import python_of, version_in
from polypod.serve.engines.spec import SECRET_VARIABLE, EngineSpec
from polypod.serve.engines.vllm import BOOTSTRAP, FOREIGN, device_variables

MODULE: Final = "sglang.launch_server"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sglang:
    """The adapter."""

    name: str = "sglang"
    distribution: str = "sglang"
    health_path: str = (
        "/health_generate"  # computes a token; /health is answered by the part that does not
    )
    metrics_path: str = "/metrics"
    keeps_connections: bool = True
    kv_bytes_per_element: float = 2.0
    max_step_tokens: int = 8192

    def version(self) -> str | None:
        """The version of `sglang`."""
        return version_in(python_of(self.name), (self.distribution,))

    def command(self, spec: EngineSpec) -> list[str]:
        """Its server on a port of ours; the key is added inside the process."""
        assert spec.port is not None
        return [
            *(python_of(self.name), str(BOOTSTRAP), *secret_flag(spec, "--api-key"), MODULE),
            *("--model-path", str(spec.weights), "--served-model-name", spec.model),
            *("--host", "127.0.0.1", "--port", str(spec.port)),
            *("--context-length", str(spec.context_tokens)),
            *("--max-running-requests", str(spec.max_sequences)),
            "--enable-metrics",
            *spec.arguments,
        ]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """The secret, and the devices it may see."""
        return port_environment(self.name, spec)


def secret_flag(spec: EngineSpec, flag: str) -> list[str]:
    """What tells `bootstrap.py` by which flag the engine takes its key."""
    return ["--secret-flag", flag] if spec.secret else []


def port_environment(engine: str, spec: EngineSpec) -> dict[str, str]:
    """Of an engine whose secret `bootstrap.py` hands on."""
    secret = {SECRET_VARIABLE: spec.secret} if spec.secret else {}
    return FOREIGN | secret | device_variables(engine, spec) | dict(spec.variables)


SGLANG: Final = Sglang()
