"""Memory that the C library keeps of a peak is given back to the machine when the peak is over.

Of what Python keeps for objects of its own nothing goes back: an arena of a megabyte stays while one object in it lives. It is used again by the next peak, so
that a node's memory follows the most requests it ever had in flight, and not how many it had in all.
"""

import ctypes
import gc
from collections.abc import Callable
from typing import Final

LEAST_PEAK: Final = 32  # requests in flight; below it there is little to give back
OVER_FRACTION: Final = 0.25  # of a peak in flight, when it is over
EVERY_S: Final = 10.0  # at most: it takes about a millisecond for 100 MB


COLLECT_EVERY: Final = 20_000
"""Objects more than before until Python's collector looks at the young ones. It finds next to nothing: requests leave no rings of objects behind, and what the record
keeps for half a second it would look at again and again."""


def settle_collector() -> None:
    """What is here now stays, and is not looked at any more; the collector comes seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_EVERY, 10, 10)


def trim() -> None:
    """Give back what is free; a C library other than GNU's has no word for it, and keeps it."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


class Slack:
    """Looks, now and then, at how many requests are in flight."""

    def __init__(self, give_back: Callable[[], None] = trim) -> None:
        self._give_back = give_back
        self._peak = 0
        self._given_s = -EVERY_S

    def look(self, in_flight: int, now_s: float) -> None:
        """Give back what a peak needed, once it is over."""
        self._peak = max(self._peak, in_flight)
        is_over = self._peak >= LEAST_PEAK and in_flight <= OVER_FRACTION * self._peak
        if is_over and now_s - self._given_s >= EVERY_S:
            self._give_back()
            self._peak, self._given_s = in_flight, now_s
