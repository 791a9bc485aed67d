"""Histograms against exact percentiles: half a percent, in memory that does not grow; parts add up to the whole."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.plan.spec import Slo
from polypod.report.fold import fold
from polypod.report.histogram import BUCKETS, HIGH_S, LOW_S, Histogram, Tally, edges, tally
from polypod.report.summary import summary_of

VALUES = st.lists(st.floats(LOW_S, HIGH_S * 0.999), min_size=1, max_size=50)


def of(values):
    histogram = Histogram()
    histogram.add(np.array(values, dtype=np.float64))
    return histogram


@given(VALUES, st.floats(0, 1))
def test_every_ranked_value_is_within_half_a_percent(values, at):
    rank = round(at * (len(values) - 1))
    exact = sorted(values)[rank]

    assert of(values).quantile(rank / max(len(values) - 1, 1)) == pytest.approx(exact, rel=0.005)


@pytest.mark.parametrize("spread", [0.1, 1.0, 2.5])
def test_percentiles_are_numpys_to_half_a_percent(spread):
    values = np.random.default_rng(3).lognormal(-1, spread, 20_000)
    histogram, found = of(values), of(values).percentiles()

    assert found is not None
    for at in (0.001, 0.1, 0.5, 0.9, 0.99, 0.999):
        assert histogram.quantile(at) == pytest.approx(np.quantile(values, at), rel=0.005)
    assert found.mean_s == pytest.approx(values.mean())
    assert histogram.quantile(0.0) == pytest.approx(values.min(), rel=0.005)
    assert histogram.quantile(1.0) == pytest.approx(values.max(), rel=0.005)


@given(VALUES, VALUES)
def test_parts_add_up_to_the_whole(some, others):
    merged = of(some)
    merged.merge(of(others))
    whole = of(some + others)

    assert merged.counts.tolist() == whole.counts.tolist()
    assert (merged.least_s, merged.most_s) == (whole.least_s, whole.most_s)
    assert merged.sum_s == pytest.approx(whole.sum_s)


@given(VALUES)
def test_a_histogram_survives_json(values):
    histogram = of(values)
    back = Histogram.from_json(json.loads(json.dumps(histogram.to_json())))

    assert back.counts.tolist() == histogram.counts.tolist()
    assert (back.sum_s, back.least_s, back.most_s) == (histogram.sum_s, histogram.least_s, histogram.most_s)  # fmt: skip


def test_an_empty_one_knows_nothing_and_survives_json():
    empty = Histogram.from_json(Histogram().to_json())

    assert math.isnan(empty.quantile(0.5))
    assert math.isnan(empty.fraction_within(1.0))
    assert empty.percentiles() is None
    assert (empty.least_s, empty.most_s) == (math.inf, -math.inf)


def test_counts_filled_from_outside_are_the_same():
    """What a compiled driver does: one comparison with the edges a value."""
    values = np.random.default_rng(1).lognormal(0, 3, 1000)
    ends, counts = edges(), np.zeros(BUCKETS, dtype=np.int64)
    for value in values:
        counts[np.searchsorted(ends, value, side="right")] += 1

    assert counts.tolist() == of(values).counts.tolist()


def test_what_is_beyond_the_ends_is_counted_there():
    histogram = of([0.0, LOW_S / 3, LOW_S, 2 * HIGH_S, math.nan])

    assert histogram.total == 4
    assert (histogram.counts[0], histogram.counts[1], histogram.counts[-1]) == (2, 1, 1)
    assert histogram.quantile(1.0) >= HIGH_S
    assert edges()[-1] >= HIGH_S


@given(VALUES, st.floats(LOW_S, HIGH_S * 0.99))
def test_the_share_within_a_limit_is_exact_but_for_the_limits_own_bucket(values, limit_s):
    array = np.array(values)
    low, high = np.mean(array <= limit_s * 0.989), np.mean(array <= limit_s * 1.011)

    assert low - 1e-9 <= of(values).fraction_within(limit_s) <= high + 1e-9


def test_other_buckets_are_refused():
    raw = Histogram().to_json() | {"ratio": 1.1}
    with pytest.raises(InputError, match=r"buckets from 1e-05 s by 1\.1 does not fit"):
        Histogram.from_json(raw)


def some_run(say):
    lines = [say.header(), say.up("a", max_sequences=999), say.up("b", model="n", pool="q")]
    for n in range(200):
        lines += say.whole(n, 0.1 * n, ttft_s=0.01 * (1 + n % 37), e2e_s=1 + 0.02 * (n % 53))
    lines += [say.arrived(900, 30.0, say.reject(900)), *say.whole(901, 30.0, replica="b", model="n")]  # fmt: skip
    return fold(say.in_order(lines))


def test_a_tally_gives_the_group_that_the_record_gives(say):
    outcomes, slo = some_run(say), Slo(ttft="200 ms", tpot="120 ms", percentile=90)
    exact = summary_of(outcomes, {"m": slo}).models[0]
    found = tally(outcomes, {"m": slo})["m"].group("m", slo, outcomes.duration_s)

    assert (found.requests, found.finished, found.rejected) == (exact.requests, exact.finished, exact.rejected)  # fmt: skip
    assert found.goodput == exact.goodput
    for name in ("ttft", "tpot", "e2e"):
        ours, theirs = getattr(found, name), getattr(exact, name)
        for field in ("mean_s", "p50_s", "p90_s", "p99_s"):
            assert getattr(ours, field) == pytest.approx(getattr(theirs, field), rel=0.006), name
    assert found.ttft_limit is not None
    assert exact.ttft_limit is not None
    assert found.ttft_limit.reached_s == pytest.approx(exact.ttft_limit.reached_s, rel=0.006)
    assert found.ttft_limit.inside_fraction == pytest.approx(exact.ttft_limit.inside_fraction, abs=0.03)  # fmt: skip


def test_tallies_of_parts_add_up_and_survive_json(say):
    outcomes = some_run(say)
    whole = tally(outcomes, {})["m"]
    twice = Tally.from_json(json.loads(json.dumps(whole.to_json())))
    twice.merge(tally(outcomes, {})["m"])

    assert (twice.requests, twice.finished, twice.output_tokens) == (402, 400, 4400)
    assert twice.rejected == {"queue_full": 2}
    assert twice.e2e.counts.tolist() == (2 * whole.e2e.counts).tolist()
