"""One point worked off in whatever process it was sent to, and what a runner of points is."""

import time
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Final

from polypod.plan.sweep import Point, Row, answer, failed

Result = tuple[Point, Row]

Runner = Callable[[Sequence[Point]], Generator[list[Result], None, None]]
"""Works points off in any order and yields results as they come, an empty list now and then where none does.

Closing the iterator stops the work. A point is yielded once, whatever happened to its worker.
"""

MOST_DEATHS: Final = 2
"""A point that took this many workers with it is recorded as an error."""


def work(point: Point) -> Row:
    """Answer a point; a mistake of ours in it is the point's error, with the line, and nobody else's."""
    started_s = time.perf_counter()
    try:
        row = answer(point)
    except Exception as error:  # the sweep goes on, and the row says what to report
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{at.filename.rpartition('/')[2]} line {at.lineno}"
        row = failed(point, f"a mistake in Polypod: {type(error).__name__}: {error} ({where})")
    return row | {"spent_s": time.perf_counter() - started_s}


def gave_up(point: Point, why: str) -> Row:
    """The row of a point that no worker lived to answer."""
    return failed(point, f"{why}; too little memory, perhaps: ask for it alone, or with fewer --jobs") | {"spent_s": 0.0}  # fmt: skip
