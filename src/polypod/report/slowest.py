"""The slowest requests of a run, step by step, beside the median request of the same model.

The time of a request is all in five stages, which add up to it:

    waited     it had no place
    lost       at replicas, in attempts that came to nothing
    prefill    at a replica, until the first token; or until its prompt was computed, where another decodes it
    transfer   its cache was on the way
    decode     from then on; an answer in one piece has all its time at the replica here

A request is slow by its `e2e` (to its end, however it ended), its `ttft` or its `tpot`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
import numpy as np

from polypod import units
from polypod.errors import UnknownNameError
from polypod.report.outcomes import (
    DECODE,
    FINISHED,
    GONE,
    OPEN,
    PREFILL,
    ROLES,
    TRANSFER,
    WHOLE,
    Bools,
    FaultSeen,
    Floats,
    Ints,
    Outcomes,
    index_of,
)
from polypod.report.tables import WIDTH

By = Literal["e2e", "ttft", "tpot"]
MOST: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Where the time of a request went."""

    waited_s: float
    lost_s: float
    prefill_s: float
    transfer_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        return self.waited_s + self.lost_s + self.prefill_s + self.transfer_s + self.decode_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One thing that happened to a request."""

    at_s: float
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One slow request."""

    request: int
    model: str
    tenant: str
    outcome: str
    input_tokens: int
    output_tokens: int
    by_s: float  # what it was ranked by
    stages: Stages
    median: Stages | None  # of each stage, over the model's requests that finished
    median_by_s: float | None
    moments: tuple[Moment, ...]
    faults: tuple[str, ...]  # that were under way and at replicas of its model


@dataclass(frozen=True, slots=True, eq=False)
class _Columns:
    """Stages of all requests [N]."""

    waited_s: Floats
    lost_s: Floats
    prefill_s: Floats
    transfer_s: Floats
    decode_s: Floats

    def at(self, take: Callable[[Floats], float]) -> Stages:
        return Stages(
            waited_s=take(self.waited_s),
            lost_s=take(self.lost_s),
            prefill_s=take(self.prefill_s),
            transfer_s=take(self.transfer_s),
            decode_s=take(self.decode_s),
        )


def slowest(outcomes: Outcomes, most: int = MOST, by: By = "e2e") -> tuple[Explained, ...]:
    """The slowest requests, the very slowest first. Raises `UnknownNameError` for another measure than e2e, ttft and tpot."""
    values_s = _ranked_by(outcomes, by)
    known = np.flatnonzero(np.isfinite(values_s))
    rows = known[np.argsort(-values_s[known], kind="stable")][:most]
    columns = _columns(outcomes)
    return tuple(_explained(int(row), outcomes, columns, values_s) for row in rows)


def stages_of(outcomes: Outcomes, row: int) -> Stages:
    """Where one request's time went."""
    return _columns(outcomes).at(lambda column: float(column[row]))


def _ranked_by(outcomes: Outcomes, by: By) -> Floats:
    requests = outcomes.requests
    if by == "e2e":
        return np.where(np.isfinite(requests.end_s), requests.end_s, outcomes.end_s) - requests.arrival_s  # fmt: skip
    known = {"ttft": outcomes.ttft_s, "tpot": outcomes.tpot_s}
    if by not in known:
        kind = "measure of slowness"
        raise UnknownNameError(kind, by, ["e2e", *known])
    return known[by]


def _columns(outcomes: Outcomes) -> _Columns:
    stays, waits, n = outcomes.stays, outcomes.waits, len(outcomes)
    stayed_s = stays.end_s - stays.begin_s
    first_s = outcomes.requests.first_s[stays.row]
    until_first_s = np.clip(first_s - stays.begin_s, 0.0, stayed_s)
    until_first_s[np.isnan(first_s)] = 0.0
    lost = stays.attempt < outcomes.requests.attempts[stays.row]
    whole = ~lost & (stays.role == WHOLE)

    def total(these: Bools, lengths_s: Floats) -> Floats:
        return _summed(stays.row[these], lengths_s[these], n)

    return _Columns(
        waited_s=_summed(waits.row, waits.end_s - waits.begin_s, n),
        lost_s=total(lost, stayed_s),
        prefill_s=total(whole, until_first_s) + total(~lost & (stays.role == PREFILL), stayed_s),
        transfer_s=total(~lost & (stays.role == TRANSFER), stayed_s),
        decode_s=total(whole, stayed_s - until_first_s)
        + total(~lost & (stays.role == DECODE), stayed_s),
    )


def _summed(row: Ints, lengths_s: Floats, n: int) -> Floats:
    return np.bincount(row, weights=lengths_s, minlength=n).astype(np.float64)


def _explained(row: int, outcomes: Outcomes, columns: _Columns, values_s: Floats) -> Explained:
    requests = outcomes.requests
    model = int(requests.model[row])
    alike = outcomes.finished & (requests.model == model)
    return Explained(
        request=int(requests.number[row]),
        model=outcomes.models[model],
        tenant=outcomes.tenants[int(requests.tenant[row])],
        outcome=_outcome(row, outcomes),
        input_tokens=int(requests.input_tokens[row]),
        output_tokens=int(requests.output_tokens[row]),
        by_s=float(values_s[row]),
        stages=columns.at(lambda column: float(column[row])),
        median=columns.at(lambda column: float(np.median(column[alike]))) if alike.any() else None,
        median_by_s=float(np.nanmedian(values_s[alike])) if alike.any() else None,
        moments=_moments(row, outcomes),
        faults=tuple(_fault(fault) for fault in _under_way(row, outcomes)),
    )


def _outcome(row: int, outcomes: Outcomes) -> str:
    status, code = int(outcomes.requests.status[row]), int(outcomes.requests.code[row])
    words = {
        FINISHED: "finished",
        GONE: "client left",
        OPEN: "open at the end of the record",
    }
    if code >= 0:
        return f"{status} {outcomes.codes[code]}"
    return words.get(status, str(status))


# ---- step by step


def _moments(row: int, outcomes: Outcomes) -> tuple[Moment, ...]:
    requests, stays, waits = outcomes.requests, outcomes.stays, outcomes.waits
    arrival_s, first_s = float(requests.arrival_s[row]), float(requests.first_s[row])
    found = [(arrival_s, 0, "arrived")]
    found += [
        (float(waits.begin_s[w]), 2, f"waits {units.show(float(waits.end_s[w] - waits.begin_s[w]), 's')}, {_why(int(w), outcomes)}")
        for w in np.flatnonzero(waits.row == row)
    ]  # fmt: skip
    for s in np.flatnonzero(stays.row == row):
        found.append((float(stays.begin_s[s]), 3 + int(stays.role[s]), _placed(int(s), outcomes)))
        ending = int(stays.ending[s])
        name = outcomes.endings[ending] if ending >= 0 else "the record ends"
        if name not in ("finished", "arrived", "rejected", "gone"):
            found.append((float(stays.end_s[s]), 1, name))
    if np.isfinite(first_s):
        found.append((first_s, 7, "first token"))
    if np.isfinite(requests.end_s[row]):
        found.append((float(requests.end_s[row]), 8, _outcome(row, outcomes)))
    return tuple(Moment(at_s=at_s, what=what) for at_s, _, what in sorted(found))


def _placed(stay: int, outcomes: Outcomes) -> str:
    stays = outcomes.stays
    name = outcomes.replicas[int(stays.replica[stay])].name
    role, attempt = ROLES[int(stays.role[stay])], int(stays.attempt[stay])
    what = {"whole": "dispatched", "prefill": "prefill", "transfer": "transfer of its cache", "decode": "decode"}[role]  # fmt: skip
    predicted_s = float(stays.predicted_first_token_s[stay])
    said = f", first token predicted in {units.show(predicted_s, 's')}" if np.isfinite(predicted_s) else ""  # fmt: skip
    again = f", attempt {attempt}" if attempt > 1 else ""
    return f"{what} to {name}{again}{said}"


def _why(wait: int, outcomes: Outcomes) -> str:
    """Why a request that begins to wait then has no place: from what was up for what it waits for, and what was there."""
    requests, stays, waits = outcomes.requests, outcomes.stays, outcomes.waits
    at_s, row = float(waits.begin_s[wait]), int(waits.row[wait])
    model = outcomes.models[int(requests.model[row])]
    for_decode = _for_decode(outcomes)
    wanted = "decode" if for_decode[wait] else "prefill"
    up = [
        n
        for n, one in enumerate(outcomes.replicas)
        if one.model == model
        and one.role in (wanted, "both")
        and any(since_s <= at_s < until_s for since_s, until_s in one.up)
    ]
    if not up:
        return f"no replica of {model} is up"
    there = (stays.begin_s <= at_s) & (stays.end_s > at_s) & (stays.role != TRANSFER)
    running = int(np.sum(there & np.isin(stays.replica, up)))
    slots = sum(outcomes.replicas[n].slots for n in up)
    ahead = (waits.begin_s <= at_s) & (waits.end_s > at_s) & (waits.row != row)
    ahead &= for_decode == for_decode[wait]
    waiting = int(np.sum(ahead & (requests.model[waits.row] == requests.model[row])))
    taken = f"{running:,} of {slots:,} slots on {len(up):,} replicas, {waiting:,} waiting"
    return f"no room: {taken}" if running >= slots else f"held back: {taken}"


def _for_decode(outcomes: Outcomes) -> Bools:
    """Whether each wait [W] is for a place to decode: it began when the request's prompt was computed."""
    stays, waits = outcomes.stays, outcomes.waits
    done = (stays.role == PREFILL) & (stays.ending == index_of(outcomes.endings, "prefilled"))
    computed = stays.row[done] + 1j * stays.end_s[done]  # pairs, to be compared as one
    return np.isin(waits.row + 1j * waits.begin_s, computed)


def _under_way(row: int, outcomes: Outcomes) -> list[FaultSeen]:
    """Faults at replicas of its model, from when they happened until repaired, that met the request."""
    requests = outcomes.requests
    model = outcomes.models[int(requests.model[row])]
    ours = {one.name for one in outcomes.replicas if one.model == model}
    end_s = float(requests.end_s[row]) if np.isfinite(requests.end_s[row]) else outcomes.end_s
    return [
        fault
        for fault in outcomes.faults
        if ours & set(fault.replicas)
        and fault.at_s <= end_s
        and (fault.over_s is None or fault.over_s >= requests.arrival_s[row])
    ]


def _fault(fault: FaultSeen) -> str:
    until = "on" if fault.over_s is None else f"until {units.show(fault.over_s, 's')}"  # fmt: skip
    return f"{fault.id} ({fault.what} at {fault.where}), from {units.show(fault.at_s, 's')} {until}"


# ---- shown


def slowest_text(found: Sequence[Explained], by: By = "e2e") -> str:
    """Each request as a paragraph, times since its arrival."""
    if not found:
        return "no request of this record has that measure"
    return "\n\n".join(
        "\n".join(_clip(line) for line in _paragraph(n, one, by))
        for n, one in enumerate(found, start=1)
    )


def _clip(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def _paragraph(n: int, one: Explained, by: By) -> list[str]:
    usual = ""
    if one.median_by_s:
        times = units.significant(one.by_s / one.median_by_s)
        usual = f", {times} times the median of {units.show(one.median_by_s, 's')}"
    tenant = f" of {one.tenant}" if one.tenant else ""
    lines = [
        f"{n}. request {one.request}{tenant}: {by.upper()} {units.show(one.by_s, 's')}{usual}",
        f"   {one.model}, {one.input_tokens:,} tokens in, {one.output_tokens:,} out, {one.outcome}",
    ]
    begin_s = one.moments[0].at_s
    lines += [
        f"   {units.show(begin_s, 's') if k == 0 else '+' + units.show(moment.at_s - begin_s, 's'):>9}  {moment.what}"
        for k, moment in enumerate(one.moments)
    ]
    lines.append(f"   {'this':>9}  {_stages(one.stages)}")
    if one.median is not None:
        lines.append(f"   {'median':>9}  {_stages(one.median)}")
    lines += [f"   {'fault':>9}  {fault}" for fault in one.faults[:3]]
    return lines


def _stages(stages: Stages) -> str:
    names = ("waited", "lost", "prefill", "transfer", "decode")
    parts = [(name, getattr(stages, f"{name}_s")) for name in names]
    return ", ".join(
        f"{name} {units.show(value, 's')}"
        for name, value in parts
        if value > 0 or name in ("waited", "prefill", "decode")
    )


def slowest_json(found: Sequence[Explained]) -> list[dict[str, Any]]:
    """The same as objects."""
    return [msgspec.to_builtins(one) for one in found]
