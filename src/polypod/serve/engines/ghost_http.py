"""HTTP/1.1 as ghosts speak it: a protocol over httptools, without tasks or streams, so that thousands of tokens a second cost little."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

import httptools

LONGEST_BODY_BYTES: Final = 16 << 20
EVENTS: Final = b"text/event-stream; charset=utf-8"
JSON: Final = b"application/json"
_REASONS: Final = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    405: b"Method Not Allowed",
    413: b"Content Too Large",
    503: b"Service Unavailable",
}


@dataclass(slots=True, kw_only=True)
class Request:
    """One request, all of it."""

    method: str = ""
    path: str = ""
    headers: dict[bytes, bytes] = field(default_factory=dict)  # lower-case names
    body: bytes = b""


class Connection(asyncio.Protocol):
    """One connection. Requests are answered in turn; `when_gone` is called once if the client leaves before its answer is complete."""

    def __init__(self, answer: Callable[["Connection", Request], None]) -> None:
        self.when_gone: Callable[[], None] | None = None
        self._answer = answer
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._reading = Request()
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._url = b""
        self._waiting: deque[Request] = deque()
        self._is_busy = False
        self._keeps = True

    # ---- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own has no common base

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._waiting.clear()
        gone, self.when_gone = self.when_gone, None
        if gone is not None:
            gone()

    # ---- what the parser says

    def on_message_begin(self) -> None:
        self._reading, self._parts, self._url, self._size_bytes = Request(), [], b"", 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reading.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._size_bytes += len(body)
        if self._size_bytes > LONGEST_BODY_BYTES:
            self.abort()
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        request = self._reading
        request.method = self._parser.get_method().decode()
        request.path = self._url.decode("latin-1").partition("?")[0]
        request.body = b"".join(self._parts)
        self._keeps = self._parser.should_keep_alive()
        self._waiting.append(request)
        self._next()

    # ---- what is answered

    def whole(self, status: int, kind: bytes, body: bytes, extra: bytes = b"") -> None:
        """An answer in one piece; `extra` is header lines, each with its line break."""
        head = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\n%scontent-length: %d\r\n\r\n" % (
            status, _REASONS.get(status, b"Status"), kind, extra, len(body),
        )  # fmt: skip
        self._write(head + body)
        self._done()

    def begin(self, kind: bytes, data: bytes) -> None:
        """The head of a stream, and its first part."""
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
            % kind
        )
        self._write(head + _chunk(data))

    def part(self, data: bytes) -> None:
        """More of it."""
        self._write(_chunk(data))

    def end(self, data: bytes) -> None:
        """The rest of it."""
        self._write(_chunk(data) + b"0\r\n\r\n")
        self._done()

    def abort(self) -> None:
        """Break the connection, whatever it was about."""
        self.when_gone = None
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _done(self) -> None:
        self._is_busy, self.when_gone = False, None
        if not self._keeps and self._transport is not None:
            self._transport.close()
        elif self._waiting:
            self._next()

    def _next(self) -> None:
        if not self._is_busy and self._transport is not None:
            self._is_busy = True
            self._answer(self, self._waiting.popleft())


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
