"""How long the whole catalog takes to load, parsed and remembered, beside the bound of 50 ms; and searches.

    python bench/catalog.py

CPU seconds of a fresh process each, imports left out, the best of five. "parsed" starts with an empty cache folder.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

BOUND_S = 0.050

CHILD = """
import sys, time
from polypod.catalog import market, parsed
from polypod.catalog.load import listing, load_any
from polypod.catalog.search import search
start = time.process_time()
if len(sys.argv) > 1:
    found = len(search(sys.argv[1]))
else:
    found = len([load_any(entry.id) for entry in listing()])
    found += len(market.stacks()) + len(market.events()) + len(market.prices())
    for more in (market.reliability, market.repair_times, market.grid_co2, market.cooling_pue, market.cooling_other):
        found += len(more())
    market.collectives(), market.handovers(), market.beyond(), market.disagreements()
print(found, time.process_time() - start)
parsed.texts().save()
"""


def cpu_s(folder: str, *arguments: str, forget: bool = False) -> tuple[int, float]:
    times, found = [], 0
    for _ in range(5):
        if forget:
            Path(folder, "polypod", "catalog.msgpack").unlink(missing_ok=True)
        command = [sys.executable, "-c", CHILD, *arguments]
        done = subprocess.run(command, env=os.environ | {"XDG_CACHE_HOME": folder}, capture_output=True, text=True, check=True)  # fmt: skip
        count, took_s = done.stdout.split()
        times.append(float(took_s))
        found = int(count)
    return found, min(times)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        entries, cold_s = cpu_s(folder, forget=True)
        _, kept_s = cpu_s(folder)
        ratio = kept_s / BOUND_S
        print(f"{entries} entries, parsed        {cold_s * 1e3:6.1f} ms CPU")
        print(
            f"{entries} entries, remembered    {kept_s * 1e3:6.1f} ms CPU, {ratio:.2f} of the bound of 50 ms"
        )
        for query in ("昇腾", "2025 H20", "hbm > 100 GB and vendor != NVIDIA"):
            hits, took_s = cpu_s(folder, query)
            print(f"search {query!r:38} {took_s * 1e3:6.1f} ms CPU, {hits} hits")


if __name__ == "__main__":
    main()
