"""Streams that go past Python, and the same ones through it: nobody can tell which, neither the client nor the policy nor the metrics."""

import asyncio
from typing import Any

import pytest

from polypod.engine.native.build import compiler, has_headers
from polypod.policy.events import FirstToken, RequestFailed, RequestFinished
from polypod.serve import passage as module
from polypod.serve.http import native
from polypod.serve.passage import MOST_STOPS, Passage
from polypod.serve.upstream import Patience

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.skipif(
    not (compiler() and has_headers()), reason="no C compiler, or no headers"
)


@pytest.fixture
def stops(monkeypatch) -> list[int]:
    """How many events each relay had passed when it came back."""
    seen: list[int] = []
    relayed = Passage._relayed

    def noted(self: Passage, relay: Any, unsent: bytes) -> None:
        seen.append(relay.events)
        relayed(self, relay, unsent)

    monkeypatch.setattr(Passage, "_relayed", noted)
    return seen


def answer(lab, tmp_path, script, *, tell: type = RequestFinished, **settings) -> tuple[bytes, Any]:
    """What the client gets of a stream, and what the policy is told of its end."""
    found: list[Any] = []

    async def test(node, client):
        await node.engine("a", script)
        response = await client.post(CHAT, json=lab.ask(stream=True))
        body = await response.read()
        await asyncio.sleep(0.05)
        assert len(node.told(FirstToken)) == 1
        found.extend((body, lab.only(node.told(tell))))

    lab.run(tmp_path, test, **settings)
    return found[0], found[1]


def both_ways(lab, tmp_path, monkeypatch, script, **more) -> tuple[bytes, Any]:
    """The same, after a look whether it is the same without C."""
    compiled = answer(lab, tmp_path / "c", script, **more)
    with monkeypatch.context() as patched:
        patched.setattr(native, "module", lambda name: None)
        plain = answer(lab, tmp_path / "python", script, **more)
    assert compiled[0] == plain[0]
    timeless = {"at_s": 0.0}
    assert {**_fields(compiled[1]), **timeless} == {**_fields(plain[1]), **timeless}
    return compiled


def _fields(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__struct_fields__}


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in ("c", "python"):
        (tmp_path / name).mkdir()


def test_a_paced_stream_goes_past_python_but_for_its_first_and_last_events(lab, tmp_path, monkeypatch, stops):  # fmt: skip
    body, told = both_ways(lab, tmp_path, monkeypatch, lab.good(tokens=12, gap_s=0.01))

    assert body == b"".join(lab.event(f"t{number} ") for number in range(12)) + lab.DONE
    assert told.output_tokens == 12
    assert sum(stops) >= 9


def test_events_cut_elsewhere_than_chunks_arrive_whole_and_are_soon_let_be(lab, tmp_path, monkeypatch, stops):  # fmt: skip
    events = [lab.event(f"t{number} ") for number in range(3 * MOST_STOPS)]
    whole = b"".join(events)
    cuts = [whole[at : at + 70] for at in range(0, len(whole), 70)]

    body, told = both_ways(lab, tmp_path, monkeypatch, lab.chunks(*cuts, lab.DONE, gap_s=0.003))

    assert body == whole + lab.DONE
    assert told.output_tokens == len(events)
    assert len(stops) <= MOST_STOPS


def test_usage_at_the_end_is_read_however_the_events_came(lab, tmp_path, monkeypatch):
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":77}}\n\n'
    pieces = [lab.event(f"t{number} ") for number in range(6)]

    _, told = both_ways(lab, tmp_path, monkeypatch, lab.chunks(*pieces, usage, lab.DONE, gap_s=0.01))  # fmt: skip

    assert (told.input_tokens, told.output_tokens) == (5, 77)


def test_an_engine_that_dies_in_the_middle_is_told_of_alike(lab, tmp_path, monkeypatch, stops):
    async def dies(visit):
        await visit.begin_stream()
        for number in range(6):
            await visit.chunk(lab.event(f"t{number} "))
            await asyncio.sleep(0.01)
        visit.writer.transport.abort()

    body, told = both_ways(lab, tmp_path, monkeypatch, dies, tell=RequestFailed)

    assert body.startswith(b"".join(lab.event(f"t{number} ") for number in range(6)))
    assert b"replica_lost" in body or b"error" in body
    assert told.kind == "lost"
    assert stops


def test_an_engine_that_falls_silent_is_left_after_its_patience_and_not_before(lab, tmp_path, stops):  # fmt: skip
    """Every event counts as a word from it, those that went past Python too."""

    async def stalls(visit):
        await visit.begin_stream()
        for number in range(10):
            await visit.chunk(lab.event(f"t{number} "))
            await asyncio.sleep(0.06)
        await visit.until_left()

    patience = Patience(between_s=0.3)
    body, told = answer(lab, tmp_path, stalls, tell=RequestFailed, patience=patience)

    assert body.count(b"data: ") == 11  # ten events and an error
    assert told.kind == "timeout"
    assert sum(stops) >= 7


def test_a_client_that_leaves_frees_its_engine(lab, tmp_path, stops):
    async def test(node, client):
        left = asyncio.Event()

        async def endless(visit):
            leaving = asyncio.ensure_future(visit.until_left())
            await visit.begin_stream()
            while not leaving.done():
                await visit.chunk(lab.event("again "))
                await asyncio.sleep(0.005)
            left.set()

        await node.engine("a", endless)
        response = await client.post(CHAT, json=lab.ask(stream=True))
        await response.content.readany()
        await asyncio.sleep(0.1)
        response.close()
        await asyncio.wait_for(left.wait(), 5.0)

    lab.run(tmp_path, test)
    assert stops


def test_a_clock_that_is_not_the_monotonic_one_keeps_streams_in_python():
    passage = Passage(None, None, None, lambda: 0.0)  # type: ignore[arg-type]

    assert passage._tries == 0
    assert Passage(None, None, None, module.time.monotonic)._tries == MOST_STOPS  # type: ignore[arg-type]
