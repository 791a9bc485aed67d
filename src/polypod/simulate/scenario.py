"""What is simulated: replicas, what arrives, what breaks, and by which rules the policy decides."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, get_args

from polypod.cost.steptime import StepTime
from polypod.errors import InputError, nearest_names
from polypod.policy.events import ReplicaUp
from polypod.policy.settings import PolicySettings
from polypod.record import FaultNote
from polypod.simulate.series import Watch, check_caps
from polypod.simulate.trace import Arrival
from polypod.simulate.ways import Ways
from polypod.workload.traffic_loop import ClosedLoop

FaultKind = Literal["down", "up", "speed", "hang", "link", "way"]
FAULT_KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a driver plays on one replica; `simulate.faults` makes these from broken cards, nodes, racks and links.

    `down` loses all that is aboard, `up` brings it back with an empty cache; `hang` makes no progress until `down`, and nobody is told.
    From `speed` on steps take `factor` times as long, from `link` on transfers to and from the replica do; 1 is as told. From `way` on the shared way
    of caches that has the replica's place here is so many times as narrow; infinity is dead, and caches on it wait until it is back.
    `back_in_s` of one that is `down` is when it is promised to be back, where it is: newcomers wait for that, if it is not too long.
    """

    at_s: float
    replica: str
    what: FaultKind
    factor: float = 1.0
    back_in_s: float | None = None
    reason: str = "a fault"

    def __post_init__(self) -> None:
        who = f"{self.what!r} of {self.replica!r}"
        if self.what not in FAULT_KINDS:
            msg = f"{who} is nothing that a replica does; say one of {', '.join(FAULT_KINDS)}"
            raise InputError(msg)
        if not 0 <= self.at_s < math.inf:
            msg = f"{who} is at {self.at_s:g} s; a run begins at 0 s, and ends"
            raise InputError(msg)
        if self.factor != 1.0 and self.what not in ("speed", "link", "way"):
            msg = f"{who} has the factor {self.factor:g}; only 'speed', 'link' and 'way' take one"
            raise InputError(msg)
        if not 0 < self.factor < math.inf and (self.what, self.factor) != ("way", math.inf):
            msg = f"{who} has the factor {self.factor:g}; 2 is twice as long, 1 as told"
            raise InputError(msg)
        if self.back_in_s is not None:
            self._check_promise(who, self.back_in_s)

    def _check_promise(self, who: str, back_in_s: float) -> None:
        if self.what != "down":
            msg = f"{who} has a time to be back in; only 'down' takes one"
            raise InputError(msg)
        if not 0 <= back_in_s < math.inf:
            msg = f"{who} is to be back in {back_in_s:g} s; it has to be 0 or more, or not be said"
            raise InputError(msg)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """All that a run depends on: the same scenario gives the same record, byte for byte.

    `slowdowns` makes a replica slower, by this factor, than the step time the policy is told: a straggler. `step_times` are those that replicas have, where
    the policy is told others: what a calibration was wrong about.
    `watch` asks for series over time, and holds replicas under caps of their power.
    `notes` say what broke and whom `faults` hit; they change nothing in the run, and are told in the record.
    """

    replicas: tuple[ReplicaUp, ...]
    settings: PolicySettings
    trace: tuple[Arrival, ...]
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    notes: tuple[FaultNote, ...] = ()
    slowdowns: Mapping[str, float] = field(default_factory=dict)
    step_times: Mapping[str, StepTime] = field(default_factory=dict)
    watch: Watch | None = None
    trace_sha256: str | None = (
        None  # of what the arrivals were made from, where they are not here; told in the record
    )
    loop: ClosedLoop | None = None  # users who send when they are answered, in place of the trace
    is_hashed: bool | None = (
        None  # whether requests come with hashes of their blocks; None: as the trace has it
    )
    ways: Ways | None = None  # what caches share beside their ends' own links
    plan: dict[str, Any] | None = None  # where the replicas come from; only told in the record
    gateway: int | None = None  # which of how many parts of a run this is; only told in the record
    gateways: int | None = None

    @cached_property
    def block_tokens(self) -> dict[str, int]:
        """Tokens of a block, by model, of models whose requests come with hashes of their blocks."""
        if self.is_hashed is not None:
            hashed = {one.model for one in self.settings.services} if self.is_hashed else set()
        else:
            hashed = {arrival.model for arrival in self.trace if arrival.prefix_hashes}
        return {
            one.model: one.block_tokens for one in self.settings.services if one.model in hashed
        }

    def step_time_of(self, up: ReplicaUp) -> StepTime:
        """What its steps take, whatever the policy is told."""
        return self.step_times.get(up.replica, up.step_time)

    def __post_init__(self) -> None:
        names = [up.replica for up in self.replicas]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            msg = f"several replicas are called {', '.join(twice)}; give every pool its own name"
            raise InputError(msg)
        self._check_names(set(names))
        self._check_ways()
        self._check_step_times()
        if self.watch is not None:
            check_caps(self.watch, {up.replica: up.pool for up in self.replicas})

    def _check_ways(self) -> None:
        ways = self.ways
        if ways is not None and len(ways.way_RT) != len(self.replicas):
            msg = f"the ways are of {len(ways.way_RT)} replicas, and the scenario has {len(self.replicas)}; make them of the same"
            raise InputError(msg)
        known = set(() if ways is None else ways.names)
        for fault in self.faults:
            if fault.what == "way" and fault.replica not in known:
                near = ", ".join(nearest_names(fault.replica, sorted(known)) or sorted(known)[:5])
                msg = f"no shared way of this scenario is called {fault.replica!r}; nearest: {near or 'it has none'}"
                raise InputError(msg)

    def _check_step_times(self) -> None:
        for up in self.replicas:
            told, its = up.step_time, self.step_time_of(up)
            if (its.data_ranks, its.stages) != (told.data_ranks, told.stages):
                msg = f"the steps of {up.replica!r} are of {its.data_ranks} ranks and {its.stages} stages, it has {told.data_ranks} and {told.stages}"
                raise InputError(msg)

    def _check_names(self, known: set[str]) -> None:
        hit = (fault.replica for fault in self.faults if fault.what != "way")
        for name in [*hit, *self.slowdowns, *self.step_times]:
            if name not in known:
                near = ", ".join(nearest_names(name, sorted(known)) or sorted(known)[:5])
                msg = f"no replica of this scenario is called {name!r}; nearest: {near}"
                raise InputError(msg)
        for name, factor in self.slowdowns.items():
            if not factor > 0:
                msg = f"the slowdown of {name!r} is {factor:g}; 2 is half as fast, 1 as told"
                raise InputError(msg)
