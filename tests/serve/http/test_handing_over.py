"""When a relay may read an engine's socket in place of its connection, and how the connection goes on from there; no socket is in it."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from polypod.serve.http.back import EngineConnection, Response, UpstreamError
from polypod.serve.http.front import Front
from polypod.serve.http.request import Sizes
from polypod.serve.http.room import Room
from polypod.serve.http.sweep import Sweeper
from polypod.serve.passage import MOST_STOPS, Passage, time
from polypod.serve.reply import Reply
from polypod.serve.sse import EventStream

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b"data: 1\n\n"
CHUNK = b"9\r\n" + EVENT + b"\r\n"
SILENCE_S = 5.0


class Line:
    """A transport that goes nowhere, with so many bytes that it still has."""

    def __init__(self) -> None:
        self.is_closed = self.is_paused = False
        self.kept_bytes = 0
        self.sent = b""

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_closed = True

    def get_write_buffer_size(self) -> int:
        return self.kept_bytes

    def set_write_buffer_limits(self, _: int) -> None: ...

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_extra_info(self, name: str) -> Any:
        return SimpleNamespace(fileno=lambda: 77) if name == "socket" else None


class Relays:
    """One relay, that a test stops; None where `is_refusing`."""

    def __init__(self) -> None:
        self.events, self.last, self.last_s = 3, [EVENT], 0.0
        self.is_refusing = self.is_stopped = False
        self.begun: list[tuple[Any, int]] = []
        self.on_stop: Callable[[bytes | None, bytes], None] = lambda *_: None

    def begin(self, engine: Any, client: int, on_stop: Any) -> "Relays | None":
        self.begun.append((engine, client))
        self.on_stop = on_stop
        return None if self.is_refusing else self

    def stop(self) -> None:
        self.is_stopped = True


class Side:
    """An engine's connection, a request on it, and what was heard."""

    def __init__(self, *reads: bytes) -> None:
        self.line, self.relays = Line(), Relays()
        self.heard: list[Any] = []
        self.idle: list[EngineConnection] = []
        self.connection = EngineConnection(Sweeper(60.0), self.idle.append, lambda _: None, self.relays)  # type: ignore[arg-type]  # fmt: skip
        self.connection.connection_made(self.line)  # type: ignore[arg-type]
        self.response = self.connection.send(b"", b"", SILENCE_S)
        for read in reads or (HEAD + CHUNK,):
            self.connection.data_received(read)

    def relay(self, response: Response | None = None) -> bool:
        return (response or self.response).relay(77, lambda *what: self.heard.append(what))

    async def passing(self) -> None:
        """Let what comes be heard."""
        self.task = asyncio.ensure_future(self.response.pass_to(self.heard.append))
        await asyncio.sleep(0)
        self.heard.clear()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("reads", "may"),
    [
        ((HEAD + CHUNK,), True),
        ((HEAD, CHUNK, CHUNK), True),
        ((HEAD, CHUNK[:5], CHUNK[5:]), True),
        ((HEAD,), False),
        ((HEAD + CHUNK + b"9",), False),
        ((HEAD + CHUNK + b"9;x",), False),
        ((HEAD + CHUNK + b"9\r\n",), False),
        ((HEAD + CHUNK + b"9\r\nab\r\n",), False),
        ((HEAD + CHUNK + CHUNK[:-2],), False),
        ((HEAD + CHUNK + CHUNK[:-1],), False),
        ((HEAD + CHUNK, b"4\r\nab\r\n"), False),
        ((HEAD + CHUNK + b"0\r\n",), False),
        ((HEAD + CHUNK + b"0\r\nx: y\r\n",), False),
        ((HEAD + CHUNK + b"0\r\n\r\n",), False),
        ((HEAD + CHUNK + b"0\r\n\r\n\r\n",), False),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n" + EVENT + b"\r\n",), False),
        ((b"HTTP/1.1 200 OK\r\n\r\n" + CHUNK,), False),
    ],
)
def test_a_relay_begins_where_a_chunk_has_ended_and_the_next_one_not_begun(reads: tuple[bytes, ...], may: bool) -> None:  # fmt: skip
    async def test() -> None:
        side = Side(*reads)
        assert (side.relay(), side.line.is_paused) == (may, may)
        assert side.relays.begun == [(side.line, 77)] * may

    run(test)


def test_a_relay_begins_once_and_on_a_connection_that_is_read_and_open() -> None:
    async def test() -> None:
        side = Side()
        assert side.relay()
        assert not side.relay()
        side = Side()
        side.response.throttle(is_full=True)
        assert not side.relay()
        side = Side()
        side.line.abort()
        assert not side.relay()
        side = Side()
        assert not side.relay(Response(side.connection))
        side.relays.is_refusing = True
        assert not side.relay()
        assert not side.line.is_paused
        side.connection._relays = None
        assert not side.relay()

    run(test)


def test_what_comes_back_is_told_of_first_and_then_read() -> None:
    async def test() -> None:
        side = Side()
        await side.passing()
        assert side.relay()
        side.relays.last_s = asyncio.get_running_loop().time() + 100
        side.relays.on_stop(CHUNK + CHUNK, b"rest")

        assert side.heard == [(side.relays, b"rest"), EVENT + EVENT]
        assert not side.line.is_paused
        assert side.relay()  # once more

    run(test)


def test_the_silence_is_counted_from_what_the_relay_heard_last() -> None:
    async def test() -> None:
        side = Side()
        before_s = side.connection.deadline_s
        assert side.relay()
        side.relays.last_s = 10 + asyncio.get_running_loop().time()
        side.connection.overdue()
        assert side.connection.deadline_s == side.relays.last_s + SILENCE_S
        assert not side.line.is_closed
        side.relays.last_s += 1
        side.relays.on_stop(b"", b"")
        assert side.connection.deadline_s == side.relays.last_s + SILENCE_S > before_s

        side = Side()
        await side.passing()
        before_s = side.connection.deadline_s
        assert side.relay()
        side.relays.on_stop(b"", b"")  # which heard nothing
        assert side.connection.deadline_s == before_s
        assert side.relay()
        side.connection.overdue()
        assert (side.relays.is_stopped, side.line.is_closed) == (True, True)
        with pytest.raises(UpstreamError, match="silent"):
            await side.task

    run(test)


def test_a_client_that_is_full_ends_the_relay_and_the_reading() -> None:
    async def test() -> None:
        side = Side()
        assert side.relay()
        side.response.throttle(is_full=False)  # nothing new
        assert (side.relays.is_stopped, side.heard) == (False, [])
        side.response.throttle(is_full=True)
        assert (side.relays.is_stopped, side.heard) == (True, [(side.relays, b"")])
        assert (side.line.is_paused, side.connection.deadline_s) == (True, math.inf)
        side.response.throttle(is_full=False)
        assert not side.line.is_paused
        assert side.relay()

    run(test)


@pytest.mark.parametrize("end", ["release", "abort", "lost"])
def test_a_connection_that_ends_stops_its_relay_and_reads_no_more(end: str) -> None:
    async def test() -> None:
        side = Side()
        assert side.relay()
        if end == "release":
            side.response.release()
        elif end == "abort":
            side.connection.abort()
        else:
            side.line.abort()
            side.connection.connection_lost(None)
        assert (side.relays.is_stopped, side.line.is_closed) == (True, True)
        assert side.heard == [(side.relays, b"")]
        assert side.idle == []
        assert side.connection._relay is None
        assert end != "lost" or side.line.is_paused

    run(test)


# ---- the client's side


def test_a_clients_socket_is_lent_while_it_has_taken_all_of_a_chunked_answer() -> None:
    async def test() -> None:
        for method, version, lent in (
            ("POST", "1.1", 77),
            ("HEAD", "1.1", None),
            ("POST", "1.0", None),
        ):
            replies: list[Reply] = []
            app = SimpleNamespace(sizes=Sizes(), room=Room(), request_id=lambda _: b"r", admit=lambda _: None)  # fmt: skip
            app.take = lambda _, reply, replies=replies: replies.append(reply)
            line, front = Line(), Front(app)  # type: ignore[arg-type]
            client = front.connect()
            client.connection_made(line)  # type: ignore[arg-type]
            client.data_received(f"{method} /x HTTP/{version}\r\nhost: h\r\n\r\n".encode())
            (reply,) = replies
            assert reply.socket() is None  # of a request that is not answered
            reply.begin(200, [])
            assert reply.socket() is None  # its head is not sent
            reply.part(EVENT)
            assert reply.socket() == lent
            line.kept_bytes = 1
            assert reply.socket() is None
            line.kept_bytes = 0
            reply.raw(b"as it is")
            assert line.sent.endswith(b"as it is")
            line.is_closed = True
            assert reply.socket() is None
            client.connection_lost(None)
            assert reply.socket() is None
            front.sweeper.stop()

    run(test)


def passage_of(lent: int | None, relays: list[Any]) -> tuple[Passage, EventStream]:
    """One whose stream is relayed whenever that is asked for."""
    response = SimpleNamespace(relay=lambda client, tell: relays.append((client, tell)) or True)
    reply = SimpleNamespace(part=lambda _: None, raw=relays.append, socket=lambda: lent)
    events = EventStream()
    return Passage(response, events, reply, time.monotonic), events  # type: ignore[arg-type]


def test_a_stream_is_let_go_between_events_and_not_for_ever() -> None:
    async def test() -> None:
        relays: list[Any] = []
        passage, _ = passage_of(77, relays)
        for data, begun in (
            (b"data", 0),
            (b": 1\n", 0),
            (b"\n", 1),
            (b"data: 2\n\ndata", 1),
            (b": 3\n\n", 2),
        ):
            passage._part(data)
            passage._soon()
            await asyncio.sleep(0)
            assert len(relays) == begun
        for _ in range(9):
            passage._part(EVENT)
            await asyncio.sleep(0)
        assert len(relays) == MOST_STOPS
        passage, _ = passage_of(None, relays)
        passage._part(EVENT)
        await asyncio.sleep(0)
        assert len(relays) == MOST_STOPS

    run(test)


def test_what_a_relay_passed_is_known_as_if_it_had_come_by() -> None:
    async def test() -> None:
        sent: list[Any] = []
        passage, events = passage_of(None, sent)
        passage._part(EVENT)
        known = events.events
        passage._relayed(SimpleNamespace(events=5, last=[EVENT, b"data: [DONE]\n\n"], last_s=1.5), b"x")  # type: ignore[arg-type]  # fmt: skip
        assert (events.events, events.is_done, passage.last_s, sent) == (
            known + 5,
            True,
            1.5,
            [b"x"],
        )
        passage._relayed(SimpleNamespace(events=0, last=[], last_s=0.0), b"")  # type: ignore[arg-type]
        assert (passage.last_s, sent) == (1.5, [b"x"])

    run(test)
