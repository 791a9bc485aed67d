"""How engines put steps together, counted by hand: scheduling ahead, prompts that are not cut, and ranks that wait for each other."""

import msgspec
import pytest

from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour
from polypod.engine.replica import EngineLimits, ReplicaEmulation

STEP = StepTime(tokens=(1, 1001), seconds=(0.010, 1.010), kv_token_s=0.0, pair_s=0.0)
"""9 ms and 1 ms a token."""


def replica(behaviour: Behaviour, ranks: int = 1, budget: int = 1000) -> ReplicaEmulation:
    limits = EngineLimits(
        max_sequences=64, max_step_tokens=budget, kv_capacity_tokens=100_000 * ranks, behaviour=behaviour,
    )  # fmt: skip
    return ReplicaEmulation(msgspec.structs.replace(STEP, data_ranks=ranks), limits)


def firsts(engine: ReplicaEmulation) -> dict[int, float]:
    return {one.request: one.at_s for one in engine.advance(1e6) if one.kind == "first"}


@pytest.mark.parametrize(("ahead", "first_s"), [(False, 0.020 + 0.030), (True, 0.020 + 0.010 + 0.030)])  # fmt: skip
def test_what_comes_during_a_step_is_in_the_next_or_with_scheduling_ahead_in_the_one_after(
    ahead: bool,
    first_s: float,
) -> None:
    """A decode step of 10 ms runs from 10 to 20 ms; at 12 ms comes a prompt of 20 tokens, which shares a step with the sequence that decodes."""
    engine = replica(Behaviour(schedules_ahead=ahead))
    engine.submit(0.0, request=1, prompt_tokens=1, output_tokens=50)
    engine.advance(0.012)
    engine.submit(0.012, request=2, prompt_tokens=20, output_tokens=1)
    assert firsts(engine)[2] == pytest.approx(first_s)


def test_an_idle_engine_begins_at_once_with_all_that_came_together() -> None:
    engine = replica(Behaviour(schedules_ahead=True))
    engine.submit(1.0, request=1, prompt_tokens=10, output_tokens=1)
    engine.submit(1.0, request=2, prompt_tokens=20, output_tokens=1)
    assert firsts(engine) == pytest.approx({1: 1.039, 2: 1.039})


@pytest.mark.parametrize(("whole", "second_s"), [(False, 0.109 + 0.029), (True, 0.069 + 0.069)])
def test_a_prompt_that_does_not_fit_beside_another_is_cut_or_comes_next(
    whole: bool,
    second_s: float,
) -> None:
    """Two of 60 tokens under a budget of 100: 100 and 20, or 60 and 60."""
    engine = replica(Behaviour(whole_prompts=whole), budget=100)
    engine.submit(0.0, request=1, prompt_tokens=60, output_tokens=1)
    engine.submit(0.0, request=2, prompt_tokens=60, output_tokens=1)
    assert firsts(engine)[2] == pytest.approx(second_s)


def test_a_prompt_longer_than_a_step_is_cut_in_any_case() -> None:
    engine = replica(Behaviour(whole_prompts=True), budget=100)
    engine.submit(0.0, request=1, prompt_tokens=150, output_tokens=1)
    assert firsts(engine)[1] == pytest.approx(0.109 + 0.059)


def decoding_on_both(behaviour: Behaviour) -> ReplicaEmulation:
    """Two ranks, each with a sequence that decodes: from 10 ms on steps of 10 ms."""
    engine = replica(behaviour, ranks=2)
    for request in (1, 2):
        engine.submit(0.0, request=request, prompt_tokens=1, output_tokens=1000)
    engine.advance(0.035)
    return engine


def test_a_prompt_waits_for_the_other_rank_for_so_many_steps() -> None:
    """It comes at 35 ms. Counted are steps in which a rank has no prompt, those before it came among them: every fourth lets it through."""
    at_once = decoding_on_both(Behaviour())
    at_once.submit(0.035, request=3, prompt_tokens=20, output_tokens=1)
    assert firsts(at_once)[3] == pytest.approx(0.040 + 0.030)
    waiting = decoding_on_both(Behaviour(balance_steps=4))
    waiting.submit(0.035, request=3, prompt_tokens=20, output_tokens=1)
    late_s = firsts(waiting)[3] - 0.070
    assert 0 <= late_s < 0.0301
    assert late_s / 0.010 == pytest.approx(round(late_s / 0.010))


def test_prompts_of_all_ranks_go_at_once() -> None:
    engine = decoding_on_both(Behaviour(balance_steps=1000))
    engine.submit(0.035, request=3, prompt_tokens=20, output_tokens=1)
    engine.advance(0.095)
    engine.submit(0.095, request=4, prompt_tokens=20, output_tokens=1)
    assert firsts(engine) == pytest.approx({3: 0.130, 4: 0.130})


def test_prompts_that_just_fill_a_step_share_it() -> None:
    engine = replica(Behaviour(whole_prompts=True), budget=100)
    engine.submit(0.0, request=1, prompt_tokens=60, output_tokens=1)
    engine.submit(0.0, request=2, prompt_tokens=40, output_tokens=1)
    assert firsts(engine) == pytest.approx({1: 0.109, 2: 0.109})
