"""`polypod replay` and `--trace RECORD` as a person runs them. The referee of a replay is the run itself: on its own plan nothing may change."""

import json
from pathlib import Path
from typing import Any

import pytest

from polypod import record
from polypod.cli.main import main
from polypod.record import Header, Step
from polypod.report.fold import read_outcomes

PLAN = """\
polypod: 1
fleet: {a: {accelerator: nvidia-h100-sxm, count: 8}}
services:
- model: meta-llama/Llama-3.1-8B
  slo: {ttft: 2 s, tpot: 50 ms}
  traffic: {input: 1024, output: 64, rate: 60 /s}
  pools:
  - {role: both, on: a, layout: {tp: 1}, replicas: 4, precision: {weights: bf16, kv: bf16}, state: modelled}
"""
TWO_TENANTS = ("--requests", "400", "--tenants", "a=3,b=1:2")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture
def smaller(tmp_path: Path) -> Path:
    path = tmp_path / "smaller.yaml"
    path.write_text(PLAN.replace("replicas: 4", "replicas: 1"))
    return path


def run(capsys: Any, *words: str | Path, code: int = 0) -> dict[str, Any]:
    assert main([*map(str, words), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def ran(plan: Path, tmp_path: Path, capsys: Any) -> Path:
    run(capsys, "simulate", plan, *TWO_TENANTS, "--seed", "3", "-o", tmp_path / "ran")
    return tmp_path / "ran"


def steps(folder: Path) -> list[Step]:
    return [line for line in record.read(folder / "record.jsonl") if isinstance(line, Step)]


@pytest.mark.parametrize("driver", ["compiled", "plain"])
def test_on_its_own_plan_a_run_is_the_same_to_every_step(ran, plan, tmp_path, capsys, driver):
    found = run(
        capsys, "replay", ran, "--plan", plan, "--seed", "3", "--driver", driver, "-o", tmp_path / "again"
    )  # fmt: skip

    assert steps(tmp_path / "again") == steps(ran)
    assert found["diff"]["is_paired"]
    assert found["diff"]["apart"] == []
    assert {row["difference"] for row in found["diff"]["rows"]} == {0.0}
    assert found["requests"] == {"requests": 400, "drawn_lengths": 0, "pinned": 0}


def test_with_prefixes_too(plan, tmp_path, capsys):
    words = ("--turns", "4", "--think", "2s", "--system", "2048", "--requests", "300", "--rate", "20/s", "--block-tokens", "64")  # fmt: skip
    run(capsys, "simulate", plan, *words, "-o", tmp_path / "ran")
    run(capsys, "replay", tmp_path / "ran", "--plan", plan, "-o", tmp_path / "again")
    before, after = steps(tmp_path / "ran"), steps(tmp_path / "again")

    def arrived(found: list[Step]) -> list[Any]:
        return [step.event for step in found if type(step.event).__name__ == "RequestArrived"]

    assert any(event.prefix_hashes for event in arrived(before))
    assert len(arrived(after)) == 300
    for one, other in zip(arrived(before), arrived(after), strict=True):
        assert one.prefix_hashes == other.prefix_hashes
        assert one.at_s == pytest.approx(other.at_s + arrived(before)[0].at_s)


def test_on_fewer_replicas_the_same_requests_wait_longer(ran, smaller, capsys):
    found = run(capsys, "replay", ran, "--plan", smaller)
    rows = {row["name"]: row for row in found["diff"]["rows"] if row["of"] == "run"}

    assert found["diff"]["is_paired"]
    assert rows["ttft_p99_s"]["verdict"] == "differs"
    assert rows["ttft_p99_s"]["b"] > rows["ttft_p99_s"]["a"]
    assert found["b"]["finished"] == 400


def test_the_text_shows_both_runs_side_by_side(ran, smaller, capsys):
    assert main(["replay", str(ran), "--plan", str(smaller)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"A: {ran}, as it ran\nB: its requests on {smaller}\n")
    assert "paired by request" in text


def test_faults_are_played_on_the_other_plan(ran, plan, tmp_path, capsys):
    faults = tmp_path / "faults.yaml"
    faults.write_text("- {at: 2s, what: crash, where: card a/1, repair: 1min}\n")
    run(capsys, "replay", ran, "--plan", plan, "--faults", faults, "-o", tmp_path / "again")
    assert [type(one.event).__name__ for one in steps(tmp_path / "again")].count("ReplicaDown") == 1


def test_a_run_that_was_cut_short_is_played_with_lengths_that_are_drawn(ran, smaller, capsys):
    path = ran / "record.jsonl"
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    assert main(["replay", str(ran), "--plan", str(smaller)]) == 0
    told = capsys.readouterr().err
    assert "is cut short" in told
    assert "did not finish: the lengths of their answers are drawn" in told


def test_a_model_has_its_name_on_the_other_plan(ran, plan, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(PLAN.replace("meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B"))
    assert main(["replay", str(ran), "--plan", str(other)]) == 2
    assert "nearest: Qwen/Qwen3-8B; --model OLD=NEW says which it is" in capsys.readouterr().err

    found = run(
        capsys, "replay", ran, "--plan", other, "--model", "meta-llama/Llama-3.1-8B=Qwen/Qwen3-8B"
    )
    assert found["b"]["finished"] == 400


def test_a_sample_is_refused_and_the_way_out_works(plan, tmp_path, capsys):
    run(capsys, "simulate", plan, "--requests", "2000", "--sample", "10%", "-o", tmp_path / "run")
    assert main(["replay", str(tmp_path / "run"), "--plan", str(plan)]) == 2
    assert f"--trace {tmp_path / 'run'} --scale 10x" in capsys.readouterr().err

    assert main(["simulate", str(plan), "--trace", str(tmp_path / "run")]) == 2
    assert "say --scale 10x to have about as many" in capsys.readouterr().err
    found = run(capsys, "simulate", plan, "--trace", tmp_path / "run", "--scale", "10x")
    assert 1400 < found["requests"] < 2600  # ten times a binomial of 200


def test_a_record_is_a_trace_that_scales(ran, plan, capsys):
    once = run(capsys, "simulate", plan, "--trace", ran)
    twice = run(capsys, "simulate", plan, "--trace", ran / "record.jsonl", "--scale", "2x")
    figures = run(capsys, "traffic", "--trace", ran)

    assert (once["requests"], twice["requests"]) == (400, 800)
    assert twice["output_tokens"] == 2 * once["output_tokens"]
    assert figures["requests"] == 400


def test_a_clients_limit_on_its_answer_is_played(ran, plan, tmp_path, capsys):
    path = ran / "record.jsonl"
    lines = path.read_text().splitlines()
    limited = [line.replace('"max_output_tokens":null', '"max_output_tokens":40') for line in lines]
    path.write_text("\n".join([*limited, ""]))
    for driver in ("compiled", "plain"):
        found = run(capsys, "replay", ran, "--plan", plan, "--driver", driver, "-o", tmp_path / driver)  # fmt: skip
        assert found["b"]["output_tokens"] == 400 * 40
        asked = [one.event.max_output_tokens for one in steps(tmp_path / driver) if type(one.event).__name__ == "RequestArrived"]  # fmt: skip
        assert set(asked) == {40}
    assert steps(tmp_path / "compiled") == steps(tmp_path / "plain")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "a=b"], "--model means nothing without --plan FILE"),
        (["-o", "x"], "-o means nothing without --plan FILE"),
        (["--beside", "x"], "--beside means nothing without --calibrate"),
        (["--plan", "PLAN", "--calibrate"], "say one of them"),
        (["--plan", "PLAN", "--model", "a"], "--model 'a' is not OLD=NEW"),
        (["--plan", "PLAN", "--model", "a=b"], "no request of .* is for 'a'"),
    ],
)
def test_flags_that_mean_nothing_are_errors(ran, plan, words, message, capsys):
    import re

    said = [str(plan) if word == "PLAN" else word for word in words]
    assert main(["replay", str(ran), *said]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_recorded_header_says_which_requests_were_played(ran, plan, tmp_path, capsys):
    run(capsys, "replay", ran, "--plan", plan, "-o", tmp_path / "again")
    header = next(iter(record.read(tmp_path / "again" / "record.jsonl")))
    assert isinstance(header, Header)
    assert header.trace_sha256 is not None
    assert len(read_outcomes(tmp_path / "again")) == 400
