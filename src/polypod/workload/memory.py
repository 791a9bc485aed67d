"""What one rank keeps: weights and cache, on the fullest rank of the replica.

    attention, dense and shared feed-forward   sliced by tp, copied over dp, divided over pp
    routed experts                             spread over all tp * dp ranks of a stage: ep ways by expert, the rest by slices
    embedding and head                         sliced by tp; on one stage each
    norms, biases, routers, MLA's latent projections and indexer   whole on every rank of their stage
    recurrent layers                           sliced by tp, heads and states alike

The fullest stage is taken to hold ceil(layers / pp) layers, as many of the largest kind as there are, and the head (with one
stage the embedding too). An engine that gives the last stage fewer layers does a little better. MTP layers are left out.
"""

from functools import lru_cache

import numpy as np

from polypod.workload.layout import AnyLayout
from polypod.workload.model import (
    Compressed,
    Dense,
    LayerGroup,
    Mixer,
    Mla,
    Model,
    Moe,
    Recurrent,
    expert_parameters,
    layer_parameters,
    layer_vector_parameters,
    router_parameters,
    shared_parameters,
)
from polypod.workload.precision import KEPT, Precision, element_bytes, of_the_rest
from polypod.workload.reals import Reals, plain


def weight_bytes_per_rank(model: Model, layout: AnyLayout, precision: Precision) -> Reals:
    """Resident weights of the fullest rank, in bytes.

    SmolLM2-135M's 134,515,008 parameters on one rank in bf16 are 269 MB; the published checkpoint is 269 MB.
    """
    expert_bytes, kept_bytes = element_bytes(precision.weights), element_bytes(KEPT)
    rest_bytes = element_bytes(of_the_rest(model.rest_dtype, precision).weights)
    mixer_bytes = expert_bytes if model.quantised == "matrices" else rest_bytes
    dense_bytes = rest_bytes if model.quantised == "experts" else expert_bytes
    total: Reals = kept_bytes * (model.hidden + model.others)
    for group, count in stage_layers(model, layout):
        total = total + count * (
            _mixer_elements(group.attention, model.hidden, layout) * mixer_bytes
            + _dense_elements(group, model.hidden, layout) * dense_bytes
            + _expert_elements(group, model.hidden, layout) * expert_bytes
            + _whole_elements(group, model.hidden) * kept_bytes
        )
    embeddings = np.where(np.asarray(layout.pp) > 1, 1, 1 if model.tied else 2)
    return plain(total + embeddings * model.embedding_parameters / layout.tp * kept_bytes)


def kv_bytes_per_token_per_rank(model: Model, layout: AnyLayout, precision: Precision) -> Reals:
    """Cache that each token of one sequence adds past every window, on one rank of the fullest stage.

    Grouped-query heads are divided by tp until one is left on each rank, then copied; MLA's latent is copied always, and
    with it the 8-bit keys of a sparse attention's indexer.
    """
    total: Reals = 0.0
    for group, count in stage_layers(model, layout):
        if group.attention and group.attention.cached_tokens is None:
            total = total + count * kv_bytes_per_layer(group.attention, layout, precision)
    return plain(total)


def window_bytes_per_token_per_rank(
    model: Model, layout: AnyLayout, precision: Precision
) -> dict[int, Reals]:
    """The same of layers with a window, by its width in tokens: a sequence keeps no more tokens than that."""
    found: dict[int, Reals] = {}
    for group, count in stage_layers(model, layout):
        width = group.attention.cached_tokens if group.attention else None
        if group.attention and width:
            each = kv_bytes_per_layer(group.attention, layout, precision)
            found[width] = plain(found.get(width, 0.0) + count * each)
    return found


def state_bytes_per_sequence_per_rank(model: Model, layout: AnyLayout) -> Reals:
    """What recurrent layers keep of one sequence on one rank of the fullest stage; heads are divided by tp, a window beside a
    compressed cache is copied.
    """
    total: Reals = 0.0
    for group, count in stage_layers(model, layout):
        if isinstance(group.attention, Recurrent):
            total = total + count * group.attention.state_bytes / layout.tp
        elif isinstance(group.attention, Compressed):
            total = total + count * group.attention.state_bytes
    return plain(total)


def kv_bytes_per_layer(attention: Mixer, layout: AnyLayout, precision: Precision) -> Reals:
    """Cached bytes per token and layer on one rank."""
    index = 0 if isinstance(attention, Recurrent) else attention.index_bytes
    return kv_elements_per_rank(attention, layout) * element_bytes(precision.kv, "kv") + index


def kv_elements_per_rank(attention: Mixer, layout: AnyLayout) -> Reals:
    """Cached elements per token and layer on one rank."""
    if isinstance(attention, Mla | Compressed | Recurrent) or not attention.own_kv:
        return float(attention.kv_elements)
    width = attention.head_dim + attention.value_dim
    return plain(width * np.maximum(attention.kv_heads / layout.tp, 1.0))


def stage_layers(model: Model, layout: AnyLayout) -> list[tuple[LayerGroup, Reals]]:
    """Layers of the fullest stage: how many of each kind, the largest kind first.

    Three dense and 58 expert layers in two stages: the fullest has 31 expert layers. Where kinds alternate, each stage has
    its share of every kind, on average.
    """
    left: Reals = np.ceil(model.num_layers / np.asarray(layout.pp))
    found: list[tuple[LayerGroup, Reals]] = []
    share = left / model.num_layers
    for group in _largest_first(model.layers, model.hidden):
        count = share * group.count if model.interleaved else np.minimum(left, group.count)
        found.append((group, plain(count)))
        left = left - count
    return found


@lru_cache(maxsize=64)
def _largest_first(layers: tuple[LayerGroup, ...], hidden: int) -> list[LayerGroup]:
    return sorted(layers, key=lambda one: -layer_parameters(one, hidden))


def experts_per_rank(moe: Moe, layout: AnyLayout) -> Reals:
    """Experts a rank holds (whole or a slice); past one rank per expert the rest hold copies of busy ones."""
    return plain(np.ceil(moe.experts / np.asarray(layout.ep)))


def expert_slices(layout: AnyLayout) -> Reals:
    """How many ranks share each expert's columns."""
    return layout.tp * layout.dp / layout.ep


def _dense_elements(group: LayerGroup, hidden: int, layout: AnyLayout) -> Reals:
    """Matrices of a feed-forward but those of routed experts."""
    feed_forward = group.feed_forward
    if isinstance(feed_forward, Dense):
        return feed_forward.matrices * hidden * feed_forward.intermediate / layout.tp
    if isinstance(feed_forward, Moe):
        return shared_parameters(feed_forward, hidden) / layout.tp
    return 0.0


def _mixer_elements(mixer: Mixer | None, hidden: int, layout: AnyLayout) -> Reals:
    if mixer is None:
        return 0.0
    if isinstance(mixer, Recurrent):
        return mixer.matrix_parameters(hidden) / layout.tp
    if isinstance(mixer, Mla | Compressed):
        whole = mixer.down_parameters(hidden) + mixer.index_parameters(hidden)
        return whole + mixer.up_parameters(hidden) / layout.tp
    queries = (mixer.q_lora_rank or hidden) * mixer.heads * mixer.query_dim / layout.tp
    output = hidden * mixer.heads * mixer.value_dim / layout.tp
    keys_values = mixer.projected_kv_dim * np.maximum(mixer.kv_heads / layout.tp, 1.0)
    return mixer.down_parameters(hidden) + queries + output + hidden * keys_values


def _expert_elements(group: LayerGroup, hidden: int, layout: AnyLayout) -> Reals:
    moe = group.feed_forward
    if not isinstance(moe, Moe):
        return 0.0
    return experts_per_rank(moe, layout) * expert_parameters(moe, hidden) / expert_slices(layout)


def _whole_elements(group: LayerGroup, hidden: int) -> int:
    vectors = layer_vector_parameters(group, hidden)
    if isinstance(group.feed_forward, Moe):
        vectors += router_parameters(group.feed_forward, hidden)
    return vectors
