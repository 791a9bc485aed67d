"""What one engine step asks of one rank: a list of operators with FLOPs, bytes and exchanges.

`step_ops` describes the busiest rank of the fullest pipeline stage (see `memory`). Every quantity may be a numpy array, the
layout's included, and they broadcast together.

    T    tokens the step computes on one data-parallel rank: prompt tokens, and 1 + drafts per decoding sequence
    GEMM of m rows, n columns, k inner      2 m n k FLOPs;  w n k + 2 m k + 2 m n bytes, every matrix crossing HBM once

Ranks are taken to be equally loaded: imbalance between them belongs to calibration. Of the E slots (experts, copies included) on all
ranks, T dp tokens choosing k each touch 1 - exp(-T dp k p / E), and only those weights are read; p is 1 where training evened the experts, else
spread over `POPULARITY_RATIO` about 1.

Exchanges, per layer: with tp > 1 an all-reduce of the activations after attention and one after the feed-forward; with
dp > 1 around the experts, each token's copies go to the ranks that hold its experts and come back (all-to-all), or, where
experts are sliced over all ranks (ep = 1), all tokens are gathered and the results reduce-scattered. Between stages the
activations are sent once.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from polypod.workload.attention import attention_ops
from polypod.workload.layout import AnyLayout
from polypod.workload.memory import expert_slices, experts_per_rank, stage_layers
from polypod.workload.model import Dense, LayerGroup, Model, Moe, expert_parameters
from polypod.workload.ops import ACTIVATION_BYTES, Op, Step, StepShape, collective, gemm
from polypod.workload.precision import KEPT, Precision, element_bytes, of_the_rest
from polypod.workload.reals import Reals, above, plain, some

__all__ = ["Op", "StepShape", "step_ops", "touched_experts"]

_PASSES: Final = 10
"""Times a layer reads or writes T x H activations outside its matrices: 4 for each norm with its residual, 2 for the rest."""


def step_ops(model: Model, layout: AnyLayout, precision: Precision, shape: StepShape) -> list[Op]:
    """The operators of one step of one stage on its busiest rank.

    A model of one 4 x 4 attention head and 8 feed-forward columns, one token: queries, keys, values and output are
    4 x 4 each, so 2 * 1 * 4 * (3 * 4) = 96 FLOPs make queries, keys and values.

    >>> from polypod.workload.layout import Layout
    >>> from polypod.workload.model import Dense, Gqa
    >>> layer = LayerGroup(count=2, attention=Gqa(heads=1, kv_heads=1, head_dim=4), feed_forward=Dense(intermediate=8))
    >>> tiny = Model(name="tiny", model_type="llama", hidden=4, vocab=10, tied=True, layers=(layer,), mtp_layers=0,
    ...              context_tokens=None, weight_dtype="bf16")
    >>> ops = step_ops(tiny, Layout(), Precision(weights="bf16", kv="bf16"), StepShape(prompt_tokens=1, pairs=1))
    >>> qkv = next(op for op in ops if op.name == "qkv")
    >>> qkv.count, qkv.flops, qkv.weight_bytes, qkv.activation_bytes
    (2.0, 96.0, 96.0, 32.0)
    """
    kept = of_the_rest(model.rest_dtype, precision)
    step = Step(
        hidden=model.hidden,
        layout=layout,
        precision=precision if model.quantised == "matrices" else kept,
        shape=shape,
        experts=precision,
    )
    beside = replace(step, precision=kept if model.quantised == "experts" else precision)
    drafts = (
        shape.drafts if model.mtp_layers else 0.0
    )  # each runs one MTP layer, like the largest of the model's own
    ops: list[Op] = []
    for position, (group, layers) in enumerate(stage_layers(model, layout)):
        if not some(layers):
            continue
        count = layers + drafts if position == 0 else layers
        layer = [*_attention(step, group, count), *_feed_forward(beside, group, count)]
        layer.append(_elementwise(step, count))
        ops += [op.within(position) for op in layer]
    ops += _ends(step, model, drafts)
    return [op for op in ops if some(op.count)]


def _attention(step: Step, group: LayerGroup, count: Reals) -> Iterator[Op]:
    if group.attention is None:
        return
    yield from attention_ops(step, group.attention, count)
    yield from _all_reduce(step, "attention all-reduce", count)


def _feed_forward(step: Step, group: LayerGroup, count: Reals) -> Iterator[Op]:
    feed_forward = group.feed_forward
    if feed_forward is None:
        return
    if isinstance(feed_forward, Moe):
        yield from _moe(step, feed_forward, count)
    else:
        yield from _dense(step, "feed-forward", count, feed_forward)
    yield from _all_reduce(step, "feed-forward all-reduce", count)


def _dense(step: Step, name: str, count: Reals, dense: Dense) -> Iterator[Op]:
    columns = dense.intermediate / step.layout.tp
    up = (dense.matrices - 1) * columns
    yield gemm(step, f"{name} up", count, inner=step.hidden, columns=up)
    yield gemm(step, f"{name} down", count, inner=columns, columns=step.hidden)


def _moe(step: Step, moe: Moe, count: Reals) -> Iterator[Op]:
    layout, hidden = step.layout, step.hidden
    choices = moe.experts + moe.idle_experts
    yield Op(
        name="router",
        kind="gemm",
        count=count,
        flops=2.0 * step.shape.tokens * hidden * choices,
        weight_bytes=element_bytes(KEPT) * hidden * choices,
        activation_bytes=ACTIVATION_BYTES * step.shape.tokens * (hidden + choices),
    )
    if moe.latent:
        narrow = moe.latent / layout.tp
        yield gemm(step, "to and from the experts' latent", 2 * count, inner=hidden, columns=narrow)
    yield from _exchange(step, moe, count)
    slices = expert_slices(layout)
    rows = step.shape.tokens * layout.dp * moe.experts_per_token / layout.ep
    width = moe.latent or hidden
    columns = moe.expert_intermediate / slices
    touched = touched_experts(moe, layout, step.shape.tokens * layout.dp)
    yield Op(
        name="experts",
        kind="moe",
        count=count,
        dtype=step.experts.compute_dtype,
        variant=step.experts.weights,
        rows=rows / np.maximum(touched, 1e-9),
        flops=2 * rows * expert_parameters(moe, hidden) / slices,
        weight_bytes=touched
        * expert_parameters(moe, hidden)
        / slices
        * element_bytes(step.experts.weights),
        activation_bytes=ACTIVATION_BYTES * rows * (2 * width + moe.matrices * columns),
    )
    if moe.shared_intermediate:
        shared = Dense(intermediate=moe.shared_intermediate, gated=moe.gated)
        yield from _dense(step, "shared experts", count, shared)


POPULARITY_RATIO: Final = 20.0
"""How often the most chosen expert is chosen for once of the least, where nothing evened them. Popularity lies evenly on a log scale between, the law
(exponent 1) under which kernel tables are measured too; the ratio was set while looking at served rows of gpt-oss and Qwen3-235B, where it takes
a hump of 8 % at 16 to 64 tokens out of the errors."""

_NODES, _SHARES = np.polynomial.legendre.leggauss(8)
_POPULARITY = (
    POPULARITY_RATIO ** ((_NODES + 1) / 2) * math.log(POPULARITY_RATIO) / (POPULARITY_RATIO - 1)
)


def touched_experts(moe: Moe, layout: AnyLayout, tokens: Reals) -> Reals:
    """How many of a rank's experts at least one of all the stage's `tokens` chooses, expected.

    256 experts, 8 per token, one rank: a single token touches 8 at most, here 7.9 because chance may choose one twice. Sixteen tokens touch
    fewer of those that are chosen unevenly.

    >>> from polypod.workload.layout import Layout
    >>> even = Moe(experts=256, experts_per_token=8, expert_intermediate=1, balanced=True)
    >>> [round(touched_experts(even, Layout(), tokens), 1) for tokens in (1, 16, 1000)]
    [7.9, 100.7, 256.0]
    >>> uneven = Moe(experts=256, experts_per_token=8, expert_intermediate=1)
    >>> [round(touched_experts(uneven, Layout(), tokens), 1) for tokens in (1, 16, 1000)]
    [7.8, 89.3, 255.9]
    """
    held = experts_per_rank(moe, layout)
    each = np.asarray(tokens * moe.experts_per_token / (held * layout.ep), dtype=float)
    if moe.balanced:
        return plain(held * (1 - np.exp(-each)))
    missed = np.exp(-each[..., None] * _POPULARITY) @ (_SHARES / 2)
    return plain(held * (1 - missed))


LOW_LATENCY_TOKENS = 256
"""Up to so many tokens a rank, engines send every copy by itself, for the sake of latency (DeepEP's low-latency kernels, made for decode); beyond,
one copy to a node is handed on there (its normal kernels): https://github.com/deepseek-ai/DeepEP."""


def _exchange(step: Step, moe: Moe, count: Reals) -> Iterator[Op]:
    """Tokens to their experts and back; without data-parallel ranks every rank has all tokens already."""
    layout, shape = step.layout, step.shape
    spread = above(layout.dp, 1) * above(layout.ep, 1)
    sliced = above(layout.dp, 1) - spread
    if some(spread):
        copies = np.minimum(moe.experts_per_token, layout.ep)  # at most one to each rank
        elements = shape.tokens * layout.dp / layout.ep * copies * (moe.latent or step.hidden)
        together = np.where(np.asarray(shape.tokens) > LOW_LATENCY_TOKENS, copies, 1.0)
        narrow = min(element_bytes(step.experts.compute_dtype, "compute"), ACTIVATION_BYTES)
        for name, width in (("dispatch", narrow), ("combine", ACTIVATION_BYTES)):
            yield collective(
                name, count * spread, "all_to_all", "ep", elements * width, copies=together
            )
    if some(sliced):
        buffer_bytes = ACTIVATION_BYTES * shape.tokens * layout.dp * step.hidden
        yield collective("gather tokens", count * sliced, "all_gather", "dp", buffer_bytes)
        yield collective("scatter results", count * sliced, "reduce_scatter", "dp", buffer_bytes)


def _all_reduce(step: Step, name: str, count: Reals) -> Iterator[Op]:
    several = above(step.layout.tp, 1)
    if some(several):
        buffer_bytes = ACTIVATION_BYTES * step.shape.tokens * step.hidden
        yield collective(name, count * several, "all_reduce", "tp", buffer_bytes)


def _elementwise(step: Step, count: Reals) -> Op:
    moved = _PASSES * ACTIVATION_BYTES * step.shape.tokens * step.hidden
    return Op(name="norms and residuals", kind="elementwise", count=count, activation_bytes=moved)


def _ends(step: Step, model: Model, drafts: Reals) -> Iterator[Op]:
    """Embedding, head, what a draft adds to a layer, and the way to the next stage."""
    shape, hidden = step.shape, model.hidden
    yield Op(
        name="embedding",
        kind="embedding",
        count=1.0,
        activation_bytes=2 * ACTIVATION_BYTES * shape.tokens * hidden,
    )
    rows = shape.decode_tokens + shape.finished_prompts
    columns = model.vocab / step.layout.tp
    yield Op(
        name="head",
        kind="gemm",
        count=above(rows, 0) * (1.0 + drafts),
        flops=2 * rows * hidden * columns,
        weight_bytes=element_bytes(KEPT) * hidden * columns,
        activation_bytes=ACTIVATION_BYTES * rows * (hidden + columns),
    )
    yield gemm(step, "draft projection", drafts, inner=2 * hidden, columns=hidden)
    sent = ACTIVATION_BYTES * shape.tokens * hidden
    yield collective("to the next stage", above(step.layout.pp, 1), "send", "pp", sent)
