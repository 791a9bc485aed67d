"""Intel Gaudi's hlml. Names and layouts are those of the vendor's binding habana-pyhlml 1.24.2 (MIT), read for facts. Memory is counted in bytes.

The physical id is the module id, which HABANA_VISIBLE_MODULES counts in.
"""

import ctypes
from typing import Final

from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.libraries.calls import Calls

_NAME_BYTES = 32
_UUID_BYTES = 128
_ADDRESS_BYTES = 15
_WORDS: Final = {9: "driver is not loaded", 15: "the device is lost", 20: "out of memory"}


class PciInfo(ctypes.Structure):
    """hlml_pci_info_t."""

    _fields_ = (
        ("bus", ctypes.c_uint),
        ("address", ctypes.c_char * _ADDRESS_BYTES),
        ("device", ctypes.c_uint),
        ("domain", ctypes.c_uint),
        ("pci_device_id", ctypes.c_uint),
        ("link_speed", ctypes.c_char * 10),
        ("link_width", ctypes.c_char * 10),
        ("room", ctypes.c_char * 256),  # for what other releases append
    )


class Memory(ctypes.Structure):
    """hlml_memory_t: free comes first, unlike NVML's."""

    _fields_ = (
        ("free", ctypes.c_ulonglong),
        ("total", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def read(library: ctypes.CDLL) -> Reading:
    """All devices."""
    calls = Calls(library, lambda code: _WORDS.get(code, "no words for it"))
    calls.call("hlml_init")
    count = ctypes.c_uint()
    calls.call("hlml_device_get_count", ctypes.byref(count))
    return Reading(cards=tuple(_card(calls, index) for index in range(count.value)))


def _card(calls: Calls, index: int) -> Card:
    handle, pci, memory = ctypes.c_void_p(), PciInfo(), Memory()
    by_index = "hlml_device_get_handle_by_index"
    code = calls.code(by_index, ctypes.c_uint(index), ctypes.byref(handle))
    if code != 0:
        reason = f"{by_index} returned {code}{calls.words(code)}"
        return Card(index=index, health="error", reason=reason)
    has_pci = calls.code("hlml_device_get_pci_info", handle, ctypes.byref(pci)) == 0
    is_told = calls.code("hlml_device_get_memory_info", handle, ctypes.byref(memory)) == 0
    return Card(
        index=index,
        physical_id=calls.number("hlml_device_get_module_id", handle),
        name=calls.text("hlml_device_get_name", handle, _NAME_BYTES),
        uuid=calls.text("hlml_device_get_uuid", handle, _UUID_BYTES),
        pci_address=pci.address.decode(errors="replace") if has_pci else None,
        memory_total_bytes=memory.total if is_told else None,
        memory_used_bytes=memory.used if is_told else None,
        health="ok",
    )
