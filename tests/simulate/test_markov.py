"""The chain against formulas of its own field."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.simulate.markov import Chain, available, up_distribution

MTBF_S, MTTR_S = 50_000.0, 400.0


def up(**over):
    found = up_distribution(Chain(**({"replicas": 1, "fail_per_s": 1 / MTBF_S, "repair_s": MTTR_S} | over)))  # fmt: skip
    assert found is not None
    assert found.sum() == pytest.approx(1, abs=1e-9)
    return found


def test_one_unit_is_available_mtbf_over_mtbf_and_mttr():
    assert available(up(), 1) == pytest.approx(MTBF_S / (MTBF_S + MTTR_S), rel=1e-12)


def test_a_start_after_the_repair_adds_to_it():
    whole_s = MTTR_S + 100.0
    assert available(up(start_s=100.0), 1) == pytest.approx(MTBF_S / (MTBF_S + whole_s), rel=1e-9)


def test_units_without_spares_and_with_crews_enough_are_independent_and_binomial():
    p, n = MTBF_S / (MTBF_S + MTTR_S), 12
    binomial = [math.comb(n, u) * p**u * (1 - p) ** (n - u) for u in range(n + 1)]

    np.testing.assert_allclose(up(replicas=n), binomial, rtol=1e-9)


def test_one_crew_is_the_machine_repair_model():
    # Palm: the share with j of n broken is proportional to n! / (n - j)! * (fail * repair) ** j
    n, r = 6, MTTR_S / MTBF_S
    weights = np.array([math.perm(n, j) * r**j for j in range(n + 1)])

    np.testing.assert_allclose(up(replicas=n, crews=1), (weights / weights.sum())[::-1], rtol=1e-9)


def test_with_many_units_of_many_spares_what_is_broken_is_poisson():
    # as long as spares are left, n units always fail: an infinite server fed at n * fail
    n, k = 50, 40
    mean = n * MTTR_S / MTBF_S
    lacking = 1 - sum(math.exp(-mean) * mean**j / math.factorial(j) for j in range(k + 1))

    assert available(up(replicas=n, spares=k), n) == pytest.approx(1 - lacking, abs=1e-12)


def test_starting_takes_its_share_whoever_stands_in():
    # spares enough: every failure costs one start, so the mean number of replicas starting is n * fail * start / (1 + fail * start)
    n, start_s = 4, 300.0
    share = up(replicas=n, spares=8, start_s=start_s)
    mean_up = float(np.arange(n + 1) @ share)

    assert mean_up == pytest.approx(n / (1 + start_s / MTBF_S), rel=1e-6)


def test_a_restart_needs_no_spare():
    share = up(replicas=1, fail_per_s=0.0, restart_per_s=1 / MTBF_S, start_s=500.0)

    assert available(share, 1) == pytest.approx(MTBF_S / (MTBF_S + 500.0), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 12), st.integers(0, 6), st.integers(0, 3), st.floats(0, 2000), st.integers(0, 12))  # fmt: skip
def test_one_more_spare_never_lowers_availability(n, k, crews, start_s, needed):
    fewer, more = (
        available(up(replicas=n, spares=count, crews=crews, start_s=start_s, repair_s=9000.0), min(needed, n))
        for count in (k, k + 1)
    )  # fmt: skip
    assert more >= fewer - 1e-9


def test_a_thousand_replicas_are_solved_on_the_states_that_matter():
    share = up(replicas=1000, spares=20, start_s=60.0)

    assert float(np.arange(1001) @ share) == pytest.approx(1000 / (1 + 60 / MTBF_S), rel=1e-3)


def test_a_chain_that_is_too_large_is_not_answered():
    assert up_distribution(Chain(replicas=5000, fail_per_s=1.0, repair_s=1e4, start_s=1.0)) is None


@pytest.mark.parametrize(
    "over",
    [{"replicas": 0}, {"spares": -1}, {"crews": -1}, {"repair_s": math.inf}, {"fail_per_s": -1.0}],
)
def test_what_is_no_pool_is_refused(over):
    with pytest.raises(InputError, match=r"a pool of|rates and times"):
        Chain(**({"replicas": 1, "fail_per_s": 1.0, "repair_s": 1.0} | over))
