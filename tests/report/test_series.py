"""Curves over time, against sums over the requests and against what was measured."""

import csv
import io
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.errors import InputError
from polypod.plan.spec import Slo
from polypod.report.fold import fold
from polypod.report.series import (
    MOST_INTERVALS,
    mean_count,
    over_time,
    series_csv,
    series_json,
    series_text,
)

SPANS = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50), st.floats(0, 5)), max_size=20)


@given(SPANS)
def test_mean_counts_add_up_to_all_the_time_there_was(spans):
    begin_s = np.array([one[0] for one in spans])
    end_s = begin_s + np.array([one[1] for one in spans])
    weight = np.array([one[2] for one in spans])
    edges_s = np.linspace(0, 150, 31)
    counts = mean_count(begin_s, end_s, edges_s, weight)

    assert np.sum(counts * np.diff(edges_s)) == pytest.approx(np.sum(weight * (end_s - begin_s)), abs=1e-6)  # fmt: skip


@given(SPANS)
def test_mean_counts_are_those_of_a_plain_sum(spans):
    edges_s = np.array([0.0, 1.0, 4.0, 60.0, 150.0])
    begin_s = np.array([one[0] for one in spans])
    end_s = begin_s + np.array([one[1] for one in spans])
    plain = [
        sum(max(min(b, high) - max(a, low), 0.0) for a, b in zip(begin_s, end_s, strict=True))
        / (high - low)
        for low, high in pairwise(edges_s)
    ]

    np.testing.assert_allclose(mean_count(begin_s, end_s, edges_s), plain, atol=1e-9)


def curve(series, of, name):
    found = series.curve(of, name)
    assert found is not None, (of, name)
    return found.values.tolist()


def test_a_run_by_hand(say):
    lines = say.in_order(
        [
            say.header(),
            say.up("a", kv_capacity_tokens=1000),
            say.arrived(1, 0.0),  # waits 1 s
            say.finished(77, 1.0, 1, "a", say.place(1, "a")),
            say.first(1, 2.0),
            say.finished(1, 4.0, 20),
            say.arrived(2, 3.0, say.reject(2)),
        ]
    )
    series = over_time(fold(lines), {"m": Slo(ttft="3 s")}, width_s=2.0)

    assert series.edges_s.tolist() == [0.0, 2.0, 4.0]
    assert curve(series, "run", "arrivals_per_s") == [0.5, 0.5]
    assert curve(series, "run", "queue") == [0.5, 0.0]
    assert curve(series, "run", "running") == [0.5, 1.0]
    assert curve(series, "run", "tokens_per_s") == [0.0, 10.0]
    assert curve(series, "run", "goodput_per_s") == [0.0, 0.5]
    assert curve(series, "run", "unserved_per_s") == [0.0, 0.5]
    assert curve(series, "p", "kv_tokens") == [50.0, 110.0]  # 100 of prompt, then 10 of the answer
    assert curve(series, "p", "kv_fraction") == [0.05, 0.11]


def test_what_happens_is_counted_once_whatever_the_width(say):
    lines = [say.header(), say.up(max_sequences=99)]
    lines = say.in_order(lines + [line for n in range(40) for line in say.whole(n, 0.37 * n)])
    outcomes = fold(lines)
    for width_s in (0.5, 1.0, 7.0, None):
        series = over_time(outcomes, {"m": Slo(ttft="1 s")}, width_s=width_s)
        widths_s = np.diff(series.edges_s)
        for name, total in (("arrivals_per_s", 40), ("goodput_per_s", 40), ("tokens_per_s", 440), ("running", 60)):  # fmt: skip
            assert np.sum(curve(series, "run", name) * widths_s) == pytest.approx(total), name


def test_the_usual_width_is_round_and_gives_no_more_than_48_intervals(say):
    for length_s in (0.003, 0.7, 5.0, 47.0, 100.0, 5000.0, 1e6):
        lines = [
            say.header(),
            say.up(),
            *say.whole(1, length_s * 0.01, ttft_s=0.0, e2e_s=length_s),
        ]
        series = over_time(fold(lines))
        assert 10 <= len(series.edges_s) - 1 <= MOST_INTERVALS
        assert series.edges_s[0] <= length_s * 0.01
        assert series.edges_s[-1] >= length_s * 1.01 * (1 - 1e-9)


def test_a_width_that_gives_too_many_intervals_is_refused_with_one_that_does_not(say):
    outcomes = fold([say.header(), say.up(), *say.whole(1, 0.0, e2e_s=1000.0)])

    with pytest.raises(
        InputError, match=r"intervals of 1 ms are 1,000,000 over .*make them 10 ms or longer"
    ):
        over_time(outcomes, width_s=0.001)


def test_measured_gauges_are_means_of_their_samples_and_hold_between_them(say):
    lines = [
        say.header(),
        say.up(),
        *say.whole(1, 0.0, e2e_s=8.0),
        say.measure(2.5, "p", "queue", 2.0),
        say.measure(4.0, "p", "queue", 8.0),  # at the end of an interval: of that one
        say.measure(6.5, "p", "queue", 1.0),
    ]
    series = over_time(fold(lines), width_s=2.0)
    queue = series.curve("p", "queue")

    assert queue is not None
    assert queue.is_measured
    assert [None if np.isnan(v) else v for v in queue.values.tolist()] == [None, 5.0, 8.0, 1.0]


def test_measured_counts_are_read_per_second_over_the_time_they_are_about(say):
    lines = [
        say.header(),
        say.up(),
        *say.whole(1, 0.0, e2e_s=8.0),
        say.measure(2.0, "p", "output_tokens", 100.0),
        say.measure(4.0, "p", "output_tokens", 40.0),
        say.measure(6.0, "p", "output_tokens", 0.0),
        say.measure(8.0, "scale-out", "bytes", 8e9),
        say.measure(8.0, "a", "busy_s", 8.0),
    ]
    series = over_time(fold(lines), width_s=2.0)

    assert curve(series, "p", "tokens_per_s")[:3] == [50.0, 20.0, 0.0]
    assert np.isnan(curve(series, "p", "tokens_per_s")[3])  # nothing is known of it
    assert curve(series, "scale-out", "bytes_per_s") == [1e9] * 4
    assert series.curve("a", "busy_replicas") is None  # of a replica: too many to draw
    assert sum(one.name == "tokens_per_s" and one.of == "p" for one in series.curves) == 1


def test_measured_occupancy_follows_from_tokens_and_capacity(say):
    lines = [
        say.header(),
        say.up(),
        *say.whole(1, 0.0, e2e_s=2.0),
        say.measure(1.0, "p", "kv_tokens", 30.0),
        say.measure(1.0, "p", "kv_capacity_tokens", 60.0),
    ]
    assert curve(over_time(fold(lines), width_s=2.0), "p", "kv_fraction") == [0.5]


def test_watts_are_means_over_the_time_before_them(say):
    lines = [
        say.header(),
        say.up(),
        *say.whole(1, 0.0, e2e_s=8.0),
        say.measure(2.0, "p", "watts", 100.0),
        say.measure(4.0, "p", "watts", 300.0),
    ]
    series = over_time(fold(lines), width_s=1.0)

    assert curve(series, "p", "watts")[:4] == [100.0, 100.0, 300.0, 300.0]
    assert np.isnan(curve(series, "p", "watts")[4:]).all()
    assert curve(over_time(fold(lines), width_s=4.0), "run", "watts")[0] == 200.0


def test_counts_of_a_live_run_come_from_its_first_event_on(say):
    lines = [say.header(kind="live"), say.up(at_s=9000.0), *say.whole(1, 9000.0, e2e_s=4.0)]
    series = over_time(fold([*lines, say.measure(9004.0, "p", "prompt_tokens", 80.0)]), width_s=2.0)

    assert curve(series, "p", "prompt_tokens_per_s") == [20.0, 20.0]


def test_the_run_is_the_sum_of_pools_and_models_that_are_all_measured(say):
    lines = [say.header(), say.up("a"), say.up("b", pool="q"), *say.whole(1, 0.0, e2e_s=2.0)]
    one = [*lines, say.measure(2.0, "p", "running", 3.0), say.measure(2.0, "m", "queue", 7.0)]
    both = over_time(fold([*one, say.measure(2.0, "q", "running", 4.0)]), width_s=2.0)

    assert curve(both, "run", "running") == [7.0]
    assert curve(both, "run", "queue") == [7.0]
    assert curve(over_time(fold(one), width_s=2.0), "run", "running") == [1.0]  # q is not measured


def test_several_models_have_a_curve_each(say):
    lines = [
        say.header(),
        say.up("a"),
        say.up("b", model="n", pool="q"),
        *say.whole(1, 0.0),
        *say.whole(2, 0.0, replica="b", model="n"),
    ]
    series = over_time(fold(lines), width_s=1.0)

    assert curve(series, "m", "arrivals_per_s") == curve(series, "n", "arrivals_per_s") == [1.0, 0.0]  # fmt: skip
    assert curve(series, "run", "arrivals_per_s") == [2.0, 0.0]


def test_text_csv_and_json_say_the_same(say):
    lines = [say.header(), say.up(), *say.whole(1, 0.0), say.measure(1.0, "hall", "watts", 500.0)]
    series = over_time(fold(lines), width_s=0.5)
    rows = list(csv.DictReader(io.StringIO(series_csv(series))))
    raw = json.loads(json.dumps(series_json(series)))
    drawn = {(one["of"], one["name"]): one["values"] for one in raw["curves"]}

    assert [float(row["begin_s"]) for row in rows] == raw["begin_s"] == [0.0, 0.5, 1.0]
    assert [float(row["run.running"]) for row in rows] == drawn["run", "running"] == [1.0] * 3
    assert [row["hall.watts"] for row in rows] == ["500.0", "500.0", ""]
    assert drawn["hall", "watts"] == [500.0, 500.0, None]
    text = series_text(series)
    assert "watts*          ██·" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_run_of_nothing_has_one_interval(say):
    series = over_time(fold([say.header()]))

    assert len(series.edges_s) == 2
    assert "1 intervals" in series_text(series)
