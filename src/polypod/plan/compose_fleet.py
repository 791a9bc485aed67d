"""From what the program chose to a plan file: pools with what they are expected to do, and by how much assumptions would move it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec
import numpy as np

from polypod import units
from polypod.catalog.schema import Tier
from polypod.cost.bands import Metric
from polypod.cost.chip import Rank
from polypod.cost.deployment import Deployment
from polypod.engine.settings import Move
from polypod.plan.afd import Split
from polypod.plan.compose import full_and_warm, played_args
from polypod.plan.confirm import Floats
from polypod.plan.contention import blocking_notes
from polypod.plan.fleet import Chosen, Used
from polypod.plan.fleet_cost import fleet_running
from polypod.plan.fleet_offers import Objective, Pair
from polypod.plan.launchable import state_of
from polypod.plan.money import Running, Site
from polypod.plan.place import Island
from polypod.plan.search import Question, steady
from polypod.plan.served import Workers, served, served_apart
from polypod.plan.shapes import Shape, shape_band
from polypod.plan.spec import (  # fmt: skip
    Plan,
    Pool,
    PoolPrediction,
    Predicted,
    Service,
    Slo,
    Source,
    Spread,
    Traffic,
)
from polypod.plan.workers_apart import step_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """By how much a model's served rate would change at the same replicas and batches, were one figure of its chips a fifth lower."""

    what: str
    change_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAnswer:
    """A plan over a fleet, with its reasons."""

    questions: tuple[Question, ...]
    islands: tuple[Island, ...]
    chosen: Chosen
    plan: Plan
    sensitivities: tuple[tuple[Sensitivity, ...], ...]  # by model
    unsaid: tuple[tuple[Move, ...], ...]  # by model: engine settings nobody said
    assumptions: tuple[str, ...]
    objective: Objective = "throughput"
    running: tuple[Running, ...] = ()  # by model
    in_all: Running


def fleet_answer(  # noqa: PLR0913  # what was asked, what was chosen, and what it is told with
    questions: Sequence[Question],
    islands: Sequence[Island],
    chosen: Chosen,
    fleet: dict[str, Source],
    slos: Sequence[Slo],
    objective: Objective,
    at: Site,
) -> FleetAnswer:
    """Put it together."""
    running, in_all = fleet_running(questions, chosen, at)
    services = tuple(
        _service(m, question, chosen, slo)
        for m, (question, slo) in enumerate(zip(questions, slos, strict=True))
    )
    tokens = sum(rate * q.output_tokens for rate, q in zip(chosen.served_per_s, questions, strict=True))  # fmt: skip
    plan = Plan(
        polypod=1,
        fleet=fleet,
        services=services,
        predicted=Predicted(
            goodput=f"{sum(chosen.served_per_s):.4g} /s",
            tokens_per_s=round(tokens, 1),
            watts=None if in_all.site_w is None else round(in_all.site_w.likely, 1),
            usd_per_million_tokens=None
            if in_all.usd_per_million_tokens is None
            else round(in_all.usd_per_million_tokens.likely, 4),
        ),
    )
    return FleetAnswer(
        questions=tuple(questions),
        islands=tuple(islands),
        chosen=chosen,
        plan=plan,
        sensitivities=tuple(_sensitivities(m, q, chosen) for m, q in enumerate(questions)),
        unsaid=tuple(_unsaid(m, q, chosen) for m, q in enumerate(questions)),
        assumptions=tuple(dict.fromkeys(_assumptions(questions, islands, chosen))),
        objective=objective,
        running=running,
        in_all=in_all,
    )


def _service(m: int, question: Question, chosen: Chosen, slo: Slo) -> Service:
    pools = [
        _pool(f"{m}-{number}", question, one, _ttft_s(one, chosen))
        for number, one in enumerate(one for one in chosen.used if one.model == m)
    ]
    ways = {(start, end) for of, start, end in chosen.flows_per_s if of == m}
    pools = [_joined(pool, pools, ways, chosen.pairs) for pool in pools]
    rate = None if question.rate_per_s is None else f"{question.rate_per_s:g} /s"
    return Service(
        model=question.model.name,
        slo=slo,
        traffic=Traffic(input=question.input_tokens, output=question.output_tokens, rate=rate),
        pools=tuple(pools),
    )


def _pool(name: str, question: Question, used: Used, ttft_s: Floats) -> Pool:
    shape, split = used.shape, used.shape.split
    per_package = shape.island.rank.ranks_per_accelerator
    memory = shape.deployment.memory() if split is None else split.attention_memory()
    context = question.input_tokens + question.output_tokens / 2
    cache = memory.cache_bytes(sequences=shape.sequences_per_rank, context_tokens=context)
    held = memory.weight_bytes + memory.activation_bytes + cache
    tokens = used.shape.rate_per_s * question.output_tokens / shape.accelerators
    return Pool(
        role=shape.role,
        on=shape.island.name,
        name=f"{shape.role}-{name}",
        layout=shape.deployment.layout,
        replicas=used.replicas,
        precision=shape.deployment.precision,
        state="modelled"
        if shape.split
        else state_of(shape.island.rank.chip, question.model, question.backend)[0],
        engine=question.backend,
        engine_args=played_args(question.engine_args),
        max_sequences=max(shape.sequences, 1),
        max_step_tokens=shape.max_step_tokens,
        experts_on=shape.also[0][0].name if split else None,
        expert_ranks=split.expert_ranks if split else None,
        micro_batches=split.micro_batches if split else None,
        link=units.show(shape.link_bytes_per_s, "bytes_per_s", 4) if split else None,
        predicted=PoolPrediction(
            memory_per_accelerator=units.show(held * per_package, "bytes"),
            tokens_per_s_per_accelerator=round(tokens, 1),
            bound=bound(question, shape),
            ttft=_spread(question, shape, "ttft", ttft_s),
            tpot=_spread(question, shape, "tpot", _tpot_s(shape)),
        ),
    )


def _joined(
    pool: Pool, pools: Sequence[Pool], ways: Collection[tuple[str, str]], pairs: Sequence[Pair]
) -> Pool:
    """The pool with the link its caches go by, the narrowest of its ways, and whom it hands them to."""
    end = {"prefill": 0, "decode": 1}.get(pool.role)
    widths = [one.bytes_per_s for one in pairs if end is not None and (one.prefill, one.decode) in ways and (one.prefill, one.decode)[end] == pool.on]  # fmt: skip
    if not widths:
        return pool
    takers = tuple(one.name for one in pools if one.role == "decode" and one.name and (pool.on, one.on) in ways)  # fmt: skip
    return msgspec.structs.replace(
        pool,
        kv_link=units.show(min(widths), "bytes_per_s", 4),
        hands_to=takers if pool.role == "prefill" else (),
    )


def _ttft_s(used: Used, chosen: Chosen) -> Floats:
    """Of requests emulated: those of workers together, or that a prefill worker began; a decode worker has none of its own."""
    shape = used.shape
    if shape.role == "both":
        return np.array([]) if shape.seen is None else shape.seen.ttft_s
    mine = [found for (m, start, _), found in chosen.flows_ttft_s.items() if shape.role == "prefill" and (m, start) == (used.model, shape.island.name)]  # fmt: skip
    return np.concatenate(mine) if mine else np.array([])


def _tpot_s(shape: Shape) -> Floats:
    """Of requests emulated; of what no emulation plays the closed form's."""
    if shape.role == "prefill":
        return np.array([])
    return np.array([shape.tpot_s]) if shape.seen is None else shape.seen.tpot_s


def _spread(question: Question, shape: Shape, what: Metric, seconds: Floats) -> Spread | None:
    if not seconds.size:
        return None
    band = shape_band(question, shape, what)
    p50, p99 = (float(one) for one in np.percentile(seconds, (50, 99)))
    ends = (units.show(p50 * band.low, "s"), units.show(p50 * band.high, "s"))
    return Spread(p50=units.show(p50, "s"), p99=units.show(p99, "s") if seconds.size > 1 else None, band=ends)  # fmt: skip


def bound(question: Question, shape: Shape) -> dict[Literal["prefill", "decode"], str]:
    """What each phase that the shape has waits for."""
    if shape.split is not None:
        return {"decode": shape.split.bound(question.input_tokens + question.output_tokens / 2)}
    deployment = shape.deployment
    found: dict[Literal["prefill", "decode"], str] = {}
    if shape.role != "decode":
        chunk = min(question.fresh_tokens, float(shape.max_step_tokens))
        ops = deployment.ops(prompt_tokens=chunk, pairs=question.pairs(chunk))
        found["prefill"] = deployment.cost(ops).bound
    if shape.role != "prefill":
        ops = deployment.ops(**step_of(question, replace(shape, role="decode")))
        found["decode"] = deployment.cost(ops).bound
    return found


_FIFTH: Final = 0.8
_FIGURES: Final = ("memory bandwidth", "matrix peak", "link bandwidth")
_ACCEPTANCE: Final = "acceptance of drafts"


def _sensitivities(m: int, question: Question, chosen: Chosen) -> tuple[Sensitivity, ...]:
    """Largest first; of all the model's pools together, weighed by what they serve."""
    mine = [one for one in chosen.used if one.model == m]
    found = []
    for what in (*_FIGURES, *([_ACCEPTANCE] if question.engine_args.acceptance else [])):
        rates = [(one.replicas * one.shape.rate_per_s, _slowed(question, one.shape, what)) for one in mine]  # fmt: skip
        total = sum(rate for rate, _ in rates)
        if total:
            change = sum(rate * ratio for rate, ratio in rates) / total - 1
            found.append(Sensitivity(what=what, change_fraction=change))
    return tuple(sorted(found, key=lambda one: one.change_fraction))


def _unsaid(m: int, question: Question, chosen: Chosen) -> tuple[Move, ...]:
    """Settings of the engine that nobody said and that would move the model's largest pools, full and warm; of experts apart nothing is known."""
    largest = {role: _largest(m, role, chosen) for role in ("both", "prefill", "decode")}
    together, prefill, decode = largest["both"], largest["prefill"], largest["decode"]
    if together is not None:
        asked = full_and_warm(question, together.sequences, together.max_step_tokens)
        return served(asked, Workers(deployment=together.deployment)).moves
    if prefill is None or decode is None or decode.split is not None:
        return ()
    asked = full_and_warm(question, decode.sequences, prefill.max_step_tokens)
    roles = (Workers(deployment=one.deployment) for one in (prefill, decode))
    return served_apart(asked, *roles).moves


def _largest(m: int, role: str, chosen: Chosen) -> Shape | None:
    mine = [one for one in chosen.used if (one.model, one.shape.role) == (m, role)]
    return max(mine, key=lambda one: one.accelerators).shape if mine else None


def _slowed(question: Question, shape: Shape, what: str) -> float:
    """The shape's rate over what it is, at the same batch, with one figure a fifth lower."""
    if what == _ACCEPTANCE:
        return _less_accepted(question, shape)
    slower = replace(shape.deployment, rank=_with_less(shape.deployment.rank, what))
    if shape.split is not None:
        context = question.input_tokens + question.output_tokens / 2
        return shape.split.step_s(context) / _slowed_split(shape.split, slower, what).step_s(context)  # fmt: skip
    before, after = (_pace(question, shape, one) for one in (shape.deployment, slower))
    return after / before


def _less_accepted(question: Question, shape: Shape) -> float:
    """With drafts that are kept a fifth less often."""
    args = question.engine_args
    assert args.acceptance is not None
    fewer = msgspec.structs.replace(args, acceptance=_FIFTH * args.acceptance)
    before, after = (_pace(replace(question, engine_args=one), shape, shape.deployment) for one in (args, fewer))  # fmt: skip
    return after / before


def _slowed_split(split: Split, slower: Deployment, what: str) -> Split:
    """With one figure a fifth lower on both sides and between them."""
    link = split.link
    if what == "link bandwidth":
        link = replace(link, bytes_per_s=_FIFTH * link.bytes_per_s)
    return replace(split, attention=slower, experts=_with_less(split.experts, what), link=link)


def _with_less(rank: Rank, what: str) -> Rank:
    if what == "memory bandwidth":
        return replace(rank, hbm_bytes_per_s=_FIFTH * rank.hbm_bytes_per_s)
    if what == "matrix peak":
        peaks = {name: _FIFTH * peak for name, peak in rank.peak_flops_per_s.items()}
        return replace(rank, peak_flops_per_s=peaks)
    return replace(rank, tiers=tuple(_narrower(tier) for tier in rank.tiers))


def _narrower(tier: Tier) -> Tier:
    if tier.bytes_per_s is None:
        return tier
    fact = msgspec.structs.replace(tier.bytes_per_s, value=_FIFTH * tier.bytes_per_s.value)
    return msgspec.structs.replace(tier, bytes_per_s=fact)


def _pace(question: Question, shape: Shape, deployment: Deployment) -> float:
    """How fast the shape's work goes, in units of its own."""
    batch = np.array([float(shape.sequences_per_rank)])
    if shape.role != "both":
        given = 1.0 if shape.role == "prefill" else float(question.given(float(shape.sequences)))
        return given / float(deployment.step_s(**step_of(question, shape)))
    chunk = np.array([float(shape.max_step_tokens - shape.sequences_per_rank)])
    return float(steady(question, deployment, batch, chunk).tokens_per_s[0])


def _assumptions(questions: Sequence[Question], islands: Sequence[Island], chosen: Chosen) -> list[str]:  # fmt: skip
    used = {island.name for one in chosen.used for island in one.shape.islands}
    notes = list(chosen.notes)
    for island in islands:
        if island.name in used:
            fits = island.rank.calibration
            notes.append(f"{island.rank.chip}: efficiencies are {fits.evidence} ({fits.id})")
            notes += island.rank.assumptions
    notes += blocking_notes(_groups(chosen))
    notes += _modelled(chosen, questions)
    notes += _own_factors(chosen)
    ways = {(start, end) for _, start, end in chosen.flows_per_s}
    notes += [_UNPROVEN_APART] if any(one.shape.split for one in chosen.used) else []
    notes += [f"{one.shape.role} of {questions[one.model].model.name} is in closed form, not emulated: {one.shape.unplayed}" for one in chosen.used if one.shape.unplayed]  # fmt: skip
    notes += [_way(pair) for pair in chosen.pairs if (pair.prefill, pair.decode) in ways]
    return notes


def _modelled(chosen: Chosen, questions: Sequence[Question]) -> list[str]:
    """Why what is only modelled cannot be launched today."""
    found = []
    for one in chosen.used:
        question = questions[one.model]
        state, why = state_of(one.shape.island.rank.chip, question.model, question.backend)
        if state == "modelled":
            found.append(f"{question.model.name} is modelled only: {why}")
    return found


def _groups(chosen: Chosen) -> list[tuple[Rank, int]]:
    """Ranks of each shape's islands, and how many of them talk to one another; caches and experts apart take all tiers there are."""
    crossing = {name for _, start, end in chosen.flows_per_s for name in (start, end) if start != end}  # fmt: skip
    found = []
    for one in chosen.used:
        for island in one.shape.islands:
            wide = one.shape.split is not None or island.name in crossing
            found.append((island.rank, island.ranks if wide else one.shape.ranks_on(island)))
    return found


def _own_factors(chosen: Chosen) -> list[str]:
    """What a person's own calibrations made of the steps."""
    found = {(one.shape.island.rank.chip, one.shape.deployment.model.name): one.shape.deployment.scale for one in chosen.used}  # fmt: skip
    return [
        f"steps of {model} on {chip} take {scale:.3g} times as long as predicted: a calibration of your own"
        for (chip, model), scale in found.items()
        if scale != 1
    ]


_UNPROVEN_APART: Final = (
    "attention and experts apart: no engine in the catalog is on record with it; vLLM has an experimental plug-in for GPUs and Ascend "
    "(https://github.com/vllm-project/afd-plugin), SGLang's was closed unmerged (https://github.com/sgl-project/sglang/pull/10900); MegaScale-Infer and "
    "Step-3 report their own"
)


def _way(pair: Pair) -> str:
    via = f" by {pair.answer.via}" if pair.answer.via else ""
    return f"a cache goes from {pair.prefill} to {pair.decode}{via}: {pair.answer.state}, {pair.answer.reason}; {units.show(pair.bytes_per_s, 'bytes_per_s')} a rank"
