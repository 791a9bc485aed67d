"""The frontier of a model on a fleet: deployments that nothing beats in TTFT, TPOT, tokens/s per accelerator, dollars and joules per token at once.

Every layout at every batch and budget that `plan.search` asks, by its closed form, on every island. On one island, where an accelerator's hour is nearly
the same whatever runs on it, those are left out of which another is at least as good in the first three and better in one; then, over all
islands, in all five. What has no price or power on record is beaten by nothing in it. Limits of the question are not asked: they are read off.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from polypod.cost.deployment import Deployment, native_precision
from polypod.plan.energy import Estimate, likely_fraction, serving_at
from polypod.plan.money import Card, Site
from polypod.plan.place import Island
from polypod.plan.search import (
    UTILISATION_LIMIT,
    Floats,
    Question,
    batches,
    chunks_of,
    own_scale,
    possible_layouts,
    steady,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One deployment on the frontier."""

    island: Island
    deployment: Deployment
    sequences_per_rank: int
    max_step_tokens: int
    ttft_s: float
    tpot_s: float
    tokens_per_s_per_accelerator: float
    usd_per_million_tokens: float | None  # None: no price on record
    joules_per_million_tokens: float | None  # with cooling

    @property
    def figures(self) -> tuple[float | None, ...]:
        """All less the better."""
        return self.ttft_s, self.tpot_s, -self.tokens_per_s_per_accelerator, self.usd_per_million_tokens, self.joules_per_million_tokens  # fmt: skip


def frontier(question: Question, islands: Sequence[Island], at: Site) -> list[Point]:
    """Fastest TPOT first."""
    points = [point for island in islands for point in _of_island(question, island, at)]
    return sorted(_unbeaten_points(points), key=lambda one: one.tpot_s)


def _unbeaten_points(points: Sequence[Point]) -> list[Point]:
    """Those of which no other is at least as good in every figure and better in one."""
    figures = np.array([[np.nan if one is None else one for one in point.figures] for point in points])  # fmt: skip
    theirs, mine = np.nan_to_num(figures, nan=np.inf), np.nan_to_num(figures, nan=-np.inf)
    return [
        point
        for point, row in zip(points, mine, strict=True)
        if not ((theirs <= row).all(axis=1) & (theirs < row).any(axis=1)).any()
    ]


def _of_island(question: Question, island: Island, at: Site) -> list[Point]:
    found: list[tuple[Deployment, Floats]] = []
    for deployment in _deployments(question, island):
        rows = _grid(question, deployment)
        if rows.size:
            found.append((deployment, rows[_unbeaten(rows)]))
    if not found:
        return []
    every = np.concatenate([rows for _, rows in found])
    whose = np.repeat(np.arange(len(found)), [len(rows) for _, rows in found])
    return [_point(question, found[int(whose[n])][0], island, every[n], at) for n in _unbeaten(every)]  # fmt: skip


def _deployments(question: Question, island: Island) -> Iterator[Deployment]:
    precision = native_precision(question.model, island.rank)
    scale = own_scale(question, island, precision)
    for layout in possible_layouts(question.model, island):
        yield Deployment.make(question.model, layout, precision, island.rank, scale)


def _grid(question: Question, deployment: Deployment) -> Floats:
    """Rows of TTFT, TPOT, minus tokens/s per accelerator, sequences a rank, budget."""
    whole = question.input_tokens + question.output_tokens
    half = question.input_tokens + question.output_tokens / 2
    memory = deployment.memory(whole)
    if memory.tokens_of(whole) < whole:
        return np.empty((0, 5))
    batch = batches(int(memory.tokens_of(half) // half))[None, :]
    chunk = chunks_of(question, batch[0])
    load = steady(question, deployment, batch, chunk)
    each = load.tokens_per_s / deployment.accelerators
    budget = chunk + batch
    rows = np.stack([load.ttft_s, load.tpot_s, -each, batch + 0 * each, budget], axis=-1)
    return np.asarray(rows[(load.prompt_share < UTILISATION_LIMIT) & (chunk > 0)])


def _unbeaten(rows: Floats) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Numbers of the rows that no other beats in the first three columns, all of them less the better: best TPOT first, kept where none before is as
    good in both others."""
    order = np.lexsort((rows[:, 2], rows[:, 0], rows[:, 1]))
    kept: list[int] = []
    ttfts: list[float] = []
    worths: list[float] = []  # of what is kept and not beaten in both: one rises, the other falls
    for at, (ttft_s, worth) in zip(order.tolist(), rows[order][:, [0, 2]].tolist(), strict=True):
        before = bisect_right(ttfts, ttft_s)
        if before and worths[before - 1] <= worth:
            continue
        kept.append(at)
        first = bisect_left(ttfts, ttft_s)
        last = first + next((n for n, one in enumerate(worths[first:]) if one < worth), len(worths) - first)  # fmt: skip
        ttfts[first:last], worths[first:last] = [ttft_s], [worth]
    return np.array(kept, dtype=np.intp)


def _point(question: Question, deployment: Deployment, island: Island, row: Floats, at: Site) -> Point:  # fmt: skip
    tokens_per_s = -float(row[2])
    run = serving_at(question, deployment, sequences=float(row[3]), chunk_tokens=float(row[4] - row[3]))  # fmt: skip
    card = Card.of(island, Estimate.exactly(likely_fraction(run)), at)
    a_million_s = Estimate.exactly(1e6 / tokens_per_s)
    usd, joules = card.usd(a_million_s), card.joules(a_million_s)
    return Point(
        island=island,
        deployment=deployment,
        sequences_per_rank=int(row[3]),
        max_step_tokens=int(row[4]),
        ttft_s=float(row[0]),
        tpot_s=float(row[1]),
        tokens_per_s_per_accelerator=tokens_per_s,
        usd_per_million_tokens=None if usd is None else usd.likely,
        joules_per_million_tokens=None if joules is None else joules.likely,
    )


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """So many of them, spread evenly over the logarithm of TPOT, ends kept."""
    if len(points) <= most:
        return list(points)
    logs = np.log([one.tpot_s for one in points])
    wanted = np.linspace(logs[0], logs[-1], most)
    numbers = {int(np.argmin(np.abs(logs - at))) for at in wanted}
    return [points[number] for number in sorted(numbers)]
