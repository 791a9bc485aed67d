"""What handing a KV cache from one llama.cpp process to another costs, beside computing the prompt again.

    python bench/handover.py            prints the table; a minute on two cores
    python bench/handover.py --write    rewrites src/polypod/cost/data/handover-llama-cpp.toml as well

Two engines as `polypod up` starts them, one core each where there are two. A prompt is computed on the first, its slot saved to a file in memory, restored on
the second, and answered on both from where the cache ends. Both texts are greedy and must be equal. Seconds are medians of `TRIES`, and the engines' own count;

    seconds(bytes) = latency_s + bytes / bytes_per_s        least squares, of save and of restore apart

The low and high ends are the 10th and 90th percentile of samples against that line, at least a half and twice it: hosts differ.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from polypod.serve.devices import find_cpu
from polypod.serve.engines import ENGINES, EngineSpec
from polypod.serve.engines.embedded import embedded_weights
from polypod.serve.handover import make_handover_directory
from polypod.serve.supervise import make_socket_directory

DATA = Path(__file__).parents[1] / "src/polypod/cost/data/handover-llama-cpp.toml"
SENTENCES = (2, 6, 16, 40)
TRIES = 5
CONTEXT_TOKENS = 2048
SENTENCE = "In year {0} of the survey the river carried {1} tonnes of silt past the lower gate. "


class Loading(Exception):
    """The engine listens, and cannot answer yet."""


class Engine:
    """One llama.cpp process that hands caches on."""

    def __init__(self, name: str, core: int, sockets: Path, caches: Path) -> None:
        engine = ENGINES["llama.cpp"]
        self.socket = sockets / f"{name}.sock"
        spec = EngineSpec(
            replica=name, model="smol", weights=embedded_weights(), cores=(core,), context_tokens=CONTEXT_TOKENS,
            max_sequences=2, socket=self.socket, log=sockets / f"{name}.log", handover=caches,
        )  # fmt: skip
        with spec.log.open("wb") as log:
            self.process = subprocess.Popen(
                engine.command(spec),
                env=os.environ | engine.environment(spec),
                stdout=log,
                stderr=log,
            )

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("engine", timeout=120)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket))
        connection.request("POST", path, json.dumps(body or {}))
        response = connection.getresponse()
        answer = response.read()
        if response.status == 503:
            raise Loading
        assert response.status == 200, answer
        return json.loads(answer)

    def until_ready(self) -> None:
        while not self.answers():
            time.sleep(0.1)

    def answers(self) -> bool:
        try:
            self.call("/v1/chat/completions", asked("Hello!", 1))
        except (OSError, Loading):
            return False
        return True


def asked(question: str, tokens: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "smol", "messages": messages, "temperature": 0, "max_tokens": tokens, "id_slot": 0} | more  # fmt: skip


def one_try(first: Engine, second: Engine, question: str) -> dict[str, float]:
    """Compute, hand over, and answer; returned are tokens, bytes and seconds."""
    whole = first.call("/v1/chat/completions", asked(question, 1, cache_prompt=False))
    saved = first.call("/slots/0?action=save", {"filename": "one"})
    restored = second.call("/slots/0?action=restore", {"filename": "one"})
    texts = []
    for engine in (first, second):
        rest = engine.call("/v1/chat/completions", asked(question, 8, cache_prompt=True))
        texts.append(rest["choices"][0]["message"]["content"])
    for engine in (first, second):
        engine.call("/slots/0?action=erase")
    assert texts[0] == texts[1], texts
    return {
        "tokens": saved["n_saved"],
        "bytes": saved["n_written"],
        "save_s": saved["timings"]["save_ms"] / 1e3,
        "restore_s": restored["timings"]["restore_ms"] / 1e3,
        "prompt_s": whole["timings"]["prompt_ms"] / 1e3,
        "again": rest["timings"]["prompt_n"],
    }


def line(samples: list[dict[str, float]], key: str) -> tuple[float, float, float, float]:
    """Latency, bytes per second, and the low and high end of samples against the line."""
    sizes = np.array([one["bytes"] for one in samples])
    seconds = np.array([one[key] for one in samples])
    columns = np.stack([np.ones_like(sizes), sizes], axis=1) / seconds[:, None]
    latency_s, byte_s = np.maximum(
        np.linalg.lstsq(columns, np.ones_like(seconds), rcond=None)[0], 1e-12
    )
    ratios = seconds / (latency_s + sizes * byte_s)
    low, high = np.percentile(ratios, (10, 90))
    return float(latency_s), float(1 / byte_s), float(min(low, 0.5)), float(max(high, 2.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    sockets, caches = make_socket_directory(), make_handover_directory()
    cores = sorted(os.sched_getaffinity(0))
    engines = [Engine(str(n), cores[n % len(cores)], sockets, caches) for n in range(2)]
    try:
        for engine in engines:
            engine.until_ready()
        samples = [
            one_try(*engines, "".join(SENTENCE.format(1900 + s + t, 7 * s + t) for s in range(n)))
            for n in SENTENCES
            for t in range(TRIES)
        ]
    finally:
        for engine in engines:
            engine.process.kill()
            engine.process.wait()
        for folder in (sockets, caches):
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    print("tokens      MB   save ms  restore ms  prompt ms  hand-over costs")
    for n in range(len(SENTENCES)):
        few = samples[n * TRIES : (n + 1) * TRIES]
        mid = {key: statistics.median(one[key] for one in few) for key in few[0]}
        share = (mid["save_s"] + mid["restore_s"]) / mid["prompt_s"]
        print(
            f"{mid['tokens']:6.0f}  {mid['bytes'] / 1e6:6.2f}  {mid['save_s'] * 1e3:8.2f}  {mid['restore_s'] * 1e3:10.2f}  "
            f"{mid['prompt_s'] * 1e3:9.1f}  {share:6.2%} of the prompt; {mid['again']:.0f} token computed again"
        )
    fits = {key: line(samples, key) for key in ("save_s", "restore_s")}
    for key, (latency_s, rate, low, high) in fits.items():
        print(f"{key[:-2]:8s} {latency_s * 1e3:.2f} ms + bytes / {rate / 1e9:.2f} GB/s, {low:.2f} to {high:.2f} times that")  # fmt: skip
    if args.write:
        DATA.write_text(toml(fits), encoding="utf-8")
        print(f"wrote {DATA.name}")


def toml(fits: dict[str, tuple[float, float, float, float]]) -> str:
    cpu = find_cpu()
    kernel = os.uname().release
    rows = [
        "# Written by bench/handover.py --write.",
        'engine = "llama.cpp"',
        f'engine_version = "{ENGINES["llama.cpp"].version()}"',
        f'measured_utc = "{datetime.now(UTC).isoformat(timespec="seconds")}"',
        f'source = "bench/handover.py, files in memory, one core each; {cpu.model}, Linux {kernel}"',
    ]
    for key, (latency_s, rate, low, high) in fits.items():
        name = key[:-2]
        rows.append(f"{name}_latency_s = [{latency_s * low:.3g}, {latency_s:.3g}, {latency_s * high:.3g}]")  # fmt: skip
        rows.append(f"{name}_bytes_per_s = [{rate / low:.3g}, {rate:.3g}, {rate / high:.3g}]")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
