"""Engines that bend HTTP/1.1: what counts as an answer, what breaks it, and which connections are used again."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from polypod.serve import upstream as module
from polypod.serve.engines.spec import Endpoint
from polypod.serve.http import back
from polypod.serve.upstream import Patience, Upstream, UpstreamError

OK = b"HTTP/1.1 200 OK\r\n"
JSON = b"content-type: application/json\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"
CERTIFICATE = Path(__file__).parent / "localhost.pem"  # of nobody, for localhost, to 2126
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class RawEngine:
    """Reads one request after the other, and says these bytes; None in their place closes the connection."""

    def __init__(self, path: Path, *answers: bytes | Script) -> None:
        self.path = path
        self.answers = list(answers)
        self.connections = 0
        self.requests: list[bytes] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        if self._serving:
            await asyncio.wait(self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._serving.append(asyncio.current_task())
        self._writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if callable(answer):
                    await answer(reader, writer)
                else:
                    writer.write(answer)
                    await writer.drain()
        writer.close()


def whole(body: bytes, extra: bytes = b"") -> bytes:
    return OK + JSON + extra + b"content-length: %d\r\n\r\n" % len(body) + body


async def ask(upstream: Upstream, body: bytes = b"{}") -> tuple[int, bytes]:
    response = await upstream.post(body, request_id="r", is_stream=False)
    try:
        return response.status, await response.read()
    finally:
        response.release()


def run(tmp_path: Path, test, *answers: bytes | Script, patience: Patience | None = None, **endpoint) -> RawEngine:  # fmt: skip
    """Run `test(upstream)` against an engine that answers so."""

    async def main() -> RawEngine:
        async with RawEngine(tmp_path / "e.sock", *answers) as engine:
            upstream = Upstream(Endpoint(socket=engine.path, **endpoint), patience or Patience())
            try:
                await test(upstream)
            finally:
                await upstream.close()
        return engine

    return asyncio.run(main())


def failing(tmp_path: Path, answer: bytes | Script, **more) -> tuple[str, str]:
    """How asking fails."""
    seen = []

    async def test(upstream: Upstream) -> None:
        with pytest.raises(UpstreamError) as caught:
            await ask(upstream)
        seen.append((caught.value.kind, caught.value.detail))

    run(tmp_path, test, answer, **more)
    return seen[0]


# ---- what is an answer


@pytest.mark.parametrize(
    "answer",
    [
        whole(b"hello"),
        OK + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n",
        OK + CHUNKED + b"\r\n2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\ntrailer: x\r\n\r\n",
        OK + b"\r\nhello",  # ends with the connection
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + whole(b"hello"),
        b"HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello",
    ],
)  # fmt: skip
@pytest.mark.parametrize("at_a_time", [1, 1 << 16])
def test_every_way_to_say_an_answer_is_read(tmp_path, answer, at_a_time):
    async def say(_, writer) -> None:
        for start in range(0, len(answer), at_a_time):
            writer.write(answer[start : start + at_a_time])
            await writer.drain()
            await asyncio.sleep(0)

    async def test(upstream: Upstream) -> None:
        assert await ask(upstream) == (200, b"hello")

    run(tmp_path, test, say)


NOT_HTTP = {
    "both lengths": OK + CHUNKED + b"content-length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "two lengths": OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "a bad chunk size": OK + CHUNKED + b"\r\nhello\r\n",
    "a chunk that is longer": OK + CHUNKED + b"\r\n2\r\nhello\r\n0\r\n\r\n",
    "words": b"I would rather not\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
    "another protocol": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "interim answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + whole(b"hello"),
    "headers without end": OK + b"".join(b"x%d: y\r\n" % number for number in range(5000)) + b"\r\n",
    "a long header": OK + b"x: " + b"y" * 100_000 + b"\r\ncontent-length: 0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_HTTP)
def test_what_is_not_http_is_the_engines_failure(tmp_path, what):
    assert failing(tmp_path, NOT_HTTP[what]) == ("engine", "not HTTP/1.1")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 20",
        OK + JSON,
        OK + b"content-length: 9\r\n\r\nhello",
        OK + CHUNKED + b"\r\n5\r\nhello\r\n",
        OK + CHUNKED + b"\r\n9\r\nhello",
    ],
)
def test_an_answer_that_stops_short_is_lost(tmp_path, answer):
    assert failing(tmp_path, answer) == ("lost", "the connection was closed")


def test_an_answer_above_the_limit_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(back, "MOST_ANSWER_BYTES", 1000)

    kind, detail = failing(tmp_path, whole(b"x" * 1001))
    assert (kind, detail) == ("engine", "an answer larger than 1000 bytes")


def test_nothing_an_engine_says_is_in_the_detail_of_a_failure(tmp_path):
    """Details are recorded, and what an engine says may be an answer's text."""
    for answer in NOT_HTTP.values():
        assert failing(tmp_path, answer.replace(b"hello", b"zebra"))[1].count("zebra") == 0


# ---- which connections are used again


def twice(tmp_path: Path, first: bytes | Script, **more) -> int:
    """Ask twice, and hear both answers; how many connections it took."""

    async def test(upstream: Upstream) -> None:
        for _ in range(2):
            assert (await ask(upstream))[0] == 200
            await asyncio.sleep(0.05)

    return run(tmp_path, test, first, whole(b"again"), **more).connections


def test_a_connection_is_used_again_after_a_whole_answer(tmp_path):
    assert twice(tmp_path, whole(b"hello")) == 1
    assert twice(tmp_path, OK + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n") == 1


@pytest.mark.parametrize(
    "first",
    [
        whole(b"hello", b"connection: close\r\n"),
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        OK + b"\r\nhello",
        whole(b"hello") + b"and more",
        whole(b"hello") + whole(b"an answer to nobody"),
    ],
)
def test_a_connection_with_anything_odd_about_it_is_not_used_again(tmp_path, first):
    async def say(_, writer) -> None:
        writer.write(first)
        if b"content-length" not in first:
            writer.close()

    assert twice(tmp_path, say) == 2


def test_what_an_engine_says_unasked_closes_its_connection(tmp_path):
    async def say(_, writer) -> None:
        writer.write(whole(b"hello"))
        await asyncio.sleep(0.01)
        writer.write(whole(b"an answer to nobody"))

    assert twice(tmp_path, say) == 2


def test_a_connection_that_is_there_when_nobody_wants_it_any_more_is_closed(tmp_path):
    """Cancelled after it is open, and before whoever asked for it has it."""

    async def test(upstream: Upstream) -> None:
        opened = []

        async def open_at_once() -> back.EngineConnection:
            opened.append(await type(upstream)._open(upstream))
            asyncio.get_running_loop().call_soon(asking.cancel)
            return opened[0]

        upstream._open = open_at_once
        asking = asyncio.ensure_future(ask(upstream))
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0.01)
        assert not opened[0].is_open
        assert upstream.in_use == 0

    run(tmp_path, test, whole(b"hello"))


def test_an_engine_that_keeps_no_connections_gets_a_new_one_each_time(tmp_path):
    assert twice(tmp_path, whole(b"hello"), keeps_connections=False) == 2


def test_an_idle_connection_is_left_before_the_engine_leaves_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 0.05)

    async def test(upstream: Upstream) -> None:
        await ask(upstream)
        await asyncio.sleep(0.2)
        assert upstream._all == set()
        assert (await ask(upstream))[1] == b"again"

    assert run(tmp_path, test, whole(b"hello"), whole(b"again"), patience=Patience(between_s=0.2)).connections == 2  # fmt: skip


def test_an_idle_connection_that_the_engine_closed_is_not_used(tmp_path):
    async def say(_, writer) -> None:
        writer.write(whole(b"hello"))
        await writer.drain()
        writer.close()

    assert twice(tmp_path, say) == 2


def test_an_answer_that_is_left_closes_its_connection(tmp_path):
    gone = asyncio.Event()

    async def say(reader, writer) -> None:
        writer.write(OK + CHUNKED + b"\r\n5\r\nhello\r\n")
        assert await reader.read() == b""
        gone.set()

    async def test(upstream: Upstream) -> None:
        response = await upstream.post(b"{}", request_id="r", is_stream=True)
        assert await response.readany() == b"hello"
        response.release()
        async with asyncio.timeout(5):
            await gone.wait()
        assert upstream._idle == []

    run(tmp_path, test, say)


def test_a_request_that_is_given_up_closes_its_connection(tmp_path):
    gone = asyncio.Event()

    async def say(reader, _) -> None:
        assert await reader.read() == b""
        gone.set()

    async def test(upstream: Upstream) -> None:
        asking = asyncio.create_task(ask(upstream))
        await asyncio.sleep(0.05)
        asking.cancel()
        async with asyncio.timeout(5):
            await gone.wait()
        assert asking.cancelled()

    run(tmp_path, test, say)


def test_an_early_answer_to_a_long_request_is_heard_and_the_rest_not_sent(tmp_path):
    """The engine refuses the body after its head; what is left of it must not be read as the next request."""

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await done.wait()
        writer.transport.abort()

    done = asyncio.Event()

    async def main() -> None:
        async def serve(reader, writer) -> None:
            await reader.readuntil(b"\r\n\r\n")
            await early(reader, writer)

        path = str(tmp_path / "early.sock")
        server = await asyncio.start_unix_server(serve, path)
        upstream = Upstream(Endpoint(socket=Path(path)), Patience())
        assert await ask(upstream, b"x" * 8_000_000) == (413, b"no")
        assert upstream._idle == []
        await upstream.close()
        done.set()
        server.close()
        await asyncio.sleep(0.02)

    asyncio.run(main())


# ---- silence and slowness


def test_silence_is_measured_from_the_last_byte(tmp_path):
    async def say(_, writer) -> None:
        writer.write(OK + b"content-length: 10\r\n\r\n")
        for _ in range(10):
            await asyncio.sleep(0.08)
            writer.write(b"x")

    async def silent(reader, writer) -> None:
        writer.write(OK + b"content-length: 10\r\n\r\nx")
        await reader.read()

    patience = Patience(whole_answer_s=0.4)

    async def test(upstream: Upstream) -> None:
        assert await ask(upstream) == (200, b"x" * 10)

    run(tmp_path, test, say, patience=patience)
    kind, detail = failing(tmp_path, silent, patience=patience)
    assert (kind, detail) == ("timeout", "silent for 0.4 s")


def test_an_engine_is_read_no_faster_than_its_stream_is_taken(tmp_path):
    sent = []

    async def flood(_, writer) -> None:
        writer.write(OK + CHUNKED + b"\r\n")
        for _ in range(300):
            writer.write(b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000))
            await writer.drain()
            sent.append(100_000)
        writer.write(b"0\r\n\r\n")

    async def test(upstream: Upstream) -> None:
        response = await upstream.post(b"{}", request_id="r", is_stream=True)
        await asyncio.sleep(0.3)
        assert sum(sent) < 5e6  # nobody has read
        taken, part = 0, b"x"
        while taken < 10e6 and (part := await response.readany()):
            taken += len(part)
        parts = []
        response.throttle(is_full=True)
        asyncio.get_running_loop().call_later(1.3, lambda: response.throttle(is_full=False))
        before = sum(sent)
        passing = asyncio.create_task(response.pass_to(parts.append))
        await asyncio.sleep(0)
        response.throttle(is_full=True)
        await asyncio.sleep(1.2)
        assert sum(sent) - before < 5e6
        await passing
        assert taken + sum(map(len, parts)) == 30_000_000
        response.release()
        assert len(upstream._idle) == 1

    run(
        tmp_path, test, flood, patience=Patience(first_byte_s=1.0)
    )  # our own pause is not its silence


# ---- how a connection comes about


def test_an_engine_that_is_not_there_refuses(tmp_path):
    async def main(endpoint: Endpoint) -> UpstreamError:
        upstream = Upstream(endpoint, Patience(connect_s=0.2))
        with pytest.raises(UpstreamError) as caught:
            await ask(upstream)
        await upstream.close()
        return caught.value

    nowhere = asyncio.run(main(Endpoint(socket=tmp_path / "none.sock")))
    unbound = asyncio.run(main(Endpoint(host="127.0.0.1", port=1)))
    assert (nowhere.kind, nowhere.detail) == ("refused", "No such file or directory")
    assert unbound.kind == "refused"


def test_tls_is_spoken_where_the_certificate_holds_and_only_there(tmp_path, monkeypatch):
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    own.load_cert_chain(CERTIFICATE)

    async def main() -> None:
        async def serve(reader, writer) -> None:
            with suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(whole(b"hello"))
            await reader.read()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=own)
        port = server.sockets[0].getsockname()[1]
        upstream = Upstream(Endpoint(host="localhost", port=port, tls=True), Patience())
        with pytest.raises(UpstreamError, match="refused"):
            await ask(upstream)
        monkeypatch.setattr(module, "tls_context", lambda: trusting)
        assert await ask(upstream) == (200, b"hello")
        await upstream.close()
        server.close()

    asyncio.run(main())
