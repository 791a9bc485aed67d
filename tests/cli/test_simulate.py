"""`polypod simulate` as a person runs it."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from polypod import record
from polypod.cli import simulated
from polypod.cli.main import main
from polypod.record import END, Header, Measure, Step
from polypod.report.fold import read_outcomes

PLAN = """\
polypod: 1
fleet: {a: {accelerator: nvidia-h100-sxm, count: 8}}
services:
- model: meta-llama/Llama-3.1-8B
  slo: {ttft: 2 s, tpot: 50 ms}
  traffic: {input: 1024, output: 64, rate: 40 /s}
  pools:
  - {role: both, on: a, layout: {tp: 1}, replicas: 4, precision: {weights: bf16, kv: bf16}, state: modelled}
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def answer(capsys: Any, *words: str | Path) -> dict[str, Any]:
    code = main(["simulate", *map(str, words), "--json"])
    assert code == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_both_drivers_give_one_record_and_one_summary(plan, tmp_path, capsys):
    words = (plan, "--requests", "300", "--seed", "3")
    compiled = answer(capsys, *words, "-o", tmp_path / "compiled")
    plain = answer(capsys, *words, "-o", tmp_path / "plain", "--driver", "plain")

    records = [(tmp_path / name / "record.jsonl").read_bytes() for name in ("compiled", "plain")]
    assert records[0] == records[1]
    for key in (
        "requests",
        "finished",
        "ttft",
        "tpot",
        "e2e",
        "goodput",
        "models",
        "output_tokens",
    ):
        assert compiled[key] == plain[key], key


def test_a_summary_without_a_record_is_that_of_the_record(plan, tmp_path, capsys):
    alone = answer(capsys, plan, "--requests", "200")
    written = answer(capsys, plan, "--requests", "200", "-o", tmp_path / "run")

    assert alone == written
    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    for key in ("requests", "finished", "ttft", "tpot", "e2e", "goodput", "output_tokens", "power"):
        assert read[key] == alone[key], key


def test_a_sampled_record_has_its_share_of_requests_whole(plan, tmp_path, capsys):
    answer(capsys, plan, "--requests", "2000", "--sample", "10%", "-o", tmp_path / "run")
    path = tmp_path / "run" / "record.jsonl"
    outcomes = read_outcomes(path)
    header = next(iter(record.read(path)))

    assert isinstance(header, Header)
    assert header.sample == 0.1
    assert 140 < len(outcomes) < 260  # binomial: 200 and four deviations of 13
    assert bool(outcomes.finished.all())
    assert outcomes.is_whole


def test_a_sampled_record_is_not_replayed(plan, tmp_path, capsys):
    answer(capsys, plan, "--requests", "100", "--sample", "50%", "-o", tmp_path / "run")

    assert main(["replay", str(tmp_path / "run" / "record.jsonl")]) == 2
    assert "keeps the steps of 50 % of its requests" in capsys.readouterr().err


def test_a_run_too_long_to_keep_is_counted_in_parts(plan, tmp_path, capsys, monkeypatch):
    faults = tmp_path / "faults.yaml"
    faults.write_text("- {at: 2s, what: crash, where: card a/1, repair: 1min}\n")
    words = (
        plan,
        "--requests",
        "3000",
        "--rate",
        "300/s",
        "--faults",
        faults,
        "--tenants",
        "a=3,b=1",
    )
    exact = answer(capsys, *words)
    monkeypatch.setattr(simulated, "MOST_ROWS", 700)
    coarse = answer(capsys, *words)

    for key in (
        "requests",
        "finished",
        "rejected",
        "rejected_codes",
        "retries",
        "output_tokens",
        "duration_s",
        "goodput",
        "power",
    ):
        assert coarse[key] == exact[key], key
    for key in ("ttft", "tpot", "e2e"):
        assert coarse[key] == pytest.approx(exact[key], rel=0.011), key
    assert coarse["ttft"]["mean_s"] == pytest.approx(exact["ttft"]["mean_s"], rel=1e-9)
    for one, other in zip(coarse["replicas"], exact["replicas"], strict=True):
        for key in ("name", "requests", "output_tokens", "busy_s"):
            assert one[key] == other[key], key
        assert one["slots_fraction"] == pytest.approx(other["slots_fraction"])
    counts = [
        [(group["name"], group["requests"], group["finished"]) for group in found["tenants"]]
        for found in (coarse, exact)
    ]
    assert counts[0] == counts[1]
    assert "too long to keep" in coarse["note"]


def test_faults_are_played_and_noted(plan, tmp_path, capsys):
    faults = tmp_path / "faults.yaml"
    faults.write_text("- {at: 2s, what: crash, where: card a/1, repair: 1min}\n")
    answer(capsys, plan, "--requests", "400", "--faults", faults, "-o", tmp_path / "run")
    lines = list(record.read(tmp_path / "run" / "record.jsonl"))

    downs = [
        line.event.replica for line in lines if isinstance(line, Step) and type(line.event).__name__ == "ReplicaDown"
    ]  # fmt: skip
    assert downs == ["pool0.0-1"]
    assert [line.where for line in lines if isinstance(line, record.FaultNote)] == ["card a/1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sample", "10%"], "--sample 10% is of a record; say where to write it with -o DIR"),
        (["--interval", "0s"], "a series every 0 s is none"),
        (["--sample", "0%", "-o", "run"], "--sample 0% is no part of a whole"),
        (["--arrivals", "closed:4", "--draw-faults"], "say the closed loop's --duration"),
    ],
)
def test_what_cannot_be_played_is_said_before_anything_runs(
    plan, words, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", str(plan), *words]) == 2
    assert message in capsys.readouterr().err


def test_more_than_the_plan_carries_is_said_with_what_it_carries(plan, capsys):
    assert main(["simulate", str(plan), "--requests", "3000", "--rate", "2000/s"]) == 0

    error = capsys.readouterr().err
    assert "requests/s come for meta-llama/Llama-3.1-8B, and its replicas carry about " in error
    assert "rejected" in error


def test_requests_that_no_replica_holds_are_an_error_before_anything_runs(plan, tmp_path, capsys):
    trace = tmp_path / "long.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,900000,5\n1,950000,5\n")

    assert main(["simulate", str(plan), "--trace", str(trace)]) == 2
    assert (
        "holds more than 131,072 tokens, and its shortest prompt has 900,000"
        in capsys.readouterr().err
    )


def test_jobs_are_played_beside_the_plan(plan, tmp_path, capsys):
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("submit_s,cards,minutes,tenant\n0,2,10,a\n60,4,5,b\n")

    assert main(["simulate", str(plan), "--jobs", str(jobs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"] == {"finished": 2}


def test_a_folder_that_cannot_be_made_is_an_error(plan, tmp_path, capsys):
    (tmp_path / "file").write_text("")

    assert main(["simulate", str(plan), "-o", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_ctrl_c_leaves_a_record_that_can_be_read(plan, tmp_path):
    """On a terminal of its own, so that the progress line is seen too."""
    ours, theirs = pty.openpty()
    words = [
        "simulate",
        str(plan),
        "--requests",
        "40000000",
        "-o",
        str(tmp_path / "run"),
        "--sample",
        "1%",
    ]
    command = [sys.executable, "-m", "polypod", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        seen, until_s = b"", time.monotonic() + 60
        while b"requests in flight" not in seen and time.monotonic() < until_s:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        try:
            while True:
                seen += os.read(ours, 4096)
        except OSError:
            pass  # the other end is closed
        out = process.stdout.read() if process.stdout else b""
        code = process.wait(timeout=60)
    os.close(ours)
    lines = list(record.read(tmp_path / "run" / "record.jsonl"))

    assert code == 130
    assert b"events/s" in seen
    assert b"ended by Ctrl-C at" in seen
    assert b"inside the SLO" in out
    assert isinstance(lines[-1], Measure)
    assert END not in {line.name for line in lines if isinstance(line, Measure)}
    assert len(read_outcomes(tmp_path / "run" / "record.jsonl")) > 0


APART = """\
polypod: 1
fleet: {a: {accelerator: nvidia-h200-sxm, count: 64}}
services:
- model: qwen3-8b
  traffic: {input: 1024, output: 64, rate: 40 /s}
  pools:
  - {name: pre, role: prefill, on: a, layout: {tp: 4}, replicas: 2, precision: {weights: bf16, kv: bf16}, state: modelled}
  - {name: dec, role: decode, on: a, layout: {tp: 16}, replicas: 2, precision: {weights: bf16, kv: bf16}, state: modelled}
"""


def test_caches_share_the_network_and_neighbours_slow_steps(tmp_path, capsys):
    path = tmp_path / "apart.yaml"
    path.write_text(APART)
    rows = "- {at: 1s, what: slow-link, where: link node a/0, factor: 50, repair: 1s}"
    (tmp_path / "faults.yaml").write_text(rows)
    network = ("--network", "node-blocking=4")
    for name, words in (
        ("compiled", network),
        ("plain", (*network, "--driver", "plain")),
        ("wide", ()),
    ):
        more = ("--faults", tmp_path / "faults.yaml", *words, "-o", tmp_path / name)
        assert main(["simulate", *map(str, (path, "--requests", "200", *more))]) == 0
        told = capsys.readouterr()
        assert "\ntraffic   scale-out, 400 Gb/s per GPU " in told.out
        slowed = "steps of 2 replicas take 1." in told.err
        assert slowed == bool(words)
    records = [(tmp_path / name / "record.jsonl").read_bytes() for name in ("compiled", "plain", "wide")]  # fmt: skip
    assert records[0] == records[1] != records[2]
    outcomes = read_outcomes(tmp_path / "wide" / "record.jsonl")
    sent_bytes = sum(float(one.value.sum()) for one in outcomes.measured("bytes").values())
    assert (
        sent_bytes == 36 * 2 * 8 * 128 * 2 * outcomes.requests.input_tokens.sum()
    )  # layers, keys and values, heads, dimension, bf16


def test_a_cache_on_a_dead_link_is_given_up_after_as_long_as_is_said(tmp_path, capsys):
    path = tmp_path / "apart.yaml"
    path.write_text(APART.replace("tp: 4}, replicas: 2", "tp: 4}, replicas: 4"))  # on two nodes
    rows = "- {at: 1s, what: crash, where: link node a/0, repair: 20s}"
    (tmp_path / "faults.yaml").write_text(rows)
    asked = ("simulate", path, "--requests", "200", "--faults", tmp_path / "faults.yaml")
    slowest_s = []
    for name, words in (("minute", ()), ("soon", ("--kv-wait", "500ms"))):
        folder = tmp_path / name
        assert main([*map(str, (*asked, *words, "-o", folder))]) == 0
        capsys.readouterr()
        outcomes = read_outcomes(folder / "record.jsonl")
        assert (outcomes.requests.status == 200).all()
        assert outcomes.header is not None
        assert outcomes.header.policy.kv_wait_s == (0.5 if words else 60.0)
        slowest_s.append(float((outcomes.requests.end_s - outcomes.requests.arrival_s).max()))
    assert slowest_s[0] > 15  # waited until the link was back
    assert slowest_s[1] < 10  # went elsewhere


@pytest.mark.parametrize(
    ("text", "said", "problem"),
    [
        (APART, "2", "--kv-wait: '2' has no unit"),
        (APART, "0s", "--kv-wait 0s is no time to wait; it has to be above 0"),
        (None, "2s", "--kv-wait 2s is of caches on their way, and no pool of this plan hands any on"),
    ],
)  # fmt: skip
def test_a_wait_for_caches_that_cannot_be_is_an_error(plan, tmp_path, capsys, text, said, problem):
    path = Path(plan) if text is None else tmp_path / "apart.yaml"
    if text is not None:
        path.write_text(text)
    assert main(["simulate", str(path), "--requests", "5", "--kv-wait", said]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("leaf=12.5",), "--network leaf=12.5: give a number of cards, as leaf=256"),
        (("leef=16",), "nothing is called 'leef' there; nearest: leaf"),
        (("node-blocking=0.5",), "--network node-blocking=0.5: give a ratio of 1 or more"),
        (("leaf-blocking=2",), "--network leaf-blocking is of leaf switches; say how many cards"),
        (("leaf=4",), "a leaf of 4 cards is less than 'a' joins before its network"),
    ],
)  # fmt: skip
def test_a_network_that_cannot_be_is_an_error(plan, capsys, words, problem):
    flags = [word for one in words for word in ("--network", one)]
    assert main(["simulate", str(plan), "--requests", "5", *flags]) == 2
    assert problem in capsys.readouterr().err


def test_a_run_tells_watts_joules_and_co2_and_they_follow_the_weather(plan, capsys):
    words = (plan, "--requests", "400", "--seed", "1", "--cooling", "economiser")
    year = answer(capsys, *words)["power"]
    cold, hot = (answer(capsys, *words, "--outside", at)["power"] for at in ("5C", "35C"))

    assert year["mean_w"] == cold["mean_w"] == hot["mean_w"]
    assert 1 < cold["pue_ratio"] <= year["pue_ratio"] < hot["pue_ratio"]
    for one in (year, cold, hot):
        assert one["site_mean_w"] == pytest.approx(one["mean_w"] * one["pue_ratio"])
        assert one["site_joules_per_token"] == pytest.approx(one["joules_per_token"] * one["pue_ratio"])  # fmt: skip
    assert hot["co2_kg"] / cold["co2_kg"] == pytest.approx(hot["pue_ratio"] / cold["pue_ratio"])


def test_power_is_told_the_same_with_a_record_and_without_and_by_both_drivers(
    plan, tmp_path, capsys
):
    words = (plan, "--requests", "400", "--outside", "20C..38C", "--power-cap", "rack=3.2kW", "--power-cap", "site=4kW")  # fmt: skip
    alone = answer(capsys, *words)
    compiled = answer(capsys, *words, "-o", tmp_path / "compiled")
    plain = answer(capsys, *words, "-o", tmp_path / "plain", "--driver", "plain")

    assert alone["power"] == compiled["power"] == plain["power"]
    records = [(tmp_path / name / "record.jsonl").read_bytes() for name in ("compiled", "plain")]
    assert records[0] == records[1]
    slowed = [line for line in record.read(tmp_path / "plain" / "record.jsonl") if isinstance(line, Measure) and line.name == "slowdown"]  # fmt: skip
    assert {line.of for line in slowed} == {"rack 0 in site"}
    assert max(line.value for line in slowed) > 1


def test_a_long_run_without_a_record_keeps_every_interval(plan, capsys):
    """Many turns of the compiled core, some of which end with nothing in its log."""
    words = (plan, "--requests", "60000", "--interval", "10s")
    power = answer(capsys, *words)["power"]
    assert power["joules_per_token"] * 64 * 60_000 == pytest.approx(
        power["mean_w"] * 60_000 / 40, rel=0.05
    )


def test_the_weather_begins_at_the_hour_that_the_traffic_does(plan, capsys):
    words = (plan, "--requests", "400", "--outside", "5C..35C", "--cooling", "economiser")
    night, noon = (answer(capsys, *words, "--arrivals", f"diurnal:start={at}h")["power"]["pue_ratio"] for at in (3, 15))  # fmt: skip
    assert night == pytest.approx(1.115, abs=0.001)
    assert noon == pytest.approx(1.337, abs=0.001)


def test_the_ends_of_what_chips_draw_are_told_and_can_be_played(plan, capsys):
    told = [answer(capsys, plan, "--requests", "200", "--power", end) for end in ("low", "likely", "high")]  # fmt: skip

    means = [one["power"]["mean_w"] for one in told]
    assert means == sorted(means)
    assert means[0] < means[2]
    ends = told[0]["replica_power"]["pool0.0"]
    assert ends["evidence"] == "datasheet"
    for name in ("idle_w", "prompt_w", "decode_w"):
        assert ends[name]["low"] < ends[name]["likely"] < ends[name]["high"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--power-cap", "site=1kW"], "the power cap of site is 851 W, and its replicas draw"),
        (["--power-cap", "pool x=9kW"], "there is no pool of that name; nearest: pool0.0"),
        (["--outside", "warm"], "--outside warm is no temperature and no file"),
    ],
)
def test_power_that_cannot_be_played_is_refused(plan, capsys, words, why):
    assert main(["simulate", str(plan), "--requests", "10", *words]) == 2
    assert why in capsys.readouterr().err


def test_a_plan_without_traffic_draws_what_steps_of_the_trace_do(plan, tmp_path, capsys):
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 200 * n, "input_length": 1000 + n % 49, "output_length": 64, "hash_ids": []} for n in range(200)]  # fmt: skip
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = answer(capsys, plan, "--trace", trace)["replica_power"]["pool0.0"]
    plan.write_text(PLAN.replace("  traffic: {input: 1024, output: 64, rate: 40 /s}\n", ""))
    found = answer(capsys, plan, "--trace", trace)

    assert found["no_power"] == {}
    assert found["replica_power"]["pool0.0"]["idle_w"] == said["idle_w"]
    assert found["replica_power"]["pool0.0"]["decode_w"]["likely"] >= said["decode_w"]["likely"]


def test_watts_that_nobody_knows_are_not_guessed(tmp_path, capsys):
    """TPU v5p: nobody has published its power."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace("nvidia-h100-sxm", "google-tpu-v5p"))
    assert main(["simulate", str(plan), "--requests", "5"]) == 0
    assert "no watts of pool0.0: no power of" in capsys.readouterr().err
    assert main(["simulate", str(plan), "--requests", "5", "--outside", "30C"]) == 2
    assert "--outside is of watts, and no pool of this plan has any" in capsys.readouterr().err
