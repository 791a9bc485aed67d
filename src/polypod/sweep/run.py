"""A sweep from points to rows: what is finished already is taken over, the rest is worked off and kept as it comes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol

from polypod.plan.sweep import Row
from polypod.sweep.store import Store
from polypod.sweep.work import Runner


class Watch(Protocol):
    """Who is told of progress."""

    def add(self, count: int) -> None:
        """So many points more are done."""


def run(
    keys: Mapping[Any, str], finished: Mapping[str, Row], runner: Runner, store: Store | None, watch: Watch
) -> list[Row]:  # fmt: skip
    """The rows of all points, in their order; `finished` are rows by key that need not be worked off."""
    rows = dict(finished)
    with closing(runner([point for point, key in keys.items() if key not in rows])) as batches:
        for batch in batches:
            fresh = {keys[point]: row for point, row in batch}
            if store is not None:
                store.keep(fresh)
            rows |= fresh
            watch.add(len(fresh))
    return [rows[key] for key in keys.values()]


def tally(rows: Sequence[Row]) -> Counter[str]:
    """How many are ok, infeasible and errors."""
    return Counter(str(row["status"]) for row in rows)
