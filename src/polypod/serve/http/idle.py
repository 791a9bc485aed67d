"""Which connection makes way for one more where a node has as many as it may: of those that ask for nothing the one that has done so longest.

A request pays nothing for that. Connections are looked through when one too many comes, and those that may be idle remembered by their deadlines, which tell since when
they are; one that has asked for something since then is passed over. Where nobody can make way, nobody looks again for a while.
"""

import heapq
import math
from collections import deque
from collections.abc import Iterable
from typing import Final, Protocol

LOOK_EVERY_S: Final = 0.5
"""Looking through all connections is not for everybody who comes: where none is idle, who comes is one of many."""

MOST_REMEMBERED: Final = 4096


class Idling(Protocol):
    """A connection that may make way."""

    deadline_s: (
        float  # of an idle one when it is closed anyway; endless of one that is being answered
    )

    @property
    def may_make_way(self) -> bool:
        """Whether it asks for nothing, and is owed nothing."""

    def make_way(self) -> None:
        """Close, for another one."""


class Idle:
    """Finds them among the connections of one listener. Idle ones are closed anyway after `idle_s`, and may be in another's favour after `rest_s`."""

    def __init__(self, *, idle_s: float, rest_s: float) -> None:
        self._least_s = idle_s - rest_s  # until the deadline of one that has rested
        self._longest: deque[tuple[float, Idling]] = deque()  # by deadline, as they were
        self._looked_s = -math.inf

    def close_one(self, connections: Iterable[Idling], now_s: float) -> bool:
        """Close the one that has been idle longest; whether there was one."""
        found = self._next()
        if found is None and now_s >= self._looked_s + LOOK_EVERY_S:
            self._looked_s, by_s = now_s, now_s + self._least_s
            rested = (one for one in connections if one.deadline_s <= by_s and one.may_make_way)
            longest = heapq.nsmallest(MOST_REMEMBERED, rested, key=lambda one: one.deadline_s)
            self._longest.extend((one.deadline_s, one) for one in longest)
            found = self._next()
        if found is None:
            return False
        found.make_way()
        return True

    def _next(self) -> Idling | None:
        while self._longest:
            deadline_s, one = self._longest.popleft()
            if one.deadline_s == deadline_s and one.may_make_way:
                return one
        return None
