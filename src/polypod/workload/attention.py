"""A layer's mixer as operators: grouped-query attention, multi-head latent (MLA), a recurrence.

Reads of a prompt's earlier context are left out: a prompt computed in one step reads its keys and values from where it has
just written them. MLA computes prompts with keys and values blown up to all heads, and decodes in the latent space
("absorbed"), where a cached token is kv_lora_rank + qk_rope_head_dim elements for all heads together. Blowing up the cached
context again for every later chunk of a prompt is left out.

A window, or a sparse attention's choice of w tokens, bounds what each token attends to. Of decoding sequences only the mean
context is known, so where some are shorter than w and some longer the bound is a little high. A prompt's tokens have contexts
spread evenly around their mean, which is exact for one chunk of one prompt and for whole prompts of one length.

A recurrence costs the same at every context: each token decays, updates and reads every state element once, 2 FLOPs each. The
chunked form that kernels compute prompts in does more arithmetic on a matrix unit; that belongs to calibration.
"""

from collections.abc import Iterator

import numpy as np

from polypod.workload.model import Compressed, Gqa, Mixer, Mla, Recurrent
from polypod.workload.ops import ACTIVATION_BYTES, Op, Step, StepShape, gemm
from polypod.workload.precision import element_bytes
from polypod.workload.reals import Reals, above, plain


def attention_ops(step: Step, mixer: Mixer | None, count: Reals) -> Iterator[Op]:
    """Projections, attention over prompts and over the cache, output."""
    if mixer is None:
        return iter(())
    if isinstance(mixer, Recurrent):
        return _recurrent(step, mixer, count)
    if isinstance(mixer, Compressed):
        return _compressed(step, mixer, count)
    return _mla(step, mixer, count) if isinstance(mixer, Mla) else _gqa(step, mixer, count)


def attended_kv(shape: StepShape, width: int | None) -> Reals:
    """Cached tokens that decoding sequences read, at most `width` each.

    >>> attended_kv(StepShape(decode_sequences=2, kv_tokens=1000), 128)
    256.0
    """
    if width is None:
        return shape.kv_tokens
    return plain(np.minimum(shape.kv_tokens, width * np.asarray(shape.decode_sequences)))


def attended_pairs(shape: StepShape, width: int | None) -> Reals:
    """Pairs of the prompt attention, at most `width` for each token: T tokens of mean context m have contexts m - s to m + s.

    A prompt of 100 tokens with a window of 10: the first ten see 1 to 10 (50 pairs in the mean), the others 10 each.

    >>> attended_pairs(StepShape(prompt_tokens=100, pairs=5000), 10)
    950.0
    """
    if width is None:
        return shape.pairs
    tokens = np.maximum(shape.prompt_tokens, 1e-9)
    mean = shape.pairs / tokens
    spread = np.maximum(np.minimum(tokens / 2, mean), 1e-9)
    low, high = mean - spread, mean + spread
    bend = np.clip(width, low, high)
    bounded = (bend * (bend - low) - (bend - low) ** 2 / 2 + width * (high - bend)) / (2 * spread)
    return plain(np.minimum(np.asarray(shape.pairs), bounded * tokens))


def _variant(kind: str, kv: str) -> str:
    """Which kernels do it: those over a cache of one byte an element are others."""
    return f"{kind}-fp8" if element_bytes(kv, "kv") == 1 else kind


def _head_kind(width: int) -> str:
    """Kernels are built for heads of 64, 128 and 256."""
    return f"gqa-{next((built for built in (64, 128) if width <= built), 256)}"


def _prompt_rows(shape: StepShape, pairs: Reals) -> Reals:
    """Tokens of a prompt that starts at its beginning: twice what each attends to."""
    return 2 * pairs / np.maximum(shape.prompt_tokens, 1e-9)


def _gqa(step: Step, attention: Gqa, count: Reals) -> Iterator[Op]:
    tp, shape = step.layout.tp, step.shape
    width = attention.head_dim + attention.value_dim
    queries = attention.heads / tp
    read = _elements_read(attention, tp) * element_bytes(step.precision.kv, "kv")
    pairs = attended_pairs(shape, attention.attended_tokens)
    kv_tokens = attended_kv(shape, attention.attended_tokens)
    variant = _variant(_head_kind(attention.head_dim), step.precision.kv)
    yield from _gqa_inputs(step, attention, count)
    yield Op(
        name="prompt attention",
        kind="attention_prefill",
        count=count * above(shape.prompt_tokens, 0),
        variant=variant,
        rows=_prompt_rows(shape, pairs),
        flops=2 * queries * width * pairs,
        activation_bytes=ACTIVATION_BYTES * shape.prompt_tokens * queries * width,
        kv_bytes=read * shape.prompt_tokens if attention.own_kv else 0.0,
    )
    yield Op(
        name="decode attention",
        kind="attention_decode",
        count=count * above(shape.decode_sequences, 0),
        variant=variant,
        rows=queries / np.maximum(attention.kv_heads / tp, 1.0) * (1 + shape.drafts),
        flops=2 * queries * width * kv_tokens * (1 + shape.drafts),
        activation_bytes=ACTIVATION_BYTES * shape.decode_tokens * queries * width,
        kv_bytes=read * (kv_tokens + (shape.decode_tokens if attention.own_kv else 0)),
    )
    yield gemm(
        step,
        "attention output",
        count,
        inner=queries * attention.value_dim,
        columns=step.hidden,
    )


def _elements_read(attention: Gqa, tp: Reals) -> Reals:
    """Elements of a cached token on one rank, its own layer's or the one before's."""
    width = attention.head_dim + attention.value_dim
    return plain(width * np.maximum(attention.kv_heads / np.asarray(tp), 1.0))


def _gqa_inputs(step: Step, attention: Gqa, count: Reals) -> Iterator[Op]:
    tp, hidden, rank = step.layout.tp, step.hidden, attention.q_lora_rank
    queries = attention.heads / tp * attention.query_dim
    projected = attention.projected_kv_dim * np.maximum(attention.kv_heads / tp, 1.0)
    if rank:
        yield gemm(step, "to the queries' latent", count, inner=hidden, columns=float(rank))
        yield gemm(step, "queries", count, inner=rank, columns=plain(queries))
        yield gemm(step, "keys and values", count, inner=hidden, columns=plain(projected))
    else:
        yield gemm(step, "qkv", count, inner=hidden, columns=plain(queries + projected))
    if attention.index_heads:
        yield from _indexer(step, attention, count)


def _mla(step: Step, attention: Mla, count: Reals) -> Iterator[Op]:
    shape, rank = step.shape, attention.kv_lora_rank
    heads = attention.heads / step.layout.tp
    wide = attention.qk_nope_head_dim + attention.v_head_dim
    kv_bytes = attention.kv_elements * element_bytes(step.precision.kv, "kv")
    variant = _variant("mla", step.precision.kv)
    latents = attention.kv_elements + (attention.q_lora_rank or 0)
    pairs = attended_pairs(shape, attention.index_topk)
    kv_tokens = attended_kv(shape, attention.index_topk)
    yield gemm(step, "to latents", count, inner=step.hidden, columns=latents)
    yield gemm(
        step,
        "queries",
        count,
        inner=attention.q_lora_rank or step.hidden,
        columns=heads * attention.qk_head_dim,
    )
    yield gemm(step, "latent to heads", count, inner=rank, columns=heads * wide)
    if attention.index_heads:
        yield from _indexer(step, attention, count)
    yield Op(
        name="prompt attention",
        kind="attention_prefill",
        count=count * above(shape.prompt_tokens, 0),
        variant=variant,
        rows=_prompt_rows(shape, pairs),
        flops=2 * heads * (attention.qk_head_dim + attention.v_head_dim) * pairs,
        activation_bytes=2
        * ACTIVATION_BYTES
        * shape.prompt_tokens
        * heads
        * (attention.qk_head_dim + attention.v_head_dim),
        kv_bytes=kv_bytes * shape.prompt_tokens,
    )
    yield Op(
        name="decode attention",
        kind="attention_decode",
        count=count * above(shape.decode_sequences, 0),
        variant=variant,
        rows=heads * (1 + shape.drafts),
        flops=2 * heads * (attention.kv_elements + rank) * kv_tokens * (1 + shape.drafts),
        activation_bytes=ACTIVATION_BYTES
        * shape.decode_tokens
        * heads
        * (attention.kv_elements + rank),
        kv_bytes=kv_bytes * (kv_tokens + shape.decode_tokens),
    )
    yield gemm(
        step, "attention output", count, inner=heads * attention.v_head_dim, columns=step.hidden
    )


def _compressed(step: Step, attention: Compressed, count: Reals) -> Iterator[Op]:
    """One key-and-value vector for all heads: a window of them, and compressed ones."""
    tp, shape, hidden = step.layout.tp, step.shape, step.hidden
    heads = attention.heads / tp
    element = element_bytes(step.precision.kv, "kv")
    wide = heads * attention.head_dim
    whole = attention.down_parameters(hidden) / hidden
    yield gemm(step, "to latents and compressors", count, inner=hidden, columns=whole)
    yield gemm(step, "queries", count, inner=attention.q_lora_rank, columns=wide)
    if attention.index_heads:
        yield from _indexer(step, attention, count)
    pairs, kv_vectors = _compressed_context(shape, attention)
    passed = 2 * ACTIVATION_BYTES * wide
    yield Op(
        name="prompt attention",
        kind="attention_prefill",
        count=count * above(shape.prompt_tokens, 0),
        flops=4 * wide * pairs,
        activation_bytes=passed * shape.prompt_tokens,
        kv_bytes=element * attention.kv_elements * shape.prompt_tokens,
    )
    yield Op(
        name="decode attention",
        kind="attention_decode",
        count=count * above(shape.decode_sequences, 0),
        flops=4 * wide * kv_vectors * (1 + shape.drafts),
        activation_bytes=passed * shape.decode_tokens,
        kv_bytes=element * attention.head_dim * (kv_vectors + shape.decode_tokens),
    )
    yield gemm(step, "output latent", count, inner=wide, columns=float(attention.output_rank))
    inner = attention.output_groups * attention.output_rank / tp
    yield gemm(step, "attention output", count, inner=inner, columns=hidden)


def _compressed_context(shape: StepShape, attention: Compressed) -> tuple[Reals, Reals]:
    """Pairs of the prompt attention, and vectors that decoding sequences read: those of the window and compressed ones."""
    window, ratio = attention.window_tokens, attention.ratio
    pairs, kv_vectors = attended_pairs(shape, window), attended_kv(shape, window)
    if not ratio:
        return pairs, kv_vectors
    best = attention.index_topk if attention.index_heads else None
    far = attended_pairs(shape, best * ratio if best else None) / ratio
    read = attended_kv(shape, best * ratio if best else None) / ratio
    return plain(pairs + far), plain(kv_vectors + read)


def _indexer(step: Step, attention: Gqa | Mla | Compressed, count: Reals) -> Iterator[Op]:
    """Scores the whole context with a few narrow heads; every tensor-parallel rank does it whole.

    A compressed context has one key for every `ratio` tokens, made by a compressor of its own.
    """
    shape = step.shape
    wide = attention.index_heads * attention.index_head_dim
    inner = step.hidden if isinstance(attention, Gqa) else attention.q_lora_rank or step.hidden
    ratio = attention.ratio if isinstance(attention, Compressed) else 1
    yield gemm(step, "indexer queries", count, inner=inner, columns=wide)
    keys = attention.index_head_dim * (1 if ratio == 1 else 4)
    keys += 0 if isinstance(attention, Gqa) else attention.index_heads
    yield gemm(step, "indexer key and weights", count, inner=step.hidden, columns=keys)
    yield Op(
        name="prompt scores",
        kind="attention_prefill",
        count=count * above(shape.prompt_tokens, 0),
        flops=2 * wide * shape.pairs / ratio,
        activation_bytes=shape.prompt_tokens * wide,
        kv_bytes=attention.index_bytes * shape.prompt_tokens,
    )
    yield Op(
        name="decode scores",
        kind="attention_decode",
        count=count * above(shape.decode_sequences, 0),
        flops=2 * wide * shape.kv_tokens / ratio * (1 + shape.drafts),
        activation_bytes=shape.decode_tokens * wide,
        kv_bytes=attention.index_bytes * (shape.kv_tokens + shape.decode_tokens),
    )


def _recurrent(step: Step, mixer: Recurrent, count: Reals) -> Iterator[Op]:
    tp, shape = step.layout.tp, step.shape
    inner, columns = mixer.inner / tp, mixer.input_columns / tp
    yield gemm(step, "recurrent inputs", count, inner=step.hidden, columns=columns)
    if mixer.inner_parameters:
        narrow = mixer.inner_parameters / mixer.inner
        yield gemm(step, "recurrent steps", count, inner=inner, columns=narrow)
    passed = ACTIVATION_BYTES * (columns + inner)
    yield Op(
        name="prompt recurrence",
        kind="attention_prefill",
        count=count * above(shape.prompt_tokens, 0),
        flops=mixer.flops_per_token / tp * shape.prompt_tokens,
        activation_bytes=passed * shape.prompt_tokens,
    )
    yield Op(
        name="decode recurrence",
        kind="attention_decode",
        count=count * above(shape.decode_sequences, 0),
        flops=mixer.flops_per_token / tp * shape.decode_tokens,
        activation_bytes=passed * shape.decode_tokens,
        kv_bytes=2 * mixer.state_bytes / tp * shape.decode_sequences,  # read and written
    )
    yield gemm(step, "recurrent output", count, inner=inner, columns=step.hidden)
