"""`polypod sweep` as a person runs it, stops it and has it killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polypod.cli.main import main

SWEEP = """\
model: llama-3.1-8b
on: [nvidia-h200-sxm:1, nvidia-h100-sxm:1]
input: [500, 700, 900, 1100, 1300, 1500]
tpot: 30 ms
also: [{on: nvidia-h200-sxm:1, input: 500, tpot: 1 us}, {model: no-such, on: nvidia-h200-sxm:1, input: 500}]
"""
POINTS = 14


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
    return tmp_path


def start(folder: Path, *more: str, shell: str = "exec") -> subprocess.Popen[str]:
    command = ["bash", "-c", f'{shell} "$@"', "-", sys.executable, "-m", "polypod", "sweep", "sweep.yaml", "-o", "out.csv", *more]  # fmt: skip
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip


def kept(folder: Path) -> int:
    parts = (folder / "out.csv.parts").glob("*.jsonl")
    return sum(part.read_bytes().count(b"\n") for part in parts)


def wait_for(folder: Path, count: int) -> None:
    deadline_s = time.monotonic() + 60
    while kept(folder) < count:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "spent_s"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The rows of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "sweep.yaml").write_text(SWEEP, encoding="utf-8")
    run = start(folder)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert f"{POINTS}: 12 with a plan, 1 infeasible, 1 with an error" in out
    assert "first error   no-such on nvidia-h200-sxm:1: no model is called 'no-such'" in out
    assert max(map(len, out.splitlines())) <= 80
    assert len([line for line in err.splitlines() if " points, " in line]) <= 10
    assert sorted(path.name for path in folder.iterdir()) == ["out.csv", "sweep.yaml"]
    return rows(folder)


def ended(folder: Path, whole: list[dict[str, str]], count: int) -> None:
    """The same command again goes on with what was kept, and ends with the rows of an undisturbed run."""
    run = start(folder)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert f"{count} of {POINTS} points were finished before and are taken over" in err
    assert rows(folder) == whole
    assert sorted(path.name for path in folder.iterdir()) == ["out.csv", "sweep.yaml"]


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers(pid: int) -> list[int]:
    """Spawned processes that answer points; multiprocessing has one more, its resource tracker."""
    return [
        one for one in children(pid) if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()
    ]


def runs(pid: int) -> bool:
    """Whether the process is there, and has not ended unburied."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_rows_stand_in_the_order_of_the_file(whole: list[dict[str, str]]) -> None:
    order = [(row["on"], row["input_tokens"]) for row in whole]
    lengths = ["500", "700", "900", "1100", "1300", "1500"]
    assert order[:12] == [(f"nvidia-{chip}-sxm:1", n) for chip in ("h200", "h100") for n in lengths]
    assert [row["status"] for row in whole[12:]] == ["infeasible", "error"]


def test_a_sweep_killed_outright_goes_on_where_it_was_and_leaves_no_worker(
    folder: Path, whole: list[dict[str, str]]
) -> None:
    run = start(folder, "--jobs", "2")
    wait_for(folder, 3)
    orphans = workers(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert not (folder / "out.csv").exists()
    assert len(orphans) == 2
    deadline_s = time.monotonic() + 30
    while any(runs(pid) for pid in orphans):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    ended(folder, whole, kept(folder))


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(
    folder: Path, whole: list[dict[str, str]]
) -> None:
    run = start(folder)
    wait_for(folder, 3)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the workers hear it too
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert f"{kept(folder)} of {POINTS} points are finished and kept in out.csv.parts; say the same command again to go on" in err  # fmt: skip
    assert "Traceback" not in err
    ended(folder, whole, kept(folder))


def test_ctrl_c_while_workers_start_is_as_quiet(folder: Path) -> None:
    run = start(folder)
    deadline_s = time.monotonic() + 30
    while len(workers(run.pid)) < 1:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert f"none of {POINTS} points was finished" in err
    assert "Traceback" not in err
    assert [path.name for path in folder.iterdir()] == ["sweep.yaml"]


def test_a_worker_that_is_killed_in_the_middle_loses_nothing(
    folder: Path, whole: list[dict[str, str]]
) -> None:
    run = start(folder, "--jobs", "2")
    wait_for(folder, 3)
    os.kill(workers(run.pid)[0], signal.SIGKILL)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert rows(folder) == whole


def test_a_disk_that_fills_ends_the_run_with_what_is_kept_and_the_rest_follows(
    folder: Path, whole: list[dict[str, str]]
) -> None:
    run = start(folder, shell="ulimit -f 5; exec")  # no file over 5 kB, as a disk that is full in the middle of a line  # fmt: skip
    _, err = run.communicate(timeout=60)
    assert run.returncode == 2
    assert "out.csv.parts: cannot be written" in err
    assert "Traceback" not in err
    (part,) = (folder / "out.csv.parts").glob("*.jsonl")
    assert part.stat().st_size == 5 * 1024
    assert not part.read_bytes().endswith(b"\n")
    ended(folder, whole, kept(folder))


def test_no_resume_begins_anew(folder: Path, whole: list[dict[str, str]]) -> None:
    run = start(folder)
    wait_for(folder, 2)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate(timeout=60)
    again = start(folder, "--no-resume")
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "taken over" not in err
    assert rows(folder) == whole


def test_without_a_file_the_table_is_on_stdout_and_json_is_one_object(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "sweep.yaml").write_text("{model: llama-3.1-8b, on: [nvidia-h200-sxm:1, no-such:1], tpot: 30 ms}")  # fmt: skip
    words = ["sweep", "sweep.yaml", "--columns", "on,status,replicas"]
    assert main(words) == 0
    assert capsys.readouterr().out == "on,status,replicas\nnvidia-h200-sxm:1,ok,1\nno-such:1,error,\n"  # fmt: skip
    assert main([*words, "--json", "--jobs", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0] == {"on": "nvidia-h200-sxm:1", "status": "ok", "replicas": 1}
    assert [found[kind] for kind in ("points", "ok", "infeasible", "error", "file")] == [2, 1, 0, 1, None]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("no.yaml",), "no.yaml: cannot be read"),
        (("sweep.yaml", "--jobs", "0"), "--jobs '0' is no number"),
        (("sweep.yaml", "-o", "x.txt"), ".parquet or .csv"),
        (
            ("sweep.yaml", "-o", "no/such/out.csv"),
            "no/such/out.csv.parts: cannot be written: No such file",
        ),
        (("sweep.yaml", "--columns", "x"), "no column 'x'"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_two(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    assert main(["sweep", *words]) == 2
    assert says in capsys.readouterr().err
