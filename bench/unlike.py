"""Two unlike chips behind one door: what routing by predicted finish is worth beside round robin, least connections and fixed shares.

    python bench/unlike.py                     llama.cpp and OpenVINO, one core each: two rounds of every router, a quarter of an hour
    python bench/unlike.py --ghost             the same plan by ghosts, which no other work on this machine disturbs
    python bench/unlike.py --ghost --splits    fixed shares on a grid as well, to find the best one by trying
    python bench/unlike.py --predict           by the simulator alone: several loads, and the best of 30 fixed shares at each

Traffic is mixed and comes at random times whatever becomes of it (open loop): short chats, and long prompts with short answers. Goodput is requests a
second that keep both limits, as their client sees it. A router other than ours names the replica of each request (`x-polypod-replica`), as any client
may. All routers see the same requests at the same times; every round runs all of them, in an order that rotates, so that other work on the machine
falls on all alike. `predicted` is the simulator's goodput for the same arrivals: before anything ran, and with the corrections that the node had
learnt by the end; a fixed share and round robin are played as two nodes of one replica each.
"""

import argparse
import asyncio
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import uvloop

from polypod.plan.predict import policy_settings, pool_replicas
from polypod.plan.spec import Plan, PolicySpec, Slo
from polypod.policy.events import FirstToken, ReplicaUp, RequestArrived, RequestFinished
from polypod.record import Step
from polypod.serve.devices.cpu import find_cpu
from polypod.serve.listen import bind
from polypod.serve.local import Wishes, plan_local, prepare, prepare_ghosts
from polypod.serve.node import LiveNode
from polypod.serve.store import host_measurement
from polypod.simulate import Arrival, Scenario, play

WORDS = "time year way day man thing woman life child world school state family student group country problem".split()  # noqa: SIM905
FOUR_BYTES = [
    word for word in WORDS if len(word) == 3
]  # and a space: what a ghost takes for one token
TEMPLATE_TOKENS = 31  # of the model's chat template, around the words
SLOW, FAST = "llama.cpp-0", "openvino-0"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request to come."""

    at_s: float
    words: int
    answer_tokens: int

    @property
    def is_long(self) -> bool:
        return self.words > 300


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What its client saw of it."""

    asked: Asked
    replica: str | None
    ttft_s: float | None = None
    tpot_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    ttft_s: float
    tpot_s: float

    def keep(self, ttft_s: float | None, tpot_s: float) -> bool:
        return ttft_s is not None and ttft_s <= self.ttft_s and tpot_s <= self.tpot_s


def drawn(options: argparse.Namespace, seed: int) -> list[Asked]:
    """The requests of one round."""
    draw, at_s, asked = random.Random(seed), 0.0, []
    chats, longs = options.chats * options.load, options.longs * options.load
    while (at_s := at_s + draw.expovariate(chats + longs)) < options.seconds:
        is_long = draw.random() < longs / (chats + longs)
        words, tokens = (draw.randint(600, 900), 16) if is_long else (draw.randint(15, 60), 64)
        asked.append(Asked(at_s=at_s, words=words, answer_tokens=tokens))
    return asked


# ---- routers: each says where the next request goes; None leaves it to the node

Route = Callable[[Asked, dict[str, int]], str | None]


def ours() -> Route:
    return lambda _, __: None


def round_robin() -> Route:
    count = 0

    def route(_: Asked, __: dict[str, int]) -> str:
        nonlocal count
        count += 1
        return (SLOW, FAST)[count % 2]

    return route


def least_connections() -> Route:
    turn = round_robin()

    def route(asked: Asked, in_flight: dict[str, int]) -> str | None:
        fewest = min(in_flight.values())
        free = [name for name in (SLOW, FAST) if in_flight[name] == fewest]
        return free[0] if len(free) == 1 else turn(asked, in_flight)

    return route


def fixed(chats: float, longs: float) -> Route:
    """These shares of chats and of long prompts go to the faster one, spread evenly."""
    owed = {False: 0.0, True: 0.0}

    def route(asked: Asked, _: dict[str, int]) -> str:
        owed[asked.is_long] += longs if asked.is_long else chats
        if owed[asked.is_long] >= 1.0 - 1e-9:
            owed[asked.is_long] -= 1.0
            return FAST
        return SLOW

    return route


def routers(*, splits: bool, shares: Sequence[str]) -> dict[str, Callable[[], Route]]:
    """Makers, by name."""
    found: dict[str, Callable[[], Route]] = {
        "predicted finish (ours)": ours,
        "round robin": round_robin,
        "least connections": least_connections,
    }
    grid = [(c / 10, n) for c in range(4, 11) for n in (0.5, 1.0)] if splits else []
    grid += [tuple(map(float, one.split(","))) for one in shares]
    for chats, longs in grid:
        name = f"fixed: {100 * chats:.0f} % of chats, {100 * longs:.0f} % of long to {FAST}"
        found[name] = lambda chats=chats, longs=longs: fixed(chats, longs)
    return found


# ---- live


async def send(
    session: aiohttp.ClientSession, model: str, asked: Asked, text: str, replica: str | None
) -> Seen:
    loop = asyncio.get_running_loop()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": asked.answer_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    headers = {"x-polypod-replica": replica} if replica else {}
    sent_s, first_s, last_s, is_done = loop.time(), None, 0.0, False
    async with session.post("/v1/chat/completions", json=body, headers=headers) as response:
        served = response.headers.get("x-polypod-replica")
        async for line in response.content:
            if b'"content":"' in line and b'"content":""' not in line:
                last_s = loop.time()
                first_s = first_s or last_s
            is_done = is_done or line.startswith(b"data: [DONE]")
    if first_s is None or not is_done:
        return Seen(asked=asked, replica=served)
    tpot_s = (last_s - first_s) / (asked.answer_tokens - 1)
    return Seen(asked=asked, replica=served, ttft_s=first_s - sent_s, tpot_s=tpot_s)


async def trial(
    node: LiveNode, model: str, requests: Sequence[Asked], route: Route, words: Sequence[str]
) -> list[Seen]:
    """Send all at their times; return when all are answered."""
    loop, in_flight = asyncio.get_running_loop(), {SLOW: 0, FAST: 0}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(node.url, connector=connector, timeout=timeout) as session:

        async def one(asked: Asked, number: int) -> Seen:
            replica = route(asked, in_flight)
            if replica is not None:
                in_flight[replica] += 1
            try:
                text = " ".join(random.Random(number).choices(words, k=asked.words))
                return await send(session, model, asked, text, replica)
            finally:
                if replica is not None:
                    in_flight[replica] -= 1

        begun_s, tasks = loop.time(), []
        for number, asked in enumerate(requests):
            await asyncio.sleep(max(begun_s + asked.at_s - loop.time(), 0.0))
            tasks.append(asyncio.create_task(one(asked, number)))
        return list(await asyncio.gather(*tasks))


# ---- predicted


def predicted(plan: Plan, requests: Sequence[Asked], route: Route | None, options: argparse.Namespace, corrections: dict[tuple[str, str], float]) -> float:  # fmt: skip
    """Requests a second inside the limits, by the simulator; `route` None is ours, over both replicas at once."""
    ups = [corrected(up, corrections) for up in pool_replicas(plan)]
    if route is None:
        return good_of(plan, ups, requests, options) / options.seconds
    parts: dict[str, list[Asked]] = {SLOW: [], FAST: []}
    for asked in requests:
        parts[str(route(asked, {SLOW: 0, FAST: 0}))].append(asked)
    good = sum(good_of(plan, [up], parts[up.replica], options) for up in ups)
    return good / options.seconds


def corrected(up: ReplicaUp, factors: dict[tuple[str, str], float]) -> ReplicaUp:
    """The replica with its step times as they were measured: those of few tokens as of decoding, those of many as of prompts."""
    decode, prompt = factors.get((up.replica, "decode"), 1.0), factors.get((up.replica, "prefill"), 1.0)  # fmt: skip
    step = up.step_time
    seconds = [(decode if tokens <= 8 else prompt) * s for tokens, s in zip(step.tokens, step.seconds, strict=True)]  # fmt: skip
    times = msgspec.structs.replace(step, seconds=tuple(seconds), kv_token_s=decode * step.kv_token_s, pair_s=prompt * step.pair_s, sequence_s=decode * step.sequence_s)  # fmt: skip
    return msgspec.structs.replace(up, step_time=times)


def good_of(plan: Plan, ups: Sequence[ReplicaUp], requests: Sequence[Asked], options: argparse.Namespace) -> int:  # fmt: skip
    model = plan.services[0].model
    trace = tuple(
        Arrival(at_s=one.at_s, model=model, input_tokens=one.words + TEMPLATE_TOKENS, output_tokens=one.answer_tokens, max_output_tokens=one.answer_tokens)
        for one in requests
    )  # fmt: skip
    scenario = Scenario(replicas=tuple(ups), settings=policy_settings(plan), trace=trace)
    came: dict[int, float] = {}
    first: dict[int, float] = {}
    good = 0
    for line in play(scenario).lines:
        event = line.event if isinstance(line, Step) else None
        if isinstance(event, RequestArrived):
            came[event.request] = event.at_s
        elif isinstance(event, FirstToken):
            first[event.request] = event.at_s
        elif isinstance(event, RequestFinished):
            at_s = first[event.request]
            tpot_s = (event.at_s - at_s) / max(event.output_tokens - 1, 1)
            good += Limits(ttft_s=options.ttft, tpot_s=options.tpot).keep(at_s - came[event.request], tpot_s)  # fmt: skip
    return good


# ---- the table


async def measure(node: LiveNode, plan: Plan, options: argparse.Namespace) -> dict[str, list[list[Seen]]]:  # fmt: skip
    """Every router once a round."""
    makers = routers(splits=options.splits, shares=options.share)
    names, seen = list(makers), {name: [] for name in makers}
    model = plan.services[0].model
    for number in range(options.rounds):
        requests = drawn(options, options.seed + number)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found = await trial(
                node, model, requests, makers[name](), FOUR_BYTES if options.ghost else WORDS
            )
            seen[name].append(found)
            print(f"  round {number + 1}, {name}: {goodput(found, options):.3f}/s, load average {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    return seen


def goodput(seen: Sequence[Seen], options: argparse.Namespace) -> float:
    limits = Limits(ttft_s=options.ttft, tpot_s=options.tpot)
    return sum(limits.keep(one.ttft_s, one.tpot_s) for one in seen) / options.seconds


def show(plan: Plan, seen: dict[str, list[list[Seen]]], corrections: dict[tuple[str, str], float], options: argparse.Namespace) -> None:  # fmt: skip
    rounds = [drawn(options, options.seed + number) for number in range(options.rounds)]
    mine = [goodput(one, options) for one in next(iter(seen.values()))]
    print(
        f"\nlimits: TTFT {options.ttft:g} s, TPOT {options.tpot:g} s; {statistics.fmean(map(len, rounds)) / options.seconds:.2f} requests/s come, {options.rounds} rounds of {options.seconds:g} s"
    )
    print(
        "corrections at the end: "
        + ", ".join(
            f"{name} {phase} {factor:.2f}" for (name, phase), factor in sorted(corrections.items())
        )
    )
    print(
        f"\n{'':58}{'goodput/s':>10}{'of rounds':>18}{'kept':>7}{'ours over it':>14}{'of rounds':>16}{'predicted':>11}{'corrected':>11}{'to ' + FAST:>15}"
    )
    for name, found in seen.items():
        rates = [goodput(one, options) for one in found]
        over = [a / b if b else float("inf") for a, b in zip(mine, rates, strict=True)]
        kept = statistics.fmean(goodput(one, options) * options.seconds / len(one) for one in found)
        served = [one.replica for trial_ in found for one in trial_]
        told = []
        for factors in ({}, corrections):
            if name == "least connections":
                told.append("-")
                continue
            maker = routers(splits=options.splits, shares=options.share)[name]
            guesses = [
                predicted(plan, one, None if maker is ours else maker(), options, factors)
                for one in rounds
            ]
            told.append(f"{statistics.fmean(guesses):.3f}")
        total = statistics.fmean(mine) / statistics.fmean(rates) if any(rates) else float("inf")
        print(f"{name:58}{statistics.fmean(rates):>10.3f}{f'{min(rates):.3f} .. {max(rates):.3f}':>18}{kept:>7.0%}{total:>14.2f}{f'{min(over):.2f} .. {max(over):.2f}':>16}{told[0]:>11}{told[1]:>11}{served.count(FAST) / len(served):>15.0%}")  # fmt: skip


def prefer() -> None:
    """Let the kernel run this process and its engines before others: each began a session, and sessions share a core fairly."""
    tasks = Path("/proc/self/task").iterdir()
    for process in ["self", *(pid for task in tasks for pid in (task / "children").read_text().split())]:  # fmt: skip
        os.setpriority(os.PRIO_PROCESS, 0 if process == "self" else int(process), -15)
        Path(f"/proc/{process}/autogroup").write_text("-18")


def guarded(plan: Plan, options: argparse.Namespace) -> Plan:
    """The same plan with these limits promised, and nobody let in who would come too late."""
    slo = Slo(ttft=f"{options.ttft} s", tpot=f"{options.tpot} s")
    services = (msgspec.structs.replace(plan.services[0], slo=slo),)
    return msgspec.structs.replace(plan, services=services, policy=PolicySpec(admission="slo"))


def show_predicted(plan: Plan, options: argparse.Namespace) -> None:
    """Goodput at several loads, by the simulator."""
    print(f"{'requests/s':>10}{'ours':>8}{'of best':>9}{'ours, admission: slo':>22}{'of best':>9}{'round robin':>13}{'best fixed share':>18}")  # fmt: skip
    for load in (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4):
        at = argparse.Namespace(**vars(options) | {"load": load})
        requests = drawn(at, options.seed)
        mine, held = (predicted(one, requests, None, at, {}) for one in (plan, guarded(plan, at)))
        turns = predicted(plan, requests, round_robin(), at, {})
        best = max(predicted(plan, requests, fixed(c / 20, n), at, {}) for c in range(8, 18) for n in (0.5, 0.75, 1.0))  # fmt: skip
        print(f"{len(requests) / at.seconds:>10.2f}{mine:>8.2f}{mine / best:>9.0%}{held:>22.2f}{held / best:>9.0%}{turns:>13.2f}{best:>18.2f}")  # fmt: skip


async def run(options: argparse.Namespace) -> None:
    cpu = find_cpu()
    plan = plan_local(
        cpu, host_measurement(cpu, cpu.cores[: cpu.usable_cores]), Wishes(context_tokens=2048)
    )
    if options.predict:
        show_predicted(plan, options)
        return
    plan = guarded(plan, options) if options.admission == "slo" else plan
    with tempfile.TemporaryDirectory() as folder:
        ready = prepare_ghosts if options.ghost else prepare
        prepared = ready(plan, Path(folder))
        stop = asyncio.Event()
        async with LiveNode(prepared, bind("127.0.0.1", 0), lambda news: print(" ", news)) as node:
            serving = asyncio.create_task(node.serve(stop))
            if options.prefer:
                prefer()
            seen = await measure(node, plan, options)
            corrections = node.policy.corrections()
            stop.set()
            await serving
        show(plan, seen, corrections, options)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--predict", action="store_true")
    parser.add_argument(
        "--admission",
        choices=("queue", "slo"),
        default="queue",
        help="of the node, for all routers",
    )
    parser.add_argument("--ghost", action="store_true")
    parser.add_argument(
        "--prefer", action="store_true", help="before other work on this machine; needs root"
    )
    parser.add_argument("--splits", action="store_true", help="a grid of fixed shares too")
    parser.add_argument(
        "--share",
        action="append",
        default=[],
        metavar="CHATS,LONGS",
        help="a fixed share to try, as 0.7,1",
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals in a trial")
    parser.add_argument("--chats", type=float, default=1.7, help="a second")
    parser.add_argument("--longs", type=float, default=0.25, help="a second")
    parser.add_argument("--load", type=float, default=1.0, help="times as many of both")
    parser.add_argument("--ttft", type=float, default=2.0, help="limit in seconds")
    parser.add_argument("--tpot", type=float, default=0.15, help="limit in seconds")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.share = options.share or ["0.7,1"]
    uvloop.run(run(options))  # fmt: skip


if __name__ == "__main__":
    main()
