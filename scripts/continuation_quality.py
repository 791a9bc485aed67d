"""What a continuation keeps: greedy answers of the two real engines cut short, gone on with by the same engine or the other, and held against the uninterrupted ones.

    python scripts/continuation_quality.py [--tokens N] [--every N]     ("make continuation")

For each pair of engines and each mode: how many continuations end as the uninterrupted answer does, word for word; defects at the seam (a word said
twice, a space too many or missing, a broken character); and the mean negative log-likelihood of a token after the seam, as llama.cpp judges it, beside
that of the uninterrupted answer from the same place on. Exits 1 where an exact continuation of llama.cpp differs, or a seam has a defect. OpenVINO's
arithmetic depends on how tokens come to it, a prompt at once or one by one, so that a near tie may fall otherwise; its row is shown, not judged.
"""

import argparse
import asyncio
import http.client
import json
import math
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

from polypod.policy.events import Continuation
from polypod.serve.continuation import opted
from polypod.serve.engines import ENGINES, EngineSpec
from polypod.serve.engines.embedded import MODEL_NAME, embedded_weights
from polypod.serve.resume import asking
from polypod.serve.supervise import make_socket_directory
from polypod.serve.transcript import Leg, Transcript
from polypod.serve.upstream import Upstream
from polypod.serve.wire import read_chat

PAIR: Final = ("llama.cpp", "openvino")
SAME_ARITHMETIC: Final = frozenset(("llama.cpp",))
"""Engines that compute the same of the same tokens, however they come."""

CHAT: Final = "/v1/chat/completions"
PROMPTS: Final = (
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is the capital of France, and what is it known for?",
    "List the days of the week.",
    "Explain in two sentences why the sky is blue.",
    "Write a Python function that adds two numbers.",
)
LEAST_PROBABILITY: Final = 1e-6  # of a token that is not among the likeliest
LIKELIEST: Final = 500


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=300)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Engine:
    name: str
    socket: Path

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        connection = _Connection(self.socket)
        connection.request("POST" if body else "GET", path, body or None)
        response = connection.getresponse()
        return response.status, response.read()

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        """What `resume` wants of a connection."""
        return self.post(path, body)

    def events(self, path: str, body: bytes) -> list[bytes]:
        status, answer = self.post(path, body)
        if status != 200:
            msg = f"{self.name}{path} answered {status}: {answer[:300]!r}"
            raise SystemExit(msg)
        return [part + b"\n\n" for part in answer.split(b"\n\n") if part.strip()]


@dataclass
class Tally:
    """One row of the table."""

    continuations: int = 0
    same: int = 0
    defects: list[str] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)  # of each token after the seam
    whole_nats: list[float] = field(
        default_factory=list
    )  # of the uninterrupted answer's from there


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--every", type=int, default=8, help="cut after each so many tokens")
    asked = parser.parse_args()
    with running() as engines:
        rows = list(measure(engines, asked.tokens, asked.every))
    bad = False
    print(f"{'began at':10} {'went on at':10} {'mode':6} {'same answer':>12} {'seam defects':>13} {'nats/token':>11} {'uninterrupted':>14}")  # fmt: skip
    for first, second, mode, tally in rows:
        same = f"{tally.same} of {tally.continuations}"
        print(f"{first:10} {second:10} {mode:6} {same:>12} {len(tally.defects):>13} {_mean(tally.nats):>11} {_mean(tally.whole_nats):>14}")  # fmt: skip
        for defect in tally.defects:
            print(f"    {defect}")
        must_be_same = mode == "exact" and first in SAME_ARITHMETIC
        bad = bad or bool(tally.defects) or (must_be_same and tally.same < tally.continuations)
    return 1 if bad else 0


@dataclass
class Whole:
    """An uninterrupted answer: the events as they came, and its text."""

    body: bytes
    mode: Continuation
    events: list[bytes]
    tokens: int
    text: str

    def cut(self, tokens: int) -> Transcript:
        """What there was of it after so many tokens."""
        transcript = _new(self.body, self.mode)
        leg = Leg(transcript, hides_ids=self.mode == "exact")
        for event in self.events:
            if transcript.tokens >= tokens:
                break
            leg.take(event)
        return transcript


def measure(
    engines: dict[str, Engine], tokens: int, every: int
) -> Iterator[tuple[str, str, Continuation, Tally]]:
    judge = engines["llama.cpp"]
    modes: tuple[Continuation, ...] = ("exact", "text")
    for first in PAIR:
        for mode in modes:
            wholes = [whole_of(engines[first], mode, body_of(one, tokens)) for one in PROMPTS]
            for second in PAIR if mode == "text" else (first,):
                tally = Tally()
                for whole in wholes:
                    for cut in range(every, whole.tokens, every):
                        _one(tally, engines[second], judge, whole, cut)
                print(f"{first} to {second}, {mode}: done", file=sys.stderr, flush=True)
                yield first, second, mode, tally


def _one(tally: Tally, second: Engine, judge: Engine, whole: Whole, cut: int) -> None:
    """Cut an answer, go on with it, and look at it."""
    transcript = whole.cut(cut)
    before = transcript.text
    if not before or transcript.finish is not None:
        return
    _play(second, transcript, whole.body)
    said = transcript.text
    tally.continuations += 1
    tally.same += said == whole.text
    tally.defects += [f"{what}: ...{before[-30:]!r} {said[len(before) : len(before) + 20]!r}" for what in defects(before, said, whole.text)]  # fmt: skip
    if whole.mode == "text":
        tally.nats += nats(judge, whole.body, before, said)
        tally.whole_nats += nats(judge, whole.body, before, whole.text)


def defects(before: str, said: str, whole: str) -> list[str]:
    """What is wrong at the seam, that the uninterrupted answer has nowhere."""
    found = []
    around = said[max(len(before) - 12, 0) : len(before) + 12]
    if "\N{REPLACEMENT CHARACTER}" in around:
        found.append("a broken character")
    for what, pattern in (
        ("a space twice", r"\S  +\S"),
        ("a word twice", r"\b(\w{3,}) \1\b"),
        ("a space missing", r"[a-z][.!?][A-Z]|[a-z]{2}[A-Z][a-z]{2}"),
    ):
        hit = re.search(pattern, around)
        if hit and hit[0] not in whole:
            found.append(what)
    return found


@cache
def nats(judge: Engine, body: bytes, before: str, said: str) -> list[float]:
    """The negative log-likelihood of each token after the seam, given all before it."""
    asked = json.dumps({"messages": json.loads(body)["messages"]}).encode()
    prompt = json.loads(judge.post("/apply-template", asked)[1])["prompt"]
    given, all_of_it = (_tokens(judge, text) for text in (before, said))
    shared = next((n for n, (a, b) in enumerate(zip(given, all_of_it, strict=False)) if a != b), len(given))  # fmt: skip
    found = []
    for at in range(shared, len(all_of_it)):
        request = {"prompt": [prompt, *all_of_it[:at]], "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0, "cache_prompt": True}  # fmt: skip
        answer = json.loads(judge.post("/completion", json.dumps(request).encode())[1])
        likely = {one["id"]: one["logprob"] for one in answer["completion_probabilities"][0]["top_logprobs"]}  # fmt: skip
        found.append(-likely.get(all_of_it[at], math.log(LEAST_PROBABILITY)))
    return found


def _tokens(judge: Engine, text: str) -> list[int]:
    request = {"content": text, "add_special": False, "parse_special": False}
    tokens: list[int] = json.loads(judge.post("/tokenize", json.dumps(request).encode())[1])["tokens"]  # fmt: skip
    return tokens


def _mean(values: list[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "-"


# ---- engines


def body_of(prompt: str, tokens: int) -> bytes:
    body: dict[str, Any] = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        "stream": True,
    }
    return json.dumps(body).encode()


def whole_of(engine: Engine, mode: Continuation, body: bytes) -> Whole:
    transcript = _new(body, mode)
    events = _play(engine, transcript, body)
    return Whole(body, mode, events, transcript.tokens, transcript.text)


def _new(body: bytes, mode: Continuation) -> Transcript:
    return Transcript(opted(mode.encode(), "off", body, is_stream=True))


def _play(engine: Engine, transcript: Transcript, body: bytes) -> list[bytes]:
    """Ask the engine for what is not there yet; its events."""
    upstream = cast(Upstream, engine)
    asked = asyncio.run(asking(engine.name, engine.name, upstream, body, read_chat(body), transcript))  # fmt: skip
    events = engine.events(asked.path or CHAT, asked.body)
    for event in events:
        asked.leg.take(event)
    return events


@contextmanager
def running() -> Iterator[dict[str, Engine]]:
    """Both engines, each on a core of its own where there are two."""
    directory, cores = make_socket_directory(), sorted(os.sched_getaffinity(0))
    engines, processes = {}, []
    try:
        for number, name in enumerate(PAIR):
            spec = EngineSpec(
                replica=name,
                model=MODEL_NAME,
                weights=embedded_weights(),
                cores=(cores[number % len(cores)],),
                context_tokens=1024,
                max_sequences=1,
                socket=directory / f"{number}.sock",
                log=directory / f"{number}.log",
            )
            with spec.log.open("wb") as log:
                process = subprocess.Popen(
                    ENGINES[name].command(spec),
                    env=os.environ | ENGINES[name].environment(spec),
                    stdout=log,
                    stderr=log,
                )
            processes.append(process)
            engines[name] = Engine(name, spec.socket)
        for process, engine in zip(processes, engines.values(), strict=True):
            _wait(process, engine)
        yield engines
    finally:
        for process in processes:
            process.terminate()
            process.wait(timeout=10)
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()


def _wait(process: subprocess.Popen[bytes], engine: Engine) -> None:
    for _ in range(1200):
        try:
            if engine.post("/health", b"")[0] == 200:
                return
        except OSError:
            pass
        if process.poll() is not None:
            msg = f"{engine.name} did not start: {engine.socket.with_suffix('.log').read_text()}"
            raise SystemExit(msg)
        time.sleep(0.1)
    msg = f"{engine.name} is not ready after two minutes"
    raise SystemExit(msg)


if __name__ == "__main__":
    sys.exit(main())
