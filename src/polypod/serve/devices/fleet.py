"""From what was found to a fleet that plans are made for, and from a plan to what of it is not here.

A device takes part where its catalog entry is known and it does not call itself broken. Devices are whole: what other processes hold of their memory is said
beside them, since a plan is for the time when they are gone.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import yaml

from polypod.catalog.load import load_accelerator, load_pod, pods_accelerator
from polypod.plan.spec import Source
from polypod.serve.devices.found import Device, Inventory

_HELD_FRACTION = 0.05
"""Of a device's memory: below, it is its driver's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFleet:
    """Sources by name, and in words what was left out or is taken to be free."""

    sources: dict[str, Source]
    left_out: dict[str, tuple[str, ...]]  # devices by reason
    held: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """Accelerators that a plan wants and this machine does not have, over all parts of the plan."""

    accelerator: str
    parts: tuple[str, ...]
    wanted: int
    found: int


def found_fleet(inventory: Inventory) -> FoundFleet:
    """Every usable device with a catalog entry, like ones together."""
    counts: Counter[str] = Counter()
    vendors: dict[str, str] = {}
    left_out: dict[str, list[str]] = {}
    held: list[str] = []
    for device in inventory.devices:
        why_not = _why_not(device)
        if why_not is not None or device.catalog_id is None:
            left_out.setdefault(why_not or "", []).append(label(device))
            continue
        counts[device.catalog_id] += 1
        vendors[device.catalog_id] = device.vendor
        held += _held(device)
    parts = {device.catalog_id: device.devices_per_entry for device in inventory.devices}
    for chip, count in counts.items():
        if count % parts[chip]:
            reason = f"an entry of the catalog is {parts[chip]} of them"
            left_out.setdefault(reason, []).append(f"one device of {chip}")
    whole = {chip: count // parts[chip] for chip, count in counts.items() if count >= parts[chip]}
    return FoundFleet(
        sources=_named(whole, vendors),
        left_out={reason: tuple(names) for reason, names in left_out.items()},
        held=tuple(held),
    )


def fleet_yaml(fleet: FoundFleet) -> str:
    """A fleet file that `polypod plan --on` reads; what was left out stands in comments."""
    parts = {name: {"accelerator": one.accelerator, "count": one.count} for name, one in fleet.sources.items()}  # fmt: skip
    lines = ["# What `polypod devices` found on this machine."]
    lines += [
        f"# left out: {', '.join(names)}: {reason}" for reason, names in fleet.left_out.items()
    ]
    lines += [f"# in use by others, and planned as free: {line}" for line in fleet.held]
    return "\n".join(lines) + "\n" + yaml.safe_dump({"fleet": parts}, sort_keys=False)


def lacking(wanted: Mapping[str, Source], inventory: Inventory) -> tuple[Lack, ...]:
    """What a plan's fleet has more of than was found; nothing where all of it is here."""
    here = {one.accelerator: one.count or 0 for one in found_fleet(inventory).sources.values()}
    counts: Counter[str] = Counter()
    parts: dict[str, list[str]] = {}
    for name, source in wanted.items():
        chip, count = _asked(source)
        if chip is not None:
            counts[chip] += count
            parts.setdefault(chip, []).append(name)
    return tuple(
        Lack(accelerator=chip, parts=tuple(parts[chip]), wanted=count, found=here.get(chip, 0))
        for chip, count in counts.items()
        if count > here.get(chip, 0)
    )


def label(device: Device) -> str:
    """A device in a line of text: by its logical number, else by its address on the bus."""
    number = device.pci_address if device.index is None else device.index
    return f"{device.vendor} {number}"


def _why_not(device: Device) -> str | None:
    if not device.is_usable:
        return device.reason or "broken"
    if device.slices:
        return f"divided into {len(device.slices)} slices, which plans do not know"
    if device.catalog_id is None:
        return device.catalog_note
    return None


def _held(device: Device) -> list[str]:
    used, total = device.memory_used_bytes, device.memory_total_bytes
    if used is None or total is None or used < _HELD_FRACTION * total:
        return []
    return [f"{used / 1e9:.3g} of {total / 1e9:.3g} GB of {label(device)}"]


def _named(counts: Mapping[str, int], vendors: Mapping[str, str]) -> dict[str, Source]:
    """Sources named after their vendor, numbered from the second kind of one vendor on."""
    kinds: Counter[str] = Counter()
    sources = {}
    for chip, count in counts.items():
        vendor = vendors[chip]
        kinds[vendor] += 1
        name = vendor if kinds[vendor] == 1 else f"{vendor}-{kinds[vendor]}"
        sources[name] = Source(accelerator=chip, count=count)
    return sources


def _asked(source: Source) -> tuple[str | None, int]:
    if source.pod is not None:
        pod = load_pod(source.pod)
        return pods_accelerator(pod).id, source.accelerators or pod.accelerators
    if source.accelerator is not None:
        return load_accelerator(source.accelerator).id, source.count or 1
    return None, 0  # cores of a host
