"""Live runs of this machine's node under the same drawn traffic, for `polypod replay --calibrate`.

    python scripts/live_parity.py FOLDER                     two runs, then the table (make live-parity)
    python scripts/live_parity.py FOLDER --runs 1 --rough    one run that goes wrong where it can; prints the record's path

Requests arrive at random times whatever becomes of those before (open loop), prompts and answers of lengths drawn evenly in the logarithm, three of four
streamed. Answers go on to their length (`ignore_eos`), so that two runs ask for the same work. Rough is traffic of which one client in eight leaves before
its answer is whole and one request in sixteen is for a model that is not served, with an engine killed when half are sent.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

MODEL = "SmolLM2-135M-Instruct"
WORDS = "one red tree stands near the old stone house while rain falls on green hills and birds sing".split()  # noqa: SIM905
PROMPT_WORDS = (10, 400)
ANSWER_TOKENS = (8, 96)
STREAMED = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One request to be sent."""

    at_s: float
    words: int
    answer_tokens: int
    is_streamed: bool
    model: str = MODEL
    leaves_s: float | None = None  # after so long the client is gone


def rough(asked: Sequence[Asking]) -> list[Asking]:
    """The same requests, some for no model and some of clients who leave."""
    return [
        replace(
            one,
            model="no-such-model" if n % 16 == 5 else MODEL,
            leaves_s=0.4 if n % 8 == 3 else None,
        )
        for n, one in enumerate(asked)
    ]


def drawn(requests: int, rate_per_s: float, seed: int) -> list[Asking]:
    """The same for the same seed."""
    draw = random.Random(seed)
    at_s, asked = 0.0, []
    for _ in range(requests):
        at_s += draw.expovariate(rate_per_s)
        words, tokens = (
            round(low * (high / low) ** draw.random())
            for low, high in (PROMPT_WORDS, ANSWER_TOKENS)
        )
        asked.append(
            Asking(
                at_s=at_s, words=words, answer_tokens=tokens, is_streamed=draw.random() < STREAMED
            )
        )
    return asked


async def send(session: aiohttp.ClientSession, url: str, number: int, asking: Asking) -> bool:
    """Ask, read all of the answer; whether it came whole."""
    draw = random.Random(number)
    text = " ".join([f"Request {number}:", *draw.choices(WORDS, k=asking.words)])
    body: dict[str, Any] = {
        "model": asking.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": asking.answer_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }
    if asking.is_streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    with suppress(aiohttp.ClientError, TimeoutError):
        async with (
            asyncio.timeout(asking.leaves_s),
            session.post(f"{url}/chat/completions", json=body) as response,
        ):
            answer = await response.read()
            return response.status == 200 and (not asking.is_streamed or b"[DONE]" in answer)
    return False


def engine_process(state: Path, module: str) -> int:
    """The process of an engine that this script's node has started: its environment names the node's own state folder."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(state).encode() in (entry / "environ").read_bytes() and module.encode() in (entry / "cmdline").read_bytes():  # fmt: skip
                return int(entry.name)
    msg = f"no {module} runs"
    raise RuntimeError(msg)


async def play(url: str, asked: Sequence[Asking], state: Path, *, kills: bool) -> int:
    """Send all at their times; how many were answered whole. The kill comes when half are sent."""
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:  # fmt: skip
        tasks = []
        for number, asking in enumerate(asked):
            await asyncio.sleep(max(begun_s + asking.at_s - loop.time(), 0.0))
            tasks.append(asyncio.create_task(send(session, url, number, asking)))
            if number in (0, len(asked) // 2, len(asked) - 1):
                print(f"request {number}: load average of the last minute {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)  # fmt: skip
            if kills and number == len(asked) // 2:
                await asyncio.sleep(0.1)
                os.kill(engine_process(state, "openvino_server"), signal.SIGKILL)
        return sum(await asyncio.gather(*tasks))


def run_live(state: Path, asked: Sequence[Asking], *, kills: bool) -> Path:
    """Start a node, send, stop it; its record."""
    state.mkdir(parents=True, exist_ok=True)
    before = set(state.glob("polypod/runs/*"))
    with (state / "stderr").open("w") as stderr:
        node = subprocess.Popen(
            [sys.executable, "-m", "polypod", "up", "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"XDG_STATE_HOME": str(state)},
        )
    try:
        assert node.stdout is not None
        text = ""
        for line in node.stdout:  # one object, then silence
            text += line
            if line.startswith("}"):
                break
        if not text:
            raise RuntimeError((state / "stderr").read_text())
        whole = asyncio.run(play(json.loads(text)["endpoint"], asked, state, kills=kills))
        print(f"{whole} of {len(asked)} answered whole", file=sys.stderr)
    finally:
        node.send_signal(signal.SIGINT)
        node.wait(60)
    (folder,) = set(state.glob("polypod/runs/*")) - before
    return folder / "record.jsonl"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the nodes' measurements, logs and records")
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--rate", type=float, default=0.8, help="requests per second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--rough", action="store_true", help="clients leave, models are unknown, an engine is killed")  # fmt: skip
    args = parser.parse_args()
    asked = drawn(args.requests, args.rate, args.seed)
    asked = rough(asked) if args.rough else asked
    records = [run_live(args.folder, asked, kills=args.rough) for _ in range(args.runs)]
    print(*records, sep="\n", flush=True)
    if len(records) < 2:
        return 0
    command = [sys.executable, "-m", "polypod", "replay", str(records[0]), "--calibrate"]
    return subprocess.run([*command, "--beside", str(records[1])], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
