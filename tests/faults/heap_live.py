"""What a node keeps of requests that are over: Python's live heap at rest, after every two thousand of them.

python -m tests.faults.heap_live
"""

import asyncio
import gc
import random
import sys
import tempfile
import tracemalloc
from pathlib import Path

import uvloop

from polypod.plan.spec import read_plan
from polypod.serve.listen import bind
from polypod.serve.local import prepare_ghosts
from polypod.serve.node import LiveNode
from tests.faults.kills import MODEL, PLAN
from tests.faults.live import Wish, all_of, listen

BATCHES = 7
BATCH = 2000
REST_S = 9.0  # until idle connections are closed


async def run(folder: Path) -> list[int]:
    """Bytes after each batch; one client in ten leaves in the middle."""
    path, heaps, draw = folder / "plan.yaml", [], random.Random(1)
    path.write_text(PLAN.format(ghosts=4, model=MODEL))
    plan = read_plan(path)
    stop = asyncio.Event()
    prepared = prepare_ghosts(plan, folder, speed_ratio=5.0, processes=4)
    async with LiveNode(prepared, bind("127.0.0.1", 0)) as node:
        serving = asyncio.create_task(node.serve(stop))
        port = int(node.url.rsplit(":", 1)[1])

        async def one(number: int) -> None:
            leaves = draw.randint(100, 1500) if draw.random() < 0.1 else None
            wish = Wish(model=plan.services[0].model, text=f"request {number}", tokens=6)
            await listen(port, wish, leave_after=leaves)

        for _ in range(BATCHES):
            await all_of(BATCH, 40, one)
            await asyncio.sleep(REST_S)
            gc.collect()
            heaps.append(tracemalloc.get_traced_memory()[0])
            print(f"{heaps[-1] / 1e3:,.1f} kB", flush=True)
        stop.set()
        await serving
    return heaps


def main() -> int:
    tracemalloc.start(1)
    with tempfile.TemporaryDirectory() as folder:
        heaps = uvloop.run(run(Path(folder)))
    each = (heaps[-1] - heaps[1]) / (BATCH * (BATCHES - 2))
    print(f"{each:.1f} bytes a request, from the second batch on")
    return 1 if each > 16 else 0


if __name__ == "__main__":
    sys.exit(main())
