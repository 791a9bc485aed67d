"""Step times of engines on CPU cores: a shipped calibration, scaled by what this host measured.

On a CPU the engines' kernels differ more than the cores do (one decodes eight streams in the time another takes for two), so
a calibration holds each engine's step time at several token counts on a reference host, beside that host's own GEMM rate
and memory bandwidth. On another host, for another model,

    seconds(T) = reference_seconds(T) * work_ratio * ( m * reference_bandwidth / bandwidth
                                                     + (1 - m) * reference_gemm / gemm )

where `m` is the share of the step that waits for memory and `work_ratio` the model's matrix parameters against the
reference model's. Cache reads scale with KV bytes and bandwidth, prompt attention with its FLOPs and the GEMM rate.
Left out: hyper-threads, frequency under load, NUMA traffic of a group that spans nodes.
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal

from polypod.catalog.schema import Strict
from polypod.cost.calibration import Case, of
from polypod.cost.measured import Triple
from polypod.cost.shipped import shipped
from polypod.cost.steptime import StepTime
from polypod.errors import InputError

CpuClass = Literal["x86-amx", "x86-avx512", "x86-avx2", "arm-neon", "other"]


class HostRates(Strict, frozen=True, kw_only=True):
    """What one group of cores measured: the two numbers a step time is scaled by."""

    cpu_class: CpuClass
    cpu: str
    cores: int
    gemm_flops_per_s: float  # fp32, over all the cores of the group
    read_bytes_per_s: float  # a model-sized buffer, over all the cores of the group
    measured_utc: str


class Knot(Strict, frozen=True, kw_only=True):
    """Median seconds of a step of `tokens` tokens on the reference host."""

    tokens: int
    seconds: float
    memory_share: float


class Reference(Strict, frozen=True, kw_only=True):
    """Where the knots were measured."""

    cpu: str
    cpu_class: CpuClass
    cores: int
    gemm_flops_per_s: float
    read_bytes_per_s: float
    model: str
    matrix_parameters: float
    kv_bytes_per_token: float
    attention_flops_per_pair: float


class CpuCalibration(Strict, frozen=True, kw_only=True):
    """One engine on one class of CPU."""

    engine: str
    engine_version: str
    cpu_class: CpuClass
    measured_utc: str
    source: str
    reference: Reference
    knots: tuple[Knot, ...]
    kv_token_s: float
    pair_s: float
    sequence_s: float
    first_token_s: Triple  # what a request costs outside its steps: template, tokeniser, HTTP
    band: Triple  # factors on time: fast, likely, slow
    load_s: float
    hop_s: float = (
        0.0  # what a stage of a pipeline takes beside its part of a step, to hand a micro-batch on
    )


class HandoverRates(Strict, frozen=True, kw_only=True):
    """How fast an engine writes a cache to a file in memory, and reads one: latency_s + bytes / bytes_per_s."""

    engine: str
    engine_version: str
    measured_utc: str
    source: str
    save_latency_s: Triple
    save_bytes_per_s: Triple
    restore_latency_s: Triple
    restore_bytes_per_s: Triple


class EngineModel(Strict, frozen=True, kw_only=True):
    """What an engine's step time depends on, of a model."""

    matrix_parameters: float
    kv_bytes_per_token: float
    attention_flops_per_pair: float


def cpu_class(features: Sequence[str], machine: str) -> CpuClass:
    """Sort a CPU by the widest matrix or vector unit engines use.

    >>> cpu_class(["avx2", "avx512f", "amx_int8"], "x86_64"), cpu_class(["avx2"], "x86_64")
    ('x86-amx', 'x86-avx2')
    """
    have = set(features)
    if machine in {"aarch64", "arm64"}:
        return "arm-neon"
    if "amx_int8" in have or "amx_bf16" in have:
        return "x86-amx"
    if "avx512f" in have:
        return "x86-avx512"
    return "x86-avx2" if "avx2" in have else "other"


def calibration_for(engine: str, wanted: CpuClass) -> tuple[CpuCalibration, bool]:
    """The engine's calibration on this class of CPU, and whether it is of that very class.

    Raises `InputError` where the engine has none at all.
    """
    own = [one for one in _shipped() if one.engine == engine]
    if not own:
        known = ", ".join(sorted({one.engine for one in _shipped()}))
        msg = f"no CPU calibration for engine {engine!r}; there are some for {known}"
        raise InputError(msg)
    for one in own:
        if one.cpu_class == wanted:
            return one, True
    return own[0], False


def handover_rates(engine: str) -> HandoverRates | None:
    """What was measured of the engine's hand-over between processes of one host; None where it has none."""
    return next((one for one in shipped("handover-", HandoverRates) if one.engine == engine), None)


def cpu_step_time(
    calibration: CpuCalibration, host: HostRates, model: EngineModel, case: Case
) -> StepTime:
    """The step time of an engine on these cores; on a foreign CPU class the band is taken twice."""
    reference = calibration.reference
    slower_memory = reference.read_bytes_per_s / host.read_bytes_per_s
    slower_gemm = reference.gemm_flops_per_s / host.gemm_flops_per_s
    work = model.matrix_parameters / reference.matrix_parameters
    factor = of(calibration.band, case)
    if host.cpu_class != calibration.cpu_class:
        factor = factor**2
    return StepTime(
        tokens=tuple(knot.tokens for knot in calibration.knots),
        seconds=tuple(
            factor
            * knot.seconds
            * work
            * (knot.memory_share * slower_memory + (1 - knot.memory_share) * slower_gemm)
            for knot in calibration.knots
        ),
        kv_token_s=factor
        * calibration.kv_token_s
        * slower_memory
        * (model.kv_bytes_per_token / reference.kv_bytes_per_token),
        pair_s=factor
        * calibration.pair_s
        * slower_gemm
        * (model.attention_flops_per_pair / reference.attention_flops_per_pair),
        sequence_s=factor * calibration.sequence_s * slower_gemm,
    )


@cache
def _shipped() -> tuple[CpuCalibration, ...]:
    return shipped("cpu-", CpuCalibration)
