"""The framed tables of `nvidia-smi` and of the many tools made after it: two rows a card, the address in the first, the memory in the second."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from polypod.serve.devices.asking import OddLineError
from polypod.serve.devices.found import Card, Reading, Slice
from polypod.serve.devices.printed import cells, used_and_total

ADDRESS = re.compile(r"(?<![0-9A-Fa-f:])(?:[0-9A-Fa-f]{2,8}:){1,2}[0-9A-Fa-f]{2}\.[0-7]\b")

_MIG = re.compile(r"\|\s*(?P<card>\d+)\s+(?P<gi>\d+)\s+(?P<ci>\d+)\s+(?P<index>\d+)\s*\|")
_NUMBERED = re.compile(r"(?P<index>\d+)\s+(?P<rest>.*[A-Za-z].*)\Z")
_EDGES = ("+", "|")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A card's number, what stands beside it in its cell, and the cells of both rows."""

    index: int
    rest: str
    upper: list[str]
    lower: list[str]

    @property
    def address(self) -> str | None:
        """The first bus address of the upper row."""
        match = ADDRESS.search(" ".join(self.upper))
        return match[0] if match else None


def rows_of(text: str, *, columns: int = 3) -> tuple[list[Row], str | None]:
    """The cards' rows, and the line at which the table breaks off, if it does.

    A card's row begins with a number and a name, and has the table's columns; rows of slices and of processes do not. Raises `OddLineError`
    where there is no card at all and no end of a table either.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    rows: list[Row] = []
    odd = None
    taken = -1
    for place, (line, below) in enumerate(zip(lines, [*lines[1:], ""], strict=True)):
        if place == taken:  # a second row may look like a first
            continue
        upper, lower = cells(line), cells(below)
        match = _NUMBERED.match(upper[0]) if line.startswith("|") and len(upper) >= columns else None  # fmt: skip
        if match is None:
            continue
        if len(lower) < columns or not below.endswith("|"):
            odd = below or line
            break
        row = Row(index=int(match["index"]), rest=match["rest"], upper=upper, lower=lower)
        rows.append(row)
        taken = place + 1
    if not rows and odd is None:
        raise OddLineError(lines[0])
    if odd is None and not lines[-1].endswith(_EDGES) and lines[-1].startswith(_EDGES):
        odd = lines[-1]
    return rows, odd


def cards_of(
    text: str,
    *,
    name: Callable[[Row], str | None],
    memory_column: int = 1,
    columns: int = 3,
) -> Reading:
    """A table whose second rows have `used / total` in one column."""
    rows, odd = rows_of(text, columns=columns)
    return Reading(cards=tuple(_card(row, name(row), memory_column) for row in rows), odd=odd)


def first_words(row: Row) -> str:
    """A name that ends where two spaces stand before the next column of its cell.

    >>> first_words(Row(index=0, rest="P800 OAM           N/A", upper=[], lower=[]))
    'P800 OAM'
    """
    return re.split(r"\s{2,}", row.rest)[0]


def _card(row: Row, name: str | None, memory_column: int) -> Card:
    used, total = used_and_total(row.lower[memory_column])
    return Card(
        index=row.index,
        name=name,
        pci_address=row.address,
        memory_total_bytes=total,
        memory_used_bytes=used,
        health="ok",
    )


def slices_of(text: str) -> dict[int, tuple[Slice, ...]]:
    """The slices of the table "MIG devices", by the number of their card; those of one GPU instance show one memory."""
    found: dict[int, tuple[Slice, ...]] = {}
    for line in text.splitlines():
        match = _MIG.match(line.strip())
        if match is None:
            continue
        used, total = used_and_total(cells(line)[1])
        part = Slice(
            index=int(match["index"]),
            instance=match["gi"],
            memory_total_bytes=total,
            memory_used_bytes=used,
        )
        card = int(match["card"])
        found[card] = (*found.get(card, ()), part)
    return found
