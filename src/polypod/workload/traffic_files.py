"""Request traces from files: CSV, JSON lines (.jsonl, .ndjson, .json), Parquet (.parquet, .pq).

One line or row is one request. Columns are found by name, whatever their case, in any order; `NAMES` lists what each may be called, which takes in Azure's
published traces (TIMESTAMP, ContextTokens, GeneratedTokens) and Mooncake's (timestamp in milliseconds, input_length, output_length, hash_ids of 512-token blocks).
Times are seconds (milliseconds where the name ends in `_ms`), or dates and times, to 100 ns where they have seven decimals. Lines stand in the order of arrival;
the first arrives at second 0.
"""

import csv
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from polypod.errors import FileError, TraceError, nearest_names
from polypod.workload.traffic_rows import Counts, Floats, Trace, starts_of
from polypod.workload.traffic_sessions import with_sessions

NAMES: Final = {
    "arrival": (
        "arrival_s", "arrival", "timestamp", "arrival_time", "arrived_at", "time_s", "time", "timestamp_s", "arrival_ms", "timestamp_ms",
    ),
    "input_tokens": (
        "input_tokens", "input_length", "input_len", "prompt_tokens", "prompt_length", "prompt_len", "request_tokens", "num_prefill_tokens",
        "context_tokens", "contexttokens",
    ),
    "output_tokens": (
        "output_tokens", "output_length", "output_len", "completion_tokens", "response_tokens", "generated_tokens", "generatedtokens",
        "num_decode_tokens",
    ),
    "model": ("model", "model_name", "service"),
    "tenant": ("tenant", "tenant_id", "customer", "organization"),
    "session": ("session", "session_id", "conversation_id", "chat_id"),
    "priority": ("priority",),
    "hashes": ("prefix_hashes", "hash_ids", "block_hashes"),
}  # fmt: skip
"""What a column may be called, the first that a file has is read; blanks and hyphens are underscores."""

_NEEDED: Final = ("arrival", "input_tokens", "output_tokens")
_MOONCAKE: Final = {"timestamp", "input_length", "output_length"}
_TOKENS: Final = "a whole number of tokens, at least 1"
_MOMENT: Final = "a date and time, as 2023-11-16 18:15:46.68"

Column = Sequence[Any] | NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a trace file is to be read.

    `models`: those that may be in it, None for any. `block_tokens`: of one prefix hash. `is_sorted`: lines out of order are refused where they have to
    be sorted already, else sorted, equal times as they stand.
    """

    models: tuple[str, ...] | None = None
    block_tokens: int = 512
    is_sorted: bool = True


def read_trace(path: Path | str, reading: Reading | None = None) -> Trace:
    """Read a trace file. Sessions that it does not give are told from its prefix hashes, where it gives those.

    Raises `TraceError` with the line (the header is line 1; in Parquet the row, from 1 on) for one that is broken, cut off, out of order, asks for no tokens
    or for a model that is not known; `FileError` for a file that cannot be read, holds no request, or lacks a column.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    read = _READERS.get(path.suffix.lower(), _read_csv)
    table = read(path, raw)
    if not table.count:
        raise FileError(path, "holds no request")
    trace = _trace(table, reading or Reading())
    return replace(trace, sha256=hashlib.sha256(raw).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A file's columns, by what they are. `line_of` says on which line a row stands."""

    path: Path
    count: int
    columns: Mapping[str, Column]
    names: Mapping[str, str]  # what the file calls them
    line_of: Callable[[int], int]
    time_unit_s: float = 1.0

    def broken(self, row: int, problem: str) -> TraceError:
        return TraceError(self.path, self.line_of(row), problem)

    def refuse(self, wrong: NDArray[np.bool_], kind: str, accepted: str) -> None:
        """Raise for the first row that is wrong."""
        if wrong.any():
            row = int(np.argmax(wrong))
            value = self.columns[kind][row]
            shown = value.item() if isinstance(value, np.generic) else value
            raise self.broken(row, f"{self.names[kind]} is {shown!r}, accepted is {accepted}")


# ---- columns of a file


def _places(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Where in the header each kind of column stands."""
    found = [_plain(name) for name in header]
    places = {
        kind: found.index(next(name for name in names if name in found))
        for kind, names in NAMES.items()
        if any(name in found for name in names)
    }
    for kind in _NEEDED:
        if kind not in places:
            names = ", ".join(NAMES[kind])
            problem = f"has no column of {kind.replace('_', ' ')} (one of {names}); found {', '.join(header) or 'none'}"
            raise FileError(path, problem)
    return places


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _unit_s(name: str) -> float:
    return 1e-3 if _plain(name).endswith("_ms") else 1.0


def _text(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(path, f"cannot be read: {error}") from error


def _read_csv(path: Path, raw: bytes) -> _Table:
    text = _text(path, raw)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = next(reader, [])
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise TraceError(path, reader.line_num, f"is not CSV: {error}") from error
    places = _places(path, header)

    def line_of(row: int) -> int:
        again = csv.reader(io.StringIO(text, newline=""))
        next(again)
        lines = (again.line_num for fields in again if fields)
        return next(itertools.islice(lines, row, None))

    if set(map(len, rows)) - {len(header)}:
        at = next(at for at, row in enumerate(rows) if len(row) != len(header))
        problem = f"has {len(rows[at])} fields, the header has {len(header)}"
        raise TraceError(path, line_of(at), problem)
    return _Table(
        path=path,
        count=len(rows),
        columns={kind: [row[place] for row in rows] for kind, place in places.items()},
        names={kind: header[place] for kind, place in places.items()},
        line_of=line_of,
        time_unit_s=_unit_s(header[places["arrival"]]),
    )


def _read_jsonl(path: Path, raw: bytes) -> _Table:
    text = _text(path, raw)
    lines = [at for at, line in enumerate(text.split("\n"), start=1) if line.strip()]
    try:
        rows = msgspec.json.Decoder().decode_lines(text)
    except msgspec.DecodeError:
        rows = [_json(path, at, text.split("\n")[at - 1]) for at in lines]
    for at, row in enumerate(rows):
        if not isinstance(row, dict):
            raise TraceError(path, lines[at], "is no JSON object")
    header = list(rows[0]) if rows else []
    places = _places(path, header)
    names = {kind: header[place] for kind, place in places.items()}
    for kind in _NEEDED:
        for at, row in enumerate(rows):
            if names[kind] not in row:
                raise TraceError(path, lines[at], f"lacks {names[kind]}")
    is_mooncake = set(header) >= _MOONCAKE
    return _Table(
        path=path,
        count=len(rows),
        columns={kind: [row.get(name) for row in rows] for kind, name in names.items()},
        names=names,
        line_of=lines.__getitem__,
        time_unit_s=1e-3 if is_mooncake else _unit_s(names["arrival"]),
    )


def _json(path: Path, line: int, content: str) -> object:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise TraceError(path, line, f"is not JSON: {error.msg}") from error


def _read_parquet(path: Path, raw: bytes) -> _Table:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        problem = "is Parquet, which needs pyarrow, which is not installed; pip install 'polypod[sweep]', or write the trace as CSV"
        raise FileError(path, problem) from error
    try:
        file = parquet.ParquetFile(io.BytesIO(raw))
        header = file.schema_arrow.names
        places = _places(path, header)
        names = {kind: header[place] for kind, place in places.items()}
        table = file.read(columns=list(names.values()))
    except pa.ArrowException as error:
        raise FileError(path, f"is not Parquet: {error}") from error
    columns = {kind: _arrow(table[name], pa.types) for kind, name in names.items()}
    return _Table(
        path=path,
        count=table.num_rows,
        columns=columns,
        names=names,
        line_of=lambda row: row + 1,
        time_unit_s=_unit_s(names["arrival"]),
    )


def _arrow(column: Any, types: Any) -> Column:  # noqa: ANN401 (of pyarrow, which need not be there)
    kind = column.type
    is_number = types.is_integer(kind) or types.is_floating(kind)
    is_plain = types.is_timestamp(kind) or (is_number and not column.null_count)
    values: Column = column.to_numpy() if is_plain else column.to_pylist()
    return values


_READERS: Final = {
    ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_jsonl, ".parquet": _read_parquet, ".pq": _read_parquet,
}  # fmt: skip


# ---- what the columns say


def _trace(table: _Table, reading: Reading) -> Trace:
    arrival_s = _seconds(table)
    model, models = _models(table, reading.models)
    tenant, tenants = _tenants(table)
    trace = Trace(
        name=table.path.name,
        arrival_s=arrival_s,
        input_tokens=_tokens(table, "input_tokens"),
        output_tokens=_tokens(table, "output_tokens"),
        model=model,
        models=models,
        tenant=tenant,
        tenants=tenants,
        session=_sessions(table),
        priority=_priorities(table),
    )
    if "hashes" in table.columns:
        trace = _with_hashes(table, trace, reading.block_tokens)
    if (np.diff(arrival_s) < 0).any():
        trace = _in_order(table, trace, is_sorted=reading.is_sorted)
    if len(trace.block_hashes) and "session" not in table.columns:
        trace = with_sessions(trace)
    return replace(trace, arrival_s=trace.arrival_s - trace.arrival_s[0])


def _in_order(table: _Table, trace: Trace, *, is_sorted: bool) -> Trace:
    if is_sorted:
        late = np.append(False, np.diff(trace.arrival_s) < 0)
        table.refuse(
            late, "arrival", "a time not before that of the line above; --sort sorts the file"
        )
    return trace.take(np.argsort(trace.arrival_s, kind="stable"))


def _seconds(table: _Table) -> Floats:
    """Seconds: from dates and times since the earliest, from numbers as they are."""
    values = table.columns["arrival"]
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        return _since_first(table, values.astype("datetime64[ns]"))
    try:
        seconds = np.array(values, dtype=np.float64) * table.time_unit_s
    except (ValueError, TypeError):
        return _since_first(table, _moments(table, values))
    table.refuse(~np.isfinite(seconds) | (seconds < 0), "arrival", "a time from 0 on")
    return seconds


def _since_first(table: _Table, moments: NDArray[np.datetime64]) -> Floats:
    table.refuse(np.isnat(moments), "arrival", _MOMENT)
    since: Floats = (moments - moments.min()) / np.timedelta64(1, "s")
    return since


def _moments(table: _Table, values: Column) -> NDArray[np.datetime64]:
    texts, offsets_s = [], []
    for value in values:
        text, offset_s = _utc(str(value))
        texts.append(text)
        offsets_s.append(offset_s)
    try:
        moments = np.array(texts, dtype="datetime64[ns]")
    except ValueError:
        moments = np.array([_moment(table, row, text) for row, text in enumerate(texts)])
    utc: NDArray[np.datetime64] = moments - np.array(offsets_s, dtype="timedelta64[s]")
    return utc


def _utc(text: str) -> tuple[str, int]:
    """A date and time without its mark of a time zone, which numpy does not read, and the zone's seconds ahead of universal time."""
    text = text.strip().removesuffix("Z")
    sign, hours, minutes = text[-6:-5], text[-5:-3], text[-2:]
    if sign not in {"+", "-"} or text[-3:-2] != ":" or not (hours + minutes).isdecimal():
        return text, 0
    ahead_s = int(hours) * 3600 + int(minutes) * 60
    return text[:-6], ahead_s if sign == "+" else -ahead_s


def _moment(table: _Table, row: int, text: str) -> np.datetime64:
    try:
        return np.datetime64(text, "ns")
    except ValueError:
        value = table.columns["arrival"][row]
        problem = f"{table.names['arrival']} is {value!r}, accepted is {_MOMENT}"
        raise table.broken(row, problem) from None


def _tokens(table: _Table, kind: str) -> Counts:
    counts = _whole_numbers(table.columns[kind], bad=0)
    table.refuse(counts < 1, kind, _TOKENS)
    return counts


_MOST: Final = 2**53
_BAD: Final = -_MOST


def _priorities(table: _Table) -> Counts:
    values = table.columns.get("priority")
    if values is None:
        return np.zeros(table.count, dtype=np.int64)
    given = [0 if value is None or value == "" else value for value in values]
    priorities = _whole_numbers(given, bad=_BAD)
    table.refuse(priorities == _BAD, "priority", "a whole number, the higher the sooner")
    return priorities


def _whole_numbers(values: Column, bad: int) -> Counts:
    """Whole numbers that fields hold; `bad` where one holds something else."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        whole = values.astype(np.int64)
    else:
        whole = _from_objects(list(values), bad)
    return np.where(np.abs(whole) < _MOST, whole, bad)


def _from_objects(values: list[Any], bad: int) -> Counts:
    if set(map(type, values)) in ({int}, {str}):
        try:
            return np.array(values, dtype=np.int64)
        except (ValueError, OverflowError):
            pass  # one at a time, to find which
    whole = [_whole(value) for value in values]
    return np.array([bad if value is None else value for value in whole], dtype=np.int64)


def _whole(value: str | float) -> int | None:
    """The whole number a field holds; None where it holds something else."""
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        return None
    is_exact = isinstance(value, str) or (number == value and not isinstance(value, bool))
    return number if is_exact and abs(number) < _MOST else None


def _codes(values: Sequence[Any]) -> tuple[Counts, tuple[Any, ...]]:
    """Numbers for values, in the order in which they come first, and the values."""
    known: dict[Any, int] = {}
    codes = np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int64)
    return codes, tuple(known)


def _models(table: _Table, known: tuple[str, ...] | None) -> tuple[Counts, tuple[str, ...]]:
    if "model" not in table.columns:
        return np.zeros(table.count, dtype=np.int64), ("",)
    codes, names = _labels(table, "model")
    for name in names:
        if not name or (known is not None and name not in known):
            row = int(np.argmax(codes == names.index(name)))
            near = ", ".join(nearest_names(name, known or ()) or (known or ())[:5])
            accepted = f"a model that is served; nearest: {near}" if known else "a name"
            raise table.broken(row, f"{table.names['model']} is {name!r}, accepted is {accepted}")
    return codes, names


def _tenants(table: _Table) -> tuple[Counts, tuple[str, ...]]:
    if "tenant" not in table.columns:
        return np.zeros(table.count, dtype=np.int64), ("",)
    return _labels(table, "tenant")


def _labels(table: _Table, kind: str) -> tuple[Counts, tuple[str, ...]]:
    values = table.columns[kind]
    return _codes(["" if value is None else str(value).strip() for value in values])


def _sessions(table: _Table) -> Counts:
    """Numbers from 0 on, in the order in which sessions begin in the file; -1 where the field is empty."""
    if "session" not in table.columns:
        return np.full(table.count, -1, dtype=np.int64)
    codes, names = _labels(table, "session")
    if "" not in names:
        return codes
    none = names.index("")
    return np.where(codes == none, -1, codes - (codes > none))


def _with_hashes(table: _Table, trace: Trace, block_tokens: int) -> Trace:
    chains = table.columns["hashes"]
    if set(map(type, chains)) != {list} or not _is_plain(chains):
        chains = [_chain(table, row, value) for row, value in enumerate(chains)]
    counts = np.fromiter(map(len, chains), dtype=np.int64, count=len(chains))
    most = -(-trace.input_tokens // block_tokens)
    if (counts > most).any():
        row = int(np.argmax(counts > most))
        problem = (
            f"{table.names['hashes']} has {counts[row]} hashes for a prompt of {trace.input_tokens[row]} tokens, accepted are {most[row]} at most, of "
            f"{block_tokens} tokens each; --block-tokens says how many"
        )
        raise table.broken(row, problem)
    flat = list(itertools.chain.from_iterable(chains))
    if set(map(type, flat)) <= {int}:
        try:
            hashes = np.array(flat, dtype=np.int64)
        except OverflowError:
            hashes, _ = _codes(flat)
    else:
        hashes, _ = _codes(flat)
    return replace(
        trace, block_hashes=hashes, block_starts=starts_of(counts), block_tokens=block_tokens
    )


def _is_plain(chains: Column) -> bool:
    """Whether all lists are of whole numbers: then none has to be looked at."""
    return set(map(type, itertools.chain.from_iterable(chains))) <= {int}


def _chain(table: _Table, row: int, value: Any) -> list[int] | list[str]:  # noqa: ANN401 (whatever a file holds)
    """One prompt's hashes: a list, or a text of them between blanks, commas, semicolons, bars or in brackets."""
    if value is None:
        return []
    if isinstance(value, str):
        return value.strip().strip("[]").translate(_BETWEEN).split()
    if isinstance(value, list) and set(map(type, value)) in (set(), {int}, {str}):
        return value
    problem = f"{table.names['hashes']} is {value!r}, accepted is a list of whole numbers or texts"
    raise table.broken(row, problem)


_BETWEEN: Final = str.maketrans(dict.fromkeys(",;|", " "))
