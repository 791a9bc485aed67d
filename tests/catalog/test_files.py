from pathlib import Path

import pytest

from polypod.catalog import load
from polypod.catalog.load import (
    load_accelerator,
    load_file,
    load_link,
    load_model,
    load_pod,
)
from polypod.errors import FileError

DATA = Path(load.__file__).parent / "data"


def broken(tmp_path: Path, entry: str, old: str, new: str) -> str:
    """A copy of a shipped file with one text replaced, once."""
    text = (DATA / f"{entry}.toml").read_text(encoding="utf-8")
    assert old in text
    copy = tmp_path / "mine.toml"
    copy.write_text(text.replace(old, new, 1), encoding="utf-8")
    return str(copy)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("value = 141e9", "value = 141", r"141 bytes cannot be; accepted: 1e\+08 to 1e\+14 bytes \(141 GB is 141e9\) - at `\$\.memory_bytes\.value`"),
        ("value = 989.4e12", "value = 989.4", r"989\.4 FLOP/s cannot be; .* at `\$\.peak_flops_per_s\.bf16\.value`"),
        ("value = 4.8e12", "value = 4800", r"4800 bytes per second cannot be; .* at `\$\.memory_bytes_per_s\.value`"),
        ("value = 700", "value = 0.7", r"0\.7 watts cannot be; .*0\.7 kW is 700.* at `\$\.power_w\.value`"),
        ("value = 141e9", 'value = "141 GB"', r"Expected `float`, got `str` - at `\$\.memory_bytes\.value`"),
        ("value = 141e9", "value = -141e9", r"Expected `float` > 0\.0 - at `\$\.memory_bytes\.value`"),
        ("value = 141e9", "velue = 141e9", r"unknown field `velue` - at `\$\.memory_bytes`; the keys there are value, source, kind"),
        ('vendor = "NVIDIA"', 'vender = "NVIDIA"', r"unknown field `vender`; the keys there are id, name, vendor"),
        ('vendor = "NVIDIA"', "", r"missing required field `vendor`; the keys there are id, name, vendor"),
        ('kind = "datasheet"', 'kind = "rumour"', r"Invalid enum value 'rumour'"),
        ('vendor = "NVIDIA"', "vendor = NVIDIA", r"is not TOML: .*line 3"),
    ],
)  # fmt: skip
def test_a_broken_chip_file_names_the_file_the_key_and_what_is_accepted(
    tmp_path: Path, old: str, new: str, says: str
):
    path = broken(tmp_path, "accelerators/nvidia-h200-sxm", old, new)

    with pytest.raises(FileError, match=rf"mine\.toml: .*{says}"):
        load_accelerator(path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("value = 450e9", "value = 450", r"450 bytes per second .* at `\$\.tiers\[0\]\.bytes_per_s\.value`"),
        ("value = 10200", "value = 10.2", r"10\.2 watts cannot be; .* at `\$\.power_w\.value`"),
        ("ranks = 8", "rank = 8", r"unknown field `rank` - at `\$\.tiers\[0\]`; the keys there are name, ranks"),
        ("ranks = 8", "ranks = 0", r"Expected `int` >= 1 - at `\$\.tiers\[0\]\.ranks`"),
    ],
)  # fmt: skip
def test_a_broken_pod_file_names_the_tier(tmp_path: Path, old: str, new: str, says: str):
    path = broken(tmp_path, "pods/nvidia-hgx-h200", old, new)

    with pytest.raises(FileError, match=says):
        load_pod(path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("value = 450e9", "value = 450", r"450 bytes per second .* at `\$\.scale_up\.bytes_per_s\.value`"),
        ("accelerators = 8", "ranks = 8", r"unknown field `ranks` - at `\$\.scale_up`; the keys there are name, accelerators"),
    ],
)  # fmt: skip
def test_a_broken_scale_up_is_named(tmp_path: Path, old: str, new: str, says: str):
    path = broken(tmp_path, "accelerators/nvidia-h20", old, new)

    with pytest.raises(FileError, match=says):
        load_accelerator(path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("value = 392e9", "value = 392", r"392 bytes per second .* at `\$\.bytes_per_s\.Ascend 910C\.value`"),
        ("value = 1.2e-6", "value = 1.2", r"1\.2 seconds cannot be; .* at `\$\.latency_s\.inside a node\.value`"),
        ('purpose = "scale-up"', 'purpose = "fast"', "Invalid enum value 'fast'"),
        ('owner = "Huawei"', "", r"missing required field `owner`; the keys there are id, name, owner"),
    ],
)  # fmt: skip
def test_a_broken_link_file_names_the_key(tmp_path: Path, old: str, new: str, says: str):
    path = broken(tmp_path, "links/ub1", old, new)

    with pytest.raises(FileError, match=says):
        load_link(path)


def test_a_latency_in_microseconds_is_caught(tmp_path: Path):
    path = broken(tmp_path, "pods/huawei-cm384", "value = 1.2e-6", "value = 1.2")

    with pytest.raises(
        FileError, match=r"1\.2 seconds cannot be.*1\.2 us is 1\.2e-6.*tiers\[1\]\.latency_s"
    ):
        load_pod(path)


def test_a_pue_below_one_is_caught(tmp_path: Path):
    path = broken(tmp_path, "pods/huawei-cm384", "value = 1.1\n", "value = 0.1\n")

    with pytest.raises(FileError, match=r"at `\$\.pue\.value`"):
        load_pod(path)


def test_a_file_that_is_neither_chip_nor_pod_says_what_would_make_it_one(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('id = "mine"\n')

    with pytest.raises(FileError, match=r"neither an accelerator \(peak_flops_per_s"):
        load_file(path)


@pytest.mark.parametrize(
    ("text", "says"), [("{", "is not JSON"), ("[]", "a config.json is one object")]
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str, says: str):
    path = tmp_path / "config.json"
    path.write_text(text)

    with pytest.raises(FileError, match=says):
        load_model(str(path))


def test_a_missing_file_is_said_to_be_missing():
    with pytest.raises(FileError, match="cannot be read"):
        load_pod("nowhere.toml")
