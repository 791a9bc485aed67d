"""Enflame: `efsmi -q`, paragraphs of keys, else its table, which does not tell the memory in use.

Keys of memory were renamed: "Mem Size" and "Mem Usage" became "Total Size" and "Used Size". Cards are numbered from any number on.
"""

import re
from typing import Final

from msgspec import structs

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.printed import size_bytes
from polypod.serve.devices.probe import Asked
from polypod.serve.devices.tables import Row, first_words, rows_of

_CARD = re.compile(r"^DEV ID (\d+)\s*$", re.MULTILINE)
_KEY = re.compile(r"^\s+([A-Z][^:\n]*?)\s*: (.*\S)\s*$", re.MULTILINE)


def read(ask: Ask) -> Reading:
    """Keys, else the table."""
    return ask.first((("-q",), parse_keys), ((), parse_table))


def parse_keys(text: str) -> Reading:
    """`efsmi -q`. A card whose paragraph ends before its memory was cut."""
    starts = list(_CARD.finditer(text))
    if not starts:
        raise OddLineError(text.strip().splitlines()[0])
    ends = [*(start.start() for start in starts[1:]), len(text)]
    cards: list[Card] = []
    for start, end in zip(starts, ends, strict=True):
        part = text[start.end() : end]
        whole = part if part.endswith("\n") else part[: part.rfind("\n") + 1]
        card = _card(int(start[1]), dict(_KEY.findall(whole)))
        if card is None:
            return Reading(cards=tuple(cards), odd=text.rstrip().splitlines()[-1])
        cards.append(card)
    return Reading(cards=tuple(cards))


def _card(number: int, keys: dict[str, str]) -> Card | None:
    total, used = keys.get("Total Size", keys.get("Mem Size")), keys.get("Used Size", keys.get("Mem Usage"))  # fmt: skip
    if total is None or used is None:
        return None
    is_healthy = keys.get("Health") == "True"
    return Card(
        index=number,
        physical_id=number,
        name=keys["Dev Name"],
        uuid=keys["Dev UUID"],
        pci_address=f"{keys['Domain']}:{keys['Bus']}:{keys['Dev']}.{keys['Func']}",
        memory_total_bytes=size_bytes(total),
        memory_used_bytes=size_bytes(used),
        health="ok" if is_healthy else "error",
        reason=None if is_healthy else f"efsmi says Health: {keys.get('Health')}",
    )


def parse_table(text: str) -> Reading:
    """The table of plain `efsmi`."""
    rows, odd = rows_of(text)
    return Reading(cards=tuple(map(_table_card, rows)), odd=odd)


def _table_card(row: Row) -> Card:
    card = Card(
        index=row.index, physical_id=row.index, name=first_words(row), pci_address=row.address
    )
    total = size_bytes(row.lower[1].split()[0])
    return structs.replace(card, memory_total_bytes=total, health="ok")


PROBE: Final = Asked(cli=read)
