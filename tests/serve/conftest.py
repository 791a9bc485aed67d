"""A node under test: the real gateway, driver and policy on a real port, over engines that fail on purpose."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
import uvloop

from polypod.cost.steptime import StepTime
from polypod.policy import Policy, PolicySettings, ServiceSettings
from polypod.policy.compiled import functions
from polypod.policy.events import ReplicaDown, ReplicaUp
from polypod.policy.lifecycle import Validator
from polypod.record import Line, Step
from polypod.serve.attempt import Desk
from polypod.serve.door import Door
from polypod.serve.engines.spec import Endpoint
from polypod.serve.gateway import Gateway
from polypod.serve.handover import Caches, make_handover_directory
from polypod.serve.http.front import Waits
from polypod.serve.listen import bind, serve
from polypod.serve.loop import Driver, Outlets
from polypod.serve.metrics import Metrics
from polypod.serve.upstream import Patience, Upstreams

MODEL = "tiny"
DONE = b"data: [DONE]\n\n"
Script = Callable[["Visit"], Awaitable[None]]


class Visit:
    """One request that an engine got, and the connection it can misuse."""

    def __init__(
        self, head: bytes, body: bytes, streams: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        self.head = head
        self.body = body
        self.reader, self.writer = streams
        self.was_left = asyncio.Event()  # by the gateway, before the answer was complete

    @property
    def is_stream(self) -> bool:
        return bool(json.loads(self.body).get("stream"))

    async def begin_stream(self, kind: str = "text/event-stream", status: str = "200 OK") -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
        self.writer.write(head.encode())
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await self.writer.drain()

    async def end_stream(self) -> None:
        self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()

    async def whole(self, body: bytes, status: str = "200 OK", extra: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{extra}content-length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()

    async def until_left(self) -> None:
        while await self.reader.read(1):
            pass
        self.was_left.set()

    def cut(self) -> None:
        self.writer.transport.abort()


def event(text: str) -> bytes:
    chunk = {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
    return b"data: " + json.dumps(chunk | _named("chat.completion.chunk")).encode() + b"\n\n"


def answer_body(text: str = "hello") -> bytes:
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return json.dumps(
        {"choices": choices, "usage": usage} | _named("chat.completion"), indent=1
    ).encode()


def _named(kind: str) -> dict[str, Any]:
    return {"id": "c-1", "object": kind, "created": 1, "model": MODEL}


def good(tokens: int = 3, gap_s: float = 0.0) -> Script:
    """Answer as asked, streamed or not."""

    async def play(visit: Visit) -> None:
        if not visit.is_stream:
            await asyncio.sleep(gap_s)
            await visit.whole(answer_body())
            return
        await visit.begin_stream()
        for number in range(tokens):
            await visit.chunk(event(f"t{number} "))
            if gap_s:
                await asyncio.sleep(gap_s)
        await visit.chunk(DONE)
        await visit.end_stream()

    return play


def status(line: str, body: bytes = b'{"error": {"message": "no"}}', extra: str = "") -> Script:
    async def play(visit: Visit) -> None:
        await visit.whole(body, line, extra)

    return play


def hang() -> Script:
    async def play(visit: Visit) -> None:
        await visit.until_left()

    return play


def cut_before_headers() -> Script:
    async def play(visit: Visit) -> None:
        visit.cut()

    return play


def cut_after(events: int, *, cleanly: bool, then: bytes = b"") -> Script:
    """Stream some events, or half an answer, and end: cleanly as if all was said, or by breaking the connection."""

    async def play(visit: Visit) -> None:
        if not visit.is_stream:
            head = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"
            )
            visit.writer.write(head)
            await visit.writer.drain()
            visit.cut()
            return
        await visit.begin_stream()
        for number in range(events):
            await visit.chunk(event(f"t{number} "))
        if then:
            await visit.chunk(then)
        await asyncio.sleep(0.02)
        if cleanly:
            await visit.end_stream()
        else:
            visit.cut()

    return play


def chunks(*parts: bytes, gap_s: float = 0.0) -> Script:
    """Stream these bytes, cut exactly so."""

    async def play(visit: Visit) -> None:
        await visit.begin_stream()
        for part in parts:
            await visit.chunk(part)
            await asyncio.sleep(gap_s)
        await visit.end_stream()

    return play


class FakeEngine:
    """An OpenAI engine on a Unix socket. Plays the scripts in order, one per request, then `good()` for ever."""

    def __init__(self, name: str, socket: Path, *scripts: Script) -> None:
        self.name = name
        self.socket = socket
        self.scripts = list(scripts)
        self.visits: list[Visit] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, path=str(self.socket))

    async def die(self) -> None:
        """Break all connections and refuse new ones."""
        if self._server is not None:
            self._server.close()
            for writer in tuple(self._writers):
                writer.transport.abort()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                visit = Visit(head, await reader.readexactly(length), (reader, writer))
                self.visits.append(visit)
                await (self.scripts.pop(0) if self.scripts else good())(visit)
        self._writers.discard(writer)
        writer.transport.abort()


class Node:
    """A running node, and a client's way in."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        door: Door | None = None,
        patience: Patience | None = None,
        **limits,
    ) -> None:
        self.settings = PolicySettings(
            services=(ServiceSettings(model=MODEL, context_tokens=4096),), **limits
        )
        self.lines: list[Line] = []
        self.policy = Policy(self.settings, seed=0, compiled=functions())
        self.driver = Driver(self.policy, Outlets(write=self.lines.append))
        self.metrics = Metrics([MODEL])
        self.upstreams = Upstreams(patience or Patience())
        self.caches = Caches(make_handover_directory())
        self.gateway = Gateway(
            [MODEL],
            Desk(
                driver=self.driver,
                upstreams=self.upstreams,
                metrics=self.metrics,
                caches=self.caches,
            ),
            door,
            foresight=self.policy.foresight,
        )
        self.listener = bind("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.stop = asyncio.Event()
        self._tmp_path = tmp_path
        self._engines: list[FakeEngine] = []
        self._epochs: dict[str, int] = {}

    async def engine(self, name: str, *scripts: Script, **up: Any) -> FakeEngine:
        """Start an engine and tell the node of it."""
        engine = FakeEngine(name, self._tmp_path / f"{name}.sock", *scripts)
        await engine.start()
        self._engines.append(engine)
        self.attach(engine, **up)
        return engine

    def attach(
        self,
        engine: FakeEngine,
        *,
        secret: str | None = None,
        step_s: float = 0.01,
        keeps_connections: bool = True,
        role: str = "both",
        slots: int = 256,
        build: str = "",
    ) -> None:
        self._epochs[engine.name] = self._epochs.get(engine.name, 0) + 1
        step = StepTime(tokens=(1, 100), seconds=(step_s, 2 * step_s), kv_token_s=0.0, pair_s=0.0)
        up = ReplicaUp(
            at_s=self.driver.now_s(),
            replica=engine.name,
            epoch=self._epochs[engine.name],
            model=MODEL,
            pool="main",
            role=role,
            step_time=step,
            context_tokens=4096,
            kv_capacity_tokens=10**6,
            max_sequences=slots,
            max_step_tokens=512,
            kv_token_bytes=4.0,
            kv_link_bytes_per_s=1e9,
        )
        if role != "both":
            self.caches.slots.attach(up.replica, up.epoch, slots)
        endpoint = Endpoint(
            socket=engine.socket,
            secret=secret,
            keeps_connections=keeps_connections,
            build=build,
        )
        self.driver.attach(up, endpoint)

    def tell_down(self, name: str) -> None:
        at_s, epoch = self.driver.now_s(), self._epochs[name]
        self.driver.tell(ReplicaDown(at_s=at_s, replica=name, epoch=epoch, reason="it died"))

    async def close(self) -> None:
        for engine in self._engines:
            await engine.die()
        self.caches.close()

    @property
    def steps(self) -> list[Step]:
        return [line for line in self.lines if isinstance(line, Step)]

    def told(self, kind: type) -> list[Any]:
        return [step.event for step in self.steps if isinstance(step.event, kind)]

    def answered(self, kind: type) -> list[Any]:
        return [
            action for step in self.steps for action in step.actions if isinstance(action, kind)
        ]


def ask(stream: bool = False, **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": stream,
    } | more


async def texts(response: aiohttp.ClientResponse) -> tuple[list[str], list[dict[str, Any]], bool]:
    """What a client reads of a stream: the texts, the errors, and whether it was told that this is all."""
    said, errors, is_done = [], [], False
    async for raw in response.content:
        line = raw.strip()
        if line == b"data: [DONE]":
            is_done = True
        elif line:
            data = json.loads(line.removeprefix(b"data: "))
            if "error" in data:
                errors.append(data["error"])
            else:
                said.append(data["choices"][0]["delta"]["content"])
    return said, errors, is_done


@asynccontextmanager
async def running(
    tmp_path: Path, *, grace_s: float = 0.3, waits: Waits | None = None, **settings: Any
) -> AsyncIterator[tuple[Node, aiohttp.ClientSession]]:
    """A node that serves, and a client of it."""
    node = Node(tmp_path, **settings)
    serving = asyncio.create_task(
        serve(node.gateway, node.listener, node.stop, grace_s=grace_s, waits=waits)
    )
    async with aiohttp.ClientSession(node.url, connector=aiohttp.TCPConnector(limit=0)) as client:
        try:
            yield node, client
        finally:
            node.stop.set()
            await serving
            node.driver.stop()
            await node.upstreams.close()
            await node.close()


def run(
    tmp_path: Path,
    test: Callable[[Node, aiohttp.ClientSession], Awaitable[None]],
    **settings: Any,
) -> Node:
    """Run an `async def test(node, client)` against a running node; hand back what is left of the node.

    Whatever the test was about, the books must agree, nothing be left in flight, and the record be legal and replay.
    """

    async def main() -> Node:
        async with running(tmp_path, **settings) as (node, client):
            await test(node, client)
        return node

    node = uvloop.run(main())
    node.policy.check()
    validator, fresh = Validator(), Policy(node.settings, seed=0)
    for step in node.steps:
        validator.feed(step.event, step.actions)
        assert fresh.handle(step.event) == step.actions
    assert validator.open == {}
    assert node.driver._takers == {}  # a request that is over is forgotten
    room = node.gateway.room
    assert (room.connections, room.body_bytes) == (0, 0)
    return node


@pytest.fixture
def lab() -> ModuleType:
    """This module, for tests to take what they need."""
    return sys.modules[__name__]


def only(items: Iterable[Any]) -> Any:
    (item,) = items
    return item
