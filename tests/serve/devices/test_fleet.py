"""From devices to a fleet that can be planned for, and from a plan to what is missing."""

from pathlib import Path

from msgspec import structs

from polypod.plan.fleet_file import fleet_of
from polypod.plan.spec import Source
from polypod.serve.devices.fleet import fleet_yaml, found_fleet, lacking
from polypod.serve.devices.found import Device, Inventory, Slice, Visible

H200 = Device(
    vendor="nvidia",
    name="NVIDIA H200",
    index=0,
    physical_id=0,
    uuid=None,
    pci_address=None,
    memory_total_bytes=150_754_820_096,
    memory_used_bytes=0,
    is_memory_shared=False,
    health="ok",
    reason=None,
    slices=(),
    found_by="library",
    found_with="libnvidia-ml.so.1",
    catalog_id="nvidia-h200-sxm",
    catalog_note="",
    devices_per_entry=1,
    engines=(),
    visible=Visible(),
    nodes=(),
)
CHIP_910C = structs.replace(H200, vendor="ascend", catalog_id="huawei-ascend-910c", devices_per_entry=2)  # fmt: skip
H20 = structs.replace(H200, catalog_id="nvidia-h20")
BROKEN = structs.replace(H200, health="error", reason="it fell off the bus")


def having(*devices: Device) -> Inventory:
    return Inventory(devices=devices, reports=())


def test_like_devices_are_one_part_of_the_fleet() -> None:
    fleet = found_fleet(having(H200, H20, H200, CHIP_910C, CHIP_910C))

    assert {name: (one.accelerator, one.count) for name, one in fleet.sources.items()} == {
        "nvidia": ("nvidia-h200-sxm", 2),
        "nvidia-2": ("nvidia-h20", 1),
        "ascend": ("huawei-ascend-910c", 1),  # two chips of one package
    }


def test_what_cannot_be_planned_for_is_left_out_with_the_reason() -> None:
    unnamed = structs.replace(H200, index=1, catalog_id=None, catalog_note="no entry is known")
    divided = structs.replace(H200, index=2, slices=(Slice(index=0),))
    fleet = found_fleet(having(BROKEN, unnamed, divided))

    assert fleet.sources == {}
    assert fleet.left_out == {
        "it fell off the bus": ("nvidia 0",),
        "no entry is known": ("nvidia 1",),
        "divided into 1 slices, which plans do not know": ("nvidia 2",),
    }


def test_half_a_package_is_no_accelerator() -> None:
    fleet = found_fleet(having(CHIP_910C))

    assert fleet.sources == {}
    assert list(fleet.left_out) == ["an entry of the catalog is 2 of them"]


def test_memory_of_others_is_said_beside_a_fleet_that_takes_it_for_free() -> None:
    busy = structs.replace(H200, memory_used_bytes=34_000_000_000)

    assert found_fleet(having(busy)).held == ("34 of 151 GB of nvidia 0",)
    assert found_fleet(having(H200)).held == ()


def test_the_fleet_file_is_one_that_plans_are_made_on(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(fleet_yaml(found_fleet(having(H200, BROKEN, H20))))

    sources = fleet_of(str(path)).sources
    assert sources == found_fleet(having(H200, H20)).sources
    assert "# left out: nvidia 0: it fell off the bus" in path.read_text()


def test_a_plans_cards_that_are_not_here_are_counted_over_its_parts() -> None:
    plan = {
        "a": Source(accelerator="h200", count=2),
        "b": Source(accelerator="nvidia-h200-sxm", count=2),
        "c": Source(pod="nvidia-hgx-h20", accelerators=1),
        "d": Source(host="here", cores=(0,)),
    }

    lacks = lacking(plan, having(H200, H200, H200, H20))

    assert [(one.accelerator, one.parts, one.wanted, one.found) for one in lacks] == [
        ("nvidia-h200-sxm", ("a", "b"), 4, 3)
    ]
