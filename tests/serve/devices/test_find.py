"""From the bus to an inventory: who is asked, and what one broken vendor costs the others."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from polypod.serve.devices.asking import Answer
from polypod.serve.devices.find import Finders, find_devices
from polypod.serve.devices.found import Inventory
from polypod.serve.devices.machine import Machine
from polypod.serve.devices.probes.aws_neuron import parse_json, parse_table
from polypod.serve.devices.vendor import shipped_vendors

CSV = "0, GPU-a, NVIDIA H200, 00000000:{bus}:00.0, 143771, 9000, Disabled\n"


def bus(root: Path, *functions: tuple[str, str, str, str]) -> None:
    for address, vendor, device, code in functions:
        folder = root / "sys/bus/pci/devices" / address
        folder.mkdir(parents=True)
        for name, text in (("vendor", vendor), ("device", device), ("class", code)):
            (folder / name).write_text(f"{text}\n")


def find(root: Path, answers: dict[str, Answer], ran: list[str] | None = None) -> Inventory:
    """With tools of the names that answer."""
    (root / "bin").mkdir(exist_ok=True)
    for tool in answers:
        (root / "bin" / tool).touch(0o755)

    def run(argv: Sequence[str], _: float) -> Answer:
        (ran if ran is not None else []).append(argv[0])
        return answers[argv[0]] if "--query-gpu" in " ".join(argv) or argv[0] != "nvidia-smi" else Answer(stdout="", exit_code=2)  # fmt: skip

    machine = Machine(root=root, folders=(root / "bin",), platform="linux", run=run)
    return find_devices(machine, Finders(vendors=shipped_vendors(), installed=lambda *_: True))


NVIDIA = ("0000:17:00.0", "0x10de", "0x2335", "0x030200")
ASCEND = ("0000:c1:00.0", "0x19e5", "0xd802", "0x120000")


def test_a_machine_without_accelerators_runs_nothing(tmp_path: Path) -> None:
    ran: list[str] = []
    inventory = find(tmp_path, {"nvidia-smi": Answer(stdout=CSV)}, ran)

    assert inventory == Inventory(devices=(), reports=())
    assert ran == []


def test_one_vendors_broken_driver_leaves_the_others_usable(tmp_path: Path) -> None:
    bus(tmp_path, NVIDIA, ASCEND)
    broken = Answer(stdout="dcmi module initialize failed. ret is -8005\n", exit_code=1)
    inventory = find(tmp_path, {"nvidia-smi": Answer(stdout=CSV.format(bus="17")), "npu-smi": broken})  # fmt: skip

    usable = {device.vendor: device.is_usable for device in inventory.devices}
    assert usable == {"nvidia": True, "ascend": False}
    ascend = inventory.devices[1]
    assert ascend.reason == "dcmi module initialize failed. ret is -8005"
    assert [report.status for report in inventory.problems] == ["driver_error"]
    assert "dmesg" in (inventory.problems[0].way_out or "")


def test_a_card_whose_tool_is_not_installed_is_listed_with_what_to_install(tmp_path: Path) -> None:
    bus(tmp_path, NVIDIA)
    inventory = find(tmp_path, {})

    device = inventory.devices[0]
    assert (device.name, device.found_by, device.health) == ("H200 SXM 141GB", "pci", "error")
    report = inventory.reports[0]
    assert report.status == "tool_missing"
    assert "nvidia-smi" in (report.problem or "")
    assert (report.way_out or "").startswith("install the NVIDIA driver")


def test_a_function_that_the_tool_does_not_list_is_said_to_be_there(tmp_path: Path) -> None:
    bus(tmp_path, NVIDIA, ("0000:3b:00.0", *NVIDIA[1:]))
    inventory = find(tmp_path, {"nvidia-smi": Answer(stdout=CSV.format(bus="17"))})

    assert [device.health for device in inventory.devices] == ["ok", "error"]
    assert inventory.devices[1].pci_address == "0000:3b:00.0"
    assert inventory.reports[0].status == "partial"


def test_memory_that_others_hold_counts(tmp_path: Path) -> None:
    bus(tmp_path, NVIDIA)
    device = find(tmp_path, {"nvidia-smi": Answer(stdout=CSV.format(bus="17"))}).devices[0]

    assert device.memory_free_bytes == (143771 - 9000) << 20


def test_a_device_is_shown_alone_by_the_id_that_the_engine_counts_in(tmp_path: Path) -> None:
    """The physical id names the device node, the logical one the variable."""
    bus(tmp_path, ASCEND, ("0000:c2:00.0", *ASCEND[1:]))
    table = (Path(__file__).parents[2] / "conformance/ascend/card_in_alarm/1.txt").read_text()
    first = find(tmp_path, {"npu-smi": Answer(stdout=table)}).devices[0]

    assert (first.index, first.physical_id) == (0, 4)
    assert first.visible.environment == {"ASCEND_RT_VISIBLE_DEVICES": "0"}
    assert first.nodes[0] == "/dev/davinci4"


def test_cuda_is_told_the_order_of_the_bus_with_the_device(tmp_path: Path) -> None:
    bus(tmp_path, NVIDIA)
    device = find(tmp_path, {"nvidia-smi": Answer(stdout=CSV.format(bus="17"))}).devices[0]

    assert device.visible.environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-a"}  # fmt: skip


def test_a_known_chip_has_its_engines_with_what_they_lack(tmp_path: Path) -> None:
    bus(tmp_path, NVIDIA)
    device = find(tmp_path, {"nvidia-smi": Answer(stdout=CSV.format(bus="17"))}).devices[0]

    assert device.catalog_id == "nvidia-h200-sxm"
    vllm = next(use for use in device.engines if use.engine == "vLLM")
    assert (vllm.state, vllm.missing) == ("supported", ())


@pytest.mark.parametrize("node", ["/dev/nvidia0", "/dev/davinci3"])
def test_a_device_node_is_a_trace_where_the_bus_cannot_be_seen(tmp_path: Path, node: str) -> None:
    path = tmp_path / node.lstrip("/")
    path.parent.mkdir()
    path.touch()
    inventory = find(tmp_path, {})

    assert [report.seen for report in inventory.reports] == [node]
    assert inventory.reports[0].status == "tool_missing"


def test_an_engine_that_cannot_be_started_on_the_stack_is_told_apart(tmp_path: Path) -> None:
    """llama.cpp's package here is for CPUs; the catalog says that it runs on the chip."""
    bus(tmp_path, NVIDIA)
    device = find(tmp_path, {"nvidia-smi": Answer(stdout=CSV.format(bus="17"))}).devices[0]

    can_start = {use.engine: use.has_adapter for use in device.engines}
    assert can_start["vLLM"]
    assert not can_start["llama.cpp"]
    assert not can_start["TensorRT-LLM"]


def test_cores_of_a_device_follow_from_its_number_where_they_are_not_listed() -> None:
    """NEURON_RT_VISIBLE_CORES counts the cores of all devices in a row."""
    told = '[{"neuron_device": 2, "bdf": "b6:00.0", "nc_count": 4, "memory_size": 1}]'
    table = "| 2      | 4      | 96 GB  | 1, 3   | b6:00.0 |\n+--+"

    for card in (*parse_json(told).cards, *parse_table(table).cards):
        assert card.cores == (8, 9, 10, 11)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_lost_card_is_laid_beside_the_function_that_is_left_if_it_is_one(tmp_path: Path, lost: int) -> None:  # fmt: skip
    functions = [(f"0000:{number}:00.0", *NVIDIA[1:]) for number in (17, 18, 19)[: lost + 1]]
    bus(tmp_path, *functions)
    rows = "".join(f"{1 + number}, GPU-b, NVIDIA H200, [N/A], [Unknown Error], [Unknown Error], [N/A]\n" for number in range(lost))  # fmt: skip
    devices = find(tmp_path, {"nvidia-smi": Answer(stdout=CSV.format(bus="17") + rows)}).devices

    assert [device.health for device in devices] == ["ok", *["error"] * lost]
    assert [device.pci_address for device in devices] == [
        "0000:17:00.0",
        *(["0000:18:00.0"] if lost == 1 else [None, None]),
    ]
