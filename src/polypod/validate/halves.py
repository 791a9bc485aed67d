"""How well the simulator foretells the second half of a run, when its step times are calibrated on the first.

The record's requests are played on its own replicas, which go down and come back when they did. Each replica has two factors,

    step_s' = (decode, up to `slots` tokens; else prompt) * curve(tokens)
              + prompt * pair_s * pairs + decode * (kv_token_s * kv_tokens + sequence_s * sequences)

so that steps without a prompt are `decode` times as long as told, and those with one `prompt` times. They are fitted to TTFT and TPOT of the first
half's requests: by the ratio of medians, replica by replica, then one at a time, up and down, for as long as the distances become less. The second half, in the order
of arrival, is what is judged: nothing of it is in the fit but when and for what its requests came.

Judged are requests that finished in both, were streamed (another has no first token) and asked for no replica by name. A quantile *holds* where it is off by
15 % of the measured one at most, or by no more than a second live run with the same arrivals is. The distance is Wasserstein's, the mean difference of
the sorted times, as a part of the measured mean; it holds by the same rule.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from polypod import units
from polypod.cost.steptime import StepTime
from polypod.errors import FileError, InputError
from polypod.policy.events import ReplicaDown, ReplicaUp
from polypod.policy.router import slots_of
from polypod.report.fold import fold, read_outcomes
from polypod.report.outcomes import Bools, Floats, Ints, Outcomes
from polypod.report.recorded import Recorded, check_whole, read_recorded
from polypod.report.tables import table
from polypod.simulate.compiled import play_compiled
from polypod.simulate.native.build import compiler
from polypod.simulate.run import play
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.trace import arrivals

_GRID: Final = (np.arange(50) + 0.5) / 50

QUANTILES: Final = (0.1, 0.25, 0.5, 0.75, 0.9)
FLOOR: Final = 0.15
"""Of what was measured, how much the simulation may be off however alike two live runs are."""

ROUNDS: Final = 10
FEWEST: Final = 5
"""Requests of a replica from which a median says something."""

_STEPS: Final = (1.3, 1.1, 1.03)
_LEAST_GAIN: Final = 1e-3  # of the distance: less ends the search
_DAMPING: Final = 0.7
_MOST_STEP: Final = 2.0  # of a factor, in one round
_LEAST_HALF: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Measured over predicted of one replica; above 1 is slower."""

    prompt: float = 1.0
    decode: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantile of one metric, or its distance. `beside` is of the second live run."""

    metric: str  # ttft or tpot
    what: str  # p50, or distance
    measured: float  # seconds; of the distance 0
    simulated: float  # seconds; of the distance a part of the measured mean
    beside: float | None

    @property
    def off(self) -> float:
        """By how much of the measured value the simulated one is beside it; below 0 is too fast."""
        return self.simulated if self.what == "distance" else self.simulated / self.measured - 1

    @property
    def band(self) -> float:
        """By how much it may be off, up or down."""
        if self.beside is None:
            return FLOOR
        spread = self.beside if self.what == "distance" else self.beside / self.measured - 1
        return max(FLOOR, abs(spread))

    @property
    def holds(self) -> bool:
        return abs(self.off) <= self.band


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The second half, simulated and measured."""

    first: int  # requests that the factors were fitted on
    second: int  # requests that were judged
    factors: dict[str, Factors]
    rows: tuple[Row, ...]


def judge(path: Path, beside: Path | None = None) -> Judged:
    """Fit on the first half of a record, judge on the second. Raises `InputError` for one that is too short, a sample, or has other requests than `beside`."""
    recorded, measured = _read(path)
    first, second = _halves(recorded, measured)
    other = None if beside is None else _beside(beside, recorded)
    factors, simulated = fitted(recorded, measured, first)
    rows = [row for metric in ("ttft", "tpot") for row in _rows(metric, measured, simulated, other, second)]  # fmt: skip
    return Judged(
        first=int(first.sum()), second=int(second.sum()), factors=factors, rows=tuple(rows)
    )


def fitted(recorded: Recorded, measured: Outcomes, these: Bools) -> tuple[dict[str, Factors], Outcomes]:  # fmt: skip
    """Factors by replica with which these requests [N] take as long as measured, and the whole run played with them."""
    best = _Fit(recorded, measured, these, {up.replica: Factors() for up in _first_ups(recorded)})
    factors = best.factors
    for _ in range(ROUNDS):
        simulated = played(recorded, factors)
        factors = {name: _closer(factors[name], name, measured, simulated, these) for name in factors}  # fmt: skip
        best.try_out(factors)
    for step in _STEPS:
        while any(best.turn(name, what, step) for name in factors for what in ("prompt", "decode")):  # fmt: skip
            pass
    return best.factors, best.simulated


class _Fit:
    """The best factors so far."""

    def __init__(
        self, recorded: Recorded, measured: Outcomes, these: Bools, factors: dict[str, Factors]
    ) -> None:
        self._recorded, self._measured, self._these = recorded, measured, these
        self.off = math.inf
        self.try_out(factors)

    def try_out(self, factors: dict[str, Factors]) -> bool:
        """Play with these, and keep them where they come nearer."""
        simulated = played(self._recorded, factors)
        off = _off(self._measured, simulated, self._these)
        is_nearer = off < self.off * (1 - _LEAST_GAIN)
        if is_nearer:
            self.off, self.factors, self.simulated = off, factors, simulated
        return is_nearer

    def turn(self, name: str, what: str, step: float) -> bool:
        """One factor larger or smaller, where that comes nearer."""
        its = self.factors[name]
        return any(
            self.try_out(self.factors | {name: replace(its, **{what: getattr(its, what) * by})})
            for by in (step, 1 / step)
        )


def played(recorded: Recorded, factors: Mapping[str, Factors]) -> Outcomes:
    """The record's requests on its own replicas, at these factors."""
    ups = _first_ups(recorded)
    scenario = Scenario(
        replicas=tuple(_with_factors(up, factors.get(up.replica, Factors())) for up in ups),
        settings=recorded.header.policy,
        trace=arrivals(recorded.trace),
        seed=recorded.header.seed or 0,
        faults=tuple(_faults(recorded)),
        plan=recorded.header.plan,
    )
    run = play_compiled if compiler() is not None else play
    return fold(run(scenario).lines)


def factored(step: StepTime, factors: Factors, slots: int) -> StepTime:
    """The step time at these factors; decode steps have up to `slots` tokens on a rank.

    >>> step = StepTime(tokens=(1, 8, 108), seconds=(1.0, 2.0, 12.0), kv_token_s=0.1, pair_s=0.01)
    >>> slower = factored(step, Factors(prompt=3.0, decode=2.0), 8)
    >>> slower.curve_s(8), slower.curve_s(108), slower.kv_token_s, slower.pair_s  # 2 * 2; 3 * 12
    (4.0, 36.0, 0.2, 0.03)
    """
    knots = sorted({*step.tokens, float(slots), slots + 1.0})
    seconds = [
        (factors.decode if tokens <= slots else factors.prompt) * step.curve_s(tokens)
        for tokens in knots
    ]
    return msgspec.structs.replace(
        step,
        tokens=tuple(knots),
        seconds=tuple(seconds),
        kv_token_s=factors.decode * step.kv_token_s,
        sequence_s=factors.decode * step.sequence_s,
        pair_s=factors.prompt * step.pair_s,
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


def _with_factors(up: ReplicaUp, factors: Factors) -> ReplicaUp:
    ranks = up.step_time.data_ranks
    step = factored(up.step_time, factors, max(slots_of(up) // ranks, 1))
    return msgspec.structs.replace(up, at_s=0.0, epoch=1, step_time=step)


def _faults(recorded: Recorded) -> list[Fault]:
    """Downs and ups after the first request, at the times they had; what was not up by then is down at 0."""
    seen: set[str] = set()
    faults = []
    for change in recorded.changes:
        at_s = change.at_s - recorded.begin_s
        is_down = isinstance(change, ReplicaDown)
        if not is_down and change.replica not in seen:
            seen.add(change.replica)
            if at_s <= 0:
                continue
            faults.append(Fault(at_s=0.0, replica=change.replica, what="down", reason="not yet up"))
        reason = change.reason if isinstance(change, ReplicaDown) else "a fault"
        faults.append(Fault(at_s=max(at_s, 0.0), replica=change.replica, what="down" if is_down else "up", reason=reason))  # fmt: skip
    return faults


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


def _off(measured: Outcomes, simulated: Outcomes, these: Bools) -> float:
    """Distances of TTFT and of TPOT, over all and replica by replica, these weighed by their requests; requests that are too few to tell count as all of it."""
    return sum(
        _apart(_values(metric, measured)[these], _values(metric, simulated)[these])
        + _apart_by_replica(metric, measured, simulated, these)
        for metric in ("ttft", "tpot")
    )


def _apart_by_replica(metric: str, measured: Outcomes, simulated: Outcomes, these: Bools) -> float:
    pairs = [
        tuple(_served(metric, one.name, run, these) for run in (measured, simulated))
        for one in measured.replicas
    ]
    told = [(len(one), _apart(one, other)) for one, other in pairs if min(len(one), len(other)) >= FEWEST]  # fmt: skip
    everyone = sum(len(one) for one, _ in pairs)
    rest = everyone - sum(count for count, _ in told)
    return (sum(count * apart for count, apart in told) + rest) / everyone


def _apart(one: Floats, other: Floats) -> float:
    """Mean difference of quantiles, as a part of the mean of the first; they may be of different numbers."""
    seen = [np.quantile(its[np.isfinite(its)], _GRID) for its in (one, other)]
    return float(np.abs(seen[0] - seen[1]).mean() / seen[0].mean())


def _closer(factors: Factors, name: str, measured: Outcomes, simulated: Outcomes, these: Bools) -> Factors:  # fmt: skip
    """Factors one round on."""
    return Factors(
        prompt=factors.prompt * _ratio("ttft", name, measured, simulated, these),
        decode=factors.decode * _ratio("tpot", name, measured, simulated, these),
    )


def _ratio(metric: str, name: str, measured: Outcomes, simulated: Outcomes, these: Bools) -> float:
    """Measured over simulated median of the requests that the replica served, damped; 1 where these are too few."""
    one, other = (_served(metric, name, run, these) for run in (measured, simulated))
    if min(len(one), len(other)) < FEWEST:
        return 1.0
    ratio = float((np.median(one) / np.median(other)) ** _DAMPING)
    return min(max(ratio, 1 / _MOST_STEP), _MOST_STEP)


def _served(metric: str, name: str, run: Outcomes, these: Bools) -> Floats:
    where: Ints = run.requests.prefill_replica if metric == "ttft" else run.requests.decode_replica
    number = [one.name for one in run.replicas].index(name)
    values = _values(metric, run)
    return np.asarray(values[these & (where == number) & np.isfinite(values)])


def _values(metric: str, run: Outcomes) -> Floats:
    return run.ttft_s if metric == "ttft" else run.tpot_s


# ---- what is judged


def _rows(metric: str, measured: Outcomes, simulated: Outcomes, beside: Outcomes | None, these: Bools) -> list[Row]:  # fmt: skip
    runs = [measured, simulated, *([] if beside is None else [beside])]
    known = these & np.all([np.isfinite(_values(metric, run)) for run in runs], axis=0)
    seen = [_values(metric, run)[known] for run in runs]
    rows = []
    for at in QUANTILES:
        values = [float(np.quantile(its, at)) for its in seen]
        rows.append(Row(metric=metric, what=f"p{100 * at:g}", measured=values[0], simulated=values[1], beside=None if beside is None else values[2]))  # fmt: skip
    apart = [_wasserstein(seen[0], its) for its in seen]
    rows.append(Row(metric=metric, what="distance", measured=0.0, simulated=apart[1], beside=None if beside is None else apart[2]))  # fmt: skip
    return rows


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
    for name, factors in found.factors.items():
        lines.append(f"  {name}: prompts {factors.prompt:.3g} times as told, decode steps {factors.decode:.3g}")  # fmt: skip
    header = ["", "", "measured", "simulated", "beside", "off", "may be", ""]
    lines += ["", table(header, [_cells(row) for row in found.rows], right=(2, 3, 4, 5, 6))]
    held = sum(row.holds for row in found.rows)
    lines += ["", f"{held} of {len(found.rows)} hold"]
    return "\n".join(lines)


def _cells(row: Row) -> list[str]:
    show: Callable[[float | None], str]
    show = _part if row.what == "distance" else _time
    measured = "" if row.what == "distance" else show(row.measured)
    return [row.metric.upper(), row.what, measured, show(row.simulated), show(row.beside), f"{100 * row.off:+.0f} %", f"{100 * row.band:.0f} %", "holds" if row.holds else "off"]  # fmt: skip


def _part(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _time(value: float | None) -> str:
    return "" if value is None else units.show(value, "s")


def judged_json(found: Judged) -> dict[str, Any]:
    raw: dict[str, Any] = msgspec.to_builtins(found)
    for row, entry in zip(found.rows, raw["rows"], strict=True):
        entry |= {"off": row.off, "band": row.band, "holds": row.holds}
    return raw
