"""A prediction under a person's own calibration: times multiplied, bands those of their rows."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from polypod.cost.bands import Band
from polypod.cost.own import OwnFit, OwnMetric
from polypod.validate.rows import Row

if TYPE_CHECKING:
    from polypod.validate.predict import Prediction


def under(fit: OwnFit | None, found: "Prediction", row: Row) -> "Prediction":
    """What was predicted of a row, as the fit corrects it; as it is without one."""
    if fit is None or (fit.tpot is None and fit.ttft is None):
        return found
    return replace(
        found,
        ttft_s=found.ttft_s * fit.ttft_factor,
        tpot_s=found.tpot_s * fit.tpot_factor,
        ttft_band=_band(fit.ttft, found.ttft_band),
        tpot_band=_band(fit.tpot, found.tpot_band),
        evidence="calibrated",
        notes=(*found.notes, *_of_another_version(fit, row)),
    )


def _band(fit: OwnMetric | None, otherwise: Band) -> Band:
    return otherwise if fit is None else Band(math.exp(fit.log_low), math.exp(fit.log_high))


def _of_another_version(fit: OwnFit, row: Row) -> tuple[str, ...]:
    if not row.version or not fit.versions or row.version in fit.versions:
        return ()
    seen = ", ".join(fit.versions)
    return (f"calibrated under {fit.engine} {seen}, this row is of {row.version}",)
