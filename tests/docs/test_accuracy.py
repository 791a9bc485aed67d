"""The accuracy page says what the code says now, and what it must reach."""

from pathlib import Path

import pytest

from polypod.validate.page import kinds
from polypod.validate.scores import Score, residual_band, score
from polypod.validate.shipped import shipped_page, shipped_scored

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text(encoding="utf-8") == shipped_page(), "run python scripts/accuracy.py"


def scored(kind: str, metric: str) -> Score:
    found = score(kinds(shipped_scored())[kind], metric)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_tpot_of_co_located_rows_with_nothing_fitted_to_them() -> None:
    found = scored("co-located", "tpot")
    assert found.median_abs_error <= 0.08
    assert found.within_20 >= 0.87
    assert 0.76 <= found.coverage <= 0.86
    assert found.median_band_ratio <= 1.6


def test_ttft_of_co_located_rows() -> None:
    found = scored("co-located", "ttft")
    assert found.median_abs_error <= 0.22
    assert found.within_20 >= 0.50
    assert 0.76 <= found.coverage <= 0.86
    assert found.median_band_ratio <= 3


def test_drafting_and_disaggregated_tpot() -> None:
    assert scored("co-located, drafting", "tpot").median_abs_error <= 0.15
    assert scored("prefill and decode apart", "tpot").median_abs_error <= 0.13


@pytest.mark.parametrize(
    ("system", "chip"), [("b200_sxm", "nvidia-b200-hgx"), ("h100_sxm", "nvidia-h100-sxm")]
)
def test_a_system_left_out_is_predicted_from_another_chips_kernels(system: str, chip: str) -> None:
    rows = [one for one in shipped_scored(frozenset({chip})) if one.row.system == system]
    assert {one.prediction.evidence for one in rows if one.prediction} <= {"transferred", "same family"}  # fmt: skip
    found = score(kinds(rows)["co-located"], "tpot")
    assert found is not None
    assert found.median_abs_error <= 0.15
    assert found.coverage >= 0.70


@pytest.mark.parametrize("metric", ["tpot", "ttft"])
def test_the_bands_of_own_kernels_are_those_of_the_residuals(metric: str) -> None:
    rows = kinds(shipped_scored())["co-located"]
    low, high = residual_band(rows, metric)  # type: ignore[arg-type]
    band = next(one.prediction for one in rows if one.prediction)
    kept = band.tpot_band if metric == "tpot" else band.ttft_band
    assert kept.low == pytest.approx(low, abs=0.04)
    assert kept.high == pytest.approx(high, rel=0.04)
