"""Families whose layers differ in how they mix tokens: windows beside full attention, recurrences beside attention.

Each function returns runs of like layers, first to last, as the file describes them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Final

from polypod.workload.keys import Keys
from polypod.workload.model import Dense, Gqa, LayerGroup, Mixer, Moe, Recurrent
from polypod.workload.parts import Layers, dense, experts_per_token, gqa

Layer = tuple[Mixer | None, Dense | Moe | None]


def runs(layers: Sequence[Layer], norms: int = 2) -> Layers:
    """Like layers that follow one another, as one group."""
    return tuple(
        LayerGroup(count=len(list(same)), attention=mixer, feed_forward=feed_forward, norms=norms)
        for (mixer, feed_forward), same in groupby(layers)
    )


def windows(keys: Keys, every: int | None = None) -> list[int | None]:
    """The window of each layer, None where it attends to everything.

    `layer_types` says it, else `sliding_window_pattern` (every nth layer is full; "LLLG" spells it), else `every`.
    """
    count = keys.count("num_hidden_layers")
    if keys.has("layer_types"):
        kinds = keys.texts("layer_types", count)
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            raise keys.wrong(key="layer_types", accepted="full_attention and sliding_attention")
        full = [kind == "full_attention" for kind in kinds]
    else:
        pattern = keys.get("sliding_window_pattern") or every
        full = [_is_full(keys, pattern, layer) for layer in range(count)]
    if all(full):
        return [None] * count
    width = keys.count("sliding_window")
    return [None if one else width for one in full]


def _is_full(keys: Keys, pattern: object, layer: int) -> bool:
    if isinstance(pattern, int) and pattern > 0:
        return (layer + 1) % pattern == 0
    if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
        return pattern[layer % len(pattern)] == "G"
    raise keys.wrong(
        key="sliding_window_pattern", accepted="a whole number, or a text of L (local) and G"
    )


def gemma(keys: Keys, every: int, *, qk_norm: bool) -> Layers:
    """Gemma 2 and 3: windows between full layers, a norm before and after each half of a layer."""
    one = replace(gqa(keys), qk_norm=qk_norm)
    layers = [(replace(one, window_tokens=width), dense(keys)) for width in windows(keys, every)]
    return runs(layers, norms=4)


def gemma4(keys: Keys) -> Layers:
    """Full layers have wider heads, fewer of keys, and values made of the keys; experts lie beside a feed-forward."""
    if keys.count("hidden_size_per_layer_input", default=0, least=0):
        raise keys.wrong(key="hidden_size_per_layer_input", accepted="0 (no per-layer inputs)")
    if keys.count("num_kv_shared_layers", default=0, least=0):
        raise keys.wrong(key="num_kv_shared_layers", accepted="0 (every layer has its own cache)")
    local = replace(gqa(keys), qk_norm=True)
    full = replace(
        local,
        kv_heads=keys.count("num_global_key_value_heads", default=local.kv_heads),
        head_dim=keys.count("global_head_dim", default=local.head_dim),
        shared_kv=keys.flag("attention_k_eq_v"),
    )
    feed_forward: Dense | Moe = dense(keys)
    if keys.flag("enable_moe_block"):
        count = keys.count("num_experts")
        feed_forward = Moe(
            experts=count,
            experts_per_token=experts_per_token(keys, count, "top_k_experts"),
            expert_intermediate=keys.count("moe_intermediate_size"),
            shared_intermediate=keys.count("intermediate_size"),
        )
    layers = [
        (full if width is None else replace(local, window_tokens=width), feed_forward)
        for width in windows(keys)
    ]
    return runs(layers, norms=8 if isinstance(feed_forward, Moe) else 4)


def windowed(
    keys: Keys,
    *,
    wide_qk_norm: bool = False,
    qk_norm: bool = False,
    norms: int = 2,
    every: int | None = None,
) -> Layers:
    """Dense layers, some with a window: OLMo 3, EXAONE 4, Command A."""
    one = replace(gqa(keys), wide_qk_norm=wide_qk_norm, qk_norm=qk_norm)
    widths = windows(keys, every)
    return runs([(replace(one, window_tokens=width), dense(keys)) for width in widths], norms)


def plain(keys: Keys, *, wide_qk_norm: bool) -> Layers:
    """Dense layers, all alike: OLMo 2."""
    one = replace(gqa(keys), wide_qk_norm=wide_qk_norm)
    return runs([(one, dense(keys))] * keys.count("num_hidden_layers"))


def lfm2(keys: Keys) -> Layers:
    """LFM2: gated short convolutions and attention as `layer_types` says; experts past the first dense layers, where it has any."""
    count, hidden = keys.count("num_hidden_layers"), keys.count("hidden_size")
    if keys.flag("conv_bias"):
        raise keys.wrong(key="conv_bias", accepted="false")
    kernel = keys.count("conv_L_cache")
    short = Recurrent(
        heads=hidden,
        key_dim=0,  # no state but the convolution's last inputs
        value_dim=1,
        input_columns=3 * hidden,
        conv_channels=hidden,
        conv_kernel=kernel,
    )
    full, kinds = replace(gqa(keys), qk_norm=True), keys.texts("layer_types", count)
    if unknown := set(kinds) - {"conv", "full_attention"}:
        raise keys.wrong(key="layer_types", accepted=f"conv and full_attention, not {unknown}")
    wide = Dense(intermediate=_lfm2_columns(keys))
    moe, first = _lfm2_experts(keys, wide), keys.count("num_dense_layers", default=0, least=0)
    return runs(
        [
            (short if kind == "conv" else full, wide if layer < first else moe)
            for layer, kind in enumerate(kinds)
        ]
    )


def _lfm2_columns(keys: Keys) -> int:
    """Two thirds of the stated width, times a factor, rounded up, where `block_auto_adjust_ff_dim` is true."""
    stated = keys.count("intermediate_size")
    if keys.has("num_experts") or not keys.flag("block_auto_adjust_ff_dim", default=True):
        return stated
    multiple, factor = keys.count("block_multiple_of"), keys.get("block_ffn_dim_multiplier")
    if not isinstance(factor, int | float) or not 0 < factor < 100:
        raise keys.wrong(key="block_ffn_dim_multiplier", accepted="a number above 0")
    return -(-int(factor * int(2 * stated / 3)) // multiple) * multiple


def _lfm2_experts(keys: Keys, wide: Dense) -> Dense | Moe:
    if not keys.has("num_experts"):
        return wide
    experts = keys.count("num_experts")
    return Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count("moe_intermediate_size"),
    )


def lightning(keys: Keys) -> Layers:
    """MiniMax-01 and M1: lightning attention with an output gate, every eighth layer full attention, experts in all.

    `layer_types` says which, else `attn_type_list` with 1 for full attention.
    """
    count, full = keys.count("num_hidden_layers"), gqa(keys)
    inner = full.heads * full.head_dim
    linear = Recurrent(
        heads=full.heads,
        key_dim=full.head_dim,
        value_dim=full.head_dim,
        input_columns=4 * inner,  # queries, keys, values, gates
        vectors=inner,
    )
    if keys.count("shared_intermediate_size", default=0, least=0):
        raise keys.wrong(key="shared_intermediate_size", accepted="0 (no shared experts)")
    experts = keys.count("num_local_experts")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count("intermediate_size"),
    )
    if keys.has("layer_types"):
        is_full = [kind == "full_attention" for kind in keys.texts("layer_types", count)]
    else:
        is_full = keys.flags("attn_type_list", count)
    return runs([(full if one else linear, moe) for one in is_full])


def falcon_h1(keys: Keys) -> Layers:
    """Falcon-H1: Mamba 2 and attention side by side after one norm, then a feed-forward. Each of its layers is two here."""
    if keys.flag("mamba_rms_norm"):
        raise keys.wrong(key="mamba_rms_norm", accepted="false (no norm in the Mamba layers)")
    heads, width = keys.count("mamba_n_heads"), keys.count("mamba_d_head")
    with_norm = mamba2(
        heads=heads,
        head_dim=width,
        groups=keys.count("mamba_n_groups"),
        state=keys.count("mamba_d_state"),
        kernel=keys.count("mamba_d_conv"),
    )
    mixer = replace(with_norm, vectors=with_norm.vectors - heads * width)
    count = keys.count("num_hidden_layers")
    beside = LayerGroup(count=1, attention=mixer, feed_forward=None, norms=0)
    attends = LayerGroup(count=1, attention=gqa(keys), feed_forward=dense(keys))
    return (beside, attends) * count


def gpt_oss(keys: Keys) -> Layers:
    """Every other layer has a window; heads have a learned sink, experts have biases."""
    one = replace(gqa(keys), sinks=True)
    experts = keys.count("num_local_experts")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count("intermediate_size"),
        bias=True,
    )
    return runs([(replace(one, window_tokens=width), moe) for width in windows(keys, 2)])


def mimo_v2(keys: Keys) -> Layers:
    """Layers with a window have more key-value heads than full ones; the first layer has no experts."""
    count = keys.count("num_hidden_layers")
    full = replace(gqa(keys), v_head_dim=keys.count("v_head_dim"))
    local = replace(
        full,
        heads=keys.count("swa_num_attention_heads"),
        kv_heads=keys.count("swa_num_key_value_heads"),
        head_dim=keys.count("swa_head_dim"),
        v_head_dim=keys.count("swa_v_head_dim"),
        window_tokens=keys.count("sliding_window"),
        sinks=keys.flag("add_swa_attention_sink_bias"),
    )
    experts = keys.count("n_routed_experts")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count("moe_intermediate_size"),
    )
    kinds = zip(
        keys.flags("hybrid_layer_pattern", count), keys.flags("moe_layer_freq", count), strict=True
    )
    return runs([(local if near else full, moe if wide else dense(keys)) for near, wide in kinds])


def llama4(keys: Keys) -> Layers:
    """Three of four layers attend within chunks; every nth has experts, with one shared expert as wide as theirs."""
    count, step = keys.count("num_hidden_layers"), keys.count("interleave_moe_layer_step")
    one = gqa(keys)
    chunked = replace(one, window_tokens=keys.count("attention_chunk_size"))
    experts, columns = keys.count("num_local_experts"), keys.count("intermediate_size")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=columns,
        shared_intermediate=columns,
    )
    plain = Dense(intermediate=keys.count("intermediate_size_mlp"))
    numbers = range(1, count + 1)
    return runs([(chunked if n % 4 else one, plain if n % step else moe) for n in numbers])


def qwen_hybrid(keys: Keys) -> Layers:
    """Qwen3-Next and Qwen3.5: gated delta nets, and every nth layer full attention with an output gate."""
    count = keys.count("num_hidden_layers")
    full = replace(gqa(keys), qk_norm=True, gate=True)
    feed_forward = qwen_experts(keys) if keys.has("num_experts") else dense(keys)
    if keys.has("layer_types"):
        is_full = [kind == "full_attention" for kind in keys.texts("layer_types", count)]
    else:
        every = keys.count("full_attention_interval")
        is_full = [(layer + 1) % every == 0 for layer in range(count)]
    delta = gated_delta(keys)
    return runs([(full if one else delta, feed_forward) for one in is_full])


def qwen_experts(keys: Keys) -> Moe:
    if keys.get("mlp_only_layers"):
        raise keys.wrong(key="mlp_only_layers", accepted="an empty list (every layer has experts)")
    experts = keys.count("num_experts")
    return Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count("moe_intermediate_size"),
        shared_intermediate=keys.count("shared_expert_intermediate_size"),
        shared_gate=True,
    )


def gated_delta(keys: Keys) -> Recurrent:
    """A gated delta net: queries and keys of few heads, values, an output gate, and two scalars for each value head."""
    key_heads, heads = keys.count("linear_num_key_heads"), keys.count("linear_num_value_heads")
    key_dim, value_dim = keys.count("linear_key_head_dim"), keys.count("linear_value_head_dim")
    keys_values = 2 * key_heads * key_dim + heads * value_dim
    return Recurrent(
        heads=heads,
        key_dim=key_dim,
        value_dim=value_dim,
        input_columns=keys_values + heads * value_dim + 2 * heads,
        conv_channels=keys_values,
        conv_kernel=keys.count("linear_conv_kernel_dim"),
        vectors=2 * heads + value_dim,
    )


def mamba2(*, heads: int, head_dim: int, groups: int, state: int, kernel: int) -> Recurrent:
    """A Mamba 2 layer: gate, values, and the state's inputs and outputs for each group, a step size for each head."""
    inner, shared = heads * head_dim, 2 * groups * state
    return Recurrent(
        heads=heads,
        key_dim=state,
        value_dim=head_dim,
        input_columns=2 * inner + shared + heads,
        conv_channels=inner + shared,
        conv_kernel=kernel,
        vectors=(inner + shared) + 3 * heads + inner,
    )


def pure_mamba2(keys: Keys) -> Layers:
    mixer = mamba2(
        heads=keys.count("num_heads"),
        head_dim=keys.count("head_dim"),
        groups=keys.count("n_groups"),
        state=keys.count("state_size"),
        kernel=keys.count("conv_kernel"),
    )
    return runs([(mixer, None)] * keys.count("num_hidden_layers"), norms=1)


def granite_hybrid(keys: Keys) -> Layers:
    """Granite 4: Mamba 2 and attention as `layer_types` says; experts beside a shared feed-forward, or that alone."""
    count, hidden = keys.count("num_hidden_layers"), keys.count("hidden_size")
    heads = keys.count("mamba_n_heads", default=128)
    inner = hidden * keys.count("mamba_expand", default=2)
    mixer = mamba2(
        heads=heads,
        head_dim=inner // heads,
        groups=keys.count("mamba_n_groups", default=1),
        state=keys.count("mamba_d_state", default=256),
        kernel=keys.count("mamba_d_conv", default=4),
    )
    shared, experts = (
        keys.count("shared_intermediate_size"),
        keys.count("num_local_experts", default=0, least=0),
    )
    feed_forward: Dense | Moe = Dense(intermediate=shared)
    if experts:
        feed_forward = Moe(
            experts=experts,
            experts_per_token=experts_per_token(keys, experts),
            expert_intermediate=keys.count("intermediate_size"),
            shared_intermediate=shared,
        )
    one, kinds = gqa(keys), keys.texts("layer_types", count)
    if unknown := set(kinds) - {"mamba", "attention"}:
        raise keys.wrong(key="layer_types", accepted=f"mamba and attention, not {unknown}")
    return runs([(mixer if kind == "mamba" else one, feed_forward) for kind in kinds])


_NEMOTRON: Final = {"M": "Mamba 2", "*": "attention", "-": "feed-forward", "E": "experts"}


def nemotron_h(keys: Keys) -> Layers:
    """Nemotron-H: every layer is a mixer or a feed-forward, as a letter says; feed-forwards have no gate."""
    if keys.has("layers_block_type"):
        return _nemotron_blocks(keys)
    count, pattern = keys.count("num_hidden_layers"), keys.text("hybrid_override_pattern")
    if len(pattern) != count or set(pattern) - set(_NEMOTRON):
        raise keys.wrong(
            key="hybrid_override_pattern", accepted=f"{count} letters out of {', '.join(_NEMOTRON)}"
        )
    return _nemotron_runs(keys, pattern)


def _nemotron_blocks(keys: Keys) -> Layers:
    """The same, spelled out."""
    letters = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}
    blocks = keys.config["layers_block_type"]
    if not isinstance(blocks, list) or not blocks or not all(one in letters for one in blocks):
        raise keys.wrong(key="layers_block_type", accepted=f"a list of {', '.join(letters)}")
    return _nemotron_runs(keys, "".join(letters[one] for one in blocks))


def _nemotron_runs(keys: Keys, pattern: str) -> Layers:
    made = {letter: _nemotron_layer(keys, letter) for letter in set(pattern)}
    return runs([made[letter] for letter in pattern], norms=1)


def _nemotron_layer(keys: Keys, letter: str) -> Layer:
    if letter == "M":
        return _nemotron_mamba(keys), None
    if letter == "*":
        width = "head_dim" if keys.has("head_dim") else "attention_head_dim"
        heads = keys.count("num_attention_heads")
        kv_heads = keys.count("num_key_value_heads")
        return Gqa(heads=heads, kv_heads=kv_heads, head_dim=keys.count(width)), None
    if letter == "-":
        return None, Dense(intermediate=keys.count("intermediate_size"), gated=False)
    experts = keys.count("n_routed_experts")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count("moe_intermediate_size"),
        shared_intermediate=keys.count("moe_shared_expert_intermediate_size"),
        gated=False,
        latent=keys.optional("moe_latent_size"),
    )
    return None, moe


def _nemotron_mamba(keys: Keys) -> Recurrent:
    return mamba2(
        heads=keys.count("mamba_num_heads"),
        head_dim=keys.count("mamba_head_dim"),
        groups=keys.count("n_groups", default=8),
        state=keys.count("ssm_state_size"),
        kernel=keys.count("conv_kernel"),
    )


def jamba(keys: Keys) -> Layers:
    """Mamba 1 with an attention layer in each period, and experts in every other layer."""
    hidden, state = keys.count("hidden_size"), keys.count("mamba_d_state")
    inner, rank = hidden * keys.count("mamba_expand"), keys.count("mamba_dt_rank")
    mixer = Recurrent(
        heads=inner,
        key_dim=state,
        value_dim=1,
        input_columns=2 * inner,
        conv_channels=inner,
        conv_kernel=keys.count("mamba_d_conv"),
        vectors=inner * (state + 3) + rank + 2 * state,
        inner_parameters=inner * (2 * rank + 2 * state),
    )
    experts = keys.count("num_experts")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count("intermediate_size"),
    )
    one, plain = gqa(keys), dense(keys)
    attends = list(_periodic(keys, "attn_layer"))
    routes = list(_periodic(keys, "expert_layer"))
    return runs(
        [(one if a else mixer, moe if r else plain) for a, r in zip(attends, routes, strict=True)]
    )


def _periodic(keys: Keys, what: str) -> Iterator[bool]:
    period = keys.count(f"{what}_period")
    offset = keys.count(f"{what}_offset", least=0)
    for layer in range(keys.count("num_hidden_layers")):
        yield layer % period == offset
