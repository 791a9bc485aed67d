"""Cambricon's cndev, interface version 6. Names and layouts are those of cndev.h as bound in gpustack/runtime (Apache-2.0), read for facts. MB there are MiB."""

import ctypes

from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.libraries.calls import Calls

_VERSION = 6
_MIB = 1 << 20


class CardInfo(ctypes.Structure):
    """cndevCardInfo_t."""

    _fields_ = (("version", ctypes.c_int32), ("number", ctypes.c_uint32))


class Uuid(ctypes.Structure):
    """cndevUUID_t."""

    _fields_ = (
        ("version", ctypes.c_int32),
        ("uuid", ctypes.c_char * 37),
        ("ncs_uuid", ctypes.c_uint64),
    )


class MemoryInfo(ctypes.Structure):
    """cndevMemoryInfoV2_t, which has no version."""

    _fields_ = (
        ("total_mib", ctypes.c_int64),
        ("used_mib", ctypes.c_int64),
        ("reserved_mib", ctypes.c_int64),
        ("virtual_total_mib", ctypes.c_int64),
        ("virtual_used_mib", ctypes.c_int64),
        ("global_mib", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64 * 16),
    )


class PcieInfo(ctypes.Structure):
    """cndevPCIeInfoV2_t, which has no version."""

    _fields_ = (
        ("subsystem_id", ctypes.c_uint32),
        ("device_id", ctypes.c_uint32),
        ("vendor", ctypes.c_uint16),
        ("subsystem_vendor", ctypes.c_uint16),
        ("domain", ctypes.c_uint32),
        ("bus", ctypes.c_uint32),
        ("device", ctypes.c_uint32),
        ("function", ctypes.c_uint32),
        ("module_id", ctypes.c_uint16),
        ("slot_id", ctypes.c_uint16),
        ("reserved", ctypes.c_uint32 * 8),
    )


def read(library: ctypes.CDLL) -> Reading:
    """All cards."""
    calls = Calls(library, lambda code: _words(library, code))
    calls.call("cndevInit", ctypes.c_int32(0))
    cards = CardInfo(version=_VERSION)
    calls.call("cndevGetDeviceCount", ctypes.byref(cards))
    return Reading(cards=tuple(_card(calls, index) for index in range(cards.number)))


def _words(library: ctypes.CDLL, code: int) -> str:
    library.cndevGetErrorString.restype = ctypes.c_char_p
    return (library.cndevGetErrorString(code) or b"no words for it").decode()


def _card(calls: Calls, index: int) -> Card:
    handle = ctypes.c_int32()
    code = calls.code("cndevGetDeviceHandleByIndex", index, ctypes.byref(handle))
    if code != 0:
        reason = f"cndevGetDeviceHandleByIndex returned {code}{calls.words(code)}"
        return Card(index=index, health="error", reason=reason)
    uuid, memory, pcie = Uuid(version=_VERSION), MemoryInfo(), PcieInfo()
    has_uuid = calls.code("cndevGetUUID", ctypes.byref(uuid), handle) == 0
    has_memory = calls.code("cndevGetMemoryUsageV2", ctypes.byref(memory), handle) == 0
    has_pcie = calls.code("cndevGetPCIeInfoV2", ctypes.byref(pcie), handle) == 0
    return Card(
        index=index,
        physical_id=index,
        name=_name(calls, handle),
        uuid=f"MLU-{uuid.uuid.decode()}" if has_uuid and uuid.uuid else None,
        pci_address=_address(pcie) if has_pcie else None,
        memory_total_bytes=memory.total_mib * _MIB if has_memory else None,
        memory_used_bytes=memory.used_mib * _MIB if has_memory else None,
        health="ok",
    )


def _name(calls: Calls, handle: ctypes.c_int32) -> str | None:
    """Newer libraries give the name by itself; of older ones the bus tells it."""
    if not calls.has("cndevGetCardNameStringByDevId"):
        return None
    function = calls.library.cndevGetCardNameStringByDevId
    function.restype = ctypes.c_char_p
    name = function(handle)
    return name.decode(errors="replace") if name else None


def _address(pcie: PcieInfo) -> str:
    return f"{pcie.domain:04x}:{pcie.bus:02x}:{pcie.device:02x}.{pcie.function:x}"
