"""polypod claims."""

import json
from dataclasses import replace

import pytest

from polypod.catalog.verdicts import digests
from polypod.cli.claims_predicted import ruled
from polypod.cli.main import main
from polypod.validate.point_bands import PredictedPoint
from polypod.validate.shipped import read_shipped_points


def test_claims_are_counted_and_can_be_narrowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["counts"].values()) == len(found["claims"])
    assert main(["claims", "huawei-cm384", "--ruling", "reproduced", "--json"]) == 0
    some = json.loads(capsys.readouterr().out)["claims"]
    assert {one["system"] for one in some} == {"huawei-cm384"}
    assert {one["ruling"] for one in some} == {"reproduced"}


def test_published_results_are_ruled_by_the_predicted_band(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["claims", "huawei-cm384", "--json"])
    claims = json.loads(capsys.readouterr().out)["claims"]
    decode = next(
        one
        for one in claims
        if one["id"].startswith("huawei-cm384.published") and "decode" in one["says"]
    )
    assert decode["claimed"] == 1943
    assert decode["ruling"] == "reproduced"
    assert "1,943 tokens/s" in decode["says"]


def test_a_claim_of_serving_speed_is_ruled_by_a_prediction_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["claims", "inspur-sd200", "--json"])
    claims = {one["id"]: one for one in json.loads(capsys.readouterr().out)["claims"]}
    claim = claims["sd200-tpot"]
    assert (claim["predicted"], claim["claimed"]) == (True, 8.9e-3)
    assert claim["ruling"] in {"reproduced", "contradicted"}
    assert claim["ours"] == pytest.approx(8.9e-3, rel=0.7)  # seconds, as the claim, and not ms
    assert claim["reason"].startswith("by prediction: ")
    assert "make undisclosed" in claim["reason"]
    assert not claims["sd200-mixed"]["predicted"]


@pytest.mark.parametrize(
    ("low_ms", "high_ms", "ruling"),
    [(8.9, 20.0, "reproduced"), (5.0, 8.9, "reproduced"), (9.0, 20.0, "contradicted"), (5.0, 8.8, "contradicted")],
)  # fmt: skip
def test_a_band_that_holds_the_claim_reproduces_it_and_another_contradicts(
    low_ms: float, high_ms: float, ruling: str
) -> None:
    verdict = next(one for one in digests() if one.id == "sd200-tpot")
    point = next(one for one in read_shipped_points() if one.id == verdict.point)
    beside = PredictedPoint(point=point, predicted=10.0, low=low_ms, high=high_ms)
    found = ruled(verdict, beside)
    assert (found.ruling, found.ours) == (ruling, 0.01)
    nothing = PredictedPoint(point=point, reason="no layout")
    assert ruled(verdict, nothing) == verdict
    assert ruled(replace(verdict, claimed=None), beside).ruling == "untestable"


def test_every_figure_that_a_claim_names_ships() -> None:
    named = {one.point for one in digests() if one.point}
    assert named
    assert named <= {point.id for point in read_shipped_points()}


def test_the_text_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert " reproduced, " in lines[-1]
    assert lines[-1].endswith(" by prediction")
