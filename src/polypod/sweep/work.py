"""One point worked off in whatever process it was sent to, what kinds of points there are, and what a runner of them is."""

import time
import traceback
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from polypod.catalog.load import known_names
from polypod.plan.sweep import Point, Row, answer, failed
from polypod.plan.version import data_version

Result = tuple[Any, Row]

Runner = Callable[[Sequence[Any]], Generator[list[Result], None, None]]
"""Works points off in any order and yields results as they come, an empty list now and then where none does.

Closing the iterator stops the work. A point is yielded once, whatever happened to its worker.
"""

MOST_DEATHS: Final = 2
"""A point that took this many workers with it is recorded as an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a sweep is of. Points are frozen structs; the functions are of modules, so that any process can be sent them.

    `answer` gives the row of a point, `failed` that of one that could not be asked, with the reason. `source` is what its answer rests on beside the
    point itself, and `version` the hash of that. `sent` is the point as a process that runs elsewhere understands it, `asked` the columns that are
    of the point as it was asked here.
    """

    answer: Callable[[Any], Row]
    failed: Callable[[Any, str], Row]
    source: Callable[[Any], Hashable]
    version: Callable[[Any], str]
    sent: Callable[[Any], Any]
    asked: Callable[[Any], Row]


def versions(kind: Kind, points: Sequence[Any]) -> dict[Any, str]:
    """What the answer of each point rests on; what several share is read once."""
    sources = {point: kind.source(point) for point in points}
    found = {source: kind.version(source) for source in set(sources.values())}
    return {point: found[source] for point, source in sources.items()}


def _planned(point: Point) -> Row:
    return answer(point)


def _not_planned(point: Point, reason: str) -> Row:
    return failed(point, reason)


def _model(point: Point) -> str:
    return point.model


def _model_version(model: str) -> str:
    return data_version([model])


def _sent(point: Point) -> Point:
    """A model's own file by its whole path."""
    if point.model.casefold() in known_names() or not Path(point.model).exists():
        return point
    return msgspec.structs.replace(point, model=str(Path(point.model).resolve()))


def _asked(point: Point) -> Row:
    return {"model": point.model}


PLANS: Final = Kind(
    answer=_planned, failed=_not_planned, source=_model, version=_model_version, sent=_sent, asked=_asked
)  # fmt: skip


def work(point: Any, kind: Kind = PLANS) -> Row:  # noqa: ANN401 (a point of any kind)
    """Answer a point; a mistake of ours in it is the point's error, with the line, and nobody else's."""
    started_s = time.perf_counter()
    try:
        row = kind.answer(point)
    except Exception as error:  # the sweep goes on, and the row says what to report
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{at.filename.rpartition('/')[2]} line {at.lineno}"
        reason = f"a mistake in Polypod: {type(error).__name__}: {error} ({where})"
        row = kind.failed(point, reason)
    return row | {"spent_s": time.perf_counter() - started_s}


def gave_up(point: Any, why: str, kind: Kind = PLANS) -> Row:  # noqa: ANN401
    """The row of a point that no worker lived to answer."""
    return kind.failed(point, f"{why}; too little memory, perhaps: ask for it alone, or with fewer --jobs") | {"spent_s": 0.0}  # fmt: skip
