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

Pairs are those whose chips the catalog says a cache goes between (`interop.kv_handover`), at one width of the cache. The chosen shapes are then emulated,
their rates set to what the emulation gave, and the program solved again until nothing chosen is unconfirmed (`plan.fleet_emulated`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from polypod.errors import InfeasibleError
from polypod.plan.confirm import Floats
from polypod.plan.fleet_emulated import (
    LEAST,
    all_emulated,
    flow_ttft_s,
    of_its_own,
    until_emulated,
)
from polypod.plan.fleet_offers import Aim, Offers, Pair, exchanges
from polypod.plan.fleet_program import Program, build
from polypod.plan.milp import Solved
from polypod.plan.place import Island
from polypod.plan.search import Miss, Question
from polypod.plan.shapes import Shape
from polypod.workload.layout import describe

_GAP: Final = 1e-4
_ROUGH_GAP: Final = 1e-3
_MOST_GAP: Final = 1e-2
"""What may be left open of the value: by the solver, by it where more than a thousand accelerators are used, and then beside the relaxation."""


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
    flows_ttft_s: Mapping[tuple[int, str, str], Floats]  # of requests that were emulated
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
    against: tuple[str, ...] = ()  # rules of the fleet's, any one of which the demand contradicts


def choose(questions: Sequence[Question], islands: Sequence[Island], aim: Aim) -> Chosen | Short:
    """Solve it. Raises `InputError` where nothing can be chosen from."""
    offers = Offers.of(questions, islands, aim)
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
    confirmed = _confirmed(build(questions, islands, aim, offers), islands)
    solved = confirmed.solved
    if solved.status == "time limit" and not solved.has_solution:
        msg = f"the solver found no plan at all in {aim.time_limit_s:g} s; give it longer, as --time-limit {max(10 * aim.time_limit_s, 1):g}s"
        raise InfeasibleError(msg)
    if not solved.has_solution:
        return _short(questions, islands, aim, offers)
    return _chosen(confirmed, islands)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The program without its rates, at those of emulation, and its solution."""

    bare: Program
    program: Program
    solved: Solved


def _confirmed(bare: Program, islands: Sequence[Island]) -> _Found:
    """Solve, emulate what was chosen and what stands beside it, and solve again under what the emulation gave (`plan.fleet_emulated`).

    Where a large part of a large fleet is used, first without whole numbers, then with them among what was emulated; the gap is to the first, which may
    choose from all. Where that leaves too much open it is solved as any other.
    """
    if _is_large(islands):
        _, relaxed = all_emulated(bare, _relaxed)
        program, solved = until_emulated(bare, _among_emulated)
        told = replace(solved, bound=relaxed.value)
        if _uses_many(program, solved) and told.gap <= _MOST_GAP:
            program.rough = True
            return _Found(bare=bare, program=program, solved=told)
    program, solved = all_emulated(bare, _solve)
    return _Found(bare=bare, program=program, solved=solved)


def _relaxed(program: Program) -> Solved:
    return program.milp.relaxed()


def _among_emulated(program: Program) -> Solved:
    emulated = program.milp.copied()
    for (m, s), number in program.counts.items():
        shape = program.offers.shapes[m][s]
        if not (shape.confirmed or shape.unplayed):
            emulated.highs[number] = 0.0
    return emulated.solve(time_limit_s=program.aim.time_limit_s, gap=_ROUGH_GAP)


def _solve(program: Program) -> Solved:
    return program.milp.solve(time_limit_s=program.aim.time_limit_s, gap=_GAP)


def _is_large(islands: Sequence[Island]) -> bool:
    """Whether one accelerator may be less than what the solver leaves open."""
    return sum(one.accelerators for one in islands) > 1 / _ROUGH_GAP


def _uses_many(program: Program, solved: Solved) -> bool:
    """Whether it is."""
    if not solved.has_solution:
        return False
    used = sum(float(solved.x[number]) * program.offers.shapes[m][s].accelerators for (m, s), number in program.counts.items())  # fmt: skip
    return used > 1 / _ROUGH_GAP


def _short(questions: Sequence[Question], islands: Sequence[Island], aim: Aim, offers: Offers) -> Short:  # fmt: skip
    program, solved, fraction = _stretched(questions, islands, aim, offers)
    without = {
        **{f"--max-share {vendor}={share:.0%}": replace(aim, most_shares={name: one for name, one in aim.most_shares.items() if name != vendor}) for vendor, share in aim.most_shares.items()},
        **({f"--spare {aim.spare}": replace(aim, spare=None)} if aim.spare else {}),
        **({f"--spare {aim.spare_fraction:.0%}": replace(aim, spare_fraction=0.0)} if aim.spare_fraction else {}),
    }  # fmt: skip
    against = [
        rule
        for rule, other in without.items()
        if _stretched(questions, islands, other, offers)[2] >= 1 - 1e-6
    ]
    served = tuple(_sum(program.served(m), solved) for m in range(len(program.questions)))
    return Short(
        fraction=fraction,
        served_per_s=served,
        without_shape=(),
        reasons={},
        idle=program.offers.idle(islands),
        against=tuple(against),
    )


def _stretched(questions: Sequence[Question], islands: Sequence[Island], aim: Aim, offers: Offers) -> tuple[Program, Solved, float]:  # fmt: skip
    """The largest share of every demand at once."""
    program, solved = until_emulated(build(questions, islands, aim, offers, stretch=True), _solve)
    assert program.scale is not None
    fraction = float(solved.x[program.scale]) if solved.has_solution else 0.0
    return program, solved, fraction


def _sum(terms: Mapping[int, float], solved: Solved) -> float:
    return sum(value * float(solved.x[number]) for number, value in terms.items()) if solved.has_solution else 0.0  # fmt: skip


def _chosen(found: _Found, islands: Sequence[Island]) -> Chosen:
    program, solved = found.program, found.solved
    offers, aim = program.offers, program.aim
    used = [
        Used(model=m, shape=offers.shapes[m][s], replicas=round(float(solved.x[number])))
        for (m, s), number in program.counts.items()
        if round(float(solved.x[number])) > 0
    ]
    used.sort(key=lambda one: (one.model, one.shape.role != "both", one.shape.role, -one.accelerators))  # fmt: skip
    largest = max(program.counts, key=lambda key: float(solved.x[program.counts[key]]) * offers.shapes[key[0]][key[1]].accelerators)  # fmt: skip
    flows = {key: float(solved.x[n]) for key, n in program.flows.items() if solved.x[n] > LEAST}
    return Chosen(
        used=tuple(used),
        served_per_s=tuple(_sum(program.served(m), solved) for m in range(len(program.questions))),
        flows_per_s=flows,
        flows_ttft_s={key: flow_ttft_s(program, solved, key) for key in flows},
        value=solved.value,
        gap=solved.gap,
        status=solved.status,
        runner_up=_without(found, program.counts[largest]),
        without=_words(offers.shapes[largest[0]][largest[1]]),
        one_more=_changed(found, islands, +1),
        one_less=_changed(found, islands, -1),
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
    return [way.note for first, second in pairs.values() for way in exchanges([first, second], aim)[0] if (way.first, way.second) == (first, second)]  # fmt: skip


def _words(shape: Shape) -> str:
    experts = (
        f", experts on {shape.split.expert_ranks} {shape.split.experts.chip}" if shape.split else ""
    )
    return (
        f"{shape.role} [{describe(shape.deployment.layout)}] on {shape.island.rank.chip}{experts}"
    )


def _without(found: _Found, number: int) -> float | None:
    """The value where a shape may not be used, of a large fleet by how much the relaxation loses; None where nothing is left."""
    program, solved = found.program, found.solved
    if program.rough:
        other = program.milp.copied()
        other.highs[number] = 0.0
        before, after = program.milp.relaxed(), other.relaxed()
        return solved.value + after.value - before.value if after.has_solution else None
    bare = of_its_own(found.bare)
    bare.milp.highs[number] = 0.0
    _, solved = until_emulated(bare, _solve)
    return solved.value if solved.has_solution else None


def _changed(found: _Found, islands: Sequence[Island], by: int) -> dict[str, float]:
    """The value with so many accelerators more on each island: solved anew, or of a large fleet by the duals of the relaxation."""
    program, value = found.program, found.solved.value
    rows = [program.card_rows[island.name] for island in islands]
    if program.rough:
        return {one.name: value + by * dual for one, dual in zip(islands, program.milp.duals(rows), strict=True)}  # fmt: skip
    values = {}
    for island, row in zip(islands, rows, strict=True):
        bare = of_its_own(found.bare)
        terms, low, high = bare.milp.rows[row]
        bare.milp.rows[row] = (terms, low, high + by)
        _, solved = until_emulated(bare, _solve)
        values[island.name] = solved.value if solved.has_solution else float("nan")
    return values
