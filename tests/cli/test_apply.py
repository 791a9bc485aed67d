"""`polypod apply` as a person types it: against ghosts, and against two real engines under streams."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def start(state: Path, *words: str) -> tuple[subprocess.Popen[str], dict]:
    with (state / "stderr").open("a") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "polypod", "up", "--port", "0", "--json", *words],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"XDG_STATE_HOME": str(state)},
        )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            return process, json.loads(text)
    pytest.fail((state / "stderr").read_text())


def apply(state: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "polypod", "apply", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_STATE_HOME": str(state)},
    )


def stop(process: subprocess.Popen[str], state: Path) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (state / "stderr").read_text()
    assert process.stdout is not None
    process.stdout.close()


def test_ghosts_are_changed_and_what_cannot_be_applied_is_said(tmp_path: Path) -> None:
    plan = str(ROOT / "examples" / "three-chips.yaml")
    alone = apply(tmp_path, plan)
    assert (alone.returncode, "no node runs here: start one with `polypod up`" in alone.stderr) == (2, True)  # fmt: skip

    process, ready = start(tmp_path, "--plan", plan, "--ghost")
    try:
        same = apply(tmp_path, plan, "--node", ready["endpoint"])
        assert "the node has these replicas already" in same.stdout
        changed = tmp_path / "changed.yaml"
        text = (ROOT / "examples" / "three-chips.yaml").read_text()
        changed.write_text(text.replace("queue_requests: 1024", "queue_requests: 9"))
        done = apply(tmp_path, str(changed))
        assert (done.returncode, done.stderr) == (0, "")
        assert "1/1 set limits (queue_requests 1024 to 9)" in done.stdout
        absent = apply(tmp_path, str(tmp_path / "absent.yaml"))
        assert absent.returncode == 2
        other = apply(tmp_path, plan, "--node", "http://127.0.0.1:1")
        assert f"there is {ready['endpoint'].removesuffix('/v1')}" in other.stderr
    finally:
        stop(process, tmp_path)


@pytest.mark.engines
@pytest.mark.timeout(300)
@pytest.mark.skipif(os.cpu_count() == 1, reason="a second replica needs a second core")
def test_one_of_two_real_engines_is_replaced_while_streams_run(tmp_path: Path) -> None:
    import openai

    process, ready = start(tmp_path)
    plan = next(tmp_path.glob("polypod/runs/*/plan.yaml"))
    changed = tmp_path / "changed.yaml"
    text = plan.read_text()
    (most,) = {line.strip() for line in text.splitlines() if "max_sequences" in line}
    changed.write_text(text.replace(most, "max_sequences: 4", 1))
    is_over = threading.Event()
    ended: list[tuple[str, str | None, int]] = []

    def keep_asking() -> None:
        with openai.OpenAI(base_url=ready["endpoint"], api_key="none", max_retries=0, timeout=120) as client:  # fmt: skip
            while not is_over.is_set():
                answer = client.chat.completions.with_raw_response.create(
                    model="SmolLM2-135M-Instruct",
                    messages=[{"role": "user", "content": "Tell me a long story."}],
                    max_tokens=48,
                    stream=True,
                )
                parts = list(answer.parse())
                ended.append((answer.headers["x-polypod-replica"], parts[-1].choices[0].finish_reason, len(parts)))  # fmt: skip

    threads = [threading.Thread(target=keep_asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    dry = apply(tmp_path, str(changed), "--dry-run")
    done = apply(tmp_path, str(changed), "--json")
    is_over.set()
    for thread in threads:
        thread.join()

    assert done.returncode == 0, done.stderr
    assert dry.stdout.count("will") == 2
    steps = [step for step in json.loads(done.stdout)["steps"] if step["state"] == "done"]
    assert [step["does"] for step in steps] == ["retire", "start"]
    assert steps[1]["replica"] == f"{steps[0]['replica']}.2"
    assert all(reason in ("stop", "length") for _, reason, _ in ended)
    assert len({where for where, _, _ in ended}) >= 2
    stop(process, tmp_path)
