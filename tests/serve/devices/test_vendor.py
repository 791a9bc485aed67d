"""The data files of vendors: whole, sourced, and true to the catalog and to the code."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from polypod.catalog.load import load_accelerator
from polypod.catalog.market import stack_of
from polypod.errors import FileError
from polypod.serve.devices.probe import probe_of
from polypod.serve.devices.vendor import DATA, Vendor, load_vendor, shipped_vendors
from polypod.serve.engines import ENGINES
from polypod.serve.engines.facts import platform_of

each = pytest.mark.parametrize("vendor", shipped_vendors(), ids=lambda one: one.vendor)


@each
def test_a_vendor_has_its_own_file_and_probe(vendor: Vendor) -> None:
    assert (DATA / f"{vendor.vendor}.toml").is_file()
    assert probe_of(vendor.vendor) is not None


@each
def test_every_catalog_entry_that_a_name_leads_to_exists(vendor: Vendor) -> None:
    for entry in vendor.catalog:
        assert load_accelerator(entry.id).id == entry.id
        assert entry.names or entry.devices
        assert all(name == name.casefold() for name in entry.names)


@each
def test_a_library_that_is_read_is_verified_and_has_a_reader(vendor: Vendor) -> None:
    """One whose interface could not be checked is named at most, and never loaded."""
    if vendor.library.interface is None:
        assert vendor.library.note or not vendor.library.names
    else:
        assert vendor.library.verified
        assert find_spec(f"polypod.serve.devices.libraries.{vendor.library.interface}") is not None
        assert hasattr(import_module(f"polypod.serve.devices.libraries.{vendor.library.interface}"), "read")  # fmt: skip


@each
def test_every_table_says_where_it_is_from(vendor: Vendor) -> None:
    for part in (vendor.pci, vendor.library, vendor.cli, vendor.visible, vendor.nodes):
        assert part.source.strip()


@each
def test_a_vendor_can_be_noticed_and_asked(vendor: Vendor) -> None:
    """By the bus, by a node or by the platform; and the kernel's files are the only way of some."""
    assert vendor.pci.vendor_id or vendor.nodes.trace or vendor.platform
    assert vendor.failures or not vendor.cli.tools


def test_orders_and_names_are_not_given_twice() -> None:
    orders = [vendor.order for vendor in shipped_vendors()]
    assert sorted(set(orders)) == orders


def test_an_unknown_key_of_a_data_file_is_an_error_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "acme.toml"
    text = (DATA / "nvidia.toml").read_text(encoding="utf-8")
    path.write_text(text.replace('stack = "cuda"', 'stack = "cuda"\nstacks = 2'))

    with pytest.raises(FileError, match=r"acme\.toml.*stacks"):
        load_vendor(path)


@pytest.mark.parametrize(
    ("name", "memory_gib", "entry"),
    [
        ("NVIDIA H200", 140.4, "nvidia-h200-sxm"),
        ("NVIDIA  h200", 140.4, "nvidia-h200-sxm"),  # spaces and case do not matter
        ("NVIDIA H100 80GB HBM3", 79.6, "nvidia-h100-sxm"),
        ("NVIDIA H100 PCIe", 79.6, None),
        ("NVIDIA H20", 95.6, "nvidia-h20"),
        ("NVIDIA H20-3e", 140.7, None),
        ("NVIDIA GeForce RTX 4090", 24.0, None),
        (None, None, None),
    ],
)
def test_a_catalog_entry_is_found_by_name_and_memory(
    name: str | None, memory_gib: float | None, entry: str | None
) -> None:
    nvidia = next(one for one in shipped_vendors() if one.vendor == "nvidia")
    memory = None if memory_gib is None else int(memory_gib * 2**30)
    found = nvidia.entry_of(name, None, memory)
    assert (found.id if found else None) == entry


def test_a_device_id_names_an_entry_only_where_the_device_gives_no_name() -> None:
    """MetaX's list of ids has one product; its others must not be taken for it."""
    metax = next(one for one in shipped_vendors() if one.vendor == "metax")
    memory = 64 << 30
    by_id = metax.entry_of(None, "0x0a01", memory)
    by_name = metax.entry_of("MetaX C550", "0x0a01", memory)
    assert (by_id and by_id.id, by_name and by_name.id) == ("metax-c500", "metax-c550")
    assert metax.entry_of("MetaX N260", "0x0a01", memory) is None


@each
def test_a_vendors_variable_is_the_one_that_engines_are_told(vendor: Vendor) -> None:
    """Two files say it, each from its own sources: they must agree, and so must what is set with it."""
    for engine in ENGINES:
        platform = platform_of(engine, vendor.stack)
        if platform is not None and platform.visible is not None:
            assert platform.visible == vendor.visible.variable
            assert vendor.visible.beside.items() <= platform.variables.items() or engine != "vllm"


def test_stacks_are_those_of_the_catalog() -> None:
    """Where a vendor has a chip in the catalog, its stack of software is the catalog's."""
    for vendor in shipped_vendors():
        for entry in vendor.catalog:
            stack = stack_of(entry.id)
            assert stack is None or stack.id == vendor.stack


@pytest.mark.parametrize(
    ("vendor", "name", "device_id", "memory_gib", "entry"),
    [
        ("amd", "AMD Instinct MI300X OAM", None, 192, "amd-mi300x"),
        ("amd", "Arcturus GL-XL [Instinct MI100]", "0x738c", 32, None),
        ("ascend", "910B2", None, 64, "huawei-ascend-910b2"),
        ("ascend", "910B4", None, 32, None),
        ("ascend", "Ascend910", None, 64, "huawei-ascend-910c"),
        ("ascend", "Ascend950PR", None, 128, "huawei-ascend-950pr"),
        ("cambricon", "MLU370-X8", None, 23, "cambricon-mlu370-x8"),
        ("cambricon", "MLU370-X4", None, 23, None),
        ("cambricon", "MLU590-M9", None, 80, "cambricon-mlu590"),
        ("hygon", "K100_AI", None, 64, "hygon-k100-ai"),
        ("hygon", "BW1000", None, 64, "hygon-bw1000"),
        ("kunlunxin", "P800 OAM", None, 96, "kunlun-p800"),
        ("moorethreads", "MTT S5000", None, 80, "mthreads-s5000"),
        ("moorethreads", "MTT S80", None, 16, None),
        ("metax", "MXC500", None, 64, "metax-c500"),
        ("metax", "Mars X201", None, 64, None),
        ("iluvatar", "Iluvatar BI-V150", None, 32, "iluvatar-bi-v150"),
        ("iluvatar", "Iluvatar BI-V150S", None, 32, None),
        ("thead", "PPU-ZW810E", None, 96, "thead-zhenwu-810e"),
        ("enflame", "S60", None, 42, "enflame-s60"),
        ("enflame", "Enflame L300", None, 144, None),
        ("biren", "Biren 106M", None, 32, "biren-br106"),
        ("intel_gaudi", "HL-325L", None, 128, "intel-gaudi3"),
        ("intel_gaudi", "HL-225", "0x1020", 96, None),
        ("aws_neuron", None, "0x7364", 96, "aws-trainium2"),
        ("google_tpu", None, "0x006f", None, "google-tpu-v6e"),
        ("google_tpu", "TPU v4", "0x005e", 32, None),
    ],
)
def test_a_device_of_any_vendor_is_found_in_the_catalog_or_is_not(
    vendor: str,
    name: str | None,
    device_id: str | None,
    memory_gib: int | None,
    entry: str | None,
) -> None:
    one = next(one for one in shipped_vendors() if one.vendor == vendor)
    memory = None if memory_gib is None else memory_gib << 30
    found = one.entry_of(name, device_id, memory)
    assert (found.id if found else None) == entry
