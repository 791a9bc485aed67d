"""What a fleet's program chooses from: shapes of every model on every island, and the ways of caches and activations between islands."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from polypod import units
from polypod.catalog.interop import HandoverAnswer, kv_handover
from polypod.cost.deployment import native_precision
from polypod.errors import InputError
from polypod.plan.afd_link import exchange_of, own_way_bytes_per_s
from polypod.plan.confirm_apart import Fed
from polypod.plan.place import Island, way_between_bytes_per_s
from polypod.plan.search import Miss, Question, Search, search
from polypod.plan.shapes import Shape, together
from polypod.plan.workers_apart import apart, experts_apart

Objective = Literal["throughput", "goodput", "cards", "cost", "energy"]
MAXIMISED: Final[tuple[Objective, ...]] = ("throughput", "goodput")
Spare = Literal["card", "node", "rack"]
GOES: Final = ("supported", "experimental", "reported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What is wanted of the whole fleet. What a card counts is by its chip, or by the shape it is part of; shares are of all cards used, by vendor."""

    objective: Objective = "throughput"
    card_costs: Mapping[str, float] = field(default_factory=dict)
    shape_cost: Callable[[Question, Shape], float | str] | None = (
        None  # in words where it is not known
    )
    most_shares: Mapping[str, float] = field(default_factory=dict)
    spare_fraction: float = 0.0
    spare: Spare | None = None
    fabric_bytes_per_s: float | None = None  # of one rank between islands; None: what is on record
    widths_bytes_per_s: Mapping[frozenset[str], float] | None = (
        None  # of one rank, by pair of islands; others do not reach each other
    )
    unproven: bool = False  # plan hand-overs that no source speaks of
    apart: bool = True
    experts_apart: bool = False  # decode with attention and experts on ranks of their own
    time_limit_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A cache's way from one island to another, or within one."""

    prefill: str
    decode: str
    bytes_per_s: float  # of one rank
    answer: HandoverAnswer


@dataclass(slots=True, kw_only=True)
class Offers:
    """All that can be chosen from."""

    shapes: dict[int, list[Shape]]
    pairs: list[Pair]
    refused: list[str]
    searches: dict[int, list[Search]]
    costs: dict[tuple[int, int, float], float] = field(
        default_factory=dict
    )  # of a replica, by model, shape and rate
    fed: dict[tuple[int, int, frozenset[int]], Fed | None] = field(
        default_factory=dict
    )  # by model, decode shape and the prefill shapes that feed it, what emulation gave
    notes: list[str]

    @classmethod
    def of(cls, questions: Sequence[Question], islands: Sequence[Island], aim: Aim) -> "Offers":
        shapes: dict[int, list[Shape]] = {}
        searches: dict[int, list[Search]] = {}
        pairs, refused = _pairs(islands, aim) if aim.apart else ([], [])
        for m, question in enumerate(questions):
            shapes[m], searches[m] = [], []
            for island in islands:
                precision = native_precision(question.model, island.rank)
                found = search(question, island, precision)
                searches[m].append(found)
                shapes[m] += together(question, found)
                if aim.apart:
                    widths = [one.bytes_per_s for one in pairs if one.prefill == island.name]
                    shapes[m] += apart(question, island, precision, widths)
        notes: list[str] = []
        if aim.experts_apart:
            ways, no_ways = exchanges(islands, aim)
            refused += no_ways
            notes = _add_experts_apart(questions, ways, shapes)
        return cls(shapes=shapes, pairs=pairs, refused=refused, searches=searches, notes=notes)

    def cost(self, question: Question, of: tuple[int, int], aim: Aim) -> float:
        """What is minimised, of one replica of a model's shape at its rate of now. Raises `InputError` for a chip without it."""
        shape = self.shapes[of[0]][of[1]]
        key = (*of, shape.rate_per_s)
        if key not in self.costs:
            self.costs[key] = _replica_cost(question, shape, aim)
        return self.costs[key]

    def serves(self, m: int) -> bool:
        """Whether any combination serves the model."""
        roles = {(shape.role, shape.island.name) for shape in self.shapes[m]}
        return any(role == "both" for role, _ in roles) or any(
            ("prefill", pair.prefill) in roles and ("decode", pair.decode) in roles
            for pair in self.pairs
        )

    def why_not(self, m: int) -> str:
        return _commonest(self.searches[m], 4) or "no layout was found"  # fmt: skip

    def nearest(self, m: int, islands: Sequence[Island]) -> tuple[str, Miss] | None:
        """The layout that misses the model's limits by least, and its chip; None where none holds the model."""
        found = [(island.rank.chip, miss) for island, one in zip(islands, self.searches[m], strict=True) for miss in one.misses]  # fmt: skip
        return min(found, key=lambda pair: pair[1].factor, default=None)

    def idle(self, islands: Sequence[Island]) -> dict[str, str]:
        """Islands on which no model has a shape, and the commonest reason."""
        busy = {shape.island.name for shapes in self.shapes.values() for shape in shapes}
        found = {}
        for number, island in enumerate(islands):
            if island.name not in busy:
                found[island.name] = _commonest([of[number] for of in self.searches.values()], 2)
        return found

    @property
    def looked_at(self) -> int:
        return sum(one.looked_at for found in self.searches.values() for one in found)

    @property
    def pruned(self) -> dict[str, int]:
        return dict(_pruned([one for found in self.searches.values() for one in found]))


def _replica_cost(question: Question, shape: Shape, aim: Aim) -> float:
    """What is minimised, of one replica. Raises `InputError` for a chip without it."""
    if aim.shape_cost is None:
        return sum(aim.card_costs.get(one.rank.chip, 1.0) * shape.accelerators_on(one) for one in shape.islands)  # fmt: skip
    found = aim.shape_cost(question, shape)
    if isinstance(found, str):
        msg = f"--objective {aim.objective}: {found}; or --exclude {', '.join(one.rank.chip for one in shape.islands)}"
        raise InputError(msg)
    return found


def _pruned(searches: Sequence[Search]) -> Counter[str]:
    return sum((one.pruned for one in searches), Counter())


def _commonest(searches: Sequence[Search], most: int) -> str:
    return ", ".join(f"{count} {why}" for why, count in _pruned(searches).most_common(most))


def _pairs(islands: Sequence[Island], aim: Aim) -> tuple[list[Pair], list[str]]:
    """Where a cache can go, and what speaks against the other pairs."""
    pairs, refused = [], []
    for first in islands:
        for second in islands:
            answer = kv_handover(first.rank.chip, second.rank.chip)
            width = _width(first, second, aim)
            what = f"{first.name} ({first.rank.chip}) to {second.name} ({second.rank.chip})"
            if answer.state not in GOES and not aim.unproven:
                refused.append(f"cache from {what}: {answer.state}, {answer.reason}")
            elif width is None:
                why = (
                    "no link between them is on record; say --fabric"
                    if aim.widths_bytes_per_s is None
                    else "no fabric of the fleet's file joins them"
                )
                refused.append(f"cache from {what}: {why}")  # fmt: skip
            else:
                pairs.append(Pair(prefill=first.name, decode=second.name, bytes_per_s=width, answer=answer))  # fmt: skip
    return pairs, refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From attention ranks on one island to expert ranks on another or the same."""

    first: Island
    second: Island
    bytes_per_s: float  # of one rank
    note: str


def exchanges(islands: Sequence[Island], aim: Aim) -> tuple[list[Way], list[str]]:
    """Between which islands activations can go, and what speaks against the others."""
    ways, refused = [], []
    for first in islands:
        for second in islands:
            answer = exchange_of(first.rank.chip, second.rank.chip)
            width = own_way_bytes_per_s(first) if first is second else _width(first, second, aim)
            what = f"activations between {first.name} ({first.rank.chip}) and {second.name} ({second.rank.chip})"
            if not answer.goes and not aim.unproven:
                refused.append(f"{what}: {answer.state}, {answer.reason}")
            elif width is None:
                refused.append(f"{what}: no link between them is on record; say --fabric")
            else:
                note = f"{what}: {answer.state}, {answer.reason}; {units.show(width, 'bytes_per_s')} a rank"
                ways.append(Way(first=first, second=second, bytes_per_s=width, note=note))
    return ways, refused


def _add_experts_apart(questions: Sequence[Question], ways: Sequence[Way], shapes: dict[int, list[Shape]]) -> list[str]:  # fmt: skip
    """Offer them to every model with experts; what is said of the ways. Raises `InputError` where no model has any."""
    without = [question.model.name for question in questions if not question.model.is_moe]
    if len(without) == len(questions):
        msg = f"{' and '.join(without)}: no experts to put apart; leave --afd out, or ask for a model with experts"
        raise InputError(msg)
    for m, question in enumerate(questions):
        if question.model.is_moe:
            for way in ways:
                shapes[m] += experts_apart(question, way.first, way.second, way.bytes_per_s)
    return [f"{name} has no experts to put apart: planned whole" for name in without]


def _width(first: Island, second: Island, aim: Aim) -> float | None:
    """What one rank sends to another worker: within an island over its own widest tier, between two over the narrower way out."""
    if first is second:
        return way_between_bytes_per_s(first, second)
    if aim.widths_bytes_per_s is not None:
        return aim.widths_bytes_per_s.get(frozenset((first.name, second.name)))
    if aim.fabric_bytes_per_s is not None:
        return aim.fabric_bytes_per_s
    return way_between_bytes_per_s(first, second)
