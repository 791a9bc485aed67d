"""Streams from an engine's socket to a client's over a running loop, with the relay and without: the same bytes, and the same known of them."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest
import uvloop

from polypod.engine.native.build import compiler, has_headers
from polypod.serve import passage
from polypod.serve.attempt import first_events
from polypod.serve.engines.spec import Endpoint
from polypod.serve.http.front import ClientConnection, Front
from polypod.serve.http.relays import Relays
from polypod.serve.http.request import Request, Sizes
from polypod.serve.http.room import Room
from polypod.serve.passage import Passage
from polypod.serve.reply import Reply
from polypod.serve.sse import EventStream
from polypod.serve.upstream import Patience, Upstream, UpstreamError

pytestmark = pytest.mark.skipif(
    not (compiler() and has_headers()), reason="no C compiler, or no headers"
)

LOOPS = (asyncio.new_event_loop, uvloop.new_event_loop)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ASK = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n{}"
FIRST = b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
TAIL = (
    b'data: {"choices": [{"delta": {}}]}\n\n',
    b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n',
    b"data: [DONE]\n\n",
)
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(part: bytes, size: bytes = b"%x", extension: bytes = b"") -> bytes:
    return size % len(part) + extension + b"\r\n" + part + b"\r\n"


def text(words: bytes, end: bytes = b"\n\n") -> bytes:
    return b'data: {"choices": [{"delta": {"content": "%b"}}]}' % words + end


class Exchange:
    """One request: passed on from the engine as an attempt does it."""

    def __init__(self, upstream: Upstream, reply: Reply) -> None:
        self.events = EventStream()
        self.error: UpstreamError | None = None
        self.passage: Passage | None = None
        self._upstream, self._reply = upstream, reply
        self.task = asyncio.get_running_loop().create_task(self._run())

    def leave(self) -> None:
        self.task.cancel()

    async def _run(self) -> None:
        reply = self._reply
        response = await self._upstream.post(b"{}", request_id="r", is_stream=True)
        try:
            opening = await first_events(response, self.events)
            reply.begin(200, [])
            reply.part_at_once(opening)
            reply.throttle(response.throttle)
            self.passage = Passage(response, self.events, reply, time.monotonic)
            await self.passage.run()
        except UpstreamError as error:
            self.error = error
        finally:
            reply.throttle(None)
            response.release()
        reply.end(self.events.rest())


class App:
    """Answers every request by an exchange with the one engine."""

    def __init__(self, upstream: Upstream) -> None:
        self.sizes, self.room = Sizes(), Room()
        self.exchanges: list[Exchange] = []
        self._upstream = upstream

    def request_id(self, _: Any) -> bytes:
        return b"r"

    def admit(self, _: Request) -> None: ...

    def take(self, _: Request, reply: Reply) -> Exchange:
        self.exchanges.append(Exchange(self._upstream, reply))
        return self.exchanges[-1]

    def refuse(self, *_: Any) -> None: ...

    def client_cut(self) -> None: ...


class Stage:
    """An engine that does as a script says, the gateway's two sides, and clients."""

    def __init__(
        self, folder: Path, script: Script, *, relays: Relays | None, sent_bytes: int = 0
    ) -> None:
        self._folder, self._script, self._relays, self._sent_bytes = (
            folder,
            script,
            relays,
            sent_bytes,
        )
        self.relayed = 0  # events

    async def __aenter__(self) -> Self:
        engine, door = str(self._folder / "e.sock"), str(self._folder / "d.sock")
        self._engine = await asyncio.start_unix_server(self._serve, engine)
        self.upstream = Upstream(Endpoint(socket=Path(engine)), Patience(), relays=self._relays)
        self.app = App(self.upstream)
        self.front = Front(self.app)
        self._door = await asyncio.get_running_loop().create_unix_server(self._connect, door)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._door.close()
        self._engine.close()
        self.front.abort()
        await self.upstream.close()
        if self._relays is not None:
            self._relays.close()
        await asyncio.gather(*(one.task for one in self.app.exchanges), return_exceptions=True)
        for _ in range(5):
            await asyncio.sleep(0)

    def _connect(self) -> ClientConnection:
        connection = self.front.connect()
        made = connection.connection_made

        def with_little_room(transport: Any) -> None:
            made(transport)
            if self._sent_bytes:
                with socket.socket(
                    fileno=os.dup(transport.get_extra_info("socket").fileno())
                ) as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._sent_bytes)

        connection.connection_made = with_little_room
        return connection

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"}")
                await self._script(reader, writer)
        writer.transport.abort()

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(
            str(self._folder / "d.sock"), limit=1 << 14
        )
        writer.write(ASK)
        await reader.readuntil(b"\r\n\r\n")
        return reader, writer


async def body_of(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """The data of a chunked body, and whether it came to its end."""
    parts = []
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            parts.append(await reader.readexactly(size))
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readexactly(2) == b"\r\n"
    except asyncio.IncompleteReadError:
        return b"".join(parts), False
    return b"".join(parts), True


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request, monkeypatch):
    """Runs a test on a loop; relays may stop and begin again as often as they like."""
    monkeypatch.setattr(passage, "MOST_STOPS", 1000)

    def runs(test: Awaitable[Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(test, 20))

    return runs


def writes_of(chance: Random) -> tuple[bytes, list[bytes]]:
    """A stream, and what an engine writes of it at a time."""
    events = []
    for number in range(chance.randrange(3, 25)):
        words = b"%d" % number * chance.choice((1, 1, 1, 50, 3000))
        events.append(
            chance.choice((text(words), text(words), text(words, b"\r\n\r\n"), b": a word\n\n"))
        )
    events += TAIL
    wire = b""
    for event in events:
        cut = chance.randrange(len(event)) if chance.random() < 0.1 else 0
        for part in filter(None, (event[:cut], event[cut:])):
            size = chance.choice((b"%x", b"%x", b"%X", b"00%x"))
            wire += chunk(part, size, b";a=b" if chance.random() < 0.05 else b"")
        wire += b"|" * (chance.random() < 0.8)
    writes = (wire + b"|" * (chance.random() < 0.5) + b"0\r\n\r\n").split(b"|")
    for number, write in enumerate(writes):
        if chance.random() < 0.1:
            at = chance.randrange(len(write) + 1)
            writes[number : number + 1] = [write[:at], write[at:]]
    return b"".join(events), [write for write in writes if write]


async def told_of(
    folder: Path, writes: list[bytes], relays: Relays | None, ends: bool
) -> tuple[Any, ...]:
    """What the client gets of such a stream, and what is known of it."""

    async def script(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(FIRST))
        for write in writes:
            writer.write(write)
            for _ in range(4):
                await asyncio.sleep(0)
        if not ends:
            writer.close()

    async with Stage(folder, script, relays=relays) as stage:
        reader, writer = await stage.open()
        body, is_whole = await body_of(reader)
        exchange = stage.app.exchanges[0]
        await exchange.task
        is_kept = len(stage.upstream._idle) == 1
        writer.transport.abort()
        events, error = exchange.events, exchange.error
        failure = None if error is None else (error.kind, error.detail)
        assert b"".join(events._last) in body
        return body, is_whole, is_kept, failure, events.events, events.usage(), events.is_done, events.is_between  # fmt: skip


def cut_short(chance: Random, writes: list[bytes]) -> list[bytes]:
    """So much of it; the connection ends there."""
    kept = writes[: chance.randrange(1, len(writes))]
    return [*kept[:-1], kept[-1][: chance.randrange(1, len(kept[-1]) + 1)]]


def test_any_stream_comes_as_it_was_sent_and_is_known_as_well_as_without_the_relay(run, tmp_path, monkeypatch) -> None:  # fmt: skip
    relayed: list[int] = []
    ended = Passage._relayed

    def counted(self: Passage, relay: Any, unsent: bytes) -> None:
        relayed.append(relay.events)
        ended(self, relay, unsent)

    monkeypatch.setattr(Passage, "_relayed", counted)

    async def main() -> None:
        for seed in range(120):
            chance, ends = Random(seed), seed % 3 > 0
            sent, writes = writes_of(chance)
            if not ends:
                writes = cut_short(chance, writes)
            body, *known = with_relay = await told_of(tmp_path, writes, Relays(), ends)
            assert body == FIRST + sent[: None if ends else len(body) - len(FIRST)], seed
            assert (known[2] is None) == ends, seed
            assert with_relay == await told_of(tmp_path, writes, None, ends), seed

    run(main())
    assert sum(relayed) > 200


def test_a_slow_client_gets_everything_and_holds_its_engine_back(run, tmp_path) -> None:
    event, sent = text(b"x" * 4000), 0
    number = 600

    async def script(_: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD + chunk(FIRST))
        await asyncio.sleep(0.01)
        for _ in range(number):
            writer.write(chunk(event))
            await writer.drain()
            sent += 1
        writer.write(b"".join(map(chunk, TAIL)) + b"0\r\n\r\n")

    async def main() -> None:
        async with Stage(tmp_path, script, relays=Relays(), sent_bytes=4096) as stage:
            reader, writer = await stage.open()
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.05)
            assert 0 < sent < number / 2
            body, is_whole = await body_of(reader)
            assert is_whole
            assert body == FIRST + number * event + b"".join(TAIL)
            assert stage.app.exchanges[0].events.usage().completion_tokens == 7
            writer.transport.abort()

    run(main())


def test_an_event_larger_than_a_clients_buffer_arrives_whole(run, tmp_path, monkeypatch) -> None:
    """The relay sends what fits, and the connection the rest."""
    unsent_bytes: list[int] = []
    ended = Passage._relayed
    monkeypatch.setattr(Passage, "_relayed", lambda self, relay, unsent: (unsent_bytes.append(len(unsent)), ended(self, relay, unsent)))  # fmt: skip
    events = [text(b"a"), text(b"b" * 40_000), text(b"c"), text(b"d" * 20_000), text(b"e")]

    async def script(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(FIRST))
        for event in events:
            await asyncio.sleep(0.01)
            writer.write(chunk(event))
        await asyncio.sleep(0.01)
        writer.write(b"".join(map(chunk, TAIL)) + b"0\r\n\r\n")

    async def main() -> None:
        async with Stage(tmp_path, script, relays=Relays(), sent_bytes=4096) as stage:
            reader, writer = await stage.open()
            assert await body_of(reader) == (FIRST + b"".join((*events, *TAIL)), True)
            writer.transport.abort()

    run(main())
    assert any(unsent_bytes)


@pytest.mark.parametrize("cut", [1, 9, -3, -1])
@pytest.mark.parametrize("is_broken", [False, True])
def test_an_engine_that_dies_in_a_chunk_is_lost_with_the_relay_and_without(run, tmp_path, cut, is_broken) -> None:  # fmt: skip
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(FIRST))
        for _ in range(3):
            await asyncio.sleep(0.005)
            writer.write(chunk(text(b"a")))
        await asyncio.sleep(0.005)
        writer.write(chunk(text(b"b"))[:cut])
        await asyncio.sleep(0.005)
        if is_broken:
            raise ConnectionError
        writer.close()

    async def told(relays: Relays | None) -> tuple[Any, ...]:
        async with Stage(tmp_path, script, relays=relays) as stage:
            reader, writer = await stage.open()
            body, _ = await body_of(reader)
            exchange = stage.app.exchanges[0]
            await exchange.task
            writer.transport.abort()
            return body, exchange.error.kind, exchange.error.detail, exchange.events.events, exchange.events.is_done  # fmt: skip

    async def main() -> None:
        with_relay = await told(Relays())
        assert with_relay[:3] == (FIRST + 3 * text(b"a") + with_relay[0][len(FIRST + 3 * text(b"a")) :], "lost", "the connection was closed")  # fmt: skip
        assert with_relay == await told(None)

    run(main())


def test_clients_that_go_away_leave_nothing_behind(run, tmp_path) -> None:
    """Neither descriptors nor relays, and their engines are told by the end of the connection."""
    left = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        writer.write(HEAD + chunk(FIRST))
        with suppress(ConnectionError, RuntimeError):  # uvloop's, for one that is closed
            while not reader.at_eof():
                writer.write(chunk(text(b"a")))
                await writer.drain()
                await asyncio.sleep(0.002)
        left += 1
        raise ConnectionError

    async def main() -> None:
        relays = Relays()
        async with Stage(tmp_path, script, relays=relays) as stage:
            descriptors = len(list(Path("/proc/self/fd").iterdir()))
            clients = [await stage.open() for _ in range(200)]
            for number, (reader, writer) in enumerate(clients):
                for _ in range(3):
                    await reader.readuntil(b"\n\n\r\n")
                writer.transport.abort() if number % 2 else writer.close()
            while left < len(clients) or stage.front.connections:
                await asyncio.sleep(0.005)
            for _ in range(5):
                await asyncio.sleep(0)
            assert (
                len(list(Path("/proc/self/fd").iterdir())) <= descriptors + 2
            )  # the poller's and the loop's
            assert stage.upstream.in_use == 0

    run(main())


class Broken:
    """Relays whose one relay a test stops as if memory had run out."""

    events, last, last_s = 0, (), 0.0

    def begin(self, engine: Any, client: int, on_stop: Callable[..., None]) -> "Broken":
        self.on_stop = on_stop
        return self

    def stop(self) -> None: ...

    def close(self) -> None: ...


def test_a_stream_of_which_memory_lost_a_part_is_broken_off(run, tmp_path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(FIRST))
        await reader.read()

    async def main() -> None:
        relays = Broken()
        async with Stage(tmp_path, script, relays=relays) as stage:
            reader, writer = await stage.open()
            while not hasattr(relays, "on_stop"):
                await asyncio.sleep(0.001)
            relays.on_stop(None, b"")
            assert await body_of(reader) == (FIRST, True)
            error = stage.app.exchanges[0].error
            assert (error.kind, error.detail) == ("engine", "no memory for what came of its stream")
            assert stage.upstream._idle == []
            writer.transport.abort()

    run(main())
