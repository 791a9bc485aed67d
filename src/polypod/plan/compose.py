"""From a question to a plan: search every island, confirm the best by emulation, write down what was found and why."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from polypod import units
from polypod.catalog.schema import Published
from polypod.cost.bands import Band, Metric
from polypod.cost.calibration import CASES, Case
from polypod.cost.deployment import Deployment, native_precision
from polypod.engine.settings import NOTHING, PLAYED, EngineArgs, Move
from polypod.errors import InfeasibleError
from polypod.plan.confirm import Confirmed, confirm
from polypod.plan.contention import blocking_notes
from polypod.plan.energy import serving
from polypod.plan.launchable import state_of
from polypod.plan.money import Output, Running, Site, in_all, running, site
from polypod.plan.place import Island, islands
from polypod.plan.search import Candidate, Miss, Question, Search, mean_pairs, search
from polypod.plan.served import Asked, Workers, band_under, own_of, served
from polypod.plan.spec import (
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
from polypod.workload.layout import describe

CONFIRMED = 3
"""How many of the best candidates of an island are emulated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best deployment on one island, and what it was chosen over."""

    island: Island
    confirmed: Confirmed
    replicas: int
    runner_up: Confirmed | None
    search: Search
    whole_island: bool  # chosen for most out of the island, rather than out of an accelerator
    backend: str | None = None
    unsaid: tuple[Move, ...] = ()  # what engine settings nobody said would change

    def band(self, what: Metric) -> Band:
        """Measured over predicted, four times of five."""
        own = own_of(self.confirmed.candidate.deployment, self.backend)
        return band_under(own, self.island.rank.calibration.evidence, "agg", what)

    @property
    def lost_fraction(self) -> float:
        """By how much the runner-up lost, on what it was chosen for."""
        if self.runner_up is None:
            return 0.0
        best, other = (
            one.goodput_per_s
            if self.whole_island
            else one.goodput_per_s / one.candidate.accelerators
            for one in (self.confirmed, self.runner_up)
        )
        return 1 - other / best


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A plan with its reasons."""

    question: Question
    plan: Plan
    choices: tuple[Choice, ...]
    pruned: Counter[str]
    looked_at: int
    assumptions: tuple[str, ...]
    in_all: Running


def plan_model(
    question: Question,
    fleet: dict[str, Source],
    slo: Slo | None = None,
    prices: Site | None = None,
) -> Answer:
    """The best co-located deployment on every island of the fleet, as one plan.

    Without a rate, the layout that gets most out of each whole island; with one, the layout that gets most out of an
    accelerator, in the fewest replicas that carry the rate, island by island in the order of the fleet. Raises `InfeasibleError` naming the nearest deployment where nothing keeps the SLO.
    """
    places = islands(fleet, question.backend)
    searches = [
        search(question, island, native_precision(question.model, island.rank)) for island in places
    ]
    choices = []
    wanted = question.rate_per_s
    for island, found in zip(places, searches, strict=True):
        choice = _choose(question, island, found, wanted)
        if choice is None or (wanted is not None and wanted <= 0):
            continue
        choices.append(replace(choice, backend=question.backend, unsaid=_unsaid(question, choice)))
        if wanted is not None:
            wanted -= choice.replicas * choice.confirmed.outcome.rate_per_s
    if not choices:
        raise InfeasibleError(nearest(question, searches))
    if wanted is not None and wanted > 1e-9 and question.rate_per_s is not None:
        reached = question.rate_per_s - wanted
        msg = (
            f"{units.show(question.rate_per_s, 'per_s')} of {question.model.name} is more than this fleet carries inside the SLO; "
            f"the nearest is {units.show(reached, 'per_s')} - lower --rate or add accelerators"
        )
        raise InfeasibleError(msg)
    pruned: Counter[str] = sum((found.pruned for found in searches), Counter())
    total = cost_of(question, choices, prices or site())
    return Answer(
        question=question,
        plan=_plan(question, fleet, slo, choices, total),
        choices=tuple(choices),
        pruned=pruned,
        looked_at=sum(found.looked_at for found in searches),
        assumptions=tuple(
            dict.fromkeys(note for choice in choices for note in _assumptions(choice))
        ),
        in_all=total,
    )


def cost_of(question: Question, choices: Sequence[Choice], at: Site) -> Running:
    """Power, money and carbon of all the replicas at work."""
    parts = []
    for choice in choices:
        tokens_per_s = (
            choice.replicas * choice.confirmed.outcome.rate_per_s * question.output_tokens
        )
        accelerators = choice.replicas * choice.confirmed.candidate.deployment.accelerators
        output = Output(
            accelerators=accelerators,
            tokens_per_s=tokens_per_s / accelerators,
            band=choice.band("tpot"),
        )
        run = serving(question, choice.confirmed)
        parts.append((tokens_per_s, running(choice.island, run, output, at)))
    return in_all(parts)


def _choose(
    question: Question, island: Island, found: Search, wanted: float | None
) -> Choice | None:
    ranked = found.ranked(by_accelerator=wanted is not None)
    confirmed = [
        one for candidate in ranked[:CONFIRMED] if (one := confirm(question, candidate)) is not None
    ]
    if not confirmed:
        return None
    if wanted is None:
        confirmed.sort(key=lambda one: -one.goodput_per_s)
    else:
        confirmed.sort(key=lambda one: -one.tokens_per_s_per_accelerator(question.output_tokens))
    best = confirmed[0]
    replicas = best.candidate.replicas
    if wanted is not None:
        replicas = min(replicas, max(1, -int(-wanted // best.outcome.rate_per_s)))
    return Choice(
        island=island,
        confirmed=best,
        replicas=replicas,
        runner_up=confirmed[1] if len(confirmed) > 1 else None,
        search=found,
        whole_island=wanted is None,
    )


def _plan(
    question: Question,
    fleet: dict[str, Source],
    slo: Slo | None,
    choices: list[Choice],
    total: Running,
) -> Plan:
    rate = None if question.rate_per_s is None else f"{question.rate_per_s:g} /s"
    goodput = sum(choice.replicas * choice.confirmed.outcome.rate_per_s for choice in choices)
    usd = total.usd_per_million_tokens
    only = choices[0] if len(choices) == 1 else None
    service = Service(
        model=question.model.name,
        slo=slo,
        traffic=Traffic(input=question.input_tokens, output=question.output_tokens, rate=rate),
        pools=tuple(_pool(question, choice) for choice in choices),
    )
    return Plan(
        polypod=1,
        fleet=fleet,
        services=(service,),
        predicted=Predicted(
            goodput=f"{units.significant(goodput, 4)} /s".replace(",", ""),
            tokens_per_s=round(goodput * question.output_tokens, 1),
            ttft=_spread(only, "ttft") if only else None,
            tpot=_spread(only, "tpot") if only else None,
            watts=None if total.site_w is None else round(total.site_w.likely),
            usd_per_million_tokens=None if usd is None else float(f"{usd.likely:.4g}"),
        ),
    )


def _pool(question: Question, choice: Choice) -> Pool:
    candidate = choice.confirmed.candidate
    deployment = candidate.deployment
    per_package = choice.island.rank.ranks_per_accelerator
    memory = deployment.memory()
    held = memory.weight_bytes + memory.activation_bytes + cache_bytes(question, candidate)
    return Pool(
        role="both",
        on=choice.island.name,
        layout=deployment.layout,
        replicas=choice.replicas,
        precision=deployment.precision,
        state=state_of(choice.island.rank.chip, question.model, question.backend)[0],
        engine=question.backend,
        engine_args=played_args(question.engine_args),
        max_sequences=candidate.sequences,
        max_step_tokens=candidate.max_step_tokens,
        predicted=PoolPrediction(
            memory_per_accelerator=units.show(held * per_package, "bytes"),
            tokens_per_s_per_accelerator=round(
                choice.confirmed.tokens_per_s_per_accelerator(question.output_tokens), 1
            ),
            bound=bounds(question, candidate),
            ttft=_spread(choice, "ttft"),
            tpot=_spread(choice, "tpot"),
        ),
    )


def cache_bytes(question: Question, candidate: Candidate) -> float:
    """Cache that a full batch holds on one rank, half of its answers generated."""
    return candidate.deployment.memory().cache_bytes(
        sequences=candidate.sequences_per_rank,
        context_tokens=question.input_tokens + question.output_tokens / 2,
    )


def bounds(question: Question, candidate: Candidate) -> dict[Literal["prefill", "decode"], str]:
    """What each phase waits for, the three largest shares of its step."""
    deployment = candidate.deployment
    batch = float(candidate.sequences_per_rank)
    length = float(question.input_tokens)
    chunk = min(length, float(candidate.chunk_tokens))
    decode = deployment.ops(
        sequences=batch, kv_tokens=batch * (length + question.output_tokens / 2)
    )
    prefill = deployment.ops(prompt_tokens=chunk, pairs=mean_pairs(chunk, length))
    return {
        "prefill": deployment.cost(prefill).bound,
        "decode": deployment.cost(decode).bound,
    }


def played_args(args: EngineArgs) -> EngineArgs:
    """What a plan file keeps of the settings: the token budget is its own field, the rest is of the load."""
    kept = EngineArgs(**{name: getattr(args, name) for name in PLAYED})
    return NOTHING if kept == NOTHING else kept


def _spread(choice: Choice, what: Metric) -> Spread:
    p50, p99 = choice.confirmed.outcome.percentiles_s(what, (50, 99))
    band = choice.band(what)
    return Spread(
        p50=units.show(p50, "s"),
        p99=units.show(p99, "s"),
        band=(units.show(p50 * band.low, "s"), units.show(p50 * band.high, "s")),
    )


def _unsaid(question: Question, choice: Choice) -> tuple[Move, ...]:
    """Settings of the engine that would move one full and warm replica's answer, and that nobody said."""
    candidate = choice.confirmed.candidate
    asked = full_and_warm(question, candidate.sequences, candidate.max_step_tokens)
    return served(asked, Workers(deployment=candidate.deployment)).moves


def full_and_warm(question: Question, concurrency: float, step_tokens: int) -> Asked:
    """So many requests on an engine that has been at work for long, with what was said of it."""
    return Asked(
        input_tokens=question.input_tokens,
        output_tokens=question.output_tokens,
        concurrency=concurrency,
        backend=question.backend,
        engine_args=question.engine_args.over(
            EngineArgs(
                max_num_batched_tokens=step_tokens,
                requests_per_client=1000,
                length_spread=1 / 9,
                cold_start_s=0,
            )
        ),
    )


def _assumptions(choice: Choice) -> list[str]:
    rank = choice.island.rank
    notes = [
        f"{rank.chip}: efficiencies are {rank.calibration.evidence} ({rank.calibration.id})",
        *rank.assumptions,
    ]
    state, why = state_of(rank.chip, choice.confirmed.candidate.deployment.model, choice.backend)
    if state == "modelled":
        notes.append(f"modelled only: {why}")
    notes += blocking_notes([(rank, choice.confirmed.candidate.deployment.layout.world)])
    scale = choice.confirmed.candidate.deployment.scale
    if scale != 1:
        notes.append(f"steps take {scale:.3g} times as long as predicted: a calibration of your own")  # fmt: skip
    idle = choice.island.accelerators - choice.confirmed.candidate.accelerators
    if idle > 0:
        notes.append(
            f"{idle:g} of {choice.island.accelerators} accelerators stay idle: no whole replica is left for them"
        )
    return notes


def nearest(question: Question, searches: list[Search]) -> str:
    """Why nothing keeps the SLO: the nearest layout and what was left out, or what no layout has."""
    misses: list[Miss] = [miss for found in searches for miss in found.misses]
    pruned = ", ".join(
        f"{count} {why}" for found in searches for why, count in found.pruned.most_common()
    )
    if not misses:
        return (
            f"{question.model.name} does not run on this fleet: of the layouts looked at, {pruned}"
        )
    best = min(misses, key=lambda miss: miss.factor)
    return (
        f"nothing on this fleet keeps the SLO for {question.model.name}; nearest is {describe(best.layout)} with "
        f"TTFT {units.show(best.ttft_s, 's')} and TPOT {units.show(best.tpot_s, 's')}, "
        f"over by a factor of {units.significant(best.factor)} ({pruned})"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BesidePublished:
    """A published result and what the model predicts under its conditions."""

    published: Published
    predicted: float
    fast: float
    slow: float


def beside_published(deployment: Deployment, published: Published) -> BesidePublished:
    """Predict one phase under a published result's own conditions: its layout, batch, lengths and drafted tokens.

    Decode: a step verifies as many drafted tokens per sequence as `tokens_per_step` rounds up to, less one, and gives `tokens_per_step` on average. Prefill: a
    step computes `tokens_per_rank` tokens of prompts `context_tokens` long.
    """
    per_package = deployment.rank.ranks_per_accelerator
    value: dict[Case, float] = {}
    for case in CASES:
        if published.phase == "decode":
            batch = float(published.sequences_per_rank or 1)
            step_s = deployment.step_s(
                sequences=batch,
                kv_tokens=batch * published.context_tokens,
                drafts=math.ceil(published.tokens_per_step) - 1.0,
                case=case,
            )
            tokens = batch * published.tokens_per_step
        else:
            tokens = float(published.tokens_per_rank or published.context_tokens)
            step_s = deployment.step_s(
                prompt_tokens=tokens,
                pairs=mean_pairs(tokens, float(published.context_tokens)),
                case=case,
            )
        value[case] = float(tokens / step_s) * per_package
    return BesidePublished(
        published=published, predicted=value["likely"], fast=value["fast"], slow=value["slow"]
    )
