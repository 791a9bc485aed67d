"""Rows played request by request, against the closed form where both are exact, hand counts, and what was measured where caches are full."""

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from importlib import resources

import msgspec
import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour, Load, Times, closed_loop
from polypod.engine.settings import EngineArgs
from polypod.errors import InputError
from polypod.validate.beside import by_kind, paired
from polypod.validate.host import UNKNOWN, host_of
from polypod.validate.played import Played, Worker, drawn, play_load
from polypod.validate.predict import as_sent, played, predict
from polypod.validate.rows import Row
from polypod.validate.scheduling import (  # fmt: skip
    COUNTED_REQUESTS,
    MOST_REQUESTS,
    cache_of,
    requests_sent,
    scheduled,
    sent,
)
from polypod.validate.shipped import scored, shipped_rows

STEP = StepTime(tokens=(1, 8192), seconds=(0.010, 0.500), kv_token_s=0.0, pair_s=0.0)
WORKER = Worker(step=STEP, rank_tokens=1e6)


def play(load: Load, behaviour: Behaviour, *workers: Worker) -> Played:
    return play_load(workers or (WORKER,), load, behaviour, closed_loop(STEP, load, behaviour))


def test_a_client_alone_is_answered_as_the_formula_says() -> None:
    """One client, one length, nothing to wait for: both are exact, and the front end's mean is the formula's."""
    load = Load(input_tokens=1000, output_tokens=100, concurrency=1, start=1.0, length_spread=0)
    for behaviour in (Behaviour(), Behaviour(exclusive_prefill=True), Behaviour(fixed_s=0.02)):
        found, formula = play(load, behaviour), closed_loop(STEP, load, behaviour)
        assert found.ttft_s == pytest.approx(formula.ttft_s)
        assert found.tpot_s == pytest.approx(formula.tpot_s)


def test_what_goes_by_before_the_engine_is_the_formulas() -> None:
    """Alone, with every term of the front end: cold starts, looks at the queue, and launching that each prompt before it waits for too."""
    behaviour = Behaviour(fixed_s=0.02, poll_steps=10, wait_steps=3, launch_s=0.2)
    load = Load(input_tokens=1000, output_tokens=100, concurrency=1, start=1.0, length_spread=0, waves=5, cold_s=30)  # fmt: skip
    assert play(load, behaviour).ttft_s == pytest.approx(closed_loop(STEP, load, behaviour).ttft_s)
    later = replace(load, start=2.5)
    more_s = play(later, behaviour).ttft_s - play(load, behaviour).ttft_s
    assert more_s == pytest.approx(1.5 * (0.2 - STEP.prompt_s(1000.0)))


def test_lengths_are_spread_about_their_means_and_as_many_as_the_waves() -> None:
    load = Load(input_tokens=900, output_tokens=1800, concurrency=50, waves=10)
    trace = drawn(load)
    assert len(trace) == 500
    assert trace.input_tokens.min() >= 800 and trace.input_tokens.max() <= 1000  # noqa: PT018
    assert trace.output_tokens.min() >= 1600 and trace.output_tokens.max() <= 2000  # noqa: PT018
    assert trace.input_tokens.mean() == pytest.approx(900, rel=0.01)


def test_the_burst_at_the_start_is_a_queue_of_half_the_clients_over_the_waves() -> None:
    """Answers so long that prompts after the first wave come alone: TTFT is one's own prompt and the burst's share."""
    load = Load(input_tokens=4000, output_tokens=20_000, concurrency=33, waves=4, length_spread=0.3)
    budget = replace(Behaviour(), step_tokens=4100.0, exclusive_prefill=True)
    own_s = STEP.prompt_s(4000.0)
    found = play(load, budget)
    assert found.ttft_s == pytest.approx(own_s * (1 + 32 / (2 * 4)), rel=0.1)


def test_an_engine_that_schedules_ahead_makes_prompts_wait_for_one_step_more() -> None:
    load = Load(input_tokens=500, output_tokens=200, concurrency=16, waves=20)
    now, ahead = (play(load, Behaviour(fixed_s=0.02, schedules_ahead=is_ahead)) for is_ahead in (False, True))  # fmt: skip
    assert (
        0.010 < ahead.ttft_s - now.ttft_s < 0.040
    )  # decode steps take 11 ms, those with a prompt 40


def test_whole_prompts_do_not_fill_up_a_step() -> None:
    """3,000 tokens and 3,000 fit into 4,096 only if the second is cut."""
    load = Load(input_tokens=3000, output_tokens=2, concurrency=2, waves=1, length_spread=0)
    budget = Behaviour(step_tokens=4096.0)
    cut, whole = play(load, budget), play(load, replace(budget, whole_prompts=True))
    one_s = STEP.prompt_s(3000.0)
    assert whole.ttft_s_N.min() == pytest.approx(one_s)
    assert cut.ttft_s_N.min() == pytest.approx(STEP.prompt_s(4096.0))


def test_prompts_wait_for_ranks_that_have_none() -> None:
    ranks = Worker(step=StepTime(tokens=STEP.tokens, seconds=STEP.seconds, kv_token_s=0, pair_s=0, data_ranks=4), rank_tokens=1e6)  # fmt: skip
    load = Load(input_tokens=2000, output_tokens=400, concurrency=32, waves=6, length_spread=0.2)
    alone, balanced = (play(load, Behaviour(balance_steps=steps), ranks) for steps in (0, 40))
    assert balanced.tpot_s < 0.8 * alone.tpot_s  # prompts side by side hold up the others once
    assert balanced.ttft_s > alone.ttft_s


def test_apart_nothing_interrupts_decode_and_a_token_leaves_an_interval_later() -> None:
    load = Load(input_tokens=1000, output_tokens=100, concurrency=1, length_spread=0)
    behaviour = Behaviour(stream_interval=10.0)
    sender = replace(WORKER, token_transfer_s=1e-5)
    found = play_load((sender, WORKER), load, behaviour, Times(ttft_s=0.1, tpot_s=0.01, decoding=1))
    assert found.tpot_s == pytest.approx(0.010)
    assert found.ttft_s == pytest.approx(STEP.prompt_s(1000.0) + 1000 * 1e-5 + 10 * 0.010)
    side_by_side = replace(sender, step=msgspec.structs.replace(STEP, data_ranks=4))
    ranks = play_load((side_by_side, WORKER), load, behaviour, Times(ttft_s=0.1, tpot_s=0.01, decoding=1))  # fmt: skip
    assert ranks.ttft_s == pytest.approx(found.ttft_s)  # each rank has a link of its own


def test_a_cache_that_holds_no_request_is_named() -> None:
    small = replace(WORKER, rank_tokens=900.0)
    load = Load(input_tokens=1000, output_tokens=100, concurrency=1)
    with pytest.raises(InputError, match=r"room for 900 tokens, a request fills up to 1,225"):
        play(load, Behaviour(), small)


def test_the_play_of_a_row_repeats() -> None:
    one = shipped_rows()[0][0]
    assert np.array_equal(played(one).ttft_s_N, played(one).ttft_s_N)


def test_full_caches_are_seen_where_the_formula_knows_no_memory() -> None:
    """Qwen3-32B on two H100s, 128 clients of 4,096 tokens: measured 19 s to the first token, and the cache holds 70 of them."""
    one = next(
        r
        for r in shipped_rows()[0]
        if r.sweep and r.backend == "vllm" and r.workers.layout.tp == 2 and r.concurrency == 128
        and r.input_tokens == 4096 and r.output_tokens == 128
    )  # fmt: skip
    assert one.ttft_s is not None
    assert one.ttft_s > 18
    assert predict(one).ttft_s < one.ttft_s / 5
    assert played(one).ttft_s == pytest.approx(one.ttft_s, rel=0.25)


def test_scripts_and_defaults_say_how_steps_are_put_together() -> None:
    rows, _ = shipped_rows()
    for one in rows:
        found = scheduled(one, Behaviour(), host_of(one))
        assert found.whole_prompts == (one.backend == "trtllm")
        assert found.schedules_ahead == (one.backend != "vllm" or not one.sweep)
        if one.sweep and one.mode == "agg" and one.backend != "sglang":
            assert found.step_tokens == one.input_tokens + one.concurrency + (1000 if one.version == "1.0.0rc3" else 1500)  # fmt: skip
        if one.backend == "trtllm" and one.mode == "agg" and not one.sweep:
            assert found.balance_steps == (0 if one.workers.layout.dp == 1 else 60 if "DeepSeek" in one.model else 50)  # fmt: skip
    early = next(r for r in rows if r.backend == "trtllm" and "DeepSeek" in r.model and r.measured == "2025-11" and r.mode == "agg")  # fmt: skip
    nominal = round(early.input_tokens / 0.9)
    assert early.concurrency + nominal + 64 <= scheduled(early, Behaviour(), UNKNOWN).step_tokens <= early.concurrency + nominal + 127  # fmt: skip
    late = replace(early, measured="2026-02")
    assert scheduled(late, Behaviour(), UNKNOWN).step_tokens == max(8192, scheduled(early, Behaviour(), UNKNOWN).step_tokens)  # fmt: skip
    drafting = replace(late, speculative=True)
    assert scheduled(drafting, Behaviour(), UNKNOWN).step_tokens < 8192 or nominal > 8000


def test_the_cache_of_sweeps_is_of_the_weights_width() -> None:
    one = next(r for r in shipped_rows()[0] if r.sweep and r.backend == "trtllm" and r.precision.startswith("fp8"))  # fmt: skip
    assert cache_of(one, "bf16") == "fp8"
    assert cache_of(replace(one, sweep=False), "bf16") == "bf16"
    assert cache_of(replace(one, backend="vllm"), "bf16") == "bf16"


def test_playing_beats_the_formula_on_benchmark_dumps_of_one_place_without_drafts() -> None:
    """What it must reach, on every fourth row; the accuracy page has all of them."""
    rows = [r for r in shipped_rows()[0] if not r.sweep and r.mode == "agg" and not r.speculative]
    pairs, reasons = paired([scored(one) for one in rows[::4]])
    assert sum(reasons.values()) < 0.02 * len(rows)
    lines = {one.metric: one for one in by_kind(pairs) if one.name == "all"}
    assert lines["ttft"].of_play.median_abs_error < lines["ttft"].formula.median_abs_error
    assert lines["tpot"].of_play.median_abs_error < 1.05 * lines["tpot"].formula.median_abs_error


def test_sweeps_are_played_as_they_were_sent_and_not_as_the_formula_was_set() -> None:
    """Twenty requests a client, as their means tell, which the formula takes for 8.5; dumps are the same to both."""
    rows, _ = shipped_rows()
    sweep = next(r for r in rows if r.version == "1.0.0rc3" and r.concurrency == 8)
    most = next(r for r in rows if r.version == "1.0.0rc3" and r.concurrency == 128)
    assert (len(played(sweep).ttft_s_N), len(played(most).ttft_s_N)) == (160, 2000)
    assert len(played(sweep, said=EngineArgs(requests_per_client=3)).ttft_s_N) == 24
    load = sent(
        sweep, Load(input_tokens=9, output_tokens=9, concurrency=8, start=2.7, length_spread=0)
    )
    assert (load.start, load.waves, load.length_spread) == (1.2, 20, 0)
    assert load.input_tokens == 9 + 35  # a message in the template of Llama 3.1
    assert as_sent(sweep).ttft_s < predict(sweep).ttft_s
    dump = next(r for r in rows if not r.sweep and r.mode == "agg")
    assert as_sent(dump).ttft_s == predict(dump).ttft_s
    assert sent(dump, load) == load


def is_mean_of(ms: str, requests: int) -> bool:
    """Whether it is a sum of whole nanoseconds over so many, as near as a double can tell."""
    total_ns = Fraction(ms) * 10**6 * requests
    return abs(total_ns - round(total_ns)) <= 2 * Fraction(math.ulp(float(ms))) * 10**6 * requests


def test_means_of_sweeps_tell_how_many_requests_they_are_of() -> None:
    """TTFT and TPOT both, less at most two requests that are missing from either. Other numbers do not fit."""
    text = resources.files("polypod.validate").joinpath("data/serving.csv").read_text()
    lines = csv.DictReader(text.splitlines())
    means = {line["id"]: (line["silicon_ttft_ms"], line["silicon_tpot_ms"]) for line in lines}
    rows = [row for row in shipped_rows()[0] if row.sweep and (row.backend, row.version) in COUNTED_REQUESTS]  # fmt: skip

    def fitting(each: Callable[[Row], float]) -> int:
        counts = [round(each(row) * row.concurrency) for row in rows]
        return sum(
            any(all(is_mean_of(ms, count - lost) for ms in means[row.id]) for lost in range(3))
            for row, count in zip(rows, counts, strict=True)
        )

    assert len(rows) > 450
    assert fitting(requests_sent) > 0.98 * len(rows)
    for other in (8.0, 10.0, 16.0, 32.0):
        assert fitting(lambda row, each=other: min(each, MOST_REQUESTS / row.concurrency)) < 0.5 * len(rows)  # fmt: skip


def test_without_what_was_set_on_sweeps_the_play_is_twice_as_near_as_the_formula() -> None:
    """Every sixth row of the sweeps: TTFT, by the load that was sent, of the formula and played."""
    rows = [r for r in shipped_rows()[0] if r.sweep and r.mode == "agg"]
    pairs, _ = paired([scored(one) for one in rows[::6]])
    found = next(one for one in by_kind(pairs) if one.name == "all" and one.metric == "ttft")
    assert found.of_play.median_abs_error < 0.17
    assert found.of_play.median_abs_error < found.as_sent.median_abs_error / 2
