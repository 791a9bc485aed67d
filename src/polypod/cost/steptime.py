"""The step time of one replica, as a few frozen numbers that everybody reads.

`cost.step` makes a `StepTime` from a model, a layout, a chip and a calibration; the planner, the engine emulation, the
router, the simulator and the plan's predictions all read the same one, and the live node corrects it by measurement.

    step_s = curve(tokens) + pair_s * pairs + kv_token_s * kv_tokens + sequence_s * sequences

    tokens     tokens the step computes on the busiest data-parallel rank: prompt tokens plus one per decoding sequence
    pairs      prompt token x context token pairs the step's prompt attention covers, on that rank
    kv_tokens  cached tokens its decoding sequences read, on that rank
    sequences  decoding sequences, on that rank

A round of `stages` pipeline stages takes what is timed here when it is full, a `stages`-th of the batch in each. A prompt's tokens are all in one
micro-batch, behind which the others queue at every stage, so that a step takes as long as if each carried as many: whoever asks counts them `stages`
times. That is the pipeline's bubble; as many prompts at once as there are stages leave none.

`curve` is piecewise linear through knots and goes on with its last slope, so it can hold what a formula in one line could
not: the turn from memory-bound to compute-bound, experts being touched one after another, collectives. Between the
knots the error is that of linear interpolation (under 2 % with the knots `cost.step` sets).
"""

from bisect import bisect_right

import msgspec


class StepTime(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long one step takes on one replica.

    >>> step = StepTime(tokens=(1, 100), seconds=(0.010, 0.020), kv_token_s=1e-7, pair_s=0.0, sequence_s=0.0)
    >>> round(step.step_s(tokens=100, kv_tokens=50_000), 4)  # 20 ms of weights and FLOPs, 5 ms of cache
    0.025
    >>> round(step.step_s(tokens=199), 4)  # goes on with the last slope
    0.03
    """

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    kv_token_s: float
    pair_s: float
    sequence_s: float = 0.0
    data_ranks: int = 1
    stages: int = 1

    def __post_init__(self) -> None:
        pairs = zip(self.tokens, self.tokens[1:], strict=False)
        if len(self.tokens) != len(self.seconds) or len(self.tokens) < 2:
            msg = f"a step-time curve needs two knots or more, as many seconds as tokens; got {self.tokens} and {self.seconds}"
            raise ValueError(msg)
        if any(left >= right for left, right in pairs):
            msg = f"the knots of a step-time curve must increase, got tokens={self.tokens}"
            raise ValueError(msg)
        if min(*self.seconds, self.kv_token_s, self.pair_s, self.sequence_s) < 0:
            msg = f"a step cannot take negative time: {self}"
            raise ValueError(msg)

    def curve_s(self, tokens: float) -> float:
        """Seconds for everything that grows with the tokens of the step and with nothing else; 0 tokens take none."""
        if tokens <= 0:
            return 0.0
        knots, seconds = self.tokens, self.seconds
        right = min(max(bisect_right(knots, tokens), 1), len(knots) - 1)
        left = right - 1
        slope = (seconds[right] - seconds[left]) / (knots[right] - knots[left])
        return max(seconds[left] + slope * (tokens - knots[left]), 0.0)

    def step_s(
        self, *, tokens: float, kv_tokens: float = 0.0, pairs: float = 0.0, sequences: float = 0.0
    ) -> float:
        """Seconds of one step, all quantities on the busiest data-parallel rank."""
        return (
            self.curve_s(tokens)
            + self.kv_token_s * kv_tokens
            + self.pair_s * pairs
            + self.sequence_s * sequences
        )

    def prompt_s(self, tokens: float, cached: float = 0.0) -> float:
        """Seconds of a prompt computed alone in one step, through every stage in turn, after `cached` tokens of context."""
        return self.step_s(
            tokens=self.stages * tokens, pairs=self.stages * causal_pairs(tokens, cached)
        )

    def scaled(self, factor: float) -> "StepTime":
        """Every term times `factor`; 2 is half as fast."""
        return msgspec.structs.replace(
            self,
            seconds=tuple(factor * value for value in self.seconds),
            kv_token_s=factor * self.kv_token_s,
            pair_s=factor * self.pair_s,
            sequence_s=factor * self.sequence_s,
        )


def causal_pairs(tokens: float, cached: float = 0.0) -> float:
    """Query x key pairs when `tokens` new ones attend to `cached` earlier ones and, causally, to each other.

    >>> causal_pairs(4), causal_pairs(1, cached=9)
    (10.0, 10.0)
    """
    return tokens * cached + tokens * (tokens + 1) / 2
