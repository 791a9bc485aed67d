"""The client's side of one exchange: what has been sent to it, and what may still be."""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from polypod.serve.wire import Problem

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

JSON: Final[Headers] = ((b"content-type", b"application/json"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer in one piece."""

    status: int
    headers: Headers
    body: bytes


def refusal(problem: Problem) -> Answer:
    """An error as an answer of its own."""
    return Answer(status=problem.status, headers=[*JSON, *problem.headers], body=problem.body)


class Reply:
    """Sends either one `Answer`, or a beginning, parts and an end."""

    def __init__(self, send: Send, request_id: bytes) -> None:
        self._send = send
        self.request_id = request_id
        self._route: Headers = ()
        self.has_begun = False  # the client has a status and headers: the answer can only be ended

    def route(self, replica: str, attempt: int) -> None:
        """Whose answer it will be."""
        self._route = (
            (b"x-polypod-replica", replica.encode()),
            (b"x-polypod-attempts", b"%d" % attempt),
        )

    async def begin(self, status: int, headers: Headers) -> None:
        """Send status and headers. A client that is slow with an earlier answer may make this wait, and be cancelled."""
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    *headers,
                    (b"x-request-id", self.request_id),
                    *self._route,
                ],
            }
        )
        self.has_begun = True

    async def part(self, data: bytes) -> None:
        """Send some of the body, as fast as the client takes it."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the rest of the body."""
        await self._send({"type": "http.response.body", "body": data})

    async def answer(self, answer: Answer) -> None:
        """Send all of an answer."""
        length = (b"content-length", b"%d" % len(answer.body))
        await self.begin(answer.status, [*answer.headers, length])
        await self.end(answer.body)
