"""Which families are understood, and how each writes its layers. One row of `FAMILIES` per `model_type`.

A family is listed only where its parameter count comes out as published.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from polypod.workload import gpts, hybrids, irregular
from polypod.workload.hybrids import runs
from polypod.workload.keys import Keys
from polypod.workload.model import Dense, Gqa, LayerGroup, Mla, Moe
from polypod.workload.parts import (
    Layers,
    dense,
    everywhere,
    experts_per_token,
    gqa,
    mla,
    sparse_mla,
)


def _none(_: Keys) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's layers are read, first to last."""

    layers: Callable[[Keys], Layers]
    tied: bool = False  # where the file does not say
    has_windows: bool = False  # the reader understands `sliding_window`
    spelling: Mapping[str, str] = field(default_factory=dict)  # fields that it names otherwise
    others: Callable[[Keys], int] = _none  # parameters outside layers, embeddings and the last norm


def _dense_layers(
    keys: Keys, *, norms: int = 2, windows: bool = False, qk_norm: bool = False, gated: bool = True
) -> Layers:
    one, wide = replace(gqa(keys), qk_norm=qk_norm), replace(dense(keys), gated=gated)
    return _all_alike(keys, everywhere(keys, one) if windows else one, wide, norms)


def _cohere_layers(keys: Keys) -> Layers:
    one = replace(gqa(keys), wide_qk_norm=keys.flag("use_qk_norm"))
    return _all_alike(keys, one, dense(keys), norms=1)


def _stablelm_layers(keys: Keys) -> Layers:
    """Norms have biases; one norm serves both halves where they run side by side."""
    if keys.flag("qk_layernorm"):
        raise keys.wrong(key="qk_layernorm", accepted="false (no norms of queries and keys)")
    one = replace(gqa(keys), qkv_bias=keys.flag("use_qkv_bias"))
    norms = 2 if keys.flag("use_parallel_residual") else 4
    return _all_alike(keys, one, dense(keys), norms)


def _seed_layers(keys: Keys) -> Layers:
    bias, out = keys.flag("attention_bias", default=True), keys.flag("attention_out_bias")
    return _all_alike(keys, replace(gqa(keys), qkv_bias=bias, output_bias=out), dense(keys))


def _glm_layers(keys: Keys, norms: int) -> Layers:
    """Queries, keys and values may have biases, the output never."""
    return _all_alike(keys, replace(gqa(keys), output_bias=False), dense(keys), norms)


def _apertus_layers(keys: Keys) -> Layers:
    """The activation has two parameters of its own."""
    wide = Dense(intermediate=keys.count("intermediate_size"), gated=False)
    (group,) = _all_alike(keys, replace(gqa(keys), qk_norm=True), wide)
    return (replace(group, others=2),)


def _granite_moe_layers(keys: Keys) -> Layers:
    return _all_alike(keys, gqa(keys), _local_experts(keys))


def _olmoe_layers(keys: Keys) -> Layers:
    experts = keys.count("num_experts")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count("intermediate_size"),
    )
    return _all_alike(keys, replace(gqa(keys), wide_qk_norm=True), moe)


def _qwen2_moe_layers(keys: Keys) -> Layers:
    if keys.count("decoder_sparse_step", default=1) != 1:
        raise keys.wrong(key="decoder_sparse_step", accepted="1 (every layer has experts)")
    bias = keys.flag("qkv_bias", default=True)
    return _all_alike(keys, replace(gqa(keys), qkv_bias=bias), hybrids.qwen_experts(keys))


def _all_alike(keys: Keys, one: Gqa | Mla, feed_forward: Dense | Moe, norms: int = 2) -> Layers:
    count = keys.count("num_hidden_layers")
    return (LayerGroup(count=count, attention=one, feed_forward=feed_forward, norms=norms),)


def _qwen2_layers(keys: Keys) -> Layers:
    one = gqa(keys)
    return _all_alike(keys, replace(one, qkv_bias=True), dense(keys))


def _local_experts(keys: Keys, columns: str = "intermediate_size") -> Moe:
    experts = keys.count("num_local_experts")
    return Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count(columns),
    )


def _mixtral_layers(keys: Keys) -> Layers:
    return _all_alike(keys, everywhere(keys, gqa(keys)), _local_experts(keys))


def _phimoe_layers(keys: Keys) -> Layers:
    """Norms have biases."""
    return _all_alike(keys, everywhere(keys, gqa(keys)), _local_experts(keys), norms=4)


def _minimax_m2_layers(keys: Keys) -> Layers:
    one = replace(gqa(keys), wide_qk_norm=keys.flag("use_qk_norm"))
    return _all_alike(keys, one, _local_experts(keys))


def _qwen3_moe_layers(keys: Keys) -> Layers:
    if keys.get("mlp_only_layers"):
        raise keys.wrong(key="mlp_only_layers", accepted="an empty list (every layer has experts)")
    if keys.count("decoder_sparse_step", default=1) != 1:
        raise keys.wrong(key="decoder_sparse_step", accepted="1 (every layer has experts)")
    experts = keys.count("num_experts")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=keys.count("moe_intermediate_size"),
    )
    return _all_alike(keys, replace(gqa(keys), qk_norm=True), moe)


def _deepseek_layers(
    keys: Keys,
    attention: Callable[[Keys], Gqa | Mla],
    *,
    experts_key: str = "n_routed_experts",
    shared_key: str = "n_shared_experts",
) -> Layers:
    """The first layers dense, the others with routed and shared experts."""
    if keys.count("moe_layer_freq", default=1) != 1:
        raise keys.wrong(
            key="moe_layer_freq", accepted="1 (every layer past the first dense ones has experts)"
        )
    num_layers, one = keys.count("num_hidden_layers"), attention(keys)
    first = _first_dense(keys, num_layers)
    experts = keys.count(experts_key)
    columns = keys.count("moe_intermediate_size")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts),
        expert_intermediate=columns,
        shared_intermediate=columns * keys.count(shared_key, default=0, least=0),
    )
    sparse = LayerGroup(count=num_layers - first, attention=one, feed_forward=moe)
    if not first:
        return (sparse,)
    return (LayerGroup(count=first, attention=one, feed_forward=dense(keys)), sparse)


def _first_dense(keys: Keys, num_layers: int) -> int:
    if keys.has("mlp_layer_types") and not keys.has("first_k_dense_replace"):
        kinds = keys.texts("mlp_layer_types", num_layers)
        first = kinds.index("sparse") if "sparse" in kinds else num_layers
        if "dense" in kinds[first:]:
            raise keys.wrong(key="mlp_layer_types", accepted="dense layers, then sparse ones")
        return first
    first = keys.count("first_k_dense_replace", default=0, least=0)
    if first >= num_layers:
        raise keys.wrong(
            key="first_k_dense_replace", accepted=f"less than num_hidden_layers={num_layers}"
        )
    return first


def _glm4(keys: Keys) -> Gqa:
    """Queries, keys and values may have biases, the output never."""
    return replace(gqa(keys), output_bias=False, qk_norm=keys.flag("use_qk_norm"))


def _normed(keys: Keys) -> Gqa:
    return replace(gqa(keys), qk_norm=True)


def _dsa_layers(keys: Keys) -> Layers:
    """DeepSeek sparse attention; `indexer_types` says which layers use the scores of an earlier one."""
    layers = _deepseek_layers(keys, sparse_mla)
    if not keys.has("indexer_types"):
        return layers
    count = keys.count("num_hidden_layers")
    own = sparse_mla(keys)
    shared = replace(own, index_heads=0)
    feed_forwards = [group.feed_forward for group in layers for _ in range(group.count)]
    kinds = keys.texts("indexer_types", count)
    mixers = [shared if kind == "shared" else own for kind in kinds]
    return runs(list(zip(mixers, feed_forwards, strict=True)))


def _ernie_layers(keys: Keys) -> Layers:
    count, one = keys.count("num_hidden_layers"), gqa(keys)
    if keys.count("moe_layer_interval", default=1) != 1:
        raise keys.wrong(key="moe_layer_interval", accepted="1 (every layer between has experts)")
    first = keys.count("moe_layer_start_index", least=0)
    last = keys.count("moe_layer_end_index", default=count - 1)
    experts, columns = keys.count("moe_num_experts"), keys.count("moe_intermediate_size")
    moe = Moe(
        experts=experts,
        experts_per_token=experts_per_token(keys, experts, "moe_k"),
        expert_intermediate=columns,
        shared_intermediate=columns * keys.count("moe_num_shared_experts", default=0, least=0),
    )
    return runs([(one, moe if first <= n <= last else dense(keys)) for n in range(count)])


def _hunyuan_layers(keys: Keys, *, qk_norm: bool = False) -> Layers:
    """With `use_cla` every `cla_share_factor`th layer has keys and values, and the next ones read its cache."""
    count = keys.count("num_hidden_layers")
    experts = keys.count("num_experts")
    columns = _same(
        keys,
        "moe_intermediate_size" if keys.has("moe_intermediate_size") else "intermediate_size",
        count,
    )
    chosen = _same(keys, "moe_topk", count)
    if chosen > experts:
        raise keys.wrong(key="moe_topk", accepted=f"at most the {experts} experts there are")
    moe = Moe(
        experts=experts,
        experts_per_token=chosen,
        expert_intermediate=columns,
        shared_intermediate=columns * _shared_experts(keys, count),
    )
    head_dim = "attention_head_dim" if keys.has("attention_head_dim") else "head_dim"
    one = replace(gqa(keys, head_dim=head_dim), qk_norm=keys.flag("use_qk_norm", default=qk_norm))
    sharing = keys.count("cla_share_factor", default=1) if keys.flag("use_cla") else 1
    reads = replace(one, own_kv=False)
    return runs([(reads if layer % sharing else one, moe) for layer in range(count)])


def _shared_experts(keys: Keys, count: int) -> int:
    return _same(keys, "num_shared_expert", count) if keys.has("num_shared_expert") else 1


def _same(keys: Keys, key: str, count: int) -> int:
    """A whole number, or a list with one number for every layer, all alike."""
    value = keys.get(key)
    if isinstance(value, list) and len(value) == count and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise keys.wrong(key=key, accepted=f"a whole number, or a list of {count} that are alike")
    return value


def _falcon_layers(keys: Keys) -> Layers:
    """Two norms with biases, a feed-forward of 4 H without a gate."""
    wide = Dense(intermediate=4 * keys.count("hidden_size"), gated=False)
    return _all_alike(keys, gqa(keys, kv_heads="num_kv_heads"), wide, norms=4)


_LLAMA: Final = Family(_dense_layers)
_WINDOWED: Final = Family(partial(_dense_layers, windows=True), has_windows=True)
_QWEN3: Final = Family(partial(_dense_layers, qk_norm=True))
_QWEN3_MOE: Final = Family(_qwen3_moe_layers)
_QWEN_HYBRID: Final = Family(hybrids.qwen_hybrid)
_MLA: Final = Family(partial(_deepseek_layers, attention=mla))
_DSA: Final = Family(_dsa_layers)
_GEMMA3: Final = Family(
    partial(hybrids.gemma, every=6, qk_norm=True), tied=True, has_windows=True
)  # fmt: skip
_ERNIE_SPELLING: Final = {"attention_bias": "use_bias", "mlp_bias": "use_bias"}
_ERNIE: Final = Family(_ernie_layers, tied=True)
_BAILING: Final = Family(
    partial(_deepseek_layers, attention=_normed, experts_key="num_experts", shared_key="num_shared_experts")
)  # fmt: skip

FAMILIES: Final[dict[str, Family]] = {
    "llama": _LLAMA,
    "mistral": _WINDOWED,
    "mixtral": Family(_mixtral_layers, has_windows=True),
    "qwen2": Family(_qwen2_layers),
    "qwen3": _QWEN3,
    "qwen3_moe": _QWEN3_MOE,
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "kimi_k2": _MLA,
    "deepseek_v32": _DSA,
    "glm_moe_dsa": _DSA,
    "glm4_moe": Family(partial(_deepseek_layers, attention=_glm4)),
    "glm4_moe_lite": _MLA,
    "gpt_oss": Family(hybrids.gpt_oss, has_windows=True),
    "gemma2": Family(partial(hybrids.gemma, every=2, qk_norm=False), tied=True, has_windows=True),
    "gemma3_text": _GEMMA3,
    "gemma4_text": Family(hybrids.gemma4, tied=True, has_windows=True),
    "llama4_text": Family(hybrids.llama4),
    "minimax_m2": Family(_minimax_m2_layers),
    "qwen3_next": _QWEN_HYBRID,
    "qwen3_5_text": _QWEN_HYBRID,
    "qwen3_5_moe_text": _QWEN_HYBRID,
    "qwen3_vl_text": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "ministral3": _WINDOWED,
    "phi3": _WINDOWED,
    "phimoe": Family(_phimoe_layers, has_windows=True),
    "smollm3": Family(_dense_layers, tied=True),
    "olmo3": Family(partial(hybrids.windowed, wide_qk_norm=True), has_windows=True),
    "exaone4": Family(partial(hybrids.windowed, qk_norm=True), has_windows=True),
    "internlm3": _LLAMA,
    "mimo": Family(_qwen2_layers),
    "mimo_v2_flash": Family(hybrids.mimo_v2, has_windows=True),
    "cohere": Family(_cohere_layers, tied=True),
    "cohere2": Family(partial(hybrids.windowed, norms=1, every=4), tied=True, has_windows=True),
    "stablelm": Family(_stablelm_layers, others=gpts.last_norm_bias),
    "seed_oss": Family(_seed_layers),
    "olmo2": Family(partial(hybrids.plain, wide_qk_norm=True)),
    "olmoe": Family(_olmoe_layers),
    "granite": _LLAMA,
    "granitemoe": Family(_granite_moe_layers),
    "helium": _LLAMA,
    "baichuan": _LLAMA,
    "arcee": Family(partial(_dense_layers, gated=False)),
    "nemotron": Family(partial(_dense_layers, gated=False, norms=4), others=gpts.last_norm_bias),
    "apertus": Family(_apertus_layers),
    "gemma": Family(_dense_layers, tied=True),
    "glm": Family(partial(_glm_layers, norms=2)),
    "glm4": Family(partial(_glm_layers, norms=4)),
    "ernie4_5": Family(_dense_layers, tied=True, spelling=_ERNIE_SPELLING),
    "qwen2_moe": Family(_qwen2_moe_layers),
    "hunyuan_v1_dense": _QWEN3,
    "hunyuan_v1_moe": Family(partial(_hunyuan_layers, qk_norm=True)),
    "phi": Family(gpts.phi, others=gpts.phi_others),
    "lfm2": Family(hybrids.lfm2, tied=True),
    "lfm2_moe": Family(hybrids.lfm2, tied=True),
    "minimax": Family(hybrids.lightning),
    "minimax_m1": Family(hybrids.lightning),
    "falcon_h1": Family(hybrids.falcon_h1),
    "kimi_linear": Family(irregular.kimi_linear),
    "falcon": Family(_falcon_layers, tied=True),
    "ernie4_5_moe": _ERNIE,
    "ernie_moe": _ERNIE,
    "hunyuan": Family(_hunyuan_layers, tied=True),
    "bailing_moe": _BAILING,
    "dots1": Family(partial(_deepseek_layers, attention=_normed), has_windows=True),
    "solar_open": Family(partial(_deepseek_layers, attention=gqa)),
    "deepseek_v4": Family(irregular.deepseek_v4, has_windows=True, others=irregular.v4_head),
    "minimax_m3": Family(irregular.minimax_m3),
    "longcat_flash": Family(irregular.longcat_flash, spelling=irregular.LONGCAT_SPELLING),
    "step3_text": Family(irregular.step3),
    "nemotron-nas": Family(irregular.nemotron_nas),
    "gpt2": Family(
        partial(gpts.layers, style=gpts.Style()),
        tied=True,
        spelling=gpts.GPT2_SPELLING,
        others=gpts.learned_positions,
    ),
    "gpt_neox": Family(gpts.neox, others=gpts.last_norm_bias),
    "bloom": Family(
        partial(gpts.layers, style=gpts.Style()),
        tied=True,
        spelling=gpts.BLOOM_SPELLING,
        others=gpts.bloom_others,
    ),
    "opt": Family(gpts.opt, tied=True, spelling=gpts.OPT_SPELLING, others=gpts.opt_others),
    "mpt": Family(gpts.mpt, tied=True, spelling=gpts.MPT_SPELLING),
    "starcoder2": Family(gpts.starcoder2, tied=True, has_windows=True, others=gpts.last_norm_bias),
    "mamba2": Family(hybrids.pure_mamba2),
    "granitemoehybrid": Family(hybrids.granite_hybrid, tied=True),
    "nemotron_h": Family(hybrids.nemotron_h),
    "jamba": Family(hybrids.jamba),
}
