"""`polypod devices`, on this machine and on replayed ones."""

import json
from pathlib import Path

import pytest

from polypod.cli import devices, found_fleet
from polypod.cli.main import main
from polypod.serve.devices.conformance import counts_toml, read_counts
from polypod.serve.devices.found import Inventory
from polypod.serve.devices.vendor import shipped_vendors
from tests.conformance import kit


def replayed(case: str, folder: Path) -> Inventory:
    told = next(one for one in kit.cases() if one.id == case)
    kit.lay_out(told, folder / "root")
    kit.make_empty_tools(told, folder / "bin")
    return kit.look(told, folder / "root", kit.answers(told), folder / "bin", kit.shipped())


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Let the commands see a replayed machine."""

    def see(case: str) -> None:
        inventory = replayed(case, tmp_path)
        for module in (devices, found_fleet):
            monkeypatch.setattr(module, "find_devices", lambda: inventory)

    return see


def test_this_machines_accelerators_are_looked_for_without_measuring_anything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["devices", "--accelerators", "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert sorted(found) == ["accelerators", "fleet", "vendors"]


def test_a_device_is_shown_with_all_that_is_asked_of_it(on, capsys) -> None:
    on("nvidia/h200_foreign_process")
    assert main(["devices", "--accelerators"]) == 0

    out = capsys.readouterr().out
    for said in (
        "asked: nvidia-smi -q -x",
        "NVIDIA H200  151 GB  33.9 GB  0000:83:00.0  ok",
        "nvidia-h200-sxm (a device called 'NVIDIA H200')",
        "vLLM: needs vllm; SGLang: needs sglang",
        "CUDA_VISIBLE_DEVICES=GPU-00000000-0000-0000-0000-000000000000",
        "nvidia-h200-sxm:1 (polypod plan MODEL --on found)",
        "33.9 of 151 GB of nvidia 0 by other processes",
    ):
        assert said in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("told", list(kit.cases()), ids=lambda one: one.id)
def test_every_replayed_machine_is_shown_in_80_columns(told: kit.Told, on, capsys) -> None:
    on(told.id)
    assert main(["devices", "--accelerators"]) == 0

    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80, out


def test_a_broken_driver_is_shown_with_its_reason_and_a_way_out(on, capsys) -> None:
    on("nvidia/fail_driver_library_mismatch")
    main(["devices", "--accelerators"])

    out = capsys.readouterr().out
    assert "problem       Failed to initialize NVML: Driver/library version mismatch" in out
    assert "way out       the driver was upgraded under a running kernel module" in out
    assert "nothing that a plan can be made for" in out


def test_a_fleet_file_of_what_was_found_is_one_to_plan_on(on, tmp_path: Path, capsys) -> None:
    on("nvidia/h200_idle")
    path = tmp_path / "fleet.yaml"
    assert main(["devices", "--fleet", "-o", str(path)]) == 0
    assert main(["plan", "qwen3-8b", "--on", str(path), "--input", "512", "--output", "64", "--json"]) == 0  # fmt: skip
    by_file = json.loads(capsys.readouterr().out)

    assert main(["plan", "qwen3-8b", "--on", "found", "--input", "512", "--output", "64", "--json"]) == 0  # fmt: skip
    named = json.loads(capsys.readouterr().out)
    assert named["plan"]["services"] == by_file["plan"]["services"]


def test_no_fleet_is_made_of_nothing(on, tmp_path: Path, capsys) -> None:
    on("nvidia/fail_no_devices")
    assert main(["devices", "--fleet"]) == 1
    assert "no device here that a plan can be made for" in capsys.readouterr().err
    assert main(["plan", "qwen3-8b", "--on", "found"]) == 2
    assert "polypod devices" in capsys.readouterr().err


def test_a_fleet_as_json_says_what_was_left_out(on, capsys) -> None:
    on("nvidia/fail_gpu_lost")
    assert main(["devices", "--fleet", "--json"]) == 0

    fleet = json.loads(capsys.readouterr().out)
    assert fleet["sources"] == {"nvidia": {"accelerator": "nvidia-a100-80g-sxm", "count": 1}}
    assert list(fleet["left_out"].values()) == [["nvidia 0000:3b:00.0"]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fleet", "--conformance"], "not allowed with"),
        (["--accelerators", "--measure"], "not allowed with"),
        (["-o", "fleet.yaml"], "say --fleet too"),
        (["--for", "no-such-plan.yaml"], "no-such-plan.yaml"),
        (["--fleet", "-o", "/proc/none/fleet.yaml"], "/proc/none/fleet.yaml"),
    ],
)
def test_what_contradicts_itself_or_is_not_there_is_named(on, words, said, capsys) -> None:
    on("nvidia/h200_idle")
    try:
        code = main(["devices", *words])
    except SystemExit as ended:  # argparse's own way
        code = ended.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_a_plan_for_cards_that_are_not_there_names_them_and_the_nearest_plan(on, tmp_path, capsys) -> None:  # fmt: skip
    plan = tmp_path / "plan.yaml"
    asked = ["plan", "qwen3-8b", "--input", "512", "--output", "64", "--on", "nvidia-h200-sxm:8"]
    assert main([*asked, "-o", str(plan)]) == 0
    capsys.readouterr()
    on("nvidia/h200_idle")

    assert main(["devices", "--for", str(plan)]) == 1
    out = capsys.readouterr().out
    assert "missing       7 of 8 nvidia-h200-sxm (part a of the plan); 1 found" in out
    assert "the nearest plan, for what is here:" in out

    assert main(["devices", "--for", str(plan), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["nearest"]["plan"]["fleet"] == {"nvidia": {"accelerator": "nvidia-h200-sxm", "count": 1}}  # fmt: skip


def test_a_plan_whose_cards_are_all_here_is_fine(on, tmp_path: Path, capsys) -> None:
    plan = tmp_path / "plan.yaml"
    assert main(["plan", "qwen3-8b", "--input", "512", "--output", "64", "--on", "nvidia-h200-sxm:1", "-o", str(plan)]) == 0  # fmt: skip
    on("nvidia/h200_idle")

    assert main(["devices", "--for", str(plan)]) == 0


def test_the_packages_counts_are_those_of_the_kit() -> None:
    """The kit stays in the repository; the table is printed from a file of the package."""
    from scripts.devices import DATA, PAGE, counts, page

    assert DATA.read_text() == counts_toml(counts())
    assert PAGE.read_text() == page(counts())
    assert read_counts().vendors == counts()


def test_the_conformance_table_counts_every_vendor(capsys) -> None:
    assert main(["devices", "--conformance"]) == 0

    out = capsys.readouterr().out
    for vendor in shipped_vendors():
        assert any(line.startswith(vendor.name) for line in out.splitlines())
    assert main(["devices", "--conformance", "--json"]) == 0
    as_json = json.loads(capsys.readouterr().out)["vendors"]
    assert as_json.keys() - {"mixed"} == {vendor.vendor for vendor in shipped_vendors()}
