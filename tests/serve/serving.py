"""What tests of a whole node have in common: it serves, clients ask, and its record holds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from polypod.policy.lifecycle import Validator
from polypod.record import Step, read
from polypod.serve.node import LiveNode
from polypod.simulate.replay import replay


@asynccontextmanager
async def served(node: LiveNode) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the node, which serves until the client has ended."""
    stop = asyncio.Event()
    serving = asyncio.create_task(node.serve(stop))
    async with aiohttp.ClientSession(node.url) as client:
        yield client
    stop.set()
    await serving


@asynccontextmanager
async def asking(
    clients: int, ask: Callable[[], Awaitable[tuple[str, str]]]
) -> AsyncIterator[list[tuple[str, str]]]:
    """So many clients ask again and again; all that they were answered, which is complete at the end."""
    is_over = asyncio.Event()
    answers: list[tuple[str, str]] = []

    async def keep_asking() -> None:
        while not is_over.is_set():
            answers.append(await ask())

    tasks = [asyncio.create_task(keep_asking()) for _ in range(clients)]
    yield answers
    is_over.set()
    await asyncio.gather(*tasks)


def check_record(folder: Path) -> None:
    """The one record there replays to the same decisions, and keeps to the lifecycle."""
    (record,) = folder.glob("runs/*/record.jsonl")
    lines = list(read(record))
    assert replay(lines) is None
    validator = Validator()
    for line in lines:
        if isinstance(line, Step):
            validator.feed(line.event, line.actions)
