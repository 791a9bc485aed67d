"""Every probe against every recorded machine: the same battery for all vendors."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from polypod.serve.devices import asking
from polypod.serve.devices.asking import run_process
from tests.conformance import kit

CASES = [told for told in kit.cases() if told.case.library is None]
IDS = [told.id for told in CASES]
STATUSES = {"ok", "partial", "no_devices", "driver_error", "permission_error", "tool_missing", "parse_error"}  # fmt: skip


@pytest.mark.parametrize("told", CASES, ids=IDS)
def test_a_recorded_machine_is_found_as_it_was(
    told: kit.Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through scripts that are really run. What is listed, in what state, and by exactly which commands."""
    if told.name == "fail_timeout_hang":
        monkeypatch.setattr(asking, "TIMEOUT_S", 0.2)
    kit.lay_out(told, tmp_path / "root")
    log = tmp_path / "log"
    log.touch()
    kit.install_tools(told, tmp_path / "bin", log)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    inventory = kit.look(told, tmp_path / "root", run_process, tmp_path / "bin")

    wanted = told.case.expected
    more = sorted({key for device in wanted.devices for key in device} - {*kit.TOLD, "slices"})
    assert kit.told_of(inventory, more) == wanted.devices
    assert [report.status for report in inventory.reports] == (
        wanted.status.split(", ") if wanted.status else []
    )
    tried = [command for report in inventory.reports for command in report.tried]
    ran = [line.strip() for line in log.read_text().splitlines()]
    assert sorted(ran) == sorted(tried)  # vendors are asked at the same time
    assert ran == tried or len(inventory.reports) > 1
    assert all(device.reason for device in inventory.devices if device.health not in {"ok", "unknown"})  # fmt: skip


@pytest.mark.parametrize("told", CASES, ids=IDS)
def test_an_answer_cut_anywhere_is_never_a_crash_and_never_a_device_that_was_not_there(
    told: kit.Told, tmp_path: Path
) -> None:
    """A tool killed in the middle of a line: what is listed was there, and what is missing is said."""
    kit.lay_out(told, tmp_path / "root")
    kit.make_empty_tools(told, tmp_path / "bin")
    there = [_identity(device) for device in told.case.expected.devices]
    for share in CUTS:
        cut = partial(_cut, share)
        inventory = kit.look(told, tmp_path / "root", kit.answers(told, cut), tmp_path / "bin")

        read = [one for one in inventory.devices if one.found_by != "pci"]
        for device in kit.told_of(kit.only(inventory, read), ()):
            assert any(_is_of(_identity(device), whole) for whole in there), (share, device)
        for report in inventory.reports:
            assert report.status in STATUSES
            assert report.status == "ok" or report.problem, share
        if len(read) < len(told.case.pci):
            assert {report.status for report in inventory.reports} != {"ok"}, share


def _cut(share: float, text: str) -> str:
    return text[: int(len(text) * share)] if share < 1 else text[: len(text) - int(share)]


CUTS = [*(step / 16 for step in range(16)), 1, 2, 5, 12, 30]
"""Shares of an answer that come through, then whole answers less so many characters."""


def _identity(device: dict[str, Any]) -> dict[str, Any]:
    return {key: device.get(key) for key in kit.TOLD if key not in {"health", "index"}}


def _is_of(read: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Whether everything that was read is true of a device that was there; less may be known of it."""
    name, true_name = read["name"] or "", whole["name"] or ""
    is_half_a_name = name != true_name and true_name.startswith(name) and name != ""
    others = {key: value for key, value in read.items() if key != "name"}  # the bus may name it
    return not is_half_a_name and all(value in {None, whole[key]} for key, value in others.items())
