"""What a `quantization_config` says a checkpoint's matrices are stored in, and which of them."""

from typing import Any

import pytest

from polypod.catalog.load import load_model
from polypod.errors import FileError
from polypod.workload.config import read_model
from polypod.workload.layout import Layout
from polypod.workload.memory import weight_bytes_per_rank
from polypod.workload.model import Model, parameters
from polypod.workload.precision import Precision

DENSE: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 128, "vocab_size": 100,
}  # fmt: skip
INT8_GROUP = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}  # fmt: skip
INT4_GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32}}
MXFP4_GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": 32}}


def model_of(quantisation: dict[str, Any], **fields: object) -> Model:
    return read_model(DENSE | fields | {"quantization_config": quantisation}, "one", "config.json")


@pytest.mark.parametrize(
    ("quantisation", "dtype"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}, "fp8"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8"),
        ({"quant_method": "fbgemm_fp8"}, "fp8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": INT8_GROUP}}, "int8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": INT4_GROUP}}, "int4"),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": MXFP4_GROUP}}, "mxfp4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "int8"),
        ({"quant_method": "bitsandbytes", "_load_in_8bit": True, "_load_in_4bit": False}, "int8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "awq", "w_bit": 8}, "int8"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
        ({"quant_method": "auto-round", "bits": 4}, "int4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "INT8_SQ"}, "int8"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4", "group_size": 32}}}, "mxfp4"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)  # fmt: skip
def test_each_method_has_its_format(quantisation: dict[str, Any], dtype: str):
    assert model_of(quantisation).weight_dtype == dtype


@pytest.mark.parametrize(
    ("quantisation", "said"),
    [
        ({"quant_method": "gptq", "bits": 3}, r"accepted: bits of 4 or 8"),
        ({"quant_method": "gptq", "bits": [4]}, r"accepted: bits of 4 or 8"),
        ({"quant_method": "bitsandbytes"}, r"accepted: one of load_in_4bit and load_in_8bit"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "bfp16"}}}, r"weights in fp8_e4m3, int8"),
        ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp4"}}, "layer_quant_config": {"*q_proj": {}}},
         r"and no layer_quant_config"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, r"or a quant_algo out of FP8"),
        ({"quant_method": "compressed-tensors", "config_groups": {"a": INT4_GROUP, "b": INT8_GROUP}}, r"one group of weights"),
        ({"quant_method": "hqq"}, r"a quant_method out of fp8, fbgemm_fp8, mxfp4, awq, gptq, auto-round, bitsandbytes, quark"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_with_what_can(quantisation: dict[str, Any], said: str):
    with pytest.raises(FileError, match=said):
        model_of(quantisation)


@pytest.mark.parametrize(
    ("key", "kept", "quantised"),
    [
        ("ignore", ["lm_head"], "matrices"),
        ("ignore", ["lm_head", "re:.*self_attn.*"], "feed-forward"),
        ("ignore", ["re:.*self_attn.*", "re:.*shared_experts.*"], "experts"),
        ("modules_to_not_convert", ["model.layers.*.self_attn", "model.layers.*.mlp.router"], "feed-forward"),
        ("exclude_modules", ["model.layers.0.self_attn*"], "matrices"),  # one layer of four
        ("exclude_modules", [f"model.layers.{n}.self_attn*" for n in (0, 3)], "feed-forward"),
        ("exclude", ["re:.*self_attn.*"], "feed-forward"),
        ("llm_int8_skip_modules", ["self_attn"], "feed-forward"),
        ("ignored_layers", ["model.visual.blocks.0.attn.proj", "re:.*vision_tower.*attn"], "matrices"),
    ],
)  # fmt: skip
def test_lists_of_what_is_left_alone_are_read_for_attention_and_shared_experts(
    key: str, kept: list[str], quantised: str
):
    assert model_of({"quant_method": "fp8", key: kept}).quantised == quantised


def test_attention_left_alone_stays_in_bf16():
    everything = model_of({"quant_method": "fp8"})
    all_but_attention = model_of({"quant_method": "fp8", "ignore": ["re:.*self_attn.*"]})
    fp8 = Precision(weights="fp8", kv="bf16")

    more = weight_bytes_per_rank(all_but_attention, Layout(), fp8) - weight_bytes_per_rank(
        everything, Layout(), fp8
    )
    assert more == 4 * 4 * 64 * 64  # one byte more for each of four projections in four layers


@pytest.mark.parametrize(
    ("name", "dtype", "quantised"),
    [
        ("deepseek-r1", "fp8", "matrices"),
        ("gpt-oss-120b", "mxfp4", "feed-forward"),
        ("nvidia/Gemma-4-31B-IT-NVFP4", "nvfp4", "feed-forward"),
        ("devstral-small-2", "fp8", "matrices"),
        ("deepseek-v4-pro", "mxfp4", "experts"),
    ],
)
def test_shipped_checkpoints_are_read_as_published(name: str, dtype: str, quantised: str):
    entry = load_model(name)
    model = read_model(entry.config, entry.name, entry.path)

    assert (model.weight_dtype, model.quantised) == (dtype, quantised)


def test_fp8_beside_4_bit_experts_is_counted_as_fp8():
    """DeepSeek V4 Flash: 43 layers of 256 experts of 3 x 4096 x 2048 in 17/32 byte, other matrices in one byte."""
    entry = load_model("deepseek-v4-flash")
    model = read_model(entry.config, entry.name, entry.path)
    stored = weight_bytes_per_rank(model, Layout(), Precision(weights="mxfp4", kv="bf16"))
    widened = weight_bytes_per_rank(model, Layout(), Precision(weights="bf16", kv="bf16"))

    routed = 43 * 256 * 3 * 4096 * 2048
    ends = 2 * 129280 * 4096
    others = parameters(model) - routed - ends
    assert model.rest_dtype == "fp8"
    assert stored == pytest.approx(routed * 17 / 32 + 2 * ends + others, rel=2e-3)
    assert widened == pytest.approx(2 * parameters(model))


def test_an_experts_format_that_is_not_known_is_refused():
    with pytest.raises(FileError, match=r"expert_dtype is 'fp3'; accepted: fp4, or none"):
        model_of({"quant_method": "fp8"}, expert_dtype="fp3")
