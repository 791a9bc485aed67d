"""AWS Neuron: `neuron-ls -j`, else its table, whose columns vary with the release. The product is known from the bus.

NEURON_RT_VISIBLE_CORES counts cores of all devices in a row: a device's own are listed, or are as many after those of the devices before it.
"""

import re
from typing import Any, Final

from polypod.serve.devices.asking import Ask, OddLineError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.printed import cells, json_of, size_bytes
from polypod.serve.devices.probe import Asked

_ADDRESS = re.compile(r"(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z")
_MEMORY = re.compile(r"\d+ GB\Z")
_CORES = re.compile(r"(\d+)-(\d+)\Z")


def read(ask: Ask) -> Reading:
    """JSON, else the table."""
    return ask.first((("-j",), parse_json), ((), parse_table))


def parse_json(text: str) -> Reading:
    """A list of devices; strict JSON, though the manual's own sample is not."""
    found = json_of(text)
    if not isinstance(found, list):
        raise OddLineError(text.strip().splitlines()[0])
    return Reading(cards=tuple(map(_card, found)))


def _card(keys: dict[str, Any]) -> Card:
    number, count = int(keys["neuron_device"]), int(keys["nc_count"])
    own = keys.get("neuroncore_ids") or range(number * count, (number + 1) * count)
    return Card(
        index=number,
        physical_id=number,
        pci_address=keys["bdf"],
        memory_total_bytes=int(keys["memory_size"]),
        cores=tuple(map(int, own)),
        health="ok",
    )


def parse_table(text: str) -> Reading:
    """A row a device. Columns are told apart by what is in them: an address, "96 GB", a span of cores."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cards: list[Card] = []
    odd = None
    for line in lines:
        columns = cells(line)
        if not line.startswith("|") or not columns[0].isdigit():
            continue
        if not line.endswith("|"):
            odd = line
            break
        cards.append(_table_card(columns))
    if not cards:
        raise OddLineError(odd or lines[0])
    return Reading(cards=tuple(cards), odd=odd if lines[-1].endswith("+") else lines[-1])


def _table_card(columns: list[str]) -> Card:
    number, count = int(columns[0]), int(columns[1])
    address = next((one for one in columns if _ADDRESS.match(one)), None)
    memory = next((one for one in columns if _MEMORY.match(one)), None)
    span = _CORES.match(columns[2])
    first, last = (int(span[1]), int(span[2])) if span else (number * count, (number + 1) * count - 1)  # fmt: skip
    return Card(
        index=number,
        physical_id=number,
        pci_address=address,
        memory_total_bytes=size_bytes(memory),
        cores=tuple(range(first, last + 1)),
        health="ok",
    )


PROBE: Final = Asked(cli=read)
