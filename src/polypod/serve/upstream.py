"""The gateway's side of its connections to engines: one small pool per replica, and the name of every way to fail.

Idle connections are dropped after `IDLE_S`, before engines drop them (5 s in uvicorn and in llama.cpp): a request that
meets a connection being closed looks like a replica that broke.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from yarl import URL

from polypod.policy.events import FailureKind
from polypod.serve.engines.spec import Endpoint

IDLE_S: Final = 4.0
_READ_BUFFER_BYTES: Final = 1 << 18
_UNASKED_HEADERS: Final = ("Accept", "Accept-Encoding", "User-Agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long an engine may be silent.

    A stream is silent until its first token (queue and prompt), then between tokens; an answer in one piece is silent
    until it is complete.
    """

    connect_s: float = 2.0
    first_byte_s: float = 300.0
    between_s: float = 60.0
    whole_answer_s: float = 1800.0


class Upstream:
    """The connections to one start of one replica."""

    def __init__(self, endpoint: Endpoint, patience: Patience) -> None:
        self.patience = patience
        self._chat = URL(endpoint.chat_url)
        self._headers = {"content-type": "application/json", **endpoint.headers}
        self._streaming = _timeout(patience.connect_s, patience.first_byte_s)
        self._complete = _timeout(patience.connect_s, patience.whole_answer_s)
        self._session = aiohttp.ClientSession(
            connector=_connector(endpoint),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_UNASKED_HEADERS,
            read_bufsize=_READ_BUFFER_BYTES,
        )

    async def post(
        self, body: bytes, *, request_id: str, is_stream: bool
    ) -> aiohttp.ClientResponse:
        """Send a chat request; return when the engine's status and headers are here."""
        return await self._session.post(
            self._chat,
            data=body,
            headers={**self._headers, "x-request-id": request_id},
            timeout=self._streaming if is_stream else self._complete,
            allow_redirects=False,
        )

    async def close(self) -> None:
        """Close the idle connections, and break those in use."""
        await self._session.close()


class Upstreams:
    """An `Upstream` for each replica that was ever asked; a replica's new start takes the place of the old one."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._by_replica: dict[str, tuple[int, Upstream]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def of(self, replica: str, epoch: int, endpoint: Endpoint) -> Upstream:
        """Must be called inside the running loop."""
        known = self._by_replica.get(replica)
        if known is not None:
            if known[0] == epoch:
                return known[1]
            closing = asyncio.get_running_loop().create_task(known[1].close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        upstream = Upstream(endpoint, self._patience)
        self._by_replica[replica] = (epoch, upstream)
        return upstream

    async def close(self) -> None:
        """Close them all."""
        upstreams = [upstream for _, upstream in self._by_replica.values()]
        self._by_replica.clear()
        await asyncio.gather(*self._closing, *(upstream.close() for upstream in upstreams))


# The first that fits names the failure; whatever else a client library raises is a lost connection.
_KINDS: Final[tuple[tuple[type[Exception], FailureKind], ...]] = (
    (aiohttp.ClientConnectorError, "refused"),
    (aiohttp.ConnectionTimeoutError, "refused"),
    (aiohttp.ServerTimeoutError, "timeout"),
    (aiohttp.ClientResponseError, "engine"),  # not HTTP
    (aiohttp.ClientError, "lost"),
)


def failure_kind(error: aiohttp.ClientError) -> FailureKind:
    """Name a failure in the policy's words.

    >>> failure_kind(aiohttp.ServerDisconnectedError()), failure_kind(aiohttp.SocketTimeoutError())
    ('lost', 'timeout')
    >>> failure_kind(aiohttp.ConnectionTimeoutError())
    'refused'
    """
    return next(kind for raised, kind in _KINDS if isinstance(error, raised))


def described(error: aiohttp.ClientError) -> str:
    """What went wrong, without a word the engine sent: that may be text of an answer, and is recorded.

    >>> described(aiohttp.ClientOSError(104, "Connection reset by peer")), described(aiohttp.ClientPayloadError("x"))
    ('Connection reset by peer', 'ClientPayloadError')
    """
    said = error.strerror if isinstance(error, OSError) else None
    return said or type(error).__name__


def hurry(response: aiohttp.ClientResponse, silence_s: float) -> None:
    """From now on, the engine may be silent only this long."""
    connection = response.connection
    if connection is not None and connection.protocol is not None:  # there is more to come
        connection.protocol.read_timeout = silence_s
        connection.protocol.start_timeout()


def retry_after_s(value: str | None) -> float | None:
    """Read a Retry-After header; the form with a date is rare among engines and not read.

    >>> retry_after_s("2"), retry_after_s("Fri, 31 Dec 2027 23:59:59 GMT"), retry_after_s(None)
    (2.0, None, None)
    """
    if value is None:
        return None
    return float(value) if value.isascii() and value.isdigit() else None


def _connector(endpoint: Endpoint) -> aiohttp.BaseConnector:
    kept: dict[str, Any] = (
        {"keepalive_timeout": IDLE_S} if endpoint.keeps_connections else {"force_close": True}
    )
    if endpoint.socket is None:
        return aiohttp.TCPConnector(limit=0, **kept)
    return aiohttp.UnixConnector(path=str(endpoint.socket), limit=0, **kept)


def _timeout(connect_s: float, silence_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s)
