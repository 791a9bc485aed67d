"""The client's side of one exchange: what has been sent to it, and what may still be."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, Protocol

import msgspec

from polypod.serve.wire import Problem

Headers = Sequence[tuple[bytes, bytes]]
Throttle = Callable[..., None]  # called with `is_full`

JSON: Final[Headers] = ((b"content-type", b"application/json"),)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer in one piece."""

    status: int
    headers: Headers
    body: bytes


def refusal(problem: Problem) -> Answer:
    """An error as an answer of its own."""
    return Answer(status=problem.status, headers=[*JSON, *problem.headers], body=problem.body)


class Outlet(Protocol):
    """Where a reply goes: a connection that knows how to frame it."""

    def begin(self, status: int, headers: Headers, length: int | None) -> None:
        """Status and headers, sent with what follows; `length` is that of the body, None where it is not known yet."""

    def part(self, data: bytes) -> None:
        """Some of a body of unknown length."""

    def part_at_once(self, data: bytes) -> None:
        """The same, sent before this returns as far as the client takes it: somebody waits for it."""

    def raw(self, data: bytes) -> None:
        """What `socket` was not given all of, framed as it is."""

    def socket(self) -> int | None:
        """That of the client, where chunks may be written to it directly: nothing else waits to be sent."""

    def end(self, data: bytes) -> None:
        """The rest of the body, which may be all of it."""

    def throttle(self, tell: Throttle | None) -> None:
        """Tell this one, now and whenever it changes, whether the client takes what is sent to it."""


class Reply:
    """Sends either one `Answer`, or a beginning, parts and an end.

    Nothing here waits: what the client does not take is kept, and `throttle` says when that is enough. A client that has
    gone takes everything and reads nothing.
    """

    __slots__ = ("_outlet", "_route", "has_begun", "request_id")

    def __init__(self, outlet: Outlet, request_id: bytes) -> None:
        self._outlet = outlet
        self.request_id = request_id
        self._route: Headers = ()
        self.has_begun = False  # the client has a status and headers: the answer can only be ended

    def route(self, replica: str, attempt: int) -> None:
        """Whose answer it will be."""
        self._route = _route(replica, attempt)

    def begin(self, status: int, headers: Headers, *, length: int | None = None) -> None:
        """Send status and headers."""
        self.has_begun = True
        all_headers = [*headers, (b"x-request-id", self.request_id), *self._route]
        self._outlet.begin(status, all_headers, length)

    def part(self, data: bytes) -> None:
        """Send some of the body, as fast as the client takes it."""
        self._outlet.part(data)

    def part_at_once(self, data: bytes) -> None:
        """The same, and not only at the end of the loop's turn: somebody waits for it."""
        self._outlet.part_at_once(data)

    def raw(self, data: bytes) -> None:
        """Send the rest of a chunk of which some was written to `socket`."""
        self._outlet.raw(data)

    def socket(self) -> int | None:
        """Where chunks may be written to directly, if they may."""
        return self._outlet.socket()

    def end(self, data: bytes = b"") -> None:
        """Send the rest of the body."""
        self._outlet.end(data)

    def answer(self, answer: Answer) -> None:
        """Send all of an answer."""
        self.begin(answer.status, answer.headers, length=len(answer.body))
        self._outlet.end(answer.body)

    def throttle(self, tell: Throttle | None) -> None:
        """Tell this one whether the client takes what is sent, now and at each change; None tells nobody any more."""
        self._outlet.throttle(tell)


@lru_cache(maxsize=4096)
def _route(replica: str, attempt: int) -> Headers:
    return (
        (b"x-polypod-replica", replica.encode()),
        (b"x-polypod-attempts", b"%d" % attempt),
    )
