"""Streams cut at every place: not a byte changes, events go out whole, tokens are counted the same."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.serve.sse import EventStream, first_error


def event(delta: dict[str, object] | None, **more: object) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta}]
    return (
        b"data: " + json.dumps({"choices": choices, **more}, ensure_ascii=False).encode() + b"\n\n"
    )


ROLE = event({"role": "assistant", "content": ""})
FINISH = event({}, finish_reason="stop")
USAGE = event(None, usage={"prompt_tokens": 11, "completion_tokens": 40})
DONE = b"data: [DONE]\n\n"
TEXT = [event({"content": text}) for text in ("data: 水", '{"\n', "z")]


def fed(data: bytes, cuts: list[int]) -> tuple[list[bytes], EventStream]:
    stream, out = EventStream(), []
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for left, right in itertools.pairwise(places):
        out.append(stream.feed(data[left:right]))
    return [part for part in out if part], stream


@settings(deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=12), st.booleans())
def test_any_cut_of_a_stream_gives_the_same_bytes_events_and_tokens(
    cuts: list[int], has_role: bool
) -> None:
    data = b"".join([ROLE] * has_role + TEXT + [FINISH, DONE])
    parts, stream = fed(data, cuts)

    assert b"".join(parts) == data
    assert all(part.endswith(b"\n\n") for part in parts)
    assert stream.is_done
    assert stream.rest() == b""
    assert stream.usage().completion_tokens == len(TEXT)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=12))
def test_the_engines_own_count_wins_however_the_stream_is_cut(cuts: list[int]) -> None:
    _, stream = fed(b"".join([ROLE, *TEXT, FINISH, USAGE, DONE]), cuts)

    usage = stream.usage()
    assert (usage.prompt_tokens, usage.completion_tokens) == (11, 40)


def test_usage_in_the_event_of_the_last_token_is_read() -> None:
    last = event({"content": "z"}, usage={"prompt_tokens": 5, "completion_tokens": 9})
    _, stream = fed(TEXT[0] + last + DONE, [])

    assert stream.usage().completion_tokens == 9


def test_the_last_of_several_counts_is_the_one_that_holds() -> None:
    early = event(None, usage={"completion_tokens": 1})
    _, stream = fed(TEXT[0] + early + USAGE + DONE, [])

    assert stream.usage().completion_tokens == 40


def test_reasoning_and_tool_calls_are_tokens_too() -> None:
    data = event({"reasoning_content": "hm"}) + event({"tool_calls": [{"index": 0}]}) + DONE
    _, stream = fed(data, [len(data) // 2])

    assert stream.usage().completion_tokens == 2


def test_a_stream_without_text_has_no_tokens() -> None:
    _, stream = fed(ROLE + FINISH + DONE, [])

    assert stream.usage().completion_tokens == 0


def test_events_that_end_with_carriage_returns_pass_as_well() -> None:
    data = b"".join([*TEXT, DONE]).replace(b"\n", b"\r\n")
    parts, stream = fed(data, [40, 41, len(data) - 3])

    assert b"".join(parts) == data
    assert stream.is_done


def test_half_an_event_is_held_back() -> None:
    stream = EventStream()

    assert stream.feed(TEXT[0] + TEXT[1][:20]) == TEXT[0]
    assert stream.feed(TEXT[1][20:-1]) == b""
    assert stream.feed(b"\n" + TEXT[2]) == TEXT[1] + TEXT[2]


def test_a_last_event_without_its_blank_line_is_not_lost() -> None:
    stream = EventStream()
    stream.feed(TEXT[0])
    stream.feed(b"data: [DONE]\n")

    assert stream.is_done
    assert stream.rest() == b"data: [DONE]\n"


def test_a_stream_is_not_done_until_it_says_so() -> None:
    _, stream = fed(b"".join([*TEXT, FINISH]), [])

    assert not stream.is_done


@pytest.mark.parametrize(
    ("chunk", "error"),
    [
        (b'data: {"error": {"message": "no", "code": 400}}\n\n', {"message": "no", "code": 400}),
        (b'data: {"error": "no"}\n\n', {"message": "no"}),
        (b'data: {"error": \n\n', None),
        (TEXT[0], None),
        (event({"content": '{"error": 1}'}), None),
    ],
)
def test_a_stream_that_opens_with_an_error_is_known(chunk: bytes, error: object) -> None:
    assert first_error(chunk) == error
