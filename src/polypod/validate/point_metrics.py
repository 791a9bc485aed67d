"""What each metric of a point comes to on a rank: serving from whole steps, kernels and exchanges from one operator."""

from collections.abc import Callable
from typing import Final

import msgspec

from polypod.cost.calibration import of
from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour, Load, Times, closed_loop
from polypod.engine.settings import launched_kernels
from polypod.errors import InputError
from polypod.plan.search import mean_pairs
from polypod.validate.point_timing import Timing
from polypod.validate.points import Metric
from polypod.workload.ops import ACTIVATION_BYTES, Op, Pattern, collective
from polypod.workload.precision import Precision, element_bytes

LARGE: Final = 16384.0
"""Rows, columns and depth of a matrix product that no chip on record finds small."""


def value_of(timing: Timing) -> float:
    """The point's metric, predicted in its unit."""
    return _VALUES[timing.point.metric](timing)


def _decode_tokens_per_s(timing: Timing) -> float:
    point = timing.point
    batch = point.number("sequences_per_rank")
    given = point.numbers.get("tokens_per_step", 1.0)
    step_s = timing.deployment.step_s(
        sequences=batch,
        kv_tokens=batch * point.number("context_tokens"),
        drafts=1.0 if given > 1 else 0.0,
        case=timing.case,
    )
    return float(batch * given / step_s) * timing.share


def _prefill_tokens_per_s(timing: Timing) -> float:
    tokens = timing.point.number("tokens_per_rank")
    pairs = mean_pairs(tokens, timing.point.number("context_tokens"))
    step_s = timing.deployment.step_s(prompt_tokens=tokens, pairs=pairs, case=timing.case)
    return float(tokens / step_s) * timing.share


def _tpot_ms(timing: Timing) -> float:
    return 1e3 * _times(timing, timing.point.number("concurrency")).tpot_s


def _ttft_ms(timing: Timing) -> float:
    return 1e3 * _times(timing, timing.point.number("concurrency")).ttft_s


def _output_tokens_per_s(timing: Timing) -> float:
    return _together(timing, timing.point.number("concurrency"))


def _offline_output_tokens_per_s(timing: Timing) -> float:
    point, deployment = timing.point, timing.deployment
    context = point.number("input_tokens") + point.number("output_tokens")
    held = deployment.memory().tokens_of(context) // context * point.layout.dp
    if held < 1:
        msg = f"no sequence of {context:g} tokens fits beside the weights of {point.model} on {point.layout.world} ranks of {point.chip}"
        raise InputError(msg)
    return _together(timing, min(held, point.numbers.get("concurrency", held)))


def _together(timing: Timing, clients: float) -> float:
    output = timing.point.number("output_tokens")
    times = _times(timing, clients)
    return clients * output / (times.ttft_s + output * times.tpot_s)


def _times(timing: Timing, clients: float) -> Times:
    point = timing.point
    load = Load(
        input_tokens=point.number("input_tokens"),
        output_tokens=point.number("output_tokens"),
        concurrency=clients,
    )
    behaviour = Behaviour(
        exclusive_prefill=point.backend == "sglang",
        tokens_per_step=point.numbers.get("tokens_per_step", 1.0),
    )
    return closed_loop(_step_time(timing), load, behaviour)


def _step_time(timing: Timing) -> StepTime:
    """No step is shorter than the host takes to launch its kernels, where it launches them one by one."""
    step = timing.deployment.step_time(timing.case)
    if "eager" not in timing.point.numbers:
        return step
    each_s = of(timing.rank.calibration.engine.kernel_launch_s, timing.case)
    least_s = each_s * launched_kernels(timing.deployment.model)
    return msgspec.structs.replace(
        step, seconds=tuple(max(seconds, least_s) for seconds in step.seconds)
    )


def _gemm_flops_per_s(timing: Timing) -> float:
    point = timing.point
    rows, columns, inner = (point.number(name) for name in ("m", "n", "k"))
    return _matrices(timing, rows, columns, inner, point.numbers.get("groups", 0.0))


def _matmul_flops_per_s(timing: Timing) -> float:
    return _matrices(timing, LARGE, LARGE, LARGE, 0.0)


def _matrices(timing: Timing, rows: float, columns: float, inner: float, groups: float) -> float:
    """Of one matrix by the curve of GEMMs, of `groups` by that of experts."""
    precision = Precision(weights=timing.point.weights or "bf16", kv="bf16")
    times = max(groups, 1.0)
    op = Op(
        name="matrix product",
        kind="moe" if groups else "gemm",
        count=1.0,
        dtype=precision.compute_dtype,
        variant=precision.weights,
        rows=rows if groups else 0.0,
        flops=2 * times * rows * columns * inner,
        weight_bytes=times * element_bytes(precision.weights) * columns * inner,
        activation_bytes=times * ACTIVATION_BYTES * rows * (columns + inner),
    )
    return float(op.flops / timing.kernel_s(op))


def _attention(timing: Timing) -> Op:
    batch = timing.point.number("sequences_per_rank")
    ops = timing.deployment.ops(
        sequences=batch,
        kv_tokens=batch * timing.point.number("context_tokens"),
        drafts=timing.point.numbers.get("tokens_per_step", 1.0) - 1,
    )
    return _named(ops, "decode attention", timing)


def _attention_flops_per_s(timing: Timing) -> float:
    op = _attention(timing)
    return float(op.flops / timing.kernel_s(op))


def _attention_bytes_per_s(timing: Timing) -> float:
    op = _attention(timing)
    return float(op.hbm_bytes / timing.kernel_s(op))


def _copy_bytes_per_s(timing: Timing) -> float:
    moved = 2 * timing.point.number("buffer_bytes")
    op = Op(name="copy", kind="elementwise", count=1.0, activation_bytes=moved)
    return moved / timing.kernel_s(op)


def _collective_s(pattern: Pattern) -> Callable[[Timing], float]:
    def seconds(timing: Timing) -> float:
        buffer_bytes = timing.point.number("buffer_bytes")
        return timing.exchange_s(collective("exchange", 1.0, pattern, "tp", buffer_bytes))

    return seconds


def _bus_bytes_per_s(timing: Timing) -> float:
    ranks = timing.point.layout.tp
    crossing = 2 * (ranks - 1) / ranks * timing.point.number("buffer_bytes")
    return crossing / _collective_s("all_reduce")(timing)


def _to_experts(timing: Timing, name: str) -> Op:
    """The exchange of `tokens_per_rank`, decoded ones up to as many as engines decode with."""
    tokens = timing.point.number("tokens_per_rank")
    return _named(timing.deployment.ops(sequences=tokens), name, timing)


def _named(ops: list[Op], name: str, timing: Timing) -> Op:
    found = next((op for op in ops if op.name == name), None)
    if found is None:
        msg = f"a step of {timing.point.model} in this layout has no {name}"
        raise InputError(msg)
    return found


def _exchange_s(name: str) -> Callable[[Timing], float]:
    return lambda timing: timing.exchange_s(_to_experts(timing, name))


def _exchange_bytes_per_s(name: str) -> Callable[[Timing], float]:
    def bytes_per_s(timing: Timing) -> float:
        op = _to_experts(timing, name)
        return float(op.buffer_bytes / timing.exchange_s(op))

    return bytes_per_s


_VALUES: Final[dict[Metric, Callable[[Timing], float]]] = {
    "decode_tokens_per_s": _decode_tokens_per_s,
    "prefill_tokens_per_s": _prefill_tokens_per_s,
    "tpot_ms": _tpot_ms,
    "ttft_ms": _ttft_ms,
    "output_tokens_per_s": _output_tokens_per_s,
    "offline_output_tokens_per_s": _offline_output_tokens_per_s,
    "gemm_flops_per_s": _gemm_flops_per_s,
    "matmul_flops_per_s": _matmul_flops_per_s,
    "attention_flops_per_s": _attention_flops_per_s,
    "attention_bytes_per_s": _attention_bytes_per_s,
    "copy_bytes_per_s": _copy_bytes_per_s,
    "all_reduce_s": _collective_s("all_reduce"),
    "all_gather_s": _collective_s("all_gather"),
    "reduce_scatter_s": _collective_s("reduce_scatter"),
    "all_to_all_s": _collective_s("all_to_all"),
    "bus_bytes_per_s": _bus_bytes_per_s,
    "dispatch_s": _exchange_s("dispatch"),
    "combine_s": _exchange_s("combine"),
    "dispatch_bytes_per_s": _exchange_bytes_per_s("dispatch"),
    "combine_bytes_per_s": _exchange_bytes_per_s("combine"),
}
