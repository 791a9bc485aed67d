"""Bounds between figures: they hold for every shipped chip, and catch the three mistakes people make."""

from pathlib import Path

import pytest

from polypod.catalog import load
from polypod.catalog.files import read_entry
from polypod.catalog.load import link_speeds, listing, load_accelerator, load_pod
from polypod.catalog.plausible import doubts, doubts_beside, doubts_of_speed
from polypod.catalog.schema import Accelerator, Pod
from polypod.errors import FileError

DATA = Path(load.__file__).parent / "data"
CHIPS = [entry.id for entry in listing() if entry.kind == "accelerator"]
PODS = [entry.id for entry in listing() if entry.kind == "pod"]


@pytest.mark.parametrize("name", CHIPS)
def test_a_shipped_chip_is_doubted_nowhere(name: str) -> None:
    chip = load_accelerator(name)
    ports = chip.scale_up
    beside = (
        doubts_of_speed(ports.name, "scale_up.bytes_per_s", ports.bytes_per_s, link_speeds())
        if ports
        else []
    )
    assert [*doubts(chip), *beside] == []


@pytest.mark.parametrize("name", PODS)
def test_a_shipped_pod_is_doubted_nowhere(name: str) -> None:
    pod = load_pod(name)
    beside = doubts_beside(pod, load_accelerator(pod.accelerator)) if pod.accelerator else []
    assert [*doubts(pod), *beside] == []


def changed(tmp_path: Path, entry: str, old: str, new: str) -> Path:
    text = (DATA / f"{entry}.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("value = 3.35e12", "value = 26.8e12", r"335 times a second: Gb/s written for GB/s\? 15 to 90 are accepted: .* at `\$\.memory_bytes_per_s`"),
        ("value = 3.35e12", "value = 0.42e12", r"only 5\.2 times a second: one stack, or one die, of several\?"),
        ("value = 1978.9e12", "value = 3957.8e12", r"in (fp8|int8) is 4 times bf16: with sparsity\? .* At most 2\.1 times is accepted: halving the width"),
        ("value = 494.7e12", "value = 989.4e12", r"in tf32 is 1 times bf16: with sparsity\?"),
        ("value = 450e9", "value = 3600e9", r"1\.1 of the memory's bandwidth: Gb/s written for GB/s, or both directions summed\?"),
    ],
)  # fmt: skip
def test_a_wrong_unit_and_a_sparse_peak_are_caught_with_the_bounds_reason(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    with pytest.raises(FileError, match=says):
        read_entry(changed(tmp_path, "accelerators/nvidia-h100-sxm", old, new), Accelerator)


def test_a_chip_whose_peaks_are_all_sparse_is_caught_by_its_power(tmp_path: Path) -> None:
    text = (DATA / "accelerators/nvidia-h100-sxm.toml").read_text(encoding="utf-8")
    for dense, sparse in (("989.4e12", "1978.9e12"), ("1978.9e12\nsource", "3957.8e12\nsource")):
        text = text.replace(f"value = {dense}", f"value = {sparse}")
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(FileError, match=r"FLOP/J: with sparsity, or the power of one die\?"):
        read_entry(path, Accelerator)


def test_a_farther_tier_that_is_faster_is_caught(tmp_path: Path) -> None:
    path = changed(tmp_path, "pods/nvidia-hgx-h200", "value = 50e9", "value = 3200e9")
    with pytest.raises(
        FileError, match=r"nearer tier .*Gb/s written for GB/s.* at `\$\.tiers\[1\]"
    ):
        read_entry(path, Pod)


def test_a_figure_that_is_right_although_odd_says_why(tmp_path: Path) -> None:
    path = changed(
        tmp_path,
        "accelerators/nvidia-h100-sxm",
        "value = 450e9\n",
        'value = 3600e9\nodd_because = "photonic ports, feeding the caches"\n',
    )
    assert read_entry(path, Accelerator).scale_up is not None
