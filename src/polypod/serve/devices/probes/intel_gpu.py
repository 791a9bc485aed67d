"""Intel GPUs: `xpu-smi discovery -j` lists devices, `-d N` tells one's memory. Sizes are numbers in one release and strings in the next.

A card without a marketing name is called by its device id in brackets; then the bus names it. Kunlunxin's tool has the same name and does not know `discovery`.
"""

import re
from typing import Any, Final

from msgspec import structs

from polypod.serve.devices.asking import Ask, OddLineError, UnansweredError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.printed import json_of, told
from polypod.serve.devices.probe import Asked

_UNNAMED = re.compile(r"\[0x[0-9a-fA-F]{4}\]\s*\Z")


def read(ask: Ask) -> Reading:
    """The list, then each device that the list tells no memory of."""
    found = ask.read(parse_list, "discovery", "-j")
    return structs.replace(found, cards=tuple(_with_memory(card, ask) for card in found.cards))


def parse_list(text: str) -> Reading:
    """A list, or an object with one under "device_list"."""
    found = json_of(text)
    devices = found.get("device_list") if isinstance(found, dict) else found
    if not isinstance(devices, list):
        raise OddLineError(text.strip().splitlines()[0])
    if not devices:
        msg = "xpu-smi lists no device"
        raise UnansweredError(msg, "no_devices")
    return Reading(cards=tuple(map(_card, devices)))


def parse_device(text: str) -> Reading:
    """One device as an object."""
    found = json_of(text)
    if not isinstance(found, dict) or "device_id" not in found:
        raise OddLineError(text.strip().splitlines()[0])
    return Reading(cards=(_card(found),))


def _card(keys: dict[str, Any]) -> Card:
    total, free = _bytes(keys, "memory_physical_size_byte"), _bytes(keys, "memory_free_size_byte")
    name = told(keys.get("device_name"))
    return Card(
        index=int(keys["device_id"]),
        name=None if name and _UNNAMED.search(name) else name,
        uuid=told(keys.get("uuid")),
        pci_address=keys.get("pci_bdf_address"),
        memory_total_bytes=total,
        memory_used_bytes=None if total is None or free is None else total - free,
        health="ok",
    )


def _bytes(keys: dict[str, Any], name: str) -> int | None:
    value = told(str(keys.get(name, "")))
    return None if value is None else int(value)


def _with_memory(card: Card, ask: Ask) -> Card:
    if card.memory_used_bytes is not None:
        return card
    try:
        whole = ask.read(parse_device, "discovery", "-d", str(card.index), "-j").cards[0]
    except UnansweredError:
        return card
    return structs.replace(
        card,
        name=card.name or whole.name,
        uuid=card.uuid or whole.uuid,
        pci_address=card.pci_address or whole.pci_address,
        memory_total_bytes=whole.memory_total_bytes or card.memory_total_bytes,
        memory_used_bytes=whole.memory_used_bytes,
    )


PROBE: Final = Asked(cli=read)
