"""Families in the shape of GPT-2 and GPT-3: norms and projections with biases, feed-forwards without a gate, learned positions.

A norm with a bias counts as two vectors of the hidden size.
"""

from dataclasses import dataclass, replace
from typing import Final

from polypod.workload.keys import Keys
from polypod.workload.model import Dense, Gqa, LayerGroup
from polypod.workload.parts import Layers, gqa

GPT2_SPELLING: Final = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "max_position_embeddings": "n_positions",
}
BLOOM_SPELLING: Final = {
    "hidden_size": "n_embed",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
}
OPT_SPELLING: Final = {"intermediate_size": "ffn_dim"}
MPT_SPELLING: Final = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What tells these families apart."""

    bias: bool = True  # of every projection
    norms: int = 4


def layers(keys: Keys, style: Style) -> Layers:
    """All alike; a feed-forward whose width is not stated has 4 H columns."""
    hidden = keys.count("hidden_size")
    one = replace(gqa(keys), qkv_bias=style.bias, output_bias=style.bias)
    columns = keys.count("intermediate_size", default=4 * hidden)
    return _alike(keys, one, Dense(intermediate=columns, bias=style.bias, gated=False), style.norms)


def _alike(keys: Keys, one: Gqa, wide: Dense, norms: int) -> Layers:
    count = keys.count("num_hidden_layers")
    return (LayerGroup(count=count, attention=one, feed_forward=wide, norms=norms),)


def neox(keys: Keys) -> Layers:
    return layers(keys, Style(bias=keys.flag("attention_bias", default=True)))


def opt(keys: Keys) -> Layers:
    """OPT-350M alone has embeddings narrower than its layers, and norms after them."""
    hidden = keys.count("hidden_size")
    if keys.count("word_embed_proj_dim", default=hidden) != hidden:
        raise keys.wrong(key="word_embed_proj_dim", accepted=f"hidden_size={hidden}")
    if not keys.flag("do_layer_norm_before", default=True):
        raise keys.wrong(key="do_layer_norm_before", accepted="true (norms before each half)")
    return layers(keys, Style(bias=keys.flag("enable_bias", default=True)))


def starcoder2(keys: Keys) -> Layers:
    """Grouped keys and values; a window over all layers where the file states one."""
    width = keys.optional("sliding_window")
    (group,) = layers(keys, Style(bias=keys.flag("use_bias", default=True)))
    assert isinstance(group.attention, Gqa)
    return (replace(group, attention=replace(group.attention, window_tokens=width)),)


def phi(keys: Keys) -> Layers:
    """Attention and feed-forward run side by side after one norm."""
    if keys.flag("qk_layernorm"):
        raise keys.wrong(key="qk_layernorm", accepted="false (no norms of queries and keys)")
    return layers(keys, Style(norms=2))


def phi_others(keys: Keys) -> int:
    """Biases of the last norm and of the head."""
    return keys.count("hidden_size") + keys.count("vocab_size")


def mpt(keys: Keys) -> Layers:
    """Multi-head attention whose positions are a slope per head; norms have no biases, and nothing else where `no_bias` is true."""
    within = keys.get("attn_config")
    asked = within if isinstance(within, dict) else {}
    if asked.get("attn_type", "multihead_attention") != "multihead_attention":
        raise keys.wrong(key="attn_config", accepted="attn_type multihead_attention")
    if not asked.get("alibi", False) or asked.get("qk_ln", False):
        raise keys.wrong(key="attn_config", accepted="alibi true, qk_ln false")
    if not keys.flag("no_bias", default=True):
        raise keys.wrong(key="no_bias", accepted="true")
    one, ratio = gqa(keys), keys.count("expansion_ratio", default=4)
    wide = Dense(intermediate=ratio * keys.count("hidden_size"), gated=False)
    return _alike(keys, one, wide, norms=2)


def learned_positions(keys: Keys) -> int:
    """A vector for each position, and the bias of the last norm."""
    return keys.count("hidden_size") * (keys.count("max_position_embeddings") + 1)


def opt_others(keys: Keys) -> int:
    """Positions are numbered from 2."""
    return keys.count("hidden_size") * (keys.count("max_position_embeddings") + 3)


def last_norm_bias(keys: Keys) -> int:
    return keys.count("hidden_size")


def bloom_others(keys: Keys) -> int:
    """The norm of the embeddings, and the bias of the last one."""
    return 3 * keys.count("hidden_size")
