"""What this machine's cores really do: matrix products and memory traffic, measured in a few seconds.

    flops_per_s = 2 M N K / s       of C_MN = A_MK B_KN, both matrices warm
    bytes_per_s = bytes moved / s   a read counts each byte once, a copy twice (once read, once written)

A rate is the median of repeated samples, with the lowest and the highest beside it. A type is measured only where the
library says that it ran in that type (OpenVINO falls back silently); otherwise it is absent, with the reason. Each run is a
process of its own, bound to its cores before any thread pool exists:

    python -m polypod.serve.devices.measure --cores 0,1
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal, TypeAlias

import msgspec

from polypod.errors import RunError
from polypod.serve.devices.cpu import HostCpu, find_cpu
from polypod.serve.engines.spec import installed_version

Library: TypeAlias = Any  # its objects carry no types that a checker can follow

_LIBRARIES: Final = ("numpy", "openvino")
_ROWS: Final = 512  # M: a prompt's tokens
_INNER: Final = 2048  # K = N
_SMALL_BUFFER_BYTES: Final = (
    128 << 20
)  # about the weights of a small model, which a large cache may hold
_LARGEST_BUFFER_BYTES: Final = 2 << 30
_RUNTIME_NAMES: Final = {"bf16": "bf16", "fp16": "f16", "int8": "i8"}  # ours, OpenVINO's
_HINTS: Final = {"bf16": "bf16", "fp16": "f16", "int8": "f32"}


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """A rate, from several samples."""

    median: float
    lowest: float
    highest: float
    samples: int

    @property
    def spread_of_median(self) -> float:
        """How far the samples lie apart, as a share of the median."""
        return (self.highest - self.lowest) / self.median


class GemmRate(msgspec.Struct, frozen=True, kw_only=True):
    """Matrix products in one data type on so many cores."""

    dtype: str
    threads: int
    flops_per_s: Sampled
    kernel: str  # what ran, as its library names it


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """Memory traffic of so many cores over one buffer."""

    kind: Literal["read", "copy"]
    threads: int
    buffer_bytes: int
    exceeds_cache: bool  # larger than the last-level cache, or that cache is unknown
    bytes_per_s: Sampled


class HostMeasurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One core and all of them, measured on this machine."""

    kind: Literal["measured"] = "measured"
    at: datetime
    cpu: str
    kernel: str  # of the operating system
    cores: tuple[int, ...]
    versions: dict[str, str]
    gemm: tuple[GemmRate, ...]
    bandwidth: tuple[Bandwidth, ...]
    absent: dict[str, str]  # data type: why it is not here
    seconds: float
    busy_elsewhere: float = 0.0  # share of these cores' time that other processes took meanwhile

    def gemm_rate(self, dtype: str, threads: int) -> GemmRate | None:
        """The measured rate of a type; None where it is absent."""
        found = (g for g in self.gemm if g.dtype == dtype and g.threads == threads)
        return next(found, None)

    def read_bandwidth(self, threads: int, *, in_cache: bool) -> Bandwidth | None:
        """Reading a buffer of 128 MiB (`in_cache`), or the largest one measured."""
        found = [b for b in self.bandwidth if b.kind == "read" and b.threads == threads]
        found.sort(key=lambda b: b.buffer_bytes)
        return found[0 if in_cache else -1] if found else None


def versions() -> dict[str, str]:
    """The libraries a measurement depends on, where installed."""
    found = {name: installed_version(name) for name in _LIBRARIES}
    return {name: version for name, version in found.items() if version}


def measure_host(cores: Sequence[int]) -> HostMeasurement:
    """Measure one core, then all of `cores`, each in a process of its own. Raises `RunError` where that fails."""
    began_s, busy_s, own_s = time.monotonic(), _busy_s(cores), _children_s()
    parts = [_run(cores[:1])]
    if len(cores) > 1:
        parts.append(_run(cores))
    seconds = time.monotonic() - began_s
    others_s = _busy_s(cores) - busy_s - (_children_s() - own_s)
    return HostMeasurement(
        at=datetime.now(UTC),
        cpu=parts[0].cpu,
        kernel=platform.release(),
        cores=tuple(cores),
        versions=parts[0].versions,
        gemm=tuple(rate for part in parts for rate in part.gemm),
        bandwidth=tuple(rate for part in parts for rate in part.bandwidth),
        absent=parts[0].absent,
        seconds=seconds,
        busy_elsewhere=max(0.0, others_s / seconds / len(cores)),
    )


def _run(cores: Sequence[int]) -> HostMeasurement:
    names = ",".join(map(str, cores))
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, "-m", __name__, "--cores", names],
        env=os.environ | dict.fromkeys(pools, str(len(cores))),
        capture_output=True,
        check=False,
        timeout=120,
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        msg = f"measuring the cores {names} failed: {''.join(last)}"
        raise RunError(msg)
    return msgspec.json.decode(done.stdout, type=HostMeasurement)


def _measure(cores: Sequence[int], cpu: HostCpu) -> HostMeasurement:
    """In the bound process: every rate on exactly these cores."""
    began_s = time.monotonic()
    gemm, absent = _gemm_rates(len(cores))
    bandwidth = _bandwidths(len(cores), cpu)
    return HostMeasurement(
        at=datetime.now(UTC),
        cpu=cpu.model,
        kernel=platform.release(),
        cores=tuple(cores),
        versions=versions(),
        gemm=tuple(gemm),
        bandwidth=tuple(bandwidth),
        absent=absent,
        seconds=time.monotonic() - began_s,
    )


def _sample(work: Callable[[], object], amount: float, budget_s: float) -> Sampled:
    """`amount` per second, from 3 to 15 samples within about `budget_s`, after one to warm up."""
    work()
    rates: list[float] = []
    began_s = time.perf_counter()
    while len(rates) < 3 or (len(rates) < 15 and time.perf_counter() - began_s < budget_s):
        start_s = time.perf_counter()
        work()
        rates.append(amount / (time.perf_counter() - start_s))
    return Sampled(median=median(rates), lowest=min(rates), highest=max(rates), samples=len(rates))


def _gemm_rates(threads: int) -> tuple[list[GemmRate], dict[str, str]]:
    rates = [_blas_rate("fp32", threads), _blas_rate("fp64", threads)]
    absent = {}
    for dtype in _RUNTIME_NAMES:
        rate = _openvino_rate(dtype, threads)
        if isinstance(rate, GemmRate):
            rates.append(rate)
        else:
            absent[dtype] = rate
    return rates, absent


def _blas_rate(dtype: str, threads: int) -> GemmRate:
    import numpy as np

    number = {"fp32": np.float32, "fp64": np.float64}[dtype]
    numbers = np.random.default_rng(0)
    left_MK = numbers.standard_normal((_ROWS, _INNER)).astype(number)
    right_KN = numbers.standard_normal((_INNER, _INNER)).astype(number)
    out_MN = np.empty((_ROWS, _INNER), dtype=number)
    flops = 2 * _ROWS * _INNER * _INNER
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return GemmRate(
        dtype=dtype,
        threads=threads,
        flops_per_s=_sample(lambda: np.matmul(left_MK, right_KN, out=out_MN), flops, 0.2),
        kernel=f"{blas['name']} {blas['version']}",
    )


def _openvino_rate(dtype: str, threads: int) -> GemmRate | str:
    """The rate, or why there is none."""
    try:
        import openvino
    except ImportError:
        return "needs the package openvino"
    hints = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _HINTS[dtype],
        "NUM_STREAMS": 1,
    }
    compiled = openvino.Core().compile_model(_matmul_model(dtype), "CPU", hints)
    ran_in, kernel = _what_ran(compiled)
    if ran_in != _RUNTIME_NAMES[dtype]:
        return f"this CPU has no kernel for it: OpenVINO ran {kernel} in {ran_in}"
    request = compiled.create_infer_request()
    request.infer()
    flops = 2 * _ROWS * _INNER * _INNER
    return GemmRate(
        dtype=dtype,
        threads=threads,
        flops_per_s=_sample(request.infer, flops, 0.1),
        kernel=kernel,
    )


def _matmul_model(dtype: str) -> Library:
    """x_MK @ w_NK^T; for int8 both sides are quantised, the way a quantised network writes it."""
    import numpy as np
    import openvino
    import openvino.opset13 as op

    def constant(value: object) -> Library:
        return op.constant(np.asarray(value, dtype=np.float32))

    inputs = op.parameter([_ROWS, _INNER], np.float32)
    numbers = np.random.default_rng(0)
    if dtype != "int8":
        weights = constant(numbers.standard_normal((_INNER, _INNER), dtype=np.float32))
        return openvino.Model(
            [op.matmul(inputs, weights, transpose_a=False, transpose_b=True)], [inputs]
        )
    low, high = constant(-4.0), constant(4.0 - 8.0 / 256)
    rounded = op.fake_quantize(inputs, low, high, low, high, 256)
    whole = numbers.integers(-127, 127, (_INNER, _INNER), dtype=np.int8)
    scales = constant(np.full((_INNER, 1), 0.05))
    weights = op.multiply(op.convert(op.constant(whole), np.float32), scales)
    return openvino.Model(
        [op.matmul(rounded, weights, transpose_a=False, transpose_b=True)], [inputs]
    )


def _what_ran(compiled: Library) -> tuple[str, str]:
    """The type and the kernel of the matrix product in the compiled model."""
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: str(value.value) for key, value in node.get_rt_info().items()}
        if facts["layerType"] in ("FullyConnected", "MatMul", "Gemm"):
            return facts["runtimePrecision"], facts["primitiveType"]
    return "nothing", "no matrix product"


def _buffer_sizes(cpu: HostCpu) -> list[int]:
    """128 MiB, and twice the last-level cache where a quarter of the free memory, and 2 GiB, allow."""
    cache = cpu.last_level_cache_bytes or (256 << 20)
    room = min(cpu.usable_memory_bytes // 4, _LARGEST_BUFFER_BYTES)
    large = min(max(2 * cache, 2 * _SMALL_BUFFER_BYTES), room)
    return [size for size in (_SMALL_BUFFER_BYTES, large) if size <= room]


def _bandwidths(threads: int, cpu: HostCpu) -> list[Bandwidth]:
    import numpy as np

    sizes, cache = _buffer_sizes(cpu), cpu.last_level_cache_bytes
    source = np.ones(max(sizes, default=0) // 8, dtype=np.uint64)
    target = np.zeros(source.size // 2, dtype=np.uint64)
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for size in sizes:
            words = size // 8
            reads = np.array_split(source[:words], threads)
            copies = [np.array_split(each[: words // 2], threads) for each in (target, source)]
            work: dict[Literal["read", "copy"], Callable[[], object]] = {
                "read": partial(_wait, pool, np.add.reduce, reads),
                "copy": partial(
                    _wait, pool, np.copyto, *copies
                ),  # half of it, read once and written once
            }
            for kind, run in work.items():
                rate = Bandwidth(
                    kind=kind,
                    threads=threads,
                    buffer_bytes=size,
                    exceeds_cache=cache is None or size > cache,
                    bytes_per_s=_sample(run, size, 0.15),
                )
                rates.append(rate)
    return rates


def _wait(pool: ThreadPoolExecutor, function: Callable[..., object], *parts: list[Library]) -> None:
    list(pool.map(function, *parts))


def _busy_s(cores: Sequence[int]) -> float:
    """Seconds that these cores were busy since the machine started, whoever kept them so."""
    busy = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.removeprefix("cpu").isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, fields)
            busy += user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK")


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure the given cores; one JSON object on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cores", required=True)
    cores = [int(core) for core in parser.parse_args().cores.split(",")]
    cpu = find_cpu(Path("/"))
    os.sched_setaffinity(0, cores)
    sys.stdout.buffer.write(msgspec.json.encode(_measure(cores, cpu)) + b"\n")


if __name__ == "__main__":
    main()
