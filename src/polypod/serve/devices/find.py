"""All accelerators of a machine: the bus first, then the vendor's library, then its tool, then the kernel's own files.

A vendor that left no trace on the machine (a function on the bus, a device node) costs nothing: its library is not loaded and its tool is not looked for. What
one vendor answers never keeps another from being listed, and a device whose driver is broken is listed with the reason.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from msgspec import structs

from polypod.serve.devices.asking import (
    REPORT,
    UNREADABLE,
    Ask,
    OddLineError,
    UnansweredError,
)
from polypod.serve.devices.found import (
    Card,
    Device,
    Inventory,
    Means,
    Reading,
    Status,
    VendorReport,
)
from polypod.serve.devices.library import ask_library
from polypod.serve.devices.machine import Machine, this_machine
from polypod.serve.devices.matched import (
    Installed,
    catalog_match,
    engines_of,
    installed,
    visible_as,
)
from polypod.serve.devices.pci import PciFunction, normal_address, scan
from polypod.serve.devices.probe import Probe, probe_of
from polypod.serve.devices.vendor import Vendor, shipped_vendors

BUS = "/sys/bus/pci/devices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finders:
    """What `find_devices` needs besides a machine; tests bring their own."""

    vendors: tuple[Vendor, ...]
    probe_of: Callable[[str], Probe] = probe_of
    installed: Installed = installed


def find_devices(machine: Machine | None = None, finders: Finders | None = None) -> Inventory:
    """Look for every vendor's devices; vendors are asked at the same time, since each may be slow."""
    machine = this_machine() if machine is None else machine
    finders = Finders(vendors=shipped_vendors()) if finders is None else finders
    bus = scan(machine.root)
    traced = [one for one in (_trace(vendor, machine, bus) for vendor in finders.vendors) if one]
    if not traced:
        return Inventory(devices=(), reports=())
    with ThreadPoolExecutor(max_workers=len(traced)) as pool:
        found = list(pool.map(lambda trace: _look(trace, machine, finders), traced))
    return Inventory(
        devices=tuple(device for devices, _ in found for device in devices),
        reports=tuple(report for _, report in found),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trace:
    """Why a vendor is looked at."""

    vendor: Vendor
    functions: tuple[PciFunction, ...]
    seen: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What came of asking one vendor, by whatever means."""

    reading: Reading
    means: Means
    with_: str
    tried: tuple[str, ...]
    error: UnansweredError | None = None


_Way = Callable[[Vendor, Machine, Probe, list[str]], tuple[Reading, str] | None]
"""Asks one vendor by one means: a reading and where it is from, or None where there is nothing of that kind."""


def _trace(vendor: Vendor, machine: Machine, bus: Iterable[PciFunction]) -> _Trace | None:
    functions = tuple(filter(vendor.pci.holds, bus))
    nodes = machine.traces(vendor.nodes)
    if functions:
        things = "function" if len(functions) == 1 else "functions"
        seen = f"{len(functions)} {things} of vendor {vendor.pci.vendor_id} in {BUS}"
    elif nodes:
        seen = nodes[0]
    elif vendor.platform is not None and vendor.platform == machine.platform:
        seen = f"the platform {machine.platform}"
    else:
        return None
    return _Trace(vendor=vendor, functions=functions, seen=seen)


def _look(trace: _Trace, machine: Machine, finders: Finders) -> tuple[tuple[Device, ...], VendorReport]:  # fmt: skip
    told = _ask(trace, machine, finders.probe_of(trace.vendor.vendor))
    cards, lone = _beside_bus(told.reading.cards, trace.functions)
    devices = [_device(trace, told, card, function, finders) for card, function in cards]
    reason = _why_silent(told)
    devices += [_device(trace, _bare(told), _silent(function, reason), function, finders) for function in lone]  # fmt: skip
    devices.sort(key=lambda one: (one.index is None, one.index or 0))
    return tuple(devices), _report(trace, told, len(lone))


def _ask(trace: _Trace, machine: Machine, probe: Probe) -> _Told:
    """Library, then tools, then the kernel; what failed on the way is kept, and the last word is the tool's."""
    vendor = trace.vendor
    tried: list[str] = []
    errors: list[UnansweredError] = []
    ways: tuple[tuple[Means, _Way], ...] = (("library", _from_library), ("cli", _from_tools))
    for means, ask in ways:
        try:
            answer = ask(vendor, machine, probe, tried)
        except UnansweredError as error:
            errors.append(error)
            continue
        if answer is not None:
            reading, where = answer
            return _Told(reading=reading, means=means, with_=where, tried=tuple(tried))
    last = errors[-1] if errors else _nothing_to_ask(vendor)
    kernel = None
    if not errors:  # a tool that was there and failed knows better
        try:
            kernel = probe.from_kernel(machine.root, trace.functions)
        except UnansweredError as silent:  # no driver runs them, and there is no tool to say so
            last = last or silent
    if kernel is not None:
        own = f"{BUS}, files of the driver"
        return _Told(reading=kernel, means="kernel", with_=own, tried=tuple(tried), error=last)
    return _Told(reading=Reading(cards=()), means="pci", with_=BUS, tried=tuple(tried), error=last)


def _from_library(
    vendor: Vendor, machine: Machine, _: Probe, tried: list[str]
) -> tuple[Reading, str] | None:
    candidates = machine.libraries(vendor.library)
    if vendor.library.interface is None or not candidates:
        return None
    tried.append(candidates[0])
    return ask_library(vendor, candidates, machine.run)


def _from_tools(
    vendor: Vendor, machine: Machine, probe: Probe, tried: list[str]
) -> tuple[Reading, str] | None:
    """The first tool of the vendor that is really the vendor's: two vendors have tools of one name."""
    error: UnansweredError | None = None
    for tool in machine.tools(vendor.cli):
        ask = Ask(vendor=vendor, tool=tool, run=machine.run, tried=tried)
        try:
            return probe.from_cli(ask), ask.answered[0]
        except UnansweredError as failed:
            error = failed
        except (OddLineError, *UNREADABLE) as odd:  # between two answers that each could be read
            error = UnansweredError(f"{tried[-1]} does not go with what was read before ({odd})", "parse_error", REPORT)  # fmt: skip
        if error.status != "tool_missing":
            break
    if error is not None:
        raise error
    return None


def _nothing_to_ask(vendor: Vendor) -> UnansweredError | None:
    """What is missing, where a vendor has a library or a tool at all; some only have kernel files."""
    wanted = [*(vendor.library.names if vendor.library.interface else ()), *vendor.cli.tools]
    if not wanted:
        return None
    problem = f"not installed: {', '.join(wanted)}"
    return UnansweredError(problem, "tool_missing", f"install {vendor.cli.package}")


def _beside_bus(
    cards: Sequence[Card], functions: Sequence[PciFunction]
) -> tuple[list[tuple[Card, PciFunction | None]], list[PciFunction]]:
    """Cards with their functions of the bus, and the functions no card belongs to.

    A card that tells no address (an old tool, or a card that the library has lost) is laid beside the one function that is left, if it is one; of several it cannot
    be said which is which, and as many functions count as theirs.
    """
    by_address = {function.address: function for function in functions}
    addresses = [normal_address(card.pci_address) for card in cards]
    lone = [function for function in functions if function.address not in addresses]
    if len(lone) == 1 == addresses.count(None):
        addresses = [address or lone[0].address for address in addresses]
    lone = [function for function in lone if function.address not in addresses]
    twice = _given_twice(cards, addresses)
    laid = []
    for card, address in zip(cards, addresses, strict=True):
        placed = structs.replace(card, pci_address=address)
        laid.append((_doubted(placed, address in twice), by_address.get(address or "")))
    return laid, lone[addresses.count(None) :]


def _given_twice(cards: Sequence[Card], addresses: Sequence[str | None]) -> set[str]:
    """Addresses of more than one device; chips of one card (Atlas 300I Duo) may share theirs."""
    owners: dict[str, list[Card]] = {}
    for card, address in zip(cards, addresses, strict=True):
        if address is not None:
            owners.setdefault(address, []).append(card)
    return {
        address
        for address, found in owners.items()
        if len(found) > 1 and len({card.place[:1] for card in found if card.place}) != 1
    }


def _doubted(card: Card, is_twice: bool) -> Card:  # noqa: FBT001
    if not is_twice:
        return card
    reason = (
        f"two devices give the bus address {card.pci_address}; one of them may be counted twice"
    )
    return structs.replace(card, health="warning", reason=reason)


def _why_silent(told: _Told) -> str:
    if told.error is not None:
        return told.error.problem
    if told.reading.odd is not None:
        return f"{told.with_} broke off before it"
    return "on the bus and not listed: it is another container's, or its driver does not run on it"


def _bare(told: _Told) -> _Told:
    return _Told(reading=told.reading, means="pci", with_=BUS, tried=told.tried, error=told.error)


def _silent(function: PciFunction, reason: str) -> Card:
    return Card(pci_address=function.address, health="error", reason=reason)


def _device(
    trace: _Trace, told: _Told, card: Card, function: PciFunction | None, finders: Finders
) -> Device:
    vendor = trace.vendor
    device_id = function.device_id if function else None
    name = card.name or vendor.pci.devices.get(device_id or "")
    match = catalog_match(vendor, card, name, device_id)
    return Device(
        vendor=vendor.vendor,
        name=name,
        index=card.index,
        physical_id=card.physical_id,
        uuid=card.uuid,
        pci_address=card.pci_address,
        memory_total_bytes=card.memory_total_bytes,
        memory_used_bytes=card.memory_used_bytes,
        is_memory_shared=card.is_memory_shared,
        health=card.health,
        reason=card.reason,
        slices=card.slices,
        found_by=told.means,
        found_with=told.with_,
        catalog_id=match.id,
        catalog_note=match.note,
        devices_per_entry=match.devices_per_entry,
        engines=engines_of(vendor, match.id, finders.installed),
        visible=visible_as(vendor.visible, card),
        nodes=_nodes(vendor, card),
    )


def _nodes(vendor: Vendor, card: Card) -> tuple[str, ...]:
    """The device's own nodes, as far as the ids they are made of are known, and those all devices of the vendor share."""
    known = {"{id}": card.physical_id, "{index}": card.index}
    own = []
    for pattern in vendor.nodes.own:
        numbers = {place: number for place, number in known.items() if place in pattern}
        if None not in numbers.values():
            for place, number in numbers.items():
                pattern = pattern.replace(place, str(number))
            own.append(pattern)
    return (*own, *vendor.nodes.shared)


def _report(trace: _Trace, told: _Told, silent: int) -> VendorReport:
    status, problem = _status(told, silent)
    return VendorReport(
        vendor=trace.vendor.vendor,
        status=status,
        seen=trace.seen,
        tried=told.tried,
        problem=problem,
        way_out=told.error.way_out if told.error else None,
    )


def _status(told: _Told, silent: int) -> tuple[Status, str | None]:
    if told.error is not None:
        return told.error.status, told.error.problem
    if told.reading.odd is not None:
        return "partial", f"{told.with_} broke off at {told.reading.odd.strip()[:80]!r}"
    if silent and told.reading.cards:
        return "partial", f"{silent} on the bus that {told.with_} does not list"
    if not told.reading.cards:
        return "no_devices", f"{told.with_} lists no device"
    return "ok", None
