"""Plans for a machine's own cores."""

import msgspec
import pytest

from polypod.catalog.load import load_model
from polypod.cost.cpu import HostRates, calibration_for
from polypod.errors import InputError
from polypod.plan.host import (
    CoreGroup,
    LocalEngine,
    LocalModel,
    engine_model,
    plan_host,
    request_time,
    step_times,
)
from polypod.plan.predict import policy_settings, pool_replicas
from polypod.plan.spec import Plan
from polypod.workload.config import read_model

ENTRY = load_model("smollm2")
MODEL = read_model(ENTRY.config, name=ENTRY.name, path=ENTRY.path)
LOCAL = LocalModel(
    model=MODEL, weights="/models/m.gguf", weight_format="q4_1", served_name="SmolLM2-135M-Instruct"
)
RATES = HostRates(cpu_class="x86-amx", cpu="a CPU", cores=1, gemm_flops_per_s=100e9, read_bytes_per_s=15e9, measured_utc="2026-01-01T00:00:00+00:00")  # fmt: skip
GROUPS = [CoreGroup(cores=(n,), rates=RATES) for n in range(2)]
LLAMA_CPP = LocalEngine(
    name="llama.cpp", version="1", kv_bytes_per_element=2.0, max_step_tokens=512
)
OPENVINO = LocalEngine(
    name="openvino", version="1", kv_bytes_per_element=1.1875, max_step_tokens=512
)


def plan(engines: list[LocalEngine], free_memory_bytes: float = 20e9) -> Plan:
    return plan_host(LOCAL, GROUPS, engines, free_memory_bytes=free_memory_bytes)


def test_two_engines_get_half_the_cores_each() -> None:
    made = plan([LLAMA_CPP, OPENVINO])
    pools = made.services[0].pools
    assert [pool.engine for pool in pools] == ["llama.cpp", "openvino"]
    assert [made.fleet[pool.on].cores for pool in pools] == [(0,), (1,)]
    assert all(pool.state == "launchable" for pool in pools)


def test_a_pool_is_predicted_at_a_full_batch_and_says_what_bounds_it() -> None:
    pool = plan([LLAMA_CPP]).services[0].pools[0]
    assert pool.predicted is not None
    step = step_times("llama.cpp", RATES, engine_model(MODEL, 2.0))[1]["likely"]
    full_s = step.step_s(tokens=8, kv_tokens=8 * (64 + 64 / 2), sequences=8)
    assert pool.max_sequences == 8
    assert pool.predicted.tokens_per_s_per_accelerator == pytest.approx(8 / full_s, abs=0.1)
    for bound in pool.predicted.bound.values():
        memory, arithmetic = (int(part.split()[1]) for part in bound.split(", "))
        assert memory + arithmetic == 100
    assert pool.predicted.bound["decode"] != pool.predicted.bound["prefill"]


def test_one_engine_gets_both_halves_under_names_of_their_own() -> None:
    made = plan([OPENVINO])
    ups = pool_replicas(made)
    assert [pool.engine for pool in made.services[0].pools] == ["openvino", "openvino"]
    assert len({up.replica for up in ups}) == 2


def test_a_cpu_of_a_class_never_measured_is_said_with_the_plan() -> None:
    foreign = CoreGroup(cores=(0,), rates=msgspec.structs.replace(RATES, cpu_class="arm-neon"))
    made = plan_host(LOCAL, [foreign], [LLAMA_CPP], free_memory_bytes=20e9)
    assert (
        "llama.cpp was calibrated on x86-amx and not on arm-neon: its band is taken twice"
        in made.notes
    )
    assert not any("calibrated" in note for note in plan([LLAMA_CPP]).notes)


def test_no_engine_says_how_to_get_one() -> None:
    with pytest.raises(InputError, match="no inference engine is installed"):
        plan([])


def test_the_cache_of_a_replica_takes_at_most_a_quarter_of_the_free_memory() -> None:
    small = plan([LLAMA_CPP], free_memory_bytes=1e9)
    sequences = small.services[0].pools[0].max_sequences
    per_token = engine_model(MODEL, 2.0).kv_bytes_per_token
    assert per_token == 23040
    assert sequences * 4096 * per_token <= 0.25e9 < (sequences + 1) * 4096 * per_token
    with pytest.raises(InputError, match="lower --context"):
        plan([LLAMA_CPP], free_memory_bytes=0.1e9)


def test_the_replicas_announced_are_the_planned_ones() -> None:
    made = plan([LLAMA_CPP, OPENVINO])
    ups = pool_replicas(made)
    settings = policy_settings(made)
    assert [up.pool for up in ups] == ["llama.cpp", "openvino"]
    assert settings.services[0].model == "SmolLM2-135M-Instruct"
    assert all(up.context_tokens == 4096 for up in ups)
    step = step_times("llama.cpp", RATES, engine_model(MODEL, 2.0))[1]["likely"]
    assert ups[0].step_time == step


def test_a_request_alone_takes_its_chunks_one_after_another() -> None:
    calibration, steps = step_times("llama.cpp", RATES, engine_model(MODEL, 2.0))
    whole = request_time(calibration, steps, input_tokens=512, output_tokens=2, max_step_tokens=512)
    halves = request_time(
        calibration, steps, input_tokens=512, output_tokens=2, max_step_tokens=256
    )
    step = steps["likely"]
    assert whole.ttft_s["likely"] == pytest.approx(
        calibration.first_token_s[1] + step.prompt_s(512)
    )
    assert halves.ttft_s["likely"] == pytest.approx(
        calibration.first_token_s[1] + step.prompt_s(256) + step.prompt_s(256, cached=256)
    )
    assert whole.tpot_s["likely"] == pytest.approx(
        step.step_s(tokens=1, kv_tokens=513, sequences=1)
    )
    assert calibration == calibration_for("llama.cpp", "x86-amx")[0]
