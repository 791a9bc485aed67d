"""The step-time coefficients: laws of the curve."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.cost.steptime import StepTime, causal_pairs

STEP = StepTime(
    tokens=(1, 8, 100), seconds=(1.0, 2.0, 10.0), kv_token_s=0.5, pair_s=0.25, sequence_s=2.0
)


@given(st.floats(1, 1e6), st.floats(1, 1e6))
def test_more_tokens_never_take_less_time(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert STEP.curve_s(low) <= STEP.curve_s(high)


def test_the_curve_goes_through_its_knots_and_on_with_its_last_slope() -> None:
    assert [STEP.curve_s(t) for t in (1, 8, 100)] == [1.0, 2.0, 10.0]
    assert STEP.curve_s(4.5) == pytest.approx(1.5)
    assert STEP.curve_s(192) == pytest.approx(18.0)
    assert STEP.curve_s(0) == 0.0


def test_each_term_counts_what_its_name_says() -> None:
    assert STEP.step_s(tokens=8, kv_tokens=10, pairs=4, sequences=3) == pytest.approx(2 + 5 + 1 + 6)
    assert STEP.prompt_s(8, cached=2) == pytest.approx(2 + 0.25 * (16 + 36))


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 500))
def test_a_prompt_in_two_chunks_covers_the_same_pairs_as_in_one(
    first: int, second: int, cached: int
) -> None:
    whole = causal_pairs(first + second, cached)
    assert causal_pairs(first, cached) + causal_pairs(second, cached + first) == pytest.approx(
        whole
    )


def test_twice_as_slow_is_twice_as_slow_in_every_term() -> None:
    twice = STEP.scaled(2)
    assert twice.step_s(tokens=50, kv_tokens=3, pairs=7, sequences=2) == pytest.approx(
        2 * STEP.step_s(tokens=50, kv_tokens=3, pairs=7, sequences=2)
    )
    assert twice.data_ranks == STEP.data_ranks


@pytest.mark.parametrize(
    ("tokens", "seconds", "problem"),
    [
        ((1,), (1.0,), "two knots"),
        ((1, 2), (1.0,), "two knots"),
        ((2, 1), (1.0, 1.0), "increase"),
        ((1, 1), (1.0, 1.0), "increase"),
        ((1, 2), (1.0, -1.0), "negative"),
    ],
)
def test_a_curve_that_is_none_is_refused(
    tokens: tuple[float, ...], seconds: tuple[float, ...], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        StepTime(tokens=tokens, seconds=seconds, kv_token_s=0, pair_s=0)


def test_a_prompt_alone_passes_one_stage_after_another() -> None:
    # two stages of half the layers each: the whole prompt goes through both, as through one of all layers
    whole = StepTime(tokens=(1, 1000), seconds=(0.001, 1.0), kv_token_s=0.0, pair_s=2e-6)
    half = StepTime(tokens=(1, 2000), seconds=(0.001, 1.0), kv_token_s=0.0, pair_s=1e-6, stages=2)
    assert half.prompt_s(500) == pytest.approx(whole.prompt_s(500), rel=0.01)
