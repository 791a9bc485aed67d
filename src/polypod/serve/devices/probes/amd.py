"""AMD: `rocm-smi` as JSON, else as CSV, else `amd-smi static`; without any tool, what the amdgpu driver tells in sysfs.

Keys changed with ROCm's versions ("GPU ID" to "Device ID", "Average ..." to "Current Socket ..."). A product's name stands under "Card Series", except in
releases that write the vendor's id there; then under "Card series", "Card model" or "Device Name". "VIS_VRAM" is a window on the memory, not the memory.
"""

import re
from pathlib import Path
from typing import Any, Final

from polypod.serve.devices.asking import Ask, OddLineError, UnansweredError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.pci import PciFunction
from polypod.serve.devices.printed import csv_rows, json_of, size_bytes, told
from polypod.serve.devices.probe import Asked

QUESTION: Final = ("--showid", "--showbus", "--showproductname", "--showuniqueid", "--showmeminfo", "vram")  # fmt: skip

_NAMES: Final = ("Card Series", "Card series", "Device Name", "Card Model", "Card model")
_CARD = re.compile(r"card(\d+)\Z")


def read(ask: Ask) -> Reading:
    """The first form that the tool knows."""
    if ask.tool.rsplit("/", 1)[-1] == "amd-smi":
        return ask.first((("static", "--json"), parse_static_json), (("static",), parse_static))
    return ask.first(
        ((*QUESTION, "--json"), parse_json),
        (("--showall", "--json"), parse_json),
        ((*QUESTION, "--csv"), parse_csv),
    )


def parse_json(text: str) -> Reading:
    """`rocm-smi --json`: an object of cards; other keys are of the system."""
    found = json_of(text)
    if not isinstance(found, dict):
        raise OddLineError(text.strip().splitlines()[0])
    if not found:
        msg = "rocm-smi lists no card"
        raise UnansweredError(msg, "no_devices")
    return Reading(cards=tuple(_cards(found)))


def _cards(found: dict[str, Any]) -> list[Card]:
    numbered = [(int(match[1]), keys) for name, keys in found.items() if (match := _CARD.match(name))]  # fmt: skip
    if not numbered:
        raise OddLineError(next(iter(found)))
    return [_card(number, {key.strip(): str(value) for key, value in keys.items()}) for number, keys in sorted(numbered)]  # fmt: skip


def _card(number: int, keys: dict[str, str]) -> Card:
    names = (told(keys.get(key)) for key in _NAMES)
    return Card(
        index=number,
        name=next((name for name in names if name and not name.startswith("0x")), None),
        uuid=told(keys.get("Unique ID")),
        pci_address=told(keys.get("PCI Bus")),
        memory_total_bytes=_memory_bytes(keys, "Total Memory"),
        memory_used_bytes=_memory_bytes(keys, "Total Used Memory"),
        health="ok",
    )


def _memory_bytes(keys: dict[str, str], which: str) -> int | None:
    """AMD counts bytes; Hygon's tool, made after it, writes "vram" and counts MiB or bytes."""
    for name, unit in (("VRAM", "B"), ("vram", "B"), ("vram", "MiB")):
        value = told(keys.get(f"{name} {which} ({unit})"))
        if value is not None:
            return size_bytes(f"{value} {unit}")
    return None


def parse_csv(text: str) -> Reading:
    """`rocm-smi --csv`, after any warnings: a header that begins with "device", and a row a card."""
    rows = list(csv_rows(text))
    head = next((place for place, row in enumerate(rows) if row[0] == "device"), None)
    if head is None:
        raise OddLineError(text.strip().splitlines()[0])
    if head + 1 == len(rows):
        raise OddLineError(",".join(rows[head]))
    found = {}
    for row in rows[head + 1 :]:
        if len(row) != len(rows[head]):
            raise OddLineError(",".join(row))
        found[row[0]] = dict(zip(rows[head], row, strict=True))
    return Reading(cards=tuple(_cards(found)))


def parse_static(text: str) -> Reading:
    """`amd-smi static` as text: sections by indentation, one "GPU: N" a device; what stands before the first is of the CPU."""
    starts = [match.start() for match in re.finditer(r"^GPU: \d+$", text, re.MULTILINE)]
    if not starts:
        raise OddLineError(text.strip().splitlines()[0])
    parts = [text[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    return Reading(cards=tuple(map(_static_card, parts)))


def _static_card(part: str) -> Card:
    def value(section: str, key: str) -> str | None:
        match = re.search(rf"^ {{4}}{section}:\n(?: {{8}}.*\n)*? {{8}}{key}: (.*)$", part, re.MULTILINE)  # fmt: skip
        return told(match[1]) if match else None

    return Card(
        index=int(part.splitlines()[0].removeprefix("GPU: ")),
        name=value("ASIC", "MARKET_NAME"),
        uuid=value("ASIC", "ASIC_SERIAL"),
        pci_address=value("BUS", "BDF"),
        memory_total_bytes=size_bytes(value("VRAM", "SIZE")),
        health="ok",
    )


def parse_static_json(text: str) -> Reading:
    """`amd-smi static --json`: a list, or an object with one under "gpu_data"."""
    found = json_of(text)
    gpus = found.get("gpu_data") if isinstance(found, dict) else found
    if not isinstance(gpus, list):
        raise OddLineError(text.strip().splitlines()[0])
    return Reading(cards=tuple(map(_static_json_card, gpus)))


def _static_json_card(gpu: dict[str, Any]) -> Card:
    size = gpu["vram"]["size"]
    text = f"{size['value']} {size['unit']}" if isinstance(size, dict) else size
    return Card(
        index=int(gpu["gpu"]),
        name=told(gpu["asic"]["market_name"]),
        uuid=told(gpu["asic"]["asic_serial"]),
        pci_address=told(gpu["bus"]["bdf"]),
        memory_total_bytes=size_bytes(text),
        health="ok",
    )


def from_kernel(root: Path, functions: tuple[PciFunction, ...]) -> Reading | None:
    """The amdgpu driver's own files: sizes without names. Cards are numbered by address, as ROCm numbers them."""
    cards = []
    for index, function in enumerate(functions):
        folder = root / "sys/bus/pci/devices" / function.address
        total = _number(folder / "mem_info_vram_total")
        if total is None:
            continue
        cards.append(
            Card(
                index=index,
                pci_address=function.address,
                memory_total_bytes=total,
                memory_used_bytes=_number(folder / "mem_info_vram_used"),
                health="ok",
            )
        )
    return Reading(cards=tuple(cards)) if cards else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # EBUSY while the card sleeps
        return None


PROBE: Final = Asked(cli=read, kernel=from_kernel)
