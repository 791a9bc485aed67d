"""Search the catalog by words, in English and Chinese, or by comparing figures.

    昇腾                                      words: every one must be there, as the beginning of a word; Chinese by its characters
    2025 H20                                  events too, by the words of their dates, chips and text
    hbm > 100 GB and vendor != NVIDIA        figures: FIELD OPERATOR VALUE, joined by `and` and `or` (and binds tighter)
    kind = event and effect = barred          what is no figure is compared as text

The index is an SQLite FTS5 table in memory, made from all entries when it is asked for. Chinese is written without spaces, so every
character is a word of its own there, and a run of them is looked for as a phrase. An entry without a figure satisfies no comparison of
it: unknown is not less than anything.
"""

import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from polypod import units
from polypod.catalog.load import Listed, ModelEntry, listing, load_any
from polypod.catalog.schema import Accelerator, Fact, Interconnect, Pod
from polypod.catalog.search_market import market_rows
from polypod.catalog.verdicts import digests, headlines
from polypod.errors import InputError, QuantityError

_CJK: Final = re.compile(r"([\u3400-\u9fff])")
_WORD: Final = re.compile(r"[^\s\"'()]+")
_COMPARISON: Final = re.compile(
    r"\s*(?P<field>[A-Za-z_0-9]+)\s*(?P<operator><=|>=|!=|==|=|<|>)\s*(?P<value>.+?)\s*\Z"
)

# What people type, the column it is, and the unit of its values; None is text.
FIELDS: Final[dict[str, tuple[str, units.Unit | None]]] = {
    "hbm": ("memory_bytes", "bytes"),
    "memory": ("memory_bytes", "bytes"),
    "bandwidth": ("memory_bytes_per_s", "bytes_per_s"),
    "link": ("link_bytes_per_s", "bytes_per_s"),
    "power": ("power_w", "w"),
    "tdp": ("power_w", "w"),
    **{dtype: (dtype, "flops_per_s") for dtype in ("fp64", "fp32", "bf16", "fp16", "fp8", "int8", "fp4")},
    "year": ("year", "tokens"),  # a plain number
    "accelerators": ("accelerators", "tokens"),
    "vendor": ("vendor", None),
    "kind": ("kind", None),
    "status": ("status", None),
    "software": ("software", None),
    "effect": ("effect", None),
    "region": ("region", None),
}  # fmt: skip
_COLUMNS: Final = tuple(dict.fromkeys(column for column, _ in FIELDS.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """An entry, a claim or a part of the market that fits. `shown` are the values compared, in SI, by the field's name as typed."""

    id: str
    kind: str
    title: str
    shown: dict[str, float | str]


def search(query: str) -> list[Hit]:
    """Entries, claims, events, stacks and prices that fit the query, best first for words, by id for figures.

    Raises `InputError` for an empty query, an unknown field, or a value without its unit.
    """
    if not query.strip():
        msg = "an empty search finds nothing; try a word (昇腾, H20) or a comparison (hbm > 100 GB and vendor != NVIDIA)"
        raise InputError(msg)
    index = _index()
    try:
        if re.search(r"[<>=]", query):
            return _compare(index, query)
        return _words(index, query)
    finally:
        index.close()


def _words(index: sqlite3.Connection, query: str) -> list[Hit]:
    words = [_spaced(word) for word in _WORD.findall(query)]
    if not words:
        msg = f"{query!r} has no word to look for"
        raise InputError(msg)
    match = " ".join(f'"{word}"' + ("" if _CJK.search(word) else "*") for word in words)
    rows = index.execute(
        "select entry.id, entry.kind, entry.title from text join entry on entry.rowid = text.rowid "
        "where text match ? order by bm25(text, 10.0, 1.0), entry.rowid",
        (match,),
    )
    return [Hit(id=id_, kind=kind, title=title, shown={}) for id_, kind, title in rows]


def _compare(index: sqlite3.Connection, query: str) -> list[Hit]:
    groups, values, fields = [], [], []
    for group in re.split(r"\s+or\s+", query, flags=re.IGNORECASE):
        terms = []
        for term in re.split(r"\s+and\s+", group, flags=re.IGNORECASE):
            field, column, operator, value = _term(term)
            terms.append(f"{column} {operator} ?")
            values.append(value)
            fields.append((field, column))
        groups.append(f"({' and '.join(terms)})")
    columns = ", ".join(["id", "kind", "title", *(column for _, column in fields)])
    # Columns and operators come from the tables above, never from the query.
    sql = f"select {columns} from entry where {' or '.join(groups)} order by rowid"  # noqa: S608
    return [
        Hit(
            id=row[0],
            kind=row[1],
            title=row[2],
            shown={
                name: value
                for (name, _), value in zip(fields, row[3:], strict=True)
                if value is not None
            },
        )
        for row in index.execute(sql, values)
    ]


def _term(term: str) -> tuple[str, str, str, float | str]:
    match = _COMPARISON.match(term)
    if match is None:
        msg = f"{term.strip()!r} is no comparison; one looks like 'hbm > 100 GB' or 'vendor != NVIDIA'"
        raise InputError(msg)
    field = match["field"].casefold()
    if field not in FIELDS:
        msg = f"{match['field']!r} is no field; there are {', '.join(FIELDS)}"
        raise InputError(msg)
    column, unit = FIELDS[field]
    operator = "=" if match["operator"] == "==" else match["operator"]
    if unit is None:
        return field, column, operator, match["value"].strip("\"'")
    try:
        return field, column, operator, units.parse(match["value"], unit)
    except QuantityError as error:
        msg = f"in {term.strip()!r}: {error}"
        raise InputError(msg) from error


def _index() -> sqlite3.Connection:
    index = sqlite3.connect(":memory:")
    texts = {"id", "title", "vendor", "kind", "status", "software", "effect", "region"}
    columns = dict.fromkeys(("id", "kind", "title", *_COLUMNS))
    typed = ", ".join(f"{c} {'text collate nocase' if c in texts else 'real'}" for c in columns)
    index.execute(f"create table entry ({typed})")
    index.execute(
        "create virtual table text using fts5 (names, rest, tokenize = 'unicode61 remove_diacritics 2')"
    )
    for row, names, rest in _rows():
        filled = {column: row.get(column) for column in columns}
        holders = ", ".join("?" * len(filled))
        index.execute(f"insert into entry values ({holders})", tuple(filled.values()))  # noqa: S608
        index.execute("insert into text values (?, ?)", (_spaced(names), _spaced(rest)))
    return index


def _rows() -> Iterator[tuple[dict[str, float | str | None], str, str]]:
    """Columns, names and other text of every entry; then the claims, then the market."""
    for listed in listing():
        yield _row(listed)
    pods = [load_any(listed.id) for listed in listing() if listed.kind == "pod"]
    claims = [claim for pod in pods if isinstance(pod, Pod) for claim in headlines(pod)]
    for claim in [*claims, *digests()]:
        row: dict[str, float | str | None] = {"id": claim.id, "kind": "claim", "title": claim.says}
        yield row, claim.says, f"{claim.system or ''} {claim.reason} {claim.ruling}"
    yield from market_rows()


def _row(listed: Listed) -> tuple[dict[str, float | str | None], str, str]:
    entry = load_any(listed.id)
    row: dict[str, float | str | None] = {
        "id": listed.id,
        "kind": listed.kind,
        "title": listed.title,
        "year": listed.year,
    }
    if isinstance(entry, ModelEntry):
        aliases = entry.card.aliases if entry.card else ()
        return (
            row,
            " ".join((listed.id, listed.title, *aliases)),
            str(entry.config.get("model_type")),
        )
    names = " ".join((listed.id, listed.title, entry.name, *entry.names))
    if isinstance(entry, Interconnect):
        speeds = [fact.value for fact in entry.bytes_per_s.values()]
        row |= {"vendor": entry.owner, "link_bytes_per_s": max(speeds, default=None)}
        return row, names, f"{entry.owner} {entry.openness} {entry.note or ''}"
    row |= {"vendor": entry.vendor, "status": entry.status, "power_w": _value(entry.power_w)}
    if isinstance(entry, Pod):
        row |= {"accelerators": float(entry.accelerators)}
        return (
            row,
            names,
            f"{entry.vendor} {entry.accelerator or ''} {entry.status or ''} {entry.note or ''}",
        )
    row |= _accelerator(entry)
    rest = (
        entry.vendor,
        str(listed.year or ""),
        entry.status,
        entry.software,
        entry.note,
        entry.export_control,
    )
    return row, names, " ".join(part for part in rest if part)


def _accelerator(entry: Accelerator) -> dict[str, float | str | None]:
    peaks = {str(dtype): fact.value for dtype, fact in entry.peak_flops_per_s.items()}
    return {
        "memory_bytes": _value(entry.memory_bytes),
        "memory_bytes_per_s": _value(entry.memory_bytes_per_s),
        "link_bytes_per_s": _value(entry.scale_up.bytes_per_s if entry.scale_up else None),
        "software": entry.software,
        **{
            dtype: peaks.get(dtype)
            for dtype in _COLUMNS
            if dtype in FIELDS and FIELDS[dtype][1] == "flops_per_s"
        },
    }


def _value(fact: Fact | None) -> float | None:
    return None if fact is None else fact.value


def _spaced(text: str) -> str:
    """Chinese characters apart, so that each is a word.

    >>> _spaced("昇腾910C")
    '昇 腾 910C'
    """
    return " ".join(_CJK.sub(r" \1 ", text).split())
