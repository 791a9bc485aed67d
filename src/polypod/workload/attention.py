"""Attention of one layer as operators: grouped-query, and multi-head latent (MLA).

Reads of a prompt's earlier context are left out: a prompt computed in one step reads its keys and values from where it has
just written them. MLA computes prompts with keys and values blown up to all heads, and decodes in the latent space
("absorbed"), where a cached token is kv_lora_rank + qk_rope_head_dim elements for all heads together. Blowing up the cached
context again for every later chunk of a prompt is left out.
"""

from collections.abc import Iterator

from polypod.workload.memory import kv_elements_per_rank
from polypod.workload.model import Gqa, Mla
from polypod.workload.ops import ACTIVATION_BYTES, Op, Step, gemm
from polypod.workload.precision import element_bytes
from polypod.workload.reals import Reals, above


def attention_ops(step: Step, attention: Gqa | Mla, count: Reals) -> Iterator[Op]:
    """Projections, attention over prompts and over the cache, output."""
    return (
        _mla(step, attention, count) if isinstance(attention, Mla) else _gqa(step, attention, count)
    )


def _gqa(step: Step, attention: Gqa, count: Reals) -> Iterator[Op]:
    tp, shape = step.layout.tp, step.shape
    width = attention.head_dim
    queries = attention.heads / tp
    kv_elements = kv_elements_per_rank(attention, step.layout)
    kv_bytes = kv_elements * element_bytes(step.precision.kv, "kv")
    columns = queries * width + kv_elements
    yield gemm(step, "qkv", count, inner=step.hidden, columns=columns)
    yield Op(
        name="prompt attention",
        kind="attention_prefill",
        count=count * above(shape.prompt_tokens, 0),
        flops=4 * queries * width * shape.pairs,
        activation_bytes=2 * ACTIVATION_BYTES * shape.prompt_tokens * queries * width,
        kv_bytes=kv_bytes * shape.prompt_tokens,
    )
    yield Op(
        name="decode attention",
        kind="attention_decode",
        count=count * above(shape.decode_sequences, 0),
        flops=4 * queries * width * shape.kv_tokens * (1 + shape.drafts),
        activation_bytes=2 * ACTIVATION_BYTES * shape.decode_tokens * queries * width,
        kv_bytes=kv_bytes * (shape.kv_tokens + shape.decode_tokens),
    )
    yield gemm(step, "attention output", count, inner=queries * width, columns=step.hidden)


def _mla(step: Step, attention: Mla, count: Reals) -> Iterator[Op]:
    shape, rank = step.shape, attention.kv_lora_rank
    heads = attention.heads / step.layout.tp
    wide = attention.qk_nope_head_dim + attention.v_head_dim
    kv_bytes = attention.kv_elements * element_bytes(step.precision.kv, "kv")
    latents = attention.kv_elements + (attention.q_lora_rank or 0)
    yield gemm(step, "to latents", count, inner=step.hidden, columns=latents)
    yield gemm(
        step,
        "queries",
        count,
        inner=attention.q_lora_rank or step.hidden,
        columns=heads * attention.qk_head_dim,
    )
    yield gemm(step, "latent to heads", count, inner=rank, columns=heads * wide)
    yield Op(
        name="prompt attention",
        kind="attention_prefill",
        count=count * above(shape.prompt_tokens, 0),
        flops=2 * heads * (attention.qk_head_dim + attention.v_head_dim) * shape.pairs,
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
        flops=2 * heads * (attention.kv_elements + rank) * shape.kv_tokens * (1 + shape.drafts),
        activation_bytes=ACTIVATION_BYTES
        * shape.decode_tokens
        * heads
        * (attention.kv_elements + rank),
        kv_bytes=kv_bytes * (shape.kv_tokens + shape.decode_tokens),
    )
    yield gemm(
        step, "attention output", count, inner=heads * attention.v_head_dim, columns=step.hidden
    )
