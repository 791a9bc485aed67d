"""One model over unlike halves of this machine's cores, for real: planned, launched and asked by Polypod, with vLLM as the engine.

    POLYPOD_PYTHON_VLLM=.venv-vllm/bin/python python scripts/unlike_members.py MODEL_FOLDER     (make unlike-members)

What runs on the second half is halted half of the time, so that the halves are unlike whatever the machine is (`--as-they-are` leaves it out). Each half
is measured, a pipeline is planned over them, and three deployments are started one after another as `polypod up --plan` starts them: the whole model on the
first half, the planned pipeline, and one with as many layers on either half. Each answers the same greedy prompts through the node's endpoint. Token
ids must be equal; what was predicted stands beside the best that was
measured, for whatever else runs on the machine only slows. Exits 1 where a token differs.
"""

import argparse
import asyncio
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from polypod.plan.host import LocalEngine, plan_host
from polypod.plan.host_stages import plan_host_stages, pool_step_times
from polypod.plan.predict import service_model
from polypod.plan.spec import Plan, read_plan, write_plan
from polypod.serve.devices.cpu import find_cpu
from polypod.serve.listen import bind
from polypod.serve.local import local_engines, local_model, measured_groups, prepare, split_cores
from polypod.serve.node import LiveNode

CONTEXT_TOKENS = 1024
ANSWER_TOKENS = 48
AT_ONCE = 8
ROUNDS = 3
HALT_S = 0.003
PROMPTS = (
    "What is the capital of France? Answer in one sentence.",
    "Count from one to twenty in words.",
    "Name three colours and what is painted in them.",
    "Why does the sea look blue?",
    "Tell a story of a cat and a boat.",
    "What do bees do in winter?",
    "Explain how bread is made.",
    "List the planets in order from the sun.",
)


def prefer_ours() -> None:
    """For ever: let the kernel run our sessions before others, those of engines as they are started."""
    root = os.getpid()
    while True:
        children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
        for pid in (root, *map(int, children)):
            with suppress(OSError):
                Path(f"/proc/{pid}/autogroup").write_text("-12")
        time.sleep(0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one deployment did."""

    name: str
    layers: str
    tokens: tuple[tuple[int, ...], ...]  # of each prompt, asked alone
    predicted_tpot_s: float
    tpot_s: float
    predicted_full_s: float  # a token of every sequence, when AT_ONCE run
    full_s: float
    is_equal_at_once: bool  # the same tokens when asked at once


def _halt_half_of_the_time(root: int, cores: frozenset[int]) -> None:
    """Halt every process below `root` that is bound to just these cores, 3 ms in 6. Runs until it is killed."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    found: list[int] = []
    looked_s = 0.0
    while True:
        if time.monotonic() - looked_s > 0.25:
            found, looked_s = _bound_below(root, cores), time.monotonic()
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(HALT_S)


def _bound_below(root: int, cores: frozenset[int]) -> list[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
    found = []
    for pid in parents:
        at = pid
        while at in parents and at != root:
            at = parents[at]
        with suppress(OSError):
            if at == root and pid not in (root, os.getpid()) and os.sched_getaffinity(pid) == cores:
                found.append(pid)
    return found


@contextmanager
def slowed(cores: Sequence[int] | None) -> Iterator[None]:
    """What is bound to these cores is half as fast; None: nothing is."""
    if cores is None:
        yield
        return
    arguments = (os.getpid(), frozenset(cores))
    process = multiprocessing.get_context("fork").Process(
        target=_halt_half_of_the_time, args=arguments, daemon=True
    )
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
        for pid in _bound_below(os.getpid(), frozenset(cores)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def even(plan: Plan) -> Plan:
    """The same pipeline with layers spread evenly, as vLLM would without being told."""
    service = plan.services[0]
    pool = service.pools[0]
    total, count = sum(stage.layers for stage in pool.stages), len(pool.stages)
    shares = [total // count + (n < total % count) for n in range(count)]
    stages = tuple(
        msgspec.structs.replace(stage, layers=n)
        for stage, n in zip(pool.stages, shares, strict=True)
    )
    pool = msgspec.structs.replace(pool, stages=stages, predicted=None, name="even")
    return msgspec.structs.replace(
        plan, services=(msgspec.structs.replace(service, pools=(pool,)),)
    )


async def ask(
    client: aiohttp.ClientSession, model: str, prompt: str, tokens: int
) -> tuple[tuple[int, ...], float]:
    """Token ids and seconds of one greedy answer that goes on to its length."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    began_s = time.monotonic()
    async with client.post("/v1/chat/completions", json=body) as response:
        answer = await response.json()
        if response.status != 200:
            sys.exit(f"{response.status}: {answer}")
    return tuple(answer["choices"][0]["token_ids"]), time.monotonic() - began_s


async def ask_at_once(
    client: aiohttp.ClientSession, model: str, tokens: int
) -> tuple[list[tuple[int, ...]], float]:
    """Token ids of all prompts asked together, and the seconds until the last answer."""
    began_s = time.monotonic()
    answers = await asyncio.gather(*(ask(client, model, prompt, tokens) for prompt in PROMPTS))
    return [ids for ids, _ in answers], time.monotonic() - began_s


async def deploy(name: str, plan_file: Path, folder: Path) -> Outcome:
    """Start a plan as a node, ask, and stop it."""
    plan = read_plan(plan_file)
    pool, model = plan.services[0].pools[0], plan.services[0].model
    print(f"starting {name} ...", file=sys.stderr, flush=True)
    folder.mkdir(parents=True)
    async with LiveNode(prepare(plan, folder), bind("127.0.0.1", 0)) as node:
        stop = asyncio.Event()
        serving = asyncio.create_task(node.serve(stop))
        async with aiohttp.ClientSession(
            node.url, timeout=aiohttp.ClientTimeout(total=600)
        ) as client:
            alone = [await ask(client, model, prompt, ANSWER_TOKENS) for prompt in PROMPTS]
            one = [(await ask(client, model, PROMPTS[0], 1))[1] for _ in range(3)]
            prompts_s = min([(await ask_at_once(client, model, 1))[1] for _ in range(ROUNDS)])
            rounds = [await ask_at_once(client, model, ANSWER_TOKENS) for _ in range(ROUNDS)]
            all_s = min(seconds for _, seconds in rounds)
        stop.set()
        await serving
    _, times = pool_step_times(service_model(plan.services[0]), pool, plan.fleet)
    context = 40 + ANSWER_TOKENS / 2
    likely = times["likely"]
    return Outcome(
        name=name,
        layers=",".join(f"{stage.layers} on {_cores(plan, stage.on)}" for stage in pool.stages)
        or f"30 on {_cores(plan, pool.on)}",
        tokens=tuple(tokens for tokens, _ in alone),
        predicted_tpot_s=likely.step_s(tokens=1, kv_tokens=context, sequences=1),
        tpot_s=min((seconds - min(one)) / (ANSWER_TOKENS - 1) for _, seconds in alone),
        predicted_full_s=likely.step_s(
            tokens=AT_ONCE, kv_tokens=AT_ONCE * context, sequences=AT_ONCE
        ),
        full_s=(all_s - prompts_s) / (ANSWER_TOKENS - 1),
        is_equal_at_once=all(ids == [tokens for tokens, _ in alone] for ids, _ in rounds),
    )


def _cores(plan: Plan, name: str) -> str:
    return f"cores {','.join(map(str, plan.fleet[name].cores or ()))}"


def plans(folder: Path, model: Path, engine: LocalEngine) -> dict[str, Path]:
    """The plan files of the three deployments, from what the halves measure beside the neighbour."""
    cpu = find_cpu()
    local = local_model(model)
    groups = measured_groups(cpu)
    for group in groups:
        rates = group.rates
        print(
            f"cores {','.join(map(str, group.cores))}: GEMM fp32 {rates.gemm_flops_per_s / 1e9:.1f} GFLOPS, read {rates.read_bytes_per_s / 1e9:.1f} GB/s"
        )
    kept: dict[str, Any] = {
        "free_memory_bytes": float(cpu.usable_memory_bytes),
        "context_tokens": CONTEXT_TOKENS,
    }
    planned = plan_host_stages(local, groups, engine, **kept)
    made = {
        "whole": plan_host(local, groups[:1], [engine], **kept),
        "planned": planned,
        "even": even(planned),
    }
    paths = {}
    for name, plan in made.items():
        paths[name] = folder / f"{name}.yaml"
        write_plan(plan, paths[name])
    return paths


def table(outcomes: Sequence[Outcome]) -> None:
    """What was predicted, beside what was measured."""
    print(
        f"\n{'':9}{'layers':40}{'one: predicted':>15}{'measured':>10}{f'{AT_ONCE} at once: predicted':>24}{'measured':>10}   (ms a token of each sequence; best measured)"
    )
    for one in outcomes:
        shown = (one.predicted_tpot_s, one.tpot_s, one.predicted_full_s, one.full_s)
        first, second, third, fourth = (f"{1e3 * seconds:.1f}" for seconds in shown)
        print(f"{one.name:9}{one.layers:40}{first:>15}{second:>10}{third:>24}{fourth:>10}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder with safetensors")
    parser.add_argument("--as-they-are", action="store_true", help="slow no half down")
    parser.add_argument(
        "--prefer", action="store_true", help="before other work on this machine; needs root"
    )
    parser.add_argument("--json", type=Path, help="write the outcomes there")
    options = parser.parse_args()
    (engine,) = local_engines(("vllm",), "safetensors")
    second = None if options.as_they_are else split_cores(find_cpu())[1]
    if options.prefer:
        with suppress(OSError):
            os.setsid()  # not beside whatever else this terminal runs
        threading.Thread(target=prefer_ours, daemon=True).start()
    print(
        "slowed",
        "nothing"
        if second is None
        else f"what runs on cores {','.join(map(str, second))}: halted half of the time",
    )
    with tempfile.TemporaryDirectory(prefix="unlike-") as made, slowed(second):
        folder = Path(made)
        paths = plans(folder, options.model, engine)
        outcomes = [asyncio.run(deploy(name, path, folder / name)) for name, path in paths.items()]
    table(outcomes)
    first = outcomes[0]
    equal = {one.name: one.tokens == first.tokens for one in outcomes}
    count = sum(map(len, first.tokens))
    for name, is_equal in equal.items():
        print(
            f"{name:9}{count} greedy tokens of {len(PROMPTS)} prompts {'equal those of' if is_equal else 'DIFFER from'} the whole model's run"
        )
    if options.json:
        options.json.write_bytes(msgspec.json.encode(outcomes))
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
