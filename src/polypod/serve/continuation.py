"""Whether a stream that breaks off may go on elsewhere, and how each engine is asked to go on.

    off     it ends with an error event
    text    the text that was sent goes to any replica of the model as the beginning of the assistant's answer
    exact   the very tokens that were sent go to a replica of the same build (engine, version, weights)

A request says it by the header `x-polypod-continue`, else the node's own default holds. What would not be the same answer any more is never gone on
with, whatever was asked for (`refused_for`): an engine keeps the state of a grammar, of a random generator and of several choices to itself.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import msgspec

from polypod.policy.events import Continuation, ReplicaUp
from polypod.serve.engines.spec import Endpoint
from polypod.serve.wire import Problem, ProblemError

HEADER: Final = b"x-polypod-continue"
MODES: Final[tuple[Continuation, ...]] = get_args(Continuation)


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How an engine goes on with an answer.

    `text`: `trailing`: a last message of the assistant is gone on with by itself; `final`: where `continue_final_message` says so.
    `exact`: `ids`: it tells its tokens (`return_token_ids`) and takes them back (`continue_token_ids`); `completion`: it tells them with
    `logprobs`, and takes them in the prompt of its own /completion, behind the text its template makes.
    """

    text: Literal["trailing", "final"]
    exact: Literal["ids", "completion"] | None = None
    keeps_spaces: bool = True  # at the end of what was given; a template may trim them
    caches_prefixes: bool = False


HOW: Final[dict[str, How]] = {
    # tried here on the process itself, cut after every token: tests/serve/engines/test_continuing.py
    "llama.cpp": How(text="trailing", exact="completion"),
    "openvino": How(text="final", exact="ids"),
    "ghost": How(text="final"),
    # by their documentation: docs.vllm.ai, "Extra parameters" of the chat API; docs.sglang.ai, chat completions
    "vllm": How(text="final", keeps_spaces=False, caches_prefixes=True),
    "sglang": How(text="final", keeps_spaces=False, caches_prefixes=True),
}
"""By engine. One that is not here is never asked to go on with anything."""


class _Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What of a request speaks against going on with its answer."""

    messages: list[dict[str, Any]] = []
    tools: Any = None
    functions: Any = None
    response_format: Any = None
    seed: Any = None
    logprobs: Any = None
    n: Any = None
    temperature: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    repeat_penalty: Any = None
    logit_bias: Any = None
    modalities: Any = None
    audio: Any = None
    stop: Any = None
    stream_options: Any = None


_DECODER: Final = msgspec.json.Decoder(_Asked)
_PLAIN_FORMATS: Final = (None, {"type": "text"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Opted:
    """What holds for one request: what may be done, and why not more where more was asked for."""

    mode: Continuation = "off"
    asked: Continuation = "off"
    why: str = ""
    stops: tuple[str, ...] = ()
    wants_usage: bool = False

    @property
    def header(self) -> tuple[bytes, bytes]:
        """For the client.

        >>> Opted(mode="off", asked="text", why="tools").header
        (b'x-polypod-continue', b'off; tools')
        """
        said = f"{self.mode}; {self.why}" if self.why else self.mode
        return HEADER, said.encode()


OFF: Final = Opted()


def opted(header: bytes | None, default: Continuation, body: bytes, *, is_stream: bool) -> Opted:
    """What holds for a request. Raises `ProblemError` (400) for a header that says nothing known.

    An answer in one piece has nothing to go on with: until all of it is here it is asked for again, unseen.
    """
    asked = default if header is None else _read(header)
    if asked == "off" or not is_stream:
        return OFF
    try:
        request = _DECODER.decode(body)
    except msgspec.DecodeError:
        return Opted(asked=asked, why="request")  # the engine will say what is wrong with it
    why = refused_for(request, asked)
    options = request.stream_options if isinstance(request.stream_options, dict) else {}
    return Opted(
        mode="off" if why else asked,
        asked=asked,
        why=why,
        stops=_stops(request.stop),
        wants_usage=options.get("include_usage") is True,
    )


def refused_for(request: _Asked, mode: Continuation) -> str:
    """The part of the request for whose sake its answer is not gone on with; empty where there is none."""
    last = request.messages[-1] if request.messages else {}
    is_exact = mode == "exact"
    for name, is_against in (
        ("tools", bool(request.tools) or bool(request.functions)),
        ("response_format", request.response_format not in _PLAIN_FORMATS),
        ("logprobs", bool(request.logprobs)),
        ("n", request.n not in (None, 1)),
        ("modalities", request.modalities not in (None, ["text"]) or bool(request.audio)),
        # greedy answers do not depend on it; otherwise the generator's state is lost with the replica
        ("seed", request.seed is not None and not (is_exact and request.temperature == 0)),
        # what engines count of the answer for these is lost too
        ("penalties", is_exact and _has_penalties(request)),
        ("messages", last.get("role") == "assistant"),
    ):
        if is_against:
            return name
    return ""


def described(up: ReplicaUp, endpoint: Endpoint) -> ReplicaUp:
    """The replica with what its engine can do of this."""
    how = HOW.get(engine_of(endpoint))
    continues: Continuation = "off" if how is None else "exact" if how.exact else "text"
    return msgspec.structs.replace(
        up,
        continues=continues,
        build=endpoint.build,
        caches_prefixes=how is not None and how.caches_prefixes,
    )


def engine_of(endpoint: Endpoint) -> str:
    """The engine's name: the first word of the build."""
    return endpoint.build.partition(" ")[0]


def _read(header: bytes) -> Continuation:
    said = header.decode("latin-1").strip().lower()
    for mode in MODES:
        if said == mode:
            return mode
    message = f"the header {HEADER.decode()} is {said!r}; it can be {', '.join(MODES)}"
    raise ProblemError(
        Problem(status=400, code="invalid_header", message=message, param=HEADER.decode())
    )


def _stops(given: object) -> tuple[str, ...]:
    many = given if isinstance(given, list) else [given]
    return tuple(one for one in many if isinstance(one, str) and one)


def _has_penalties(request: _Asked) -> bool:
    return any((request.frequency_penalty, request.presence_penalty, request.logit_bias)) or request.repeat_penalty not in (None, 1)  # fmt: skip
