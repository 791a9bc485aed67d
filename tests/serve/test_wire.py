"""What is understood of a request, and how errors are worded."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.serve.wire import Problem, ProblemError, model_body, models_body, read_chat, read_usage

GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refused(body: bytes) -> Problem:
    with pytest.raises(ProblemError) as caught:
        read_chat(body)
    return caught.value.problem


@pytest.mark.parametrize(
    "body",
    [b"", b"hello", b'{"model": "m"', b"\xff\xfe", b'{"model": "m", "messages": []} x'],
)
def test_what_is_not_json_is_a_400(body: bytes) -> None:
    problem = refused(body)

    assert (problem.status, problem.code, problem.param) == (400, "invalid_json", None)


def test_nesting_past_the_parsers_depth_is_a_400() -> None:
    deep = b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

    assert refused(deep).status == 400


@pytest.mark.parametrize("body", [b"[]", b"3", b'"m"', b"null"])
def test_json_that_is_no_object_is_a_400(body: bytes) -> None:
    problem = refused(body)

    assert (problem.status, problem.code, problem.param) == (400, "invalid_type", None)


@pytest.mark.parametrize("key", ["model", "messages"])
def test_a_missing_key_is_named(key: str) -> None:
    problem = refused(json.dumps({k: v for k, v in GOOD.items() if k != key}).encode())

    assert (problem.status, problem.code) == (400, "missing_required_parameter")
    assert problem.param == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", 3),
        ("model", None),
        ("stream", "yes"),
        ("max_tokens", "9"),
        ("max_completion_tokens", [1]),
    ],
)
def test_a_wrong_type_is_named(key: str, value: object) -> None:
    problem = refused(json.dumps(GOOD | {key: value}).encode())

    assert (problem.status, problem.code, problem.param) == (400, "invalid_type", key)


@pytest.mark.parametrize("limit", [-1, 0, 2**31, 10**40])
def test_a_limit_that_is_none_is_left_to_the_engine(limit: int) -> None:
    chat = read_chat(f'{{"model": "m", "messages": [], "max_tokens": {limit}}}'.encode())

    assert chat.max_output_tokens is None


def test_a_text_in_place_of_a_name_is_refused() -> None:
    assert read_chat(json.dumps(GOOD | {"model": "x" * 256}).encode()).model == "x" * 256
    assert refused(json.dumps(GOOD | {"model": "x" * 257}).encode()).param == "model"


def test_keys_it_does_not_know_are_skipped() -> None:
    chat = read_chat(json.dumps(GOOD | {"x_vendor": {"a": [1]}, "temperature": "warm"}).encode())

    assert chat.model == "m"


def test_an_explicit_null_is_as_good_as_nothing() -> None:
    chat = read_chat(json.dumps(GOOD | {"stream": None, "max_tokens": None}).encode())

    assert not chat.stream
    assert chat.max_output_tokens is None


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
    ],
)
def test_the_newer_name_of_the_output_limit_wins(limits: dict[str, int], expected: int) -> None:
    assert read_chat(json.dumps(GOOD | limits).encode()).max_output_tokens == expected


@settings(deadline=None)
@given(st.text(max_size=400))
def test_the_prompt_estimate_is_a_quarter_of_the_bytes_of_the_messages(text: str) -> None:
    messages = json.dumps([{"role": "user", "content": text}])
    body = f'{{"messages" :  {messages}  , "model": "m"}}'.encode()

    assert read_chat(body).input_tokens == len(messages) // 4


def test_an_empty_prompt_still_counts_as_a_token() -> None:
    assert read_chat(b'{"model": "m", "messages": []}').input_tokens == 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (403, "permission_error"),
        (429, "rate_limit_error"),
        (499, "invalid_request_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_an_error_has_the_type_that_its_status_has_at_openai(status: int, kind: str) -> None:
    problem = Problem(status=status, code="c", message="m", param="p")

    expected = {"error": {"message": "m", "type": kind, "param": "p", "code": "c"}}
    assert json.loads(problem.body) == expected
    assert problem.event == b"data: " + problem.body + b"\n\n"


@pytest.mark.parametrize(("after_s", "shown"), [(0.0, b"0"), (0.2, b"1"), (5.0, b"5"), (5.1, b"6")])
def test_retry_after_is_whole_seconds_rounded_up(after_s: float, shown: bytes) -> None:
    problem = Problem(status=503, code="c", message="m", retry_after_s=after_s)

    assert problem.headers == [(b"retry-after", shown)]


def test_usage_is_read_from_a_whole_answer() -> None:
    usage = read_usage(b'{"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}')

    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 3)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"usage": null}', b'{"usage": {"prompt_tokens": "many"}}']
)
def test_an_answer_need_not_report_usage(body: bytes) -> None:
    assert read_usage(body) is None


def test_models_are_listed_as_openai_lists_them() -> None:
    one = {"id": "a/b", "object": "model", "created": 9, "owned_by": "polypod"}

    assert json.loads(models_body(["a/b"], 9)) == {"object": "list", "data": [one]}
    assert json.loads(model_body("a/b", 9)) == one
