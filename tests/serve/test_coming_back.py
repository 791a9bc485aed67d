"""A request that comes while the only replica of its model is started again waits for it, and is not waited with for one that does not come."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec

from polypod.plan.spec import Plan
from tests.serve.test_control import Scene, plan_of, play, said


async def end_engine(scene: Scene) -> None:
    """Kill the only replica's process, and return when the node knows."""
    (pid,) = scene.node._supervisor.processes().values()
    os.killpg(pid, signal.SIGKILL)
    while (await scene.replicas())["p0-0"] == "up":
        await asyncio.sleep(0.01)


def test_a_newcomer_waits_while_the_only_replica_is_started_again(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        await end_engine(scene)
        where, text = await scene.stream(2)
        assert (where, text.count('"content"')) == ("p0-0", 2)

    play(tmp_path, plan_of(3), test)


def test_who_asks_while_the_only_replica_is_replaced_waits_for_the_new_one(tmp_path: Path) -> None:
    """Where there is no memory for both at once, the old one goes first."""

    def large(sequences: int, model: str | None = None) -> Plan:
        plan = plan_of(sequences)
        (service,) = plan.services
        (pool,) = service.pools
        assert pool.predicted is not None
        predicted = msgspec.structs.replace(pool.predicted, memory_per_accelerator="500 TB")
        pool = msgspec.structs.replace(pool, predicted=predicted)
        service = msgspec.structs.replace(service, pools=(pool,), model=model or service.model)
        return msgspec.structs.replace(plan, services=(service,))

    async def test(scene: Scene) -> None:
        order = asyncio.create_task(scene.order(large(5)))
        while "p0-0" in await scene.replicas():
            await asyncio.sleep(0.01)
        assert await scene.refused(x_polypod_replica="p0-0") == "503 no_replica"
        assert (await scene.stream(2))[0] == "p0-0.2"
        assert said(await order) == ["retire p0-0", "start p0-0.2"]

        order = asyncio.create_task(scene.order(large(5, "other")))
        while "p0-0.2" in await scene.replicas():
            await asyncio.sleep(0.01)
        assert await scene.models() == ["other"]
        async with scene.client.get("/healthz") as response:
            assert (response.status, (await response.json())["unserved"]) == (503, ["other"])
        assert await scene.refused(model="other") == "503 no_replica"
        assert said(await order) == ["add None", "remove None", "retire p0-0.2", "start p0-0.3"]
        assert (await scene.stream(2, "other"))[0] == "p0-0.3"

    play(tmp_path, large(3), test)
