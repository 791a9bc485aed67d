"""vLLM and Transformers for real, as a person starts them: `make engines-slow`, which makes their environment and sets POLYPOD_SLOW_MODEL.

Both compute the same model in fp32, so that their greedy text is equal; a node of both loses neither a request nor a stream in silence
when one of them is killed.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from polypod.serve.engines.facts import facts_of
from polypod.serve.engines.load import read_load

MODEL = os.environ.get("POLYPOD_SLOW_MODEL")
pytestmark = [
    pytest.mark.skipif(MODEL is None, reason="slow; make engines-slow"),
    pytest.mark.timeout(1200),
]

NAME = Path(MODEL or "").name
QUESTIONS = (
    "What is the capital of France? Answer in one sentence.",
    "Count from one to twenty in words.",
    "Why does the sea look blue?",
)


@dataclass(frozen=True)
class Node:
    process: subprocess.Popen[str]
    ready: dict[str, Any]
    state: Path

    @property
    def url(self) -> str:
        return str(self.ready["endpoint"])


def running(state: Path) -> dict[int, str]:
    """Processes of this test's nodes, by the state folder in their environment."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(state).encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (
                    (entry / "cmdline").read_bytes().decode().replace("\0", " ")
                )
    return found


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    state = tmp_path_factory.mktemp("state")
    command = [sys.executable, "-m", "polypod", "up", str(MODEL), "--engine", "vllm", "--engine", "transformers", "--context", "1024"]  # fmt: skip
    with (state / "stderr").open("w") as stderr:
        process = subprocess.Popen([*command, "--port", "0", "--json"], stdout=subprocess.PIPE, stderr=stderr, text=True, env=os.environ | {"XDG_STATE_HOME": str(state)})  # fmt: skip
    assert process.stdout is not None
    text, depth = "", 0
    for line in process.stdout:
        text += line
        depth += line.count("{") - line.count("}")
        if depth == 0:
            break
    assert text, (state / "stderr").read_text()
    yield Node(process=process, ready=json.loads(text), state=state)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, (state / "stderr").read_text()
    process.stdout.close()
    assert running(state) == {}


@pytest.fixture
def client(node: Node) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=node.url, api_key="none", max_retries=0, timeout=300) as client:
        yield client


def asked(text: str, replica: str | None = None, **more: Any) -> dict[str, Any]:
    headers = {"x-polypod-replica": replica} if replica else {}
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 48, "temperature": 0, "extra_headers": headers} | more  # fmt: skip


def test_both_answered_beside_their_predictions(node: Node) -> None:
    assert [one["replica"] for one in node.ready["answers"]] == ["vllm-0", "transformers-0"]
    for one in node.ready["answers"]:
        assert "Paris" in one["text"]
        assert 0.1 < one["tpot_s"] / one["corrected"]["tpot_s"] < 10


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_text_is_equal_whole_or_streamed_on_either(client: openai.OpenAI, question: str) -> None:  # fmt: skip
    texts = set()
    for replica in ("vllm-0", "transformers-0"):
        whole = client.chat.completions.create(**asked(question, replica))
        stream = client.chat.completions.create(**asked(question, replica, stream=True))
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        texts |= {whole.choices[0].message.content, "".join(pieces)}
    assert len(texts) == 1
    assert texts != {""}


def test_what_a_request_asks_for_is_kept(client: openai.OpenAI) -> None:
    for replica in ("vllm-0", "transformers-0"):
        short = client.chat.completions.create(**asked(QUESTIONS[1], replica, max_tokens=5))
        assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (5, "length")
        full = client.chat.completions.create(**asked(QUESTIONS[1], replica)).choices[0]
        word = full.message.content.split()[3]
        cut = client.chat.completions.create(**asked(QUESTIONS[1], replica, stop=[word])).choices[0]
        assert cut.finish_reason == "stop"
        assert cut.message.content == full.message.content.partition(word)[0]
        drawn = asked(QUESTIONS[2], replica, temperature=1.0, seed=7, max_tokens=16)
        twice = {client.chat.completions.create(**drawn).choices[0].message.content for _ in range(2)}  # fmt: skip
        assert len(twice) == 1


def test_a_request_that_does_not_fit_is_a_400_of_either(client: openai.OpenAI) -> None:
    for replica in ("vllm-0", "transformers-0"):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**asked("word " * 3000, replica))


def test_a_client_that_leaves_frees_its_place(node: Node, client: openai.OpenAI) -> None:
    """Long answers that nobody reads on are computed no further: vLLM says that none runs, long before they would end."""
    for _ in range(4):
        stream = client.chat.completions.create(**asked(QUESTIONS[1], "vllm-0", stream=True, max_tokens=900, extra_body={"ignore_eos": True}))  # fmt: skip
        next(iter(stream))
        stream.close()
    for _ in range(40):
        load = read_load(asyncio.run(got(sockets(node)["vllm-0"], "/metrics"))[1], facts_of("vllm").load)  # fmt: skip
        if load.running + load.waiting == 0:
            break
        time.sleep(0.5)
    assert load.running + load.waiting == 0


def test_a_killed_engine_is_said_in_the_stream_and_comes_back_the_same(
    node: Node, client: openai.OpenAI
) -> None:
    before = client.chat.completions.create(**asked(QUESTIONS[0], "vllm-0")).choices[0].message.content  # fmt: skip
    stream = client.chat.completions.create(**asked(QUESTIONS[1], "vllm-0", stream=True, max_tokens=600, extra_body={"ignore_eos": True}))  # fmt: skip
    events = iter(stream)
    next(events)
    (server,) = [pid for pid, command in running(node.state).items() if "vllm.entrypoints" in command and "bootstrap" in command]  # fmt: skip
    theirs = {pid for pid in running(node.state) if os.getsid(pid) == server}
    assert len(theirs) >= 3  # the server, its engine, the engine's worker
    os.kill(server, signal.SIGKILL)
    with pytest.raises(
        openai.APIError
    ):  # an error event, or a connection that breaks: no stream that looks whole
        for _ in events:
            pass
    meanwhile = client.chat.completions.create(**asked(QUESTIONS[0]))
    assert meanwhile.choices[0].message.content == before  # of the other engine, in fp32 too
    for _ in range(100):
        if theirs & running(node.state).keys():
            time.sleep(0.1)
    assert not theirs & running(node.state).keys()
    deadline_s = time.monotonic() + 600
    while time.monotonic() < deadline_s:
        with suppress(openai.APIStatusError):
            after = client.chat.completions.create(**asked(QUESTIONS[0], "vllm-0"))
            assert after.choices[0].message.content == before
            break
        time.sleep(2)
    else:
        pytest.fail((node.state / "stderr").read_text())


def test_engines_are_reached_by_nobody_without_the_secret(node: Node) -> None:
    found = sockets(node)
    assert found.keys() == {"vllm-0", "transformers-0"}
    for socket in found.values():
        assert asyncio.run(got(socket, "/v1/models"))[0] == 401


def sockets(node: Node) -> dict[str, Path]:
    """Of the node's engines, by replica."""
    (file,) = [path for path in node.state.rglob("*.json") if "sockets" in path.read_text()]
    folder = Path(json.loads(file.read_text())["sockets"])
    return {path.stem: path for path in folder.glob("*.sock")}


async def got(socket: Path, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as http,
        http.get(f"http://engine{path}") as response,
    ):
        return response.status, await response.text()
