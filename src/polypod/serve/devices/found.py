"""What was found on a machine: devices, and for each vendor looked at how that went.

Two numbers of a device are kept apart. `index` is the logical one, which engines and visible variables count in; `physical_id` is the one that names its
device node. On a machine whose NPUs answer 5, 6, 7, 4, or inside a container that was given the third card, they differ.

`memory_used_bytes` is what the device itself says, so it holds the memory of every process, ours or not. A number the device did not tell is None, never 0.
"""

from typing import Literal

import msgspec

Status = Literal[
    "ok",  # read, and every device of it
    "partial",  # some of it: cut short, or a device of the bus that the tool does not list
    "no_devices",  # the tool works and lists nothing
    "driver_error",
    "permission_error",
    "tool_missing",  # neither a library nor a tool of the vendor is installed
    "parse_error",  # an answer in a form that we do not know; its first odd line is said
]
Health = Literal["ok", "warning", "error", "unknown"]
Means = Literal["pci", "library", "cli", "kernel"]


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a device that engines see as a device of its own: a MIG instance, a vNPU, an SVI instance."""

    name: str | None = None
    uuid: str | None = None
    index: int | None = None
    instance: str | None = None  # "2" of a GPU instance: slices of one instance share its memory
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """One device as a probe read it, before it is laid beside the bus and the catalog."""

    index: int | None = None
    physical_id: int | None = None
    place: tuple[int, ...] = ()  # the tool's own numbering: a card, and a chip of it
    name: str | None = None
    uuid: str | None = None
    pci_address: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    is_memory_shared: bool = False  # with the host: the device has none of its own
    cores: tuple[int, ...] = ()  # where the visible variable counts parts of a device
    health: Health = "unknown"
    reason: str | None = None
    slices: tuple[Slice, ...] = ()


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe made of its answers. `odd` is the first line of a table that broke off, or that nothing was made of."""

    cards: tuple[Card, ...]
    odd: str | None = None


class EngineUse(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that runs on the device by what is on record, and what of it is not installed here."""

    engine: str
    state: str
    has_adapter: bool  # whether Polypod can start it
    missing: tuple[str, ...] = ()  # packages that are not installed, and what is not known


class Visible(msgspec.Struct, frozen=True, kw_only=True):
    """The environment that shows an engine exactly one device, and why there is none where there is none."""

    environment: dict[str, str] = {}
    reason: str | None = None


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator."""

    vendor: str
    name: str | None
    index: int | None
    physical_id: int | None
    uuid: str | None
    pci_address: str | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    is_memory_shared: bool
    health: Health
    reason: str | None
    slices: tuple[Slice, ...]
    found_by: Means
    found_with: str  # the exact command, the library's file, or the folder of the bus
    catalog_id: str | None
    catalog_note: str
    devices_per_entry: int  # 2 where a catalog entry is a package of two such devices
    engines: tuple[EngineUse, ...]
    visible: Visible
    nodes: tuple[str, ...]

    @property
    def memory_free_bytes(self) -> int | None:
        """What no process holds; None where the device does not tell both numbers."""
        if self.memory_total_bytes is None or self.memory_used_bytes is None:
            return None
        return max(0, self.memory_total_bytes - self.memory_used_bytes)

    @property
    def is_usable(self) -> bool:
        """Whether an engine could be started on it: its driver answers, and it does not call itself broken."""
        return self.health != "error"


class VendorReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one vendor's devices were looked for. `seen` says why at all: a function on the bus, or a device node."""

    vendor: str
    status: Status
    seen: str
    tried: tuple[str, ...]  # libraries and commands, in order, as they were run
    problem: str | None = None
    way_out: str | None = None


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """Every accelerator of a machine, and one report for each vendor that has any trace on it."""

    devices: tuple[Device, ...]
    reports: tuple[VendorReport, ...]

    @property
    def problems(self) -> tuple[VendorReport, ...]:
        """The reports that are not simply ok."""
        return tuple(report for report in self.reports if report.status != "ok")
