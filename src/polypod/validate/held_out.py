"""What three rows of one's own are worth: groups of the rows that ship, calibrated on three rows each, and the rest predicted.

A draw takes one row each from the lower, the middle and the upper third of a cell by concurrency. A cell is a system, a model, an engine and a precision.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from polypod.cost.bands import Metric
from polypod.cost.own import Key
from polypod.validate.calibrate import calibrate
from polypod.validate.own import under
from polypod.validate.predict import group_of
from polypod.validate.scores import Scored

DRAWS: Final = 10
_LEAST: Final = 12
_LEAST_OF_BAND: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rows that no calibration saw, as predicted without one and with one; drawn several times, so a row counts as often."""

    cells: int
    draws: int
    before: tuple[Scored, ...]
    after: tuple[Scored, ...]


def held_out(scored: Sequence[Scored], draws: int = DRAWS) -> HeldOut:
    """Plain co-located rows of every cell with twelve or more."""
    cells = [rows for key, rows in _cells(scored).items() if key[-1] == "agg" and len(rows) >= _LEAST]  # fmt: skip
    before: list[Scored] = []
    after: list[Scored] = []
    for seed in range(draws):
        generator = np.random.default_rng(seed)
        for rows in cells:
            drawn = _drawn(rows, generator)
            rest = [one for one in rows if one not in drawn]
            before += rest
            after += _under_a_fit(drawn, rest)
    return HeldOut(cells=len(cells), draws=draws, before=tuple(before), after=tuple(after))


def within_groups(scored: Sequence[Scored], kind: str, metric: Metric) -> tuple[int, float, float]:
    """Rows, and the 10th and 90th percentile of measured over predicted about each group's own median: what `bands.toml` holds as calibrated.

    Raises `ValueError` where no group of this kind has eight rows.
    """
    residuals: list[float] = []
    for key, rows in _cells(scored).items():
        logs = [math.log(times[0] / times[1]) for one in rows if (times := one.times(metric))]
        if key[-1] == kind and len(logs) >= _LEAST_OF_BAND:
            residuals += [log - float(np.median(logs)) for log in logs]
    if not residuals:
        msg = f"no group of kind {kind!r} has {_LEAST_OF_BAND} rows with a {metric}"
        raise ValueError(msg)
    low, high = np.exp(np.quantile(residuals, [0.1, 0.9]))
    return len(residuals), float(low), float(high)


def _cells(scored: Iterable[Scored]) -> dict[Key, list[Scored]]:
    cells: dict[Key, list[Scored]] = defaultdict(list)
    for one in scored:
        if one.prediction is not None:
            cells[group_of(one.row)].append(one)
    return dict(sorted(cells.items()))


def _drawn(rows: Sequence[Scored], generator: np.random.Generator) -> list[Scored]:
    ordered = sorted(rows, key=lambda one: one.row.concurrency)
    third = len(ordered) / 3
    return [
        ordered[int(generator.integers(round(part * third), round((part + 1) * third)))]
        for part in range(3)
    ]


def _under_a_fit(drawn: Sequence[Scored], rest: Sequence[Scored]) -> Iterator[Scored]:
    found = calibrate([("", one.row) for one in drawn], accept=True).groups
    fit = found[0].own_fit(date="") if found else None
    for one in rest:
        if one.prediction is not None:
            yield Scored(row=one.row, prediction=under(fit, one.prediction, one.row))
