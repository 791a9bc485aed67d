"""Time of one operator on one rank, from arithmetic and HBM traffic.

    compute_s = flops     / flops_per_s
    memory_s  = hbm_bytes / hbm_bytes_per_s
    total_s   = fixed_s + (compute_s ** p + memory_s ** p) ** (1 / p)

`p` says how well the two overlap: infinity is perfect overlap (the larger of the two, a lower bound), 1 is none (their sum,
an upper bound); measured GEMM kernels sit between, at 1 to 3. `fixed_s` is what a kernel takes with nothing to do: launch,
prologue, epilogue. Leaving it out is the largest error of a roofline on small steps (a factor of three on TPOT at batch 8).

Everything works on floats and on numpy arrays alike.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polypod.workload.reals import Reals

Floats = NDArray[np.float64]
Number = Reals


@dataclass(frozen=True, slots=True, kw_only=True)
class Roof:
    """What a rank offers one kind of operator at one data type, after efficiency."""

    flops_per_s: float
    hbm_bytes_per_s: float
    fixed_s: float = 0.0
    overlap: float = float("inf")  # the exponent p


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTime:
    """Both roofs and the fixed part are kept, so a report can say which one was hit."""

    compute_s: Number
    memory_s: Number
    fixed_s: Number
    overlap: float

    @property
    def total_s(self) -> Number:
        return self.fixed_s + power_sum(self.compute_s, self.memory_s, self.overlap)

    @property
    def bound(self) -> Literal["compute", "memory", "launch"]:
        """What takes most, for a scalar time."""
        parts = {"compute": self.compute_s, "memory": self.memory_s, "launch": self.fixed_s}
        return max(parts, key=lambda part: float(parts[part]))  # type: ignore[arg-type]


def op_time(*, flops: Number, hbm_bytes: Number, roof: Roof) -> OpTime:
    """Lay the work under the roof.

    One token through a 4096 x 4096 bf16 layer (33.6 MFLOP, 33.6 MB) on a 1 PFLOP/s, 4 TB/s chip is bound by reading
    the weights:

    >>> time = op_time(flops=2 * 4096**2, hbm_bytes=2 * 4096**2, roof=Roof(flops_per_s=1e15, hbm_bytes_per_s=4e12))
    >>> time.bound, round(time.total_s * 1e6, 1)
    ('memory', 8.4)
    """
    return OpTime(
        compute_s=flops / roof.flops_per_s,
        memory_s=hbm_bytes / roof.hbm_bytes_per_s,
        fixed_s=roof.fixed_s,
        overlap=roof.overlap,
    )


def power_sum(first: Number, second: Number, exponent: float) -> Number:
    """(a ** p + b ** p) ** (1 / p), without overflow; infinity is the maximum, 1 the sum.

    >>> power_sum(3.0, 4.0, 2.0), power_sum(3.0, 4.0, float("inf")), power_sum(3.0, 4.0, 1.0)
    (5.0, 4.0, 7.0)
    """
    larger = np.maximum(first, second)
    if np.isinf(exponent):
        return _plain(larger)
    safe = np.where(larger > 0, larger, 1.0)
    ratio = np.minimum(first, second) / safe
    return _plain(larger * (1 + ratio**exponent) ** (1 / exponent))


def _plain(value: Number) -> Number:
    return float(value) if np.ndim(value) == 0 else value
