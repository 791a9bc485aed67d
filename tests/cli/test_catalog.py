import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from polypod.cli.main import main

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 100,
}  # fmt: skip


def test_the_list_names_every_entry_with_its_kind(capsys: pytest.CaptureFixture[str]):
    assert main(["catalog", "list"]) == 0

    out = capsys.readouterr().out
    assert re.search(r"^huawei-cm384 +pod ", out, re.MULTILINE)
    assert re.search(r"^deepseek-ai/DeepSeek-V3 +model ", out, re.MULTILINE)


def test_the_list_as_json_is_one_object(capsys: pytest.CaptureFixture[str]):
    main(["catalog", "list", "--json"])

    entries = json.loads(capsys.readouterr().out)["entries"]
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
    assert "61 with MLA: 3 dense and 58 moe" in out
    assert "70,272 bytes in bf16" in out


def test_lines_fit_eighty_columns_but_for_addresses(capsys: pytest.CaptureFixture[str]):
    for name in ("910c", "h200", "bw1000", "cm384", "scalex640", "deepseek-v3", "smollm2"):
        main(["catalog", "show", name])
        for line in capsys.readouterr().out.splitlines():
            assert len(line) <= 80 or line.lstrip().startswith("http"), line


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


@pytest.mark.parametrize(("name", "kind"), [("h200", "accelerator"), ("cm384", "pod")])
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
    assert "2 with GQA: 2 dense" in capsys.readouterr().out


def test_an_unknown_name_is_bad_input_with_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert main(["catalog", "show", "h300"]) == 2
    assert "no accelerator, pod or model is called 'h300'; nearest: h200" in capsys.readouterr().err


def test_the_catalog_is_shown_without_numpy():
    check = "import sys; from polypod.cli.main import main; main(['catalog', 'show', 'deepseek-v3']); sys.exit('numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", check], capture_output=True).returncode == 0
