"""MetaX's mxsml. Names and layouts are those of MxSml.h as bound in gpustack/runtime (Apache-2.0), read for facts. Memory is counted in KiB."""

import ctypes

from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.libraries.calls import Calls

_KIB = 1 << 10


class DeviceInfo(ctypes.Structure):
    """mxSmlDeviceInfo_t."""

    _fields_ = (
        ("device_id", ctypes.c_uint),
        ("type", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
        ("gpu_id", ctypes.c_uint),
        ("node_id", ctypes.c_uint),
        ("uuid", ctypes.c_char * 96),
        ("brand", ctypes.c_uint),
        ("mode", ctypes.c_uint),
        ("name", ctypes.c_char * 32),
    )


class MemoryInfo(ctypes.Structure):
    """mxSmlMemoryInfo_t."""

    _fields_ = (
        ("window_total_kib", ctypes.c_long),
        ("window_used_kib", ctypes.c_long),
        ("total_kib", ctypes.c_long),
        ("used_kib", ctypes.c_long),
        ("xtt_total_kib", ctypes.c_long),
        ("xtt_used_kib", ctypes.c_long),
    )


def read(library: ctypes.CDLL) -> Reading:
    """All devices."""
    calls = Calls(library, lambda code: _words(library, code))
    calls.call("mxSmlInit")
    count = calls.code("mxSmlGetDeviceCount")
    return Reading(cards=tuple(_card(calls, index) for index in range(count)))


def _words(library: ctypes.CDLL, code: int) -> str:
    library.mxSmlGetErrorString.restype = ctypes.c_char_p
    return (library.mxSmlGetErrorString(code) or b"no words for it").decode()


def _card(calls: Calls, index: int) -> Card:
    info, memory = DeviceInfo(), MemoryInfo()
    code = calls.code("mxSmlGetDeviceInfo", ctypes.c_uint(index), ctypes.byref(info))
    if code != 0:
        reason = f"mxSmlGetDeviceInfo returned {code}{calls.words(code)}"
        return Card(index=index, health="error", reason=reason)
    is_told = calls.code("mxSmlGetMemoryInfo", ctypes.c_uint(index), ctypes.byref(memory)) == 0
    return Card(
        index=index,
        name=info.name.decode(errors="replace") or None,
        uuid=info.uuid.decode(errors="replace") or None,
        pci_address=info.bus_id.decode(errors="replace") or None,
        memory_total_bytes=memory.total_kib * _KIB if is_told else None,
        memory_used_bytes=memory.used_kib * _KIB if is_told else None,
        health="ok",
    )
