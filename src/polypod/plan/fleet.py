"""Several models on several islands at once: how many replicas of which shape where, as a mixed-integer program.

Variables: x, replicas of each shape of `plan.shapes` (whole); f, requests a second of a model from the prefill workers of one island to the decode
workers of another. For every model m and island i, j:

    served_m   = sum of rate x over shapes that do both  +  sum of f over all pairs
    prefill    sum over j of f(m, i, j) <= sum of rate x over m's prefill shapes on i          decode likewise on j
    cache      sum over m, j of f(m, i, j) * cache bytes / width(i, j) <= ranks that prefill on i, each by what its own exchanges with experts
               leave of nine tenths of its link's time; likewise those that decode on j
    cards      sum of cards x <= cards of the island, less the spare ones; replicas that would straddle tiers leave the rest of theirs idle;
               a decode replica with its experts on another island (`plan.afd`) takes cards of both
    demand     served_m >= rate_m, or served_m = rate_m * t with t as large as can be where no rate is to be met

Pairs are those whose chips the catalog says a cache goes between (`interop.kv_handover`), at one width of the cache. The chosen co-located shapes are
then emulated, their rates set to what the emulation gave, and the program solved again until nothing chosen is unconfirmed.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from polypod import units
from polypod.catalog.interop import HandoverAnswer, kv_handover
from polypod.catalog.load import load_accelerator
from polypod.cost.deployment import native_precision
from polypod.errors import InputError
from polypod.plan.afd_link import exchange_of, own_way_bytes_per_s
from polypod.plan.confirm import confirm
from polypod.plan.milp import INFINITY, Milp, Solved
from polypod.plan.place import Island, way_between_bytes_per_s
from polypod.plan.search import UTILISATION_LIMIT, Miss, Question, Search, search
from polypod.plan.shapes import (
    Shape,
    apart,
    cache_bytes,
    exchanging_fraction,
    experts_apart,
    together,
    transfer_s,
)
from polypod.workload.layout import describe

Objective = Literal["throughput", "cards", "cost", "energy"]
Spare = Literal["card", "node", "rack"]
GOES: Final = ("supported", "experimental", "reported")
_GAP: Final = 1e-4
_ROUGH_GAP: Final = 1e-3
_MOST_GAP: Final = 5e-3
"""What may be left open of the value: by the solver, by it where more than a thousand accelerators are used, and then beside the relaxation."""

_EXTRA: Final = 1e-6
"""Weight of a card beside what is maximised: of equal answers, the one with fewer."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """A shape, and how many replicas of it."""

    model: int
    shape: Shape
    replicas: int

    @property
    def accelerators(self) -> float:
        """On all islands."""
        return self.replicas * self.shape.accelerators

    def accelerators_on(self, island: Island) -> float:
        return self.replicas * self.shape.accelerators_on(island)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The program's answer: what runs where, how much of each model it serves, what is between it and the bound, what a card more or less would change."""

    used: tuple[Used, ...]
    served_per_s: tuple[float, ...]
    flows_per_s: Mapping[tuple[int, str, str], float]
    value: float
    gap: float
    status: str
    runner_up: float | None  # the value without the largest pool's shape
    without: str | None
    one_more: Mapping[str, float]  # by island, the value with one accelerator more
    one_less: Mapping[str, float]
    by_duals: bool = (
        False  # what a card or the runner-up changes is the relaxation's, without whole numbers
    )
    pairs: tuple[Pair, ...]
    refused_pairs: tuple[str, ...]
    looked_at: int
    pruned: Mapping[str, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Short:
    """Nothing serves all: the largest share of every demand that can be served at once, and by what it is held."""

    fraction: float
    served_per_s: tuple[float, ...]
    without_shape: tuple[int, ...]  # models that no part of the fleet can serve at all
    reasons: Mapping[int, str]
    nearest: Mapping[int, tuple[str, Miss]] = field(
        default_factory=dict
    )  # of those models, by chip
    idle: Mapping[str, str] = field(default_factory=dict)  # islands that serve nothing, and why


def choose(questions: Sequence[Question], islands: Sequence[Island], aim: Aim) -> Chosen | Short:
    """Solve it. Raises `InputError` where nothing can be chosen from."""
    offers = _Offers.of(questions, islands, aim)
    lacking = tuple(m for m in range(len(questions)) if not offers.serves(m))
    if lacking:
        return Short(
            fraction=0.0,
            served_per_s=tuple(0.0 for _ in questions),
            without_shape=lacking,
            reasons={m: offers.why_not(m) for m in lacking},
            nearest={
                m: found for m in lacking if (found := offers.nearest(m, islands)) is not None
            },
        )
    program, solved = _confirmed(questions, islands, aim, offers)
    if not solved.has_solution:
        return _short(questions, islands, aim, offers)
    return _chosen(questions, islands, aim, offers, (program, solved))


@dataclass(slots=True, kw_only=True)
class _Offers:
    """All that can be chosen from."""

    shapes: dict[int, list[Shape]]
    pairs: list[Pair]
    refused: list[str]
    searches: dict[int, list[Search]]
    costs: dict[tuple[int, int, float], float] = field(
        default_factory=dict
    )  # of a replica, by model, shape and rate
    notes: list[str]

    @classmethod
    def of(cls, questions: Sequence[Question], islands: Sequence[Island], aim: Aim) -> "_Offers":
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
            ways, no_ways = _exchanges(islands, aim)
            refused += no_ways
            notes = _add_experts_apart(questions, ways, shapes)
        return cls(shapes=shapes, pairs=pairs, refused=refused, searches=searches, notes=notes)

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
class _Way:
    """From attention ranks on one island to expert ranks on another or the same."""

    first: Island
    second: Island
    bytes_per_s: float  # of one rank
    note: str


def _exchanges(islands: Sequence[Island], aim: Aim) -> tuple[list[_Way], list[str]]:
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
                ways.append(_Way(first=first, second=second, bytes_per_s=width, note=note))
    return ways, refused


def _add_experts_apart(questions: Sequence[Question], ways: Sequence[_Way], shapes: dict[int, list[Shape]]) -> list[str]:  # fmt: skip
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


@dataclass(slots=True, kw_only=True)
class _Program:
    """The program and what its variables are."""

    milp: Milp
    counts: dict[tuple[int, int], int]  # by model and number of its shape
    flows: dict[tuple[int, str, str], int]
    card_rows: dict[str, int]
    scale: int | None = None  # served over demanded
    rough: bool = False  # one accelerator is less than what is left open


def _program(questions: Sequence[Question], islands: Sequence[Island], aim: Aim, offers: _Offers, *, stretch: bool = False) -> _Program:  # fmt: skip
    """With `stretch`, the most of every demand at once instead of all of it at the least."""
    maximise = stretch or aim.objective == "throughput"
    milp = Milp(maximise=maximise)
    program = _Program(milp=milp, counts={}, flows={}, card_rows={})
    for m, shapes in offers.shapes.items():
        for s, shape in enumerate(shapes):
            key = (m, s, shape.rate_per_s)
            if key not in offers.costs:
                offers.costs[key] = _replica_cost(questions[m], shape, aim)
            cost = offers.costs[key]
            weight = -_EXTRA * shape.accelerators if maximise else cost
            program.counts[m, s] = milp.variable(cost=weight, high=shape.most_replicas, whole=True)
        for pair in offers.pairs:
            if _one_width(shapes, pair) and _in_time(shapes, pair):
                program.flows[m, pair.prefill, pair.decode] = milp.variable()
    _demand_rows(program, questions, aim, offers, stretch=stretch)
    _flow_rows(program, questions, aim, offers)
    _card_rows(program, islands, aim, offers)
    return program


def _one_width(shapes: Sequence[Shape], pair: Pair) -> bool:
    """Whether both ends hold the cache at one width."""
    widths = [
        {
            shape.deployment.precision.kv
            for shape in shapes
            if (shape.role, shape.island.name) == end
        }
        for end in (("prefill", pair.prefill), ("decode", pair.decode))
    ]
    return bool(widths[0] & widths[1])


def _in_time(shapes: Sequence[Shape], pair: Pair) -> bool:
    """Whether a cache is there inside the limit on TTFT, from any of the prefill workers."""
    return any(_sends(one, pair.prefill, pair.bytes_per_s) for one in shapes)


def _sends(shape: Shape, island: str, width: float) -> bool:
    return (shape.role, shape.island.name) == ("prefill", island) and shape.narrowest_bytes_per_s <= width  # fmt: skip


def _replica_cost(question: Question, shape: Shape, aim: Aim) -> float:
    """What is minimised, of one replica. Raises `InputError` for a chip without it."""
    if aim.shape_cost is None:
        return sum(aim.card_costs.get(one.rank.chip, 1.0) * shape.accelerators_on(one) for one in shape.islands)  # fmt: skip
    found = aim.shape_cost(question, shape)
    if isinstance(found, str):
        msg = f"--objective {aim.objective}: {found}; or --exclude {', '.join(one.rank.chip for one in shape.islands)}"
        raise InputError(msg)
    return found


def _served(program: _Program, offers: _Offers, m: int) -> dict[int, float]:
    terms = {
        program.counts[m, s]: shape.rate_per_s
        for s, shape in enumerate(offers.shapes[m])
        if shape.role == "both"
    }
    return terms | {number: 1.0 for (of, *_), number in program.flows.items() if of == m}


def _demand_rows(program: _Program, questions: Sequence[Question], aim: Aim, offers: _Offers, *, stretch: bool) -> None:  # fmt: skip
    milp = program.milp
    asked = [question.rate_per_s for question in questions]
    if stretch or (aim.objective == "throughput" and None not in asked):
        program.scale = milp.variable(cost=1.0)
        for m, rate in enumerate(asked):
            milp.row(_served(program, offers, m) | {program.scale: -(rate or 1.0)}, low=0.0)
        return
    for m, rate in enumerate(asked):
        terms = _served(program, offers, m)
        if rate is not None:
            milp.row(terms, low=rate)
            _loss_rows(program, aim, offers, m, rate)
        else:
            total = milp.variable(cost=1.0)
            milp.row(terms | {total: -1.0}, low=0.0)


def _loss_rows(program: _Program, aim: Aim, offers: _Offers, m: int, rate: float) -> None:
    """The demand is met when what may fail of any one shape does: with it go its replicas."""
    served = _served(program, offers, m)
    for s, shape in enumerate(offers.shapes[m]):
        if shape.role == "both" and aim.spare is not None:
            _lost_rows(program, served, rate, (program.counts[m, s], shape), aim.spare)


def _lost_rows(program: _Program, terms: Mapping[int, float], floor: float, of: tuple[int, Shape], spare: Spare) -> None:  # fmt: skip
    """`terms` are still at least `floor` without min(k, x) of the x replicas: either of both is enough."""
    count, shape = of
    rate, most = shape.rate_per_s, shape.most_replicas
    lost = max(math.ceil(domain_ranks(one, spare) / shape.ranks_on(one)) for one in shape.islands)
    all_of_them = program.milp.variable(high=1.0, whole=True)
    program.milp.row(dict(terms) | {all_of_them: lost * rate}, low=floor + lost * rate)
    fewer = dict(terms)
    fewer[count] = fewer.get(count, 0.0) - rate
    program.milp.row(fewer | {all_of_them: -most * rate}, low=floor - most * rate)


def domain_ranks(island: Island, spare: Spare) -> int:
    """Ranks that fail together. Raises `InputError` where no source says which cards share a rack."""
    rank = island.rank
    if spare == "card":
        return rank.ranks_per_accelerator
    if spare == "node":
        wider = (tier.ranks for tier in rank.tiers if tier.ranks and tier.ranks > rank.ranks_per_accelerator)  # fmt: skip
        return next(wider, rank.ranks_per_accelerator)
    racks = [tier.ranks for tier in rank.tiers if tier.ranks and tier.name.startswith(("rack", "cabinet"))]  # fmt: skip
    if not racks:
        msg = f"--spare rack: no source on record says which cards of {island.name} ({rank.chip}) share a rack; use node, or a share as 2%"
        raise InputError(msg)
    return racks[0]


def _flow_rows(program: _Program, questions: Sequence[Question], aim: Aim, offers: _Offers) -> None:  # fmt: skip
    for m in offers.shapes:
        ways = [(start, end) for of, start, end in program.flows if of == m]
        for end, role in enumerate(("prefill", "decode")):
            for island in sorted({way[end] for way in ways}):
                _able_rows(program, aim, offers, (m, role, end + 1, island))
    for end, role in ((1, "prefill"), (2, "decode")):
        for name in sorted({str(key[end]) for key in program.flows}):
            _link_row(program, questions, offers, (end, role, name))


def _link_row(program: _Program, questions: Sequence[Question], offers: _Offers, where: tuple[int, str, str]) -> None:  # fmt: skip
    """The caches that leave or reach an island's workers, and these workers' own exchanges, keep their links busy nine tenths of the time at most."""
    end, role, island = where
    widths = {(pair.prefill, pair.decode): pair.bytes_per_s for pair in offers.pairs}
    busy = {}
    for key, number in program.flows.items():
        if key[end] == island:
            sender = next(one for one in offers.shapes[key[0]] if (one.role, one.island.name) == ("prefill", key[1]))  # fmt: skip
            busy[number] = cache_bytes(questions[key[0]], sender) / widths[key[1:]]
    links = {
        program.counts[m, s]: -one.ranks
        * max(UTILISATION_LIMIT - exchanging_fraction(questions[m], one), 0.0)
        for m, shapes in offers.shapes.items()
        for s, one in enumerate(shapes)
        if (one.role, one.island.name) == (role, island)
    }
    program.milp.row(busy | links, high=0.0)


def _able_rows(program: _Program, aim: Aim, offers: _Offers, where: tuple[int, str, int, str]) -> None:  # fmt: skip
    """What comes to or from an island's workers is no more than they can do, nor than those left can when a card or a node is lost.

    What leaves by a narrow way comes from workers that leave time for it.
    """
    m, role, end, island = where
    widths = {(pair.prefill, pair.decode): pair.bytes_per_s for pair in offers.pairs}
    flows = {number: widths[key[1:]] for key, number in program.flows.items() if key[0] == m and key[end] == island}  # fmt: skip
    for width in sorted(set(flows.values())) if role == "prefill" else [INFINITY]:
        through = {number: 1.0 for number, each in flows.items() if each <= width}
        mine = [(s, one) for s, one in enumerate(offers.shapes[m]) if (one.role, one.island.name) == (role, island) and one.narrowest_bytes_per_s <= width]  # fmt: skip
        able = {program.counts[m, s]: -one.rate_per_s for s, one in mine}
        program.milp.row(through | able, high=0.0)
        left = {number: -value for number, value in (through | able).items()}
        for s, one in mine:
            if aim.spare is not None:
                _lost_rows(program, left, 0.0, (program.counts[m, s], one), aim.spare)


def _card_rows(program: _Program, islands: Sequence[Island], aim: Aim, offers: _Offers) -> None:
    milp = program.milp
    numbered = [(program.counts[m, s], shape) for m, shapes in offers.shapes.items() for s, shape in enumerate(shapes)]  # fmt: skip
    for island in islands:
        # a shape that fills a tier badly takes with each replica its part of what it leaves idle
        terms = {
            number: shape.taken_on(island)
            for number, shape in numbered
            if any(one is island for one in shape.islands) and shape.most_replicas
        }  # fmt: skip
        free = island.accelerators * (1 - aim.spare_fraction)
        program.card_rows[island.name] = milp.row(terms, high=free)
    for vendor, most in aim.most_shares.items():
        shares = {
            number: sum(
                shape.accelerators_on(one) * ((vendor == _vendor(one)) - most)
                for one in shape.islands
            )
            for number, shape in numbered
        }
        milp.row(shares, high=0.0)


def _vendor(island: Island) -> str:
    return load_accelerator(island.rank.chip).vendor.casefold()


def _confirmed(questions: Sequence[Question], islands: Sequence[Island], aim: Aim, offers: _Offers) -> tuple[_Program, Solved]:  # fmt: skip
    """Solve, emulate what was chosen, and solve again under what the emulation gave, until all that is chosen is emulated.

    Where a large part of a large fleet is used, first without whole numbers, then with them among what was emulated; the gap is to the first, which may
    choose from all. Where that leaves too much open it is solved as any other.
    """
    if _is_large(islands):
        program, relaxed = _until_emulated(questions, islands, aim, offers, relaxed=True)
        emulated = program.milp.copied()
        for (m, s), number in program.counts.items():
            if offers.shapes[m][s].candidate is not None and not offers.shapes[m][s].confirmed:
                emulated.highs[number] = 0.0
        solved = emulated.solve(time_limit_s=aim.time_limit_s, gap=_ROUGH_GAP)
        told = replace(solved, bound=relaxed.value)
        if _uses_many(program, offers, solved) and told.gap <= _MOST_GAP:
            program.rough = True
            return program, told
    return _until_emulated(questions, islands, aim, offers, relaxed=False)


def _until_emulated(questions: Sequence[Question], islands: Sequence[Island], aim: Aim, offers: _Offers, *, relaxed: bool) -> tuple[_Program, Solved]:  # fmt: skip
    while True:
        program = _program(questions, islands, aim, offers)
        solved = program.milp.relaxed() if relaxed else _solve(program.milp, aim)
        if not solved.has_solution or not _confirm_used(questions, program, offers, solved):
            return program, solved


def _solve(milp: Milp, aim: Aim) -> Solved:
    return milp.solve(time_limit_s=aim.time_limit_s, gap=_GAP)


def _is_large(islands: Sequence[Island]) -> bool:
    """Whether one accelerator may be less than what the solver leaves open."""
    return sum(one.accelerators for one in islands) > 1 / _ROUGH_GAP


def _uses_many(program: _Program, offers: _Offers, solved: Solved) -> bool:
    """Whether it is."""
    if not solved.has_solution:
        return False
    used = sum(float(solved.x[number]) * offers.shapes[m][s].accelerators for (m, s), number in program.counts.items())  # fmt: skip
    return used > 1 / _ROUGH_GAP


def _confirm_used(questions: Sequence[Question], program: _Program, offers: _Offers, solved: Solved) -> bool:  # fmt: skip
    """Emulate every chosen co-located shape that was not yet; whether any rate changed."""
    changed = False
    for (m, s), number in program.counts.items():
        shape = offers.shapes[m][s]
        if round(solved.x[number]) < 1 or shape.confirmed or shape.candidate is None:
            continue
        outcome = confirm(questions[m], shape.candidate)
        rate = 0.0 if outcome is None else outcome.outcome.rate_per_s
        offers.shapes[m][s] = replace(shape, rate_per_s=rate, confirmed=True)
        changed = True
    return changed


def _short(questions: Sequence[Question], islands: Sequence[Island], aim: Aim, offers: _Offers) -> Short:  # fmt: skip
    program = _program(questions, islands, aim, offers, stretch=True)
    solved = _solve(program.milp, aim)
    assert program.scale is not None
    fraction = float(solved.x[program.scale]) if solved.has_solution else 0.0
    served = tuple(_sum(_served(program, offers, m), solved) for m in range(len(questions)))
    return Short(
        fraction=fraction,
        served_per_s=served,
        without_shape=(),
        reasons={},
        idle=offers.idle(islands),
    )


def _sum(terms: Mapping[int, float], solved: Solved) -> float:
    return sum(value * float(solved.x[number]) for number, value in terms.items()) if solved.has_solution else 0.0  # fmt: skip


def _chosen(
    questions: Sequence[Question],
    islands: Sequence[Island],
    aim: Aim,
    offers: _Offers,
    found: tuple[_Program, Solved],
) -> Chosen:
    program, solved = found
    used = [
        Used(model=m, shape=offers.shapes[m][s], replicas=round(float(solved.x[number])))
        for (m, s), number in program.counts.items()
        if round(float(solved.x[number])) > 0
    ]
    used.sort(key=lambda one: (one.model, one.shape.role != "both", one.shape.role, -one.accelerators))  # fmt: skip
    largest = max(program.counts, key=lambda key: float(solved.x[program.counts[key]]) * offers.shapes[key[0]][key[1]].accelerators)  # fmt: skip
    return Chosen(
        used=tuple(used),
        served_per_s=tuple(_sum(_served(program, offers, m), solved) for m in range(len(questions))),
        flows_per_s={key: float(solved.x[n]) for key, n in program.flows.items() if solved.x[n] > 1e-9},
        value=solved.value,
        gap=solved.gap,
        status=solved.status,
        runner_up=_without(found, program.counts[largest], aim),
        without=_words(offers.shapes[largest[0]][largest[1]]),
        one_more=_changed(found, islands, aim, +1),
        one_less=_changed(found, islands, aim, -1),
        by_duals=program.rough,
        pairs=tuple(offers.pairs),
        refused_pairs=tuple(offers.refused),
        looked_at=offers.looked_at,
        pruned=offers.pruned,
        notes=(*offers.notes, *_exchange_notes(used, aim)),
    )  # fmt: skip


def _exchange_notes(used: Sequence[Used], aim: Aim) -> list[str]:
    """What is said of the ways that activations take in the answer, or that none of what was asked for is in it."""
    if aim.experts_apart and not any(one.shape.split for one in used):
        return ["attention and experts apart were offered, and serve no more than what was chosen"]
    pairs = {(one.shape.island.name, also.name): (one.shape.island, also) for one in used for also, _ in one.shape.also}  # fmt: skip
    return [way.note for first, second in pairs.values() for way in _exchanges([first, second], aim)[0] if (way.first, way.second) == (first, second)]  # fmt: skip


def _words(shape: Shape) -> str:
    experts = (
        f", experts on {shape.split.expert_ranks} {shape.split.experts.chip}" if shape.split else ""
    )
    return (
        f"{shape.role} [{describe(shape.deployment.layout)}] on {shape.island.rank.chip}{experts}"
    )


def _without(found: tuple[_Program, Solved], number: int, aim: Aim) -> float | None:  # fmt: skip
    """The value where a shape may not be used, of a large fleet by how much the relaxation loses; None where nothing is left."""
    program, solved = found
    other = program.milp.copied()
    other.highs[number] = 0.0
    if program.rough:
        before, after = program.milp.relaxed(), other.relaxed()
        return solved.value + after.value - before.value if after.has_solution else None
    solved = _solve(other, aim)
    return solved.value if solved.has_solution else None


def _changed(
    found: tuple[_Program, Solved], islands: Sequence[Island], aim: Aim, by: int
) -> dict[str, float]:
    """The value with so many accelerators more on each island: solved anew, or of a large fleet by the duals of the relaxation."""
    program, value = found[0], found[1].value
    rows = [program.card_rows[island.name] for island in islands]
    if program.rough:
        return {one.name: value + by * dual for one, dual in zip(islands, program.milp.duals(rows), strict=True)}  # fmt: skip
    values = {}
    for island, row in zip(islands, rows, strict=True):
        other = program.milp.copied()
        terms, low, high = other.rows[row]
        other.rows[row] = (terms, low, high + by)
        solved = _solve(other, aim)
        values[island.name] = solved.value if solved.has_solution else float("nan")
    return values


def prompt_wait_s(m: int, question: Question, chosen: Chosen) -> dict[tuple[str, str], float]:
    """TTFT of each of a model's flows: the prefill worker's time and wait, and the cache's way."""
    waits = {}
    for of, start, end in chosen.flows_per_s:
        if of != m:
            continue
        pair = next(one for one in chosen.pairs if (one.prefill, one.decode) == (start, end))
        waits[start, end] = max(
            one.shape.ttft_s + transfer_s(question, one.shape, pair.bytes_per_s)
            for one in chosen.used
            if one.model == m and _sends(one.shape, start, pair.bytes_per_s)
        )
    return waits
