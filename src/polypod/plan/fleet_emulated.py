"""A fleet's program under what emulation gives: solved, what it chose emulated, its rates set to that, and solved again until all that is chosen is emulated.

Co-located replicas and prefill workers are emulated by themselves (`plan.confirm`, `plan.confirm_apart`), once. A decode worker is emulated behind the prefill
workers that feed it, once for every set of them that a solution gives it; it keeps the lowest rate of these. Where no rate keeps the limits a shape's is 0. In the end
shapes that were not chosen are emulated too where their role is on their island, and the program is solved once more where one of them does more than its closed form.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from polypod.errors import InputError
from polypod.plan.confirm import Floats, Outcome, confirm
from polypod.plan.confirm_apart import Feeder, confirm_decode, confirm_prefill, prompts_of
from polypod.plan.fleet_program import Program, sends
from polypod.plan.milp import Solved
from polypod.plan.shapes import Shape
from polypod.plan.workers_apart import boundary_s, transfer_s

LEAST: Final = 1e-6
"""Of a replica: less of it is not there."""


def until_emulated(bare: Program, solve: Callable[[Program], Solved]) -> tuple[Program, Solved]:
    """The program at the rates of emulation, and what came of it."""
    while True:
        program = bare.at_rates()
        solved = solve(program)
        if not solved.has_solution or not (_alone(program, solved) or _fed(program, solved)):
            return program, solved


def all_emulated(bare: Program, solve: Callable[[Program], Solved]) -> tuple[Program, Solved]:
    """The same, with what is not chosen of roles on islands that are emulated too: the closed form may promise less of it than it does."""
    while True:
        program, solved = until_emulated(bare, solve)
        if not solved.has_solution or not _beside(program, solved):
            return program, solved


def of_its_own(program: Program) -> Program:
    """A program whose rates and bounds may be changed without those of the other."""
    shapes = {m: [*several] for m, several in program.offers.shapes.items()}
    return replace(program, milp=program.milp.copied(), offers=replace(program.offers, shapes=shapes))  # fmt: skip


def _beside(program: Program, solved: Solved) -> bool:
    """Emulate what is not chosen of roles on islands that are; whether any rate changed."""
    changed = False
    shapes = program.offers.shapes
    used = {(m, shapes[m][s].role, shapes[m][s].island.name) for (m, s), number in program.counts.items() if float(solved.x[number]) >= LEAST}  # fmt: skip
    for m, s in program.counts:
        shape = shapes[m][s]
        if shape.confirmed or shape.unplayed or (m, shape.role, shape.island.name) not in used:
            continue
        if shape.role != "decode":
            shapes[m][s] = _seen(shape, _outcome(program, m, shape))
        elif weights := fed_by(program, solved, m, shape.island.name):
            shapes[m][s] = _behind(program, (m, s), weights)
        changed |= shapes[m][s].rate_per_s != shape.rate_per_s
    return changed


def _alone(program: Program, solved: Solved) -> bool:
    """Emulate every chosen co-located shape and prefill worker that was not yet; whether any rate changed."""
    changed, offers = False, program.offers
    for (m, s), number in program.counts.items():
        shape = offers.shapes[m][s]
        least = LEAST if shape.role == "prefill" else 0.5
        if float(solved.x[number]) < least or shape.confirmed or shape.role == "decode":
            continue
        offers.shapes[m][s] = _seen(shape, _outcome(program, m, shape))
        changed |= offers.shapes[m][s].rate_per_s != shape.rate_per_s
    return changed


def _outcome(program: Program, m: int, shape: Shape) -> Outcome | None:
    question = program.questions[m]
    if shape.role == "prefill":
        return confirm_prefill(question, shape)
    assert shape.candidate is not None, "what is co-located was found by the search"
    found = confirm(question, shape.candidate)
    return None if found is None else found.outcome


def _seen(shape: Shape, outcome: Outcome | None) -> Shape:
    if outcome is None:
        return replace(shape, rate_per_s=0.0, confirmed=True)
    (ttft_s,), (tpot_s,) = (outcome.percentiles_s(what, (50,)) for what in ("ttft", "tpot"))
    return replace(shape, rate_per_s=outcome.rate_per_s, ttft_s=ttft_s, tpot_s=tpot_s, seen=outcome, confirmed=True)  # fmt: skip


def _fed(program: Program, solved: Solved) -> bool:
    """Emulate every chosen decode worker that was not yet behind those that feed it; whether any rate changed."""
    changed, offers = False, program.offers
    for (m, s), number in program.counts.items():
        shape = offers.shapes[m][s]
        if shape.role != "decode" or float(solved.x[number]) < 0.5 or shape.unplayed:
            continue
        weights = fed_by(program, solved, m, shape.island.name)
        if not weights or frozenset(weights) in shape.fed:
            continue
        offers.shapes[m][s] = _behind(program, (m, s), weights)
        changed |= offers.shapes[m][s].rate_per_s != shape.rate_per_s
    return changed


def _behind(program: Program, of: tuple[int, int], weights: Mapping[int, tuple[float, float]]) -> Shape:  # fmt: skip
    """The decode worker's shape, emulated behind these prefill workers too."""
    offers, (m, s) = program.offers, of
    question, shape, senders = program.questions[m], offers.shapes[m][s], frozenset(weights)
    key = (m, s, senders)
    if key not in offers.fed:
        feeders = tuple(
            Feeder(
                prompts=prompts_of(question, sender, transfer_s(question, sender, weights[one][1])),
                rate_per_s=sender.rate_per_s,
                weight=weights[one][0],
            )
            for one, sender in ((one, offers.shapes[m][one]) for one in sorted(senders))
        )
        try:
            offers.fed[key] = confirm_decode(question, shape, feeders)
        except InputError as error:  # experts apart whose steps are no sum
            return replace(shape, unplayed=str(error))
    fed = offers.fed[key]
    known = shape.fed | {senders}
    rate = min(fed.outcome.rate_per_s if fed else 0.0, shape.rate_per_s if shape.fed else np.inf)
    if fed is None:
        return replace(shape, rate_per_s=rate, fed=known, confirmed=True)
    (tpot_s,) = fed.outcome.percentiles_s("tpot", (50,))
    return replace(shape, rate_per_s=rate, tpot_s=tpot_s, seen=fed.outcome, fed=known, confirmed=True)  # fmt: skip


def fed_by(program: Program, solved: Solved, m: int, island: str) -> dict[int, tuple[float, float]]:
    """The prefill shapes of a model that feed its decode workers on an island: their part of all caches, and the width of the way."""
    found: dict[int, tuple[float, float]] = {}
    for (of, start, end), number in program.flows.items():
        flow = float(solved.x[number])
        if (of, end) != (m, island) or flow < LEAST:
            continue
        width = program.width(start, end)
        able = {
            s: float(solved.x[program.counts[m, s]]) * shape.rate_per_s
            for s, shape in enumerate(program.offers.shapes[m])
            if sends(shape, start, width) and float(solved.x[program.counts[m, s]]) >= LEAST
        }
        found |= {s: (flow * rate / sum(able.values()), width) for s, rate in able.items() if rate > 0}  # fmt: skip
    total = sum(weight for weight, _ in found.values())
    return {s: (weight / total, width) for s, (weight, width) in found.items()}


def flow_ttft_s(program: Program, solved: Solved, flow: tuple[int, str, str]) -> Floats:
    """TTFT of a flow's requests as its decode workers saw them; where those are not played, of the prompts computed, the cache's way and a step on top."""
    m, start, end = flow
    question, shapes = program.questions[m], program.offers.shapes[m]
    weights = fed_by(program, solved, m, end)
    senders = [s for s in weights if shapes[s].island.name == start]
    found = []
    for s, shape in enumerate(shapes):
        if (shape.role, shape.island.name) != ("decode", end) or float(solved.x[program.counts[m, s]]) < 0.5:  # fmt: skip
            continue
        fed = program.offers.fed.get((m, s, frozenset(weights)))
        if fed is not None:
            found += [fed.ttft_s(sorted(weights).index(sender)) for sender in senders]
    if not found:
        found = [
            outcome.ttft_s + transfer_s(question, shapes[s], weights[s][1]) + boundary_s(question)
            for s in senders
            if (outcome := shapes[s].seen) is not None
        ]
    return np.concatenate(found)
