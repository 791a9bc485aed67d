"""Transformers: a server of ours around `generate`, on CPUs, for models that no other engine here knows. It reads safetensors and GGUF."""

from dataclasses import dataclass
from typing import Final

from polypod.serve.engines.spec import (
    EngineSpec,
    child_command,
    child_environment,
    installed_version,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transformers:
    """The adapter; `transformers_server` is the process."""

    name: str = "transformers"
    distribution: str = "transformers"
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    keeps_connections: bool = True
    kv_bytes_per_element: float = 4.0  # fp32, as the weights are computed with
    max_step_tokens: int = 4096  # a prompt is computed whole

    def version(self) -> str | None:
        """The version of `transformers`, where torch is there too."""
        return installed_version(self.distribution) if installed_version("torch") else None

    def command(self, spec: EngineSpec) -> list[str]:
        """Our server over its `generate`."""
        return child_command("polypod.serve.engines.transformers_server", spec)

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """The secret, the thread counts, and no calls to the hub."""
        return child_environment(spec) | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


TRANSFORMERS: Final = Transformers()
