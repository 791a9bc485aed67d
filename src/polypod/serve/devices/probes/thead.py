"""T-Head: the table of `ppu-smi`, with the UUIDs of `ppu-smi -L`; its form and its MIG devices are those of NVIDIA's tool."""

import re
from typing import Final

from msgspec import structs

from polypod.serve.devices.asking import Ask, OddLineError, UnansweredError
from polypod.serve.devices.found import Card, Reading, Slice
from polypod.serve.devices.probe import Asked
from polypod.serve.devices.tables import cards_of, first_words, slices_of

_LISTED = re.compile(r"PPU (?P<index>\d+): (?P<name>.+) \(UUID: (?P<uuid>[^)]+)\)\Z")
_LISTED_MIG = re.compile(r"\s+MIG (?P<name>\S+), Device (?P<index>\d+) \(UUID: (?P<uuid>[^)]+)\)\Z")


def read(ask: Ask) -> Reading:
    """The table, then UUIDs, which are opaque: their last group may be longer than others' are."""
    found = ask.first(((), parse_table), (("-L",), parse_list))
    try:
        listed = {card.index: card for card in ask.read(parse_list, "-L").cards}
    except UnansweredError:
        return found
    return structs.replace(
        found, cards=tuple(_named(card, listed.get(card.index)) for card in found.cards)
    )


def parse_table(text: str) -> Reading:
    """Cards, and the slices of the table of MIG devices below them."""
    found = cards_of(text, name=first_words)
    slices = slices_of(text)
    return structs.replace(
        found,
        cards=tuple(
            structs.replace(card, slices=slices.get(card.index or 0, ())) for card in found.cards
        ),
    )


def parse_list(text: str) -> Reading:
    """`ppu-smi -L`."""
    if not text.endswith("\n"):
        raise OddLineError(text.splitlines()[-1])
    cards: list[Card] = []
    for line in filter(str.strip, text.splitlines()):
        card, mig = _LISTED.match(line), _LISTED_MIG.match(line)
        if card is not None:
            cards.append(
                Card(index=int(card["index"]), name=card["name"], uuid=card["uuid"], health="ok")
            )
        elif mig is not None and cards:
            part = Slice(index=int(mig["index"]), name=mig["name"], uuid=mig["uuid"])
            cards[-1] = structs.replace(cards[-1], slices=(*cards[-1].slices, part))
        else:
            raise OddLineError(line)
    return Reading(cards=tuple(cards))


def _named(card: Card, listed: Card | None) -> Card:
    """A card with its UUID; its slices with theirs, by their number."""
    if listed is None:
        return card
    named = {part.index: part for part in listed.slices}
    slices = tuple(
        structs.replace(part, name=named[part.index].name, uuid=named[part.index].uuid)
        if part.index in named
        else part
        for part in card.slices
    )
    return structs.replace(card, uuid=listed.uuid, slices=slices)


PROBE: Final = Asked(cli=read)
