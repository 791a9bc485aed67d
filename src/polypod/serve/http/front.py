"""The clients' side of the gateway: one object per connection, driven by what the loop says, without a task of its own.

A connection reads one request after the other and answers them in order. What the client does not take is kept in the transport up to its high-water
mark; then the one who sends is throttled (`Reply.throttle`), and a client that does not empty it in time is cut, so that it cannot hold a
replica. A client that closes its side while it waits for an answer is taken as gone. Every state has a deadline.
"""

import asyncio
import math
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from polypod.serve.http.heads import CONTINUE, LAST_CHUNK, chunk, head
from polypod.serve.http.idle import Idle
from polypod.serve.http.request import Request, RequestReader, Sizes
from polypod.serve.http.room import Room
from polypod.serve.http.sweep import Sweeper
from polypod.serve.reply import Headers, Reply, Throttle
from polypod.serve.wire import Problem

HIGH_WATER_BYTES: Final = 64 << 10
MOST_PIPELINED: Final = 64
MOST_DISCARDED_BYTES: Final = (
    64 << 10
)  # of the body of a request that is refused, for the sake of the connection
_SWEEP_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """How long a client may take."""

    idle_s: float = 75.0  # longer than clients keep idle connections, so that they close first
    rest_s: float = 1.0  # idle, before it may be closed to let another client in
    head_s: float = 10.0  # from a request's first byte to the end of its headers
    body_s: float = 120.0  # from there to its end
    taking_s: float = 30.0  # to empty a full buffer
    leaving_s: float = 2.0  # to read the last answer, and go


class Exchanging(Protocol):
    """An answer that is on its way."""

    def leave(self) -> None:
        """Nobody waits for it any more: it is complete, or the client has gone."""


class App(Protocol):
    """What answers."""

    @property
    def sizes(self) -> Sizes:
        """The most a request may have."""

    @property
    def room(self) -> Room:
        """The most that all of them together may have."""

    def request_id(self, headers: Mapping[bytes, bytes]) -> bytes:
        """What to call a request."""

    def admit(self, request: Request) -> Problem | None:
        """Look at a request whose headers are here; a problem refuses it."""

    def take(self, request: Request, reply: Reply) -> Exchanging | None:
        """Answer a request: now, or by an exchange."""

    def refuse(self, problem: Problem, reply: Reply) -> None:
        """Answer what cannot be taken."""

    def client_cut(self) -> None:
        """A client was too slow in taking its answer."""


class Front:
    """All connections of one listener."""

    def __init__(self, app: App, waits: Waits | None = None) -> None:
        self.app = app
        self.waits = waits or Waits()
        self.is_retiring = False  # connections end with the answer under way
        self.connections: set[ClientConnection] = set()
        waits_s = (self.waits.head_s, self.waits.taking_s, self.waits.leaving_s)
        self.sweeper = Sweeper(min(_SWEEP_S, min(waits_s) / 4))
        self._idle = Idle(idle_s=self.waits.idle_s, rest_s=self.waits.rest_s)
        self._is_empty = asyncio.Event()

    def connect(self) -> "ClientConnection":
        """The protocol of a new connection."""
        return ClientConnection(self)

    def retire(self) -> None:
        """Close idle connections, and the others after the answer under way."""
        self.is_retiring = True
        for connection in tuple(self.connections):
            connection.retire()

    def made_way(self) -> bool:
        """Whether an idle connection was closed, for one more."""
        return self._idle.close_one(self.connections, asyncio.get_running_loop().time())

    async def emptied(self) -> None:
        """Wait until no connection is left."""
        while self.connections:
            self._is_empty.clear()
            await self._is_empty.wait()

    def abort(self) -> None:
        """Break what is left."""
        for connection in tuple(self.connections):
            connection.cut()
        self.sweeper.stop()

    def lost(self, connection: "ClientConnection") -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._is_empty.set()


class ClientConnection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, front: Front) -> None:
        self.deadline_s = math.inf
        self._front = front
        self._app = front.app
        self._waits = front.waits
        self._room = front.app.room
        self._counted = 1  # in the room, while it is open
        self._is_extra = False  # beyond the node's limit: to be told so, or shown how the node is
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._peer = "?"
        self._reader = RequestReader(self, front.app.sizes)
        self._waiting: deque[Request] = deque()  # read, and not yet answered
        self._answered: Request | None = None  # being answered
        self._exchange: Exchanging | None = None
        self._keeps = False  # the connection, after the answer under way
        self._is_chunked = False  # the answer under way
        self._is_bodiless = False
        self._head = (
            b""  # waits for the first of the body, to go out with it: each write is a system call
        )
        self._is_full = False  # the client does not take what is sent
        self._is_deaf = False  # what comes is not read any more
        self._is_leaving = False  # the last answer is sent
        self._tell: Throttle | None = None

    # ---- the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(HIGH_WATER_BYTES)
        self._peer = (transport.get_extra_info("peername") or ("?",))[0]
        self._front.connections.add(self)
        self._front.sweeper.watch(self)
        self._room.connections += 1
        self._is_extra = self._room.is_crowded and not self._front.made_way()
        self._wait(self._waits.head_s if self._is_extra else self._waits.idle_s)
        if self._room.is_overrun:
            self._room.refuse("connections")
            self.cut()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        reader = self._reader
        was_idle = reader.request is None and self._answered is None
        problem = reader.feed(data)
        if problem is not None:
            self._refuse_for_good(problem)
        elif was_idle and reader.is_head:
            self._wait(self._waits.head_s)

    def eof_received(self) -> None:
        """The client closes its side, and with it the connection."""

    def connection_lost(self, error: Exception | None) -> None:
        self._front.sweeper.forget(self)
        self._transport = None
        self._reader.close()
        self._drop(self._reader.request, *self._waiting)
        self._waiting.clear()
        self._tell = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.leave()
        self._drop(self._answered)
        self._room.connections -= self._counted
        self._front.lost(self)

    def pause_writing(self) -> None:
        self._is_full = True
        self._wait(self._waits.taking_s)
        if self._tell is not None:
            self._tell(is_full=True)

    def resume_writing(self) -> None:
        self._is_full = False
        self._wait_for_what_is_next()
        if self._tell is not None:
            self._tell(is_full=False)

    # ---- deadlines

    def overdue(self) -> None:
        """Too slow: in asking, which is said if somebody was; or in taking."""
        if self._is_full and not self._is_leaving:
            self._app.client_cut()
            self.cut()
        elif self._answered is None and not self._is_leaving and self._is_reading:
            wait_s = self._waits.head_s if self._reader.is_head else self._waits.body_s
            message = f"the request was not complete within {wait_s:g} s"
            self._refuse_for_good(Problem(status=408, code="request_timeout", message=message))
        elif self._is_leaving:
            self.cut()
        else:
            self._close()

    def cut(self) -> None:
        """Break the connection."""
        if self._transport is not None:
            self._transport.abort()

    def retire(self) -> None:
        """Close if idle; else after the answer under way, or that to the request that is coming in."""
        if self._is_idle:
            self._close()

    @property
    def may_make_way(self) -> bool:
        """Whether it asks for nothing and is owed nothing; one beyond the limit is not kept anyway."""
        is_ending = self._transport is None or self._is_leaving or self._is_extra
        return self._is_idle and not (self._waiting or self._is_full or is_ending)

    def make_way(self) -> None:
        """Close though it might ask again, and leave room at once."""
        self._room.connections -= self._counted
        self._counted = 0
        self._room.made_way()
        self._close()

    @property
    def _is_reading(self) -> bool:
        return self._reader.request is not None

    @property
    def _is_idle(self) -> bool:
        return self._answered is None and not self._is_reading

    def _wait(self, wait_s: float) -> None:
        self.deadline_s = self._loop.time() + wait_s

    def _wait_for_what_is_next(self) -> None:
        if self._is_leaving:
            self._wait(self._waits.leaving_s)
        elif self._answered is not None:
            self.deadline_s = math.inf  # others wait for their engines, and look to that
        elif self._reader.request is None:
            self._wait(self._waits.idle_s)
        else:
            self._wait(self._waits.head_s if self._reader.is_head else self._waits.body_s)

    # ---- the reader's side

    def head_read(self, request: Request) -> Problem | None:
        """Refuse at once what would be refused anyway, before its body is sent; a small body is let in, to keep the connection."""
        request.peer = self._peer
        request.is_extra = self._is_extra
        problem = self._app.admit(request)
        if problem is not None:
            length = int(request.headers.get(b"content-length", b"0"))
            if request.is_chunked or length > MOST_DISCARDED_BYTES or request.expects_continue:
                return problem
            request.refused = problem
        if self._answered is None:
            self._wait(self._waits.body_s)
        if request.expects_continue and request.has_body and self._answered is None:
            self._transport.write(CONTINUE)
        return None

    def body_came(self, size_bytes: int) -> Problem | None:
        """Count it, where all bodies together have room for it."""
        self._room.body_bytes += size_bytes
        return None if self._room.has_room(0) else self._room.refuse("bodies")

    def _drop(self, *requests: Request | None) -> None:
        """Nobody needs their bodies any more."""
        for request in requests:
            if request is not None and request.body:
                self._room.body_bytes -= len(request.body)
                request.body = b""

    def request_read(self, request: Request) -> None:
        """Answer it, or after those before it."""
        if self._answered is not None or self._waiting:
            self._waiting.append(request)
            if len(self._waiting) >= MOST_PIPELINED:
                self._transport.pause_reading()
            return
        self._answer(request)

    def _answer(self, request: Request) -> None:
        self._answered = request
        self.deadline_s = math.inf
        reply = Reply(self, self._app.request_id(request.headers))
        if request.refused is not None:
            self._app.refuse(request.refused, reply)
            return
        exchange = self._app.take(request, reply)
        if self._answered is request:
            self._exchange = exchange
        elif exchange is not None:
            exchange.leave()

    def _refuse_for_good(self, problem: Problem) -> None:
        """Say what is wrong and read no more. Answers that are still owed go out, and then there is nothing to say."""
        self._is_deaf = True
        self._drop(self._reader.request)
        if self._answered is not None or self._waiting or self._transport is None:
            return
        self._answered = Request()
        self._app.refuse(problem, Reply(self, self._app.request_id({})))

    # ---- the reply's side

    def begin(self, status: int, headers: Headers, length: int | None) -> None:
        request = self._answered
        if request is None or self._transport is None:
            return
        self._is_bodiless = request.method == "HEAD"
        self._is_chunked = length is None and request.version == "1.1"
        is_last = self._front.is_retiring or self._is_extra or (self._is_deaf and not self._waiting)
        self._keeps = request.keeps and not is_last and (length is not None or self._is_chunked)
        if self._is_chunked:
            headers = [*headers, (b"transfer-encoding", b"chunked")]
        elif self._keeps and request.version == "1.0":
            headers = [*headers, (b"connection", b"keep-alive")]
        self._head = head(status, headers, length=length, keeps=self._keeps)

    def part(self, data: bytes) -> None:
        if self._transport is not None and data and not self._is_bodiless:
            self._transport.write(self._framed(data))

    def part_at_once(self, data: bytes) -> None:
        if self._transport is None or not data or self._is_bodiless:
            return
        framed, sent = self._framed(data), 0
        if not (self._transport.is_closing() or self._transport.get_write_buffer_size()):
            with suppress(OSError):  # one that broke is told of by who writes next
                sent = os.write(self._transport.get_extra_info("socket").fileno(), framed)
        if sent < len(framed):
            self._transport.write(framed[sent:])

    def _framed(self, data: bytes) -> bytes:
        framed = chunk(data) if self._is_chunked else data
        if self._head:
            framed, self._head = self._head + framed, b""
        return framed

    def raw(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def socket(self) -> int | None:
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size():
            return None
        if not self._is_chunked or self._is_bodiless or self._head:
            return None
        number: int = transport.get_extra_info("socket").fileno()
        return number

    def end(self, data: bytes) -> None:
        if self._transport is None or self._answered is None:
            return
        framed, self._head = self._head, b""
        if not self._is_bodiless:
            if data:
                framed += chunk(data) if self._is_chunked else data
            if self._is_chunked:
                framed += LAST_CHUNK
        if framed:
            self._transport.write(framed)
        self._ended()

    def throttle(self, tell: Throttle | None) -> None:
        self._tell = tell
        if tell is not None and self._is_full:
            tell(is_full=True)

    def _ended(self) -> None:
        """The answer is sent, as far as we are concerned."""
        self._drop(self._answered)
        self._exchange = self._answered = self._tell = None
        if not self._keeps:
            self._leave()
            return
        if not self._is_full:
            self._wait_for_what_is_next()
        if self._waiting:
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        """Answer the request that came next, while the one before was answered."""
        if self._answered is None and self._waiting and self._transport is not None:
            if len(self._waiting) == MOST_PIPELINED:
                self._transport.resume_reading()
            self._answer(self._waiting.popleft())

    def _leave(self) -> None:
        """Send what is left, and close. A client that still sends would lose the answer if we closed first: it may do so for a while."""
        if not self._is_deaf or self._transport.is_closing():
            self._close()
            return
        self._is_leaving = True
        self._wait(self._waits.leaving_s)
        self._transport.write_eof()

    def _close(self) -> None:
        self._is_leaving = self._is_deaf = True
        self._drop(*self._waiting)
        self._waiting.clear()
        self._wait(self._waits.taking_s if self._is_full else self._waits.leaving_s)
        self._transport.close()
