"""The words a step is described in: what it works on, and one operator of it.

`Op.buffer_bytes` is what one rank would hold if nothing were sharded: an all-gather ends with it, a reduce-scatter starts
with it, an all-reduce does both. In an all-to-all it is what one rank hands out in all, its own share included. Every
quantity may be a numpy array, and they broadcast.
"""

from dataclasses import dataclass
from typing import Final, Literal

from polypod.workload.layout import AnyLayout
from polypod.workload.precision import KEPT, Precision, element_bytes
from polypod.workload.reals import Reals

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

ACTIVATION_BYTES: Final = 2.0
"""Activations travel in bf16, in HBM and between ranks; only the dispatch to experts is quantised."""


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
    variant: str = ""  # of its kernels: the type of stored weights, or the kind of attention
    rows: Reals = 0.0  # that share one matrix or one context; 0: not told
    flops: Reals = 0.0
    weight_bytes: Reals = 0.0
    activation_bytes: Reals = 0.0
    kv_bytes: Reals = 0.0
    pattern: Pattern | None = None
    group: Group | None = None
    buffer_bytes: Reals = 0.0
    copies: Reals = 1.0  # ranks that a token is sent to, of an exchange that sends many at once
    layers: int | None = None  # which kind of layer it is part of; None: of none

    """`rows` are the tokens of an expert, the tokens of a prompt, or the queries that read one cached key."""

    @property
    def hbm_bytes(self) -> Reals:
        return self.weight_bytes + self.activation_bytes + self.kv_bytes

    def within(self, layers: int) -> "Op":
        """The same as part of one kind of layer; written out, since it is done for every operator of every step."""
        return Op(
            name=self.name,
            kind=self.kind,
            count=self.count,
            dtype=self.dtype,
            variant=self.variant,
            rows=self.rows,
            flops=self.flops,
            weight_bytes=self.weight_bytes,
            activation_bytes=self.activation_bytes,
            kv_bytes=self.kv_bytes,
            pattern=self.pattern,
            group=self.group,
            buffer_bytes=self.buffer_bytes,
            copies=self.copies,
            layers=layers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What every operator of a step needs to know."""

    hidden: int
    layout: AnyLayout
    precision: Precision  # of all matrices here but the routed experts'
    shape: StepShape
    experts: Precision


def gemm(step: Step, name: str, count: Reals, *, inner: Reals, columns: Reals) -> Op:
    rows = step.shape.tokens
    return Op(
        name=name,
        kind="gemm",
        count=count,
        dtype=step.precision.compute_dtype,
        variant=step.precision.weights,
        flops=2.0 * rows * inner * columns,
        weight_bytes=element_bytes(step.precision.weights) * inner * columns,
        activation_bytes=ACTIVATION_BYTES * rows * (inner + columns),
    )


def collective(
    name: str,
    count: Reals,
    pattern: Pattern,
    group: Group,
    buffer_bytes: Reals,
    *,
    copies: Reals = 1.0,
) -> Op:
    return Op(
        name=name,
        kind="collective",
        count=count,
        pattern=pattern,
        group=group,
        buffer_bytes=buffer_bytes,
        copies=copies,
    )
