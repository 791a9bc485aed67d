"""A live node around tiny engines: real processes that answer chat requests, or stop doing so."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from polypod.cost.cpu import HostRates
from polypod.errors import EngineError
from polypod.plan.host import CoreGroup, LocalEngine, plan_host
from polypod.serve.door import Keyring, Rules
from polypod.serve.engines.spec import EngineSpec, child_command, child_environment
from polypod.serve.keys import Grant, KeyStore
from polypod.serve.listen import bind
from polypod.serve.local import local_model, prepare
from polypod.serve.node import Entry, LiveNode, Prepared, WarmUp, run_folder
from polypod.serve.supervise import Down

SCRIPT = r"""
import asyncio, json, os
from pathlib import Path
from polypod.serve.engines.child import settle

options = settle()
broken = Path(os.environ["TINY_BROKEN"])

def event(delta, **more):
    return b"data: " + json.dumps({"choices": [{"delta": delta}], **more}).encode() + b"\n\n"

async def answer(reader, writer):
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"POST"):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    elif broken.exists():
        writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
    else:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        for word in ("one", "two", "three"):
            await asyncio.sleep(0.01)
            writer.write(event({"content": word}))
            await writer.drain()
        usage = {"prompt_tokens": 5, "completion_tokens": 3}
        writer.write(b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
    await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_unix_server(answer, options.socket)
    await server.serve_forever()

asyncio.run(main())
"""


@dataclass(frozen=True)
class TinyEngine:
    """Answers 'onetwothree', unless the file `broken` is there: then its health is good and its answers are 500."""

    broken: Path
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
        return child_environment(spec) | {"TINY_BROKEN": str(self.broken)}


def prepared(tmp_path: Path) -> Prepared:
    rates = HostRates(cpu_class="x86-amx", cpu="c", cores=1, gemm_flops_per_s=1e11, read_bytes_per_s=1e10, measured_utc="2026-01-01")  # fmt: skip
    engine = LocalEngine(
        name="llama.cpp", version="1", kv_bytes_per_element=2.0, max_step_tokens=512
    )
    groups = [CoreGroup(cores=(min(os.sched_getaffinity(0)),), rates=rates)]
    plan = plan_host(local_model(None), groups, [engine], free_memory_bytes=1e10)
    return prepare(plan, run_folder(tmp_path))


def node(tmp_path: Path, news: list[WarmUp | Down], *, entry: Entry | None = None) -> LiveNode:
    tiny = TinyEngine(broken=tmp_path / "broken")
    return LiveNode(
        prepared(tmp_path),
        bind("127.0.0.1", 0),
        news.append,
        engines={"llama.cpp": tiny},
        entry=entry,
    )


def test_a_replica_is_warmed_up_before_it_answers(tmp_path: Path) -> None:
    news: list[WarmUp | Down] = []

    async def run() -> None:
        stop = asyncio.Event()
        async with node(tmp_path, news) as live:
            serving = asyncio.create_task(live.serve(stop))
            asked = await live.ask("count", max_tokens=3)
            assert (asked.text, asked.replica) == ("onetwothree", "llama.cpp-0")
            corrections = live.policy.corrections()
            (warm_up,) = news
            assert isinstance(warm_up, WarmUp)
            assert corrections["llama.cpp-0", "decode"] == pytest.approx(
                warm_up.decode_ratio, rel=0.2
            )
            stop.set()
            await serving

    asyncio.run(run())


def test_a_running_node_sees_keys_come_and_go_within_a_second(tmp_path: Path) -> None:
    admin = KeyStore(tmp_path / "keys")
    _, first = admin.create(Grant())
    entry = Entry(rules=Rules(needs_key=True), keys=Keyring(KeyStore(tmp_path / "keys")))
    statuses: list[int] = []

    async def run() -> None:
        stop = asyncio.Event()
        async with node(tmp_path, [], entry=entry) as live, aiohttp.ClientSession() as client:
            serving = asyncio.create_task(live.serve(stop))

            async def status(token: str) -> int:
                headers = {"authorization": f"Bearer {token}"}
                return (await client.get(f"{live.url}/v1/models", headers=headers)).status

            async def until(token: str, wanted: int) -> None:
                for _ in range(40):  # two seconds, on a machine that is busy
                    statuses.append(await status(token))
                    if statuses[-1] == wanted:
                        return
                    await asyncio.sleep(0.05)
                pytest.fail(f"still {statuses[-1]}")

            assert await status(first) == 200
            key, second = admin.create(Grant())
            await until(second, 200)
            admin.revoke(key.id)
            await until(second, 401)
            assert await status(first) == 200
            assert (await live.ask("count", max_tokens=3)).text == "onetwothree"
            stop.set()
            await serving

    asyncio.run(run())


@pytest.mark.parametrize("logs_prompts", [False, True])
def test_prompts_are_written_only_where_it_was_asked_for(
    tmp_path: Path, logs_prompts: bool
) -> None:
    async def run() -> None:
        stop = asyncio.Event()
        async with node(tmp_path, [], entry=Entry(logs_prompts=logs_prompts)) as live:
            serving = asyncio.create_task(live.serve(stop))
            await live.ask("a most peculiar\nquestion", max_tokens=3)
            stop.set()
            await serving

    asyncio.run(run())
    holding = [
        path
        for path in (tmp_path / "runs").rglob("*")
        if path.is_file() and b"most peculiar" in path.read_bytes()
    ]
    assert [path.name for path in holding] == (["prompts.jsonl"] if logs_prompts else [])
    for path in holding:
        (line,) = map(json.loads, path.read_text().splitlines())
        assert line["body"]["messages"][0]["content"] == "a most peculiar\nquestion"
        assert path.stat().st_mode & 0o077 == 0


def test_an_engine_that_is_well_and_does_not_answer_fails_the_start(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()

    async def run() -> None:
        live = node(tmp_path, [])
        with pytest.raises(EngineError, match=r"says it is well and does not answer: .*500"):
            await live.__aenter__()

    asyncio.run(run())


def test_a_restart_that_does_not_answer_is_tried_again(tmp_path: Path) -> None:
    """The replica dies; its next starts answer their health check only, until what was broken is mended."""
    news: list[WarmUp | Down] = []

    async def run() -> None:
        async with node(tmp_path, news) as live:
            (tmp_path / "broken").touch()
            live._supervisor._keepers["llama.cpp-0"]._process.kill()  # as a person's kill -9 would
            while len(news) < 3:  # up, killed, and one start that did not answer
                await asyncio.sleep(0.05)
            (tmp_path / "broken").unlink()
            while not isinstance(news[-1], WarmUp):
                await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(run(), 30))
    assert [type(one) for one in news[:3]] == [WarmUp, Down, Down]
    assert "does not answer" in news[2].reason
    assert news[-1].epoch == 1 + sum(isinstance(one, Down) for one in news)
