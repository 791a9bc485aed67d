"""Messages read in C and by llhttp alone: nobody can tell which, whatever the bytes are and however they come in."""

import asyncio
import math
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.engine.native.build import compiler, has_headers
from polypod.serve.http import native
from polypod.serve.http.back import EngineConnection, UpstreamError
from polypod.serve.http.request import Request, RequestReader, Sizes
from polypod.serve.http.sweep import Sweeper
from polypod.serve.wire import Problem

pytestmark = pytest.mark.skipif(
    not (compiler() and has_headers()), reason="no C compiler, or no headers"
)
SEEDS = st.integers(0, 1 << 40)

# ---- messages, of which about half are as nearly all are

METHODS = (b"POST", b"GET", b"HEAD")
OTHER_METHODS = (b"PUT", b"OPTIONS", b"CONNECT", b"post", b"GE", b"PRI", b"")
TARGETS = (
    b"/",
    b"/v1/chat/completions",
    b"//evil/../x",
    b"/a-b_c.d",
    b"/refused",
    b"/stopped",
    b"/" + b"x" * 30,
)
OTHER_TARGETS = (
    b"/a?b=c", b"/%2e%2e/x", b"*", b"x", b"http://h:1/a", b"http://[/", b"/a#b", b"/a b", b"/\xc3\xa9", b"/~x", b"/x;y", b"h:1", b"/" + b"x" * 90,
)  # fmt: skip
VERSIONS = (
    b"HTTP/1.0",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"HTTP/0.9",
    b"HTTP/1.1 ",
    b"http/1.1",
    b"RTSP/1.1",
    b"",
)
LINES = (
    b"Content-Type: application/json", b"accept: */*", b"User-Agent: a b;c=(d) \"e\"", b"x_y:1", b"X-Polypod-Replica:   a", b"connection: Keep-Alive",
    b"keep-alive: timeout=5", b"content_length: 3", b"authorization: Bearer a", b"origin: null", b"x: content-length: 9", b"trailer: x",
)  # fmt: skip
OTHER_LINES = (
    b"connection: close", b"connection: keep-alive, x", b"connection: keep-alive, close", b"Connection: keep-alive,upgrade, close", b"Connection: upgrade", b"upgrade: websocket", b"transfer-encoding: chunked", b"transfer-encoding: gzip",
    b"expect: 100-continue", b"expect: more", b"proxy-connection: close", b"host: other", b"x : y", b" folded: y", b"x: y ", b"x:\ty", b"x:", b"x: ", b": y", b"x",
    b"x: \xe9", b"x\xe9: y", b"x: a\0b", b"x: a\rb", b"x: a\nb", b"x\"y: z", b"content-length: 3", b"content-length:", b"content-length: +3", b"content-length: 3, 3",
    b"content-length: 3 3", b"content-length: 0x3", b"content-length: 00000000000003", b"content-length: 99999999999999999999", b"content-length : 3", b"Content-Length:3",
    b"x: " + b"y" * 300, b"y" * 70 + b": x", b"sec-websocket-key: x", b"x:y\r\nX:z",
)  # fmt: skip
ODD = b"\r\n\t :,;\0\x7f\x80\xff/0-_"


def lines_of(chance: Random, body: bytes, first: list[bytes]) -> bytes:
    """Headers, shuffled, and the blank line."""
    lines = first + chance.sample(LINES, chance.randrange(5))
    if body or chance.random() < 0.3:
        lines.append(b"%b: %d" % (chance.choice((b"content-length", b"Content-Length")), len(body)))
    if chance.random() < 0.25:
        lines.append(chance.choice(OTHER_LINES))
    chance.shuffle(lines)
    return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def body_of(chance: Random) -> bytes:
    if chance.random() < 0.1:
        return b"3\r\nabc\r\n0\r\n\r\n"
    return chance.randbytes(chance.choice((0, 0, 1, 3, 9, 10, 60, 61, 400)))


def request_of(chance: Random) -> bytes:
    body = body_of(chance)
    method, target, version = chance.choice(METHODS), chance.choice(TARGETS), b"HTTP/1.1"
    match chance.randrange(24):
        case 0:
            method = chance.choice(OTHER_METHODS)
        case 1 | 2:
            target = chance.choice(OTHER_TARGETS)
        case 3:
            version = chance.choice(VERSIONS)
    host = [b"Host: localhost:80"] * (chance.random() < 0.95)
    return b"%b %b %b\r\n" % (method, target, version) + lines_of(chance, body, host) + body


def answer_of(chance: Random) -> bytes:
    body = body_of(chance)
    version, status = b"HTTP/1.1", chance.choice((200, 200, 200, 400, 429, 503, 299, 599))
    reason = chance.choice((b" OK", b" OK", b" Too Many (x)", b" "))
    match chance.randrange(16):
        case 0:
            status = chance.choice((100, 101, 103, 199, 204, 205, 304, 600, 999, 42))
        case 1:
            version = chance.choice(VERSIONS)
        case 2:
            reason = chance.choice((b"", b"  OK", b" \xe9", b"\tOK", b" a\tb", b" a\0"))
    return b"%b %d%b\r\n" % (version, status, reason) + lines_of(chance, body, []) + body


def mutated(chance: Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    match chance.randrange(8):
        case 0:
            return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + bytes([chance.choice(ODD)]) + data[at:]
        case 2:
            return data[:at] + data[at + 1 :]
        case 3:
            return data.replace(
                b"\r\n",
                chance.choice((b"\n", b"\r", b"\r\n ", b" \r\n", b"\r\r\n")),
                chance.randrange(1, 5),
            )
        case 4:
            lines = data.split(b"\r\n")
            lines.insert(chance.randrange(len(lines)), chance.choice(lines))
            return b"\r\n".join(lines)
        case 5:
            return chance.choice((b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ")) + data
        case 6:
            return data + chance.choice((b"\r\n", b"\n", b"x", b"GET ", b"HTTP/1.1"))
        case _:
            return data[:at]


def reads_of(chance: Random, make: Callable[[Random], bytes], most: int = 4) -> list[bytes]:
    """Some messages, cut where one ends and elsewhere, or not cut."""
    reads, open_read = [], b""
    for _ in range(chance.randrange(1, most + 1)):
        data = make(chance)
        while chance.random() < 0.25:
            data = mutated(chance, data)
        while data and chance.random() < 0.2:
            at = chance.randrange(len(data))
            reads.append(open_read + data[:at])
            open_read, data = b"", data[at:]
        open_read += data
        if chance.random() < 0.8:
            reads.append(open_read)
            open_read = b""
    return [read for read in [*reads, open_read] if read]


# ---- requests


class Told:
    """A reader's owner, who writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def head_read(self, request: Request) -> Problem | None:
        self.heard.append(("head", *said_by(request)))
        problem = Problem(status=404, code="unknown", message=request.path)
        if request.path == "/stopped":
            return problem
        request.refused = problem if request.path == "/refused" else None
        return None

    def body_came(self, size_bytes: int) -> Problem | None:
        self.heard.append(("body", size_bytes))
        return Problem(status=503, code="bodies", message="") if size_bytes == 61 else None

    def request_read(self, request: Request) -> None:
        self.heard.append(("request", *said_by(request)))


def said_by(request: Request) -> tuple[Any, ...]:
    return (
        request.method, request.path, list(request.headers.items()), bytes(request.body), type(request.body), request.keeps, request.version,
        request.expects_continue, request.has_body, request.refused,
    )  # fmt: skip


def read_by(compiled: Any, reads: list[bytes], sizes: Sizes) -> list[Any]:
    told = Told()
    reader = RequestReader(told, sizes)
    reader._heads = compiled
    for read in reads:
        problem = reader.feed(read)
        told.heard.append((problem, reader.request is None, reader.is_head))
        if problem is not None:
            break
    return told.heard


def sizes_of(chance: Random) -> Sizes:
    if chance.random() < 0.7:
        return Sizes()
    return Sizes(
        head_bytes=chance.randrange(20, 400),
        headers=chance.randrange(1, 7),
        target_bytes=chance.randrange(1, 40),
        body_bytes=chance.randrange(70),
    )


def compare_requests(compiled: Any, seed: int) -> None:
    """The owner hears the same, at the same reads, and the same is wrong."""
    chance = Random(seed)
    sizes, reads = sizes_of(chance), reads_of(chance, request_of)
    assert read_by(compiled, reads, sizes) == read_by(None, reads, sizes), (seed, reads)


@settings(max_examples=1500, deadline=None)
@given(SEEDS)
def test_whatever_a_client_sends_is_read_in_one_way(seed: int) -> None:
    compare_requests(native.module("heads"), seed)


def plain_fraction(read: Callable[[bytes], Any], make: Callable[[Random], bytes]) -> float:
    reads = [one for seed in range(400) for one in reads_of(Random(seed), make)]
    return sum(read(one) is not None for one in reads) / len(reads)


def test_of_what_is_tried_c_reads_a_good_part_and_leaves_a_good_part() -> None:
    heads = native.module("heads")
    assert 0.2 < plain_fraction(lambda one: heads.request(one, 9999, 99, 999), request_of) < 0.8
    assert 0.2 < plain_fraction(lambda one: heads.answer(one, 9999, 99), answer_of) < 0.8


HOST = b"host: h\r\n"
PLAIN = b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 2\r\n\r\n{}"
OF_TWO = (
    PLAIN,
    b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nx-y_z:  b c\r\n\r\n",
)
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: keep-alive\r\nx: y\r\n\r\n{}"


def one_byte_off(message: bytes) -> Iterator[bytes]:
    """The message with each byte in each place, and before each place."""
    for at in range(len(message) + 1):
        for byte in range(256):
            yield message[:at] + bytes([byte]) + message[at + 1 :]
            yield message[:at] + bytes([byte]) + message[at:]


@pytest.mark.parametrize("message", OF_TWO)
def test_every_byte_in_every_place_of_a_request_is_read_in_one_way(message: bytes) -> None:
    heads, sizes = native.module("heads"), Sizes()
    for read in one_byte_off(message):
        assert read_by(heads, [read], sizes) == read_by(None, [read], sizes), read


def test_every_byte_in_every_place_of_an_answer_is_read_in_one_way() -> None:
    heads = native.module("heads")

    async def main() -> None:
        for read in one_byte_off(ANSWER):
            said = [[read], [ANSWER]]
            assert await heard_by(heads, said) == await heard_by(None, said), read

    asyncio.run(main())


@pytest.mark.parametrize(
    "before",
    [
        [b"P"],
        [b"POST /a HTTP/1.1\r\n" + HOST],
        [b"POST /a HTTP/1.1\r\n" + HOST + b"content-length: 500\r\n\r\n"],
        [b"POST /a HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n"],
        [b"GET /a HTTP/1.1\r\nconnection: close\r\n" + HOST + b"\r\n"],
        [b"GET /a HTTP/1.0\r\n\r\n"],
        [b"GET /a HTTP/1.1\r\nupgrade: x\r\nconnection: upgrade\r\n" + HOST + b"\r\n"],
        [b"CONNECT h:1 HTTP/1.1\r\n" + HOST + b"\r\n"],
        [b"\r"],
        [b"\r\n\r\n"],
        [b"\n"],
        [PLAIN, b"\r\n"],
        [PLAIN, b"G"],
        [PLAIN + PLAIN],
        [PLAIN + b"GET /a HTTP/1.1\r\n"],
        [b"GET /a?b HTTP/1.1\r\n" + HOST + b"\r\n\r\n"],
        [b"GET /a HTTP/1.1\r\nconnection: keep-alive, close\r\n" + HOST + b"\r\n"],
    ],
)
def test_what_came_before_a_plain_request_counts(before: list[bytes]) -> None:
    """It may be the rest of another, or come after the last one."""
    heads = native.module("heads")
    assert heads.request(PLAIN, 999, 9, 99) is not None
    reads = [*before, PLAIN, PLAIN]
    assert read_by(heads, reads, Sizes()) == read_by(None, reads, Sizes())


def test_limits_hold_to_the_byte() -> None:
    heads = native.module("heads")
    head_bytes = len(PLAIN) - 2
    assert heads.request(PLAIN, head_bytes, 2, 2) == ("POST", "/a", {b"host": b"h", b"content-length": b"2"}, b"{}")  # fmt: skip
    assert heads.request(PLAIN, head_bytes - 1, 2, 2) is None
    assert heads.request(PLAIN, head_bytes, 1, 2) is None
    assert heads.request(PLAIN, head_bytes, 2, 1) is None
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: y\r\n\r\n{}"
    assert heads.answer(answer, len(answer) - 2, 2) == (200, {b"content-length": b"2", b"x": b"y"}, b"{}")  # fmt: skip
    assert heads.answer(answer, len(answer) - 3, 2) is None
    assert heads.answer(answer, len(answer) - 2, 1) is None
    assert heads.answer(answer.replace(b" OK", b""), 999, 9) is None
    body = b"x" * 12_345_678
    assert heads.request(PLAIN[:-7] + b"12345678\r\n\r\n" + body, 999, 9, 99)[3] == body
    assert heads.request(PLAIN[:-7] + b"1234567890\r\n\r\n" + body, 999, 9, 99) is None


@pytest.mark.parametrize(
    "line",
    [
        b"upgrade: h2c",
        b"Transfer-Encoding: identity",
        b"expect: 100-continue",
        b"proxy-connection: keep-alive",
        b"connection: close",
        b"connection: keep-alive, close",
        b"connection: keep-aliv",
        b"content-length: 1/",  # nine, if a slash were the digit before 0
        b"content-length: 0:",
        b"content-length: 9 ",
        b"content-length: 9\t",
        b"content-length: 009, 9",
    ],
)
@pytest.mark.parametrize("size", [9, 10])
def test_a_header_that_decides_how_a_message_is_read_is_left_unless_it_is_plain(line: bytes, size: int) -> None:  # fmt: skip
    """In a request and in an answer, whatever llhttp would make of it."""
    heads, rest = native.module("heads"), b"\r\n\r\n" + b"x" * size
    for message in (line, line + b"\r\ncontent-length: %d" % size):
        assert heads.request(b"POST /a HTTP/1.1\r\n" + HOST + message + rest, 999, 9, 99) is None
        assert heads.answer(b"HTTP/1.1 200 OK\r\n" + message + rest, 999, 9) is None


@pytest.mark.parametrize("size", [63, 64, 65])
def test_a_name_is_read_whole_or_not_at_all(size: int) -> None:
    read = native.module("heads").request(PLAIN.replace(HOST, HOST + b"n" * size + b": y\r\n"), 999, 9, 99)  # fmt: skip
    assert (read is None) == (size > 64)
    assert read is None or read[2][b"n" * size] == b"y"


@pytest.mark.parametrize("message", [PLAIN, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"])
def test_a_message_that_ends_anywhere_before_its_end_is_left(message: bytes) -> None:
    heads = native.module("heads")
    for end in range(len(message)):
        assert heads.request(message[:end], 999, 9, 99) is None
        assert heads.answer(message[:end], 999, 9) is None


# ---- answers


class Line:
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        self.is_aborted = self.is_paused = False

    def write(self, _: bytes) -> None: ...

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False


async def heard_by(compiled: Any, answers: list[list[bytes]]) -> list[Any]:
    """What comes of requests on one connection, each answered by some reads, as long as it is good for another."""
    idle: list[EngineConnection] = []
    sweeper, line, heard = Sweeper(60.0), Line(), []
    connection = EngineConnection(sweeper, idle.append, lambda _: None)
    connection._heads = compiled
    connection.connection_made(line)
    for reads in answers:
        idle.clear()
        response = connection.send(b"", b"", 5.0)
        for read in reads:
            if not line.is_aborted:
                connection.data_received(read)
            heard.append((response.status, connection.is_open, connection.deadline_s == math.inf, line.is_paused, response._is_complete))  # fmt: skip
        if not response._is_complete:
            connection.connection_lost(None)
        try:
            await response.begun()
            heard.append((response.status, response.headers, response.content_type, await response.read()))  # fmt: skip
        except UpstreamError as error:
            heard.append((error.kind, error.detail))
        response.release()
        heard.append((bool(idle), line.is_aborted))
        if not idle:
            break
    sweeper.stop()
    return heard


def compare_answers(compiled: Any, seeds: range | list[int]) -> None:
    async def main() -> None:
        for seed in seeds:
            chance = Random(seed)
            answers = [
                reads_of(chance, answer_of, 2 if chance.random() < 0.2 else 1) for _ in range(3)
            ]
            assert await heard_by(compiled, answers) == await heard_by(None, answers), (
                seed,
                answers,
            )

    asyncio.run(main())


@settings(max_examples=40, deadline=None)
@given(st.lists(SEEDS, min_size=30, max_size=30))
def test_whatever_an_engine_sends_is_read_in_one_way(seeds: list[int]) -> None:
    """And the connection is used again, or not, alike."""
    compare_answers(native.module("heads"), seeds)


@pytest.mark.parametrize(
    "odd",
    [
        b"HTTP/1.1 204 No\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 304 No\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 204 No\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 304 No\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 100 Go\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}{",
        b"HTTP/1.1 101 Other\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
)
@pytest.mark.parametrize("cut", [0, 9, 40])
def test_answers_with_rules_of_their_own_are_left_to_llhttp(odd: bytes, cut: int) -> None:
    heads, plain = native.module("heads"), b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno"
    answers = [[odd], [plain, odd], [odd[:cut], odd[cut:], plain], [plain]]

    async def main() -> None:
        assert heads.answer(plain, 999, 9) is not None
        assert heads.answer(odd, 999, 9) is None
        for first in range(len(answers)):
            said = [[read for read in reads if read] for reads in answers[first:]]
            assert await heard_by(heads, said) == await heard_by(None, said)

    asyncio.run(main())


# ---- what is sent, and what is wrong


@given(st.binary(), st.lists(st.tuples(st.binary(), st.binary())), st.binary())
def test_a_head_is_what_pythons_join_makes_of_it(first: bytes, headers: list[tuple[bytes, bytes]], last: bytes) -> None:  # fmt: skip
    joined = b"".join([first, *(b"%b: %b\r\n" % header for header in headers), last])
    assert native.module("heads").head(first, headers, last) == joined


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("request", (bytearray(PLAIN), 1, 1, 1)),
        ("request", (PLAIN.decode(), 1, 1, 1)),
        ("request", (PLAIN, 1, 1)),
        ("request", (PLAIN, 1, 1, 1, 1)),
        ("request", (PLAIN, "1", 1, 1)),
        ("request", (PLAIN, 1, None, 1)),
        ("request", (PLAIN, 1, 1, 1.0)),
        ("request", ()),
        ("answer", (memoryview(PLAIN), 1, 1)),
        ("answer", (PLAIN, 1)),
        ("answer", (PLAIN, 1, "1")),
        ("answer", ()),
        ("head", ("", [], b"")),
        ("head", (b"", (), b"")),
        ("head", (b"", [], "")),
        ("head", (b"", [])),
        ("head", (b"", [b"ab"], b"")),
        ("head", (b"", [[b"a", b"b"]], b"")),
        ("head", (b"", [(b"a",)], b"")),
        ("head", (b"", [(b"a", b"b", b"c")], b"")),
        ("head", (b"", [("a", b"b")], b"")),
        ("head", (b"", [(b"a", "b")], b"")),
        ("head", (b"", [(b"a", b"b"), None], b"")),
    ],
)
def test_arguments_of_other_types_are_refused(function: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        getattr(native.module("heads"), function)(*arguments)


def starve(call: Callable[[], Any], whole: Any) -> None:
    """Each allocation fails once: what comes is the answer, or that memory ran out."""
    memory = pytest.importorskip("_testcapi", reason="a Python without its tests' module")
    failures = 0
    for number in range(40):
        memory.set_nomemory(number, number + 1)
        try:
            got = call()
        except MemoryError:
            failures += 1
            continue
        finally:
            memory.remove_mem_hooks()
        assert got == whole
    assert failures


def test_where_memory_runs_out_that_is_said() -> None:
    heads = native.module("heads")
    answer = b"HTTP/1.1 599 OK\r\ncontent-length: 2\r\n\r\n{}"
    for call in (
        lambda: heads.request(PLAIN, 999, 9, 99),
        lambda: heads.answer(answer, 999, 9),
        lambda: heads.head(b"a", [(b"b", b"c")], b"d"),
    ):
        starve(call, call())
