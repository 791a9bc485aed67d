"""Runs that were played apart as one: the gateways of a fleet.

Requests stand in the order of their arrival, the lower gateway first at one moment, and are numbered anew. Measured series are added up at every time that
one of them was measured at; a gateway that ended before others keeps its last replicas and capacity, and the least watts that it drew, until they end. The whole ends with its last request, though a
gateway whose repairs last longer goes on alone. Over gateways `pue` is weighted by
the watts inside, `slowdown` is the most.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from polypod.report.fold import read_outcomes
from polypod.report.outcomes import (
    FaultSeen,
    Floats,
    Ints,
    Outcomes,
    Replica,
    Requests,
    Series,
    Stays,
    Waits,
)
from polypod.report.series import COUNTS

HELD: Final = frozenset({"up", "kv_capacity_tokens"})
DRAWN: Final = frozenset({"watts", "site_watts"})
"""What does not end with the last request."""

_Columns = Requests | Stays | Waits


def merged(parts: Sequence[Outcomes], end_s: float | None = None) -> Outcomes:
    """The whole of which these are the gateways, in their order; at least one. `end_s` is when its last request ended, where the parts do not have them all."""
    first = parts[0]
    header = first.header
    if header is not None:
        header = msgspec.structs.replace(header, gateway=None, gateways=None)
    if len(parts) == 1:
        return replace(first, header=header)
    end_s = max(map(_end_s, parts)) if end_s is None else end_s
    parts = [_until(part, end_s) for part in parts]
    joined = _Joined(parts)
    return Outcomes(
        header=header,
        models=joined.models.names,
        tenants=joined.tenants.names,
        codes=joined.codes.names,
        endings=joined.endings.names,
        replicas=joined.replicas(end_s),
        requests=joined.requests(),
        stays=joined.stays(),
        waits=joined.waits(),
        faults=_faults(parts),
        series=_series(parts),
        begin_s=min(part.begin_s for part in parts),
        end_s=end_s,
        retries=sum(part.retries for part in parts),
        is_whole=all(part.is_whole for part in parts),
        note=next((part.note for part in parts if part.note), None),
    )


def _end_s(part: Outcomes) -> float:
    """When the last request of a gateway ended; of one that was left in between, when it was."""
    ends_s = part.requests.end_s[np.isfinite(part.requests.end_s)]
    return float(ends_s.max()) if part.is_whole and len(ends_s) else part.end_s


def _until(part: Outcomes, end_s: float) -> Outcomes:
    """Without what comes after that time; of each series the first sample after it stays, which is of the time up to it."""
    if part.end_s <= end_s:
        return part
    series = {}
    for key, one in part.series.items():
        kept = int(np.searchsorted(one.at_s, end_s)) + 1
        series[key] = Series(at_s=one.at_s[:kept], value=one.value[:kept])
    replicas = tuple(
        replace(one, up=tuple((since_s, min(to_s, end_s)) for since_s, to_s in one.up if since_s < end_s))
        for one in part.replicas
    )  # fmt: skip
    return replace(part, series=series, replicas=replicas, end_s=end_s)


class _Names:
    """Names of all parts, each once, and where each part's own are among them."""

    def __init__(self, parts: Iterable[Sequence[str]]) -> None:
        index: dict[str, int] = {}
        self._places = [
            np.array([index.setdefault(name, len(index)) for name in names] + [-1], dtype=np.int64)
            for names in parts
        ]
        self.names = tuple(index)

    def of(self, part: int, values: Ints) -> Ints:
        """A part's numbers as those of the whole; -1 stays."""
        return np.asarray(self._places[part][values])


class _Joined:
    """The columns of all parts under common numbers."""

    def __init__(self, parts: Sequence[Outcomes]) -> None:
        self._parts = parts
        self.models = _Names(part.models for part in parts)
        self.tenants = _Names(part.tenants for part in parts)
        self.codes = _Names(part.codes for part in parts)
        self.endings = _Names(part.endings for part in parts)
        pools = tuple(dict.fromkeys(pool for part in parts for pool in part.pools))
        by_pool = sorted((one for part in parts for one in part.replicas), key=lambda one: pools.index(one.pool))  # fmt: skip
        self._replicas = {one.name: one for one in by_pool}
        places = {name: place for place, name in enumerate(self._replicas)}
        self._replica_places = [
            np.array([*(places[one.name] for one in part.replicas), -1], dtype=np.int64)
            for part in parts
        ]
        arrival_s = np.concatenate([part.requests.arrival_s for part in parts])
        self._order = np.argsort(arrival_s, kind="stable")
        self._rows = np.empty_like(self._order)  # where each row of the parts one after another is
        self._rows[self._order] = np.arange(len(self._order))
        self._firsts = np.cumsum([0, *(len(part) for part in parts)])
        self._maps: dict[str, Callable[[int, Ints], Ints]] = {
            "model": self.models.of,
            "tenant": self.tenants.of,
            "code": self.codes.of,
            "ending": self.endings.of,
            "prefill_replica": self._replica,
            "decode_replica": self._replica,
            "replica": self._replica,
            "row": self._row,
        }

    def requests(self) -> Requests:
        found = self._columns([part.requests for part in self._parts])
        ordered = {name: column[self._order] for name, column in found.items()}
        return Requests(**ordered | {"number": np.arange(1, len(self._order) + 1)})

    def stays(self) -> Stays:
        return Stays(**self._columns([part.stays for part in self._parts]))

    def waits(self) -> Waits:
        return Waits(**self._columns([part.waits for part in self._parts]))

    def replicas(self, end_s: float) -> tuple[Replica, ...]:
        """A replica that was up when its gateway had ended all its requests is up until the whole ends."""
        ends_s = {one.name: part.end_s for part in self._parts if part.is_whole for one in part.replicas}  # fmt: skip
        return tuple(_up_until(one, ends_s.get(one.name), end_s) for one in self._replicas.values())

    def _replica(self, part: int, values: Ints) -> Ints:
        return np.asarray(self._replica_places[part][values])

    def _row(self, part: int, values: Ints) -> Ints:
        return np.asarray(self._rows[values + self._firsts[part]])

    def _columns(self, tables: Sequence[_Columns]) -> dict[str, Any]:
        found = {}
        for one in fields(tables[0]):
            columns = [getattr(table, one.name) for table in tables]
            again = self._maps.get(one.name)
            if again is not None:
                columns = [again(part, column) for part, column in enumerate(columns)]
            found[one.name] = np.concatenate(columns)
        return found


def _up_until(replica: Replica, ended_s: float | None, end_s: float) -> Replica:
    if ended_s is None or not replica.up or replica.up[-1][1] != ended_s:
        return replica
    *spans, (since_s, _) = replica.up
    return replace(replica, up=(*spans, (since_s, end_s)))


def _faults(parts: Sequence[Outcomes]) -> tuple[FaultSeen, ...]:
    """One that hit replicas of several parts once, with all of them."""
    found: dict[tuple[str, float, str], FaultSeen] = {}
    for part in parts:
        for fault in part.faults:
            key = (fault.id, fault.at_s, fault.where)
            known = found.get(key)
            found[key] = fault if known is None else replace(known, replicas=known.replicas + fault.replicas)  # fmt: skip
    return tuple(sorted(found.values(), key=lambda fault: fault.at_s))


# ---- series


def _series(parts: Sequence[Outcomes]) -> dict[tuple[str, str], Series]:
    keys = dict.fromkeys(key for part in parts for key in part.series)
    return {key: _summed(parts, *key) for key in keys}


def _summed(parts: Sequence[Outcomes], of: str, name: str) -> Series:
    """One series of all parts that have it."""
    having = [part.series for part in parts if (of, name) in part.series]
    own = [series[of, name] for series in having]
    if len(own) == 1:
        return own[0]
    at_s = np.unique(np.concatenate([one.at_s for one in own]))
    if name == "co2_kg":
        spans_s = np.diff(at_s, prepend=0.0)
        return Series(at_s=at_s, value=np.sum([_each_second(one, at_s) for one in own], axis=0) * spans_s)  # fmt: skip
    if name in COUNTS:
        return Series(at_s=at_s, value=_counted(own, at_s))
    then = np.array([_then(one, at_s, name) for one in own])
    if name == "pue":
        sites = [_then(series[of, "site_watts"], at_s, "pue") for series in having]
        is_on = then > 0
        inside = np.divide(sites, then, out=np.zeros_like(then), where=is_on)
        return Series(at_s=at_s, value=np.sum(sites, axis=0) / inside.sum(axis=0))
    if name in ("slowdown", "outside_celsius"):
        return Series(at_s=at_s, value=then.max(axis=0))
    return Series(at_s=at_s, value=then.sum(axis=0))


def _counted(own: Sequence[Series], at_s: Floats) -> Floats:
    """What came since the time before, which is kept where it was counted."""
    total = np.zeros(len(at_s))
    for one in own:
        np.add.at(total, np.searchsorted(at_s, one.at_s), one.value)
    return total


def _each_second(one: Series, at_s: Floats) -> Floats:
    """What came a second, in the time up to each of these; after its end as slowly as ever."""
    rate = one.value / np.diff(one.at_s, prepend=0.0)
    return _then(Series(at_s=one.at_s, value=rate), at_s, "watts")


def _then(one: Series, at_s: Floats, name: str) -> Floats:
    """The sample that each time belongs to, the first at or after it; after the last what stays of it."""
    which = np.searchsorted(one.at_s, at_s)
    last = len(one.value) - 1
    rest = one.value[-1] if name in HELD else one.value.min() if name in DRAWN else 0.0
    return np.where(which <= last, one.value[np.minimum(which, last)], rest)


# ---- from a folder


def read_run(path: Path) -> Outcomes:
    """A record file, the one in a run's folder, or those of all gateways in it as one. Raises `FileError` as `read_outcomes` does, and where one is missing."""
    if not path.is_dir() or (path / "record.jsonl").exists() or not gateway_record(path, 0).exists():  # fmt: skip
        return read_outcomes(path)
    first = read_outcomes(gateway_record(path, 0))
    count = 1 if first.header is None else first.header.gateways or 1
    return merged([first, *(read_outcomes(gateway_record(path, which)) for which in range(1, count))])  # fmt: skip


def gateway_record(folder: Path, which: int) -> Path:
    """Where the record of one gateway of a run is, from 0."""
    return folder / f"gateway-{which}" / "record.jsonl"
