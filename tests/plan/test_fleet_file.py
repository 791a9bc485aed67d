"""A fleet's file: what it joins is joined, what it does not is not, and every slip is named with its place."""

from pathlib import Path

import pytest

from polypod.cli.asking import model_of
from polypod.errors import FileError
from polypod.plan.fleet import Chosen, choose
from polypod.plan.fleet_file import fleet_of
from polypod.plan.fleet_offers import Aim
from polypod.plan.place import islands, parse_fleet
from polypod.plan.search import Question

WHOLE = """
fleet:
  fast: {accelerator: nvidia-h100-sxm, count: 8}
  wide: {accelerator: nvidia-h20, count: 8}
  other: {accelerator: amd-mi300x, count: 8}
fabrics:
  - {joins: [fast, wide], bandwidth: 100 Gb/s}
  - {joins: [wide, fast], bandwidth: 400 Gb/s}
alone: [other]
"""


def written(folder: Path, text: str) -> str:
    path = folder / "fleet.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_islands_have_the_widest_of_the_fabrics_that_join_them(tmp_path: Path) -> None:
    fleet = fleet_of(written(tmp_path, WHOLE))
    assert list(fleet.sources) == ["fast", "wide", "other"]
    assert fleet.widths_bytes_per_s == {frozenset(("fast", "wide")): 50e9}


def test_terms_are_a_fleet_without_fabrics() -> None:
    fleet = fleet_of("nvidia-h100-sxm:8+nvidia-h20:8")
    assert fleet.sources == parse_fleet("nvidia-h100-sxm:8+nvidia-h20:8")
    assert fleet.widths_bytes_per_s is None


def test_a_cache_crosses_where_a_fabric_joins_and_nowhere_else(tmp_path: Path) -> None:
    question = Question(
        model=model_of("qwen3-32b"), input_tokens=2048, output_tokens=512, ttft_s=2.0, tpot_s=0.05, percentile=99, rate_per_s=None
    )  # fmt: skip
    fleet = fleet_of(written(tmp_path, WHOLE))
    aim = Aim(widths_bytes_per_s=fleet.widths_bytes_per_s, unproven=True)
    found = choose([question], islands(fleet.sources), aim)
    assert isinstance(found, Chosen)
    between = {(pair.prefill, pair.decode): pair.bytes_per_s for pair in found.pairs if pair.prefill != pair.decode}  # fmt: skip
    assert between == {("fast", "wide"): 50e9, ("wide", "fast"): 50e9}
    assert any("no fabric of the fleet's file joins them" in reason for reason in found.refused_pairs)  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("alone: [other]", "", r"island 'other' reaches nothing: no fabric joins it.*`\$\.fleet\.other`"),
        ("alone: [other]", "alone: [other, fast]", "island 'fast' is alone and joined by a fabric"),
        ("joins: [wide, fast]", "joins: [wide, fest]", r"'fest' is not in the fleet \(fast, wide, other\) - at `\$\.fabrics\[1\]\.joins`"),
        ("400 Gb/s", "400 Gb", r"Gb.*at `\$\.fabrics\[1\]\.bandwidth`"),
        ("joins: [wide, fast]", "joins: [wide]", r"at `\$\.fabrics\[1\]\.joins`|length >= 2"),
        (", count: 8}\n  wide", "}\n  wide", r"needs a count - at `\$\.fleet\.fast`"),
        ("fabrics:", "fabric:", "unknown field `fabric`"),
    ],
)  # fmt: skip
def test_a_slip_is_named_with_its_place(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in WHOLE
    with pytest.raises(FileError, match=message):
        fleet_of(written(tmp_path, WHOLE.replace(before, after, 1)))


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be read"):
        fleet_of(str(tmp_path / "none.yaml"))
