"""Vendors' libraries, replayed by fakes that are loaded and called as the real ones are: by ctypes, in a child process."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from polypod.serve.devices import library
from polypod.serve.devices.asking import run_process
from tests.conformance import kit

CASES = [told for told in kit.cases() if told.case.library is not None]


@pytest.mark.parametrize("told", CASES, ids=[told.id for told in CASES])
def test_a_library_tells_what_was_recorded(
    told: kit.Told,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_library: Callable[[str], Path],
) -> None:
    """Neither a crash nor a hang of the library reaches this process."""
    fake = told.case.library
    assert fake is not None
    if told.name == "library_hangs":
        monkeypatch.setattr(library, "TIMEOUT_S", 1.0)
    kit.lay_out(told, tmp_path)
    installed = tmp_path / fake.path.lstrip("/")
    installed.parent.mkdir(parents=True)
    shutil.copy(fake_library(fake.interface), installed)
    monkeypatch.setenv("POLYPOD_FAKE_LIBRARY", str(told.folder / fake.answers))

    inventory = kit.look(told, tmp_path, run_process, tmp_path / "no-tools", kit.shipped())

    assert kit.told_of(inventory, ()) == told.case.expected.devices
    assert [report.status for report in inventory.reports] == [told.case.expected.status]
    assert [report.tried for report in inventory.reports] == [(str(installed),)]
    expected = {str(installed)} if any("index" in device for device in told.case.expected.devices) else set()  # fmt: skip
    assert {one.found_with for one in inventory.devices if one.found_by == "library"} == expected
