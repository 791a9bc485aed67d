"""A node under steady traffic and faults, for as long as you like: does anything grow, and is anything left behind?

    python -m tests.faults.soak_live --minutes 60

50 requests/s of 30 tokens each over ghosts in four processes. Every 20 s one of the processes is killed, stopped for some seconds (it hangs), or made
to stutter; one client in twenty leaves in the middle, and one in fifty reads slowly. Memory and descriptors of the node are sampled every five
seconds. A node's memory follows the most requests it ever had in flight: what Python has for a peak it keeps for the next. So the run is warm from the first
sample on by which nine tenths of that most had been in flight at once, a fifth of it at least; the growth is the slope through the medians of ten parts of the
rest, with a 95 % interval. It holds where all of the interval is below 48 bytes a request, so that a leak of 64 cannot pass, and where half of the run at
least was warm: a peak that comes late says nothing. Before and after, idle, the node must hold as many descriptors and processes. Exits 1 where any of this
does not hold, or a stream was cut, glued or lost.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.faults.kills import MODEL, PLAN, in_flight
from tests.faults.live import Tally, Wish, judge, listen
from tests.faults.live_node import UpNode, children, cpu_s, descriptors, rss_bytes

PROCESSES = 4
TOKENS = 30
SAMPLE_S = 5.0
PARTS = 10
T_95 = 2.306  # Student's t with eight degrees of freedom
MOST_GROWTH_BYTES = 48  # a request, at the upper end of the interval
OF_PEAK = 0.9
LEAST_COLD = 0.2  # of the run
LEAST_WARM = 0.5


@dataclass(frozen=True, kw_only=True)
class Sample:
    at_s: float
    rss_bytes: int
    descriptors: int
    threads: int
    processes: int
    engines_rss_bytes: int
    in_flight: int
    requests: int
    most_in_flight: int = 0  # up to here


class Soak:
    """One run."""

    def __init__(self, node: UpNode, options: argparse.Namespace) -> None:
        self.tally = Tally()
        self.samples: list[Sample] = []
        self.faults: dict[str, int] = {}
        self.left = 0
        self.asked = 0
        self._node = node
        self._options = options
        self._numbers = random.Random(options.seed)
        self._in_flight = self._most_in_flight = 0

    async def run(self) -> None:
        ends_s = time.monotonic() + 60 * self._options.minutes
        around = [asyncio.create_task(self._sample()), asyncio.create_task(self._break())]
        streams: set[asyncio.Task[None]] = set()
        due_s = time.monotonic()
        while time.monotonic() < ends_s:
            due_s += self._numbers.expovariate(self._options.rate)
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            task = asyncio.create_task(self._one())
            streams.add(task)
            task.add_done_callback(streams.discard)
        for task in around:
            task.cancel()
        await asyncio.gather(*around, return_exceptions=True)
        await asyncio.gather(*streams)

    async def _one(self) -> None:
        self.asked += 1
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        numbers = self._numbers
        leaves = numbers.randint(200, 4000) if numbers.random() < 0.05 else None
        slow_s = 0.2 if numbers.random() < 0.02 else 0.0
        wish = Wish(
            model=self._node.model,
            text=f"soak {self.asked}: " + "go on " * numbers.randint(1, 60),
            tokens=TOKENS,
        )
        heard = await listen(self._node.port, wish, leave_after=leaves, slow=slow_s)
        self._in_flight -= 1
        if heard.was_left:
            self.left += 1
            return
        verdict = judge(wish, heard)
        self.tally.add(verdict)
        if verdict.what in ("cut", "glued", "refused"):
            print(f"{time.strftime('%H:%M:%S')} {verdict}", file=sys.stderr, flush=True)

    async def _break(self) -> None:
        number = 0
        while True:
            await asyncio.sleep(self._options.fault_every)
            engines = list(self._node.engines().values())
            pid = engines[number % len(engines)]
            number += 1
            what = self._numbers.choice(["kill", "hang", "stutter"])
            self.faults[what] = self.faults.get(what, 0) + 1
            with contextlib.suppress(ProcessLookupError):
                await getattr(self, f"_{what}")(pid)

    async def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    async def _hang(self, pid: int) -> None:
        await self._stop(pid, 4.0)

    async def _stutter(self, pid: int) -> None:
        for _ in range(12):
            await self._stop(pid, 0.25)
            await asyncio.sleep(0.25)

    async def _stop(self, pid: int, seconds: float) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def _sample(self) -> None:
        began_s = time.monotonic()
        while True:
            self.samples.append(self.sample(time.monotonic() - began_s))
            await asyncio.sleep(SAMPLE_S)

    def sample(self, at_s: float) -> Sample:
        pid = self._node.process.pid
        engines = children(pid)
        return Sample(
            at_s=at_s,
            rss_bytes=rss_bytes(pid),
            descriptors=descriptors(pid),
            threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
            processes=len(engines),
            engines_rss_bytes=max(map(rss_bytes, engines), default=0),
            in_flight=self._in_flight,
            requests=self.asked,
            most_in_flight=self._most_in_flight,
        )


def warm(samples: Sequence[Sample]) -> list[Sample]:
    """Those since nine tenths of the most that was ever in flight at once had been, and not the run's first fifth."""
    most = samples[-1].most_in_flight
    is_warm = [one.most_in_flight >= OF_PEAK * most for one in samples]
    return list(samples[max(is_warm.index(True), round(LEAST_COLD * len(samples))) :])


def growth_bytes_per_s(kept: Sequence[Sample]) -> tuple[float, float]:
    """The slope of resident memory, and half its 95 % interval, by least squares through the medians of ten parts."""
    size = len(kept) / PARTS
    parts = [kept[round(n * size) : round((n + 1) * size)] for n in range(PARTS)]
    x = [statistics.fmean(one.at_s for one in part) for part in parts]
    y = [statistics.median(one.rss_bytes for one in part) for part in parts]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    left = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    return slope, T_95 * (left / (PARTS - 2) / spread) ** 0.5


def grows(samples: Sequence[Sample]) -> tuple[str, str]:
    """What is found of its memory, and what of it does not hold; the second is empty where it is flat."""
    kept = warm(samples)
    if len(kept) < max(LEAST_WARM * len(samples), 2 * PARTS):
        return "", (
            f"the most in flight came {kept[0].at_s / 60:.1f} min into {samples[-1].at_s / 60:.1f}: what is left says nothing of memory; run it longer, "
            "or on a machine with less to do"
        )
    took_s = kept[-1].at_s - kept[0].at_s
    rate = (kept[-1].requests - kept[0].requests) / took_s
    slope, half = growth_bytes_per_s(kept)
    found = (
        f"memory from {kept[0].at_s / 60:.1f} min on, when nine tenths of the most in flight ({samples[-1].most_in_flight}) had been: "
        f"{slope * 3600 / 1e6:.2f} +- {half * 3600 / 1e6:.2f} MB an hour, {slope / rate:.1f} +- {half / rate:.1f} bytes a request"
    )
    most = (slope + half) / rate
    return (
        found,
        "" if most < MOST_GROWTH_BYTES else f"memory may grow by {most:.0f} bytes a request",
    )


def report(
    soak: Soak, before: Sample, after: Sample, in_flight_after: float, cpu: float
) -> list[str]:
    """Print the table; return what does not hold."""
    samples, faults = soak.samples, soak.faults
    took_s = samples[-1].at_s
    found, wrong_growth = grows(samples)
    rate = soak.asked / took_s
    print(
        f"{took_s / 60:.1f} min, {soak.asked:,} requests, {rate:.1f} requests/s, {rate * TOKENS:,.0f} tokens/s; node {cpu / took_s:.2f} cores"
    )
    print(
        f"faults: {', '.join(f'{count} x {what}' for what, count in sorted(faults.items())) or 'none'}; {soak.left:,} clients left in the middle"
    )
    print("\n".join(soak.tally.lines()))
    print(
        f"\n{'at':>8}{'node RSS':>12}{'fds':>7}{'threads':>9}{'engines':>9}{'largest engine':>16}{'in flight':>11}{'requests':>11}"
    )
    shown = [*samples[:: max(len(samples) // PARTS, 1)], samples[-1]]
    for name, one in [
        ("before", before),
        *((f"{s.at_s / 60:.1f} min", s) for s in shown),
        ("after", after),
    ]:
        print(
            f"{name:>8}{one.rss_bytes / 1e6:>9.1f} MB{one.descriptors:>7}{one.threads:>9}{one.processes:>9}{one.engines_rss_bytes / 1e6:>13.1f} MB{one.in_flight:>11}{one.requests:>11,}"
        )
    print(f"\n{found}")
    wrong = [wrong_growth] if wrong_growth else []
    if after.descriptors > before.descriptors + 2:
        wrong.append(f"{after.descriptors - before.descriptors} descriptors are left open")
    if after.processes != before.processes:
        wrong.append(f"{after.processes} engine processes, {before.processes} before")
    if in_flight_after:
        wrong.append(f"the node believes {in_flight_after:g} requests to be in flight")
    if soak.tally.bad:
        wrong.append(f"{soak.tally.bad} streams were cut, glued or lost")
    print(
        "\n".join(f"DOES NOT HOLD: {one}" for one in wrong)
        or "memory is flat, and nothing is left behind"
    )
    return wrong  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--fault-every", type=float, default=20.0, help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speed", default="0.1x", help="of the ghosts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.yaml"
        plan.write_text(PLAN.format(ghosts=PROCESSES, model=MODEL))
        with UpNode("--plan", str(plan), "--ghost", "--ghost-processes", str(PROCESSES), "--ghost-speed", options.speed) as node:  # fmt: skip
            soak = Soak(node, options)
            time.sleep(8.0)
            before = soak.sample(0.0)
            spent_s = cpu_s(node.process.pid)
            uvloop.run(soak.run())
            spent_s = cpu_s(node.process.pid) - spent_s
            time.sleep(
                12.0
            )  # idle connections are closed after some seconds, and what was killed is back
            after = soak.sample(soak.samples[-1].at_s)
            wrong = report(soak, before, after, in_flight(node.port), spent_s)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
