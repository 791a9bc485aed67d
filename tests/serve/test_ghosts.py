"""Plans for cards that are not here, served by ghosts behind the real node."""

import asyncio
import json
import os
import signal
from pathlib import Path

import aiohttp
import pytest
import uvloop

from polypod.plan.spec import read_plan
from polypod.policy.lifecycle import Validator
from polypod.record import Step, read
from polypod.serve.engines.ghost_text import natural_tokens, prompt_hash, words
from polypod.serve.ghosts import ghost_plan
from polypod.serve.listen import bind
from polypod.serve.local import prepare_ghosts
from polypod.serve.node import LiveNode
from tests.serve.serving import served

EXAMPLES = Path(__file__).parents[2] / "examples"
PLAN = EXAMPLES / "one-pool.yaml"


def test_ghosts_are_as_fast_as_planned_or_so_many_times_as_fast():
    plan = read_plan(PLAN)
    (planned, *_), (fast, *_) = ghost_plan(plan).ups, ghost_plan(plan, speed_ratio=10.0).ups

    assert fast.step_time.prompt_s(1000) == pytest.approx(planned.step_time.prompt_s(1000) / 10)


def test_ghosts_are_dealt_out_to_processes_and_none_is_left_over():
    houses = ghost_plan(read_plan(PLAN), processes=3).houses()

    assert sorted(len(ups) for ups in houses.values()) == [1, 1, 2]
    assert len({up.replica for ups in houses.values() for up in ups}) == 4
    assert len(ghost_plan(read_plan(PLAN), processes=99).houses()) == 4


def test_links_of_fast_ghosts_are_as_many_times_as_fast():
    plan = read_plan(EXAMPLES / "apart.yaml")
    (planned, *_), (fast, *_) = ghost_plan(plan).ups, ghost_plan(plan, speed_ratio=10.0).ups

    assert planned.role == fast.role == "prefill"
    assert fast.kv_link_bytes_per_s == 10 * planned.kv_link_bytes_per_s > 0
    assert fast.kv_link_latency_s == planned.kv_link_latency_s / 10


async def ask(client: aiohttp.ClientSession, model: str, text: str) -> tuple[str, str]:
    asked = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 12}
    async with client.post("/v1/chat/completions", json=asked) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return answer["choices"][0]["message"]["content"], response.headers["x-polypod-replica"]


def expected(text: str) -> str:
    prompt = prompt_hash([("user", text)])
    return words(prompt, 0, min(12, natural_tokens(prompt, 256.0)))


def test_a_killed_process_comes_back_with_its_ghosts_and_the_others_serve_meanwhile(tmp_path):
    plan = read_plan(PLAN)
    model = plan.services[0].model
    prepared = prepare_ghosts(plan, tmp_path, speed_ratio=20.0, processes=4)

    async def main() -> None:
        async with LiveNode(prepared, bind("127.0.0.1", 0)) as node, served(node) as client:
            texts = [f"question {n}" for n in range(12)]
            answers = await asyncio.gather(*(ask(client, model, text) for text in texts))
            assert [said for said, _ in answers] == [expected(text) for text in texts]
            assert len({replica for _, replica in answers}) == 4

            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            doomed = next(int(pid) for pid in children if b"ghosts-0.json" in Path(f"/proc/{pid}/cmdline").read_bytes())  # fmt: skip
            asking = [asyncio.create_task(ask(client, model, text)) for text in texts]
            await asyncio.sleep(0.01)
            os.kill(doomed, signal.SIGKILL)
            assert [said for said, _ in await asyncio.gather(*asking)] == [expected(text) for text in texts]  # fmt: skip
            while not await is_back(client):
                await asyncio.sleep(0.05)

    uvloop.run(main())
    lines = [line for line in read(tmp_path / "record.jsonl") if isinstance(line, Step)]
    validator = Validator()
    epochs: dict[str, int] = {}
    for line in lines:
        validator.feed(line.event, line.actions)
        if type(line.event).__name__ == "ReplicaUp":
            epochs[line.event.replica] = line.event.epoch
    assert sorted(epochs.values()) == [1, 1, 1, 2]


def test_ghosts_of_one_process_die_one_death(tmp_path):
    """Who was with one of them is not sent to the next, which is dead too, and is not held to have been in two deaths."""
    plan = read_plan(PLAN)
    model = plan.services[0].model
    prepared = prepare_ghosts(plan, tmp_path, speed_ratio=0.5, processes=2)

    async def main() -> None:
        async with LiveNode(prepared, bind("127.0.0.1", 0)) as node, served(node) as client:
            texts = [f"question {n}" for n in range(12)]
            asking = [asyncio.create_task(ask(client, model, text)) for text in texts]
            while node.in_flight < len(texts):
                await asyncio.sleep(0.01)
            os.kill(node._supervisor.processes()["ghosts-0"], signal.SIGKILL)
            assert [said for said, _ in await asyncio.gather(*asking)] == [expected(text) for text in texts]  # fmt: skip

    uvloop.run(main())
    steps = [line for line in read(tmp_path / "record.jsonl") if isinstance(line, Step)]
    down = [step.event for step in steps if type(step.event).__name__ == "ReplicaDown"]
    again = [a for step in steps for a in step.actions if type(a).__name__ == "Dispatch" and a.attempt > 1]  # fmt: skip
    assert len(down[0].also) == 1 == len(down) - 1
    assert again
    assert not {one.replica for one in down} & {one.replica for one in again}


async def is_back(client: aiohttp.ClientSession) -> bool:
    async with client.get("/healthz") as response:
        shown = json.loads(await response.text())["replicas"]
    return {one["state"] for one in shown} == {"up"} and max(one["epoch"] for one in shown) == 2
