"""The whole node, as a person starts it: two real engines, one endpoint, and nothing left when it stops.

Greedy text is compared within one engine only: the two round differently, and differ from the first token on some prompts.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from polypod.policy.lifecycle import Validator
from polypod.record import Step, read
from polypod.serve.engines.embedded import embedded_weights
from polypod.simulate.replay import replay

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]

MODEL = "SmolLM2-135M-Instruct"
REPLICAS = ("llama.cpp-0", "openvino-0") if os.cpu_count() != 1 else ("llama.cpp-0",)


@dataclass(frozen=True)
class Node:
    process: subprocess.Popen[str]
    ready: dict[str, Any]
    state: Path

    @property
    def url(self) -> str:
        return str(self.ready["endpoint"])

    @property
    def record(self) -> Path:
        return next(self.state.glob("polypod/runs/*/record.jsonl"))


def start(state: Path, *arguments: str) -> subprocess.Popen[str]:
    with (state / "stderr").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "polypod", "up", *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"XDG_STATE_HOME": str(state)},
        )


def running(state: Path) -> list[int]:
    """Engine processes of this test's nodes, by the state folder in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(state).encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def engine_process(state: Path, name: str) -> int:
    for process in running(state):
        if name.encode() in Path(f"/proc/{process}/cmdline").read_bytes():
            return process
    msg = f"no {name} process"
    raise AssertionError(msg)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def node(state: Path) -> Iterator[Node]:
    process = start(state, "--port", "0", "--json")
    assert process.stdout is not None
    text, depth = "", 0
    for line in process.stdout:  # one object, then silence
        text += line
        depth += line.count("{") - line.count("}")
        if depth == 0:
            break
    assert text, (state / "stderr").read_text()
    yield Node(process=process, ready=json.loads(text), state=state)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, (state / "stderr").read_text()
    process.stdout.close()
    assert running(state) == []


@pytest.fixture
def client(node: Node) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=node.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def chat(client: openai.OpenAI, text: str, *, replica: str | None = None, most: int = 24) -> Any:
    return client.chat.completions.with_raw_response.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        max_tokens=most,
        temperature=0,
        extra_headers={"x-polypod-replica": replica} if replica else {},
    )


def test_both_engines_answered_the_question_beside_their_predictions(node: Node) -> None:
    answers = node.ready["answers"]
    assert [one["replica"] for one in answers] == list(REPLICAS)
    for one in answers:
        assert "Paris" in one["text"]
        assert one["predicted"]["ttft_s"]["fast"] < one["predicted"]["ttft_s"]["slow"]
        assert one["ttft_s"] > 0
        assert one["tpot_s"] > 0
    assert {one["replica"] for one in node.ready["warm_up"]} == set(REPLICAS)


def test_each_engine_is_pinned_to_its_own_cores(node: Node) -> None:
    pools = node.ready["plan"]["services"][0]["pools"]
    fleet = node.ready["plan"]["fleet"]
    for pool, module in zip(pools, ("llama_cpp_server", "openvino_server"), strict=False):
        process = engine_process(node.state, module)
        assert os.sched_getaffinity(process) == set(fleet[pool["on"]]["cores"])


def test_the_official_client_gets_models_and_answers_streamed_or_not(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list()] == [MODEL]
    whole = chat(client, "Name a colour.").parse()
    assert whole.choices[0].message.content
    assert whole.usage.completion_tokens > 0
    parts = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name a colour."}],
        max_tokens=8,
        stream=True,
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices)


@pytest.mark.parametrize("replica", REPLICAS)
def test_one_engine_gives_the_same_greedy_text_twice_streamed_or_not(
    client: openai.OpenAI, replica: str
) -> None:
    question = "List three animals."
    first, second = (chat(client, question, replica=replica) for _ in range(2))
    assert first.headers["x-polypod-replica"] == replica
    text = first.parse().choices[0].message.content
    assert second.parse().choices[0].message.content == text
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": question}],
        max_tokens=24,
        temperature=0,
        stream=True,
        extra_headers={"x-polypod-replica": replica},
    )
    assert "".join(part.choices[0].delta.content or "" for part in stream if part.choices) == text


def test_curl_gets_an_answer(node: Node) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    done = subprocess.run(
        ["curl", "-sS", "--fail", f"{node.url}/chat/completions", "-d", json.dumps(body)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


@pytest.mark.parametrize("replica", REPLICAS)
def test_bad_requests_get_the_openai_error_and_the_node_keeps_serving(
    client: openai.OpenAI, replica: str
) -> None:
    with pytest.raises(openai.BadRequestError, match="4096") as caught:
        chat(client, "Hi", most=100_000)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="context"):
        chat(client, "word " * 6000, replica=replica)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hi"}])
    assert chat(client, "Hi", replica=replica, most=2).parse().choices


def test_metrics_and_health_say_what_is_up(node: Node) -> None:
    base = node.url.removesuffix("/v1")
    with urllib.request.urlopen(f"{base}/healthz") as answer:
        health = json.load(answer)
    assert {one["replica"]: one["state"] for one in health["replicas"]} == dict.fromkeys(
        REPLICAS, "up"
    )
    with urllib.request.urlopen(f"{base}/metrics") as answer:
        text = answer.read().decode()
    assert f'polypod_replica_up{{model="{MODEL}",replica="{REPLICAS[0]}"}} 1.0' in text


@pytest.mark.skipif(len(REPLICAS) < 2, reason="a second replica needs a second core")
def test_killing_an_engine_under_load_fails_no_request_that_had_not_begun(
    node: Node, client: openai.OpenAI
) -> None:
    failures: list[str] = []
    done: list[str] = []

    def one(number: int) -> None:
        try:
            answer = chat(client, f"Tell me about the number {number}.", most=16)
            done.append(answer.headers["x-polypod-replica"])
        except openai.OpenAIError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    victim = engine_process(node.state, "openvino_server")
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join()

    assert failures == []  # not streamed: nothing had begun, so all were answered
    assert len(done) == 24
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{node.url.removesuffix('/v1')}/healthz") as answer:
            states = {
                one["replica"]: (one["epoch"], one["state"])
                for one in json.load(answer)["replicas"]
            }
        if states["openvino-0"] == (2, "up"):
            break
        time.sleep(0.5)
    assert states["openvino-0"] == (2, "up")
    assert chat(client, "Hi", replica="openvino-0", most=2).parse().choices


def test_the_live_record_replays_and_keeps_the_lifecycle(node: Node) -> None:
    time.sleep(1.5)  # the record is written twice a second
    lines = list(read(node.record))
    assert replay(lines) is None
    validator = Validator()
    for line in lines:
        if isinstance(line, Step):
            validator.feed(line.event, line.actions)
    assert MODEL in node.record.read_text()


def test_no_file_of_a_run_holds_a_word_of_a_prompt_or_an_answer(
    node: Node, client: openai.OpenAI
) -> None:
    odd = "xylophonistic quandary"
    answer = chat(client, f"Repeat after me: {odd}", most=24).parse().choices[0].message.content
    with pytest.raises(openai.BadRequestError):
        chat(client, f"{odd} " * 3000)  # longer than the context: engines explain such things
    with pytest.raises(openai.BadRequestError):
        chat(client, odd, most=100_000)
    time.sleep(1.5)  # the record is written twice a second
    files = [path for path in node.state.rglob("*") if path.is_file()]
    assert node.record in files
    for path in files:
        text = path.read_bytes().decode(errors="replace")
        assert odd not in text, path
        assert "Tell me about" not in text, path
        assert answer is None or len(answer) < 20 or answer not in text, path


def test_the_plan_that_was_served_can_be_simulated(node: Node, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"2026-01-01 00:00:{second:02d}.0,60,20" for second in range(0, 60, 2)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows, ""]))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "polypod", "simulate", str(node.record.with_name("plan.yaml"))),
            *("--trace", str(trace), "--json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    summary = json.loads(done.stdout)
    assert summary["finished"] == len(rows)
    assert 0.01 < summary["ttft"]["p50_s"] < 2.0


def test_a_taken_port_is_said_before_any_engine_starts(state: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(tmp_path, "--port", str(port))
        assert process.wait(30) == 2
    assert process.stdout is not None
    process.stdout.close()
    error = (tmp_path / "stderr").read_text()
    assert f"process {os.getpid()} (" in error
    assert f") listens on 127.0.0.1:{port}; stop it, or choose a free port with --port" in error
    assert "Traceback" not in error


def test_a_model_cut_short_is_refused_and_nothing_is_left(state: Path, tmp_path: Path) -> None:
    whole = embedded_weights().read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(whole[: len(whole) // 2])
    process = start(tmp_path, str(short), "--port", "0")
    assert process.wait(60) == 2
    assert process.stdout is not None
    process.stdout.close()
    assert "is cut short" in (tmp_path / "stderr").read_text()
    assert running(tmp_path) == []


def test_an_engine_that_dies_at_start_shows_its_last_lines_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    broken = tmp_path / "broken.gguf"
    data = bytearray(embedded_weights().read_bytes())
    at = data.index(b"llama.block_count")  # the header stays whole, and no engine can load it
    data[at : at + 17] = b"llama.block_cound"
    broken.write_bytes(data)
    process = start(tmp_path, str(broken), "--port", "0")
    assert process.wait(120) == 2
    assert process.stdout is not None
    process.stdout.close()
    error = (tmp_path / "stderr").read_text()
    assert "Traceback" not in error.split("its last lines")[0]
    assert running(tmp_path) == []


def test_once_answers_stops_and_exits_zero(state: Path) -> None:
    process = start(state, "--port", "0", "--once")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Paris" in out
    assert "endpoint" in out
    assert max(map(len, out.splitlines())) <= 80
    for line in out.splitlines():
        if line.startswith("warm-up"):
            assert "x the predicted time" in line


def test_ctrl_c_while_the_engines_load_leaves_no_process(tmp_path: Path, state: Path) -> None:
    kept = state / "polypod" / "measurements"
    if kept.exists():  # so that this start goes straight to its engines
        (tmp_path / "polypod").mkdir()
        (tmp_path / "polypod" / "measurements").symlink_to(kept)
    process = start(tmp_path, "--port", "0")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(running(tmp_path)) < 2:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stdout is not None
    process.stdout.close()
    assert running(tmp_path) == []
