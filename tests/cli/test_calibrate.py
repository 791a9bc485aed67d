"""`polypod calibrate`: what it prints, keeps, refuses and takes out."""

import csv
import json
import re
from pathlib import Path

import pytest

from polypod.cli.main import main
from polypod.cost.own import own_fits
from polypod.validate.predict import predict
from polypod.validate.rows import read_rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "serving-rows.csv"
GONE = ["--remove", "h100_sxm", "openai/gpt-oss-120b", "vllm"]


def written(tmp_path: Path, scale: float = 1.0, **changed: str) -> Path:
    """The example's rows with their times multiplied."""
    with EXAMPLE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    path = tmp_path / "mine.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            times = {name: f"{float(row[name]) * scale:.6f}" for name in ("silicon_ttft_ms", "silicon_tpot_ms")}  # fmt: skip
            writer.writerow(row | times | changed)
    return path


def test_rows_become_a_calibration_that_validate_uses(
    own_catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(EXAMPLE)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "TPOT outlier  serving-rows.csv line 8, concurrency 512" in out
    assert (own_catalog / "calibrations.toml").exists()
    ((_, fit),) = own_fits().items()
    assert (fit.versions, fit.source) == (("0.18.0",), str(EXAMPLE))

    errors = []
    for flags in ([], ["--no-calibration"]):
        assert main(["validate", str(EXAMPLE), "--json", *flags]) == 0
        said = capsys.readouterr()
        found = json.loads(said.out)
        errors.append(found["overall"]["tpot"]["median_abs_error"])
        assert {one["evidence"] for one in found["groups"]} == {"own kernels" if flags else "calibrated"}  # fmt: skip
        assert ("--no-calibration leaves them out" in said.err) != bool(flags)
    assert errors[0] < errors[1]


@pytest.mark.usefixtures("own_catalog")
def test_the_set_that_ships_is_scored_without_calibrations_of_ones_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["validate", "--json"]) == 0
    before = capsys.readouterr().out
    assert main(["calibrate", str(EXAMPLE), "--json"]) == 0
    capsys.readouterr()
    assert main(["validate", "--json"]) == 0
    assert capsys.readouterr().out == before


@pytest.mark.usefixtures("own_catalog")
def test_the_same_file_again_keeps_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(EXAMPLE)]) == 0
    once, fits = capsys.readouterr().out, own_fits()
    assert main(["calibrate", str(EXAMPLE)]) == 0
    assert (capsys.readouterr().out, own_fits()) == (once, fits)


@pytest.mark.usefixtures("own_catalog")
def test_a_dry_run_says_the_same_and_writes_nothing(
    own_catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(EXAMPLE), "--dry-run"]) == 0
    assert "would be kept; --dry-run writes nothing" in " ".join(capsys.readouterr().out.split())
    assert not own_catalog.exists()


@pytest.mark.usefixtures("own_catalog")
def test_times_in_seconds_are_refused_even_where_they_are_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(written(tmp_path, 1e-3)), "--accept"]) == 2
    err = capsys.readouterr().err
    assert re.search(r"mine.csv: silicon_tpot_ms is 0\.0[\d.]+ times what is predicted", err)
    assert "look like seconds: multiply them by 1,000" in err
    assert own_fits() == {}


@pytest.mark.usefixtures("own_catalog")
def test_a_group_outside_the_band_is_kept_on_request_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(written(tmp_path, 2.3))
    assert main(["calibrate", path]) == 1
    assert "TPOT NOT KEPT measured is 2" in capsys.readouterr().out
    assert own_fits() == {}
    assert main(["calibrate", path, "--accept"]) == 0
    assert "TPOT accepted measured is 2" in capsys.readouterr().out
    assert len(own_fits()) == 1


@pytest.mark.usefixtures("own_catalog")
@pytest.mark.parametrize(("factors", "disagree"), [((0.83, 1.19), True), ((1.12, 1.14), False)])
def test_rows_that_no_one_factor_suits_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factors: tuple[float, float], disagree: bool
) -> None:
    with EXAMPLE.open(encoding="utf-8") as file:
        raw = list(csv.DictReader(file))[:6]
    read, _ = read_rows(EXAMPLE)
    for n, (line, row) in enumerate(zip(raw, read, strict=False)):
        line["silicon_tpot_ms"] = f"{predict(row, own=False).tpot_s * 1e3 * factors[n % 2]:.5f}"
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(raw[0]))
        writer.writeheader()
        writer.writerows(raw)
    assert main(["calibrate", str(path)]) == 0
    assert ("TPOT disagree" in capsys.readouterr().out) is disagree


@pytest.mark.usefixtures("own_catalog")
def test_rows_of_another_version_than_the_fit_so_far_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(EXAMPLE)]) == 0
    newer = str(written(tmp_path, backend_version="0.19.0"))
    capsys.readouterr()
    assert main(["validate", newer, "--rows", str(tmp_path / "out.csv")]) == 0
    assert "calibrated under vllm 0.18.0, this row is of 0.19.0" in (tmp_path / "out.csv").read_text()  # fmt: skip
    capsys.readouterr()
    assert main(["calibrate", newer]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "the fit so far is of vllm 0.18.0, these rows are of 0.19.0" in out


@pytest.mark.usefixtures("own_catalog")
def test_what_is_kept_is_listed_and_taken_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--list"]) == 0
    assert "no calibrations of your own" in capsys.readouterr().out
    assert main(["calibrate", str(EXAMPLE)]) == 0
    capsys.readouterr()
    assert main(["calibrate", "--list"]) == 0
    out = capsys.readouterr().out
    assert "openai/gpt-oss-120b on nvidia-h100-sxm, vllm mxfp4\n" in out
    assert re.search(r"\n  TPOT 0\.9\d+ \(6 rows\), TTFT 1\.\d+ \(6 rows\); vllm 0.18.0;", out)
    assert main(["calibrate", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"][0]["tpot"]["rows"] == 6
    assert main(["calibrate", *GONE]) == 0
    assert "removed from" in capsys.readouterr().out
    assert own_fits() == {}
    assert main(["calibrate", *GONE]) == 2
    assert "no calibration of your own is of h100_sxm openai/gpt-oss-120b vllm; there are none" in capsys.readouterr().err  # fmt: skip


@pytest.mark.usefixtures("own_catalog")
def test_a_folder_given_with_catalog_keeps_what_is_calibrated(
    tmp_path: Path, own_catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYPOD_CATALOG", "")
    (tmp_path / "ours" / "models").mkdir(parents=True)
    assert main(["calibrate", str(EXAMPLE), "--catalog", str(tmp_path / "ours")]) == 0
    assert (tmp_path / "ours" / "calibrations.toml").exists()
    assert not own_catalog.exists()
    (tmp_path / "ours" / "models").rmdir()  # a folder that holds calibrations alone is one too
    monkeypatch.setenv("POLYPOD_CATALOG", "")
    assert main(["calibrate", *GONE, "--catalog", str(tmp_path / "ours")]) == 0


@pytest.mark.usefixtures("own_catalog")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "calibrate takes files of measured rows, or --list, or --remove CHIP MODEL ENGINE"),
        ([str(EXAMPLE), "--list"], "one of them"),
        (["absent.csv"], "absent.csv: cannot be read"),
    ],
)
def test_a_question_that_is_none_is_a_message(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.usefixtures("own_catalog")
def test_a_file_without_a_row_that_can_be_used_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(written(tmp_path, model_path="nobody/nothing"))]) == 2
    assert "nothing can be calibrated on: lines 2, 3, 4 and 4 more: model 'nobody/nothing' is not in the catalog" in capsys.readouterr().err  # fmt: skip


@pytest.mark.usefixtures("own_catalog")
def test_rows_that_are_not_used_are_named_by_line_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2].replace(",1024,1024,", ",,1024,")
    path.write_text("\n".join(lines), encoding="utf-8")
    assert main(["calibrate", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "not used\n  line 3: isl is empty; a number is needed\n" in out
    assert "  TPOT     5 " in out


def test_where_there_can_be_no_folder_there_are_no_calibrations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert main(["validate", str(EXAMPLE)]) == 0
    capsys.readouterr()
    assert main(["calibrate", str(EXAMPLE)]) == 2
    assert "calibrations.toml: cannot be written: " in capsys.readouterr().err


def test_a_broken_file_of_calibrations_is_a_message_of_validate_and_calibrate(
    own_catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_catalog.mkdir(parents=True)
    (own_catalog / "calibrations.toml").write_text("[[fits]]\nchip = 1\n")
    for verb in ("validate", "calibrate"):
        assert main([verb, str(EXAMPLE)]) == 2
        assert "calibrations.toml: line 2: Expected `str`, got `int`" in capsys.readouterr().err
    assert main(["validate", str(EXAMPLE), "--no-calibration", "--json"]) == 0


@pytest.mark.usefixtures("own_catalog")
def test_one_json_object_names_every_outlier_and_where_the_fits_are(
    own_catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(EXAMPLE), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (group,) = found["groups"]
    assert found["file"] == str(own_catalog / "calibrations.toml")
    assert (group["chip"], group["precision"], group["tpot"]["kept"]) == ("nvidia-h100-sxm", "mxfp4", True)  # fmt: skip
    assert [one["line"] for one in group["tpot"]["outliers"]] == [8]
