"""Calibrating on rows of one's own: factors by hand, what is not taken in, and rows that no fit saw."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from polypod.catalog.load import use_folder
from polypod.cost.bands import METRICS, Band, Metric, band_of
from polypod.cost.own import OwnFit, OwnMetric, keep, own_files, own_fit
from polypod.errors import FileError
from polypod.validate.calibrate import Fitted, Group, Ratio, calibrate, fit_of, log_factor
from polypod.validate.held_out import HeldOut, held_out, within_groups
from polypod.validate.predict import predict
from polypod.validate.rows import Row, Workers, read_rows
from polypod.validate.scores import score
from polypod.validate.shipped import scored, shipped_scored
from polypod.workload.layout import Layout

EXAMPLE = Path(__file__).parents[2] / "examples" / "serving-rows.csv"
BEFORE = Band(0.8, 1.25)
WITHIN = Band(0.89, 1.13)


def row(number: int, version: str = "1.0") -> Row:
    return Row(
        id=f"row {number}", line=number + 2, system="h100_sxm", model="Qwen/Qwen3-32B", backend="vllm", version=version, precision="fp8",
        mode="agg", input_tokens=1000.0, output_tokens=1000.0, concurrency=4.0 * (number + 1), workers=Workers(layout=Layout(tp=2)),
    )  # fmt: skip


def fitted(*ratios: float, metric: Metric = "tpot", accept: bool = False) -> Fitted:
    """A fit of rows that measured so many times what was predicted of them."""
    found = [
        Ratio(file="mine.csv", row=row(n), measured_s=0.02 * ratio, predicted_s=0.02, band=BEFORE)
        for n, ratio in enumerate(ratios)
    ]
    return fit_of(found, metric, "agg", accept=accept)


def predicted(*factors: float, ttft: bool = True, version: str = "1.0") -> list[tuple[str, Row]]:
    """Rows whose measured times are these factors times what is predicted of them."""
    rows = []
    for n, factor in enumerate(factors):
        bare = row(n, version)
        found = predict(bare, own=False)
        rows.append(("mine.csv", replace(bare, tpot_s=found.tpot_s * factor, ttft_s=found.ttft_s if ttft else None)))  # fmt: skip
    return rows


def only(rows: list[tuple[str, Row]], *, accept: bool = False) -> Group:
    (group,) = calibrate(rows, accept=accept).groups
    return group


# Factors and bands


def test_many_rows_are_believed_and_few_are_pulled_towards_the_prediction() -> None:
    wide = Band(0.7, 1.4)
    factors = [math.exp(log_factor([math.log(1.2)] * n, wide)) for n in (1, 2, 3, 10, 1000)]
    assert factors == sorted(factors)
    assert factors[0] == pytest.approx(1.2 ** (1 / 3))
    assert factors[1] == pytest.approx(1.2 ** (2 / 4))
    assert factors[-1] == pytest.approx(1.2, rel=1e-3)


def test_three_rows_that_agree_on_a_great_factor_are_not_pulled_half_way() -> None:
    factor = math.exp(log_factor([math.log(2.3)] * 3, WITHIN))
    assert factor == pytest.approx(2.3 / (1.13 / 0.89) ** (0.5 / math.sqrt(3)))
    assert factor > 2.1


def test_a_factor_and_its_inverse_are_pulled_alike() -> None:
    assert log_factor([0.3, 0.4], WITHIN) == -log_factor([-0.3, -0.4], WITHIN)


def test_the_band_narrows_with_rows_that_agree_and_never_below_how_well_measurements_repeat() -> None:  # fmt: skip
    widths = [fitted(*[1.1] * n).after.ratio for n in (1, 3, 10, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(1.02**2, rel=0.01)
    assert fitted(*[1.1] * 10_000, metric="ttft").after.ratio == pytest.approx(1.08**2, rel=0.01)


@pytest.mark.parametrize(
    ("rows", "of_class", "of_evidence"),
    [
        (1, (6 * 2 + 1) / 7, 2 / 3),  # a single row has no residual: the class's own stands for it
        (2, 6 * 1.5 / 8, 1 / 2),
        (3, 6 * (1 + 1 / 3) / 9, 0),
        (4, 6 * (1 + 1 / 4) / 10, 0),
    ],
)
def test_the_band_of_rows_that_came_out_as_predicted_is_worked_by_hand(
    rows: int, of_class: float, of_evidence: float
) -> None:
    fit = fitted(*[1.0] * rows).fit
    for found, within, before in ((fit.log_low, WITHIN.low, BEFORE.low), (fit.log_high, WITHIN.high, BEFORE.high)):  # fmt: skip
        square = (1 - of_evidence) * of_class * math.log(within) ** 2 + of_evidence * math.log(before) ** 2  # fmt: skip
        assert abs(found) == pytest.approx(math.sqrt(square))


def test_the_residuals_of_many_rows_make_the_band_theirs() -> None:
    ratios = [1 + n / 2000 for n in range(-300, 301)]
    found = fitted(*ratios)
    low, high = found.after.low, found.after.high
    assert (low, high) == (pytest.approx(1 - 0.12, abs=0.002), pytest.approx(1 + 0.12, abs=0.002))


def test_the_band_of_scattered_rows_is_wider_than_that_of_rows_that_agree() -> None:
    assert fitted(0.85, 0.95, 1.05, 1.15, 1.2).after.ratio > fitted(*[1.05] * 5).after.ratio


def test_the_error_after_is_of_rows_under_the_fit_of_the_others() -> None:
    found = fitted(1.1, 1.1, 1.2)
    factor = [math.exp(log_factor([math.log(ratio) for ratio in others], WITHIN)) for others in ([1.1, 1.2], [1.1, 1.2], [1.1, 1.1])]  # fmt: skip
    within = band_of("calibrated", "agg", "tpot")
    assert within == WITHIN
    errors = sorted(abs(f / ratio - 1) for f, ratio in zip(factor, (1.1, 1.1, 1.2), strict=True))
    assert found.median_abs_error_after == pytest.approx(errors[1])
    assert found.median_abs_error == pytest.approx(1 - 1 / 1.1)
    assert fitted(1.1).median_abs_error_after is None


# What is not taken in


def test_a_row_far_from_its_group_is_set_aside_and_changes_nothing() -> None:
    clean, spoilt = fitted(1.05, 1.1, 1.0, 1.1, 1.05), fitted(1.05, 1.1, 1.0, 1.1, 1.05, 9.0)
    assert [one.row.id for one in spoilt.outliers] == ["row 5"]
    assert spoilt.fit == clean.fit
    assert clean.outliers == ()


def test_a_row_inside_the_predictions_band_is_never_an_outlier() -> None:
    assert fitted(*[1.2499] * 9, 0.8001).outliers == ()


def test_a_row_three_half_widths_of_the_band_away_is_an_outlier_and_one_nearer_is_not() -> None:
    half = 3 * math.log(BEFORE.ratio) / 2
    assert fitted(1.0, 1.01, 0.99, 1.0, math.exp(half - 0.02)).outliers == ()
    assert len(fitted(1.0, 1.01, 0.99, 1.0, math.exp(half + 0.02)).outliers) == 1


def test_rows_that_scatter_as_a_group_are_not_outliers_of_it() -> None:
    assert fitted(0.2, 0.5, 1.0, 2.0, 5.0).outliers == ()


def test_a_group_outside_the_band_is_kept_only_where_it_is_accepted() -> None:
    found = fitted(2.3, 2.3, 2.3)
    assert not found.is_kept
    assert found.doubt == (
        "measured is 2.3 times the prediction, the band ends at 1.25: check the layout, precision and drafts, or say --accept"
    )
    assert fitted(2.3, 2.3, 2.3, accept=True).is_kept
    assert fitted(1.2, 1.2, 1.2).doubt is None


def test_a_factor_that_only_a_unit_can_be_is_not_kept_even_where_it_is_accepted() -> None:
    found = fitted(*[0.001] * 3, accept=True)
    assert not found.is_kept
    assert found.doubt is not None
    assert "are the times in milliseconds?" in found.doubt


@pytest.mark.parametrize(
    ("factor", "says"),
    [
        (1e-3, r"mine\.csv: silicon_tpot_ms is 0\.001 times what is predicted, in the median of 4 rows; .* seconds: multiply them by 1,000"),
        (1e3, r"mine\.csv: silicon_tpot_ms is 1e\+03 times .* microseconds: divide them by 1,000"),
    ],
)  # fmt: skip
def test_a_file_in_another_unit_is_refused_with_the_unit_it_looks_like(
    factor: float, says: str
) -> None:
    with pytest.raises(FileError, match=says):
        calibrate(predicted(*[factor] * 4), accept=True)


def test_several_versions_in_one_group_are_said() -> None:
    rows = predicted(1.1, 1.12) + predicted(1.0, 1.0, 1.11, version="2.0")[2:]
    group = only(rows)
    assert group.versions == ("1.0", "2.0")
    assert group.warnings == (
        "rows of vllm 1.0 and 2.0 are fitted together: the fit is of their mixture",
    )


def test_a_row_that_cannot_be_predicted_is_named_with_its_reason() -> None:
    unknown = replace(row(0), model="nobody/nothing", tpot_s=0.02)
    found = calibrate([("mine.csv", unknown)])
    assert found.groups == ()
    assert "model 'nobody/nothing' is not in the catalog" in found.not_predicted[0].reason


def test_a_run_that_two_files_hold_counts_once() -> None:
    rows = predicted(1.1, 1.1, 1.1)
    assert only([*rows, *(("again.csv", replace(one)) for _, one in rows)]) == only(rows)


def test_what_is_kept_of_a_metric_stays_where_new_rows_do_not_have_it() -> None:
    before = only(predicted(1.1, 1.1, 1.1)).own_fit("2026-01-01")
    assert before is not None
    rows = predicted(1.15, 1.16, 1.17, ttft=False, version="2.0")
    (group,) = calibrate(rows, so_far={before.key: before}).groups
    after = group.own_fit("2026-02-01")
    assert after is not None
    assert after.ttft == before.ttft
    assert after.tpot_factor > before.tpot_factor
    assert after.versions == ("1.0", "2.0")
    assert group.warnings == ("the fit so far is of vllm 1.0, these rows are of 2.0",)


# Predictions under a fit


def kept(**changed: object) -> OwnFit:
    metric = OwnMetric(rows=3, factor=1.5, log_low=-0.1, log_high=0.2)
    given: dict[str, object] = {
        "chip": "nvidia-h100-sxm", "model": "Qwen/Qwen3-32B", "engine": "vllm", "precision": "fp8", "versions": ("1.0",), "tpot": metric,
    }  # fmt: skip
    return OwnFit(**(given | changed))  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_catalog")
def test_a_fit_multiplies_what_is_predicted_and_brings_its_own_band() -> None:
    bare = predict(row(3))
    keep([kept()])
    found = predict(row(3))
    assert found.tpot_s == pytest.approx(1.5 * bare.tpot_s)
    assert (found.ttft_s, found.ttft_band) == (bare.ttft_s, bare.ttft_band)
    assert found.tpot_band == Band(math.exp(-0.1), math.exp(0.2))
    assert (bare.evidence, found.evidence) == ("own kernels", "calibrated")
    assert found.notes == ()


@pytest.mark.usefixtures("own_catalog")
def test_a_row_of_another_version_says_so() -> None:
    keep([kept()])
    assert predict(row(3, "2.0")).notes == ("calibrated under vllm 1.0, this row is of 2.0",)
    assert predict(row(3, "")).notes == ()


@pytest.mark.usefixtures("own_catalog")
@pytest.mark.parametrize(
    "changed", [{"engine": "sglang"}, {"precision": "bf16"}, {"kind": "disagg"}, {"chip": "nvidia-b200-hgx"}, {"model": "Qwen/Qwen3-8B"}]
)  # fmt: skip
def test_a_fit_of_something_else_changes_nothing(changed: dict[str, str]) -> None:
    bare = predict(row(3))
    keep([kept(**changed)])
    assert predict(row(3)) == bare


@pytest.mark.usefixtures("own_catalog")
def test_a_fit_is_left_out_where_it_is_not_asked_for_or_its_chip_is_hidden() -> None:
    hidden = frozenset({"nvidia-h100-sxm"})
    bare, transferred = predict(row(3)), predict(row(3), without=hidden)
    keep([kept()])
    assert predict(row(3), own=False) == bare
    assert scored(row(3)).prediction == bare
    assert predict(row(3), without=hidden) == transferred


def test_a_fit_in_a_folder_of_entries_is_read_and_written_there(
    tmp_path: Path, own_catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPOD_CATALOG", "")
    keep([kept()])
    (tmp_path / "ours" / "models").mkdir(parents=True)
    use_folder(tmp_path / "ours")
    assert own_fit("nvidia-h100-sxm", "Qwen/Qwen3-32B", "vllm") == kept()  # of the other folder
    assert keep([kept(date="2026-01-01")]) == tmp_path / "ours" / "calibrations.toml"
    assert own_files() == [own_catalog / "calibrations.toml", tmp_path / "ours" / "calibrations.toml"]  # fmt: skip
    found = own_fit("nvidia-h100-sxm", "Qwen/Qwen3-32B", "vllm")
    assert found is not None
    assert found.date == "2026-01-01"


@pytest.mark.usefixtures("own_catalog")
def test_what_was_calibrated_on_is_predicted_as_it_was_measured() -> None:
    rows = predicted(*[1.15] * 100)
    fit = only(rows).own_fit("2026-01-01")
    assert fit is not None
    keep([fit])
    for _, one in rows[:4]:
        assert predict(one).tpot_s == pytest.approx(one.tpot_s, rel=0.01)


# Measurements as the referee


def test_the_rows_of_an_overloaded_server_in_the_example_are_set_aside() -> None:
    rows, _ = read_rows(EXAMPLE)
    group = only([(str(EXAMPLE), one) for one in rows])
    assert group.key == ("nvidia-h100-sxm", "openai/gpt-oss-120b", "vllm", "mxfp4", "agg")
    for metric in METRICS:
        one = group.fitted[metric]
        assert [ratio.row.line for ratio in one.outliers] == [8]
        assert one.is_kept
        assert one.median_abs_error_after is not None
        assert one.median_abs_error_after < one.median_abs_error


@cache
def held_out_once() -> HeldOut:
    return held_out(shipped_scored())


def test_three_rows_of_a_cell_bring_the_rest_of_it_nearer() -> None:
    """Every cell of twelve or more plain co-located rows that ship: no fit saw a row it is judged by."""
    found = held_out_once()
    assert found.cells == 18
    rows, *_ = within_groups(shipped_scored(), "agg", "tpot")
    assert len(found.before) == len(found.after) == found.draws * (rows - 3 * found.cells)
    before, after = score(found.before, "tpot"), score(found.after, "tpot")
    assert before is not None
    assert after is not None
    assert after.median_abs_error <= 0.075
    assert after.median_abs_error < before.median_abs_error - 0.01
    assert after.within_20 > before.within_20
    assert 0.70 <= after.coverage <= 0.92
    assert after.median_band_ratio < before.median_band_ratio
    assert after.interval_score < before.interval_score


def test_three_rows_bring_the_ttft_of_most_rows_nearer() -> None:
    found = held_out_once()
    before, after = score(found.before, "ttft"), score(found.after, "ttft")
    assert before is not None
    assert after is not None
    assert after.median_abs_error < before.median_abs_error
    assert 0.70 <= after.coverage <= 0.92
    assert after.interval_score < before.interval_score


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["agg", "agg-speculative", "disagg"])
def test_the_bands_within_groups_are_those_of_the_shipped_rows(kind: str, metric: Metric) -> None:
    _, low, high = within_groups(shipped_scored(), kind, metric)
    kept = band_of("calibrated", kind, metric)
    assert (kept.low, kept.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, rel=0.02))


def test_the_spread_within_groups_of_one_system_holds_for_the_other() -> None:
    """The width of calibrated bands is set on the rows they are judged by; half of them would have set it alike."""
    everything = shipped_scored()
    halves = [[one for one in everything if one.row.system == system] for system in ("b200_sxm", "h100_sxm")]  # fmt: skip
    (_, low, high), (_, other_low, other_high) = (within_groups(half, "agg", "tpot") for half in halves)  # fmt: skip
    assert low == pytest.approx(other_low, abs=0.03)
    assert high == pytest.approx(other_high, abs=0.03)
