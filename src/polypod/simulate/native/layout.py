"""The structs of `types.h` as numpy sees them, and a scenario put into them."""

import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from polypod.engine.native.structs import KIND, REPLICA, struct
from polypod.engine.replica import PLAIN
from polypod.errors import InputError
from polypod.policy.events import ReplicaUp
from polypod.policy.health import MOST_POOLS, ROLES, pools_of
from polypod.policy.router import held_tokens
from polypod.simulate.scenario import Scenario
from polypod.simulate.series import Draw, Watch
from polypod.simulate.trace import Arrival
from polypod.simulate.ways import Ways
from polypod.workload.traffic import Trace

Rows = NDArray[Any]
Integers = NDArray[np.int64]
Name = TypeVar("Name", bound=Hashable)

NONE: Final = -1


CAP: Final = struct(
    "first_replica replicas", "limit_w idle_w", "limit_w idle_w first_replica replicas"
)
SERVICE: Final = struct(
    "context_tokens block_tokens is_hashed",
    "mean_output_tokens",
    "context_tokens mean_output_tokens block_tokens is_hashed",
)
SETTINGS: Final = struct(
    "seed models replicas kinds queue_requests max_attempts retry_floor quarantine_deaths log pools caps sample_below prefix_blocks remotes "
    "ways way_tiers tiers exact_caches",
    "queue_wait_s kv_wait_s retry_fraction breaker_open_s interval_s",
    "seed models replicas kinds queue_requests max_attempts retry_floor quarantine_deaths queue_wait_s kv_wait_s retry_fraction breaker_open_s "
    "log pools caps sample_below interval_s prefix_blocks remotes ways way_tiers tiers exact_caches",
)
WAY_STEP: Final = struct("way instance first tier", "")
CHANGE: Final = struct(
    "replica what epoch", "at_s factor back_in_s", "at_s replica what epoch factor back_in_s"
)
ARRIVAL: Final = struct(
    "model tenant input_tokens output_tokens max_output_tokens priority first_hash hashes",
    "at_s patience_s",
    "at_s patience_s model tenant input_tokens output_tokens max_output_tokens priority first_hash hashes",
)
ENTRY: Final = struct("word request attempt replica epoch count slot", "at_s first second")
OUTCOME: Final = struct(
    "request status attempts replica prefill_replica input_tokens output_tokens model tenant",
    "arrival_s placed_s prefilled_s first_s end_s predicted_first_s",
)

_EVENTS: Final = (
    "arrived", "first", "finished", "failed", "gone", "up", "down", "woke", "prefilled", "kv_arrived",
    "speed", "hang", "link", "way", "tick",
)  # fmt: skip
_ACTIONS: Final = (
    "dispatch", "retry", "reject", "cancel", "wake_at", "prefill", "transfer", "decode",
)  # fmt: skip
WORDS: Final = {name: number for number, name in enumerate(_EVENTS, start=1)} | {
    name: number for number, name in enumerate(_ACTIONS, start=32)
}

ENDED_WELL: Final = 0
ENDED_GONE: Final = 1000
NOT_ENDED: Final = 1001

_ALL, _SAMPLE = 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A scenario as the core reads it. All must live as long as the core does."""

    settings: Rows
    kinds: Rows
    knot_tokens: NDArray[np.float64]
    knot_seconds: NDArray[np.float64]
    replicas: Rows
    services: Rows
    caps: Rows
    capped: NDArray[np.int64]
    way_steps: Rows  # replicas x tiers
    way_capacities: NDArray[np.float64]
    names: tuple[str, ...]  # of replicas
    models: tuple[str, ...]
    pools: tuple[str, ...]

    def pointers(self) -> list[int]:
        """In the order of the core's arguments."""
        arrays = (
            self.settings, self.kinds, self.knot_tokens, self.knot_seconds, self.replicas, self.services, self.caps, self.capped,
            self.way_steps, self.way_capacities,
        )  # fmt: skip
        return [int(array.ctypes.data) for array in arrays]


def encode(scenario: Scenario, *, share: float) -> Encoded:
    """Put a scenario's replicas and settings into arrays; arrivals and changes come apart.

    `share` of the requests, 0 to 1, have their steps written down.
    """
    settings, watch = scenario.settings, scenario.watch or Watch(interval_s=sys.float_info.max)
    models = tuple(service.model for service in settings.services)
    pools = tuple(dict.fromkeys(up.pool for up in scenario.replicas))
    kinds = list(
        dict.fromkeys(
            (step, up.max_step_tokens)
            for up in scenario.replicas
            for step in (up.step_time, scenario.step_time_of(up))
        )
    )
    names = tuple(up.replica for up in scenario.replicas)
    caps, capped = _caps(scenario, watch, names)
    ways = scenario.ways
    hashed = scenario.block_tokens
    stores = _numbered(dict.fromkeys((up.model, up.pool) for up in scenario.replicas))
    limits = (
        _signed(scenario.seed), len(models), len(names), len(kinds), settings.queue_requests, settings.max_attempts,
        settings.retry_budget_floor, settings.quarantine_deaths, settings.queue_wait_s, settings.kv_wait_s, settings.retry_budget_fraction,
        settings.breaker_open_s, *_log(share, len(pools), len(caps)), np.inf if scenario.watch is None else watch.interval_s,
        settings.prefix_blocks, len(stores), *_ways_limits(ways),
    )  # fmt: skip
    starts = np.cumsum([0, *(len(step.tokens) for step, _ in kinds)]).tolist()
    rows = [
        (
            start, len(step.tokens), step.kv_token_s, step.pair_s, step.sequence_s, step.data_ranks, step.stages, budget,
        )
        for start, (step, budget) in zip(starts, kinds, strict=False)
    ]  # fmt: skip
    model_at, pool_at, kind_at = map(_numbered, (models, pools, kinds))
    cap_of = {name: number for number, cap in enumerate(watch.caps) for name in cap.replicas}
    bits = _bits(scenario)
    block_tokens = {one.model: one.block_tokens for one in settings.services}
    replicas = [
        (
            model_at[up.model], pool_at[up.pool], kind_at[up.step_time, up.max_step_tokens],
            kind_at[scenario.step_time_of(up), up.max_step_tokens], *_limits(up),
            scenario.slowdowns.get(up.replica, 1.0), up.pool in watch.draws, cap_of.get(up.replica, NONE),
            *_draws(watch.draws.get(up.pool)), *_hand_over(up, bits),
            up.expert_imbalance_cv, *_tiers(up, block_tokens[up.model], stores[up.model, up.pool]), port,
        )
        for up, port in zip(scenario.replicas, _ports(scenario), strict=True)
    ]  # fmt: skip
    return Encoded(
        settings=np.array([limits], dtype=SETTINGS),
        kinds=np.array(rows, dtype=KIND),
        knot_tokens=np.array([knot for step, _ in kinds for knot in step.tokens], dtype=np.float64),
        knot_seconds=np.array(
            [knot for step, _ in kinds for knot in step.seconds], dtype=np.float64
        ),
        replicas=np.array(replicas, dtype=REPLICA),
        services=np.array(
            [
                (one.context_tokens, one.mean_output_tokens, one.block_tokens, one.model in hashed)
                for one in settings.services
            ],
            dtype=SERVICE,
        ),
        caps=caps,
        capped=capped,
        way_steps=_way_steps(ways),
        way_capacities=np.zeros(0)
        if ways is None
        else np.ascontiguousarray(ways.capacity_bytes_per_s_W, dtype=np.float64),
        names=names,
        models=models,
        pools=pools,
    )


def _log(share: float, pools: int, caps: int) -> tuple[int, int, int, int]:
    """What is written down, how many pools and caps there are, and below which number a request is in the sample."""
    if share == 1.0:
        return _ALL, pools, caps, 0
    return _SAMPLE, pools, caps, _signed(int(share * 2**64))


def _caps(scenario: Scenario, watch: Watch, names: Sequence[str]) -> tuple[Rows, NDArray[np.int64]]:
    """The caps, and the numbers of the replicas under them, one cap's after another's."""
    numbers, pool_of = _numbered(names), {up.replica: up.pool for up in scenario.replicas}
    rows: list[tuple[float, float, int, int]] = []
    capped: list[int] = []
    for cap in watch.caps:
        idle_w = 0.0
        for name in cap.replicas:
            idle_w += watch.draws[pool_of[name]].idle_w
        rows.append((cap.limit_w, idle_w, len(capped), len(cap.replicas)))
        capped += [numbers[name] for name in cap.replicas]
    return np.array(rows, dtype=CAP), np.array(capped, dtype=np.int64)


def _ways_limits(ways: Ways | None) -> tuple[int, int, int, int]:
    if ways is None:
        return (0, 0, 0, 0)
    return len(ways.names), ways.way_RT.shape[1], len(ways.tiers), ways.exact_caches


def _ports(scenario: Scenario) -> list[float]:
    """Each replica's own link as its caches find it."""
    if scenario.ways is None:
        return [up.kv_link_bytes_per_s for up in scenario.replicas]
    return [float(port) for port in scenario.ways.port_bytes_per_s_R]


def _way_steps(ways: Ways | None) -> Rows:
    if ways is None:
        return np.zeros(0, dtype=WAY_STEP)
    rows = np.zeros(ways.way_RT.size, dtype=WAY_STEP)
    rows["way"], rows["instance"] = ways.way_RT.ravel(), ways.instance_RT.ravel()
    rows["first"], rows["tier"] = ways.first_RT.ravel(), ways.tier_RT.ravel()
    return rows


def _bits(scenario: Scenario) -> dict[str, int]:
    """One bit for each pool of replicas for one phase, or named by one."""
    pools = dict.fromkeys(pool for up in scenario.replicas for pool in pools_of(up))
    if len(pools) > MOST_POOLS:
        msg = f"{len(pools)} pools of prefill and decode, and a node tells {MOST_POOLS} apart; make fewer and larger pools"
        raise InputError(msg)
    return {pool: 1 << number for number, pool in enumerate(pools)}


def _hand_over(up: ReplicaUp, bits: Mapping[str, int]) -> tuple[Any, ...]:
    """Its role, and how caches come and go."""
    own = sum(bits[pool] for pool in pools_of(up))
    return (
        ROLES.index(up.role), own if up.role == "decode" else 0, own if up.role == "prefill" else 0,
        up.kv_token_bytes, up.kv_link_bytes_per_s, up.kv_link_latency_s,
    )  # fmt: skip


def _tiers(up: ReplicaUp, block_tokens: int, store: int) -> tuple[Any, ...]:
    """What a replica caches of prompts below HBM, in blocks, and how fast it loads them. The remote store is none without room for a block."""
    tiers = up.prefix_tiers
    if tiers is None:
        return (held_tokens(up), 0, NONE, 0, 0.0, 0.0, 0.0, 0.0)
    remote = tiers.blocks(tiers.remote_bytes, block_tokens) if tiers.remote_bytes else 0
    return (
        held_tokens(up), tiers.blocks(tiers.host_bytes / up.step_time.data_ranks, block_tokens), store if remote > 0 else NONE, remote,
        tiers.kv_bytes_per_token * block_tokens, tiers.host_bytes_per_s, tiers.remote_bytes_per_s, tiers.remote_latency_s,
    )  # fmt: skip


def _draws(draw: Draw | None) -> tuple[float, float, float]:
    return (0.0,) * 3 if draw is None else (draw.idle_w, draw.prompt_w, draw.decode_w)


def _numbered(names: Iterable[Name]) -> dict[Name, int]:
    return {name: number for number, name in enumerate(names)}


def _signed(seed: int) -> int:
    """The seed's lowest 64 bits, as a signed number holds them."""
    bits = seed % 2**64
    return bits - 2**64 if bits >= 2**63 else bits


def _limits(up: ReplicaUp) -> tuple[Any, ...]:
    engine = up.engine or PLAIN
    return (
        up.context_tokens, up.kv_capacity_tokens, up.max_sequences, up.max_step_tokens, engine.tokens_per_step, engine.drafts,
        engine.draft_share, engine.prefix_hits, engine.exclusive_prefill, engine.schedules_ahead, engine.whole_prompts, engine.balance_steps,
    )  # fmt: skip


def arrival_rows(trace: Trace, models: Sequence[str]) -> tuple[Rows, Integers]:
    """A block's arrivals, and the hashes of their prompts. A model that no service has is `NONE`; one that the trace does not name is the first."""
    numbers = {"": 0} | _numbered(models)
    rows = np.zeros(len(trace), dtype=ARRIVAL)
    rows["at_s"], rows["patience_s"] = trace.arrival_s, np.inf
    rows["model"] = np.array([numbers.get(name, NONE) for name in trace.models])[trace.model]
    rows["tenant"], rows["priority"] = trace.tenant, trace.priority
    rows["input_tokens"], rows["output_tokens"] = trace.input_tokens, trace.output_tokens
    rows["max_output_tokens"] = np.where(trace.max_output_tokens, trace.max_output_tokens, NONE)
    rows["first_hash"], rows["hashes"] = trace.block_starts[:-1], trace.num_blocks
    return rows, np.ascontiguousarray(trace.block_hashes)


def rows_of(arrivals: Sequence[Arrival], models: Sequence[str]) -> tuple[Rows, Integers]:
    """The same of single arrivals in order of time, without their tenants."""
    numbers = _numbered(models)
    rows = np.zeros(len(arrivals), dtype=ARRIVAL)
    columns = {
        "at_s": [one.at_s for one in arrivals],
        "patience_s": [np.inf if one.patience_s is None else one.patience_s for one in arrivals],
        "model": [numbers.get(one.model, NONE) for one in arrivals],
        "input_tokens": [one.input_tokens for one in arrivals],
        "output_tokens": [one.output_tokens for one in arrivals],
        "max_output_tokens": [
            NONE if one.max_output_tokens is None else one.max_output_tokens for one in arrivals
        ],
        "priority": [one.priority for one in arrivals],
        "hashes": [len(one.prefix_hashes) for one in arrivals],
    }
    for name, values in columns.items():
        rows[name] = values
    rows["first_hash"] = np.cumsum(rows["hashes"]) - rows["hashes"]
    hashes = [key for one in arrivals for key in one.prefix_hashes]
    return rows, np.array(hashes, dtype=np.int64)
