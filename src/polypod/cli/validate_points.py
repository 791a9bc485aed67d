"""Points beside their predictions, in 80 columns or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from polypod.report.tables import entry, table
from polypod.validate.point_bands import PredictedPoint, Tally, tallies

_ID = 28


def points_json(found: Sequence[PredictedPoint]) -> str:
    """Every point, and each vendor's."""
    raw = {
        "points": [_raw(one) for one in found],
        "vendors": [asdict(one) for one in tallies(found)],
    }
    return json.dumps(raw, indent=2)


def points_text(found: Sequence[PredictedPoint]) -> str:
    """A table of all, a word on each that is missed, a line for each vendor."""
    blocks = [_table(found), _words(found), _vendors(tallies(found))]
    return "\n\n".join(block for block in blocks if block)


def _raw(one: PredictedPoint) -> dict[str, Any]:
    return {
        "id": one.point.id, "metric": one.point.metric, "measured": one.point.value, "predicted": one.predicted,
        "low": one.low, "high": one.high, "error": one.error, "inside": one.is_inside, "evidence": one.evidence,
        "reason": one.reason, "explained": one.point.explained,
    }  # fmt: skip


def _table(found: Sequence[PredictedPoint]) -> str:
    rows = [
        [
            one.point.id[:_ID], one.point.metric.removesuffix("_per_s").replace("_output_", "_"), f"{one.point.value:.3g}",
            "-" if one.predicted is None else f"{one.predicted:.3g}", "-" if one.error is None else f"{one.error:+.0%}",
            "in" if one.is_inside else "out" if one.is_outside else "",
        ]
        for one in found
    ]  # fmt: skip
    header = ["point", "metric", "measured", "predicted", "", "band"]
    return table(header, rows, right=[2, 3, 4])


def _words(found: Sequence[PredictedPoint]) -> str:
    """Why there is no prediction, or why it misses."""
    return "\n".join(entry("-", why, indent=2) for one in found if (why := _why(one)))


def _why(one: PredictedPoint) -> str:
    if one.reason:
        return f"{one.point.id}: not predicted, {one.reason}"
    if one.is_outside:
        return f"{one.point.id}: {one.point.explained or 'outside, and nothing explains it'}"
    return ""


def _vendors(found: Sequence[Tally]) -> str:
    rows = [
        [
            one.vendor, f"{one.n}", _share(one.median_abs_error), _share(one.serving_abs_error),
            f"{one.inside}", f"{one.explained}", f"{one.outside}", f"{one.not_predicted}",
        ]
        for one in found
    ]  # fmt: skip
    header = ["vendor", "n", "median", "serving", "in", "explained", "out", "not predicted"]
    return table(header, rows, right=[1, 2, 3, 4, 5, 6, 7])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
