"""How long the whole catalog takes to load, parsed and remembered, beside the bound of 50 ms; and searches.

    python bench/catalog.py

CPU seconds of this process, the best of five, imports left out. "parsed" starts with an empty cache folder.
"""

import os
import tempfile
import time
from collections.abc import Callable
from importlib import reload
from pathlib import Path

from polypod.catalog import load, parsed
from polypod.catalog.load import listing, load_any
from polypod.catalog.search import search

BOUND_S = 0.050


def everything() -> int:
    load._index_with.cache_clear()  # as a new process would
    entries = [load_any(entry.id) for entry in listing()]
    return len(entries)


def cpu_s(work: Callable[[], object], before: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        before()
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder

        def forget() -> None:
            reload(parsed)
            Path(folder, "polypod", "catalog.msgpack").unlink(missing_ok=True)
            load._index_with.cache_clear()

        def new_process() -> None:
            parsed._open.clear()

        entries = everything()
        cold_s = cpu_s(everything, lambda: (parsed._open.clear(), forget()))
        everything()
        parsed.texts().save()
        kept_s = cpu_s(everything, new_process)
        print(f"{entries} entries, parsed        {cold_s * 1e3:6.1f} ms CPU")
        print(
            f"{entries} entries, remembered    {kept_s * 1e3:6.1f} ms CPU, {kept_s / BOUND_S:.2f} of the bound of 50 ms"
        )
        for query in ("昇腾", "2025 H20", "hbm > 100 GB and vendor != NVIDIA"):
            took_s = cpu_s(lambda query=query: search(query), new_process)
            print(f"search {query!r:38} {took_s * 1e3:6.1f} ms CPU, {len(search(query))} hits")


if __name__ == "__main__":
    main()
