"""A running node is brought to another plan while streams run through the whole change. Its engines are real processes, and tiny."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from polypod.cli.apply import which
from polypod.cost.cpu import HostRates
from polypod.errors import InputError, RunError
from polypod.plan.host import CoreGroup, LocalEngine, plan_host
from polypod.plan.spec import Plan, read_plan
from polypod.report.fold import read_outcomes
from polypod.report.summary import summary_of
from polypod.serve.control import Control, Order, Word, give
from polypod.serve.engines.openai_url import Remote
from polypod.serve.engines.spec import EngineSpec, child_command, child_environment
from polypod.serve.listen import bind
from polypod.serve.local import local_model, prepare
from polypod.serve.node import LiveNode, run_folder
from polypod.serve.nodes import running
from tests.serve.serving import asking, check_record, served

WORDS = 60
SCRIPT = r"""
import asyncio, json, sys
from polypod.serve.engines.child import settle

options = settle()
if options.max_sequences == 13:
    sys.exit("thirteen sequences do not fit")

def event(delta, **more):
    return b"data: " + json.dumps({"choices": [{"delta": delta}], **more}).encode() + b"\n\n"

PROMPT = {"choices": [{"message": {"content": "0"}}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}

def slot(path, asked):
    if path.endswith("save"):
        written = (options.handover / asked["filename"]).write_bytes(b"cache")
        return {"n_saved": 5, "n_written": written}
    if path.endswith("restore"):
        assert (options.handover / asked["filename"]).read_bytes() == b"cache"
    return {"n_restored": 5}

async def whole(writer, body):
    text = json.dumps(body).encode()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))
    await writer.drain()
    writer.close()

async def answer(reader, writer):
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"POST"):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    else:
        length = next(int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length"))
        asked = json.loads(await reader.readexactly(length))
        path = head.split()[1].decode()
        if path.startswith("/slots/") or not asked.get("stream"):
            return await whole(writer, slot(path, asked) if path.startswith("/slots/") else PROMPT)
        most = asked["max_tokens"]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for word in range(most):
            await asyncio.sleep(0.01)
            writer.write(event({"content": f"{word} "}))
            await writer.drain()
        usage = {"prompt_tokens": 5, "completion_tokens": most}
        writer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_unix_server(answer, options.socket)
    await server.serve_forever()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Counting:
    """Counts as far as it is asked to, a hundred words a second. With 13 sequences it does not start."""

    name: str = "llama.cpp"
    distribution: str = "polypod"
    health_path: str = "/health"
    metrics_path: str = "/metrics"
    keeps_connections: bool = False
    kv_bytes_per_element: float = 2.0
    max_step_tokens: int = 512

    def version(self) -> str | None:
        return "1"

    def command(self, spec: EngineSpec) -> list[str]:
        python, _, _, *arguments = child_command("unused", spec)
        return [python, "-c", SCRIPT, *arguments]

    def environment(self, spec: EngineSpec) -> dict[str, str]:
        return child_environment(spec)


def plan_of(*sequences: int) -> Plan:
    """One pool of one replica for each, with so many sequences, on cores in turn."""
    cores = sorted(os.sched_getaffinity(0))
    rates = HostRates(cpu_class="x86-amx", cpu="c", cores=1, gemm_flops_per_s=1e11, read_bytes_per_s=1e10, measured_utc="2026-01-01")  # fmt: skip
    engine = LocalEngine(name="llama.cpp", version="1", kv_bytes_per_element=2.0, max_step_tokens=512)  # fmt: skip
    plan = plan_host(local_model(None), [CoreGroup(cores=(cores[0],), rates=rates)], [engine], free_memory_bytes=1e10)  # fmt: skip
    (service,) = plan.services
    (pool,) = service.pools
    pools = [
        msgspec.structs.replace(pool, name=f"p{n}", on=f"h{n}", max_sequences=most)
        for n, most in enumerate(sequences)
    ]
    (source,) = plan.fleet.values()
    fleet = {
        f"h{n}": msgspec.structs.replace(source, cores=(cores[n % len(cores)],))
        for n in range(len(sequences))
    }
    service = msgspec.structs.replace(service, pools=tuple(pools))
    return msgspec.structs.replace(plan, fleet=fleet, services=(service,))


class Scene:
    def __init__(self, node: LiveNode, client: aiohttp.ClientSession) -> None:
        self.node = node
        self.client = client
        self.model = node.prepared.plan.services[0].model

    async def order(self, plan: Plan, **more: Any) -> list[Word]:
        order = Order(plan=plan, **more)
        return [word async for word in give(self.node.control_socket, order)]

    async def stream(self, words: int = WORDS, model: str | None = None) -> tuple[str, str]:
        """Where it came from, and all of it."""
        async with self.asked(words, model) as response:
            assert response.status == 200, await response.text()
            return response.headers["x-polypod-replica"], await response.text()

    async def refused(self, words: int = 2, model: str | None = None, **headers: str) -> str:
        """The status and the code it is refused with."""
        async with self.asked(words, model, **headers) as response:
            error = (await response.json())["error"]
            return f"{response.status} {error['code']}"

    def asked(self, words: int, model: str | None, **headers: str) -> Any:
        body = {"model": model or self.model, "messages": [{"role": "user", "content": "count"}], "max_tokens": words, "stream": True}  # fmt: skip
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/v1/chat/completions", json=body, headers=named)

    async def models(self) -> list[str]:
        async with self.client.get("/v1/models") as response:
            return [one["id"] for one in (await response.json())["data"]]

    async def replicas(self) -> dict[str, str]:
        async with self.client.get("/healthz") as response:
            return {one["replica"]: one["state"] for one in (await response.json())["replicas"]}


@asynccontextmanager
async def scene_of(tmp_path: Path, plan: Plan, *remotes: Remote) -> AsyncIterator[Scene]:
    prepared = replace(prepare(plan, run_folder(tmp_path)), remotes=remotes)
    engines = {"llama.cpp": Counting()}
    async with (
        LiveNode(prepared, bind("127.0.0.1", 0), engines=engines) as node,
        Control(node),
        served(node) as client,
    ):
        yield Scene(node, client)


def play(tmp_path: Path, plan: Plan, test: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        async with scene_of(tmp_path, plan) as scene:
            await test(scene)

    asyncio.run(asyncio.wait_for(main(), 60))
    check_record(tmp_path)


def said(words: list[Word], *states: str) -> list[str]:
    return [f"{one.does} {one.replica}" for one in words if one.state in (states or ("done",))]


def test_streams_run_whole_through_a_change_of_every_replica(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        async with asking(6, scene.stream) as answers:
            await asyncio.sleep(0.2)
            words = await scene.order(plan_of(5, 6))

        assert words[-1].state == "applied"
        assert said(words) == ["retire p0-0", "start p0-0.2", "retire p1-0", "start p1-0.2"]
        assert await scene.replicas() == {"p0-0.2": "up", "p1-0.2": "up"}
        assert len(answers) > 12
        for _, text in answers:
            assert text.count('"content"') == WORDS
            assert text.endswith("data: [DONE]\n\n")
        assert {where for where, _ in answers} == {"p0-0", "p1-0", "p0-0.2", "p1-0.2"}
        assert scene.node.prepared.plan == plan_of(5, 6)
        assert read_plan(scene.node.prepared.folder / "plan-2.yaml") == plan_of(5, 6)

    play(tmp_path, plan_of(3, 4), test)


def test_the_only_replica_is_replaced_without_a_gap(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        stream = asyncio.create_task(scene.stream(100))
        await asyncio.sleep(0.1)
        words = await scene.order(plan_of(5))
        assert said(words) == ["start p0-0.2", "retire p0-0"]
        where, text = await stream
        assert (where, text.count('"content"')) == ("p0-0", 100)
        assert (await scene.stream(2))[0] == "p0-0.2"
        again = await scene.order(plan_of(3))
        assert said(again) == ["start p0-0.3", "retire p0-0.2"]

    play(tmp_path, plan_of(3), test)


def test_a_plan_that_says_the_same_does_nothing_and_a_dry_run_does_nothing_either(
    tmp_path: Path,
) -> None:
    async def test(scene: Scene) -> None:
        assert [one.state for one in await scene.order(plan_of(3))] == ["applied"]
        words = await scene.order(plan_of(3, 4), dry_run=True)
        assert said(words, "planned") == ["start p1-0"]
        assert await scene.replicas() == {"p0-0": "up"}

    play(tmp_path, plan_of(3), test)


def test_a_step_that_fails_brings_the_old_plan_back(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        stream = asyncio.create_task(scene.stream(100))
        await asyncio.sleep(0.1)
        words = await scene.order(plan_of(5, 13))
        assert said(words) == ["retire p0-0", "start p0-0.2", "retire p1-0"]
        assert said(words, "undone") == ["retire p1-0", "start p0-0.2", "retire p0-0"]
        assert words[-1].state == "failed"
        assert "thirteen sequences do not fit" in words[-1].note
        assert await scene.replicas() == {"p0-0": "up", "p1-0": "up"}
        assert (await stream)[1].count('"content"') == 100
        assert {(await scene.stream(2))[0] for _ in range(6)} <= {"p0-0", "p1-0"}
        assert scene.node.prepared.plan == plan_of(3, 4)
        assert said(await scene.order(plan_of(3, 5))) == ["retire p1-0", "start p1-0.2"]

    play(tmp_path, plan_of(3, 4), test)
    (folder,) = tmp_path.glob("runs/*")
    outcomes = read_outcomes(folder)
    plans = [plan_of(3, 4), plan_of(5, 13), plan_of(3, 5)]
    assert outcomes.plans == tuple(msgspec.json.decode(msgspec.json.encode(one)) for one in plans)
    assert {one.name: one.plan for one in outcomes.replicas} == {"p0-0": 0, "p1-0": 0, "p0-0.2": 1, "p1-0.2": 2}  # fmt: skip
    assert {one.name for one in summary_of(outcomes).islands} == {"h0", "h1"}


def test_what_takes_longer_than_the_drain_ends_in_words_and_is_counted(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        streams = [asyncio.create_task(scene.stream(3000)) for _ in range(4)]
        await asyncio.sleep(0.2)
        words = await scene.order(plan_of(3), drain_s=0.1)
        assert said(words) == ["retire p1-0"]
        cut = sum(word.cut_requests for word in words)
        assert cut > 0
        done, _ = await asyncio.wait(streams, timeout=5)
        assert len(done) == cut
        for stream in done:
            assert (
                "not in the plan any more" in stream.result()[1]
                or "replica_lost" in stream.result()[1]
            )
        for stream in set(streams) - done:
            stream.cancel()

    play(tmp_path, plan_of(3, 4), test)


def test_orders_come_one_at_a_time(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        first = asyncio.create_task(scene.order(plan_of(5)))
        await asyncio.sleep(0.05)
        second = await scene.order(plan_of(6))
        assert second[-1].state == "failed"
        assert "another plan is just being applied" in second[-1].note
        assert (await first)[-1].state == "applied"

    play(tmp_path, plan_of(3), test)


def test_a_plan_for_cores_that_are_not_here_is_refused(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        plan = plan_of(3)
        absent = msgspec.structs.replace(plan.fleet["h0"], cores=(4096,))
        (word,) = await scene.order(msgspec.structs.replace(plan, fleet={"h0": absent}))
        assert (word.state, "4096" in word.note) == ("refused", True)
        assert await scene.replicas() == {"p0-0": "up"}

    play(tmp_path, plan_of(3), test)


def test_only_its_user_may_give_orders_and_nonsense_is_refused(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        socket = scene.node.control_socket
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        (node,) = running(tmp_path)
        assert (Path(node.control), node.url) == (socket, scene.node.url)
        reader, writer = await asyncio.open_unix_connection(str(socket))
        writer.write(b'{"plan": 1}\n')
        word = msgspec.json.decode(await reader.readline(), type=Word)
        assert (word.state, "$.plan" in word.note) == ("refused", True)
        writer.close()

    play(tmp_path, plan_of(3), test)
    assert running(tmp_path) == []


def test_a_node_that_is_gone_is_said(tmp_path: Path) -> None:
    async def ask() -> None:
        async for _ in give(tmp_path / "control", Order(plan=plan_of(3))):
            pass

    with pytest.raises(RunError, match="is it still running"):
        asyncio.run(ask())
    with pytest.raises(InputError, match="no node runs here: start one with `polypod up`"):
        which([], None)
