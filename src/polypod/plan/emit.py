"""A plan as launch files: from its pools to {file name: text}, for vLLM, SGLang, LMDeploy and MindIE. Nothing is written here.

Every pool gets the engine that was asked for, if a source says that the engine runs on its chip. What is not on record is said to be
unknown, and written only under `force`; what a source rules out, and what the engine has no flag for, is refused with the way out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from polypod.catalog.interop import EngineAnswer, HandoverAnswer, engine_on, engines_on, kv_handover
from polypod.catalog.market import stack_of
from polypod.cost.deployment import Deployment, Memory
from polypod.cost.measured import BACKENDS
from polypod.errors import InputError
from polypod.plan import emit_lmdeploy, emit_mindie, emit_sglang, emit_vllm
from polypod.plan.emit_readme import Emitted, readme
from polypod.plan.emitted import Apart, Launch, Written
from polypod.plan.flags import TARGETS, Target
from polypod.plan.launchable import ENGINE_NAMES
from polypod.plan.place import Island, island, node_ranks_of
from polypod.plan.predict import pool_replicas, service_model
from polypod.plan.spec import Plan, Pool, Service, refuse_stages

_WRITERS: Final = {
    "vllm": emit_vllm,
    "sglang": emit_sglang,
    "lmdeploy": emit_lmdeploy,
    "mindie": emit_mindie,
}

_CONNECTORS: Final[dict[Target, dict[str, str]]] = {
    "vllm": emit_vllm.CONNECTORS,
    "sglang": emit_sglang.CONNECTORS,
    "lmdeploy": emit_lmdeploy.CONNECTORS,
    "mindie": emit_mindie.CONNECTORS,
}

_GOES: Final = ("supported", "experimental", "reported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which engine each pool is written for: by its name or its part of the fleet, else `default`."""

    default: Target | None = None
    by_name: Mapping[str, Target] | None = None
    node_ranks: int | None = None  # None: as the catalog's tiers say
    force: bool = False

    def engine(self, name: str, on: str) -> Target:
        chosen = (self.by_name or {}).get(name) or (self.by_name or {}).get(on) or self.default
        if chosen is None:
            msg = f"no engine is given for pool {name!r} on {on!r}; say --engine ENGINE, or --engine {name}=ENGINE"
            raise InputError(msg)
        return chosen


def read_wanted(texts: list[str], node_ranks: int | None = None, *, force: bool = False) -> Wanted:
    """Read `vllm`, or `a=vllm` for one pool or part of the fleet.

    >>> read_wanted(["vllm", "b=mindie"]).engine("pool0.1", "b")
    'mindie'

    Raises `InputError` for another engine, or a second default.
    """
    default: Target | None = None
    by_name: dict[str, Target] = {}
    for text in texts:
        name, equals, engine = text.rpartition("=")
        found = next((one for one in TARGETS if one == engine), None)
        if found is None:
            msg = f"--engine {text!r}: launch files are written for {', '.join(TARGETS)}"
            raise InputError(msg)
        if equals:
            by_name[name] = found
        elif default is not None:
            msg = f"--engine is said twice, {default} and {found}; say POOL={found} for one of the pools"
            raise InputError(msg)
        else:
            default = found
    return Wanted(default=default, by_name=by_name, node_ranks=node_ranks, force=force)


def emit(plan: Plan, wanted: Wanted) -> dict[str, str]:
    """Launch files of every pool and the README that says in which order to start them. A name ends in `.sh` where it is to be executable.

    Raises `InputError` for a pool that the engine cannot have, with its path and the way out.
    """
    pools = _checked(plan, wanted)
    engines = {pool.name: pool.engine for pool in pools}
    launches = _launches(plan, wanted, pools)
    written: dict[str, Written] = {
        one.name: _WRITERS[engines[one.name]].write(one) for one in launches
    }
    routers = _routers(launches, engines)
    scripts = [file for found in written.values() for file in found.files]
    emitted = Emitted(launches=tuple(launches), engines=engines, written=written, routers=tuple(routers), assumed=_assumed(pools))  # fmt: skip
    files = {file: text for found in written.values() for file, text in found.files.items()}
    assert len(files) == len(scripts), "two pools wrote one file"
    return {**files, **routers, "README.md": readme(emitted)}


def launches_of(plan: Plan, wanted: Wanted) -> dict[str, tuple[Launch, Target]]:
    """Every pool by its name, as its engine's writer sees it, with the engine. Raises `InputError` as `emit` does."""
    pools = _checked(plan, wanted)
    engines = {pool.name: pool.engine for pool in pools}
    return {one.name: (one, engines[one.name]) for one in _launches(plan, wanted, pools)}


def _checked(plan: Plan, wanted: Wanted) -> list["_Pool"]:
    refuse_stages(plan)
    _refuse_experts_apart(plan)
    return _pools(plan, wanted)


def _launches(plan: Plan, wanted: Wanted, pools: list["_Pool"]) -> list[Launch]:
    launches = [_launch(plan, wanted, pool, pools[:index]) for index, pool in enumerate(pools)]
    return _apart(launches, {pool.name: pool.engine for pool in pools}, wanted)


def _refuse_experts_apart(plan: Plan) -> None:
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            if pool.experts_on is not None:
                msg = f"experts of pool {pool.name or pool.on!r} are apart, on {pool.experts_on!r}, which no engine here is launched with; plan without --afd - at `$.services[{s}].pools[{p}].experts_on`"
                raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """A pool with where it runs."""

    path: str
    name: str
    service: Service
    pool: Pool
    engine: Target
    place: Island
    node_ranks: int
    assumed: str | None  # what is taken for a node, where nothing says
    context_tokens: int

    def first_rank(self, before: list["_Pool"]) -> int:
        """Devices of the island that pools before it take, up to where a whole replica can begin."""
        taken = 0
        for one in [*(other for other in before if other.pool.on == self.pool.on), self]:
            step = min(one.pool.layout.world, one.node_ranks)
            taken = -(-taken // step) * step
            if one is self:
                break
            taken += one.pool.layout.world * one.pool.replicas
        return taken


def _pools(plan: Plan, wanted: Wanted) -> list[_Pool]:
    contexts = _contexts(plan)
    found: list[_Pool] = []
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            path, name = f"$.services[{s}].pools[{p}]", pool.name or f"pool{s}.{p}"
            if name in [one.name for one in found]:
                msg = f"a second pool is called {name!r}, and launch files are named after pools; give it another name - at `{path}`"
                raise InputError(msg)
            place = island(pool.on, plan.fleet[pool.on], pool.engine if pool.engine in BACKENDS else None)  # fmt: skip
            node_ranks, assumed = (wanted.node_ranks, None) if wanted.node_ranks else node_ranks_of(place)  # fmt: skip
            found.append(
                _Pool(
                    path=path,
                    name=name,
                    service=service,
                    pool=pool,
                    engine=wanted.engine(name, pool.on),
                    place=place,
                    node_ranks=node_ranks,
                    assumed=assumed,
                    context_tokens=contexts[name],
                )
            )
    known = {word for one in found for word in (one.name, one.pool.on)}
    for name in wanted.by_name or {}:
        if name not in known:
            msg = f"--engine {name}=...: the plan has no pool and no part of the fleet of that name; it has {', '.join(sorted(known))}"
            raise InputError(msg)
    return found


def _contexts(plan: Plan) -> dict[str, int]:
    """Tokens that a request of each pool may have. Refuses what no engine of these is launched for."""
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            where = f" - at `$.services[{s}].pools[{p}]`"
            if plan.fleet[pool.on].host is not None:
                msg = (
                    f"{pool.on!r} is cores of a host, whose engines polypod up starts itself{where}"
                )
                raise InputError(msg)
            if pool.layout.cp > 1:
                msg = f"cp={pool.layout.cp}: no launch file is written with context parallelism; plan with cp=1{where}"
                raise InputError(msg)
    return {up.pool: up.context_tokens for up in pool_replicas(plan, linked=False)}


def _launch(plan: Plan, wanted: Wanted, pool: _Pool, before: list[_Pool]) -> Launch:
    place, stack = pool.place, stack_of(pool.place.rank.chip)
    first = pool.first_rank(before)
    last = first + pool.pool.layout.world * pool.pool.replicas
    if last > place.ranks:
        msg = f"the pools on {pool.pool.on!r} take {last} devices by whole replicas, it has {place.ranks}; use fewer replicas - at `{pool.path}`"
        raise InputError(msg)
    model = service_model(pool.service)
    memory = Deployment(
        model=model, layout=pool.pool.layout, precision=pool.pool.precision, rank=place.rank
    ).memory()
    fraction = place.rank.calibration.engine.memory_fraction
    return Launch(
        path=pool.path,
        name=pool.name,
        index=len(before),
        service=pool.service,
        pool=pool.pool,
        model=model,
        chip=place.rank.chip,
        stack=stack.id if stack else "",
        answer=_answer(pool.engine, place.rank.chip, wanted, pool.path),
        node_ranks=pool.node_ranks,
        first_rank=first,
        memory_fraction=fraction,
        static_fraction=fraction - memory.activation_bytes / place.rank.memory_bytes,
        kv_fraction=_kv_fraction(memory, place.rank.memory_bytes),
        context_tokens=pool.context_tokens,
    )


def _kv_fraction(memory: Memory, memory_bytes: float) -> float:
    free_bytes = memory_bytes - memory.weight_bytes - memory.activation_bytes
    return max(memory.kv_bytes, 0.0) / free_bytes


def _assumed(pools: list[_Pool]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.assumed for one in pools if one.assumed))


def _answer(engine: Target, chip: str, wanted: Wanted, path: str) -> EngineAnswer:
    """What is on record of the engine on the chip, if that lets it be launched."""
    answer = engine_on(ENGINE_NAMES[engine], chip)
    if answer.state in _GOES or (answer.state == "unknown" and wanted.force):
        return answer
    others = ", ".join(
        f"{one.engine} ({one.state}, {one.reason})"
        for one in engines_on(chip)
        if one.state in _GOES
    )
    ways = f"on record for {chip}: {others or 'no engine that runs'}"
    if answer.state == "unknown":
        msg = f"{answer.engine} on {chip} is unknown: {answer.reason}; {ways}; --force writes its files all the same - at `{path}`"
    else:
        msg = f"{answer.engine} on {chip}: {answer.state}, {answer.reason}; {ways} - at `{path}`"
    raise InputError(msg)


def _apart(launches: list[Launch], engines: dict[str, Target], wanted: Wanted) -> list[Launch]:
    """Prefill and decode pools of a service, told of each other."""
    found = []
    for one in launches:
        peers = [other for other in launches if other.service is one.service]
        roles = {role: [p for p in peers if p.pool.role == role] for role in ("prefill", "decode")}
        if one.pool.role == "both":
            found.append(one)
            continue
        other = "decode" if one.pool.role == "prefill" else "prefill"
        if not roles[other]:
            msg = f"a {one.pool.role} pool without a {other} pool of its service; add one, or make its role both"
            raise one.refuse(msg)
        for peer in roles[other]:
            _check_pair(*((one, peer) if other == "decode" else (peer, one)), engines, wanted)
        apart = Apart(
            prefill=roles["prefill"][0].layout,
            decode=roles["decode"][0].layout,
            connector=_connector(one, engines),
        )
        found.append(replace(one, apart=apart))
    return found


def _check_pair(prefill: Launch, decode: Launch, engines: dict[str, Target], wanted: Wanted) -> None:  # fmt: skip
    engine, other = engines[prefill.name], engines[decode.name]
    if engine != other:
        msg = f"prefill by {engine} and decode by {other}: engines of different kinds hand no cache on to each other; give both pools one engine"
        raise decode.refuse(msg)
    ends = [_connector(end, engines) for end in (prefill, decode)]
    answer = kv_handover(prefill.chip, decode.chip, ENGINE_NAMES[engine])
    if ends[0] != ends[1]:
        msg = (
            f"{prefill.chip} hands a cache on with {ends[0]}, {decode.chip} takes it with {ends[1]}; on record: {_said(answer)}; "
            "keep both roles on chips of one stack, or plan with role both"
        )
        raise decode.refuse(msg)
    if answer.state in _GOES or (answer.state == "unknown" and wanted.force):
        return
    way = "--force writes its files all the same" if answer.state == "unknown" else "plan with role both"  # fmt: skip
    msg = f"a cache from {prefill.chip} to {decode.chip} by {answer.engine}: {_said(answer)}; {way}"
    raise decode.refuse(msg)


def _said(answer: HandoverAnswer) -> str:
    return f"{answer.state}, {answer.reason}"


def _connector(launch: Launch, engines: dict[str, Target]) -> str:
    known = _CONNECTORS[engines[launch.name]]
    if launch.stack not in known:
        stack = stack_of(launch.chip)
        cell = stack.pd_disaggregation if stack else None
        on_record = f"{cell.on(launch.chip)}: {', '.join(cell.connectors) or cell.note}" if cell else "unknown"  # fmt: skip
        msg = (
            f"role {launch.pool.role} on {launch.chip}: no connector of {launch.answer.engine} is documented for it (of its stack: {on_record}); "
            "plan with role both"
        )
        raise launch.refuse(msg)
    return known[launch.stack]


def _routers(launches: list[Launch], engines: dict[str, Target]) -> dict[str, str]:
    """A router for every service in two roles; MindIE's is MindIE Motor, of which the README tells."""
    services = {id(one.service): one.service for one in launches if one.apart}
    found = {}
    for number, service in enumerate(services.values()):
        ends = [one for one in launches if one.service is service and one.apart]
        engine = engines[ends[0].name]
        split = {role: [one for one in ends if one.pool.role == role] for role in ("prefill", "decode")}  # fmt: skip
        name = "router.sh" if len(services) == 1 else f"router{number}.sh"
        if engine != "mindie":
            writer = emit_vllm if engine == "vllm" else emit_sglang
            found[name] = writer.router(split["prefill"], split["decode"])
    return found
