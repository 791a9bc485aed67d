"""Two real llama.cpp processes, one for prompts and one for answers, driven by the policy."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from polypod.cost.cpu import HostRates
from polypod.plan.host import CoreGroup, plan_host
from polypod.plan.host_apart import host_apart
from polypod.policy.actions import Dispatch, TransferKv
from polypod.policy.events import KvArrived, PrefillFinished
from polypod.record import Step, read
from polypod.serve.listen import bind
from polypod.serve.local import local_engines, local_model, prepare
from polypod.serve.node import LiveNode, Prepared, run_folder

QUESTIONS = (
    "What is the capital of France? Answer in one sentence.",
    "Name three rivers. " + "The survey of the river went on for years, and every year it found less water. " * 8,
)  # fmt: skip
pytestmark = pytest.mark.engines


def prepared(tmp_path: Path) -> Prepared:
    cores = sorted(os.sched_getaffinity(0))
    rates = HostRates(cpu_class="x86-amx", cpu="c", cores=1, gemm_flops_per_s=1e11, read_bytes_per_s=1e10, measured_utc="2026-01-01")  # fmt: skip
    groups = [CoreGroup(cores=(cores[n % len(cores)],), rates=rates) for n in range(2)]
    plan = plan_host(local_model(None), groups, local_engines(("llama.cpp",)), free_memory_bytes=1e10, context_tokens=1024)  # fmt: skip
    return prepare(host_apart(plan), run_folder(tmp_path))


async def asked(client: aiohttp.ClientSession, question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    body = {"model": "SmolLM2-135M-Instruct", "messages": messages, "temperature": 0, "max_tokens": 16}  # fmt: skip
    async with client.post("/v1/chat/completions", json=body | more) as response:
        assert response.status == 200, await response.text()
        return json.loads(await response.read())


async def counted(live: LiveNode, replica: str, name: str) -> float:
    """A counter of the engine itself."""
    async with engine(live, replica) as client, client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    (line,) = (line for line in lines if line.startswith(f"llamacpp:{name} "))
    return float(line.split()[1])


def engine(live: LiveNode, replica: str) -> aiohttp.ClientSession:
    endpoint = live._driver.endpoint(replica, 1)
    assert endpoint is not None
    connector = aiohttp.UnixConnector(path=str(endpoint.socket))
    return aiohttp.ClientSession("http://engine", connector=connector, headers=endpoint.headers)


def test_an_answer_over_two_processes_is_what_one_process_makes_of_its_own_cache(
    tmp_path: Path,
) -> None:
    """The referee is llama.cpp itself: a prompt computed, kept and gone on from, in the process that computed it."""
    made = prepared(tmp_path)

    async def main() -> None:
        stop = asyncio.Event()
        async with LiveNode(made, bind("127.0.0.1", 0)) as live:
            serving = asyncio.create_task(live.serve(stop))
            async with aiohttp.ClientSession(live.url) as client, engine(live, "prefill-0") as one:
                before = await counted(live, "decode-0", "prompt_tokens_total")
                answers = [await asked(client, question) for question in QUESTIONS]
                after = await counted(live, "decode-0", "prompt_tokens_total")
                for question, answer in zip(QUESTIONS, answers, strict=True):
                    await asked(one, question, max_tokens=1, id_slot=0, cache_prompt=False)
                    alone = await asked(one, question, id_slot=0, cache_prompt=True)
                    texts = [one["choices"][0]["message"]["content"] for one in (answer, alone)]
                    assert texts[0] == texts[1]
            assert after - before == len(QUESTIONS), "a prompt's last token is all that is computed"
            stop.set()
            await serving
        assert not live._caches.folder or not live._caches.folder.exists()

    asyncio.run(asyncio.wait_for(main(), 90))
    steps = [line for line in read(made.folder / "record.jsonl") if isinstance(line, Step)]  # fmt: skip
    actions = [action for step in steps for action in step.actions]
    assert sum(isinstance(action, TransferKv) for action in actions) == len(QUESTIONS)
    assert not any(isinstance(action, Dispatch) for action in actions)
    prefilled = [step.event for step in steps if isinstance(step.event, PrefillFinished)]
    arrived = [step.event for step in steps if isinstance(step.event, KvArrived)]
    assert [event.kv_tokens for event in prefilled] == sorted(event.kv_tokens for event in prefilled)  # fmt: skip
    assert len(prefilled) == len(arrived) == len(QUESTIONS)
