"""A client's requests as they come in, held to HTTP/1.1 and to limits; what is wrong is a `Problem`.

llhttp, in its strict mode, refuses what two parsers could read in two ways: both lengths at once or a length twice, folded headers, a space before a
colon, bare line feeds, chunk sizes that are no hexadecimal number. Here the rest is: sizes, versions, codings other than chunked, and headers that may
stand once only.
"""

from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import unquote_to_bytes, urlsplit

import httptools

from polypod.serve.http import native
from polypod.serve.wire import Problem

_ONCE: Final = frozenset({b"host", b"authorization", b"origin", b"content-type", b"expect", b"x-request-id", b"x-polypod-replica"})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The most a request may have."""

    head_bytes: int = 32 << 10
    headers: int = 100
    target_bytes: int = 8 << 10
    body_bytes: int = 8 << 20


class Request:
    """One request; its body is whole when it is handed on."""

    __slots__ = ("body", "expects_continue", "headers", "is_extra", "keeps", "method", "path", "peer", "refused", "sender", "version")  # fmt: skip

    def __init__(self) -> None:
        self.method = ""
        self.path = ""  # decoded, without the query
        self.peer = "?"  # the address it came from
        self.version = "1.1"
        self.headers: dict[bytes, bytes] = {}  # names in lower case
        self.body: bytes | bytearray = b""
        self.keeps = True  # the connection, after the answer
        self.expects_continue = False
        self.is_extra = False  # its connection is beyond the node's limit
        self.refused: Problem | None = None  # to be answered with this, once the body is here
        self.sender: object = None  # who asks, as far as was found out at the door

    @property
    def has_body(self) -> bool:
        return self.headers.get(b"content-length", b"0") != b"0" or self.is_chunked

    @property
    def is_chunked(self) -> bool:
        return b"transfer-encoding" in self.headers


class Reads(Protocol):
    """Who is told what a reader reads."""

    def head_read(self, request: Request) -> Problem | None:
        """The head is here; a problem ends the reading."""

    def body_came(self, size_bytes: int) -> Problem | None:
        """So much of a body is here and kept; a problem ends the reading."""

    def request_read(self, request: Request) -> None:
        """All of the request is here."""


class RequestReader:
    """Reads the requests of one connection. `feed` until it answers with a problem; then never again."""

    def __init__(self, owner: Reads, sizes: Sizes) -> None:
        self._owner: Any = owner  # `Reads`, until it is closed
        self._sizes = sizes
        self._parser: Any = httptools.HttpRequestParser(self)
        self.request: Request | None = None  # being read
        self._target = b""
        self._head_bytes = 0
        self.is_head = False  # being read
        self._problem: Problem | None = None
        self._heads = native.module("heads")
        self._is_last = False  # the latest request was the connection's last

    def feed(self, data: bytes) -> Problem | None:
        """Read on; return what is wrong with it."""
        if self.request is None and self._heads is not None and not self._is_last:
            sizes = self._sizes
            plain = self._heads.request(data, sizes.head_bytes, sizes.headers, sizes.target_bytes)
            if plain is not None:
                return self._whole(*plain)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return None  # not wanted here: the request was read as if nothing else were asked for, and is the last one
        except httptools.HttpParserError as error:
            return self._problem or _bad(f"not HTTP/1.1: {error}")
        if self.is_head:
            self._head_bytes += len(data)
            if self._head_bytes > 2 * self._sizes.head_bytes:  # no header ended in all that
                return _large_head(self._sizes)
        return None

    def _whole(
        self, method: str, path: str, headers: dict[bytes, bytes], body: bytes
    ) -> Problem | None:
        """A request that came in one piece, and as nearly all do."""
        self.request = request = Request()
        request.method, request.path, request.headers = method, path, headers
        problem: Problem | None = self._owner.head_read(request)
        if problem is None and body and request.refused is None:
            request.body = body
            problem = self._wrong_body(request, len(body))
        if problem is None:
            self.request = None
            self._owner.request_read(request)
        return problem

    def close(self) -> None:
        """Let go of the parser and of the owner, which know this reader: rings of objects would stay until the collector comes."""
        self._parser = self._owner = None

    # ---- the parser's side

    def on_message_begin(self) -> None:
        self.request = Request()
        self._target, self._head_bytes, self.is_head = b"", 0, True

    def on_url(self, part: bytes) -> None:
        self._target += part
        if len(self._target) > self._sizes.target_bytes:
            problem = f"the request target is longer than {self._sizes.target_bytes} bytes"
            self._stop(Problem(status=414, code="uri_too_long", message=problem))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > self._sizes.head_bytes:
            self._stop(_large_head(self._sizes))
        if not self.is_head:
            return  # trailers say nothing here
        name, headers = name.lower(), self.request.headers  # type: ignore[union-attr]
        if name in headers:
            if name in _ONCE:
                self._stop(_bad(f"the header {name.decode('latin-1')} stands there twice"))
            value = headers[name] + b", " + value
        headers[name] = value
        if len(headers) > self._sizes.headers:
            self._stop(_large_head(self._sizes))

    def on_headers_complete(self) -> None:
        request, parser = self.request, self._parser
        assert request is not None
        self.is_head = False
        request.method = parser.get_method().decode("latin-1")
        request.version = parser.get_http_version()
        request.keeps = parser.should_keep_alive() and not parser.should_upgrade()
        self._is_last = not request.keeps
        problem = _wrong_head(request) or self._wrong_target(request)
        problem = problem or self._owner.head_read(request)
        if problem is not None:
            self._stop(problem)

    def on_body(self, part: bytes) -> None:
        request = self.request
        assert request is not None
        if request.refused is not None:
            return  # nobody will read it
        if not request.body:
            request.body = part
        else:
            if isinstance(request.body, bytes):
                request.body = bytearray(request.body)
            request.body += part
        problem = self._wrong_body(request, len(part))
        if problem is not None:
            self._stop(problem)

    def on_message_complete(self) -> None:
        request, self.request = self.request, None
        assert request is not None
        if isinstance(request.body, bytearray):
            request.body = bytes(request.body)
        self._owner.request_read(request)

    def _wrong_body(self, request: Request, more_bytes: int) -> Problem | None:
        """So much more of it is here and kept: what is wrong with that."""
        problem: Problem | None = self._owner.body_came(more_bytes)
        limit_bytes = self._sizes.body_bytes
        return too_large(limit_bytes) if len(request.body) > limit_bytes else problem

    def _wrong_target(self, request: Request) -> Problem | None:
        target = self._target
        if not target.startswith(b"/") and b"://" in target:  # the absolute form, whose host counts
            try:
                url = urlsplit(target)
            except ValueError:
                return _bad("the request target is no URL")
            request.headers[b"host"] = url.netloc
            target = url.path or b"/"
        path = target.partition(b"?")[0]
        request.path = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        return None

    def _stop(self, problem: Problem) -> None:
        """End the reading; the exception comes out of the parser as its own."""
        self._problem = problem
        raise ValueError(problem.code)


def too_large(limit_bytes: int) -> Problem:
    message = f"the request body is larger than {limit_bytes} bytes, the limit of this node"
    return Problem(status=413, code="request_too_large", message=message)


def _wrong_head(request: Request) -> Problem | None:
    headers = request.headers
    if request.version not in ("1.0", "1.1"):
        message = f"HTTP/{request.version} is not spoken here; HTTP/1.1 is"
        return Problem(status=505, code="http_version", message=message)
    coding = headers.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or request.version == "1.0"):
        message = "a request body comes with a content-length or, in HTTP/1.1, chunked; no other transfer coding is read"
        return Problem(status=501, code="transfer_encoding", message=message)
    if b"host" not in headers and request.version == "1.1":
        return _bad("a request of HTTP/1.1 has a Host header")
    expected = headers.get(b"expect", b"").lower() if request.version == "1.1" else b""
    request.expects_continue = expected == b"100-continue"
    if expected and not request.expects_continue:
        message = "no expectation but 100-continue is met here"
        return Problem(status=417, code="expectation_failed", message=message)
    return None


def _bad(message: str) -> Problem:
    return Problem(status=400, code="bad_request", message=message)


def _large_head(sizes: Sizes) -> Problem:
    message = f"the headers are more than {sizes.headers}, or longer than {sizes.head_bytes} bytes"
    return Problem(status=431, code="headers_too_large", message=message)
