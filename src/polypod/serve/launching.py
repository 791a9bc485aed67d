"""From a plan's pool to the processes it takes: what each replica's engine is told."""

import secrets
from pathlib import Path
from typing import Final, NamedTuple

from polypod.cost.steptime import StepTime
from polypod.plan.host import engine_model
from polypod.plan.predict import service_model
from polypod.plan.spec import Plan, Pool, Service
from polypod.policy.events import ReplicaUp
from polypod.serve.engines import Engine, EngineSpec
from polypod.serve.engines.facts import listens_on_port
from polypod.serve.engines.openai_url import Remote
from polypod.serve.engines.spec import StageSpec

REMOTE_SEQUENCES: Final = 64
REMOTE_STEP: Final = StepTime(
    tokens=(1, 64, 8192), seconds=(0.02, 0.03, 0.5), kv_token_s=0.0, pair_s=0.0
)
"""Of an engine elsewhere nothing is known; this is taken until the warm-up has measured it, and answers after that."""


def remote_replica(remote: Remote, plan: Plan) -> ReplicaUp:
    """An engine elsewhere as a replica of the plan's first model."""
    service = plan.services[0]
    context_tokens = service.context or service_model(service).context_tokens or 4096
    return ReplicaUp(
        at_s=0.0,
        replica=remote.name,
        epoch=1,
        model=service.model,
        pool=remote.name,
        role="both",
        step_time=REMOTE_STEP,
        context_tokens=context_tokens,
        kv_capacity_tokens=REMOTE_SEQUENCES * context_tokens,
        max_sequences=REMOTE_SEQUENCES,
        max_step_tokens=8192,
    )


class Places(NamedTuple):
    """Where a node's engines leave what others come for."""

    logs: Path
    sockets: Path
    caches: Path | None


_BLOCK_TOKENS: Final = (
    128  # the largest block that a cache is counted in; a sequence's last one is not full
)


def engine_spec(
    plan: Plan, service: Service, pool: Pool, up: ReplicaUp, engine: Engine, places: Places
) -> EngineSpec:
    """One replica of a pool. On accelerators, which devices and flags it has is said by `on_devices`."""
    stages = tuple(
        StageSpec(cores=plan.fleet[stage.on].cores or (), layers=stage.layers)
        for stage in pool.stages
    )
    cores = sum((stage.cores for stage in stages), ()) or plan.fleet[pool.on].cores or ()
    return EngineSpec(
        replica=up.replica,
        model=service.model,
        weights=Path(str(service.weights)),
        cores=cores,
        context_tokens=up.context_tokens,
        max_sequences=pool.max_sequences,
        socket=places.sockets / f"{up.replica}.sock",
        secret=secrets.token_urlsafe(24),
        log=places.logs / f"{up.replica}.log",
        port=0 if listens_on_port(engine.name) else None,
        stages=stages,
        handover=None if pool.role == "both" else places.caches,
        cache_bytes=_cache_bytes(service, pool, up, engine) if cores else None,
    )


def _cache_bytes(service: Service, pool: Pool, up: ReplicaUp, engine: Engine) -> int:
    """Room for every sequence at its longest, so that none is preempted."""
    shape = engine_model(service_model(service), engine.kv_bytes_per_element)
    tokens = pool.max_sequences * (up.context_tokens + _BLOCK_TOKENS)
    return round(tokens * shape.kv_bytes_per_token)
