"""What a host makes its chips wait for: curves worked by hand, laws of a serial server, and what is set on rows that are not judged."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour, Load, closed_loop
from polypod.validate.held_out_play import (  # fmt: skip
    FOLDS,
    STARTS,
    WAVES,
    Tried,
    chosen_hosts,
    chosen_load,
    held_out,
    kept_lines,
    try_all,
)
from polypod.validate.host import GRIDS, HOSTS, UNKNOWN, Host, host_of, hosted
from polypod.validate.played import Played, Worker, play_load
from polypod.validate.predict import as_sent, played, predict
from polypod.validate.shipped import shipped_rows

STEP = StepTime(tokens=(1, 101, 1001), seconds=(0.010, 0.020, 0.200), kv_token_s=1e-7, pair_s=1e-9)
PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"


def play(step: StepTime, load: Load, behaviour: Behaviour) -> Played:
    worker = Worker(step=step, rank_tokens=1e6)
    return play_load((worker,), load, behaviour, closed_loop(step, load, behaviour))


def test_an_engine_of_which_nothing_is_known_has_the_step_time_of_its_kernels() -> None:
    assert hosted(STEP, UNKNOWN, 8, 64) is STEP
    assert hosted(STEP, Host(spare_tokens=1000), 8, 64).curve_s(50) == STEP.curve_s(50)


@pytest.mark.parametrize("clients", [1, 8, 60, 101, 2000])
def test_steps_with_a_prompt_take_what_launching_takes_at_least(clients: int) -> None:
    """64 layers at 0.5 ms: 32 ms, which the curve passes between two knots."""
    found = hosted(STEP, Host(prompt_layer_s=0.5e-3), clients, 64)
    for tokens in (1, 7, 8, 9, 60, 61, 101, 102, 150, 160, 161, 162, 1001, 2001, 5000):
        expected_s = STEP.curve_s(tokens)
        if tokens > clients:
            expected_s = max(expected_s, 0.032)
        assert found.curve_s(tokens) == pytest.approx(expected_s), tokens


def test_clients_of_data_parallel_ranks_are_counted_on_each() -> None:
    ranks = msgspec.structs.replace(STEP, data_ranks=4)
    found = hosted(ranks, Host(prompt_layer_s=0.5e-3), 34, 64)  # nine on the fullest
    assert found.curve_s(9) == pytest.approx(STEP.curve_s(9))
    assert found.curve_s(10) == pytest.approx(0.032)


def test_a_client_alone_waits_a_gap_and_its_own_share_of_it_at_every_token() -> None:
    load = Load(input_tokens=200, output_tokens=100, concurrency=1, length_spread=0)
    host = Host(gap_s=2e-3, gap_sequence_s=0.3e-3)
    plain, slower = (play(one, load, Behaviour()) for one in (STEP, hosted(STEP, host, 1, 64)))
    assert slower.tpot_s - plain.tpot_s == pytest.approx(2.3e-3)
    assert slower.ttft_s - plain.ttft_s == pytest.approx(2e-3)  # no sequence decodes beside it


@pytest.mark.parametrize("clients", [4, 16, 64])
def test_a_step_a_prompt_at_least_bounds_the_requests_a_second(clients: int) -> None:
    """One prompt a step of 32 ms or more: a serial server, which gives less than one over that and comes near it when full."""
    load = Load(input_tokens=100, output_tokens=20, concurrency=clients, waves=20, length_spread=0)
    one_a_step = Behaviour(step_tokens=100.0 + clients, whole_prompts=True)
    found = play(hosted(STEP, Host(prompt_layer_s=0.5e-3), clients, 64), load, one_a_step)
    requests_per_s = clients / (found.ttft_s + 19 * found.tpot_s)
    assert found.ttft_s_N.max() >= clients * 0.032  # the last of the burst at the start
    assert requests_per_s <= 1.05 / 0.032  # of twenty waves the last has fewer clients in flight
    if clients == 64:
        assert requests_per_s > 0.8 / 0.032


def test_rows_of_other_engines_are_played_without_a_host() -> None:
    rows, _ = shipped_rows()
    dump = next(r for r in rows if not r.sweep and r.mode == "agg")
    assert host_of(dump) == UNKNOWN
    assert host_of(replace(dump, version="1.0.0rc3", backend="trtllm")) == UNKNOWN  # no sweep
    assert np.array_equal(played(dump).ttft_s_N, played(dump, host=UNKNOWN).ttft_s_N)
    assert all(HOSTS[engine] in grid and UNKNOWN in grid for engine, grid in GRIDS.items())
    assert set(GRIDS) == set(HOSTS)


def test_a_prompt_is_tokenised_before_it_is_with_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A client alone sees its first token later by 2.2 us for each of its own tokens and of its template's."""
    rows, _ = shipped_rows()
    row = next(r for r in rows if r.sweep and r.backend == "vllm" and r.precision == "bf16")
    alone = replace(row, concurrency=1.0)
    found_s = played(alone).ttft_s
    monkeypatch.setattr("polypod.validate.predict.TOKENISING_S", 0.0)
    assert found_s - played(alone).ttft_s == pytest.approx(2.2e-6 * (alone.input_tokens + 8))


def test_sweeps_of_8_bits_read_a_cache_of_8_bits_where_the_formula_reads_16() -> None:
    row = next(r for r in shipped_rows()[0] if r.version == "1.0.0rc3" and r.precision == "fp8" and r.concurrency == 64 and r.input_tokens == 4096 and r.output_tokens == 512)  # fmt: skip
    assert as_sent(row).tpot_s < 0.95 * predict(row).tpot_s


@cache
def tried() -> Tried:
    """Rows of each model of two engines' sweeps in which prompts are short and many, so that what hosts take shows."""
    sweeps = [r for r in shipped_rows()[0] if r.sweep and r.workers.layout.tp == 8 and r.output_tokens == 128 and r.input_tokens <= 1024]  # fmt: skip
    of_models = [
        [r for r in sweeps if name in r.model and (r.backend, r.version) == engine][-5:]
        for engine in GRIDS
        for name in ("8B", "32B", "235B")
    ]
    return try_all([row for some in of_models for row in some])


def as_if(host: dict[tuple[str, str], Host], choice: int) -> Tried:
    """The same, measured what these constants give."""
    found = tried()
    tpot_s = [tries[host[row.backend, row.version]][1] for row, tries in zip(found.rows, found.played, strict=True)]  # fmt: skip
    measured = np.stack([found.formula_s_NCM[:, choice, 0], np.array(tpot_s)], axis=1)
    return replace(found, measured_s_NM=measured)


def test_constants_that_made_the_rows_are_found_again() -> None:
    made = {engine: grid[7] for engine, grid in GRIDS.items()}
    rows = as_if(made, 43)
    nothing = np.zeros(len(rows.rows), dtype=bool)
    assert chosen_hosts(rows, nothing) == made
    assert chosen_load(rows, nothing) == 43
    _, play_s = held_out(rows, lambda row: row.id)  # all others tell each
    assert np.array_equal(play_s[:, 1], rows.measured_s_NM[:, 1])


def test_the_formula_with_tokenising_is_set_with_it() -> None:
    rows = as_if({engine: grid[7] for engine, grid in GRIDS.items()}, 43)
    added_s = np.stack([1e-4 * rows.input_tokens_N, np.zeros(len(rows.rows))], axis=1)
    later = replace(rows, measured_s_NM=rows.measured_s_NM + added_s)
    nothing = np.zeros(len(rows.rows), dtype=bool)
    assert chosen_load(later, nothing, 1e-4) == 43
    assert chosen_load(later, nothing) != 43


def test_what_is_judged_has_no_part_in_what_it_is_judged_by() -> None:
    found = tried()
    for name, fold in FOLDS.items():
        (plain, tokenising), play_s = held_out(found, fold)
        for part in {fold(row) for row in found.rows}:
            is_judged = np.array([fold(row) == part for row in found.rows])
            other = found.measured_s_NM * np.where(is_judged[:, None], 3.7, 1.0)
            again = held_out(replace(found, measured_s_NM=other), fold)
            assert np.array_equal(again[0][0][is_judged], plain[is_judged]), name
            assert np.array_equal(again[0][1][is_judged], tokenising[is_judged]), name
            assert np.array_equal(again[1][is_judged], play_s[is_judged]), name


def test_ttft_has_no_part_in_what_the_play_is_set_to() -> None:
    found = tried()
    nothing = np.zeros(len(found.rows), dtype=bool)
    other = found.measured_s_NM * [9.0, 1.0]
    assert chosen_hosts(replace(found, measured_s_NM=other), nothing) == chosen_hosts(found, nothing)  # fmt: skip
    slower = replace(found, measured_s_NM=found.measured_s_NM * [1.0, 2.0])
    assert chosen_hosts(slower, nothing) != chosen_hosts(found, nothing)


def test_where_no_row_tells_the_formula_has_the_constants_of_dumps_and_the_play_none() -> None:
    found = tried()
    every = np.ones(len(found.rows), dtype=bool)
    assert chosen_hosts(found, every) == dict.fromkeys(GRIDS, UNKNOWN)
    assert divmod(chosen_load(found, every), len(WAVES)) == (STARTS.index(1.2), WAVES.index(10.0))


def test_what_is_kept_of_rows_held_out_is_of_the_play_that_ships() -> None:
    """The page's own line of all rows, which the suite makes anew, and the kept line with nothing left out; the play is ahead on both, and with a model left out."""
    kept = {(left, rows, metric): line for left, rows, metric, *line in kept_lines()}
    text = PAGE.read_text(encoding="utf-8")
    for metric in ("TTFT", "TPOT"):
        line = next(one for one in text.splitlines() if one.startswith(f"| all | {metric} |"))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        formula, of_play = cells[3], cells[7]
        assert kept["nothing", "all", metric][3] == of_play
        assert float(of_play.rstrip("%")) < float(formula.rstrip("%"))
        for left_out in ("a model", "a layout"):
            _, plain, tokenising, held = kept[left_out, "all", metric]
            assert float(held.rstrip("%")) < min(float(plain.rstrip("%")), float(tokenising.rstrip("%")))  # fmt: skip


def test_launching_that_steps_take_is_not_waited_for_before_them_as_well() -> None:
    """Qwen3-235B-A22B on eight chips: kernels of a prompt of 128 are computed in half the time that launching them takes."""
    row = next(r for r in shipped_rows()[0] if "235B" in r.model and r.workers.layout.tp == 8 and r.input_tokens == 128 and r.version == "1.0.0rc3")  # fmt: skip
    alone = replace(row, concurrency=1.0)
    none = Host(prompt_layer_s=1e-9)
    assert played(alone, host=UNKNOWN).ttft_s - played(alone, host=none).ttft_s > 0.015
    assert played(alone).ttft_s - played(alone, host=none).ttft_s == pytest.approx(94 * 0.8e-3 - 0.02, abs=0.015)  # fmt: skip
