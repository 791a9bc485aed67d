"""What is known of one vendor's devices, read from `data/VENDOR.toml`: ids, libraries, tools, variables, nodes, names.

Nothing here is code, and every table says where it is from and whether that was verified. Adding a vendor is one such file, one file of `probes/` and one
folder of the conformance kit (docs/how-to/add-a-vendor.md).
"""

import tomllib
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, Literal

import msgspec

from polypod.errors import FileError
from polypod.serve.devices.found import Status
from polypod.serve.devices.pci import PciFunction

DATA: Final[Traversable] = resources.files("polypod.serve.devices") / "data"
COUNTS: Final = "conformance.toml"
"""The file of that folder that is no vendor's: what the conformance kit holds."""


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Pci(_Strict, frozen=True, kw_only=True):
    """How a function of the bus is known to be one of the vendor's. `classes` are prefixes: "0x03" display, "0x12" accelerator, "0x1180" signal processor."""

    vendor_id: str | None = None  # None: not known, and then device nodes decide
    match: Literal["class", "device", "class and device"] = "class"
    classes: tuple[str, ...] = ()
    devices: dict[str, str] = {}  # "0x2330" to a name
    source: str
    verified: bool
    note: str | None = None

    def holds(self, function: PciFunction) -> bool:
        """Whether the function is one of the vendor's accelerators."""
        if self.vendor_id is None or function.vendor_id != self.vendor_id:
            return False
        by_class = any(function.class_code.startswith(prefix) for prefix in self.classes)
        by_device = function.device_id in self.devices
        wanted = {"class": (by_class,), "device": (by_device,), "class and device": (by_class, by_device)}  # fmt: skip
        return all(wanted[self.match])


class Library(_Strict, frozen=True, kw_only=True):
    """The vendor's own library. `interface` names the reader in `libraries/`; without one the library is known but not read."""

    interface: str | None = None
    names: tuple[str, ...] = ()  # as the loader finds them
    paths: tuple[str, ...] = ()  # where installers put them
    source: str
    verified: bool
    note: str | None = None


class Cli(_Strict, frozen=True, kw_only=True):
    """The vendor's command line tools, in the order they are tried, and where they lie when not on PATH."""

    tools: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    package: str  # what installs them, in words
    source: str
    verified: bool
    note: str | None = None


class Shown(_Strict, frozen=True, kw_only=True):
    """The variable by which an engine sees one device. `value` is what it counts in."""

    variable: str | None = None
    value: Literal["index", "id", "uuid or index", "cores"] = "index"
    beside: dict[str, str] = {}  # set with it
    container: str | None = None  # the variable of the vendor's container toolkit
    source: str
    verified: bool
    note: str | None = None


class Nodes(_Strict, frozen=True, kw_only=True):
    """Device nodes. `{id}` is the physical id, `{index}` the logical one; `trace` are globs whose presence is a trace of the vendor."""

    own: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    trace: tuple[str, ...] = ()
    source: str
    verified: bool
    note: str | None = None


class Failure(_Strict, frozen=True, kw_only=True):
    """Words of a library or a tool that mean something is wrong, and what to do."""

    words: str
    status: Status
    way_out: str


class Entry(_Strict, frozen=True, kw_only=True):
    """A catalog entry and the names its devices print; `*` stands for any text. Memory tells variants of one name apart."""

    id: str
    names: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()  # PCI device ids
    memory_gib: tuple[float, float] | None = None
    devices_per_entry: int = 1  # 2 where the entry is a package of two such devices
    note: str | None = None  # said with the match: what it leaves open


class Vendor(_Strict, frozen=True, kw_only=True):
    """One vendor's data file."""

    vendor: str
    name: str
    stack: str  # of software, as the catalog and the engines' facts call it
    order: int  # among vendors, when devices are listed
    platform: str | None = None  # of Python's sys.platform: such a machine has one of these
    ran_here: str | None = (
        None  # the machine a maintainer ran it on; None: on recorded outputs only
    )
    pci: Pci
    library: Library
    cli: Cli
    visible: Shown
    nodes: Nodes
    failures: tuple[Failure, ...] = ()
    catalog: tuple[Entry, ...] = ()

    def failure_in(self, text: str) -> Failure | None:
        """The first known failure whose words stand in a text."""
        folded = text.casefold()
        return next((one for one in self.failures if one.words.casefold() in folded), None)

    def entry_of(
        self, name: str | None, device_id: str | None, memory_bytes: int | None
    ) -> Entry | None:
        """The catalog entry of a device, by the name that it gives itself; by its PCI device id only where it gives none."""
        if name is None:
            meant = [entry for entry in self.catalog if device_id in entry.devices]
        else:
            meant = [entry for entry in self.catalog if _is_named(entry, name)]
        return next((entry for entry in meant if _fits(entry, memory_bytes)), None)


def load_vendor(path: Traversable | Path) -> Vendor:
    """Read one file. Raises `FileError` for broken TOML, an unknown key or a wrong type."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Vendor)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise FileError(str(path), str(error)) from error


@cache
def shipped_vendors() -> tuple[Vendor, ...]:
    """Every vendor that comes with Polypod, in the order devices are listed."""
    return vendors_in(DATA)


def vendors_in(folder: Traversable | Path) -> tuple[Vendor, ...]:
    """The vendors of a folder of data files."""
    files = [file for file in folder.iterdir() if file.name.endswith(".toml") and file.name != COUNTS]  # fmt: skip
    return tuple(sorted(map(load_vendor, files), key=lambda one: (one.order, one.vendor)))


def _is_named(entry: Entry, name: str) -> bool:
    folded = " ".join(name.casefold().split())
    return any(fnmatchcase(folded, pattern.casefold()) for pattern in entry.names)


def _fits(entry: Entry, memory_bytes: int | None) -> bool:
    if entry.memory_gib is None:
        return True
    low, high = entry.memory_gib
    return memory_bytes is not None and low <= memory_bytes / 2**30 <= high
