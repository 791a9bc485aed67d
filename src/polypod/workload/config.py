"""Reads a `config.json`, as model hubs publish them, into a `Model`; refuses what it would have to guess.

One row of `_FAMILIES` per `model_type`: how its attention and its feed-forward are written in the file. A family is listed
only where its parameter count comes out as published.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from polypod.errors import FileError
from polypod.workload.model import Dense, Gqa, LayerGroup, Mla, Model, Moe

_MOST: Final = 10_000_000  # no published shape comes near; larger is a slip of the pen


def read_model(config: Mapping[str, Any], name: str, path: Path | str) -> Model:
    """Understand a config.json. `path` is only for messages.

    Raises `FileError` with the key, its value and what is accepted, for a family that is not modelled, a field that is
    missing, of the wrong type or absurd, and for features that would change the cost and are not modelled.
    """
    keys = Keys(config, path)
    model_type = keys.text("model_type")
    if model_type not in _FAMILIES:
        raise keys.wrong(
            key="model_type", accepted=f"one of the modelled families: {', '.join(_FAMILIES)}"
        )
    family = _FAMILIES[model_type]
    _refuse_windows(keys)
    num_layers = keys.count("num_hidden_layers")
    attention = family.attention(keys)
    if isinstance(attention, Gqa):
        attention = replace(
            attention, qkv_bias=attention.qkv_bias or family.qkv_bias, qk_norm=family.qk_norm
        )
    return Model(
        name=name,
        model_type=model_type,
        hidden=keys.count("hidden_size"),
        vocab=keys.count("vocab_size"),
        tied=keys.flag("tie_word_embeddings", default=family.tied),
        layers=family.layers(keys, num_layers, attention),
        mtp_layers=keys.count("num_nextn_predict_layers", default=0, least=0),
        context_tokens=keys.optional("max_position_embeddings"),
        weight_dtype=_weight_dtype(keys),
    )


@dataclass(frozen=True, slots=True)
class Keys:
    """A config's fields, checked as they are asked for."""

    config: Mapping[str, Any]
    path: Path | str

    def wrong(self, *, key: str, accepted: str) -> FileError:
        """The error for one key: what it has, what is accepted."""
        has = f"is {self.config[key]!r}" if key in self.config else "is missing"
        return FileError(self.path, f"{key} {has}; accepted: {accepted} - at `$.{key}`")

    def text(self, key: str) -> str:
        value = self.config.get(key)
        if not isinstance(value, str):
            raise self.wrong(key=key, accepted="a text")
        return value

    def count(self, key: str, *, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` up; null and absent both mean the default, where there is one."""
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
            raise self.wrong(key=key, accepted=f"a whole number from {least} to {_MOST:,}")
        return value

    def optional(self, key: str) -> int | None:
        return None if self.config.get(key) is None else self.count(key)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key=key, accepted="true or false")
        return value


def _gqa(keys: Keys) -> Gqa:
    heads = keys.count("num_attention_heads")
    kv_heads = keys.count("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise keys.wrong(
            key="num_key_value_heads", accepted=f"a divisor of num_attention_heads={heads}"
        )
    head_dim = keys.optional("head_dim")
    hidden = keys.count("hidden_size")
    if head_dim is None and hidden % heads:
        raise keys.wrong(
            key="num_attention_heads", accepted=f"a divisor of hidden_size={hidden}, or a head_dim"
        )
    bias = keys.flag("attention_bias")
    return Gqa(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim or hidden // heads,
        qkv_bias=bias,
        output_bias=bias,
    )


def _mla(keys: Keys) -> Mla:
    return Mla(
        heads=keys.count("num_attention_heads"),
        q_lora_rank=keys.optional("q_lora_rank"),
        kv_lora_rank=keys.count("kv_lora_rank"),
        qk_nope_head_dim=keys.count("qk_nope_head_dim"),
        qk_rope_head_dim=keys.count("qk_rope_head_dim"),
        v_head_dim=keys.count("v_head_dim"),
    )


Layers = tuple[LayerGroup, ...]


def _dense_layers(keys: Keys, num_layers: int, attention: Gqa | Mla) -> Layers:
    return (LayerGroup(count=num_layers, attention=attention, feed_forward=_dense(keys)),)


def _mixtral_layers(keys: Keys, num_layers: int, attention: Gqa | Mla) -> Layers:
    experts = keys.count("num_local_experts")
    moe = Moe(
        experts=experts,
        experts_per_token=_experts_per_token(keys, experts),
        expert_intermediate=keys.count("intermediate_size"),
    )
    return (LayerGroup(count=num_layers, attention=attention, feed_forward=moe),)


def _qwen3_moe_layers(keys: Keys, num_layers: int, attention: Gqa | Mla) -> Layers:
    if keys.config.get("mlp_only_layers"):
        raise keys.wrong(key="mlp_only_layers", accepted="an empty list (every layer has experts)")
    if keys.count("decoder_sparse_step", default=1) != 1:
        raise keys.wrong(key="decoder_sparse_step", accepted="1 (every layer has experts)")
    experts = keys.count("num_experts")
    moe = Moe(
        experts=experts,
        experts_per_token=_experts_per_token(keys, experts),
        expert_intermediate=keys.count("moe_intermediate_size"),
    )
    return (LayerGroup(count=num_layers, attention=attention, feed_forward=moe),)


def _deepseek_layers(keys: Keys, num_layers: int, attention: Gqa | Mla) -> Layers:
    if keys.count("moe_layer_freq", default=1) != 1:
        raise keys.wrong(
            key="moe_layer_freq", accepted="1 (every layer past the first dense ones has experts)"
        )
    dense_layers = keys.count("first_k_dense_replace", default=0, least=0)
    if dense_layers >= num_layers:
        raise keys.wrong(
            key="first_k_dense_replace", accepted=f"less than num_hidden_layers={num_layers}"
        )
    experts = keys.count("n_routed_experts")
    columns = keys.count("moe_intermediate_size")
    moe = Moe(
        experts=experts,
        experts_per_token=_experts_per_token(keys, experts),
        expert_intermediate=columns,
        shared_intermediate=columns * keys.count("n_shared_experts", default=0, least=0),
    )
    sparse = LayerGroup(count=num_layers - dense_layers, attention=attention, feed_forward=moe)
    if not dense_layers:
        return (sparse,)
    return (LayerGroup(count=dense_layers, attention=attention, feed_forward=_dense(keys)), sparse)


def _dense(keys: Keys) -> Dense:
    return Dense(intermediate=keys.count("intermediate_size"), bias=keys.flag("mlp_bias"))


def _experts_per_token(keys: Keys, experts: int) -> int:
    chosen = keys.count("num_experts_per_tok")
    if chosen > experts:
        raise keys.wrong(
            key="num_experts_per_tok", accepted=f"at most the {experts} experts there are"
        )
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    attention: Callable[[Keys], Gqa | Mla]
    layers: Callable[[Keys, int, Gqa | Mla], Layers]
    qkv_bias: bool = False  # on queries, keys and values whatever the file says
    qk_norm: bool = False
    tied: bool = False  # where the file does not say


_FAMILIES: Final[dict[str, _Family]] = {
    "llama": _Family(attention=_gqa, layers=_dense_layers),
    "mistral": _Family(attention=_gqa, layers=_dense_layers),
    "mixtral": _Family(attention=_gqa, layers=_mixtral_layers),
    "qwen2": _Family(attention=_gqa, layers=_dense_layers, qkv_bias=True),
    "qwen3": _Family(attention=_gqa, layers=_dense_layers, qk_norm=True),
    "qwen3_moe": _Family(attention=_gqa, layers=_qwen3_moe_layers, qk_norm=True),
    "deepseek_v2": _Family(attention=_mla, layers=_deepseek_layers),
    "deepseek_v3": _Family(attention=_mla, layers=_deepseek_layers),
    "kimi_k2": _Family(attention=_mla, layers=_deepseek_layers),
}


def _refuse_windows(keys: Keys) -> None:
    window = keys.config.get("sliding_window")
    context = keys.config.get("max_position_embeddings")
    in_use = keys.flag("use_sliding_window", default=True)
    if window is not None and in_use and (context is None or window < context):
        raise keys.wrong(
            key="sliding_window", accepted="null (sliding-window attention is not modelled)"
        )


_QUANTISED: Final = {"fp8": "fp8", "awq": "int4", "gptq": "int4"}


def _weight_dtype(keys: Keys) -> str:
    """What the checkpoint stores: the quantisation's type, else torch_dtype, else bf16."""
    quantisation = keys.config.get("quantization_config")
    if isinstance(quantisation, Mapping):
        method = quantisation.get("quant_method")
        known = _QUANTISED.get(str(method))
        if known is None:
            taken = ", ".join(_QUANTISED)
            raise keys.wrong(key="quantization_config", accepted=f"a quant_method out of {taken}")
        return known
    stored = keys.config.get("torch_dtype") or keys.config.get("dtype") or "bfloat16"
    known = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(str(stored))
    if known is None:
        key = "torch_dtype" if "torch_dtype" in keys.config else "dtype"
        raise keys.wrong(key=key, accepted="bfloat16, float16 or float32")
    return known
