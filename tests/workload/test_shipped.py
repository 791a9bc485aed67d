"""Every model of the catalog against counts made elsewhere.

Columns: billions of parameters as published; as an instantiation of the architecture in transformers 5.23 on the meta device
counts them, without MTP layers and vision (DeepSeek-V3.2's indexer among them); billions active per token, embedding and head
among them; bytes of cache per token in bf16, of layers that attend to everything (of all layers where ALL_LAYERS says so).
"""

import pytest

from polypod.catalog.load import listing, load_model
from polypod.workload.config import read_model
from polypod.workload.forward import StepShape, step_ops
from polypod.workload.layout import Layout
from polypod.workload.memory import weight_bytes_per_rank
from polypod.workload.model import (
    Compressed,
    Gqa,
    Mla,
    Model,
    Moe,
    Recurrent,
    active_parameters,
    cache_bytes_per_sequence,
    feed_forward_parameters,
    kv_bytes_per_token,
    layer_vector_parameters,
    parameters,
    state_bytes_per_sequence,
)
from polypod.workload.precision import Precision

BF16 = Precision(weights="bf16", kv="bf16")
COUNTED: dict[str, tuple[float, float, float | None, int]] = {
    "01-ai/Yi-34B": (34.4, 34.389, None, 245760),
    "CohereLabs/c4ai-command-r-v01": (35, 34.981, None, 1310720),
    "HuggingFaceTB/SmolLM2-1.7B": (1.711, 1.7114, None, 196608),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (0.1345, 0.13452, None, 23040),
    "HuggingFaceTB/SmolLM3-3B": (3.08, 3.0751, None, 73728),
    "LGAI-EXAONE/EXAONE-4.0-32B": (32.0, 32.003, None, 65536),
    "MiniMaxAI/MiniMax-M2": (230, 228.69, 11.031, 253952),
    "MiniMaxAI/MiniMax-M2.5": (230, 228.69, 11.031, 253952),
    "MiniMaxAI/MiniMax-M2.7": (230, 228.69, 11.031, 253952),
    "MiniMaxAI/MiniMax-M3": (428, 426.17, 25.962, 122880),
    "Qwen/Qwen2.5-1.5B": (1.54, 1.5437, None, 28672),
    "Qwen/Qwen2.5-32B": (32.5, 32.764, None, 262144),
    "Qwen/Qwen2.5-72B": (72.7, 72.706, None, 327680),
    "Qwen/Qwen2.5-7B": (7.61, 7.6156, None, 57344),
    "Qwen/Qwen3-0.6B": (0.6, 0.59605, None, 114688),
    "Qwen/Qwen3-14B": (14.8, 14.768, None, 163840),
    "Qwen/Qwen3-235B-A22B": (235, 235.09, 22.191, 192512),
    "Qwen/Qwen3-30B-A3B": (30.5, 30.532, 3.353, 98304),
    "Qwen/Qwen3-32B": (32.8, 32.762, None, 262144),
    "Qwen/Qwen3-4B": (4.0, 4.0225, None, 147456),
    "Qwen/Qwen3-8B": (8.2, 8.1907, None, 147456),
    "Qwen/Qwen3-Coder-480B-A35B-Instruct": (480, 480.15, 35.475, 253952),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (80, 79.674, 3.8749, 24576),
    "Qwen/Qwen3-VL-235B-A22B-Instruct": (235, 235.09, 22.191, 192512),
    "Qwen/Qwen3-VL-30B-A3B-Instruct": (30.5, 30.532, 3.353, 98304),
    "Qwen/Qwen3-VL-32B-Instruct": (33.4, 32.762, None, 262144),
    "Qwen/Qwen3.5-122B-A10B": (122, 122.11, 9.7713, 24576),
    "Qwen/Qwen3.5-27B": (27, 26.896, None, 65536),
    "Qwen/Qwen3.5-35B-A3B": (35, 34.661, 3.455, 20480),
    "Qwen/Qwen3.5-397B-A17B": (397, 396.35, 17.349, 30720),
    "Qwen/Qwen3.5-9B": (9, 8.9538, None, 32768),
    "XiaomiMiMo/MiMo-7B-Base": (7.83, 7.6226, None, 147456),
    "XiaomiMiMo/MiMo-V2-Flash": (309, 308.78, 15.446, 23040),
    "ai21labs/Jamba-v0.1": (51.6, 51.57, 12.11, 16384),
    "allenai/Olmo-3.1-32B-Instruct": (32.2, 32.234, None, 65536),
    "baidu/ERNIE-4.5-300B-A47B-PT": (300, 298.64, 47.079, 221184),
    "codellama/CodeLlama-34b-Instruct-hf": (33.7, 33.744, None, 196608),
    "deepseek-ai/DeepSeek-R1": (671, 671.03, 37.552, 70272),
    "deepseek-ai/DeepSeek-V2": (236, 235.74, 21.376, 69120),
    "deepseek-ai/DeepSeek-V2-Lite": (15.7, 15.706, 2.6612, 31104),
    "deepseek-ai/DeepSeek-V3": (671, 671.03, 37.552, 70272),
    "deepseek-ai/DeepSeek-V3.1": (671, 671.03, 37.552, 70272),
    "deepseek-ai/DeepSeek-V3.2": (671, 671.88, 38.404, 70272),
    "deepseek-ai/DeepSeek-V4-Flash": (284, 284.33, 13.8, 5536),
    "deepseek-ai/DeepSeek-V4-Pro": (1600, 1573.0, 49.779, 7928),
    "google/gemma-2-27b": (27.227, 27.227, None, 376832),
    "google/gemma-3-27b-it": (27.43, 27.009, None, 81920),
    "google/gemma-4-26B-A4B": (25.2, 25.233, 3.8225, 20480),
    "huggyllama/llama-30b": (32.5, 32.529, None, 1597440),
    "inclusionAI/Ling-1T": (1000, 999.71, 51.054, 327680),
    "internlm/internlm3-8b-instruct": (8.8, 8.8042, None, 49152),
    "meituan-longcat/LongCat-Flash-Chat": (560, 560.66, 27.955, 64512),
    "meta-llama/Llama-2-13b-hf": (13.016, 13.016, None, 819200),
    "meta-llama/Llama-2-70b-hf": (68.977, 68.977, None, 327680),
    "meta-llama/Llama-2-7b-hf": (6.738, 6.7384, None, 524288),
    "meta-llama/Llama-3.1-8B": (8.03, 8.0303, None, 131072),
    "meta-llama/Llama-3.2-1B-Instruct": (1.23, 1.2358, None, 32768),
    "meta-llama/Llama-3.3-70B-Instruct": (70.6, 70.554, None, 327680),
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": (400, 400.71, 17.185, 196608),
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": (109, 107.77, 17.173, 196608),
    "meta-llama/Meta-Llama-3.1-405B": (406.0, 405.85, None, 516096),
    "meta-llama/Meta-Llama-3.1-70B": (70.6, 70.554, None, 327680),
    "microsoft/Phi-3-mini-4k-instruct": (3.82, 3.8211, None, 393216),
    "microsoft/Phi-3.5-MoE-instruct": (41.9, 41.873, 6.6406, 131072),
    "microsoft/Phi-mini-MoE-instruct": (7.6, 7.6476, 2.3628, 131072),
    "microsoft/phi-4": (14.7, 14.66, None, 204800),
    "mistralai/Devstral-Small-2-24B-Instruct-2512": (24, 23.572, None, 163840),
    "mistralai/Mamba-Codestral-7B-v0.1": (7.29, 7.2854, None, 0),
    "mistralai/Mistral-7B-Instruct-v0.3": (7.25, 7.248, None, 131072),
    "mistralai/Mistral-Nemo-Instruct-2407": (12.2, 12.248, None, 163840),
    "mistralai/Mixtral-8x22B-v0.1": (141, 140.62, 39.152, 229376),
    "mistralai/Mixtral-8x7B-v0.1": (46.7, 46.703, 12.88, 131072),
    "moonshotai/Kimi-K2-Instruct": (1040, 1026.4, 32.861, 70272),
    "mosaicml/mpt-7b": (6.7, 6.6493, None, 524288),
    "nvidia/Gemma-4-31B-IT-NVFP4": (30.7, 30.697, None, 81920),
    "nvidia/Llama-3_3-Nemotron-Super-49B-v1": (49.9, 49.867, None, 200704),
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (31.6, 31.578, 3.5801, 6144),
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4": (120, 120.67, 12.77, 8192),
    "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16": (550, 549.31, 56.059, 12288),
    "nvidia/Nemotron-H-56B-Base-8K": (56, 56.324, None, 40960),
    "openai/gpt-oss-120b": (116.83, 116.83, 5.712, 36864),
    "openai/gpt-oss-20b": (20.91, 20.915, 4.1874, 24576),
    "openai/gpt3-175b": (175, 174.6, None, 4718592),
    "rednote-hilab/dots.llm1.inst": (142, 142.77, 14.017, 1015808),
    "stepfun-ai/step3": (316, 316.29, 38.841, 62464),
    "tencent/Tencent-Hunyuan-Large": (389, 388.7, 51.322, 81920),
    "tiiuae/falcon-40b": (41.3, 41.303, None, 122880),
    "upstage/Solar-Open-100B": (102.6, 102.65, 12.055, 196608),
    "zai-org/GLM-4.5": (355, 352.8, 33.632, 376832),
    "zai-org/GLM-4.7-Flash": (30, 29.943, 3.8968, 54144),
    "zai-org/GLM-5": (744, 743.91, 41.785, 89856),
    "zai-org/GLM-5.1": (744, 743.91, 41.785, 89856),
    "zai-org/GLM-5.2": (753, 743.38, 41.251, 89856),
}  # fmt: skip
ALL_LAYERS = {
    "google/gemma-2-27b",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "microsoft/Phi-mini-MoE-instruct",  # a window on every layer
}
SEES = {  # the published total has a vision tower in it, or an MTP layer
    "google/gemma-3-27b-it", "Qwen/Qwen3-VL-32B-Instruct", "zai-org/GLM-5.2", "XiaomiMiMo/MiMo-7B-Base",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct", "mistralai/Devstral-Small-2-24B-Instruct-2512",
    "moonshotai/Kimi-K2-Instruct",  # published rounded up; the card says so
    "deepseek-ai/DeepSeek-V4-Pro",
}  # fmt: skip
NAMES = list(COUNTED)


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    entries = [load_model(name) for name in NAMES]
    return {entry.name: read_model(entry.config, entry.name, entry.path) for entry in entries}


def test_every_model_of_the_catalog_is_in_the_table():
    assert {entry.id for entry in listing() if entry.kind == "model"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_an_instantiation_and_near_the_published(
    name: str, models: dict[str, Model]
):
    published, counted, active, _ = COUNTED[name]
    model = models[name]

    assert parameters(model) / 1e9 == pytest.approx(counted, rel=1e-3)
    assert parameters(model) / 1e9 == pytest.approx(published, rel=0.1 if name in SEES else 0.011)
    if active is not None:
        assert active_parameters(model) / 1e9 == pytest.approx(active, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_tokens_cache_is_what_the_shape_says(name: str, models: dict[str, Model]):
    model, cache_bytes = models[name], COUNTED[name][3]
    first_token = cache_bytes_per_sequence(model, 2, 1) - state_bytes_per_sequence(model)

    assert (first_token if name in ALL_LAYERS else kv_bytes_per_token(model, 2)) == cache_bytes


@pytest.mark.parametrize("name", NAMES)
def test_the_kinds_of_layers_sum_to_the_whole(name: str, models: dict[str, Model]):
    model = models[name]
    mixers = sum(
        group.count * group.attention.matrix_parameters(model.hidden)
        for group in model.layers
        if group.attention
    )
    rest = sum(
        group.count
        * (
            feed_forward_parameters(group.feed_forward, model.hidden)
            + layer_vector_parameters(group, model.hidden)
        )
        for group in model.layers
    )
    ends = model.embedding_parameters * (1 if model.tied else 2) + model.hidden + model.others

    assert mixers + rest + ends == parameters(model)
    assert weight_bytes_per_rank(model, Layout(), BF16) == pytest.approx(2 * parameters(model))


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_costs_two_flops_a_matrix_parameter_and_its_attention(
    name: str, models: dict[str, Model]
):
    model, tokens = models[name], 6000
    shape = StepShape(prompt_tokens=tokens, pairs=tokens**2 / 2, finished_prompts=tokens)
    looked_up = model.others + (0 if model.tied else model.embedding_parameters)
    vectors = sum(
        group.count * layer_vector_parameters(group, model.hidden)
        for group in model.layers
        if not (isinstance(group.feed_forward, Moe) and group.feed_forward.bias)
    )
    matrices = active_parameters(model) - looked_up - vectors

    flops = sum(op.count * op.flops for op in step_ops(model, Layout(), BF16, shape))

    assert flops == pytest.approx(2 * tokens * matrices + _mixing(model, tokens), rel=0.01)


def _mixing(model: Model, tokens: int) -> float:
    """Scores and values of every pair in sight, token by token; six for each state element."""
    total = 0.0
    for group in model.layers:
        mixer = group.attention
        if isinstance(mixer, Recurrent):
            total += group.count * 6 * mixer.heads * mixer.key_dim * mixer.value_dim * tokens
        elif mixer is not None:
            pairs = sum(_seen(mixer, seen) for seen in range(1, tokens + 1))
            each = mixer.heads * {
                Gqa: lambda m: m.head_dim + m.value_dim,
                Mla: lambda m: m.qk_head_dim + m.v_head_dim,
                Compressed: lambda m: 2 * m.head_dim,
            }[type(mixer)](mixer)
            total += group.count * 2 * each * pairs
            ratio = mixer.ratio if isinstance(mixer, Compressed) and mixer.index_heads else 1
            scored = mixer.index_heads * mixer.index_head_dim * tokens**2
            total += group.count * scored / ratio
    return total


def _seen(mixer: Gqa | Mla | Compressed, tokens: int) -> float:
    """Vectors that the last of so many tokens attends to."""
    if not isinstance(mixer, Compressed):
        return min(tokens, mixer.attended_tokens or tokens)
    near = min(tokens, mixer.window_tokens)
    if not mixer.ratio:
        return near
    return near + min(tokens / mixer.ratio, mixer.index_topk or tokens)
