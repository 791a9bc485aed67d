"""What one rank keeps: weights and cache, on the fullest rank of the replica.

    attention, dense and shared feed-forward   sliced by tp, copied over dp, divided over pp
    routed experts                             spread over all tp * dp ranks of a stage: ep ways by expert, the rest by slices
    embedding and head                         sliced by tp; on one stage each
    norms, biases, routers, MLA's latent projections   whole on every rank of their stage

The fullest stage is taken to hold ceil(layers / pp) layers, as many of the largest kind as there are, and the head (with one
stage the embedding too). An engine that gives the last stage fewer layers does a little better. MTP layers are left out.
"""

import numpy as np

from polypod.workload.layout import AnyLayout
from polypod.workload.model import (
    Gqa,
    LayerGroup,
    Mla,
    Model,
    Moe,
    expert_parameters,
    layer_parameters,
    layer_vector_parameters,
    router_parameters,
)
from polypod.workload.precision import KEPT, Precision, element_bytes
from polypod.workload.reals import Reals, plain


def weight_bytes_per_rank(model: Model, layout: AnyLayout, precision: Precision) -> Reals:
    """Resident weights of the fullest rank, in bytes.

    SmolLM2-135M's 134,515,008 parameters on one rank in bf16 are 269 MB; the published checkpoint is 269 MB.
    """
    matrix_bytes, kept_bytes = element_bytes(precision.weights), element_bytes(KEPT)
    total: Reals = kept_bytes * model.hidden
    for group, count in stage_layers(model, layout):
        matrices = _matrix_elements(group, model.hidden, layout)
        total = total + count * (
            matrices * matrix_bytes + _whole_elements(group, model.hidden) * kept_bytes
        )
    embeddings = np.where(np.asarray(layout.pp) > 1, 1, 1 if model.tied else 2)
    return plain(total + embeddings * model.embedding_parameters / layout.tp * kept_bytes)


def kv_bytes_per_token_per_rank(model: Model, layout: AnyLayout, precision: Precision) -> Reals:
    """Cache that one token of one sequence takes on one rank of the fullest stage.

    Grouped-query heads are divided by tp until one is left on each rank, then copied; MLA's latent is copied always.
    """
    total: Reals = 0.0
    for group, count in stage_layers(model, layout):
        total = total + count * kv_elements_per_rank(group.attention, layout)
    return plain(total * element_bytes(precision.kv, "kv"))


def kv_elements_per_rank(attention: Gqa | Mla, layout: AnyLayout) -> Reals:
    """Cached elements per token and layer on one rank."""
    if isinstance(attention, Mla):
        return float(attention.kv_elements)
    return plain(2 * attention.head_dim * np.maximum(attention.kv_heads / layout.tp, 1.0))


def stage_layers(model: Model, layout: AnyLayout) -> list[tuple[LayerGroup, Reals]]:
    """Layers of the fullest stage: how many of each kind, the largest kind first.

    Three dense and 58 expert layers in two stages: the fullest has 31 expert layers.
    """
    left: Reals = np.ceil(model.num_layers / np.asarray(layout.pp))
    found: list[tuple[LayerGroup, Reals]] = []
    for group in sorted(model.layers, key=lambda one: -layer_parameters(one, model.hidden)):
        count = np.minimum(left, group.count)
        found.append((group, plain(count)))
        left = left - count
    return found


def experts_per_rank(moe: Moe, layout: AnyLayout) -> Reals:
    """Experts a rank holds (whole or a slice); past one rank per expert the rest hold copies of busy ones."""
    return plain(np.ceil(moe.experts / np.asarray(layout.ep)))


def expert_slices(layout: AnyLayout) -> Reals:
    """How many ranks share each expert's columns."""
    return layout.tp * layout.dp / layout.ep


def _matrix_elements(group: LayerGroup, hidden: int, layout: AnyLayout) -> Reals:
    attention, feed_forward = group.attention, group.feed_forward
    elements: Reals
    if isinstance(attention, Mla):
        elements = attention.down_parameters(hidden) + attention.up_parameters(hidden) / layout.tp
    else:
        heads = attention.heads / layout.tp + np.maximum(attention.kv_heads / layout.tp, 1.0)
        elements = 2 * hidden * attention.head_dim * heads
    if not isinstance(feed_forward, Moe):
        return elements + 3 * hidden * feed_forward.intermediate / layout.tp
    routed = experts_per_rank(feed_forward, layout) * expert_parameters(feed_forward, hidden)
    shared = 3 * hidden * feed_forward.shared_intermediate / layout.tp
    return elements + routed / expert_slices(layout) + shared


def _whole_elements(group: LayerGroup, hidden: int) -> int:
    vectors = layer_vector_parameters(group, hidden)
    if isinstance(group.feed_forward, Moe):
        vectors += router_parameters(group.feed_forward, hidden)
    return vectors
