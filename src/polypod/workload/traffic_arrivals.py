"""When requests arrive: seeded processes, an endless stream of times in pieces of `DRAWN`.

Drawn piece by piece in one size, whatever size is asked for later: the same seed gives the same times however they are read.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from polypod.errors import InputError
from polypod.workload.traffic_rows import Floats

DRAWN: Final = 16_384
DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson:
    """Nobody knows of another: exponential gaps. The first request is at second 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gamma:
    """Gaps of the Gamma distribution: `cv_ratio` is their standard deviation over their mean.

    1 is Poisson, above 1 is bursts, below 1 is evener. The first request is at second 0.
    """

    cv_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.cv_ratio < math.inf:
            msg = f"gamma with cv={self.cv_ratio:g} draws no gaps; give a positive number, as 4"
            raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Diurnal:
    """Poisson with a rate that follows the day, whose mean over the day is the rate asked for.

    A sinusoid, `peak_ratio` times as high at its peak as at its trough, the peak `peak_at_s` after midnight; or with `hours` 24 relative
    rates, one an hour from midnight. Second 0 is `start_s` after midnight.
    """

    peak_ratio: float = 3.0
    peak_at_s: float = 14 * 3600.0
    start_s: float = 0.0
    hours: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.peak_ratio < math.inf:
            msg = f"diurnal with peak={self.peak_ratio:g}: the peak is so many times the trough; give 1 or more"
            raise InputError(msg)
        if self.hours and (len(self.hours) != 24 or min(self.hours) < 0 or max(self.hours) <= 0):
            msg = f"diurnal with {len(self.hours)} hours {self.hours}; give 24 rates from 0 on, one of them above 0"
            raise InputError(msg)

    def relative(self, at_s: Floats) -> Floats:
        """The rate at these times over the day's mean."""
        clock_s = at_s + self.start_s
        if self.hours:
            profile = np.array(self.hours) / np.mean(self.hours)
            hourly: Floats = profile[(clock_s // 3600).astype(np.int64) % 24]
            return hourly
        swing = (self.peak_ratio - 1) / (self.peak_ratio + 1)
        wave: Floats = 1 + swing * np.cos((clock_s - self.peak_at_s) * (2 * math.pi / DAY_S))
        return wave

    @property
    def highest(self) -> float:
        """The peak over the day's mean."""
        if self.hours:
            return max(self.hours) / (sum(self.hours) / 24)
        return 2 * self.peak_ratio / (self.peak_ratio + 1)


Arrivals = Poisson | Gamma | Diurnal


def times_s(arrivals: Arrivals, rate_per_s: float, seed: int) -> Iterator[Floats]:
    """Arrival times without an end, ascending, in pieces. Raises `InputError` for a rate that is not positive."""
    if not 0 < rate_per_s < math.inf:
        msg = f"rate_per_s={rate_per_s} makes no traffic; give a positive number"
        raise InputError(msg)
    rng = np.random.default_rng(seed)
    if isinstance(arrivals, Diurnal):
        yield from _thinned(arrivals, rate_per_s, rng, np.random.default_rng([seed, 2]))
        return
    first_s = None
    for piece_s in _renewals(arrivals, rate_per_s, rng):
        first_s = piece_s[0] if first_s is None else first_s
        yield piece_s - first_s


def _renewals(
    arrivals: Poisson | Gamma, rate_per_s: float, rng: np.random.Generator
) -> Iterator[Floats]:
    last_s = 0.0
    while True:
        if isinstance(arrivals, Gamma):
            shape = 1 / arrivals.cv_ratio**2
            gaps_s = rng.gamma(shape, 1 / (rate_per_s * shape), DRAWN)
        else:
            gaps_s = rng.exponential(1 / rate_per_s, DRAWN)
        gaps_s[0] += last_s
        piece_s = np.cumsum(gaps_s)
        last_s = float(piece_s[-1])
        yield piece_s


def _thinned(
    arrivals: Diurnal, rate_per_s: float, rng: np.random.Generator, keep: np.random.Generator
) -> Iterator[Floats]:
    """Of a Poisson process at the peak's rate, each time is kept with the share that its rate is of the peak's (Lewis and Shedler 1979)."""
    for piece_s in _renewals(Poisson(), rate_per_s * arrivals.highest, rng):
        is_kept = keep.random(len(piece_s)) * arrivals.highest < arrivals.relative(piece_s)
        yield piece_s[is_kept]
