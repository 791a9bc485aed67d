"""Scores against numbers worked out by hand."""

import math

import pytest

from polypod.cost.bands import Band
from polypod.validate.predict import Prediction
from polypod.validate.rows import Row, Workers
from polypod.validate.scores import Scored, by_evidence, groups, noise, residual_band, score, worst
from polypod.workload.layout import Layout


def scored(measured_s: float, predicted_s: float, model: str = "m") -> Scored:
    row = Row(
        id=f"{measured_s}", line=2, system="s", model=model, backend="b", version="", precision="fp8",
        mode="agg", input_tokens=1.0, output_tokens=1.0, concurrency=1.0, workers=Workers(layout=Layout()), tpot_s=measured_s,
    )  # fmt: skip
    band = Band(0.8, 1.25)
    return Scored(
        row=row,
        prediction=Prediction(ttft_s=1.0, tpot_s=predicted_s, ttft_band=band, tpot_band=band, evidence="own kernels"),
    )  # fmt: skip


def test_errors_are_relative_to_what_was_measured() -> None:
    found = score([scored(1.0, 1.05), scored(1.0, 0.85), scored(1.0, 1.5)], "tpot")
    assert found is not None
    assert found.n == 3
    assert found.median_abs_error == pytest.approx(0.15)
    assert found.mean_abs_error == pytest.approx(0.7 / 3)
    assert found.bias == pytest.approx(0.05)
    assert (found.within_10, found.within_20) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert found.coverage == pytest.approx(2 / 3)  # 1 / 1.5 lies below 0.8
    assert found.median_band_ratio == pytest.approx(1.25 / 0.8)


def test_the_interval_score_counts_width_and_ten_times_the_miss() -> None:
    inside, outside = score([scored(1.0, 1.0)], "tpot"), score([scored(1.0, 1.5)], "tpot")
    assert inside is not None
    assert outside is not None
    assert inside.interval_score == pytest.approx(math.log(1.25 / 0.8))
    miss = math.log(0.8) - math.log(1 / 1.5)
    assert outside.interval_score == pytest.approx(math.log(1.25 / 0.8) + 10 * miss)


def test_what_was_not_measured_is_not_scored() -> None:
    assert score([scored(1.0, 1.0)], "ttft") is None


def test_groups_are_what_rows_have_in_common() -> None:
    found = groups([scored(1.0, 1.0), scored(1.0, 1.2), scored(1.0, 2.0, model="n")])
    assert [(one.model, one.tpot.n if one.tpot else 0) for one in found] == [("m", 2), ("n", 1)]


def test_the_worst_come_first_whichever_way_they_are_off() -> None:
    found = worst([scored(1.0, 1.1), scored(1.0, 0.25), scored(1.0, 3.0)], "tpot", most=2)
    assert [ratio for _, ratio in found] == [0.25, 3.0]


def test_a_band_from_residuals_leaves_out_a_tenth_on_each_side() -> None:
    rows = [scored(1 + n / 100, 1.0) for n in range(101)]
    assert residual_band(rows, "tpot") == (pytest.approx(1.1), pytest.approx(1.9))


def test_noise_is_how_far_repeats_lie_apart_and_nothing_where_there_are_none() -> None:
    # pairs of 1.0, 1.1 and 1.32: 10 %, 20 % and 32 %
    found = noise([scored(1.0, 1.0), scored(1.1, 1.0), scored(1.32, 1.0)], "tpot")
    assert found is not None
    assert (found.pairs, found.median_abs_error) == (3, pytest.approx(0.2))
    assert noise([scored(1.0, 1.0), scored(1.0, 1.0, model="n")], "tpot") is None
    assert noise([scored(1.0, 1.0), scored(1.0, 1.0)], "ttft") is None


def test_rows_are_told_by_what_their_predictions_rest_on() -> None:
    found = by_evidence([scored(1.0, 1.0), Scored(row=scored(1.0, 1.0).row, prediction=None)])
    assert {name: len(rows) for name, rows in found.items()} == {"own kernels": 1}
