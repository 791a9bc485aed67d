"""What replicas of a plan's pools draw: idle, in steps that carry prompts, in decode steps alone; by the cost model and `plan.energy`.

The figures are those of a typical step: as many sequences as carry the rate of the service's traffic in the plan, or a full batch where it says none. Every
accelerator's part of its host and network is in them, idle and busy alike. Accelerators that hold no replica are not counted, as in
a plan. A replica that is down draws as one that idles.

Experts apart: both sides draw what `plan.energy` says of them. Unequal stages: a stage draws its own step's power while it computes, and between
micro-batches as in an exchange.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from polypod.cost.calibration import of
from polypod.cost.deployment import Deployment
from polypod.errors import InputError
from polypod.plan.energy import (
    ENDS,
    Estimate,
    Nameplate,
    Serving,
    nameplate,
    phases,
    prefill_fraction,
    serving_at,
    shares,
    split_fraction,
    step_energy,
)
from polypod.plan.fitted import Line, Steps
from polypod.plan.place import Island, island, joined_by_network
from polypod.plan.predict import backend_of, service_model
from polypod.plan.search import Question
from polypod.plan.spec import Plan, Pool, Service, Traffic
from polypod.plan.uneven import line_of
from polypod.plan.workers import Part, part_ops
from polypod.simulate.series import Draw

End = Literal["low", "likely", "high"]

_HALVINGS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDraw:
    """One replica of a pool: watts idle, in steps with prompts and in decode steps, each with its ends; and where they are drawn."""

    idle_w: Estimate
    prompt_w: Estimate
    decode_w: Estimate
    places: Mapping[str, float]  # share of them on each part of the fleet
    evidence: str  # of the design power

    def at(self, end: End = "likely") -> Draw:
        return Draw(
            idle_w=getattr(self.idle_w, end),
            prompt_w=getattr(self.prompt_w, end),
            decode_w=getattr(self.decode_w, end),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Of a plan: its pools that have a power, islands by part of the fleet, and what was taken or is missing."""

    pools: Mapping[str, PoolDraw] = field(default_factory=dict)
    islands: Mapping[str, Island] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)  # pools without, and why

    def draws(self, end: End = "likely") -> dict[str, Draw]:
        return {pool: its.at(end) for pool, its in self.pools.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Side:
    """Like accelerators of one replica, and the fractions of their design power."""

    name: str  # of the part of the fleet
    place: Island
    accelerators: float
    prompt: Estimate
    decode: Estimate


def draws_of(plan: Plan, end: End = "likely", otherwise: Traffic | None = None) -> dict[str, Draw]:
    """Watts of one replica, by pool; pools whose power is not known are left out, and `drawn_by` says why."""
    return drawn_by(plan, otherwise).draws(end)


def drawn_by(plan: Plan, otherwise: Traffic | None = None) -> Drawn:
    """The same with its ends, and what is known of the rest. `otherwise` is the traffic of services whose plan says none.

    Raises `InputError` as `pool_replicas` does for what cannot be played.
    """
    pools: dict[str, PoolDraw] = {}
    places: dict[str, Island] = {}
    notes: list[str] = []
    missing: dict[str, str] = {}
    for s, service in enumerate(plan.services):
        for p, pool in enumerate(service.pools):
            name = pool.name or f"pool{s}.{p}"
            found = _sides(plan, service, pool, service.traffic or otherwise)
            if isinstance(found, str):
                missing[name] = found
                continue
            plates = [(side, nameplate(side.place)) for side in found]
            unknown = [plate for _, plate in plates if isinstance(plate, str)]
            if unknown:
                missing[name] = unknown[0]
                continue
            known = [(side, plate) for side, plate in plates if isinstance(plate, Nameplate)]
            pools[name] = _summed(known)
            places |= {side.name: side.place for side, _ in known}
            notes += [plate.note for _, plate in known if plate.note]
    return Drawn(pools=pools, islands=places, notes=tuple(dict.fromkeys(notes)), missing=missing)


def _summed(sides: Sequence[tuple[_Side, Nameplate]]) -> PoolDraw:
    def whole(fractions: Sequence[Estimate]) -> Estimate:
        each = [_watts(side, plate, fraction) for (side, plate), fraction in zip(sides, fractions, strict=True)]  # fmt: skip
        return sum(each[1:], each[0])

    prompt_w = whole([side.prompt for side, _ in sides])
    places: dict[str, float] = {}
    for side, plate in sides:
        share = _watts(side, plate, side.prompt).likely / prompt_w.likely
        places[side.name] = places.get(side.name, 0.0) + share
    return PoolDraw(
        idle_w=whole([shares().idle] * len(sides)),
        prompt_w=prompt_w,
        decode_w=whole([side.decode for side, _ in sides]),
        places=places,
        evidence=", ".join(dict.fromkeys(plate.evidence for _, plate in sides)),
    )


def _watts(side: _Side, plate: Nameplate, fraction: Estimate) -> Estimate:
    return (fraction * plate.accelerator_w + plate.host_w) * side.accelerators


def _sides(plan: Plan, service: Service, pool: Pool, traffic: Traffic | None) -> list[_Side] | str:
    """The accelerators of one replica; else in words what is not known."""
    if plan.fleet[pool.on].host is not None:
        return f"no power of the host {pool.on!r} on record"
    if traffic is None:
        return f"the plan says no traffic of {service.model}, whose steps it would be of; add traffic: with input and output"
    if pool.experts_on is not None:
        return _apart(plan, pool)
    question = _question(service, traffic, pool)
    rate = traffic.rate_per_s
    alike = [one for one in service.pools if (one.role == "prefill") == (pool.role == "prefill")]
    tokens_per_s = None if rate is None else rate * traffic.output / sum(one.replicas for one in alike)  # fmt: skip
    if pool.stages:
        return _staged(plan, question, pool)
    where = island(pool.on, plan.fleet[pool.on], backend_of(pool))
    deployment = Deployment(model=question.model, layout=pool.layout, precision=pool.precision, rank=where.rank)  # fmt: skip
    prompt, decode = fractions_of(question, deployment, pool, tokens_per_s)
    side = _Side(name=pool.on, place=where, accelerators=deployment.accelerators, prompt=prompt, decode=decode)  # fmt: skip
    return [side]


def _question(service: Service, traffic: Traffic, pool: Pool) -> Question:
    return Question(
        model=service_model(service),
        input_tokens=traffic.input,
        output_tokens=traffic.output,
        backend=backend_of(pool),
        engine_args=pool.engine_args,
    )


def fractions_of(
    question: Question, deployment: Deployment, pool: Pool, tokens_per_s: float | None
) -> tuple[Estimate, Estimate]:
    """Of the design power: in steps with prompts, and in decode steps alone, of a replica that gives so many tokens/s (None: all it can)."""
    if pool.role == "prefill":
        fraction = prefill_fraction(question, deployment, float(pool.max_step_tokens))
        return fraction, fraction
    run = typical(question, deployment, pool, tokens_per_s)
    ends = [phases(run, end) for end in ENDS]
    prompt = Estimate(*(one.prompt_joules_per_w / one.prompt_s for one in ends))
    return prompt, Estimate(*(one.decode_joules_per_w / one.decode_s for one in ends))


def typical(
    question: Question, deployment: Deployment, pool: Pool, tokens_per_s: float | None
) -> Serving:
    """The replica's mean step at a rate: the fewest sequences that give it, and no more than its batch holds."""
    most = max(pool.max_sequences / deployment.layout.dp, 1.0)
    low, high = min(1.0 / deployment.layout.dp, most), most
    run = _with(question, deployment, pool, high)
    if tokens_per_s is None or _tokens_per_s(question, run) <= tokens_per_s:
        return run
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        run = _with(question, deployment, pool, middle)
        if _tokens_per_s(question, run) < tokens_per_s:
            low = middle
        else:
            high = middle
    return run


def _with(question: Question, deployment: Deployment, pool: Pool, sequences: float) -> Serving:
    return serving_at(
        question, deployment, sequences=sequences, chunk_tokens=pool.max_step_tokens - sequences
    )


def _tokens_per_s(question: Question, run: Serving) -> float:
    deployment = run.deployment
    sequences = deployment.layout.dp * run.sequences
    factor = deployment.scale * float(of(deployment.served.calibration.step_factor, "likely"))
    return sequences * float(question.given(sequences)) / (factor * phases(run).step_s)


# ---- several kinds of ranks


def _apart(plan: Plan, pool: Pool) -> list[_Side]:
    assert pool.experts_on is not None
    assert pool.expert_ranks is not None
    fraction = split_fraction()
    found = []
    for name, ranks in ((pool.on, pool.layout.world), (pool.experts_on, pool.expert_ranks)):
        place = island(name, plan.fleet[name])
        found.append(
            _Side(
                name=name,
                place=place,
                accelerators=ranks / place.rank.ranks_per_accelerator,
                prompt=fraction,
                decode=fraction,
            )
        )
    return found


def _staged(plan: Plan, question: Question, pool: Pool) -> list[_Side]:
    """Rounds of a full batch, alone and with the prompts that keep it coming."""
    line = line_of(plan, question.model, pool)
    sequences = float(pool.max_sequences)
    budget = max(float(pool.max_step_tokens * line.micro_batches) - sequences, 1.0)
    prompts = min(sequences * question.input_tokens / question.output_tokens, budget)
    rounds = [_round(question, sequences, 0.0), _round(question, sequences, prompts)]
    found = []
    for stage, (deployment, part) in zip(pool.stages, line.stages, strict=True):
        decode, prompt = (_stage_fraction(line, deployment, part, steps) for steps in rounds)
        place = joined_by_network(stage.on, plan.fleet[stage.on], None)
        accelerators = stage.ranks / place.rank.ranks_per_accelerator
        found.append(_Side(name=stage.on, place=place, accelerators=accelerators, prompt=prompt, decode=decode))  # fmt: skip
    return found


def _round(question: Question, sequences: float, prompts: float) -> Steps:
    context = question.input_tokens + question.output_tokens / 2
    each = (sequences, sequences * context, prompts, prompts * question.input_tokens / 2)
    return Steps(**dict(zip(("sequences", "kv_tokens", "prompt_tokens", "pairs"), (np.array([one]) for one in each), strict=True)))  # fmt: skip


def _stage_fraction(line: Line, deployment: Deployment, part: Part, steps: Steps) -> Estimate:
    round_s = float(line.round_s(steps)[0])
    at, in_flight = shares(), min(float(line.micro_batches), float(steps.tokens[0]))
    one = {name: float(getattr(steps, name)[0]) / in_flight for name in ("sequences", "kv_tokens", "prompt_tokens", "pairs")}  # fmt: skip
    ops = part_ops(deployment, part, **one)
    found = []
    for end in ENDS:
        step_s, joules = step_energy(deployment, ops, one["sequences"] if part.last else 0.0, at, end)  # fmt: skip
        busy = min(in_flight * step_s / round_s, 1.0)
        found.append(busy * joules / step_s + (1 - busy) * float(getattr(at.link, end)))
    return Estimate(*found)


def check_known(drawn: Drawn, what: str) -> None:
    """Raise `InputError` where `what` asks for watts of which there are none."""
    if not drawn.pools:
        why = "; ".join(f"{pool}: {its}" for pool, its in drawn.missing.items())
        msg = f"{what} is of watts, and no pool of this plan has any: {why}"
        raise InputError(msg)
