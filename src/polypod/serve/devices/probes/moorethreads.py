"""Moore Threads: `mthreads-gmi -q --json`, else its table, whose memory reads "used(total)".

0    MTT S5000            |00000000:18:00.0    |0%    0MiB(81920MiB)
     Physical      P0     |16x(16x)            |48C   YES
"""

import re
from typing import Any, Final

from polypod.serve.devices.asking import Ask, OddLineError, UnansweredError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.printed import json_of, size_bytes, told
from polypod.serve.devices.probe import Asked

_NUMBERED = re.compile(r"\d+\s+MTT\b")
_DIVIDED = "divided into virtual GPUs (MPC Parent), which are not listed"
_ROW = re.compile(
    r"(?P<index>\d+)\s+(?P<name>[^|]*\S)\s*\|(?P<bus>[0-9a-fA-F:.]+)\s*\|\S+\s+(?P<used>\w+)\((?P<total>\w+)\)\s*\Z"
)


def read(ask: Ask) -> Reading:
    """JSON, else the table."""
    return ask.first((("-q", "--json"), parse_json), ((), parse_table))


def parse_json(text: str) -> Reading:
    """Numbers carry their units, "49152MiB"."""
    found = json_of(text)
    if not isinstance(found, dict) or "GPU" not in found:
        raise OddLineError(text.strip().splitlines()[0])
    if not found["GPU"]:
        msg = "mthreads-gmi lists no GPU"
        raise UnansweredError(msg, "no_devices")
    return Reading(cards=tuple(map(_json_card, found["GPU"])))


def _json_card(gpu: dict[str, Any]) -> Card:
    memory = gpu["FB Memory Usage"]
    return Card(
        index=int(gpu["Index"]),
        name=told(gpu["Product Name"]),
        uuid=told(gpu.get("GPU UUID")),
        pci_address=told(gpu.get("PCI Bus Id")),
        memory_total_bytes=size_bytes(memory["Total"]),
        memory_used_bytes=size_bytes(memory["Used"]),
        health="ok",
    )


def parse_table(text: str) -> Reading:
    """Cards until the processes; the row below says whether a card is divided."""
    lines = text.split("Processes:")[0].rstrip().splitlines()
    cards: list[Card] = []
    odd = None
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if not _NUMBERED.match(line):
            continue
        match = _ROW.match(line)
        if match is None or not below.rstrip():
            odd = line
            break
        cards.append(_table_card(match, is_divided="MPC Parent" in below))
    if not cards and odd is None:
        raise OddLineError(lines[0])
    if odd is None and not lines[-1].startswith(("-", "+")):
        odd = lines[-1]
    return Reading(cards=tuple(cards), odd=odd)


def _table_card(match: re.Match[str], *, is_divided: bool) -> Card:
    return Card(
        index=int(match["index"]),
        name=match["name"],
        pci_address=match["bus"],
        memory_total_bytes=size_bytes(match["total"]),
        memory_used_bytes=size_bytes(match["used"]),
        health="warning" if is_divided else "ok",
        reason=_DIVIDED if is_divided else None,
    )


PROBE: Final = Asked(cli=read)
