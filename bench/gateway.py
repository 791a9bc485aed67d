"""What the gateway costs, beside the bare engine and beside other proxies in the same run.

    python bench/gateway.py
    python bench/gateway.py --nginx /usr/sbin/nginx --vllm-router ~/venv/bin/vllm-router

An engine that answers at once (a raw uvloop protocol, no HTTP library), a proxy before it, and a client over raw sockets, each in a process of its
own, all over TCP on loopback. The gateway is as `polypod up` runs it, with one replica: an API key with limits, metrics, the record on disk, and
predicted finish times that choose the replica. Client and engine share core 0, the proxy has core 1 to itself where there are two; they take turns,
load by load. Latency is taken at the client; a proxy's own price is the time its threads were on a core, user and system, which other load on the
machine disturbs least. A stream's first byte is timed where its engine sends one chunk and then rests: one that sends 64 at once keeps core 0 from the client
that waits for the first. They take turns four times over, and the cheapest of the four is shown, because other load only adds. Bounded: about a minute for
each proxy.
"""

import argparse
import asyncio
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from polypod.cost.steptime import StepTime
from polypod.policy import Policy, PolicySettings, ServiceSettings
from polypod.policy.actions import AnyAction
from polypod.policy.compiled import functions
from polypod.policy.events import AnyEvent, ReplicaUp
from polypod.record import Header
from polypod.serve.attempt import Desk
from polypod.serve.door import Door, Keyring, Rules
from polypod.serve.engines.spec import Endpoint
from polypod.serve.gateway import Gateway
from polypod.serve.keys import Grant, KeyStore
from polypod.serve.listen import bind, serve
from polypod.serve.loop import Driver, Outlets
from polypod.serve.metrics import Metrics
from polypod.serve.recorder import Recorder
from polypod.serve.slack import settle_collector
from polypod.serve.upstream import Patience, Upstreams

MODEL = "tiny"
EVENT = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"tiny",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
DONE = b"data: [DONE]\n\n"
HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"tiny","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"%s"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":'
    b'40,"total_tokens":49}}' % (b"word " * 40)
)
BURST_CHUNKS = 64
PACED_CHUNKS, PACE_S = 20, 0.020
BRISK_CHUNKS, BRISK_S = 8, 0.002
ROUNDS = 4


@dataclass(frozen=True)
class Load:
    """One row of the table: what is asked, by how many at once, how often."""

    name: str
    kind: str  # json, brisk, burst or paced
    clients: int
    requests: int
    chunks: int = 0


JSON_1, JSON_16 = "JSON, 1 client", "JSON, 16 clients"
BRISK_1, PACED_16 = "8 chunks 2 ms apart, 1 client", "20 chunks 20 ms apart, 16 clients"
LOADS = (
    Load(JSON_1, "json", 1, 500),
    Load(JSON_16, "json", 16, 4800),
    Load(BRISK_1, "brisk", 1, 100, BRISK_CHUNKS),
    Load("64 chunks at once, 1 client", "burst", 1, 100, BURST_CHUNKS),
    Load("64 chunks at once, 16 clients", "burst", 16, 320, BURST_CHUNKS),
    Load(PACED_16, "paced", 16, 160, PACED_CHUNKS),
)


# ---- the engine


class Engine(asyncio.Protocol):
    """Answers what the `x_kind` key asks for, which no proxy knows. One request at a time per connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.startswith(b"GET"):  # somebody asks whether we are well
            self._received = b""
            self._transport.write(HEALTHY)
            return
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
        elif b'"brisk"' in body:
            self._paced(BRISK_CHUNKS, BRISK_S)
        else:
            self._paced(PACED_CHUNKS, PACE_S)

    def _paced(self, left: int, pace_s: float) -> None:
        if not left:
            self._end()
            return
        self._chunk(EVENT)
        asyncio.get_running_loop().call_later(pace_s, self._paced, left - 1, pace_s)

    def _chunk(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _end(self) -> None:
        self._chunk(DONE)
        self._transport.write(b"0\r\n\r\n")


def run_engine(core: int, ready: Connection) -> None:
    """The engine's process."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with await loop.create_server(Engine, "127.0.0.1", 0, backlog=1024) as server:
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


def run_gateway(folder: Path, engine_port: int, core: int, ready: Connection) -> None:  # fmt: skip
    """The gateway's process: says its port and a key, and then to each message how long the policy took so far."""

    async def main() -> None:
        settings = PolicySettings(services=(ServiceSettings(model=MODEL, context_tokens=4096),))
        policy = Policy(settings, compiled=functions())
        timed = Timed(policy)
        header = Header(kind="live", polypod="bench", policy=settings)
        recorder = Recorder(folder / "record.jsonl", header)
        driver = Driver(timed, Outlets(write=recorder.write))
        store = KeyStore(folder / "keys")
        limits = Grant(requests_per_minute=10**9, tokens_per_minute=10**12)
        _, token = store.create(limits)
        door = Door(Rules(needs_key=True), Keyring(store))
        desk = Desk(driver=driver, upstreams=Upstreams(Patience()), metrics=Metrics([MODEL]))
        gateway = Gateway([MODEL], desk, door, foresight=policy.foresight)
        listener = bind("127.0.0.1", 0)
        driver.attach(replica_up(driver.now_s()), Endpoint(host="127.0.0.1", port=engine_port))
        recorder.start()

        def tell() -> None:
            ready.recv()
            ready.send(timed.spent_s)

        asyncio.get_running_loop().add_reader(ready.fileno(), tell)
        ready.send((listener.getsockname()[1], token))
        settle_collector()  # as `polypod up` does
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


def request_of(load: Load, token: str) -> tuple[bytes, bytes]:
    is_stream = b"false" if load.kind == "json" else b"true"
    body = b'{"model":"tiny","messages":[{"role":"user","content":"How far is it?"}],"stream":%s,"x_kind":"%s"}'
    body %= (is_stream, load.kind.encode())
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n"
    )
    end = ANSWER if load.kind == "json" else b"0\r\n\r\n"
    return head % (token.encode(), len(body)) + body, end


async def play(load: Load, door: "Entrance") -> list[tuple[float, float]]:
    """Closed loop: each client asks again as soon as it has its answer."""
    request, end = request_of(load, door.token)
    loop = asyncio.get_running_loop()

    async def one() -> list[tuple[float, float]]:
        transport, client = await loop.create_connection(Client, "127.0.0.1", door.port)
        times = [await client.ask(request, end) for _ in range(load.requests // load.clients)]
        transport.close()
        return times

    parts = await asyncio.gather(*(one() for _ in range(load.clients)))
    return [times for part in parts for times in part]


# ---- who is measured


@dataclass(frozen=True)
class Entrance:
    """Something that answers chat requests at a port."""

    name: str
    port: int
    token: str = "none"
    pid: int | None = None  # whose time is counted
    policy_s: Callable[[], float] | None = None

    def cpu_s(self) -> float:
        """Time on a core so far, of all threads and child processes."""
        return 0.0 if self.pid is None else sum(map(_on_core_s, _family(self.pid)))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


def _on_core_s(pid: int) -> float:
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def process(target: Callable[..., None], *arguments: object) -> Iterator[tuple[int, Connection]]:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=target, args=(*arguments, theirs), daemon=True)
    child.start()
    try:
        yield child.pid, ours
    finally:
        child.terminate()
        child.join()


@contextmanager
def polypod(folder: Path, engine_port: int, core: int) -> Iterator[Entrance]:
    with process(run_gateway, folder, engine_port, core) as (pid, says):
        port, token = says.recv()

        def policy_s() -> float:
            says.send("?")
            return says.recv()

        yield Entrance("polypod", port, token, pid, policy_s)


NGINX = """daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d;
  scgi_temp_path {folder}/e; keepalive_requests 1000000; upstream engine {{ server 127.0.0.1:{engine}; keepalive 128; keepalive_requests 1000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_buffering off; }} }} }}
"""


@contextmanager
def nginx(binary: str, folder: Path, engine_port: int, core: int) -> Iterator[Entrance]:
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, engine=engine_port, port=port))
    with program("nginx", [binary, "-p", str(folder), "-c", str(config)], port, core) as entrance:
        yield entrance


@contextmanager
def vllm_router(binary: str, folder: Path, engine_port: int, core: int) -> Iterator[Entrance]:
    port = free_port()
    command = [
        *(binary, "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"),
        *("--worker-urls", f"http://127.0.0.1:{engine_port}", "--log-level", "error"),
        *("--prometheus-port", str(free_port()), "--max-concurrent-requests", "4096"),
    ]
    with program("vllm-router", command, port, core) as entrance:
        yield entrance


@contextmanager
def program(name: str, command: list[str], port: int, core: int) -> Iterator[Entrance]:
    child = subprocess.Popen(
        ["taskset", "-c", str(core), *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port, child)
        yield Entrance(name, port, pid=child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_for(port: int, child: "subprocess.Popen[bytes]") -> None:
    for _ in range(300):
        if child.poll() is not None:
            msg = f"{child.args} ended with {child.returncode}"
            raise SystemExit(msg)
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            time.sleep(1.0)  # it may still look for its engine
            return
    msg = f"{child.args} does not listen"
    raise SystemExit(msg)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


# ---- the table


@dataclass(frozen=True)
class Row:
    load: Load
    name: str
    times: list[tuple[float, float]]
    cpu_s: float  # of the proxy, per request
    policy_s: float  # of those, in the policy


async def measure(entrances: list[Entrance]) -> list[Row]:
    for each in entrances:
        await play(Load("warm up", "json", 4, 800), each)
        await play(Load("warm up", "burst", 4, 40), each)
    rounds = [
        [await measured(load, each) for load in LOADS for each in entrances] for _ in range(ROUNDS)
    ]
    return [best(rows) for rows in zip(*rounds, strict=True)]


def best(rows: Sequence[Row]) -> Row:
    """All times together, and the least cost."""
    cheapest = min(rows, key=lambda row: row.cpu_s)
    return replace(cheapest, times=[times for row in rows for times in row.times])


async def measured(load: Load, entrance: Entrance) -> Row:
    policy_s = entrance.policy_s or (lambda: 0.0)
    before_s, in_policy_s = entrance.cpu_s(), policy_s()
    times = await play(load, entrance)
    count = len(times)
    await asyncio.sleep(
        0.6
    )  # what it does afterwards, such as writing its record, is a part of the price
    return Row(
        load, entrance.name, times, (entrance.cpu_s() - before_s) / count, (policy_s() - in_policy_s) / count
    )  # fmt: skip


def print_table(rows: list[Row]) -> None:
    print(f"{'ms':36}{'first p50':>10}{'p99':>10}{'last p50':>10}{'p99':>10}{'CPU us/request':>16}")
    for row in rows:
        if row.name == "direct":
            print(row.load.name)
        cost = "" if row.name == "direct" else f"{1e6 * row.cpu_s:16.0f}"
        policy = f", in the policy {1e6 * row.policy_s:.0f}" if row.policy_s else ""
        print(f"    {row.name:32}{shown(row.times)}{cost}{policy}")
    print()
    for name in dict.fromkeys(row.name for row in rows if row.name != "direct"):
        of = {row.load.name: row for row in rows if row.name == name}
        bare = {row.load.name: row for row in rows if row.name == "direct"}
        json_ms, stream_ms = (
            first_ms(of[load]) - first_ms(bare[load]) for load in (JSON_1, BRISK_1)
        )
        json_us, paced_us = (1e6 * of[load].cpu_s for load in (JSON_16, PACED_16))
        print(
            f"{name:14}JSON at 16 {json_us:6.0f} us, paced stream {paced_us:6.0f} us, "
            f"chunk {(paced_us - json_us) / PACED_CHUNKS:5.1f} us, "
            f"added p50 {json_ms:5.3f} ms to an answer in one piece, {stream_ms:5.3f} ms to a stream's first byte"
        )


def shown(times: list[tuple[float, float]]) -> str:
    whole_ms = sorted(1e3 * last_s for _, last_s in times)
    first_ms = sorted(1e3 * first_s for first_s, _ in times)
    worst = len(times) * 99 // 100
    return (
        f"{statistics.median(first_ms):10.3f}{first_ms[worst]:10.3f}"
        f"{statistics.median(whole_ms):10.3f}{whole_ms[worst]:10.3f}"
    )


def first_ms(row: Row) -> float:
    return 1e3 * statistics.median(first_s for first_s, _ in row.times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nginx", metavar="BINARY", help="measure nginx as well")
    parser.add_argument("--vllm-router", metavar="BINARY", help="measure vllm-router as well")
    given = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _, engine_says = stack.enter_context(process(run_engine, cores[0]))
        port = engine_says.recv()
        entrances = [Entrance("direct", port)]
        entrances.append(stack.enter_context(polypod(folder, port, cores[-1])))
        if given.nginx:
            entrances.append(stack.enter_context(nginx(given.nginx, folder, port, cores[-1])))
        if given.vllm_router:
            made = vllm_router(given.vllm_router, folder, port, cores[-1])
            entrances.append(stack.enter_context(made))
        os.sched_setaffinity(0, {cores[0]})
        print_table(uvloop.run(asyncio.wait_for(measure(entrances), 400)))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
