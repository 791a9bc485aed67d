"""Huawei's DCMI, the library below npu-smi. Names and layouts are those of dcmi_interface_api.h as bound in gpustack/runtime (Apache-2.0), read for facts.

Sizes are in MiB. A chip with HBM answers `hbm_info`; one with DDR only (310, 310P) answers `memory_info_v3`.
"""

import ctypes
from collections.abc import Iterator
from typing import Final

from polypod.serve.devices.found import Card, Health, Reading
from polypod.serve.devices.libraries.calls import Calls

_CARDS = 64
_TEXT_BYTES = 32
_MIB = 1 << 20
_NPU = 0
_HEALTH: Final[dict[int, Health]] = {0: "ok", 1: "warning", 2: "error", 3: "error"}


class ChipInfo(ctypes.Structure):
    """dcmi_chip_info."""

    _fields_ = (
        ("chip_type", ctypes.c_char * _TEXT_BYTES),
        ("chip_name", ctypes.c_char * _TEXT_BYTES),
        ("chip_version", ctypes.c_char * _TEXT_BYTES),
        ("cores", ctypes.c_uint),
    )


class PcieInfo(ctypes.Structure):
    """dcmi_pcie_info_all."""

    _fields_ = (
        ("vendor_id", ctypes.c_uint),
        ("subvendor_id", ctypes.c_uint),
        ("device_id", ctypes.c_uint),
        ("subdevice_id", ctypes.c_uint),
        ("domain", ctypes.c_int),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("function", ctypes.c_uint),
        ("reserve", ctypes.c_char * 32),
    )


class HbmInfo(ctypes.Structure):
    """dcmi_hbm_info."""

    _fields_ = (
        ("size_mib", ctypes.c_ulonglong),
        ("frequency", ctypes.c_uint),
        ("used_mib", ctypes.c_ulonglong),
        ("temperature", ctypes.c_int),
        ("bandwidth_percent", ctypes.c_uint),
    )


class MemoryInfo(ctypes.Structure):
    """dcmi_get_memory_info_stru."""

    _fields_ = (
        ("size_mib", ctypes.c_ulonglong),
        ("available_mib", ctypes.c_ulonglong),
        ("frequency", ctypes.c_uint),
        ("huge_page_size", ctypes.c_ulong),
        ("huge_pages", ctypes.c_ulong),
        ("huge_pages_free", ctypes.c_ulong),
        ("used_percent", ctypes.c_uint),
        ("reserve", ctypes.c_char * 60),
    )


def read(library: ctypes.CDLL) -> Reading:
    """All NPUs; controllers in their numbering are left out."""
    calls = Calls(library)
    calls.call("dcmi_init")
    return Reading(
        cards=tuple(
            _card(calls, card, chip)
            for card, chip in _chips(calls)
            if calls.number("dcmi_get_device_type", card, chip) == _NPU
        )
    )


def _chips(calls: Calls) -> Iterator[tuple[int, int]]:
    count, cards = ctypes.c_int(), (ctypes.c_int * _CARDS)()
    calls.call("dcmi_get_card_list", ctypes.byref(count), cards, _CARDS)
    for card in cards[: count.value]:
        for chip in range(calls.number("dcmi_get_device_num_in_card", card) or 0):
            yield card, chip


def _card(calls: Calls, card: int, chip: int) -> Card:
    info, pcie, logical = ChipInfo(), PcieInfo(), ctypes.c_int()
    calls.call("dcmi_get_device_chip_info", card, chip, ctypes.byref(info))
    calls.call("dcmi_get_device_logic_id", ctypes.byref(logical), card, chip)
    has_pcie = calls.code("dcmi_get_device_pcie_info_v2", card, chip, ctypes.byref(pcie)) == 0
    total, used = _memory_mib(calls, card, chip)
    code = calls.number("dcmi_get_device_health", card, chip)
    health = _HEALTH.get(-1 if code is None else code, "unknown")
    return Card(
        index=logical.value,
        physical_id=calls.number(
            "dcmi_get_device_phyid_from_logicid", ctypes.c_uint(logical.value)
        ),
        place=(card, chip),
        name=info.chip_name.decode(errors="replace") or None,
        pci_address=_address(pcie) if has_pcie else None,
        memory_total_bytes=None if total is None else total * _MIB,
        memory_used_bytes=None if used is None else used * _MIB,
        health=health,
        reason=None if health == "ok" else f"dcmi_get_device_health says {code}",
    )


def _memory_mib(calls: Calls, card: int, chip: int) -> tuple[int | None, int | None]:
    hbm, memory = HbmInfo(), MemoryInfo()
    if calls.code("dcmi_get_device_hbm_info", card, chip, ctypes.byref(hbm)) == 0 and hbm.size_mib:
        return hbm.size_mib, hbm.used_mib
    if calls.code("dcmi_get_device_memory_info_v3", card, chip, ctypes.byref(memory)) == 0:
        return memory.size_mib, memory.size_mib - memory.available_mib
    return None, None


def _address(pcie: PcieInfo) -> str:
    return f"{pcie.domain:04x}:{pcie.bus:02x}:{pcie.device:02x}.{pcie.function:x}"
