"""docs/how-to/add-a-vendor.md is followed to the letter: its files are written, and its vendor passes the battery."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from polypod.serve.devices.find import Finders
from polypod.serve.devices.vendor import vendors_in
from tests.conformance import battery, kit

PAGE = Path(__file__).parents[2] / "docs/how-to/add-a-vendor.md"
BLOCK = re.compile(r"^`(?P<path>[^`\n]+)`:\n\n```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The page's files, in a folder of their own."""
    for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        path = tmp_path / match["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(match["text"])
    return tmp_path


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("acme_probe", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def finders(root: Path) -> Finders:
    probe = module(root / "src/polypod/serve/devices/probes/acme.py").PROBE
    vendors = vendors_in(root / "src/polypod/serve/devices/data")
    return Finders(vendors=vendors, probe_of=lambda _: probe, installed=lambda *_: False)


def test_the_page_is_one_probe_file_one_data_file_and_one_folder(written: Path) -> None:
    files = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    assert {file.split("/acme", 1)[0] for file in files} == {
        "src/polypod/serve/devices/data",
        "src/polypod/serve/devices/probes",
        "tests/conformance",
    }


def test_the_pages_vendor_passes_the_battery(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    cases = list(kit.cases(written / "tests/conformance"))
    assert [told.name for told in cases] == ["a1_x2_busy", "fail_driver_not_loaded"]
    for told in cases:
        folder = written / told.name
        battery.is_found_as_it_was(told, folder / "run", finders(written), monkeypatch)
        battery.may_be_cut_anywhere(told, folder / "cut", finders(written))


def test_the_pages_device_is_shown_to_an_engine_by_its_logical_number(written: Path) -> None:
    told = next(kit.cases(written / "tests/conformance"))
    kit.lay_out(told, written / "root")
    kit.make_empty_tools(told, written / "bin")
    found = kit.look(told, written / "root", kit.answers(told), written / "bin", finders(written))

    assert [device.visible.environment for device in found.devices] == [
        {"ACME_VISIBLE_DEVICES": "0"},
        {"ACME_VISIBLE_DEVICES": "1"},
    ]
    assert [device.nodes for device in found.devices] == [("/dev/acme2",), ("/dev/acme3",)]


def test_the_number_of_cuts_is_as_the_page_says() -> None:
    assert f"at {len(battery.CUTS)}\nplaces" in PAGE.read_text(encoding="utf-8")
