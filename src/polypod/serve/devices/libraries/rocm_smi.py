"""ROCm SMI, of AMD and, under its own folder, of Hygon. Names and layouts are those of rocm_smi.h (MIT).

Devices are numbered as ROCm numbers them, by address. The bus id packs domain, bus, device and function: bits 63-32, 15-8, 7-3 and 2-0.
"""

import ctypes

from polypod.serve.devices.found import Card, Reading
from polypod.serve.devices.libraries.calls import Calls

_VRAM = 0
_TEXT_BYTES = 256


def read(library: ctypes.CDLL) -> Reading:
    """All devices that the library monitors."""
    calls = Calls(library, lambda code: _words(library, code))
    calls.call("rsmi_init", ctypes.c_uint64(0))
    count = ctypes.c_uint32()
    calls.call("rsmi_num_monitor_devices", ctypes.byref(count))
    return Reading(cards=tuple(_card(calls, index) for index in range(count.value)))


def _words(library: ctypes.CDLL, code: int) -> str:
    text = ctypes.c_char_p()
    library.rsmi_status_string(code, ctypes.byref(text))
    return (text.value or b"no words for it").decode()


def _card(calls: Calls, index: int) -> Card:
    name = ctypes.create_string_buffer(_TEXT_BYTES)
    size = ctypes.c_size_t(_TEXT_BYTES)
    has_name = calls.code("rsmi_dev_name_get", ctypes.c_uint32(index), name, size) == 0
    unique = _number(calls, "rsmi_dev_unique_id_get", index)
    place = _number(calls, "rsmi_dev_pci_id_get", index)
    return Card(
        index=index,
        name=(name.value.decode(errors="replace") or None) if has_name else None,
        uuid=f"GPU-{unique:016x}" if unique else None,
        pci_address=None if place is None else _address(place),
        memory_total_bytes=_number(calls, "rsmi_dev_memory_total_get", index, _VRAM),
        memory_used_bytes=_number(calls, "rsmi_dev_memory_usage_get", index, _VRAM),
        health="ok",
    )


def _number(calls: Calls, name: str, *arguments: int) -> int | None:
    value = ctypes.c_uint64()
    numbers = (ctypes.c_uint32(one) for one in arguments)
    return value.value if calls.code(name, *numbers, ctypes.byref(value)) == 0 else None


def _address(place: int) -> str:
    """
    >>> _address(0x0000_0001_0000_2600)
    '0001:26:00.0'
    """
    bus, device, function = place >> 8 & 0xFF, place >> 3 & 0x1F, place & 0x7
    return f"{place >> 32:04x}:{bus:02x}:{device:02x}.{function}"
