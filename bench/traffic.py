"""How long a trace takes to read, scale and draw.

    python bench/traffic.py

Times are CPU seconds of one core, the least of two rounds; memory is the process's peak so far. Bounded: about a minute and a half of an idle core.
"""

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from polypod.workload.traffic import Traffic, blocks, read_trace
from polypod.workload.traffic_arrivals import DAY_S, Diurnal
from polypod.workload.traffic_lengths import Lognormal
from polypod.workload.traffic_make import Stream, Synthetic, Turns
from polypod.workload.traffic_scale import Replay

ROWS = 500_000
DAY_REQUESTS = 12_000_000


def timed(what: str, act: Callable[[], int], rounds: int = 2) -> None:
    best_s, count = float("inf"), 0
    for _ in range(rounds):
        start = time.process_time()
        count = act()
        best_s = min(best_s, time.process_time() - start)
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{what:<58}  {count:>10,} requests  {best_s:>6.2f} s  {peak_gb:>5.2f} GB", flush=True)


def rows_of(traffic: Traffic) -> int:
    return sum(len(block) for block in blocks(traffic))


def files(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    at_s = np.sort(rng.uniform(0, 3600, ROWS))
    start = np.datetime64("2024-05-10T00:00:00", "ns")
    moments = start + (at_s * 1e9).astype("timedelta64[ns]")
    asked, answered = rng.integers(1, 8000, ROWS), rng.integers(1, 800, ROWS)
    sessions, tenants = rng.integers(0, ROWS // 4, ROWS), rng.integers(0, 20, ROWS)
    azure, full, mooncake = (folder / name for name in ("azure.csv", "full.csv", "mooncake.jsonl"))
    with azure.open("w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for when, one, two in zip(moments, asked, answered, strict=True):
            file.write(f"{str(when)[:27].replace('T', ' ')},{one},{two}\n")
    with full.open("w") as file:
        file.write("arrival_s,input_tokens,output_tokens,model,tenant,session,priority\n")
        for when, one, two, session, tenant in zip(at_s, asked, answered, sessions, tenants, strict=True):  # fmt: skip
            file.write(f"{when:.6f},{one},{two},m,t{tenant},s{session},{tenant % 3}\n")
    with mooncake.open("w") as file:
        for when, one, two, session in zip(at_s, asked, answered, sessions, strict=True):
            blocks_of = [0, *range(16 * session + 1, 16 * session + 1 + (one - 1) // 512)]
            file.write(f'{{"timestamp": {int(when * 1000)}, "input_length": {one}, "output_length": {two}, "hash_ids": {blocks_of}}}\n')  # fmt: skip
    return {"Azure's CSV": azure, "CSV with tenants, sessions, priorities": full, "Mooncake's JSON lines": mooncake}  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        traces = files(Path(name))
        for what, path in traces.items():
            timed(f"read {what}, {path.stat().st_size / 1e6:.0f} MB", lambda path=path: len(read_trace(path)))  # fmt: skip
        trace = read_trace(traces["Mooncake's JSON lines"])
    timed("the last one 10 times over", lambda: rows_of(Traffic(source=Replay(trace=trace, scale=10.0))), rounds=1)  # fmt: skip
    small = trace.take(np.arange(10_000))
    timed("10,000 requests of it 400 times over", lambda: rows_of(Traffic(source=Replay(trace=small, scale=400.0))), rounds=1)  # fmt: skip
    chat = Stream(model="m", rate_per_s=DAY_REQUESTS / DAY_S, input_tokens=1000, output_tokens=200)
    day = Synthetic(streams=(chat,), arrivals=Diurnal(), lengths=Lognormal(), duration_s=DAY_S)
    timed("a day, lognormal lengths", lambda: rows_of(Traffic(source=day)), rounds=1)
    talks = Synthetic(streams=(chat,), turns=Turns(mean_turns=4, system_tokens=1024), duration_s=DAY_S / 12)  # fmt: skip
    timed("two hours of conversations", lambda: rows_of(Traffic(source=talks)), rounds=1)


if __name__ == "__main__":
    main()
