"""How well the simulator foretells the second half of a run, when its step times are calibrated on the first.

The record's requests are played on its own replicas, which go down and come back when they did; the router is told the step times that it was told, as the
warm-up corrected them, and corrects them on by what it sees. Each replica has two factors,

    step_s' = (decode, up to `slots` tokens; else prompt) * curve(tokens)
              + prompt * pair_s * pairs + decode * (kv_token_s * kv_tokens + sequence_s * sequences)

so that steps without a prompt are `decode` times as long as told, and those with one `prompt` times. They are fitted replica by replica to the first half's
requests, handed to it when they were: TTFT from then on and TPOT, simulated beside measured, request by request. The second half, in the order
of arrival, is what is judged: nothing of it is in the fit but when and for what its requests came.

Judged are requests that finished in both, were streamed (another has no first token) and asked for no replica by name. A quantile *holds* where it is off by
15 % of the measured one at most, or by no more than a second live run with the same arrivals is. The distance is Wasserstein's, the mean difference of
the sorted times, as a part of the measured mean; it holds by the same rule. Factors that are fitted on the second
half are told beside: what changed from one to the other, and no simulation can know.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from polypod import units
from polypod.cost.steptime import StepTime
from polypod.engine.native.build import compiler
from polypod.errors import FileError, InputError
from polypod.policy.corrections import model_step_s
from polypod.policy.events import ReplicaDown, ReplicaUp
from polypod.policy.router import slots_of
from polypod.report.fold import fold, read_outcomes
from polypod.report.outcomes import Bools, Floats, Ints, Outcomes
from polypod.report.recorded import Recorded, check_whole, read_recorded
from polypod.report.tables import table
from polypod.simulate.compiled import play_compiled
from polypod.simulate.run import Run, play
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.trace import arrivals

QUANTILES: Final = (0.1, 0.25, 0.5, 0.75, 0.9)
FLOOR: Final = 0.15
"""Of what was measured, how much the simulation may be off however alike two live runs are."""

ROUNDS: Final = 10
FEWEST: Final = 5
"""Requests of a replica that factors rest on; one with less keeps what it was told."""

_STEPS: Final = (1.3, 1.1, 1.03, 1.01, 1.003)
_LEAST_GAIN: Final = 1e-3  # of the distance: less ends the search
_WAYS: Final = (
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (1, 1),
    (-1, -1),
    (1, -1),
    (-1, 1),
)  # prompts, decode steps
_NO_LIMIT_S: Final = 1e9
_LEAST_HALF: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Measured over predicted of one replica; above 1 is slower."""

    prompt_ratio: float = 1.0
    decode_ratio: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantile of one metric, or its distance, which has no seconds."""

    metric: str  # ttft or tpot
    what: str  # p50, or distance
    measured_s: float | None
    simulated_s: float | None
    beside_s: float | None
    off_fraction: float  # of the measured time, by how much the simulated one is beside it; below 0 is too fast
    spread_fraction: float | None  # the same of the second live run

    @property
    def band_fraction(self) -> float:
        """By how much it may be off, up or down."""
        return max(FLOOR, abs(self.spread_fraction or 0.0))

    @property
    def holds(self) -> bool:
        return abs(self.off_fraction) <= self.band_fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The second half, simulated and measured."""

    first: int  # requests that the factors were fitted on
    second: int  # requests that were judged
    factors: dict[str, Factors]
    later: dict[str, Factors]  # fitted on the second half: what changed in between
    rows: tuple[Row, ...]


def judge(path: Path, beside: Path | None = None) -> Judged:
    """Fit on the first half of a record, judge on the second. Raises `InputError` for one that is too short, a sample, or has other requests than `beside`."""
    recorded, measured = _read(path)
    first, second = _halves(recorded, measured)
    other = None if beside is None else _beside(beside, recorded)
    factors, later = (fitted(recorded, measured, half) for half in (first, second))
    runs = [measured, played(recorded, factors), *([] if other is None else [other])]
    return Judged(
        first=int(first.sum()),
        second=int(second.sum()),
        factors=factors,
        later=later,
        rows=tuple(row for metric in ("ttft", "tpot") for row in _rows(metric, runs, second)),
    )


def fitted(recorded: Recorded, measured: Outcomes, these: Bools) -> dict[str, Factors]:
    """Factors by replica with which these requests [N] take as long as measured. Raises `InputError` for replicas of one phase."""
    found = {}
    for up in _first_ups(recorded):
        if up.role != "both":
            msg = f"{up.replica} is of {up.role} alone, and what is calibrated are replicas that do both"
            raise InputError(msg)
        alone = _alone(up, recorded, measured, these)
        found[up.replica] = Factors() if len(alone.row) < FEWEST else _Fit(alone).factors
    return found


def played(recorded: Recorded, factors: Mapping[str, Factors]) -> Outcomes:
    """The record's requests on its own replicas, at these factors."""
    ups = _first_ups(recorded)
    scenario = Scenario(
        replicas=tuple(_as_told(recorded, up) for up in ups),
        step_times={up.replica: _step_time(up, factors.get(up.replica, Factors())) for up in ups},
        settings=recorded.header.policy,
        trace=arrivals(recorded.trace),
        seed=recorded.header.seed or 0,
        faults=tuple(_faults(recorded)),
        plan=recorded.header.plan,
    )
    return fold(_play(scenario).lines)


def _play(scenario: Scenario) -> Run:
    return play(scenario) if compiler() is None else play_compiled(scenario)


def factored(step: StepTime, factors: Factors, slots: int) -> StepTime:
    """The step time at these factors; decode steps have up to `slots` tokens on a rank.

    >>> step = StepTime(tokens=(1, 8, 108), seconds=(1.0, 2.0, 12.0), kv_token_s=0.1, pair_s=0.01)
    >>> slower = factored(step, Factors(prompt_ratio=3.0, decode_ratio=2.0), 8)
    >>> slower.curve_s(8), slower.curve_s(108), slower.kv_token_s, slower.pair_s  # 2 * 2; 3 * 12
    (4.0, 36.0, 0.2, 0.03)
    """
    knots = sorted({*step.tokens, float(slots), slots + 1.0})
    seconds = [
        (factors.decode_ratio if tokens <= slots else factors.prompt_ratio) * step.curve_s(tokens)
        for tokens in knots
    ]
    return msgspec.structs.replace(
        step,
        tokens=tuple(knots),
        seconds=tuple(seconds),
        kv_token_s=factors.decode_ratio * step.kv_token_s,
        sequence_s=factors.decode_ratio * step.sequence_s,
        pair_s=factors.prompt_ratio * step.pair_s,
    )


# ---- what is read


def _read(path: Path) -> tuple[Recorded, Outcomes]:
    recorded = read_recorded(path)
    check_whole(recorded, "record the run whole")
    return recorded, read_outcomes(path)


def _first_ups(recorded: Recorded) -> list[ReplicaUp]:
    ups: dict[str, ReplicaUp] = {}
    for change in recorded.changes:
        if isinstance(change, ReplicaUp):
            ups.setdefault(change.replica, change)
    return list(ups.values())


def _step_time(up: ReplicaUp, factors: Factors) -> StepTime:
    return factored(up.step_time, factors, max(slots_of(up) // up.step_time.data_ranks, 1))


def _as_told(recorded: Recorded, up: ReplicaUp) -> ReplicaUp:
    """From second 0 on, with what its warm-up measured in the place of what was predicted: so the live policy had corrected it."""
    ratios = {"prompt_ratio": 1.0, "decode_ratio": 1.0}
    for seen in recorded.warm_ups:
        if (seen.replica, seen.epoch) == (up.replica, up.epoch):
            ratios["prompt_ratio" if seen.prompt_tokens else "decode_ratio"] = seen.step_s / model_step_s(up.step_time, seen)  # fmt: skip
    told = _step_time(up, Factors(**ratios))
    return msgspec.structs.replace(up, at_s=0.0, epoch=1, step_time=told)


def _faults(recorded: Recorded) -> list[Fault]:
    """Downs and ups after the first request, at the times they had; what was not up by then is down at 0."""
    seen: set[str] = set()
    faults = []
    for change in recorded.changes:
        at_s = change.at_s - recorded.begin_s
        if isinstance(change, ReplicaUp) and change.replica not in seen:
            seen.add(change.replica)
            if at_s <= 0:
                continue
            faults.append(Fault(at_s=0.0, replica=change.replica, what="down", reason="not yet up"))
        if isinstance(change, ReplicaDown):
            fault = Fault(at_s=max(at_s, 0.0), replica=change.replica, what="down", back_in_s=_back_in_s(change, at_s), reason=change.reason)  # fmt: skip
        else:
            fault = Fault(at_s=max(at_s, 0.0), replica=change.replica, what="up")
        faults.append(fault)
    return faults


def _back_in_s(down: ReplicaDown, at_s: float) -> float | None:
    """As promised, seen from second 0 where that was before it: one overdue by then is expected in as much again."""
    return None if down.back_in_s is None else abs(down.back_in_s + min(at_s, 0.0))


def _halves(recorded: Recorded, measured: Outcomes) -> tuple[Bools, Bools]:
    """Requests [N] of the first and of the second half that can be judged."""
    n = len(measured)
    may = measured.finished & recorded.is_streamed & ~recorded.is_pinned & ~recorded.is_drawn
    is_first = np.arange(n) < n // 2
    first, second = may & is_first, may & ~is_first
    if min(first.sum(), second.sum()) < _LEAST_HALF:
        msg = (
            f"{recorded.trace.name} has {int(first.sum())} streamed requests that finished in its first half and {int(second.sum())} in its second; "
            f"{_LEAST_HALF} in each are needed"
        )
        raise InputError(msg)
    return first, second


def _beside(path: Path, recorded: Recorded) -> Outcomes:
    other, outcomes = _read(path)
    same = len(other.trace) == len(recorded.trace) and np.array_equal(
        other.trace.max_output_tokens, recorded.trace.max_output_tokens
    )
    if not same:
        raise FileError(path, f"does not have the same requests as {recorded.trace.name}: {len(other.trace)} and {len(recorded.trace)}, or other limits on their answers")  # fmt: skip
    return outcomes


# ---- the fit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Alone:
    """One replica with the requests that it served, K of them, as they were handed to it."""

    up: ReplicaUp
    scenario: Scenario
    row: Ints
    ttft_s: Floats  # measured, from its place on
    tpot_s: Floats


def _alone(up: ReplicaUp, recorded: Recorded, measured: Outcomes, these: Bools) -> _Alone:
    requests = measured.requests
    number = [one.name for one in measured.replicas].index(up.replica)
    row = np.flatnonzero(these & (requests.decode_replica == number))
    row = row[np.argsort(requests.placed_s[row], kind="stable")]
    asked = arrivals(recorded.trace)
    policy = msgspec.structs.replace(recorded.header.policy, queue_requests=len(measured), queue_wait_s=_NO_LIMIT_S)  # fmt: skip
    scenario = Scenario(
        replicas=(msgspec.structs.replace(up, at_s=0.0, epoch=1),),
        settings=policy,
        trace=tuple(
            replace(asked[n], at_s=float(requests.placed_s[n]) - recorded.begin_s)
            for n in row.tolist()
        ),
        seed=recorded.header.seed or 0,
    )
    return _Alone(
        up=up,
        scenario=scenario,
        row=row,
        ttft_s=(requests.first_s - requests.placed_s)[row],
        tpot_s=measured.tpot_s[row],
    )


class _Fit:
    """Looks for the factors of one replica: by the ratio of medians, then up and down in ever smaller steps."""

    def __init__(self, alone: _Alone) -> None:
        self._alone = alone
        self._off = math.inf
        self._try_out(Factors())
        for _ in range(ROUNDS):
            before = self.factors
            ratios = [float(np.exp(np.nanmedian(off))) for off in self._offs]
            self._try_out(
                Factors(
                    prompt_ratio=before.prompt_ratio * ratios[0],
                    decode_ratio=before.decode_ratio * ratios[1],
                )
            )
            if self.factors is before:
                break
        for step in _STEPS:
            while any([self._turn(*way, step) for way in _WAYS]):  # noqa: C419 (all of them, every time)
                pass

    def _turn(self, prompt: int, decode: int, step: float) -> bool:
        return self._try_out(
            Factors(
                prompt_ratio=self.factors.prompt_ratio * step**prompt,
                decode_ratio=self.factors.decode_ratio * step**decode,
            )
        )

    def _try_out(self, factors: Factors) -> bool:
        """Play with these, and keep them where they come nearer: less in the mean of |log(measured / simulated)|, request by request."""
        alone = self._alone
        scenario = replace(
            alone.scenario, step_times={alone.up.replica: _step_time(alone.up, factors)}
        )
        simulated = fold(_play(scenario).lines)
        pairs = ((alone.ttft_s, simulated.ttft_s), (alone.tpot_s, simulated.tpot_s))
        offs = [np.log(measured / other) for measured, other in pairs]
        off = sum(float(np.nanmean(np.abs(one))) for one in offs)
        is_nearer = off < self._off * (1 - _LEAST_GAIN)
        if is_nearer:
            self._off, self._offs, self.factors = off, offs, factors
        return is_nearer


def _values(metric: str, run: Outcomes) -> Floats:
    return run.ttft_s if metric == "ttft" else run.tpot_s


# ---- what is judged


def _rows(metric: str, runs: Sequence[Outcomes], these: Bools) -> list[Row]:
    """Of the measured run, the simulated one and, where it is there, the second live run."""
    known = these & np.all([np.isfinite(_values(metric, run)) for run in runs], axis=0)
    seen = [_values(metric, run)[known] for run in runs]
    rows = []
    for at in QUANTILES:
        values_s = [float(np.quantile(its, at)) for its in seen]
        offs = [value_s / values_s[0] - 1 for value_s in values_s]
        rows.append(_row(metric, f"p{100 * at:g}", offs, values_s))
    rows.append(_row(metric, "distance", [_wasserstein(seen[0], its) for its in seen]))
    return rows


def _row(metric: str, what: str, offs: Sequence[float], values_s: Sequence[float] = ()) -> Row:
    times_s: list[float | None] = [*values_s, *[None] * (3 - len(values_s))]
    return Row(
        metric=metric,
        what=what,
        measured_s=times_s[0],
        simulated_s=times_s[1],
        beside_s=times_s[2],
        off_fraction=offs[1],
        spread_fraction=offs[2] if len(offs) > 2 else None,
    )


def _wasserstein(one: Floats, other: Floats) -> float:
    """Mean difference of as many sorted values, as a part of the mean of the first.

    >>> _wasserstein(np.array([1.0, 3.0]), np.array([4.0, 1.0]))
    0.25
    """
    return float(np.abs(np.sort(one) - np.sort(other)).mean() / one.mean())


# ---- shown


def judged_text(found: Judged) -> str:
    """The factors, and the table of quantiles; at most 80 columns."""
    lines = [f"calibrated on {found.first} requests of the first half, judged on {found.second} of the second"]  # fmt: skip
    lines += ["times as told of steps with a prompt / without; the same of the second half:"]  # fmt: skip
    for name, factors in found.factors.items():
        lines.append(f"  {name}: {_factors(factors)}; {_factors(found.later[name])}")
    header = ["", "", "measured", "simulated", "beside", "off", "may be", ""]
    lines += ["", table(header, [_cells(row) for row in found.rows], right=(2, 3, 4, 5, 6))]
    held = sum(row.holds for row in found.rows)
    lines += ["", f"{held} of {len(found.rows)} hold"]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    times = [_time(value_s) for value_s in (row.measured_s, row.simulated_s, row.beside_s)]
    if row.spread_fraction is not None and row.what == "distance":
        times[2] = f"{100 * row.spread_fraction:.0f} %"
    off, band = f"{100 * row.off_fraction:+.0f} %", f"{100 * row.band_fraction:.0f} %"
    return [row.metric.upper(), row.what, *times, off, band, "holds" if row.holds else "off"]


def _factors(factors: Factors) -> str:
    return f"{factors.prompt_ratio:.3g} / {factors.decode_ratio:.3g}"


def _time(value_s: float | None) -> str:
    return "" if value_s is None else units.show(value_s, "s")


def judged_json(found: Judged) -> dict[str, Any]:
    raw: dict[str, Any] = msgspec.to_builtins(found)
    for row, entry in zip(found.rows, raw["rows"], strict=True):
        entry |= {"band_fraction": row.band_fraction, "holds": row.holds}
    return raw
