"""From what broke to what a driver plays: who stops and is back when, who is slower and by how much, and a note of each for the record.

What stops goes through `outages`, with its spares, crews and weights to load. What is slow stays up: a replica is as slow as its slowest
card, and a slow link slows the share of a step that passes over it (`exchange_share`), and all transfers. A flapping link is slow in bursts.
A replica that comes back while something of it is slow is told so again. One that only restarts is promised to be back when it will be, as a live node
promises the next start of a process that ended; nobody promises a repair, nor the end of a time in which more broke than processes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

import numpy as np

from polypod.errors import InputError
from polypod.record import FaultNote
from polypod.simulate.failure_rates import What, check_bursts
from polypod.simulate.outages import Breaks, Ints, Outages, compiled, reach
from polypod.simulate.scenario import Fault, FaultKind
from polypod.simulate.seats import Seated
from polypod.simulate.spots import Spot
from polypod.simulate.timeline import Timeline
from polypod.simulate.way_plan import PlacedWays

ShareOf = Callable[[int, int, Spot], float]
"""Of a step of one pool on one part, what passes over such a link."""

Slows = Literal["speed", "link"]

SLOWS: Final[tuple[Slows, ...]] = get_args(Slows)

MOST_BURSTS: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """One thing that broke, as a file says or as it was drawn. `repair_s` is inf where nobody repairs it.

    `speed_ratio` is how much longer steps take, in the place of what the cost model says of a slow link.
    """

    at_s: float
    what: What
    spot: Spot
    repair_s: float = math.inf
    factor: float = 1.0
    speed_ratio: float | None = None
    burst_s: float = 0.0
    every_s: float = 0.0
    restarts: bool = False
    cause: str = "a fault file"

    def __post_init__(self) -> None:
        if self.what == "flap":
            check_bursts(self.spot.name, self.burst_s, self.every_s)
            if self.repair_s / self.every_s > MOST_BURSTS:
                msg = f"{self.spot.name} flaps every {self.every_s:g} s until it is repaired, more than {MOST_BURSTS:,} times; repair it, or let it flap less often"
                raise InputError(msg)
        if self.what in ("slow-link", "flap") and not self.spot.is_link:
            msg = f"{self.spot.name} is no link, so it cannot be {self.what}; write where: link {self.spot.name}"
            raise InputError(msg)
        if self.what in ("slow", "hang") and self.spot.is_link:
            msg = f"{self.spot.name} is a link; it can crash, be a slow-link, or flap"
            raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a driver plays, in the order of time, and what is told of it."""

    faults: tuple[Fault, ...]
    notes: tuple[FaultNote, ...]


class _Time(NamedTuple):
    """From one time to another something takes `factor` times as long."""

    start_s: float
    end_s: float
    factor: float
    reason: str


class _Down(NamedTuple):
    """A time away: of one outage, or of several that follow each other."""

    start_s: float
    end_s: float
    failure: int  # the first
    is_restart: bool  # and nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slow:
    """A replica is slower for a time, in its steps or its transfers."""

    replica: int
    what: Slows
    time: _Time


def of_timeline(timeline: Timeline, seated: Seated) -> list[Broken]:
    """Drawn failures as a file would say them."""
    found = []
    for failure in range(len(timeline)):
        rate = timeline.rates[int(timeline.kind_F[failure])]
        found.append(
            Broken(
                at_s=float(timeline.at_s_F[failure]),
                what=rate.kind.what,
                spot=timeline.spot(failure, seated.placed, seated.domains),
                repair_s=float(timeline.repair_s_F[failure]),
                factor=rate.factor,
                burst_s=rate.burst_s,
                every_s=rate.every_s,
                restarts=rate.kind.restarts,
                cause=rate.kind.name,
            )
        )
    return found


def resolve(
    seated: Seated, broken: Iterable[Broken], share_of: ShareOf, ways: PlacedWays | None = None
) -> Resolved:
    """Whom each hits, and what follows. `share_of` is asked for pools with a slow link alone, and may raise `InputError`.

    A link that is one of `ways`, or part of one, is slow or dead for the caches that cross it and for nobody's own link: a way of several links is as slow
    as its slowest, since a cache is there with its last part. Without ways a slow link slows all caches of the replicas below it, and a dead one stops
    those that hand caches on.
    """
    rows = sorted(broken, key=lambda one: one.at_s)
    way_F = [None if ways is None else ways.at(row.spot) for row in rows]
    outages = _outages(seated, rows, way_F)
    slows = [slow for row, way in zip(rows, way_F, strict=True) if row.what not in ("crash", "hang") for slow in _slows(seated, row, share_of, is_way=way is not None)]  # fmt: skip
    names = seated.names
    faults: list[Fault] = []
    told = _Told(rows, outages, slows, seated.recovery.detect_s)
    for replica in told.hit:
        faults += told.faults(replica, names[replica])
    if ways is not None:
        faults += _way_faults(ways, rows, way_F, outages)
    faults.sort(key=lambda fault: fault.at_s)
    whom = _Whom(outages)
    notes = [_note(seated, row, number, (outages, whom), is_way=way is not None) for number, (row, way) in enumerate(zip(rows, way_F, strict=True))]  # fmt: skip
    return Resolved(faults=tuple(faults), notes=tuple(notes))


def _outages(seated: Seated, rows: Sequence[Broken], way_F: Sequence[int | None]) -> Outages:
    """Of what stops; `failure_N` counts through `rows`."""
    begin_F, end_F = _reached(seated, rows)
    detect_s = seated.recovery.detect_s
    breaks = Breaks(
        at_s_F=np.array([row.at_s for row in rows], dtype=np.float64),
        notice_s_F=np.array([detect_s if row.what == "hang" else 0.0 for row in rows], dtype=np.float64),
        repair_s_F=np.array([row.repair_s for row in rows], dtype=np.float64),
        begin_F=begin_F,
        end_F=end_F,
        first_card_F=np.array([row.spot.first_card for row in rows], dtype=np.int64),
        end_card_F=np.array([row.spot.end_card for row in rows], dtype=np.int64),
        needs_part_F=np.array([not row.restarts for row in rows], dtype=np.bool_),
        is_link_F=np.array([row.spot.is_link for row in rows], dtype=np.bool_),
        is_shared_F=np.array([way is not None for way in way_F], dtype=np.bool_),
    )  # fmt: skip
    stops_F = np.array([row.what in ("crash", "hang") for row in rows], dtype=np.bool_)
    return seated.walk_parts(breaks, stops_F, compiled())


def _reached(seated: Seated, rows: Sequence[Broken]) -> tuple[Ints, Ints]:
    """The replicas on each row's cards; one alone where the row names it."""
    first_F = np.array([row.spot.first_card for row in rows], dtype=np.int64)
    end_card_F = np.array([row.spot.end_card for row in rows], dtype=np.int64)
    begin_F, end_F = reach(seated.seats, first_F, end_card_F)
    for index, row in enumerate(rows):
        if row.spot.replica is not None:
            begin_F[index] = seated.names.index(row.spot.replica)
            end_F[index] = begin_F[index] + 1
    return begin_F, end_F


def _slows(seated: Seated, row: Broken, share_of: ShareOf, *, is_way: bool) -> Iterator[_Slow]:
    """Who is slower by it, and when. Caches over a way are slow by themselves."""
    (begin,), (end,) = _reached(seated, [row])
    for replica in range(int(begin), int(end)):
        for factor, what in _factors(seated, row, replica, share_of):
            if is_way and what == "link":
                continue
            for start_s, end_s in _times(row):
                yield _Slow(
                    replica=replica,
                    what=what,
                    time=_Time(start_s, end_s, factor, f"{row.spot.name}: {row.what}"),
                )


def _factors(
    seated: Seated, row: Broken, replica: int, share_of: ShareOf
) -> Iterator[tuple[float, Slows]]:
    """By how much its steps are longer, and its transfers."""
    if row.what == "slow":
        yield row.factor, "speed"
        return
    yield row.factor, "link"
    seats = seated.seats
    crosses = (
        seats.first_card_R[replica] < row.spot.first_card
        or seats.end_card_R[replica] > row.spot.end_card
    )
    if row.speed_ratio is not None:
        yield row.speed_ratio, "speed"
    elif crosses:
        part = int(seated.placed.part_R[seated.order_R[replica]])
        share = share_of(part, int(seated.pool_R[replica]), row.spot)
        yield 1 + share * (row.factor - 1), "speed"


def _times(row: Broken) -> Iterator[tuple[float, float]]:
    end_s = row.at_s + row.repair_s
    if row.what != "flap":
        yield row.at_s, end_s
        return
    for burst in range(math.ceil(row.repair_s / row.every_s)):
        start_s = row.at_s + burst * row.every_s
        yield start_s, min(start_s + row.burst_s, end_s)


class _Told:
    """Outages and slow times of every replica that has any."""

    def __init__(
        self, rows: Sequence[Broken], outages: Outages, slows: Sequence[_Slow], detect_s: float
    ) -> None:
        self._rows, self._detect_s = rows, detect_s
        self._downs: dict[int, list[_Down]] = {}
        columns = (outages.replica_N, outages.start_s_N, outages.end_s_N, outages.failure_N)
        for replica, start_s, end_s, failure in zip(*(column.tolist() for column in columns), strict=True):  # fmt: skip
            down = _Down(start_s, end_s, failure, rows[failure].restarts)
            self._downs.setdefault(replica, []).append(down)
        self._slows: dict[int, list[_Slow]] = {}
        for slow in slows:
            self._slows.setdefault(slow.replica, []).append(slow)
        self.hit = sorted({*self._downs, *self._slows})

    def faults(self, replica: int, name: str) -> Iterator[Fault]:
        """What its driver plays, in the order of time."""
        downs = _merged(self._downs.get(replica, []))
        found = [fault for down in downs for fault in self._down(name, down)]
        slows = self._slows.get(replica, [])
        for what in SLOWS:
            times = [slow.time for slow in slows if slow.what == what]
            found += _changes(name, what, times, downs)
        return iter(sorted(found, key=lambda fault: fault.at_s))

    def _down(self, name: str, down: _Down) -> Iterator[Fault]:
        start_s, end_s = down.start_s, down.end_s
        row = self._rows[down.failure]
        reason = f"{row.spot.name}: {row.what}"
        if row.what == "hang":
            yield Fault(at_s=start_s, replica=name, what="hang", reason=reason)
            start_s += self._detect_s
        back_in_s = end_s - start_s if down.is_restart and end_s < math.inf else None
        yield Fault(at_s=start_s, replica=name, what="down", back_in_s=back_in_s, reason=reason)
        if end_s < math.inf:
            yield Fault(at_s=end_s, replica=name, what="up", reason=f"{row.spot.name} is whole again")  # fmt: skip


def _merged(downs: Iterable[_Down]) -> list[_Down]:
    """Outages that follow each other without a gap as one, named for the first."""
    found: list[_Down] = []
    for down in sorted(downs):
        if found and found[-1].end_s == down.start_s:
            last = found[-1]
            is_restart = last.is_restart and down.is_restart
            found[-1] = _Down(last.start_s, down.end_s, last.failure, is_restart)
        else:
            found.append(down)
    return found


def _way_faults(
    ways: PlacedWays, rows: Sequence[Broken], way_F: Sequence[int | None], outages: Outages
) -> Iterator[Fault]:
    """What happens to each way that broke."""
    broken: dict[int, list[_Time]] = {}
    for number, (row, way) in enumerate(zip(rows, way_F, strict=True)):
        repaired_s = float(outages.repaired_s_F[number])
        if way is None or (row.what == "crash" and math.isnan(repaired_s)):
            continue  # or all that it hits are down already
        times = [(row.at_s, repaired_s)] if row.what == "crash" else _times(row)  # fmt: skip
        factor, reason = (math.inf if row.what == "crash" else row.factor), f"{row.spot.name}: {row.what}"  # fmt: skip
        broken.setdefault(way, []).extend(_Time(*time, factor, reason) for time in times)
    for way, its in sorted(broken.items()):
        yield from _changes(ways.ways.names[way], "way", its, ())


def _changes(
    name: str,
    what: FaultKind,
    slows: Sequence[_Time],
    downs: Sequence[_Down],
) -> Iterator[Fault]:
    """The largest factor at work, told where it changes and where the replica is back."""
    if not slows:
        return
    ups = [down.end_s for down in downs if down.end_s < math.inf]
    moments = sorted({*ups, *(slow.start_s for slow in slows), *(slow.end_s for slow in slows)})
    told = 1.0
    for at_s in moments:
        if at_s == math.inf or any(down.start_s <= at_s < down.end_s for down in downs):
            continue
        at_work = [slow for slow in slows if slow.start_s <= at_s < slow.end_s]
        worst = max(at_work, key=lambda slow: slow.factor, default=None)
        factor = worst.factor if worst else 1.0
        if factor != told or (at_s in ups and factor != 1.0):
            reason = worst.reason if worst else "as fast as told again"
            yield Fault(at_s=at_s, replica=name, what=what, factor=factor, reason=reason)
        told = factor


class _Whom:
    """Which replicas each failure stopped, until when, and whether a spare stood in."""

    def __init__(self, outages: Outages) -> None:
        self.stopped: dict[int, list[tuple[int, float, bool]]] = {}
        columns = (outages.failure_N, outages.replica_N, outages.end_s_N, outages.by_spare_N)
        for failure, replica, end_s, by_spare in zip(*(column.tolist() for column in columns), strict=True):  # fmt: skip
            self.stopped.setdefault(failure, []).append((replica, end_s, by_spare))

    def slowed(self, seated: Seated, row: Broken) -> list[int]:
        (begin,), (end,) = _reached(seated, [row])
        return list(range(int(begin), int(end)))


def _note(
    seated: Seated, row: Broken, number: int, found: tuple[Outages, _Whom], *, is_way: bool
) -> FaultNote:
    outages, whom = found
    hit = whom.stopped.get(number, [])
    stops = row.what in ("crash", "hang")
    replicas = [one for one, _, _ in hit] if stops and not is_way else whom.slowed(seated, row)
    repaired_s = float(outages.repaired_s_F[number]) if stops else row.at_s + row.repair_s
    back_s = max((end_s for _, end_s, _ in hit), default=repaired_s if is_way else math.nan) if stops else repaired_s  # fmt: skip
    noticed_s = {"hang": row.at_s + seated.recovery.detect_s, "crash": row.at_s}.get(row.what)
    return FaultNote(
        id=number + 1,
        at_s=row.at_s,
        what=row.what,
        where=row.spot.name,
        replicas=tuple(seated.names[one] for one in replicas),
        noticed_s=noticed_s,
        repaired_s=_finite(repaired_s),
        back_s=_finite(back_s),
        by_spare=sum(by_spare for _, _, by_spare in hit),
        cause=row.cause,
    )


def _finite(value_s: float) -> float | None:
    return value_s if math.isfinite(value_s) else None
