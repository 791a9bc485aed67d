"""Step costs of real models on real chips: physics, and what must never happen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.catalog.load import load_model
from polypod.cost.calibration import CASES, named
from polypod.cost.chip import Rank
from polypod.cost.deployment import Deployment, native_precision
from polypod.errors import InputError
from polypod.plan.place import island, parse_fleet
from polypod.workload.config import read_model
from polypod.workload.layout import Layout
from polypod.workload.model import Model, active_parameters


def model(name: str) -> Model:
    entry = load_model(name)
    return read_model(entry.config, name=entry.name, path=entry.path)


def rank(text: str) -> Rank:
    return island("a", parse_fleet(text)["a"]).rank


LLAMA, DEEPSEEK = model("llama-3.1-8b"), model("deepseek-v3")
H200, ASCEND = rank("nvidia-hgx-h200"), rank("huawei-cm384")


def deploy(one: Model, where: Rank, **layout: int) -> Deployment:
    return Deployment(
        model=one, layout=Layout(**layout), precision=native_precision(one, where), rank=where
    )


PLACES = [
    deploy(LLAMA, H200, tp=1),
    deploy(LLAMA, H200, tp=8),
    deploy(DEEPSEEK, ASCEND, dp=64, ep=64),
]


@pytest.mark.parametrize("place", PLACES)
@given(st.integers(1, 300), st.integers(1, 8000), st.integers(0, 8000))
@settings(max_examples=25, deadline=None)
def test_no_case_beats_the_floor_and_the_cases_are_ordered(
    place: Deployment, sequences: int, context: int, prompt: int
) -> None:
    shape = {
        "sequences": float(sequences),
        "kv_tokens": float(sequences * context),
        "prompt_tokens": float(prompt),
        "pairs": prompt * (prompt + 1) / 2,
    }
    floor_s = float(place.floor_s(place.ops(**shape)))
    fast, likely, slow = (float(place.step_s(**shape, case=case)) for case in CASES)  # type: ignore[arg-type]
    assert floor_s < fast < likely < slow


def test_decode_of_one_sequence_takes_at_least_reading_the_weights_once() -> None:
    place = deploy(LLAMA, H200, tp=1)
    weights_s = 2 * (active_parameters(LLAMA) - LLAMA.embedding_parameters) / 4.8e12
    floor_s = float(place.floor_s(place.ops(sequences=1.0, kv_tokens=1.0)))
    assert floor_s == pytest.approx(weights_s, rel=0.02)


def test_a_long_prompt_takes_about_two_flops_per_parameter_and_token_at_peak() -> None:
    place, tokens = deploy(LLAMA, H200, tp=1), 4096.0
    dense_s = 2 * (active_parameters(LLAMA) - 2 * LLAMA.embedding_parameters) * tokens / 989.4e12
    pairs_s = 32 * 4 * 32 * 128 * (tokens * (tokens + 1) / 2) / 989.4e12
    floor_s = float(place.floor_s(place.ops(prompt_tokens=tokens, pairs=tokens * (tokens + 1) / 2)))
    assert floor_s == pytest.approx(dense_s + pairs_s, rel=0.02)


def test_small_decode_waits_for_memory_and_long_prefill_for_arithmetic() -> None:
    place = deploy(LLAMA, H200, tp=1)
    decode = place.cost(place.ops(sequences=8.0, kv_tokens=8.0 * 1000))
    prefill = place.cost(place.ops(prompt_tokens=8192.0, pairs=8192.0**2 / 2))
    assert decode.bound.startswith("HBM (gemm)")
    assert prefill.bound.startswith("FLOPs (gemm)")
    assert sum(decode.shares().values()) == pytest.approx(1.0)
    percents = [int(part.split()[-2]) for part in decode.bound.split(", ")]
    assert len(percents) == 3
    assert 80 <= sum(percents) <= 100
    assert percents == sorted(percents, reverse=True)


def test_tensor_parallel_shortens_a_step_and_costs_accelerator_time() -> None:
    shape = {"sequences": 32.0, "kv_tokens": 32.0 * 2000}
    one, eight = (float(deploy(LLAMA, H200, tp=tp).step_s(**shape)) for tp in (1, 8))
    assert one / 8 < eight < one


def test_pipeline_stages_hold_less_and_do_not_shorten_a_token() -> None:
    one, four = deploy(LLAMA, H200, pp=1), deploy(LLAMA, H200, pp=4)
    assert four.memory().weight_bytes < one.memory().weight_bytes / 2
    assert float(four.step_s(sequences=1.0, kv_tokens=100.0)) > float(
        one.step_s(sequences=1.0, kv_tokens=100.0)
    )


def test_arrays_give_what_their_elements_give() -> None:
    place = deploy(DEEPSEEK, ASCEND, dp=64, ep=64)
    sequences = np.array([1.0, 10.0, 100.0])
    together = place.step_s(sequences=sequences, kv_tokens=sequences * 1000)
    apart = [float(place.step_s(sequences=s, kv_tokens=s * 1000)) for s in sequences]
    assert together == pytest.approx(apart)


def test_memory_is_what_is_left_of_the_rank() -> None:
    place = deploy(LLAMA, H200, tp=1)
    memory = place.memory()
    assert memory.weight_bytes == pytest.approx(2 * 8.03e9, rel=0.001)
    assert memory.usable_bytes == pytest.approx(0.9 * 141e9)
    held = memory.weight_bytes + memory.activation_bytes + memory.kv_tokens * 131072
    assert held == pytest.approx(memory.usable_bytes)
    assert deploy(DEEPSEEK, H200).memory().kv_tokens == 0.0


def test_a_rank_is_its_share_of_the_package() -> None:
    assert ASCEND.ranks_per_accelerator == 2
    assert ASCEND.memory_bytes == 64e9
    assert ASCEND.hbm_bytes_per_s == 1.6e12
    assert ASCEND.peak("bf16") == 376e12
    assert H200.memory_bytes == 141e9


def test_eight_bit_weights_run_in_what_the_chip_can() -> None:
    assert native_precision(DEEPSEEK, H200).weights == "fp8"
    assert native_precision(DEEPSEEK, ASCEND).weights == "int8"
    assert native_precision(LLAMA, ASCEND).weights == "bf16"


def test_a_type_without_a_peak_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="huawei-ascend-910c has no fp8 peak on record"):
        ASCEND.peak("fp8")
    with pytest.raises(
        InputError, match="no calibration is called 'x'; there are huawei-ascend-910c"
    ):
        named("x")


def test_a_tier_whose_latency_nobody_published_is_named_as_an_assumption() -> None:
    assert any(
        "'die pair' tier is not published; 1.9 us assumed" in note for note in ASCEND.assumptions
    )
