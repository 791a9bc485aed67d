"""A run as a trace that https://ui.perfetto.dev opens: JSON of the Trace Event Format, written as it is made.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Google's "Trace Event Format"); of it, what Perfetto's importer
reads (https://perfetto.dev/docs/getting-started/other-formats): asynchronous slices `b` and `e`, counters `C`, instants `i`, metadata `M`, each with a category, without
which some readers stop. Times are microseconds. `make trace-readers` holds such files against readers of other people.

Process 1 is the run, with the requests that wait; then come pools, with their counters, and replicas, with the requests they have: `prefill` until the first
token, `decode` after it, `transfer` while a cache is on the way, `answer` where it comes in one piece. A request's slices are joined by a flow from
its first to its last. Faults are instants on all of the trace and on the replicas they hit, and slices while they last.
"""

import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np

from polypod.errors import FileError
from polypod.report.outcomes import TRANSFER, WHOLE, FaultSeen, Ints, Outcomes
from polypod.report.series import over_time

MOST_REQUESTS: Final = 100_000
"""More make a file that the page takes minutes to open."""

_RUN: Final = 1
_INTERVALS: Final = 1000
_COUNTED: Final = ("queue", "running", "kv_tokens", "tokens_per_s", "goodput_per_s", "watts", "pue")
_CATEGORY: Final = "polypod"
_ENCODER: Final = msgspec.json.Encoder()

Event = dict[str, Any]


def save_perfetto(outcomes: Outcomes, path: Path, most: int = MOST_REQUESTS) -> int:
    """Write the trace, compressed where the name ends in `.gz`; returns how many requests, the last to arrive, were left out.

    Raises `FileError` where it cannot be written.
    """
    try:
        with path.open("wb") as file:
            if path.suffix != ".gz":
                return write_perfetto(outcomes, file, most)
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                return write_perfetto(outcomes, packed, most)
    except OSError as error:
        raise FileError(path, f"cannot be written: {error.strerror}") from error


def write_perfetto(
    outcomes: Outcomes, file: BinaryIO | gzip.GzipFile, most: int = MOST_REQUESTS
) -> int:
    """The same into a file that is open."""
    file.write(b'{"displayTimeUnit":"ms","traceEvents":[')
    comma = b"\n"
    for event in _events(outcomes, most):
        file.write(comma + _ENCODER.encode(event))
        comma = b",\n"
    file.write(b"\n]}\n")
    return max(len(outcomes) - most, 0)


def _events(outcomes: Outcomes, most: int) -> Iterator[Event]:
    pools = {pool: _RUN + 1 + n for n, pool in enumerate(outcomes.pools)}
    first = _RUN + 1 + len(pools)
    yield from _named(_RUN, "run", 0)
    for pool, pid in pools.items():
        yield from _named(pid, f"pool {pool}", pid)
    for n, replica in enumerate(outcomes.replicas):
        yield from _named(first + n, f"{replica.name} ({replica.model})", first + n)
    yield from _counters(outcomes, pools)
    for fault in outcomes.faults:
        yield from _fault(fault, outcomes, first)
    yield from _requests(outcomes, most, first)


def _named(pid: int, name: str, order: int) -> Iterator[Event]:
    common = {"ph": "M", "cat": "__metadata", "pid": pid, "tid": 0}
    yield {**common, "name": "process_name", "args": {"name": name}}
    yield {**common, "name": "process_sort_index", "args": {"sort_index": order}}


def _us(at_s: float) -> float:
    return round(at_s * 1e6, 3)


def _counters(outcomes: Outcomes, pools: dict[str, int]) -> Iterator[Event]:
    length_s = outcomes.end_s - (outcomes.requests.arrival_s[0] if len(outcomes) else 0.0)
    if length_s <= 0:
        return
    series = over_time(outcomes, width_s=length_s / _INTERVALS)
    for curve in series.curves:
        if curve.name not in _COUNTED:
            continue
        pid = pools.get(curve.of, _RUN)
        name = curve.name if curve.of in pools or curve.of == "run" else f"{curve.of} {curve.name}"
        before = math.inf
        for at_s, value in zip(series.edges_s[:-1].tolist(), curve.values.tolist(), strict=True):
            if not math.isnan(value) and not math.isclose(value, before, rel_tol=1e-9):
                yield {"ph": "C", "cat": _CATEGORY, "pid": pid, "tid": 0, "name": name, "ts": _us(max(at_s, 0.0)), "args": {"value": value}}  # fmt: skip
                before = value


def _fault(fault: FaultSeen, outcomes: Outcomes, first: int) -> Iterator[Event]:
    name = f"{fault.what}: {fault.where}"
    pids = [first + n for n, one in enumerate(outcomes.replicas) if one.name in fault.replicas]
    until_s = min(outcomes.end_s if fault.over_s is None else fault.over_s, outcomes.end_s)
    args = {"id": fault.id, "noticed_s": fault.noticed_s, "repaired_s": fault.repaired_s}
    yield {"ph": "i", "s": "g", "cat": _CATEGORY, "pid": _RUN, "tid": 0, "name": name, "ts": _us(fault.at_s), "args": args}  # fmt: skip
    for pid in pids:
        yield {"ph": "i", "s": "p", "cat": _CATEGORY, "pid": pid, "tid": 0, "name": name, "ts": _us(fault.at_s)}  # fmt: skip
        yield from _slice(
            pid, "fault", f"fault-{fault.id}", (fault.at_s, max(until_s, fault.at_s)), {"what": name}
        )  # fmt: skip


def _slice(
    pid: int, name: str, identity: str, span_s: tuple[float, float], more: Event
) -> Iterator[Event]:
    common = {"cat": _CATEGORY, "id": identity, "pid": pid, "tid": 0, "name": name}
    flow: Event = {key: more.pop(key) for key in ("bind_id", "flow_in", "flow_out") if key in more}
    yield {"ph": "b", **common, "ts": _us(span_s[0]), **flow, "args": more}
    yield {"ph": "e", **common, "ts": _us(span_s[1])}


# ---- requests

_Piece = tuple[float, float, int, str]  # from, to, process, name


def _requests(outcomes: Outcomes, most: int, first: int) -> Iterator[Event]:
    stays, waits, requests = outcomes.stays, outcomes.waits, outcomes.requests
    stays_of, waits_of = _by_row(stays.row, len(outcomes)), _by_row(waits.row, len(outcomes))
    for row in range(min(most, len(outcomes))):
        pieces: list[_Piece] = [
            (float(waits.begin_s[w]), float(waits.end_s[w]), _RUN, "waiting") for w in waits_of(row)
        ]
        for stay in stays_of(row):
            pieces += _pieces(int(stay), float(requests.first_s[row]), outcomes, first)
        pieces.sort()
        args = {
            "request": int(requests.number[row]),
            "model": outcomes.models[requests.model[row]],
            "tenant": outcomes.tenants[requests.tenant[row]],
            "input_tokens": int(requests.input_tokens[row]),
            "output_tokens": int(requests.output_tokens[row]),
            "status": int(requests.status[row]),
        }
        for n, (begin_s, end_s, pid, name) in enumerate(pieces):
            flow: Event = {"bind_id": hex(row + 1)} if len(pieces) > 1 else {}
            flow |= {"flow_in": True} if flow and n else {}
            flow |= {"flow_out": True} if flow and n < len(pieces) - 1 else {}
            yield from _slice(pid, name, f"{row:x}.{n}", (begin_s, end_s), {**flow, **args})


def _by_row(rows: Ints, n: int) -> Any:  # noqa: ANN401 (a function from a row to indices)
    order = np.argsort(rows, kind="stable")
    starts = np.searchsorted(rows[order], np.arange(n + 1))
    return lambda row: order[starts[row] : starts[row + 1]].tolist()


def _pieces(stay: int, first_s: float, outcomes: Outcomes, first: int) -> list[_Piece]:
    """A whole request at a replica is two slices, around its first token."""
    stays = outcomes.stays
    begin_s, end_s = float(stays.begin_s[stay]), float(stays.end_s[stay])
    role, pid = int(stays.role[stay]), first + int(stays.replica[stay])
    if role == TRANSFER:
        return [(begin_s, end_s, pid, "transfer")]
    if role != WHOLE:
        return [(begin_s, end_s, pid, "prefill" if role < TRANSFER else "decode")]
    if begin_s <= first_s <= end_s:
        return [(begin_s, first_s, pid, "prefill"), (first_s, end_s, pid, "decode")]
    is_done = stays.ending[stay] >= 0 and outcomes.endings[stays.ending[stay]] == "finished"
    return [(begin_s, end_s, pid, "answer" if is_done else "prefill")]
