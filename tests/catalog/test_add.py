"""A person's own entries: checked, kept, and treated like ours."""

from pathlib import Path

import pytest

from polypod.catalog.add import add
from polypod.catalog.load import (
    FOLDERS_VARIABLE,
    is_shipped,
    known_names,
    listing,
    load_accelerator,
    load_model,
    load_pod,
    use_folder,
)
from polypod.catalog.search import search
from polypod.errors import FileError, InputError, UnknownNameError
from polypod.plan.place import island, parse_fleet

CHIP = """\
id = "acme-x1"
name = "X1"
vendor = "Acme"
names = ["顶点X1"]
[peak_flops_per_s.bf16]
value = 500e12
source = "Acme X1 datasheet, page 2"
kind = "datasheet"
[memory_bytes]
value = 64e9
source = "Acme X1 datasheet, page 2"
kind = "datasheet"
[memory_bytes_per_s]
value = 2e12
source = "Acme X1 datasheet, page 2"
kind = "datasheet"
"""
POD = """\
id = "acme-rack"
name = "Rack"
vendor = "Acme"
accelerator = "acme-x1"
accelerators = 16
[[tiers]]
name = "board"
ranks = 16
[tiers.bytes_per_s]
value = 100e9
source = "Acme rack brochure, 2026"
kind = "claimed"
"""


def written(tmp_path: Path, text: str, name: str = "mine.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_chip_nobody_has_heard_of_is_one_file_and_can_be_planned_on(
    own_catalog: Path, tmp_path: Path
) -> None:
    added = add(written(tmp_path, CHIP))
    assert added.path == own_catalog / "accelerators" / "acme-x1.toml"
    assert not added.hides_shipped
    assert [what.split(":")[0] for what in added.lacks] == ["scale_up", "power_w"]

    assert load_accelerator("顶点x1").id == "acme-x1"
    assert known_names()["x1"] == "accelerator"
    assert "acme-x1" in {one.id for one in listing()}
    assert [hit.id for hit in search("acme")] == ["acme-x1"]
    assert island("a", parse_fleet("acme-x1:1")["a"]).rank.hbm_bytes_per_s == 2e12

    added = add(written(tmp_path, POD, "rack.toml"))
    assert any("'board' has no latency_s" in what for what in added.lacks)
    assert island("a", parse_fleet("acme-rack")["a"]).ranks == 16


def test_a_pod_of_a_chip_in_no_catalog_says_so(own_catalog: Path, tmp_path: Path) -> None:
    added = add(written(tmp_path, POD))
    assert "accelerator 'acme-x1' is in no catalog: add its file too" in added.lacks
    assert load_pod("acme-rack").accelerators == 16


def test_an_own_entry_stands_in_the_place_of_a_shipped_one_and_says_so(
    own_catalog: Path, tmp_path: Path
) -> None:
    own = CHIP.replace("acme-x1", "nvidia-h200-sxm").replace('["顶点X1"]', "[]")
    assert load_accelerator("nvidia-h200-sxm").vendor == "NVIDIA"
    assert add(written(tmp_path, own)).hides_shipped
    assert load_accelerator("nvidia-h200-sxm").vendor == "Acme"
    assert is_shipped("accelerator", "nvidia-h200-sxm")
    (own_catalog / "accelerators" / "nvidia-h200-sxm.toml").unlink()
    assert load_accelerator("nvidia-h200-sxm").vendor == "NVIDIA"


def test_adding_twice_needs_a_word_and_loses_nothing_without_it(
    own_catalog: Path, tmp_path: Path
) -> None:
    add(written(tmp_path, CHIP))
    changed = written(tmp_path, CHIP.replace("64e9", "96e9"))
    with pytest.raises(FileError, match=r"is there already; .* --replace"):
        add(changed)
    assert load_accelerator("acme-x1").memory_bytes.value == 64e9
    add(changed, replace=True)
    assert load_accelerator("acme-x1").memory_bytes.value == 96e9


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("64e9", "64", r"64 bytes cannot be; .* `\$\.memory_bytes\.value`"),
        ("2e12", "2e3", r"memory_bytes_per_s"),
        ("500e12", "500", r"peak_flops_per_s\.bf16"),
        ("name =", "nmae =", r"unknown field `nmae`"),
        ('"Acme X1 datasheet, page 2"', '""', r"source"),
    ],
)
def test_a_broken_file_is_refused_with_its_key_and_nothing_is_kept(
    own_catalog: Path, tmp_path: Path, old: str, new: str, says: str
) -> None:
    with pytest.raises(FileError, match=says):
        add(written(tmp_path, CHIP.replace(old, new, 1)))
    assert not own_catalog.exists()
    with pytest.raises(UnknownNameError):
        load_accelerator("acme-x1")


def test_a_models_config_is_kept_under_a_name_and_found_by_it(
    own_catalog: Path, tmp_path: Path
) -> None:
    added = add(written(tmp_path, '{"model_type": "llama"}', "config.json"), name="acme/one-7b")

    assert added.path == own_catalog / "models" / "acme--one-7b.json"
    assert load_model("ACME/one-7B").config == {"model_type": "llama"}
    assert "acme/one-7b" in {entry.id for entry in listing()}


@pytest.mark.parametrize("name", ["../x", "a/b/c", "", " one", "-x"])
def test_a_name_that_is_no_models_is_refused(own_catalog: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"names no model|owner before a slash"):
        add(written(tmp_path, "{}", "config.json"), name=name or "?")
    assert not own_catalog.exists()


def test_a_name_is_for_models(own_catalog: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--name 'x1' is for a model's config.json; .* acme-x1"):
        add(written(tmp_path, CHIP), name="x1")


def test_a_pod_whose_tier_is_faster_than_its_chips_ports_is_refused(
    own_catalog: Path, tmp_path: Path
) -> None:
    ports = '[scale_up]\nname = "AcmeLink"\n[scale_up.bytes_per_s]\nvalue = 50e9\nsource = "Acme X1 datasheet, page 3"\nkind = "datasheet"\n'
    add(written(tmp_path, CHIP + ports))

    with pytest.raises(
        FileError, match=r"1e\+11 bytes/s a rank is 2 times .* acme-x1 .* both directions summed\?"
    ):
        add(written(tmp_path, POD, "pod.toml"))


@pytest.mark.parametrize(
    ("value", "meant"), [("900e9", "both directions summed"), ("3600e9", "bits for bytes")]
)
def test_ports_of_a_known_fabric_are_held_against_its_published_speed(
    own_catalog: Path, tmp_path: Path, value: str, meant: str
) -> None:
    ports = f'[scale_up]\nname = "NVLink4"\n[scale_up.bytes_per_s]\nvalue = {value}\nsource = "Acme X1 datasheet, page 3"\nkind = "datasheet"\n'
    chip = CHIP.replace("value = 2e12", "value = 10e12").replace("64e9", "300e9")

    with pytest.raises(
        FileError, match=rf"times the 4\.5e\+11 bytes/s that NVLink4 has one way .*{meant}\?"
    ):
        add(written(tmp_path, chip + ports))
    assert not own_catalog.exists()


def test_a_folder_of_entries_takes_part_when_it_is_named(
    own_catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "ours"
    (folder / "accelerators").mkdir(parents=True)
    written(folder / "accelerators", CHIP, "acme-x1.toml")
    monkeypatch.setenv(FOLDERS_VARIABLE, "")

    use_folder(folder)

    assert load_accelerator("顶点X1").id == "acme-x1"
    assert any(hit.id == "acme-x1" for hit in search("acme"))


def test_a_folder_with_nothing_to_find_in_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"has none of accelerators/, pods/, links/, models/"):
        use_folder(tmp_path)
    with pytest.raises(FileError, match=r"is no folder"):
        use_folder(tmp_path / "absent")
