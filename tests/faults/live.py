"""Streams of a live node, read byte by byte, and what became of each: the oracle of the kill tests and of the soak.

A client that knows its prompt knows every word of a ghost's answer (`ghost_text`), so an answer that is short, said twice or anybody else's shows. Of a
real engine it knows how many tokens it asked for, and that one answer has one id, one beginning and one end.

    whole      all of it came, and that it is all was said
    moved      the same, from the second replica that was asked or a later one: nothing had been sent before
    continued  the same, with a seam: another replica went on where one broke off
    error      some of it came, all of that right, and then an error event
    refused    no byte of an answer: an HTTP error
    cut        it ended as if it were all, or the connection broke, without a word
    glued      parts of two answers, or of one twice
"""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import httptools

from polypod.serve.engines.ghost_text import prompt_hash, words, words_right

What = Literal["whole", "moved", "continued", "error", "refused", "cut", "glued"]
GOOD: tuple[What, ...] = ("whole", "moved", "continued")
BAD: tuple[What, ...] = ("refused", "cut", "glued")  # what must not be


@dataclass(frozen=True, kw_only=True)
class Wish:
    """One request: always as many tokens as it asks for."""

    model: str
    text: str
    tokens: int
    headers: tuple[tuple[str, str], ...] = ()
    is_ghost: bool = True

    @property
    def prompt(self) -> int:
        return prompt_hash([("user", self.text)])

    def request(self) -> bytes:
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": self.text}],
                "max_tokens": self.tokens,
                "ignore_eos": True,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            "host: localhost",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(kw_only=True)
class Heard:
    """What came of it."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    is_complete: bool = False  # as HTTP has it
    sent_s: float = 0.0
    first_s: float | None = None
    last_s: float | None = None
    was_left: bool = False  # by us


@dataclass(frozen=True, kw_only=True)
class Verdict:
    what: What
    why: str
    tokens: int = 0


class Stream(asyncio.Protocol):
    """Asks once, and reads to the end, or leaves after some bytes."""

    def __init__(self, wish: Wish, *, leave_after: int | None = None, slow: float = 0.0) -> None:
        self.heard = Heard()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wish = wish
        self._leave_after = leave_after
        self._slow_s = slow
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None

    def connection_made(self, transport) -> None:
        self._transport = transport
        self.heard.sent_s = self._loop.time()
        transport.write(self._wish.request())

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        if self._leave_after is not None and len(self.heard.body) > self._leave_after:
            self.heard.was_left = True
            self._transport.abort()
        elif self._slow_s:
            self._transport.pause_reading()
            self._loop.call_later(self._slow_s, self._go_on)

    def connection_lost(self, error) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.heard.headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        self.heard.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        heard = self.heard
        heard.last_s = self._loop.time()
        heard.first_s = heard.first_s or heard.last_s
        heard.body += body

    def on_message_complete(self) -> None:
        self.heard.is_complete = True
        if not self.over.done():
            self.over.set_result(None)
        self._transport.close()

    def _go_on(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()


async def listen(port: int, wish: Wish, *, leave_after: int | None = None, slow: float = 0.0, patience_s: float = 300.0, source: int = 1) -> Heard:  # fmt: skip
    """Ask the node on this port, and hear it out; a stream that never ends is broken off, and shows as cut.

    From the address 127.0.0.`source`: one address has 28,000 ports, and each rests for a minute after its connection.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, stream = await loop.create_connection(lambda: Stream(wish, leave_after=leave_after, slow=slow), "127.0.0.1", port, local_addr=(f"127.0.0.{source}", 0))  # fmt: skip
    except OSError:
        return Heard()
    try:
        await asyncio.wait_for(stream.over, patience_s)
    except TimeoutError:
        transport.abort()
    return stream.heard


@dataclass(kw_only=True)
class _Said:
    """A stream's events, sorted."""

    text: str = ""
    ids: list[str] = field(default_factory=list)
    ids_at_seams: list[int] = field(default_factory=list)
    begun: int = 0
    endings: list[str] = field(default_factory=list)
    after_end: bool = False
    errors: list[Any] = field(default_factory=list)
    seams: int = 0
    is_done: bool = False
    completion_tokens: int | None = None


def _said(body: bytes) -> _Said | str:
    said = _Said()
    for block in body.decode(errors="replace").replace("\r\n", "\n").split("\n\n"):
        for line in block.split("\n"):
            if line.startswith(":"):
                said.seams += "polypod" in line
            elif line == "data: [DONE]":
                said.is_done = True
            elif line.startswith("data: "):
                try:
                    event = json.loads(line[6:])
                except ValueError:
                    return f"half an event: {line[:80]}"
                _take(said, event)
            elif line:
                return f"no event: {line[:80]}"
    return said


def _take(said: _Said, event: dict[str, Any]) -> None:
    if "error" in event:
        said.errors.append(event["error"])
        return
    if event.get("id") not in said.ids:
        said.ids.append(event.get("id"))
    said.completion_tokens = (event.get("usage") or {}).get("completion_tokens", said.completion_tokens)  # fmt: skip
    for choice in event["choices"]:
        said.begun += choice["delta"].get("role") is not None
        said.after_end = said.after_end or bool(said.endings and choice["delta"].get("content"))
        said.text += choice["delta"].get("content") or ""
        if choice["finish_reason"]:
            said.endings.append(choice["finish_reason"])


def judge(wish: Wish, heard: Heard) -> Verdict:
    """What became of the request."""
    if heard.status == 0:
        return Verdict(what="refused", why="the node did not answer")
    if heard.status != 200:
        return Verdict(what="refused", why=_code(heard))
    said = _said(bytes(heard.body))
    if isinstance(said, str):
        return Verdict(what="cut", why=said)
    wrong = _glued(wish, said)
    if wrong:
        return Verdict(what="glued", why=wrong)
    if said.errors:
        return Verdict(what="error", why=str(said.errors[0].get("code")))
    missing = _missing(wish, heard, said)
    if missing:
        return Verdict(what="cut", why=missing)
    what: What = "continued" if said.seams else "moved" if heard.headers.get("x-polypod-attempts", "1") != "1" else "whole"  # fmt: skip
    return Verdict(what=what, why="", tokens=wish.tokens)


def _glued(wish: Wish, said: _Said) -> str:
    if len(said.ids) > 1:
        return f"{len(said.ids)} ids in one answer"
    if said.begun > 1:
        return f"begun {said.begun} times"
    if said.after_end or len(said.endings) > 1:
        return "it went on after its end"
    if wish.is_ghost and words_right(wish.prompt, said.text) is None:
        return "these are not the words of its answer"
    return ""


def _missing(wish: Wish, heard: Heard, said: _Said) -> str:
    """What a whole answer has, and this one has not."""
    lacks = [
        name
        for name, has in (
            ("[DONE]", said.is_done),
            ("an end as HTTP has it", heard.is_complete),
            ("a finish reason", bool(said.endings)),
            ("all its tokens by its own count", said.completion_tokens == wish.tokens),
            (
                "all its words",
                not wish.is_ghost or said.text == words(wish.prompt, 0, wish.tokens),
            ),
        )
        if not has
    ]
    return f"it has not {' nor '.join(lacks)}" if lacks else ""


def _code(heard: Heard) -> str:
    try:
        return f"{heard.status} {json.loads(bytes(heard.body))['error']['code']}"
    except (ValueError, KeyError, TypeError):
        return str(heard.status)


class Tally:
    """Verdicts, counted."""

    def __init__(self) -> None:
        self.counts: Counter[What] = Counter()
        self.reasons: Counter[tuple[What, str]] = Counter()

    def add(self, verdict: Verdict) -> None:
        self.counts[verdict.what] += 1
        if verdict.why:
            self.reasons[verdict.what, verdict.why] += 1

    @property
    def bad(self) -> int:
        return sum(self.counts[what] for what in BAD)

    def lines(self) -> list[str]:
        names: tuple[tuple[What, str], ...] = (
            ("whole", "answered whole"),
            ("moved", "answered whole, after another replica had failed unseen"),
            ("continued", "gone on with elsewhere, and whole"),
            ("error", "ended with an error event in the stream"),
            ("refused", "lost before the first byte"),
            ("cut", "silently cut"),
            ("glued", "glued"),
        )
        lines = []
        for what, name in names:
            reasons = [f"{why} {count:,}" for (kind, why), count in self.reasons.most_common() if kind == what]  # fmt: skip
            why = f"   ({'; '.join(reasons[:4])})" if reasons else ""
            lines.append(f"{self.counts[what]:>10,}  {name}{why}")
        return lines


async def all_of(
    wishes: int, at_once: int, one: Callable[[int], Any], *, ramp_s: float = 0.0
) -> None:
    """Run `one(n)` for every n, so many at a time; the first ones begin spread over the ramp."""
    numbers = iter(range(wishes))
    at_once = min(at_once, wishes)

    async def work(after_s: float) -> None:
        await asyncio.sleep(after_s)
        for number in numbers:
            await one(number)

    await asyncio.gather(*(work(ramp_s * n / at_once) for n in range(at_once)))
