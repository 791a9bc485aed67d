"""CPU calibrations: what scales with what."""

import msgspec
import pytest

from polypod.cost.cpu import EngineModel, HostRates, calibration_for, cpu_class, cpu_step_time
from polypod.errors import InputError

CALIBRATION, _ = calibration_for("llama.cpp", "x86-amx")
REFERENCE = CALIBRATION.reference
SAME_HOST = HostRates(
    cpu_class=REFERENCE.cpu_class,
    cpu=REFERENCE.cpu,
    cores=REFERENCE.cores,
    gemm_flops_per_s=REFERENCE.gemm_flops_per_s,
    read_bytes_per_s=REFERENCE.read_bytes_per_s,
    measured_utc="2026-01-01T00:00:00+00:00",
)
SAME_MODEL = EngineModel(
    matrix_parameters=REFERENCE.matrix_parameters,
    kv_bytes_per_token=REFERENCE.kv_bytes_per_token,
    attention_flops_per_pair=REFERENCE.attention_flops_per_pair,
)


@pytest.mark.parametrize("engine", ["llama.cpp", "openvino"])
def test_the_reference_host_and_model_get_back_what_was_measured(engine: str) -> None:
    calibration, is_own = calibration_for(engine, "x86-amx")
    reference = calibration.reference
    host = msgspec.structs.replace(
        SAME_HOST,
        gemm_flops_per_s=reference.gemm_flops_per_s,
        read_bytes_per_s=reference.read_bytes_per_s,
    )
    model = EngineModel(
        matrix_parameters=reference.matrix_parameters,
        kv_bytes_per_token=reference.kv_bytes_per_token,
        attention_flops_per_pair=reference.attention_flops_per_pair,
    )
    step = cpu_step_time(calibration, host, model, "likely")
    assert is_own
    assert step.data_ranks == 1
    for knot in calibration.knots:
        assert step.curve_s(knot.tokens) == pytest.approx(knot.seconds)
    assert step.kv_token_s == pytest.approx(calibration.kv_token_s)
    assert step.pair_s == pytest.approx(calibration.pair_s)


def test_cores_twice_as_fast_in_both_rates_take_half_the_time() -> None:
    fast = msgspec.structs.replace(
        SAME_HOST,
        gemm_flops_per_s=2 * SAME_HOST.gemm_flops_per_s,
        read_bytes_per_s=2 * SAME_HOST.read_bytes_per_s,
    )
    once, twice = (
        cpu_step_time(CALIBRATION, host, SAME_MODEL, "likely") for host in (SAME_HOST, fast)
    )
    arguments = {"tokens": 64, "kv_tokens": 1000, "pairs": 5000, "sequences": 4}
    assert twice.step_s(**arguments) == pytest.approx(once.step_s(**arguments) / 2)


def test_more_bandwidth_alone_helps_small_steps_more_than_large_ones() -> None:
    wide = msgspec.structs.replace(SAME_HOST, read_bytes_per_s=4 * SAME_HOST.read_bytes_per_s)
    once, four = (
        cpu_step_time(CALIBRATION, host, SAME_MODEL, "likely") for host in (SAME_HOST, wide)
    )
    small, large = (four.curve_s(tokens) / once.curve_s(tokens) for tokens in (1, 512))
    assert small < large <= 1.0


def test_a_model_ten_times_as_large_takes_ten_times_as_long_per_token() -> None:
    large = msgspec.structs.replace(SAME_MODEL, matrix_parameters=10 * SAME_MODEL.matrix_parameters)
    one, ten = (
        cpu_step_time(CALIBRATION, SAME_HOST, model, "likely") for model in (SAME_MODEL, large)
    )
    assert ten.curve_s(1) == pytest.approx(10 * one.curve_s(1))


def test_the_band_is_ordered_and_wider_on_a_foreign_class_of_cpu() -> None:
    foreign = msgspec.structs.replace(SAME_HOST, cpu_class="arm-neon")
    for host, power in ((SAME_HOST, 1), (foreign, 2)):
        fast, likely, slow = (
            cpu_step_time(CALIBRATION, host, SAME_MODEL, case).curve_s(1)
            for case in ("fast", "likely", "slow")
        )
        assert fast < likely < slow
        assert slow / likely == pytest.approx((CALIBRATION.band[2] / CALIBRATION.band[1]) ** power)


def test_an_engine_without_calibration_says_which_have_one() -> None:
    with pytest.raises(InputError, match=r"no CPU calibration for engine 'tgi'.*llama\.cpp"):
        calibration_for("tgi", "x86-amx")
    _, is_own = calibration_for("openvino", "arm-neon")
    assert not is_own


def test_a_cpu_is_sorted_by_its_widest_unit() -> None:
    assert cpu_class(["avx2", "avx512f"], "x86_64") == "x86-avx512"
    assert cpu_class([], "x86_64") == "other"
    assert cpu_class(["neon", "sve"], "aarch64") == "arm-neon"
