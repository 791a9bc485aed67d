"""Pipelines over unlike cores of a host."""

import itertools
from dataclasses import replace

import msgspec
import pytest

from polypod.cost.cpu import calibration_for
from polypod.errors import InputError
from polypod.plan.host import CoreGroup, LocalEngine, engine_model, step_times
from polypod.plan.host_stages import (
    HostStage,
    host_stages,
    plan_host_stages,
    pool_step_times,
)
from polypod.plan.predict import pool_replicas
from polypod.plan.spec import Plan, PoolStage, check
from tests.plan.test_host import LLAMA_CPP, LOCAL, MODEL, RATES

VLLM = LocalEngine(name="vllm", version="1", kv_bytes_per_element=4.0, max_step_tokens=512)
SHAPE = engine_model(MODEL, 4.0)
OWN = msgspec.structs.replace(RATES, cpu_class="x86-avx512")  # where vLLM was calibrated
FP32 = replace(LOCAL, weight_format="fp32")


def group(core: int, speed: float = 1.0) -> CoreGroup:
    rates = msgspec.structs.replace(
        OWN,
        gemm_flops_per_s=speed * RATES.gemm_flops_per_s,
        read_bytes_per_s=speed * RATES.read_bytes_per_s,
    )
    return CoreGroup(cores=(core,), rates=rates)


def plan(*groups: CoreGroup) -> Plan:
    return plan_host_stages(FP32, groups, VLLM, free_memory_bytes=20e9)


def layers(made: Plan) -> list[tuple[str, int]]:
    return [(stage.on, stage.layers) for stage in made.services[0].pools[0].stages]


def stage_s(stage: HostStage, tokens: int) -> float:
    """Worked anew from the calibration's knot: bytes by matrices, the rest by layers."""
    calibration, _ = calibration_for("vllm", OWN.cpu_class)
    (knot,) = (one for one in calibration.knots if one.tokens == tokens)
    reference = calibration.reference
    memory = knot.memory_share * stage.matrix_share * reference.read_bytes_per_s / stage.rates.read_bytes_per_s  # fmt: skip
    rest = (1 - knot.memory_share) * stage.layer_share * reference.gemm_flops_per_s / stage.rates.gemm_flops_per_s  # fmt: skip
    return knot.seconds * (memory + rest) + calibration.hop_s


def test_the_head_counts_so_that_equal_cores_get_unequal_layers() -> None:
    """Of 134.5 M the head is 28.3 M, but here less than half of a step is bytes: it weighs as three layers."""
    assert layers(plan(group(0), group(1))) == [("cores0", 17), ("cores1", 13)]


def test_a_slower_half_gets_fewer_layers_and_no_other_spread_has_a_faster_slowest_stage() -> None:
    made = plan(group(0), group(1, speed=0.5))
    pool = made.services[0].pools[0]

    def slowest_s(stages: tuple[PoolStage, ...]) -> float:
        return max(stage_s(one, 4) for one in host_stages(MODEL, stages, made.fleet))

    best_s = slowest_s(pool.stages)
    for (first, second), n in itertools.product(itertools.permutations(("cores0", "cores1")), range(1, 30)):  # fmt: skip
        other = (PoolStage(on=first, layers=n), PoolStage(on=second, layers=30 - n))
        assert best_s <= slowest_s(other) + 1e-12
    held = dict(layers(made))
    assert held["cores0"] > 1.5 * held["cores1"]


def test_three_groups_share_all_layers() -> None:
    made = layers(plan(group(0), group(1), group(2, speed=2.0)))
    assert sum(n for _, n in made) == 30
    assert len({name for name, _ in made}) == 3
    assert all(n >= 1 for _, n in made)


def test_the_plan_holds_against_itself_and_is_read_as_one_replica() -> None:
    made = plan(group(0), group(1))
    check(made)
    (up,) = pool_replicas(made)

    assert up.replica == "vllm-stages-0"
    assert up.step_time.stages == 2
    assert made.services[0].pools[0].layout.pp == 2
    assert made.services[0].pools[0].predicted.tokens_per_s_per_accelerator > 0


def test_one_sequence_passes_every_stage_and_a_full_round_waits_for_the_slowest() -> None:
    made = plan(group(0), group(1, speed=0.7))
    pool = made.services[0].pools[0]
    _, times = pool_step_times(MODEL, pool, made.fleet)
    found = host_stages(MODEL, pool.stages, made.fleet)

    assert times["likely"].curve_s(1) == pytest.approx(sum(stage_s(one, 1) for one in found))
    assert times["likely"].curve_s(16) == pytest.approx(2 * max(stage_s(one, 8) for one in found))
    assert sum(one.matrix_share for one in found) == pytest.approx(1)
    assert sum(one.layer_share for one in found) == pytest.approx(1)


def test_a_prompt_passes_every_stage_with_its_own_part_of_the_attention() -> None:
    """Of equal halves: what the whole takes, and half of a head more or less at the slowest stage, twice."""
    made = plan(group(0), group(1))
    _, times = pool_step_times(MODEL, made.services[0].pools[0], made.fleet)
    whole = step_times("vllm", OWN, SHAPE)[1]["likely"]
    assert times["likely"].prompt_s(255) == pytest.approx(whole.prompt_s(255), rel=0.2)
    assert 2 * times["likely"].pair_s == pytest.approx(whole.pair_s)


def test_two_stages_serve_many_sequences_faster_than_one_half_alone() -> None:
    made = plan(group(0), group(1))
    pool = made.services[0].pools[0]
    _, times = pool_step_times(MODEL, pool, made.fleet)
    whole = step_times("vllm", OWN, SHAPE)[1]["likely"]
    assert times["likely"].curve_s(64) < 0.8 * whole.curve_s(64)


def test_the_band_is_the_engines_own() -> None:
    made = plan(group(0), group(1))
    _, times = pool_step_times(MODEL, made.services[0].pools[0], made.fleet)
    calibration, _ = calibration_for("vllm", OWN.cpu_class)
    assert times["slow"].curve_s(1) - 2 * calibration.hop_s == pytest.approx(
        calibration.band[2] * (times["likely"].curve_s(1) - 2 * calibration.hop_s)
    )


@pytest.mark.parametrize("count", [1, 5])
def test_a_pipeline_has_two_to_four_stages(count: int) -> None:
    with pytest.raises(InputError, match=f"2 to 4 stages, {count} groups of cores are given"):
        plan(*(group(n) for n in range(count)))


def test_an_engine_that_runs_no_pipeline_is_refused_with_one_that_does() -> None:
    with pytest.raises(InputError, match=r"'llama\.cpp' runs no pipeline .* use --engine vllm"):
        plan_host_stages(LOCAL, [group(0), group(1)], LLAMA_CPP, free_memory_bytes=20e9)


def test_layers_that_are_not_the_models_are_refused() -> None:
    made = plan(group(0), group(1))
    stages = (PoolStage(on="cores0", layers=20), PoolStage(on="cores1", layers=11))
    with pytest.raises(InputError, match=r"the stages hold 31 layers, .* has 30"):
        host_stages(MODEL, stages, made.fleet)
