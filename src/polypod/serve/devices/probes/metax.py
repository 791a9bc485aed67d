"""MetaX: the table of `mx-smi` (`ht-smi` on cards sold under another name), else its list.

The memory is in the last column but one of a card's second row, the state in the last; releases before 2.2 have no state, and the renamed tool has a column more.
"""

import re
from typing import Final

from msgspec import structs

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.probe import Asked
from polypod.serve.devices.tables import Row, cards_of, first_words, rows_of

_ATTACHED = re.compile(r"^Attached GPUs\s*:\s*(\d+)\s*$", re.MULTILINE)
_LISTED = re.compile(
    r"GPU#(?P<index>\d+)\s+(?P<name>\S+)\s+(?P<bus>[0-9a-fA-F:.]+)\s+(?P<state>.*?)(?:\s*\(UUID: (?P<uuid>[^)]+)\))?\s*\Z"
)


def read(ask: Ask) -> Reading:
    """The table; the list has no memory."""
    return ask.first(((), parse_table), (("-L",), parse_list))


def parse_table(text: str) -> Reading:
    """With fewer rows than "Attached GPUs" the output broke off."""
    found = cards_of(text, name=first_words, memory_column=-2)
    rows, _ = rows_of(text)
    cards = tuple(_with_state(card, row) for card, row in zip(found.cards, rows, strict=True))
    attached = _ATTACHED.search(text)
    odd = found.odd
    if odd is None and attached is not None and int(attached[1]) > len(cards):
        odd = f"{attached[1]} attached GPUs, {len(cards)} described"
    return Reading(cards=cards, odd=odd)


def _with_state(card: Card, row: Row) -> Card:
    state = row.lower[-1]
    if state in {"", "Available"}:
        return card
    return structs.replace(card, health="error", reason=f"mx-smi calls its state {state!r}")


def parse_list(text: str) -> Reading:
    """`mx-smi -L`: a line a card, with its state."""
    cards = []
    for line in text.splitlines():
        match = _LISTED.match(line)
        if match is not None:
            cards.append(_listed(match))
        elif line.startswith("GPU#"):
            return Reading(cards=tuple(cards), odd=line)
    if not cards:
        raise OddLineError(text.strip().splitlines()[0])
    whole = text.endswith("\n")
    return Reading(cards=tuple(cards if whole else cards[:-1]), odd=None if whole else line)


def _listed(match: re.Match[str]) -> Card:
    is_available = match["state"] == "Available"
    return Card(
        index=int(match["index"]),
        name=match["name"],
        uuid=match["uuid"],
        pci_address=match["bus"],
        health="ok" if is_available else "error",
        reason=None if is_available else f"mx-smi calls its state {match['state']!r}",
    )


PROBE: Final = Asked(cli=read)
