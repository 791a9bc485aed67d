"""The links that data crosses from one rank to another, as arrays: ports of ranks, and the ways of groups into wider tiers.

Tiers are those of `catalog.topology`, nearest first. A rank has a port into a tier, or shares that of the tier before it; bandwidths are one
way, and every link here is one way. Two ranks meet in the nearest tier that has both. From one to the other data crosses

    the sender's port, the ways up of its groups, [the way out of its part, the way into the other part,] the ways down, the receiver's port

where a group is an instance of the tier before, and only tiers on the same port as the one they meet in count. A group's way into a tier is
as wide as its ranks' ports together, divided by the tier's `blocking_ratio`: 1 blocks nobody, 2 is half as wide. Parts of a fleet are joined
where the widest tier of both has no end.

Left out: which of several equal paths a packet takes (a group's way is one link), packets, and switches that run full.

Shape key: R ranks, L links, T tiers of all parts one after the other, P parts, F pairs of ranks, W links of the longest path.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from polypod.catalog.topology import TierLink
from polypod.cost.calibration import of
from polypod.errors import InputError
from polypod.plan.place import Island
from polypod.plan.spec import Plan
from polypod.simulate.placed import Placed, placement

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

NO_LINK = -1
"""Fills rows of paths that are shorter than the longest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricTier:
    """One tier: as many ranks as one instance joins (None: no end), and one rank's port into it."""

    name: str
    ranks: int | None
    bytes_per_s: float
    latency_s: float
    shares_port: bool = False
    blocking_ratio: float = 1.0  # the ports of a group over the group's way into this tier

    def __post_init__(self) -> None:
        if not (self.bytes_per_s > 0 and self.latency_s >= 0 and self.blocking_ratio > 0):
            msg = (
                f"tier {self.name!r}: bytes_per_s={self.bytes_per_s:g}, latency_s={self.latency_s:g}, blocking_ratio={self.blocking_ratio:g}; "
                "the first and the last are more than 0, and a latency is not negative"
            )
            raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricPart:
    """So many ranks on these tiers, nearest first."""

    name: str
    ranks: int
    tiers: tuple[FabricTier, ...]

    def __post_init__(self) -> None:
        for near, far in pairwise(self.tiers):
            if near.ranks is None or (far.ranks is not None and far.ranks < near.ranks):
                msg = f"{self.name}: tier {far.name!r} joins fewer ranks than {near.name!r} before it; list tiers nearest first"
                raise InputError(msg)

    @property
    def leads_out(self) -> bool:
        return bool(self.tiers) and self.tiers[-1].ranks is None


class Wiring(NamedTuple):
    """What a path is found by, as arrays that compiled code reads too.

    Of part p: `rank_P` its first rank (one entry more: the end), `row_P` its first tier (likewise), `out_P` whether it leads out.
    Of tier t: `size_T` ranks of an instance, `inner_T` of one of the tier before, `plane_T` the first tier on the same port, `port_T` the link
    of the part's first rank outwards (inwards it is as many ranks further), `up_T` that of the first group's way up, `groups_T` how many groups
    there are (the way down is so many links further; 0: ranks enter by their ports alone). `join` is the first part's way out (in: P further).
    """

    rank_P: Ints
    row_P: Ints
    out_P: NDArray[np.bool_]
    size_T: Ints
    inner_T: Ints
    plane_T: Ints
    port_T: Ints
    up_T: Ints
    groups_T: Ints
    join: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """Links and how they hang together; `capacity_bytes_per_s_L` is one way. Nothing here changes while flows are played.

    `most_bytes_per_s_L` is what ports leave one flow on a group's way at most, so that a wider share is no limit; infinite for ports themselves.
    """

    parts: tuple[FabricPart, ...]
    wiring: Wiring
    capacity_bytes_per_s_L: Floats
    most_bytes_per_s_L: Floats
    latency_s_T: Floats

    @property
    def ranks(self) -> int:
        return int(self.wiring.rank_P[-1])

    @property
    def links(self) -> int:
        return len(self.capacity_bytes_per_s_L)

    def path(self, a: int, b: int) -> tuple[int, ...]:
        """Links from rank a to rank b, in the order in which data crosses them.

        Raises `InputError` where they are one, are not there, or nothing joins them.
        """
        w = self.wiring
        row_a, row_b = self._meet(a, b)
        tail: list[int] = []
        path = [int(w.port_T[w.plane_T[row_a]]) + self._inside(a)]
        path += self._ways(a, row_a, down=False)
        if w.row_P[self._part(a)] != w.row_P[self._part(b)]:
            path += [w.join + self._part(a), w.join + len(self.parts) + self._part(b)]
        tail += self._ways(b, row_b, down=True)
        port = int(w.port_T[w.plane_T[row_b]]) + self.parts[self._part(b)].ranks
        return (*path, *tail, port + self._inside(b))

    def latency_s(self, a: int, b: int) -> float:
        """Of a small message from a to b: of the tier they meet in, between parts the longer of both."""
        return max(float(self.latency_s_T[row]) for row in self._meet(a, b))

    def _part(self, rank: int) -> int:
        return int(np.searchsorted(self.wiring.rank_P, rank, side="right")) - 1

    def _inside(self, rank: int) -> int:
        return rank - int(self.wiring.rank_P[self._part(rank)])

    def _meet(self, a: int, b: int) -> tuple[int, int]:
        """The tiers, of either's part, in which two ranks meet."""
        self._check_pair(a, b)
        w, p, q = self.wiring, self._part(a), self._part(b)
        if p != q:
            for part in (p, q):
                if not w.out_P[part]:
                    raise InputError(_leads_nowhere(self.parts[part]))
            return int(w.row_P[p + 1]) - 1, int(w.row_P[q + 1]) - 1
        x, y = self._inside(a), self._inside(b)
        for row in range(int(w.row_P[p]), int(w.row_P[p + 1])):
            if x // w.size_T[row] == y // w.size_T[row]:
                return row, row
        msg = f"no tier of {self.parts[p].name!r} on record joins ranks {a} and {b}"
        raise InputError(msg)

    def _check_pair(self, a: int, b: int) -> None:
        for rank in (a, b):
            if not 0 <= rank < self.ranks:
                msg = f"there is no rank {rank}: the fabric has {self.ranks}, numbered from 0"
                raise InputError(msg)
        if a == b:
            msg = f"rank {a} sends to itself, which crosses no link; leave such a flow out"
            raise InputError(msg)

    def _ways(self, rank: int, row: int, *, down: bool) -> list[int]:
        """A rank's ways from its port up to a tier, or from there down to it."""
        w = self.wiring
        rows = [t for t in range(int(w.plane_T[row]), row + 1) if w.groups_T[t]]
        inside = self._inside(rank)
        ways = [
            int(w.up_T[t] + inside // w.inner_T[t] + (w.groups_T[t] if down else 0)) for t in rows
        ]
        return ways[::-1] if down else ways

    def paths(self, a_F: Ints, b_F: Ints) -> tuple[Ints, Floats]:
        """Links of many pairs (F, W), in no particular order and filled with `NO_LINK`, and their latencies.

        For pairs of one part alone; raises `InputError` as `path` does.
        """
        w = self.wiring
        p = self._part(int(a_F[0])) if len(a_F) else 0
        x_F, y_F = a_F - w.rank_P[p], b_F - w.rank_P[p]
        ranks, rows = self.parts[p].ranks, range(int(w.row_P[p]), int(w.row_P[p + 1]))
        if len(a_F) and (min(x_F.min(), y_F.min()) < 0 or max(x_F.max(), y_F.max()) >= ranks):
            msg = f"some of these pairs are not of {self.parts[p].name!r}, whose ranks are {w.rank_P[p]} to {w.rank_P[p + 1] - 1}; take one part at a time"
            raise InputError(msg)
        row_F = np.full(len(a_F), -1, dtype=np.int64)
        for row in reversed(rows):
            row_F[x_F // w.size_T[row] == y_F // w.size_T[row]] = row
        bad = np.flatnonzero((row_F < 0) | (x_F == y_F))
        if len(bad):
            self._meet(int(a_F[bad[0]]), int(b_F[bad[0]]))
        return self._links(p, x_F, y_F, row_F), self.latency_s_T[row_F]

    def bundles(self, rank_F: Ints, tier_F: Ints) -> tuple[Ints, Floats]:
        """Links of what ranks of one part send into a tier (by its place in the part) and get from it, as `paths`: what an exchange of all loads."""
        p = self._part(int(rank_F[0]))
        inside_F = rank_F - self.wiring.rank_P[p]
        row_F = tier_F + self.wiring.row_P[p]
        return self._links(p, inside_F, inside_F, row_F), self.latency_s_T[row_F]

    def instances(self, rank_F: Ints) -> Ints:
        """Which instance of each tier of their part ranks are in, (tiers, F). Raises `InputError` where they are of several parts."""
        parts = np.searchsorted(self.wiring.rank_P, rank_F, side="right") - 1
        if len(np.unique(parts)) != 1 or not 0 <= parts[0] < len(self.parts):
            msg = "a collective's ranks are of one part of the fleet; these are of several, or not there"
            raise InputError(msg)
        w, p = self.wiring, int(parts[0])
        sizes = w.size_T[w.row_P[p] : w.row_P[p + 1]]
        return np.asarray((rank_F - w.rank_P[p])[None, :] // sizes[:, None])

    def _links(self, p: int, x_F: Ints, y_F: Ints, row_F: Ints) -> Ints:
        """From the x-th rank of a part to its y-th over the tiers of these rows."""
        w, ranks = self.wiring, self.parts[p].ranks
        path_FW = np.full((len(x_F), w.width), NO_LINK, dtype=np.int64)
        port_F = w.port_T[w.plane_T[row_F]]
        path_FW[:, 0], path_FW[:, 1] = port_F + x_F, port_F + ranks + y_F
        for row in range(int(w.row_P[p]), int(w.row_P[p + 1])):
            if w.groups_T[row]:
                uses = (w.plane_T[row_F] <= row) & (row <= row_F)
                column = 2 + 2 * (row - int(w.plane_T[row]))
                up, inner = w.up_T[row], w.inner_T[row]
                path_FW[uses, column] = up + x_F[uses] // inner
                path_FW[uses, column + 1] = up + w.groups_T[row] + y_F[uses] // inner
        return path_FW

    def port(self, rank: int, tier: str) -> tuple[int, int]:
        """A rank's links out into a tier and in from it. Raises `InputError` where its part has no such tier."""
        part = self._part(rank)
        row, w = self._row(part, tier), self.wiring
        out = int(w.port_T[w.plane_T[row]]) + self._inside(rank)
        return out, out + self.parts[part].ranks

    def way(self, rank: int, tier: str) -> tuple[int, int]:
        """The links of a rank's group up into a tier and down from it.

        Raises `InputError` where its part has no such tier, or ranks enter it by their ports alone.
        """
        part = self._part(rank)
        row, w = self._row(part, tier), self.wiring
        if not w.groups_T[row]:
            msg = f"ranks of {self.parts[part].name!r} enter {tier!r} by their ports alone; take the port's links"
            raise InputError(msg)
        up = int(w.up_T[row] + self._inside(rank) // w.inner_T[row])
        return up, up + int(w.groups_T[row])

    def _row(self, part: int, tier: str) -> int:
        names = [one.name for one in self.parts[part].tiers]
        if tier not in names:
            msg = f"{self.parts[part].name!r} has no tier {tier!r}; it has {', '.join(names)}"
            raise InputError(msg)
        return int(self.wiring.row_P[part]) + names.index(tier)


def _leads_nowhere(part: FabricPart) -> str:
    return (
        f"no network bandwidth is on record between {part.name!r} and other parts of the fleet; "
        "give it a last tier without an end, such as its scale-out network"
    )


def fabric(parts: Sequence[FabricPart]) -> Fabric:
    """Number the links of these parts.

    Sixteen ranks, eight to a node, whose network is half as wide as their ports:

    >>> node = FabricTier(name="node", ranks=8, bytes_per_s=450e9, latency_s=1e-6)
    >>> wide = FabricTier(name="network", ranks=None, bytes_per_s=50e9, latency_s=5e-6, blocking_ratio=2.0)
    >>> made = fabric([FabricPart(name="a", ranks=16, tiers=(node, wide))])
    >>> [round(made.capacity_bytes_per_s_L[link] / 1e9) for link in made.path(0, 8)]  # port, node's way up, node's way down, port
    [50, 200, 200, 50]
    >>> len(made.path(0, 7)), made.latency_s(0, 7), made.latency_s(0, 8)
    (2, 1e-06, 5e-06)
    """
    rows = _Rows()
    for part in parts:
        rows.add(part)
    join = rows.links
    ways = [part.tiers[-1].bytes_per_s if part.leads_out else 0.0 for part in parts]
    for _ in range(2):
        rows.add_links([part.ranks * way for part, way in zip(parts, ways, strict=True)], max(ways, default=0.0))  # fmt: skip
    size, inner, plane, port, up, groups = (
        np.array(rows.table, dtype=np.int64).reshape(len(rows.table), 6).T.copy()
    )
    return Fabric(
        parts=tuple(parts),
        wiring=Wiring(
            rank_P=np.concatenate(([0], np.cumsum([part.ranks for part in parts]))).astype(
                np.int64
            ),
            row_P=np.concatenate(([0], np.cumsum([len(part.tiers) for part in parts]))).astype(
                np.int64
            ),
            out_P=np.array([part.leads_out for part in parts], dtype=np.bool_),
            size_T=size,
            inner_T=inner,
            plane_T=plane,
            port_T=port,
            up_T=up,
            groups_T=groups,
            join=join,
            width=4 + 2 * rows.deepest,
        ),
        capacity_bytes_per_s_L=np.concatenate(rows.capacities),
        most_bytes_per_s_L=np.concatenate(rows.most),
        latency_s_T=np.array([tier.latency_s for part in parts for tier in part.tiers]),
    )


class _Rows:
    """Tiers as they are numbered: (size, inner, plane, port, up, groups) of each."""

    def __init__(self) -> None:
        self.table: list[tuple[int, int, int, int, int, int]] = []
        self.capacities: list[Floats] = []
        self.most: list[Floats] = []
        self.links = 0
        self.deepest = 0  # groups that a path goes up through

    def add_links(self, capacity: Sequence[float] | Floats, most: float) -> int:
        first = self.links
        self.capacities.append(np.asarray(capacity, dtype=np.float64))
        self.most.append(np.full(len(capacity), most))
        self.links += len(capacity)
        return first

    def add(self, part: FabricPart) -> None:
        inner, plane, port = 1, -1, -1
        for index, tier in enumerate(part.tiers):
            size = part.ranks if tier.ranks is None else tier.ranks
            if index == 0 or not tier.shares_port:
                plane = len(self.table)
                port = self.add_links(np.full(2 * part.ranks, tier.bytes_per_s), math.inf)
            groups, up = 0, -1
            if inner > 1:
                groups = -(-part.ranks // inner)
                ranks = np.full(groups, inner)
                ranks[-1] = part.ranks - (groups - 1) * inner
                width = ranks * tier.bytes_per_s / tier.blocking_ratio
                up = self.add_links(np.concatenate((width, width)), tier.bytes_per_s)
            self.deepest = max(self.deepest, len(self.table) - plane + 1)
            self.table.append((size, inner, plane, port, up, groups))
            inner = size


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What no catalog says of a scale-out network: how many cards a leaf switch has, and how wide nodes and leaves are joined."""

    leaf_cards: int | None = None  # None: one switch for all
    node_blocking_ratio: float | None = None
    """Ports of a node's or an island's ranks over its way into the network; None: as on record, 1 below leaves."""
    leaf_blocking_ratio: float | None = None
    """Ports below a leaf over its way to the spine; None: as on record of the network."""


def fabric_of(plan: Plan, network: Network | None = None) -> tuple[Fabric, Placed]:
    """The fabric of a plan's fleet by the catalog's tiers, and which ranks of it each replica has.

    Bandwidths are the specification's, blocking ratios those on record, of the catalog or the plan, where `network` says nothing. A latency nobody published is the calibration's assumption, as in `cost.chip`. A host is one rank that
    leads nowhere. Raises `InputError` as `placement` does.
    """
    placed = placement(plan)
    wide = network or Network()
    parts = [
        FabricPart(name=part.name, ranks=part.cards * part.ranks_per_card, tiers=_tiers(part.place, wide) if part.place else ())
        for part in placed.parts
    ]  # fmt: skip
    return fabric(parts), placed


def handover(placed: Placed, a: int, b: int) -> list[tuple[int, int]]:
    """Which rank sends to which where replica a's cache goes to replica b: every rank of a its own part, evenly over the ranks of b.

    Four ranks to two, as indices into the fabric's: `[(0, 8), (1, 8), (2, 9), (3, 9)]`.
    """
    first_a, first_b = int(placed.first_rank_R[a]), int(placed.first_rank_R[b])
    count_a, count_b = int(placed.ranks_R[a]), int(placed.ranks_R[b])
    return [(first_a + n, first_b + n * count_b // count_a) for n in range(count_a)]


def _tiers(place: Island, network: Network) -> tuple[FabricTier, ...]:
    """An island's tiers of known bandwidth; one without an end is split into leaves and a spine where that is asked for."""
    found: list[FabricTier] = []
    for link, tier in zip(place.topology.links, place.rank.tiers, strict=True):
        if link.bytes_per_s is None:
            break
        said = 1.0 if tier.blocking_ratio is None else float(tier.blocking_ratio.value)
        one = _tier(place, link, shares_port=tier.shares_port, blocking=said)
        if link.ranks is not None:
            found.append(one)
            continue
        leaf = (network.leaf_cards or 0) * place.rank.ranks_per_accelerator
        if leaf and leaf < place.ranks:
            inner = found[-1].ranks if found else 1
            if leaf < (inner or leaf):
                msg = f"a leaf of {network.leaf_cards} cards is less than {place.name!r} joins before its network; make leaf_cards at least {inner}"
                raise InputError(msg)
            found.append(_like(one, f"{one.name}, leaf", leaf, network.node_blocking_ratio or 1.0, shares_port=one.shares_port))  # fmt: skip
            found.append(_like(one, f"{one.name}, spine", None, network.leaf_blocking_ratio or said, shares_port=True))  # fmt: skip
        else:
            found.append(_like(one, one.name, None, network.node_blocking_ratio or said, shares_port=one.shares_port))  # fmt: skip
    return tuple(found)


def _tier(place: Island, link: TierLink, *, shares_port: bool, blocking: float) -> FabricTier:
    assert link.bytes_per_s is not None
    unknown_s = of(place.rank.calibration.unknown_latency_s, "likely")
    return FabricTier(
        name=link.name,
        ranks=link.ranks,
        bytes_per_s=link.bytes_per_s,
        latency_s=unknown_s if link.latency_s is None else link.latency_s,
        shares_port=shares_port,
        blocking_ratio=blocking,
    )


def _like(
    tier: FabricTier, name: str, ranks: int | None, blocking: float, *, shares_port: bool
) -> FabricTier:
    return FabricTier(
        name=name,
        ranks=ranks,
        bytes_per_s=tier.bytes_per_s,
        latency_s=tier.latency_s,
        shares_port=shares_port,
        blocking_ratio=blocking,
    )
