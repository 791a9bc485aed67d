"""Biren: `brsmi gpu` with a list of columns. Instances of a divided card (SVI) are listed as cards, and have device nodes as cards do."""

from functools import partial
from typing import Final

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.printed import csv_rows, size_bytes, told
from polypod.serve.devices.probe import Asked

COLUMNS: Final = ("index", "name", "uuid", "pci.bus_id", "memory.used", "memory.total")
FEWER: Final = ("index", "name", "memory.used", "memory.free")


def read(ask: Ask) -> Reading:
    """All columns, else those that older releases have."""
    return ask.first(
        *((_question(columns), partial(parse, columns=columns)) for columns in (COLUMNS, FEWER))
    )


def parse(text: str, columns: tuple[str, ...]) -> Reading:
    """A row a card. Memory in all is the sum of used and free where it is no column."""
    rows = list(csv_rows(text))
    for row in rows:
        if len(row) != len(columns):
            raise OddLineError(", ".join(row))
    return Reading(cards=tuple(_card(dict(zip(columns, row, strict=True))) for row in rows))


def _question(columns: tuple[str, ...]) -> tuple[str, ...]:
    return ("gpu", f"--query-gpu={','.join(columns)}", "--format=csv,noheader")


def _card(row: dict[str, str]) -> Card:
    used, free = size_bytes(row["memory.used"]), size_bytes(row.get("memory.free"))
    total = size_bytes(row.get("memory.total"))
    if total is None and used is not None and free is not None:
        total = used + free
    number = int(row["index"])
    return Card(
        index=number,
        physical_id=number,
        name=told(row["name"]),
        uuid=told(row.get("uuid")),
        pci_address=told(row.get("pci.bus_id")),
        memory_total_bytes=total,
        memory_used_bytes=used,
        health="ok",
    )


PROBE: Final = Asked(cli=read)
