"""The bus: what counts as an accelerator, and how addresses are written."""

from pathlib import Path

import pytest

from polypod.serve.devices.pci import PciFunction, normal_address, scan
from polypod.serve.devices.vendor import Vendor, shipped_vendors

NOT_ACCELERATORS = [
    ("0x19e5", "0x1822", "0x020000", "a Huawei network card"),
    ("0x19e5", "0x1711", "0x030000", "the display of Huawei's server management"),
    ("0x1ded", "0x107f", "0x020000", "Alibaba's elastic RDMA"),
    ("0x1d94", "0x1450", "0x060000", "a bridge of a Hygon CPU"),
    ("0x1ae0", "0x0042", "0x020000", "Google's virtual network card"),
    ("0x1d0f", "0xec20", "0x020000", "Amazon's elastic network adapter"),
    ("0x1d22", "0x1001", "0x010802", "a drive of Baidu's vendor id"),
    ("0x10de", "0x22a3", "0x068000", "an NVSwitch"),
    ("0x10de", "0x22e8", "0x040300", "the audio part of a graphics card"),
    ("0x1002", "0x164e", "0x030000", "graphics inside a Ryzen"),
    ("0x8086", "0x4680", "0x030000", "graphics inside a Core processor"),
    ("0x8086", "0x7d1d", "0x028000", "an NPU's device id with the class of a network card"),
    ("0x1ed5", "0x03ff", "0x040300", "the audio part of a Moore Threads card"),
]


def function(vendor: str, device: str, code: str) -> PciFunction:
    return PciFunction(address="0000:01:00.0", vendor_id=vendor, device_id=device, class_code=code)


@pytest.mark.parametrize(("vendor", "device", "code", "what"), NOT_ACCELERATORS)
def test_other_parts_of_an_accelerators_vendor_do_not_count(
    vendor: str, device: str, code: str, what: str
) -> None:
    holders = [one.vendor for one in shipped_vendors() if one.pci.holds(function(vendor, device, code))]  # fmt: skip
    assert holders == [], what


@pytest.mark.parametrize("vendor", shipped_vendors(), ids=lambda one: one.vendor)
def test_no_vendor_counts_by_its_id_alone(vendor: Vendor) -> None:
    """A function of the vendor with a class and a device that nobody has is never taken."""
    if vendor.pci.vendor_id is not None:
        assert not vendor.pci.holds(function(vendor.pci.vendor_id, "0xffff", "0x088000"))
        assert vendor.pci.classes or vendor.pci.match == "device"
        assert vendor.pci.devices or vendor.pci.match == "class"


def test_a_function_is_of_at_most_one_vendor() -> None:
    for vendor in shipped_vendors():
        for device in vendor.pci.devices:
            for code in vendor.pci.classes or ("0x088000",):
                one = function(vendor.pci.vendor_id or "", device, code.ljust(8, "0"))
                holders = [other.vendor for other in shipped_vendors() if other.pci.holds(one)]
                assert holders == [vendor.vendor]


def test_a_function_that_is_unplugged_while_the_bus_is_read_is_left_out(tmp_path: Path) -> None:
    whole = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    whole.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("device", "0x2330"), ("class", "0x030200")):
        (whole / name).write_text(f"{text}\n")
    (tmp_path / "sys/bus/pci/devices/0000:02:00.0").mkdir()

    assert [one.address for one in scan(tmp_path)] == ["0000:01:00.0"]


def test_a_machine_without_the_bus_has_no_functions(tmp_path: Path) -> None:
    assert scan(tmp_path) == ()


@pytest.mark.parametrize(
    ("printed", "normal"),
    [
        ("00000000:3B:00.0", "0000:3b:00.0"),
        ("10000:01:00.0", "10000:01:00.0"),
        ("00:2d:00.0", "0000:2d:00.0"),
        ("0000:01:1f.7", "0000:01:1f.7"),
        ("00000000:1E3:00.0", None),  # no bus has such a number
        ("0000:01:20.0", None),  # nor a device
        ("0000:01:00.8", None),
        ("", None),
        (None, None),
    ],
)
def test_addresses_are_brought_to_the_kernels_form(printed: str | None, normal: str | None) -> None:
    assert normal_address(printed) == normal
