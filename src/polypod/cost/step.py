"""The time of one engine step: every operator under its roof, every collective on its tiers, and the engine's own share.

    step_s = pp * (sum of count * op_s over one stage + engine_s) + sequence_s * sequences

The likely answer lets nothing overlap but arithmetic with memory inside a kernel; engines that overlap exchanges with
computation (two micro-batches) come out faster, inside the band. `floor_s` is what no kernel and no engine can beat: all
arithmetic at peak, all bytes at full bandwidth, all exchanges at port speed, the three perfectly overlapped.
"""

from collections import defaultdict
from collections.abc import Sequence
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
from polypod.cost.measured import KernelFit
from polypod.cost.roofline import Number, OpTime, op_time
from polypod.workload.forward import Op
from polypod.workload.layout import Layout

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

    @property
    def total_s(self) -> Number:
        return self.stages * (sum(part.total_s for part in self.parts) + self.engine_s)

    def shares(self) -> dict[str, float]:
        """Fraction of the step by what it waits for, largest first (scalar times only)."""
        seconds: defaultdict[str, float] = defaultdict(float)
        seconds["engine"] = self.engine_s
        for part in self.parts:
            seconds[f"{part.limit} ({part.kind})"] += float(part.total_s)
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


def step_cost(ops: Sequence[Op], rank: Rank, layout: Layout, case: Case) -> StepCost:
    """Time the operators of one stage's step on the busiest rank."""
    return StepCost(
        parts=tuple(_part(op, rank, layout, case) for op in ops),
        engine_s=of(rank.calibration.engine.step_s, case),
        stages=layout.pp,
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
        fit = fit_of(op, rank.calibration)
        return Part(
            name=op.name, kind=op.kind, count=op.count, time=kernel_time(op, fit, rank, case)
        )
    return Part(
        name=op.name, kind=op.pattern, count=op.count, time=exchange_time(op, rank, layout, case)
    )


def kernel_time(op: Op, fit: KernelFit, rank: Rank, case: Case) -> OpTime:
    """One operator under its curve: arithmetic that few rows cannot fill, activations as often as they really cross."""
    flops = op.flops
    if fit.half_rows and np.any(op.rows):
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


def fit_of(op: Op, calibration: Calibration) -> KernelFit:
    """Which curve an operator lies under."""
    if op.kind in ("elementwise", "embedding"):
        return calibration.elementwise
    if op.kind in ("gemm", "moe"):
        return calibration.fit(op.kind, f"{op.variant}-{op.dtype}", op.dtype)
    wide = op.variant.removesuffix("-fp8")
    nearest = ("gqa-128",) if wide.startswith("gqa") else ()
    return calibration.fit(op.kind, op.variant, wide, *nearest)
