"""NVML. Names and layouts are those of nvml.h, which NVIDIA ships with CUDA, and of its Python binding in gpustack/runtime (Apache-2.0), read for facts.

Iluvatar's ixml has the same names, T-Head's hgml the same functions under a prefix of its own; both are read here, with their prefix.
"""

import ctypes

from polypod.serve.devices.found import Card, Reading, Slice
from polypod.serve.devices.libraries.calls import Calls

_TEXT_BYTES = 96
_NOT_SUPPORTED = 3
_NO_PERMISSION = 4


class Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class PciInfo(ctypes.Structure):
    """nvmlPciInfo_t, third version."""

    _fields_ = (
        ("bus_id_legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("pci_subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    )


def read(library: ctypes.CDLL) -> Reading:
    """All devices of NVIDIA's library."""
    return read_prefixed(library, "nvml")


def read_prefixed(library: ctypes.CDLL, prefix: str) -> Reading:
    """All devices of a library whose functions begin with a prefix."""
    calls = Calls(library, lambda code: _words(library, prefix, code))
    with_flags = f"{prefix}InitWithFlags"
    if calls.has(with_flags):
        calls.call(with_flags, ctypes.c_uint(0))
    else:
        calls.call(f"{prefix}Init_v2")
    count = ctypes.c_uint()
    calls.call(f"{prefix}DeviceGetCount_v2", ctypes.byref(count))
    return Reading(cards=tuple(_card(calls, prefix, index) for index in range(count.value)))


def _words(library: ctypes.CDLL, prefix: str, code: int) -> str:
    function = getattr(library, f"{prefix}ErrorString")
    function.restype = ctypes.c_char_p
    return (function(code) or b"no words for it").decode()


def _card(calls: Calls, prefix: str, index: int) -> Card:
    handle = ctypes.c_void_p()
    by_index = f"{prefix}DeviceGetHandleByIndex_v2"
    code = calls.code(by_index, ctypes.c_uint(index), ctypes.byref(handle))
    if code != 0:  # one lost card: the others are still read
        reason = f"{by_index} returned {code}{calls.words(code)}"
        return Card(index=index, health="error", reason=reason)
    pci = PciInfo()
    has_pci = calls.code(f"{prefix}DeviceGetPciInfo_v3", handle, ctypes.byref(pci)) == 0
    memory = Memory()
    told = calls.code(f"{prefix}DeviceGetMemoryInfo", handle, ctypes.byref(memory))
    is_broken = told not in {0, _NOT_SUPPORTED, _NO_PERMISSION}
    return Card(
        index=index,
        physical_id=calls.number(f"{prefix}DeviceGetMinorNumber", handle),
        name=calls.text(f"{prefix}DeviceGetName", handle, _TEXT_BYTES),
        uuid=calls.text(f"{prefix}DeviceGetUUID", handle, _TEXT_BYTES),
        pci_address=pci.bus_id.decode() if has_pci else None,
        memory_total_bytes=memory.total if told == 0 else None,
        memory_used_bytes=memory.used if told == 0 else None,
        is_memory_shared=told == _NOT_SUPPORTED,  # a chip that computes in the host's memory
        health="error" if is_broken else "ok",
        reason=f"its memory cannot be read, code {told}{calls.words(told)}" if is_broken else None,
        slices=_slices(calls, prefix, handle),
    )


def _slices(calls: Calls, prefix: str, handle: ctypes.c_void_p) -> tuple[Slice, ...]:
    """MIG devices. Places between them may be empty; libraries without MIG have no such function."""
    if not calls.has(f"{prefix}DeviceGetMaxMigDeviceCount"):
        return ()
    count = calls.number(f"{prefix}DeviceGetMaxMigDeviceCount", handle) or 0
    found = (_slice(calls, prefix, handle, place) for place in range(count))
    return tuple(part for part in found if part is not None)


def _slice(calls: Calls, prefix: str, handle: ctypes.c_void_p, place: int) -> Slice | None:
    mig = ctypes.c_void_p()
    by_place = f"{prefix}DeviceGetMigDeviceHandleByIndex"
    if calls.code(by_place, handle, ctypes.c_uint(place), ctypes.byref(mig)) != 0:
        return None
    memory = Memory()
    told = calls.code(f"{prefix}DeviceGetMemoryInfo", mig, ctypes.byref(memory))
    instance = calls.number(f"{prefix}DeviceGetGpuInstanceId", mig)
    return Slice(
        index=place,
        name=calls.text(f"{prefix}DeviceGetName", mig, _TEXT_BYTES),
        uuid=calls.text(f"{prefix}DeviceGetUUID", mig, _TEXT_BYTES),
        instance=None if instance is None else str(instance),
        memory_total_bytes=memory.total if told == 0 else None,
        memory_used_bytes=memory.used if told == 0 else None,
    )
