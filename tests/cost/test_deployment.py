"""Step costs of real models on real chips: physics, and what must never happen."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.catalog.load import load_model
from polypod.catalog.topology import loose_tiers
from polypod.cost.calibration import CASES, named, of
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
        InputError,
        match="no calibration are called 'x'; there are trtllm, vllm, sglang, amd-cdna3",
    ):
        named("x")


def test_a_tier_whose_latency_nobody_published_is_named_as_an_assumption() -> None:
    assert any(
        "'die pair' tier is not published; 1.9 us assumed" in note for note in ASCEND.assumptions
    )


H100 = rank("nvidia-hgx-h100")


def test_an_engines_own_kernels_change_the_step_and_an_unknown_engine_is_refused() -> None:
    shape = {"sequences": 16.0, "kv_tokens": 16.0 * 2000}
    blend = deploy(LLAMA, H100, tp=4)
    times = {
        backend: float(replace(blend, backend=backend).step_s(**shape))
        for backend in (None, "trtllm", "vllm", "sglang")
    }
    assert len(set(times.values())) == 4
    assert max(times.values()) < 1.3 * min(times.values())
    assert times[None] == float(blend.step_s(**shape))
    with pytest.raises(InputError, match=r"no kernels of backend 'x' are known"):
        replace(blend, backend="x").step_s(**shape)


def test_a_small_all_reduce_within_a_node_takes_the_engines_own_kernel() -> None:
    place = deploy(LLAMA, H100, tp=8)
    cost = place.cost(place.ops(sequences=1.0, kv_tokens=1000.0))
    reduce = next(part for part in cost.parts if part.kind == "all_reduce")
    # vLLM's takes 4.7 us for 256 bytes to 2 KB on eight H100 (aiconfigurator-core 0.12.0), NCCL 15
    assert float(reduce.time.total_s) == pytest.approx(4.9e-6, rel=0.2)


def test_a_group_past_the_node_is_timed_by_tiers() -> None:
    place = deploy(DEEPSEEK, H200, tp=16)
    cost = place.cost(place.ops(sequences=8.0, kv_tokens=8000.0))
    reduce = next(part for part in cost.parts if part.kind == "all_reduce")
    launch_s = of(H200.calibration.reduction.launch_s, "likely")
    hops_s = 2 * 2 * of(H200.calibration.unknown_latency_s, "likely")
    assert float(reduce.time.latency_s) == pytest.approx(launch_s + hops_s)


def test_a_longer_prompt_keeps_more_of_the_arithmetic_busy() -> None:
    """TensorRT-LLM's prefill attention on B200 takes prompts of 1,500 tokens for half its rate."""
    place = replace(deploy(LLAMA, rank("nvidia-gb200-nvl72"), tp=1), backend="trtllm")

    def rate(tokens: float) -> float:
        ops = place.ops(prompt_tokens=tokens, pairs=tokens**2 / 2)
        cost = place.cost([op for op in ops if op.kind == "attention_prefill"])
        part = cost.parts[0]
        return float(ops[1].flops) / float(part.time.compute_s)  # type: ignore[union-attr]

    assert rate(1024.0) < 0.55 * rate(16384.0)


@given(st.integers(1, 512), st.integers(1, 20000), st.sampled_from([None, "trtllm", "vllm", "sglang"]))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_more_sequences_and_longer_contexts_never_make_a_step_shorter(
    sequences: int, context: int, backend: str | None
) -> None:
    place = replace(deploy(DEEPSEEK, H200, dp=8, ep=8), backend=backend)
    step_s = place.step_s(
        sequences=np.array([1.0, 2.0, 1.0]) * sequences,
        kv_tokens=np.array([1.0, 2.0, 2.0]) * sequences * context,
    )
    assert step_s[0] < step_s[1]
    assert step_s[0] < step_s[2]


H100 = rank("nvidia-hgx-h100")
LMSYS = Deployment(
    model=DEEPSEEK, layout=Layout(dp=32, ep=32), precision=native_precision(DEEPSEEK, H100), backend="sglang",
    rank=replace(H100, tiers=loose_tiers("nvidia-h100-sxm")),
)  # fmt: skip


def gain(place: Deployment, **shape: float) -> float:
    """How much faster a step is as two halves."""
    return float(place.step_s(**shape)) / float(replace(place, two_batches=True).step_s(**shape))


def test_two_batches_gain_in_prefill_what_lmsys_measured() -> None:
    """27 to 35 % at 4,096 to 8,192 tokens on 32 H100, https://lmsys.org/blog/2025-05-05-large-scale-ep/."""
    for tokens in (4096.0, 8192.0):
        assert 1.25 <= gain(LMSYS, prompt_tokens=tokens, pairs=tokens * 512) <= 1.38


def test_two_batches_gain_in_decode_what_lmsys_measured() -> None:
    """On 72 H100: a loss of 27 % at 32 sequences, none between 64 and 128, a gain of 25.5 % at 256."""
    place = replace(LMSYS, layout=Layout(dp=72, ep=72))
    gains = {
        size: gain(place, sequences=size, kv_tokens=size * 2050) for size in (32, 64, 128, 256)
    }
    assert gains[32] < 0.85
    assert gains[64] < 1 < gains[128]
    assert gains[256] == pytest.approx(1.255, abs=0.05)


def test_two_batches_read_all_weights_twice_and_hide_nothing_without_exchanges() -> None:
    place = deploy(LLAMA, H200, tp=1)
    one = float(place.step_s(sequences=8.0, kv_tokens=8000.0))
    two = float(replace(place, two_batches=True).step_s(sequences=8.0, kv_tokens=8000.0))
    assert 1.8 * one < two < 2 * one
    floor_s, floor_of_two_s = (float(one.floor_s(one.ops(sequences=8.0, kv_tokens=8000.0))) for one in (place, replace(place, two_batches=True)))  # fmt: skip
    assert 1.8 * floor_s < floor_of_two_s < 2 * floor_s


@given(st.integers(1, 600), st.integers(1, 8000), st.integers(0, 16000))
@settings(max_examples=25, deadline=None)
def test_two_batches_are_never_faster_than_arithmetic_or_exchanges_alone(
    sequences: int, context: int, prompt: int
) -> None:
    place = replace(LMSYS, two_batches=True)
    shape = {"sequences": float(sequences), "kv_tokens": float(sequences * context), "prompt_tokens": float(prompt), "pairs": prompt * 500.0}  # fmt: skip
    ops = place.ops(**shape)
    for case in CASES:
        cost = place.cost(ops, case)
        sent = sum(float(part.total_s) for part in cost.parts if part.kind == "all_to_all")
        computed = sum(float(part.total_s) for part in cost.parts) - sent
        assert float(cost.total_s) >= max(sent, computed)
        assert 0 <= float(cost.hidden_s) <= min(sent, computed) * (1 + 1e-9)
    assert float(place.floor_s(ops)) < float(place.cost(ops, "fast").total_s)
