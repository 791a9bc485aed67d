"""OpenVINO GenAI, by its continuous-batching pipeline, which reads GGUF; the server around it is ours."""

from dataclasses import dataclass
from typing import Final

from polypod.serve.engines.spec import (
    EngineSpec,
    child_command,
    child_environment,
    installed_version,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVino:
    """The adapter; `openvino_server` is the process."""

    name: str = "openvino"
    distribution: str = "openvino-genai"
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    keeps_connections: bool = True
    kv_bytes_per_element: float = 1.1875  # u8 with scales and zero points, as its pipeline counts
    max_step_tokens: int = 512

    def version(self) -> str | None:
        """The version of `openvino-genai`."""
        return installed_version(self.distribution)

    def command(self, spec: EngineSpec) -> list[str]:
        """Our server over its pipeline."""
        return child_command("polypod.serve.engines.openvino_server", spec)

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """The secret and the thread counts."""
        return child_environment(spec)


OPENVINO: Final = OpenVino()
