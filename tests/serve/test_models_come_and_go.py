"""A running node gets another model, gives one up, holds longer prompts or other limits, while streams run; its record replays."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec

from polypod.plan.spec import Plan
from polypod.policy.events import SettingsChanged
from polypod.record import Step, read
from polypod.serve.nodes import running
from tests.serve.serving import asking
from tests.serve.test_control import WORDS, Scene, plan_of, play, said


def plan_with(*models: str, context: int | None = 2048, sequences: int = 3, **policy: Any) -> Plan:
    """One replica of each of these names of the same weights: m, n and o, each on a core of its own as far as there are any."""
    plan = plan_of(*[sequences] * 3)
    (service,) = plan.services
    services = []
    for model in models:
        pool = msgspec.structs.replace(service.pools["mno".index(model)], name=model)
        services.append(
            msgspec.structs.replace(service, model=model, pools=(pool,), context=context)
        )
    told = msgspec.structs.replace(plan.policy, **policy)
    return msgspec.structs.replace(plan, services=tuple(services), policy=told)


def settings_told(tmp_path: Path) -> list[tuple[str, ...]]:
    """The models of every change of settings in the record."""
    (record,) = tmp_path.glob("runs/*/record.jsonl")
    return [
        tuple(service.model for service in line.event.settings.services)
        for line in read(record)
        if isinstance(line, Step) and isinstance(line.event, SettingsChanged)
    ]


def test_a_model_is_added_and_another_removed_while_streams_run(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        stream = asyncio.create_task(scene.stream(100, "m"))
        await asyncio.sleep(0.1)
        assert await scene.refused(model="n") == "404 model_not_found"
        words = await scene.order(plan_with("m", "n"))
        assert said(words) == ["add None", "start n-0"]
        assert words[0].model == "n"
        assert await scene.models() == ["m", "n"]
        assert (await scene.stream(2, "n"))[0] == "n-0"

        words = await scene.order(plan_with("n"))
        assert said(words) == ["remove None", "retire m-0"]
        assert (await stream)[1].count('"content"') == 100
        assert await scene.models() == ["n"]
        assert await scene.refused(model="m") == "404 model_not_found"
        assert await scene.replicas() == {"n-0": "up"}

    play(tmp_path, plan_with("m"), test)
    assert settings_told(tmp_path) == [("m", "n"), ("n",)]


def test_who_waits_for_a_removed_model_is_told_and_what_streams_ends_whole(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        streams = [asyncio.create_task(scene.stream(150, "m")) for _ in range(1)]
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(scene.refused(model="m")) for _ in range(3)]
        await asyncio.sleep(0.1)
        order = asyncio.create_task(scene.order(plan_with("n", sequences=1)))
        assert await asyncio.gather(*waiting) == ["404 model_removed"] * 3
        assert not streams[0].done()
        assert await scene.models() == ["n"]
        assert (await streams[0])[1].count('"content"') == 150
        assert (await order)[-1].state == "applied"

    play(tmp_path, plan_with("m", "n", sequences=1), test)


def test_one_model_takes_the_place_of_another(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        words = await scene.order(plan_with("n"))
        assert said(words) == ["add None", "start n-0", "remove None", "retire m-0"]
        assert await scene.models() == ["n"]
        assert (await scene.stream(2, "n"))[0] == "n-0"

    play(tmp_path, plan_with("m"), test)


def test_when_a_new_model_does_not_start_the_old_ones_are_there_as_before(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        stream = asyncio.create_task(scene.stream(100, "m"))
        await asyncio.sleep(0.1)
        words = await scene.order(plan_with("n", "o", sequences=13))
        assert words[-1].state == "failed"
        assert "thirteen sequences do not fit" in words[-1].note
        assert await scene.models() == ["m"]
        assert await scene.refused(model="n") == "404 model_not_found"
        assert (await stream)[1].count('"content"') == 100
        assert (await scene.stream(2, "m"))[1].count('"content"') == 2

    play(tmp_path, plan_with("m"), test)
    assert settings_told(tmp_path)[-1] == ("m",)


def test_a_context_becomes_longer_and_shorter_and_weights_others(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        assert await scene.refused(3000) == "400 context_length_exceeded"
        words = await scene.order(plan_with("m", context=4096))
        assert said(words) == ["start m-0.2", "set None", "retire m-0"]
        assert words[3].note == "context_tokens 2048 to 4096"
        stream = asyncio.create_task(scene.stream(3000))
        await asyncio.sleep(0.05)
        assert not stream.done()
        words = await scene.order(plan_with("m", context=1024), drain_s=0.1)
        assert said(words) == ["start m-0.3", "set None", "retire m-0.2"]
        assert await scene.refused(3000) == "400 context_length_exceeded"
        assert (await scene.stream(2))[0] == "m-0.3"
        await stream

        plan = plan_with("m", context=1024)
        (service,) = plan.services
        assert said(await scene.order(plan)) == []
        copied = tmp_path / "copy.gguf"
        shutil.copy(str(service.weights), copied)
        service = msgspec.structs.replace(service, weights=str(copied))
        words = await scene.order(msgspec.structs.replace(plan, services=(service,)))
        assert said(words) == ["start m-0.4", "retire m-0.3"]
        assert scene.node._alone._outside_s["m-0.4"] == scene.node._alone._outside_s["m-0"] > 0

    play(tmp_path, plan_with("m"), test)


def test_limits_of_all_change_without_a_replica_moving_and_a_dry_run_changes_nothing(
    tmp_path: Path,
) -> None:
    async def test(scene: Scene) -> None:
        words = await scene.order(plan_with("n", "m"), dry_run=True)
        assert said(words, "planned") == ["add None", "start n-0"]
        assert await scene.models() == ["m"]
        plan = plan_with("m", queue_requests=1, turns="tenants", continuation="text", kv_wait="2 s")
        words = await scene.order(plan)
        assert said(words) == ["set None"]
        assert words[0].note == "queue_requests 1024 to 1, kv_wait_s 60.0 to 2.0, turns arrival to tenants, continuation off to text"  # fmt: skip
        streams = [asyncio.create_task(scene.stream(30)) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert await scene.refused() == "429 queue_full"
        await asyncio.gather(*streams)
        assert [one.state for one in await scene.order(plan)] == ["applied"]

    play(tmp_path, plan_with("m"), test)
    assert settings_told(tmp_path) == [("m",)]


def apart(*, prompts: int, answers: int) -> Plan:
    """Prompts on one core, answers on another, with so many sequences."""
    plan = plan_of(prompts, answers)
    (service,) = plan.services
    pools = tuple(
        msgspec.structs.replace(pool, role=role, name=role)
        for pool, role in zip(service.pools, ("prefill", "decode"), strict=True)
    )
    return msgspec.structs.replace(plan, services=(msgspec.structs.replace(service, pools=pools),))


def test_prompts_and_answers_are_taken_apart_replaced_and_put_together_again(
    tmp_path: Path,
) -> None:
    async def test(scene: Scene) -> None:
        async with asking(4, scene.stream) as answers:
            await asyncio.sleep(0.1)
            words = await scene.order(apart(prompts=3, answers=4))
            assert said(words)[:2] == ["retire p0-0", "start prefill-0"]
            assert set(said(words)[2:]) == {"start decode-0", "retire p1-0"}
            assert set(await scene.replicas()) == {"prefill-0", "decode-0"}
            words = await scene.order(apart(prompts=5, answers=6))
            assert words[-1].state == "applied", words[-1]
            assert await scene.replicas() == {"prefill-0.2": "up", "decode-0.2": "up"}
            assert (await scene.stream(2))[0] == "decode-0.2"
            folder = scene.node._caches.folder
            assert folder is not None
            assert str(folder) == running(tmp_path)[0].caches
            words = await scene.order(plan_of(3, 4))
            assert words[-1].state == "applied", words[-1]
        for _, text in answers:
            assert text.count('"content"') == WORDS
            assert text.endswith("data: [DONE]\n\n")
        assert {where for where, _ in answers} >= {"decode-0", "decode-0.2"}
        assert not list(folder.iterdir())
        assert scene.node._caches.slots._free == {}

    play(tmp_path, plan_of(3, 4), test)
