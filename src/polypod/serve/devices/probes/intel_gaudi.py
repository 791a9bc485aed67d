"""Intel Gaudi: `hl-smi` with a list of columns, else its table. The module id, which HABANA_VISIBLE_MODULES counts in, is only among the columns.

Its table has wider cells where a number has more digits, so rows are split at their bars; "Mib" is MiB.
"""

from typing import Final

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.printed import csv_rows, size_bytes, told, whole
from polypod.serve.devices.probe import Asked
from polypod.serve.devices.tables import cards_of, first_words

COLUMNS: Final = ("index", "module_id", "uuid", "bus_id", "name", "memory.used", "memory.total")
CSV: Final = ("-Q", ",".join(COLUMNS), "-f", "csv,noheader")


def read(ask: Ask) -> Reading:
    """Columns, else the table."""
    return ask.first((CSV, parse_csv), ((), parse_table))


def parse_csv(text: str) -> Reading:
    """The columns asked for; sizes in MiB, with or without the unit."""
    return Reading(cards=tuple(map(_card, csv_rows(text))))


def _card(row: list[str]) -> Card:
    if len(row) != len(COLUMNS):
        raise OddLineError(", ".join(row))
    index, module, uuid, address, name, used, total = row
    return Card(
        index=int(index),
        physical_id=whole(module),
        name=told(name),
        uuid=told(uuid),
        pci_address=told(address),
        memory_total_bytes=size_bytes(total),
        memory_used_bytes=size_bytes(used),
        health="ok",
    )


def parse_table(text: str) -> Reading:
    """Two rows a card; their order is not the bus's."""
    return cards_of(text, name=first_words)


PROBE: Final = Asked(cli=read)
