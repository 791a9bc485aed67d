"""What may happen to any vendor's tool, happening to every vendor's: one status each, no crash, and the device still listed with the reason."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from polypod.serve.devices.asking import Answer
from polypod.serve.devices.find import Finders, find_devices
from polypod.serve.devices.found import Inventory
from polypod.serve.devices.machine import Machine
from polypod.serve.devices.vendor import Vendor, shipped_vendors
from tests.conformance import kit

WITH_TOOL = [vendor for vendor in shipped_vendors() if vendor.cli.tools]
each = pytest.mark.parametrize("vendor", WITH_TOOL, ids=lambda one: one.vendor)


def trace(vendor: Vendor, root: Path) -> None:
    """Something of the vendor's on the machine."""
    pci = vendor.pci
    if pci.vendor_id is None:
        for pattern in vendor.nodes.trace:
            node = root / pattern.replace("[0-9]*", "0").lstrip("/")
            node.parent.mkdir(parents=True, exist_ok=True)
            node.touch()
        return
    folder = root / "sys/bus/pci/devices/0000:17:00.0"
    folder.mkdir(parents=True)
    device = next(iter(pci.devices), "0x0001")
    code = pci.classes[0].ljust(8, "0") if pci.classes else "0x088000"
    for name, text in (("vendor", pci.vendor_id), ("device", device), ("class", code)):
        (folder / name).write_text(f"{text}\n")


def find(vendor: Vendor, root: Path, answer: Answer | None) -> Inventory:
    trace(vendor, root)
    folder = root / "bin"
    folder.mkdir()
    if answer is not None:
        (folder / vendor.cli.tools[0]).touch(0o755)

    def run(_: Sequence[str], __: float) -> Answer:
        assert answer is not None, "nothing is there to run"
        return answer

    platform = vendor.platform or "linux"
    machine = Machine(root=root, folders=(folder,), platform=platform, run=run)
    return find_devices(machine, Finders(vendors=(vendor,), installed=lambda *_: False))


PAGE = "<html>\n502 Bad Gateway\n</html>\n"  # well-formed, as some answers must be

HAPPENS = {
    "silence": (Answer(stdout=""), "parse_error"),
    "blank lines": (Answer(stdout="\n\n  \n"), "parse_error"),
    "a page of another program": (Answer(stdout=PAGE), "parse_error"),
    "JSON of another form": (Answer(stdout='{"unexpected": [1, {"a": null}]}\n'), "parse_error"),
    "a list of nothing known": (Answer(stdout='[{"x": 1}]\n'), "parse_error"),
    "bytes": (Answer(stdout="\x00\x01\ufffd|||+++\n|\n"), "parse_error"),
    "an end without a word": (Answer(stdout="", exit_code=1), "driver_error"),
    "a crash": (Answer(stdout="", stderr="Segmentation fault", exit_code=-11), "driver_error"),
    "a hang": (Answer(stdout="", exit_code=None), "driver_error"),
    "a hang in the middle": (Answer(stdout="| 0  ", exit_code=None), "driver_error"),
    "no permission": (Answer(stdout="", stderr="open: Permission denied\n", exit_code=1), None),
}


@each
@pytest.mark.parametrize("what", HAPPENS)
def test_a_tool_that_fails_leaves_its_device_listed_as_broken(
    vendor: Vendor, what: str, tmp_path: Path
) -> None:
    answer, status = HAPPENS[what]
    inventory = find(vendor, tmp_path, answer)

    report = inventory.reports[0]
    assert report.status == status or status is None
    assert report.status != "ok"
    assert report.problem
    assert all(not device.is_usable and device.reason for device in inventory.devices)
    assert len(inventory.devices) == (vendor.pci.vendor_id is not None)


@each
def test_a_vendor_without_its_tool_says_what_to_install(vendor: Vendor, tmp_path: Path) -> None:
    report = find(vendor, tmp_path, None).reports[0]

    assert report.status == "tool_missing"
    assert vendor.cli.tools[0] in (report.problem or "")
    assert report.way_out == f"install {vendor.cli.package}"
    assert report.tried == ()


@each
def test_the_kit_has_the_failures_of_every_vendor(vendor: Vendor) -> None:
    """Every kind that its data file knows, a user who may not ask among them; silence and cuts are tried on all by themselves."""
    statuses = {told.case.expected.status for told in kit.cases() if told.vendor == vendor.vendor}
    known = {failure.status for failure in vendor.failures}
    assert "permission_error" in known
    assert known | {"ok"} <= statuses


def test_the_kit_holds_what_is_hard_about_devices() -> None:
    """Numbers out of order, physical numbers that differ, slices, memory not told, memory of others, cards in alarm."""
    devices = [(told, device) for told in kit.cases() for device in told.case.expected.devices]
    assert any(one.get("physical_id", one.get("index")) != one.get("index") for _, one in devices)
    assert any("slices" in one for _, one in devices)
    assert any("memory_total_bytes" not in one and one["health"] == "ok" for _, one in devices)
    assert any(one.get("memory_used_bytes", 0) > one.get("memory_total_bytes", 1) / 2 for _, one in devices)  # fmt: skip
    assert any(one["health"] == "error" and "index" in one for _, one in devices)


def test_no_case_is_copied_from_where_that_is_not_allowed() -> None:
    """Captured and transcribed outputs are under licences that let them be copied; all others are drawn."""
    free = ("MIT", "Apache-2.0", "BSD-3-Clause", "BSD-2-Clause")
    for told in kit.cases():
        if told.case.provenance != "reconstructed":
            assert told.case.licence in free, told.id
            assert " at " in told.case.origin, told.id


@each
def test_the_first_odd_line_is_what_is_said(vendor: Vendor, tmp_path: Path) -> None:
    report = find(vendor, tmp_path, Answer(stdout=PAGE)).reports[0]

    assert "'<html>'" in (report.problem or "")
    assert "report it" in (report.way_out or "")
