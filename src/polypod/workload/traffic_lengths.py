"""How long prompts and answers are: seeded draws, in the order in which requests are made."""

import math
from dataclasses import dataclass

import numpy as np

from polypod.errors import InputError
from polypod.workload.traffic_rows import Counts, Floats, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Every request has its service's mean lengths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """Lognormal about the service's means: `cv_ratio` is the standard deviation over the mean. Prompts and answers are drawn apart."""

    cv_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.cv_ratio < math.inf:
            msg = f"lognormal with cv={self.cv_ratio:g} draws no lengths; give 0 or more, as 1"
            raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Whole numbers from the first to the last of each range, both possible; the service's means do not count."""

    input: tuple[int, int]
    output: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            low, high = getattr(self, name)
            if not 1 <= low <= high:
                msg = f"uniform {name}={low}..{high} tokens is no range; give 1 or more, the lower first"
                raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """The lengths of a trace's requests, drawn with replacement, prompt and answer together; the service's means do not count."""

    trace: Trace


Lengths = Fixed | Lognormal | Uniform | Resampled


class Drawn:
    """Lengths in the order in which they are asked for: one generator for prompts, one for answers."""

    def __init__(self, lengths: Lengths, seed: int) -> None:
        self._lengths = lengths
        self._input = np.random.default_rng([seed, 3])
        self._output = np.random.default_rng([seed, 4])

    def next(self, input_tokens: Floats, output_tokens: Floats) -> tuple[Counts, Counts]:
        """Lengths of as many requests as there are means, each at least 1 token."""
        count = len(input_tokens)
        match self._lengths:
            case Resampled(trace=trace):
                at = self._input.integers(0, len(trace), count)
                return trace.input_tokens[at], trace.output_tokens[at]
            case Uniform(input=asked, output=answered):
                return (
                    self._input.integers(*asked, count, endpoint=True),
                    self._output.integers(*answered, count, endpoint=True),
                )
            case Lognormal(cv_ratio=cv_ratio):
                return (
                    _whole(input_tokens * _relative(self._input, cv_ratio, count)),
                    _whole(output_tokens * _relative(self._output, cv_ratio, count)),
                )
            case Fixed():
                return _whole(input_tokens), _whole(output_tokens)


def _relative(rng: np.random.Generator, cv_ratio: float, count: int) -> Floats:
    """Lognormal of mean 1: sigma^2 = ln(1 + cv^2), mu = -sigma^2 / 2."""
    variance = math.log1p(cv_ratio**2)
    return rng.lognormal(-variance / 2, math.sqrt(variance), count)


def _whole(tokens: Floats) -> Counts:
    return np.maximum(np.rint(tokens), 1).astype(np.int64)
