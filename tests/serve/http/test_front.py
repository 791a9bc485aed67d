"""Clients that bend HTTP/1.1, are slow, or leave: what is read in one way only, and what nobody may hold."""

import asyncio
import json
import random
import socket
from contextlib import suppress
from typing import ClassVar

import pytest

from polypod.policy.events import ClientGone, RequestFinished
from polypod.serve.door import Door, Rules
from polypod.serve.http.front import Front, Waits
from polypod.serve.http.request import Request, Sizes
from polypod.serve.http.room import SPARE_CONNECTIONS, Room

PATH = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = b"host: localhost\r\n"
TE = b"transfer-encoding: chunked\r\n"
PAGE = b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"


def chat(lab, *, stream: bool = False, extra: bytes = b"", version: bytes = b"1.1") -> bytes:
    body = json.dumps(lab.ask(stream)).encode()
    head = PATH.replace(b"1.1", version) + HOST + extra + b"content-length: %d\r\n\r\n" % len(body)
    return head + body


class Wire:
    """A connection that a test says bytes on; closed when the test is over."""

    opened: ClassVar[list["Wire"]] = []

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, node, data: bytes = b"") -> "Wire":
        wire = cls(*await asyncio.open_connection("127.0.0.1", node.port, limit=1 << 24))
        cls.opened.append(wire)
        wire.writer.write(data)
        return wire

    async def head(self) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(10):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        return int(lines[0].split()[1]), headers

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        status, headers = await self.head()
        if "transfer-encoding" not in headers:
            return status, headers, await self.reader.readexactly(int(headers["content-length"]))
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append(await self.reader.readexactly(size))
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return status, headers, b"".join(parts)

    async def rest(self) -> bytes:
        async with asyncio.timeout(10):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.transport.abort()


def run(lab, tmp_path, test, **settings) -> None:
    async def closing(node, client) -> None:
        try:
            await test(node, client)
        finally:
            for wire in Wire.opened:
                wire.close()
            Wire.opened.clear()

    lab.run(tmp_path, closing, **settings)


# ---- read in one way only

CHUNKS = b"2\r\n{}\r\n0\r\n\r\n"
BAD = {
    "both lengths": (400, PATH + HOST + TE + b"content-length: 2\r\n\r\n" + CHUNKS),
    "both lengths, the other way round": (400, PATH + HOST + b"content-length: 2\r\n" + TE + b"\r\n" + CHUNKS),
    "a length twice": (400, PATH + HOST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}"),
    "two lengths": (400, PATH + HOST + b"content-length: 2\r\ncontent-length: 9\r\n\r\n{}"),
    "a list of lengths": (400, PATH + HOST + b"content-length: 2, 2\r\n\r\n{}"),
    "a signed length": (400, PATH + HOST + b"content-length: +2\r\n\r\n{}"),
    "a negative length": (400, PATH + HOST + b"content-length: -2\r\n\r\n{}"),
    "a hexadecimal length": (400, PATH + HOST + b"content-length: 0x2\r\n\r\n{}"),
    "an empty length": (400, PATH + HOST + b"content-length: \r\n\r\n{}"),
    "a length past 64 bits": (400, PATH + HOST + b"content-length: 99999999999999999999999\r\n\r\n{}"),
    "another coding": (501, PATH + HOST + b"transfer-encoding: xchunked\r\n\r\n" + CHUNKS),
    "a coding before chunked": (501, PATH + HOST + b"transfer-encoding: gzip, chunked\r\n\r\n" + CHUNKS),
    "a coding after chunked": (400, PATH + HOST + b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNKS),
    "chunked twice": (400, PATH + HOST + TE + TE + b"\r\n" + CHUNKS),
    "a hidden coding": (400, PATH + HOST + b"transfer-encoding: \x0bchunked\r\n\r\n" + CHUNKS),
    "chunked in HTTP/1.0": (501, PATH.replace(b"1.1", b"1.0") + HOST + TE + b"\r\n" + CHUNKS),
    "a folded header": (400, PATH + HOST + b"x: a\r\n b\r\n\r\n"),
    "a space before the colon": (400, PATH + b"host : localhost\r\n\r\n"),
    "bare line feeds": (400, b"GET /v1/models HTTP/1.1\nhost: localhost\n\n"),
    "a bare line feed in a header": (400, PATH + b"host: localhost\nx: y\r\n\r\n"),
    "a bare carriage return": (400, PATH + b"host: localhost\rx: y\r\n\r\n"),
    "a zero byte": (400, PATH + HOST + b"x: a\x00b\r\n\r\n"),
    "a header without a name": (400, PATH + HOST + b": b\r\n\r\n"),
    "a chunk size of other letters": (400, PATH + HOST + TE + b"\r\nxyz\r\n"),
    "a negative chunk": (400, PATH + HOST + TE + b"\r\n-1\r\n"),
    "a prefixed chunk size": (400, PATH + HOST + TE + b"\r\n0x2\r\n{}\r\n0\r\n\r\n"),
    "a chunk past 64 bits": (400, PATH + HOST + TE + b"\r\nfffffffffffffffff\r\n"),
    "a chunk longer than it says": (400, PATH + HOST + TE + b"\r\n2\r\n{}X\r\n0\r\n\r\n"),
    "chunks by bare line feeds": (400, PATH + HOST + TE + b"\r\n2\n{}\n0\n\n"),
    "no host": (400, b"GET /v1/models HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET /v1/models HTTP/1.1\r\n" + HOST + b"host: evil.example\r\n\r\n"),
    "two keys": (400, PATH + HOST + b"authorization: Bearer a\r\nauthorization: Bearer b\r\n\r\n"),
    "HTTP/2.0": (505, b"GET /v1/models HTTP/2.0\r\n" + HOST + b"\r\n"),
    "HTTP/1.2": (400, b"GET /v1/models HTTP/1.2\r\n" + HOST + b"\r\n"),
    "HTTP/0.9": (400, b"GET /v1/models\r\n"),
    "the preface of HTTP/2": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "an unknown method": (400, b"CHAT /v1/models HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a space in the target": (400, b"GET /v1 /models HTTP/1.1\r\n" + HOST + b"\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 40),
    "a target that is no URL": (400, b"GET http://[::1/v1/models HTTP/1.1\r\n" + HOST + b"\r\n"),
    "another expectation": (417, PATH + HOST + b"expect: a miracle\r\ncontent-length: 2\r\n\r\n"),
    "a long target": (414, b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a long header": (431, PATH + HOST + b"x: " + b"y" * 40_000 + b"\r\n\r\n"),
    "a header without end": (431, PATH + HOST + b"x: " + b"y" * 100_000),
    "many headers": (431, PATH + HOST + b"".join(b"x%d: y\r\n" % n for n in range(101)) + b"\r\n"),
    "a tunnel": (404, b"CONNECT localhost:1 HTTP/1.1\r\n" + HOST + b"\r\n"),
}  # fmt: skip


def test_what_is_not_plain_http_is_refused_and_the_connection_closed(lab, tmp_path):
    """After the first misunderstanding nothing on the connection can be trusted, least of all the next request."""

    async def test(node, _):
        engine = await node.engine("a")
        seen = {}
        for what, (_, data) in BAD.items():
            wire = await Wire.open(node, data + PAGE)
            seen[what], _ = await wire.head()
            assert b"HTTP/1.1 200" not in await wire.rest(), what
        assert seen == {what: status for what, (status, _) in BAD.items()}
        assert engine.visits == []

    run(lab, tmp_path, test)


def test_every_refusal_is_an_error_in_openais_words_and_is_counted(lab, tmp_path):
    async def test(node, client):
        wire = await Wire.open(node, BAD["two lengths"][1])
        code, headers = await wire.head()
        error = json.loads(await wire.rest())["error"]
        assert (code, headers["connection"], error["code"]) == (400, "close", "bad_request")
        assert "Duplicate Content-Length" in error["message"]
        text = await (await client.get("/metrics")).text()
        assert 'polypod_requests_total{model="unknown",status="400"} 1.0' in text

    run(lab, tmp_path, test)


def test_a_request_inside_a_body_is_a_body(lab, tmp_path):
    async def test(node, _):
        engine = await node.engine("a")
        body = json.dumps(lab.ask(user=(PAGE + chat(lab)).decode())).encode()
        length = b"content-length: %d\r\n\r\n" % len(body)
        chunked = TE + b"\r\n%x;name=value\r\n%b\r\n0\r\nhost: evil.example\r\n\r\n" % (len(body), body)  # fmt: skip
        for framing in (length + body, chunked):
            wire = await Wire.open(node, PATH + HOST + framing + PAGE)
            assert (await wire.answer())[0] == 200
            assert b'"object":"list"' in (await wire.answer())[2]  # the one after it, and no other
            wire.close()
        assert [visit.body for visit in engine.visits] == [body, body]

    run(lab, tmp_path, test)


def test_requests_are_the_same_however_their_bytes_arrive(lab, tmp_path):
    chance = random.Random(3)
    body = json.dumps(lab.ask()).encode()
    chunked = PATH + HOST + TE + b"\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"  # fmt: skip
    said = chat(lab) + chunked + PAGE + chat(lab, stream=True) + PAGE

    async def test(node, _):
        engine = await node.engine("a")
        for parts in (1, 4, 40, len(said)):
            cuts = sorted(chance.sample(range(1, len(said)), parts - 1))
            wire = await Wire.open(node)
            for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True):
                wire.writer.write(said[start:end])
                await asyncio.sleep(0)
            answers = [await wire.answer() for _ in range(5)]
            wire.close()
            assert [answer[0] for answer in answers] == [200] * 5
            assert [b"list" in answer[2] for answer in answers] == [False, False, True, False, True]
            assert answers[0][2] == answers[1][2] == lab.answer_body()
            assert answers[3][2].endswith(lab.DONE)
        assert {visit.body for visit in engine.visits} == {body, json.dumps(lab.ask(True)).encode()}

    run(lab, tmp_path, test)


def test_pipelined_requests_are_answered_in_order_one_at_a_time(lab, tmp_path):
    async def test(node, _):
        engine = await node.engine("a", lab.good(gap_s=0.1), lab.good())
        wire = await Wire.open(node, chat(lab) + PAGE * 3 + chat(lab) + PAGE)
        await asyncio.sleep(0.05)
        wire.writer.write(PAGE)
        kinds = [json.loads((await wire.answer())[2])["object"] for _ in range(7)]
        wire.close()
        assert kinds == ["chat.completion", *["list"] * 3, "chat.completion", *["list"] * 2]
        assert len(engine.visits) == 2

    run(lab, tmp_path, test)


def test_a_flood_of_pipelined_requests_is_read_no_faster_than_it_is_answered(lab, tmp_path):
    async def test(node, _):
        await node.engine("a", lab.good(gap_s=0.5))
        wire = await Wire.open(node, chat(lab))
        for _ in range(400):
            wire.writer.write(PAGE * 1000)
        await asyncio.sleep(0.3)
        unread = wire.writer.transport.get_write_buffer_size()
        assert unread > 10e6  # of 23 MB; the kernel holds the rest
        for _ in range(500):
            assert (await wire.answer())[0] == 200
        wire.close()

    run(lab, tmp_path, test)


def test_after_a_mess_the_answers_before_it_are_still_given(lab, tmp_path):
    async def test(node, _):
        await node.engine("a", lab.good(gap_s=0.1))
        wire = await Wire.open(node, chat(lab) + PAGE + b"\x00\x01\x02")
        assert (await wire.answer())[0] == 200
        status, headers, _ = await wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await wire.rest() == b""
        wire.close()

    run(lab, tmp_path, test)


# ---- versions, connections, expectations


def test_http_1_0_gets_a_stream_without_chunks_that_ends_with_the_connection(lab, tmp_path):
    async def test(node, _):
        await node.engine("a")
        wire = await Wire.open(node, chat(lab, stream=True, version=b"1.0"))
        status, headers = await wire.head()
        body = await wire.rest()
        assert (status, headers["connection"]) == (200, "close")
        assert "transfer-encoding" not in headers
        assert body.startswith(b"data: {") and body.endswith(lab.DONE)  # noqa: PT018
        wire.close()

    run(lab, tmp_path, test)


def test_a_connection_is_kept_as_its_client_asks(lab, tmp_path):
    keep = b"connection: keep-alive\r\n"

    async def test(node, _):
        await node.engine("a")
        kept = [chat(lab), chat(lab, extra=keep, version=b"1.0"), chat(lab, stream=True)]
        closed = [chat(lab, extra=b"connection: close\r\n"), chat(lab, version=b"1.0")]
        for request in kept:
            wire = await Wire.open(node, request)
            _, headers, _ = await wire.answer()
            wire.writer.write(request)
            assert (await wire.answer())[0] == 200
            assert headers.get("connection", "keep-alive") == "keep-alive"
            wire.close()
        for request in closed:
            wire = await Wire.open(node, request)
            _, headers, _ = await wire.answer()
            assert (headers["connection"], await wire.rest()) == ("close", b"")

    run(lab, tmp_path, test)


def test_a_wish_for_another_protocol_is_not_heard(lab, tmp_path):
    async def test(node, _):
        extra = b"connection: upgrade\r\nupgrade: h2c\r\n"
        wire = await Wire.open(node, b"GET /v1/models HTTP/1.1\r\n" + HOST + extra + b"\r\n")
        status, headers, _ = await wire.answer()
        assert (status, headers["connection"], await wire.rest()) == (200, "close", b"")

    run(lab, tmp_path, test)


def test_a_body_is_asked_for_when_it_is_expected_to_be(lab, tmp_path):
    async def test(node, _):
        await node.engine("a")
        request = chat(lab, extra=b"expect: 100-continue\r\n")
        head, _, body = request.partition(b"\r\n\r\n")
        wire = await Wire.open(node, head + b"\r\n\r\n")
        assert await wire.head() == (100, {})
        wire.writer.write(body)
        assert (await wire.answer())[0] == 200
        wire.close()

    run(lab, tmp_path, test)


def test_a_target_with_a_host_is_judged_by_that_host(lab, tmp_path):
    async def test(node, _):
        for host, status in ((b"localhost", 200), (b"evil.example", 403)):
            wire = await Wire.open(node, b"GET http://%b/v1/models?a=b HTTP/1.1\r\n" % host + HOST + b"\r\n")  # fmt: skip
            assert (await wire.answer())[0] == status
            wire.close()

    run(lab, tmp_path, test)


def test_a_refusal_keeps_the_connection_if_the_body_is_small(lab, tmp_path):
    async def test(node, _):
        foreign = chat(lab).replace(b"localhost", b"evil.example")
        wire = await Wire.open(node, foreign + PAGE)
        assert [(await wire.answer())[0] for _ in range(2)] == [403, 200]
        wire.close()

    run(lab, tmp_path, test)


@pytest.mark.parametrize("framing", [b"content-length: 30000000\r\n", TE])
def test_a_client_that_sends_too_much_still_reads_why_it_is_refused(lab, tmp_path, framing):
    """Closed at once, the connection would be reset, and the answer lost with what the client still sends."""

    async def test(node, _):
        wire = await Wire.open(node, PATH + HOST + framing + b"\r\n")
        for _ in range(300):
            part = b"x" * 100_000
            wire.writer.write(b"%x\r\n%b\r\n" % (len(part), part) if framing is TE else part)
        status, _ = await wire.head()
        assert status == 413
        assert b"larger than" in await wire.rest()
        wire.close()

    run(lab, tmp_path, test, door=Door(Rules(largest_body_bytes=1 << 20)))


# ---- all of them together

BUSY = Waits(rest_s=60.0)  # nobody makes way


async def until(is_so) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


def full(what, node) -> float:
    """How many were refused for want of that."""
    text = node.metrics.text([], {}).decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f'polypod_refused_full_total{{what="{what}"}}'))  # fmt: skip


def shown(name, node) -> float:
    text = node.metrics.text([], {}).decode()
    return float(next(line.split()[-1] for line in text.splitlines() if line.startswith(f"{name} ")))  # fmt: skip


def test_a_connection_beyond_the_limit_is_told_so_and_may_only_see_how_the_node_is(lab, tmp_path):
    async def test(node, _):
        kept = [await Wire.open(node, PAGE) for _ in range(2)]
        assert [(await wire.answer())[0] for wire in kept] == [200, 200]
        extra = await Wire.open(node, chat(lab))
        status, headers, body = await extra.answer()
        assert (status, json.loads(body)["error"]["code"]) == (503, "node_full")
        assert "--max-connections" in body.decode()
        assert int(headers["retry-after"]) > 0
        assert await extra.rest() == b""  # and it is closed
        assert full("connections", node) == 1
        seen = await Wire.open(node, PAGE.replace(b"/v1/models", b"/metrics"))
        status, _, body = await seen.answer()
        assert (status, await seen.rest()) == (200, b"")
        assert b"polypod_client_connections 3.0" in body
        kept[0].close()
        await until(lambda: node.gateway.room.connections <= 1)
        again = await Wire.open(node, PAGE + PAGE)
        assert [(await again.answer())[0] for _ in range(2)] == [200, 200]

    run(lab, tmp_path, test, door=Door(Rules(most_connections=2)), waits=BUSY)


def test_idle_connections_make_way_for_others_and_busy_ones_do_not(lab, tmp_path):
    async def test(node, _):
        await node.engine("a", lab.hang())
        asks = await Wire.open(node, chat(lab))
        begins = await Wire.open(node, PAGE[:20])
        uploads = await Wire.open(node, PATH + HOST + b"content-length: 99\r\n\r\n{")
        await until(lambda: node.gateway.in_flight == 1)
        kept = [await Wire.open(node, PAGE) for _ in range(3)]
        for wire in kept:
            assert (await wire.answer())[0] == 200
        comes = [await Wire.open(node, PAGE) for _ in range(3)]
        assert [(await wire.answer())[0] for wire in comes] == [200] * 3
        assert [await wire.rest() for wire in kept] == [b""] * 3
        assert shown("polypod_idle_closed_total", node) == 3
        assert full("connections", node) == 0
        assert node.gateway.room.connections == 6
        begins.writer.write(PAGE[20:])
        assert (await begins.answer())[0] == 200
        assert node.gateway.in_flight == 1
        for wire in (asks, uploads, *comes):
            wire.close()
        await until(lambda: node.gateway.room.connections == 1)

    run(lab, tmp_path, test, door=Door(Rules(most_connections=6)), waits=Waits(rest_s=0.0))


def test_the_longest_idle_goes_first(lab, tmp_path):
    async def test(node, _):
        kept = []
        for _ in range(2):
            kept.append(await Wire.open(node, PAGE))
            assert (await kept[-1].answer())[0] == 200
            await asyncio.sleep(0.01)  # the loop's time goes by milliseconds
        kept[0].writer.write(PAGE)
        assert (await kept[0].answer())[0] == 200
        another = await Wire.open(node, PAGE)
        assert (await another.answer())[0] == 200
        assert await kept[1].rest() == b""
        kept[0].writer.write(PAGE)
        assert (await kept[0].answer())[0] == 200

    run(lab, tmp_path, test, door=Door(Rules(most_connections=2)), waits=Waits(rest_s=0.0))


def test_connections_beyond_all_that_can_be_answered_are_cut(lab, tmp_path):
    async def test(node, _):
        wires = [await Wire.open(node) for _ in range(SPARE_CONNECTIONS + 2)]
        with suppress(ConnectionError):
            assert await wires[-1].rest() == b""
        assert full("connections", node) == 1
        assert node.gateway.room.connections <= SPARE_CONNECTIONS + 1

    run(lab, tmp_path, test, door=Door(Rules(most_connections=1)), waits=BUSY)


def test_many_that_come_at_once_are_let_in_where_as_many_are_idle(lab, tmp_path):
    async def test(node, _):
        kept = [await Wire.open(node) for _ in range(200)]
        await until(lambda: node.gateway.room.connections == 200)
        comes = await asyncio.gather(*(Wire.open(node, PAGE) for _ in range(200)))
        assert {(await wire.answer())[0] for wire in comes} == {200}
        assert {await wire.rest() for wire in kept} == {b""}
        assert node.gateway.room.connections == 200
        assert full("connections", node) == 0

    run(lab, tmp_path, test, door=Door(Rules(most_connections=200)), waits=Waits(rest_s=0.0))


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_bodies_beyond_the_limit_of_all_are_refused_until_others_are_answered(
    lab, tmp_path, framing
):
    def large(size):
        body = json.dumps({**lab.ask(), "user": "x" * size}).encode()
        if framing == "length":
            return PATH + HOST + b"content-length: %d\r\n\r\n" % len(body) + body
        return PATH + HOST + TE + b"\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)

    async def test(node, _):
        await node.engine("a", lab.hang())
        first = await Wire.open(node, large(700_000))
        await until(lambda: node.gateway.room.body_bytes >= 700_000)
        assert shown("polypod_request_body_bytes", node) >= 700_000
        second = await Wire.open(node, large(700_000))
        status, headers = await second.head()
        assert (status, int(headers["retry-after"]) > 0) == (503, True)
        assert b"--max-bodies" in await second.rest()
        assert full("bodies", node) == 1
        first.close()
        await until(lambda: node.gateway.room.body_bytes == 0)
        third = await Wire.open(node, large(700_000))
        assert (await third.answer())[0] == 200
        assert full("bodies", node) == 1

    run(lab, tmp_path, test, door=Door(Rules(most_body_bytes=1 << 20)))


def test_a_length_that_is_only_announced_takes_nothing_from_others(lab, tmp_path):
    async def test(node, _):
        wires = [await Wire.open(node, PATH + HOST + b"content-length: 1000000\r\n\r\nx") for _ in range(5)]  # fmt: skip
        await until(lambda: node.gateway.room.body_bytes >= 5)
        page = await Wire.open(node, PAGE)
        assert (await page.answer())[0] == 200
        assert full("bodies", node) == 0
        for wire in wires:
            wire.close()

    run(lab, tmp_path, test, door=Door(Rules(most_body_bytes=1 << 20)))


# ---- slow clients


def test_slow_heads_and_bodies_are_given_up_in_words(lab, tmp_path):
    """One byte now and then does not help: what counts is the whole."""

    async def test(node, client):
        for data in (b"POST /v1/chat", PATH + HOST + b"content-length: 99\r\n\r\n{"):
            wire = await Wire.open(node, data)
            sending = asyncio.create_task(drip(wire))
            assert (await wire.head())[0] == 408
            assert b"request_timeout" in await wire.rest()
            sending.cancel()
            wire.close()
        assert node.steps == []
        text = await (await client.get("/metrics")).text()
        assert 'polypod_requests_total{model="unknown",status="408"} 2.0' in text

    async def drip(wire) -> None:
        while True:
            wire.writer.write(b"a")
            await asyncio.sleep(0.05)

    run(lab, tmp_path, test, waits=Waits(head_s=0.4, body_s=0.4))


def test_an_idle_connection_is_closed_without_a_word(lab, tmp_path):
    async def test(node, _):
        for first in (b"", PAGE):
            wire = await Wire.open(node, first)
            if first:
                await wire.answer()
            assert await wire.rest() == b""

    run(lab, tmp_path, test, waits=Waits(idle_s=0.2))


def test_a_long_answer_is_no_idle_connection(lab, tmp_path):
    async def test(node, client):
        await node.engine("a", lab.good(tokens=3, gap_s=0.4))
        response = await client.post("/v1/chat/completions", json=lab.ask(stream=True))
        assert (await lab.texts(response))[2]

    run(lab, tmp_path, test, waits=Waits(idle_s=0.2, head_s=0.2, body_s=0.2))


def test_a_client_that_does_not_take_its_answer_is_cut_and_its_replica_freed(lab, tmp_path):
    piece = lab.event("x" * 50_000)

    async def flood(visit):
        await visit.begin_stream()
        with suppress(ConnectionError):
            while True:
                await visit.chunk(piece)
        visit.was_left.set()

    async def test(node, client):
        engine = await node.engine("a", flood)
        wire = await Wire.open(node, chat(lab, stream=True))
        wire.writer.transport.pause_reading()
        async with asyncio.timeout(10):
            while not node.told(ClientGone):
                await asyncio.sleep(0.02)
            await lab.only(engine.visits).was_left.wait()
        assert "polypod_clients_cut_total 1.0" in await (await client.get("/metrics")).text()
        wire.close()

    run(lab, tmp_path, test, waits=Waits(taking_s=0.5))


def test_what_a_slow_client_is_owed_is_bounded(lab, tmp_path):
    """It takes something now and then, and so is not cut; the engine waits for it meanwhile."""
    piece = lab.event("x" * 10_000)
    sent = []

    async def flood(visit):
        await visit.begin_stream()
        for _ in range(3000):
            await visit.chunk(piece)
            sent.append(len(piece))
        await visit.chunk(lab.DONE)
        await visit.end_stream()

    async def test(node, _):
        await node.engine("a", flood)
        wire = await Wire.open(node)
        wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.writer.write(chat(lab, stream=True))
        taken = 0
        for _ in range(20):
            taken += len(await wire.reader.read(10_000))
            await asyncio.sleep(0.03)
        assert sum(sent) - taken < 20e6  # of 30 MB; the kernel holds the most of it
        assert node.told(ClientGone) == []
        wire.close()

    run(lab, tmp_path, test, waits=Waits(taking_s=20.0))


# ---- clients that leave


def test_a_client_that_closes_its_side_has_gone(lab, tmp_path):
    """Half a connection cannot be told from none: its engine is freed."""

    async def test(node, _):
        engine = await node.engine("a", lab.hang())
        wire = await Wire.open(node, chat(lab))
        async with asyncio.timeout(5):
            while not engine.visits:
                await asyncio.sleep(0.01)
            wire.writer.write_eof()
            await lab.only(engine.visits).was_left.wait()
        assert len(node.told(ClientGone)) == 1
        wire.close()

    run(lab, tmp_path, test)


def test_a_page_asked_for_by_a_client_that_closes_its_side_is_still_sent(lab, tmp_path):
    async def test(node, _):
        wire = await Wire.open(node, PAGE)
        wire.writer.write_eof()
        assert (await wire.answer())[0] == 200

    run(lab, tmp_path, test)


def test_clients_that_leave_at_any_moment_leave_nothing_behind(lab, tmp_path):
    chance = random.Random(5)

    async def test(node, client):
        await node.engine("a", *[lab.good(tokens=3, gap_s=0.01)] * 200)
        for _ in range(60):
            request = chat(lab, stream=chance.random() < 0.5)
            wire = await Wire.open(node, request[: chance.randint(1, 2 * len(request))])
            await asyncio.sleep(chance.choice([0, 0.001, 0.01, 0.02]))
            wire.close()
        response = await client.post("/v1/chat/completions", json=lab.ask())
        assert response.status == 200
        async with asyncio.timeout(5):
            while 'in_flight{model="tiny"} 0.0' not in await (await client.get("/metrics")).text():
                await asyncio.sleep(0.02)
        assert len(node.told(RequestFinished)) >= 1

    run(lab, tmp_path, test)


# ---- the end


def test_a_stopping_node_closes_idle_connections_and_says_close_on_the_others(lab, tmp_path):
    async def test(node, _):
        engine = await node.engine("a", lab.good(gap_s=0.2))
        idle = await Wire.open(node, PAGE)
        await idle.answer()
        busy = await Wire.open(node, chat(lab))
        while not engine.visits:
            await asyncio.sleep(0.01)
        node.stop.set()
        assert await idle.rest() == b""
        status, headers, _ = await busy.answer()
        assert (status, headers["connection"], await busy.rest()) == (200, "close", b"")

    run(lab, tmp_path, test, grace_s=5)


# ---- what is sent at once


class _App:
    """What a front has to know of who answers."""

    sizes = Sizes()
    room = Room()


def test_the_beginning_of_a_stream_is_out_before_anything_else_is_done():
    """A client reads it before the event loop has had its turn; parts after it go out in order, also where the first found no room."""

    async def main(room_bytes: int) -> bytes:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room_bytes)
        front = Front(_App())
        _, connection = await asyncio.get_running_loop().create_unix_connection(
            front.connect, sock=ours
        )
        connection._answered = Request()
        connection.begin(200, [], None)
        connection.part_at_once(b"a" * 50_000)
        theirs.setblocking(False)
        got = theirs.recv(1 << 20)
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nc350\r\naaaa" in got
        connection.part_at_once(b"b" * 9)
        connection.part(b"c" * 9)
        connection.end(b"")
        while not got.endswith(b"0\r\n\r\n"):
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                got += theirs.recv(1 << 20)
        front.abort()
        await asyncio.sleep(0)
        theirs.close()
        return got.partition(b"\r\n\r\n")[2]

    sent = b"c350\r\n" + b"a" * 50_000 + b"\r\n9\r\nbbbbbbbbb\r\n9\r\nccccccccc\r\n0\r\n\r\n"
    for room_bytes in (1 << 20, 4096):
        assert asyncio.run(main(room_bytes)) == sent
