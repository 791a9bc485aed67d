"""One real measurement of one core, and the physics it must obey."""

import pytest

from polypod.serve.devices import find_cpu
from polypod.serve.devices.measure import HostMeasurement, Sampled, measure_host


@pytest.fixture(scope="module")
def measured() -> HostMeasurement:
    return measure_host(find_cpu().cores[:1])


def test_a_core_has_rates_with_the_kernel_that_ran(measured: HostMeasurement) -> None:
    for dtype in ("fp32", "fp64"):
        rate = measured.gemm_rate(dtype, threads=1)
        assert rate is not None
        assert rate.flops_per_s.lowest <= rate.flops_per_s.median <= rate.flops_per_s.highest
        assert 1e9 < rate.flops_per_s.median < 1e13
        assert rate.kernel


def test_a_type_is_measured_or_absent_with_a_reason(measured: HostMeasurement) -> None:
    for dtype in ("bf16", "fp16", "int8"):
        assert (measured.gemm_rate(dtype, threads=1) is None) == bool(measured.absent.get(dtype))


def test_the_fastest_sample_in_single_precision_beats_double(measured: HostMeasurement) -> None:
    single, double = measured.gemm_rate("fp32", 1), measured.gemm_rate("fp64", 1)

    assert single is not None
    assert double is not None
    assert single.flops_per_s.highest > double.flops_per_s.highest


def test_memory_is_read_and_copied_within_reason(measured: HostMeasurement) -> None:
    for rate in measured.bandwidth:
        assert 1e8 < rate.bytes_per_s.median < 1e12
        assert rate.bytes_per_s.samples >= 3
    small, large = (measured.read_bandwidth(1, in_cache=here) for here in (True, False))
    assert small is not None
    assert large is not None
    assert small.buffer_bytes == 128 << 20
    assert large.buffer_bytes > small.buffer_bytes


def test_it_says_what_it_was_measured_on(measured: HostMeasurement) -> None:
    assert measured.kind == "measured"
    assert measured.cores == find_cpu().cores[:1]
    assert "numpy" in measured.versions
    assert measured.at.tzinfo is not None
    assert 0 <= measured.busy_elsewhere <= 1


def test_the_spread_is_a_share_of_the_median() -> None:
    assert Sampled(median=4.0, lowest=3.0, highest=5.0, samples=3).spread_of_median == 0.5
