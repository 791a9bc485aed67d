import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from polypod.cli.catalog_trace import trace_json, trace_text
from polypod.cli.main import main
from polypod.workload.traced import Traced
from polypod.workload.traced_kept import read_kept

FILE = Path(__file__).parents[1] / "workload" / "data" / "architectures.json"
UNKNOWN = {
    "model_type": "rwkv", "hidden_size": 256, "attention_hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 1000,
}  # fmt: skip


@pytest.fixture(scope="module")
def traces() -> dict[str, Traced]:
    return {row.name: row.traced for row in read_kept(FILE.read_bytes()).rows if row.traced}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(UNKNOWN))
    return path


def test_a_trace_is_shown_with_what_was_counted_and_what_it_cannot_do(traces: dict[str, Traced]):
    out = "\n".join(trace_text("rwkv", traces["rwkv"]))
    assert "class               RwkvForCausalLM of transformers 5.23.0" in out
    assert "parameters          7,392,649,216" in out
    assert "cache per token     0 bytes in bf16" in out
    assert "checks              linear, gemm, decode" in out
    assert "counted twice alike yes" in out
    assert "cannot be planned" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_a_trace_that_breaks_a_law_says_so(traces: dict[str, Traced]):
    out = "\n".join(trace_text("llama4", traces["llama4"]))
    assert "do not hold         chosen" in out
    assert "no: do not rely on these figures" in out


def test_a_trace_as_json_has_its_checks(traces: dict[str, Traced]):
    shown = trace_json("rwkv", traces["rwkv"])
    assert shown["checks"] == {"linear": True, "gemm": True, "decode": True}
    assert shown["traced"]["parameters"] == 7392649216
    assert shown["can_be_planned"] is False


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed")
@pytest.mark.parametrize("verb", [["catalog", "show"], ["estimate"]])
def test_without_the_extra_the_error_says_what_is_modelled_and_the_way_out(
    verb: list[str], config: Path, capsys: pytest.CaptureFixture[str]
):
    on = [] if verb[0] == "catalog" else ["--on", "nvidia-hgx-h200"]
    assert main([*verb, str(config), *on]) == 2
    err = capsys.readouterr().err
    assert "model_type is 'rwkv'; accepted: one of the modelled families: llama" in err
    assert "(extra `trace`); it cannot be planned yet" in err


def test_a_model_without_a_description_is_traced_once_and_kept(
    config: Path, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("torch")
    assert main(["catalog", "show", str(config), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["traced"]["architecture"] == "RwkvForCausalLM"
    assert main(["catalog", "show", str(config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == first
