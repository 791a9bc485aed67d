"""Claims of serving speed, ruled by the prediction of the published figure that each names."""

from collections.abc import Sequence
from dataclasses import replace

from polypod.catalog.verdicts import Ruling, Verdict
from polypod.units import significant
from polypod.validate.point_bands import PredictedPoint, predict_point
from polypod.validate.shipped import read_shipped_points


def by_prediction(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The same, in order; those that name a figure that can be predicted ruled by its band."""
    points = {point.id: point for point in read_shipped_points()}
    return [
        ruled(one, predict_point(points[one.point])) if one.point in points else one
        for one in verdicts
    ]


def ruled(verdict: Verdict, beside: PredictedPoint) -> Verdict:
    """Reproduced inside the band, contradicted outside; as it was where nothing is predicted or no figure claimed."""
    predicted, low, high = beside.predicted, beside.low, beside.high
    if predicted is None or low is None or high is None or verdict.claimed is None:
        return verdict
    in_si, unit = (1e-3, " ms") if beside.point.metric.endswith("_ms") else (1.0, "")
    ruling: Ruling = "contradicted"
    if low * in_si <= verdict.claimed <= high * in_si:
        ruling = "reproduced"
    where = "inside" if ruling == "reproduced" else "outside"
    return replace(
        verdict,
        ours=predicted * in_si,
        ruling=ruling,
        predicted=True,
        reason=f"by prediction: {significant(predicted)}{unit} under its conditions ({beside.point.conditions}); it lies {where} "
        f"the band of {significant(low)} to {significant(high)}{unit}; on record: {verdict.reason}",
    )
