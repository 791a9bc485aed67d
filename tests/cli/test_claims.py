"""polypod claims."""

import json

import pytest

from polypod.cli.main import main


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


def test_the_text_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert " reproduced, " in lines[-1]
