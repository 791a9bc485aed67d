"""A decoder-only language model as shapes: what its layers are made of, how many parameters, how much cache.

Letters in formulas: H hidden, I feed-forward columns, A attention heads, G key-value heads, D head dimension, E experts,
k experts per token, V vocabulary. Matrices are counted apart from *vectors* (norms, biases) and from routers and embeddings,
because only matrices are sharded and quantised.

Parameters are those of the language model without its multi-token-prediction (MTP) layers, as model cards count them.
"""

from dataclasses import dataclass
from typing import Literal

from polypod.workload.mixers import Compressed as Compressed
from polypod.workload.mixers import Gqa as Gqa
from polypod.workload.mixers import Mixer as Mixer
from polypod.workload.mixers import Mla as Mla
from polypod.workload.mixers import Recurrent as Recurrent


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A feed-forward: gate, up and down (3 H I), or without the gate (2 H I)."""

    intermediate: int
    bias: bool = False
    gated: bool = True

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """Routed experts, k of E per token, and shared ones that every token passes through."""

    experts: int
    experts_per_token: int
    expert_intermediate: int
    shared_intermediate: int = (
        0  # columns of all shared experts together, or of a feed-forward beside the experts
    )
    gated: bool = True
    bias: bool = False  # on every matrix of an expert
    balanced: bool = (
        False  # the router was trained with a bias for each expert that evens their loads
    )
    shared_gate: bool = False  # one scalar gate for the shared experts
    idle_experts: int = 0  # the router may choose them, and they do nothing
    latent: int | None = (
        None  # experts work on a narrower vector, projected down before them and up after
    )

    @property
    def matrices(self) -> int:
        return 3 if self.gated else 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Like layers. Some families have layers with a mixer alone or a feed-forward alone."""

    count: int
    attention: Mixer | None
    feed_forward: Dense | Moe | None
    norms: int = 2  # of the hidden size, in each layer
    others: int = 0  # parameters of a layer beside these, such as mixing several residual streams; whole on every rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Everything that costs time or memory; nothing that only changes the numbers computed."""

    name: str
    model_type: str
    hidden: int
    vocab: int
    tied: bool  # input embedding and output head are one matrix
    layers: tuple[LayerGroup, ...]
    mtp_layers: int
    context_tokens: int | None
    weight_dtype: str  # what the checkpoint stores its matrices in
    quantised: Literal["matrices", "feed-forward", "experts"] = "matrices"
    """Which of them: all, all but those of attention, routed experts alone. The rest stays in bf16."""
    rest_dtype: str = "bf16"
    """What matrices are stored in that are not quantised, where the others are in something narrower."""
    others: int = 0
    """Parameters outside layers, embeddings and the last norm, such as learned positions; kept in bf16, looked up."""
    interleaved: bool = (
        False  # kinds of layers alternate, so that every stage has its share of each
    )

    @property
    def num_layers(self) -> int:
        return sum(group.count for group in self.layers)

    @property
    def is_moe(self) -> bool:
        return any(isinstance(group.feed_forward, Moe) for group in self.layers)

    @property
    def is_bounded(self) -> bool:
        """Whether some layer attends to no more than so many tokens of its context."""
        return any(group.attention and group.attention.attended_tokens for group in self.layers)

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden


def parameters(model: Model) -> int:
    """All parameters, without the MTP layers."""
    embeddings = model.embedding_parameters * (1 if model.tied else 2)
    layers = sum(group.count * layer_parameters(group, model.hidden) for group in model.layers)
    return embeddings + layers + model.hidden + model.others


def active_parameters(model: Model) -> int:
    """Parameters one token passes through, embedding and head among them."""
    idle = sum(
        group.count
        * (group.feed_forward.experts - group.feed_forward.experts_per_token)
        * (
            expert_parameters(group.feed_forward, model.hidden)
            + expert_vector_parameters(group.feed_forward, model.hidden)
        )
        for group in model.layers
        if isinstance(group.feed_forward, Moe)
    )
    return parameters(model) - idle


def mtp_parameters(model: Model) -> int:
    """The MTP layers: each a layer of the last kind, a projection of 2 H to H, three norms; embedding and head are shared."""
    layer = layer_parameters(model.layers[-1], model.hidden)
    return model.mtp_layers * (layer + 2 * model.hidden**2 + 3 * model.hidden)


def kv_elements_per_token(model: Model) -> int:
    """Cached elements that each token adds past every window, all layers, each stored once."""
    return sum(
        group.count * group.attention.kv_elements
        for group in model.layers
        if group.attention and group.attention.cached_tokens is None
    )


def kv_bytes_per_token(model: Model, bytes_per_element: float) -> float:
    """Cached bytes that each token adds past every window, all layers, each stored once.

    Of a model without windows it is what a copy over a network moves. Keys of a sparse attention's indexer are not in it.

    >>> llama = Gqa(heads=32, kv_heads=8, head_dim=128)
    >>> 32 * llama.kv_elements * 2  # 32 layers in bf16
    131072
    """
    return kv_elements_per_token(model) * bytes_per_element


def state_bytes_per_sequence(model: Model) -> float:
    """What recurrent layers keep of one sequence, whatever its length."""
    return sum(
        group.count * group.attention.state_bytes
        for group in model.layers
        if isinstance(group.attention, Recurrent | Compressed)
    )


def cache_bytes_per_sequence(
    model: Model, bytes_per_element: float, context_tokens: float
) -> float:
    """Everything that is kept of one sequence: windows up to their width, caches of the whole context, states.

    A layer of one 4-wide key and value and one with a window of 10, at 100 tokens: 8 x 100 + 8 x 10 elements.
    """
    total = state_bytes_per_sequence(model)
    for group in model.layers:
        mixer = group.attention
        if mixer is None:
            continue
        kept = min(context_tokens, mixer.cached_tokens or context_tokens)
        total += group.count * mixer.kv_elements * kept * bytes_per_element
        if not isinstance(mixer, Recurrent):
            total += group.count * mixer.index_bytes * kept
    return total


def layer_parameters(group: LayerGroup, hidden: int) -> int:
    """One layer: its mixer, its feed-forward, norms."""
    mixer = group.attention.matrix_parameters(hidden) if group.attention else 0
    return (
        mixer
        + layer_vector_parameters(group, hidden)
        + feed_forward_parameters(group.feed_forward, hidden)
    )


def layer_vector_parameters(group: LayerGroup, hidden: int) -> int:
    """Norms and biases of one layer; every rank holds them whole."""
    attention, feed_forward = group.attention, group.feed_forward
    vectors = (
        group.others + group.norms * hidden + (attention.vector_parameters if attention else 0)
    )
    if isinstance(attention, Gqa) and attention.output_bias:
        vectors += hidden
    if isinstance(feed_forward, Dense) and feed_forward.bias:
        vectors += (feed_forward.matrices - 1) * feed_forward.intermediate + hidden
    if isinstance(feed_forward, Moe):
        vectors += expert_vector_parameters(feed_forward, hidden) * feed_forward.experts
        vectors += hidden if feed_forward.shared_gate else 0
    return vectors


def feed_forward_parameters(feed_forward: Dense | Moe | None, hidden: int) -> int:
    """Matrices of a feed-forward: 3 H I, or router, experts and shared experts."""
    if feed_forward is None:
        return 0
    if isinstance(feed_forward, Dense):
        return feed_forward.matrices * hidden * feed_forward.intermediate
    return (
        feed_forward.experts * expert_parameters(feed_forward, hidden)
        + router_parameters(feed_forward, hidden)
        + shared_parameters(feed_forward, hidden)
    )


def expert_parameters(moe: Moe, hidden: int) -> int:
    """Matrices of one routed expert: 3 H I, of the latent width where there is one."""
    return moe.matrices * (moe.latent or hidden) * moe.expert_intermediate


def expert_vector_parameters(moe: Moe, hidden: int) -> int:
    """Biases of one routed expert."""
    return (moe.matrices - 1) * moe.expert_intermediate + hidden if moe.bias else 0


def shared_parameters(moe: Moe, hidden: int) -> int:
    """What every token passes through beside the routed experts: shared experts, and the way to a latent and back."""
    return hidden * (moe.matrices * moe.shared_intermediate + 2 * (moe.latent or 0))


def router_parameters(moe: Moe, hidden: int) -> int:
    """The scores of all experts: H E. A bias of E, where a family has one, is left out (under a millionth)."""
    return hidden * (moe.experts + moe.idle_experts)
