"""Cambricon: the table of `cnmon`. Older releases have "Inited" and the driver where newer ones have the bus address.

| 0     /   MLU370-X8    v1.1.6 |         0000:39:00.0 | 0%                N/A |
|  0%   32C        106 W/ 250 W |     0 MiB/ 23374 MiB | N/A           Default |
"""

from typing import Final

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Reading
from polypod.serve.devices.probe import Asked
from polypod.serve.devices.tables import Row, cards_of


def read(ask: Ask) -> Reading:
    """The table is all that every release prints."""
    return ask.first(((), parse_table))


def parse_table(text: str) -> Reading:
    """Card, virtual function, name, firmware; memory in the middle of the second row, virtual memory may follow it."""
    return cards_of(text, name=_name)


def _name(row: Row) -> str:
    words = row.rest.split()
    if len(words) < 3:
        raise OddLineError(" | ".join(row.upper))
    return " ".join(words[1:-1])


PROBE: Final = Asked(cli=read)
