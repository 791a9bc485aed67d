"""What `devices` says of accelerators, in 80 columns."""

from collections.abc import Callable, Sequence

from polypod import units
from polypod.report.tables import entry, table
from polypod.serve.devices.conformance import Count, Counts
from polypod.serve.devices.fleet import FoundFleet, label
from polypod.serve.devices.found import Device, EngineUse, Inventory, VendorReport
from polypod.serve.devices.vendor import Vendor

_NAME_WIDTH = 26


def accelerators_text(inventory: Inventory, vendors: Sequence[Vendor]) -> str:
    """Every vendor with a trace on the machine: what was found, how, and what to do about what was not."""
    if not inventory.reports:
        return entry(
            "accelerators",
            f"none: no function of {len(vendors)} vendors in /sys/bus/pci/devices, and no device node of theirs",
        )
    names = {vendor.vendor: vendor for vendor in vendors}
    blocks = [_vendor(report, names[report.vendor], _of(report, inventory)) for report in inventory.reports]  # fmt: skip
    return "\n\n".join(blocks)


def fleet_text(fleet: FoundFleet) -> str:
    """The fleet found, as `plan --on` takes it."""
    parts = "+".join(f"{one.accelerator}:{one.count}" for one in fleet.sources.values())
    lines = [entry("fleet", f"{parts} (polypod plan MODEL --on found)" if parts else "nothing that a plan can be made for")]  # fmt: skip
    lines += [entry("left out", f"{', '.join(names)}: {reason}") for reason, names in fleet.left_out.items()]  # fmt: skip
    lines += [entry("held", f"{line} by other processes") for line in fleet.held]
    return "\n".join(lines)


def conformance_text(counts: Counts, vendors: Sequence[Vendor]) -> str:
    """The table: vendor, cases, and where their answers come from."""
    rows = []
    for vendor in vendors:
        count = counts.vendors[vendor.vendor]
        numbers = (count.cases, count.captured, count.transcribed, count.reconstructed)
        rows.append([vendor.name, *map(str, numbers), _interface(vendor), vendor.ran_here or "no"])
    mixed = counts.vendors.get("mixed", Count())
    numbers = (mixed.cases, mixed.captured, mixed.transcribed, mixed.reconstructed)
    rows.append(["hosts of two vendors", *map(str, numbers), "", "no"])
    total = [sum(int(row[column]) for row in rows) for column in range(1, 5)]
    rows.append(["all", *map(str, total), "", ""])
    head = ["vendor", "cases", "captured", "transcribed", "drawn", "library", "run here"]
    return table(head, rows, right=[1, 2, 3, 4])


def _interface(vendor: Vendor) -> str:
    return vendor.library.interface or "-"


def _of(report: VendorReport, inventory: Inventory) -> list[Device]:
    return [device for device in inventory.devices if device.vendor == report.vendor]


def _vendor(report: VendorReport, vendor: Vendor, devices: Sequence[Device]) -> str:
    lines = [entry(vendor.vendor, f"{report.status}: {len(devices)} of {vendor.name}; seen as {report.seen}")]  # fmt: skip
    lines += [entry("", f"asked: {command}") for command in report.tried]
    lines += [entry("problem", report.problem)] if report.problem else []
    lines += [entry("way out", report.way_out)] if report.way_out else []
    if not devices:
        return "\n".join(lines)
    lines += ["", _table(devices), ""]
    for device in devices:
        lines += _notes(device)
    lines += _alike("catalog", devices, _catalog)
    lines += _alike("engines", devices, _engines)
    lines += _alike("found by", devices, lambda one: one.found_by)
    lines += _alike("show alone", devices, _visible)
    lines.append(entry("nodes", _nodes(vendor)))
    return "\n".join(lines)


def _table(devices: Sequence[Device]) -> str:
    rows = [
        [
            _number(one),
            "-" if one.physical_id is None else str(one.physical_id),
            (one.name or "name not told")[:_NAME_WIDTH],
            _size(one.memory_total_bytes, is_shared=one.is_memory_shared),
            _size(one.memory_used_bytes),
            one.pci_address or "-",
            one.health,
        ]
        for one in devices
    ]
    head = ["no.", "id", "name", "memory", "in use", "bus", "health"]
    return table(head, rows, right=[0, 1, 3, 4])


def _number(device: Device) -> str:
    return "-" if device.index is None else str(device.index)


def _size(number: int | None, *, is_shared: bool = False) -> str:
    if number is None:
        return "the host's" if is_shared else "not told"
    return units.show(number, "bytes")


def _notes(device: Device) -> list[str]:
    lines = [entry("", f"{label(device)}: {device.reason}")] if device.reason else []
    return lines + [
        entry(
            "",
            f"{label(device)}, slice {part.index}: {part.name or 'no name'}, "
            f"{_size(part.memory_used_bytes)} of {_size(part.memory_total_bytes)} in use",
        )
        for part in device.slices
    ]


def _alike(title: str, devices: Sequence[Device], say: Callable[[Device], str]) -> list[str]:
    """One line for all devices of which the same is said, with their numbers where it is not all."""
    groups: dict[str, list[str]] = {}
    for device in devices:
        number = device.pci_address if device.index is None else str(device.index)
        groups.setdefault(say(device), []).append(number or "?")
    lines: list[str] = []
    for text, numbers in groups.items():
        which = f"{', '.join(numbers)}: " if len(groups) > 1 else ""
        lines.append(entry("" if lines else title, f"{which}{text}"))
    return lines


def _catalog(device: Device) -> str:
    return f"{device.catalog_id or 'no entry'} ({device.catalog_note})"


def _engines(device: Device) -> str:
    """Those that Polypod can start with what they need, then the names of the others."""
    if not device.engines:
        return "none on record"
    startable = [use for use in device.engines if use.has_adapter]
    others = ", ".join(use.engine for use in device.engines if not use.has_adapter)
    said = [*map(_engine, startable), *([f"on record, and not started by Polypod here: {others}"] if others else [])]  # fmt: skip
    return "; ".join(said)


def _engine(use: EngineUse) -> str:
    state = "" if use.state == "supported" else f" ({use.state})"
    lacks = f"needs {', '.join(use.missing)}" if use.missing else "installed"
    return f"{use.engine}{state}: {lacks}"


def _visible(device: Device) -> str:
    environment = device.visible.environment
    said = " ".join(f"{name}={'NO.' if value == _number(device) else value}" for name, value in environment.items())  # fmt: skip
    return said or device.visible.reason or "not known"


def _nodes(vendor: Vendor) -> str:
    own = [pattern.replace("{id}", "ID").replace("{index}", "NO.") for pattern in vendor.nodes.own]
    shared = ", ".join(vendor.nodes.shared)
    parts = [", ".join(own), f"for all: {shared}" if shared else ""]
    return "; ".join(part for part in parts if part) or vendor.nodes.note or "not known"
