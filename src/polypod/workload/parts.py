"""The parts of a layer as config.json files write them, for the families that share a spelling."""

from dataclasses import replace

from polypod.workload.keys import LONGEST, Keys
from polypod.workload.model import Dense, Gqa, LayerGroup, Mla

Layers = tuple[LayerGroup, ...]


def gqa(keys: Keys, *, head_dim: str = "head_dim", kv_heads: str = "num_key_value_heads") -> Gqa:
    """Grouped-query attention; a head dimension that is not stated is the quotient."""
    heads = keys.count("num_attention_heads")
    shared = keys.count(kv_heads, default=heads)
    if heads % shared:
        raise keys.wrong(key=kv_heads, accepted=f"a divisor of num_attention_heads={heads}")
    stated = keys.optional(head_dim)
    hidden = keys.count("hidden_size")
    if stated is None and hidden % heads:
        raise keys.wrong(
            key="num_attention_heads", accepted=f"a divisor of hidden_size={hidden}, or a head_dim"
        )
    bias = keys.flag("attention_bias")
    return Gqa(
        heads=heads,
        kv_heads=shared,
        head_dim=stated or hidden // heads,
        qkv_bias=bias,
        output_bias=bias,
    )


def everywhere(keys: Keys, one: Gqa) -> Gqa:
    """With the window that `sliding_window` gives every layer, where it is narrower than the context."""
    width, context = (
        keys.optional("sliding_window"),
        keys.optional("max_position_embeddings", most=LONGEST),
    )
    used = width is not None and (context is None or width < context)
    return replace(one, window_tokens=width) if used else one


def mla(keys: Keys) -> Mla:
    return Mla(
        heads=keys.count("num_attention_heads"),
        q_lora_rank=keys.optional("q_lora_rank"),
        kv_lora_rank=keys.count("kv_lora_rank"),
        qk_nope_head_dim=keys.count("qk_nope_head_dim"),
        qk_rope_head_dim=keys.count("qk_rope_head_dim"),
        v_head_dim=keys.count("v_head_dim"),
    )


def sparse_mla(keys: Keys) -> Mla:
    """MLA with an indexer of its own."""
    return replace(
        mla(keys),
        index_heads=keys.count("index_n_heads"),
        index_head_dim=keys.count("index_head_dim"),
        index_topk=keys.count("index_topk"),
    )


def dense(keys: Keys) -> Dense:
    return Dense(intermediate=keys.count("intermediate_size"), bias=keys.flag("mlp_bias"))


def experts_per_token(keys: Keys, experts: int, key: str = "num_experts_per_tok") -> int:
    chosen = keys.count(key)
    if chosen > experts:
        raise keys.wrong(key=key, accepted=f"at most the {experts} experts there are")
    return chosen
