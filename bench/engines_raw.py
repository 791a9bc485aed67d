"""How fast the engines are on one core each, beside what that core can do: the raw samples of a calibration.

    python bench/engines_raw.py [--engine llama.cpp] [--beside] [--json FILE] [--longest 2048] [--weights FILE or FOLDER]

Through each engine's own server, as Polypod runs it: the time to the first token of prompts of several lengths, and the time
of a decode step at several batch sizes and contexts. `--beside` keeps the other engine busy on the other core meanwhile.
Prompts differ from sample to sample. The fits at the end are least squares:

    prompt_s = fixed_s + token_s n + pair_s n (n + 1) / 2        n: tokens
    step_s   = fixed_s + sequence_s b + kv_token_s b c           b: sequences, c: tokens of context of each
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import numpy as np

from polypod.plan.host import engine_model
from polypod.serve.devices import find_cpu
from polypod.serve.devices.measure import HostMeasurement, measure_host
from polypod.serve.engines import ENGINES, USUAL, Endpoint, EngineSpec
from polypod.serve.local import local_model
from polypod.serve.supervise import Down, Replica, Supervisor, Up, make_socket_directory

CONTEXT_TOKENS = 2560
TEMPLATE_TOKENS = 31  # of the model's chat template, around the words
DECODED_TOKENS = 32
WORDS = [
    "time",
    "year",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
]


class Client:
    """Asks one engine."""

    def __init__(self, up: Up, numbers: random.Random) -> None:
        self._endpoint: Endpoint = up.endpoint
        self._numbers = numbers
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.UnixConnector(path=str(self._endpoint.socket), force_close=True)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(
            connector=connector, headers=self._endpoint.headers, timeout=timeout
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def stream(self, tokens: int, output_tokens: int) -> tuple[int, float, list[float]]:
        """Prompt tokens as counted, when it was sent, and when each event with text came."""
        words = self._numbers.choices(WORDS, k=max(1, tokens - TEMPLATE_TOKENS))
        body = {
            "model": "smol",
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        times_s, counted, sent_s = [], 0, time.perf_counter()
        async with self._session.post("http://engine/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if any(c["delta"].get("content") for c in event["choices"]):
                        times_s.append(time.perf_counter())
                    counted = (event.get("usage") or {}).get("prompt_tokens", counted)
        return counted, sent_s, times_s


async def prompt_samples(client: Client, tokens: int, repeats: int) -> dict[str, Any]:
    """Time to first token."""
    samples_s, counted = [], 0
    for _ in range(repeats):
        counted, sent_s, times_s = await client.stream(tokens, 4)
        samples_s.append(times_s[0] - sent_s)
    return {"tokens": counted, "seconds": samples_s}


async def step_samples(
    client: Client, sequences: int, context: int, repeats: int
) -> dict[str, Any]:
    """The gaps between tokens while all sequences decode."""
    gaps_s: list[float] = []
    for _ in range(repeats):
        streams = [client.stream(context, DECODED_TOKENS + 3 * sequences) for _ in range(sequences)]
        runs = [times_s for _, _, times_s in await asyncio.gather(*streams)]
        start_s, end_s = max(run[0] for run in runs), min(run[-1] for run in runs)
        for run in runs:
            inside = [at for at in run if start_s <= at <= end_s]
            gaps_s += [then - at for at, then in itertools.pairwise(inside)]
    return {"sequences": sequences, "context": context + DECODED_TOKENS // 2, "seconds": gaps_s}


async def measure_engine(client: Client, up: Up, options: argparse.Namespace) -> dict[str, Any]:
    """All samples of one engine."""
    lengths = [n for n in (48, 128, 256, 512, 1024, 2048) if n <= options.longest]
    prompts = [await prompt_samples(client, n, 3 if n <= 512 else 1) for n in lengths]
    contexts = [c for c in (64, 512, 1024) if c <= options.longest]
    batches = {64: (1, 2, 4, 8), 512: (1, 4, 8), 1024: (1, 4)}
    pairs = [(b, c) for c in contexts for b in batches[c]]
    steps = [await step_samples(client, b, c, 2 if c < 512 else 1) for b, c in pairs]
    return {"load_s": up.load_s, "prompts": prompts, "steps": steps}


@asynccontextmanager
async def busy(client: Client) -> AsyncIterator[None]:
    """Keep an engine decoding two sequences, and taking a prompt now and then."""

    async def work() -> None:
        while True:
            await client.stream(128, 96)

    async with client:
        workers = [asyncio.create_task(work()) for _ in range(2)]
        try:
            yield
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one engine after another, each alone on the machine, or all started side by side."""
    cores = find_cpu().cores
    groups = [list(USUAL["gguf"])] if options.beside else [[name] for name in options.engine]
    results = {}
    for group in groups:
        async with started(group, cores, weights=options.weights, prefer=options.prefer) as ups:
            if not options.beside and len(cores) > 1:
                os.sched_setaffinity(0, cores[1:])  # the client stays out of the engine's way
            for name in (n for n in group if n in options.engine):
                print(f"measuring {name}", file=sys.stderr)
                results[name] = await measure_beside(ups, name, options)
            os.sched_setaffinity(0, cores)
    return results


def prefer_process(process: int) -> None:
    """Let the kernel run a process before others: each engine begins a session, and sessions share a core fairly."""
    os.setpriority(os.PRIO_PROCESS, process, -15)
    Path(f"/proc/{process}/autogroup").write_text("-18")


async def measure_beside(
    ups: dict[str, Up], name: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one engine while all others that are up are kept busy."""
    numbers = random.Random(7)
    async with AsyncExitStack() as stack:
        for other in ups.keys() - {name}:
            await stack.enter_async_context(busy(Client(ups[other], numbers)))
        client = await stack.enter_async_context(Client(ups[name], numbers))
        return await measure_engine(client, ups[name], options)


@asynccontextmanager
async def started(
    names: list[str], cores: tuple[int, ...], *, weights: Path | None, prefer: bool
) -> AsyncIterator[dict[str, Up]]:
    """These engines, one core each."""
    ups: dict[str, Up] = {}

    async def tell(word: Up | Down) -> None:
        if isinstance(word, Down):
            sys.exit(f"{word.replica}: {word.reason}")
        ups[word.replica] = word
        if prefer:
            prefer_process(word.process)

    directory = make_socket_directory()
    placed = [(name, cores[number % len(cores)]) for number, name in enumerate(names)]
    replicas = [_replica(name, core, directory, weights) for name, core in placed]
    try:
        async with Supervisor(replicas, tell):
            yield ups
    finally:
        shutil.rmtree(directory)


def _replica(name: str, core: int, directory: Path, weights: Path | None) -> Replica:
    local = local_model(weights)
    shape = engine_model(local.model, ENGINES[name].kv_bytes_per_element)
    spec = EngineSpec(
        replica=name,
        model="smol",
        weights=Path(local.weights),
        cache_bytes=round(8 * (CONTEXT_TOKENS + 128) * shape.kv_bytes_per_token),
        cores=(core,),
        context_tokens=CONTEXT_TOKENS,
        max_sequences=8,
        socket=directory / f"{name}.sock",
        secret="bench",
        log=directory / f"{name}.log",
    )
    return Replica(engine=ENGINES[name], spec=spec)


def fits(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The coefficients of the two formulas in the module's docstring, never negative ones dropped."""
    prompts = [(p["tokens"], statistics.median(p["seconds"])) for p in result["prompts"]]
    steps = [
        (s["sequences"], s["context"], statistics.median(s["seconds"])) for s in result["steps"]
    ]
    n, seconds = np.array(prompts).T
    prompt = _least_squares({"fixed_s": n**0, "token_s": n, "pair_s": n * (n + 1) / 2}, seconds)
    b, c, seconds = np.array(steps).T
    step = _least_squares({"fixed_s": b**0, "sequence_s": b, "kv_token_s": b * c}, seconds)
    return {"prompt": prompt, "step": step}


def _least_squares(terms: dict[str, Any], seconds: Any) -> dict[str, float]:
    """Relative errors count, so that short prompts weigh as much as long ones."""
    matrix = np.stack(list(terms.values()), axis=1) / seconds[:, None]
    solution, *_ = np.linalg.lstsq(matrix, np.ones_like(seconds), rcond=None)
    worst = float(np.abs(matrix @ solution - 1).max())
    return {**dict(zip(terms, map(float, solution), strict=True)), "worst_error": worst}


def show(results: dict[str, Any], host: HostMeasurement) -> None:
    """The table."""
    print(f"{host.cpu}, cores {host.cores}, {host.busy_elsewhere:.0%} busy with other work")
    for gemm in host.gemm:
        rate = gemm.flops_per_s
        print(
            f"  {gemm.dtype:5} {gemm.threads} cores {rate.median / 1e9:7.1f} GFLOP/s (x{rate.spread_of_median:.2f}) {gemm.kernel}"
        )
    for memory in host.bandwidth:
        rate = memory.bytes_per_s
        print(
            f"  {memory.kind:5} {memory.threads} cores {memory.buffer_bytes >> 20:5} MiB {rate.median / 1e9:6.1f} GB/s (x{rate.spread_of_median:.2f})"
        )
    for name, result in results.items():
        print(f"\n{name} {ENGINES[name].version()}: load {result['load_s']:.2f} s")
        print("  prompt tokens   median ms   (low..high)   tokens/s")
        for p in result["prompts"]:
            low, mid, high = _spread_ms(p["seconds"])
            print(
                f"  {p['tokens']:13} {mid:11.1f}   ({low:.1f}..{high:.1f})   {p['tokens'] / mid * 1e3:.0f}"
            )
        print("  sequences  context   step ms   (10%..90%)   tokens/s")
        for s in result["steps"]:
            low, mid, high = _spread_ms(s["seconds"])
            print(
                f"  {s['sequences']:9} {s['context']:8} {mid:9.2f}   ({low:.1f}..{high:.1f})   {s['sequences'] / mid * 1e3:.1f}"
            )
        for what, fit in fits(result).items():
            print(f"  {what}: " + ", ".join(f"{key} {value:.4g}" for key, value in fit.items()))


def _spread_ms(seconds: list[float]) -> tuple[float, float, float]:
    ordered = sorted(seconds)
    tenth = len(ordered) // 10
    return ordered[tenth] * 1e3, statistics.median(ordered) * 1e3, ordered[-1 - tenth] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", action="append", choices=list(ENGINES))
    parser.add_argument(
        "--beside", action="store_true", help="keep the other engine busy on the other core"
    )
    parser.add_argument(
        "--prefer", action="store_true", help="before other work on this machine; needs root"
    )
    parser.add_argument("--longest", type=int, default=2048, help="the longest prompt, in tokens")
    parser.add_argument(
        "--weights", type=Path, help="a GGUF file or a folder with safetensors (default: embedded)"
    )
    parser.add_argument("--json", type=Path, help="write the raw samples there")
    options = parser.parse_args()
    options.engine = options.engine or list(USUAL["gguf"])
    if options.prefer:
        prefer_process(os.getpid())
    host = measure_host(find_cpu().cores)
    results = asyncio.run(run(options))
    show(results, host)
    if options.json:
        weights = str(local_model(options.weights).weights)
        raw = {
            "host": msgspec.to_builtins(host),
            "beside": options.beside,
            "weights": weights,
            "engines": results,
        }
        options.json.write_bytes(msgspec.json.encode(raw))


if __name__ == "__main__":
    main()
