"""A node of ghosts is brought to another plan as any other: ghosts move in and out of their processes while streams run."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import uvloop

from polypod.plan.spec import Plan, read_plan
from polypod.serve.control import Control
from polypod.serve.listen import bind
from polypod.serve.local import prepare_ghosts
from polypod.serve.node import LiveNode, run_folder
from tests.serve.serving import check_record, served
from tests.serve.test_control import Scene, said

EXAMPLES = Path(__file__).parents[2] / "examples"


def plan_of(replicas: int, name: str = "one-pool.yaml", **pool: object) -> Plan:
    """The example's pools, with so many replicas each."""
    plan = read_plan(EXAMPLES / name)
    (service,) = plan.services
    pools = tuple(msgspec.structs.replace(one, replicas=replicas, **pool) for one in service.pools)
    return msgspec.structs.replace(plan, services=(msgspec.structs.replace(service, pools=pools),))


def with_model(plan: Plan, model: str) -> Plan:
    """The same with one more model, on two ghosts of its own."""
    (service,) = plan.services
    pool = msgspec.structs.replace(service.pools[0], replicas=2, name="more")
    more = msgspec.structs.replace(service, model=model, pools=(pool,))
    return msgspec.structs.replace(plan, services=(service, more))


def play(
    tmp_path: Path, plan: Plan, test: Callable[[Scene], Awaitable[None]], processes: int = 2
) -> None:
    prepared = prepare_ghosts(plan, run_folder(tmp_path), speed_ratio=5.0, processes=processes)

    async def main() -> None:
        async with (
            LiveNode(prepared, bind("127.0.0.1", 0)) as node,
            Control(node),
            served(node) as client,
        ):
            await test(Scene(node, client))

    uvloop.run(asyncio.wait_for(main(), 60))
    check_record(tmp_path)


def test_ghosts_come_and_go_while_streams_run(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        streams = [asyncio.create_task(scene.stream(200)) for _ in range(8)]
        await asyncio.sleep(0.1)
        words = await scene.order(plan_of(1))
        assert [one.state for one in words] == ["begun"] * 3 + ["done"] * 3 + ["applied"]  # at once
        assert {one.does for one in words[:6]} == {"retire"}
        words = await scene.order(plan_of(2, max_sequences=7))
        assert said(words) == ["start pool0.0-0.2", "start pool0.0-1.2", "retire pool0.0-0"]
        assert await scene.replicas() == {"pool0.0-0.2": "up", "pool0.0-1.2": "up"}
        for where, text in await asyncio.gather(*streams):
            assert where in {f"pool0.0-{n}" for n in range(4)}
            assert text.endswith("data: [DONE]\n\n")
            assert "error" not in text
        assert {(await scene.stream(2))[0] for _ in range(6)} <= {"pool0.0-0.2", "pool0.0-1.2"}

    play(tmp_path, plan_of(4), test)


def test_a_killed_process_comes_back_with_who_lives_there_now(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        await scene.order(plan_of(3, max_sequences=7))
        here = await scene.replicas()
        for pid in scene.node._supervisor.processes().values():
            os.killpg(pid, signal.SIGKILL)
        while "down" not in (await scene.replicas()).values():
            await asyncio.sleep(0.01)
        assert (await scene.stream(2))[0] in here  # which waited for it
        while "down" in (await scene.replicas()).values():
            await asyncio.sleep(0.01)
        assert (await scene.replicas()).keys() == here.keys()
        pinned = [scene.asked(2, None, x_polypod_replica=name) for name in here]
        for asked in pinned:
            async with asked as response:
                assert response.status == 200, await response.text()

    play(tmp_path, plan_of(2), test)


def test_a_model_moves_in_and_out(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        words = await scene.order(with_model(plan_of(2), "qwen3-8b"))
        assert said(words) == ["add None", "start more-0", "start more-1"]
        assert await scene.models() == [scene.model, "qwen3-8b"]
        assert (await scene.stream(2, "qwen3-8b"))[0] in ("more-0", "more-1")
        words = await scene.order(plan_of(2))
        assert said(words, "begun") == ["remove None", "retire more-0", "retire more-1"]
        assert await scene.models() == [scene.model]

    play(tmp_path, plan_of(2), test)


def test_ghosts_of_both_phases_are_replaced_and_hand_caches_on(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        streams = [asyncio.create_task(scene.stream(100)) for _ in range(6)]
        await asyncio.sleep(0.1)
        words = await scene.order(plan_of(2, "apart.yaml", max_sequences=9))
        assert words[-1].state == "applied", words[-1]
        for _, text in await asyncio.gather(*streams):
            assert text.endswith("data: [DONE]\n\n")
            assert "error" not in text
        assert (await scene.stream(20))[0] in await scene.replicas()

    play(tmp_path, plan_of(1, "apart.yaml"), test)
