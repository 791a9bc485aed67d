"""What `catalog` and `claims` print, as rows for CSV and Markdown: SI numbers, the unit in its own column."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from polypod.catalog.market_schema import Event, Price, Stack
from polypod.catalog.schema import Strict, facts
from polypod.catalog.search import Hit
from polypod.catalog.search_market import Line
from polypod.catalog.site import SiteEntry
from polypod.report.export import Cell, csv_text, markdown_text

FIGURE_HEADER = ("id", "figure", "value", "kind", "source", "note", "used")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A table before it has a form."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def add_formats(parser: argparse.ArgumentParser) -> None:
    """`--json`, `--csv`, `--markdown`: one of them, or text."""
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print one JSON object")
    forms.add_argument("--csv", action="store_true", help="print comma-separated rows, SI units")
    forms.add_argument("--markdown", action="store_true", help="print a Markdown table, SI units")


def form_of(args: argparse.Namespace) -> Callable[[Rows], str] | None:
    """How the rows are written; None for text and JSON."""
    if args.csv:
        return lambda table: csv_text(table.header, table.rows)
    if args.markdown:
        return lambda table: markdown_text(table.header, table.rows)
    return None


def listed_rows(entries: Sequence[Line]) -> Rows:
    rows = [(e.kind, e.id, e.year, e.title) for e in entries]
    return Rows(header=("kind", "id", "year", "title"), rows=rows)


def hit_rows(hits: Sequence[Hit]) -> Rows:
    """The figures compared are columns of their own, empty where a hit does not have them."""
    names = list(dict.fromkeys(name for hit in hits for name in hit.shown))
    rows = [(hit.id, hit.kind, hit.title, *(hit.shown.get(name) for name in names)) for hit in hits]
    return Rows(header=("id", "kind", "title", *names), rows=rows)


def figure_rows(entry_id: str, entry: Strict) -> Rows:
    """Every figure of an entry, and after each what contradicts it, which is not used."""
    return Rows(header=FIGURE_HEADER, rows=list(_figures(entry_id, entry)))


def _figures(entry_id: str, entry: Strict) -> Iterator[tuple[Cell, ...]]:
    for place, fact in facts(entry):
        yield entry_id, place, fact.value, fact.kind, fact.source, fact.note, "yes"
        for other in fact.conflicts:
            yield entry_id, place, other.value, None, other.source, other.why_not, "no"


def field_rows(found: Stack | Event | Price | SiteEntry) -> Rows:
    """Every field that is filled, with the path to it."""
    return Rows(
        header=("id", "field", "value"),
        rows=[(found.id, *row) for row in _fields("", msgspec.to_builtins(found))],
    )


def _fields(place: str, value: object) -> Iterator[tuple[str, Cell]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _fields(f"{place}.{name}".lstrip("."), inner)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _fields(f"{place}[{index}]", inner)
    elif isinstance(value, str | float | int):
        yield place, value
