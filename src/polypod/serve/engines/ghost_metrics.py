"""Counters of ghosts under the names that vLLM gives them, so that what reads an engine reads a ghost."""

from collections.abc import Callable, Iterable
from typing import Final

from polypod.serve.engines.ghost_replica import GhostReplica

_SHOWN: Final[tuple[tuple[str, str, Callable[[GhostReplica], float]], ...]] = (
    ("num_requests_running", "gauge", lambda ghost: ghost.running),
    ("num_requests_waiting", "gauge", lambda ghost: ghost.waiting),
    ("kv_cache_usage_perc", "gauge", lambda ghost: ghost.kv_share),
    ("num_preemptions_total", "counter", lambda ghost: ghost.preemptions),
    ("prompt_tokens_total", "counter", lambda ghost: ghost.counts.prompt_tokens),
    ("generation_tokens_total", "counter", lambda ghost: ghost.counts.output_tokens),
    ("request_success_total", "counter", lambda ghost: ghost.counts.finished),
)


def metrics_text(ghosts: Iterable[GhostReplica]) -> bytes:
    """Prometheus text; each ghost is an `engine` of its model."""
    known = list(ghosts)
    for one in known:
        one.catch_up()
    lines = []
    for name, kind, value in _SHOWN:
        lines.append(f"# TYPE vllm:{name} {kind}")
        lines += [
            f'vllm:{name}{{engine="{one.up.replica}",model_name="{one.up.model}"}} {value(one):g}'
            for one in known
        ]
    return "\n".join([*lines, ""]).encode()
