"""NVIDIA: `nvidia-smi`, as XML, else as CSV with the list of MIG devices, else its table.

A total of "N/A" is a chip that computes in the host's memory (GB10, Orin).
"""

import re
from functools import partial
from typing import Final
from xml.etree import ElementTree as ET

from msgspec import structs

from polypod.serve.devices.asking import Ask, OddLineError, UnansweredError, first_of, read_text
from polypod.serve.devices.found import Card, Health, Reading, Slice
from polypod.serve.devices.printed import csv_rows, size_bytes, told, whole
from polypod.serve.devices.probe import Asked
from polypod.serve.devices.tables import Row, cards_of, first_words, slices_of

COLUMNS: Final = (
    "index",
    "uuid",
    "name",
    "pci.bus_id",
    "memory.total",
    "memory.used",
    "mig.mode.current",
)
CSV: Final = (f"--query-gpu={','.join(COLUMNS)}", "--format=csv,noheader,nounits")

_LISTED = re.compile(r"GPU (?P<index>\d+): (?P<name>.+) \(UUID: (?P<uuid>[^)]+)\)\Z")
_LISTED_MIG = re.compile(
    r"\s+MIG (?P<name>\S+)\s+Device\s+(?P<index>\d+):? \(UUID: (?P<uuid>[^)]+)\)\Z"
)


def read(ask: Ask) -> Reading:
    """XML holds everything but the names of slices. Older or crippled tools answer one of the others."""
    try:
        reading = first_of(
            partial(ask.read, parse_xml, "-q", "-x"),
            partial(_from_csv, ask),
            partial(ask.read, parse_table),
        )
    except UnansweredError as error:
        if "is lost" not in error.problem:
            raise
        reading = _from_csv(ask)  # one lost card silences the log of all others
    if any(card.slices for card in reading.cards):
        return _with_names(reading, ask)
    return reading


def _from_csv(ask: Ask) -> Reading:
    text = ask(*CSV)
    reading = read_text(parse_csv, text, ask.tried[-1])
    if not any(row[-1] == "Enabled" for row in csv_rows(text)):
        return reading
    table = {card.index: card.slices for card in ask.read(parse_table).cards}
    return structs.replace(
        reading,
        cards=tuple(_with_slices(card, table.get(card.index, ())) for card in reading.cards),
    )


def _with_names(reading: Reading, ask: Ask) -> Reading:
    """Slices with the names and UUIDs that `-L` gives them; without, where it cannot be read."""
    try:
        listed = {card.index: card.slices for card in ask.read(parse_list, "-L").cards}
    except UnansweredError:
        return reading
    cards = []
    for card in reading.cards:
        named = {part.index: part for part in listed.get(card.index, ())}
        parts = (_named(part, named.get(part.index)) for part in card.slices)
        cards.append(_with_slices(card, tuple(parts)))
    return structs.replace(reading, cards=tuple(cards))


def _named(part: Slice, listed: Slice | None) -> Slice:
    return part if listed is None else structs.replace(part, name=listed.name, uuid=listed.uuid)


def parse_xml(text: str) -> Reading:
    """`nvidia-smi -q -x`, of any schema since 10; memory is under fb_memory_usage in all of them."""
    try:
        log = ET.fromstring(text)  # noqa: S314 - our own driver's tool; no entity is declared in its DTD
    except ET.ParseError as error:
        raise OddLineError(text.strip().splitlines()[-1]) from error
    if log.tag != "nvidia_smi_log":
        raise OddLineError(text.strip().splitlines()[0])
    cards = tuple(_xml_card(index, gpu) for index, gpu in enumerate(log.findall("gpu")))
    attached = whole(log.findtext("attached_gpus"))
    odd = None
    if attached is not None and attached > len(cards):
        odd = f"{attached} attached GPUs, {len(cards)} described"
    return Reading(cards=cards, odd=odd)


def _xml_card(index: int, gpu: ET.Element) -> Card:
    total = size_bytes(gpu.findtext("fb_memory_usage/total"))
    return Card(
        index=index,
        physical_id=whole(gpu.findtext("minor_number")),
        name=told(gpu.findtext("product_name")),
        uuid=told(gpu.findtext("uuid")),
        pci_address=gpu.get("id"),
        memory_total_bytes=total,
        memory_used_bytes=size_bytes(gpu.findtext("fb_memory_usage/used")),
        is_memory_shared=total is None,
        health="ok",
        slices=tuple(map(_xml_slice, gpu.findall("mig_devices/mig_device"))),
    )


def _xml_slice(device: ET.Element) -> Slice:
    return Slice(
        index=whole(device.findtext("index")),
        instance=told(device.findtext("gpu_instance_id")),
        memory_total_bytes=size_bytes(device.findtext("fb_memory_usage/total")),
        memory_used_bytes=size_bytes(device.findtext("fb_memory_usage/used")),
    )


def parse_csv(text: str) -> Reading:
    """The columns asked for, no more and no fewer."""
    return Reading(cards=tuple(_csv_card(row) for row in csv_rows(text)))


def _csv_card(row: list[str]) -> Card:
    if len(row) != len(COLUMNS):
        raise OddLineError(", ".join(row))
    index, uuid, name, address, total, used, _ = row
    broken = "[Unknown Error]" in row or "[GPU is lost]" in row
    health: Health = "error" if broken else "ok"
    return Card(
        index=int(index),
        name=told(name),
        uuid=told(uuid),
        pci_address=address,
        memory_total_bytes=None if broken else size_bytes(total),
        memory_used_bytes=None if broken else size_bytes(used),
        is_memory_shared=total == "[N/A]",
        health=health,
        reason="nvidia-smi answers [Unknown Error] for it: it fell off the bus" if broken else None,
    )


def parse_list(text: str) -> Reading:
    """`nvidia-smi -L`: names whole, and the MIG devices below their GPU."""
    cards: list[Card] = []
    for line in text.splitlines():
        gpu, mig = _LISTED.match(line), _LISTED_MIG.match(line)
        if gpu is not None:
            cards.append(Card(index=int(gpu["index"]), name=gpu["name"], uuid=gpu["uuid"], health="ok"))  # fmt: skip
        elif mig is not None and cards:
            part = Slice(index=int(mig["index"]), name=mig["name"], uuid=mig["uuid"])
            cards[-1] = _with_slices(cards[-1], (*cards[-1].slices, part))
        elif line.strip():
            raise OddLineError(line)
    return Reading(cards=tuple(cards))


def parse_table(text: str) -> Reading:
    """The table of plain `nvidia-smi`: two rows a card, then MIG devices. A long name ends in "...", and then it is not told."""
    reading = cards_of(text, name=_table_name)
    slices = slices_of(text)
    cards = (_with_slices(card, slices.get(card.index or 0, ())) for card in reading.cards)
    return structs.replace(reading, cards=tuple(cards))


def _table_name(row: Row) -> str | None:
    name = first_words(row)
    return None if name.endswith("...") else name


def _with_slices(card: Card, slices: tuple[Slice, ...]) -> Card:
    return structs.replace(card, slices=slices)


PROBE: Final = Asked(cli=read)
