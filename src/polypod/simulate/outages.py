"""From failures to outages: whom each one stops, who is noticed when, what a spare does, and when a replica serves again.

What is down does not break further: a failure all of whose replicas are down already is dropped. One that finds some of them up
hits these, and keeps the others down longer where it takes longer. A failure is noticed, then repaired by the first crew that is free
(software is restarted at once); or spare cards take the place of as many that a replica lost, if that is sooner. Either way the replica
then loads its weights. What is repaired is a spare from then on, where a spare stands in for it. A dead link stops a replica whose cards lie
on both sides of it, or which hands its caches on.

Shape key: F failures, R replicas in the order of their first cards, N outages. `walk` is the definition; `outage_kernels.walk` is it compiled.
"""

from bisect import insort
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Breaks(NamedTuple):
    """Failures in the order of time. `begin_F` and `end_F` bound the replicas that may be hit, in the order of `Seats`."""

    at_s_F: Floats
    notice_s_F: Floats
    repair_s_F: Floats  # inf: never
    begin_F: Ints
    end_F: Ints
    first_card_F: Ints
    end_card_F: Ints
    needs_part_F: Bools
    is_link_F: Bools
    is_shared_F: Bools  # a link over which caches wait until it is back

    def chosen(self, rows: Ints) -> "Breaks":
        """Some of them."""
        return Breaks(
            at_s_F=self.at_s_F[rows],
            notice_s_F=self.notice_s_F[rows],
            repair_s_F=self.repair_s_F[rows],
            begin_F=self.begin_F[rows],
            end_F=self.end_F[rows],
            first_card_F=self.first_card_F[rows],
            end_card_F=self.end_card_F[rows],
            needs_part_F=self.needs_part_F[rows],
            is_link_F=self.is_link_F[rows],
            is_shared_F=self.is_shared_F[rows],
        )


class Seats(NamedTuple):
    """Replicas on cards. `is_apart_R` are those that hand caches on: prefill and decode."""

    first_card_R: Ints
    end_card_R: Ints
    is_apart_R: Bools
    load_s_R: Floats


class Help(NamedTuple):
    """Spare cards and repair crews of one part of the fleet; 0 crews: as many as are needed."""

    spares: int
    crews: int
    failover_s: float


class Outages(NamedTuple):
    """When a replica was down, by what; no two of one replica overlap. `repaired_s_F` is nan of failures that were dropped."""

    replica_N: Ints
    start_s_N: Floats
    end_s_N: Floats
    failure_N: Ints
    by_spare_N: Bools
    repaired_s_F: Floats


Walk = Callable[[Breaks, Seats, Help], Outages]


def walk(breaks: Breaks, seats: Seats, help: Help) -> Outages:
    """The outages of one part of the fleet."""
    state = _State(breaks, seats, help)
    for failure in range(len(breaks.at_s_F)):
        state.fail(failure)
    rows = state.rows
    return Outages(
        replica_N=np.array([row[0] for row in rows], dtype=np.int64),
        start_s_N=np.array([row[1] for row in rows], dtype=np.float64),
        end_s_N=np.array([row[2] for row in rows], dtype=np.float64),
        failure_N=np.array([row[3] for row in rows], dtype=np.int64),
        by_spare_N=np.array([row[4] for row in rows], dtype=np.bool_),
        repaired_s_F=np.array(state.repaired_s, dtype=np.float64),
    )


class _State:
    """What is free, what is down, and the outages so far."""

    def __init__(self, breaks: Breaks, seats: Seats, help: Help) -> None:
        self._breaks, self._seats, self._help = breaks, seats, help
        self._spare_free_s = [0.0] * help.spares  # ascending, as the next
        self._crew_free_s = [0.0] * help.crews
        self._down_until_s = [0.0] * len(seats.first_card_R)
        self.rows: list[tuple[int, float, float, int, bool]] = []
        self.repaired_s: list[float] = []

    def fail(self, failure: int) -> None:
        breaks = self._breaks
        at_s = float(breaks.at_s_F[failure])
        noticed_s = at_s + float(breaks.notice_s_F[failure])
        hit = [one for one in range(breaks.begin_F[failure], breaks.end_F[failure]) if self._is_hit(failure, one)]  # fmt: skip
        if hit and all(self._down_until_s[one] > at_s for one in hit):
            self.repaired_s.append(np.nan)
            return
        repaired_s = self._repaired_s(failure, noticed_s)
        self.repaired_s.append(repaired_s)
        ready_s, by_spare, counted = repaired_s, False, 0
        for one in hit:
            lost = self._lost_cards(failure, one, counted)
            counted = int(self._seats.end_card_R[one])
            if lost:  # else it shares its card with the one before, and goes the same way
                ready_s, by_spare = self._ready_s(failure, lost, noticed_s, repaired_s)
            back_s = ready_s + float(self._seats.load_s_R[one])
            start_s = max(at_s, self._down_until_s[one])
            if back_s > start_s:
                self.rows.append((one, start_s, back_s, failure, by_spare))
                self._down_until_s[one] = back_s

    def _is_hit(self, failure: int, replica: int) -> bool:
        breaks, seats = self._breaks, self._seats
        if not breaks.is_link_F[failure]:
            return True
        if seats.is_apart_R[replica] and not breaks.is_shared_F[failure]:
            return True
        before = seats.first_card_R[replica] < breaks.first_card_F[failure]
        return bool(before or seats.end_card_R[replica] > breaks.end_card_F[failure])

    def _lost_cards(self, failure: int, replica: int, counted: int) -> int:
        breaks, seats = self._breaks, self._seats
        first = max(breaks.first_card_F[failure], seats.first_card_R[replica], counted)
        return max(0, int(min(breaks.end_card_F[failure], seats.end_card_R[replica]) - first))

    def _repaired_s(self, failure: int, noticed_s: float) -> float:
        repair_s = float(self._breaks.repair_s_F[failure])
        crews = self._crew_free_s
        if not crews or not self._breaks.needs_part_F[failure] or repair_s == np.inf:
            return noticed_s + repair_s
        repaired_s = max(noticed_s, crews.pop(0)) + repair_s
        insort(crews, repaired_s)
        return repaired_s

    def _ready_s(
        self, failure: int, lost: int, noticed_s: float, repaired_s: float
    ) -> tuple[float, bool]:
        """When its cards are whole again, and whether that is by spares."""
        free = self._spare_free_s
        if not self._breaks.needs_part_F[failure] or lost > len(free):
            return repaired_s, False
        ready_s = max(noticed_s, free[lost - 1]) + self._help.failover_s
        if ready_s >= repaired_s:
            return repaired_s, False
        del free[:lost]
        for _ in range(lost):
            insort(free, repaired_s)
        return ready_s, True


def reach(seats: Seats, first_card_F: Ints, end_card_F: Ints) -> tuple[Ints, Ints]:
    """The replicas that have cards in each range: from the first up to before the second, in the order of `seats`."""
    begin_F = np.searchsorted(seats.end_card_R, first_card_F, side="right")
    end_F = np.searchsorted(seats.first_card_R, end_card_F, side="left")
    return begin_F.astype(np.int64), np.maximum(begin_F, end_F).astype(np.int64)


def compiled() -> Walk:
    """`walk` compiled where Numba is there, else itself: the same answer either way."""
    try:
        from polypod.simulate import outage_kernels
    except ModuleNotFoundError:
        return walk
    return outage_kernels.walk
