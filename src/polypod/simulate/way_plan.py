"""The ways between a plan's prefill and decode replicas, from the fabric of its fleet, and where in the fleet each way is.

A replica's own link is its ranks' ports into the outermost tier of known bandwidth, as wide as on record: what neighbours take of links that all share is
what the ways are for, so the plan's charge for them (`plan.contention`) is not taken off again. Where the plan says `kv_link`, it is that.

Shape key: R replicas, T tiers by their place in a part and one between parts, W ways.
"""

from dataclasses import dataclass

import numpy as np

from polypod import units
from polypod.plan.spec import Plan, Pool
from polypod.simulate.fabric import Fabric
from polypod.simulate.placed import Part, Placed
from polypod.simulate.spots import Spot
from polypod.simulate.ways import NO_WAY, NOT_IN, Floats, Ints, Ways


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedWays:
    """Ways, the cards of the whole fleet that each leads out from, and how many cards one of its groups has."""

    ways: Ways
    first_card_W: Ints
    end_card_W: Ints
    group_cards_W: Ints

    def at(self, spot: Spot) -> int | None:
        """The way that a link of the fleet is, or is part of; None for a card's own port and where no tier begins with such groups."""
        if not spot.is_link:
            return None
        inside_W = (self.first_card_W <= spot.first_card) & (spot.end_card <= self.end_card_W)
        size = spot.end_card - spot.first_card
        whole_W = (self.group_cards_W == size) | (spot.end_card == self.end_card_W) & (size < self.group_cards_W)  # fmt: skip
        found = np.flatnonzero(inside_W & whole_W)
        return int(found[0]) if len(found) and spot.of != "link card" else None


def ways_of(plan: Plan, fabric: Fabric, placed: Placed) -> PlacedWays | None:
    """Ways between the replicas that hand caches on or have them handed; None where there are none, or no tier is known."""
    pools = [pool for service in plan.services for pool in service.pools]
    apart_R = np.repeat([pool.role != "both" for pool in pools], [pool.replicas for pool in pools])
    depth = max(len(part.tiers) for part in fabric.parts)
    if not apart_R.any() or not depth:
        return None
    made = _Made(len(apart_R), depth + 1)
    for number in range(len(fabric.parts)):
        rows = np.flatnonzero(apart_R & (placed.part_R == number))
        if len(rows) and fabric.parts[number].tiers:
            _add_part(made, fabric, placed, number, rows)
    ports = [_port_bytes_per_s(placed.parts, pool) for pool in pools for _ in range(pool.replicas)]
    first_W, end_W, group_W = np.array(made.cards, dtype=np.int64).reshape(-1, 3).T.copy()
    return PlacedWays(
        ways=Ways(
            tiers=tuple(made.tiers),
            names=tuple(made.names),
            capacity_bytes_per_s_W=np.array(made.capacities, dtype=np.float64),
            way_RT=made.way_RT,
            instance_RT=made.instance_RT,
            first_RT=made.first_RT,
            tier_RT=made.tier_RT,
            port_bytes_per_s_R=np.where(apart_R, ports, 0.0),
        ),
        first_card_W=first_W,
        end_card_W=end_W,
        group_cards_W=group_W,
    )


class _Made:
    """Ways as they are numbered."""

    def __init__(self, replicas: int, tiers: int) -> None:
        self.way_RT = np.full((replicas, tiers), NO_WAY, dtype=np.int64)
        self.instance_RT = np.full((replicas, tiers), NOT_IN, dtype=np.int64)
        self.first_RT = np.zeros((replicas, tiers), dtype=np.int64)
        self.tier_RT = np.full((replicas, tiers), NO_WAY, dtype=np.int64)
        self.tiers: dict[str, int] = {}
        self.names: list[str] = []
        self.capacities: list[float] = []
        self.cards: list[tuple[int, int, int]] = []  # the first, the end, those of a group
        self.instances = 1  # 0 is where parts meet


def _add_part(made: _Made, fabric: Fabric, placed: Placed, number: int, rows: Ints) -> None:
    """What replicas of one part take into each of its tiers."""
    wiring, tiers = fabric.wiring, fabric.parts[number].tiers
    first_R = placed.first_rank_R[rows] - placed.parts[number].first_rank
    last_R = first_R + placed.ranks_R[rows] - 1
    begin = int(wiring.row_P[number])
    for place, tier in enumerate(tiers):
        row = begin + place
        size, inner = int(wiring.size_T[row]), int(wiring.inner_T[row])
        is_in = first_R // size == last_R // size
        made.instance_RT[rows, place] = np.where(is_in, made.instances + first_R // size, NOT_IN)
        made.instances += -(-fabric.parts[number].ranks // size)
        made.first_RT[rows, place] = wiring.plane_T[row] - begin
        made.tier_RT[rows, place] = made.tiers.setdefault(tier.name, len(made.tiers))
        if wiring.groups_T[row]:
            up_G = fabric.capacity_bytes_per_s_L[wiring.up_T[row] :][: int(wiring.groups_T[row])]
            made.way_RT[rows, place] = _joined(made, placed.parts[number], tier.name, (first_R // inner, last_R // inner), (up_G, inner))  # fmt: skip
    if wiring.out_P[number]:
        made.instance_RT[rows, -1] = 0
        made.first_RT[rows, -1] = wiring.plane_T[begin + len(tiers) - 1] - begin


def _joined(
    made: _Made, part: Part, tier: str, groups: tuple[Ints, Ints], up: tuple[Floats, int]
) -> Ints:
    """The way of each replica: replicas from one group on to another that begin before the last ones' end are on one."""
    (low_R, high_R), (up_G, inner) = groups, up
    order = np.argsort(low_R, kind="stable")
    reach_R = np.maximum.accumulate(high_R[order])
    begins_R = np.concatenate(([True], low_R[order][1:] > reach_R[:-1]))
    starts = np.flatnonzero(begins_R)
    lows, highs = low_R[order][starts], reach_R[np.concatenate((starts[1:], [len(order)])) - 1]
    way_R = np.empty(len(order), dtype=np.int64)
    way_R[order] = len(made.names) + np.cumsum(begins_R) - 1
    total_G = np.concatenate(([0.0], np.cumsum(up_G)))
    for low, high in zip(lows.tolist(), highs.tolist(), strict=True):
        made.names.append(f"{tier} {part.name}/{low}" + (f"-{high}" if high > low else ""))
        made.capacities.append(float(up_G[low]) if low == high else float(total_G[high + 1] - total_G[low]))  # fmt: skip
        per_card = part.ranks_per_card
        end = min((high + 1) * inner // per_card, part.cards)
        made.cards.append((part.first_card + low * inner // per_card, part.first_card + end, inner // per_card))  # fmt: skip
    return way_R


def _port_bytes_per_s(parts: tuple[Part, ...], pool: Pool) -> float:
    """A replica's own link."""
    place = next(part.place for part in parts if part.name == pool.on)
    if pool.kv_link is not None:
        return units.parse(pool.kv_link, "bytes_per_s") * pool.layout.world
    known = [] if place is None else [link.bytes_per_s for link in place.topology.links if link.bytes_per_s is not None]  # fmt: skip
    return float(known[-1]) * pool.layout.world if known else 0.0
