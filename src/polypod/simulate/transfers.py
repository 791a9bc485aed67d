"""Caches on their way from prefill to decode replicas, on a virtual clock.

A cache takes its latency, and then its bytes. Each end has a link of its own, which all caches on it share, and none of them gets more of it than

    port = link / data-parallel ranks

since a cache goes from one data-parallel group to another. Without `Ways` there is nothing else, and each end's caches have equal shares:

    bytes_per_s = min(link / max(caches on it, data-parallel ranks)) over source and target

What an end cannot use of its share is left to nobody: at most as late as by max-min fairness, never earlier.

With `Ways` a cache also crosses the links that it shares with others, up from its source and down to its target. At most `exact_caches` at once get
max-min fair rates, by progressive filling: the least share that any link has for the caches whose rate is not fixed yet, or any port, is
what those on such links and ports get; they take it off all their links, and so on.

More at once get the least that their ports and their links' levels give. A link's level is that to which it fills up with its caches, none of which takes more than its ports and its
other links let it have:

    sum over caches of min(limit, level) = capacity

or, where all are held back elsewhere, what one of them could have beside the others. A cache that begins or ends, or a link that changes, makes the levels of its own links
anew, and of no others; a level is told to the link's caches once it has moved by more than `TOLERANCE_RATIO`. Told to everyone again and again, levels would come to max-min fair ones
(Charny, Clark, Jain 1995); so rates are near them, mostly below and sometimes above, until the next change nearby. Limits are whole bytes a second in such a sum, so that its order changes nothing.

A dead link has no capacity: its caches wait until it is back. All of this is done in the same order of operations by `native/transfers.h`.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from polypod.policy.events import ReplicaUp
from polypod.simulate.ways import LEVEL_ROUNDS, TOLERANCE_RATIO, Ways

Key = str | int
"""Of a link: a replica's own by its name, a shared one by its number."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Cache:
    order: int
    source: str
    target: str
    size_bytes: float
    left_bytes: float
    since_s: float  # when so many bytes were left
    due_s: float  # its next change: its bytes begin to go, or it has arrived
    bytes_per_s: float = -1.0  # below 0: they have not begun
    links: tuple[int, ...] = ()  # shared ones
    tiers: tuple[int, ...] = ()

    @property
    def goes(self) -> bool:
        return self.bytes_per_s >= 0

    def sent_bytes(self, at_s: float) -> float:
        """Whole bytes that have gone until then."""
        if self.bytes_per_s <= 0:
            return float(math.floor(self.size_bytes - self.left_bytes))
        if at_s >= self.due_s:
            return float(math.floor(self.size_bytes))
        left = max(self.left_bytes - self.bytes_per_s * (at_s - self.since_s), 0.0)
        return float(math.floor(self.size_bytes - left))


@dataclass(slots=True, eq=False)
class _Shared:
    """One direction of a way."""

    capacity: float
    whole: float
    caches: dict[int, None] = field(default_factory=dict)


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

    def __init__(self, ways: Ways | None = None, replicas: Sequence[ReplicaUp] = ()) -> None:
        self._ways = ways
        self._number = {up.replica: number for number, up in enumerate(replicas)}
        self._links: dict[str, ReplicaUp] = {}
        self._factors: dict[str, float] = {}
        self._caches: dict[int, _Cache] = {}
        self._going: dict[int, None] = {}  # requests whose bytes go
        self._sharing: dict[str, dict[int, None]] = {}  # the same by replica
        self._shared: list[_Shared] = []
        self._told: dict[Key, float] = {}  # levels
        if ways is not None:
            self._shared = [_Shared(whole, whole) for one in ways.capacity_bytes_per_s_W.tolist() for whole in (one, one)]  # fmt: skip
            self._told = {key: self._capacity(key) for key in (*self._number, *range(len(self._shared)))}  # fmt: skip
        self._done_bytes = [0.0] * (0 if ways is None else len(ways.tiers))
        self._is_exact = ways is not None
        self._changes: list[tuple[float, int, int]] = []  # a heap of times, orders and requests
        self._order = 0

    def slow(self, at_s: float, replica: str, factor: float) -> None:
        """From now on a cache takes `factor` times as long over this replica's link; 1 is as told."""
        self._factors[replica] = factor
        self._retime(at_s, dict(self._sharing.get(replica, {})), (replica,))

    def slow_way(self, at_s: float, way: int, factor: float) -> None:
        """From now on a way has its capacity divided by this, in both directions; 1 is whole, infinite dead."""
        links = (2 * way, 2 * way + 1)
        for link in links:
            self._shared[link].capacity = self._shared[link].whole / factor
        self._retime(at_s, {}, links)

    def link(self, up: ReplicaUp) -> None:
        """A replica is up, with this link. What was on it before is stopped by whoever hears so."""
        self._links[up.replica] = up
        self._sharing.setdefault(up.replica, {})

    def __contains__(self, request: int) -> bool:
        return request in self._caches

    def rate_bytes_per_s(self, request: int) -> float:
        """Of a cache whose bytes go; 0 where it waits for a dead link."""
        return self._caches[request].bytes_per_s

    @property
    def next_s(self) -> float:
        """When something changes next; infinite when nothing is on its way, or all waits for dead links."""
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
        links, tiers = ([], []) if self._ways is None else self._ways.path(*(self._number[name] for name in ends))  # fmt: skip
        self._order += 1
        cache = _Cache(
            order=self._order,
            source=ends[0],
            target=ends[1],
            size_bytes=kv_bytes,
            left_bytes=kv_bytes,
            since_s=at_s,
            due_s=at_s + latency_s,
            links=tuple(links),
            tiers=tuple(tiers),
        )
        self._caches[request] = cache
        heapq.heappush(self._changes, (cache.due_s, cache.order, request))

    def stop(self, at_s: float, request: int) -> None:
        """Send it no further; one that is not on its way is ignored."""
        cache = self._caches.pop(request, None)
        if cache is not None and cache.goes:
            for tier in cache.tiers:
                self._done_bytes[tier] += cache.sent_bytes(at_s)
            self._share(at_s, request, cache, begins=False)

    def advance(self, to_s: float) -> list[int]:
        """Play until `to_s`, that moment included; return the requests whose caches have arrived, in order."""
        arrived = []
        while self.next_s <= to_s:
            at_s, _, request = heapq.heappop(self._changes)
            cache = self._caches[request]
            if cache.goes:
                arrived.append(request)
                self.stop(at_s, request)
            else:
                self._share(at_s, request, cache, begins=True)
        return arrived

    def tier_bytes(self, at_s: float) -> list[float]:
        """What has gone over each of the ways' tiers since the start, in whole bytes of each cache."""
        found = list(self._done_bytes)
        for request in self._going:
            cache = self._caches[request]
            for tier in cache.tiers:
                found[tier] += cache.sent_bytes(at_s)
        return found

    def _share(self, at_s: float, request: int, cache: _Cache, *, begins: bool) -> None:
        """One more or one less is on its links: time all on them anew."""
        lists = [self._going, self._sharing[cache.source], self._sharing[cache.target]]
        for on_it in lists + [self._shared[link].caches for link in cache.links]:
            if begins:
                on_it[request] = None
            else:
                del on_it[request]
        if self._ways is None:
            beside = self._sharing[cache.source] | self._sharing[cache.target]
        else:
            beside = {request: None} if begins else {}
        self._retime(at_s, beside, _keys(cache))

    def _retime(self, at_s: float, beside: dict[int, None], links: Sequence[Key]) -> None:
        """Something has changed for these caches, and on these links."""
        if self._ways is not None and len(self._going) <= self._ways.exact_caches:
            self._is_exact = True
            for request, rate in self._filled().items():
                self._time(at_s, self._caches[request], request, rate)
            return
        if self._is_exact:
            self._is_exact = False
            self._tell_all()
            beside = self._going
        elif self._ways is not None:
            beside = beside | self._tell(links)
        for request in beside:
            cache = self._caches[request]
            rate = self._even(cache) if self._ways is None else self._limit(cache)
            self._time(at_s, cache, request, rate)

    def _time(self, at_s: float, cache: _Cache, request: int, rate: float) -> None:
        """Set the rate, and with it when it arrives; one whose rate stays keeps its time to the bit."""
        if rate == cache.bytes_per_s:
            return
        if cache.goes:
            cache.left_bytes = max(cache.left_bytes - cache.bytes_per_s * (at_s - cache.since_s), 0.0)  # fmt: skip
        cache.since_s, cache.bytes_per_s = at_s, rate
        cache.due_s = at_s + cache.left_bytes / rate if rate > 0 else math.inf
        if rate > 0:
            heapq.heappush(self._changes, (cache.due_s, cache.order, request))

    # ---- levels

    def _tell(self, links: Sequence[Key]) -> dict[int, None]:
        """Make these links' levels anew; returned are the caches that hear of one."""
        heard: dict[int, None] = {}
        for link, level in [(link, self._level(link)) for link in links]:
            if abs(level - self._told[link]) > TOLERANCE_RATIO * self._told[link]:
                self._told[link] = level
                heard |= self._on(link)
        return heard

    def _tell_all(self) -> None:
        """Levels of all links from nothing, some times over."""
        for link in self._told:
            self._told[link] = self._capacity(link)
        busy = [link for link in self._told if self._on(link)]
        for _ in range(LEVEL_ROUNDS):
            self._told |= {link: self._level(link) for link in busy}

    def _level(self, link: Key) -> float:
        capacity, caches = self._capacity(link), self._on(link)
        if not caches or capacity == math.inf:
            return capacity
        limits = [float(math.floor(min(self._limit(self._caches[request], link), capacity))) for request in caches]  # fmt: skip
        level = capacity / len(limits)
        while True:
            under = [limit for limit in limits if limit < level]
            if len(under) == len(limits):
                return capacity - sum(under) + max(under)
            higher = (capacity - sum(under)) / (len(limits) - len(under))
            if higher <= level:
                return level
            level = higher

    def _limit(self, cache: _Cache, but: Key | None = None) -> float:
        """What a cache's ports and the levels of its links let it have, one of them left out."""
        rate = min(self._port(cache.source), self._port(cache.target))
        return min([rate, *(self._told[link] for link in _keys(cache) if link != but)])

    def _on(self, link: Key) -> dict[int, None]:
        return self._shared[link].caches if isinstance(link, int) else self._sharing.get(link, {})

    # ---- equal shares

    def _even(self, cache: _Cache) -> float:
        return min(self._part(cache.source), self._part(cache.target))

    def _part(self, name: str) -> float:
        link = self._links[name].kv_link_bytes_per_s
        if not link:
            return math.inf
        share = link / max(len(self._sharing[name]), self._links[name].step_time.data_ranks)
        return share / self._factors.get(name, 1.0)

    def _own(self, name: str) -> float:
        """A replica's own link, whole; 0 has no end."""
        assert self._ways is not None
        return float(self._ways.port_bytes_per_s_R[self._number[name]])

    # ---- max-min

    def _filled(self) -> dict[int, float]:
        """Rates of all caches whose bytes go. No order in here changes a figure: all of a round take the same share off."""
        rates: dict[int, float] = {}
        left: dict[Key, float] = {}
        count: dict[Key, int] = {}
        most: dict[int, float] = {}
        for request in self._going:
            cache = self._caches[request]
            most[request] = min(self._port(cache.source), self._port(cache.target))
            for key in _keys(cache):
                left.setdefault(key, self._capacity(key))
                count[key] = count.get(key, 0) + 1
        while most:
            shares = {key: max(left[key], 0.0) / caches for key, caches in count.items() if caches}
            share = min(min(shares.values()), min(most.values()))
            fixed = [request for request, port in most.items() if port <= share or any(shares[key] <= share for key in _keys(self._caches[request]))]  # fmt: skip
            for request in fixed:
                rates[request] = share
                del most[request]
                for key in _keys(self._caches[request]):
                    left[key] -= share
                    count[key] -= 1
        return rates

    def _capacity(self, key: Key) -> float:
        if isinstance(key, int):
            return self._shared[key].capacity
        return (self._own(key) or math.inf) / self._factors.get(key, 1.0)

    def _port(self, name: str) -> float:
        """What one data-parallel group has of it."""
        return self._capacity(name) / self._links[name].step_time.data_ranks


def _keys(cache: _Cache) -> tuple[Key, ...]:
    return (cache.source, cache.target, *cache.links)
