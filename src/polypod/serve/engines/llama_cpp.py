"""llama.cpp, by the prebuilt `xllamacpp` package, which carries llama.cpp's own server."""

from dataclasses import dataclass
from typing import Final

from polypod.serve.engines.spec import (
    EngineSpec,
    child_command,
    child_environment,
    installed_version,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCpp:
    """The adapter; `llama_cpp_server` is the process."""

    name: str = "llama.cpp"
    distribution: str = "xllamacpp"
    # /health is answered by a thread that does not compute; /metrics goes through the queue of the one that does.
    health_path: str = "/metrics"
    metrics_path: str = "/metrics"
    keeps_connections: bool = False  # it says keep-alive, and closes after every stream
    kv_bytes_per_element: float = 2.0  # f16
    max_step_tokens: int = 512

    def version(self) -> str | None:
        """The version of `xllamacpp`, which names the llama.cpp build it was made from."""
        return installed_version(self.distribution)

    def command(self, spec: EngineSpec) -> list[str]:
        """Our process around its server."""
        return child_command("polypod.serve.engines.llama_cpp_server", spec)

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """The secret and the thread counts."""
        return child_environment(spec)


LLAMA_CPP: Final = LlamaCpp()
