"""A fleet's mixed-integer program: its variables, and its rows. What the rows say is in `plan.fleet`.

What rates do not move (variables, cards, links, shares) is built once; costs, demands and what workers are able to do are added at the rates of the day.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from polypod.catalog.load import load_accelerator
from polypod.errors import InputError
from polypod.plan.fleet_offers import MAXIMISED, Aim, Offers, Pair, Spare
from polypod.plan.milp import INFINITY, Milp
from polypod.plan.place import Island
from polypod.plan.search import UTILISATION_LIMIT, Question
from polypod.plan.shapes import Shape
from polypod.plan.workers_apart import cache_bytes, exchanging_fraction

_EXTRA: Final = 1e-6
"""Weight of a card beside what is maximised: of equal answers, the one with fewer."""


@dataclass(slots=True, kw_only=True)
class Program:
    """The program and what its variables are."""

    questions: Sequence[Question]
    aim: Aim
    offers: Offers
    stretch: bool  # the most of every demand at once instead of all of it at the least
    milp: Milp
    counts: dict[tuple[int, int], int]  # by model and number of its shape
    flows: dict[tuple[int, str, str], int]
    card_rows: dict[str, int]
    scale: int | None = None  # served over demanded
    rough: bool = False  # one accelerator is less than what is left open

    def served(self, m: int) -> dict[int, float]:
        """Terms of what is served of a model."""
        terms = {
            self.counts[m, s]: shape.rate_per_s
            for s, shape in enumerate(self.offers.shapes[m])
            if shape.role == "both"
        }
        return terms | {number: 1.0 for (of, *_), number in self.flows.items() if of == m}

    def width(self, start: str, end: str) -> float:
        """Of one rank, between two islands that caches go between."""
        return next(one.bytes_per_s for one in self.offers.pairs if (one.prefill, one.decode) == (start, end))  # fmt: skip

    def at_rates(self) -> "Program":
        """One of its own, with what is asked at the shapes' rates of now."""
        found = replace(self, milp=self.milp.copied())
        for (m, s), number in found.counts.items():
            shape = found.offers.shapes[m][s]
            found.milp.costs[number] = -_EXTRA * shape.accelerators if found.milp.maximise else found.offers.cost(found.questions[m], (m, s), found.aim)  # fmt: skip
        _demand_rows(found)
        _able_rows(found)
        return found


def build(questions: Sequence[Question], islands: Sequence[Island], aim: Aim, offers: Offers, *, stretch: bool = False) -> Program:  # fmt: skip
    """All of it that rates do not move."""
    milp = Milp(maximise=stretch or aim.objective in MAXIMISED)
    found = Program(questions=questions, aim=aim, offers=offers, stretch=stretch, milp=milp, counts={}, flows={}, card_rows={})  # fmt: skip
    for m, shapes in offers.shapes.items():
        for s, shape in enumerate(shapes):
            found.counts[m, s] = milp.variable(high=shape.most_replicas, whole=True)
        for pair in offers.pairs:
            if _one_width(shapes, pair) and _in_time(shapes, pair):
                found.flows[m, pair.prefill, pair.decode] = milp.variable()
    for end, role in ((1, "prefill"), (2, "decode")):
        for name in sorted({str(key[end]) for key in found.flows}):
            _link_row(found, (end, role, name))
    _card_rows(found, islands)
    return found


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
    return any(sends(one, pair.prefill, pair.bytes_per_s) for one in shapes)


def sends(shape: Shape, island: str, width: float) -> bool:
    return (shape.role, shape.island.name) == ("prefill", island) and shape.narrowest_bytes_per_s <= width  # fmt: skip


def _demand_rows(program: Program) -> None:
    milp, aim = program.milp, program.aim
    asked = [question.rate_per_s for question in program.questions]
    if program.stretch or (aim.objective == "throughput" and None not in asked):
        program.scale = milp.variable(cost=1.0)
        for m, rate in enumerate(asked):
            _served_rows(program, m, {program.scale: -(rate or 1.0)}, 0.0)
        return
    for m, rate in enumerate(asked):
        if aim.objective in MAXIMISED:
            # of a demand, no more than is asked counts
            counted = milp.variable(cost=1.0, high=INFINITY if rate is None else rate)
            _served_rows(program, m, {counted: -1.0}, 0.0)
        else:
            _served_rows(program, m, {}, rate or 0.0)


def _served_rows(program: Program, m: int, less: Mapping[int, float], floor: float) -> None:
    """What is served of a model, and what `less` takes of it, is no less than `floor`; also when what may fail does: with it go its replicas, of one shape or several."""
    terms = program.served(m) | dict(less)
    program.milp.row(terms, low=floor)
    whole = [(program.counts[m, s], shape) for s, shape in enumerate(program.offers.shapes[m]) if shape.role == "both"]  # fmt: skip
    _spare_rows(program, terms, floor, whole)


def _spare_rows(program: Program, terms: Mapping[int, float], floor: float, numbered: Sequence[tuple[int, Shape]]) -> None:  # fmt: skip
    """`terms` are still at least `floor` when what may fail does, whichever of these shapes, each with its count, go with it."""
    spare = program.aim.spare
    if spare is None:
        return
    for of in numbered:
        _lost_rows(program, terms, floor, of, spare)
    _mixed_rows(program, terms, floor, numbered, spare)


def _lost_rows(program: Program, terms: Mapping[int, float], floor: float, of: tuple[int, Shape], spare: Spare) -> None:  # fmt: skip
    """`terms` are still at least `floor` without min(k, x) of the x replicas: either of both is enough."""
    count, shape = of
    rate, most = shape.rate_per_s, shape.most_replicas
    lost = lost_at_once(shape, spare)
    all_of_them = program.milp.variable(high=1.0, whole=True)
    program.milp.row(dict(terms) | {all_of_them: lost * rate}, low=floor + lost * rate)
    fewer = dict(terms)
    fewer[count] = fewer.get(count, 0.0) - rate
    program.milp.row(fewer | {all_of_them: -most * rate}, low=floor - most * rate)


def _mixed_rows(program: Program, terms: Mapping[int, float], floor: float, numbered: Sequence[tuple[int, Shape]], spare: Spare) -> None:  # fmt: skip
    """`terms` are still at least `floor` without the replicas of several shapes that share what fails.

    Of D ranks that fail together, a replicas of each shape, n of it there, with so many ranks and such a rate, lose at most
    max sum(a * rate) over sum(a * ranks) <= D and a <= n, which is the least over w of D * w + sum(n * max(rate - w * ranks, 0)): a continuous knapsack, whose w is 0
    or a rate over its ranks. One of these bounds is enough.
    """
    for island in {id(one): one for _, shape in numbered for one in shape.islands}.values():
        failing = domain_ranks(island, spare)
        small = [(count, shape.ranks_on(island), shape) for count, shape in numbered if 0 < shape.ranks_on(island) < failing]  # fmt: skip
        if len(small) < 2:
            continue
        chosen = {}
        for worth in sorted({0.0} | {shape.rate_per_s / ranks for _, ranks, shape in small}):
            over = {count: max(shape.rate_per_s - worth * ranks, 0.0) for count, ranks, shape in small}  # fmt: skip
            most = failing * worth + sum(over[count] * shape.most_replicas for count, _, shape in small)  # fmt: skip
            row = dict(terms)
            for count, lost in over.items():
                row[count] = row.get(count, 0.0) - lost
            holds = program.milp.variable(high=1.0, whole=True)
            chosen[holds] = 1.0
            program.milp.row(row | {holds: -most}, low=floor + failing * worth - most)
        program.milp.row(chosen, low=1.0)


def lost_at_once(shape: Shape, spare: Spare) -> int:
    """Replicas that go with what fails, on whichever of a replica's islands it takes more of them."""
    return max(math.ceil(domain_ranks(one, spare) / shape.ranks_on(one)) for one in shape.islands)


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


def _able_rows(program: Program) -> None:
    for m in program.offers.shapes:
        ways = [(start, end) for of, start, end in program.flows if of == m]
        for end, role in enumerate(("prefill", "decode")):
            for island in sorted({way[end] for way in ways}):
                _able_row(program, (m, role, end + 1, island))


def _link_row(program: Program, where: tuple[int, str, str]) -> None:
    """The caches that leave or reach an island's workers, and these workers' own exchanges, keep their links busy nine tenths of the time at most."""
    end, role, island = where
    questions, offers = program.questions, program.offers
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


def _able_row(program: Program, where: tuple[int, str, int, str]) -> None:
    """What comes to or from an island's workers is no more than they can do, nor than those left can when a card or a node is lost.

    What leaves by a narrow way comes from workers that leave time for it.
    """
    m, role, end, island = where
    offers = program.offers
    widths = {(pair.prefill, pair.decode): pair.bytes_per_s for pair in offers.pairs}
    flows = {number: widths[key[1:]] for key, number in program.flows.items() if key[0] == m and key[end] == island}  # fmt: skip
    for width in sorted(set(flows.values())) if role == "prefill" else [INFINITY]:
        through = {number: 1.0 for number, each in flows.items() if each <= width}
        mine = [(s, one) for s, one in enumerate(offers.shapes[m]) if (one.role, one.island.name) == (role, island) and one.narrowest_bytes_per_s <= width]  # fmt: skip
        able = {program.counts[m, s]: -one.rate_per_s for s, one in mine}
        program.milp.row(through | able, high=0.0)
        left = {number: -value for number, value in (through | able).items()}
        _spare_rows(program, left, 0.0, [(program.counts[m, s], one) for s, one in mine])


def _card_rows(program: Program, islands: Sequence[Island]) -> None:
    milp, aim, offers = program.milp, program.aim, program.offers
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
        milp.row({number: above_share(shape, vendor, most) for number, shape in numbered}, high=0.0)


def above_share(shape: Shape, vendor: str, most: float) -> float:
    """A vendor's accelerators in a replica, less the share of all of it that they may be."""
    return sum(shape.accelerators_on(one) * ((vendor == _vendor(one)) - most) for one in shape.islands)  # fmt: skip


def _vendor(island: Island) -> str:
    return load_accelerator(island.rank.chip).vendor.casefold()
