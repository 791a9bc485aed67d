"""The driver on a virtual clock: take the next event, ask the policy, carry out what it says, write both down.

The agenda is a heap of (time, kind, order of entry): at one moment replicas go down and up first, then engines report,
then caches arrive, then timers ring, then requests arrive. Nothing in a run depends on anything else, so it repeats byte for byte.
"""

import hashlib
import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import BinaryIO, Final

import msgspec

import polypod
from polypod.engine import Progress
from polypod.errors import RunError
from polypod.policy.actions import (
    AnyAction,
    Cancel,
    Decode,
    Dispatch,
    Prefill,
    Reject,
    Retry,
    TransferKv,
    WakeAt,
)
from polypod.policy.events import (
    AnyEvent,
    ClientGone,
    FirstToken,
    KvArrived,
    PrefillFinished,
    ReplicaDown,
    ReplicaUp,
    RequestFailed,
    RequestFinished,
    Woke,
)
from polypod.policy.node import Policy
from polypod.record import Header, Line, Measure, Step, Writer, ended
from polypod.simulate.changes import changes
from polypod.simulate.engines import Engine, Engines, Start, output_tokens
from polypod.simulate.sampler import Sampler
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.trace import Arrival, arrivals, arrived
from polypod.simulate.transfers import Transfers


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A simulation that has ended. `lines` is the record, unless it went to a file."""

    end_s: float
    events: int
    lines: tuple[Line, ...]


def play(scenario: Scenario, file: BinaryIO | None = None) -> Run:
    """Play the scenario to its end: until every request has its answer and nothing is left to happen.

    The record goes to `file` where one is given, else it is kept in the result.
    """
    lines: list[Line] = []
    driver = _Driver(scenario, lines.append if file is None else Writer(file).write)
    driver.run()
    return Run(end_s=driver.now_s, events=driver.events, lines=tuple(lines))


class _Kind(IntEnum):
    """What comes first when several things happen at one moment."""

    EVENT = 0
    ENGINE = 1
    CACHE = 2
    TIMER = 3
    ARRIVAL = 4


_Item = AnyEvent | Engine | Fault | Transfers


class _Driver:
    def __init__(self, scenario: Scenario, write: Callable[[Line], None]) -> None:
        self.now_s = 0.0
        self.events = 0
        self._scenario = scenario
        self._write = write
        self._policy = Policy(scenario.settings, seed=scenario.seed)
        self._block_tokens = scenario.block_tokens
        self._engines = Engines(
            scenario.replicas,
            scenario.slowdowns,
            seed=scenario.seed,
            block_tokens=self._block_tokens,
            step_times=scenario.step_times,
        )
        self._transfers = Transfers(scenario.ways, scenario.replicas)
        names = () if scenario.ways is None else scenario.ways.names
        self._ways = {name: number for number, name in enumerate(names)}
        self._transfers_due_s = math.inf
        self._on_the_way: dict[int, TransferKv] = {}
        self._token_bytes = {up.replica: up.kv_token_bytes for up in scenario.replicas}
        self._agenda: list[tuple[float, _Kind, int, _Item]] = []
        self._entries = 0
        self._sent = 0
        self._arrivals: Iterator[tuple[int, Arrival]] = iter(())
        self._asked: dict[int, Arrival] = {}  # requests that have not ended
        watch = scenario.watch
        self._sampler = None if watch is None else Sampler(scenario, watch, self._engines)

    def run(self) -> None:
        self._write(header(self._scenario))
        for note in self._scenario.notes:
            self._write(note)
        self._plan_replicas()
        self._plan_first()
        while self._agenda:
            at_s, kind, _, item = self._agenda[0]
            if self._is_over(at_s, kind, item):
                heapq.heappop(self._agenda)
            elif self._sampler is not None and self._sampler.next_s <= at_s:
                self._sample(self._sampler, self._sampler.next_s)
            else:
                heapq.heappop(self._agenda)
                self.now_s = at_s
                self._play(kind, item)
        if self._sampler is not None and self._sampler.last_s < self.now_s:
            self._sample(self._sampler, self.now_s)
        for replica, totals in self._engines.totals().items():
            for name in MEASURES + (CACHE_MEASURES if self._block_tokens else ()):
                value = float(getattr(totals, name))
                self._write(Measure(at_s=self.now_s, of=replica, name=name, value=value))
        self._write(ended(self.now_s))

    def _is_over(self, at_s: float, kind: _Kind, item: _Item) -> bool:
        """Whether an entry means nothing any more, so that the run must not last until its time."""
        if isinstance(item, Engine):
            return item.due_s != at_s  # an earlier entry has replaced it
        if isinstance(item, Transfers):
            return self._transfers_due_s != at_s
        if isinstance(item, ClientGone):
            return item.request not in self._asked
        is_empty = bool(self._sent) and not self._asked  # nobody waits, and nobody will come
        return is_empty and kind in (_Kind.TIMER, _Kind.EVENT)  # so nobody hears of a repair

    def _play(self, kind: _Kind, item: _Item) -> None:
        if isinstance(item, Engine):
            self._advance(item)
            return
        if isinstance(item, Fault):
            self._strike(item)
            return
        if isinstance(item, Transfers):
            self._hand_over()
            return
        if kind == _Kind.ARRIVAL and self._scenario.loop is None:
            self._plan_arrival()
        self._tell(item)
        if isinstance(item, ClientGone):
            del self._asked[item.request]
            self._plan_after_end()

    def _sample(self, sampler: Sampler, at_s: float) -> None:
        for line in sampler.lines(at_s, self._policy.queues(), self._transfers.tier_bytes(at_s)):
            self._write(line)
        for replica, factor in sampler.slowed():
            self._plan_engine(self._engines.cap(replica, at_s, factor))

    def _strike(self, fault: Fault) -> None:
        if fault.what == "link":
            self._transfers.slow(fault.at_s, fault.replica, fault.factor)
            self._plan_transfers()
        elif fault.what == "way":
            self._transfers.slow_way(fault.at_s, self._ways[fault.replica], fault.factor)
            self._plan_transfers()
        else:
            self._plan_engine(self._engines.strike(fault))

    # ---- what is to come

    def _plan(self, at_s: float, kind: _Kind, item: _Item) -> None:
        self._entries += 1
        heapq.heappush(self._agenda, (at_s, kind, self._entries, item))

    def _plan_replicas(self) -> None:
        for at_s, change in changes(self._scenario):
            self._plan(at_s, _Kind.EVENT, change)

    def _plan_first(self) -> None:
        """The first arrival; of a closed loop the first of every user."""
        loop = self._scenario.loop
        if loop is None:
            trace = sorted(self._scenario.trace, key=lambda arrival: arrival.at_s)
            self._arrivals = enumerate(trace, start=1)
            self._plan_arrival()
            return
        model = self._scenario.settings.services[0].model
        self._arrivals = enumerate(arrivals(loop.trace, model), start=1)
        for _ in range(loop.num_first):
            self._plan_arrival(0.0)

    def _plan_after_end(self) -> None:
        """A request has ended: of a closed loop, its user's next one."""
        loop = self._scenario.loop
        at_s = None if loop is None else loop.next_s(self._sent, self.now_s)
        if at_s is not None:
            self._plan_arrival(at_s)

    def _plan_arrival(self, at_s: float | None = None) -> None:
        """The next arrival, when it says, or when it is told here."""
        request, arrival = next(self._arrivals, (0, None))
        if arrival is None:
            return
        arrival = arrival if at_s is None else replace(arrival, at_s=at_s)
        self._sent += 1
        self._asked[request] = arrival
        event = arrived(request, arrival, self._block_tokens.get(arrival.model))
        self._plan(arrival.at_s, _Kind.ARRIVAL, event)
        if arrival.patience_s is not None:
            gone_s = arrival.at_s + arrival.patience_s
            self._plan(gone_s, _Kind.TIMER, ClientGone(at_s=gone_s, request=request))

    def _plan_engine(self, engine: Engine | None) -> None:
        """See to it that the engine is looked at when its batch changes next."""
        if engine is not None and engine.emulation.next_s < engine.due_s:
            engine.due_s = engine.emulation.next_s
            self._plan(engine.due_s, _Kind.ENGINE, engine)

    def _plan_transfers(self) -> None:
        """The same of the caches on their way."""
        if self._transfers.next_s < self._transfers_due_s:
            self._transfers_due_s = self._transfers.next_s
            self._plan(self._transfers_due_s, _Kind.CACHE, self._transfers)

    # ---- what happens

    def _tell(self, event: AnyEvent) -> None:
        """Ask the policy, write it down, and do what it says."""
        self.events += 1
        if isinstance(event, ReplicaUp | ReplicaDown):
            self._engines.switch(event)
        if isinstance(event, ReplicaUp):
            self._transfers.link(event)
        actions = self._policy.handle(event)
        self._write(Step(event=event, actions=actions))
        for action in actions:
            self._carry_out(action)

    def _advance(self, engine: Engine) -> None:
        engine.due_s = math.inf
        for progress, start in self._engines.advance(engine, self.now_s):
            self._tell(self._word(engine, progress, start))
            if progress.kind == "finished":
                self._plan_after_end()
        self._plan_engine(engine)

    def _hand_over(self) -> None:
        """Caches arrive: their sources are rid of them, and their targets are told to decode."""
        self._transfers_due_s = math.inf
        for request in self._transfers.advance(self.now_s):
            self._plan_engine(self._engines.stop(request, self.now_s))
            sent = self._on_the_way.pop(request)
            self._tell(
                KvArrived(
                    at_s=self.now_s,
                    request=request,
                    attempt=sent.attempt,
                    replica=sent.replica,
                    epoch=sent.epoch,
                )
            )
        self._plan_transfers()

    def _word(
        self, engine: Engine, progress: Progress, start: Start
    ) -> FirstToken | RequestFinished | PrefillFinished:
        """What the engine reports, as the policy hears it."""
        request, attempt = start.request, start.attempt
        at_s, replica, epoch = progress.at_s, start.replica, start.epoch
        if progress.kind == "prefilled":
            return PrefillFinished(
                at_s=at_s,
                request=request,
                attempt=attempt,
                replica=replica,
                epoch=epoch,
                kv_tokens=self._asked[request].input_tokens,
            )
        if progress.kind == "first":
            return FirstToken(
                at_s=at_s, request=request, attempt=attempt, replica=replica, epoch=epoch
            )
        arrival = self._asked.pop(request)
        return RequestFinished(
            at_s=at_s,
            request=request,
            attempt=attempt,
            replica=replica,
            epoch=epoch,
            input_tokens=arrival.input_tokens,
            output_tokens=output_tokens(arrival, engine.up),
        )

    # ---- what is done about it

    def _carry_out(self, action: AnyAction) -> None:
        match action:
            case Dispatch() | Prefill() | Decode():
                self._start(action)
            case TransferKv():
                self._transfer(action)
            case Cancel() | Retry():
                self._stop(action.request)
            case Reject():
                self._stop(action.request)
                del self._asked[action.request]
                self._plan_after_end()
            case WakeAt():
                at_s = max(action.at_s, self.now_s)
                self._plan(at_s, _Kind.TIMER, Woke(at_s=at_s))
            case _:
                msg = (
                    f"the policy asks for {type(action).__name__}, which the simulator does not do"
                )
                raise RunError(msg)

    def _transfer(self, action: TransferKv) -> None:
        """A cache leaves the engine that holds it until it has arrived."""
        tokens = self._asked[action.request].input_tokens
        self._on_the_way[action.request] = action
        self._transfers.start(
            self.now_s,
            request=action.request,
            ends=(action.source, action.replica),
            kv_bytes=tokens * self._token_bytes[action.source],
        )
        self._plan_transfers()

    def _stop(self, request: int) -> None:
        """Drop all there is of a request: on an engine, and on its way between two."""
        self._plan_engine(self._engines.stop(request, self.now_s))
        if self._on_the_way.pop(request, None) is not None:
            self._transfers.stop(self.now_s, request)
            self._plan_transfers()

    def _start(self, action: Start) -> None:
        arrival = self._asked[action.request]
        try:
            self._plan_engine(self._engines.submit(action, arrival, self.now_s))
        except ValueError as error:
            failed = RequestFailed(
                at_s=self.now_s,
                request=action.request,
                attempt=action.attempt,
                replica=action.replica,
                epoch=action.epoch,
                kind="client",
                status=400,
                detail=str(error),
            )
            self._plan(self.now_s, _Kind.EVENT, failed)


MEASURES: Final = ("busy_s", "computed_tokens", "preemptions")
"""Of every replica, over all its starts, as of the run's end."""

CACHE_MEASURES: Final = (
    "found_hbm_tokens", "found_host_tokens", "found_remote_tokens", "evicted_hbm_tokens", "evicted_host_tokens"
)  # fmt: skip
"""Only where requests come with hashes."""


def header(scenario: Scenario, share: float = 1.0) -> Header:
    """What the run is made from."""
    plan = scenario.plan
    return Header(
        kind="simulated",
        polypod=polypod.__version__,
        policy=scenario.settings,
        plan=plan,
        plan_sha256=None if plan is None else sha256(plan),
        trace_sha256=scenario.trace_sha256 or _trace_sha256(scenario),
        seed=scenario.seed,
        sample=None if share == 1.0 else share,
        gateway=scenario.gateway,
        gateways=scenario.gateways,
    )


def _trace_sha256(scenario: Scenario) -> str:
    loop = scenario.loop
    return sha256(scenario.trace) if loop is None else loop.sha256


def sha256(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()
