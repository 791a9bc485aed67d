"""Requests and answers of our own engine server, without an engine."""

import json
from typing import Any

import pytest

from polypod.serve.engines.chat import Answer, read_request
from polypod.serve.wire import ProblemError

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def read(**parameters: Any):
    return read_request(json.dumps(HELLO | parameters).encode())[0]


def problem(**parameters: Any):
    with pytest.raises(ProblemError) as caught:
        read(**parameters)
    return caught.value.problem


@pytest.mark.parametrize(
    "harmless",
    [
        {"n": 1},
        {"tools": []},
        {"tool_choice": "none"},
        {"logprobs": False},
        {"top_logprobs": 0},
        {"tool_choice": "auto"},
        {"modalities": ["text"]},
        {"response_format": {"type": "text"}},
        {"user": "someone"},
        {"n": None, "tools": None, "stop": None},
    ],
)
def test_a_parameter_that_asks_for_nothing_is_taken(harmless) -> None:
    assert read(**harmless).model == "m"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": -100}),
    ],
)
def test_a_parameter_that_would_change_the_answer_is_refused_by_name(name: str, value) -> None:
    refusal = problem(**{name: value})

    assert (refusal.status, refusal.code, refusal.param) == (400, "unsupported_parameter", name)


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ""}, "stop"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages"),
        ({"stream_options": 1}, "stream_options"),
    ],
)
def test_a_value_out_of_bounds_names_its_parameter(parameters, param: str) -> None:
    refusal = problem(**parameters)

    assert (refusal.code, refusal.param) == ("invalid_value", param)


@pytest.mark.parametrize(
    ("name", "lowest", "highest", "step"),
    [
        ("temperature", 0, 2, 0.1),
        ("top_p", 0.01, 1, 0.01),
        ("top_k", 0, None, 1),
        ("min_p", 0, 1, 0.1),
        ("frequency_penalty", -2, 2, 0.1),
        ("presence_penalty", -2, 2, 0.1),
        ("repeat_penalty", 0.01, None, 0.01),
        ("max_tokens", 1, None, 1),
        ("max_completion_tokens", 1, None, 1),
    ],
)
def test_a_number_may_be_at_its_bounds_and_not_beyond(name, lowest, highest, step) -> None:
    assert getattr(read(**{name: lowest}), name) == lowest
    assert problem(**{name: lowest - step}).param == name
    if highest is not None:
        assert getattr(read(**{name: highest}), name) == highest
        assert problem(**{name: highest + step}).param == name


@pytest.mark.parametrize(
    "unknown",
    [
        {"temprature": 1},
        {"messages": [{"role": "user", "content": "x", "mood": "good"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "size": 3}]}]},
    ],
)
def test_a_key_it_does_not_know_is_refused_wherever_it_stands(unknown) -> None:
    assert problem(**unknown).param == next(iter(unknown))


def test_usage_comes_with_a_stream_that_asks_for_it() -> None:
    asked = [{"stream_options": options} for options in ({"include_usage": True}, {}, None)]

    assert [read(**each).wants_usage for each in (*asked, {})] == [True, False, False, False]


def test_parts_of_a_message_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]
    request = read(messages=[{"role": "developer", "content": parts}])

    assert request.messages[0].turn == {"role": "system", "content": "be brief"}


def test_the_answer_may_have_what_the_prompt_leaves_of_the_context() -> None:
    assert read().max_new_tokens(prompt_tokens=60, context_tokens=64) == 4
    assert read(max_tokens=4).max_new_tokens(60, 64) == 4
    assert read(max_tokens=9, max_completion_tokens=2).max_new_tokens(60, 64) == 2


@pytest.mark.parametrize(("asked", "prompt_tokens"), [(5, 60), (None, 64), (None, 65)])
def test_more_than_the_context_is_refused_with_all_three_numbers(asked, prompt_tokens: int) -> None:
    with pytest.raises(ProblemError, match=f"the prompt has {prompt_tokens} tokens") as caught:
        read(max_tokens=asked).max_new_tokens(prompt_tokens, 64)

    assert caught.value.problem.code == "context_length_exceeded"
    asked = 1 if asked is None else asked
    assert f"together {prompt_tokens + asked}; the context is 64" in caught.value.problem.message


def test_what_a_request_does_not_say_is_the_same_on_every_engine() -> None:
    assert (read().sampling("temperature"), read().greedy) == (0.8, False)
    assert (read(temperature=0).sampling("temperature"), read(temperature=0).greedy) == (0, True)
    assert read(top_p=0.5).sampling("top_p") == 0.5


def test_stop_is_one_text_or_several() -> None:
    assert (read().stops, read(stop="a").stops, read(stop=["a", "b"]).stops) == (
        [],
        ["a"],
        ["a", "b"],
    )


def test_an_answer_is_written_as_openai_writes_it() -> None:
    answer = Answer("7", "m", now_s=lambda: 12.9)

    head = {"id": "chatcmpl-7", "created": 12, "model": "m"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert json.loads(answer.whole("hi", "stop", 3, 2)) == head | {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hi"},
                "finish_reason": "stop",
            }
        ],
        "usage": usage,
    }
    event = answer.event({"content": "汉"})
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert json.loads(event[6:]) == head | {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": "汉"}, "finish_reason": None}],
    }
    assert json.loads(answer.usage_event(3, 2)[6:])["usage"] == usage
