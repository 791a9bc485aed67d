"""Streams from socket to socket in C: every byte once and in order, to its own client, whatever ends them."""

import asyncio
import errno
import gc
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.engine.native.build import compiler, has_headers
from polypod.serve.http import native
from polypod.serve.http.relays import Relays
from polypod.serve.sse import EventStream

pytestmark = pytest.mark.skipif(
    not (compiler() and has_headers()), reason="no C compiler, or no headers"
)
EVENT = b'data: {"x": 1}\n\n'


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)


class Stream:
    """A relay between two pairs of sockets, of which a test has the outer ends."""

    def __init__(self, poller: Any, client: socket.socket | None = None) -> None:
        self.engine, self.engine_inside = socket.socketpair()
        self.outside, self.client = socket.socketpair() if client is None else (None, client)
        self.stops: list[tuple[bytes | None, bytes]] = []
        self.then = lambda: None
        self.relay = poller.relay(self.engine_inside.fileno(), self.client.fileno(), self.stopped)
        for one in (self.outside, self.client, self.engine_inside):
            if one is not None:
                one.setblocking(False)

    def stopped(self, raw: bytes | None, unsent: bytes) -> None:
        self.stops.append((raw, unsent))
        self.then()

    def taken(self) -> bytes:
        """What has come to the client."""
        parts = []
        while True:
            try:
                parts.append(self.outside.recv(1 << 20))
            except BlockingIOError:
                return b"".join(parts)
            if not parts[-1]:
                return b"".join(parts)

    def close(self) -> None:
        self.then = None
        for one in (self.engine, self.engine_inside, self.outside, self.client):
            if one is not None:
                one.close()


class Bench:
    """A poller, and streams that are closed when the test is over."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.poller = compiled.Poller()
        self.streams: list[Stream] = []

    def stream(self, **more: Any) -> Stream:
        self.streams.append(Stream(self.poller, **more))
        return self.streams[-1]

    def close(self) -> None:
        self.poller.close()
        for stream in self.streams:
            stream.close()
        self.streams.clear()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(native.module("relay"))
    yield made
    made.close()


# ---- what passes, and what is handed back


@pytest.mark.parametrize(
    "parts",
    [
        (EVENT,),
        (EVENT, EVENT + EVENT),
        (EVENT[:5], EVENT[5:]),
        (b": a word\n\n",),
        (b"data: x\r\n\r\n",),
        (b"\n\n",),
        (b"data: " + b"x" * 60_000 + b"\n\n",),
        (b"x\n\n",) * 512,
        (b"\r\n\r\n", b"5\r\n\n\n"),
    ],
)
def test_whole_chunks_of_whole_events_go_on_as_one_chunk(bench: Bench, parts: tuple[bytes, ...]) -> None:  # fmt: skip
    stream = bench.stream()
    stream.engine.send(chunked(*parts))
    bench.poller()

    assert stream.taken() == chunked(b"".join(parts))
    assert stream.relay.last == [b"".join(parts)]
    assert stream.relay.events == b"".join((b"\n", *parts)).count(b"\ndata:")
    assert (stream.stops, stream.relay.runs) == ([], 1)


@pytest.mark.parametrize("size", [b"10", b"010", b"0000010"])
def test_a_size_may_have_zeros_and_letters_of_both_kinds(bench: Bench, size: bytes) -> None:
    stream, data = bench.stream(), b"x" * 169 + b"\n\n"
    stream.engine.send(
        size + b"\r\n" + EVENT + b"\r\nAb\r\n" + data + b"\r\naB\r\n" + data + b"\r\n"
    )
    bench.poller()
    assert stream.taken() == chunked(EVENT + data + data)


ODD = {
    "an extension": b"10;a=b\r\n" + EVENT + b"\r\n",
    "the last chunk": b"0\r\n\r\n",
    "the last chunk and one more": b"0\r\n\r\n" + chunked(EVENT),
    "a line's end": chunked(b"\r\n"),
    "an event and the last chunk": chunked(EVENT) + b"0\r\n\r\n",
    "half a chunk": chunked(EVENT)[:-3],
    "a chunk without its last byte": chunked(EVENT)[:-1],
    "a chunk and the beginning of one": chunked(EVENT) + b"1",
    "half an event": chunked(EVENT[:-1]),
    "half an event at the end": chunked(EVENT, EVENT[:-1]),
    "an end over two chunks": chunked(EVENT[:-1], b"\n"),
    "one line feed": chunked(b"\n"),
    "two carriage returns": chunked(b"x\r\r"),
    "a carriage return between": chunked(b"\n\r\n"),
    "no size": b"\r\n" + EVENT + b"\r\n",
    "no hexadecimal size": b"g\r\n" + EVENT + b"\r\n",
    "a sign": b"+10\r\n" + EVENT + b"\r\n",
    "a prefix": b"0x10\r\n" + EVENT + b"\r\n",
    "a space": b"10 \r\n" + EVENT + b"\r\n",
    "a size of eight digits": b"00000010\r\n" + EVENT + b"\r\n",
    "a size past all memory": b"fffffffffffffffff\r\n" + EVENT + b"\r\n",
    "a size one too large": b"11\r\n" + EVENT + b"\r\n",
    "a size one too small": b"f\r\n" + EVENT + b"\r\n",
    "a line feed after the size": b"10\n" + EVENT + b"\r\n",
    "another byte after the size": b"10\rx" + EVENT + b"\r\n",
    "another byte for it": b"10x\n" + EVENT + b"\r\n",
    "another byte after the data": b"10\r\n" + EVENT + b"\rx",
    "another for it": b"10\r\n" + EVENT + b"x\n",
    "more chunks than are looked at": chunked(*[b"\n\n"] * 513),
}


@pytest.mark.parametrize("what", ODD)
def test_anything_else_is_handed_back_as_it_came(bench: Bench, what: str) -> None:
    stream = bench.stream()
    stream.engine.send(chunked(EVENT))
    bench.poller()
    stream.engine.send(ODD[what])
    bench.poller()
    stream.engine.send(chunked(EVENT))  # stays where it is
    bench.poller()

    assert stream.stops == [(ODD[what], b"")]
    assert (stream.taken(), stream.relay.events, stream.relay.last) == (chunked(EVENT), 1, [EVENT])
    assert stream.relay.runs == 0
    assert stream.engine_inside.recv(999) == chunked(EVENT)


@pytest.mark.parametrize("end", ["closed", "broken", "shut"])
def test_the_end_of_an_engine_is_for_others_to_see(bench: Bench, end: str) -> None:
    stream = bench.stream()
    if end == "broken":
        stream.engine_inside.send(b"which nobody reads")
    stream.engine.send(chunked(EVENT))
    bench.poller()
    stream.engine.shutdown(socket.SHUT_WR) if end == "shut" else stream.engine.close()
    for _ in range(3):
        bench.poller()

    assert stream.stops == [(b"", b"")]
    if end == "broken":
        with pytest.raises(ConnectionResetError):
            stream.engine_inside.recv(1)
    assert stream.engine_inside.recv(1) == b""


def test_the_last_three_parts_are_kept_and_when_the_last_one_came(bench: Bench) -> None:
    stream, parts = (
        bench.stream(),
        [b"data: %b\n\n" % (b"x" * size) for size in (9, 1, 5000, 10, 7)],
    )
    assert (stream.relay.last, stream.relay.last_s) == ([], 0.0)
    for number, part in enumerate(parts, 1):
        stream.engine.send(chunked(part))
        before_s = time.monotonic()
        bench.poller()
        assert stream.relay.last == parts[max(0, number - 3) : number]
        assert before_s <= stream.relay.last_s <= time.monotonic()
        assert stream.relay.events == number


# ---- any stream, cut anywhere


def stream_of(chance: Random) -> list[bytes]:
    """Reads of a stream of events: most are whole chunks of whole events."""
    made = [*(event_of(chance) for _ in range(chance.randrange(1, 12))), b"data: [DONE]\n\n"]
    wire = b""
    for event in made:
        cut = chance.randrange(len(event)) if chance.random() < 0.1 else 0
        for part in (event[:cut], event[cut:]):
            size = chance.choice((b"%x", b"%x", b"%X", b"0%x", b"%06x")) % len(part)
            extension = b";a=1" if chance.random() < 0.05 else b""
            wire += size + extension + b"\r\n" + part + b"\r\n" if part else b""
        if chance.random() < 0.7:
            wire += b"|"
    reads = [read for read in (wire + b"|0\r\n\r\n").split(b"|") if read]
    for number, read in enumerate(reads):
        if chance.random() < 0.1:
            at = chance.randrange(len(read))
            reads[number : number + 1] = [one for one in (read[:at], read[at:]) if one]
    return reads


def event_of(chance: Random) -> bytes:
    end = chance.choice((b"\n\n", b"\n\n", b"\r\n\r\n"))
    text = chance.choice((b"a", b"data: b", b"\\n\\n", b"z" * chance.choice((10, 300, 9000))))
    kinds = (
        b'data: {"choices": [{"delta": {"content": "%b"}}]}' % text,
        b": a word",
        b"event: x\ndata: " + text,
        b'data: {"choices": [], "usage": {"completion_tokens": 7}}',
    )
    return chance.choice((kinds[0], kinds[0], *kinds)) + end


def compare_stream(compiled: Any, seed: int) -> None:
    """The client gets all that was passed, what was not is handed back, and a stream of events knows what it would have known."""
    bench, chance = Bench(compiled), Random(seed)
    try:
        stream, sent = bench.stream(), []
        for read in stream_of(chance):
            sent.append(read)
            stream.engine.send(read)
            bench.poller()
            if stream.stops:
                break
        relay, raw = stream.relay, stream.stops[0][0] if stream.stops else b""
        passed = sent[: len(sent) - bool(raw)]
        assert b"".join(passed) + raw == b"".join(sent), seed
        assert stream.taken() == b"".join(chunked(decoded(read)) for read in passed), seed
        plain, mixed = EventStream(), EventStream()
        for events in (plain, mixed):
            events.feed(EVENT)
        for read in passed:
            assert plain.feed(decoded(read)) == decoded(read), seed
        mixed.passed(relay.events, relay.last)
        assert known(plain) == known(mixed), seed
    finally:
        bench.close()


def decoded(wire: bytes) -> bytes:
    """The data of whole chunks."""
    data = b""
    while wire:
        line, wire = wire.split(b"\r\n", 1)
        size = int(line, 16)
        data += wire[:size]
        assert wire[size : size + 2] == b"\r\n"
        wire = wire[size + 2 :]
    return data


def known(events: EventStream) -> tuple[Any, ...]:
    return events.events, list(events._last), events.usage(), events.is_done, events.is_between


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 40))
def test_of_any_stream_every_byte_is_passed_or_handed_back(seed: int) -> None:
    compare_stream(native.module("relay"), seed)


# ---- clients


def test_what_a_client_does_not_take_is_handed_back_framed(bench: Bench) -> None:
    stream, event = bench.stream(), b"data: " + b"x" * 3000 + b"\n\n"
    stream.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    wanted = b""
    while not stream.stops:
        stream.engine.send(chunked(event, event))
        wanted += chunked(event + event)
        bench.poller()
    ((raw, unsent),) = stream.stops

    assert raw == b""
    assert unsent
    assert stream.taken() + unsent == wanted
    assert stream.relay.events == wanted.count(b"data: ")


def test_a_client_that_has_gone_stops_its_stream(bench: Bench) -> None:
    stream = bench.stream()
    stream.outside.close()
    stream.engine.send(chunked(EVENT))
    bench.poller()

    assert stream.stops == [(b"", chunked(EVENT))]


def test_nothing_is_written_to_a_socket_that_has_anothers_number(bench: Bench) -> None:
    stream = bench.stream()
    far, near = socket.socketpair()
    far.setblocking(False)
    os.dup2(near.fileno(), stream.client.fileno())  # closes the client's, and takes its number
    stream.engine.send(chunked(EVENT))
    bench.poller()

    assert stream.stops == [(chunked(EVENT), b"")]
    with pytest.raises(BlockingIOError):
        far.recv(1)
    far.close()
    near.close()


def test_nothing_is_read_from_a_socket_that_has_anothers_number(bench: Bench) -> None:
    """The kernel may still tell of the first one, if somebody else has it open."""
    stream, far, near = bench.stream(), *socket.socketpair()
    kept = os.dup(stream.engine_inside.fileno())
    os.dup2(near.fileno(), stream.engine_inside.fileno())
    far.send(chunked(EVENT))
    bench.poller()
    assert (stream.stops, stream.relay.runs) == ([], 1)
    stream.engine.send(chunked(EVENT))
    for _ in range(3):
        bench.poller()

    assert stream.stops == [(b"", b"")]
    assert near.recv(999) == chunked(EVENT)
    assert stream.taken() == b""
    for number in (far, near):
        number.close()
    os.close(kept)


def test_a_relay_that_stops_late_leaves_the_one_that_has_its_number_alone(bench: Bench) -> None:
    stream, other, far, near = bench.stream(), bench.stream(), *socket.socketpair()
    os.dup2(near.fileno(), stream.engine_inside.fileno())
    number, client = stream.engine_inside.fileno(), other.client.fileno()
    relay = bench.poller.relay(number, client, print)
    stream.relay.stop()
    far.send(chunked(EVENT))
    bench.poller()

    assert (other.taken(), relay.runs) == (chunked(EVENT), 1)
    relay.stop()
    far.close()
    near.close()


def test_a_relay_that_was_stopped_lets_go_of_who_was_to_be_told(bench: Bench) -> None:
    stream, told = bench.stream(), Bench.close
    before = sys.getrefcount(told)
    other = bench.poller.relay(stream.client.fileno(), stream.engine_inside.fileno(), told)
    assert sys.getrefcount(told) == before + 1
    other.stop()
    assert sys.getrefcount(told) == before


def test_a_relay_the_kernel_still_knows_is_not_freed(bench: Bench) -> None:
    stream = bench.stream()
    kept = os.dup(stream.engine_inside.fileno())
    stream.engine_inside.close()
    stream.relay.stop()
    stream.relay = None
    assert len(alive(bench)) == 1
    stream.engine.send(chunked(EVENT))
    for _ in range(3):
        bench.poller()

    assert (stream.stops, stream.taken()) == ([], b"")
    bench.poller.close()
    assert alive(bench) == []
    os.close(kept)


def alive(bench: Bench) -> list[Any]:
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, bench.compiled.Relay)]


# ---- many, and what they do to each other


def test_two_hundred_streams_pass_at_once(bench: Bench) -> None:
    streams = [bench.stream() for _ in range(200)]
    wanted = [b"data: %d\n\n" % number for number in range(200)]
    for _ in range(3):
        for stream, event in zip(streams, wanted, strict=True):
            stream.engine.send(chunked(event))
        bench.poller()
        bench.poller()  # it looks at 128 in one go

    assert [stream.taken() for stream in streams] == [3 * chunked(event) for event in wanted]
    assert not any(stream.stops for stream in streams)


def test_a_stream_that_stops_may_stop_all_others_and_loses_nothing_of_theirs(bench: Bench) -> None:
    streams = [bench.stream() for _ in range(20)]

    def stop_all() -> None:
        for stream in streams:
            stream.relay.stop()

    for number, stream in enumerate(streams):
        stream.then = stop_all
        stream.engine.send(b"odd" if number % 2 else chunked(EVENT) + b"odd")
    bench.poller()
    bench.poller()

    assert sum(len(stream.stops) for stream in streams) == 1
    for stream in streams:
        left = b"" if stream.stops else stream.engine_inside.recv(999)
        assert (stream.stops[0][0] if stream.stops else left).endswith(b"odd")
        assert (stream.taken(), stream.relay.runs) == (b"", 0)


def test_a_stream_that_stops_may_let_go_of_all_others(bench: Bench) -> None:
    streams = [bench.stream() for _ in range(20)]

    def forget_all() -> None:
        for stream in streams:
            stream.relay.stop()
            stream.relay = None
        gc.collect()

    for stream in streams:
        stream.then = forget_all
        stream.engine.send(b"odd")
    bench.poller()

    assert sum(len(stream.stops) for stream in streams) == 1
    assert alive(bench) == []


def test_a_stream_that_stops_may_close_the_poller_or_call_it(bench: Bench) -> None:
    first, second, third = (bench.stream() for _ in range(3))
    for stream in (first, second, third):
        stream.engine.send(b"odd")
        stream.then = bench.poller
    bench.poller()
    assert [stream.stops for stream in (first, second, third)] == [[(b"odd", b"")]] * 3

    streams = [bench.stream() for _ in range(3)]
    for stream in streams:
        stream.engine.send(b"odd")
        stream.then = bench.poller.close
    bench.poller()
    assert sum(len(stream.stops) for stream in streams) == 1
    assert bench.poller.fileno() == -1


def test_an_exception_of_one_is_told_of_and_the_others_are_served(bench: Bench, monkeypatch) -> None:  # fmt: skip
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_type))
    streams = [bench.stream() for _ in range(3)]
    for stream in streams:
        stream.then = lambda: 1 // 0
        stream.engine.send(b"odd")
    bench.poller()

    assert told == [ZeroDivisionError] * 3
    assert [stream.stops for stream in streams] == [[(b"odd", b"")]] * 3


def test_a_closed_poller_has_stopped_all_and_begins_none(bench: Bench) -> None:
    streams = [bench.stream() for _ in range(5)]
    number = bench.poller.fileno()
    bench.poller.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)
    for stream in streams:
        stream.engine.send(chunked(EVENT))
    bench.poller()
    bench.poller.close()

    assert [(stream.relay.runs, stream.stops, stream.taken()) for stream in streams] == [(0, [], b"")] * 5  # fmt: skip
    with pytest.raises(OSError, match="Bad file"):
        bench.poller.relay(streams[0].engine_inside.fileno(), streams[0].client.fileno(), print)
    streams[0].relay.stop()
    assert streams[0].relay.last == []


def test_what_is_no_socket_is_refused(bench: Bench) -> None:
    stream, relay = bench.stream(), bench.poller.relay
    file = os.open("/dev/null", os.O_RDONLY)
    one, other = stream.engine_inside.fileno(), stream.client.fileno()
    for engine, client in ((file, other), (one, file), (-1, other), (one, -1)):
        with pytest.raises(OSError, match=r".+"):
            relay(engine, client, print)
    with pytest.raises(OSError, match="File exists") as caught:  # it has a relay
        relay(one, other, print)
    assert caught.value.errno == errno.EEXIST
    for arguments in (
        (one, other),
        (one, other, None),
        ("1", other, print),
        (1 << 40, other, print),
    ):
        with pytest.raises((TypeError, OverflowError)):
            relay(*arguments)
    with pytest.raises(TypeError):
        bench.compiled.Poller(1)
    with pytest.raises(TypeError):
        bench.compiled.Relay()
    os.close(file)
    assert len(alive(bench)) == 1


def churn(bench: Bench, number: int) -> None:
    """Streams that begin, pass something and end in one of five ways."""
    for turn in range(number):
        stream = bench.stream()
        stream.engine.send(chunked(EVENT, EVENT))
        bench.poller()
        assert stream.taken() == chunked(EVENT + EVENT)
        match turn % 5:
            case 0:
                stream.relay.stop()
            case 1:
                stream.engine.close()
            case 2:
                stream.engine.send(b"odd")
            case 3:
                stream.outside.close()
                stream.engine.send(chunked(EVENT))
            case _:
                bench.poller.close()
                bench.poller = bench.compiled.Poller()
        bench.poller()
        assert stream.relay.last[0] == EVENT + EVENT
        stream.close()
        bench.streams.clear()


def test_a_thousand_streams_leave_nothing_behind(bench: Bench) -> None:
    churn(bench, 20)
    kept = counted(bench)
    churn(bench, 1000)
    after = counted(bench)
    assert after[:3] == kept[:3]
    assert after[3] - kept[3] < 100
    assert after[4] - kept[4] < 100


def counted(bench: Bench) -> tuple[int, ...]:
    """Descriptors, relays and pollers, references to their types; blocks of memory, and references to what is handed back."""
    gc.collect()
    types = (bench.compiled.Relay, bench.compiled.Poller)
    own = sum(isinstance(one, types) for one in gc.get_objects())
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    references = sum(map(sys.getrefcount, types))
    often = sys.getrefcount(b"") + sys.getrefcount(None)
    return descriptors, own, references, often, sys.getallocatedblocks()


def test_a_poller_that_nobody_has_any_more_goes_with_its_streams() -> None:
    compiled = native.module("relay")
    before = len(list(Path("/proc/self/fd").iterdir()))
    stream = Stream(compiled.Poller())
    stream.then = stream  # a ring, through `on_stop`
    outer = [stream.engine, stream.outside]
    inner = [stream.engine_inside, stream.client]
    del stream
    gc.collect()

    assert [one for one in gc.get_objects() if isinstance(one, compiled.Relay)] == []
    for one in outer + inner:
        one.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_where_memory_runs_out_nothing_is_lost_in_silence(bench: Bench, monkeypatch) -> None:
    """It is said that some is, or, where even that took memory, that it could not be said; the engine's silence then ends the stream."""
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(args.exc_type))
    memory = pytest.importorskip("_testcapi", reason="a Python without its tests' module")
    event, lost = b"data: " + b"x" * 3000 + b"\n\n", 0
    for sent in (chunked(event), chunked(event) + b"odd", None):
        for number in range(6):
            stream = bench.stream()
            wanted = sent or chunked(event)
            if sent is None:
                stream.outside.close()
            stream.engine.send(wanted)
            poller = bench.poller
            memory.set_nomemory(number, number + 1)
            try:
                poller()
            finally:
                memory.remove_mem_hooks()
            if told:
                assert (told.pop(), stream.stops, stream.relay.runs) == (MemoryError, [], 0)
                continue
            got = b"" if sent is None else stream.taken()
            for raw, unsent in stream.stops:
                lost += raw is None
                got = wanted if raw is None else got + raw + unsent
            assert got == wanted, (sent, number)
    assert lost >= 4


def test_a_client_that_has_half_a_chunk_and_will_not_get_the_rest_is_cut(bench: Bench) -> None:
    memory = pytest.importorskip("_testcapi", reason="a Python without its tests' module")
    stream, event = bench.stream(), b"data: " + b"x" * 3000 + b"\n\n"
    stream.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for _ in range(3):  # those that are kept have their room
        stream.engine.send(chunked(event))
        bench.poller()
        stream.taken()
    while not stream.stops:
        stream.engine.send(chunked(event))
        memory.set_nomemory(0, 1)
        try:
            bench.poller()
        finally:
            memory.remove_mem_hooks()

    assert stream.stops == [(None, b"")]
    stream.taken()
    assert stream.outside.recv(1) == b""


def test_without_the_module_nothing_is_relayed(monkeypatch) -> None:
    monkeypatch.setattr(native, "module", lambda _: None)
    relays = Relays()
    assert relays.begin(Line(), 0, print) is None  # type: ignore[arg-type]
    relays.close()


class Line:
    """An engine's transport, of a socket that is none, or said to be under TLS."""

    def __init__(self, *, is_secret: bool = False) -> None:
        self._has = {"sslcontext": self if is_secret else None, "socket": self}

    def get_extra_info(self, name: str) -> Any:
        return self._has[name]

    def fileno(self) -> int:
        return -1


class Full:
    """The module, where no descriptor is left."""

    @staticmethod
    def Poller() -> None:
        raise OSError(errno.EMFILE, "none left")


def test_without_a_descriptor_nothing_is_relayed(monkeypatch) -> None:
    monkeypatch.setattr(native, "module", lambda _: Full)
    assert Relays().begin(Line(), 0, print) is None  # type: ignore[arg-type]


def test_a_socket_that_is_closed_is_not_relayed_nor_one_under_tls() -> None:
    async def main() -> None:
        relays = Relays()
        assert relays.begin(Line(is_secret=True), 0, print) is None  # type: ignore[arg-type]
        assert relays._poller is None
        assert relays.begin(Line(), 0, print) is None  # type: ignore[arg-type]
        poller = relays._poller
        assert poller.fileno() >= 0
        relays.close()
        assert poller.fileno() == -1
        relays.close()

    asyncio.run(main())
