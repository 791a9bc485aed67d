"""`polypod catalog count`: how much is on record, by kind and by confidence."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import get_args

from polypod.catalog.counts import confidence_counts, entry_counts, fact_counts, state_counts
from polypod.catalog.schema import Kind
from polypod.cli.catalog_rows import Rows
from polypod.report.tables import table

_KINDS = (*get_args(Kind), "contradicted")


def text(form: Callable[[Rows], str] | None, *, as_json: bool) -> str:
    """The counts as text, one JSON object, or rows of group, of, what and count."""
    groups = _groups()
    if as_json:
        return json.dumps({name: dict(counts) for name, counts in groups.items()}, indent=2)
    if form:
        rows = [
            (name, of, what, count)
            for name, table_ in groups.items()
            for of, counts in table_.items()
            for what, count in counts.items()
        ]
        return form(Rows(header=("group", "of", "what", "count"), rows=rows))
    return "\n\n".join(_block(name, counts) for name, counts in groups.items())


def _groups() -> dict[str, Mapping[str, Counter[str]]]:
    return {
        "entries": {"all": entry_counts()},
        "figures by kind": fact_counts(),
        "market by confidence": confidence_counts(),
        "engines by state": {"all": state_counts()},
    }


def _block(name: str, found: Mapping[str, Counter[str]]) -> str:
    seen = {what for counts in found.values() for what in counts}
    order = [what for what in _KINDS if what in seen] or sorted(seen)
    columns = [*order, *(what for what in sorted(seen) if what not in order)]
    if set(found) == {"all"}:
        counts = found["all"]
        rows = [[what, f"{count:,}"] for what, count in counts.items()]
        return table([name, ""], rows, right=[1])
    rows = [[of, *(f"{counts[what]:,}" for what in columns)] for of, counts in found.items()]
    return table([name, *columns], rows, right=list(range(1, len(columns) + 1)))
