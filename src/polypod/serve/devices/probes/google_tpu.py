"""Google TPU: the tables of `tpu-info`, else the bus alone. Memory is told only while a framework holds the chips; a chip of v2 and v3 is two devices.

│ /dev/accel0 │ TPU v4 chip │ 1       │ 130007 │
│ 0      │ 0.00 GiB / 31.75 GiB │      0.00% │
"""

import re
from pathlib import Path
from typing import Final

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.pci import PciFunction
from polypod.serve.devices.printed import size_bytes
from polypod.serve.devices.probe import Asked

_CHIP = re.compile(
    r"│ (?P<node>/dev/(?:accel|vfio/)(?P<id>\d+))\s*│ (?P<name>TPU .*?)(?: chip)?\s*│ (?P<devices>\d+)\s*│ .*│\Z"
)
_MEMORY = re.compile(r"│ (?P<device>\d+)\s*│ (?P<used>[\d.]+ GiB) / (?P<total>[\d.]+ GiB)\s*│.*│\Z")
_END = ("└", "Libtpu metrics unavailable")


def read(ask: Ask) -> Reading:
    """Its only form."""
    return ask.first(((), parse))


def parse(text: str) -> Reading:
    """Chips, and their memory where there is a table of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chips = [match for match in map(_CHIP.match, lines) if match is not None]
    memories = [match for match in map(_MEMORY.match, lines) if match is not None]
    if not chips:
        raise OddLineError(lines[0])
    cards = tuple(
        _card(place, chip, _of(place, chip, memories)) for place, chip in enumerate(chips)
    )
    is_whole = any(lines[-1].startswith(end) for end in _END) and text.endswith("\n")
    return Reading(cards=cards, odd=None if is_whole else lines[-1])


def _of(place: int, chip: re.Match[str], memories: list[re.Match[str]]) -> list[re.Match[str]]:
    """The devices of one chip: as many as it has, in order."""
    count = int(chip["devices"])
    return memories[place * count : (place + 1) * count]


def _card(place: int, chip: re.Match[str], memories: list[re.Match[str]]) -> Card:
    pairs = [(size_bytes(one["used"]), size_bytes(one["total"])) for one in memories]
    is_told = len(pairs) == int(chip["devices"])
    return Card(
        index=place,
        physical_id=int(chip["id"]),
        name=chip["name"],
        memory_total_bytes=sum(total or 0 for _, total in pairs) if is_told else None,
        memory_used_bytes=sum(used or 0 for used, _ in pairs) if is_told else None,
        health="ok",
    )


def from_kernel(_: Path, functions: tuple[PciFunction, ...]) -> Reading | None:
    """Chips by their addresses; their numbers are in that order."""
    cards = (
        Card(index=index, pci_address=function.address) for index, function in enumerate(functions)
    )
    return Reading(cards=tuple(cards)) if functions else None


PROBE: Final = Asked(cli=read, kernel=from_kernel)
