"""Requests over time: read from a trace file, or drawn from a Poisson process.

A trace is CSV with the columns of Azure's published LLM traces (TIMESTAMP, ContextTokens, GeneratedTokens; a date and time
with up to seven decimals, or plain seconds), or JSONL as Mooncake publishes (timestamp in milliseconds, input_length,
output_length; hash_ids are not read). Rows may stand in any order: arrivals are sorted, equal times keep the file's order,
and the first arrival is second 0.
"""

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.errors import FileError, InputError, TraceError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Field = str | int | float

_COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_KEYS: Final = ("timestamp", "input_length", "output_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in the order they arrive. The three arrays are equally long; `sha256` is of the file's bytes."""

    name: str
    arrival_s: Floats
    input_tokens: Counts
    output_tokens: Counts
    sha256: str | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)


def read_trace(path: Path | str) -> Trace:
    """Read a trace file, CSV or JSONL by its ending.

    Raises `TraceError` with the line number (the header is line 1) for a line that is broken, cut off, or asks for no tokens,
    `FileError` for a file that cannot be read, holds no request, or lacks a column.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read: {error}") from error
    read = _read_jsonl if path.suffix in {".jsonl", ".json"} else _read_csv
    rows = read(path, text)
    if not rows.lines:
        raise FileError(path, "holds no request")
    return _in_order(path, rows, hashlib.sha256(raw).hexdigest())


def poisson(
    rate_per_s: float, count: int, input_tokens: int, output_tokens: int, seed: int
) -> Trace:
    """Draw `count` arrivals with exponential gaps of mean 1 / rate, all of one length; the first is at second 0.

    >>> trace = poisson(10.0, 1001, input_tokens=512, output_tokens=64, seed=1)
    >>> len(trace), round(float(trace.arrival_s[-1]) / 1000, 2)  # mean gap in seconds
    (1001, 0.1)

    Raises `InputError` for a rate, count or length that is not positive.
    """
    given = {
        "rate_per_s": rate_per_s,
        "count": count,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }
    for name, value in given.items():
        if not 0 < value < float("inf"):
            msg = f"{name}={value} makes no traffic; give a positive number"
            raise InputError(msg)
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, count)
    arrival_s = np.cumsum(gaps_s)
    return Trace(
        name=f"poisson {rate_per_s:g}/s, seed {seed}",
        arrival_s=arrival_s - arrival_s[0],
        input_tokens=np.full(count, input_tokens, dtype=np.int64),
        output_tokens=np.full(count, output_tokens, dtype=np.int64),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """A file's fields as texts or numbers, and the line each row stands on."""

    lines: Sequence[int]
    when: Sequence[Field]
    asked: Sequence[Field]
    answered: Sequence[Field]
    names: tuple[str, str, str]


def _read_csv(path: Path, text: str) -> _Rows:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(reader, [])
        places = [_column(path, header, name) for name in _COLUMNS]
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise TraceError(path, reader.line_num, f"is not CSV: {error}") from error
    for line, row in rows:
        if len(row) != len(header):
            raise TraceError(path, line, f"has {len(row)} fields, the header has {len(header)}")
    when, asked, answered = ([row[place] for _, row in rows] for place in places)
    lines = [line for line, _ in rows]
    return _Rows(lines=lines, when=when, asked=asked, answered=answered, names=_COLUMNS)


def _column(path: Path, header: Sequence[str], name: str) -> int:
    if name not in header:
        found = ", ".join(header) or "none"
        problem = f"has no column {name}; needed are {', '.join(_COLUMNS)}, found {found}"
        raise FileError(path, problem)
    return header.index(name)


def _read_jsonl(path: Path, text: str) -> _Rows:
    lines, rows = [], []
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise TraceError(path, line, f"is not JSON: {error.msg}") from error
        if not isinstance(row, dict) or not row.keys() >= set(_KEYS):
            raise TraceError(path, line, f"lacks one of {', '.join(_KEYS)}")
        lines.append(line)
        rows.append([row[key] for key in _KEYS])
    when, asked, answered = zip(*rows, strict=True) if rows else ((), (), ())
    return _Rows(lines=lines, when=when, asked=asked, answered=answered, names=_KEYS)


def _in_order(path: Path, rows: _Rows, sha256: str) -> Trace:
    seconds = _seconds(path, rows)
    input_tokens = _counts(path, rows, rows.asked, rows.names[1])
    output_tokens = _counts(path, rows, rows.answered, rows.names[2])
    order = np.argsort(seconds, kind="stable")
    arrival_s = seconds[order]
    return Trace(
        name=path.name,
        arrival_s=arrival_s - arrival_s[0],
        input_tokens=input_tokens[order],
        output_tokens=output_tokens[order],
        sha256=sha256,
    )


def _seconds(path: Path, rows: _Rows) -> Floats:
    """Seconds since the earliest row: from dates and times to 100 ns, from numbers as they are (milliseconds in JSONL)."""
    scale = 1e-3 if rows.names == _KEYS else 1.0
    try:
        seconds = np.array(rows.when, dtype=np.float64) * scale
    except (ValueError, TypeError):
        return _since_first(path, rows)
    _refuse(path, rows, ~np.isfinite(seconds) | (seconds < 0), rows.names[0], "a time from 0 on")
    return seconds


def _since_first(path: Path, rows: _Rows) -> Floats:
    try:
        moments = np.array([_utc(value) for value in rows.when], dtype="datetime64[ns]")
    except ValueError:
        moments = np.array([_moment(path, rows, at) for at in range(len(rows.lines))])
    _refuse(path, rows, np.isnat(moments), rows.names[0], "a date and time")
    since: Floats = (moments - moments.min()) / np.timedelta64(1, "s")
    return since


def _utc(value: Field) -> str:
    """Without the mark of universal time, which numpy does not read."""
    return str(value).strip().removesuffix("Z").removesuffix("+00:00")


def _moment(path: Path, rows: _Rows, at: int) -> np.datetime64:
    try:
        return np.datetime64(_utc(rows.when[at]), "ns")
    except ValueError:
        raise _broken(
            path, rows, at, rows.names[0], "a date and time, as 2023-11-16 18:15:46.68"
        ) from None


def _counts(path: Path, rows: _Rows, values: Sequence[Field], name: str) -> Counts:
    accepted = "a whole number of tokens, at least 1"
    whole = [_whole(value) for value in values]
    counts = np.array([0 if value is None else value for value in whole], dtype=np.int64)
    _refuse(path, rows, counts < 1, name, accepted)
    return counts


def _whole(value: Field) -> int | None:
    """The whole number a field holds; None where it holds something else."""
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        return None
    is_exact = isinstance(value, str) or (number == value and not isinstance(value, bool))
    return number if is_exact and number < 2**53 else None


def _refuse(path: Path, rows: _Rows, wrong: NDArray[np.bool_], name: str, accepted: str) -> None:
    if wrong.any():
        raise _broken(path, rows, int(np.argmax(wrong)), name, accepted)


def _broken(path: Path, rows: _Rows, at: int, name: str, accepted: str) -> TraceError:
    values = dict(zip(rows.names, (rows.when, rows.asked, rows.answered), strict=True))
    return TraceError(
        path, rows.lines[at], f"{name} is {values[name][at]!r}, accepted is {accepted}"
    )
