"""A candidate put to the test: the engine emulation under Poisson arrivals, up to the rate that still keeps the SLO.

The closed form of `plan.search` knows no queue. Here one replica is emulated at several rates; the highest one at which the
asked percentile of requests keeps TTFT and TPOT is its goodput, and the percentiles there are the plan's predictions. Two
residence times warm it up and are not counted.

Lengths are constant at their means. A replica of more than `MOST_RANKS` data-parallel ranks is emulated with that many, at
the same load per rank.
"""

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from polypod.cost.steptime import StepTime
from polypod.engine import EngineLimits, ReplicaEmulation
from polypod.plan.search import Candidate, Question

Floats = NDArray[np.float64]

MOST_RANKS = 32
LEAST_REQUESTS = 300
BISECTIONS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One replica at one rate: what its requests saw."""

    rate_per_s: float
    ttft_s: Floats
    tpot_s: Floats
    busy_fraction: float

    def percentiles_s(self, what: str, points: tuple[float, ...]) -> list[float]:
        values = self.ttft_s if what == "ttft" else self.tpot_s
        return [float(v) for v in np.percentile(values, points)]

    def keeps(self, question: Question) -> bool:
        """Whether the asked share of requests kept both limits."""
        kept = np.ones_like(self.ttft_s, dtype=bool)
        if question.ttft_s is not None:
            kept &= self.ttft_s <= question.ttft_s
        if question.tpot_s is not None:
            kept &= self.tpot_s <= question.tpot_s
        return bool(kept.mean() * 100 >= question.percentile)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """A candidate and the highest rate at which one replica of it keeps the SLO."""

    candidate: Candidate
    outcome: Outcome

    @property
    def goodput_per_s(self) -> float:
        """Of all the replicas."""
        return self.outcome.rate_per_s * self.candidate.replicas

    def tokens_per_s_per_accelerator(self, output_tokens: int) -> float:
        return self.goodput_per_s * output_tokens / self.candidate.accelerators


def confirm(question: Question, candidate: Candidate, seed: int = 0) -> Confirmed | None:
    """Find the highest rate that keeps the SLO, between 5 % and 100 % of the closed form's; None where none does."""
    ceiling = candidate.tokens_per_s / candidate.replicas / question.output_tokens
    step_time = candidate.deployment.step_time()
    best: Outcome | None = None
    low, high = 0.05, 1.0
    for attempt in range(BISECTIONS):
        share = high if attempt == 0 else (low + high) / 2
        outcome = emulate(question, candidate, step_time, rate_per_s=share * ceiling, seed=seed)
        if outcome.keeps(question):
            best = outcome
            low = share
            if share == high:
                break
        else:
            high = share
    return None if best is None else Confirmed(candidate=candidate, outcome=best)


def emulate(
    question: Question,
    candidate: Candidate,
    step_time: StepTime,
    *,
    rate_per_s: float,
    seed: int = 0,
) -> Outcome:
    """Play Poisson arrivals at `rate_per_s` through one replica of the candidate."""
    ranks = min(step_time.data_ranks, MOST_RANKS)
    part = ranks / step_time.data_ranks
    context = question.input_tokens + question.output_tokens / 2
    limits = EngineLimits(
        max_sequences=candidate.sequences_per_rank * ranks,
        max_step_tokens=candidate.max_step_tokens,
        kv_capacity_tokens=int(candidate.deployment.memory().tokens_of(context)) * ranks,
        behaviour=question.behaviour(candidate.sequences),
    )
    shrunk = msgspec.structs.replace(step_time, data_ranks=ranks)
    residence_s = candidate.ttft_s + question.output_tokens * candidate.tpot_s
    rate = rate_per_s * part
    warm = math.ceil(2 * residence_s * rate)
    count = warm + max(LEAST_REQUESTS, math.ceil(residence_s * rate))
    arrivals_s = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    first_s, last_s, busy = _play(ReplicaEmulation(shrunk, limits), arrivals_s, question)
    steps = max(question.output_tokens - 1, 1)
    return Outcome(
        rate_per_s=rate_per_s,
        ttft_s=(first_s - arrivals_s)[warm:],
        tpot_s=((last_s - first_s) / steps)[warm:],
        busy_fraction=busy,
    )


def _play(
    replica: ReplicaEmulation, arrivals_s: Floats, question: Question
) -> tuple[Floats, Floats, float]:
    first_s, last_s = np.full_like(arrivals_s, np.nan), np.full_like(arrivals_s, np.nan)
    for request, at_s in enumerate(arrivals_s.tolist()):
        for progress in replica.advance(at_s):
            (first_s if progress.kind == "first" else last_s)[progress.request] = progress.at_s
        replica.submit(
            at_s,
            request=request,
            prompt_tokens=question.input_tokens,
            output_tokens=question.output_tokens,
        )
    for progress in replica.advance(math.inf):
        (first_s if progress.kind == "first" else last_s)[progress.request] = progress.at_s
    return first_s, last_s, replica.busy_s / float(np.nanmax(last_s))
