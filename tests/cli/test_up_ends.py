"""How a node ends: asked once, asked twice, killed. Over ghosts, so that it starts in a second and answers take as long as planned."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLAN = Path(__file__).parents[2] / "examples" / "three-chips.yaml"
MODEL = "Qwen/Qwen3-32B"


def start(state: Path, *words: str, largest_file: int | None = None) -> subprocess.Popen[str]:
    def limit() -> None:  # what a full disk is like, without one
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    with (state / "stderr").open("a") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "polypod", "up", "--plan", str(PLAN), "--ghost", "--port", "0", "--json", *words],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"XDG_STATE_HOME": str(state)},
            preexec_fn=limit,
        )  # fmt: skip


def ready(process: subprocess.Popen[str], state: Path) -> str:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            return str(json.loads(text)["endpoint"])
    pytest.fail((state / "stderr").read_text())


def stream(endpoint: str, tokens: int, **more: Any) -> Any:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi " * 100}], "max_tokens": tokens, "stream": True} | more  # fmt: skip
    request = urllib.request.Request(f"{endpoint}/chat/completions", json.dumps(body).encode())
    return urllib.request.urlopen(request, timeout=30)


def left(state: Path) -> list[int]:
    """Processes of this test's nodes, by the state folder in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(state).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def until(is_so: Callable[[], bool]) -> None:
    for _ in range(600):
        if is_so():
            return
        time.sleep(0.02)
    pytest.fail("it did not come about in 12 s")


def ended(process: subprocess.Popen[str], state: Path, *, code: int) -> str:
    assert process.wait(30) == code, (state / "stderr").read_text()
    assert process.stdout is not None
    process.stdout.close()
    said = (state / "stderr").read_text()
    assert "Traceback" not in said
    assert "CancelledError" not in said
    assert left(state) == []
    assert list((state / "polypod" / "nodes").glob("*")) == []
    return said


def test_asked_once_it_waits_for_the_answers_under_way(tmp_path: Path) -> None:
    process = start(tmp_path)
    answer = stream(ready(process, tmp_path), 60)
    answer.readline()
    process.send_signal(signal.SIGTERM)
    assert answer.read().endswith(b"data: [DONE]\n\n")
    assert "waiting up to 30s for 1 answers" in ended(process, tmp_path, code=0)


def test_what_takes_longer_than_the_drain_ends_in_words(tmp_path: Path) -> None:
    process = start(tmp_path, "--drain", "200ms")
    answer = stream(ready(process, tmp_path), 4000)
    answer.readline()
    process.send_signal(signal.SIGTERM)
    text = answer.read()
    assert b"node_stopping" in text
    assert b"[DONE]" not in text
    ended(process, tmp_path, code=0)


def test_asked_twice_in_quick_succession_it_ends_at_once_and_in_order(tmp_path: Path) -> None:
    process = start(tmp_path)
    answer = stream(ready(process, tmp_path), 4000, ignore_eos=True)  # some 40 s
    answer.readline()
    process.send_signal(signal.SIGTERM)
    while "waiting up to" not in (tmp_path / "stderr").read_text():  # two that are pending are one
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert b"node_stopping" in answer.read()
    ended(process, tmp_path, code=0)


def test_a_full_disk_ends_the_record_at_a_whole_line_and_nothing_else(tmp_path: Path) -> None:
    process = start(tmp_path, "--ghost-speed", "100x", "--log-prompts", largest_file=40_000)
    endpoint = ready(process, tmp_path)
    for _ in range(150):
        assert stream(endpoint, 2).read().endswith(b"data: [DONE]\n\n")
    time.sleep(1.5)  # the record is written twice a second
    with urllib.request.urlopen(f"{endpoint.removesuffix('/v1')}/metrics") as answer:
        assert "polypod_record_failures_total 1.0" in answer.read().decode()
    assert stream(endpoint, 2).read().endswith(b"data: [DONE]\n\n")
    process.send_signal(signal.SIGTERM)
    said = ended(process, tmp_path, code=0)
    assert said.count("the run goes on without a record") == 1
    assert said.count("prompts are not logged any more") == 1
    for name in ("record", "prompts"):
        (file,) = tmp_path.glob(f"polypod/runs/*/{name}.jsonl")
        lines = file.read_text().splitlines()
        assert len(lines) > 5
        for line in lines:
            json.loads(line)


@pytest.mark.parametrize("times", [1, 3])
def test_asked_while_it_starts_it_leaves_nothing(tmp_path: Path, times: int) -> None:
    process = start(tmp_path)
    until(lambda: "starting engines" in (tmp_path / "stderr").read_text())
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    assert "stopped before the engines were up" in ended(process, tmp_path, code=130)


def test_killed_it_leaves_no_engine_and_the_next_start_says_so(tmp_path: Path) -> None:
    process = start(tmp_path)
    ready(process, tmp_path)
    assert len(left(tmp_path)) >= 2  # itself and its ghosts
    (node,) = (tmp_path / "polypod" / "nodes").glob("*.json")
    sockets = Path(json.loads(node.read_text())["sockets"])
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()
    until(lambda: left(tmp_path) == [])  # its guardian saw to it, before anybody starts another
    assert sockets.exists()

    again = start(tmp_path, "--once")
    again.communicate(timeout=60)
    said = ended(again, tmp_path, code=0)
    assert f"an earlier node (process {process.pid}, http://127.0.0.1:" in said
    assert "crashed; nothing of it was running" in said
    assert not sockets.exists()
