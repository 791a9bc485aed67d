"""Loads that engines report, read from recorded output."""

import tomllib
from pathlib import Path

import pytest

from polypod.serve.engines.facts import LoadNames, facts_of
from polypod.serve.engines.load import read_load

FIXTURES = Path(__file__).parent / "fixtures"
ORIGINS = tomllib.loads((FIXTURES / "origins.toml").read_text("utf-8"))


@pytest.mark.parametrize("engine", [*ORIGINS])
def test_recorded_metrics_say_what_their_engine_was_doing(engine: str) -> None:
    origin = ORIGINS[engine]
    text = (FIXTURES / engine / origin["file"]).read_text("utf-8")
    load = read_load(text, facts_of(engine).load)

    assert (load.running, load.waiting, load.kv_fraction) == (origin["running"], origin["waiting"], origin.get("kv_fraction"))  # fmt: skip
    assert origin["kind"] in ("captured", "transcribed", "reconstructed")


def test_an_engine_said_to_be_run_here_has_a_capture_where_its_output_is_its_own() -> None:
    for engine in ("vllm", "llama.cpp", "openvino"):
        assert facts_of(engine).evidence == "run"
        assert ORIGINS[engine]["kind"] == "captured"
    assert facts_of("sglang").evidence == "recorded"
    for engine in ("lmdeploy", "mindie"):
        assert facts_of(engine).evidence == "documented"


NAMES = LoadNames(running="x:run", waiting="x:wait", kv_usage="x:kv")


def test_data_parallel_ranks_add_up_and_the_fullest_cache_counts() -> None:
    text = 'x:run{engine="0"} 2\nx:run{engine="1"} 3\nx:wait{engine="0"} 1\nx:kv{engine="0"} .2\nx:kv{engine="1"} .7'
    load = read_load(text, NAMES)
    assert (load.running, load.waiting, load.kv_fraction) == (5, 1, 0.7)


def test_tensor_parallel_copies_of_a_number_count_once() -> None:
    text = 'x:run{dp_rank="0",tp_rank="0"} 2\nx:run{dp_rank="0",tp_rank="1"} 2\nx:run{dp_rank="1",tp_rank="0"} 4'
    assert read_load(text, NAMES).running == 6


@pytest.mark.parametrize("text", ["", "x:running 3", "x:run NaN", "x:run -1", "x:run +Inf", "x:run three", "# x:run 3"])  # fmt: skip
def test_where_the_gauge_is_not_nothing_is_said(text: str) -> None:
    assert read_load(text, NAMES) is None


def test_of_copies_that_differ_the_largest_counts_and_an_idle_engine_says_none() -> None:
    assert read_load('x:run{tp_rank="0"} 3\nx:run{tp_rank="1"} 2', NAMES).running == 3
    assert read_load("x:run 0.0", NAMES).running == 0


def test_a_name_that_begins_alike_is_another_one() -> None:
    text = 'x:run 1\nx:run_by_reason{reason="a"} 9\nx:wait_seconds_sum 8'
    load = read_load(text, NAMES)
    assert (load.running, load.waiting, load.kv_fraction) == (1, 0, None)


def test_a_label_may_hold_a_brace_in_quotes_or_an_escaped_quote() -> None:
    assert read_load('x:run{m="a\\"b"} 2', NAMES).running == 2
