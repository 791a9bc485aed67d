"""What the gateway costs, beside the bare engine in the same run.

    python bench/gateway.py

Three processes: an engine that answers at once (a raw uvloop protocol, no HTTP library), the gateway as `polypod up` runs
it, with one replica, and a client over raw sockets. Client and engine share core 0, the gateway has core 1 to itself where
there are two. Latency is taken at the client; the gateway's own price is the user and system time of its process, which
other load on the machine disturbs least. Bounded: about 30 s.
"""

import asyncio
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from polypod.cost.steptime import StepTime
from polypod.policy import Policy, PolicySettings, ServiceSettings
from polypod.policy.actions import AnyAction
from polypod.policy.compiled import functions
from polypod.policy.events import AnyEvent, ReplicaUp
from polypod.serve.attempt import Desk
from polypod.serve.engines.spec import Endpoint
from polypod.serve.gateway import Gateway
from polypod.serve.listen import bind, serve
from polypod.serve.loop import Driver, Outlets
from polypod.serve.metrics import Metrics
from polypod.serve.upstream import Patience, Upstreams

MODEL = "tiny"
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
DONE = b"data: [DONE]\n\n"
ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"%s"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":'
    b'40,"total_tokens":49}}' % (b"word " * 40)
)
BURST_CHUNKS = 64
PACED_CHUNKS = 20
PACE_S = 0.020


@dataclass(frozen=True)
class Load:
    """One row of the table: what is asked, by how many at once, how often."""

    name: str
    kind: str  # json, burst or paced
    clients: int
    requests: int
    chunks: int = 0


LOADS = (
    Load("JSON, 1 client", "json", 1, 1500),
    Load("JSON, 16 clients", "json", 16, 6000),
    Load("64 chunks at once, 1 client", "burst", 1, 300, BURST_CHUNKS),
    Load("64 chunks at once, 16 clients", "burst", 16, 1000, BURST_CHUNKS),
    Load("20 chunks 20 ms apart, 16 clients", "paced", 16, 160, PACED_CHUNKS),
    Load("20 chunks 20 ms apart, 64 clients", "paced", 64, 640, PACED_CHUNKS),
)


# ---- the engine


class Engine(asyncio.Protocol):
    """Answers what the `user` key asks for. One request at a time per connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]) if blank else 1
        if len(body) >= length:
            self._received = b""
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        if b'"json"' in body:
            head = (
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            )
            self._transport.write(head % len(ANSWER) + ANSWER)
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        if b'"burst"' in body:
            for _ in range(BURST_CHUNKS):
                self._chunk(EVENT)
            self._end()
        else:
            self._paced(PACED_CHUNKS)

    def _paced(self, left: int) -> None:
        if not left:
            self._end()
            return
        self._chunk(EVENT)
        asyncio.get_running_loop().call_later(PACE_S, self._paced, left - 1)

    def _chunk(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _end(self) -> None:
        self._chunk(DONE)
        self._transport.write(b"0\r\n\r\n")


def run_engine(path: str, core: int, ready: Connection) -> None:
    """The engine's process: on a Unix socket for the gateway, on TCP for the client."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (
            await loop.create_unix_server(Engine, path),
            await loop.create_server(Engine, "127.0.0.1", 0) as server,
        ):
            ready.send(server.sockets[0].getsockname()[1])
            await asyncio.Event().wait()

    os.sched_setaffinity(0, {core})
    uvloop.run(main())


# ---- the gateway


class Timed:
    """A policy, and the seconds spent in it."""

    def __init__(self, policy: Policy) -> None:
        self.spent_s = 0.0
        self._policy = policy

    def handle(self, event: AnyEvent) -> Sequence[AnyAction]:
        began_s = time.perf_counter()
        actions = self._policy.handle(event)
        self.spent_s += time.perf_counter() - began_s
        return actions


def run_gateway(path: str, core: int, ready: Connection) -> None:
    """The gateway's process; answers every message with its CPU seconds so far, and those in the policy."""

    async def main() -> None:
        lines = []
        settings = PolicySettings(services=(ServiceSettings(model=MODEL, context_tokens=4096),))
        policy = Timed(Policy(settings, compiled=functions()))
        driver = Driver(policy, Outlets(write=lines.append))
        upstreams, metrics = Upstreams(Patience()), Metrics([MODEL])
        gateway = Gateway([MODEL], Desk(driver=driver, upstreams=upstreams, metrics=metrics))
        listener = bind("127.0.0.1", 0)
        driver.attach(replica_up(driver.now_s()), Endpoint(socket=Path(path)))

        def tell_times() -> None:
            ready.recv()
            lines.clear()
            ready.send((time.process_time(), policy.spent_s))

        asyncio.get_running_loop().add_reader(ready.fileno(), tell_times)
        ready.send(listener.getsockname()[1])
        await serve(gateway, listener, asyncio.Event())

    os.sched_setaffinity(0, {core})
    uvloop.run(main())


def replica_up(at_s: float) -> ReplicaUp:
    return ReplicaUp(
        at_s=at_s,
        replica="a",
        epoch=1,
        model=MODEL,
        pool="main",
        role="both",
        step_time=StepTime(tokens=(1, 100), seconds=(1e-3, 2e-3), kv_token_s=0.0, pair_s=0.0),
        context_tokens=4096,
        kv_capacity_tokens=10**7,
        max_sequences=1024,
        max_step_tokens=512,
    )


# ---- the client


class Client(asyncio.Protocol):
    """Keeps one connection, and asks again when an answer is complete."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._done: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        if not self._tail:
            self.first_s = time.perf_counter()
            if not data.startswith(b"HTTP/1.1 200 "):
                self._done.set_exception(RuntimeError(data.decode()))
                return
        self._tail = (self._tail + data)[-len(ANSWER) :]
        if self._tail.endswith(self._end):
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or EOFError("the connection was closed"))

    async def ask(self, request: bytes, end: bytes) -> tuple[float, float]:
        """Seconds to the first byte and to the last."""
        self._tail, self._end, self.first_s = b"", end, 0.0
        self._done = asyncio.get_running_loop().create_future()
        sent_s = time.perf_counter()
        self._transport.write(request)
        await self._done
        return self.first_s - sent_s, time.perf_counter() - sent_s


def request_of(load: Load) -> tuple[bytes, bytes]:
    is_stream = b"false" if load.kind == "json" else b"true"
    body = b'{"model":"tiny","messages":[{"role":"user","content":"How far is it?"}],"stream":%s,"user":"%s"}'
    body %= (is_stream, load.kind.encode())
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body, ANSWER if load.kind == "json" else b"0\r\n\r\n"


async def play(load: Load, port: int) -> list[tuple[float, float]]:
    """Closed loop: each client asks again as soon as it has its answer."""
    request, end = request_of(load)
    loop = asyncio.get_running_loop()

    async def one() -> list[tuple[float, float]]:
        transport, client = await loop.create_connection(Client, "127.0.0.1", port)
        times = [await client.ask(request, end) for _ in range(load.requests // load.clients)]
        transport.close()
        return times

    parts = await asyncio.gather(*(one() for _ in range(load.clients)))
    return [times for part in parts for times in part]


# ---- the table


@dataclass(frozen=True)
class Row:
    load: Load
    direct: list[tuple[float, float]]
    through: list[tuple[float, float]]
    cpu_s: float  # of the gateway, per request
    policy_s: float  # of those, in the policy


def shown(times: list[tuple[float, float]]) -> str:
    whole_ms = sorted(1e3 * last_s for _, last_s in times)
    first_ms = sorted(1e3 * first_s for first_s, _ in times)
    worst = len(times) * 99 // 100
    return (
        f"{statistics.median(first_ms):9.3f} {first_ms[worst]:9.3f} "
        f"{statistics.median(whole_ms):9.3f} {whole_ms[worst]:9.3f}"
    )


async def measure(
    direct_port: int, port: int, spent_s: Callable[[], tuple[float, float]]
) -> list[Row]:
    for each in (direct_port, port):
        await play(Load("warm up", "json", 4, 400), each)
        await play(Load("warm up", "burst", 4, 40), each)
    rows = []
    for load in LOADS:
        direct = await play(load, direct_port)
        before = spent_s()
        through = await play(load, port)
        spent = [(after - s) / len(through) for s, after in zip(before, spent_s(), strict=True)]
        rows.append(Row(load, direct, through, *spent))
    return rows


def print_table(rows: list[Row]) -> None:
    print(
        f"{'ms':34}{'first p50':>10}{'p99':>10}{'last p50':>10}{'p99':>10}   CPU us/request, in the policy"
    )
    for row in rows:
        print(f"{row.load.name:34} {shown(row.direct)}")
        print(
            f"{'    through the gateway':34} {shown(row.through)}   {1e6 * row.cpu_s:14.0f} {1e6 * row.policy_s:14.0f}"
        )
    json_s = next(row.cpu_s for row in rows if row.load.kind == "json")
    print(f"\nCPU per JSON request, one at a time: {1e3 * json_s:.3f} ms (target 0.45)")
    base_s = next(row.cpu_s for row in rows if row.load.name == "JSON, 16 clients")
    for row in rows:
        if row.load.kind == "paced":
            chunk_s = (row.cpu_s - base_s) / row.load.chunks
            print(
                f"CPU per chunk that comes alone, {row.load.clients} clients: {1e6 * chunk_s:.0f} us (target 40)"
            )


def start(
    target: Callable[..., None], path: str, core: int
) -> tuple[multiprocessing.Process, Connection]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=target, args=(path, core, theirs), daemon=True)
    process.start()
    return process, ours


def main() -> None:
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/engine.sock"
        engine, engine_says = start(run_engine, path, cores[0])
        direct_port = engine_says.recv()
        gateway, gateway_says = start(run_gateway, path, cores[-1])
        port = gateway_says.recv()
        os.sched_setaffinity(0, {cores[0]})

        def spent_s() -> tuple[float, float]:
            gateway_says.send("times")
            return gateway_says.recv()

        try:
            print_table(uvloop.run(asyncio.wait_for(measure(direct_port, port, spent_s), 55)))
        finally:
            for process in (gateway, engine):
                process.terminate()
                process.join()


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
