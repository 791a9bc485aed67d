"""Errors of predictions over measured rows: in all, and by system, model, backend, mode and what they rest on.

An error is |predicted / measured - 1|. Medians and shares say more than means, which a few rows make; both are given. `coverage` is the
share of measurements inside the 80 % band, `median_band_ratio` its width, high over low: a band can be bought with width, so the two are
read together, and `interval_score` counts both (the width on a log scale, plus 10 times what a measurement lies outside it: the interval
score of an 80 % interval, Gneiting and Raftery 2007).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from polypod.cost.bands import Band, Metric
from polypod.validate.predict import Prediction
from polypod.validate.rows import Mode, Row, conditions_of

_LEVEL = 0.8

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A row and what was predicted of it, or why nothing was."""

    row: Row
    prediction: Prediction | None
    reason: str = ""

    def times(self, metric: Metric) -> tuple[float, float, Band] | None:
        """Measured and predicted seconds and the band; None where either is missing."""
        if self.prediction is None:
            return None
        if metric == "ttft":
            measured, predicted, band = self.row.ttft_s, self.prediction.ttft_s, self.prediction.ttft_band  # fmt: skip
        else:
            measured, predicted, band = self.row.tpot_s, self.prediction.tpot_s, self.prediction.tpot_band  # fmt: skip
        return None if not measured else (measured, predicted, band)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well one metric of a group of rows is predicted; `bias` is the median of predicted over measured, less one."""

    n: int
    median_abs_error: float
    mean_abs_error: float
    bias: float
    within_10: float
    within_20: float
    coverage: float
    median_band_ratio: float
    interval_score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that have these in common."""

    system: str
    model: str
    backend: str
    mode: str
    speculative: bool
    evidence: str
    tpot: Score | None
    ttft: Score | None


def score(rows: Iterable[Scored], metric: Metric) -> Score | None:
    """Score one metric; None where no row has both sides."""
    found = [times for one in rows if (times := one.times(metric)) is not None]
    if not found:
        return None
    ratio_R = np.array([predicted / measured for measured, predicted, _ in found])
    error_R = np.abs(ratio_R - 1)
    low_R = np.array([band.low for *_, band in found])
    high_R = np.array([band.high for *_, band in found])
    inside_R = (1 / ratio_R >= low_R) & (1 / ratio_R <= high_R)
    penalty_R = _outside(1 / ratio_R, low_R, high_R)
    width_R = np.log(high_R / low_R)
    return Score(
        n=len(found),
        median_abs_error=float(np.median(error_R)),
        mean_abs_error=float(error_R.mean()),
        bias=float(np.median(ratio_R)) - 1,
        within_10=float((error_R <= 0.1).mean()),
        within_20=float((error_R <= 0.2).mean()),
        coverage=float(inside_R.mean()),
        median_band_ratio=float(np.median(high_R / low_R)),
        interval_score=float((width_R + 2 / (1 - _LEVEL) * penalty_R).mean()),
    )


def _outside(ratio_R: Floats, low_R: Floats, high_R: Floats) -> Floats:
    """How far a measurement lies outside its band, on a log scale; 0 inside."""
    below_R = np.log(low_R) - np.log(ratio_R)
    above_R = np.log(ratio_R) - np.log(high_R)
    return np.asarray(np.maximum(np.maximum(below_R, above_R), 0.0))


Kind = tuple[Mode, bool]
"""How a row was served, and whether it drafted tokens."""


def by_kind(rows: Iterable[Scored]) -> dict[Kind, list[Scored]]:
    """Rows by how they were served: co-located first, drafting after plain; kinds without a row are left out."""
    cells: dict[Kind, list[Scored]] = defaultdict(list)
    for one in rows:
        cells[one.row.mode, one.row.speculative].append(one)
    return dict(sorted(cells.items()))


def groups(rows: Sequence[Scored]) -> list[Group]:
    """Scores by system, model, backend, mode, drafts and evidence, in that order."""
    cells: dict[tuple[str, str, str, str, bool, str], list[Scored]] = defaultdict(list)
    for one in rows:
        if one.prediction is not None:
            row = one.row
            key = (row.system, row.model, row.backend, row.mode, row.speculative, one.prediction.evidence)  # fmt: skip
            cells[key].append(one)
    return [
        Group(
            system=system,
            model=model,
            backend=backend,
            mode=mode,
            speculative=speculative,
            evidence=evidence,
            tpot=score(found, "tpot"),
            ttft=score(found, "ttft"),
        )
        for (system, model, backend, mode, speculative, evidence), found in sorted(cells.items())
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How far repeats of one run lie apart, |one over the other - 1|: what no prediction can be held to. Pairs of the same conditions."""

    pairs: int
    median_abs_error: float


def noise(rows: Sequence[Scored], metric: Metric) -> Noise | None:
    """Over all pairs of rows with the same conditions; None where nothing was repeated. Runs that drafted differ by what was accepted, and are left out."""
    cells: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for one in rows:
        measured = one.row.tpot_s if metric == "tpot" else one.row.ttft_s
        if measured and not one.row.speculative:
            cells[conditions_of(one.row)].append(measured)
    apart = [
        max(pair) / min(pair) - 1 for found in cells.values() for pair in combinations(found, 2)
    ]
    return Noise(pairs=len(apart), median_abs_error=float(np.median(apart))) if apart else None


def by_evidence(rows: Iterable[Scored]) -> dict[str, list[Scored]]:
    """Predicted rows by what their prediction rests on."""
    cells: dict[str, list[Scored]] = defaultdict(list)
    for one in rows:
        if one.prediction is not None:
            cells[one.prediction.evidence].append(one)
    return dict(sorted(cells.items()))


def worst(rows: Sequence[Scored], metric: Metric, most: int = 10) -> list[tuple[Scored, float]]:
    """The rows farthest off on a log scale, with predicted over measured."""
    ratios = [
        (one, times[1] / times[0]) for one in rows if (times := one.times(metric)) is not None
    ]
    return sorted(ratios, key=lambda pair: -abs(math.log(pair[1])))[:most]


def residual_band(rows: Iterable[Scored], metric: Metric) -> tuple[float, float]:
    """The 10th and 90th percentile of measured over predicted: what `bands.toml` holds. Raises `ValueError` without rows."""
    found = [times[0] / times[1] for one in rows if (times := one.times(metric)) is not None]
    if not found:
        msg = f"no row has a measured and a predicted {metric}"
        raise ValueError(msg)
    low, high = np.quantile(found, [0.1, 0.9])
    return float(low), float(high)
