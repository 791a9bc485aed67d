import json
from typing import Any

import pytest

from polypod.catalog.load import listing, load_accelerator, load_model
from polypod.cli.catalog_model import flops_per_generated_token, flops_per_prompt_token
from polypod.cli.main import main
from polypod.workload.config import read_model
from polypod.workload.model import active_parameters


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["catalog", "show", name, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_bytes_by_format_keep_what_is_never_quantised(capsys: pytest.CaptureFixture[str]):
    costs = shown("llama-3.1-8b", capsys)["costs"]

    kept = 2 * 128256 * 4096 + (2 * 32 + 1) * 4096  # embeddings, norms
    assert costs["weights_bytes"] == {
        "bf16": 2 * 8_030_261_248,
        "fp8": 8_030_261_248 + kept,
        "int4": 0.5 * (8_030_261_248 - kept) + 2 * kept,
    }
    assert costs["kv_bytes_per_token"] == {"bf16": 131_072, "fp8": 65_536}


def test_a_token_costs_two_flops_a_parameter_and_its_context():
    entry = load_model("llama-3.1-8b")
    model = read_model(entry.config, entry.name, entry.path)
    near, far = (flops_per_generated_token(model, tokens) for tokens in (1024, 65536))

    matrices = active_parameters(model) - model.embedding_parameters
    assert near == pytest.approx(2 * matrices + 4 * 32 * 4096 * 1024, rel=1e-3)
    assert far - near == pytest.approx(4 * 32 * 4096 * (65536 - 1024))


def test_a_recurrence_is_no_dearer_in_a_long_context(capsys: pytest.CaptureFixture[str]):
    costs = shown("codestral-mamba", capsys)["costs"]

    assert len(set(costs["flops_per_generated_token"].values())) == 1
    assert costs["kv_bytes_per_token"] == {"bf16": 0, "fp8": 0}
    assert costs["state_bytes_per_sequence"] > 0


def test_every_chip_whose_memory_is_known_is_answered_for(capsys: pytest.CaptureFixture[str]):
    chips = shown("deepseek-r1", capsys)["chips"]

    known = [one.id for one in listing() if one.kind == "accelerator"]
    assert {one["chip"] for one in chips} == {
        name for name in known if load_accelerator(name).memory_bytes
    }
    assert all(one["cards"] or one["why_not"] for one in chips)


def test_engines_are_said_of_the_chip_and_never_of_the_architecture(
    capsys: pytest.CaptureFixture[str],
):
    raw = shown("deepseek-r1", capsys)
    h200 = next(one for one in raw["chips"] if one["chip"] == "nvidia-h200-sxm")

    assert (h200["cards"], h200["weights"]) == (8, "fp8")
    assert {"engine": "vLLM", "state": "supported"}.items() <= h200["engines"][0].items()
    assert h200["abilities"] == {"mla": "supported", "moe_ep": "supported"}
    assert "not checked" in raw["engines_note"]

    main(["catalog", "show", "deepseek-r1"])
    out = capsys.readouterr().out
    assert "whether an engine runs this architecture there is not\n  checked" in out
    assert "embeddings, head, norms, biases and routers stay in\n" in out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpt3", "a shape alone: no published file is behind it"),
        ("jamba", "defaults of a class in the source: not a published file"),
        ("step3", "rebuilt by the source: not the published file as it stands"),
    ],
)
def test_what_is_no_published_file_is_said_to_be_none(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
):
    assert shown(name, capsys)["fidelity"] == said
    main(["catalog", "show", name])
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3-next", "recurrence (32 heads) and 10 of 512 experts of 512"),
        ("deepseek-v4-flash", "attention over 128 tokens, every 128 further ones compressed to one"),
        ("minimax-m3", "GQA (64 heads, 4 cached) over the best 2,048 tokens"),
        ("gemma-3-27b", "GQA (32 heads, 16 cached) over a window of 1,024"),
        ("hunyuan-large", "GQA (80 heads, 8 cached, cache of the layer before)"),
        ("glm-5", "MLA over the best 2,048 tokens"),
    ],
)  # fmt: skip
def test_layers_are_told_by_kind(name: str, kind: str, capsys: pytest.CaptureFixture[str]):
    layers = shown(name, capsys)["layers"]

    assert any(layer["kind"].startswith(kind) for layer in layers)


def test_a_prompts_token_costs_what_a_generated_one_does_less_half_the_context_and_the_head():
    entry = load_model("llama-3.1-8b")
    model = read_model(entry.config, entry.name, entry.path)
    attention = flops_per_generated_token(model, 8192) - flops_per_generated_token(model, 0)
    head = 2 * model.hidden * model.vocab

    whole = flops_per_generated_token(model, 0) - head
    expected = whole + attention / 2
    assert flops_per_prompt_token(model, 8192) == pytest.approx(expected, rel=1e-3)
