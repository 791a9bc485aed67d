"""Thousands of streams through a node whose engines are killed one after another.

    python -m tests.faults.kills                                   10,000 streams over 8 ghosts, one killed every 5 s
    python -m tests.faults.kills --real --seconds 300 --every 30   this machine's two real engines

Exits 1 where a stream was silently cut, glued of two answers, or lost before its first byte.
"""

import argparse
import asyncio
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from tests.faults.live import GOOD, Tally, Verdict, Wish, all_of, judge, listen
from tests.faults.live_node import UpNode, cpu_s

PLAN = """\
polypod: 1
fleet:
  a: {{accelerator: nvidia-h200-sxm, count: {ghosts}}}
services:
- model: meta-llama/Llama-3.1-8B
  pools:
  - {{name: ghost, role: both, on: a, layout: {{tp: 1}}, replicas: {ghosts}, precision: {{weights: bf16, kv: bf16}},
     state: launchable, max_sequences: 2048, max_step_tokens: 4096}}
"""


async def kill_them(node: UpNode, every_s: float, killed: list[str]) -> None:
    """One after another, in turn; one that is still down is passed over."""
    names = list(node.engines())
    number = 0
    while True:
        await asyncio.sleep(every_s)
        for _ in names:
            name = names[number % len(names)]
            number += 1
            pid = node.engines().get(name)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                killed.append(name)
                break


async def run(node: UpNode, options: argparse.Namespace) -> tuple[Tally, list[str]]:
    numbers, tally, killed = random.Random(options.seed), Tally(), []
    headers = tuple(tuple(one.split(":", 1)) for one in options.header)
    ends_s = time.monotonic() + options.seconds if options.seconds else None

    async def one(number: int) -> None:
        if ends_s is not None and time.monotonic() > ends_s:
            return
        wish = Wish(
            model=node.model,
            text=f"stream {number} of {options.seed}: " + "tell me more " * numbers.randint(1, 40),
            tokens=numbers.randint(20, 60),
            headers=headers,
            is_ghost=not options.real,
        )
        heard = await listen(node.port, wish)
        verdict: Verdict = judge(wish, heard)
        tally.add(verdict)
        if verdict.what not in GOOD and options.show:
            print(f"stream {number}: {verdict}\n{bytes(heard.body[-400:])!r}", file=sys.stderr)

    killing = asyncio.create_task(kill_them(node, options.every, killed))
    try:
        await all_of(options.streams, options.at_once, one)
    finally:
        killing.cancel()
    return tally, killed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=1000)
    parser.add_argument("--ghosts", type=int, default=8)
    parser.add_argument(
        "--every", type=float, default=5.0, help="seconds from one kill to the next"
    )
    parser.add_argument("--speed", default="0.1x", help="of the ghosts")
    parser.add_argument(
        "--real", action="store_true", help="this machine's engines, in place of ghosts"
    )
    parser.add_argument("--seconds", type=float, help="begin no stream after this long")
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="with every request"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--show", action="store_true", help="print the end of what was not answered whole"
    )
    options = parser.parse_args()  # fmt: skip
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    with tempfile.TemporaryDirectory() as folder:
        arguments = []
        if not options.real:
            plan = Path(folder) / "plan.yaml"
            plan.write_text(PLAN.format(ghosts=options.ghosts))
            arguments = ["--plan", str(plan), "--ghost", "--ghost-processes", str(options.ghosts), "--ghost-speed", options.speed]  # fmt: skip
        with UpNode(*arguments) as node:
            count = len(node.engines())
            began_s = time.monotonic()
            tally, killed = uvloop.run(run(node, options))
            took_s = time.monotonic() - began_s
            spent_s = cpu_s(node.process.pid)
            notes = node.log.read_text() if options.show else ""
    print(notes, file=sys.stderr, end="")
    streams = sum(tally.counts.values())
    what = "real engines" if options.real else "ghosts"
    print(
        f"{streams:,} streams, up to {options.at_once:,} at once, over {count} {what}, in {took_s:.0f} s"
    )
    print(f"{len(killed)} kills, one every {options.every:g} s; gateway {spent_s:.1f} s of CPU")
    print("\n".join(tally.lines()))
    return 1 if tally.bad or not tally.counts else 0


if __name__ == "__main__":
    sys.exit(main())
