"""Workers apart put to the test: prompts through emulated prefill workers, and their caches through an emulated decode worker.

Each phase may miss the limits with half of the requests that may miss them at all. A prefill worker is played by itself: the highest rate at which its prompts are
computed early enough for their caches' way, and for the decode worker's step that is under way when a cache comes (`workers_apart.boundary_s`). A
decode worker is played behind those that feed it: as many prefill workers as its rate takes, each at its own rate and of its own draw, their computed
prompts thinned to that rate; so caches come in the clumps in which steps of prefill end. Its rate is the highest at which TPOT is kept, and a cache that
came in time waits for no more than a step, or not beyond the limit on TTFT. What is told of TTFT is from a request's arrival at the prefill worker to the step of
the decode worker that takes its cache in.

Both are asked between 5 % and 100 % of nine tenths of what they do when full. Workers of more than `confirm.MOST_RANKS` data-parallel ranks are emulated with
that many, at the same load per rank. Experts apart are played by their fitted step time (`plan.fitted`). A cache's way takes as long as by itself; how ways
share links is a row of the fleet's program, and `polypod simulate` plays it.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from polypod.cost.steptime import StepTime
from polypod.engine import EngineLimits
from polypod.engine.trial import Trial
from polypod.plan.confirm import MOST_RANKS, SHARES, Limits, Outcome, highest, played, share
from polypod.plan.fitted import split_step
from polypod.plan.predict import PREEMPTED_STEP_TOKENS
from polypod.plan.search import Question
from polypod.plan.shapes import Shape
from polypod.plan.spec import Traffic
from polypod.plan.workers_apart import boundary_s, cache_s

Floats = NDArray[np.float64]

LEAST_REQUESTS: Final = 6000
_MORE: Final = 5.0
"""Standard deviations of a Poisson count that are drawn beyond what is needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Everything that an emulation reads of one worker."""

    step_time: StepTime  # of `MOST_RANKS` at most
    limits: EngineLimits
    ranks_fraction: float  # of the worker's ranks that are emulated

    @classmethod
    def of(cls, question: Question, shape: Shape) -> Self:
        """Raises `InputError` for experts apart whose steps no step time says."""
        step_time, rank_tokens = _timed(question, shape)
        ranks = min(step_time.data_ranks, MOST_RANKS)
        budget = max(shape.max_step_tokens, PREEMPTED_STEP_TOKENS if shape.role == "decode" else 0)
        return cls(
            step_time=msgspec.structs.replace(step_time, data_ranks=ranks),
            limits=EngineLimits(
                max_sequences=max(shape.sequences_per_rank, 1) * ranks,
                max_step_tokens=budget,
                kv_capacity_tokens=rank_tokens * ranks,
                behaviour=question.behaviour(shape.sequences),
            ),
            ranks_fraction=ranks / step_time.data_ranks,
        )


def _timed(question: Question, shape: Shape) -> tuple[StepTime, int]:
    """Step time, and cached tokens of a rank."""
    if shape.split is not None:
        traffic = Traffic(input=question.input_tokens, output=question.output_tokens)
        fitted = split_step(shape.split, traffic, shape.sequences_per_rank)
        return fitted.step_time, int(shape.split.attention_memory().kv_tokens)
    answer = question.output_tokens / 2 if shape.role == "decode" else 0.0
    memory = shape.deployment.memory(shape.max_step_tokens)
    return shape.deployment.step_time(), int(memory.tokens_of(question.input_tokens + answer))


# ---- prefill


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Prompts of one length, and what computes them."""

    worker: Worker
    tokens: int
    way_s: float  # for which a computed prompt keeps its cache

    def waits_s(self, arrivals_s: Floats, kept: Limits, warm: int) -> Floats | None:
        """From each one's arrival to the end of the step that computes it; None where too many of those from `warm` on take too long."""
        trial = Trial(
            arrivals_s=arrivals_s,
            prompt_tokens=self.tokens,
            output_tokens=1,
            warm=warm,
            allowed=kept.allowed(len(arrivals_s) - warm),
            ttft_s=kept.ttft_s,
            tpot_s=None,
            phase="prefill",
            way_s=self.way_s,
        )
        found = played(self.worker.step_time, self.worker.limits, trial)
        return None if found is None else np.asarray(found.first_s - arrivals_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is asked of a prefill worker; of equal ones the answer is."""

    prompts: Prompts
    kept: Limits
    ceiling_per_s: float
    first: int  # part of the range asked first
    residence_s: float
    seed: int


def confirm_prefill(question: Question, shape: Shape, seed: int = 0) -> Outcome | None:
    """The highest rate at which prompts are computed in time; None where none is. Its TTFT is of prompts computed, without the cache's way."""
    prompts = prompts_of(question, shape)
    left_s = None if question.ttft_s is None else question.ttft_s - prompts.way_s - boundary_s(question)  # fmt: skip
    asked = _Asked(
        prompts=prompts,
        kept=Limits(ttft_s=left_s, tpot_s=None, percentile=_half(question)),
        ceiling_per_s=shape.most_per_s,
        first=SHARES if left_s is None else _part(shape.rate_per_s / shape.most_per_s),
        residence_s=shape.ttft_s,
        seed=seed,
    )
    return _most_prompts(asked)


def _half(question: Question) -> float:
    """The percentile that leaves half as many out."""
    return (100 + question.percentile) / 2


def prompts_of(question: Question, shape: Shape, way_s: float | None = None) -> Prompts:
    """Of a prefill worker; its caches' way is the slowest that leaves time for its rate, unless told."""
    if way_s is None:
        way_s = cache_s(question, shape.deployment, shape.narrowest_bytes_per_s)
    return Prompts(worker=Worker.of(question, shape), tokens=question.input_tokens, way_s=way_s)


def _part(fraction: float) -> int:
    """Of `confirm.SHARES`, the one nearest to a fraction of the ceiling."""
    return min(range(1, SHARES + 1), key=lambda part: abs(share(part) - fraction))


@lru_cache(maxsize=256)
def _most_prompts(asked: _Asked) -> Outcome | None:
    def at(part: int) -> Outcome | None:
        rate_per_s = share(part) * asked.ceiling_per_s
        rate = rate_per_s * asked.prompts.worker.ranks_fraction
        warm, counted = _counts(asked.residence_s * rate)
        arrivals_s = np.cumsum(np.random.default_rng(asked.seed).exponential(1 / rate, warm + counted))  # fmt: skip
        waits_s = asked.prompts.waits_s(arrivals_s, asked.kept, warm)
        if waits_s is None:
            return None
        counted_s = waits_s[warm:]
        return Outcome(
            rate_per_s=rate_per_s,
            ttft_s=counted_s,
            tpot_s=np.zeros_like(counted_s),
            busy_fraction=rate_per_s / asked.ceiling_per_s,
        )

    return highest(at, asked.first)


def _counts(present: float) -> tuple[int, int]:
    """Requests that warm a worker up, and those that are counted, with so many there at a time: two residence times, and one."""
    return math.ceil(2 * present), max(LEAST_REQUESTS, math.ceil(present))


# ---- decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Feeder:
    """Like prefill workers, each at this rate, that a decode worker has this part of its caches from."""

    prompts: Prompts
    rate_per_s: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """What a decode worker's requests saw, and from which of its feeders each came."""

    outcome: Outcome
    feeder: NDArray[np.int64]

    def ttft_s(self, feeder: int) -> Floats:
        """Of the requests of one feeder."""
        return np.asarray(self.outcome.ttft_s[self.feeder == feeder])


def confirm_decode(
    question: Question, shape: Shape, feeders: tuple[Feeder, ...], seed: int = 0
) -> Fed | None:
    """The highest rate at which requests that come from these prefill workers keep both limits; None where there is none."""
    worker = Worker.of(question, shape)
    kept = Limits(ttft_s=question.ttft_s, tpot_s=question.tpot_s, percentile=_half(question))
    residence_s = question.output_tokens * shape.tpot_s

    def at(part: int) -> Fed | None:
        rate_per_s = share(part) * shape.most_per_s
        rate = rate_per_s * worker.ranks_fraction
        warm, counted = _counts(residence_s * rate)
        caches = _caches(feeders, rate, warm + counted, np.random.default_rng(seed))
        trial = Trial(
            arrivals_s=caches.came_s,
            prompt_tokens=question.input_tokens,
            output_tokens=question.output_tokens,
            warm=warm,
            allowed=kept.allowed(len(caches.came_s) - warm),
            ttft_s=kept.ttft_s,
            tpot_s=kept.tpot_s,
            phase="decode",
            asked_s=_in_time_s(question, caches),
        )
        found = played(worker.step_time, worker.limits, trial)
        if found is None:
            return None
        outcome = Outcome(
            rate_per_s=rate_per_s,
            ttft_s=(found.first_s - caches.asked_s)[warm:],
            tpot_s=((found.last_s - found.first_s) / max(question.output_tokens - 1, 1))[warm:],
            busy_fraction=found.busy_s / float(np.nanmax(found.last_s)),
        )
        return Fed(outcome=outcome, feeder=caches.feeder[warm:])

    return highest(at, SHARES)


def _in_time_s(question: Question, caches: "_Caches") -> Floats:
    """When requests would have been made at the earliest whose caches came in time: what prefill took too long is not the decode worker's."""
    if question.ttft_s is None:
        return caches.asked_s
    return np.asarray(
        np.maximum(caches.asked_s, caches.came_s - (question.ttft_s - boundary_s(question)))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caches:
    """In the order they come to a decode worker: when their requests were made, when they came, and from which feeder."""

    asked_s: Floats
    came_s: Floats
    feeder: NDArray[np.int64]


def _caches(feeders: tuple[Feeder, ...], rate: float, count: int, rng: Generator) -> _Caches:
    """So many caches at a rate, from as many workers of each feeder as that takes, thinned to it."""
    span_s = (count + _MORE * math.sqrt(count)) / rate
    asked, came, whose = [], [], []
    for number, feeder in enumerate(feeders):
        own = feeder.rate_per_s * feeder.prompts.worker.ranks_fraction
        workers = max(math.ceil(rate * feeder.weight / own), 1)
        for _ in range(workers):
            arrivals_s = _arrivals_s(own, span_s, rng)
            waits_s = feeder.prompts.waits_s(arrivals_s, _NO_LIMITS, 0)
            assert waits_s is not None, "without limits none is missed"
            kept = rng.random(len(arrivals_s)) < rate * feeder.weight / (workers * own)
            asked.append(arrivals_s[kept])
            came.append((arrivals_s + waits_s)[kept] + feeder.prompts.way_s)
            whose.append(np.full(int(kept.sum()), number))
    came_s = np.concatenate(came)
    order = np.argsort(came_s, kind="stable")[:count]
    return _Caches(
        asked_s=np.concatenate(asked)[order],
        came_s=came_s[order],
        feeder=np.concatenate(whose)[order],
    )


_NO_LIMITS: Final = Limits(ttft_s=None, tpot_s=None, percentile=0.0)


def _arrivals_s(rate: float, span_s: float, rng: Generator) -> Floats:
    """Of a Poisson process."""
    drawn = np.cumsum(rng.exponential(1 / rate, math.ceil(rate * span_s + _MORE * math.sqrt(rate * span_s) + 1)))  # fmt: skip
    return np.asarray(drawn[drawn < span_s])
