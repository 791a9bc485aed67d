import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from polypod.catalog import load
from polypod.catalog.load import listing
from polypod.cli.main import main

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 100,
}  # fmt: skip


def test_the_list_names_every_entry_under_its_kind(capsys: pytest.CaptureFixture[str]):
    assert main(["catalog", "list"]) == 0

    out = capsys.readouterr().out
    blocks = {block.split("s:")[0]: block for block in out.split("\n\n")}
    assert list(blocks) == ["accelerator", "pod", "link", "model"]
    assert "\nhuawei-cm384                  2025  Huawei CloudMatrix384" in blocks["pod"]
    assert "\ndeepseek-ai/DeepSeek-V3" in blocks["model"]
    assert max(len(line) for line in out.splitlines()) <= 80


def test_the_list_of_one_kind_has_no_other(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "list", "--kind", "link"])

    out = capsys.readouterr().out
    assert out.startswith("links: ")
    assert "NVIDIA NVLink 5\n" in out  # a link has an owner
    assert "huawei-cm384" not in out


def test_the_list_as_json_is_one_object(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "list", "--json"])

    shown = json.loads(capsys.readouterr().out)
    entries = shown["entries"]
    assert sum(shown["counts"].values()) == len(entries)
    assert list(shown["counts"]) == ["accelerator", "pod", "link", "model"]
    assert {"kind": "accelerator", "id": "nvidia-h200-sxm", "title": "NVIDIA H200 SXM"} in entries


def test_a_chip_is_shown_with_unit_kind_source_and_what_contradicts_it(
    capsys: pytest.CaptureFixture[str],
):
    main(["catalog", "show", "昇腾910C"])

    out = capsys.readouterr().out
    assert "bf16 peak, dense    752 TFLOPS  datasheet  [1]" in out
    assert "https://arxiv.org/abs/2506.12708" in out
    assert "780 TFLOPS [2] not used" in out
    assert "power                        ?  not known" in out


def test_a_pod_is_shown_with_its_tiers_claims_and_published_results(
    capsys: pytest.CaptureFixture[str],
):
    main(["catalog", "show", "cm384"])

    out = capsys.readouterr().out
    assert "tier 'node, UB' joins 16 ranks" in out
    assert "300 PFLOPS [10]; parts: 289 PFLOPS bf16" in out
    assert "1,943 tokens/s per accelerator" in out


def test_a_model_is_shown_with_what_it_costs(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "show", "deepseek-v3"])

    out = capsys.readouterr().out
    assert "671,026,404,352" in out
    assert "3 of MLA and a feed-forward of 18,432\n" in out
    assert "58 of MLA and 8 of 256 experts of 2,048" in out
    assert "70,272 bytes in bf16" in out


def test_lines_fit_eighty_columns_but_for_addresses(capsys: pytest.CaptureFixture[str]):
    for listed in listing():
        main(["catalog", "show", listed.id])
        for line in capsys.readouterr().out.splitlines():
            assert len(line) <= 80 or line.lstrip().startswith("http"), line


def test_a_link_is_shown_with_its_speeds_and_latencies(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "show", "ub1"])

    out = capsys.readouterr().out
    assert "Ascend 910C, one way    392 GB/s  datasheet  [1]" in out
    assert "latency, one hop          200 ns  claimed" in out


def test_a_pod_of_an_undisclosed_make_is_shown_as_one(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "show", "浪潮元脑SD200"])

    out = capsys.readouterr().out
    assert "pod of 64 accelerators of a make not disclosed" in out
    assert "4 TB of HBM [1]; parts: ?" in out


def test_a_chip_says_who_may_buy_it_and_how_it_is_joined(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "show", "h20"])

    out = capsys.readouterr().out
    assert "scale-up            NVLink4, up to 8 accelerators" in out
    assert "export control      licence required 2025-04" in out


def test_an_address_is_printed_whole(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "show", "cm384"])

    address = (
        "https://chinaresearchcollective.substack.com/p/huawei-ascend-cloudmatrix-384-supernode"
    )
    assert address in capsys.readouterr().out.split()


def test_neither_list_nor_show_is_bad_input():
    with pytest.raises(SystemExit) as caught:
        main(["catalog"])

    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("name", "kind"), [("h200", "accelerator"), ("cm384", "pod"), ("ub2", "link")]
)
def test_hardware_as_json_is_its_file(name: str, kind: str, capsys: pytest.CaptureFixture[str]):
    main(["catalog", "show", name, "--json"])

    out = capsys.readouterr().out
    shown = json.loads(out)
    assert shown["kind"] == kind
    assert shown["names"][-1] in out  # Chinese stays readable


def test_a_model_as_json_has_what_is_computed_of_it(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "show", "smollm2", "--json"])

    shown = json.loads(capsys.readouterr().out)
    assert shown["computed"] == {
        "parameters": 134_515_008,
        "active_parameters": 134_515_008,
        "mtp_parameters": 0,
        "kv_bytes_per_token_bf16": 23040,
        "layers": 30,
        "context_tokens": 8192,
        "weight_dtype": "bf16",
    }
    assert shown["config"]["hidden_size"] == 576


def test_a_persons_own_config_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))

    assert main(["catalog", "show", str(path)]) == 0
    assert "2 of GQA (4 heads, 4 cached) and a feed-forward of 128" in capsys.readouterr().out


def test_an_unknown_name_is_bad_input_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["catalog", "show", "h300"]) == 2
    assert (
        "no accelerator, pod, link or model is called 'h300'; nearest: " in capsys.readouterr().err
    )


def test_a_chip_is_shown_without_numpy():
    check = "import sys; from polypod.cli.main import main; main(['catalog', 'show', 'h200']); sys.exit('numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0


def test_a_search_prints_one_line_per_hit_within_80_columns(capsys: pytest.CaptureFixture[str]):
    assert main(["catalog", "search", "hbm > 150 GB and vendor != NVIDIA and power <= 1 kW"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("hbm 192 GB, power 750 W" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_search_that_finds_nothing_ends_with_1(capsys: pytest.CaptureFixture[str]):
    assert main(["catalog", "search", "zzz"]) == 1
    assert capsys.readouterr().out == "nothing fits\n"
    assert main(["catalog", "search", "昇腾", "--json"]) == 0
    assert "huawei-ascend-910c" in [
        hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]
    ]


def test_the_list_a_search_and_an_entry_come_as_csv_in_si_units(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "list", "--kind", "pod", "--csv"])
    listed = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {"kind": "pod", "id": "huawei-cm384", "year": "2025"}.items() <= next(
        row for row in listed if row["id"] == "huawei-cm384"
    ).items()

    main(["catalog", "search", "hbm > 100 GB and vendor != NVIDIA", "--csv"])
    hits = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {row["id"]: float(row["hbm"]) for row in hits}["amd-mi300x"] == 192e9

    main(["catalog", "show", "910C", "--csv"])
    figures = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    bf16 = [row for row in figures if row["figure"] == "peak_flops_per_s.bf16"]
    assert [(row["used"], float(row["value"])) for row in bf16[:2]] == [
        ("yes", 752e12),
        ("no", 780e12),
    ]
    assert all(row["source"] for row in figures)


def test_markdown_is_a_table_with_a_rule(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "show", "nvlink 5", "--markdown"])

    header, rule, *rows = capsys.readouterr().out.splitlines()
    assert header == "| id | figure | value | kind | source | note | used |"
    assert rule == "|---|---|---|---|---|---|---|"
    assert any("| bytes_per_s.NVLink 5 | 900000000000.0 |" in row for row in rows)


def test_two_forms_at_once_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["catalog", "list", "--csv", "--json"])
    assert "not allowed with" in capsys.readouterr().err


def test_an_own_file_in_the_place_of_a_shipped_one_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("POLYPOD_CATALOG", "")
    shipped = Path(load.__file__).parent / "data/accelerators/nvidia-h20.toml"
    folder = tmp_path / "ours" / "accelerators"
    folder.mkdir(parents=True)
    (folder / "nvidia-h20.toml").write_text(shipped.read_text(encoding="utf-8"), encoding="utf-8")

    assert main(["catalog", "show", "H20", "--catalog", str(tmp_path / "ours")]) == 0

    err = capsys.readouterr().err
    assert (
        f"note: nvidia-h20 is read from {folder / 'nvidia-h20.toml'}, in the place of the entry"
        in err
    )


def test_a_model_of_ones_own_is_added_by_name_if_its_architecture_is_understood(
    own_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG))
    assert main(["catalog", "add", str(file), "--name", "acme/tiny"]) == 0
    assert main(["catalog", "show", "acme/tiny"]) == 0
    assert "acme/tiny (llama)" in capsys.readouterr().out

    file.write_text(json.dumps(CONFIG | {"model_type": "unheard-of"}))
    assert main(["catalog", "add", str(file), "--name", "acme/other"]) == 2
    assert not (own_catalog / "models" / "acme--other.json").exists()


def test_the_list_does_not_let_a_rebuilt_config_pass_for_a_published_one(
    capsys: pytest.CaptureFixture[str],
):
    main(["catalog", "list", "--kind", "model", "--csv"])
    rows = {row["id"]: row["title"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert rows["ai21labs/Jamba-v0.1"] == "Jamba-v0.1 (class-defaults: not a published file)"
    assert rows["deepseek-ai/DeepSeek-V3"] == "DeepSeek-V3"
