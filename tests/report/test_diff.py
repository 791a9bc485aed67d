"""Two runs compared: laws (a run against itself, the order of the two), and how often intervals hold what they should."""

import json
import math

import numpy as np
import pytest

from polypod.plan.spec import Slo
from polypod.report.blocks import (
    block_of,
    blocks_for,
    draw,
    interval,
    quantiles,
    ratios,
    widening,
)
from polypod.report.diff import diff, diff_json, diff_text
from polypod.report.fold import fold

SLO = {"m": Slo(ttft="1 s")}


def run(say, seed, *, requests=600, scale=1.0, sha=None, memory=0.0, **over):
    """A made-up run: log-normal first tokens whose logarithm remembers the request before."""
    generator = np.random.default_rng(seed)
    noise, state, log_ttft = generator.normal(size=requests), 0.0, np.empty(requests)
    for n in range(requests):
        state = memory * state + math.sqrt(1 - memory**2) * noise[n]
        log_ttft[n] = -1.0 + 0.8 * state
    arrival_s = np.cumsum(generator.exponential(0.1, requests))
    lines = [say.header(trace_sha256=sha, seed=seed, **over), say.up("a", max_sequences=10_000)]
    lines.append(say.up("b", pool="q", max_sequences=10_000))
    for n in range(requests):
        ttft_s = scale * float(np.exp(log_ttft[n]))
        lines += say.whole(n, float(arrival_s[n]), ttft_s, ttft_s + 2.0, 21, "ab"[n % 2])
    return fold(say.in_order(lines))


def test_a_run_against_itself_is_zero_everywhere(say):
    one = run(say, 1, sha="x")
    found = diff(one, one, SLO)

    assert found.is_paired
    assert {(row.difference, row.low, row.high) for row in found.rows} == {(0.0, 0.0, 0.0)}
    assert {row.verdict for row in found.rows} == {"not told apart"}
    assert found.apart == ()
    assert found.notes == ()


def test_the_other_way_round_every_difference_turns_its_sign(say):
    a, b = run(say, 1), run(say, 2)
    there, back = diff(a, b, SLO).rows, diff(b, a, SLO).rows

    for row, other in zip(there, back, strict=True):
        assert row.difference == pytest.approx(-other.difference)
        assert row.low == pytest.approx(-other.high)


def test_intervals_hold_the_difference_that_was_seen(say):
    for row in diff(run(say, 1), run(say, 2, scale=1.5), SLO).rows:
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.difference <= row.high


def test_two_seeds_of_one_scenario_rarely_differ(say):
    rows = [
        row
        for seed in range(0, 16, 2)
        for row in diff(run(say, seed), run(say, seed + 1), SLO, resamples=200).rows
    ]
    told = sum(row.verdict == "differs" for row in rows)

    assert len(rows) > 200
    assert told / len(rows) < 0.1


def test_a_slower_run_is_told_apart_and_by_how_much(say):
    rows = {(row.of, row.name): row for row in diff(run(say, 1), run(say, 2, scale=1.5), SLO).rows}

    assert rows["run", "ttft_p50_s"].verdict == "differs"
    assert rows["run", "ttft_p50_s"].difference > 0.1
    assert rows["run", "goodput_fraction"].verdict == "differs"
    assert rows["run", "goodput_fraction"].difference < 0
    assert rows["pool q", "request_share"].verdict == "not told apart"


def test_the_same_trace_tells_a_small_difference_that_two_traces_do_not(say):
    """Each first token 2 % later: lost in the noise of another trace, plain on the same one."""
    paired = diff(run(say, 1, sha="x"), run(say, 1, sha="x", scale=1.02), SLO)
    apart = diff(run(say, 1), run(say, 2, scale=1.02), SLO)

    def verdict(found):
        return next(row.verdict for row in found.rows if (row.of, row.name) == ("run", "ttft_p50_s"))  # fmt: skip

    assert (paired.is_paired, apart.is_paired) == (True, False)
    assert (verdict(paired), verdict(apart)) == ("differs", "not told apart")


def test_points_are_those_of_numpy(say):
    a, b = run(say, 1), run(say, 2)
    rows = {(row.of, row.name): row for row in diff(a, b, SLO).rows}

    assert rows["run", "ttft_p99_s"].a == pytest.approx(np.percentile(a.ttft_s, 99))
    assert rows["run", "e2e_p50_s"].b == pytest.approx(np.median(b.e2e_s))
    assert rows["run", "goodput_fraction"].a == pytest.approx(np.mean(a.ttft_s <= 1.0))
    assert rows["run", "output_tokens_per_s"].a == pytest.approx(
        600 * 21 / np.ptp(a.requests.arrival_s)
    )
    slot_s = sum(one.slots * one.up_s for one in a.replicas)
    stayed_s = float(np.sum(a.stays.end_s - a.stays.begin_s))
    assert rows["run", "slots_fraction"].a == pytest.approx(stayed_s / slot_s)


# ---- coverage


@pytest.mark.parametrize("memory", [0.0, 0.9])
@pytest.mark.parametrize("what", ["mean", "median", "p95"])
def test_nineteen_of_twenty_intervals_hold_the_true_difference(memory, what):
    """Of the mean and of quantiles, of series that remember up to twenty values back; true difference zero. 100 tries: 88 % is 3 sigma below 95 %."""
    generator = np.random.default_rng(5)
    tries, held = 100, 0
    for _ in range(tries):
        a, b = (remembering(generator, 1000, memory) for _ in range(2))
        blocks = blocks_for([(a, b)])
        weight = draw(blocks, seed=0, resamples=200)
        block = block_of(1000, blocks)
        seen, redrawn = zip(*(estimate(what, one, weight, block) for one in (a, b)), strict=True)
        ends = interval(seen[1] - seen[0], redrawn[1] - redrawn[0], blocks)
        assert ends is not None
        held += ends[0] <= 0 <= ends[1]

    assert held / tries >= 0.88


def remembering(generator, length, memory):
    noise = generator.normal(size=length)
    values = np.empty(length)
    state = generator.normal()
    for n in range(length):
        state = memory * state + math.sqrt(1 - memory**2) * noise[n]
        values[n] = state
    return np.exp(0.5 * values)


def estimate(what, values, weight, block):
    if what == "mean":
        sums = np.bincount(block, weights=values)
        return float(values.mean()), ratios(weight, sums, np.bincount(block).astype(float))
    at = {"median": 0.5, "p95": 0.95}[what]
    return float(np.quantile(values, at)), quantiles(weight, values, block, [at])[:, 0]


def test_blocks_grow_until_neighbours_no_longer_resemble_each_other():
    generator = np.random.default_rng(2)
    independent = [generator.normal(size=4000) for _ in range(2)]
    slow = [np.cumsum(generator.normal(size=4000)) for _ in range(2)]
    turning = np.tile([1.0, -1.0], 32).repeat(10)  # every block unlike the next

    assert blocks_for([(turning, np.zeros(640))]) == 64
    assert blocks_for([(slow[0], slow[1])]) == 8
    assert blocks_for([(turning, np.zeros(640)), (slow[0], slow[1])]) == 8
    assert blocks_for([(independent[0][:45], independent[1])]) == 4


def test_what_both_runs_have_at_one_time_does_not_make_blocks_longer():
    generator = np.random.default_rng(2)
    day = 30 * np.sin(np.linspace(0, 6, 4000))
    a, b = (generator.normal(size=4000) for _ in range(2))

    assert blocks_for([(day + a, day + b)]) == blocks_for([(a, b)]) > 8
    assert blocks_for([(day + a, b)]) == 8


def test_drawn_quantiles_are_those_of_the_values_drawn():
    values = np.array([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    block = block_of(6, 3)
    weight = np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    found = quantiles(weight, values, block, [0.5, 1.0])

    assert found.tolist() == [[3.0, 6.0], [1.0, 5.0], [3.0, 6.0]]
    assert np.isnan(quantiles(weight, values[:0], block[:0], [0.5])).all()


def test_few_blocks_make_wide_intervals():
    assert widening(64) < widening(8) < widening(4)
    assert widening(1000) == pytest.approx(1.0, abs=0.003)
    assert widening(8) * 1.959964 / math.sqrt(8 / 7) == pytest.approx(2.3646, abs=0.003)  # t of 7


# ---- what is said


def test_headers_that_differ_are_named_by_path(say):
    plans = [{"services": [{"model": "m", "pools": [{"name": "p", "replicas": n}]}]} for n in (4, 5)]  # fmt: skip
    a, b = (run(say, seed, sha=sha, plan=plan, requests=60) for seed, sha, plan in zip((1, 2), ("aa", "bb"), plans, strict=True))  # fmt: skip
    found = diff(a, b)

    assert not found.is_paired
    assert "seed: 1 and 2" in found.apart
    assert "traffic: aa and bb" in found.apart
    assert "plan.services[0].pools[0].replicas: 4 and 5" in found.apart


def test_a_long_list_of_what_is_unlike_is_cut_and_counted(say):
    a, b = (run(say, 1, requests=60, plan={str(k): n for k in range(20)}) for n in (1, 2))

    assert [text for text in diff(a, b).apart if text.startswith("plan: ")] == ["plan: 14 more"]


def test_models_and_pools_of_one_run_only_are_named_and_not_compared(say):
    a = run(say, 1, requests=60)
    b = fold([say.header(), say.up("a"), say.up("c", model="n", pool="z"), *say.whole(1, 0.0), *say.whole(2, 0.0, replica="c", model="n")])  # fmt: skip
    found = diff(a, b)

    assert any("pool q, z" in text for text in found.notes)
    assert any("model n" in text for text in found.notes)
    assert {row.of for row in found.rows} == {"run", "model m", "pool p"}


def test_too_few_requests_are_not_judged(say):
    found = diff(run(say, 1, requests=30), run(say, 2, requests=30), SLO)

    assert {row.verdict for row in found.rows} == {"not judged"}
    assert "too few requests for intervals: 40 or more are needed" in found.notes
    assert "?" in diff_text(found)


def test_an_empty_run_can_be_compared(say):
    found = diff(fold([say.header()]), fold([say.header()]))

    assert found.rows == ()


def test_the_same_trace_with_other_requests_in_the_record_is_not_paired(say):
    found = diff(run(say, 1, sha="x"), run(say, 1, sha="x", requests=599))

    assert not found.is_paired
    assert any("not paired" in note for note in found.notes)


def test_different_promises_are_said(say):
    plans = [{"services": [{"model": "m", "slo": {"ttft": t}}]} for t in ("1 s", "2 s")]
    found = diff(*(run(say, 1, requests=60, plan=plan) for plan in plans))

    assert any("different SLOs" in note for note in found.notes)


def test_text_and_object_say_the_same(say):
    found = diff(run(say, 1), run(say, 2, scale=1.5), SLO)
    raw = json.loads(json.dumps(diff_json(found)))
    text, everything = diff_text(found), diff_text(found, everything=True)

    for one in (text, everything):
        assert max(map(len, one.splitlines())) <= 80
    assert len(raw["rows"]) == len(found.rows)
    assert raw["rows"][0]["verdict"] == found.rows[0].verdict
    assert everything.count("told apart") >= sum(row.verdict == "not told apart" for row in found.rows)  # fmt: skip
    assert "that are not told apart: --all" in text
