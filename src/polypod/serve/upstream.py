"""The gateway's side of its connections to engines: one small pool per replica, over a unix socket, TCP or TLS.

Idle connections are dropped after `IDLE_S`, before engines drop them (5 s in uvicorn and in llama.cpp): a request that
meets a connection being closed looks like a replica that broke.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

from polypod.serve.engines.spec import Endpoint
from polypod.serve.http.back import EngineConnection, Response, UpstreamError
from polypod.serve.http.relays import Relays
from polypod.serve.http.sweep import Sweeper
from polypod.serve.http.tls import tls_context

__all__ = ["IDLE_S", "Patience", "Response", "Upstream", "UpstreamError", "Upstreams", "retry_after_s"]  # fmt: skip

IDLE_S: Final = 4.0
_SWEEPS: Final = 8  # in the shortest patience
_SWEEP_S: Final = (0.02, 0.5)


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

    def __init__(
        self,
        endpoint: Endpoint,
        patience: Patience,
        sweeper: Sweeper | None = None,
        relays: Relays | None = None,
    ) -> None:
        self.patience = patience
        self._relays = relays
        self._endpoint = endpoint
        self._sweeper = sweeper or sweeper_for(patience)
        self._head = _head(endpoint, f"{endpoint.path_prefix}/chat/completions")
        self._idle: list[EngineConnection] = []
        self._all: set[EngineConnection] = set()

    @property
    def in_use(self) -> int:
        """Connections with a request on them."""
        return len(self._all) - len(self._idle)

    async def post(
        self, body: bytes, *, request_id: str, is_stream: bool, path: str | None = None
    ) -> Response:
        """Send a chat request, or what another path takes; return when the engine's status and headers are here. Raises `UpstreamError`."""
        silence_s = self.patience.first_byte_s if is_stream else self.patience.whole_answer_s
        head = self._head if path is None else _head(self._endpoint, path)
        return await self._send(head % (request_id.encode(), len(body)), body, silence_s)

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Post something else to the engine; return the status and all of its answer. Raises `UpstreamError`."""
        head = _head(self._endpoint, path) % (b"polypod", len(body))
        response = await self._send(head, body, self.patience.between_s)
        try:
            return response.status, await response.read()
        finally:
            response.release()

    async def _send(self, head: bytes, body: bytes, silence_s: float) -> Response:
        connection = self._pop() or await self._connect()
        response = connection.send(head, body, silence_s)
        try:
            await response.begun()
        except BaseException:  # cancelled, too
            response.release()
            raise
        return response

    def abort(self) -> None:
        """Close the idle connections, and break those in use."""
        for connection in tuple(self._all):
            connection.abort()

    async def close(self) -> None:
        """The same, and wait until the loop has let go of them."""
        self.abort()
        while self._all:
            await asyncio.sleep(0)

    def _pop(self) -> EngineConnection | None:
        now_s = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.deadline_s > now_s:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> EngineConnection:
        # a timeout needs a task, and whoever asks may have none (`steps`)
        opening = asyncio.get_running_loop().create_task(self._open_in_time())
        try:
            connection = await opening
        except asyncio.CancelledError:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result().abort()  # it was there in the moment in which nobody wanted it
            raise
        except TimeoutError as error:
            detail = f"no connection within {self.patience.connect_s:g} s"
            raise UpstreamError(kind="refused", detail=detail) from error
        except OSError as error:
            raise UpstreamError(
                kind="refused", detail=error.strerror or type(error).__name__
            ) from error
        self._all.add(connection)
        return connection

    async def _open_in_time(self) -> EngineConnection:
        async with asyncio.timeout(self.patience.connect_s):
            return await self._open()

    async def _open(self) -> EngineConnection:
        loop, endpoint = asyncio.get_running_loop(), self._endpoint
        if endpoint.socket is not None:
            path = str(endpoint.socket)
            _, connection = await loop.create_unix_connection(self._new, path)
            return connection
        assert endpoint.host is not None, "an endpoint has a socket or a host"
        context = tls_context() if endpoint.tls else None
        _, connection = await loop.create_connection(
            self._new, endpoint.host, endpoint.port or 0, ssl=context
        )
        return connection

    def _new(self) -> EngineConnection:
        return EngineConnection(self._sweeper, self._rest, self._lost, self._relays)

    def _rest(self, connection: EngineConnection) -> None:
        if not self._endpoint.keeps_connections:
            connection.abort()
            return
        connection.deadline_s = asyncio.get_running_loop().time() + IDLE_S
        self._idle.append(connection)

    def _lost(self, connection: EngineConnection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class Upstreams:
    """An `Upstream` for each replica that was ever asked; a replica's new start takes the place of the old one."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._sweeper = sweeper_for(patience)
        self._relays = Relays()
        self._by_replica: dict[str, tuple[int, Upstream]] = {}

    def of(self, replica: str, epoch: int, endpoint: Endpoint) -> Upstream:
        """The connections to this start of a replica; those to an earlier one are closed."""
        known = self._by_replica.get(replica)
        if known is not None:
            if known[0] == epoch:
                return known[1]
            known[1].abort()
        upstream = Upstream(endpoint, self._patience, self._sweeper, self._relays)
        self._by_replica[replica] = (epoch, upstream)
        return upstream

    def forget(self, replica: str) -> None:
        """It was taken out for good; what it has is broken off."""
        _, upstream = self._by_replica.pop(replica, (0, None))
        if upstream is not None:
            upstream.abort()

    def in_use(self, replica: str) -> int:
        """Requests of ours that the replica has now."""
        known = self._by_replica.get(replica)
        return 0 if known is None else known[1].in_use

    async def close(self) -> None:
        """Close them all."""
        upstreams = [upstream for _, upstream in self._by_replica.values()]
        self._by_replica.clear()
        for upstream in upstreams:
            await upstream.close()
        self._relays.close()
        self._sweeper.stop()


def sweeper_for(patience: Patience) -> Sweeper:
    """One that sees a silence soon after it has become too long."""
    shortest_s = min(patience.first_byte_s, patience.between_s, patience.whole_answer_s)
    least_s, most_s = _SWEEP_S
    return Sweeper(min(max(shortest_s / _SWEEPS, least_s), most_s))


def retry_after_s(value: bytes | None) -> float | None:
    """Read a Retry-After header; the form with a date is rare among engines and not read.

    >>> retry_after_s(b"2"), retry_after_s(b"Fri, 31 Dec 2027 23:59:59 GMT"), retry_after_s(None)
    (2.0, None, None)
    """
    return float(value) if value is not None and value.isdigit() else None


def _head(endpoint: Endpoint, path: str) -> bytes:
    """The head of every request, with room for its id and its length."""
    headers = {
        "host": endpoint.origin.partition("://")[2],
        "content-type": "application/json",
        **endpoint.headers,
    }
    if not endpoint.keeps_connections:
        headers["connection"] = "close"
    fixed = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST {path} HTTP/1.1\r\n{fixed}"
    return head.encode().replace(b"%", b"%%") + b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n"
