"""Laws of windows, sparse attention and recurrences, and of what a checkpoint quantises."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.errors import FileError
from polypod.workload.attention import attended_kv, attended_pairs
from polypod.workload.config import read_model
from polypod.workload.forward import Op, StepShape, step_ops
from polypod.workload.layout import Layout
from polypod.workload.memory import (
    kv_bytes_per_token_per_rank,
    stage_layers,
    state_bytes_per_sequence_per_rank,
    weight_bytes_per_rank,
    window_bytes_per_token_per_rank,
)
from polypod.workload.model import (
    Dense,
    Gqa,
    LayerGroup,
    Mla,
    Model,
    Moe,
    Recurrent,
    active_parameters,
    cache_bytes_per_sequence,
    kv_bytes_per_token,
    parameters,
    state_bytes_per_sequence,
)
from polypod.workload.precision import Precision

BF16 = Precision(weights="bf16", kv="bf16")
Tiny = Callable[[Any, Dense | Moe], Model]
WINDOWED = Gqa(heads=2, kv_heads=1, head_dim=4, window_tokens=10)
DELTA = Recurrent(heads=4, key_dim=8, value_dim=2, input_columns=40, conv_channels=24, conv_kernel=4)  # fmt: skip
COLUMNS = Dense(intermediate=8)

FURTHER: dict[str, tuple[dict[str, Any], float, float | None]] = {
    "zai-org/GLM-4.5-Air": ({
        "model_type": "glm4_moe", "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 46, "first_k_dense_replace": 1, "num_attention_heads": 96, "num_key_value_heads": 8,
        "head_dim": 128, "attention_bias": True, "use_qk_norm": False, "n_routed_experts": 128, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "vocab_size": 151552, "tie_word_embeddings": False}, 106.85, 13.424),
    "baidu/ERNIE-4.5-21B-A3B-PT": ({
        "model_type": "ernie4_5_moe", "hidden_size": 2560, "intermediate_size": 12288, "moe_intermediate_size": 1536,
        "num_hidden_layers": 28, "num_attention_heads": 20, "num_key_value_heads": 4, "head_dim": 128,
        "moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_k": 6, "moe_layer_start_index": 1,
        "moe_layer_end_index": 27, "moe_layer_interval": 1, "vocab_size": 103424}, 21.825, 3.3522),
    "tencent/Hunyuan-A13B-Instruct": ({
        "model_type": "hunyuan", "hidden_size": 4096, "intermediate_size": 3072, "moe_intermediate_size": [3072] * 32,
        "attention_head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32,
        "num_experts": 64, "moe_topk": [8] * 32, "num_shared_expert": [1] * 32, "use_qk_norm": True,
        "vocab_size": 128167}, 80.393, 12.747),
    "ibm-granite/granite-4.0-h-small": ({
        "model_type": "granitemoehybrid", "hidden_size": 4096, "num_hidden_layers": 40, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_local_experts": 72, "num_experts_per_tok": 10, "intermediate_size": 768,
        "shared_intermediate_size": 1536, "mamba_d_state": 128, "mamba_d_conv": 4, "mamba_expand": 2,
        "layer_types": (["mamba"] * 9 + ["attention"]) * 4, "vocab_size": 100352}, 32.207, 8.8031),
}  # fmt: skip
"""Shapes of families the catalog ships no file of; billions, as transformers 5.23 instantiates and counts them."""


def total(ops: list[Op], quantity: str, *kinds: str) -> Any:
    return sum(op.count * getattr(op, quantity) for op in ops if not kinds or op.kind in kinds)


@pytest.mark.parametrize("name", FURTHER)
def test_families_without_a_shipped_file_count_as_an_instantiation_does(name: str):
    config, whole, active = FURTHER[name]
    model = read_model(config, name, "config.json")

    assert parameters(model) / 1e9 == pytest.approx(whole, rel=1e-3)
    assert active_parameters(model) / 1e9 == pytest.approx(active, rel=1e-3)


@given(
    tokens=st.integers(1, 3000), cached=st.integers(0, 3000), width=st.integers(1, 4000)
)  # fmt: skip
def test_a_chunks_pairs_in_a_window_are_those_counted_one_by_one(
    tokens: int, cached: int, width: int
):
    # token t of the chunk has seen cached + t; the mean of a unit step is half a token less
    shape = StepShape(prompt_tokens=tokens, pairs=tokens * cached + tokens**2 / 2)
    counted = sum(min(cached + t - 0.5, width) for t in range(1, tokens + 1))

    assert attended_pairs(shape, width) == pytest.approx(counted, rel=2e-3, abs=0.26)
    assert attended_pairs(shape, width) <= min(shape.pairs, width * tokens) * (1 + 1e-12)


def test_whole_prompts_of_one_length_are_bounded_one_by_one():
    one = attended_pairs(StepShape(prompt_tokens=100, pairs=5000), 10)
    ten = attended_pairs(StepShape(prompt_tokens=1000, pairs=50000), 10)

    assert ten == pytest.approx(10 * one)


def test_pairs_and_cache_of_arrays_are_bounded_one_by_one():
    shape = StepShape(
        prompt_tokens=np.array([0.0, 100.0, 5.0]),
        pairs=np.array([0.0, 5000.0, 12.5]),
        decode_sequences=np.array([1.0, 4.0, 0.0]),
        kv_tokens=np.array([5.0, 400.0, 0.0]),
    )

    assert attended_pairs(shape, 10) == pytest.approx([0.0, 950.0, 12.5])
    assert attended_kv(shape, 10) == pytest.approx([5.0, 40.0, 0.0])


@given(context=st.integers(1, 10**6))
def test_a_window_bounds_what_is_read_and_kept(context: int, tiny: Tiny):
    windowed = tiny(WINDOWED, COLUMNS)
    free = tiny(replace(WINDOWED, window_tokens=None), COLUMNS)
    shape = StepShape(decode_sequences=3, kv_tokens=3 * context)
    near, far = (step_ops(one, Layout(), BF16, shape) for one in (windowed, free))

    assert total(near, "kv_bytes") <= total(far, "kv_bytes")
    assert total(near, "kv_bytes") == 2 * 2 * 8 * (3 * min(context, 10) + 3)
    assert cache_bytes_per_sequence(windowed, 2, context) == 2 * 2 * 8 * min(context, 10)
    assert kv_bytes_per_token(windowed, 2) == 0
    assert window_bytes_per_token_per_rank(windowed, Layout(), BF16) == {10: 32.0}


@given(context=st.integers(1, 10**7), sequences=st.integers(1, 100))
def test_a_recurrence_costs_the_same_at_every_context(context: int, sequences: int, tiny: Tiny):
    model = tiny(DELTA, COLUMNS)
    short, long = (
        step_ops(model, Layout(), BF16, StepShape(decode_sequences=sequences, kv_tokens=kv_tokens))
        for kv_tokens in (0, sequences * context)
    )

    for quantity in ("flops", "hbm_bytes"):
        assert total(short, quantity) == total(long, quantity)
    assert cache_bytes_per_sequence(model, 2, context) == state_bytes_per_sequence(model)


def test_a_recurrence_is_linear_in_the_prompt(tiny: Tiny):
    model = tiny(DELTA, COLUMNS)
    one, ten = (
        step_ops(model, Layout(), BF16, StepShape(prompt_tokens=n, pairs=n**2 / 2))
        for n in (100, 1000)
    )

    assert total(ten, "flops") == 10 * total(one, "flops")


def test_a_recurrence_by_hand(tiny: Tiny):
    # 4 heads of 8 x 2, 24 channels convolved over 4 tokens; two layers
    model = tiny(DELTA, COLUMNS)
    ops = step_ops(model, Layout(tp=2), BF16, StepShape(decode_sequences=3, kv_tokens=300))
    state = 4 * 4 * 8 * 2 + 2 * 24 * 3
    by_name = {op.name: op for op in ops}

    assert state_bytes_per_sequence(model) == 2 * state
    assert state_bytes_per_sequence_per_rank(model, Layout(tp=2)) == state
    assert by_name["decode recurrence"].flops == 3 * (6 * 64 + 2 * 4 * 24) / 2
    assert by_name["decode recurrence"].kv_bytes == 2 * 3 * state / 2
    assert by_name["recurrent inputs"].weight_bytes == 2 * 4 * 20
    assert by_name["recurrent output"].weight_bytes == 2 * 4 * 4


def test_a_sparse_attention_scores_everything_and_attends_to_the_best(tiny: Tiny):
    mla = Mla(heads=2, q_lora_rank=6, kv_lora_rank=7, qk_nope_head_dim=3, qk_rope_head_dim=1, v_head_dim=5)  # fmt: skip
    sparse = replace(mla, index_heads=2, index_head_dim=4, index_topk=10)
    shape = StepShape(decode_sequences=1, kv_tokens=1000)
    by_name = {op.name: op for op in step_ops(tiny(sparse, COLUMNS), Layout(), BF16, shape)}

    assert by_name["decode attention"].kv_bytes == 2 * 8 * (10 + 1)
    assert by_name["decode scores"].flops == 2 * 2 * 4 * 1000
    assert by_name["decode scores"].kv_bytes == 4 * 1001
    assert kv_bytes_per_token_per_rank(tiny(sparse, COLUMNS), Layout(), BF16) == 2 * (2 * 8 + 4)
    own = sparse.matrix_parameters(4) - mla.matrix_parameters(4)
    assert own == 6 * 2 * 4 + 4 * 4 + 4 * 2  # queries, key, head weights


def test_every_stage_has_its_share_of_kinds_that_alternate(tiny: Tiny):
    groups = tuple(
        LayerGroup(count=18, attention=one, feed_forward=COLUMNS) for one in (WINDOWED, DELTA)
    )
    model = replace(tiny(WINDOWED, COLUMNS), layers=groups, interleaved=True)

    assert [count for _, count in stage_layers(model, Layout(pp=3))] == [6.0, 6.0]


LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip


def groups(kind: str, bits: int, size: int | None = None) -> dict[str, Any]:
    weights = {"type": kind, "num_bits": bits, "group_size": size}
    return {"config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(
    ("quantisation", "dtype"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", **groups("float", 4, 16)}, "nvfp4"),
        ({"quant_method": "compressed-tensors", **groups("float", 4, 32)}, "mxfp4"),
        ({"quant_method": "compressed-tensors", **groups("int", 4, 128)}, "int4"),
        ({"quant_method": "compressed-tensors", **groups("int", 8)}, "int8"),
        ({"quant_method": "compressed-tensors", **groups("float", 8)}, "fp8"),
    ],
)
def test_a_quantisation_names_the_stored_type(quantisation: dict[str, Any], dtype: str):
    assert read_model(LLAMA | {"quantization_config": quantisation}, "mine", "x").weight_dtype == (
        dtype
    )


@pytest.mark.parametrize(
    "quantisation",
    [
        {"quant_method": "compressed-tensors", **groups("float", 6)},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "modelopt", "quant_algo": "W3"},
    ],
)
def test_a_quantisation_of_other_bits_is_refused(quantisation: dict[str, Any]):
    with pytest.raises(FileError, match="accepted: one group of weights of 4 or 8 bits"):
        read_model(LLAMA | {"quantization_config": quantisation}, "mine", "x")


@pytest.mark.parametrize(
    ("kept", "which"),
    [
        (["lm_head"], "matrices"),
        (["model.layers.*.self_attn"], "feed-forward"),
        (["model.layers.0.self_attn*", "model.layers.1.self_attn*"], "feed-forward"),
        (["model.layers.11.self_attn*"], "feed-forward"),  # one of two layers
        (["re:.*self_attn.*", "re:.*shared_experts.*"], "experts"),
    ],
)
def test_what_is_left_alone_says_which_matrices_are_quantised(kept: list[str], which: str):
    quantisation = {"quant_method": "compressed-tensors", **groups("int", 4, 32), "ignore": kept}

    assert read_model(LLAMA | {"quantization_config": quantisation}, "x", "x").quantised == which


@pytest.mark.parametrize(("which", "narrow"), [("matrices", 3), ("feed-forward", 2), ("experts", 1)])  # fmt: skip
def test_only_what_is_quantised_shrinks(which: Any, narrow: int, tiny: Tiny):
    moe = Moe(experts=4, experts_per_token=2, expert_intermediate=2, shared_intermediate=6)
    attention = Gqa(heads=1, kv_heads=1, head_dim=4)
    model = replace(tiny(attention, moe), quantised=which)
    parts = [4 * 3 * 4 * 2, 3 * 4 * 6, 4 * 4 * 4]  # experts, shared, attention; two layers
    saved = 2 * sum(parts[:narrow])  # one byte of two for each

    fp8 = Precision(weights="fp8", kv="bf16")
    wide, thin = (weight_bytes_per_rank(model, Layout(), one) for one in (BF16, fp8))
    read = [
        total(step_ops(model, Layout(), one, StepShape(prompt_tokens=1e6)), "weight_bytes")
        for one in (BF16, fp8)
    ]

    assert wide - thin == saved
    assert read[0] - read[1] == pytest.approx(saved)
