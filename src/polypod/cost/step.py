"""The time of one engine step: every operator under its roof, every collective on its tiers, and the engine's own share.

    step_s = pp * (sum of count * op_s over one stage + engine_s) + sequence_s * sequences

Nothing overlaps but arithmetic with memory inside a kernel, unless the engine runs its batch as two halves. Then, of a layer
that sends tokens to experts and back, each half's exchange runs beside the other half's computation. With a what comes before
the experts (shared ones too), d the dispatch, m the experts and b the combine, of half a batch each,

    layer_s = max(a, d) + max(m, d) + max(m, b) + max(a, b)      instead of 2 (a + d + m + b)

at best; of the difference `LinkFit.hidden_fraction` is gained, because the two slow each other down. It is the one constant set to
what engines gain by it (LMSYS on 32 and 72 H100: 27 to 35 % in prefill, 25.5 % decoding 256 sequences a rank), not to what they reach.
Every half reads all weights, and an exchange that is handed on by the chip's own multiprocessors takes them from the
arithmetic (`LinkFit.busy_fraction`). The ends of the pipeline are left out: one half of one layer of 60. `floor_s` is what no kernel and no engine can beat: all
arithmetic at peak, all bytes at full bandwidth, all exchanges at port speed, the three perfectly overlapped.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from polypod.cost.calibration import Calibration, Case, of
from polypod.cost.chip import Rank
from polypod.cost.collective import (
    CollectiveTime,
    MeasuredLink,
    collective_time,
    measured_time,
    members_per_tier,
)
from polypod.cost.measured import GROUPED, KernelFit
from polypod.cost.roofline import Number, OpTime, op_time
from polypod.workload.forward import Op
from polypod.workload.layout import Layout
from polypod.workload.reals import plain, some

_LIBRARIES: Final = {
    "all_reduce": ("custom_all_reduce",),
    "dispatch": ("dispatch.ll", "dispatch.normal"),
    "combine": ("combine.ll", "combine.normal"),
}
"""Kernels beside NCCL's, by an operator's pattern, or in their place, by its name: sorting tokens by their experts is part of
the work there. Engines take the fastest for the size at hand."""

PEAK = KernelFit(
    flops_fraction=(1.0, 1.0, 1.0),
    bytes_fraction=(1.0, 1.0, 1.0),
    fixed_s=(0.0, 0.0, 0.0),
    overlap=float("inf"),
    source="the specification itself",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One operator of the step, timed. `count` is how often it runs in a stage's step."""

    name: str
    kind: str
    count: Number
    time: OpTime | CollectiveTime

    @property
    def total_s(self) -> Number:
        return self.count * self.time.total_s

    @property
    def limit(self) -> str:
        """What bounds it, in words (scalar times only)."""
        if isinstance(self.time, OpTime):
            return {"compute": "FLOPs", "memory": "HBM", "launch": "kernel launch"}[self.time.bound]
        return "link latency" if self.time.latency_s >= self.time.transfer_s else "link bandwidth"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """A step with its reasons kept."""

    parts: tuple[Part, ...]
    engine_s: float
    stages: int
    hidden_s: Number = 0.0  # of a stage's exchanges with experts, that pass while it computes

    @property
    def total_s(self) -> Number:
        return self.stages * (
            sum(part.total_s for part in self.parts) - self.hidden_s + self.engine_s
        )

    def shares(self) -> dict[str, float]:
        """Fraction of the step by what it waits for, largest first (scalar times only)."""
        seconds: defaultdict[str, float] = defaultdict(float)
        seconds["engine"] = self.engine_s
        sent_s = sum(float(part.total_s) for part in self.parts if part.kind == "all_to_all")
        for part in self.parts:
            seen = 1 - float(self.hidden_s) / sent_s if part.kind == "all_to_all" else 1.0
            seconds[f"{part.limit} ({part.kind})"] += seen * float(part.total_s)
        whole = sum(seconds.values())
        ranked = sorted(seconds.items(), key=lambda item: -item[1])
        return {name: value / whole for name, value in ranked if value > 0}

    @property
    def bound(self) -> str:
        """The three largest reasons, in words.

        Such as 'HBM (moe) 44 %, link bandwidth (all_to_all) 21 %, HBM (attention_decode) 17 %'.
        """
        largest = list(self.shares().items())[:3]
        return ", ".join(f"{name} {100 * share:.0f} %" for name, share in largest)


def step_cost(
    ops: Sequence[Op], rank: Rank, layout: Layout, case: Case, *, two_batches: bool = False
) -> StepCost:
    """Time the operators of one stage's step on the busiest rank; with `two_batches` they are those of either half."""
    parts = tuple(_part(op, rank, layout, case) for op in ops)
    hidden_s: Number = 0.0
    if two_batches:
        parts = tuple(_beside_exchanges(ops, parts, rank.calibration))
        gained = of(rank.calibration.all_to_all.hidden_fraction, case)
        hidden_s = gained * sum(_hidden_s(ops, parts, layers) for layers in _exchanging(ops))
        parts = tuple(replace(part, count=2 * part.count) for part in parts)
    return StepCost(
        parts=parts,
        engine_s=of(rank.calibration.engine.step_s, case),
        stages=layout.pp,
        hidden_s=hidden_s,
    )


def _exchanging(ops: Sequence[Op]) -> dict[int | None, Number]:
    """The kinds of layers that send tokens to experts, and the copies of a token that are sent on within a node."""
    return {op.layers: op.copies for op in ops if op.name == "dispatch"}


def _beside_exchanges(
    ops: Sequence[Op], parts: Sequence[Part], calibration: Calibration
) -> Iterator[Part]:
    """Computation beside an exchange that copies on within the node has the fewer multiprocessors."""
    exchanging = _exchanging(ops)
    for op, part in zip(ops, parts, strict=True):
        if op.layers not in exchanging or not isinstance(part.time, OpTime):
            yield part
            continue
        copied_on = np.asarray(exchanging[op.layers]) > 1
        left = 1 - np.where(copied_on, calibration.all_to_all.busy_fraction, 0.0)
        yield replace(part, time=replace(part.time, compute_s=plain(part.time.compute_s / left)))


def _hidden_s(ops: Sequence[Op], parts: Sequence[Part], layers: int | None) -> Number:
    """What two halves of a batch can hide of each other in one kind of layers."""
    spent: dict[str, Number] = {"dispatch": 0.0, "experts": 0.0, "combine": 0.0, "before": 0.0}
    for op, part in zip(ops, parts, strict=True):
        if op.layers == layers:
            name = op.name if op.name in spent else "before"
            spent[name] = spent[name] + part.total_s
    return plain(
        sum(
            np.minimum(spent[computed], spent[sent])
            for computed in ("before", "experts")
            for sent in ("dispatch", "combine")
        )
    )


def floor_s(ops: Sequence[Op], rank: Rank, layout: Layout) -> Number:
    """What nothing can beat on these specifications."""
    compute_s: Number = 0.0
    memory_s: Number = 0.0
    transfer_s: Number = 0.0
    for op in ops:
        if op.pattern is not None:
            ranks, stride = group_of(op, layout)
            links = rank.links(rank.calibration.reduction, "fast")
            full = [
                replace(link, latency_s=0.0, bytes_per_s=tier.bytes_per_s.value)
                for link, tier in zip(links, rank.tiers, strict=False)
                if tier.bytes_per_s is not None
            ]
            time = collective_time(
                op.pattern,
                op.buffer_bytes,
                ranks=ranks,
                links=full,
                stride=stride,
                copies=op.copies,
            )
            # a switch that reduces brings an all-reduce down to one pass
            passes = 0.5 if op.pattern == "all_reduce" else 1.0
            transfer_s = transfer_s + passes * op.count * time.transfer_s
            continue
        roof = rank.roof(PEAK, op.dtype, "likely")
        least = op_time(flops=op.flops, hbm_bytes=op.hbm_bytes, roof=roof)
        compute_s = compute_s + op.count * least.compute_s
        memory_s = memory_s + op.count * least.memory_s
    return layout.pp * np.maximum(np.maximum(compute_s, memory_s), transfer_s)


def group_of(op: Op, layout: Layout) -> tuple[int, int]:
    """How many ranks a collective joins, and how far apart they are numbered.

    Ranks are numbered tensor-parallel first, then data-parallel, then by pipeline stage; expert-parallel groups take every
    rank of a stage that the expert's own tensor-parallel slices leave.
    """
    stage = layout.tp * layout.dp * layout.cp
    return {
        "tp": (layout.tp, 1),
        "dp": (layout.dp, layout.tp),
        "ep": (layout.ep, max(stage // layout.ep, 1)),
        "pp": (2, stage),
    }[str(op.group)]


def _part(op: Op, rank: Rank, layout: Layout, case: Case) -> Part:
    if op.pattern is None:
        fit = fit_of(op, rank.calibration, layout)
        return Part(
            name=op.name, kind=op.kind, count=op.count, time=kernel_time(op, fit, rank, case)
        )
    return Part(
        name=op.name, kind=op.pattern, count=op.count, time=exchange_time(op, rank, layout, case)
    )


def kernel_time(op: Op, fit: KernelFit, rank: Rank, case: Case) -> OpTime:
    """One operator under its curve: arithmetic that few rows cannot fill, activations as often as they really cross."""
    flops = op.flops
    if fit.half_rows and some(op.rows):
        flops = flops * (1 + fit.half_rows / np.maximum(op.rows, 1.0))
    hbm_bytes = op.hbm_bytes + (fit.activation_factor - 1) * op.activation_bytes
    return op_time(flops=flops, hbm_bytes=hbm_bytes, roof=rank.roof(fit, op.dtype, case))


def exchange_time(op: Op, rank: Rank, layout: Layout, case: Case) -> CollectiveTime:
    """By the kernels measured within the nearest tier where they hold the group, else by tiers."""
    assert op.pattern is not None
    fits = rank.calibration
    link_fit = fits.all_to_all if op.pattern == "all_to_all" else fits.reduction
    ranks, stride = group_of(op, layout)
    links = rank.links(link_fit, case)
    if ranks > 1 and links and members_per_tier(ranks, links, stride)[0] == ranks:
        own = _measured(_LIBRARIES.get(op.name, ()), ranks, rank, case)
        several = (*_LIBRARIES.get(op.pattern, ()), op.pattern)
        curves = own or _measured(several, ranks, rank, case)
        if curves:
            return measured_time(op.pattern, op.buffer_bytes, ranks=ranks, curves=curves)
    return collective_time(
        op.pattern,
        op.buffer_bytes,
        ranks=ranks,
        links=links,
        stride=stride,
        launch_s=of(link_fit.launch_s, case),
        copies=op.copies if link_fit.once_per_node else 1.0,
    )


def _measured(names: Sequence[str], ranks: int, rank: Rank, case: Case) -> list[MeasuredLink]:
    return [curve for name in names if (curve := rank.measured(name, ranks, case))]


GROUPED_BEYOND_RANKS: Final = 8
"""Experts over more ranks than a node has are sent their tokens by an all-to-all, and engines multiply what arrives with grouped GEMMs of its
layout (SGLang and vLLM: DeepGEMM behind DeepEP; TensorRT-LLM: its own). Over fewer, every rank sorts all tokens for its general kernels."""


def fit_of(op: Op, calibration: Calibration, layout: Layout) -> KernelFit:
    """Which curve an operator lies under."""
    if op.kind in ("elementwise", "embedding"):
        return calibration.elementwise
    if op.kind in ("gemm", "moe"):
        keys: tuple[str, ...] = (f"{op.variant}-{op.dtype}", op.dtype)
        if op.kind == "moe" and layout.ep > GROUPED_BEYOND_RANKS:
            keys = (*(f"{GROUPED}{key}" for key in keys), *keys)
        return calibration.fit(op.kind, *keys)
    wide = op.variant.removesuffix("-fp8")
    nearest = ("gqa-128",) if wide.startswith("gqa") else ()
    return calibration.fit(op.kind, op.variant, wide, *nearest)
