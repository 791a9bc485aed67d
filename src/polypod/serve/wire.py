"""The OpenAI wire, as far as a gateway must understand it.

A request is forwarded as the bytes that came. Only what routing needs is decoded, unknown keys are skipped, and what is
not needed here (is `messages` a list? is `temperature` a number?) is left to the engine, whose answer is handed on.
"""

import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

BYTES_PER_TOKEN: Final = (
    4  # English is near 4; Chinese in UTF-8 near 4 to 5; an inlined image is overestimated
)
LONGEST_NAME: Final = 256  # names go into records and logs; what is longer is text


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the router needs of a chat request."""

    model: Annotated[str, msgspec.Meta(max_length=LONGEST_NAME)]
    messages: msgspec.Raw
    stream: bool | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    user: Any = None

    @property
    def input_tokens(self) -> int:
        """An estimate: the bytes of `messages`, JSON and all, over 4. The chat template is not counted.

        >>> read_chat(b'{"model": "m", "messages": [{"role": "user", "content": "How far is it?"}]}').input_tokens
        11
        """
        return max(1, len(memoryview(self.messages)) // BYTES_PER_TOKEN)

    @property
    def max_output_tokens(self) -> int | None:
        """The newer name wins, as it does in the engines. What is no limit (-1 means none to some) is left to them."""
        newer, older = self.max_completion_tokens, self.max_tokens
        limit = older if newer is None else newer
        return limit if limit is not None and 0 < limit < 1 << 31 else None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens as the engine counted them, where it says."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    usage: Usage | None = None


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error on its way to a client."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    allow: str | None = None  # the methods that are possible, after a wrong one

    @property
    def body(self) -> bytes:
        """The OpenAI error object.

        >>> Problem(status=404, code="model_not_found", message="no model 'x'").body
        b'{"error":{"message":"no model \\'x\\'","type":"invalid_request_error","param":null,"code":"model_not_found"}}'
        """
        return _ENCODER.encode({"error": self._shown()})

    @property
    def event(self) -> bytes:
        """The same object as a server-sent event, for an answer that has begun."""
        return b"data: " + self.body + b"\n\n"

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Only what the problem itself asks for."""
        headers = []
        if self.status == 401:
            headers.append((b"www-authenticate", b'Bearer realm="polypod"'))
        if self.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(0, math.ceil(self.retry_after_s))))
        if self.allow is not None:
            headers.append((b"allow", self.allow.encode()))
        return headers

    def _shown(self) -> dict[str, str | None]:
        kind = _TYPES.get(self.status) or (_INVALID if self.status < 500 else "server_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}


class ProblemError(Exception):
    """Carries a `Problem` up to the one place that answers with it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


_INVALID: Final = "invalid_request_error"
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ENCODER: Final = msgspec.json.Encoder()
_CHATS: Final = msgspec.json.Decoder(ChatRequest)
_ANSWERS: Final = msgspec.json.Decoder(_Answer)
_PLACE: Final = re.compile(r"\$\.(\w+)|required field `(\w+)`")


def read_chat(body: bytes) -> ChatRequest:
    """Raises `ProblemError` (400) for what is not JSON, not an object, or lacks what routing needs."""
    try:
        return _CHATS.decode(body)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        param = (place[1] or place[2]) if place else None
        code = "missing_required_parameter" if place and place[2] else "invalid_type"
        message = f"the request body: {error}"
        raise ProblemError(Problem(status=400, code=code, message=message, param=param)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"the request body is not JSON: {error}"
        raise ProblemError(Problem(status=400, code="invalid_json", message=message)) from error


def read_usage(body: bytes) -> Usage | None:
    """The usage a complete answer reports. Raises `msgspec.DecodeError` for an answer that is not JSON."""
    try:
        return _ANSWERS.decode(body).usage
    except msgspec.ValidationError:
        return None  # JSON, but its usage is not as OpenAI writes it


def models_body(models: Iterable[str], created_unix_s: int) -> bytes:
    """The answer to GET /v1/models."""
    listed = [_model(name, created_unix_s) for name in models]
    return _ENCODER.encode({"object": "list", "data": listed})


def model_body(model: str, created_unix_s: int) -> bytes:
    """The answer to GET /v1/models/{id}."""
    return _ENCODER.encode(_model(model, created_unix_s))


def _model(name: str, created_unix_s: int) -> dict[str, str | int]:
    return {"id": name, "object": "model", "created": created_unix_s, "owned_by": "polypod"}
