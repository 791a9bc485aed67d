"""A text is parsed once; whatever happens to the file that remembers it, the answer is the same."""

import tomllib
from pathlib import Path

import msgspec
import pytest

from polypod.catalog.parsed import ParsedTexts

TEXT = 'id = "x"\n[peak]\nvalue = 1e12\nnames = ["昇腾"]\n'


def test_a_text_is_parsed_once_over_processes(tmp_path: Path) -> None:
    first = ParsedTexts(tmp_path / "deep" / "c.msgpack")
    assert first.toml(TEXT) == tomllib.loads(TEXT)
    assert first.parsed == 1
    first.save()

    second = ParsedTexts(tmp_path / "deep" / "c.msgpack")
    assert second.toml(TEXT) == tomllib.loads(TEXT)
    assert second.parsed == 0


def test_another_text_is_another_answer(tmp_path: Path) -> None:
    kept = ParsedTexts(tmp_path / "c.msgpack")
    kept.toml(TEXT)
    assert kept.toml(TEXT.replace("1e12", "2e12"))["peak"]["value"] == 2e12
    assert kept.parsed == 2


@pytest.mark.parametrize(
    "found",
    [b"", b"\x00nonsense", msgspec.msgpack.encode({"format": "older", "texts": {}}), msgspec.msgpack.encode([1])],
)  # fmt: skip
def test_a_file_that_is_not_ours_or_was_cut_short_is_made_anew(
    tmp_path: Path, found: bytes
) -> None:
    path = tmp_path / "c.msgpack"
    path.write_bytes(found)
    kept = ParsedTexts(path)
    assert kept.toml(TEXT) == tomllib.loads(TEXT)
    kept.save()
    again = ParsedTexts(path)
    again.toml(TEXT)
    assert again.parsed == 0


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, where the folder would be")
    kept = ParsedTexts(tmp_path / "taken" / "c.msgpack")
    kept.toml(TEXT)
    kept.save()
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]


def test_no_part_of_a_file_is_left_behind(tmp_path: Path) -> None:
    kept = ParsedTexts(tmp_path / "c.msgpack")
    kept.toml(TEXT)
    kept.save()
    assert [path.name for path in tmp_path.iterdir()] == ["c.msgpack"]
