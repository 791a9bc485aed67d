"""Plans with prefill and decode apart, served by ghosts: caches that take their time, and are freed whatever happens."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import uvloop

from polypod.cost.steptime import StepTime
from polypod.plan.spec import Plan, read_plan
from polypod.policy import Policy
from polypod.policy.actions import Decode, Dispatch, Prefill, TransferKv
from polypod.policy.events import KvArrived, ReplicaUp
from polypod.policy.lifecycle import Validator
from polypod.record import Step, read
from polypod.serve.engines.ghost_text import natural_tokens, prompt_hash, words
from polypod.serve.links import Links
from polypod.serve.listen import bind
from polypod.serve.local import prepare_ghosts
from polypod.serve.node import LiveNode

EXAMPLE = Path(__file__).parents[2] / "examples" / "apart.yaml"
STEP = StepTime(tokens=(1, 100), seconds=(0.01, 0.02), kv_token_s=0.0, pair_s=0.0)


def small(kv_link: str | None = None) -> Plan:
    """Two replicas of each phase, and caches that go by this link."""
    plan = read_plan(EXAMPLE)
    (service,) = plan.services
    pools = [msgspec.structs.replace(pool, replicas=2, kv_link=kv_link) for pool in service.pools]
    return msgspec.structs.replace(
        plan, services=(msgspec.structs.replace(service, pools=tuple(pools)),)
    )


def body(text: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "qwen3-8b", "messages": messages, "max_tokens": 12} | more


def expected(text: str) -> str:
    prompt = prompt_hash([("user", text)])
    return words(prompt, 0, min(12, natural_tokens(prompt, 256.0)))


async def ask(client: aiohttp.ClientSession, text: str) -> str:
    async with client.post("/v1/chat/completions", json=body(text)) as response:
        answer = await response.json()
        assert response.status == 200, answer
        assert response.headers["x-polypod-replica"].startswith("decode")
        return answer["choices"][0]["message"]["content"]


async def kept_share(node: LiveNode) -> float:
    """Of all caches of all ghosts, how much is in use, in sum."""
    endpoint = node._driver.endpoint("prefill-0", 1)
    connector = aiohttp.UnixConnector(path=str(endpoint.socket))
    async with (
        aiohttp.ClientSession("http://g", connector=connector, headers=endpoint.headers) as ghosts,
        ghosts.get("/metrics") as response,
    ):
        text = await response.text()
    return sum(map(float, re.findall(r"kv_cache_usage_perc\{.*\} (\S+)", text)))


def serve(tmp_path: Path, plan: Plan, test: Callable[[LiveNode, aiohttp.ClientSession], Awaitable[None]], speed_ratio: float = 20.0) -> list[Step]:  # fmt: skip
    """Serve the plan for a test; afterwards no ghost keeps a cache, and the record is legal and replays."""
    prepared = prepare_ghosts(plan, tmp_path, speed_ratio=speed_ratio)

    async def main() -> None:
        stop = asyncio.Event()
        async with LiveNode(prepared, bind("127.0.0.1", 0)) as node:
            serving = asyncio.create_task(node.serve(stop))
            async with aiohttp.ClientSession(node.url) as client:
                await test(node, client)
                async with asyncio.timeout(10):
                    while await kept_share(node):
                        await asyncio.sleep(0.01)
            stop.set()
            await serving

    uvloop.run(main())
    steps = [line for line in read(tmp_path / "record.jsonl") if isinstance(line, Step)]
    validator, fresh = Validator(), Policy(prepared.settings)
    for step in steps:
        validator.feed(step.event, step.actions)
        assert fresh.handle(step.event) == step.actions
    assert validator.open == {}
    return steps


def test_a_plan_over_two_phases_is_served_as_it_is_planned(tmp_path: Path) -> None:
    texts = [f"question {n}" for n in range(12)]

    async def test(_: LiveNode, client: aiohttp.ClientSession) -> None:
        answers = await asyncio.gather(*(ask(client, text) for text in texts))
        assert answers == [expected(text) for text in texts]

    steps = serve(tmp_path, small(), test)
    kinds = [type(action) for step in steps for action in step.actions]
    assert [kinds.count(kind) for kind in (Prefill, TransferKv, Decode, Dispatch)] == [12, 12, 12, 0]  # fmt: skip


def test_a_cache_takes_its_time_by_the_link_that_the_plan_says(tmp_path: Path) -> None:
    """Qwen3-8B keeps 144 kB a token: by 4 ranks' links of 25 MB/s, a prompt of some 50 tokens takes 70 ms."""

    async def test(_: LiveNode, client: aiohttp.ClientSession) -> None:
        await ask(client, "x" * 180)

    steps = serve(tmp_path, small("25 MB/s"), test, speed_ratio=1.0)
    (left_s,) = (step.event.at_s for step in steps for one in step.actions if isinstance(one, TransferKv))  # fmt: skip
    (came_s,) = (step.event.at_s for step in steps if isinstance(step.event, KvArrived))
    tokens = next(step.event.kv_tokens for step in steps if hasattr(step.event, "kv_tokens") and hasattr(step.event, "attempt"))  # fmt: skip
    least_s = tokens * 147_456 / 100e6
    assert tokens == 180 // 4 + 4
    assert least_s <= came_s - left_s < least_s + 1.0


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.2])
def test_clients_that_go_away_leave_no_cache_behind(tmp_path: Path, after_s: float) -> None:
    """They leave while prompts are computed, while caches are on their way, or while answers come."""

    async def test(_: LiveNode, client: aiohttp.ClientSession) -> None:
        asked = [client.post("/v1/chat/completions", json=body("y" * 400, stream=True, max_tokens=400)) for _ in range(8)]  # fmt: skip
        going = [asyncio.create_task(one.__aenter__()) for one in asked]
        await asyncio.sleep(after_s)
        for one in going:
            one.cancel() if not one.done() else one.result().close()
        await asyncio.gather(*going, return_exceptions=True)
        assert await ask(client, "still there") == expected("still there")

    serve(tmp_path, small("100 MB/s"), test, speed_ratio=1.0)


def up(name: str, link: float, *, ranks: int = 1) -> ReplicaUp:
    step = msgspec.structs.replace(STEP, data_ranks=ranks)
    return ReplicaUp(
        at_s=0.0, replica=name, epoch=1, model="m", pool=name, role="both", step_time=step, context_tokens=64,
        kv_capacity_tokens=640, max_sequences=8, max_step_tokens=64, kv_token_bytes=10.0, kv_link_bytes_per_s=link, kv_link_latency_s=0.5,
    )  # fmt: skip


def test_the_narrower_end_counts_and_is_shared() -> None:
    links = Links()
    wide, narrow, free = up("w", 1e3), up("n", 1e2), up("f", 0.0)
    assert links.way_s(wide, narrow, 100) == links.way_s(narrow, wide, 100) == 0.5 + 1000 / 1e2
    assert links.way_s(wide, free, 100) == 0.5 + 1000 / 1e3
    assert links.way_s(free, free, 100) == 0.5
    assert links.way_s(up("d", 1e3, ranks=4), wide, 100) == 0.5 + 1000 / 250

    async def two() -> None:
        first = asyncio.create_task(links.move(wide, narrow, 0))
        await asyncio.sleep(0)
        assert links.way_s(wide, narrow, 100) == 0.5 + 1000 / 50
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert links.way_s(wide, narrow, 100) == 0.5 + 1000 / 100

    asyncio.run(two())


async def strike(node: LiveNode, replica: str, what: str) -> None:
    endpoint = node._driver.endpoint(replica, 1)
    connector = aiohttp.UnixConnector(path=str(endpoint.socket))
    async with (
        aiohttp.ClientSession("http://g", connector=connector, headers=endpoint.headers) as ghosts,
        ghosts.post(f"/r/{replica}/fault", json={"what": what}) as response,
    ):
        assert response.status == 200


def test_a_stream_whose_decode_ghost_dies_ends_in_words(tmp_path: Path) -> None:
    """Only a replica that takes whole requests goes on with an answer, and there is none."""
    text = "tell me all"

    async def test(node: LiveNode, client: aiohttp.ClientSession) -> None:
        asked = body(text, stream=True, max_tokens=80, ignore_eos=True)
        said, errors, headers = "", [], {"x-polypod-continue": "text"}
        async with client.post("/v1/chat/completions", json=asked, headers=headers) as response:
            async for raw in response.content:
                line = raw.strip()
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line.removeprefix(b"data: "))
                errors += [event["error"]["code"]] if "error" in event else []
                said += "" if errors else event["choices"][0]["delta"].get("content", "")
                if said.count(" ") == 5 and not errors:
                    await strike(node, response.headers["x-polypod-replica"], "die")
        assert errors == ["replica_lost"]
        assert words(prompt_hash([("user", text)]), 0, 80).startswith(said)

    serve(tmp_path, small(), test, speed_ratio=0.2)
