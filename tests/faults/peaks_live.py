"""What a node's memory follows: bursts of streams, all at once, and its memory after each.

    python -m tests.faults.peaks_live 50 1000 1000 200 50

A burst that is larger than any before takes memory that stays; a second one of its size takes none.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.faults.kills import MODEL, PLAN
from tests.faults.live import Wish, all_of, listen
from tests.faults.live_node import UpNode, rss_bytes

REST_S = 12.0  # idle connections are closed, and what the C library kept of a peak is given back


async def burst(node: UpNode, streams: int) -> int:
    """Ask for so many at once; the most memory that the node had meanwhile."""

    async def one(number: int) -> None:
        text = f"burst {number} " + "go on " * 30
        await listen(node.port, Wish(model=node.model, text=text, tokens=60))

    asking, most_bytes = asyncio.create_task(all_of(streams, streams, one)), 0
    while not asking.done():
        most_bytes = max(most_bytes, rss_bytes(node.process.pid))
        await asyncio.sleep(0.25)
    return most_bytes


async def run(node: UpNode, bursts: list[int]) -> None:
    await asyncio.sleep(6.0)
    print(f"{'at once':>8}{'meanwhile':>12}{'after':>12}")
    print(f"{'':>8}{'':>12}{rss_bytes(node.process.pid) / 1e6:>9.1f} MB")
    for streams in bursts:
        most_bytes = await burst(node, streams)
        await asyncio.sleep(REST_S)
        print(f"{streams:>8,}{most_bytes / 1e6:>9.1f} MB{rss_bytes(node.process.pid) / 1e6:>9.1f} MB", flush=True)  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan.yaml"
        plan.write_text(PLAN.format(ghosts=4, model=MODEL))
        with UpNode("--plan", str(plan), "--ghost", "--ghost-processes", "4", "--ghost-speed", "0.1x") as node:  # fmt: skip
            uvloop.run(run(node, [int(one) for one in sys.argv[1:]] or [50, 1000, 1000, 200, 50]))


if __name__ == "__main__":
    main()
