"""The compiled driver: the same scenario gives the record of `run.play` byte for byte, some hundred times faster.

The policy, the engines and the agenda are C over arrays (`native/`), so that a run costs microseconds a request; what it decides is what
`policy.Policy` decides, which is tested by replaying its records and by comparing both drivers' bytes.
"""

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import numpy as np

from polypod.engine.native.build import library
from polypod.errors import InputError, RunError
from polypod.policy.events import ReplicaDown, ReplicaUp
from polypod.record import Line, Measure, Writer, ended
from polypod.simulate.arriving import Arriving, Block, Listed, Looped
from polypod.simulate.changes import changes
from polypod.simulate.native.layout import (
    CHANGE,
    ENTRY,
    OUTCOME,
    WORDS,
    Encoded,
    Rows,
    encode,
)
from polypod.simulate.native.lines import Lines
from polypod.simulate.run import CACHE_MEASURES, MEASURES, Run, header
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.trace import Arrival

TURN: Final = 20_000
"""Entries of the agenda played before the log is drained and the caller hears of the progress: some ten milliseconds."""

_DONE, _WANTS_ARRIVALS, _PAUSED, _NO_MEMORY = range(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    now_s: float
    events: int
    live: int  # requests that wait or run
    batch_changes: int = 0  # stretches of equal steps that engines have begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What a core has written: the log, the intervals' ends in one row of floats each, and the requests that have ended."""

    entries: Rows
    ticks: Rows
    outcomes: Rows


class Core:
    """One run inside the compiled core; memory is given back with the object."""

    def __init__(self, encoded: Encoded) -> None:
        self._library = _declared(library())
        self._kept: list[Any] = [encoded]  # what the core points to
        self._core = self._library.core_new(*encoded.pointers())
        if not self._core:
            self._refuse_memory()

    def __del__(self) -> None:
        if getattr(self, "_core", None):
            self._library.core_free(self._core)

    def plan(self, rows: Rows) -> None:
        self._check(self._library.core_plan(self._core, rows.ctypes.data, len(rows)))

    def feed(self, block: Block) -> None:
        """The next arrivals; they are kept until the next block is fed."""
        self._kept[1:] = [block]
        rows, hashes = block.rows.ctypes.data, block.hashes.ctypes.data
        self._check(
            self._library.core_feed(self._core, rows, hashes, len(block.rows), block.is_last)
        )

    def feed_loop(self, block: Block, users: int, end_s: float) -> None:
        """All requests of a closed loop."""
        self._kept[1:] = [block]
        rows, hashes = block.rows.ctypes.data, block.hashes.ctypes.data
        self._check(
            self._library.core_loop(self._core, rows, hashes, len(block.rows), users, end_s)
        )

    def run(self, entries: int = TURN) -> int:
        """Play on; whether it is done, wants arrivals, or was paused after so many entries."""
        return self._check(self._library.core_run(self._core, entries))

    def drain(self) -> Drained:
        """What has come since the last time."""
        drained = Drained(
            entries=self._copied(self._library.core_entries, ENTRY),
            ticks=self._copied(self._library.core_rows, np.dtype(np.float64)),
            outcomes=self._copied(self._library.core_outcomes, OUTCOME),
        )
        self._library.core_drained(self._core)
        return drained

    def leave(self) -> None:
        """Write down the requests that have not ended."""
        self._check(self._library.core_leave(self._core))

    def progress(self) -> Progress:
        now_s, events, live, changes = (
            ctypes.c_double(),
            ctypes.c_int64(),
            ctypes.c_int64(),
            ctypes.c_int64(),
        )
        told = (now_s, events, live, changes)
        self._library.core_now(self._core, *(ctypes.byref(one) for one in told))
        return Progress(
            now_s=now_s.value, events=events.value, live=live.value, batch_changes=changes.value
        )

    def totals(self, replica: int) -> list[float]:
        """`MEASURES` and `CACHE_MEASURES` of one replica; asked once, at the end."""
        values = (ctypes.c_double * (len(MEASURES) + len(CACHE_MEASURES)))()
        self._library.core_totals(self._core, replica, values)
        return list(values)

    def _copied(self, ask: Callable[..., int], dtype: np.dtype[Any]) -> Rows:
        place = ctypes.c_void_p()
        count = ask(self._core, ctypes.byref(place))
        if not count:
            return np.empty(0, dtype=dtype)
        assert place.value is not None, "rows without a place"
        return np.frombuffer(ctypes.string_at(place.value, count * dtype.itemsize), dtype=dtype)

    def _check(self, status: int) -> int:
        if status == _NO_MEMORY:
            self._refuse_memory()
        return status

    def _refuse_memory(self) -> None:
        msg = "the simulation needs more memory than this machine gives; play a shorter trace or fewer replicas"
        raise RunError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn has brought: lines of the record, in order, requests that have ended (`OUTCOME`), and how far the run is."""

    lines: Sequence[Line]
    outcomes: Rows
    progress: Progress


class Session:
    """One run, played turn by turn; it may be left after any of them.

    `share` of the requests have their steps in the record, all of them at 1 and none at 0; series and totals are always there.
    """

    def __init__(self, scenario: Scenario, arriving: Arriving, *, share: float = 1.0) -> None:
        reason = only_plain(scenario)
        if reason is not None:
            msg = f"{reason}, which the compiled driver does not play; play it with the plain one (--driver plain)"
            raise InputError(msg)
        self.encoded = encode(scenario, share=share)
        self.changes, rows = _changes(scenario, self.encoded.names)
        self.progress = Progress(now_s=0.0, events=0, live=0)
        self.is_done = False
        self.arriving = arriving
        self._asked: dict[int, Arrival] = {}  # requests in the record that have not ended
        self._measures = MEASURES + (CACHE_MEASURES if scenario.block_tokens else ())
        self._core = Core(self.encoded)
        self._core.plan(rows)
        self._feed()
        self._lines = Lines(self.encoded, scenario, self._asked_of, self.changes)

    def turns(self) -> Iterator[Turn]:
        """Play to the end."""
        while not self.is_done:
            status = self._core.run()
            drained = self._core.drain()
            lines = list(self._lines.lines(drained.entries, drained.ticks))
            self._forget(drained.outcomes)
            if status == _WANTS_ARRIVALS:
                self._feed()
            self.is_done = status == _DONE
            self.progress = self._core.progress()
            outcomes = drained.outcomes
            if (
                self.is_done and self.progress.live
            ):  # caches that wait for a link that never comes back
                outcomes = np.concatenate([outcomes, self.leave()])
            yield Turn(lines=lines, outcomes=outcomes, progress=self.progress)

    def leave(self) -> Rows:
        """End before the end: the requests that have not ended (`OUTCOME`)."""
        self.is_done = True
        self._core.leave()
        return self._core.drain().outcomes

    def totals(self) -> Iterator[Measure]:
        """What every replica did, up to where the run is; asked once, at the end."""
        for number, name in enumerate(self.encoded.names):
            for what, value in zip(self._measures, self._core.totals(number), strict=False):
                yield Measure(at_s=self.progress.now_s, of=name, name=what, value=value)

    def _feed(self) -> None:
        block = self.arriving.block(self.encoded.models)
        if isinstance(self.arriving, Looped):
            loop = self.arriving.loop
            end_s = math.inf if loop.duration_s is None else loop.duration_s
            self._core.feed_loop(block, loop.num_first, end_s)
        else:
            self._core.feed(block)

    def _asked_of(self, request: int) -> Arrival:
        asked = self._asked.get(request)
        if asked is None:
            asked = self._asked[request] = self.arriving.asked(request)
        return asked

    def _forget(self, outcomes: Rows) -> None:
        if self._asked:
            for request in outcomes["request"].tolist():
                self._asked.pop(request, None)


def only_plain(scenario: Scenario) -> str | None:
    """What of the scenario only the plain driver plays, in words; None where both do."""
    settings = scenario.settings
    if settings.turns != "arrival":
        return f"turns are by {settings.turns}"
    if settings.admission != "queue":
        return f"admission is {settings.admission}"
    uncached = [up.replica for up in scenario.replicas if not up.caches_prefixes]
    if uncached and scenario.block_tokens:
        return f"replica {uncached[0]!r} caches no prefixes"
    return None


def play_compiled(scenario: Scenario, file: BinaryIO | None = None) -> Run:
    """Play the scenario to its end, as `run.play` does. Raises `RunError` where the core cannot be compiled."""
    lines: list[Line] = []
    write = lines.append if file is None else Writer(file).write
    arriving = Listed(scenario.trace) if scenario.loop is None else Looped(scenario.loop)
    session = Session(scenario, arriving)
    write(header(scenario))
    for note in scenario.notes:
        write(note)
    for turn in session.turns():
        for line in turn.lines:
            write(line)
    end = session.progress
    for total in session.totals():
        write(total)
    write(ended(end.now_s))
    return Run(end_s=end.now_s, events=end.events, lines=tuple(lines))


def _changes(
    scenario: Scenario, names: Sequence[str]
) -> tuple[list[ReplicaUp | ReplicaDown], Rows]:
    """The events in the order they were planned, and all changes as the core's agenda takes them: an event with its number in place of the factor."""
    numbers = {name: number for number, name in enumerate(names)}
    ways = {
        name: number for number, name in enumerate(scenario.ways.names if scenario.ways else ())
    }
    told: list[ReplicaUp | ReplicaDown] = []
    rows = []
    for at_s, change in changes(scenario):
        is_way = isinstance(change, Fault) and change.what == "way"
        number = (ways if is_way else numbers)[change.replica]
        if isinstance(change, ReplicaUp | ReplicaDown):
            word = WORDS["up" if isinstance(change, ReplicaUp) else "down"]
            rows.append((at_s, number, word, change.epoch, float(len(told)), _back_in_s(change)))
            told.append(change)
        else:
            rows.append((at_s, number, WORDS[change.what], 0, change.factor, math.inf))
    return told, np.array(rows, dtype=CHANGE)


def _back_in_s(change: ReplicaUp | ReplicaDown) -> float:
    """Infinite where nobody promises it."""
    back_in_s = change.back_in_s if isinstance(change, ReplicaDown) else None
    return math.inf if back_in_s is None else back_in_s


def _declared(core: ctypes.CDLL) -> ctypes.CDLL:
    """The functions' types: pointers are 64 bits wide."""
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    types: dict[str, tuple[Callable[..., Any] | None, list[Any]]] = {
        "core_new": (pointer, [pointer] * 10),
        "core_free": (None, [pointer]),
        "core_plan": (ctypes.c_int, [pointer, pointer, whole]),
        "core_feed": (ctypes.c_int, [pointer, pointer, pointer, whole, whole]),
        "core_loop": (ctypes.c_int, [pointer, pointer, pointer, whole, whole, ctypes.c_double]),
        "core_run": (ctypes.c_int, [pointer, whole]),
        "core_entries": (whole, [pointer, pointer]),
        "core_rows": (whole, [pointer, pointer]),
        "core_outcomes": (whole, [pointer, pointer]),
        "core_leave": (ctypes.c_int, [pointer]),
        "core_drained": (None, [pointer]),
        "core_now": (None, [pointer] * 5),
        "core_totals": (None, [pointer, whole, pointer]),
    }
    for name, (result, arguments) in types.items():
        function = getattr(core, name)
        function.restype, function.argtypes = result, arguments
    return core
