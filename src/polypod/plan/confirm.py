"""A candidate put to the test: the engine emulation under Poisson arrivals, up to the rate that still keeps the SLO.

The closed form of `plan.search` knows no queue. Here one replica is emulated at several rates; the highest one at which the
asked percentile of requests keeps TTFT and TPOT is its goodput, and the percentiles there are the plan's predictions. Two
residence times warm it up and are not counted.

Lengths are constant at their means. A replica of more than `MOST_RANKS` data-parallel ranks is emulated with that many, at
the same load per rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from polypod.cost.steptime import StepTime
from polypod.engine import EngineLimits
from polypod.engine.compiled import emulate as emulate_compiled
from polypod.engine.native.build import is_built
from polypod.engine.trial import Trial, Tried, tried
from polypod.plan.search import Candidate, Question

Floats = NDArray[np.float64]
Found = TypeVar("Found")

MOST_RANKS = 32
LEAST_REQUESTS = 300

SHARES: Final = 64
"""Parts of the range of rates that is searched."""

_FIRST: Final = 54
"""The one asked first where there are limits: 0.85 of the closed form's rate."""


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
        return Limits.of(question).by(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What so many percent of requests have to keep; a limit that is None does not bind."""

    ttft_s: float | None
    tpot_s: float | None
    percentile: float

    @classmethod
    def of(cls, question: Question) -> Self:
        return cls(ttft_s=question.ttft_s, tpot_s=question.tpot_s, percentile=question.percentile)

    @property
    def none(self) -> bool:
        return self.ttft_s is None and self.tpot_s is None

    def allowed(self, counted: int) -> int:
        """Of so many requests those that may miss."""
        return math.floor(counted * (1 - self.percentile / 100) + 1e-9)

    def by(self, outcome: Outcome) -> bool:
        """Whether an outcome keeps them."""
        kept = np.ones_like(outcome.ttft_s, dtype=bool)
        if self.ttft_s is not None:
            kept &= outcome.ttft_s <= self.ttft_s
        if self.tpot_s is not None:
            kept &= outcome.tpot_s <= self.tpot_s
        return bool(kept.mean() * 100 >= self.percentile)


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
    outcome = _highest(_Run.of(question, candidate, candidate.deployment.step_time(), seed))
    return None if outcome is None else Confirmed(candidate=candidate, outcome=outcome)


def emulate(
    question: Question,
    candidate: Candidate,
    step_time: StepTime,
    *,
    rate_per_s: float,
    seed: int = 0,
) -> Outcome:
    """Play Poisson arrivals at `rate_per_s` through one replica of the candidate."""
    run = _Run.of(question, candidate, step_time, seed)
    outcome = _emulated(run, rate_per_s, give_up=False)
    assert outcome is not None, "only a run that may give up has no outcome"
    return outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Everything that an emulation reads, and nothing else: what is equal gives the same."""

    step_time: StepTime  # of `MOST_RANKS` at most
    limits: EngineLimits
    part: float  # of the replica's ranks that are emulated
    prompt_tokens: int
    output_tokens: int
    kept: Limits
    residence_s: float
    ceiling_per_s: float  # requests of the closed form
    seed: int

    @classmethod
    def of(cls, question: Question, candidate: Candidate, step_time: StepTime, seed: int) -> Self:
        ranks = min(step_time.data_ranks, MOST_RANKS)
        context = question.input_tokens + question.output_tokens / 2
        return cls(
            step_time=msgspec.structs.replace(step_time, data_ranks=ranks),
            limits=EngineLimits(
                max_sequences=candidate.sequences_per_rank * ranks,
                max_step_tokens=candidate.max_step_tokens,
                kv_capacity_tokens=int(candidate.deployment.memory().tokens_of(context)) * ranks,
                behaviour=question.behaviour(candidate.sequences),
            ),
            part=ranks / step_time.data_ranks,
            prompt_tokens=question.input_tokens,
            output_tokens=question.output_tokens,
            kept=Limits.of(question),
            residence_s=candidate.ttft_s + question.output_tokens * candidate.tpot_s,
            ceiling_per_s=candidate.tokens_per_s / candidate.replicas / question.output_tokens,
            seed=seed,
        )


@lru_cache(maxsize=256)
def _highest(run: _Run) -> Outcome | None:
    """The outcome at the highest share of the closed form's rate that keeps the limits."""

    def at(part: int) -> Outcome | None:
        outcome = _emulated(run, share(part) * run.ceiling_per_s, give_up=True)
        return outcome if outcome is not None and run.kept.by(outcome) else None

    return highest(at, SHARES if run.kept.none else _FIRST)


def highest(at: Callable[[int], Found | None], first: int) -> Found | None:
    """What there is at the highest part of the range at which there is anything, asked first where it is likely.

    Of the parts that halving finds, in another order: where there is something at every part below one that has it, the answer is that of halving.
    """
    best: Found | None = None
    low, high = 0, SHARES + 1  # found or not asked, and lost, in parts
    asked = first
    while high - low > 1:
        found = at(asked)
        if found is not None:
            best, low = found, asked
            asked = (low + high) // 2
        else:
            high = asked
            asked = max((low + high) // 2, high - (SHARES + 1 - high) if low == 0 else 0)
    return best


def share(part: int) -> float:
    """So many parts of `SHARES` of the way from 5 % to 100 % of the closed form's rate, found by halving.

    >>> share(SHARES), share(SHARES // 2)
    (1.0, 0.525)
    """
    low, high, first, last = 0.05, 1.0, 0, SHARES
    while part < last:
        middle_s, middle = (low + high) / 2, (first + last) // 2
        low, first, high, last = (low, first, middle_s, middle) if part <= middle else (middle_s, middle, high, last)  # fmt: skip
    return high


def _emulated(run: _Run, rate_per_s: float, *, give_up: bool) -> Outcome | None:
    """The outcome at one rate; None where it may give up and has missed too often before its end."""
    rate = rate_per_s * run.part
    warm = math.ceil(2 * run.residence_s * rate)
    count = warm + max(LEAST_REQUESTS, math.ceil(run.residence_s * rate))
    arrivals_s = np.cumsum(np.random.default_rng(run.seed).exponential(1 / rate, count))
    trial = Trial(
        arrivals_s=arrivals_s,
        prompt_tokens=run.prompt_tokens,
        output_tokens=run.output_tokens,
        warm=warm,
        allowed=run.kept.allowed(count - warm) if give_up else count,
        ttft_s=run.kept.ttft_s,
        tpot_s=run.kept.tpot_s,
    )
    tried = played(run.step_time, run.limits, trial)
    if tried is None:
        return None
    return Outcome(
        rate_per_s=rate_per_s,
        ttft_s=(tried.first_s - arrivals_s)[warm:],
        tpot_s=((tried.last_s - tried.first_s) / max(run.output_tokens - 1, 1))[warm:],
        busy_fraction=tried.busy_s / float(np.nanmax(tried.last_s)),
    )


def played(step_time: StepTime, limits: EngineLimits, trial: Trial) -> Tried | None:
    """By the compiled core where it is there."""
    return (emulate_compiled if is_built("emulate") else tried)(step_time, limits, trial)
