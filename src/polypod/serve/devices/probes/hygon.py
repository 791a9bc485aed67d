"""Hygon: `hy-smi`, or the `rocm-smi` it was made from, as JSON; else its table, which tells memory in use as a percentage only.

Keys were renamed with DTK's releases ("DCU use (%)" to "HCU use (%)"), and one of them may be empty.
"""

import re
from typing import Final

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.probe import Asked
from polypod.serve.devices.probes.amd import QUESTION, parse_json

_ROW = re.compile(r"(?P<index>\d+)\s+\S+C\s+\S+W\s+\S+\s+\S+W\s+\d+%\s.*\b(?P<mode>\w+)\s*\Z")
_END = "End of SMI Log"


def read(ask: Ask) -> Reading:
    """JSON with memory, else the table."""
    return ask.first(((*QUESTION, "--json"), parse_json), ((), parse_table))


def parse_table(text: str) -> Reading:
    """A row a card between rulers; a column is added now and then."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    heads = [place for place, line in enumerate(lines) if line.startswith(("HCU ", "DCU "))]
    if not heads:
        raise OddLineError(lines[0])
    cards: list[Card] = []
    for line in lines[heads[0] + 1 :]:
        match = _ROW.match(line)
        if line.startswith("="):
            break
        if match is None:
            return Reading(cards=tuple(cards), odd=line)
        cards.append(Card(index=int(match["index"]), health="ok"))
    return Reading(cards=tuple(cards), odd=None if _END in lines[-1] else lines[-1])


PROBE: Final = Asked(cli=read)
