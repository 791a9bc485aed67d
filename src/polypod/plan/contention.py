"""What neighbours take of links that all share: blocking ratios of tiers.

A tier blocks b:1 where the ports of what one instance of the tier before joins are b times as wide as its way into the tier. Where a fleet is full, replicas beside one another
send at the same time, and each rank is left with

    bytes_per_s / b

Every exchange and every cache that takes the tier is charged at that; what stays within the tier before is not. That is the share of a full fleet: where
neighbours are idle, or talk within their own node, a replica has more. A tier without a ratio on record is taken to block nobody, which the plan says.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from polypod.catalog.schema import Fact, Tier
from polypod.cost.chip import Rank

BOARD_RANKS: Final = 16
"""A tier of no more is one board or one switch of its own: nobody else is on it."""


def contended(tiers: Sequence[Tier], said: float | None = None) -> tuple[Tier, ...]:
    """Tiers as wide as they are when all send at once; `said`, by the person, is of the outermost of known bandwidth.

    >>> narrow = Fact(value=50e9, source="a sheet", kind="datasheet")
    >>> [tier] = contended([Tier(name="network", bytes_per_s=narrow)], 2.0)
    >>> tier.bytes_per_s.value
    25000000000.0
    """
    known = [number for number, tier in enumerate(tiers) if tier.bytes_per_s is not None]
    ratios = {number: tiers[number].blocking_ratio for number in known}
    if said is not None and known:
        ratios[known[-1]] = Fact(value=said, source="the fleet's file", kind="claimed")
    return tuple(_narrowed(tier, ratios.get(number)) for number, tier in enumerate(tiers))


def _narrowed(tier: Tier, ratio: Fact | None) -> Tier:
    if ratio is None or tier.bytes_per_s is None:
        return tier
    width = msgspec.structs.replace(tier.bytes_per_s, value=tier.bytes_per_s.value / ratio.value)
    return msgspec.structs.replace(tier, bytes_per_s=width, blocking_ratio=ratio)


def blocking_notes(used: Iterable[tuple[Rank, int]]) -> list[str]:
    """What is said of the tiers that groups of so many ranks take: what blocks, and once, of which nobody published whether it does."""
    notes, unknown = [], []
    for rank, world in used:
        for tier in _taken(rank, world):
            what = f"{tier.name!r} of {rank.chip}"
            if tier.blocking_ratio is None:
                unknown.append(what)
            elif tier.blocking_ratio.value > 1:
                notes.append(f"{what} blocks {tier.blocking_ratio.value:g}:1 ({tier.blocking_ratio.source}): what takes it is charged at that")  # fmt: skip
    if unknown:
        notes.append(f"no blocking ratio is on record of {', '.join(dict.fromkeys(unknown))}: assumed 1:1")  # fmt: skip
    return list(dict.fromkeys(notes))


def _taken(rank: Rank, world: int) -> list[Tier]:
    """Tiers past a board that a group of so many neighbouring ranks takes."""
    taken, inner = [], 1
    for tier in rank.tiers:
        if world <= inner or tier.bytes_per_s is None:
            break
        if tier.ranks is None or tier.ranks > BOARD_RANKS:
            taken.append(tier)
        inner = tier.ranks or world
    return taken
