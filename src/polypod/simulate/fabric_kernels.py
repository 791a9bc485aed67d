"""The compiled twin of `flows`, for an event loop that is compiled itself: flows in arrays, and functions that change them.

A loop keeps one `FlowArrays` (`flow_arrays` makes it) and calls, with times that do not go back,

    add(flows, at_s, slot, path_W, length, size_bytes)     a flow in a free slot; its links are path_W[:length]
    remove(flows, at_s, slot)                              it has ended, or is cancelled
    set_capacity(flows, at_s, link, bytes_per_s)           a link is degraded, dead (0) or whole again
    next_end(flows) -> (end_s, slot)                       infinite and -1 where no flow ends
    path_into(wiring, a, b, path_W) -> length              links between two ranks; 0 where nothing joins them

To advance: while the end is not after the time wanted, `remove` its slot at its end; the flow arrives its latency later, which is the caller's to add.
The caller owns the slots. After any call `flows.rate_S[slot]` is a flow's rate and `flows.end_S[slot]` when it ends, if nothing changes.

Shape key: S slots, L links, W links of a path, N = S * W places of flows on links: slot s has the places s * W and on.

Needs numba; nothing imports this module unless flows are asked for compiled. Numbers are those of `flows` to the last bit.
"""

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from polypod.errors import InputError
from polypod.simulate.fabric import Fabric, Floats, Ints, Wiring
from polypod.simulate.flows import (
    TOLERANCE_RATIO,
    Demand,
    Finished,
    Sharing,
    check_factor,
    check_start,
    check_time,
    not_under_way,
)

USED, BUSY, STARTED, FILLS = 0, 1, 2, 3
"""Places in `counts`: slots in the heap, links with flows, flows started so far, times that rates were filled."""


class FlowArrays(NamedTuple):
    """Flows that are under way. `tolerance` below 0: max-min fair; else equal shares, told when they have moved by so much."""

    tolerance: float
    counts: Ints
    # links
    capacity_L: Floats
    most_L: Floats  # what ports leave one flow on it
    told_L: Floats  # the share that the flows of a link were told last
    flows_L: Ints  # how many flows are on it
    head_L: Ints  # place of its first flow, -1: none
    busy_L: Ints  # the first counts[BUSY]: links with flows
    at_L: Ints  # where in busy_L a link is
    # slots
    path_N: Ints
    next_N: Ints  # the next place on the same link
    before_N: Ints
    length_S: Ints
    left_S: Floats  # bytes, at since_S
    since_S: Floats
    rate_S: Floats
    end_S: Floats
    number_S: Ints  # in the order of starts: breaks ties
    heap_S: Ints  # the first counts[USED]: slots, the one that ends first on top
    in_heap_S: Ints  # where a slot is; -1: free
    # room to fill in
    left_L: Floats
    open_L: Ints
    share_L: Floats
    order_L: Ints
    filled_S: Ints


def flow_arrays(
    fabric: Fabric,
    slots: int,
    width: int,
    sharing: Sharing = "max-min",
    tolerance_ratio: float = TOLERANCE_RATIO,
) -> FlowArrays:
    """No flows yet, room for `slots` of at most `width` links each."""
    links = fabric.links
    capacity_L, most_L = fabric.capacity_bytes_per_s_L, fabric.most_bytes_per_s_L

    def whole(count: int, value: int = 0) -> Ints:
        return np.full(count, value, dtype=np.int64)

    return FlowArrays(
        tolerance=-1.0 if sharing == "max-min" else tolerance_ratio, counts=whole(4),
        capacity_L=capacity_L.copy(), most_L=most_L.copy(), told_L=capacity_L.copy(), flows_L=whole(links), head_L=whole(links, -1), busy_L=whole(links), at_L=whole(links),
        path_N=whole(slots * width, -1), next_N=whole(slots * width, -1), before_N=whole(slots * width, -1), length_S=whole(slots),
        left_S=np.zeros(slots), since_S=np.zeros(slots), rate_S=np.zeros(slots), end_S=np.full(slots, math.inf), number_S=whole(slots),
        heap_S=whole(slots), in_heap_S=whole(slots, -1),
        left_L=np.zeros(links), open_L=whole(links), share_L=np.zeros(links), order_L=whole(links), filled_S=whole(slots),
    )  # fmt: skip


@njit(cache=True)
def add(f: FlowArrays, at_s: float, slot: int, path_W: Ints, length: int, size_bytes: float) -> None:  # fmt: skip
    f.counts[STARTED] += 1
    f.number_S[slot] = f.counts[STARTED]
    f.left_S[slot], f.since_S[slot], f.rate_S[slot], f.end_S[slot] = size_bytes, at_s, -1.0, np.inf
    f.length_S[slot] = length
    last = f.counts[USED]
    f.counts[USED] += 1
    f.heap_S[last], f.in_heap_S[slot] = slot, last
    _up(f, last)
    first = slot * (len(f.path_N) // len(f.heap_S))
    for k in range(length):
        _enter(f, first + k, path_W[k])
    _changed(f, at_s, first, length)
    if f.tolerance >= 0.0:
        _touch(f, at_s, slot)


@njit(cache=True)
def remove(f: FlowArrays, at_s: float, slot: int) -> None:
    place = f.in_heap_S[slot]
    last = f.counts[USED] - 1
    f.counts[USED] = last
    moved_slot = f.heap_S[last]
    f.heap_S[place], f.in_heap_S[moved_slot] = moved_slot, place
    f.in_heap_S[slot] = -1
    if place < last:
        _up(f, place)
        _down(f, f.in_heap_S[moved_slot])
    first = slot * (len(f.path_N) // len(f.heap_S))
    for k in range(f.length_S[slot]):
        _leave(f, first + k)
    _changed(f, at_s, first, f.length_S[slot])


@njit(cache=True)
def set_capacity(f: FlowArrays, at_s: float, link: int, bytes_per_s: float) -> None:
    f.capacity_L[link] = bytes_per_s
    if f.tolerance < 0.0:
        _fill(f, at_s)
    else:
        _tell(f, at_s, link)


@njit(cache=True)
def next_end(f: FlowArrays) -> tuple[float, int]:
    if f.counts[USED] == 0:
        return np.inf, -1
    slot = f.heap_S[0]
    end_s = f.end_S[slot]
    return (end_s, slot) if end_s < np.inf else (np.inf, -1)


@njit(cache=True)
def _enter(f: FlowArrays, place: int, link: int) -> None:
    f.path_N[place] = link
    after = f.head_L[link]
    f.next_N[place], f.before_N[place], f.head_L[link] = after, -1, place
    if after >= 0:
        f.before_N[after] = place
    if f.flows_L[link] == 0:
        f.at_L[link] = f.counts[BUSY]
        f.busy_L[f.counts[BUSY]] = link
        f.counts[BUSY] += 1
    f.flows_L[link] += 1


@njit(cache=True)
def _leave(f: FlowArrays, place: int) -> None:
    link = f.path_N[place]
    after, before = f.next_N[place], f.before_N[place]
    if before >= 0:
        f.next_N[before] = after
    else:
        f.head_L[link] = after
    if after >= 0:
        f.before_N[after] = before
    f.flows_L[link] -= 1
    if f.flows_L[link] == 0:
        f.counts[BUSY] -= 1
        moved_link = f.busy_L[f.counts[BUSY]]
        f.busy_L[f.at_L[link]] = moved_link
        f.at_L[moved_link] = f.at_L[link]


@njit(cache=True)
def _changed(f: FlowArrays, at_s: float, first: int, length: int) -> None:
    if f.tolerance < 0.0:
        _fill(f, at_s)
    else:
        for k in range(length):
            _tell(f, at_s, f.path_N[first + k])


@njit(cache=True)
def _tell(f: FlowArrays, at_s: float, link: int) -> None:
    """Tell a link's flows its share, if that has moved."""
    if f.flows_L[link] == 0:
        return
    share = f.capacity_L[link] / f.flows_L[link]
    told = f.told_L[link]
    if abs(share - told) > f.tolerance * told:
        f.told_L[link] = share
        if min(share, told) >= f.most_L[link]:
            return  # no limit to anyone, before and now
        width = len(f.path_N) // len(f.heap_S)
        place = f.head_L[link]
        while place >= 0:
            _touch(f, at_s, place // width)
            place = f.next_N[place]


@njit(cache=True)
def _touch(f: FlowArrays, at_s: float, slot: int) -> None:
    first = slot * (len(f.path_N) // len(f.heap_S))
    rate = np.inf
    for k in range(f.length_S[slot]):
        rate = min(rate, f.told_L[f.path_N[first + k]])
    _set(f, at_s, slot, rate)


@njit(cache=True)
def _set(f: FlowArrays, at_s: float, slot: int, rate: float) -> None:
    before = f.rate_S[slot]
    if rate == before:
        return
    if before > 0.0:
        f.left_S[slot] = max(0.0, f.left_S[slot] - before * (at_s - f.since_S[slot]))
    f.since_S[slot], f.rate_S[slot] = at_s, rate
    f.end_S[slot] = at_s + f.left_S[slot] / rate if rate > 0.0 else np.inf
    _up(f, f.in_heap_S[slot])
    _down(f, f.in_heap_S[slot])


@njit(cache=True)
def _sooner(f: FlowArrays, a: int, b: int) -> bool:
    if f.end_S[a] != f.end_S[b]:
        return bool(f.end_S[a] < f.end_S[b])
    return bool(f.number_S[a] < f.number_S[b])


@njit(cache=True)
def _up(f: FlowArrays, place: int) -> None:
    slot = f.heap_S[place]
    while place > 0:
        above = (place - 1) // 2
        if not _sooner(f, slot, f.heap_S[above]):
            break
        f.heap_S[place] = f.heap_S[above]
        f.in_heap_S[f.heap_S[place]] = place
        place = above
    f.heap_S[place], f.in_heap_S[slot] = slot, place


@njit(cache=True)
def _down(f: FlowArrays, place: int) -> None:
    slot, used = f.heap_S[place], f.counts[USED]
    while 2 * place + 1 < used:
        below = 2 * place + 1
        if below + 1 < used and _sooner(f, f.heap_S[below + 1], f.heap_S[below]):
            below += 1
        if not _sooner(f, f.heap_S[below], slot):
            break
        f.heap_S[place] = f.heap_S[below]
        f.in_heap_S[f.heap_S[place]] = place
        place = below
    f.heap_S[place], f.in_heap_S[slot] = slot, place


# ---- max-min


@njit(cache=True)
def _fill(f: FlowArrays, at_s: float) -> None:
    """Rates of all flows: the link with the least to give is filled, and so on."""
    f.counts[FILLS] += 1
    round_, width = f.counts[FILLS], len(f.path_N) // len(f.heap_S)
    busy = _open(f)
    while busy:
        link = f.order_L[0]
        share = f.share_L[link]
        if f.open_L[link]:
            now = max(0.0, f.left_L[link]) / f.open_L[link]
            if now > share:
                f.share_L[link] = now
                _sink(f, 0, busy)
                continue
            place = f.head_L[link]
            while place >= 0:
                slot = place // width
                if f.filled_S[slot] != round_:
                    f.filled_S[slot] = round_
                    _take(f, slot, share)
                    _set(f, at_s, slot, share)
                place = f.next_N[place]
        busy -= 1
        f.order_L[0] = f.order_L[busy]
        _sink(f, 0, busy)


@njit(cache=True)
def _open(f: FlowArrays) -> int:
    """The links that flows can fill, all of them open, as a heap; how many there are."""
    busy = 0
    for k in range(f.counts[BUSY]):
        link = f.busy_L[k]
        f.left_L[link], f.open_L[link] = f.capacity_L[link], f.flows_L[link]
        f.share_L[link] = f.left_L[link] / f.open_L[link]
        if f.capacity_L[link] < f.most_L[link] * f.flows_L[link]:  # the others cannot fill
            f.order_L[busy] = link
            busy += 1
    for k in range(busy // 2 - 1, -1, -1):
        _sink(f, k, busy)
    return busy


@njit(cache=True)
def _take(f: FlowArrays, slot: int, share: float) -> None:
    """A flow's rate is fixed: the rest of its links goes to others."""
    first = slot * (len(f.path_N) // len(f.heap_S))
    for k in range(f.length_S[slot]):
        link = f.path_N[first + k]
        f.left_L[link] -= share
        f.open_L[link] -= 1


@njit(cache=True)
def _sink(f: FlowArrays, place: int, used: int) -> None:
    """Down a heap of links by (share, link)."""
    if place >= used:
        return
    link = f.order_L[place]
    share = f.share_L[link]
    while 2 * place + 1 < used:
        below = 2 * place + 1
        low = f.order_L[below]
        if below + 1 < used:
            other = f.order_L[below + 1]
            if f.share_L[other] < f.share_L[low] or (f.share_L[other] == f.share_L[low] and other < low):  # fmt: skip
                below, low = below + 1, other
        if f.share_L[low] > share or (f.share_L[low] == share and low > link):
            break
        f.order_L[place] = low
        place = below
    f.order_L[place] = link


# ---- paths


@njit(cache=True)
def path_into(w: Wiring, a: int, b: int, path_W: Ints) -> int:
    """Links from rank a to rank b, as `Fabric.path`; how many there are, 0 where nothing joins them."""
    p = int(np.searchsorted(w.rank_P, a, side="right")) - 1
    q = int(np.searchsorted(w.rank_P, b, side="right")) - 1
    x, y = a - w.rank_P[p], b - w.rank_P[q]
    row_a, row_b = w.row_P[p + 1] - 1, w.row_P[q + 1] - 1
    if p == q:
        row_a = _meeting(w, p, x, y)
        row_b = row_a
    if (x == y and p == q) or row_a < 0 or (p != q and not (w.out_P[p] and w.out_P[q])):
        return 0
    parts = len(w.rank_P) - 1
    path_W[0] = w.port_T[w.plane_T[row_a]] + x
    length = 1
    for row in range(w.plane_T[row_a], row_a + 1):
        if w.groups_T[row]:
            path_W[length] = w.up_T[row] + x // w.inner_T[row]
            length += 1
    if p != q:
        path_W[length], path_W[length + 1] = w.join + p, w.join + parts + q
        length += 2
    for row in range(row_b, w.plane_T[row_b] - 1, -1):
        if w.groups_T[row]:
            path_W[length] = w.up_T[row] + w.groups_T[row] + y // w.inner_T[row]
            length += 1
    path_W[length] = w.port_T[w.plane_T[row_b]] + w.rank_P[q + 1] - w.rank_P[q] + y
    return length + 1


@njit(cache=True)
def _meeting(w: Wiring, part: int, x: int, y: int) -> int:
    for row in range(w.row_P[part], w.row_P[part + 1]):
        if x // w.size_T[row] == y // w.size_T[row]:
            return row
    return -1


# ---- for Python


class CompiledFlows:
    """`flows.Flows`, compiled: the same calls, the same numbers. Room grows as flows need it."""

    def __init__(self, fabric: Fabric, sharing: Sharing = "max-min", tolerance_ratio: float = TOLERANCE_RATIO) -> None:  # fmt: skip
        self._fabric = fabric
        self._rule: tuple[Sharing, float] = (sharing, tolerance_ratio)
        self._width = fabric.wiring.width
        self._now_s = 0.0
        self._arrays = self._room(64)
        self._free = list(range(63, -1, -1))
        self._slots: dict[int, int] = {}
        self._flows: dict[int, tuple[int, float]] = {}  # by slot: the flow and its latency
        self._arriving: list[tuple[float, int, int]] = []

    def start(self, at_s: float, flow: int, path: Sequence[int], size_bytes: float, latency_s: float = 0.0) -> None:  # fmt: skip
        """As `flows.Flows.start`."""
        check_start(flow in self._slots, flow, path, size_bytes)
        self._to(at_s)
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slots[flow], self._flows[slot] = slot, (flow, latency_s)
        add(self._arrays, at_s, slot, np.asarray(path, dtype=np.int64), len(path), size_bytes)

    def cancel(self, at_s: float, flow: int) -> None:
        """As `flows.Flows.cancel`."""
        slot = self._known(flow)
        self._to(at_s)
        self._drop(at_s, slot)

    def set_factor(self, at_s: float, link: int, factor: float) -> None:
        """As `flows.Flows.set_factor`."""
        check_factor(link, factor, self._fabric.links)
        self._to(at_s)
        capacity = float(self._fabric.capacity_bytes_per_s_L[link]) * factor
        set_capacity(self._arrays, at_s, link, capacity)

    def rate_bytes_per_s(self, flow: int) -> float:
        """As `flows.Flows.rate_bytes_per_s`."""
        return float(self._arrays.rate_S[self._known(flow)])

    @property
    def next_s(self) -> float:
        """As `flows.Flows.next_s`."""
        end_s = float(next_end(self._arrays)[0])
        return min(end_s, self._arriving[0][0]) if self._arriving else end_s

    def advance(self, to_s: float) -> list[Finished]:
        """As `flows.Flows.advance`."""
        found: list[Finished] = []
        while True:
            end_s, slot = next_end(self._arrays)
            if self._arriving and self._arriving[0][0] <= min(end_s, to_s):
                at_s, _, flow = heapq.heappop(self._arriving)
                found.append(Finished(at_s, flow))
                continue
            if slot < 0 or end_s > to_s:
                break
            flow, latency_s = self._flows[slot]
            number = int(self._arrays.number_S[slot])
            heapq.heappush(self._arriving, (float(end_s) + latency_s, number, flow))
            self._now_s = float(end_s)
            self._drop(self._now_s, slot)
        self._now_s = max(self._now_s, to_s) if to_s < math.inf else self._now_s
        return found

    def _to(self, at_s: float) -> None:
        check_time(at_s, self._now_s, self.next_s)
        self._now_s = at_s

    def _known(self, flow: int) -> int:
        if flow not in self._slots:
            raise InputError(not_under_way(flow))
        return self._slots[flow]

    def _drop(self, at_s: float, slot: int) -> None:
        del self._slots[self._flows.pop(slot)[0]]
        self._free.append(slot)
        remove(self._arrays, at_s, slot)

    def _room(self, slots: int) -> FlowArrays:
        return flow_arrays(self._fabric, slots, self._width, *self._rule)

    def _grow(self) -> None:
        """Twice the slots; what is there keeps its place."""
        old = self._arrays
        slots = len(old.heap_S)
        new = self._room(2 * slots)
        for name, array in old._asdict().items():
            if isinstance(array, np.ndarray):
                getattr(new, name)[: len(array)] = array
        self._arrays = new
        self._free = list(range(2 * slots - 1, slots - 1, -1))


@njit(cache=True)
def _play(f: FlowArrays, order_F: Ints, at_s_F: Floats, size_F: Floats, path_FW: Ints, end_F: Floats) -> None:  # fmt: skip
    """Play flows to their end, flow n in slot n; `end_F` is when each leaves its links."""
    started, count = 0, len(order_F)
    while True:
        end_s, slot = next_end(f)
        begin_s = at_s_F[order_F[started]] if started < count else np.inf
        if slot >= 0 and end_s <= begin_s:
            end_F[slot] = end_s
            remove(f, end_s, slot)
        elif started < count:
            flow = order_F[started]
            started += 1
            length = 0
            while length < path_FW.shape[1] and path_FW[flow, length] >= 0:
                length += 1
            add(f, begin_s, flow, path_FW[flow], length, size_F[flow])
        else:
            break


def play_compiled(
    fabric: Fabric,
    demand: Demand,
    sharing: Sharing = "max-min",
    tolerance_ratio: float = TOLERANCE_RATIO,
) -> Floats:
    """When each flow has arrived, as `flows.play_flows`; paths are filled with -1 at their end only."""
    count = len(demand.at_s_F)
    path_FW = np.ascontiguousarray(-np.sort(-demand.path_FW, axis=1))  # what fills, last
    arrays = flow_arrays(fabric, count, path_FW.shape[1], sharing, tolerance_ratio)
    end_F = np.full(count, math.inf)
    order_F = np.argsort(demand.at_s_F, kind="stable")
    _play(arrays, order_F, demand.at_s_F, demand.size_bytes_F, path_FW, end_F)
    return end_F + demand.latency_s_F
