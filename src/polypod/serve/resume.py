"""What an engine is asked, so that it goes on where another one broke off; and the part of the transcript that hears its answer."""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from polypod.serve.continuation import HOW, How
from polypod.serve.transcript import LaterLeg, Leg, NativeLeg, Piece, Transcript
from polypod.serve.upstream import Upstream, UpstreamError
from polypod.serve.wire import ChatRequest

_encode: Final = msgspec.json.Encoder().encode
_NOT_NATIVE: Final = frozenset(
    ("model", "messages", "max_tokens", "max_completion_tokens", "stream_options", "n", "logprobs", "top_logprobs", "user")
)  # fmt: skip
_SHOWS: Final[dict[str, dict[str, Any]]] = {
    "ids": {"return_token_ids": True},
    "completion": {"logprobs": True, "top_logprobs": 1, "timings_per_token": True},
}
"""How an engine is made to tell its tokens: llama.cpp the last one of each event, and how many there are."""

_LATER: Final = (408, 429)
_LIMITS: Final = ("max_tokens", "max_completion_tokens")


class CannotGoOnError(Exception):
    """The answer cannot be gone on with, and this is why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A request to an engine. `path` None is its chat."""

    body: bytes
    leg: Leg
    path: str | None = None


def remaining_tokens(chat: ChatRequest, transcript: Transcript) -> int | None:
    """How long the rest may be; None where the request has no limit."""
    most = chat.max_output_tokens
    return None if most is None else max(most - transcript.tokens, 0)


async def asking(
    engine: str, replica: str, upstream: Upstream, body: bytes, chat: ChatRequest, transcript: Transcript
) -> Asking:  # fmt: skip
    """What this engine is asked now. Raises `CannotGoOnError`, and `UpstreamError` where the engine does not answer what is needed for it."""
    how = HOW.get(engine)
    is_exact = transcript.opted.mode == "exact" and how is not None and how.exact is not None
    if not transcript.has_begun:
        if not is_exact or how is None:
            return Asking(body=body, leg=Leg(transcript))
        return Asking(body=_with_ids(body, how), leg=Leg(transcript, hides_ids=True))
    if transcript.cannot:
        raise CannotGoOnError(transcript.cannot)
    if how is None or (transcript.opted.mode == "exact" and not is_exact):
        msg = f"{replica} cannot go on with it"
        raise CannotGoOnError(msg)
    given: dict[str, Any] = msgspec.json.decode(body)
    left = remaining_tokens(chat, transcript)
    given |= {name: left for name in _LIMITS if given.get(name) is not None and left is not None}
    if not transcript.text:  # nothing but the role was sent: it begins anew, unseen
        return Asking(body=_encode(given), leg=LaterLeg(transcript, replica))
    if not is_exact:
        return _by_text(given, how, replica, transcript)
    if how.exact == "ids":
        ids = {"return_token_ids": True, "continue_token_ids": known_ids(transcript)}
        return Asking(body=_encode(given | ids), leg=LaterLeg(transcript, replica))
    return await _by_completion(given, left, replica, upstream, transcript)


def known_ids(transcript: Transcript) -> list[int]:
    """The tokens of all that was made. Raises `CannotGoOnError` where one was not told."""
    ids = [token for piece in transcript.pieces for token in piece.ids]
    known = [token for token in ids if token is not None]
    if len(known) < len(ids):
        msg = "the engine did not tell all of its tokens"
        raise CannotGoOnError(msg)
    return known


def _with_ids(body: bytes, how: How) -> bytes:
    """The first attempt's request, so that it tells its tokens."""
    return _encode(msgspec.json.decode(body) | _SHOWS[how.exact or "ids"])


def _by_text(given: dict[str, Any], how: How, replica: str, transcript: Transcript) -> Asking:
    text = transcript.text
    shown = text if how.keeps_spaces else text.rstrip()
    if not shown:  # only spaces were sent, which a template would drop with the message
        return Asking(body=_encode(given), leg=LaterLeg(transcript, replica, owed=text))
    given["messages"] = [*given["messages"], {"role": "assistant", "content": shown}]
    if how.text == "final":
        given |= {"continue_final_message": True, "add_generation_prompt": False}
    return Asking(body=_encode(given), leg=LaterLeg(transcript, replica, owed=text[len(shown) :]))


async def _by_completion(
    given: dict[str, Any], left: int | None, replica: str, upstream: Upstream, transcript: Transcript
) -> Asking:  # fmt: skip
    """llama.cpp: the text that its template makes, and the tokens behind it."""
    made = await _posted(upstream, "/apply-template", given)
    ids: list[int] = []
    for piece in transcript.pieces:
        if None in piece.ids:
            ids += await _tokens_of(upstream, piece)
        else:
            ids += [token for token in piece.ids if token is not None]
    native = {name: value for name, value in given.items() if name not in _NOT_NATIVE}
    native |= {"prompt": [made["prompt"], *ids], "stream": True}
    native |= {} if left is None else {"n_predict": left}
    return Asking(body=_encode(native), leg=NativeLeg(transcript, replica), path="/completion")


async def _tokens_of(upstream: Upstream, piece: Piece) -> list[int]:
    """The tokens of a piece of which only the last one was told: a character in several tokens, or what a stop string held up.

    They are taken as the tokeniser writes the text, if those are as many and end alike. A model may have written it otherwise; nothing tells.
    """
    asked = {"content": piece.text, "add_special": False, "parse_special": False}
    found: list[int] = (await _posted(upstream, "/tokenize", asked))["tokens"]
    if len(found) != len(piece.ids) or any(told not in (None, own) for told, own in zip(piece.ids, found, strict=True)):  # fmt: skip
        msg = "the engine did not tell all of its tokens"
        raise CannotGoOnError(msg)
    return found


async def _posted(upstream: Upstream, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = await upstream.ask(path, _encode(body))
    if status in _LATER or status >= 500:  # another replica may, or this one later
        raise UpstreamError(kind="engine", detail=f"{path} answered HTTP {status}")
    if status != 200:
        msg = f"{path} answered HTTP {status}"
        raise CannotGoOnError(msg)
    found: dict[str, Any] = msgspec.json.decode(answer)
    return found
