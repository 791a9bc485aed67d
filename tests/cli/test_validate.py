"""`polypod validate` on the set that ships."""

import csv
import json
from importlib import resources
from pathlib import Path

import pytest

from polypod.cli.main import main
from polypod.cli.validate import ROW_HEADER
from polypod.cli.validate_played import PLAYED_HEADER

EXAMPLE = Path(__file__).parents[2] / "examples" / "serving-rows.csv"


def test_the_shipped_set_is_scored_as_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    tpot, ttft = found["overall"]["tpot"], found["overall"]["ttft"]
    assert {"n", "median_abs_error", "within_20", "coverage", "median_band_ratio"} <= set(tpot)
    assert tpot["n"] == ttft["n"] == 1546
    assert sum(one["tpot"]["n"] for one in found["groups"]) == 1546
    assert sum(one["rows"] for one in found["not_predicted"]) == 7


def test_every_row_is_written_with_its_band_or_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--rows", str(tmp_path / "rows.csv")]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80

    with (tmp_path / "rows.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ROW_HEADER
    assert len(rows) == 1553
    predicted = [row for row in rows if row["predicted_tpot_ms"]]
    assert all(float(row["tpot_low_ms"]) < float(row["predicted_tpot_ms"]) < float(row["tpot_high_ms"]) for row in predicted)  # fmt: skip
    assert all(row["reason"] for row in rows if not row["predicted_tpot_ms"])


def test_a_file_that_is_not_there_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "absent.csv"]) == 2
    assert "absent.csv: cannot be read" in capsys.readouterr().err


def test_leaving_out_what_no_row_is_of_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--leave-out", "h900"]) == 2
    assert "--leave-out h900: no row is of that system; there are b200_sxm, h100_sxm" in capsys.readouterr().err  # fmt: skip


def test_the_points_that_ship_are_printed_with_a_line_for_each_vendor(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["validate", "--points"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("all ")
    assert any(line.startswith("Huawei ") for line in lines)
    assert any("vllm-ascend-ci-k2-thinking: " in line for line in lines)  # why it misses

    assert main(["validate", "--points", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["vendors"][-1]["n"] == len(found["points"])
    missed = next(one for one in found["points"] if one["id"] == "vllm-ascend-ci-k2-thinking")
    assert not missed["inside"]
    assert missed["explained"]


def test_settings_said_for_all_rows_move_their_predictions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every sixth row that ships: the law is of each row by itself."""
    lines = (resources.files("polypod.validate") / "data" / "serving.csv").read_text().splitlines()
    some = tmp_path / "some.csv"
    some.write_text("\n".join([lines[0], *lines[1::6]]) + "\n", encoding="utf-8")

    def written(*words: str) -> list[dict[str, str]]:
        path = tmp_path / "rows.csv"
        assert main(["validate", str(some), "--rows", str(path), "--json", *words]) == 0
        capsys.readouterr()
        with path.open(encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row["predicted_tpot_ms"]]

    plain, cached = written(), written("--engine-args", "prefix_hits=0.5")
    pairs = list(zip(plain, cached, strict=True))
    assert len(pairs) > 200
    assert all(float(more["predicted_ttft_ms"]) <= float(less["predicted_ttft_ms"]) for less, more in pairs)  # fmt: skip
    assert any("would make TTFT" in row["reason"] for row in plain)
    assert not any("prefix_hits" in row["reason"] for row in cached)


def test_scores_are_told_by_evidence_and_misses_with_reasons(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["validate", "--json", "--leave-out", "b200_sxm"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["by_evidence"]) == {"own kernels", "transferred"}
    narrow, wide = (found["by_evidence"][name]["tpot"] for name in ("own kernels", "transferred"))
    assert narrow["interval_score"] < wide["interval_score"]
    assert found["noise_floor"] == {"tpot": None, "ttft": None}
    assert main(["validate", "--worst", "3"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "fewer requests ran at once" in " ".join(out.split())


def test_a_setting_that_is_none_is_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--engine-args", "speed=2"]) == 2
    assert "'speed' is no setting that moves a prediction" in capsys.readouterr().err


def test_a_full_disk_loses_no_rows_that_were_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("before", encoding="utf-8")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["validate", str(EXAMPLE), "--rows", str(path)]) == 2
    assert "rows.csv: cannot be written: No space left on device" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "before"


def test_rows_are_played_beside_the_formula(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "rows.csv"
    assert main(["validate", str(EXAMPLE), "--simulate", "--worst", "0", "--rows", str(written)]) == 0  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("played request by request") for line in lines)

    with written.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == (*ROW_HEADER, *PLAYED_HEADER)
    played = [row for row in rows if row["played_ttft_ms"]]
    assert played
    for row in played:
        assert 0 < float(row["played_ttft_p50_ms"]) <= float(row["played_ttft_p99_ms"])
        assert 0.3 < float(row["played_tpot_ms"]) / float(row["predicted_tpot_ms"]) < 3


def test_what_was_played_is_in_the_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(EXAMPLE), "--simulate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["played"]
    assert {one["metric"] for one in found["by_kind"]} == {"ttft", "tpot"}
    assert all(one["formula"]["n"] == one["of_play"]["n"] for one in found["by_cell"])
    assert found["not_played"] == []
