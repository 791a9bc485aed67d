"""A stream from its first events to its end: through Python, event by event, and past it wherever nothing needs thought."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from polypod.serve.http.back import Response
from polypod.serve.http.relays import Relay
from polypod.serve.reply import Reply
from polypod.serve.sse import EventStream

MOST_STOPS: Final = 4
"""A stream that came back so often is not made for it: its events are cut elsewhere than its chunks, or its client is slow."""


class Passage:
    """One stream's. `last_s` is when the last of it came, 0 before; `events` hears of all of it."""

    def __init__(
        self, response: Response, events: EventStream, reply: Reply, now_s: Callable[[], float]
    ) -> None:
        self.last_s = 0.0
        self._response = response
        self._events = events
        self._reply = reply
        self._now_s = now_s
        self._tries = MOST_STOPS if now_s is time.monotonic else 0  # relays tell the time by that
        self._is_due = False

    async def run(self) -> None:
        """Return at the end. Raises `UpstreamError` where it breaks."""
        self._soon()
        await self._response.pass_to(self._part)

    def _part(self, data: bytes) -> None:
        if whole := self._events.feed(data):
            self.last_s = self._now_s()
            self._reply.part(whole)
        if self._tries:
            self._soon()

    def _soon(self) -> None:
        """Look whether it can go by itself once what was written is out."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._let_go)

    def _let_go(self) -> None:
        self._is_due = False
        client = self._reply.socket() if self._tries and self._events.is_between else None
        if client is not None:
            self._tries -= self._response.relay(client, self._relayed)

    def _relayed(self, relay: Relay, unsent: bytes) -> None:
        """It is back: as if all of it had come through here."""
        self._events.passed(relay.events, relay.last)
        self.last_s = relay.last_s or self.last_s
        if unsent:
            self._reply.raw(unsent)
