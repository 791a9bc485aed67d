"""A point beside its prediction: the band it should lie in, and how points of one vendor do together."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polypod.catalog.load import load_accelerator
from polypod.cost.bands import band_of
from polypod.cost.calibration import CASES, Case, Evidence
from polypod.errors import PolypodError
from polypod.validate.point_metrics import value_of
from polypod.validate.point_timing import Timing, with_links
from polypod.validate.points import SERVING, Point
from polypod.validate.predict import rank_for, reason_of


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedPoint:
    """A point beside its prediction; or why there is none.

    `low` and `high` are those of the slow and fast calibration, and of serving the ends of the 80 % band where that is wider.
    """

    point: Point
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    evidence: Evidence | None = None
    reason: str = ""

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one."""
        return None if self.predicted is None else self.predicted / self.point.value - 1

    @property
    def is_inside(self) -> bool:
        """Whether the band holds the measurement."""
        return self.holds(self.point.value)

    @property
    def is_outside(self) -> bool:
        """Whether there is a prediction, and its band does not hold the measurement."""
        return self.predicted is not None and not self.is_inside

    def holds(self, value: float) -> bool:
        """Whether the band holds a figure in the metric's unit."""
        return self.low is not None and self.high is not None and self.low <= value <= self.high


def predict_point(point: Point, *, without: frozenset[str] = frozenset()) -> PredictedPoint:
    """Predict one point; where the catalog, the layout or the conditions do not allow it, the reason is kept."""
    try:
        chip = load_accelerator(point.chip)
        rank = with_links(rank_for(chip.id, point.backend, without), point)
        ways = {case: value_of(Timing(point=point, rank=rank, case=case)) for case in CASES}
    except PolypodError as error:
        return PredictedPoint(point=point, reason=reason_of(error))
    evidence = rank.calibration.evidence
    low, high = _band(point, ways, evidence)
    return PredictedPoint(
        point=point, predicted=ways["likely"], low=low, high=high, evidence=evidence
    )


def _band(point: Point, ways: Mapping[Case, float], evidence: Evidence) -> tuple[float, float]:
    """Kernels and exchanges: what the calibration leaves open. Serving: the residuals of its evidence too, whichever is wider."""
    ends = [*ways.values()]
    if point.metric in SERVING:
        band = band_of(evidence, "agg", "ttft" if point.metric == "ttft_ms" else "tpot")
        slower, faster = (
            (band.high, band.low) if point.metric.endswith("_ms") else (1 / band.high, 1 / band.low)
        )
        ends += [ways["likely"] * slower, ways["likely"] * faster]
    return min(ends), max(ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How the points of one vendor do. `explained` lie outside their band, with a sentence why; `outside` without one."""

    vendor: str
    n: int
    median_abs_error: float | None
    serving_abs_error: float | None  # the same of serving alone, which nothing was fitted to
    inside: int
    explained: int
    outside: int
    not_predicted: int


NVIDIA = "NVIDIA"


def tallies(found: Sequence[PredictedPoint]) -> list[Tally]:
    """By vendor, most points first; then all but NVIDIA's, and all."""
    by_vendor: dict[str, list[PredictedPoint]] = {}
    for one in found:
        by_vendor.setdefault(vendor_of(one.point), []).append(one)
    ranked = sorted(by_vendor.items(), key=lambda item: (-len(item[1]), item[0]))
    others = [one for vendor, own in ranked if vendor != NVIDIA for one in own]
    rows = [_tally(vendor, own) for vendor, own in ranked]
    if len(rows) > 1:
        rows += [_tally(f"all but {NVIDIA}", others)] if NVIDIA in by_vendor else []
        rows.append(_tally("all", found))
    return rows


def vendor_of(point: Point) -> str:
    """Who makes the point's chip; the chip itself where the catalog does not know it."""
    try:
        return load_accelerator(point.chip).vendor
    except PolypodError:
        return point.chip


def _tally(vendor: str, found: Sequence[PredictedPoint]) -> Tally:
    errors = [abs(one.error) for one in found if one.error is not None]
    serving = [
        abs(one.error) for one in found if one.error is not None and one.point.metric in SERVING
    ]
    outside = [one for one in found if one.is_outside]
    explained = sum(bool(one.point.explained) for one in outside)
    return Tally(
        vendor=vendor,
        n=len(found),
        median_abs_error=statistics.median(errors) if errors else None,
        serving_abs_error=statistics.median(serving) if serving else None,
        inside=sum(one.is_inside for one in found),
        explained=explained,
        outside=len(outside) - explained,
        not_predicted=len(found) - len(errors),
    )
