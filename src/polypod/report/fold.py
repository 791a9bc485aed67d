"""Lines of a record into columns, in one pass.

Words about an older attempt or from an older epoch are stale and change nothing, as everywhere. Lines may come one by one from memory, or in blocks
from a file; a line of a kind that is not known here is left out.
"""

import gc
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from polypod.policy.actions import Decode, Dispatch, Prefill, Reject, Retry, TransferKv
from polypod.policy.events import (
    ClientGone,
    FirstToken,
    KvArrived,
    PrefillFinished,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFinished,
)
from polypod.policy.router import slots_of
from polypod.record import END, RUN, FaultNote, Header, Line, Measure, PlanNote, Step
from polypod.report.outcomes import (
    DECODE,
    FINISHED,
    GONE,
    OPEN,
    PREFILL,
    TRANSFER,
    WHOLE,
    FaultSeen,
    Outcomes,
    Replica,
    Requests,
    Series,
    Stays,
    Waits,
)
from polypod.report.reading import Reading, record_file

_NAN: Final = float("nan")
_Placed = Dispatch | Prefill | TransferKv | Decode


def fold(lines: Iterable[Line]) -> Outcomes:
    """The columns of lines that are in memory."""
    folder = Folder()
    folder.add(lines)
    return folder.outcomes()


def read_outcomes(path: Path) -> Outcomes:
    """The columns of a record file, or of the one in a run's folder.

    A last line that was cut short is left out, and `note` says so. Raises `FileError` with the line number where another is broken.
    """
    file = record_file(path)
    folder, reading = Folder(), Reading(file)
    with _no_collection():
        for block in reading:
            folder.add(block)
    return folder.outcomes(note=reading.note)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Lines hold no cycles, and looking for them takes a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Life:
    """A request that has not ended: the wait or the stay it is in, and what its row will say. Defaults are the class's: half a million are made."""

    said: tuple[int, str, int] = (0, "", 0)  # attempt, replica, epoch that words must come from
    role = -1  # of its stay; -1: none
    replica = -1
    since_s = _NAN
    predicted_s = _NAN
    first_s = _NAN
    placed_s = _NAN
    prefill_replica = -1
    decode_replica = -1
    first_predicted_s = _NAN  # by the last attempt

    def __init__(self, row: int, arrived: RequestArrived) -> None:
        self.row = row
        self.arrived = arrived
        self.wait_since_s: float | None = arrived.at_s


@dataclass(slots=True, eq=False)
class _Start:
    """A replica, since it was first up."""

    up: ReplicaUp
    index: int
    is_up: bool = True
    busy_s: float | None = None
    spans: list[tuple[float, float]] = field(default_factory=list)
    downs: list[tuple[float, str]] = field(default_factory=list)
    ups: list[float] = field(default_factory=list)
    plan: int = 0  # as of its first start


_REQUEST: Final = (
    "row", "number", "arrival_s", "model", "tenant", "priority", "input_tokens", "output_tokens", "first_s", "end_s", "status", "code",
    "attempts", "prefill_replica", "decode_replica", "placed_s", "predicted_first_token_s",
)  # fmt: skip
_STAY: Final = (
    "row", "replica", "role", "attempt", "begin_s", "end_s", "ending", "predicted_first_token_s",
)  # fmt: skip
_WAIT: Final = ("row", "begin_s", "end_s")


class _Table:
    """Rows of numbers, packed as they come: a float holds every integer up to 2^53."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.packed = bytearray()
        self.pack = struct.Struct(f"{len(names)}d").pack
        self._names = names

    def columns(self, *, by_row: bool = False) -> dict[str, Any]:
        whole = np.frombuffer(self.packed, dtype=np.float64).reshape(-1, len(self._names))
        if by_row:
            whole = whole[np.argsort(whole[:, 0], kind="stable")]
        return {
            name: whole[:, n].copy() if name.endswith("_s") else whole[:, n].astype(np.int64)
            for n, name in enumerate(self._names)
        }


class _Names:
    """Names as numbers, in the order they are first heard."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}

    def of(self, name: str) -> int:
        return self.index.setdefault(name, len(self.index))


class Folder:
    """Takes lines in, gives columns out."""

    def __init__(self) -> None:
        self._header: Header | None = None
        self._models, self._tenants, self._codes, self._endings = (_Names() for _ in range(4))
        self._requests, self._stays, self._waits = _Table(_REQUEST), _Table(_STAY), _Table(_WAIT)
        self._arrivals = 0
        self._lives: dict[int, _Life] = {}
        self._replicas: dict[str, _Start] = {}
        self._faults: list[FaultSeen] = []
        self._series: dict[tuple[str, str], tuple[array[float], array[float]]] = {}
        self._later_plans: list[dict[str, Any]] = []
        self._plan = 0  # of which what comes up is
        self._begin_s: float | None = None
        self._now_s = 0.0
        self._retries = 0
        self._is_whole = False
        self._event: dict[type, Callable[[Any], None]] = {
            RequestArrived: self._arrived,
            FirstToken: self._first,
            RequestFinished: self._finished,
            ClientGone: self._gone,
            PrefillFinished: self._prefilled,
            KvArrived: self._kv_arrived,
            ReplicaUp: self._up,
            ReplicaDown: self._down,
        }
        self._action: dict[type, Callable[[Any, float], None]] = {
            Dispatch: self._dispatch,
            Prefill: self._prefill,
            TransferKv: self._transfer,
            Decode: self._decode,
            Retry: self._retry,
            Reject: self._reject,
        }

    def add(self, lines: Iterable[Line]) -> None:
        """Take in lines, in their order."""
        on_event, on_action = self._event, self._action
        for line in lines:
            if type(line) is not Step:
                self._other(line)
                continue
            event = line.event
            at_s = event.at_s
            if at_s > self._now_s:
                self._now_s = at_s
            if self._begin_s is None:
                self._begin_s = at_s
            hear = on_event.get(type(event))
            if hear is not None:
                hear(event)
            for action in line.actions:
                do = on_action.get(type(action))
                if do is not None:
                    do(action, at_s)

    def _other(self, line: Line) -> None:
        if isinstance(line, Header):
            self._header = line
        elif isinstance(line, Measure):
            self._measure(line)
        elif isinstance(line, FaultNote):
            self._fault(line)
        elif isinstance(line, PlanNote):
            self._brought_to(line.plan)

    def _brought_to(self, plan: dict[str, Any]) -> None:
        """Another plan, or one of those before."""
        first = None if self._header is None else self._header.plan
        plans = [first, *self._later_plans]
        if plan not in plans:
            self._later_plans.append(plan)
            plans.append(plan)
        self._plan = plans.index(plan)

    def _measure(self, line: Measure) -> None:
        self._now_s = max(self._now_s, line.at_s)
        if line.of == RUN and line.name == END:
            self._is_whole = True
        start = self._replicas.get(line.of)
        if start is not None and line.name == "busy_s":
            start.busy_s = line.value
        times_s, values = self._series.setdefault((line.of, line.name), (array("d"), array("d")))
        times_s.append(line.at_s)
        values.append(line.value)

    def _fault(self, line: FaultNote) -> None:
        self._faults.append(
            FaultSeen(
                id=str(line.id),
                what=line.what,
                where=line.where,
                replicas=tuple(line.replicas),
                at_s=line.at_s,
                noticed_s=line.noticed_s,
                repaired_s=line.repaired_s,
                back_s=line.back_s,
                by_spare=line.by_spare,
                cause=line.cause,
            )
        )

    # ---- events

    def _arrived(self, event: RequestArrived) -> None:
        if event.request not in self._lives:
            self._lives[event.request] = _Life(self._arrivals, event)
            self._arrivals += 1
            self._models.of(event.model)
            self._tenants.of(event.tenant)

    def _first(self, event: FirstToken) -> None:
        life = self._lives.get(event.request)
        if life is None or life.said != (event.attempt, event.replica, event.epoch):
            return
        if life.first_s != life.first_s:  # NaN: not heard before
            life.first_s = event.at_s

    def _finished(self, event: RequestFinished) -> None:
        life = self._lives.get(event.request)
        if life is not None and life.said == (event.attempt, event.replica, event.epoch):
            self._leave(life, event.at_s, "finished")
            self._end(life, event.at_s, FINISHED, finished=event)

    def _gone(self, event: ClientGone) -> None:
        life = self._lives.get(event.request)
        if life is not None:
            self._leave(life, event.at_s, "gone")
            self._end(life, event.at_s, GONE)

    def _prefilled(self, event: PrefillFinished) -> None:
        self._moves_on(event, PREFILL, "prefilled")

    def _kv_arrived(self, event: KvArrived) -> None:
        self._moves_on(event, TRANSFER, "arrived")

    def _moves_on(self, event: PrefillFinished | KvArrived, role: int, ending: str) -> None:
        life = self._lives.get(event.request)
        if life is None or life.said != (event.attempt, event.replica, event.epoch):
            return
        if life.role == role:
            self._leave(life, event.at_s, ending)
            life.wait_since_s = event.at_s

    def _up(self, event: ReplicaUp) -> None:
        known = self._replicas.get(event.replica)
        if known is None:
            start = _Start(event, len(self._replicas), plan=self._plan)
            self._replicas[event.replica] = start
        elif event.epoch > known.up.epoch:
            self._fall(known, event.at_s)
            known.up, known.is_up = event, True
            known.ups.append(event.at_s)

    def _down(self, event: ReplicaDown) -> None:
        known = self._replicas.get(event.replica)
        if known is not None and known.is_up and known.up.epoch == event.epoch:
            self._fall(known, event.at_s)
            known.downs.append((event.at_s, event.reason))

    def _fall(self, known: _Start, at_s: float) -> None:
        if known.is_up:
            known.spans.append((known.up.at_s, at_s))
            known.is_up = False

    # ---- actions

    def _dispatch(self, action: Dispatch, at_s: float) -> None:
        self._retries += action.attempt > 1
        self._place(action, at_s, WHOLE, action.predicted_first_token_s)

    def _prefill(self, action: Prefill, at_s: float) -> None:
        self._retries += action.attempt > 1
        self._place(action, at_s, PREFILL, getattr(action, "predicted_first_token_s", _NAN))

    def _transfer(self, action: TransferKv, at_s: float) -> None:
        self._place(action, at_s, TRANSFER, _NAN)

    def _decode(self, action: Decode, at_s: float) -> None:
        self._place(action, at_s, DECODE, _NAN)

    def _place(self, action: _Placed, at_s: float, role: int, predicted_s: float) -> None:
        life = self._lives.get(action.request)
        start = self._replicas.get(action.replica)
        if life is None or start is None:
            return
        self._leave(life, at_s, "moved")
        life.said = (action.attempt, action.replica, action.epoch)
        life.role, life.replica, life.since_s, life.predicted_s = (
            role,
            start.index,
            at_s,
            predicted_s,
        )
        if role <= PREFILL:
            life.prefill_replica, life.placed_s, life.first_predicted_s = (
                start.index,
                at_s,
                predicted_s,
            )
        if role != PREFILL:
            life.decode_replica = start.index

    def _retry(self, action: Retry, at_s: float) -> None:
        life = self._lives.get(action.request)
        if life is not None:
            self._leave(life, at_s, action.reason)
            life.wait_since_s = at_s

    def _reject(self, action: Reject, at_s: float) -> None:
        life = self._lives.get(action.request)
        if life is not None:
            self._leave(life, at_s, "rejected")
            self._end(life, at_s, action.status, code=self._codes.of(action.code))

    # ---- waits and stays

    def _leave(self, life: _Life, at_s: float, ending: str) -> None:
        """End what the request is in: its wait or its stay."""
        self._close(life, at_s, self._endings.of(ending))
        life.role, life.wait_since_s = -1, None

    def _close(self, life: _Life, at_s: float, ending: int) -> None:
        if life.role >= 0:
            self._stays.packed += self._stays.pack(
                life.row, life.replica, life.role, life.said[0], life.since_s, at_s, ending, life.predicted_s
            )  # fmt: skip
        since_s = life.wait_since_s
        if since_s is not None and since_s < at_s:
            self._waits.packed += self._waits.pack(life.row, since_s, at_s)

    def _end(
        self, life: _Life, at_s: float, status: int, *, code: int = -1, finished: RequestFinished | None = None
    ) -> None:  # fmt: skip
        """Write the row of a request that ended, or of one that is open at the end of the record."""
        asked = life.arrived
        input_tokens, output_tokens = asked.input_tokens, 0
        if status != OPEN:
            del self._lives[asked.request]
        if finished is not None:
            output_tokens = finished.output_tokens
            input_tokens = input_tokens if finished.input_tokens is None else finished.input_tokens
        self._requests.packed += self._requests.pack(
            life.row, asked.request, asked.at_s, self._models.index[asked.model], self._tenants.index[asked.tenant], asked.priority,
            input_tokens, output_tokens, life.first_s, at_s, status, code, life.said[0], life.prefill_replica, life.decode_replica,
            life.placed_s, life.first_predicted_s,
        )  # fmt: skip

    # ---- out

    def outcomes(self, note: str | None = None) -> Outcomes:
        """The columns of what was taken in; asked for once."""
        for life in self._lives.values():
            self._close(life, self._now_s, -1)
            self._end(life, _NAN, OPEN)
        requests = self._requests.columns(by_row=True)
        del requests["row"]
        return Outcomes(
            header=self._header,
            models=tuple(self._models.index),
            tenants=tuple(self._tenants.index),
            codes=tuple(self._codes.index),
            endings=tuple(self._endings.index),
            replicas=tuple(self._replica(name, start) for name, start in self._replicas.items()),
            requests=Requests(**requests),
            stays=Stays(**self._stays.columns()),
            waits=Waits(**self._waits.columns()),
            faults=tuple(fault for fault in self._faults if fault.at_s <= self._now_s)
            or _from_downs(self._replicas),
            series={
                key: Series(at_s=np.array(times_s), value=np.array(values))
                for key, (times_s, values) in self._series.items()
            },
            begin_s=self._begin_s or 0.0,
            end_s=self._now_s,
            retries=self._retries,
            is_whole=self._is_whole,
            note=_notes(self._header, note),
            later_plans=tuple(self._later_plans),
        )

    def _replica(self, name: str, start: _Start) -> Replica:
        open_span = ((start.up.at_s, self._now_s),) if start.is_up else ()
        return Replica(
            name=name,
            pool=start.up.pool,
            model=start.up.model,
            role=start.up.role,
            kv_capacity_tokens=start.up.kv_capacity_tokens,
            slots=slots_of(start.up),
            up=(*start.spans, *open_span),
            busy_s=start.busy_s,
            plan=start.plan,
        )


def _notes(header: Header | None, note: str | None) -> str | None:
    share = None if header is None else header.sample
    if share is None:
        return note
    sampled = f"the record keeps {100 * share:.3g} % of the requests, and what is counted here is of those"
    return f"{note}; {sampled}" if note else sampled


def _from_downs(replicas: dict[str, _Start]) -> tuple[FaultSeen, ...]:
    """Faults of a record that has no lines of them: what went down at one moment, for one reason, until the last of it is up again."""
    groups: dict[tuple[float, str], list[str]] = {}
    for name, start in replicas.items():
        for down in start.downs:
            groups.setdefault(down, []).append(name)
    return tuple(
        _down_fault(n, at_s, reason, names, replicas)
        for n, ((at_s, reason), names) in enumerate(sorted(groups.items()), start=1)
    )


def _down_fault(
    n: int, at_s: float, reason: str, names: list[str], replicas: dict[str, _Start]
) -> FaultSeen:
    backs_s = [
        min((up_s for up_s in replicas[name].ups if up_s >= at_s), default=None) for name in names
    ]
    known_s = [back_s for back_s in backs_s if back_s is not None]
    return FaultSeen(
        id=f"down{n}",
        what=reason,
        where=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
        replicas=tuple(names),
        at_s=at_s,
        noticed_s=at_s,
        repaired_s=max(known_s) if len(known_s) == len(backs_s) else None,
    )
