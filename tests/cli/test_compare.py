"""`polypod compare`: a table that fits, and the same as JSON, CSV and Markdown."""

import csv
import io
import json
from pathlib import Path

import pytest

from polypod.cli.main import main

ASKED = ("compare", "llama-3.1-8b", "--on", "nvidia-hgx-h200", "--on", "sugon-scalex640", "--on", "alibaba-al128")  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*ASKED, *words]) == 0
    return capsys.readouterr().out


def test_the_table_fits_a_terminal_and_names_what_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = printed(capsys, "--why", "--tpot", "30ms")
    assert max(map(len, out.splitlines())) <= 80
    lines = out.splitlines()
    assert lines[1] == "TPOT <= 30 ms for 99 % of requests"
    assert lines[4].startswith("nvidia-hgx-h200")
    assert lines[5].startswith("sugon-scalex640")
    assert lines[5].split()[5] == "?"
    flat = " ".join(out.split())
    assert "no price of hygon-bw1000 on record" in flat
    assert "thead-zhenwu-m890 has no memory bandwidth on record" in flat
    assert "f same family, s specification only" in flat


def test_all_pods_fit_a_terminal_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "llama-3.1-8b", "--all"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "huawei-atlas950-supercluster" in out


def test_json_has_ends_evidence_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "--json", "--by", "pod"))
    first, second = found["pods"]
    assert first["tokens_per_s"]["likely"] > second["tokens_per_s"]["likely"]
    for one in found["pods"]:
        ends = one["tokens_per_s"]
        assert ends["low"] < ends["likely"] < ends["high"]
    by_name = {one["pod"]: one for one in found["pods"]}
    assert by_name["nvidia-hgx-h200"]["evidence"] == {
        "times": "same family",
        "power": "datasheet",
        "price": "estimated",
    }
    assert by_name["sugon-scalex640"]["evidence"]["price"] is None
    assert by_name["sugon-scalex640"]["tokens_per_s_per_usd_h"] is None
    assert [one["pod"] for one in found["missing"]] == ["alibaba-al128"]


def test_csv_and_markdown_have_a_row_for_every_pod(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(printed(capsys, "--csv"))))
    assert {row["pod"] for row in rows} == {"nvidia-hgx-h200", "sugon-scalex640", "alibaba-al128"}
    assert float(rows[0]["tokens_per_s"]) > 0
    assert rows[-1]["tokens_per_s"] == ""
    assert "no memory bandwidth on record" in rows[-1]["missing"]
    lines = printed(capsys, "--markdown").splitlines()
    assert len(lines) == 2 + 3
    assert all(line.count(" | ") == lines[0].count(" | ") for line in lines[2:])


def test_a_count_takes_so_many_of_each_and_names_a_pod_that_has_fewer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = json.loads(printed(capsys, "--json", "--count", "16"))
    assert [one["accelerators"] for one in found["pods"]] == [16]
    why = {one["pod"]: one["why"] for one in found["missing"]}
    assert why["nvidia-hgx-h200"] == "nvidia-hgx-h200 has 8 accelerators, 16 were asked for"


def test_a_persons_prices_fill_what_is_not_on_record(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text("[accelerator_usd]\nhygon-bw1000 = [10000, 12000, 15000]\n")
    found = json.loads(printed(capsys, "--json", "--prices", str(file)))
    by_name = {one["pod"]: one for one in found["pods"]}
    assert by_name["sugon-scalex640"]["tokens_per_s_per_usd_h"]["likely"] > 0
    assert by_name["sugon-scalex640"]["evidence"]["price"] == "your own"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--on", "nvidia-hgx-h200+huawei-cm384"), "is several; compare plans each by itself"),
        (("--on", "nvidia-hgx-h2000"), "no pod or accelerator is called 'nvidia-hgx-h2000'"),
        (("--on", "nvidia-hgx-h200", "--tries", "0"), "--tries '0' is no number"),
        (("--on", "nvidia-hgx-h200", "--percentile", "100"), "--percentile 100 is no share"),
        (("--on", "nvidia-hgx-h200", "--engine-args", "cold_start_s=30"), "cold_start_s moves no plan"),
        (("--on", "nvidia-hgx-h200", "--prices", "nowhere.toml"), "nowhere.toml: cannot be read"),
    ],
)  # fmt: skip
def test_bad_input_is_named_without_a_traceback(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert main(["compare", "llama-3.1-8b", *words]) == 2
    assert says in capsys.readouterr().err


def test_plan_takes_the_same_file_of_prices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["plan", "llama-3.1-8b", "--on", "sugon-scalex640:8", "--json"]
    assert main(asked) == 0
    bare = json.loads(capsys.readouterr().out)["in_all"]
    file = tmp_path / "prices.toml"
    file.write_text("[accelerator_usd]\nhygon-bw1000 = 12000\n")
    assert main([*asked, "--prices", str(file)]) == 0
    paid = json.loads(capsys.readouterr().out)["in_all"]
    assert bare["usd_per_million_tokens"] is None
    assert (
        paid["usd_per_million_tokens"]["likely"]
        > paid["power_usd_per_million_tokens"]["likely"]
        > 0
    )
    assert paid["joules_per_million_tokens"] == bare["joules_per_million_tokens"]
