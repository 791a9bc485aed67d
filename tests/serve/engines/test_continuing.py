"""Real engines go on with a greedy answer that was cut: from its tokens to the same end, from its text without a seam.

After every token of several answers: `make continuation`.
"""

import asyncio
import json

import pytest

from polypod.serve.continuation import HOW, opted
from polypod.serve.resume import asking
from polypod.serve.transcript import Leg, Transcript
from polypod.serve.wire import read_chat

pytestmark = pytest.mark.engines

ENGINES = ("llama.cpp", "openvino")
QUESTION = "Name three colours."
TOKENS = 14
CUTS = (1, 6, 11, 13)


class Wire:
    """What `resume` asks an engine beside its chat."""

    def __init__(self, engine):
        self._engine = engine

    async def ask(self, path, body):
        with self._engine.client as client:
            response = client.post(path, content=body, headers=self._engine.endpoint.headers)
        return response.status_code, response.content


def body_of(question=QUESTION, **more):
    messages = [{"role": "user", "content": question}]
    asked = {"model": "smol", "messages": messages, "temperature": 0, "max_tokens": TOKENS, "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    return json.dumps(asked | more).encode()


def events_of(engine, body, path="/v1/chat/completions"):
    """The events as they came, one by one."""
    response = engine.request(path, body)
    assert response.status_code == 200, response.text
    return [part + b"\n\n" for part in response.content.split(b"\n\n") if part.strip()]


def play(engine, transcript, body):
    """One attempt to its end; the leg that heard it, and what went to the client."""
    asked = asyncio.run(asking(engine.name, "r", Wire(engine), body, read_chat(body), transcript))
    return asked, asked.leg


def begun(engine, mode, body, tokens):
    """A transcript of the first events of an answer, up to so many with text."""
    transcript = Transcript(opted(mode.encode(), "off", body, is_stream=True))
    asked, leg = play(engine, transcript, body)
    for event in events_of(engine, asked.body):
        leg.take(event)
        if transcript.tokens >= tokens:
            break
    return transcript


def gone_on(engine, transcript, body):
    """The answer when the engine has gone on with it, and the usage it ends with."""
    asked, leg = play(engine, transcript, body)
    out = b"".join(leg.take(event) for event in events_of(engine, asked.body, asked.path or "/v1/chat/completions"))  # fmt: skip
    usages = [json.loads(line[6:])["usage"] for line in out.splitlines() if b'"usage"' in line]
    return transcript.text, usages[-1], out


@pytest.fixture(scope="module")
def whole(started):
    """What each engine says when nothing breaks, and how many tokens it counts."""
    found = {}
    for name in ENGINES:
        transcript = Transcript(opted(b"text", "off", body_of(), is_stream=True))
        leg = Leg(transcript)
        for event in events_of(started[name], body_of()):
            leg.take(event)
        found[name] = (transcript.text, leg.usage)
    return found


@pytest.mark.parametrize("name", ENGINES)
def test_cut_after_one_token_or_another_the_same_engine_ends_the_answer_as_if_nothing_had_been(started, whole, name):  # fmt: skip
    text, usage = whole[name]
    for cut in CUTS:
        transcript = begun(started[name], "exact", body_of(), cut)
        assert transcript.tokens == cut
        said, counted, _ = gone_on(started[name], transcript, body_of())

        assert said == text, f"cut after {cut}"
        assert counted["completion_tokens"] == usage.completion_tokens
        assert counted["prompt_tokens"] == usage.prompt_tokens


@pytest.mark.parametrize("name", ENGINES)
def test_by_its_text_it_goes_on_from_the_last_character(started, name):
    """Every piece that is made elsewhere is kept as it is, and what comes has no second beginning."""
    other = ENGINES[1 - ENGINES.index(name)]
    transcript = begun(started[other], "text", body_of(), 5)
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
    uninterrupted = begun(started["llama.cpp"], "exact", body, 99).text
    transcript = begun(started["llama.cpp"], "exact", body, 8)
    assert any(len(piece.ids) > 1 for piece in transcript.pieces)

    assert gone_on(started["llama.cpp"], transcript, body)[0] == uninterrupted


def test_both_engines_are_known_to_go_on(started):
    assert {HOW[name].exact for name in started if name in ENGINES} == {"completion", "ids"}
