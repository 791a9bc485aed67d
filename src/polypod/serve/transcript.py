"""One stream's answer as far as its client has it, and every attempt's part in it.

The first attempt's events go out as they came, and are read on the way. A later attempt's are put into the words of the first (id, time, model), without
its beginning (role), behind a comment that says where the seam is; clients skip comments. What an engine repeats or misses at the seam is put
right: spaces that a template trimmed, and a stop string of which a part was sent before.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from polypod.serve.continuation import Opted
from polypod.serve.engines.text import StopWatch
from polypod.serve.wire import Usage

MOST_CHARS: Final = 1 << 20  # of an answer that is kept; a longer one is not gone on with
DONE: Final = b"data: [DONE]\n\n"
_NOT_HEAD: Final = frozenset(("choices", "usage", "timings", "prompt_token_ids"))
_encode: Final = msgspec.json.Encoder().encode


class _Delta(msgspec.Struct, frozen=True, kw_only=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Any = None
    function_call: Any = None


class _Logprob(msgspec.Struct, frozen=True, kw_only=True):
    id: int | None = None


class _Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    content: list[_Logprob] | None = None


class _Timings(msgspec.Struct, frozen=True, kw_only=True):
    predicted_n: int | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk of a chat, as far as it matters here."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    timings: _Timings | None = None  # llama.cpp's: tokens up to here
    error: Any = None


class _Completion(msgspec.Struct, frozen=True, kw_only=True):
    """An event of llama.cpp's own."""

    content: str = ""
    tokens: list[int] = []
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    stop: bool = False
    stop_type: str = ""
    error: Any = None


_EVENTS: Final = msgspec.json.Decoder(Event)
_COMPLETIONS: Final = msgspec.json.Decoder(_Completion)


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Text as an engine made it, and its tokens where it tells them. `None` is one that is counted, and not known."""

    text: str
    ids: tuple[int | None, ...] = (None,)


class Transcript:
    """What was made of one answer, and what of it its client has. `cannot` says why it cannot be gone on with, if so."""

    def __init__(self, opted: Opted) -> None:
        self.opted = opted
        self.pieces: list[Piece] = []
        self.tokens = 0
        self.unsent_chars = 0  # at the end: they may become a stop string
        self.finish: str | None = None
        self.has_usage = False  # the client does
        self.cannot = ""
        self._head: dict[str, Any] | None = None
        self._chars = 0

    @property
    def text(self) -> str:
        """All that was made, sent or held back."""
        return "".join([piece.text for piece in self.pieces])

    @property
    def has_begun(self) -> bool:
        """Whether an event has gone out."""
        return self._head is not None

    def begin(self, data: bytes) -> None:
        """Keep the first chunk's names for all that follow."""
        chunk = msgspec.json.decode(data, type=dict[str, Any])
        self._head = {name: value for name, value in chunk.items() if name not in _NOT_HEAD}

    def made(self, piece: Piece) -> None:
        """An engine has made this too."""
        self.tokens += len(piece.ids)
        self._chars += len(piece.text)
        if self._chars <= MOST_CHARS:
            self.pieces.append(piece)
        else:
            self.pieces.clear()
            self.cannot = f"the answer has more than {MOST_CHARS:,} characters"

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        """An event with the first chunk's names."""
        return self._event(choices=[{"index": 0, "delta": delta, "finish_reason": finish}])

    def usage_event(self, usage: Usage) -> bytes:
        self.has_usage = True
        prompt, completion = usage.prompt_tokens or 0, usage.completion_tokens or 0
        counts = {"prompt_tokens": prompt, "completion_tokens": completion}
        return self._event(choices=[], usage=counts | {"total_tokens": prompt + completion})

    def end(self, finish: str, usage: Usage) -> bytes:
        """What an answer still lacks of which all text is there."""
        events = b""
        if self.finish is None:
            self.finish = finish
            events += self.chunk({}, finish)
        if self.opted.wants_usage and not self.has_usage:
            events += self.usage_event(usage)
        return events + DONE

    def _event(self, **rest: object) -> bytes:
        return _plain(_encode({**(self._head or {}), **rest}))


class Leg:
    """One attempt's part. `take` gets whole events as the engine sent them, and gives what goes to the client."""

    def __init__(self, transcript: Transcript, *, hides_ids: bool = False) -> None:
        """`hides_ids`: the engine tells its tokens to us, not to the client."""
        self.error: Any = None  # that the engine sent in place of the rest
        self.is_over = False  # by a stop string that only we could see
        self.is_done = False  # the engine said that this is all
        self.usage = Usage()  # of the whole answer, as far as told
        self.tokens_before = transcript.tokens
        self._transcript = transcript
        self._hides_ids = hides_ids
        self._told = 0  # tokens of this part, where the engine counts them

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is wanted of the engine."""
        return self.is_over or self.is_done or self.error is not None

    def take(self, events: bytes) -> bytes:
        """Whole events in, whole events out."""
        out = []
        for data in _data(events):
            if self.has_ended:
                break
            if data == b"[DONE]":
                self.is_done = True
                out.append(DONE)
            else:
                out.append(self._chunk(data))
        is_unchanged = type(self) is Leg and not self._hides_ids and self.error is None
        return events if is_unchanged else b"".join(out)

    def _chunk(self, data: bytes) -> bytes:
        transcript = self._transcript
        try:
            event = _EVENTS.decode(data)
            if not transcript.has_begun and event.error is None:
                transcript.begin(data)
        except msgspec.DecodeError:
            transcript.cannot = "an event was not as OpenAI writes it"
            return _plain(data)
        if event.error is not None:
            self.error = event.error
            return b""
        if event.usage is not None:
            self._count(event.usage)
        return self._choice(event, data) if event.choices else self._usage(event, data)

    def _choice(self, event: Event, data: bytes) -> bytes:
        choice = event.choices[0]
        self._look(choice)
        if choice.delta.content:
            self._transcript.made(self._piece(event, choice.delta.content))
        if choice.finish_reason is not None:
            self._transcript.finish = choice.finish_reason
        return _stripped(data) if self._hides_ids else _plain(data)

    def _piece(self, event: Event, text: str) -> Piece:
        """With its tokens, as far as they are told."""
        choice = event.choices[0]
        if choice.token_ids is not None:
            return Piece(text=text, ids=tuple(choice.token_ids))
        said = choice.logprobs.content if choice.logprobs is not None else None
        made = event.timings.predicted_n if event.timings is not None else None
        if not said or made is None:
            return Piece(text=text)
        return Piece(text=text, ids=self._with_last(said[-1].id, made))

    def _with_last(self, last: int | None, made: int) -> tuple[int | None, ...]:
        """The tokens since the piece before, of which the last one is told."""
        unknown, self._told = max(made - self._told - 1, 0), made
        return (*(None,) * unknown, last)

    def _look(self, choice: _Choice) -> None:
        delta = choice.delta
        if delta.reasoning_content or delta.reasoning or delta.tool_calls or delta.function_call:
            self._transcript.cannot = "the answer holds more than text"

    def _usage(self, event: Event, data: bytes) -> bytes:
        self._transcript.has_usage = self._transcript.has_usage or event.usage is not None
        return _plain(data)

    def _count(self, usage: Usage) -> None:
        self.usage = usage


class LaterLeg(Leg):
    """The part of an attempt that goes on after others: in the first one's names, behind a seam.

    The engine was given all that was made; `owed` are spaces at the end of it that it was not given.
    """

    def __init__(self, transcript: Transcript, replica: str, *, owed: str = "") -> None:
        super().__init__(transcript)
        after = f"after {transcript.tokens} tokens ({transcript.opted.mode})"
        self._seam = f": polypod continued on {replica} {after}\n\n".encode()
        self._owed = owed
        stops = transcript.opted.stops
        self._watch = StopWatch(stops)
        keep = max(max(map(len, stops), default=1) - 1, transcript.unsent_chars)
        tail = transcript.text[-keep:] if keep else ""
        if any(stop in tail for stop in stops):
            tail = tail[len(tail) - transcript.unsent_chars :]
        self._skip = (
            len(tail) - transcript.unsent_chars
        )  # of what comes out of the watch: sent before
        self._early = self._passed(tail)

    def take(self, events: bytes) -> bytes:
        """The same; the seam goes out with the first of it."""
        out = super().take(events)
        if out and self._seam:
            seam, self._seam = self._seam, b""
            return seam + out
        return out

    def _choice(self, event: Event, data: bytes) -> bytes:
        choice = event.choices[0]
        self._look(choice)
        content, out = choice.delta.content, b""
        if content:
            out += self.push(self._piece(event, content))
        if choice.finish_reason is not None and not self.is_over:
            out += self.finish(choice.finish_reason)
        return out

    def _usage(self, event: Event, data: bytes) -> bytes:
        return b"" if event.usage is None else self._transcript.usage_event(self.usage)

    def _count(self, usage: Usage) -> None:
        """What had been made before counts as answer; the engine took it for a part of its prompt."""
        prompt, own = usage.prompt_tokens, usage.completion_tokens
        self.usage = Usage(
            prompt_tokens=None if prompt is None else max(prompt - self.tokens_before, 0),
            completion_tokens=None if own is None else own + self.tokens_before,
        )

    def push(self, piece: Piece) -> bytes:
        """More text, less what was sent before and what may yet become a stop string."""
        text = self._without_owed(piece.text)
        self._transcript.made(Piece(text=text, ids=piece.ids))
        out = self._passed(text)
        self._transcript.unsent_chars = max(len(self._watch.held) - self._skip, 0)
        events = self._said(out)
        if self._watch.has_stopped:
            self.is_over = True
            self._transcript.finish = "stop"
            events += self._transcript.chunk({}, "stop")
        return events

    def finish(self, reason: str) -> bytes:
        """The engine is at its end."""
        out = self._watch.finish()[self._skip :]
        self._transcript.unsent_chars = 0
        self._transcript.finish = reason
        return self._said(out) + self._transcript.chunk({}, reason)

    def _without_owed(self, text: str) -> str:
        """Spaces that were sent are not sent again; anything else in their place is another way to go on."""
        while self._owed and text:
            if text[0] != self._owed[0]:
                self._owed = ""
                break
            self._owed, text = self._owed[1:], text[1:]
        return text

    def _passed(self, text: str) -> str:
        """What the watch lets out, less what had been sent."""
        out = self._watch.push(text)
        before = min(self._skip, len(out))
        self._skip -= before
        return out[before:]

    def _said(self, text: str) -> bytes:
        text, self._early = self._early + text, ""
        return self._transcript.chunk({"content": text}) if text else b""


class NativeLeg(LaterLeg):
    """The same over the events of llama.cpp's own /completion. It tells the last token of each event, and how many there are by now."""

    def _chunk(self, data: bytes) -> bytes:
        event = _COMPLETIONS.decode(data)
        if event.error is not None:
            self.error = event.error
            return b""
        out = b""
        if event.content:
            last = event.tokens[-1] if event.tokens else None
            ids = self._with_last(last, event.tokens_predicted)
            out += self.push(Piece(text=event.content, ids=ids))
        if not event.stop or self.is_over:
            return out
        self.is_done = True
        reason = "length" if event.stop_type == "limit" else "stop"
        self._count(
            Usage(prompt_tokens=event.tokens_evaluated, completion_tokens=event.tokens_predicted)
        )
        return out + self.finish(reason) + self._transcript.end(reason, self.usage)


def _data(events: bytes) -> Iterator[bytes]:
    """The data of each event; comments and names of events are left out."""
    for line in events.splitlines():
        if line.startswith(b"data:"):
            yield line[5:].strip()


def _plain(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def _stripped(data: bytes) -> bytes:
    """The chunk without what only we asked for."""
    chunk = msgspec.json.decode(data)
    for choice in chunk.get("choices", ()):
        choice.pop("token_ids", None)
        choice.pop("logprobs", None)
    for name in ("prompt_token_ids", "timings"):
        chunk.pop(name, None)
    return _plain(_encode(chunk))
