"""A timed chat request, against a scripted engine."""

import asyncio
from pathlib import Path

import pytest

from polypod.errors import RunError
from polypod.serve.ask import Asked, Asker

USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":4}}\n\n'
END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def text(words: str) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % words.encode()


def asked(lab, tmp_path: Path, *parts: bytes, gap_s: float = 0.0, **script) -> Asked:
    async def ask() -> Asked:
        engine = lab.FakeEngine("a", tmp_path / "a.sock", lab.chunks(*parts, gap_s=gap_s))
        await engine.start()
        try:
            async with Asker("http://engine", socket=engine.socket) as asker:
                return await asker.ask("tiny", "hi", max_tokens=4)
        finally:
            await engine.die()

    return asyncio.run(ask())


def test_times_run_from_the_first_text_to_the_token_that_ends_the_answer(lab, tmp_path):
    """Four tokens: three with text, 50 ms apart, and the end; the engine counts all four."""
    role = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
    parts = [role, text("a"), text("b"), text("c"), END, USAGE + DONE]
    answer = asked(lab, tmp_path, *parts, gap_s=0.05)

    assert answer.text == "abc"
    assert (answer.input_tokens, answer.output_tokens) == (11, 4)
    assert 0.04 < answer.ttft_s < 0.5
    assert answer.tpot_s == pytest.approx(0.05, rel=0.5)


def test_a_single_token_has_no_time_per_token(lab, tmp_path):
    usage = USAGE.replace(b'"completion_tokens":4', b'"completion_tokens":1')
    assert asked(lab, tmp_path, text("a"), END, usage, DONE).tpot_s is None


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([b'data: {"error": {"message": "it broke"}}\n\n'], "broke off: it broke"),
        ([text("a"), END, DONE], "no usage"),
        ([END, USAGE, DONE], "no text"),
    ],
)
def test_an_answer_that_is_none_is_an_error(lab, tmp_path, parts, says):
    with pytest.raises(RunError, match=says):
        asked(lab, tmp_path, *parts)


def test_an_engine_that_is_not_there_is_an_error(tmp_path):
    async def ask() -> None:
        async with Asker("http://engine", socket=tmp_path / "none.sock") as asker:
            await asker.ask("tiny", "hi", max_tokens=4)

    with pytest.raises(RunError, match="did not answer"):
        asyncio.run(ask())
