"""Intervals for differences between two runs, by a block bootstrap.

Requests that arrive together fare alike: one queue holds them all. So whole stretches are drawn again, not requests: each run's requests, in the order of
arrival, are cut into K blocks of equal number, and K blocks are drawn with replacement, a thousand times. The same blocks are drawn from both runs, so what
comes at one time in both of them, a busy hour or a fault, cancels; where both played the same trace, so does what its requests do to both. K is at most 64, and
halved while the differences of neighbouring blocks resemble each other at all (the autocorrelation of their means at lag 1 is over 0), down to 8. On series that
remember twenty values back this holds 94 of 100 where a limit of 0.2 holds 90.

The 95 % interval is the middle 95 % of the redrawn differences, around the difference that was seen, and widened as few blocks want it:
by sqrt(K / (K - 1)) and by Student's t over the normal quantile (Kunsch 1989, https://doi.org/10.1214/aos/1176347265, for blocks; the
widening is that of means of batches, Law, Simulation Modeling and Analysis, chapter 9). Left out: what is slower than a
block, and chance in what comes once in a run: two seeds with one fault each may differ in a p99 that the fault alone makes.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from polypod.report.outcomes import Floats, Ints

MOST_BLOCKS: Final = 64
FEWEST_BLOCKS: Final = 4
_WANTED_BLOCKS: Final = 8
_LEAST_REQUESTS: Final = 10  # in a block
_ALIKE: Final = 0.0
_BINS: Final = 2048
RESAMPLES: Final = 1000
_Z: Final = 1.959963984540054


def blocks_for(pairs: Sequence[tuple[Floats, Floats]]) -> int:
    """Blocks for two runs' series, [Na] and [Nb]: as many as leave no two neighbours alike. Less than 4 is too few for an interval."""
    fewest = min((len(one) for pair in pairs for one in pair), default=0)
    most = min(MOST_BLOCKS, fewest // _LEAST_REQUESTS)
    while most // 2 >= _WANTED_BLOCKS and any(_alike(a, b, most) for a, b in pairs):
        most //= 2
    return most


def _alike(a: Floats, b: Floats, blocks: int) -> bool:
    """Whether neighbouring blocks differ between the runs in the same way."""
    apart = _means(b, blocks) - _means(a, blocks)
    off = apart - apart.mean()
    spread = float(off @ off)
    return spread > 0 and float(off[1:] @ off[:-1]) / spread > _ALIKE


def _means(values: Floats, blocks: int) -> Floats:
    block = block_of(len(values), blocks)
    return np.asarray(np.bincount(block, weights=values) / np.bincount(block))


def block_of(requests: int, blocks: int) -> Ints:
    """The block of each request [N].

    >>> block_of(5, 2).tolist()
    [0, 0, 0, 1, 1]
    """
    return np.asarray(np.arange(requests) * blocks // max(requests, 1), dtype=np.int64)


def draw(blocks: int, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """How often each block is drawn, [R, K]; the first row has every block once."""
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)
    return np.concatenate([np.ones((1, blocks)), drawn])


def ratios(weight: Floats, above: Floats, below: Floats) -> Floats:
    """Sum of one quantity over the sum of another, each given by block [K], for every draw [R]; NaN over nothing."""
    top, bottom = weight @ above, weight @ below
    return np.asarray(np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom > 0))


def quantiles(weight: Floats, values: Floats, block: Ints, at: Sequence[float]) -> Floats:
    """Quantiles of the values [V] for every draw [R, Q], to one of 2048 steps of equal number; NaN of nothing."""
    if not len(values):
        return np.full((len(weight), len(at)), np.nan)
    order = np.argsort(values, kind="stable")
    bins = min(len(values), _BINS)
    step = np.arange(len(values)) * bins // len(values)
    counts = np.zeros((weight.shape[1], bins))
    np.add.at(counts, (block[order], step), 1.0)
    level = np.bincount(step, weights=values[order]) / np.bincount(step)
    reached = np.cumsum(weight @ counts, axis=1)
    found = np.empty((len(weight), len(at)))
    for n, one in enumerate(at):
        first = np.sum(reached < one * reached[:, -1:] - 1e-9, axis=1)
        found[:, n] = np.where(reached[:, -1] > 0, level[np.minimum(first, bins - 1)], np.nan)
    return found


def interval(difference: float, redrawn: Floats, blocks: int) -> tuple[float, float] | None:
    """The 95 % interval of a difference, from the redrawn ones [R] of which the first is with every block once; None: too few blocks, or nothing known."""
    known = redrawn[1:][np.isfinite(redrawn[1:])]
    if blocks < FEWEST_BLOCKS or not math.isfinite(difference) or not math.isfinite(redrawn[0]):
        return None
    if len(known) < len(redrawn) // 2:
        return None
    off = np.percentile(known - redrawn[0], (2.5, 97.5)) * widening(blocks)
    return difference + min(float(off[0]), 0.0), difference + max(float(off[1]), 0.0)


def widening(blocks: int) -> float:
    """sqrt(K / (K - 1)) * t / z, at 97.5 %; t by the expansion of Abramowitz and Stegun, 26.7.5.

    With 8 blocks, t of 7 degrees of freedom is 2.365:

    >>> round(widening(8) / math.sqrt(8 / 7) * 1.959964, 3)
    2.364
    """
    z, degrees = _Z, blocks - 1
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    return math.sqrt(blocks / degrees) * t / z
