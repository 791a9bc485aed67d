"""The bus: which accelerators sit on it, whatever drivers and tools are installed.

Many vendor ids cover network cards, bridges and display controllers of servers as well, so a function counts by its vendor and its class, by its vendor
and its device id, or by all three; never by its vendor alone. Reading the files of one machine takes about a millisecond.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

_ADDRESS = re.compile(
    r"(?:(?P<domain>[0-9a-f]+):)?(?P<bus>[0-9a-f]+):(?P<device>[0-9a-f]+)\.(?P<function>[0-7])\Z"
)


class PciFunction(msgspec.Struct, frozen=True, kw_only=True):
    """One function of the bus. `class_code` has six digits: base class, subclass, programming interface."""

    address: str
    vendor_id: str  # "0x10de"
    device_id: str
    class_code: str  # "0x030200"


def scan(root: Path = Path("/")) -> tuple[PciFunction, ...]:
    """All functions below `root`, by address; none where there is no such bus."""
    return tuple(_functions(root / "sys/bus/pci/devices"))


def normal_address(text: str | None) -> str | None:
    """A PCI address in the kernel's form; None where it is none.

    Tools print a domain of eight digits, of two, or none, and in one case a bus of three.

    >>> normal_address("00000000:3B:00.0"), normal_address("cc:00.0"), normal_address("00000001:C9:00.0")
    ('0000:3b:00.0', '0000:cc:00.0', '0001:c9:00.0')
    >>> normal_address("00000000:0E3:00.0"), normal_address("N/A")
    ('0000:e3:00.0', None)
    """
    match = _ADDRESS.match((text or "").strip().lower())
    if match is None:
        return None
    domain, bus, device = (int(match[part] or "0", 16) for part in ("domain", "bus", "device"))
    if bus > 0xFF or device > 0x1F:
        return None
    return f"{domain:04x}:{bus:02x}:{device:02x}.{match['function']}"


def _functions(folder: Path) -> Iterator[PciFunction]:
    for path in sorted(folder.glob("*")):
        try:
            vendor, device, code = (
                (path / name).read_text().strip() for name in ("vendor", "device", "class")
            )
        except OSError:  # unplugged between the listing and the reading
            continue
        yield PciFunction(address=path.name, vendor_id=vendor, device_id=device, class_code=code)
