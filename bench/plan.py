"""CPU seconds of `polypod plan` as a whole process, beside their targets and, where it is installed, beside aiconfigurator on the same job.

    python bench/plan.py [--aiconfigurator PATH]

PATH is the command of an environment of its own (`pip install aiconfigurator==0.12.0`). Every job starts a new interpreter; CPU seconds are those of the child,
user and system. The first one is the first call on a machine too: what emulates is compiled for it, and the catalog is read from its own files. The job is aiconfigurator's own: DeepSeek-V3, 4,000 tokens in and 1,000 out, TTFT 1,000 ms, TPOT 40 ms. What each predicts is printed beside the
measured rows of DeepSeek models that ship and are nearest: prompts longer than answers, inside the limit on TPOT, on H100 and B200, since none on H200 ships.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from polypod.validate.shipped import shipped_rows

LIMITS = ("--input", "4000", "--output", "1000", "--ttft", "1s", "--tpot", "40ms")
MIXED = "huawei-ascend-910c:3840+nvidia-h200-sxm:3200+amd-mi300x:3200"
FIVE = (
    "deepseek-v3:rate=1800/s,ttft=2s,tpot=50ms",
    "qwen3-235b-a22b:rate=2250/s,ttft=2s,tpot=50ms",
    "qwen3-32b:rate=4500/s,ttft=1s,tpot=40ms",
    "llama-3.1-70b:rate=900/s,ttft=2s,tpot=50ms",
    "gpt-oss-120b:rate=3000/s,ttft=1s,tpot=30ms",
)


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked, and the CPU seconds it may take."""

    name: str
    words: tuple[str, ...]
    target_s: float
    gpus: int = 0  # of the same job for the peer


JOBS = (
    Job("DeepSeek-V3, 32 H200", ("deepseek-v3", "--on", "nvidia-h200-sxm:32", "--apart", *LIMITS), 1.5, 32),
    Job("DeepSeek-V3, 64 H200", ("deepseek-v3", "--on", "nvidia-h200-sxm:64", "--apart", *LIMITS), 1.5, 64),
    Job("DeepSeek-V3, 10,240 H200", ("deepseek-v3", "--on", "nvidia-h200-sxm:10240", "--apart", *LIMITS), 3.0, 10240),
    Job("three vendors, five models, 10,240", (*FIVE, "--on", MIXED, "--input", "2000", "--output", "500", "--objective", "cost"), 20.0),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--aiconfigurator", metavar="PATH")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spent_s, _ = child(command(JOBS[0]), os.environ | {"XDG_CACHE_HOME": folder})
        print(f"{JOBS[0].name}, first call on a machine: {spent_s:.2f} s CPU, {spent_s / JOBS[0].target_s:.2f} of the {JOBS[0].target_s:g} s allowed")  # fmt: skip
    for job in JOBS:
        spent_s, out = child(command(job))
        answer = json.loads(out)
        served = [one["served_per_s"] for one in answer["models"]]
        print(f"{job.name}: {spent_s:.2f} s CPU, {spent_s / job.target_s:.2f} of the {job.target_s:g} s allowed")  # fmt: skip
        if job.gpus:
            print(f"  polypod          {served[0] * 1000 / job.gpus:.1f} tokens/s an accelerator")
            if args.aiconfigurator:
                peer(args.aiconfigurator, job, spent_s)
    measured()


def command(job: Job) -> list[str]:
    return [sys.executable, "-m", "polypod", "plan", *job.words, "--json"]


def child(words: list[str], environment: Mapping[str, str] | None = None) -> tuple[float, str]:
    """CPU seconds of one process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, out.stdout + out.stderr  # fmt: skip


def peer(path: str, job: Job, ours_s: float) -> None:
    words = [path, "cli", "default", "--model", "deepseek-ai/DeepSeek-V3", "--system", "h200_sxm", "--isl", "4000", "--osl", "1000", "--ttft", "1000", "--tpot", "40", "--total-gpus", str(job.gpus), "--backend", "trtllm", "--no-color"]  # fmt: skip
    spent_s, out = child(words)
    found = re.search(r"Per-GPU Throughput:\s*([\d.,]+)", out)
    print(f"  aiconfigurator   {found[1] if found else '?'} tokens/s an accelerator in {spent_s:.1f} s CPU: {spent_s / ours_s:.0f} times ours")  # fmt: skip


def measured() -> None:
    print("measured, DeepSeek models, TPOT <= 40 ms, best of each system, backend, precision, mode and lengths:")  # fmt: skip
    rows, _ = shipped_rows()
    best: dict[tuple[str, ...], tuple[float, float]] = {}
    for row in rows:
        fits = "deepseek" in row.model.lower() and row.input_tokens >= 2 * row.output_tokens
        if not fits or row.ttft_s is None or row.tpot_s is None or row.tpot_s > 0.04:
            continue
        workers = [one for one in (row.workers, row.prefill, row.decode) if one is not None]
        ranks = sum(one.count * one.layout.world for one in workers)
        rate = row.concurrency / (row.ttft_s + row.output_tokens * row.tpot_s)
        key = (row.system, row.backend, row.precision, row.mode, f"{row.input_tokens:.0f}/{row.output_tokens:.0f}")  # fmt: skip
        best[key] = max(best.get(key, (0.0, 0.0)), (rate * row.output_tokens / ranks, row.ttft_s))
    for key, (tokens, ttft_s) in sorted(best.items()):
        print(f"  {' '.join(key):40} {tokens:7.1f} tokens/s an accelerator, TTFT {ttft_s:.2f} s")
    if not best:
        print("  none")


if __name__ == "__main__":
    main()
