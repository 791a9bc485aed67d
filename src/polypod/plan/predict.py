"""From a plan's pools to the replicas a driver announces: the same `ReplicaUp`, with the same step time, live and simulated."""

from pathlib import Path
from typing import Final

import msgspec

from polypod import units
from polypod.catalog.load import load_model
from polypod.cost.bands import band_of
from polypod.cost.deployment import Deployment
from polypod.cost.measured import BACKENDS
from polypod.engine.prefix import TierSettings
from polypod.engine.settings import played
from polypod.errors import InputError
from polypod.plan.handover import Handover, handover
from polypod.plan.host_stages import pool_step_times
from polypod.plan.place import island, joined_by_network
from polypod.plan.spec import Plan, Pool, Service, Source
from polypod.plan.uneven import Timed, with_experts_apart, with_stages
from polypod.policy.events import ReplicaUp
from polypod.policy.settings import PolicySettings, ServiceSettings
from polypod.workload.checkpoint import read_checkpoint
from polypod.workload.config import read_model
from polypod.workload.gguf import read_header
from polypod.workload.layout import Layout, check_layout
from polypod.workload.memory import kv_bytes_per_token_per_rank
from polypod.workload.model import Model

PREEMPTED_STEP_TOKENS: Final = 8192


def policy_settings(plan: Plan) -> PolicySettings:
    """What the policy is told: the plan's services and the limits of its `policy` part."""
    spec = plan.policy
    settings = PolicySettings(
        services=tuple(
            ServiceSettings(
                model=service.model,
                context_tokens=_context(service, service_model(service)),
                mean_output_tokens=float(service.traffic.output) if service.traffic else 256.0,
                first_token_limit_s=service.slo.ttft_s if service.slo else None,
            )
            for service in plan.services
        ),
        queue_requests=spec.queue_requests,
        max_attempts=spec.max_attempts,
        turns=spec.turns,
        tenant_weights=spec.tenant_weights,
        admission=spec.admission,
    )
    return msgspec.structs.replace(settings, **spec.waits_s)


def pool_replicas(plan: Plan, *, linked: bool = True) -> list[ReplicaUp]:
    """Every replica of the plan, ready at time 0 in its first epoch, with the likely step time.

    Unless they are `linked`, nothing is said of how caches go between them, and no link has to be on record.

    Raises `InputError` for a role, layout or fleet entry that cannot be played, with its path in the plan.
    """
    ups: list[ReplicaUp] = []
    for s, service in enumerate(plan.services):
        model = service_model(service)
        for p, pool in enumerate(service.pools):
            try:
                between = handover(plan, service, model, pool) if linked else Handover()
                ups += _replicas(plan, service, pool, between, f"{s}.{p}")
            except InputError as error:
                msg = f"{error} - at `$.services[{s}].pools[{p}]`"
                raise InputError(msg) from error
    return ups


def evidence(plan: Plan) -> dict[str, str]:
    """What the step times of each pool on catalog chips rest on, by its name; hosts are measured, and have bands of their own.

    Raises `InputError` as `pool_replicas` does for what cannot be played.
    """
    found = {}
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            source = plan.fleet[pool.on]
            if source.host is None:
                found[pool.name or f"pool{s}.{p}"] = _weakest(plan, pool)
    return found


def _weakest(plan: Plan, pool: Pool) -> str:
    """What the pool's chip rests on; of several kinds of chips, that of the widest band."""
    names = [pool.on, *(stage.on for stage in pool.stages)]
    names += [] if pool.experts_on is None else [pool.experts_on]
    read = joined_by_network if pool.stages else island
    ranks = [read(name, plan.fleet[name], backend_of(pool)).rank for name in dict.fromkeys(names)]

    def width(evidence: str) -> float:
        band = band_of(evidence, "agg", "tpot")
        return band.high / band.low

    return max((str(rank.calibration.evidence) for rank in ranks), key=width)


def backend_of(pool: Pool) -> str | None:
    """The engine, where kernels of it are known."""
    return pool.engine if pool.engine in BACKENDS else None


def service_model(service: Service) -> Model:
    """The service's model: its weights' own header or configuration says, where they are here; else the catalog does.

    Raises `UnknownNameError` where neither knows it, `FileError` for a file that is cut short.
    """
    if service.weights is not None and Path(service.weights).is_file():
        header = read_header(Path(service.weights))
        return read_model(header.config(), name=service.model, path=header.path)
    if service.weights is not None and Path(service.weights).is_dir():
        checkpoint = read_checkpoint(Path(service.weights))
        return read_model(checkpoint.config, name=service.model, path=checkpoint.path)
    entry = load_model(service.model)
    return read_model(entry.config, name=entry.name, path=entry.path)


def _replicas(
    plan: Plan, service: Service, pool: Pool, between: Handover, place: str
) -> list[ReplicaUp]:
    source, model = plan.fleet[pool.on], service_model(service)
    if pool.expert_imbalance_cv and not model.is_moe:
        msg = f"expert_imbalance_cv is {pool.expert_imbalance_cv:g}, and {model.name} has no experts; leave it out"
        raise InputError(msg)
    context = _context(service, model)
    name = pool.name or f"pool{place}"
    if pool.experts_on is not None:
        timed = with_experts_apart(plan, service, model, pool)
    elif _is_on_host(plan, pool):
        timed = _on_host(model, pool, plan.fleet, context)
    elif pool.stages:
        timed = with_stages(plan, service, model, pool)
    else:
        timed = _on_island(model, pool, source)
    return [
        ReplicaUp(
            at_s=0.0,
            replica=f"{name}-{index}",
            epoch=1,
            model=service.model,
            pool=name,
            role=pool.role,
            step_time=timed.step_time,
            context_tokens=min(context, timed.kv_capacity_tokens // timed.step_time.data_ranks),
            kv_capacity_tokens=timed.kv_capacity_tokens,
            max_sequences=timed.max_sequences or pool.max_sequences,
            max_step_tokens=timed.max_step_tokens or _step_tokens(pool),
            engine=timed.engine,
            prefix_tiers=_prefix_tiers(model, pool),
            expert_imbalance_cv=pool.expert_imbalance_cv,
            kv_token_bytes=between.token_bytes,
            kv_link_bytes_per_s=between.link_bytes_per_s,
            kv_link_latency_s=between.latency_s,
            kv_pools=between.pools,
        )
        for index in range(pool.replicas)
    ]


def _prefix_tiers(model: Model, pool: Pool) -> TierSettings | None:
    """What the pool has below HBM, with one copy of a token's whole cache, whatever the layout copies or slices."""
    cache = pool.prefix_cache
    if cache is None:
        return None
    whole = kv_bytes_per_token_per_rank(model, Layout(), pool.precision)
    if not whole:
        msg = f"{model.name} keeps no cache that grows with its context, so that it has no prefix cache; leave prefix_cache out"
        raise InputError(msg)
    return TierSettings(
        kv_bytes_per_token=float(whole),
        host_bytes=units.parse(cache.host or "0 B", "bytes"),
        host_bytes_per_s=units.parse(cache.host_bandwidth or "0 B/s", "bytes_per_s"),
        remote_bytes=units.parse(cache.remote or "0 B", "bytes"),
        remote_bytes_per_s=units.parse(cache.remote_bandwidth or "0 B/s", "bytes_per_s"),
        remote_latency_s=units.parse(cache.remote_latency or "0 s", "s"),
    )


def _step_tokens(pool: Pool) -> int:
    """A decode worker's budget is for its sequences; of a preempted one it computes the prompt as any engine would."""
    return max(pool.max_step_tokens, PREEMPTED_STEP_TOKENS) if pool.role == "decode" else pool.max_step_tokens  # fmt: skip


def _on_island(model: Model, pool: Pool, source: Source) -> Timed:
    where = island(pool.on, source, backend_of(pool))
    check_layout(model, pool.layout)
    needed = pool.layout.world * pool.replicas
    if needed > where.ranks:
        msg = f"{pool.replicas} replicas of {pool.layout.world} ranks need {needed}, {pool.on!r} has {where.ranks}; use fewer"
        raise InputError(msg)
    deployment = Deployment(
        model=model, layout=pool.layout, precision=pool.precision, rank=where.rank
    )
    memory = deployment.memory() if pool.role == "both" else deployment.memory(pool.max_step_tokens)
    tokens = int(memory.kv_tokens)
    if tokens < 2:
        msg = f"the weights leave no room for a cache on {where.rank.chip}; raise tp, pp or ep, or lower the precision"
        raise InputError(msg)
    return Timed(
        step_time=deployment.step_time(),
        kv_capacity_tokens=tokens * pool.layout.dp,
        engine=played(pool.engine_args, model, pool.engine, pool.max_sequences),
    )


def _is_on_host(plan: Plan, pool: Pool) -> bool:
    """On cores that were measured, all of it."""
    places = [pool.on, *(stage.on for stage in pool.stages)]
    return all(plan.fleet[name].measured is not None for name in places)


def _on_host(model: Model, pool: Pool, fleet: dict[str, Source], context: int) -> Timed:
    if not pool.stages and pool.layout.world > 1:
        msg = (
            f"a pool on a host is one rank, its layout is {pool.layout.world}; use the layout tp: 1"
        )
        raise InputError(msg)
    _, steps = pool_step_times(model, pool, fleet)
    return Timed(step_time=steps["likely"], kv_capacity_tokens=context * pool.max_sequences)


def _context(service: Service, model: Model) -> int:
    limits = [limit for limit in (service.context, model.context_tokens) if limit is not None]
    return min(limits) if limits else 2**20
