"""Iluvatar: the table of `ixsmi`, else its CSV, which has no bus address."""

from typing import Final

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.printed import csv_rows, size_bytes, told
from polypod.serve.devices.probe import Asked
from polypod.serve.devices.tables import cards_of, first_words

COLUMNS: Final = ("index", "name", "memory.total", "memory.used")
CSV: Final = ("--format=csv,noheader", f"--query-gpu={','.join(COLUMNS)}")


def read(ask: Ask) -> Reading:
    """The table, else CSV."""
    return ask.first(((), parse_table), (CSV, parse_csv))


def parse_table(text: str) -> Reading:
    """Both chips of a DUO card are rows of their own, the power of both on one of them."""
    return cards_of(text, name=first_words)


def parse_csv(text: str) -> Reading:
    """The columns asked for."""
    return Reading(cards=tuple(map(_card, csv_rows(text))))


def _card(row: list[str]) -> Card:
    if len(row) != len(COLUMNS):
        raise OddLineError(", ".join(row))
    index, name, total, used = row
    return Card(
        index=int(index),
        name=told(name),
        memory_total_bytes=size_bytes(total),
        memory_used_bytes=size_bytes(used),
        health="ok",
    )


PROBE: Final = Asked(cli=read)
