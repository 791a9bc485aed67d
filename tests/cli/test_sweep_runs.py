"""`polypod sweep` over simulations."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from polypod.cli.main import main
from polypod.cli.sweep_runs import _FLAGS, RUNS, read_runs
from polypod.plan.spec import read_yaml
from polypod.sweep.run_rows import FIGURES

PLAN = """\
polypod: 1
fleet: {a: {accelerator: nvidia-h100-sxm, count: 8}}
services:
- model: meta-llama/Llama-3.1-8B
  slo: {ttft: 2 s, tpot: 50 ms}
  traffic: {input: 1024, output: 64, rate: 40 /s}
  pools:
  - {role: both, on: a, layout: {tp: 1}, replicas: 2, precision: {weights: bf16, kv: bf16}, state: modelled}
"""
SWEEP = """\
kind: simulate
plan: plan.yaml
requests: 300
rate: [40 /s, 100 /s]
seed: 0..2
"""
MODEL = "meta-llama/Llama-3.1-8B"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def swept(capsys: Any, *words: str) -> dict[str, Any]:
    assert main(["sweep", "sweep.yaml", "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def played(capsys: Any, *words: str) -> dict[str, Any]:
    assert main(["simulate", "plan.yaml", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "spent_s"} for row in csv.DictReader(file)]


def test_each_row_is_the_run_that_simulate_plays_alone(folder, capsys):
    rows = swept(capsys, "--jobs", "2")["rows"]

    assert [(row["rate"], row["seed"]) for row in rows] == [(rate, seed) for rate in ("40 /s", "100 /s") for seed in range(3)]  # fmt: skip
    for row in (rows[1], rows[5]):
        alone = played(capsys, "--requests", "300", "--rate", row["rate"], "--seed", str(row["seed"]))  # fmt: skip
        assert row["arrived"] == alone["requests"]
        for key in ("finished", "retries", "duration_s", "output_tokens_per_s"):
            assert row[key] == alone[key], key
        for what in ("ttft", "tpot", "e2e"):
            assert [row[f"{what}_{p}_s"] for p in ("mean", "p50", "p90", "p99")] == list(alone[what].values())  # fmt: skip
        assert row["goodput_per_s"] == alone["goodput"]["per_s"]
        (model,) = alone["models"]
        assert row[f"{MODEL} tpot_inside_fraction"] == model["tpot_limit"]["inside_fraction"]
        assert row["mean_w"] == pytest.approx(alone["power"]["mean_w"])
        (pool,) = alone["pools"]
        assert row["busy_fraction"] == pytest.approx(pool["busy_fraction"])
        assert row["slots_fraction"] == pytest.approx(pool["slots_fraction"])


def test_no_figure_has_the_name_of_a_flag():
    """One column cannot be both."""
    assert not set(FIGURES) & {"plan", *_FLAGS}


def test_means_over_seeds_stand_beside_the_rows(folder, capsys):
    found = swept(capsys, "-o", "out.csv")
    rows, means = table(folder / "out.csv"), table(folder / "out-seeds.csv")

    assert found["over_seeds"][0]["seeds"] == 3
    assert [(row["rate"], row["seeds"]) for row in means] == [("40 /s", "3"), ("100 /s", "3")]
    three = [float(row["ttft_p99_s"]) for row in rows[:3]]
    assert float(means[0]["ttft_p99_s"]) == pytest.approx(sum(three) / 3)
    assert float(means[0]["ttft_p99_s low"]) < min(three) < max(three) < float(means[0]["ttft_p99_s high"])  # fmt: skip
    assert "seed" not in means[0]


def test_replicas_faults_and_gateways_are_axes(folder, capsys):
    (folder / "faults.yaml").write_text("- {at: 1s, what: crash, where: card a/0, repair: 1h}\n")
    (folder / "sweep.yaml").write_text(
        "kind: simulate\nplan: plan.yaml\nrequests: 200\nreplicas: [2, 4]\nfaults: [null, faults.yaml]\ngateways: [null, 2]\n"
    )
    rows = swept(capsys)["rows"]

    assert [row["status"] for row in rows] == ["ok"] * 8
    assert [row["faults_begun"] for row in rows] == [0, 0, 1, 1] * 2
    assert [row["faults"] for row in rows] == [None, None, "faults.yaml", "faults.yaml"] * 2
    whole, broken = rows[0], rows[2]
    assert whole["up_fraction"] == 1.0
    assert broken["up_fraction"] == pytest.approx((1 + 1.0 / broken["duration_s"]) / 2, rel=0.02)
    assert rows[4]["slots_fraction"] < whole["slots_fraction"]
    assert rows[3]["arrived"] == 200


def test_a_point_that_cannot_be_played_is_an_error_and_stops_no_other(folder, capsys):
    (folder / "sweep.yaml").write_text("kind: simulate\nplan: plan.yaml\nrequests: 100\nreplicas: [2, x=3]\n")  # fmt: skip
    found = swept(capsys)

    assert (found["ok"], found["error"]) == (1, 1)
    assert "the plan has no pool 'x'" in found["rows"][1]["reason"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: simulate\nplan: plan.yaml\nsede: 1\n", "'sede' is no key of it; nearest: seed"),
        ("kind: simulate\nplan: plan.yaml\nseed: one\n", "invalid int value: 'one' - at `$.seed`"),
        ("kind: simulate\nplan: plan.yaml\ndraw_faults: 3\n", "'3' is neither true nor false - at `$.draw_faults`"),
        ("kind: simulate\nplan: plan.yaml\nsample: 3%\n", "'sample' is no key of it"),
        ("kind: play\nplan: plan.yaml\n", "'play' is no kind of sweep; say plan or simulate"),
        ("kind: simulate\nplan: gone.yaml\n", "gone.yaml"),
    ],
)  # fmt: skip
def test_a_file_that_says_what_no_flag_takes_is_refused_before_anything_runs(folder, text, message, capsys):  # fmt: skip
    (folder / "sweep.yaml").write_text(text)

    assert main(["sweep", "sweep.yaml"]) == 2
    assert message in capsys.readouterr().err


def test_what_is_kept_counts_for_the_same_plan_trace_and_faults_alone(folder):
    (folder / "trace.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,10\n")
    (folder / "sweep.yaml").write_text("kind: simulate\nplan: plan.yaml\ntrace: trace.csv\n")
    (point,) = read_runs(Path("sweep.yaml"), read_yaml(Path("sweep.yaml")), None)

    def version() -> str:
        return RUNS.version(RUNS.source(point))

    first = version()
    assert version() == first
    sent = RUNS.sent(point)
    assert sent.plan == str((folder / "plan.yaml").resolve())
    assert RUNS.version(RUNS.source(sent)) == first
    (folder / "plan.yaml").write_text(PLAN.replace("replicas: 2", "replicas: 3"))
    second = version()
    (folder / "trace.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,11\n")
    assert len({first, second, version()}) == 3


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "polypod", "sweep", "sweep.yaml", "-o", "out.csv", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip


def kept(folder: Path) -> int:
    parts = (folder / "out.csv.parts").glob("*.jsonl")
    return sum(part.read_bytes().count(b"\n") for part in parts)


def workers(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]  # fmt: skip


def test_a_sweep_that_was_stopped_and_had_a_worker_killed_ends_with_the_same_rows(folder):
    (folder / "sweep.yaml").write_text(SWEEP.replace("0..2", "0..14"))
    whole = start()
    _, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    expected = table(folder / "out.csv")
    (folder / "out.csv").unlink()
    run = start("--jobs", "2")
    deadline_s = time.monotonic() + 60
    while kept(folder) < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.005)
    os.kill(workers(run.pid)[0], signal.SIGKILL)
    time.sleep(0.02)
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert "Traceback" not in err
    done = kept(folder)
    if run.returncode == 130:  # unless it was done before it heard
        assert f"{done} of 30 points are finished and kept" in err
        again = start()
        _, err = again.communicate(timeout=120)
        assert again.returncode == 0
        assert f"{done} of 30 points were finished before and are taken over" in err

    assert table(folder / "out.csv") == expected
