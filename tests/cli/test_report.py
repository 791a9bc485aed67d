"""polypod report, diff and replay over a record file."""

import gzip
import json

import pytest

from polypod.cli.main import main
from polypod.cost.steptime import StepTime
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp
from polypod.simulate import Scenario, arrivals, play
from polypod.simulate.scenario import Fault
from polypod.workload.traffic import poisson


@pytest.fixture
def run(tmp_path):
    """A folder with the record of a crowded run in which a replica dies and comes back."""
    step = StepTime(tokens=(1, 64, 1024), seconds=(0.01, 0.02, 0.1), kv_token_s=1e-8, pair_s=1e-10)
    ups = tuple(
        ReplicaUp(
            at_s=0.0, replica=f"r{n}", epoch=1, model="m", pool=f"p{n}", role="both", step_time=step, context_tokens=9000,
            kv_capacity_tokens=20_000, max_sequences=8, max_step_tokens=1024,
        )
        for n in range(2)
    )  # fmt: skip
    faults = (Fault(at_s=3.0, replica="r0", what="down"), Fault(at_s=5.0, replica="r0", what="up"))
    settings = PolicySettings(services=(ServiceSettings(model="m", context_tokens=9000),))
    trace = arrivals(poisson(20.0, 200, 500, 40, seed=2), "m")
    plan = {"services": [{"model": "m", "slo": {"ttft": "200 ms", "percentile": 99.0}}]}
    with (tmp_path / "record.jsonl").open("wb") as file:
        play(Scenario(replicas=ups, settings=settings, trace=trace, seed=2, faults=faults, plan=plan), file)  # fmt: skip
    return tmp_path


def printed(capsys, *words):
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_run_is_one_screen_by_its_file_or_its_folder(run, capsys):
    text = printed(capsys, "report", run)

    assert len(text.splitlines()) <= 24
    assert "--slowest --by ttft" in text
    assert text.splitlines()[:12] == printed(capsys, "report", run / "record.jsonl").splitlines()[:12]  # fmt: skip


def test_each_view_is_asked_for_by_its_flag(run, capsys):
    assert "queue" in printed(capsys, "report", run, "--series")
    assert printed(capsys, "report", run, "--slowest", "2").count("dispatched to") >= 2
    assert "TTFT" in printed(capsys, "report", run, "--slowest", "1", "--by", "ttft")
    assert "down1" in printed(capsys, "report", run, "--faults")
    assert printed(capsys, "report", run, "--csv", "--every", "5s").startswith("begin_s,run.arrivals_per_s")  # fmt: skip


def test_one_object_holds_all_that_was_asked_for(run, capsys):
    raw = json.loads(printed(capsys, "report", run, "--json", "--series", "--slowest", "3"))

    assert raw["requests"] == 200
    assert len(raw["slowest"]) == 3
    assert raw["series"]["curves"]
    assert raw["faults"][0]["id"] == "down1"


def test_a_trace_is_written_where_it_is_asked_for(run, capsys, tmp_path):
    out = printed(capsys, "report", run, "--perfetto", tmp_path / "t.json.gz", "--requests", "5")
    trace = json.loads(gzip.decompress((tmp_path / "t.json.gz").read_bytes()))

    assert out == ""
    seen = {event["args"].get("request") for event in trace["traceEvents"] if event["ph"] == "b"}
    assert seen - {None} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--slowest", "0"], "--slowest 0 is no number of requests; give 1 or more"),
        (["--requests", "0"], "--requests 0 is no number of requests"),
        (["--csv", "--json"], "give one of them"),
        (["--csv", "--every", "0s"], "--every 0s is no width; give more than 0"),
        (["--series", "--every", "5"], "'5' has no unit"),
    ],
)
def test_bad_words_are_named(run, capsys, words, problem):
    assert main(["report", str(run), *words]) == 2
    assert problem in capsys.readouterr().err


def test_a_record_that_was_cut_is_read_with_a_note_by_every_verb(run, capsys):
    path = run / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-20])[:-30])

    for words in (["report", path], ["replay", path], ["diff", path, path]):
        assert main([str(word) for word in words]) == 0
        out, err = capsys.readouterr()
        assert "is cut short" in out + err


def test_a_record_that_is_broken_in_the_middle_is_an_error(run, capsys):
    path = run / "record.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[50] = b'{"type":"step"\n'
    path.write_bytes(b"".join(lines))

    for verb in (["report", path], ["replay", path], ["diff", path, path]):
        assert main([str(word) for word in verb]) == 2
        assert "line 51: " in capsys.readouterr().err


def test_a_run_does_not_differ_from_itself(run, capsys):
    text = printed(capsys, "diff", run, run)
    raw = json.loads(printed(capsys, "diff", run, run, "--json"))

    assert text.startswith("0 of ")
    assert "paired by request" in text
    assert raw["is_paired"] is True
    assert {row["difference"] for row in raw["rows"]} == {0.0}
    assert len(printed(capsys, "diff", run, run, "--all")) > len(text)


def test_a_record_replays_from_its_folder(run, capsys):
    assert "every decision is the same" in printed(capsys, "replay", run)
