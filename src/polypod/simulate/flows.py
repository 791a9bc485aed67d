"""Flows over a fabric on a virtual clock: how fast each gets along, and which one ends next.

Two rules for the rates, chosen by `sharing`:

`max-min`: max-min fairness, exact. The link with the least to give each of its flows is filled first, its flows are fixed at that, and the rest of
every other link goes to the flows that are left (progressive filling; Bertsekas and Gallager, Data Networks, 2nd ed., section 6.5.2).

`equal`: a tier's slowdown. A flow gets the least, over its links, of capacity / flows on the link, which is never more than max-min gives the
slowest of them and wastes what flows narrowed elsewhere leave. A link tells its flows only once its share has moved by more than
`tolerance_ratio`, so a busy one is cheap; a link may then be as much over its capacity.

A flow over a dead link stalls and goes on when the link is back; who has a timeout cancels it. A flow leaves its links with its last byte and is
reported its latency later.

This is the plain twin of `fabric_kernels`, which gives the same numbers to the last bit.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from polypod.errors import InputError
from polypod.simulate.fabric import Fabric, Floats

Sharing = Literal["max-min", "equal"]

TOLERANCE_RATIO = 1 / 32


class Finished(NamedTuple):
    """A flow's last byte has arrived."""

    at_s: float
    flow: int


class AnyFlows(Protocol):
    """What the plain and the compiled flows both are."""

    def start(self, at_s: float, flow: int, path: Sequence[int], size_bytes: float, latency_s: float = 0.0) -> None: ...  # fmt: skip
    def cancel(self, at_s: float, flow: int) -> None: ...
    def set_factor(self, at_s: float, link: int, factor: float) -> None: ...
    def rate_bytes_per_s(self, flow: int) -> float: ...
    @property
    def next_s(self) -> float: ...
    def advance(self, to_s: float) -> list[Finished]: ...


@dataclass(slots=True)
class _Flow:
    number: int  # in the order of starts
    path: tuple[int, ...]
    left_bytes: float
    latency_s: float
    since_s: float
    rate_bytes_per_s: float = -1.0
    end_s: float = math.inf


@dataclass(slots=True)
class _Link:
    capacity_bytes_per_s: float
    told_bytes_per_s: float
    most_bytes_per_s: float
    flows: dict[int, None] = field(default_factory=dict)


class Flows:
    """Flows that are under way. Times may not go back."""

    def __init__(self, fabric: Fabric, sharing: Sharing = "max-min", tolerance_ratio: float = TOLERANCE_RATIO) -> None:  # fmt: skip
        self._fabric = fabric
        self._exact = sharing == "max-min"
        self._tolerance = tolerance_ratio
        self._now_s = 0.0
        self._started = 0
        self._flows: dict[int, _Flow] = {}
        self._links: dict[int, _Link] = {}
        self._agenda: list[tuple[float, int, int]] = []  # (end, number, flow); entries may be stale
        self._arriving: list[tuple[float, int, int]] = []

    # ---- what a driver does

    def start(self, at_s: float, flow: int, path: Sequence[int], size_bytes: float, latency_s: float = 0.0) -> None:  # fmt: skip
        """A new flow. Raises `InputError` for one that is under way already, has no links or nothing to send."""
        check_start(flow in self._flows, flow, path, size_bytes)
        self._to(at_s)
        self._started += 1
        new = _Flow(self._started, tuple(path), size_bytes, latency_s, at_s)
        self._flows[flow] = new
        for link in new.path:
            self._link(link).flows[flow] = None
        self._changed(at_s, new.path)
        if not self._exact:
            self._touch(at_s, flow)

    def cancel(self, at_s: float, flow: int) -> None:
        """Take a flow off its links; it is never reported. Raises `InputError` where it is not under way."""
        self._known(flow)
        self._to(at_s)
        self._drop(at_s, flow)

    def set_factor(self, at_s: float, link: int, factor: float) -> None:
        """A link is at this share of its capacity from now on: 1 is whole, 0 dead."""
        check_factor(link, factor, self._fabric.links)
        self._to(at_s)
        one = self._link(link)
        one.capacity_bytes_per_s = float(self._fabric.capacity_bytes_per_s_L[link]) * factor
        self._changed(at_s, (link,))

    def rate_bytes_per_s(self, flow: int) -> float:
        """Of a flow now; 0 where it stalls."""
        return self._known(flow).rate_bytes_per_s

    @property
    def next_s(self) -> float:
        """When the next flow leaves its links or arrives; infinite where none does."""
        while self._agenda and self._is_stale(self._agenda[0]):
            heapq.heappop(self._agenda)
        ends = [heap[0][0] for heap in (self._agenda, self._arriving) if heap]
        return min(ends, default=math.inf)

    def advance(self, to_s: float) -> list[Finished]:
        """Play up to a time, which counts; what has arrived by then, in order."""
        found: list[Finished] = []
        while (next_s := self.next_s) <= to_s and next_s < math.inf:
            if self._arriving and self._arriving[0][0] <= next_s:
                at_s, _, flow = heapq.heappop(self._arriving)
                found.append(Finished(at_s, flow))
                continue
            at_s, number, flow = heapq.heappop(self._agenda)
            latency_s = self._flows[flow].latency_s
            heapq.heappush(self._arriving, (at_s + latency_s, number, flow))
            self._now_s = at_s
            self._drop(at_s, flow)
        self._now_s = max(self._now_s, to_s) if to_s < math.inf else self._now_s
        return found

    # ---- how

    def _to(self, at_s: float) -> None:
        check_time(at_s, self._now_s, self.next_s)
        self._now_s = at_s

    def _known(self, flow: int) -> _Flow:
        if flow not in self._flows:
            raise InputError(not_under_way(flow))
        return self._flows[flow]

    def _link(self, link: int) -> _Link:
        if link not in self._links:
            capacity = float(self._fabric.capacity_bytes_per_s_L[link])
            most = float(self._fabric.most_bytes_per_s_L[link])
            self._links[link] = _Link(capacity, capacity, most)
        return self._links[link]

    def _is_stale(self, entry: tuple[float, int, int]) -> bool:
        end_s, number, flow = entry
        known = self._flows.get(flow)
        return known is None or known.number != number or known.end_s != end_s

    def _drop(self, at_s: float, flow: int) -> None:
        gone = self._flows.pop(flow)
        for link in gone.path:
            del self._links[link].flows[flow]
        self._changed(at_s, gone.path)

    def _changed(self, at_s: float, path: Sequence[int]) -> None:
        """Flows or capacities of these links have changed."""
        if self._exact:
            for flow, rate in self._filled().items():
                self._set(at_s, flow, rate)
            return
        for link in path:
            one = self._links[link]
            if not one.flows:
                continue
            share = one.capacity_bytes_per_s / len(one.flows)
            if moved(share, one.told_bytes_per_s, self._tolerance):
                narrows = min(share, one.told_bytes_per_s) < one.most_bytes_per_s
                one.told_bytes_per_s = share
                for flow in one.flows if narrows else ():
                    self._touch(at_s, flow)

    def _touch(self, at_s: float, flow: int) -> None:
        links = (self._links[link] for link in self._flows[flow].path)
        self._set(at_s, flow, min(link.told_bytes_per_s for link in links))

    def _set(self, at_s: float, flow: int, rate: float) -> None:
        one = self._flows[flow]
        if rate == one.rate_bytes_per_s:
            return
        if one.rate_bytes_per_s > 0:
            one.left_bytes = max(0.0, one.left_bytes - one.rate_bytes_per_s * (at_s - one.since_s))
        one.since_s, one.rate_bytes_per_s = at_s, rate
        one.end_s = at_s + one.left_bytes / rate if rate > 0 else math.inf
        if one.end_s < math.inf:
            heapq.heappush(self._agenda, (one.end_s, one.number, flow))

    def _filled(self) -> dict[int, float]:
        """Max-min rates of all flows."""
        busy = ((link, one) for link, one in self._links.items() if one.flows)
        left = {
            link: one.capacity_bytes_per_s
            for link, one in busy
            if one.capacity_bytes_per_s < one.most_bytes_per_s * len(one.flows)
        }  # the others cannot fill
        count = {link: len(self._links[link].flows) for link in left}
        heap = [(left[link] / count[link], link) for link in left]
        heapq.heapify(heap)
        rates: dict[int, float] = {}
        while heap:
            share, link = heapq.heappop(heap)
            if not count[link]:
                continue
            now = max(0.0, left[link]) / count[link]
            if now > share:
                heapq.heappush(heap, (now, link))
                continue
            for flow in self._links[link].flows:
                if flow not in rates:
                    rates[flow] = share
                    for other in self._flows[flow].path:
                        if other in left:
                            left[other] -= share
                            count[other] -= 1
        return rates


def moved(share: float, told: float, tolerance: float) -> bool:
    """Whether a link's share is so far from what its flows were told that they must hear of it."""
    return abs(share - told) > tolerance * told


def check_start(known: bool, flow: int, path: Sequence[int], size_bytes: float) -> None:  # noqa: FBT001
    """Refuse a flow that cannot be."""
    if known:
        msg = f"flow {flow} is under way already; give every flow its own number"
        raise InputError(msg)
    if not len(path) or not 0 < size_bytes < math.inf:
        msg = f"flow {flow} has {len(path)} links and {size_bytes:g} bytes; a flow has at least one link and more than 0 bytes"
        raise InputError(msg)


def check_factor(link: int, factor: float, links: int) -> None:
    """Refuse a link that is not there, or more than it has."""
    if not (0 <= link < links and 0 <= factor <= 1):
        msg = f"link {link} of {links} at {factor:g} of its capacity; links are numbered from 0, and a factor is 0 to 1"
        raise InputError(msg)


def check_time(at_s: float, now_s: float, next_s: float) -> None:
    """Refuse to go back, or past what has not been played."""
    if not now_s <= at_s <= next_s:
        msg = f"a change at {at_s:g} s, but flows are at {now_s:g} s and one ends at {next_s:g} s; advance to {at_s:g} s first, and never go back"
        raise InputError(msg)


def not_under_way(flow: int) -> str:
    return f"flow {flow} is not under way: it was not started, or has left its links"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Flows to play, as arrays of one length: when each starts, what it sends, over which links (F, W) and with what latency."""

    at_s_F: Floats
    size_bytes_F: Floats
    path_FW: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    latency_s_F: Floats


def play_flows(flows: AnyFlows, demand: Demand) -> Floats:
    """When each flow has arrived, in seconds; infinite for one that stalls for good."""
    order = np.argsort(demand.at_s_F, kind="stable")
    end_s_F = np.full(len(order), math.inf)
    for flow in order.tolist():
        at_s = float(demand.at_s_F[flow])
        for done in flows.advance(at_s):
            end_s_F[done.flow] = done.at_s
        path = [link for link in demand.path_FW[flow].tolist() if link >= 0]
        flows.start(at_s, flow, path, float(demand.size_bytes_F[flow]), float(demand.latency_s_F[flow]))  # fmt: skip
    for done in flows.advance(math.inf):
        end_s_F[done.flow] = done.at_s
    return end_s_F


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of the equal shares beside max-min, over flows: the time a flow takes by the one over that by the other."""

    median_ratio: float
    p10_ratio: float
    p90_ratio: float
    p99_ratio: float
    least_ratio: float
    most_ratio: float


def errors(exact: AnyFlows, near: AnyFlows, demand: Demand) -> Errors:
    """Play the same flows by both rules and compare how long each takes. Stalled flows are left out."""
    exact_s, near_s = (play_flows(flows, demand) - demand.at_s_F for flows in (exact, near))
    ends = np.isfinite(exact_s) & np.isfinite(near_s)
    ratio = near_s[ends] / exact_s[ends]
    p10, median, p90, p99 = (float(one) for one in np.quantile(ratio, (0.1, 0.5, 0.9, 0.99)))
    return Errors(
        median_ratio=median,
        p10_ratio=p10,
        p90_ratio=p90,
        p99_ratio=p99,
        least_ratio=float(ratio.min()),
        most_ratio=float(ratio.max()),
    )
