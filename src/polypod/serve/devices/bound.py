"""Devices that have no tool and no memory of their own: the kernel says which driver runs them, and that is all there is to know."""

from pathlib import Path

from polypod.serve.devices.asking import UnansweredError
from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.pci import PciFunction


def bound_devices(root: Path, functions: tuple[PciFunction, ...], driver: str) -> Reading:
    """One card a function that the driver runs. Raises `UnansweredError` where it runs none of them."""
    cards = [
        _card(index, function, root)
        for index, function in enumerate(functions)
        if driver_of(root, function) == driver
    ]
    if not cards:
        bound = {driver_of(root, function) or "none" for function in functions}
        problem = f"the driver {driver} runs none of them; bound to: {', '.join(sorted(bound))}"
        raise UnansweredError(problem, way_out=f"`modprobe {driver}`, with a kernel that has it")
    return Reading(cards=tuple(cards))


def driver_of(root: Path, function: PciFunction) -> str | None:
    """The driver that the kernel bound to a function."""
    try:
        text = (root / "sys/bus/pci/devices" / function.address / "uevent").read_text()
    except OSError:
        return None
    keys = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    return keys.get("DRIVER")


def _card(index: int, function: PciFunction, root: Path) -> Card:
    folder = root / "sys/bus/pci/devices" / function.address / "accel"
    numbers = [path.name.removeprefix("accel") for path in sorted(folder.glob("accel[0-9]*"))]
    return Card(
        index=index,
        physical_id=int(numbers[0]) if numbers else None,
        pci_address=function.address,
        is_memory_shared=True,
        health="ok",
    )
