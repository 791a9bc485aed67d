"""Families whose layers are built like no other's: DeepSeek V4, MiniMax M3, LongCat-Flash, Step-3,
Nemotron NAS, Kimi Linear."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from polypod.workload.hybrids import Layer, runs
from polypod.workload.keys import Keys
from polypod.workload.model import Compressed, Dense, Gqa, Moe, Recurrent
from polypod.workload.parts import Layers, dense, experts_per_token, gqa, mla

LONGCAT_SPELLING: Final = {
    "num_hidden_layers": "num_layers",
    "intermediate_size": "ffn_hidden_size",
    "moe_intermediate_size": "expert_ffn_hidden_size",
    "num_experts_per_tok": "moe_topk",
}
_OVERLAPPING: Final = 4  # tokens to one vector where an indexer chooses among them


def deepseek_v4(keys: Keys) -> Layers:
    """`compress_ratios` says how each layer's context is compressed; entries past the last layer are of MTP layers.

    `hc_mult` residual streams are mixed before each half of a layer, by (2 + m) m x m H weights and 27 scalars.
    """
    count, hidden = keys.count("num_hidden_layers"), keys.count("hidden_size")
    streams = keys.count("hc_mult", default=1)
    mixing = (2 + streams) * streams
    others = 2 * (mixing * (streams * hidden + 1) + 3) if streams > 1 else 0
    experts, columns = keys.count("n_routed_experts"), keys.count("moe_intermediate_size")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=columns,
        shared_intermediate=columns * keys.count("n_shared_experts", default=0, least=0),
    )
    described = runs([(_compressed(keys, ratio), moe) for ratio in _ratios(keys, count)])
    return tuple(replace(run, others=others) for run in described)


def v4_head(keys: Keys) -> int:
    """What joins the residual streams before the head."""
    streams = keys.count("hc_mult", default=1)
    return streams * (streams * keys.count("hidden_size") + 1) + 1 if streams > 1 else 0


def _ratios(keys: Keys, count: int) -> list[int]:
    ratios = keys.get("compress_ratios")
    if (
        not isinstance(ratios, list)
        or len(ratios) < count
        or not all(isinstance(one, int) and 0 <= one <= 4096 for one in ratios)
    ):
        raise keys.wrong(
            key="compress_ratios", accepted=f"a list of {count} or more whole numbers, 0 to 4096"
        )
    return ratios[:count]


def _compressed(keys: Keys, ratio: int) -> Compressed:
    indexed = ratio == _OVERLAPPING
    return Compressed(
        heads=keys.count("num_attention_heads"),
        head_dim=keys.count("head_dim"),
        q_lora_rank=keys.count("q_lora_rank"),
        output_groups=keys.count("o_groups"),
        output_rank=keys.count("o_lora_rank"),
        window_tokens=keys.count("sliding_window"),
        ratio=ratio,
        index_heads=keys.count("index_n_heads") if indexed else 0,
        index_head_dim=keys.count("index_head_dim") if indexed else 0,
        index_topk=keys.count("index_topk") if indexed else None,
    )


def minimax_m3(keys: Keys) -> Layers:
    """Grouped-query attention, past the first layers over the best blocks of an indexer; these layers have experts too."""
    count = keys.count("num_hidden_layers")
    full = replace(gqa(keys), qk_norm=keys.flag("use_qk_norm"))
    sparse = _block_sparse(keys, full)
    experts = keys.count("num_local_experts")
    columns = keys.count("intermediate_size")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=columns,
        shared_intermediate=keys.count("shared_intermediate_size")
        * keys.count("n_shared_experts", default=1, least=0),
    )
    plain = Dense(intermediate=keys.count("dense_intermediate_size"))
    chosen = _sparse_settings(keys).flags("sparse_attention_freq", count)
    kinds = zip(chosen, keys.flags("moe_layer_freq", count), strict=True)
    return runs([(sparse if few else full, moe if wide else plain) for few, wide in kinds])


def _sparse_settings(keys: Keys) -> Keys:
    inner = keys.get("sparse_attention_config")
    if not isinstance(inner, Mapping) or not inner.get("use_sparse_attention"):
        raise keys.wrong(
            key="sparse_attention_config", accepted="a table with use_sparse_attention true"
        )
    return replace(keys, config=inner, within=f"{keys.within}.sparse_attention_config")


def _block_sparse(keys: Keys, full: Gqa) -> Gqa:
    """Blocks of keys are chosen whole; the latest ones always are, among the `sparse_topk_blocks`."""
    inner = _sparse_settings(keys)
    return replace(
        full,
        index_heads=inner.count("sparse_num_index_heads"),
        index_head_dim=inner.count("sparse_index_dim"),
        index_topk=inner.count("sparse_topk_blocks") * inner.count("sparse_block_size"),
    )


def longcat_flash(keys: Keys) -> Layers:
    """Each of its layers is two here, each of an MLA and a feed-forward; experts beside the first, some of which do nothing.

    A router that chooses k of E experts and Z that do nothing is taken to choose k E / (E + Z) that work, as in the mean over
    evenly spread choices: 8 of the published 12.
    """
    experts, idle = keys.count("n_routed_experts"), keys.count("zero_expert_num", least=0)
    working = experts_per_token(keys, experts) * experts / (experts + idle)
    one, wide = mla(keys), dense(keys)
    moe = Moe(
        experts=experts,
        experts_per_token=max(round(working), 1),
        expert_intermediate=keys.count("moe_intermediate_size"),
        shared_intermediate=wide.intermediate,
        idle_experts=idle,
    )
    return runs([(one, moe), (one, wide)] * keys.count("num_hidden_layers"))


def step3(keys: Keys) -> Layers:
    """Queries pass through a narrower vector (multi-matrix factorisation attention); `moe_layers_enum` lists layers with experts."""
    count, experts = keys.count("num_hidden_layers"), keys.count("moe_num_experts")
    one = replace(gqa(keys), q_lora_rank=keys.count("share_q_dim"))
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts, "moe_top_k"),
        expert_intermediate=keys.count("moe_intermediate_size"),
        shared_intermediate=keys.count("share_expert_dim"),
    )
    listed = keys.text("moe_layers_enum").split(",")
    if not all(one.strip().isdecimal() and int(one) < count for one in listed):
        raise keys.wrong(key="moe_layers_enum", accepted=f"layers from 0 to {count - 1}, by commas")
    wide = {int(one) for one in listed}
    return runs([(one, moe if layer in wide else dense(keys)) for layer in range(count)])


def nemotron_nas(keys: Keys) -> Layers:
    """`block_configs` says of each layer how many queries share a key, how wide its feed-forward is, and whether it has them."""
    count, blocks = keys.count("num_hidden_layers"), keys.get("block_configs")
    if not isinstance(blocks, list) or len(blocks) != count:
        raise keys.wrong(key="block_configs", accepted=f"a list of {count}, one for each layer")
    parts = [_nas_block(keys, index, block) for index, block in enumerate(blocks)]
    return tuple(
        replace(run, norms=(run.attention is not None) + (run.feed_forward is not None))
        for run in runs(parts)
    )


def _nas_block(keys: Keys, index: int, block: object) -> Layer:
    heads, hidden = keys.count("num_attention_heads"), keys.count("hidden_size")
    attention, wide = (
        _nas_half(keys, index, block, "attention"),
        _nas_half(keys, index, block, "ffn"),
    )
    mixer = None
    if attention is not None:
        shared = attention.count("n_heads_in_group")
        if heads % shared:
            raise attention.wrong(key="n_heads_in_group", accepted=f"a divisor of {heads}")
        mixer = Gqa(heads=heads, kv_heads=heads // shared, head_dim=hidden // heads)
    return mixer, None if wide is None else Dense(intermediate=_nas_columns(wide, hidden))


def _nas_half(keys: Keys, index: int, block: object, half: str) -> Keys | None:
    """One half of a block; None where it is left out."""
    inner: Any = block.get(half) if isinstance(block, Mapping) else None
    if not isinstance(inner, Mapping):
        raise keys.wrong(key="block_configs", accepted=f"{half} in block {index}")
    one = replace(keys, config=inner, within=f"{keys.within}.block_configs[{index}].{half}")
    if one.flag("no_op"):
        return None
    for feature in ("replace_with_linear", "sparsify", "window_length"):
        if one.get(feature):
            raise one.wrong(key=feature, accepted="null")
    return one


def _nas_columns(wide: Keys, hidden: int) -> int:
    """Two thirds of the stated multiple of H, rounded up to a multiple of 256, as the published code has it."""
    multiple = wide.get("ffn_mult")
    if not isinstance(multiple, int | float) or not 0 < multiple < 1000:
        raise wide.wrong(key="ffn_mult", accepted="a number above 0")
    return -(-int(2 * multiple * hidden / 3) // 256) * 256


def kimi_linear(keys: Keys) -> Layers:
    """Kimi Delta Attention, whose gates and decays pass through narrow vectors, and MLA every few layers.

    `layer_types` says which, or the lists of `linear_attn_config`, which number layers from 1.
    """
    for feature in ("mla_use_output_gate", "routed_expert_hidden_size", "attn_res_block_size"):
        if keys.get(feature):
            raise keys.wrong(key=feature, accepted="none (Kimi K3 is not described yet)")
    count = keys.count("num_hidden_layers")
    experts, columns = keys.count("num_experts"), keys.count("moe_intermediate_size")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts, "num_experts_per_token"),
        expert_intermediate=columns,
        shared_intermediate=columns * keys.count("num_shared_experts", default=0, least=0),
    )
    full, linear = mla(keys), _delta(keys)
    kinds = zip(_kimi_full(keys, count), _kimi_sparse(keys, count), strict=True)
    return runs([(full if far else linear, moe if wide else dense(keys)) for far, wide in kinds])


def _linear_settings(keys: Keys) -> tuple[int, int, int]:
    """Heads, their width and the convolution's kernel, in either spelling."""
    inner = keys.get("linear_attn_config")
    if not isinstance(inner, Mapping):
        own = ("linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim")
        return keys.count(own[0]), keys.count(own[1]), keys.count(own[2])
    one = replace(keys, config=inner, within=f"{keys.within}.linear_attn_config")
    return one.count("num_heads"), one.count("head_dim"), one.count("short_conv_kernel_size")


def _delta(keys: Keys) -> Recurrent:
    heads, width, kernel = _linear_settings(keys)
    inner = heads * width
    return Recurrent(
        heads=heads,
        key_dim=width,
        value_dim=width,
        input_columns=3 * inner + heads + 2 * width,
        conv_channels=3 * inner,
        conv_kernel=kernel,
        vectors=inner + heads + width,
        inner_parameters=2 * width * inner,
    )


def _kimi_full(keys: Keys, count: int) -> list[bool]:
    inner = keys.get("linear_attn_config")
    if not isinstance(inner, Mapping):
        return [kind == "full_attention" for kind in keys.texts("layer_types", count)]
    listed = inner.get("full_attn_layers")
    numbered = range(1, count + 1)
    if not isinstance(listed, list) or not all(one in numbered for one in listed):
        raise keys.wrong(key="linear_attn_config", accepted="full_attn_layers, numbered from 1")
    return [layer in listed for layer in numbered]


def _kimi_sparse(keys: Keys, count: int) -> list[bool]:
    if keys.has("mlp_layer_types"):
        return [kind == "sparse" for kind in keys.texts("mlp_layer_types", count)]
    first = keys.count("first_k_dense_replace", default=0, least=0)
    return [layer >= first for layer in range(count)]
