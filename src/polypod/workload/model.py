"""A decoder-only language model as shapes: what its layers are made of, how many parameters, how much cache.

Letters in formulas: H hidden, I feed-forward columns, A attention heads, G key-value heads, D head dimension, E experts,
k experts per token, V vocabulary. Matrices are counted apart from *vectors* (norms, biases) and from routers and embeddings,
because only matrices are sharded and quantised.

Parameters are those of the language model without its multi-token-prediction (MTP) layers, as model cards count them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gqa:
    """Grouped-query attention: A heads share G keys and values. Multi-head attention has G = A."""

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False

    @property
    def kv_elements(self) -> int:
        """Cached elements per token and layer."""
        return 2 * self.kv_heads * self.head_dim

    @property
    def vector_parameters(self) -> int:
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return bias + (2 * self.head_dim if self.qk_norm else 0)

    def matrix_parameters(self, hidden: int) -> int:
        """Query, key, value and output projections: 2 H D (A + G)."""
        return 2 * hidden * self.head_dim * (self.heads + self.kv_heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mla:
    """Multi-head latent attention: keys and values are compressed to one latent that all heads share."""

    heads: int
    q_lora_rank: int | None  # None: queries are projected directly
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def kv_elements(self) -> int:
        """Cached elements per token and layer: the latent and one rotated key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def vector_parameters(self) -> int:
        return self.kv_lora_rank + (self.q_lora_rank or 0)

    def down_parameters(self, hidden: int) -> int:
        """Projections to the latents; every tensor-parallel rank holds them whole."""
        return hidden * (self.kv_elements + (self.q_lora_rank or 0))

    def up_parameters(self, hidden: int) -> int:
        """Projections from the latents to the heads, and the output: sliced by heads."""
        query = (self.q_lora_rank or hidden) * self.qk_head_dim
        keys_values = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
        return self.heads * (query + keys_values + self.v_head_dim * hidden)

    def matrix_parameters(self, hidden: int) -> int:
        return self.down_parameters(hidden) + self.up_parameters(hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A gated feed-forward (gate, up, down): 3 H I."""

    intermediate: int
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Moe:
    """Routed experts, k of E per token, and shared ones that every token passes through."""

    experts: int
    experts_per_token: int
    expert_intermediate: int
    shared_intermediate: int = 0  # columns of all shared experts together


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Like layers in a row."""

    count: int
    attention: Gqa | Mla
    feed_forward: Dense | Moe


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

    @property
    def num_layers(self) -> int:
        return sum(group.count for group in self.layers)

    @property
    def is_moe(self) -> bool:
        return any(isinstance(group.feed_forward, Moe) for group in self.layers)

    @property
    def embedding_parameters(self) -> int:
        return self.vocab * self.hidden


def parameters(model: Model) -> int:
    """All parameters, without the MTP layers."""
    embeddings = model.embedding_parameters * (1 if model.tied else 2)
    layers = sum(group.count * layer_parameters(group, model.hidden) for group in model.layers)
    return embeddings + layers + model.hidden


def active_parameters(model: Model) -> int:
    """Parameters one token passes through, embedding and head among them."""
    idle = sum(
        group.count
        * (group.feed_forward.experts - group.feed_forward.experts_per_token)
        * expert_parameters(group.feed_forward, model.hidden)
        for group in model.layers
        if isinstance(group.feed_forward, Moe)
    )
    return parameters(model) - idle


def mtp_parameters(model: Model) -> int:
    """The MTP layers: each a layer of the last kind, a projection of 2 H to H, three norms; embedding and head are shared."""
    layer = layer_parameters(model.layers[-1], model.hidden)
    return model.mtp_layers * (layer + 2 * model.hidden**2 + 3 * model.hidden)


def kv_elements_per_token(model: Model) -> int:
    """Cached elements per token, all layers, each stored once."""
    return sum(group.count * group.attention.kv_elements for group in model.layers)


def kv_bytes_per_token(model: Model, bytes_per_element: float) -> float:
    """Cached bytes per token, all layers, each stored once: what a copy over a network moves.

    >>> llama = Gqa(heads=32, kv_heads=8, head_dim=128)
    >>> 32 * llama.kv_elements * 2  # 32 layers in bf16
    131072
    """
    return kv_elements_per_token(model) * bytes_per_element


def layer_parameters(group: LayerGroup, hidden: int) -> int:
    """One layer: attention, feed-forward, two norms."""
    attention, feed_forward = group.attention, group.feed_forward
    return (
        attention.matrix_parameters(hidden)
        + layer_vector_parameters(group, hidden)
        + feed_forward_parameters(feed_forward, hidden)
    )


def layer_vector_parameters(group: LayerGroup, hidden: int) -> int:
    """Norms and biases of one layer; every rank holds them whole."""
    attention, feed_forward = group.attention, group.feed_forward
    vectors = 2 * hidden + attention.vector_parameters
    if isinstance(attention, Gqa) and attention.output_bias:
        vectors += hidden
    if isinstance(feed_forward, Dense) and feed_forward.bias:
        vectors += 2 * feed_forward.intermediate + hidden
    return vectors


def feed_forward_parameters(feed_forward: Dense | Moe, hidden: int) -> int:
    """Matrices of a feed-forward: 3 H I, or router, experts and shared experts."""
    if isinstance(feed_forward, Dense):
        return 3 * hidden * feed_forward.intermediate
    return (
        feed_forward.experts * expert_parameters(feed_forward, hidden)
        + router_parameters(feed_forward, hidden)
        + 3 * hidden * feed_forward.shared_intermediate
    )


def expert_parameters(moe: Moe, hidden: int) -> int:
    """One routed expert: 3 H I."""
    return 3 * hidden * moe.expert_intermediate


def router_parameters(moe: Moe, hidden: int) -> int:
    """The scores of all experts: H E. A bias of E, where a family has one, is left out (under a millionth)."""
    return hidden * moe.experts
