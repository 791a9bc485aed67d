from typing import Any

import pytest

from polypod.errors import FileError
from polypod.workload.config import read_model
from polypod.workload.model import Dense, Gqa, Mla, Model, Moe, layer_vector_parameters

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip


def read(config: dict[str, Any], **changed: Any) -> Model:
    fields = {key: value for key, value in {**config, **changed}.items() if value != "absent"}
    return read_model(fields, "mine", "mine/config.json")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hidden_size": "absent"}, r"hidden_size is missing; accepted: a whole number from 1"),
        ({"hidden_size": -64}, r"hidden_size is -64; accepted: a whole number from 1"),
        ({"hidden_size": 64.0}, r"hidden_size is 64\.0; accepted: a whole number"),
        ({"hidden_size": True}, r"hidden_size is True; accepted: a whole number"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers is 0; accepted: a whole number from 1"),
        ({"num_hidden_layers": -1}, r"num_hidden_layers is -1;"),
        ({"vocab_size": 10**12}, r"vocab_size is 1000000000000; accepted: a whole number from 1 to 10,000,000"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, r"num_attention_heads is 5; accepted: a divisor of hidden_size=64"),
        ({"num_key_value_heads": 3}, r"num_key_value_heads is 3; accepted: a divisor of num_attention_heads=4"),
        ({"model_type": "rwkv"}, r"model_type is 'rwkv'; accepted: one of the modelled families: llama, mistral"),
        ({"model_type": "absent"}, r"model_type is missing; accepted: a text"),
        ({"tie_word_embeddings": "yes"}, r"tie_word_embeddings is 'yes'; accepted: true or false"),
        ({"sliding_window": 4096}, r"sliding_window is 4096; accepted: null"),
        ({"quantization_config": {"quant_method": "aqlm"}}, r"quantization_config is .*; accepted: a quant_method out of fp8"),
        ({"torch_dtype": "float8"}, r"torch_dtype is 'float8'; accepted: bfloat16, float16 or float32"),
    ],
)  # fmt: skip
def test_an_absurd_field_is_refused_with_what_is_accepted(changed: dict[str, Any], says: str):
    with pytest.raises(FileError, match=rf"mine/config\.json: {says}.* - at `\$\.") as caught:
        read(LLAMA, **changed)

    assert str(caught.value).endswith(f"at `$.{next(iter(changed))}`")


@pytest.mark.parametrize(
    ("name", "changed", "says"),
    [
        ("moonshotai/Kimi-K2-Instruct", {"num_experts_per_tok": 385}, "num_experts_per_tok is 385; accepted: at most the 384"),
        ("moonshotai/Kimi-K2-Instruct", {"first_k_dense_replace": 61}, "first_k_dense_replace is 61; accepted: less than"),
        ("moonshotai/Kimi-K2-Instruct", {"moe_layer_freq": 2}, "moe_layer_freq is 2; accepted: 1"),
        ("moonshotai/Kimi-K2-Instruct", {"kv_lora_rank": None}, "kv_lora_rank is None; accepted: a whole number"),
        ("Qwen/Qwen3-30B-A3B", {"mlp_only_layers": [3]}, r"mlp_only_layers is \[3\]; accepted: an empty list"),
        ("Qwen/Qwen3-30B-A3B", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2; accepted: 1"),
        ("Qwen/Qwen3-30B-A3B", {"num_experts_per_tok": 129}, "num_experts_per_tok is 129"),
        ("mistralai/Mixtral-8x7B-v0.1", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9"),
    ],
)  # fmt: skip
def test_experts_that_cannot_be_are_refused(
    name: str, changed: dict[str, Any], says: str, configs: dict[str, dict[str, Any]]
):
    with pytest.raises(FileError, match=says):
        read(configs[name], **changed)


def test_a_window_that_is_off_or_as_wide_as_the_context_changes_nothing():
    assert read(LLAMA, sliding_window=16, use_sliding_window=False)
    assert read(LLAMA, sliding_window=4096, max_position_embeddings=4096)


def test_missing_key_value_heads_mean_one_for_each_head():
    attention = read(LLAMA, num_key_value_heads="absent").layers[0].attention

    assert attention == Gqa(heads=4, kv_heads=4, head_dim=16)


def test_a_stated_head_dimension_wins_over_the_quotient():
    assert read(LLAMA, head_dim=32).layers[0].attention == Gqa(heads=4, kv_heads=2, head_dim=32)


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [
        ({"torch_dtype": "float16"}, "fp16"),
        ({"dtype": "float32"}, "fp32"),
        ({}, "bf16"),
        ({"torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "awq"}}, "int4"),
    ],
)
def test_the_stored_type_is_the_quantisations_else_the_files(stored: dict[str, Any], dtype: str):
    assert read(LLAMA, **stored).weight_dtype == dtype


def test_deepseek_is_three_dense_layers_and_fifty_eight_of_experts(shapes: dict[str, Model]):
    model = shapes["deepseek-ai/DeepSeek-V3"]
    dense, sparse = model.layers

    assert (dense.count, dense.feed_forward) == (3, Dense(intermediate=18432))
    assert (sparse.count, sparse.feed_forward) == (
        58,
        Moe(
            experts=256,
            experts_per_token=8,
            expert_intermediate=2048,
            shared_intermediate=2048,
            balanced=True,
        ),
    )
    assert isinstance(sparse.attention, Mla)
    assert (model.mtp_layers, model.context_tokens, model.weight_dtype) == (1, 163840, "fp8")


def test_qwen2_has_biases_on_queries_keys_and_values_though_its_file_does_not_say():
    plain, qwen = (
        read(LLAMA, model_type=family, num_key_value_heads=1).layers[0]
        for family in ("llama", "qwen2")
    )

    # 4 query heads, a key head and a value head of 16
    assert layer_vector_parameters(qwen, 64) - layer_vector_parameters(plain, 64) == 6 * 16


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-30B-A3B"])
def test_qwen3_norms_queries_and_keys(name: str, shapes: dict[str, Model]):
    model = shapes[name]

    # two norms of the hidden size, two of the head dimension
    assert layer_vector_parameters(model.layers[0], model.hidden) == 2 * model.hidden + 2 * 128


def test_biases_are_counted_where_the_file_has_them():
    plain, biased = read(LLAMA).layers[0], read(LLAMA, attention_bias=True, mlp_bias=True).layers[0]

    # 8 heads of 16, the output's 64, two of 128 columns and one of 64
    assert (
        layer_vector_parameters(biased, 64) - layer_vector_parameters(plain, 64)
        == 128 + 64 + 256 + 64
    )


def test_embedding_and_head_are_two_where_the_file_does_not_say():
    assert not read(LLAMA).tied
    assert read(LLAMA, tie_word_embeddings=True).tied
