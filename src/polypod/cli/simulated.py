"""A compiled run, played: its record written, its requests gathered as columns, its progress told."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from polypod import units
from polypod.policy.events import ReplicaUp
from polypod.policy.router import slots_of
from polypod.record import Line, Step, Writer, ended
from polypod.report.coarse import Coarse
from polypod.report.fold import fold
from polypod.report.outcomes import (
    DECODE,
    FINISHED,
    GONE,
    OPEN,
    PREFILL,
    WHOLE,
    Outcomes,
    Replica,
    Requests,
    Stays,
    Waits,
)
from polypod.report.summary import RunSummary, summary_of
from polypod.simulate.compiled import Progress, Session
from polypod.simulate.native.layout import ENDED_GONE, ENDED_WELL, NOT_ENDED, OUTCOME, Rows

ANSWERS: Final = (
    ("context_length_exceeded", 400), ("no_replica", 503), ("queue_full", 429), ("engine_refused", 400), ("replica_lost", 502),
    ("quarantined", 500), ("attempts_exhausted", 502), ("queue_timeout", 503), ("model_not_found", 404),
    ("attempts_exhausted", 502),
)  # fmt: skip
"""Rejections in the order of the core's codes, which begin at 1, and their status."""

TOLD_EVERY_S: Final = 0.25


MOST_ROWS: Final = 1_000_000
"""Requests that are kept one by one; of a longer run they are counted in parts as large."""


@dataclass(slots=True, eq=False)
class Played:
    """What a run has come to. `outcomes` lack requests where there were too many: the summary has all."""

    outcomes: Outcomes
    is_whole: bool
    summary: RunSummary


class Teller:
    """One line on a terminal that says how far a run is; nothing where standard error is none."""

    def __init__(self, end_s: float | None, *, is_shown: bool = True) -> None:
        self._is_shown = is_shown and sys.stderr.isatty()
        self._end_s = end_s  # of the arrivals, where it is known
        self._begun_s = self._told_s = time.monotonic()
        self._width = 0

    def tell(self, progress: Progress) -> None:
        now_s = time.monotonic()
        if not self._is_shown or now_s - self._told_s < TOLD_EVERY_S:
            return
        self._told_s = now_s
        rate = progress.events / (now_s - self._begun_s)
        text = f"{units.show(progress.now_s, 's')} played, {units.significant(rate)} events/s, {progress.live:,} requests in flight"
        if self._end_s and 0 < progress.now_s < self._end_s:
            left_s = (now_s - self._begun_s) * (self._end_s / progress.now_s - 1)
            text += f", {units.show(left_s, 's')} left"
        text = text[:79]
        print("\r" + text.ljust(self._width), end="", file=sys.stderr, flush=True)
        self._width = len(text)

    def done(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)


@contextmanager
def interrupted() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed since; a second one ends at once."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Gathered:
    """What a run brings: lines for its record, rows of requests that have ended, and the lines that a summary reads beside them."""

    def __init__(self, file: BinaryIO | None) -> None:
        self.rows: list[Rows] = []
        self.lines: list[Line] = []
        self.coarse: Coarse | None = None
        self._writer = None if file is None else Writer(file)

    def add(self, lines: Iterable[Line], rows: Rows | None = None) -> None:
        for line in lines:
            if self._writer is not None:
                self._writer.write(line)
            if not isinstance(line, Step):
                self.lines.append(line)
        if rows is not None and len(rows):
            self.rows.append(rows)

    @property
    def kept(self) -> int:
        return sum(map(len, self.rows))

    def fold(self, session: Session) -> None:
        """Count the requests that are kept, and keep them no longer."""
        if self.coarse is None:
            self.coarse = Coarse()
        self.coarse.add(outcomes_of(session, self))
        self.rows.clear()


def play_session(
    session: Session, head: Iterable[Line], file: BinaryIO | None, teller: Teller
) -> Played:
    """Play to the end, or to Ctrl-C; what was written until then is a record that can be read."""
    gathered = Gathered(file)
    gathered.add(head)
    with interrupted() as is_interrupted:
        for turn in session.turns():
            gathered.add(turn.lines, turn.outcomes)
            if gathered.kept >= MOST_ROWS:
                gathered.fold(session)
            teller.tell(turn.progress)
            if is_interrupted():
                break
    teller.done()
    is_whole = session.is_done
    gathered.add(session.totals(), None if is_whole else session.leave())
    if is_whole:
        gathered.add([ended(session.progress.now_s)])
    outcomes = outcomes_of(session, gathered)
    if gathered.coarse is None:
        return Played(outcomes=outcomes, is_whole=is_whole, summary=summary_of(outcomes))
    gathered.coarse.add(outcomes)
    return Played(outcomes=outcomes, is_whole=is_whole, summary=gathered.coarse.summary(outcomes))


def outcomes_of(session: Session, gathered: Gathered) -> Outcomes:
    """The run as a report reads it. Where requests stayed in between is only in the record."""
    beside = fold(gathered.lines)
    rows = np.concatenate([np.empty(0, dtype=OUTCOME), *gathered.rows])
    rows = rows[np.argsort(rows["request"], kind="stable")]
    tenants = getattr(session.arriving, "tenants", ("",))
    models = session.encoded.models
    return Outcomes(
        header=beside.header,
        models=(*models, "") if (rows["model"] < 0).any() else models,
        tenants=tenants,
        codes=tuple(code for code, _ in ANSWERS),
        endings=("finished",),
        replicas=_replicas(session, beside),
        requests=_requests(rows, len(models)),
        stays=_stays(rows),
        waits=_waits(rows),
        faults=beside.faults,
        series=beside.series,
        end_s=session.progress.now_s,
        retries=int(np.maximum(rows["attempts"] - 1, 0).sum()),
        is_whole=session.is_done and beside.is_whole,
    )


def _requests(rows: Rows, models: int) -> Requests:
    status = rows["status"]
    is_rejected = (status > ENDED_WELL) & (status < ENDED_GONE)
    http = np.full(NOT_ENDED + 1, OPEN, dtype=np.int64)
    http[ENDED_WELL], http[ENDED_GONE] = FINISHED, GONE
    http[1 : len(ANSWERS) + 1] = [number for _, number in ANSWERS]
    return Requests(
        number=rows["request"],
        arrival_s=rows["arrival_s"],
        model=np.where(rows["model"] < 0, models, rows["model"]),
        tenant=rows["tenant"],
        priority=np.zeros(len(rows), dtype=np.int64),
        input_tokens=rows["input_tokens"],
        output_tokens=rows["output_tokens"],
        first_s=rows["first_s"],
        end_s=np.where(status == NOT_ENDED, np.nan, rows["end_s"]),
        status=http[status],
        code=np.where(is_rejected, status - 1, -1),
        attempts=rows["attempts"],
        prefill_replica=rows["prefill_replica"],
        decode_replica=rows["replica"],
        placed_s=rows["placed_s"],
        predicted_first_token_s=rows["predicted_first_s"],
    )


def _replicas(session: Session, beside: Outcomes) -> tuple[Replica, ...]:
    """In the core's order, with the times that each was up, from the run's own plan of changes."""
    end_s = session.progress.now_s
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in session.encoded.names}
    ups: dict[str, ReplicaUp] = {}
    since: dict[str, float] = {}
    for change in sorted(session.changes, key=lambda change: change.at_s):
        is_up = isinstance(change, ReplicaUp)
        if isinstance(change, ReplicaUp):
            ups.setdefault(change.replica, change)
        if change.at_s > end_s:
            continue
        begun_s = since.pop(change.replica, None)
        if begun_s is not None:
            spans[change.replica].append((begun_s, change.at_s))
        if is_up:
            since[change.replica] = change.at_s
    for name, begun_s in since.items():
        spans[name].append((begun_s, end_s))
    return tuple(
        Replica(
            name=name,
            pool=ups[name].pool,
            model=ups[name].model,
            role=ups[name].role,
            kv_capacity_tokens=ups[name].kv_capacity_tokens,
            slots=slots_of(ups[name]),
            up=tuple(span),
            busy_s=_last(beside, name),
        )
        for name, span in spans.items()
    )


def _last(beside: Outcomes, replica: str) -> float | None:
    series = beside.series.get((replica, "busy_s"))
    return None if series is None else float(series.value[-1])


def _stays(rows: Rows) -> Stays:
    """Of the requests that finished, from their last placing on; earlier attempts, and caches on their way, are only in the record."""
    done = np.flatnonzero((rows["status"] == ENDED_WELL) & (rows["replica"] >= 0))
    apart = done[np.isfinite(rows["prefilled_s"][done])]
    whole = np.setdiff1d(done, apart)
    parts = [
        (whole, "replica", WHOLE, "placed_s", "end_s"),
        (apart, "prefill_replica", PREFILL, "placed_s", "prefilled_s"),
        (apart, "replica", DECODE, "first_s", "end_s"),
    ]
    row = np.concatenate([these for these, *_ in parts])

    def column(place: int) -> NDArray[Any]:
        return np.concatenate([rows[part[place]][part[0]] for part in parts])

    return Stays(
        row=row,
        replica=column(1),
        role=np.concatenate([np.full(len(these), role) for these, _, role, *_ in parts]),
        attempt=rows["attempts"][row],
        begin_s=column(3),
        end_s=column(4),
        ending=np.zeros(len(row), dtype=np.int64),
        predicted_first_token_s=rows["predicted_first_s"][row],
    )


def _waits(rows: Rows) -> Waits:
    """From the arrival to the last placing; of one that was never placed, to its end."""
    until_s = np.where(np.isfinite(rows["placed_s"]), rows["placed_s"], rows["end_s"])
    row = np.flatnonzero(until_s > rows["arrival_s"])
    return Waits(row=row, begin_s=rows["arrival_s"][row], end_s=until_s[row])
