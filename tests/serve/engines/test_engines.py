"""What every engine must do behind the seam, asked of the real ones."""

import itertools
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.engines


def piece(event: dict[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def test_the_same_greedy_prompt_gives_the_same_text(engine) -> None:
    first = engine.chat("Name three rivers.", max_tokens=24)
    again = engine.chat("Name three rivers.", max_tokens=24)

    assert first["choices"][0]["message"]["content"].strip()
    assert first["choices"] == again["choices"]
    assert first["usage"]["completion_tokens"] == 24


def test_a_stream_says_what_the_whole_answer_says_one_token_an_event(engine) -> None:
    whole = engine.chat("Tell me about the sea.", max_tokens=20)
    events = list(engine.stream("Tell me about the sea.", max_tokens=20))

    assert "".join(map(piece, events)) == whole["choices"][0]["message"]["content"]
    assert sum(bool(piece(event)) for event in events) == 20
    assert events[-1]["usage"] == whole["usage"] | events[-1]["usage"]
    reasons = [c["finish_reason"] for event in events for c in event["choices"]]
    assert [reason for reason in reasons if reason] == ["length"]


def test_a_character_of_several_tokens_arrives_whole(engine) -> None:
    pieces = [
        piece(event) for event in engine.stream("Say hi in Chinese with emoji", max_tokens=24)
    ]

    assert any(ord(letter) > 0x2E80 for letter in "".join(pieces)), pieces
    assert "\ufffd" not in "".join(pieces)


def test_a_seed_repeats_a_sampled_answer_and_without_one_answers_differ(engine) -> None:
    def say(**parameters) -> str:
        return engine.text("Invent a name.", max_tokens=12, temperature=1.5, **parameters)

    assert say(seed=7) == say(seed=7)
    assert len({say() for _ in range(4)}) > 1


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine) -> None:
    full = engine.text("Count from one to ten.", max_tokens=40)
    stop = full[10:14]
    answer = engine.chat("Count from one to ten.", max_tokens=40, stop=[stop])["choices"][0]

    assert answer["message"]["content"] == full[: full.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_two_streams_are_computed_together(engine) -> None:
    order: list[str] = []

    def read(name: str) -> None:
        events = engine.stream(f"Tell a story about a {name}.", max_tokens=24)
        order.extend(name for event in events if piece(event))

    readers = [threading.Thread(target=read, args=(name,)) for name in ("fox", "whale")]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()

    assert Counter(order) == {"fox": 24, "whale": 24}
    changes = sum(left != right for left, right in itertools.pairwise(order))
    assert changes >= 8, f"one after the other: {order}"


def test_a_client_that_goes_away_stops_the_work(engine) -> None:
    events = engine.stream("Write a very long novel.", max_tokens=900, ignore_eos=True)
    next(events)
    assert engine.metric("requests_processing") == 1
    events.close()
    for _ in range(100):
        if engine.metric("requests_processing") == 0:
            break
        time.sleep(0.05)
    assert engine.metric("requests_processing") == 0
    assert engine.text("Are you still there?", max_tokens=4)


def test_a_prompt_beyond_the_context_is_refused(engine) -> None:
    body = {"model": "smol", "messages": [{"role": "user", "content": "far " * 1200}]}
    response = engine.request("/v1/chat/completions", body)

    assert response.status_code == 400
    assert "context" in response.text


def test_nothing_is_answered_without_the_secret(engine) -> None:
    for headers in ({}, {"Authorization": "Bearer open sesame2"}):
        body = {"model": "smol", "messages": [{"role": "user", "content": "hi"}]}
        assert engine.request("/v1/chat/completions", body, headers).status_code == 401
        assert engine.request("/v1/models", headers=headers).status_code == 401


def test_every_thread_stays_on_the_engines_cores(engine) -> None:
    allowed = ",".join(map(str, engine.cores))
    tasks = list(Path(f"/proc/{engine.process}/task").iterdir())

    assert tasks
    for task in tasks:
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        assert status["Cpus_allowed_list"].strip() == allowed


def test_the_official_client_works(engine) -> None:
    with (
        engine.client as http,
        openai.OpenAI(
            base_url="http://engine/v1", api_key=engine.endpoint.secret, http_client=http
        ) as client,
    ):
        asked: dict[str, Any] = {
            "model": "smol",
            "messages": [{"role": "user", "content": "Say hello."}],
            "temperature": 0,
            "max_completion_tokens": 8,
        }
        assert client.models.list().data[0].id == "smol"
        whole = client.chat.completions.create(**asked)
        with client.chat.completions.create(**asked, stream=True) as stream:
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]

    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 8
    assert "".join(pieces) == whole.choices[0].message.content


def test_no_prompt_is_cached_short_or_long(engine) -> None:
    prompts = ["Hi", "Read this: " + "the quick brown fox jumps over the lazy dog " * 40]
    before = engine.metric("prompt_tokens_total")
    answers = [engine.chat(prompt, max_tokens=1) for prompt in (*prompts, *prompts, prompts[0])]

    computed = engine.metric("prompt_tokens_total") - before
    assert computed == sum(answer["usage"]["prompt_tokens"] for answer in answers)
