"""Real engines go on with a greedy answer that was cut: from its tokens to the same end, from its text without a seam.

After every token of several answers: `make continuation`.
"""

import asyncio
import http.client
import json
import socket
from dataclasses import dataclass

import pytest

from polypod.serve.continuation import HOW, opted
from polypod.serve.resume import asking
from polypod.serve.transcript import Leg, Transcript
from polypod.serve.wire import Usage, read_chat

pytestmark = pytest.mark.engines

ENGINES = ("llama.cpp", "openvino")
QUESTION = "Name three colours."
TOKENS = 14
CUTS = (1, 6, 11, 13)


class Connection(http.client.HTTPConnection):
    """Over a unix socket, without the certificates that a client of its own would read for each request."""

    def __init__(self, path):
        super().__init__("engine", timeout=60)
        self._path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class Wire:
    """What `resume` asks an engine beside its chat."""

    def __init__(self, engine):
        self._engine = engine

    def post(self, path, body):
        connection = Connection(self._engine.endpoint.socket)
        connection.request("POST", path, body, self._engine.endpoint.headers)
        response = connection.getresponse()
        status, answer = response.status, response.read()
        connection.close()
        return status, answer

    async def ask(self, path, body):
        return self.post(path, body)


def body_of(question=QUESTION, **more):
    messages = [{"role": "user", "content": question}]
    asked = {"model": "smol", "messages": messages, "temperature": 0, "max_tokens": TOKENS, "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    return json.dumps(asked | more).encode()


def play(engine, transcript, body):
    """One attempt to its end: the leg that heard it, the events as they came, and what went to the client."""
    wire = Wire(engine)
    asked = asyncio.run(asking(engine.name, "r", wire, body, read_chat(body), transcript))
    status, answer = wire.post(asked.path or "/v1/chat/completions", asked.body)
    assert status == 200, answer
    events = [part + b"\n\n" for part in answer.split(b"\n\n") if part.strip()]
    return asked.leg, events, b"".join(asked.leg.take(event) for event in events)


@dataclass
class Whole:
    """What an engine says when nothing breaks."""

    mode: str
    body: bytes
    text: str
    usage: Usage
    events: list[bytes]

    def cut(self, tokens):
        """What there is of it after so many tokens."""
        transcript = new(self.mode, self.body)
        leg = Leg(transcript, hides_ids=self.mode == "exact")
        for event in self.events:
            if transcript.tokens >= tokens:
                break
            leg.take(event)
        return transcript


def new(mode, body):
    return Transcript(opted(mode.encode(), "off", body, is_stream=True))


def whole_of(engine, mode, body):
    transcript = new(mode, body)
    leg, events, _ = play(engine, transcript, body)
    return Whole(mode, body, transcript.text, leg.usage, events)


def gone_on(engine, transcript, body):
    """The answer when the engine has gone on with it, and the usage it ends with."""
    _, _, out = play(engine, transcript, body)
    usages = [json.loads(line[6:])["usage"] for line in out.splitlines() if b'"usage"' in line]
    return transcript.text, usages[-1], out


@pytest.mark.parametrize(("name", "least_same"), [("llama.cpp", len(CUTS)), ("openvino", 2)])
def test_cut_after_one_token_or_another_the_same_engine_ends_the_answer_as_if_nothing_had_been(started, name, least_same):  # fmt: skip
    """OpenVINO rounds a prompt otherwise than tokens one by one, so that a near tie may fall otherwise."""
    whole, same = whole_of(started[name], "exact", body_of()), 0
    for cut in CUTS:
        transcript = whole.cut(cut)
        assert transcript.tokens == cut
        before = transcript.text
        said, counted, _ = gone_on(started[name], transcript, body_of())

        assert said.startswith(before)
        assert counted["prompt_tokens"] == whole.usage.prompt_tokens
        if said == whole.text:
            same += 1
            assert counted["completion_tokens"] == whole.usage.completion_tokens
    assert same >= least_same


@pytest.mark.parametrize("name", ENGINES)
def test_by_its_text_it_goes_on_from_the_last_character(started, name):
    """Every piece that is made elsewhere is kept as it is, and what comes has no second beginning."""
    other = ENGINES[1 - ENGINES.index(name)]
    transcript = whole_of(started[other], "text", body_of()).cut(5)
    before = transcript.text
    said, counted, out = gone_on(started[name], transcript, body_of())

    assert said.startswith(before)
    assert len(said) > len(before)
    assert b'"role"' not in out
    assert before not in said[len(before) :]
    assert counted["completion_tokens"] <= TOKENS


def test_characters_in_several_tokens_are_given_back_as_they_were(started):
    """The 135M model spells out emoji in three tokens each, of which llama.cpp tells the last."""
    body = body_of("Repeat exactly: 🎉 🎊 🥳 🎉 🎊 🥳", max_tokens=24)
    whole = whole_of(started["llama.cpp"], "exact", body)
    transcript = whole.cut(8)
    assert any(len(piece.ids) > 1 for piece in transcript.pieces)

    assert gone_on(started["llama.cpp"], transcript, body)[0] == whole.text


def test_both_engines_are_known_to_go_on(started):
    assert {HOW[name].exact for name in started if name in ENGINES} == {"completion", "ids"}
