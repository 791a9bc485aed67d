"""The plan file: which pools serve which models on which fleet, under what policy, and what is expected of them.

One file drives the simulator and the live node. It is YAML, meant to be read and edited by hand: quantities wear their
units ("2 s", "20 /s"), an unknown key is an error with its path, and a layout that cannot be is refused with the reason.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from polypod import units
from polypod.catalog.schema import Count, Strict
from polypod.cost.cpu import HostRates
from polypod.engine.imbalance import MOST_CV
from polypod.engine.settings import NAMES, NOTHING, PLAYED, EngineArgs
from polypod.errors import FileError, InputError
from polypod.workload.layout import Layout
from polypod.workload.precision import Precision

FORMAT = 1
"""The version this code writes, and the only one it reads."""

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


def _only_true_and_false(resolvers: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """YAML 1.1 reads `on`, `off`, `yes` and `no` as booleans; a pool is *on* an island, as YAML 1.2 has it."""
    tag = "tag:yaml.org,2002:bool"
    return {
        first: [(name, rule) for name, rule in rules if name != tag or first in "tTfF"]
        for first, rules in resolvers.items()
    }


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, and of one mind with YAML 1.2 about booleans."""

    yaml_implicit_resolvers = _only_true_and_false(yaml.SafeLoader.yaml_implicit_resolvers)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads."""

    yaml_implicit_resolvers = _only_true_and_false(yaml.SafeDumper.yaml_implicit_resolvers)


class Source(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """Part of a fleet: a catalog pod (or some of it), loose accelerators, or cores of this machine."""

    pod: str | None = None
    accelerator: str | None = None
    accelerators: Count | None = None  # of the pod; None: all
    count: Count | None = None  # of loose accelerators
    host: str | None = None  # this machine's name for itself, as measured
    cores: tuple[int, ...] | None = None  # the host's, that one replica is pinned to
    measured: HostRates | None = (
        None  # what these cores measured; with it a plan can be played anywhere
    )
    blocking_ratio: Annotated[float, msgspec.Meta(ge=1)] | None = msgspec.field(
        name="blocking", default=None
    )  # of the outermost links, over what is on record: 2 is 2:1


class Slo(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What a request is promised, and for how many of a hundred."""

    ttft: str | None = None
    tpot: str | None = None
    percentile: Annotated[float, msgspec.Meta(gt=0, lt=100)] = 99.0

    @property
    def ttft_s(self) -> float | None:
        return None if self.ttft is None else units.parse(self.ttft, "s")

    @property
    def tpot_s(self) -> float | None:
        return None if self.tpot is None else units.parse(self.tpot, "s")


class Traffic(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What arrives. `input` and `output` are mean lengths in tokens."""

    input: Count
    output: Count
    rate: str | None = None

    @property
    def rate_per_s(self) -> float | None:
        return None if self.rate is None else units.parse(self.rate, "per_s")


class Spread(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """A predicted quantity: percentiles of the likely answer, and the band around its median."""

    p50: str
    band: tuple[str, str]
    p99: str | None = None  # left out where no queue was emulated


class PoolPrediction(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What one pool is expected to do."""

    memory_per_accelerator: str
    tokens_per_s_per_accelerator: float
    bound: dict[Literal["prefill", "decode"], str]
    ttft: Spread | None = None
    tpot: Spread | None = None


class PoolStage(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """One stage of a pipeline over unlike chips: how many layers, on how many ranks of which part of the fleet."""

    on: Name
    layers: Count
    ranks: Count = 1


class PoolCache(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """Where blocks of prompts are kept below HBM: host memory of each replica, and a store that the pool's replicas share. Bandwidths are a replica's, one way."""

    host: str | None = None
    host_bandwidth: str | None = None
    remote: str | None = None
    remote_bandwidth: str | None = None
    remote_latency: str | None = None


class Pool(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """Replicas of one role, layout and island; with `stages`, pipelines over several, each replica one of them.

    With `experts_on` and `expert_ranks`, both or neither, the routed and shared experts of a replica are on so many ranks of that part of the fleet,
    which may be the same; `layout` is then of all else, and tokens go round in `micro_batches`; so they do through stages.

    Caches go from pools for prefill to those for decode: `hands_to` names them where they are not all of the service's, and `kv_link` is what one
    rank sends of a cache, or takes, a second. `link` is one rank's way between stages, or to the experts. Where they are left out, the catalog says.
    """

    role: Literal["prefill", "decode", "both"]
    on: Name
    layout: Layout
    replicas: Count
    precision: Precision
    state: Literal["launchable", "modelled"]
    name: Name | None = None
    engine: str | None = None
    max_sequences: Count = 256
    max_step_tokens: Count = 8192
    engine_args: EngineArgs = NOTHING
    prefix_cache: PoolCache | None = None
    expert_imbalance_cv: Annotated[float, msgspec.Meta(ge=0, le=MOST_CV)] = (
        0.0  # of step times, about their mean
    )
    experts_on: Name | None = None
    expert_ranks: Count | None = None
    micro_batches: Count | None = None  # of a step, with experts apart or stages
    hands_to: tuple[Name, ...] = ()
    kv_link: str | None = None
    link: str | None = None
    stages: tuple[PoolStage, ...] = ()
    predicted: PoolPrediction | None = None


class Service(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """One model, what it is promised, and the pools that serve it."""

    model: str
    pools: Annotated[tuple[Pool, ...], msgspec.Meta(min_length=1)]
    slo: Slo | None = None
    traffic: Traffic | None = None
    weights: str | None = None  # a file, where the model is served from one
    context: Count | None = None  # tokens; None: the model's own limit


def wait_s(text: str) -> float:
    """Seconds of a wait. Raises `QuantityError` for what is no time, and `InputError` for one that is over at once.

    >>> wait_s("2 min")
    120.0
    """
    seconds = units.parse(text, "s")
    if seconds <= 0:
        msg = f"{text} is no time to wait; it has to be above 0"
        raise InputError(msg)
    return seconds


class PolicySpec(Strict, frozen=True, kw_only=True):
    """The router's rules."""

    router: Literal["predicted-finish"] = "predicted-finish"
    admission: Literal["queue", "slo"] = "queue"  # slo: who would come too late is turned away
    queue_requests: Count = 1024
    max_attempts: Count = 3
    turns: Literal["arrival", "tenants"] = "arrival"  # within a priority
    tenant_weights: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = msgspec.field(
        default_factory=dict
    )  # 1 where not said
    continuation: Literal["off", "text", "exact"] = "off"  # of streams that do not say
    queue_wait: str | msgspec.UnsetType = (
        msgspec.UNSET
    )  # the longest that a request waits for a place
    kv_wait: str | msgspec.UnsetType = msgspec.UNSET  # for a cache on its way, until it is given up

    @property
    def waits_s(self) -> dict[str, float]:
        """Those that are said, as the policy's settings call them."""
        said = {"queue_wait_s": self.queue_wait, "kv_wait_s": self.kv_wait}
        return {
            name: wait_s(text)
            for name, text in said.items()
            if not isinstance(text, msgspec.UnsetType)
        }


class Predicted(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What the whole plan is expected to do. Left out: not known."""

    goodput: str | None = None
    tokens_per_s: float | None = None
    ttft: Spread | None = None
    tpot: Spread | None = None
    watts: float | None = None  # of the site, for the accelerators used
    usd_per_million_tokens: float | None = None


class Plan(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """What runs where."""

    polypod: Literal[1]
    fleet: dict[Name, Source]
    services: Annotated[tuple[Service, ...], msgspec.Meta(min_length=1)]
    policy: PolicySpec = msgspec.field(default_factory=PolicySpec)
    predicted: Predicted | None = None
    notes: tuple[str, ...] = ()


def read_plan(path: Path) -> Plan:
    """Read and check a plan file. Raises `FileError` with the path to the key and what is accepted."""
    raw = read_yaml(path)
    try:
        plan = msgspec.convert(raw, Plan)
        check(plan)
    except (msgspec.ValidationError, InputError) as error:
        raise FileError(path, str(error)) from error
    return plan


def read_yaml(path: Path) -> object:
    """A file's YAML with YAML 1.2's booleans. Raises `FileError` where it cannot be read or is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read: {error}") from error
    try:
        raw: object = yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        raise FileError(path, f"is not YAML: {error}") from error
    return raw


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan file that `read_plan` reads back equal.

    Raises `FileError` where it cannot be written; a file that was there before is then still whole.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(to_yaml(plan), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise FileError(path, f"cannot be written: {error.strerror}") from error


def to_yaml(plan: Plan) -> str:
    """The plan as YAML, keys in the schema's order."""
    raw = {"polypod": plan.polypod, **msgspec.to_builtins(plan)}
    return str(yaml.dump(raw, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def check(plan: Plan) -> None:
    """Hold the plan against itself. Raises `InputError` with the path to what cannot be."""
    for name, source in plan.fleet.items():
        check_source(f"$.fleet.{name}", source)
    _check_text("$.policy.queue_wait", plan.policy.queue_wait, wait_s)
    _check_text("$.policy.kv_wait", plan.policy.kv_wait, wait_s)
    for s, service in enumerate(plan.services):
        slo, traffic = service.slo or Slo(), service.traffic
        _check_quantity(f"$.services[{s}].slo.ttft", slo.ttft, "s")
        _check_quantity(f"$.services[{s}].slo.tpot", slo.tpot, "s")
        _check_quantity(f"$.services[{s}].traffic.rate", traffic.rate if traffic else None, "per_s")
        names: set[str] = set()
        for p, pool in enumerate(service.pools):
            path = f"$.services[{s}].pools[{p}]"
            _check_pool(path, pool, plan)
            _check_hand_over(path, pool, service)
            if pool.name in names:
                msg = f"a second pool is called {pool.name!r}, and replicas are named after pools - at `{path}.name`"
                raise InputError(msg)
            names |= {pool.name} if pool.name else set()


def _check_quantity(path: str, text: str | None, unit: units.Unit) -> None:
    _check_text(path, text, partial(units.parse, unit=unit))


def _check_text(path: str, text: object, reads: Callable[[str], float]) -> None:
    """What is said there can be read; nothing need be."""
    if not isinstance(text, str):
        return
    try:
        reads(text)
    except InputError as error:
        msg = f"{error} - at `{path}`"
        raise InputError(msg) from error


def check_source(path: str, source: Source) -> None:
    """Hold one part of a fleet against itself. Raises `InputError` with its path."""
    given = [key for key in ("pod", "accelerator", "host") if getattr(source, key) is not None]
    if len(given) != 1:
        msg = f"names {' and '.join(given) or 'nothing'}; give one of pod, accelerator, host - at `{path}`"
        raise InputError(msg)
    if source.accelerator is not None and source.count is None:
        msg = f"accelerator {source.accelerator!r} needs a count - at `{path}`"
        raise InputError(msg)
    if source.host is not None and source.blocking_ratio is not None:
        msg = f"host {source.host!r} has no links that block; leave blocking out - at `{path}.blocking`"
        raise InputError(msg)
    if source.host is not None and not source.cores:
        msg = f"host {source.host!r} needs its cores, such as [0, 1] - at `{path}`"
        raise InputError(msg)


def _check_pool(path: str, pool: Pool, plan: Plan) -> None:
    if pool.on not in plan.fleet:
        msg = f"{pool.on!r} is not in the fleet ({', '.join(plan.fleet)}) - at `{path}.on`"
        raise InputError(msg)
    _check_experts(path, pool, plan)
    _check_stages(path, pool, plan)
    _check_cache(f"{path}.prefix_cache", pool.prefix_cache or PoolCache())
    for name in NAMES:
        if name not in PLAYED and getattr(pool.engine_args, name) is not None:
            instead = "; say max_step_tokens beside it" if name == "max_num_batched_tokens" else ""
            msg = f"{name} is not played by the emulation, which knows {', '.join(PLAYED)}{instead} - at `{path}.engine_args.{name}`"
            raise InputError(msg)
    layout = pool.layout
    if layout.world % layout.ep:
        msg = (
            f"ep={layout.ep} does not divide the world of tp*pp*dp*cp={layout.world} ranks; "
            f"make ep a divisor of it - at `{path}.layout`"
        )
        raise InputError(msg)


def _check_hand_over(path: str, pool: Pool, service: Service) -> None:
    _check_quantity(f"{path}.kv_link", pool.kv_link, "bytes_per_s")
    _check_quantity(f"{path}.link", pool.link, "bytes_per_s")
    if pool.hands_to and pool.role != "prefill":
        msg = f"a pool for {pool.role!r} hands on no caches; leave it out, or make role prefill - at `{path}.hands_to`"
        raise InputError(msg)
    decoding = [one.name for one in service.pools if one.role == "decode" and one.name]
    for name in pool.hands_to:
        if name not in decoding:
            msg = f"{name!r} is no pool for decode of {service.model} ({', '.join(decoding) or 'none is named'}) - at `{path}.hands_to`"
            raise InputError(msg)


def _check_experts(path: str, pool: Pool, plan: Plan) -> None:
    """Experts that are apart say where and on how many ranks, and only decode has them so."""
    is_cut = pool.micro_batches is not None and not pool.stages
    if pool.experts_on is None and pool.expert_ranks is None and not is_cut:
        return
    if pool.experts_on is None or pool.expert_ranks is None:
        missing = "experts_on" if pool.experts_on is None else "expert_ranks"
        msg = f"experts that are apart need experts_on and expert_ranks; say both, or neither and no micro_batches - at `{path}.{missing}`"
        raise InputError(msg)
    if pool.experts_on not in plan.fleet:
        msg = f"{pool.experts_on!r} is not in the fleet ({', '.join(plan.fleet)}) - at `{path}.experts_on`"
        raise InputError(msg)
    if pool.role != "decode":
        msg = f"experts apart of a pool for {pool.role!r}; only decode puts them apart, make role decode - at `{path}.role`"
        raise InputError(msg)


def _check_stages(path: str, pool: Pool, plan: Plan) -> None:
    for n, stage in enumerate(pool.stages):
        if stage.on not in plan.fleet:
            msg = f"{stage.on!r} is not in the fleet ({', '.join(plan.fleet)}) - at `{path}.stages[{n}].on`"
            raise InputError(msg)
    if pool.stages and pool.layout.pp != len(pool.stages):
        msg = f"pp={pool.layout.pp} and {len(pool.stages)} stages are given; make them the same number - at `{path}.stages`"
        raise InputError(msg)


def _check_cache(path: str, cache: PoolCache) -> None:
    """A tier has a size and a bandwidth, or neither."""
    _check_quantity(f"{path}.host", cache.host, "bytes")
    _check_quantity(f"{path}.host_bandwidth", cache.host_bandwidth, "bytes_per_s")
    _check_quantity(f"{path}.remote", cache.remote, "bytes")
    _check_quantity(f"{path}.remote_bandwidth", cache.remote_bandwidth, "bytes_per_s")
    _check_quantity(f"{path}.remote_latency", cache.remote_latency, "s")
    for tier in ("host", "remote"):
        size, speed = getattr(cache, tier), getattr(cache, f"{tier}_bandwidth")
        if (size is None) != (speed is None):
            given, missing = (
                (tier, f"{tier}_bandwidth") if speed is None else (f"{tier}_bandwidth", tier)
            )
            msg = f"{given} is said and {missing} is not; say both, or neither for no such tier - at `{path}.{missing}`"
            raise InputError(msg)
        if speed is not None and not units.parse(speed, "bytes_per_s"):
            msg = f"{tier}_bandwidth is {speed}, by which nothing is ever loaded; give it more, or leave the tier out - at `{path}.{tier}_bandwidth`"
            raise InputError(msg)
    if cache.remote_latency is not None and cache.remote is None:
        msg = f"remote_latency is said and remote is not; say how large the remote store is - at `{path}.remote`"
        raise InputError(msg)


def refuse_stages(plan: Plan) -> None:
    """Raise `InputError` for a pipeline of unequal stages: nothing launches one yet."""
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            if pool.stages:
                parts = ", ".join(dict.fromkeys(stage.on for stage in pool.stages))
                msg = (
                    f"pool {pool.name or pool.on!r} is a pipeline of unequal stages over {parts}, which no engine is launched with yet; "
                    f"polypod simulate plays it - at `$.services[{s}].pools[{p}].stages`"
                )
                raise InputError(msg)
