"""Thousands of streams through a node whose engines are killed one after another.

    python -m tests.faults.kills                                   10,000 streams over 8 ghosts, one killed every 5 s
    python -m tests.faults.kills --hold                            10,000 streams at once over 64 ghosts in 8 processes, a chunk every 1.6 s or more each
    python -m tests.faults.kills --real --seconds 300 --every 30   this machine's two real engines

Clients are processes of their own, that read every stream to its end; kills begin when the ramp is over. Exits 1 where a stream was silently cut, glued of
two answers, or lost before its first byte.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from polypod.serve.descriptors import streams_within
from tests.faults.live import GOOD, Tally, Verdict, Wish, all_of, judge, listen
from tests.faults.live_node import UpNode, cpu_s, descriptors, rss_bytes

PLAN = """\
polypod: 1
fleet:
  a: {{accelerator: nvidia-h200-sxm, count: {ghosts}}}
services:
- model: {model}
  pools:
  - {{name: ghost, role: both, on: a, layout: {{tp: 1}}, replicas: {ghosts}, precision: {{weights: bf16, kv: bf16}},
     state: launchable, max_sequences: 2048, max_step_tokens: 4096}}
"""
MODEL = "meta-llama/Llama-3.1-8B"
LARGE = (
    "Qwen/Qwen3-30B-A3B"  # whose steps wait for weights, so that prompts cost slow ghosts little
)
HELD_FRACTION: Final = 0.8
"""Of the streams that the node lets in: clients whose stream broke come again while their old connection still ends, and those beyond its limit are cut."""

HOLDS = {"at_once": 10_000, "streams": 10**9, "ghosts": 64, "speed": "0.0125x", "ramp": 25.0, "seconds": 75.0, "every": 10.0, "clients": 2}  # fmt: skip
LOOK_S = 2.0
SOURCES = 16  # addresses that many streams come from


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process of clients asks."""

    number: int
    port: int
    model: str
    streams: int
    at_once: int
    options: argparse.Namespace


@dataclass(kw_only=True)
class Most:
    """What the node had, when it had the most requests in flight."""

    in_flight: int = 0
    rss_bytes: int = 0
    descriptors: int = 0


def client(share: Share) -> Tally:
    """Ask and judge until all is asked."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    return uvloop.run(_client(share))


async def _client(share: Share) -> Tally:
    options, tally = share.options, Tally()
    numbers = random.Random(options.seed + share.number)
    headers = tuple(tuple(one.split(":", 1)) for one in options.header)
    ends_s = time.monotonic() + options.seconds if options.seconds else None

    async def one(number: int) -> None:
        if ends_s is not None and time.monotonic() > ends_s:
            return
        # slow ghosts are slow at prompts too, and what waits at two deaths is quarantined
        more = "" if options.hold else " tell me more" * numbers.randint(1, 40)
        wish = Wish(
            model=share.model,
            text=f"{number}.{share.number}.{options.seed}{more}",
            tokens=numbers.randint(20, 40 if options.hold else 60),
            headers=headers,
            is_ghost=not options.real,
        )  # fmt: skip
        source = 1 + number % SOURCES if options.hold else 1
        heard = await listen(share.port, wish, patience_s=600.0, source=source)
        verdict: Verdict = judge(wish, heard)
        tally.add(verdict)
        if verdict.what not in GOOD and options.show:
            print(f"stream {number}: {verdict}\n{bytes(heard.body[-400:])!r}", file=sys.stderr)

    await all_of(share.streams, share.at_once, one, ramp_s=options.ramp)
    return tally


async def kill_them(node: UpNode, options: argparse.Namespace, killed: list[str]) -> None:
    """One after another, in turn; one that is still down is passed over."""
    names = list(node.engines())
    number = 0
    await asyncio.sleep(options.ramp)
    ends_s = time.monotonic() + options.seconds - options.ramp if options.seconds else None
    while ends_s is None or time.monotonic() < ends_s:
        await asyncio.sleep(options.every)
        for _ in names:
            name = names[number % len(names)]
            number += 1
            pid = node.engines().get(name)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(name)
                break


async def look_at(node: UpNode, most: Most) -> None:
    """How many requests the node has in flight, and what it takes for them."""
    pid = node.process.pid
    while True:
        await asyncio.sleep(LOOK_S)
        now = await asyncio.to_thread(in_flight, node.port)
        if now > most.in_flight:
            most.in_flight, most.rss_bytes, most.descriptors = (
                int(now),
                rss_bytes(pid),
                descriptors(pid),
            )


def in_flight(port: int) -> float:
    """Requests that the node believes to be in flight."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("polypod_requests_in_flight{"))  # fmt: skip


async def run(node: UpNode, options: argparse.Namespace) -> tuple[Tally, list[str], Most]:
    """Let the clients ask while engines are killed."""
    tally, killed, most = Tally(), [], Most()
    shares = [
        Share(
            number=number, port=node.port, model=node.model, options=options,
            streams=options.streams // options.clients, at_once=options.at_once // options.clients,
        )
        for number in range(options.clients)
    ]  # fmt: skip
    around = [
        asyncio.create_task(kill_them(node, options, killed)),
        asyncio.create_task(look_at(node, most)),
    ]
    loop = asyncio.get_running_loop()
    try:
        with ProcessPoolExecutor(options.clients, multiprocessing.get_context("spawn")) as pool:
            for one in await asyncio.gather(*(loop.run_in_executor(pool, client, share) for share in shares)):  # fmt: skip
                tally.counts.update(one.counts)
                tally.reasons.update(one.reasons)
    finally:
        for task in around:
            task.cancel()
    return tally, killed, most


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=1000)
    parser.add_argument("--hold", action="store_true", help="four fifths of what the node lets in at once, 10,000 at most, slowly")  # fmt: skip
    parser.add_argument("--clients", type=int, default=1, help="processes")
    parser.add_argument("--ramp", type=float, default=0.0, help="seconds until all are asked")
    parser.add_argument("--ghosts", type=int, default=8)
    parser.add_argument(
        "--processes", type=int, default=8, help="of ghosts; they are what is killed"
    )
    parser.add_argument("--every", type=float, default=5.0, help="seconds from one kill to the next")  # fmt: skip
    parser.add_argument("--speed", default="0.1x", help="of the ghosts")
    parser.add_argument("--real", action="store_true", help="this machine's engines, in place of ghosts")  # fmt: skip
    parser.add_argument("--seconds", type=float, help="begin no stream after this long")
    parser.add_argument("--header", action="append", default=[], metavar="NAME:VALUE", help="with every request")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print the end of what was not answered whole")  # fmt: skip
    if "--hold" in sys.argv:
        parser.set_defaults(**HOLDS)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    can_hold = int(HELD_FRACTION * streams_within(hard, options.processes))
    if not options.real and options.at_once > can_hold:
        print(f"a process here may open {hard:,} files (ulimit -Hn), and no more: {can_hold:,} streams are held at once, not {options.at_once:,}")  # fmt: skip
        options.at_once = can_hold
    return options


def main() -> int:
    options = read_options()
    with tempfile.TemporaryDirectory() as folder:
        arguments = []
        if not options.real:
            plan = Path(folder) / "plan.yaml"
            plan.write_text(
                PLAN.format(ghosts=options.ghosts, model=LARGE if options.hold else MODEL)
            )
            arguments = ["--plan", str(plan), "--ghost", "--ghost-processes", str(options.processes), "--ghost-speed", options.speed]  # fmt: skip
        with UpNode(*arguments) as node:
            count, before_bytes = len(node.engines()), rss_bytes(node.process.pid)
            began_s = time.monotonic()
            tally, killed, most = uvloop.run(run(node, options))
            took_s = time.monotonic() - began_s
            spent_s = cpu_s(node.process.pid)
            notes = node.log.read_text() if options.show else ""
    print(notes, file=sys.stderr, end="")
    streams = sum(tally.counts.values())
    what = (
        f"{count} real engines" if options.real else f"{options.ghosts} ghosts in {count} processes"
    )
    each_bytes = (most.rss_bytes - before_bytes) / max(most.in_flight, 1)
    print(f"{streams:,} streams, up to {options.at_once:,} at once, over {what}, in {took_s:.0f} s")  # fmt: skip
    print(f"{len(killed)} kills, one every {options.every:g} s; gateway {spent_s:.1f} s of CPU")
    print(f"at most {most.in_flight:,} in flight by its own count; it had {most.descriptors:,} descriptors then and {most.rss_bytes / 1e6:,.0f} MB, {each_bytes / 1e3:.1f} kB a stream")  # fmt: skip
    print("\n".join(tally.lines()))
    return 1 if tally.bad or not tally.counts else 0


if __name__ == "__main__":
    sys.exit(main())
