"""Prefill and decode workers apart, at limits where the answer is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.cost.steptime import StepTime
from polypod.engine.apart import Role, apart
from polypod.engine.closed_loop import Behaviour, Load

STEP = StepTime(
    tokens=(1, 64, 512, 8192), seconds=(0.008, 0.009, 0.012, 0.160), kv_token_s=8e-9, pair_s=2e-10, sequence_s=5e-6
)  # fmt: skip


def load(concurrency: float) -> Load:
    return Load(input_tokens=2000, output_tokens=500, concurrency=concurrency)


def test_alone_it_is_a_prompt_its_way_and_decode_steps() -> None:
    times = apart(Role(step=STEP), Role(step=STEP), load(1), Behaviour(fixed_s=0.02), 0.1)
    assert times.ttft_s == pytest.approx(STEP.prompt_s(2000) + 0.1 + 0.02)
    assert times.tpot_s == pytest.approx(STEP.step_s(tokens=1, kv_tokens=2250, sequences=1))


def test_prompts_are_served_no_faster_than_the_workers_compute_them() -> None:
    # Little's law: concurrency / round = requests per second, at most workers over a prompt's time
    many = load(400)
    times = apart(Role(step=STEP), Role(step=STEP, count=64), many, Behaviour())
    round_s = times.ttft_s + many.output_tokens * times.tpot_s
    assert many.concurrency / round_s <= 1 / STEP.prompt_s(2000) * 1.001


def test_decode_is_not_interrupted_by_prompts() -> None:
    few, many = (
        apart(Role(step=STEP, count=100), Role(step=STEP, count=8), load(8), Behaviour(), transfer)
        for transfer in (0.0, 1.0)
    )
    alone_s = STEP.step_s(tokens=1, kv_tokens=2250, sequences=1)
    assert few.tpot_s == pytest.approx(alone_s)
    assert many.tpot_s == pytest.approx(alone_s)


def test_the_first_token_waits_a_whole_interval_on_a_decode_worker() -> None:
    plain, held = (
        apart(Role(step=STEP), Role(step=STEP), load(1), Behaviour(stream_interval=interval))
        for interval in (0.0, 10.0)
    )
    assert held.ttft_s - plain.ttft_s == pytest.approx(10 * plain.tpot_s)


@given(concurrency=st.floats(1, 500), prefill=st.integers(1, 16), decode=st.integers(1, 16))
def test_more_workers_never_make_it_slower(concurrency: float, prefill: int, decode: int) -> None:
    def ttft_and_round(more_prefill: int, more_decode: int) -> tuple[float, float]:
        times = apart(
            Role(step=STEP, count=more_prefill), Role(step=STEP, count=more_decode), load(concurrency), Behaviour()
        )  # fmt: skip
        return times.ttft_s, times.ttft_s + 500 * times.tpot_s

    _, now_s = ttft_and_round(prefill, decode)
    assert ttft_and_round(prefill, 2 * decode)[1] <= now_s * 1.001
    assert ttft_and_round(2 * prefill, decode)[1] <= now_s * 1.001


def test_the_first_wave_queues_at_the_prefill_workers() -> None:
    # 40 clients send at once: half the others in front of each in the mean, in one of two waves
    few = Load(input_tokens=2000, output_tokens=500, concurrency=40, waves=2)
    many = Load(input_tokens=2000, output_tokens=500, concurrency=40, waves=1e9)
    idle = Role(step=STEP, count=100)
    prompt_s = STEP.prompt_s(2000)
    first, later = (apart(Role(step=STEP), idle, one, Behaviour()).ttft_s for one in (few, many))
    assert first - later == pytest.approx(39 / 4 * prompt_s, rel=0.35)


def test_short_prompts_share_the_launch_of_their_kernels() -> None:
    slow = Behaviour(launch_s=1.0, step_tokens=8000)
    times = apart(Role(step=STEP), Role(step=STEP, count=64), load(400), slow)
    round_s = times.ttft_s + 500 * times.tpot_s
    # four prompts of 2,000 tokens to a step of one second, not one
    assert 400 / round_s <= 4.0
    assert 400 / round_s > 1.0
