"""The frontier of a model on a fleet: deployments that nothing beats in TTFT, TPOT and tokens/s per accelerator at once.

Every layout at every batch and budget that `plan.search` asks, by its closed form, on every island; then those of which another is at least as good in all three
and better in one are left out. Limits of the question are not asked: they are read off.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from polypod.cost.deployment import Deployment, native_precision
from polypod.errors import LayoutError
from polypod.plan.place import Island
from polypod.plan.search import (
    CHUNKS,
    UTILISATION_LIMIT,
    Floats,
    Question,
    batches,
    layouts,
    steady,
)
from polypod.workload.layout import check_layout, leaves_copies


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


def frontier(question: Question, islands: Sequence[Island]) -> list[Point]:
    """Fastest TPOT first."""
    found: list[tuple[Deployment, Island, Floats]] = []
    for island in islands:
        for deployment in _deployments(question, island):
            rows = _grid(question, deployment)
            if rows.size:
                found.append((deployment, island, rows[_unbeaten(rows)]))
    if not found:
        return []
    every = np.concatenate([rows for *_, rows in found])
    whose = np.repeat(np.arange(len(found)), [len(rows) for *_, rows in found])
    kept = _unbeaten(every)
    order = kept[np.argsort(every[kept, 1])]
    return [_point(found[int(whose[at])], every[at]) for at in order]


def _deployments(question: Question, island: Island) -> Iterator[Deployment]:
    precision = native_precision(question.model, island.rank)
    reach = island.rank.reach
    for layout in layouts(question.model, island):
        if reach is not None and layout.world > reach:
            continue
        try:
            check_layout(question.model, layout)
        except LayoutError:
            continue
        if not leaves_copies(question.model, layout):
            yield Deployment.make(question.model, layout, precision, island.rank)


def _grid(question: Question, deployment: Deployment) -> Floats:
    """Rows of TTFT, TPOT, minus tokens/s per accelerator, sequences a rank, budget."""
    whole = question.input_tokens + question.output_tokens
    half = question.input_tokens + question.output_tokens / 2
    memory = deployment.memory(whole)
    if memory.tokens_of(whole) < whole:
        return np.empty((0, 5))
    batch = batches(int(memory.tokens_of(half) // half))[None, :]
    chunk = np.array(CHUNKS, dtype=float)[:, None] + 0 * batch
    load = steady(question, deployment, batch, chunk)
    each = load.tokens_per_s / deployment.accelerators
    budget = chunk + batch
    rows = np.stack([load.ttft_s, load.tpot_s, -each, batch + 0 * each, budget], axis=-1)
    return np.asarray(rows[load.prompt_share < UTILISATION_LIMIT])


def _unbeaten(rows: Floats) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Numbers of the rows that no other beats in the first three columns, all of them less the better: best TPOT first, kept where none before is as
    good in both others."""
    order = np.lexsort((rows[:, 2], rows[:, 0], rows[:, 1]))
    kept: list[int] = []
    stairs = np.empty((0, 2))
    for at in order.tolist():
        ttft_s, worth = rows[at, 0], rows[at, 2]
        if stairs.size and ((stairs[:, 0] <= ttft_s) & (stairs[:, 1] <= worth)).any():
            continue
        kept.append(at)
        beaten = (stairs[:, 0] >= ttft_s) & (stairs[:, 1] >= worth) if stairs.size else np.zeros(0, dtype=bool)  # fmt: skip
        stairs = np.vstack([stairs[~beaten], [[ttft_s, worth]]])
    return np.array(kept, dtype=np.intp)


def _point(of: tuple[Deployment, Island, Floats], row: Floats) -> Point:
    deployment, island, _ = of
    return Point(
        island=island,
        deployment=deployment,
        sequences_per_rank=int(row[3]),
        max_step_tokens=int(row[4]),
        ttft_s=float(row[0]),
        tpot_s=float(row[1]),
        tokens_per_s_per_accelerator=-float(row[2]),
    )


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """So many of them, spread evenly over the logarithm of TPOT, ends kept."""
    if len(points) <= most:
        return list(points)
    logs = np.log([one.tpot_s for one in points])
    wanted = np.linspace(logs[0], logs[-1], most)
    numbers = {int(np.argmin(np.abs(logs - at))) for at in wanted}
    return [points[number] for number in sorted(numbers)]
