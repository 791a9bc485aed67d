"""The finished sweep as one file, whole or not at all: Parquet with the extra `sweep`, CSV without."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from polypod import __version__
from polypod.errors import InputError, RunError
from polypod.plan.sweep import COLUMNS, Row
from polypod.report.export import csv_text


def check_file(path: Path) -> None:
    """Hold a file's name against what can be written, before anything is worked off. Raises `InputError`."""
    if path.suffix not in {".parquet", ".csv"}:
        msg = f"-o {path}: a sweep is written as .parquet or .csv; give the file one of these endings"  # fmt: skip
        raise InputError(msg)
    if path.is_dir():
        msg = f"-o {path} is a folder; give the name of a file"
        raise InputError(msg)
    if path.suffix == ".parquet" and find_spec("pyarrow") is None:
        msg = f"-o {path}: Parquet needs pyarrow, which is not installed; pip install 'polypod[sweep]', or write -o {path.with_suffix('.csv')}"
        raise InputError(msg)


def check_columns(text: str | None, columns: Mapping[str, type] = COLUMNS) -> list[str]:
    """The columns asked for, all of them where none is. Raises `InputError` for one that is none."""
    if text is None:
        return list(columns)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in columns:
            msg = f"--columns: a sweep has no column {name!r}; it has {', '.join(columns)}"
            raise InputError(msg)
    return names


def as_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    return csv_text(columns, [[row[name] for name in columns] for row in rows])


def write_table(
    path: Path, rows: Sequence[Row], columns: Sequence[str], kinds: Mapping[str, type] = COLUMNS
) -> None:
    """Write the file under another name, then give it its own; `kinds` are of the columns. Raises `RunError`, a file that was there before then still whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".parquet":
            _write_parquet(part, rows, {name: kinds[name] for name in columns})
        else:
            part.write_text(as_csv(rows, columns) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        msg = f"{path}: cannot be written: {error.strerror or error}; all points are finished and kept: make room, and say the same command again"
        raise RunError(msg) from error


def _write_parquet(path: Path, rows: Sequence[Row], columns: Mapping[str, type]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema(
        [(name, kinds[kind]) for name, kind in columns.items()], metadata={"polypod": __version__}
    )
    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), path, compression="zstd")
