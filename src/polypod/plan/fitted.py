"""Step times of replicas whose steps no cost model adds up: experts apart (`plan.afd`) and unequal stages (`plan.stages`).

Both forms take the longer of several times, where a `StepTime` is a sum

    curve(tokens) + pair_s * pairs + kv_token_s * kv_tokens + sequence_s * sequences

so it is the sum with the least worst relative error over the steps that the service's traffic makes: a linear program over the curve's
knots and the three coefficients. `Fit.error_fraction` is the worst error on steps in between. Past `MOST_ERROR` the form cannot be said
so, and is refused.

The steps looked at: any number of sequences up to the most, at the traffic's mean context give or take twice what the mean of so many
spreads by when their answers are anywhere; with stages also with prompts beside them, from none to all that the budget holds. Longer
requests than the traffic's are beyond what is fitted.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from polypod import units
from polypod.cost.deployment import Deployment
from polypod.cost.steptime import StepTime
from polypod.errors import InputError
from polypod.plan.afd import Split, steps_s
from polypod.plan.milp import Milp
from polypod.plan.spec import Traffic
from polypod.plan.stages import SENT_TENSORS
from polypod.plan.workers import Part, part_s
from polypod.workload.layout import Layout
from polypod.workload.ops import ACTIVATION_BYTES

Floats = NDArray[np.float64]

MOST_ERROR: Final = 0.1

_SPREADS: Final = (-2.0, 0.0, 2.0)
_BETWEEN: Final = (-1.0, 0.0, 1.0)
_BEYOND: Final = (2.0, 8.0, 32.0)
_SHARES: Final = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0)
_OTHER_SHARES: Final = (0.0, 0.03, 0.15, 0.27, 0.42, 0.6, 0.78, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Steps of one data-parallel rank, each with what is in it."""

    sequences: Floats
    kv_tokens: Floats
    prompt_tokens: Floats
    pairs: Floats

    @property
    def tokens(self) -> Floats:
        return self.sequences + self.prompt_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A step time, and by how much it is off at most."""

    step_time: StepTime
    error_fraction: float


def fit(form_s: Callable[[Steps], Floats], over: Steps, between: Steps, knots: Floats) -> Fit:
    """The step time nearest to a form over some steps, with its error on others. Raises `InputError` where that is too large."""
    curve, slopes = _least_worst(over, form_s(over), knots)
    step_time = StepTime(
        tokens=tuple(knots.tolist()),
        seconds=tuple(curve.tolist()),
        kv_token_s=slopes[0],
        pair_s=slopes[1],
        sequence_s=slopes[2],
    )
    true_s = form_s(between)
    error = float(np.max(np.abs(_said_s(step_time, between) / true_s - 1)))
    if error > MOST_ERROR:
        msg = (
            f"no sum of tokens, cache and sequences comes nearer to its steps than {error:.0%} ({MOST_ERROR:.0%} is let pass), so that it is not "
            "played; plan another shape"
        )
        raise InputError(msg)
    return Fit(step_time=step_time, error_fraction=error)


def _said_s(step_time: StepTime, steps: Steps) -> Floats:
    columns = (steps.tokens, steps.kv_tokens, steps.pairs, steps.sequences)
    return np.array(
        [
            step_time.step_s(tokens=tokens, kv_tokens=kv_tokens, pairs=pairs, sequences=sequences)
            for tokens, kv_tokens, pairs, sequences in zip(*(one.tolist() for one in columns), strict=True)
        ]
    )  # fmt: skip


def _least_worst(steps: Steps, true_s: Floats, knots: Floats) -> tuple[Floats, list[float]]:
    """The curve at its knots, and seconds per cached token, pair and sequence."""
    columns = [*_hats(steps.tokens, knots).T, steps.kv_tokens, steps.pairs, steps.sequences]
    scales = [max(float(np.max(column / true_s)), 1e-30) for column in columns]
    program = Milp()
    for _ in columns:
        program.variable()
    error = program.variable(cost=1.0)
    for row in range(true_s.size):
        terms = {
            n: float(column[row] / true_s[row] / scales[n]) for n, column in enumerate(columns)
        }
        program.row(terms | {error: -1.0}, high=1.0)
        program.row(terms | {error: 1.0}, low=1.0)
    last = knots.size - 1
    program.row({last: 1 / scales[last], last - 1: -1 / scales[last - 1]}, low=0.0)
    found = program.relaxed().x[: len(columns)] / np.array(scales)
    found = np.maximum(found, 0.0)
    return found[: knots.size], [float(value) for value in found[knots.size :]]


def _hats(tokens: Floats, knots: Floats) -> Floats:
    """Weights of the knots between which each number of tokens lies."""
    right = np.clip(np.searchsorted(knots, tokens, side="right"), 1, knots.size - 1)
    share = (tokens - knots[right - 1]) / (knots[right] - knots[right - 1])
    weights = np.zeros((tokens.size, knots.size))
    rows = np.arange(tokens.size)
    weights[rows, right - 1] = 1 - share
    weights[rows, right] = share
    return weights


def _spaced(most: float, a_doubling: int = 4) -> Floats:
    """Whole numbers from 1 on, so many to a doubling."""
    count = max(int(a_doubling * np.log2(max(most, 2.0))) + 1, 2)
    return np.unique(np.round(np.geomspace(1.0, max(most, 2.0), count)))


def _middles(at: Floats) -> Floats:
    return np.unique(np.round(np.concatenate([at[:1], np.sqrt(at[:-1] * at[1:]), at[-1:]])))


def _contexts(traffic: Traffic, sequences: Floats, spreads: tuple[float, ...]) -> tuple[Floats, Floats]:  # fmt: skip
    """Every number of sequences at the mean context, and off by some standard deviations of the mean of so many."""
    off = np.array(spreads)[:, None] * traffic.output / np.sqrt(12 * sequences)
    whole = np.clip(traffic.input + traffic.output / 2 + off, traffic.input, traffic.input + traffic.output)  # fmt: skip
    return np.broadcast_to(sequences, whole.shape).ravel(), whole.ravel()


# ---- experts apart


def split_fit(split: Split, traffic: Traffic, most_sequences: int) -> Fit:
    """Of decode with attention and experts on ranks of their own, up to so many sequences on each data-parallel group."""

    def form_s(steps: Steps) -> Floats:
        return steps_s(split, steps.sequences, steps.kv_tokens / steps.sequences)

    def steps(sequences: Floats, spreads: tuple[float, ...]) -> Steps:
        counts, contexts = _contexts(traffic, sequences, spreads)
        none = np.zeros_like(counts)
        return Steps(sequences=counts, kv_tokens=counts * contexts, prompt_tokens=none, pairs=none)

    knots = _spaced(float(most_sequences))
    found = fit(form_s, steps(knots, _SPREADS), steps(_middles(knots), _BETWEEN), knots)
    return replace(found, step_time=_with_prompts(split, found.step_time))


def split_step(split: Split, traffic: Traffic, most_sequences: int) -> Fit:
    """The same for all of a replica's data-parallel groups; a preempted one's prompt is attended to by the attention ranks alone."""
    found = split_fit(split, traffic, most_sequences)
    layout = split.attention.layout
    whole = replace(split.attention, layout=Layout(tp=layout.tp)).step_time()
    step_time = msgspec.structs.replace(found.step_time, data_ranks=layout.dp, pair_s=whole.pair_s)
    return replace(found, step_time=step_time)


def _with_prompts(split: Split, fitted: StepTime) -> StepTime:
    """Past the most sequences tokens are those of prompts that are computed again: as many sequences without a cache would take as long."""
    beyond = fitted.tokens[-1] * np.array(_BEYOND)
    seconds = np.maximum(steps_s(split, beyond, np.zeros_like(beyond)), fitted.seconds[-1])
    return msgspec.structs.replace(
        fitted,
        tokens=(*fitted.tokens, *beyond.tolist()),
        seconds=(*fitted.seconds, *seconds.tolist()),
    )


# ---- unequal stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A pipeline's stages in order, the micro-batches in flight, and one worker's link to the next."""

    stages: tuple[tuple[Deployment, Part], ...]
    micro_batches: int
    bytes_per_s: float
    hidden: int

    def round_s(self, steps: Steps) -> Floats:
        """One token of every sequence and the prompts beside them, spread evenly over the micro-batches (`plan.stages`)."""
        in_flight = np.minimum(float(self.micro_batches), np.maximum(steps.tokens, 1.0))
        slowest_s = through_s = np.zeros_like(steps.tokens)
        for deployment, part in self.stages:
            stage_s = part_s(
                deployment,
                part,
                sequences=steps.sequences / in_flight,
                kv_tokens=steps.kv_tokens / in_flight,
                prompt_tokens=steps.prompt_tokens / in_flight,
                pairs=steps.pairs / in_flight,
            )
            slowest_s, through_s = np.maximum(slowest_s, stage_s), through_s + stage_s
        if len(self.stages) > 1:
            sent_bytes = SENT_TENSORS * ACTIVATION_BYTES * self.hidden * steps.tokens / in_flight
            send_s = sent_bytes / self.bytes_per_s
            slowest_s = np.maximum(slowest_s, send_s)
            through_s = through_s + (len(self.stages) - 1) * send_s
        return np.asarray(np.maximum(in_flight * slowest_s, through_s))


def line_fit(line: Line, traffic: Traffic, most_sequences: int, most_tokens: int) -> Fit:
    """Of a pipeline with up to so many sequences and tokens in a round."""

    def steps(sequences: Floats, shares: tuple[float, ...], spreads: tuple[float, ...]) -> Steps:
        """With prompts in each of these shares of what the budget leaves, and prompts alone."""
        counts, contexts = _contexts(traffic, sequences, spreads)
        parts = [(counts, contexts, share * (most_tokens - counts)) for share in shares]
        alone = _spaced(float(most_tokens), 8)
        parts.append((np.zeros_like(alone), np.zeros_like(alone), alone))
        of, at, prompts = (np.concatenate(column) for column in zip(*parts, strict=True))
        kept = prompts >= 0
        of, at, prompts = of[kept], at[kept], prompts[kept]
        return Steps(
            sequences=of, kv_tokens=of * at, prompt_tokens=prompts, pairs=prompts * traffic.input / 2
        )  # fmt: skip

    counts = _spaced(float(most_sequences))
    knots = _spaced(float(most_tokens), 2)
    over = steps(counts, _SHARES, _SPREADS)
    between = steps(_middles(counts), _OTHER_SHARES, _BETWEEN)
    return fit(line.round_s, over, between, knots)


def traffic_of(traffic: Traffic | None, what: str) -> Traffic:
    """Raises `InputError` where the service says nothing of its traffic."""
    if traffic is None:
        msg = f"{what} is timed for its service's traffic, which is not said; add traffic: with input and output"
        raise InputError(msg)
    return traffic


def said_bytes_per_s(text: str | None, found: float | None, what: str) -> float:
    """A rank's link as the plan says, else as is on record. Raises `InputError` where neither does."""
    said = found if text is None else units.parse(text, "bytes_per_s")
    if said is None or not said > 0:
        msg = f"no link {what} is on record; say one rank's as link: 50GB/s"
        raise InputError(msg)
    return said
