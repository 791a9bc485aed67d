"""What our own server answers where the request is at fault, and what only it must do."""

import pytest

pytestmark = pytest.mark.engines

HELLO = {"model": "smol", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        (b'{"model": ', 400, "invalid_json", None),
        (b"[1]", 400, "invalid_json", None),
        (HELLO | {"n": 2}, 400, "unsupported_parameter", "n"),
        (HELLO | {"logprobs": True}, 400, "unsupported_parameter", "logprobs"),
        (HELLO | {"temprature": 1}, 400, "unknown_parameter", "temprature"),
        (HELLO | {"temperature": 3}, 400, "invalid_value", "temperature"),
        (HELLO | {"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
        (HELLO | {"messages": []}, 400, "invalid_value", "messages"),
        ({"model": "smol"}, 400, "invalid_value", "messages"),
        (HELLO | {"model": "big"}, 404, "model_not_found", "model"),
        (HELLO | {"max_tokens": 1024}, 400, "context_length_exceeded", "messages"),
    ],
)
def test_a_bad_request_is_told_which_parameter_is_at_fault(openvino, body, status, code, param):
    response = openvino.request("/v1/chat/completions", body)
    error = response.json()["error"]

    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_an_answer_may_fill_the_context_to_the_last_token(openvino) -> None:
    prompt_tokens = openvino.chat("hi", max_tokens=1)["usage"]["prompt_tokens"]
    answer = openvino.chat("hi", max_tokens=1024 - prompt_tokens, stop=["."])

    assert answer["usage"]["total_tokens"] <= 1024


def test_a_path_it_does_not_have_is_404(openvino) -> None:
    assert openvino.request("/v1/embeddings").status_code == 404
