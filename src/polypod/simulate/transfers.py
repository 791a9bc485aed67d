"""Caches on their way from prefill to decode replicas, on a virtual clock.

A cache takes its latency, and then its bytes at the rate of the narrower end, whose link all caches on it share evenly:

    bytes_per_s = min(link / max(caches on it, data-parallel ranks)) over source and target

since a cache goes from one data-parallel group to another. What an end cannot use of its share is left to nobody (max-min fairness
would give it to the others of the other end): at most as late as that, never earlier.
"""

import heapq
import math
from dataclasses import dataclass

from polypod.policy.events import ReplicaUp


@dataclass(slots=True, eq=False, kw_only=True)
class _Cache:
    order: int
    source: str
    target: str
    left_bytes: float
    since_s: float  # when so many bytes were left
    due_s: float  # its next change: its bytes begin to go, or it has arrived
    bytes_per_s: float = 0.0  # 0: they have not begun


class Transfers:
    """All caches that are on their way. Times given to it must not go back.

    >>> from polypod.cost.steptime import StepTime
    >>> step = StepTime(tokens=(1, 2), seconds=(1, 2), kv_token_s=0, pair_s=0)
    >>> transfers = Transfers()
    >>> for name in "pd":
    ...     transfers.link(ReplicaUp(at_s=0, replica=name, epoch=1, model="m", pool=name, role="both", step_time=step,
    ...         context_tokens=64, kv_capacity_tokens=640, max_sequences=8, max_step_tokens=64, kv_link_bytes_per_s=100.0))
    >>> transfers.start(0.0, request=1, ends=("p", "d"), kv_bytes=100.0)
    >>> transfers.start(0.5, request=2, ends=("p", "d"), kv_bytes=100.0)  # half the first is left: it takes a second more
    >>> transfers.advance(0.5), transfers.next_s, transfers.advance(1.5), transfers.advance(2.0)
    ([], 1.5, [1], [2])
    """

    def __init__(self) -> None:
        self._links: dict[str, ReplicaUp] = {}
        self._caches: dict[int, _Cache] = {}
        self._sharing: dict[str, dict[int, None]] = {}  # requests whose bytes go, by link
        self._changes: list[tuple[float, int, int]] = []  # a heap of times, orders and requests
        self._factors: dict[str, float] = {}
        self._order = 0

    def slow(self, at_s: float, replica: str, factor: float) -> None:
        """From now on a cache takes `factor` times as long over this replica's link; 1 is as told."""
        self._factors[replica] = factor
        for request in self._sharing.get(replica, {}):
            self._time(at_s, request, self._caches[request])

    def link(self, up: ReplicaUp) -> None:
        """A replica is up, with this link. What was on it before is stopped by whoever hears so."""
        self._links[up.replica] = up
        self._sharing.setdefault(up.replica, {})

    def __contains__(self, request: int) -> bool:
        return request in self._caches

    @property
    def next_s(self) -> float:
        """When something changes next; infinite when nothing is on its way."""
        while self._changes:
            at_s, order, request = self._changes[0]
            cache = self._caches.get(request)
            if cache is not None and (cache.due_s, cache.order) == (at_s, order):
                return at_s
            heapq.heappop(self._changes)
        return math.inf

    def start(self, at_s: float, *, request: int, ends: tuple[str, str], kv_bytes: float) -> None:
        """Send a request's cache from one replica to another."""
        latency_s = max(self._links[name].kv_link_latency_s for name in ends)
        self._order += 1
        cache = _Cache(
            order=self._order,
            source=ends[0],
            target=ends[1],
            left_bytes=kv_bytes,
            since_s=at_s,
            due_s=at_s + latency_s,
        )
        self._caches[request] = cache
        heapq.heappush(self._changes, (cache.due_s, cache.order, request))

    def stop(self, at_s: float, request: int) -> None:
        """Send it no further; one that is not on its way is ignored."""
        cache = self._caches.pop(request, None)
        if cache is not None and cache.bytes_per_s:
            self._share(at_s, request, cache, begins=False)

    def advance(self, to_s: float) -> list[int]:
        """Play until `to_s`, that moment included; return the requests whose caches have arrived, in order."""
        arrived = []
        while self.next_s <= to_s:
            at_s, _, request = heapq.heappop(self._changes)
            cache = self._caches[request]
            if cache.bytes_per_s:
                arrived.append(request)
                self.stop(at_s, request)
            else:
                self._share(at_s, request, cache, begins=True)
        return arrived

    def _share(self, at_s: float, request: int, cache: _Cache, *, begins: bool) -> None:
        """One more or one less is on two links: time all on them anew."""
        beside: dict[int, None] = {}
        for name in (cache.source, cache.target):
            on_it = self._sharing[name]
            if begins:
                on_it[request] = None
            else:
                del on_it[request]
            beside |= on_it
        for other in beside:
            self._time(at_s, other, self._caches[other])

    def _time(self, at_s: float, request: int, cache: _Cache) -> None:
        """Set the rate, and with it when it arrives; one whose rate stays keeps its time to the bit."""
        rate = min(self._part(cache.source), self._part(cache.target))
        if rate == cache.bytes_per_s:
            return
        if cache.bytes_per_s:
            cache.left_bytes = max(cache.left_bytes - cache.bytes_per_s * (at_s - cache.since_s), 0.0)  # fmt: skip
        cache.since_s, cache.bytes_per_s = at_s, rate
        cache.due_s = at_s + cache.left_bytes / rate
        heapq.heappush(self._changes, (cache.due_s, cache.order, request))

    def _part(self, name: str) -> float:
        up = self._links[name]
        if not up.kv_link_bytes_per_s:
            return math.inf
        share = up.kv_link_bytes_per_s / max(len(self._sharing[name]), up.step_time.data_ranks)
        return share / self._factors.get(name, 1.0)
