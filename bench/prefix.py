"""How many blocks a second the prefix cache's kernels take, plain and compiled, and how often a trace's blocks are found.

    python bench/prefix.py [TRACE]

TRACE is one of Mooncake's (`FAST25-release/traces/conversation_trace.jsonl` of https://github.com/kvcache-ai/Mooncake); without one, the whole of its
synthetic trace, which is among the tests' data. One cache for all requests, in order, each found, computed and left before the next. Times are CPU
seconds of one core. Bounded: about 60 s of an idle core.
"""

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np
from numba import njit

from polypod.engine import prefix_kernels as kernels
from polypod.engine.jitted import jitted
from polypod.engine.prefix import views

BLOCK = 512
CAPACITIES = (1e6, 3e6, 1e7, 5e7, 1e9)
SYNTHETIC = Path(__file__).parents[1] / "tests" / "data" / "mooncake" / "synthetic.csv"


def prompts(path: Path) -> list[tuple[int, np.ndarray]]:
    """Prompt tokens, and the hashes of their blocks, the last of which may be cut short."""
    if path.suffix == ".jsonl":
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return [(row["input_length"], np.array(row["hash_ids"])) for row in rows]
    found = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            runs = [run.partition("-") for run in row["hash_ids"].split()]
            parts = [np.arange(int(first), int(last or first) + 1) for first, _, last in runs]
            found.append((int(row["input_length"]), np.concatenate(parts)))
    return found


def tiers(capacity: int, entries: int, *, low: bool) -> kernels.Tiers:
    """All in HBM, or HBM of nothing over host memory and a store, the latter ten times as large."""
    store, remote = kernels.empty_store(entries, 2), kernels.empty_store(entries, 1)
    store.lists_CF[1, kernels.CAPACITY] = max(capacity // 11, 1)
    remote.lists_CF[0, kernels.CAPACITY] = max(10 * capacity // 11, 1)
    return kernels.Tiers(store, 0, 1 if low else -1, remote, 0 if low else -1)


def loop(acquire, keep, leave, trim):
    """Every prompt found, computed and left; hashes_B of all of them, and where each begins."""

    def play(tiers, hashes_B, starts_P, most, found_K):
        for prompt in range(len(starts_P) - 1):
            own_B = hashes_B[starts_P[prompt] : starts_P[prompt + 1]]
            held = acquire(tiers, own_B, 0, len(own_B), found_K)
            keep(tiers, own_B, held, len(own_B))
            leave(tiers, own_B, len(own_B))
            trim(tiers, most)

    return play


def timed(play, tiers, trace, most: int, *, is_plain: bool = False) -> tuple[int, float]:
    """Blocks found, and seconds."""
    found_K = np.zeros(3, dtype=np.int64)
    hashes_B = np.concatenate([hashes for _, hashes in trace])
    starts_P = np.cumsum([0, *(len(hashes) for _, hashes in trace)])
    if is_plain:
        hashes_B, starts_P = hashes_B.tolist(), starts_P.tolist()
    start = time.process_time()
    play(tiers, hashes_B, starts_P, most, found_K)
    return int(found_K.sum()), time.process_time() - start


def main() -> None:
    trace = prompts(Path(sys.argv[1]) if len(sys.argv) > 1 else SYNTHETIC)
    blocks, full = sum(len(h) for _, h in trace), sum(tokens // BLOCK for tokens, _ in trace)
    entries = 2 * len(np.unique(np.concatenate([h for _, h in trace]))) + 1000
    fast = jitted(kernels)
    compiled = njit(loop(fast.acquire, fast.keep, fast.leave, fast.trim))
    timed(compiled, tiers(100, entries, low=True), trace[:50], 10)
    print(f"{len(trace):,} requests, {blocks:,} blocks of {BLOCK} tokens\n")
    print(
        f"{'tokens':>14}  {'found':>7}  {'HBM alone':>14}  {'three tiers':>14}   million blocks a second"
    )
    for tokens in CAPACITIES:
        capacity = int(tokens // BLOCK)
        one, one_s = timed(compiled, tiers(capacity, entries, low=False), trace, capacity)
        _, three_s = timed(compiled, tiers(capacity, entries, low=True), trace, 0)
        print(
            f"{tokens:>14,.0f}  {one / full:>7.4f}  {blocks / one_s / 1e6:>14.2f}  {blocks / three_s / 1e6:>14.2f}"
        )
    few, plain = trace[:2000], tiers(10_000, entries, low=True)
    quick = plain._replace(store=views(plain.store), remote_store=views(plain.remote_store))
    slow = loop(kernels.acquire, kernels.keep, kernels.leave, kernels.trim)
    _, plain_s = timed(slow, quick, few, 0, is_plain=True)
    print(
        f"\nplain, three tiers: {sum(len(h) for _, h in few) / plain_s / 1e6:.3f} million blocks a second"
    )


if __name__ == "__main__":
    main()
