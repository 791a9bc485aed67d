"""What one engine step asks of one rank: a list of operators with FLOPs, bytes and exchanges.

`step_ops` describes the busiest rank of the fullest pipeline stage (see `memory`). Every quantity may be a numpy array, the
layout's included, and they broadcast together.

    T    tokens the step computes on one data-parallel rank: prompt tokens, and 1 + drafts per decoding sequence
    GEMM of m rows, n columns, k inner      2 m n k FLOPs;  w n k + 2 m k + 2 m n bytes, every matrix crossing HBM once

Experts are taken to be equally loaded: imbalance belongs to calibration. Of the E slots (experts, copies included) on all
ranks, T dp tokens choosing k each touch 1 - exp(-T dp k / E), and only those weights are read.

MLA computes prompts with keys and values blown up to all heads, and decodes in the latent space ("absorbed"). Blowing up the
cached context again for every later chunk of a prompt is left out.

Exchanges, per layer: with tp > 1 an all-reduce of the activations after attention and one after the feed-forward; with
dp > 1 around the experts, each token's copies go to the ranks that hold its experts and come back (all-to-all), or, where
experts are sliced over all ranks (ep = 1), all tokens are gathered and the results reduce-scattered. Between stages the
activations are sent once. `Op.buffer_bytes` is what one rank would hold if nothing were sharded; in an all-to-all it is
what one rank hands out in all, its own share included.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from polypod.workload.layout import AnyLayout
from polypod.workload.memory import (
    expert_slices,
    experts_per_rank,
    kv_elements_per_rank,
    stage_layers,
)
from polypod.workload.model import Gqa, LayerGroup, Mla, Model, Moe, expert_parameters
from polypod.workload.precision import KEPT, Precision, element_bytes
from polypod.workload.reals import Reals, above, plain

Kind = Literal[
    "gemm",
    "attention_prefill",
    "attention_decode",
    "moe",
    "elementwise",
    "embedding",
    "collective",
]
Pattern = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]
Group = Literal["tp", "dp", "ep", "pp"]

_ACTIVATION_BYTES = 2.0
"""Activations travel in bf16, in HBM and between ranks; only the dispatch to experts is quantised."""

_PASSES = 10
"""Times a layer reads or writes T x H activations outside its matrices: 4 for each norm with its residual, 2 for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """What a step works on, on one data-parallel rank. At least one token; an empty step is no step."""

    prompt_tokens: Reals = 0.0
    decode_sequences: Reals = 0.0
    kv_tokens: Reals = 0.0  # cached tokens that the decoding sequences read
    pairs: Reals = 0.0  # prompt token x context token pairs of the prompt attention
    drafts: Reals = 0.0  # tokens drafted per decoding sequence and verified in this step, by the model's MTP layers
    finished_prompts: Reals = 0.0  # prompts whose last token is in this step

    @property
    def decode_tokens(self) -> Reals:
        return self.decode_sequences * (1 + self.drafts)

    @property
    def tokens(self) -> Reals:
        return self.prompt_tokens + self.decode_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator, `count` times per step. Figures are for one time, on one rank."""

    name: str
    kind: Kind
    count: Reals
    dtype: str = KEPT
    flops: Reals = 0.0
    weight_bytes: Reals = 0.0
    activation_bytes: Reals = 0.0
    kv_bytes: Reals = 0.0
    pattern: Pattern | None = None
    group: Group | None = None
    buffer_bytes: Reals = 0.0

    @property
    def hbm_bytes(self) -> Reals:
        return self.weight_bytes + self.activation_bytes + self.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What every operator needs to know."""

    hidden: int
    layout: AnyLayout
    precision: Precision
    shape: StepShape


def step_ops(model: Model, layout: AnyLayout, precision: Precision, shape: StepShape) -> list[Op]:
    """The operators of one step of one stage on its busiest rank.

    A model of one 4 x 4 attention head and 8 feed-forward columns, one token: queries, keys, values and output are
    4 x 4 each, so 2 * 1 * 4 * (3 * 4) = 96 FLOPs make queries, keys and values.

    >>> from polypod.workload.layout import Layout
    >>> from polypod.workload.model import Dense
    >>> layer = LayerGroup(count=2, attention=Gqa(heads=1, kv_heads=1, head_dim=4), feed_forward=Dense(intermediate=8))
    >>> tiny = Model(name="tiny", model_type="llama", hidden=4, vocab=10, tied=True, layers=(layer,), mtp_layers=0,
    ...              context_tokens=None, weight_dtype="bf16")
    >>> ops = step_ops(tiny, Layout(), Precision(weights="bf16", kv="bf16"), StepShape(prompt_tokens=1, pairs=1))
    >>> qkv = next(op for op in ops if op.name == "qkv")
    >>> qkv.count, qkv.flops, qkv.weight_bytes, qkv.activation_bytes
    (2.0, 96.0, 96.0, 32.0)
    """
    step = _Step(hidden=model.hidden, layout=layout, precision=precision, shape=shape)
    ops: list[Op] = []
    for position, (group, layers) in enumerate(stage_layers(model, layout)):
        if not np.any(layers):
            continue
        count = layers + (
            shape.drafts if position == 0 else 0
        )  # a draft runs one more layer of the last kind
        ops += [*_attention(step, group, count), *_feed_forward(step, group, count)]
        ops.append(_elementwise(step, count))
    ops += _ends(step, model)
    return [op for op in ops if np.any(op.count)]


def _attention(step: _Step, group: LayerGroup, count: Reals) -> Iterator[Op]:
    if isinstance(group.attention, Mla):
        yield from _mla(step, group.attention, count)
    else:
        yield from _gqa(step, group.attention, count)
    yield from _all_reduce(step, "attention all-reduce", count)


def _gqa(step: _Step, attention: Gqa, count: Reals) -> Iterator[Op]:
    tp, shape = step.layout.tp, step.shape
    width = attention.head_dim
    queries = attention.heads / tp
    kv_elements = kv_elements_per_rank(attention, step.layout)
    kv_bytes = kv_elements * element_bytes(step.precision.kv, "kv")
    columns = queries * width + kv_elements
    yield _gemm(step, "qkv", count, inner=step.hidden, columns=columns)
    yield Op(
        name="prompt attention",
        kind="attention_prefill",
        count=count * above(shape.prompt_tokens, 0),
        flops=4 * queries * width * shape.pairs,
        activation_bytes=2 * _ACTIVATION_BYTES * shape.prompt_tokens * queries * width,
        kv_bytes=kv_bytes * shape.prompt_tokens,
    )
    yield Op(
        name="decode attention",
        kind="attention_decode",
        count=count * above(shape.decode_sequences, 0),
        flops=4 * queries * width * shape.kv_tokens * (1 + shape.drafts),
        activation_bytes=2 * _ACTIVATION_BYTES * shape.decode_tokens * queries * width,
        kv_bytes=kv_bytes * (shape.kv_tokens + shape.decode_tokens),
    )
    yield _gemm(step, "attention output", count, inner=queries * width, columns=step.hidden)


def _mla(step: _Step, attention: Mla, count: Reals) -> Iterator[Op]:
    shape, rank = step.shape, attention.kv_lora_rank
    heads = attention.heads / step.layout.tp
    wide = attention.qk_nope_head_dim + attention.v_head_dim
    kv_bytes = attention.kv_elements * element_bytes(step.precision.kv, "kv")
    latents = attention.kv_elements + (attention.q_lora_rank or 0)
    yield _gemm(step, "to latents", count, inner=step.hidden, columns=latents)
    yield _gemm(
        step,
        "queries",
        count,
        inner=attention.q_lora_rank or step.hidden,
        columns=heads * attention.qk_head_dim,
    )
    yield _gemm(step, "latent to heads", count, inner=rank, columns=heads * wide)
    yield Op(
        name="prompt attention",
        kind="attention_prefill",
        count=count * above(shape.prompt_tokens, 0),
        flops=2 * heads * (attention.qk_head_dim + attention.v_head_dim) * shape.pairs,
        activation_bytes=2
        * _ACTIVATION_BYTES
        * shape.prompt_tokens
        * heads
        * (attention.qk_head_dim + attention.v_head_dim),
        kv_bytes=kv_bytes * shape.prompt_tokens,
    )
    yield Op(
        name="decode attention",
        kind="attention_decode",
        count=count * above(shape.decode_sequences, 0),
        flops=2 * heads * (attention.kv_elements + rank) * shape.kv_tokens * (1 + shape.drafts),
        activation_bytes=_ACTIVATION_BYTES
        * shape.decode_tokens
        * heads
        * (attention.kv_elements + rank),
        kv_bytes=kv_bytes * (shape.kv_tokens + shape.decode_tokens),
    )
    yield _gemm(
        step, "attention output", count, inner=heads * attention.v_head_dim, columns=step.hidden
    )


def _feed_forward(step: _Step, group: LayerGroup, count: Reals) -> Iterator[Op]:
    feed_forward = group.feed_forward
    if isinstance(feed_forward, Moe):
        yield from _moe(step, feed_forward, count)
    else:
        yield from _gated(step, "feed-forward", count, feed_forward.intermediate)
    yield from _all_reduce(step, "feed-forward all-reduce", count)


def _gated(step: _Step, name: str, count: Reals, intermediate: int) -> Iterator[Op]:
    columns = intermediate / step.layout.tp
    yield _gemm(step, f"{name} up", count, inner=step.hidden, columns=2 * columns)
    yield _gemm(step, f"{name} down", count, inner=columns, columns=step.hidden)


def _moe(step: _Step, moe: Moe, count: Reals) -> Iterator[Op]:
    layout, hidden = step.layout, step.hidden
    yield Op(
        name="router",
        kind="gemm",
        count=count,
        flops=2.0 * step.shape.tokens * hidden * moe.experts,
        weight_bytes=element_bytes(KEPT) * hidden * moe.experts,
        activation_bytes=_ACTIVATION_BYTES * step.shape.tokens * (hidden + moe.experts),
    )
    yield from _exchange(step, moe, count)
    slices = expert_slices(layout)
    rows = step.shape.tokens * layout.dp * moe.experts_per_token / layout.ep
    columns = moe.expert_intermediate / slices
    touched = touched_experts(moe, layout, step.shape.tokens * layout.dp)
    yield Op(
        name="experts",
        kind="moe",
        count=count,
        dtype=step.precision.compute_dtype,
        flops=2 * rows * expert_parameters(moe, hidden) / slices,
        weight_bytes=touched
        * expert_parameters(moe, hidden)
        / slices
        * element_bytes(step.precision.weights),
        activation_bytes=_ACTIVATION_BYTES * rows * (2 * hidden + 3 * columns),
    )
    if moe.shared_intermediate:
        yield from _gated(step, "shared experts", count, moe.shared_intermediate)


def touched_experts(moe: Moe, layout: AnyLayout, tokens: Reals) -> Reals:
    """How many of a rank's experts at least one of all the stage's `tokens` chooses, expected.

    256 experts, 8 per token, one rank: a single token touches 8 at most, here 7.9 because chance may choose one twice.

    >>> from polypod.workload.layout import Layout
    >>> moe = Moe(experts=256, experts_per_token=8, expert_intermediate=1)
    >>> round(touched_experts(moe, Layout(), 1), 2), round(touched_experts(moe, Layout(), 1000), 2)
    (7.88, 256.0)
    """
    held = experts_per_rank(moe, layout)
    slots = held * layout.ep
    return plain(held * (1 - np.exp(-tokens * moe.experts_per_token / slots)))


def _exchange(step: _Step, moe: Moe, count: Reals) -> Iterator[Op]:
    """Tokens to their experts and back; without data-parallel ranks every rank has all tokens already."""
    layout, shape = step.layout, step.shape
    spread = above(layout.dp, 1) * above(layout.ep, 1)
    sliced = above(layout.dp, 1) - spread
    if np.any(spread):
        copies = np.minimum(moe.experts_per_token, layout.ep)  # at most one to each rank
        elements = shape.tokens * layout.dp / layout.ep * copies * step.hidden
        narrow = min(element_bytes(step.precision.compute_dtype, "compute"), _ACTIVATION_BYTES)
        for name, width in (("dispatch", narrow), ("combine", _ACTIVATION_BYTES)):
            yield _collective(name, count * spread, "all_to_all", "ep", elements * width)
    if np.any(sliced):
        buffer_bytes = _ACTIVATION_BYTES * shape.tokens * layout.dp * step.hidden
        yield _collective("gather tokens", count * sliced, "all_gather", "dp", buffer_bytes)
        yield _collective("scatter results", count * sliced, "reduce_scatter", "dp", buffer_bytes)


def _all_reduce(step: _Step, name: str, count: Reals) -> Iterator[Op]:
    several = above(step.layout.tp, 1)
    if np.any(several):
        buffer_bytes = _ACTIVATION_BYTES * step.shape.tokens * step.hidden
        yield _collective(name, count * several, "all_reduce", "tp", buffer_bytes)


def _elementwise(step: _Step, count: Reals) -> Op:
    moved = _PASSES * _ACTIVATION_BYTES * step.shape.tokens * step.hidden
    return Op(name="norms and residuals", kind="elementwise", count=count, activation_bytes=moved)


def _ends(step: _Step, model: Model) -> Iterator[Op]:
    """Embedding, head, what a draft adds to a layer, and the way to the next stage."""
    shape, hidden = step.shape, model.hidden
    yield Op(
        name="embedding",
        kind="embedding",
        count=1.0,
        activation_bytes=2 * _ACTIVATION_BYTES * shape.tokens * hidden,
    )
    rows = shape.decode_tokens + shape.finished_prompts
    columns = model.vocab / step.layout.tp
    yield Op(
        name="head",
        kind="gemm",
        count=above(rows, 0) * (1.0 + shape.drafts),
        flops=2 * rows * hidden * columns,
        weight_bytes=element_bytes(KEPT) * hidden * columns,
        activation_bytes=_ACTIVATION_BYTES * rows * (hidden + columns),
    )
    yield _gemm(step, "draft projection", shape.drafts, inner=2 * hidden, columns=hidden)
    sent = _ACTIVATION_BYTES * shape.tokens * hidden
    yield _collective("to the next stage", above(step.layout.pp, 1), "send", "pp", sent)


def _gemm(step: _Step, name: str, count: Reals, *, inner: Reals, columns: Reals) -> Op:
    rows = step.shape.tokens
    return Op(
        name=name,
        kind="gemm",
        count=count,
        dtype=step.precision.compute_dtype,
        flops=2.0 * rows * inner * columns,
        weight_bytes=element_bytes(step.precision.weights) * inner * columns,
        activation_bytes=_ACTIVATION_BYTES * rows * (inner + columns),
    )


def _collective(name: str, count: Reals, pattern: Pattern, group: Group, buffer_bytes: Reals) -> Op:
    return Op(
        name=name,
        kind="collective",
        count=count,
        pattern=pattern,
        group=group,
        buffer_bytes=buffer_bytes,
    )
