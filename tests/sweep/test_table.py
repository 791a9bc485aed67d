"""The table: its columns, its kinds, whole or not at all."""

import csv
import errno
import os
from pathlib import Path

import pytest

from polypod.errors import InputError, RunError
from polypod.plan.sweep import COLUMNS, Point, Row, failed
from polypod.sweep import table

ROWS: list[Row] = [
    failed(Point(model="a", on="x", tpot_limit_s=0.1 + 0.2), 'why, "so"\n昇腾'),
    failed(Point(model="b", on="y"), "") | {"replicas": 3, "power_w": 700.0, "status": "ok"},
]


def test_csv_has_a_header_and_every_row_in_order(tmp_path: Path) -> None:
    table.write_table(tmp_path / "out.csv", ROWS, list(COLUMNS))
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["model"] for row in rows] == ["a", "b"]
    assert float(rows[0]["tpot_limit_s"]) == 0.1 + 0.2
    assert rows[0]["reason"] == ROWS[0]["reason"]
    assert (rows[1]["replicas"], rows[1]["ttft_limit_s"]) == ("3", "")
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_parquet_has_the_same_rows_with_their_kinds_and_unknowns_as_nulls(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    table.write_table(tmp_path / "out.parquet", ROWS, list(COLUMNS))
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.to_pylist() == ROWS
    kinds = {str: "string", int: "int64", float: "double"}
    assert {field.name: str(field.type) for field in found.schema} == {
        name: kinds[kind] for name, kind in COLUMNS.items()
    }
    assert b"polypod" in found.schema.metadata


def test_only_the_columns_asked_for_are_written() -> None:
    assert table.as_csv(ROWS, table.check_columns("replicas, model")) == "replicas,model\n,a\n3,b"
    assert table.check_columns(None) == list(COLUMNS)
    with pytest.raises(InputError, match=r"--columns: a sweep has no column 'goodput'; it has model, on"):  # fmt: skip
        table.check_columns("goodput")


def test_a_full_disk_leaves_the_file_that_was_there_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("before")

    def full(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match=r"out\.csv: .*No space left.* all points are finished and kept"):  # fmt: skip
        table.write_table(out, ROWS, list(COLUMNS))
    assert out.read_bytes() == b"before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize(
    ("name", "says"), [("out.xlsx", r"\.parquet or \.csv"), ("out", r"\.parquet or \.csv")]
)
def test_an_ending_that_is_not_written_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        table.check_file(tmp_path / name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        table.check_file(tmp_path / "out.csv")


def test_parquet_without_pyarrow_says_how_to_get_it_and_what_works_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'polypod\[sweep\]', or write -o .*out\.csv"):
        table.check_file(tmp_path / "out.parquet")
    table.check_file(tmp_path / "out.csv")
