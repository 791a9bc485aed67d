"""`polypod simulate --gateways` as a person runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from polypod import record
from polypod.cli import gateways, simulated
from polypod.cli.main import main
from polypod.record import Header

PLAN = """\
polypod: 1
fleet: {a: {accelerator: nvidia-h100-sxm, count: 8}}
services:
- model: meta-llama/Llama-3.1-8B
  slo: {ttft: 2 s, tpot: 50 ms}
  traffic: {input: 1024, output: 64, rate: 40 /s}
  pools:
  - {role: prefill, on: a, layout: {tp: 1}, replicas: 3, precision: {weights: bf16, kv: bf16}, state: modelled}
  - {role: decode, on: a, layout: {tp: 1}, replicas: 5, precision: {weights: bf16, kv: bf16}, state: modelled}
"""
FAULTS = "- {at: 2s, what: crash, where: card a/1, repair: 5s}\n- {at: 3s, what: crash, where: card a/7, repair: 5s}\n"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    (tmp_path / "faults.yaml").write_text(FAULTS)
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


def answer(capsys: Any, plan: Path, *words: str | Path) -> dict[str, Any]:
    flags = ["--requests", "600", "--faults", plan.with_name("faults.yaml"), "--interval", "2s", "--seed", "5"]  # fmt: skip
    code = main(["simulate", str(plan), *map(str, flags), *map(str, words), "--json"])
    assert code == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()


def test_one_gateway_is_the_plain_run(plan, tmp_path, capsys):
    plain = answer(capsys, plan, "-o", tmp_path / "plain")
    one = answer(capsys, plan, "--gateways", "1", "-o", tmp_path / "one")

    assert one == plain
    assert lines(tmp_path / "one/gateway-0/record.jsonl")[1:] == lines(tmp_path / "plain/record.jsonl")[1:]  # fmt: skip


def test_the_processes_change_no_byte(plan, tmp_path, capsys):
    found = [
        answer(capsys, plan, "--gateways", "3", "--processes", str(count), "-o", tmp_path / str(count))
        for count in (1, 2, 3)
    ]  # fmt: skip

    assert found[0] == found[1] == found[2]
    for name in [*(f"gateway-{n}/record.jsonl" for n in range(3)), "summary.json"]:
        assert len({(tmp_path / str(count) / name).read_bytes() for count in (1, 2, 3)}) == 1, name


def test_every_request_is_played_once_and_what_broke_is_told(plan, tmp_path, capsys):
    found = answer(capsys, plan, "--gateways", "3", "-o", tmp_path / "run")

    assert found["requests"] == 600
    assert sum(share["requests"] for share in found["replicas"]) == 2 * found["finished"]
    assert [share["name"] for share in found["replicas"]] == [
        *(f"pool0.0-{n}" for n in range(3)),
        *(f"pool0.1-{n}" for n in range(5)),
    ]
    assert [fault["id"] for fault in found["faults"]] == ["1", "2"]
    headers = []
    for which in range(3):
        path = tmp_path / f"run/gateway-{which}/record.jsonl"
        headers.append(next(iter(record.read(path))))
        assert main(["replay", str(path)]) == 0
    assert all(isinstance(header, Header) for header in headers)
    assert [(header.gateway, header.gateways) for header in headers] == [(n, 3) for n in range(3)]
    assert len({header.trace_sha256 for header in headers}) == 1


def test_a_report_reads_the_records_of_all_gateways_as_the_run(plan, tmp_path, capsys):
    found = answer(capsys, plan, "--gateways", "3", "-o", tmp_path / "run")

    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    for key in (
        "requests",
        "finished",
        "ttft",
        "tpot",
        "e2e",
        "goodput",
        "output_tokens",
        "power",
        "models",
        "duration_s",
    ):
        assert read[key] == found[key], key  # fmt: skip


def test_a_folder_that_held_one_record_holds_those_of_the_gateways_alone(plan, tmp_path, capsys):
    answer(capsys, plan, "-o", tmp_path / "run")
    answer(capsys, plan, "--gateways", "2", "-o", tmp_path / "run")

    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["gateway-0", "gateway-1", "summary.json"]  # fmt: skip


def test_runs_too_long_to_keep_are_counted_to_the_same(plan, capsys, monkeypatch):
    kept = answer(capsys, plan, "--gateways", "3", "--processes", "1")
    monkeypatch.setattr(gateways, "MOST_ROWS", 150)
    counted = answer(capsys, plan, "--gateways", "3", "--processes", "1")

    for key in (
        "requests",
        "finished",
        "rejected",
        "output_tokens",
        "duration_s",
        "goodput",
        "power",
        "retries",
    ):
        assert counted[key] == kept[key], key  # fmt: skip
    for what in ("ttft", "tpot", "e2e"):
        assert counted[what]["p50_s"] == pytest.approx(kept[what]["p50_s"], rel=0.01)
        assert counted[what]["mean_s"] == pytest.approx(kept[what]["mean_s"], rel=1e-9)
    assert [share["requests"] for share in counted["pools"]][1] == kept["pools"][1]["requests"]
    assert "too long to keep" in counted["note"]
    assert simulated.MOST_ROWS > 150


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "2"], "--processes 2 is of a run behind gateways; say --gateways N as well"),
        (["--gateways", "4"], "4 gateways each need a replica of every pool, and pool0.0 has 3; say 3 gateways at most"),
        (["--gateways", "none"], "--gateways 'none' is no number"),
        (["--gateways", "2", "--driver", "plain"], "is of the compiled driver; leave --driver out"),
        (["--gateways", "2", "--arrivals", "closed:4"], "those of a closed loop come from answers"),
        (["--gateways", "3", "--requests", "1"], "no request comes to gateway"),
        (["--gateways", "3", "--requests", "1", "--processes", "3"], "no request comes to gateway"),
        (["--replicas", "pool0.0=0"], "'0' is no number of replicas"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_said(plan, words, message, capsys):
    assert main(["simulate", str(plan), *words]) == 2
    assert message in capsys.readouterr().err


def test_replicas_of_the_plan_may_be_others(plan, capsys):
    found = answer(capsys, plan, "--replicas", "pool0.0=4", "--replicas", "pool0.1=2")

    assert len(found["replicas"]) == 6


def start(plan: Path, folder: Path) -> subprocess.Popen[str]:
    words = ["simulate", str(plan), "--duration", "10h", "--gateways", "2", "--processes", "2", "--sample", "1%", "-o", str(folder)]  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "polypod", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip


def players(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]  # fmt: skip


def wait_for_lines(folder: Path) -> None:
    deadline_s = time.monotonic() + 120
    while not all((folder / f"gateway-{n}/record.jsonl").exists() and (folder / f"gateway-{n}/record.jsonl").stat().st_size > 100_000 for n in range(2)):  # fmt: skip
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_ctrl_c_leaves_records_that_can_be_read(plan, tmp_path, capsys):
    run = start(plan, tmp_path / "run")
    wait_for_lines(tmp_path / "run")
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=240)

    assert run.returncode == 130, err
    assert "ended by Ctrl-C at" in err
    assert "Traceback" not in err
    assert "finished" in out
    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_whole"] is False


def test_a_process_that_is_killed_ends_the_run_with_its_gateways(plan, tmp_path):
    run = start(plan, tmp_path / "run")
    wait_for_lines(tmp_path / "run")
    os.kill(players(run.pid)[1], signal.SIGKILL)
    _, err = run.communicate(timeout=240)

    assert run.returncode == 2
    assert "the process that played gateways 1 died (exit code -9)" in err
    assert "Traceback" not in err
