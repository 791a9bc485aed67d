"""Collectives on a fabric, several at once: rounds of flows, each as slow as the links that it shares.

`buffer_bytes` B is as in `cost.collective`: all-gather ends with it, reduce-scatter starts with it, all-reduce does both, and in an all-to-all it
is what one rank hands out, its own share included. Among n ranks, one after the other:

    ring              n - 1 rounds of B / n to the next rank (all-reduce: twice as many; all-to-all: the k-th round of (n - k) B / n)
    halving-doubling  log2 n rounds, of B / 2 to the rank 1 away, B / 4 to that 2 away, and so on; a gather goes the other way
                      (all-to-all: B / 2 in every round)
    direct            one round, B / n to every other rank at once (all-reduce: two)
    hierarchical      rings inside the nearest tier, then between its instances with what is left, and so on; a gather goes the other way
                      (all-to-all: direct, inside and then between ranks of one place)

A round ends when its last flow has, plus that flow's latency; then the next begins. Rates are max-min fair. Rounds, message sizes and distances
are those of ASTRA-sim's Ring.cc, HalvingDoubling.cc and AllToAll.cc (https://github.com/astra-sim/astra-sim, MIT), whose all-to-all on a
ring forwards every message by itself, and which has none by halving and doubling. Left out: chunks of one buffer that overlap in a pipeline.

Flows that nothing tells apart are one class: same collective (or one just like it), round and latency, on links of one capacity that have
as many flows of every class. That is the coarsest equitable partition of flows and links, and max-min rates are equal within its classes,
so 8,192 ranks take as long as a handful once they are sorted.

Shape key: F flows, W links of a path, E flow-link pairs, K classes of flows, J classes of links.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError
from polypod.simulate.fabric import NO_LINK, Fabric, Floats, Ints
from polypod.simulate.placed import Placed

Pattern = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
Algorithm = Literal["ring", "halving-doubling", "direct", "hierarchical"]

_PAIRS: Final = 1024
"""Flows of a direct exchange that are played one by one. Of more, each rank's into one tier are bundled, which changes nothing where every rank has as many
others in each tier and no link is degraded."""

_MOST_PAIRS: Final = 2**18
"""Where they have not, pairs are played up to here; beyond, a bundle gets what its sender's links give, as if its receivers' were alike."""

_DONE: Final = 1e-9
"""Share of a round's bytes that is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """One exchange: among these ranks of the fabric, in this order, from `start_s` on."""

    pattern: Pattern
    algorithm: Algorithm
    ranks: tuple[int, ...]
    buffer_bytes: float
    start_s: float = 0.0
    launch_s: float = 0.0  # before its first round

    def __post_init__(self) -> None:
        if len(set(self.ranks)) < len(self.ranks) or not self.ranks:
            msg = f"a collective among {len(self.ranks)} ranks, {len(set(self.ranks))} of them different; name every rank once"
            raise InputError(msg)
        if not self.buffer_bytes > 0 or self.start_s < 0 or self.launch_s < 0:
            msg = f"buffer_bytes={self.buffer_bytes:g}, start_s={self.start_s:g}, launch_s={self.launch_s:g}: a buffer has more than 0 bytes, and no time is negative"
            raise InputError(msg)
        size = len(self.ranks)
        if self.algorithm == "halving-doubling" and size & (size - 1):
            msg = f"halving and doubling among {size} ranks; take a power of two, or another algorithm"
            raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Flows that go at once: from `a_F` to `b_F`, or `weight_F` flows each of what ranks send into a tier (`tier_F`)."""

    a_F: Ints
    b_F: Ints | None = None
    tier_F: Ints | None = None
    weight_F: Ints | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A round, so many times, of so many bytes a flow."""

    round: int
    size_bytes: float
    repeats: int = 1


def rounds_of(fabric: Fabric, one: Collective) -> tuple[list[Round], list[Step]]:
    """The rounds of a collective, each listed once, and the order in which they are played. One rank has none.

    Raises `InputError` for ranks of several parts, and where a hierarchical one has unequal numbers in the instances of a tier.
    """
    ranks = np.array(one.ranks, dtype=np.int64)
    if len(ranks) == 1:
        return [], []
    if one.algorithm == "ring":
        return _ring(one, ranks)
    if one.algorithm == "halving-doubling":
        return _halving(one, ranks)
    if one.algorithm == "direct":
        return _direct(fabric, one, ranks)
    return _hierarchical(fabric, one, np.sort(ranks))


def _ring(one: Collective, ranks: Ints) -> tuple[list[Round], list[Step]]:
    n = len(ranks)
    flows, block = Round(a_F=ranks, b_F=np.roll(ranks, -1)), one.buffer_bytes / n
    if one.pattern == "all_to_all":
        return [flows], [Step(round=0, size_bytes=(n - k) * block) for k in range(1, n)]
    passes = 2 if one.pattern == "all_reduce" else 1
    return [flows], [Step(round=0, size_bytes=block, repeats=passes * (n - 1))]


def _halving(one: Collective, ranks: Ints) -> tuple[list[Round], list[Step]]:
    count = len(ranks).bit_length() - 1
    index = np.arange(len(ranks))
    rounds = [Round(a_F=ranks, b_F=ranks[index ^ (1 << k)]) for k in range(count)]
    if one.pattern == "all_to_all":
        return rounds, [Step(round=k, size_bytes=one.buffer_bytes / 2) for k in range(count)]
    scatter = [Step(round=k, size_bytes=one.buffer_bytes / 2 ** (k + 1)) for k in range(count)]
    return rounds, _both_ways(one.pattern, scatter)


def _both_ways(pattern: Pattern, scatter: list[Step]) -> list[Step]:
    """A gather is the scatter backwards; an all-reduce is both."""
    ways = {"reduce_scatter": scatter, "all_gather": scatter[::-1]}
    return ways.get(pattern, scatter + scatter[::-1])


def _direct(fabric: Fabric, one: Collective, ranks: Ints) -> tuple[list[Round], list[Step]]:
    n = len(ranks)
    block = one.buffer_bytes / n
    passes = 2 if one.pattern == "all_reduce" else 1
    return [_all_pairs(fabric, ranks[None, :])], [Step(round=0, size_bytes=block, repeats=passes)]


def _all_pairs(fabric: Fabric, ranks_GM: Ints) -> Round:
    """Everyone of each group to everyone else of it."""
    groups, members = ranks_GM.shape
    pairs = groups * members * (members - 1)
    bundles = None if pairs <= _PAIRS else _bundles(fabric, ranks_GM, even=pairs <= _MOST_PAIRS)
    if bundles is not None:
        return bundles
    a, b = np.nonzero(~np.eye(members, dtype=np.bool_))
    return Round(a_F=ranks_GM[:, a].ravel(), b_F=ranks_GM[:, b].ravel())


def _bundles(fabric: Fabric, ranks_GM: Ints, *, even: bool) -> Round | None:
    """The same, by what each rank sends into each tier; None where it must be even and is not."""
    groups, members = ranks_GM.shape
    instance_TGM = fabric.instances(ranks_GM.ravel()).reshape(-1, groups, members)
    parts, group = [], np.arange(groups)[:, None] * (1 + int(instance_TGM.max()))
    before_GM = np.ones_like(ranks_GM)
    for tier, instance_GM in enumerate(instance_TGM):
        _, where, count = np.unique(group + instance_GM, return_inverse=True, return_counts=True)
        held_GM = count[where].reshape(groups, members)
        more_GM = held_GM - before_GM
        if even and more_GM.min() < more_GM.max():
            return None
        sends = more_GM > 0
        parts.append((ranks_GM[sends], np.full(int(sends.sum()), tier), more_GM[sends]))
        before_GM = held_GM
    if (before_GM < members).any():
        fabric.path(int(ranks_GM[0, 0]), int(ranks_GM[0, -1]))  # says what is not joined
    a_F, tier_F, weight_F = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Round(a_F=a_F, tier_F=tier_F, weight_F=weight_F)


def _hierarchical(fabric: Fabric, one: Collective, ranks: Ints) -> tuple[list[Round], list[Step]]:
    rounds: list[Round] = []
    scatter: list[Step] = []
    inner = 1
    for held in _held(fabric, ranks):
        count = held // inner
        if count > 1:
            among = ranks.reshape(-1, count, inner).swapaxes(1, 2).reshape(-1, count)
            if one.pattern == "all_to_all":
                rounds.append(_all_pairs(fabric, among))
                scatter.append(Step(round=len(scatter), size_bytes=one.buffer_bytes / count))
            else:
                rounds.append(Round(a_F=among.ravel(), b_F=np.roll(among, -1, axis=1).ravel()))
                size = one.buffer_bytes / inner / count
                scatter.append(Step(round=len(scatter), size_bytes=size, repeats=count - 1))
        inner = held
    return rounds, scatter if one.pattern == "all_to_all" else _both_ways(one.pattern, scatter)


def _held(fabric: Fabric, ranks: Ints) -> list[int]:
    """How many of the ranks one instance of each tier holds, up to the one that holds them all."""
    found = []
    for instance in fabric.instances(ranks):
        _, counts = np.unique(instance, return_counts=True)
        if counts.min() < counts.max():
            msg = (
                f"hierarchical among {len(ranks)} ranks, of which instances of a tier hold {counts.min()} to {counts.max()}; "
                "take as many in each, or another algorithm"
            )
            raise InputError(msg)
        found.append(int(counts[0]))
    if not found or found[-1] < len(ranks):
        fabric.path(int(ranks[0]), int(ranks[-1]))  # says what is not joined
    return found


# ---- classes


@dataclass(frozen=True, kw_only=True)
class _Flows:
    """All flows of all rounds, and the links of each: pair e is flow `flow_E` on link `link_E`."""

    round_F: Ints  # of which collective's which round
    weight_F: Ints
    latency_s_F: Floats
    flow_E: Ints
    link_E: Ints  # numbered from 0, only those that are used
    capacity_bytes_per_s_L: Floats


def _gather(fabric: Fabric, all_rounds: Sequence[Round], factors: Mapping[int, float]) -> _Flows:
    rows, latencies, weights = [], [], []
    for flows in all_rounds:
        if flows.b_F is not None:
            path_FW, latency_s_F = fabric.paths(flows.a_F, flows.b_F)
        else:
            assert flows.tier_F is not None
            path_FW, latency_s_F = fabric.bundles(flows.a_F, flows.tier_F)
        rows.append(path_FW)
        latencies.append(latency_s_F)
        weights.append(np.ones(len(path_FW), dtype=np.int64) if flows.weight_F is None else flows.weight_F)  # fmt: skip
    path_FW = np.concatenate(rows)
    flow_E, column_E = np.nonzero(path_FW != NO_LINK)
    used_L, link_E = np.unique(path_FW[flow_E, column_E], return_inverse=True)
    capacity_L = fabric.capacity_bytes_per_s_L[used_L].copy()
    for link, factor in factors.items():
        capacity_L[used_L == link] *= factor
    return _Flows(
        round_F=np.repeat(np.arange(len(rows)), [len(row) for row in rows]),
        weight_F=np.concatenate(weights),
        latency_s_F=np.concatenate(latencies),
        flow_E=flow_E,
        link_E=link_E,
        capacity_bytes_per_s_L=capacity_L,
    )


def _mixed(values: Ints) -> NDArray[np.uint64]:
    """Whole numbers, scattered over 64 bits (the finaliser of splitmix64), so that sums of them tell multisets apart."""
    with np.errstate(over="ignore"):
        z = (values.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def _numbered(*columns: NDArray[np.generic]) -> Ints:
    """Which of the different rows of these columns each row is."""
    found = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        _, number = np.unique(column, return_inverse=True)
        _, found = np.unique(found * (int(number.max(initial=0)) + 1) + number, return_inverse=True)
    return found


def _classes(flows: _Flows, key_F: Ints) -> tuple[Ints, Ints]:
    """The coarsest classes of flows and of links such that each link has as many flows of a class as any other of its own."""
    class_F = _numbered(key_F, flows.weight_F, flows.latency_s_F)
    class_L = _numbered(flows.capacity_bytes_per_s_L)
    known = (-1, -1)
    while known != (now := (int(class_F.max()), int(class_L.max()))):
        known = now
        sum_L = np.zeros(len(class_L), dtype=np.uint64)
        np.add.at(sum_L, flows.link_E, _mixed(class_F)[flows.flow_E])
        class_L = _numbered(class_L, sum_L)
        sum_F = np.zeros(len(class_F), dtype=np.uint64)
        np.add.at(sum_F, flows.flow_E, _mixed(class_L)[flows.link_E])
        class_F = _numbered(class_F, sum_F)
    return class_F, class_L


@dataclass(kw_only=True)
class _Network:
    """Classes of flows on classes of links: `count_JK` flows of a class on one link, counting weights."""

    capacity_J: Floats
    count_JK: Ints
    latency_s_K: Floats
    _known: dict[tuple[int, ...], list[float]] = field(default_factory=dict)

    def rates(self, active: tuple[int, ...]) -> list[float]:
        """Max-min bytes/s of a flow of each active class."""
        if active not in self._known:
            self._known[active] = self._filled(active)
        return self._known[active]

    def _filled(self, active: tuple[int, ...]) -> list[float]:
        count_JK = self.count_JK[:, list(active)].astype(np.float64)
        left_J, rate_K = self.capacity_J.copy(), np.full(len(active), -1.0)
        while (rate_K < 0).any():
            open_J = count_JK @ (rate_K < 0)
            share_J = np.divide(np.maximum(left_J, 0.0), open_J, out=np.full(len(left_J), math.inf), where=open_J > 0)  # fmt: skip
            share = share_J.min()
            full = (share_J <= share) & (open_J > 0)
            fixed = (rate_K < 0) & (count_JK[full] > 0).any(axis=0)
            rate_K[fixed] = share
            left_J = left_J - share * (count_JK @ fixed)
        return [float(rate) for rate in rate_K]


# ---- play


@dataclass(slots=True, kw_only=True)
class _Player:
    """Collectives that do the same at the same time."""

    members: list[int]
    steps: list[Step]
    classes: list[list[int]]  # of each round
    wake_s: float  # when its next round begins
    launch_s: float
    step: int = 0
    left: int = 0  # rounds of the step, the present one included
    ends_s: float = 0.0  # of the flows of this round that are done, with their latency
    finished_s: float = math.inf  # the first time


def play_collectives(
    fabric: Fabric, collectives: Sequence[Collective], factors: Mapping[int, float] | None = None
) -> list[float]:
    """When each collective has finished, in seconds, all on one fabric; infinite for one that waits for a dead link.

    `factors` are links that have only so much of their capacity. Two all-gathers of 8 MB over the same eight ports at 100 GB/s take twice the 70 us of one:

    >>> from polypod.simulate.fabric import FabricPart, FabricTier, fabric
    >>> port = FabricTier(name="switch", ranks=8, bytes_per_s=100e9, latency_s=0.0)
    >>> switch = fabric([FabricPart(name="a", ranks=8, tiers=(port,))])
    >>> one = Collective(pattern="all_gather", algorithm="ring", ranks=tuple(range(8)), buffer_bytes=8e6)
    >>> [round(end_s * 1e6) for end_s in play_collectives(switch, [one]) + play_collectives(switch, [one, one])]
    [70, 140, 140]

    Raises `InputError` as `rounds_of` does.
    """
    return _play(fabric, collectives, factors or {}, again=False)


def contention(
    fabric: Fabric,
    collectives: Sequence[Collective],
    factors: Mapping[int, float] | None = None,
    alone_on: Fabric | None = None,
) -> list[float]:
    """How many times longer each collective takes beside the others than alone on the whole fabric, or on another one, if all go on again and again.

    The others start with it and over again whenever they are done, so this is of replicas that exchange all the time; one that exchanges for a share `x` of
    its step is slowed by 1 - x + x * factor at most. Where all start at once is as bad as it gets for rounds of one length. `factors` are of links that have
    only so much of their capacity; a collective that waits for a dead one is infinitely slow.
    """
    whole = alone_on or fabric
    at_once = [_at_zero(one) for one in collectives]
    together = _play(fabric, at_once, factors or {}, again=True)
    alone: dict[tuple[object, ...], float] = {}
    found = []
    for one, both_s in zip(at_once, together, strict=True):
        key = _alone_key(whole, one)
        if key not in alone:
            alone[key] = _play(whole, [one], {}, again=False)[0]
        found.append(both_s / alone[key] if alone[key] > 0 else 1.0)
    return found


def exchanges(
    placed: Placed, pattern: Pattern, algorithm: Algorithm, buffer_bytes: float
) -> list[Collective]:
    """The same exchange inside every replica, for `contention`: in the order of `placed.replicas`."""
    return [
        Collective(
            pattern=pattern,
            algorithm=algorithm,
            ranks=tuple(range(first, first + count)),
            buffer_bytes=buffer_bytes,
        )
        for first, count in zip(placed.first_rank_R.tolist(), placed.ranks_R.tolist(), strict=True)
    ]


def _at_zero(one: Collective) -> Collective:
    return Collective(
        pattern=one.pattern,
        algorithm=one.algorithm,
        ranks=one.ranks,
        buffer_bytes=one.buffer_bytes,
        launch_s=one.launch_s,
    )


def _alone_key(fabric: Fabric, one: Collective) -> tuple[object, ...]:
    """What decides how long a collective takes alone: itself, how its ranks lie, and how wide every link is that they may use."""
    ranks, capacity_L = np.array(one.ranks, dtype=np.int64), fabric.capacity_bytes_per_s_L
    instance_TF = fabric.instances(ranks)
    lies = tuple(tuple(_numbered(row).tolist()) for row in instance_TF)
    widths = b""
    for tier in range(len(instance_TF)):
        path_FW, latency_s_F = fabric.bundles(ranks, np.full(len(ranks), tier))
        widths += np.where(path_FW >= 0, capacity_L[path_FW], -1.0).tobytes()
        widths += latency_s_F.tobytes()
    return (one.pattern, one.algorithm, one.buffer_bytes, one.launch_s, lies, widths)


def _play(
    fabric: Fabric, collectives: Sequence[Collective], factors: Mapping[int, float], *, again: bool
) -> list[float]:
    network, players = _players(fabric, collectives, factors)
    stage = _Stage(network, players, again=again)
    stage.play()
    end_s = [one.start_s + one.launch_s for one in collectives]
    for player in players:
        for member in player.members:
            end_s[member] = player.finished_s
    return end_s


def _players(
    fabric: Fabric, collectives: Sequence[Collective], factors: Mapping[int, float]
) -> tuple[_Network, list[_Player]]:
    plans = [rounds_of(fabric, one) for one in collectives]
    all_rounds = [one for rounds, _ in plans for one in rounds]
    owner = [index for index, (rounds, _) in enumerate(plans) for _ in rounds]
    place = [n for rounds, _ in plans for n in range(len(rounds))]
    if not all_rounds:
        return _Network(capacity_J=np.zeros(0), count_JK=np.zeros((0, 0), dtype=np.int64), latency_s_K=np.zeros(0)), []  # fmt: skip
    flows = _gather(fabric, all_rounds, factors)
    likes: dict[tuple[object, ...], int] = {}
    kind = [likes.setdefault((one.pattern, one.algorithm, len(one.ranks), one.buffer_bytes, one.start_s, one.launch_s), len(likes)) for one in collectives]  # fmt: skip
    classes: dict[int, list[list[int]]] = {}
    for _ in range(len(collectives) + 1):
        key_R = np.array([kind[index] * (1 + max(place)) + n for index, n in zip(owner, place, strict=True)])  # fmt: skip
        class_F, class_L = _classes(flows, key_R[flows.round_F])
        classes = {index: [] for index in owner}
        ends = np.searchsorted(flows.round_F, np.arange(len(all_rounds) + 1))
        for number, index in enumerate(owner):
            inside = class_F[ends[number] : ends[number + 1]]
            classes[index].append([int(one) for one in np.unique(inside)])
        likes = {}
        new = [likes.setdefault((one, repr(classes.get(index))), len(likes)) for index, one in enumerate(kind)]  # fmt: skip
        if len(set(new)) == len(set(kind)):
            break
        kind = new
    players = []
    for number in dict.fromkeys(kind):
        members = [index for index, one in enumerate(kind) if one == number]
        first = collectives[members[0]]
        if members[0] in classes:
            steps = plans[members[0]][1]
            players.append(_Player(members=members, steps=steps, classes=classes[members[0]], wake_s=first.start_s + first.launch_s, launch_s=first.launch_s, left=steps[0].repeats))  # fmt: skip
    return _network(flows, class_F, class_L), players


def _network(flows: _Flows, class_F: Ints, class_L: Ints) -> _Network:
    _, first_J = np.unique(class_L, return_index=True)
    stands_L = np.full(len(class_L), -1)
    stands_L[first_J] = np.arange(len(first_J))
    of_E = stands_L[flows.link_E]
    kept = of_E >= 0
    count_JK = np.zeros((len(first_J), int(class_F.max()) + 1), dtype=np.int64)
    np.add.at(count_JK, (of_E[kept], class_F[flows.flow_E[kept]]), flows.weight_F[flows.flow_E[kept]])  # fmt: skip
    _, first_K = np.unique(class_F, return_index=True)
    return _Network(
        capacity_J=flows.capacity_bytes_per_s_L[first_J],
        count_JK=count_JK,
        latency_s_K=flows.latency_s_F[first_K],
    )


class _Stage:
    """Players on one network, from event to event."""

    def __init__(self, network: _Network, players: list[_Player], *, again: bool) -> None:
        self._network = network
        self._players = players
        self._again = again
        self._now_s = 0.0
        self._left: dict[int, float] = {}  # bytes of a flow, by class; in it only while it flows
        self._owner = {k: player for player in players for one in player.classes for k in one}
        self._seen: tuple[float, list[tuple[int, int]]] | None = None

    def play(self) -> None:
        while any(player.finished_s == math.inf for player in self._players):
            wake_s = min((player.wake_s for player in self._players), default=math.inf)
            active = tuple(sorted(self._left))
            rates = self._network.rates(active)
            ends = [self._now_s + self._left[k] / rate if rate > 0 else math.inf for k, rate in zip(active, rates, strict=True)]  # fmt: skip
            next_s = min(ends, default=math.inf)
            if min(wake_s, next_s) == math.inf:
                return  # the rest waits for a dead link
            next_s = min(wake_s, next_s)
            for k, rate, end_s in zip(active, rates, ends, strict=True):
                self._move(k, rate * (next_s - self._now_s), next_s, done=end_s <= next_s)
            self._now_s = next_s
            self._wake()

    def _move(self, k: int, sent_bytes: float, to_s: float, *, done: bool) -> None:
        """Let a class of flows go on for a time; it leaves when it is done, up to rounding."""
        player = self._owner[k]
        step = player.steps[player.step]
        left = self._left[k] - sent_bytes
        if not done and left > _DONE * step.size_bytes:
            self._left[k] = left
            return
        del self._left[k]
        player.ends_s = max(player.ends_s, to_s + float(self._network.latency_s_K[k]))
        if not any(other in self._left for other in player.classes[step.round]):
            player.wake_s = player.ends_s
            player.left -= 1

    def _wake(self) -> None:
        """Begin the rounds that are due."""
        due = [player for player in self._players if player.wake_s <= self._now_s]
        for player in due:
            while player.left == 0 and player.wake_s <= self._now_s:
                self._next_step(player)
        due = [player for player in due if player.wake_s <= self._now_s]
        if due and not self._left and len(due) == len([one for one in self._players if one.wake_s < math.inf]):  # fmt: skip
            self._skip(due)
        for player in due:
            step = player.steps[player.step]
            player.wake_s, player.ends_s = math.inf, 0.0
            for k in player.classes[step.round]:
                self._left[k] = step.size_bytes

    def _next_step(self, player: _Player) -> None:
        player.step += 1
        if player.step == len(player.steps):
            player.finished_s = min(player.finished_s, self._now_s)
            player.step = 0
            player.wake_s = self._now_s + player.launch_s if self._again else math.inf
        player.left = player.steps[player.step].repeats

    def _skip(self, due: list[_Player]) -> None:
        """All begin a round at once: if all did so a while ago, the same goes on until one comes to its last rounds."""
        now = [(player.step, player.left) for player in due]
        if self._seen is not None and len(self._seen[1]) == len(now):
            seen_s, before = self._seen
            done = [old[1] - new[1] for old, new in zip(before, now, strict=True)]
            same = all(old[0] == new[0] for old, new in zip(before, now, strict=True))
            if same and min(done) > 0:
                times = min((left - 1) // count for (_, left), count in zip(now, done, strict=True))
                self._now_s += times * (self._now_s - seen_s)
                for player, count in zip(due, done, strict=True):
                    player.left -= times * count
        self._seen = (self._now_s, [(player.step, player.left) for player in due])
