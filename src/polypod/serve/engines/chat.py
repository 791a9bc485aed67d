"""The chat requests our own engine server takes, and the answers it gives, in OpenAI's words.

What would change the answer and cannot be honoured is refused by name, never ignored.
"""

import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec

from polypod.serve.engines.spec import DEFAULT_SAMPLING
from polypod.serve.wire import Problem, ProblemError

FinishReason = Literal["stop", "length"]

# Known parameters of the API that this engine cannot honour, and the values that ask for nothing.
_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "web_search_options": (),
}
_NEUTRAL: Final = frozenset(
    ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
)  # fmt: skip

_Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]
_Tokens = Annotated[int, msgspec.Meta(ge=1)]
_Stop = Annotated[str, msgspec.Meta(min_length=1)]


class TextPart(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"
):
    """One part of a message; text is the only kind a text model takes."""

    text: str


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None

    @property
    def turn(self) -> dict[str, str]:
        """As a chat template reads it; parts are joined, and `developer` is what `system` is called today."""
        text = (
            self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        )
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream carries besides text."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request this engine can answer as asked."""

    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: _Stop | Annotated[list[_Stop], msgspec.Meta(max_length=16)] | None = None
    seed: int | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, msgspec.Meta(ge=0)] | None = None
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    repeat_penalty: Annotated[float, msgspec.Meta(gt=0)] | None = None
    ignore_eos: bool | None = None

    @property
    def stops(self) -> list[str]:
        """The stop strings, one or many."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def greedy(self) -> bool:
        return self.sampling("temperature") == 0

    def sampling(self, name: str) -> float:
        """What the request says of this sampling parameter, or the default that all our engines share."""
        value = getattr(self, name)
        return float(getattr(DEFAULT_SAMPLING, name) if value is None else value)

    def max_new_tokens(self, prompt_tokens: int, context_tokens: int) -> int:
        """How many tokens the answer may have. Raises `ProblemError` (400) where prompt and answer do not fit."""
        room = context_tokens - prompt_tokens
        asked = self.max_completion_tokens or self.max_tokens or max(room, 1)
        if asked > room:
            msg = (
                f"the prompt has {prompt_tokens:,} tokens and the answer may have {asked:,}, "
                f"together {prompt_tokens + asked:,}; the context is {context_tokens:,}. Shorten the messages or max_tokens"
            )
            raise refused(msg, code="context_length_exceeded", param="messages")
        return asked


class Continued(msgspec.Struct, frozen=True, kw_only=True):
    """What of an answer is there already: its text, or its tokens, and whether new ones are told."""

    text: str = ""
    ids: tuple[int, ...] = ()
    shows_ids: bool = False


NEW: Final = Continued()
"""Nothing of it."""

_Ids = Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=1 << 20)]


def read_request(body: bytes) -> tuple[ChatRequest, Continued]:
    """Raises `ProblemError` (400) that names the parameter at fault.

    With `continue_final_message`, as vLLM and SGLang have it, the last message is the answer's own beginning and is gone on with;
    `continue_token_ids` are the tokens of it; with `return_token_ids`, as vLLM has it, the events of a stream tell theirs.
    """
    try:
        given = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        msg = f"the request body is not a JSON object: {error}"
        raise refused(msg, code="invalid_json") from error
    goes_on = given.pop("continue_final_message", None) is True
    given.pop("add_generation_prompt", None)
    shows_ids = given.pop("return_token_ids", None) is True
    ids = _token_ids(given.pop("continue_token_ids", None))
    request = checked(given)
    if not goes_on:
        return request, Continued(ids=ids, shows_ids=shows_ids)
    *before, last = request.messages
    if last.role != "assistant" or not before:
        msg = "continue_final_message wants a last message of the assistant after another one"
        raise refused(msg, code="invalid_value", param="continue_final_message")
    request = msgspec.structs.replace(request, messages=before)
    return request, Continued(text=last.turn["content"], ids=ids, shows_ids=shows_ids)


def _token_ids(given: object) -> tuple[int, ...]:
    try:
        return tuple(msgspec.convert([] if given is None else given, _Ids))
    except msgspec.ValidationError as error:
        raise refused(str(error), code="invalid_value", param="continue_token_ids") from error


def checked(given: dict[str, Any]) -> ChatRequest:
    """The request in a JSON object, which is used up. Raises `ProblemError` (400) that names the parameter at fault."""
    for name, harmless in _REFUSED.items():
        value = given.pop(name, None)
        if value is not None and value not in harmless:
            msg = f"this engine cannot honour {name!r}"
            raise refused(msg, code="unsupported_parameter", param=name)
    known = {name: value for name, value in given.items() if name not in _NEUTRAL}
    for name in known.keys() - ChatRequest.__struct_fields__:
        msg = f"unknown parameter {name!r}"
        raise refused(msg, code="unknown_parameter", param=name)
    return _converted(known)


def _converted(known: dict[str, Any]) -> ChatRequest:
    try:
        return msgspec.convert(known, ChatRequest)
    except msgspec.ValidationError as error:
        _, _, place = str(error).partition("`$.")
        missing = next((n for n in ("model", "messages") if n not in known), None)
        param = place.split("`")[0].split("[")[0].split(".")[0] or missing
        raise refused(str(error), code="invalid_value", param=param) from error


def refused(
    message: str, *, code: str, param: str | None = None, status: int = 400
) -> ProblemError:
    """An error for the client, to be raised."""
    return ProblemError(Problem(status=status, code=code, message=message, param=param))


class Answer:
    """Writes one answer, whole or in events."""

    def __init__(self, request_id: str, model: str, now_s: Callable[[], float] = time.time) -> None:
        self._head = {"id": f"chatcmpl-{request_id}", "created": int(now_s()), "model": model}

    def event(
        self,
        delta: dict[str, str],
        finish: FinishReason | None = None,
        ids: Sequence[int] | None = None,
    ) -> bytes:
        """One server-sent event."""
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish}
        if ids is not None:
            choice["token_ids"] = ids
        return self._event({"choices": [choice]})

    def usage_event(self, prompt_tokens: int, output_tokens: int) -> bytes:
        """The event that tells the tokens, after the last choice."""
        return self._event({"choices": [], "usage": _usage(prompt_tokens, output_tokens)})

    def whole(
        self, text: str, finish: FinishReason, prompt_tokens: int, output_tokens: int
    ) -> bytes:
        """The answer of a request that does not stream."""
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = _usage(prompt_tokens, output_tokens)
        return _encode(
            self._head | {"object": "chat.completion", "choices": [choice], "usage": usage}
        )

    def _event(self, body: dict[str, Any]) -> bytes:
        return (
            b"data: " + _encode(self._head | {"object": "chat.completion.chunk"} | body) + b"\n\n"
        )


_encode: Final = msgspec.json.Encoder().encode


def _usage(prompt_tokens: int, output_tokens: int) -> dict[str, int]:
    total = prompt_tokens + output_tokens
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": total,
    }
