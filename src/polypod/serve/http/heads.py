"""The first lines of an answer, as bytes."""

import time
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from polypod.serve.http import native

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


def head(
    status: int, headers: Sequence[tuple[bytes, bytes]], *, length: int | None, keeps: bool
) -> bytes:
    """Status line and headers. Without a length, a connection that is kept is chunked, and one that is not ends with the body.

    >>> head(200, [(b"a", b"b")], length=2, keeps=False).split(b"date")[0]
    b'HTTP/1.1 200 OK\\r\\na: b\\r\\ncontent-length: 2\\r\\nconnection: close\\r\\n'
    """
    first, last = _status_line(status), _date(int(time.time()))
    if not keeps:
        last = b"connection: close\r\n" + last
    if length is not None:
        last = b"content-length: %d\r\n%b" % (length, last)
    compiled = native.module("heads")
    if compiled is not None:
        joined: bytes = compiled.head(first, list(headers), last)
        return joined
    return b"".join([first, *(b"%b: %b\r\n" % header for header in headers), last])


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body.

    >>> chunk(b"hello")
    b'5\\r\\nhello\\r\\n'
    """
    return b"%x\r\n%b\r\n" % (len(data), data)


@lru_cache(maxsize=128)
def _status_line(status: int) -> bytes:
    known = {one.value: one.phrase for one in HTTPStatus}
    return f"HTTP/1.1 {status} {known.get(status, '')}\r\n".encode()


@lru_cache(maxsize=2)
def _date(unix_s: int) -> bytes:
    """The last header, and the blank line after it."""
    return f"date: {formatdate(unix_s, usegmt=True)}\r\n\r\n".encode()
