"""Where a plan's replicas sit: which cards each has, and which node, rack and island a card is in.

Shape key: R replicas in the order of `plan.predict.pool_replicas`, C cards of the whole fleet. Cards and ranks are numbered through the fleet's parts
in the plan's order, near ones next to each other as in `catalog.topology`: card c of a part has its ranks c * ranks_per_card and on.

A replica gets consecutive ranks that lie in one instance of the nearest tier that holds so many, counted as `plan.search.whole_replicas`
does; pools go in the plan's order, each into the first places that are free. Where whole places run out it gets the first consecutive
ranks that are free, and `notes` says so. The replicas of a host share the host, which is one card.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError
from polypod.plan.place import Island, island, node_ranks_of
from polypod.plan.spec import Plan, Pool, Source, refuse_stages

Ints = NDArray[np.int64]
Level = Literal["card", "node", "rack", "island"]

_RACKS: Final = ("rack", "cabinet")
"""Words in a tier's name that make it a rack: the first tier that has one is."""

_RACK_NODES: Final = 4
"""Nodes of a rack where no tier is one: four DGX H100 stand in a SuperPOD's rack, https://docs.nvidia.com/dgx-superpod/reference-architecture-scalable-infrastructure-h100/latest/"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the fleet: its cards, and how many of them a node, a rack and an island have."""

    name: str
    first_card: int
    cards: int
    first_rank: int
    ranks_per_card: int
    node_cards: int
    rack_cards: int
    island_cards: int
    place: Island | None  # None: cores of a host
    assumed: tuple[str, ...] = ()  # what no source says

    def size(self, level: Level) -> int:
        """Cards of one instance of a level."""
        sizes = (1, self.node_cards, self.rack_cards, self.island_cards)
        return dict(zip(LEVELS, sizes, strict=True))[level]

    def instances(self, level: Level) -> int:
        return -(-self.cards // self.size(level))


LEVELS: Final[tuple[Level, ...]] = ("card", "node", "rack", "island")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Replicas on cards. All numbers are of the whole fleet; `part_R` indexes `parts`."""

    parts: tuple[Part, ...]
    replicas: tuple[str, ...]
    part_R: Ints
    first_rank_R: Ints
    ranks_R: Ints
    first_card_R: Ints
    cards_R: Ints
    notes: tuple[str, ...] = ()

    @property
    def cards(self) -> int:
        return self.parts[-1].first_card + self.parts[-1].cards

    @property
    def ranks(self) -> int:
        return self.parts[-1].first_rank + self.parts[-1].cards * self.parts[-1].ranks_per_card

    def instances_C(self, level: Level) -> Ints:
        """Which node, rack or island each card is in, numbered through the fleet; no instance spans two parts."""
        found, first = [], 0
        for part in self.parts:
            found.append(first + np.arange(part.cards, dtype=np.int64) // part.size(level))
            first += part.instances(level)
        return np.concatenate(found)

    def cards_of(self, level: Level, number: int) -> range:
        """The cards of one instance. Raises `InputError` where there are not so many."""
        first = 0
        for part in self.parts:
            count, size = part.instances(level), part.size(level)
            if 0 <= number - first < count:
                start = (number - first) * size
                return range(part.first_card + start, part.first_card + min(start + size, part.cards))  # fmt: skip
            first += count
        msg = f"there is no {level} {number}: the fleet has {first}, numbered from 0"
        raise InputError(msg)

    def replicas_on(self, cards: range) -> Ints:
        """Replicas with at least one of these consecutive cards, in order."""
        after = self.first_card_R + self.cards_R
        return np.flatnonzero((self.first_card_R < cards.stop) & (after > cards.start))


def placement(plan: Plan, *, node_cards: int | None = None, rack_cards: int | None = None) -> Placed:  # fmt: skip
    """Place every replica of the plan; a node's and a rack's cards are the catalog's, or as said.

    Raises `InputError` where the pools need more ranks than a part of the fleet has, and for pools over several parts.
    """
    refuse_stages(plan)
    parts = _parts(plan, node_cards, rack_cards)
    index = {part.name: number for number, part in enumerate(parts)}
    taken = [np.zeros(part.cards * part.ranks_per_card, dtype=np.bool_) for part in parts]
    names: list[str] = []
    columns: list[tuple[Ints, Ints, Ints]] = []
    notes: list[str] = []
    for path, name, pool in _pools(plan):
        number = index[pool.on]
        part, world = parts[number], pool.layout.world
        first = _first_ranks(part, pool, taken[number], path, notes)
        columns.append((np.full(pool.replicas, number), first + part.first_rank, np.full(pool.replicas, world)))  # fmt: skip
        names += [f"{name}-{replica}" for replica in range(pool.replicas)]
    part_R, first_rank_R, ranks_R = (np.concatenate(column).astype(np.int64) for column in zip(*columns, strict=True))  # fmt: skip
    per_card_R = np.array([part.ranks_per_card for part in parts])[part_R]
    begin_R = np.array([part.first_rank for part in parts])[part_R]
    card_R = np.array([part.first_card for part in parts])[part_R]
    inside_R = (first_rank_R - begin_R) // per_card_R
    last_R = (first_rank_R - begin_R + ranks_R - 1) // per_card_R
    return Placed(
        parts=tuple(parts),
        replicas=tuple(names),
        part_R=part_R,
        first_rank_R=first_rank_R,
        ranks_R=ranks_R,
        first_card_R=card_R + inside_R,
        cards_R=last_R - inside_R + 1,
        notes=tuple(notes),
    )


def _pools(plan: Plan) -> Iterable[tuple[str, str, Pool]]:
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            path = f"$.services[{s}].pools[{p}]"
            if pool.experts_on is not None:
                msg = f"experts of this pool are apart, on {pool.experts_on!r}, so no replica of it is on consecutive cards; plan without --afd - at `{path}.experts_on`"
                raise InputError(msg)
            yield path, pool.name or f"pool{s}.{p}", pool


def _parts(plan: Plan, node_cards: int | None, rack_cards: int | None) -> list[Part]:
    parts: list[Part] = []
    card = rank = 0
    for name, source in plan.fleet.items():
        part = _part(name, source, (card, rank), (node_cards, rack_cards))
        card, rank = card + part.cards, rank + part.cards * part.ranks_per_card
        parts.append(part)
    return parts


def _part(
    name: str, source: Source, first: tuple[int, int], said: tuple[int | None, int | None]
) -> Part:
    if source.host is not None:
        return Part(
            name=name, first_card=first[0], cards=1, first_rank=first[1], ranks_per_card=1,
            node_cards=1, rack_cards=1, island_cards=1, place=None,
        )  # fmt: skip
    place = island(name, source)
    ranks, guess = node_ranks_of(place)
    per_card = place.rank.ranks_per_accelerator
    node = said[0] or max(1, ranks // per_card)
    assumed = [guess.partition("; --")[0]] if guess and said[0] is None else []
    sizes = [(tier.name.casefold(), tier.ranks // per_card) for tier in place.rank.tiers if tier.ranks]  # fmt: skip
    racks = [size for tier, size in sizes if any(word in tier for word in _RACKS)]
    rack = said[1] or (racks[0] if racks else node * _RACK_NODES)
    widest = max([size for _, size in sizes], default=place.accelerators)
    if not racks and said[1] is None:
        assumed.append(f"a rack of {place.rank.chip} is taken to have {rack} cards, {_RACK_NODES} nodes, which no tier in the catalog says")  # fmt: skip
    return Part(
        name=name, first_card=first[0], cards=place.accelerators, first_rank=first[1], ranks_per_card=per_card,
        node_cards=node, rack_cards=rack, island_cards=widest, place=place, assumed=tuple(assumed),
    )  # fmt: skip


def _first_ranks(
    part: Part, pool: Pool, taken: NDArray[np.bool_], path: str, notes: list[str]
) -> Ints:
    """First ranks of a pool's replicas in its part; marks what they take."""
    world, count = pool.layout.world, pool.replicas
    if part.place is None:
        if world > 1:
            msg = f"{world} ranks a replica on the host {part.name!r}, which is one; use the layout tp: 1 - at `{path}.layout`"
            raise InputError(msg)
        return np.zeros(count, dtype=np.int64)
    starts = _free(_whole_places(part.place, len(taken), world), world, taken)
    if len(starts) < count:
        starts = _free(_any_places(world, taken), world, taken)
        notes.append(f"{part.name!r} has no room for {count} replicas of {world} ranks that each lie in one instance of a tier; they take what is free - at `{path}`")  # fmt: skip
    if len(starts) < count:
        msg = (
            f"{count} replicas of {world} ranks do not fit {part.name!r}: of its {len(taken)} ranks {int(taken.sum())} are taken by pools before, "
            f"which leaves {len(starts)}; use fewer replicas - at `{path}.replicas`"
        )
        raise InputError(msg)
    starts = starts[:count]
    for start in starts.tolist():
        taken[start : start + world] = True
    return starts


def _whole_places(place: Island, total: int, world: int) -> Ints:
    """First ranks such that no replica lies in two instances of the nearest tier that holds one."""
    links = place.topology.links
    joined = (links[place.topology.spanning(world)].ranks if links and world <= total else None) or total  # fmt: skip
    begins = np.arange(0, total, joined, dtype=np.int64)
    starts = (begins[:, None] + np.arange(joined // world, dtype=np.int64) * world).ravel()
    return np.asarray(starts[starts + world <= total], dtype=np.int64)


def _any_places(world: int, taken: NDArray[np.bool_]) -> Ints:
    """First ranks that cut every free stretch into replicas."""
    edges = np.flatnonzero(np.diff(np.concatenate(([True], taken, [True])).astype(np.int8)))
    begins, ends = edges[0::2], edges[1::2]
    cut = [np.arange(a, b - world + 1, world) for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]  # fmt: skip
    return np.concatenate([np.zeros(0, dtype=np.int64), *cut]).astype(np.int64)


def _free(starts: Ints, world: int, taken: NDArray[np.bool_]) -> Ints:
    before = np.concatenate(([0], np.cumsum(taken)))
    return np.asarray(starts[before[starts + world] == before[starts]], dtype=np.int64)
