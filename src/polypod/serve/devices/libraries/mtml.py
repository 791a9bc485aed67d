"""Moore Threads' mtml. Names and layouts are those of the vendor's binding mthreads-ml-py 2.4.3 (MIT), read for facts. Memory is counted in bytes."""

import ctypes

from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.libraries.calls import Calls

_NAME_BYTES = 32
_UUID_BYTES = 48


class PciInfo(ctypes.Structure):
    """MtmlPciInfo; only its first field is read."""

    _fields_ = (
        ("address", ctypes.c_char * 32),
        ("segment", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("pci_subsystem_id", ctypes.c_uint),
        ("bus_width", ctypes.c_uint),
        ("max_speed", ctypes.c_float),
        ("speed", ctypes.c_float),
        ("max_width", ctypes.c_uint),
        ("width", ctypes.c_uint),
        ("max_generation", ctypes.c_uint),
        ("generation", ctypes.c_uint),
        ("reserved", ctypes.c_int * 6),
    )


def read(library: ctypes.CDLL) -> Reading:
    """All devices."""
    calls = Calls(library)
    handle, count = ctypes.c_void_p(), ctypes.c_uint()
    calls.call("mtmlLibraryInit", ctypes.byref(handle))
    calls.call("mtmlLibraryCountDevice", handle, ctypes.byref(count))
    return Reading(cards=tuple(_card(calls, handle, index) for index in range(count.value)))


def _card(calls: Calls, library: ctypes.c_void_p, index: int) -> Card:
    device, pci = ctypes.c_void_p(), PciInfo()
    code = calls.code(
        "mtmlLibraryInitDeviceByIndex", library, ctypes.c_uint(index), ctypes.byref(device)
    )
    if code != 0:
        reason = f"mtmlLibraryInitDeviceByIndex returned {code}"
        return Card(index=index, health="error", reason=reason)
    has_pci = calls.code("mtmlDeviceGetPciInfo", device, ctypes.byref(pci)) == 0
    total, used = _memory_bytes(calls, device)
    return Card(
        index=index,
        name=calls.text("mtmlDeviceGetName", device, _NAME_BYTES),
        uuid=calls.text("mtmlDeviceGetUUID", device, _UUID_BYTES),
        pci_address=pci.address.decode(errors="replace") if has_pci else None,
        memory_total_bytes=total,
        memory_used_bytes=used,
        health="ok",
    )


def _memory_bytes(calls: Calls, device: ctypes.c_void_p) -> tuple[int | None, int | None]:
    memory = ctypes.c_void_p()
    if calls.code("mtmlDeviceInitMemory", device, ctypes.byref(memory)) != 0:
        return None, None
    numbers = []
    for name in ("mtmlMemoryGetTotal", "mtmlMemoryGetUsed"):
        value = ctypes.c_uint64()
        is_told = calls.code(name, memory, ctypes.byref(value)) == 0
        numbers.append(value.value if is_told else None)
    return numbers[0], numbers[1]
