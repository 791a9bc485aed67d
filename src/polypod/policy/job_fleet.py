"""The cards a scheduler has, and by which rules it gives them out.

Cards are numbered from 0, island after island, rack after rack, node after node; the last node of a rack and the last rack of an island
may be smaller. Islands of one kind stand together, in the order in which the kinds are first named.
"""

from typing import Annotated, Final

import msgspec

from polypod.errors import InputError
from polypod.policy.job_events import Within

TIERS: Final[tuple[Within, ...]] = ("node", "rack", "island", "fleet")

Positive = Annotated[int, msgspec.Meta(ge=1)]


class IslandCards(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Like cards on one fabric: how many there are, in a node, and in a rack."""

    name: str
    kind: str
    cards: Positive
    node_cards: Positive = 8
    rack_cards: Positive | None = None  # None: the island is one rack


class Fleet(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Islands of one or several kinds of cards."""

    islands: Annotated[tuple[IslandCards, ...], msgspec.Meta(min_length=1)]

    def __post_init__(self) -> None:
        names = [island.name for island in self.islands]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            msg = f"several islands are called {', '.join(twice)}; give every island its own name"
            raise InputError(msg)
        for island in self.islands:
            rack = island.rack_cards or island.cards
            if rack % island.node_cards and rack < island.cards:
                msg = (
                    f"island {island.name!r} has racks of {rack} cards and nodes of {island.node_cards}; "
                    "make a rack a whole number of nodes"
                )
                raise InputError(msg)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Each kind once, in the order first named."""
        return tuple(dict.fromkeys(island.kind for island in self.islands))

    @property
    def ordered(self) -> tuple[IslandCards, ...]:
        """The islands in the order in which their cards are numbered."""
        kinds = self.kinds
        return tuple(sorted(self.islands, key=lambda island: kinds.index(island.kind)))

    @property
    def cards(self) -> int:
        return sum(island.cards for island in self.islands)


class Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who submits jobs.

    `fair_share` is its weight: what it gets of the fleet, beside the others', when all want more than there is. `quota` is how many cards of each kind are its own; kinds left
    out of it are 0, and without any quota the tenant is held to none. Above its quota it borrows what others of its `cohort` leave
    idle, at most `borrow` cards of a kind (None: as many as there are), until they want them back.
    """

    name: str
    fair_share: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    quota: dict[str, Annotated[int, msgspec.Meta(ge=0)]] | None = None
    borrow: Annotated[int, msgspec.Meta(ge=0)] | None = None
    cohort: str = ""


class JobRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the queue is ordered, and who may go past whom.

    The order is: effective priority, the higher first; then the tenant furthest below its share; then who came first. A job's
    effective priority rises by one for every `ageing_s` it has waited. `reservations` is how many of the first waiting jobs have a
    time and a place kept for them: 1 is EASY backfill, more is conservative backfill for so many; 0 is none, so that large jobs
    may wait without end. Usage halves every `half_life_s`. Order and usage are brought up to date every `period_s`.
    """

    tenants: tuple[Tenant, ...] = ()  # a tenant not listed has a share of 1 and no quota
    reservations: Annotated[int, msgspec.Meta(ge=0, le=64)] = 1
    is_backfilling: bool = True  # False: nobody goes past a job that waits
    is_preempting: bool = True  # jobs of higher priority stop those of lower; services do always
    half_life_s: Annotated[float, msgspec.Meta(gt=0)] = 7 * 86400.0
    ageing_s: Annotated[float, msgspec.Meta(gt=0)] = 86400.0
    period_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
