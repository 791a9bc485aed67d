"""What mixes the tokens of a sequence in one layer: attention with a cache, or a recurrence with a state.

A cache grows with the context, or up to a window; a state does not grow. Letters: H hidden, A heads, G key-value heads, D head
dimension. `attended_tokens` bounds the context one token attends to, `cached_tokens` the context that is kept; None: no bound.
"""

from dataclasses import dataclass

STATE_BYTES = 4.0
"""Recurrent states are kept in fp32, as their kernels accumulate in it; the convolution's last inputs in bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gqa:
    """Grouped-query attention: A heads share G keys and values. Multi-head attention has G = A.

    Chunked attention is taken as a window as wide as the chunk, though a token sees half of it on average.
    """

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int | None = None  # where values are not as wide as keys
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    wide_qk_norm: bool = False  # the norms span all heads together
    gate: bool = False  # every output element has a gate, projected beside the queries
    shared_kv: bool = False  # values are the keys' projection, normed otherwise; both are cached
    sinks: bool = False  # a learned logit per head
    window_tokens: int | None = None
    q_lora_rank: int | None = (
        None  # queries pass through a narrower vector (multi-matrix factorisation)
    )
    own_kv: bool = (
        True  # else the layer reads the cache of the one before it (cross-layer attention)
    )
    index_heads: int = (
        0  # an indexer scores the context, and each token attends to the `index_topk` best
    )
    index_head_dim: int = 0
    index_topk: int | None = None

    @property
    def value_dim(self) -> int:
        return self.v_head_dim or self.head_dim

    @property
    def query_dim(self) -> int:
        """Columns one head projects for its queries, its gate among them."""
        return self.head_dim + (self.value_dim if self.gate else 0)

    @property
    def projected_kv_dim(self) -> int:
        """Columns one key-value head projects."""
        if not self.own_kv:
            return 0
        return self.head_dim + (0 if self.shared_kv else self.value_dim)

    @property
    def kv_elements(self) -> int:
        """Cached elements per token and layer."""
        return self.kv_heads * (self.head_dim + self.value_dim) if self.own_kv else 0

    @property
    def index_bytes(self) -> int:
        """Cached bytes of the indexer's key per token and layer: bf16, as transformers 5.23 keeps it."""
        return 2 * self.index_head_dim

    @property
    def attended_tokens(self) -> int | None:
        return self.window_tokens or self.index_topk

    @property
    def cached_tokens(self) -> int | None:
        return self.window_tokens

    @property
    def vector_parameters(self) -> int:
        bias = self.heads * self.query_dim + self.kv_heads * self.projected_kv_dim
        norms = 2 * self.head_dim if self.qk_norm else 0
        wide = (self.heads + self.kv_heads) * self.head_dim if self.wide_qk_norm else 0
        index = 2 * self.index_head_dim if self.index_heads else 0
        more = index + (self.q_lora_rank or 0) + (self.heads if self.sinks else 0)
        return (bias if self.qkv_bias else 0) + norms + wide + more

    def down_parameters(self, hidden: int) -> int:
        """The queries' narrower vector and the indexer; every tensor-parallel rank holds them whole."""
        index = (self.index_heads + 1) * self.index_head_dim if self.index_heads else 0
        return hidden * ((self.q_lora_rank or 0) + index)

    def matrix_parameters(self, hidden: int) -> int:
        """Query, key, value and output projections: 2 H D (A + G) where keys and values are as wide and nothing is gated."""
        queries = (self.q_lora_rank or hidden) * self.heads * self.query_dim
        others = self.heads * self.value_dim + self.kv_heads * self.projected_kv_dim
        return self.down_parameters(hidden) + queries + hidden * others


@dataclass(frozen=True, slots=True, kw_only=True)
class Mla:
    """Multi-head latent attention: keys and values are compressed to one latent that all heads share.

    With an indexer (DeepSeek sparse attention) a small attention scores the whole context and each token attends to the
    `index_topk` best; a layer may use another's scores (`index_heads` is 0). The indexer's keys are cached in 8 bits.
    """

    heads: int
    q_lora_rank: int | None  # None: queries are projected directly
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    index_heads: int = 0
    index_head_dim: int = 0
    index_topk: int | None = None

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def kv_elements(self) -> int:
        """Cached elements per token and layer: the latent and one rotated key. The indexer's keys are counted apart."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def index_bytes(self) -> int:
        """Cached bytes of the indexer's key per token and layer."""
        return self.index_head_dim if self.index_heads else 0

    @property
    def attended_tokens(self) -> int | None:
        return self.index_topk

    @property
    def cached_tokens(self) -> int | None:
        return None

    @property
    def vector_parameters(self) -> int:
        index_norm = 2 * self.index_head_dim if self.index_heads else 0
        return self.kv_lora_rank + (self.q_lora_rank or 0) + index_norm

    def down_parameters(self, hidden: int) -> int:
        """Projections to the latents; every tensor-parallel rank holds them whole."""
        return hidden * (self.kv_elements + (self.q_lora_rank or 0))

    def index_parameters(self, hidden: int) -> int:
        """The indexer's queries, key and head weights; every tensor-parallel rank holds them whole."""
        if not self.index_heads:
            return 0
        queries = (self.q_lora_rank or hidden) * self.index_heads * self.index_head_dim
        return queries + hidden * (self.index_head_dim + self.index_heads)

    def up_parameters(self, hidden: int) -> int:
        """Projections from the latents to the heads, and the output: sliced by heads."""
        query = (self.q_lora_rank or hidden) * self.qk_head_dim
        keys_values = self.kv_lora_rank * (self.qk_nope_head_dim + self.v_head_dim)
        return self.heads * (query + keys_values + self.v_head_dim * hidden)

    def matrix_parameters(self, hidden: int) -> int:
        whole = self.down_parameters(hidden) + self.index_parameters(hidden)
        return whole + self.up_parameters(hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """Linear attention or a state-space layer: each head keeps a matrix of key_dim x value_dim per sequence, of any length.

    One shape for gated delta nets, Mamba 2, lightning attention and, with one head per channel, Mamba 1.
    """

    heads: int
    key_dim: int
    value_dim: int
    input_columns: int  # all that is projected from the hidden vector: keys, values, gates, decays
    conv_channels: int = 0  # of the short convolution before the recurrence
    conv_kernel: int = 1
    vectors: int = 0  # decays, biases and norms
    inner_parameters: int = 0  # Mamba 1: from the inner vector to step sizes and state inputs

    @property
    def inner(self) -> int:
        """Columns that leave the recurrence."""
        return self.heads * self.value_dim

    @property
    def state_elements(self) -> int:
        return self.heads * self.key_dim * self.value_dim

    @property
    def state_bytes(self) -> float:
        """What one sequence keeps in one layer: its state, and the last inputs of the convolution."""
        return STATE_BYTES * self.state_elements + 2.0 * self.conv_channels * (self.conv_kernel - 1)

    @property
    def flops_per_token(self) -> float:
        """Decay, update and read of every state element, 2 each, and the convolution."""
        return 6.0 * self.state_elements + 2.0 * self.conv_kernel * self.conv_channels

    @property
    def kv_elements(self) -> int:
        return 0

    @property
    def attended_tokens(self) -> int | None:
        return None

    @property
    def cached_tokens(self) -> int | None:
        return None

    @property
    def vector_parameters(self) -> int:
        """The convolution's weights are among them."""
        return self.vectors + self.conv_channels * self.conv_kernel

    def matrix_parameters(self, hidden: int) -> int:
        return hidden * (self.input_columns + self.inner) + self.inner_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """DeepSeek V4's attention: one vector of D elements is key and value for all heads, cached once for every `ratio` tokens.

    Beside what is compressed each token attends to a window, whose vectors are kept as they are. With an indexer (ratio 4)
    a token attends to the `index_topk` best compressed vectors, else (ratio 128) to all; with ratio 0 to the window alone.
    Compressing at ratio 4 overlaps, so that it projects twice as wide. The output passes through `output_groups` narrower
    vectors. As transformers 5.23 builds it.
    """

    heads: int
    head_dim: int
    q_lora_rank: int
    output_groups: int
    output_rank: int
    window_tokens: int
    ratio: int = 0
    index_heads: int = 0
    index_head_dim: int = 0
    index_topk: int | None = None

    @property
    def kv_elements(self) -> int:
        """Cached elements that each token adds: of the window alone, or of the compressed vectors."""
        return self.head_dim // self.ratio if self.ratio else self.head_dim

    @property
    def state_bytes(self) -> float:
        """The window of a layer that compresses: kept of every sequence, in bf16."""
        return 2.0 * self.window_tokens * self.head_dim if self.ratio else 0.0

    @property
    def index_bytes(self) -> int:
        """Cached bytes of the indexer's compressed key, in 8 bits, per token and layer."""
        return self.index_head_dim // self.ratio if self.index_heads else 0

    @property
    def attended_tokens(self) -> int | None:
        if not self.ratio:
            return self.window_tokens
        return self.index_topk and self.index_topk * self.ratio + self.window_tokens

    @property
    def cached_tokens(self) -> int | None:
        return None if self.ratio else self.window_tokens

    @property
    def vector_parameters(self) -> int:
        """Norms, sinks, and what the compressors add to each position."""
        compressor = self.ratio * self._compressed_width + self.head_dim if self.ratio else 0
        index = (2 * self.ratio + 1) * self.index_head_dim if self.index_heads else 0
        return self.q_lora_rank + self.head_dim + self.heads + compressor + index

    @property
    def _compressed_width(self) -> int:
        return self.head_dim * (2 if self.index_heads else 1) if self.ratio else 0

    def down_parameters(self, hidden: int) -> int:
        """To the latent, the shared vector and the compressors; every tensor-parallel rank holds them whole."""
        return hidden * (self.q_lora_rank + self.head_dim + 2 * self._compressed_width)

    def index_parameters(self, hidden: int) -> int:
        """The indexer's queries, its own compressor and head weights; whole on every rank."""
        if not self.index_heads:
            return 0
        queries = self.q_lora_rank * self.index_heads * self.index_head_dim
        return queries + hidden * (4 * self.index_head_dim + self.index_heads)

    def up_parameters(self, hidden: int) -> int:
        """From the latent to the heads, and the output: sliced by heads."""
        wide = self.heads * self.head_dim
        return wide * (self.q_lora_rank + self.output_rank) + (
            self.output_groups * self.output_rank * hidden
        )

    def matrix_parameters(self, hidden: int) -> int:
        whole = self.down_parameters(hidden) + self.index_parameters(hidden)
        return whole + self.up_parameters(hidden)


Mixer = Gqa | Mla | Compressed | Recurrent
