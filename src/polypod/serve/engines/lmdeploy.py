"""LMDeploy's PyTorch engine, on a loopback port behind a bearer token. Written from its documents; not run here."""

from dataclasses import dataclass
from typing import Final

from polypod.plan.emit_lmdeploy import DEVICES
from polypod.serve.engines.python import python_of, version_in
from polypod.serve.engines.sglang import port_environment, secret_flag
from polypod.serve.engines.spec import EngineSpec
from polypod.serve.engines.vllm import BOOTSTRAP


@dataclass(frozen=True, slots=True, kw_only=True)
class Lmdeploy:
    """The adapter."""

    name: str = "lmdeploy"
    distribution: str = "lmdeploy"
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    keeps_connections: bool = True
    kv_bytes_per_element: float = 2.0
    max_step_tokens: int = 8192

    def version(self) -> str | None:
        """The version of `lmdeploy`."""
        return version_in(python_of(self.name), (self.distribution,))

    def command(self, spec: EngineSpec) -> list[str]:
        """Its server on a port of ours; the key is added inside the process."""
        assert spec.port is not None
        return [
            *(python_of(self.name), str(BOOTSTRAP), *secret_flag(spec, "--api-keys"), "lmdeploy"),
            *("serve", "api_server", str(spec.weights)),
            *("--model-name", spec.model),
            *("--server-name", "127.0.0.1", "--server-port", str(spec.port)),
            *("--backend", "pytorch", "--device", DEVICES.get(spec.platform, "cuda")),
            *("--session-len", str(spec.context_tokens)),
            *("--max-batch-size", str(spec.max_sequences)),
            *spec.arguments,
        ]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """The secret, and the devices it may see."""
        return port_environment(self.name, spec)


LMDEPLOY: Final = Lmdeploy()
