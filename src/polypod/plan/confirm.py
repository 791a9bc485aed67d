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
from polypod.engine.replica import Progress
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
        outcome = _kept(question, candidate, step_time, rate_per_s=share * ceiling, seed=seed)
        if outcome is not None:
            best = outcome
            low = share
            if share == high:
                break
        else:
            high = share
    return None if best is None else Confirmed(candidate=candidate, outcome=best)


def _kept(
    question: Question,
    candidate: Candidate,
    step_time: StepTime,
    *,
    rate_per_s: float,
    seed: int,
) -> Outcome | None:
    """The outcome at one rate if it keeps the SLO; a run that has missed too often already is not played to its end."""
    outcome = _emulated(question, candidate, step_time, (rate_per_s, seed), give_up=True)
    return outcome if outcome is not None and outcome.keeps(question) else None


def emulate(
    question: Question,
    candidate: Candidate,
    step_time: StepTime,
    *,
    rate_per_s: float,
    seed: int = 0,
) -> Outcome:
    """Play Poisson arrivals at `rate_per_s` through one replica of the candidate."""
    outcome = _emulated(question, candidate, step_time, (rate_per_s, seed), give_up=False)
    assert outcome is not None, "only a run that may give up has no outcome"
    return outcome


def _emulated(
    question: Question,
    candidate: Candidate,
    step_time: StepTime,
    drawn: tuple[float, int],
    *,
    give_up: bool,
) -> Outcome | None:
    rate_per_s, seed = drawn
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
    allowed = math.floor((count - warm) * (1 - question.percentile / 100) + 1e-9)
    seen = _Seen(arrivals_s, question, warm, allowed if give_up else count)
    replica = ReplicaEmulation(shrunk, limits)
    if not _play(replica, seen):
        return None
    return Outcome(
        rate_per_s=rate_per_s,
        ttft_s=(seen.first_s - arrivals_s)[warm:],
        tpot_s=((seen.last_s - seen.first_s) / seen.steps)[warm:],
        busy_fraction=replica.busy_s / float(np.nanmax(seen.last_s)),
    )


class _Seen:
    """When requests gave their first and last tokens, and how many of those counted have missed a limit."""

    def __init__(self, arrivals_s: Floats, question: Question, warm: int, allowed: int) -> None:
        self.arrivals_s = arrivals_s
        self.question = question
        self.first_s, self.last_s = np.full_like(arrivals_s, np.nan), np.full_like(arrivals_s, np.nan)  # fmt: skip
        self.steps = max(question.output_tokens - 1, 1)
        self._warm, self._allowed = warm, allowed
        self._missed: set[int] = set()

    def note(self, several: list[Progress]) -> bool:
        """Whether too many have missed."""
        limits = self.question
        for progress in several:
            request, at_s = progress.request, progress.at_s
            if progress.kind == "first":
                self.first_s[request] = at_s
                late = limits.ttft_s is not None and at_s - self.arrivals_s[request] > limits.ttft_s
            else:
                self.last_s[request] = at_s
                token_s = (at_s - self.first_s[request]) / self.steps
                late = limits.tpot_s is not None and token_s > limits.tpot_s
            if late and request >= self._warm:
                self._missed.add(request)
        return len(self._missed) > self._allowed


def _play(replica: ReplicaEmulation, seen: _Seen) -> bool:
    """Play all requests; False where it gave up."""
    question = seen.question
    for request, at_s in enumerate(seen.arrivals_s.tolist()):
        if seen.note(replica.advance(at_s)):
            return False
        replica.submit(
            at_s,
            request=request,
            prompt_tokens=question.input_tokens,
            output_tokens=question.output_tokens,
        )
    return not seen.note(replica.advance(math.inf))
