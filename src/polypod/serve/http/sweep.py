"""Deadlines of many connections, looked at a few times a second: a timer for each would cost more than what it guards."""

import asyncio
from typing import Protocol


class Watched(Protocol):
    """Has a deadline, in the loop's own time; endless while nothing is waited for."""

    deadline_s: float

    def overdue(self) -> None:
        """The deadline has passed, by less than a sweep."""


class Sweeper:
    """Watches over connections of one running loop. While there are none, it sleeps."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, one: Watched) -> None:
        """Look at this one's deadline from now on."""
        self._watched.add(one)
        if self._timer is None:
            self._rest()

    def forget(self, one: Watched) -> None:
        """Look at it no more."""
        self._watched.discard(one)

    def stop(self) -> None:
        """Sweep no more; those watched are forgotten."""
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _rest(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        for one in tuple(self._watched):
            if one.deadline_s <= now_s:
                one.overdue()
        if self._watched and self._timer is None:
            self._rest()
