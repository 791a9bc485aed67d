"""Tracing anew, where torch and transformers are installed; without them, what is said."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from polypod.catalog.load import load_model
from polypod.errors import InputError
from polypod.workload.trace import trace
from polypod.workload.traced import checks, is_checked
from polypod.workload.traced_kept import read_kept

FILE = Path(__file__).parent / "data" / "architectures.json"
SMALL: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "vocab_size": 100,
}  # fmt: skip


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed")
def test_without_the_extra_it_says_what_to_install():
    with pytest.raises(InputError, match=r"needs torch and transformers .*polypod\[trace\]"):
        trace(SMALL)


@pytest.mark.parametrize(
    "name", ["HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-30B-A3B", "t5"]
)
def test_an_architecture_traced_anew_is_as_it_was_kept(name: str):
    torch = pytest.importorskip("torch")
    rows = {row.name: row for row in read_kept(FILE.read_bytes()).rows}
    config = load_model(name).config if "/" in name else {"model_type": name}
    before = rows[name].traced
    assert before is not None
    assert before.torch == torch.__version__
    assert trace(config) == before


def test_a_small_model_is_what_its_shape_says():
    pytest.importorskip("torch")
    traced = trace(SMALL, lengths=(8, 16))
    weights = 2 * 64 * (2 * 64 + 2 * 32 + 3 * 128) + 64 * 100
    assert traced.prompt[0].flops.gemm == 2 * 8 * weights
    assert traced.prompt[0].flops.attention == 2 * 4 * 64 * 8**2
    assert traced.cache_bytes_per_token == 2 * 2 * 32 * 2
    assert is_checked(traced)
    assert set(checks(traced)) == {"linear", "gemm", "attention", "decode", "context", "cache"}


def test_a_family_that_transformers_does_not_know_is_refused_by_name():
    pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"has no model_type 'nobody'"):
        trace({"model_type": "nobody"})


def test_code_that_does_not_run_is_said_with_its_own_words():
    pytest.importorskip("torch")
    with pytest.raises(InputError, match=r"llama: LlamaForCausalLM cannot be traced: "):
        trace(SMALL | {"num_key_value_heads": 3})
