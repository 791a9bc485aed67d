"""The roofline states physics."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.cost.roofline import Roof, op_time, power_sum

positive = st.floats(1e-9, 1e9)


def test_the_crossover_sits_near_the_chip_intensity() -> None:
    # 1e15 / 4e12 = 250 flops per byte; at 2 bytes an element that is ~250 rows.
    roof = Roof(flops_per_s=1e15, hbm_bytes_per_s=4e12)

    def bound(rows: int) -> str:
        inner = 65536
        return op_time(
            flops=2.0 * rows * inner**2, hbm_bytes=2.0 * (inner**2 + 2 * rows * inner), roof=roof
        ).bound

    assert (bound(240), bound(260)) == ("memory", "compute")


@given(positive, positive, st.floats(1, 20))
def test_overlap_lies_between_the_larger_and_the_sum(
    one: float, other: float, exponent: float
) -> None:
    both = power_sum(one, other, exponent)
    assert (
        power_sum(one, other, math.inf) * (1 - 1e-9)
        <= both
        <= power_sum(one, other, 1) * (1 + 1e-9)
    )


def test_arrays_give_what_their_elements_give() -> None:
    flops = np.array([1e9, 1e12])
    roof = Roof(flops_per_s=1e15, hbm_bytes_per_s=4e12, fixed_s=3e-6, overlap=2.0)
    together = op_time(flops=flops, hbm_bytes=1e8, roof=roof).total_s
    apart = [op_time(flops=f, hbm_bytes=1e8, roof=roof).total_s for f in flops]
    assert together == pytest.approx(apart)


def test_a_kernel_with_nothing_to_do_is_bound_by_its_launch() -> None:
    time = op_time(
        flops=1.0, hbm_bytes=1.0, roof=Roof(flops_per_s=1e15, hbm_bytes_per_s=4e12, fixed_s=3e-6)
    )
    assert time.bound == "launch"
    assert power_sum(0.0, 0.0, 2.0) == 0.0
