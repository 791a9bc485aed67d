"""The engine's side of the gateway: one connection, one request on it at a time, and the answer while it comes.

What an engine sends is held to HTTP/1.1 by llhttp; what is not, ends the answer with an `UpstreamError`. Data that nobody takes yet is
held up to `MOST_HELD_BYTES`, then the engine is not read from until somebody takes it. Every state has a deadline.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any, Final

import httptools

from polypod.policy.events import FailureKind
from polypod.serve.http import native
from polypod.serve.http.relays import OnRelayed, Relay, Relays
from polypod.serve.http.sweep import Sweeper

_JOINED_BYTES: Final = 1 << 18
MOST_HELD_BYTES: Final = 1 << 18  # of a stream
MOST_ANSWER_BYTES: Final = 64 << 20  # of an answer in one piece
MOST_HEAD_BYTES: Final = 64 << 10
MOST_HEADERS: Final = 200
MOST_INTERIM: Final = 8  # answers of status 1xx before the real one

Idle = Callable[["EngineConnection"], None]


class UpstreamError(Exception):
    """An engine that did not answer as it should. `detail` has no word the engine sent: that may be text of an answer."""

    def __init__(self, *, kind: FailureKind, detail: str) -> None:
        self.kind: FailureKind = kind
        self.detail = detail
        super().__init__(f"{kind}: {detail}")


class Response:
    """An answer while it comes. Read it with `read`, or with `readany` and then `pass_to`; leave it with `release`."""

    __slots__ = ("_connection", "_error", "_held_bytes", "_is_complete", "_most_bytes", "_parts", "_sink", "_waiter", "headers", "status")  # fmt: skip

    def __init__(self, connection: "EngineConnection") -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}  # names in lower case; the last of several
        self._connection = connection
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._most_bytes = MOST_HELD_BYTES
        self._sink: Callable[[bytes], None] | None = None
        self._is_complete = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def content_type(self) -> str:
        """In lower case, without parameters; empty where none is said."""
        return self.headers.get(b"content-type", b"").split(b";")[0].strip().lower().decode("latin-1")  # fmt: skip

    async def begun(self) -> None:
        """Wait for status and headers."""
        while not self.status:
            await self._news()

    async def read(self) -> bytes:
        """All of the body. Raises `UpstreamError` also for one above `MOST_ANSWER_BYTES`."""
        self._most_bytes = MOST_ANSWER_BYTES
        if not self._is_complete:
            self.throttle(is_full=False)
        while not self._is_complete and self._held_bytes <= MOST_ANSWER_BYTES:
            await self._news()
        if self._held_bytes > MOST_ANSWER_BYTES:
            detail = f"an answer larger than {MOST_ANSWER_BYTES} bytes"
            raise UpstreamError(kind="engine", detail=detail)
        return self._take()

    async def readany(self) -> bytes:
        """What came since, at least a byte; empty at the end."""
        while not self._parts and not self._is_complete:
            await self._news()
        data = self._take()
        if self._sink is None:
            self.throttle(is_full=False)
        return data

    async def pass_to(self, sink: Callable[[bytes], None]) -> None:
        """Give every part to `sink` in the moment it comes; return at the end. Raises `UpstreamError` where it breaks."""
        self.throttle(is_full=False)
        if self._parts:
            sink(self._take())
        self._sink = sink
        while not self._is_complete:
            await self._news()

    def relay(self, client: int, on_relayed: OnRelayed) -> bool:
        """Let what comes go straight to that socket, as long as it is whole chunks of whole events; whether it does.

        `on_relayed` is told when it ends, before what comes then is given to the sink.
        """
        return self._connection.relay(self, client, on_relayed)

    def throttle(self, *, is_full: bool) -> None:
        """Stop reading from the engine, or go on: nobody can take more, or somebody can."""
        self._connection.throttle(is_full=is_full)

    def hurry(self, silence_s: float) -> None:
        """From now on, the engine may be silent only this long."""
        self._connection.hurry(silence_s)

    def release(self) -> None:
        """Leave it: the connection is kept if the answer was read to its end, and closed if not."""
        self._sink = None
        self._connection.released(self, is_whole=self._is_complete)

    # ---- the connection's side

    def arrived(self, data: bytes) -> None:
        """Some of the body is here."""
        if self._sink is not None:
            self._sink(data)
            return
        self._parts.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > self._most_bytes:
            self.throttle(is_full=True)
            self.wake()
        elif self._most_bytes == MOST_HELD_BYTES:
            self.wake()

    def completed(self) -> None:
        """All of it is here."""
        self._is_complete = True
        self.wake()

    def broke(self, error: UpstreamError) -> None:
        """No more will come, and it is not complete."""
        if not self._is_complete and self._error is None:
            self._error = error
            self.wake()

    def wake(self) -> None:
        """Whoever waits looks again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _news(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        await waiter
        self._waiter = None

    def _take(self) -> bytes:
        parts, self._parts, self._held_bytes = self._parts, [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)


class EngineConnection(asyncio.Protocol):
    """One connection. `on_idle` gets it back after each answer that left it usable; one that broke just goes."""

    def __init__(
        self, sweeper: Sweeper, on_idle: Idle, on_lost: Idle, relays: Relays | None = None
    ) -> None:
        self.deadline_s = math.inf
        self._sweeper = sweeper
        self._relays = relays
        self._relay: Relay | None = None  # reads in our place
        self._on_relayed: OnRelayed | None = None
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._response: Response | None = None
        self._silence_s = math.inf
        self._is_throttled = False
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._interim = 0
        self._body: list[bytes] = []
        self._chunks = self._open_chunks = 0
        self._ends_line = False  # what was read last
        self._heads = native.module("heads")
        self._is_fresh = True  # nothing of the answer was read
        self._is_done = False  # all of the answer was parsed
        self._is_usable = True  # for another request

    def send(self, head: bytes, body: bytes, silence_s: float) -> Response:
        """Send a request; the engine may be silent this long."""
        assert self._response is None, "a connection has one request at a time"
        self._response = response = Response(self)
        self._is_done, self._headers, self._head_bytes, self._interim = False, {}, 0, 0
        self._chunks = self._open_chunks = 0
        self._is_fresh = True
        self.hurry(silence_s)
        if len(body) <= _JOINED_BYTES:
            self._transport.write(head + body)  # each write is a system call
        else:
            self._transport.write(head)
            self._transport.write(body)
        return response

    def hurry(self, silence_s: float) -> None:
        """The engine may be silent this long, from now on."""
        self._silence_s = silence_s
        if not self._is_throttled:
            self.deadline_s = self._loop.time() + silence_s

    def throttle(self, *, is_full: bool) -> None:
        """Pause or go on. A pause is ours: it does not count as the engine's silence."""
        if is_full == self._is_throttled or self._transport.is_closing():
            return
        self._end_relay()
        self._is_throttled = is_full
        if is_full:
            self._transport.pause_reading()
            self.deadline_s = math.inf
        else:
            self._transport.resume_reading()
            self.deadline_s = self._loop.time() + self._silence_s

    def released(self, response: Response, *, is_whole: bool) -> None:
        """Nobody reads this answer any more."""
        if self._response is not response:
            return
        if self._is_throttled:
            self.throttle(is_full=False)
        self._response, self.deadline_s = None, math.inf
        if is_whole and self.is_open:
            self._on_idle(self)
        else:
            self.abort()

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        is_sent = not self._transport.get_write_buffer_size()
        return self._is_usable and is_sent and not self._transport.is_closing()

    def abort(self) -> None:
        """Close it at once; the engine may stop what it does."""
        self._is_usable = False
        self._end_relay()
        self._transport.abort()

    # ---- what goes past us

    def relay(self, response: Response, client: int, on_relayed: OnRelayed) -> bool:
        """Have the engine's socket read by a relay; whether it is."""
        if not (self._response is response and self._is_between_chunks and self._relays):
            return False
        if self._relay is not None or self._is_throttled or self._transport.is_closing():
            return False
        self._relay = self._relays.begin(self._transport, client, self._relay_stopped)
        if self._relay is None:
            return False
        self._on_relayed = on_relayed
        self._transport.pause_reading()
        return True

    @property
    def _is_between_chunks(self) -> bool:
        return bool(self._chunks) and not self._open_chunks and self._ends_line and not self._is_done  # fmt: skip

    def _relay_stopped(self, raw: bytes | None, unsent: bytes) -> None:
        """There was something that it does not understand (`raw`), or that its client did not take, or the end; or, None, no memory."""
        self._relayed(unsent)
        if raw is None:
            detail = "no memory for what came of its stream"
            self._break(UpstreamError(kind="engine", detail=detail))
        elif raw:
            self.data_received(raw)

    def _end_relay(self) -> None:
        """Read by ourselves again, or not at all."""
        if self._relay is not None:
            self._relay.stop()
            self._relayed(b"")

    def _relayed(self, unsent: bytes) -> None:
        relay, self._relay = self._relay, None
        tell, self._on_relayed = self._on_relayed, None
        assert relay is not None
        assert tell is not None
        self.deadline_s = max(self.deadline_s, relay.last_s + self._silence_s)
        if not self._transport.is_closing():
            self._transport.resume_reading()
        tell(relay, unsent)

    def overdue(self) -> None:
        """Silent for too long, or idle for too long."""
        if self._relay is not None:
            heard_s = self._relay.last_s + self._silence_s
            if heard_s > self._loop.time():
                self.deadline_s = heard_s
                return
        self._break(UpstreamError(kind="timeout", detail=f"silent for {self._silence_s:g} s"))

    # ---- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._sweeper.watch(self)

    def data_received(self, data: bytes) -> None:
        if self._response is None:  # said without being asked
            self.abort()
            return
        if self._is_fresh and self._heads is not None:
            plain = self._heads.answer(data, MOST_HEAD_BYTES, MOST_HEADERS)
            if plain is not None:
                self._answered(*plain)
                return
        self._is_fresh = False
        self.deadline_s = self._loop.time() + self._silence_s
        self._ends_line = data.endswith(b"\r\n")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._deliver()
            self._is_usable = False
            if not self._is_done:
                self._break(UpstreamError(kind="engine", detail="not HTTP/1.1"))
            return
        self._deliver()

    def _answered(self, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        """An answer that came in one piece, and as nearly all do."""
        response = self._response
        assert response is not None
        self._is_fresh, self._is_done = False, True
        self._headers = response.headers = headers
        response.status = status
        if body:
            self._body.append(body)
        self._deliver()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_usable = False
        self._end_relay()
        self._sweeper.forget(self)
        self._on_lost(self)
        response, self._response = self._response, None
        self._parser = None
        if response is None:
            return
        if error is None and response.status and self._ends_with_connection():
            response.completed()
            return
        said = error.strerror if isinstance(error, OSError) else None
        response.broke(UpstreamError(kind="lost", detail=said or "the connection was closed"))

    def _ends_with_connection(self) -> bool:
        headers = self._headers
        return b"content-length" not in headers and b"transfer-encoding" not in headers

    def _deliver(self) -> None:
        """Hand on what one read brought, in one piece."""
        response, body = self._response, self._body
        if response is None:
            return
        if body:
            self._body = []
            response.arrived(body[0] if len(body) == 1 else b"".join(body))
        if self._is_done:
            self.deadline_s = math.inf
            response.completed()

    def _break(self, error: UpstreamError) -> None:
        if self._response is not None:
            self._response.broke(error)
        self.abort()

    # ---- the parser's side

    def on_message_begin(self) -> None:
        if self._is_done:  # a second answer to one request
            self._is_usable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MOST_HEAD_BYTES or len(self._headers) >= MOST_HEADERS:
            raise ValueError(self._head_bytes)  # comes out of the parser as an error of its own
        response = self._response
        if response is not None and not response.status:  # else a trailer
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        response = self._response
        if status < 200 or response is None or self._is_done:
            self._interim += 1
            self._headers = {}
            if self._interim > MOST_INTERIM or status == 101:
                raise ValueError(status)
            return
        response.status, response.headers = status, self._headers
        response.wake()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        self._open_chunks += 1

    def on_chunk_complete(self) -> None:
        self._open_chunks -= 1

    def on_body(self, data: bytes) -> None:
        if not self._is_done:
            self._body.append(data)

    def on_message_complete(self) -> None:
        response = self._response
        if response is not None and response.status and not self._is_done:
            self._is_done = True
            self._is_usable = self._is_usable and self._parser.should_keep_alive()
