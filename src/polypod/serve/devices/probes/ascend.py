"""Huawei Ascend: the table of `npu-smi info`, with the logical ids and names of `npu-smi info -m`.

A card's row gives its NPU id and name; the row below gives the chip, its bus address and its memory. A second number there, under "Phy-ID" or "Device", is
the one of the device node; without it the NPU id is, where an NPU has one chip. The logical id is the mapping's, else the place in ascending order of
(NPU, chip): rows come in any order. Of two pairs `used / total` the last is the HBM.
"""

import re
from collections import Counter
from typing import Final

from msgspec import structs

from polypod.serve.devices.asking import Ask, OddLineError, UnansweredError
from polypod.serve.devices.found import Card, Health, Reading, Slice
from polypod.serve.devices.printed import cells, told, used_and_total
from polypod.serve.devices.probe import Asked

_HEALTH: Final[dict[str, Health]] = {
    "ok": "ok",
    "warning": "warning",
    "alarm": "error",
    "critical": "error",
}
_NPU = re.compile(r"(?P<npu>\d+)\s+(?P<name>\S+)\Z")
_CHIP = re.compile(r"(?P<chip>\d+)(?:\s+(?P<physical>\d+))?\Z")
_VNPU = re.compile(r"\|\s*(?P<id>\d+)\s*\|[^|]*\|[^|]*\|[^|]*\|\s*(?P<template>\S+)\s*\|")

Mapping = dict[tuple[int, ...], dict[str, str]]


def read(ask: Ask) -> Reading:
    """The table, then the mapping; the table alone where the mapping cannot be read."""
    found = ask.read(parse_info, "info")
    try:
        mapping = parse_mapping(ask("info", "-m"))
    except (UnansweredError, OddLineError):
        mapping = {}
    cards = (_mapped(card, mapping.get(card.place, {})) for card in found.cards)
    return structs.replace(found, cards=tuple(_with_slices(card, ask) for card in cards))


def parse_info(text: str) -> Reading:
    """`npu-smi info`, logical ids by ascending (NPU, chip)."""
    lines = text.splitlines()
    cards: list[Card] = []
    upper: list[str] | None = None  # a card's first row, until its second comes
    for line in lines:
        if "Process id" in line or "No running processes" in line:
            break
        columns = cells(line)
        if line.lstrip().startswith("|") and columns[0][:1].isdigit():
            if not line.rstrip().endswith("|"):  # cut: its last number may be half of one
                upper = columns
                break
            if upper is not None:
                cards.append(_card(upper, columns))
            upper = columns if upper is None else None
    if not cards and upper is None:
        raise OddLineError(next(line for line in lines if line.strip()))
    return Reading(cards=_numbered(cards), odd=_broken_off(lines, upper))


def parse_mapping(text: str) -> Mapping:
    """`npu-smi info -m` by (NPU id, chip id). Controllers, which have no logical id, are left out."""
    whole = text[: text.rfind("\n") + 1]  # a last line without an end was cut
    rows = [re.split(r"\s{2,}", line.strip()) for line in whole.splitlines() if line.strip()]
    if not rows or "NPU ID" not in rows[0]:
        raise OddLineError(" ".join(rows[0]) if rows else text)
    named = [dict(zip(rows[0], row, strict=True)) for row in rows[1:] if len(row) == len(rows[0])]
    return {
        (int(row["NPU ID"]), int(row["Chip ID"])): row
        for row in named
        if row.get("Chip Logic ID") != "-"
    }


def parse_slices(text: str) -> tuple[Slice, ...]:
    """`npu-smi info -t info-vnpu`: the virtual NPUs of one chip."""
    return tuple(
        Slice(index=int(match["id"]), name=match["template"])
        for match in map(_VNPU.match, text.splitlines())
        if match is not None
    )


def _card(upper: list[str], lower: list[str]) -> Card:
    npu, chip = _NPU.match(upper[0]), _CHIP.match(lower[0])
    if npu is None or chip is None or len(upper) < 3 or len(lower) < 3:
        raise OddLineError(" | ".join((*upper, *lower)))
    used, total = used_and_total(lower[2])
    health = _HEALTH.get(upper[1].casefold(), "unknown")
    return Card(
        place=(int(npu["npu"]), int(chip["chip"])),
        physical_id=int(chip["physical"]) if chip["physical"] else None,
        name=None if set(npu["name"]) == {"x"} else npu["name"],
        pci_address=lower[1],
        memory_total_bytes=total,
        memory_used_bytes=used,
        health=health,
        reason=None if health == "ok" else f"npu-smi calls its health {upper[1]!r}",
    )


def _numbered(cards: list[Card]) -> tuple[Card, ...]:
    order = sorted(card.place for card in cards)
    chips = Counter(card.place[0] for card in cards)
    return tuple(
        structs.replace(
            card,
            index=order.index(card.place),
            physical_id=_physical_id(card, chips[card.place[0]]),
        )
        for card in cards
    )


def _physical_id(card: Card, chips_of_card: int) -> int | None:
    if card.physical_id is not None:
        return card.physical_id
    return card.place[0] if chips_of_card == 1 else None


def _broken_off(lines: list[str], upper: list[str] | None) -> str | None:
    """The last line of a table that was cut: a row without its second, or a line without its closing bar."""
    if upper is not None:
        return lines[-1]
    return None if lines[-1].rstrip().endswith(("+", "|")) else lines[-1]


def _mapped(card: Card, row: dict[str, str]) -> Card:
    """A card with what the mapping says of it. A chip's own name ("Ascend 910A") stands in only where the table hides it."""
    logical, physical = told(row.get("Chip Logic ID")), told(row.get("Chip Phy-ID"))
    return structs.replace(
        card,
        index=card.index if logical is None else int(logical),
        physical_id=card.physical_id if physical is None else int(physical),
        name=card.name or told(row.get("Chip Name")),
    )


def _with_slices(card: Card, ask: Ask) -> Card:
    """Virtual NPUs, asked for only where the table shows no memory in use at all, which is how a divided chip looks."""
    if card.memory_used_bytes != 0:
        return card
    npu, chip = card.place
    try:
        answer = ask("info", "-t", "info-vnpu", "-i", str(npu), "-c", str(chip))
    except UnansweredError:  # older tools, and chips that cannot be divided
        return card
    return structs.replace(card, slices=parse_slices(answer))


PROBE: Final = Asked(cli=read)
