"""`outages.walk`, compiled. Sorted lists are arrays here, and the rows are counted before they are made.

Shape key: as in `outages`.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

from polypod.simulate.outages import Breaks, Help, Outages, Seats

Floats = NDArray[np.float64]
Rows = tuple[NDArray[np.int64], Floats, Floats, NDArray[np.int64], NDArray[np.bool_]]
Failure = tuple[int, float, float, float]  # which, failover_s, noticed_s, repaired_s


def walk(breaks: Breaks, seats: Seats, help: Help) -> Outages:
    """As `outages.walk`."""
    most = int(np.sum(breaks.end_F - breaks.begin_F))
    rows: Rows = (np.empty(most, np.int64), np.empty(most), np.empty(most), np.empty(most, np.int64), np.empty(most, np.bool_))  # fmt: skip
    repaired_s_F = np.empty(len(breaks.at_s_F))
    count = _walk(breaks, seats, help, rows, repaired_s_F)
    replica_N, start_s_N, end_s_N, failure_N, by_spare_N = rows
    return Outages(
        replica_N[:count], start_s_N[:count], end_s_N[:count], failure_N[:count], by_spare_N[:count], repaired_s_F
    )  # fmt: skip


@njit(cache=True)
def _walk(breaks: Breaks, seats: Seats, help: Help, rows: Rows, repaired_s_F: Floats) -> int:
    spare_free_s = np.zeros(help.spares)
    crew_free_s = np.zeros(help.crews)
    down_until_s = np.zeros(len(seats.first_card_R))
    count = 0
    for f in range(len(breaks.at_s_F)):
        noticed_s = breaks.at_s_F[f] + breaks.notice_s_F[f]
        if _is_dropped(breaks, seats, f, down_until_s):
            repaired_s_F[f] = np.nan
            continue
        repaired_s = _repaired_s(breaks, f, noticed_s, crew_free_s)
        repaired_s_F[f] = repaired_s
        count = _stop(breaks, seats, (f, help.failover_s, noticed_s, repaired_s), (spare_free_s, down_until_s), rows, count)  # fmt: skip
    return count


@njit(cache=True)
def _stop(
    breaks: Breaks,
    seats: Seats,
    failure: Failure,
    state: tuple[Floats, Floats],
    rows: Rows,
    count: int,
) -> int:
    f, _, _, repaired_s = failure
    spare_free_s, down_until_s = state
    replica_N, start_s_N, end_s_N, failure_N, by_spare_N = rows
    ready_s, by_spare, counted = repaired_s, False, 0
    for r in range(breaks.begin_F[f], breaks.end_F[f]):
        if not _is_hit(breaks, seats, f, r):
            continue
        first = max(breaks.first_card_F[f], seats.first_card_R[r], counted)
        lost = min(breaks.end_card_F[f], seats.end_card_R[r]) - first
        counted = seats.end_card_R[r]
        if lost > 0:
            ready_s = _ready_s(spare_free_s, lost if breaks.needs_part_F[f] else 0, failure)
            by_spare = ready_s < repaired_s
        back_s = ready_s + seats.load_s_R[r]
        start_s = max(breaks.at_s_F[f], down_until_s[r])
        if back_s > start_s:
            replica_N[count] = r
            start_s_N[count], end_s_N[count] = start_s, back_s
            failure_N[count], by_spare_N[count] = f, by_spare
            down_until_s[r] = back_s
            count += 1
    return count


@njit(cache=True)
def _is_hit(breaks: Breaks, seats: Seats, f: int, r: int) -> bool:
    if not breaks.is_link_F[f] or (seats.is_apart_R[r] and not breaks.is_shared_F[f]):
        return True
    before = seats.first_card_R[r] < breaks.first_card_F[f]
    return bool(before or seats.end_card_R[r] > breaks.end_card_F[f])


@njit(cache=True)
def _is_dropped(breaks: Breaks, seats: Seats, f: int, down_until_s: Floats) -> bool:
    """Whether it hits somebody, and only such as are down."""
    hits = False
    for r in range(breaks.begin_F[f], breaks.end_F[f]):
        if _is_hit(breaks, seats, f, r):
            hits = True
            if down_until_s[r] <= breaks.at_s_F[f]:
                return False
    return hits


@njit(cache=True)
def _repaired_s(breaks: Breaks, f: int, noticed_s: float, crew_free_s: Floats) -> float:
    repair_s = breaks.repair_s_F[f]
    if not len(crew_free_s) or not breaks.needs_part_F[f] or repair_s == np.inf:
        return float(noticed_s + repair_s)
    repaired_s = max(noticed_s, crew_free_s[0]) + repair_s
    _replace_first(crew_free_s, 1, repaired_s)
    return float(repaired_s)


@njit(cache=True)
def _ready_s(spare_free_s: Floats, lost: int, failure: Failure) -> float:
    """When the cards are whole again; 0 cards are not for spares to replace."""
    _, failover_s, noticed_s, repaired_s = failure
    if lost == 0 or lost > len(spare_free_s):
        return repaired_s
    ready_s = max(noticed_s, spare_free_s[lost - 1]) + failover_s
    if ready_s >= repaired_s:
        return repaired_s
    _replace_first(spare_free_s, lost, repaired_s)
    return float(ready_s)


@njit(cache=True)
def _replace_first(sorted_s: Floats, count: int, value_s: float) -> None:
    """Take the first ones out of an ascending array, and put the value in as often, in its place."""
    at = 0
    for index in range(count, len(sorted_s)):
        if sorted_s[index] > value_s:
            break
        sorted_s[at] = sorted_s[index]
        at += 1
    for index in range(at, at + count):
        sorted_s[index] = value_s
