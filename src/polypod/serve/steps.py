"""A coroutine that runs without a task: from the event loop's next turn up to where it waits, and on from there whenever that has come.

A task of asyncio's is entered in a register of all tasks and taken out again, which a request can do without. It begins a turn later, as a task does: what comes in together is decided together
first, and sent together then, which costs less than each from end to end. What is awaited here may be any future; `asyncio.timeout` is not possible within, for it looks for a task.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Steps:
    """Begun with `start`; `cancel` ends it where it waits, or will wait next. What it raises is the event loop's to report."""

    __slots__ = ("_coroutine", "_is_cancelled", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, None, None]) -> None:
        self._coroutine: Coroutine[Any, None, None] | None = coroutine
        self._waits_for: asyncio.Future[Any] | None = None
        self._is_cancelled = False

    def start(self) -> None:
        """Let it run from the loop's next turn on."""
        asyncio.get_running_loop().call_soon(self._step, None)

    def cancel(self) -> None:
        """Raise `asyncio.CancelledError` where it waits."""
        if self._waits_for is None or not self._waits_for.cancel():
            self._is_cancelled = True

    def _step(self, _: object) -> None:
        coroutine = self._coroutine
        if coroutine is None:
            return
        self._waits_for = None
        try:
            if self._is_cancelled:
                self._is_cancelled = False
                waits_for = coroutine.throw(asyncio.CancelledError())
            else:
                waits_for = coroutine.send(None)
        except (StopIteration, asyncio.CancelledError):
            self._coroutine = None
            return
        except BaseException:
            self._coroutine = None
            raise
        self._wait(waits_for)

    def _wait(self, waits_for: Any) -> None:  # noqa: ANN401 - a future, or None for the loop's next turn
        if waits_for is None:
            asyncio.get_running_loop().call_soon(self._step, None)
            return
        waits_for._asyncio_future_blocking = False
        waits_for.add_done_callback(self._step)
        self._waits_for = waits_for
        if self._is_cancelled and waits_for.cancel():
            self._is_cancelled = False
