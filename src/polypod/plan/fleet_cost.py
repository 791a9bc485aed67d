"""What the shapes of a fleet draw and cost at work: of one accelerator, for what is minimised; of all pools, for what is told.

A co-located replica runs as many sequences as its rate keeps; a decode worker likewise, without prompts. A prefill worker is busy for the part of the time that its
rate asks for and idles for the rest. A model's joules and dollars per million output tokens are those of all its pools, prefill included. Accelerators that
nothing runs on are not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from polypod.plan.energy import (
    Estimate,
    Serving,
    drawn_fraction,
    prefill_fraction,
    serving_at,
    shares,
    split_fraction,
    step_energy,
)
from polypod.plan.fleet import Chosen, Used
from polypod.plan.money import Card, Output, Running, Site, added, in_all, running_at
from polypod.plan.place import Island
from polypod.plan.search import Question
from polypod.plan.shapes import Shape, shape_band


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeCosts:
    """What is minimised, of one replica of a shape at work: US dollars an hour, or watts with cooling."""

    at: Site
    what: Literal["cost", "energy"]

    def __call__(self, question: Question, shape: Shape) -> float | str:
        """The likely figure; else in words what is missing."""
        fraction = shape_fraction(question, shape)
        found = [self._card(one, fraction) for one in shape.islands]
        missing = [one for one in found if isinstance(one, str)]
        if missing:
            return missing[0]
        return sum(float(one) * shape.accelerators_on(island) for one, island in zip(found, shape.islands, strict=True))  # fmt: skip

    def _card(self, island: Island, fraction: Estimate) -> float | str:
        card = Card.of(island, fraction, self.at)
        if self.what == "energy":
            return card.drawn if isinstance(card.drawn, str) else card.drawn.site_w.likely
        return card.paid if isinstance(card.paid, str) else card.paid.total_usd.likely


def shape_fraction(question: Question, shape: Shape) -> Estimate:
    """What an accelerator of a shape draws in the mean, over its design power."""
    deployment = shape.deployment
    if shape.split is not None:
        return split_fraction()
    if shape.role == "prefill":
        return _prefill_fraction(question, shape)
    running = shape.rate_per_s * question.output_tokens * shape.tpot_s / deployment.layout.dp
    sequences = min(running, float(shape.sequences_per_rank))
    if shape.candidate is not None:
        return drawn_fraction(serving_at(question, deployment, sequences=sequences, chunk_tokens=shape.candidate.chunk_tokens))  # fmt: skip
    context = question.input_tokens + question.output_tokens / 2
    return drawn_fraction(Serving(deployment=deployment, sequences=sequences, context_tokens=context, drafts=question.decoding()[0]))  # fmt: skip


def _prefill_fraction(question: Question, shape: Shape) -> Estimate:
    deployment, tokens = shape.deployment, float(shape.max_step_tokens)
    ops = deployment.ops(prompt_tokens=tokens, pairs=question.pairs(tokens))
    step_s, _ = step_energy(deployment, ops, 0.0, shares(), "likely")
    steps_per_s = shape.rate_per_s * question.fresh_tokens / (tokens * deployment.layout.dp)
    busy = min(steps_per_s * step_s, 1.0)
    return prefill_fraction(question, deployment, tokens) * busy + shares().idle * (1 - busy)


def load_of(question: Question, served_per_s: float) -> float:
    """What is asked over what could be served; 1 where all that can be is asked for."""
    if question.rate_per_s is None or served_per_s <= 0:
        return 1.0
    return min(question.rate_per_s / served_per_s, 1.0)


def model_running(question: Question, m: int, chosen: Chosen, at: Site) -> Running:
    """Power, money and carbon of one model's pools at what is asked of them."""
    load = load_of(question, chosen.served_per_s[m])
    tokens_per_s = load * chosen.served_per_s[m] * question.output_tokens
    mine = [one for one in chosen.used if one.model == m]
    return added([(1.0, used_running(question, one, Load(tokens_per_s, load), at)) for one in mine])


@dataclass(frozen=True, slots=True)
class Load:
    """Output tokens/s that a pool's power and money are told per million of, and the part of its rate that is asked for."""

    tokens_per_s: float
    of_rate: float = 1.0


def used_running(question: Question, used: Used, load: Load, at: Site) -> Running:
    """Of one pool; where less than its rate is asked for it idles the rest of the time."""
    shape = used.shape
    drawn = shape_fraction(question, shape) * load.of_rate + shares().idle * (1 - load.of_rate)
    parts = []
    for island in shape.islands:
        accelerators = used.replicas * shape.accelerators_on(island)
        output = Output(
            accelerators=accelerators,
            tokens_per_s=load.tokens_per_s / accelerators,
            band=shape_band(question, shape, "tpot"),
        )
        parts.append((1.0, running_at(island, drawn, output, at)))
    return added(parts)


def fleet_running(questions: Sequence[Question], chosen: Chosen, at: Site) -> tuple[tuple[Running, ...], Running]:  # fmt: skip
    """Of each model, and of all of them."""
    each = tuple(model_running(question, m, chosen, at) for m, question in enumerate(questions))
    tokens = [load_of(question, rate) * rate * question.output_tokens for rate, question in zip(chosen.served_per_s, questions, strict=True)]  # fmt: skip
    return each, in_all(list(zip(tokens, each, strict=True)))
