"""Kunlunxin: `xpu-smi -m`, one line of 32 fields a card without a header, else its table.

Fields: 0 address, 1 number, 3 serial, 17 memory in use and 18 in all (MiB; 15 and 16 are the L3's), 21 the quoted name. Lines come in any order, and some
releases leave fields at the end away. Intel's tool has the same name and does not know `-m`.
"""

import shlex
from typing import Final

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.printed import size_bytes
from polypod.serve.devices.probe import Asked
from polypod.serve.devices.tables import cards_of, first_words

_FIELDS = 22


def read(ask: Ask) -> Reading:
    """Fields, else the table."""
    return ask.first((("-m",), parse_fields), ((), parse_table))


def parse_fields(text: str) -> Reading:
    """Cards up to the first line that is not one."""
    cards: list[Card] = []
    odd = None
    for line in filter(str.strip, text.splitlines(keepends=True)):
        fields = _fields(line)
        if len(fields) < _FIELDS or not line.endswith("\n"):
            odd = line
            break
        cards.append(_card(fields))
    if not cards:
        raise OddLineError(odd or text)
    return Reading(cards=tuple(cards), odd=odd)


def _fields(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # cut inside the quoted name
        return []


def _card(fields: list[str]) -> Card:
    number = int(fields[1])
    return Card(
        index=number,
        physical_id=number,
        name=fields[21],
        pci_address=fields[0],
        memory_total_bytes=size_bytes(fields[18]),
        memory_used_bytes=size_bytes(fields[17]),
        health="ok",
    )


def parse_table(text: str) -> Reading:
    """Three rows a card; the third is of the L3."""
    return cards_of(text, name=first_words)


PROBE: Final = Asked(cli=read)
