"""A run over time: queue, running, cache, tokens, goodput, watts, interval by interval.

What the driver measured is taken where it is there. A gauge (`queue`, `running`, `waiting`, `kv_tokens`) is how things stood: the mean of the interval's
samples, one at its end included and one at its beginning not, or the last one before it. A count (`busy_s`, `prompt_tokens`, `output_tokens`,
`bytes`, `co2_kg`) is what came since the sample before, or since the run began; it is spread evenly over that time, and read per second. `watts`, `site_watts`, `pue`
and `slowdown` are means over that time. Where all models or all pools are measured, the run is their sum. Everything else follows from the
events, so live records have it too:

    queue       requests without a place, mean over the interval
    running     requests at replicas, mean
    kv_tokens   over requests at replicas, the prompt, and half of the answer from the first token on
    tokens_per_s      an answer's tokens spread evenly from its first to its last
    goodput_per_s     requests that ended in the interval inside their model's SLO
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from polypod import units
from polypod.errors import InputError
from polypod.plan.spec import Slo
from polypod.record import RUN
from polypod.report.export import csv_text
from polypod.report.outcomes import TRANSFER, Bools, Floats, Ints, Outcomes, Series
from polypod.report.slos import inside, plan_slos

COUNTS: Final = frozenset({"busy_s", "prompt_busy_s", "prompt_tokens", "output_tokens", "bytes", "co2_kg"})  # fmt: skip
MEANS: Final = frozenset({"watts", "pue", "slowdown", "site_watts"})
MOST_INTERVALS: Final = 48
LONGEST: Final = 100_000
_STEPS: Final = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1800.0, 3600.0)
_BARS: Final = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """One quantity over the intervals [T]; NaN where nothing is known."""

    of: str  # `run`, a model, a pool, or what a measure was of
    name: str
    values: Floats
    is_measured: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OverTime:
    """Curves over intervals of one width; `edges_s` [T+1]."""

    edges_s: Floats
    curves: tuple[Curve, ...]

    @property
    def width_s(self) -> float:
        return float(self.edges_s[1] - self.edges_s[0])

    def curve(self, of: str, name: str) -> Curve | None:
        """The curve of that name."""
        return next((one for one in self.curves if (one.of, one.name) == (of, name)), None)


def over_time(
    outcomes: Outcomes, slos: Mapping[str, Slo] | None = None, *, width_s: float | None = None
) -> OverTime:
    """The run in intervals of this width, or of one that gives at most 48 of them. SLOs: those of the plan unless given."""
    edges_s = _edges(outcomes, width_s)
    kept = inside(outcomes, plan_slos(outcomes.plans) if slos is None else slos)
    everyone = np.ones(len(outcomes), dtype=bool)
    curves = _requests("run", outcomes, everyone, kept, edges_s)
    if len(outcomes.models) > 1:
        for index, model in enumerate(outcomes.models):
            curves += _requests(model, outcomes, outcomes.requests.model == index, kept, edges_s)
    curves += _places("run", outcomes, np.arange(len(outcomes.replicas)), edges_s)
    for pool in outcomes.pools:
        curves += _places(pool, outcomes, outcomes.of_pool(pool), edges_s)
    return OverTime(edges_s=edges_s, curves=_with_measured(curves, outcomes, edges_s))


def mean_count(
    begin_s: Floats, end_s: Floats, edges_s: Floats, weight: Floats | None = None
) -> Floats:
    """How many of these spans are open, on the mean of each interval; each counts as its weight.

    A span from 0 to 3 fills the first of two intervals of 2, and half of the second:

    >>> mean_count(np.array([0.0]), np.array([3.0]), np.array([0.0, 2.0, 4.0]))
    array([1. , 0.5])
    """
    weight = np.ones(len(begin_s)) if weight is None else weight
    area = _ramp(begin_s, weight, edges_s) - _ramp(end_s, weight, edges_s)
    return np.asarray(np.maximum(np.diff(area) / np.diff(edges_s), 0.0))


def _ramp(since_s: Floats, weight: Floats, at_s: Floats) -> Floats:
    """Sum of weight * (t - since) over those that have begun by t."""
    order = np.argsort(since_s, kind="stable")
    since_s, weight = since_s[order] - at_s[0], weight[order]
    sums = np.concatenate([[0.0], np.cumsum(weight)])
    moments = np.concatenate([[0.0], np.cumsum(weight * since_s)])
    begun = np.searchsorted(since_s, at_s - at_s[0])
    return np.asarray((at_s - at_s[0]) * sums[begun] - moments[begun])


def per_s(at_s: Floats, edges_s: Floats, weight: Floats | None = None) -> Floats:
    """What happened in each interval, for each second of it; the last interval has both its ends."""
    counts, _ = np.histogram(at_s, bins=edges_s, weights=weight)
    return np.asarray(counts / np.diff(edges_s))


def _edges(outcomes: Outcomes, width_s: float | None) -> Floats:
    arrival_s = outcomes.requests.arrival_s
    since_s = float(arrival_s.min()) if len(arrival_s) else 0.0
    until_s = outcomes.end_s
    ends_s = outcomes.requests.end_s[np.isfinite(outcomes.requests.end_s)]
    if len(ends_s) and not np.any(np.isnan(outcomes.requests.end_s)):
        until_s = float(ends_s.max())
    length_s = max(until_s - since_s, 0.0)
    width_s = _usual_width(length_s) if width_s is None else width_s
    since_s = math.floor(since_s / width_s) * width_s
    intervals = max(math.ceil((until_s - since_s) / width_s - 1e-9), 1)
    if intervals > LONGEST:
        least = units.show((until_s - since_s) / LONGEST, "s")
        msg = f"intervals of {units.show(width_s, 's')} are {intervals:,} over {units.show(length_s, 's')}, more than {LONGEST:,}; make them {least} or longer"
        raise InputError(msg)
    return np.asarray(since_s + width_s * np.arange(intervals + 1), dtype=np.float64)


def _usual_width(length_s: float) -> float:
    """The shortest round width that gives no more than `MOST_INTERVALS`."""
    wanted_s = length_s / (MOST_INTERVALS - 1)
    if wanted_s <= 0:
        return 1.0
    if wanted_s < 1:
        decade = 10.0 ** math.floor(math.log10(wanted_s))
        return next(decade * step for step in (1, 2, 5, 10) if decade * step >= wanted_s)
    return next((step for step in _STEPS if step >= wanted_s), 3600.0 * math.ceil(wanted_s / 3600))


def _requests(
    of: str, outcomes: Outcomes, these: Bools, kept: Bools, edges_s: Floats
) -> list[Curve]:
    requests, waits = outcomes.requests, outcomes.waits
    waiting = these[waits.row]
    ended = these & np.isfinite(requests.end_s)
    lost = ended & ~outcomes.finished
    drawn = {
        "arrivals_per_s": per_s(requests.arrival_s[these], edges_s),
        "queue": mean_count(waits.begin_s[waiting], waits.end_s[waiting], edges_s),
        "goodput_per_s": per_s(requests.end_s[these & kept], edges_s),
        "unserved_per_s": per_s(requests.end_s[lost], edges_s),
    }
    return [Curve(of=of, name=name, values=v, is_measured=False) for name, v in drawn.items()]


def _places(of: str, outcomes: Outcomes, replicas: Ints, edges_s: Floats) -> list[Curve]:
    stays = outcomes.stays
    among = np.zeros(len(outcomes.replicas), dtype=bool)
    among[replicas] = True
    here = among[stays.replica]
    holds = here & (stays.role != TRANSFER)
    begin_s, end_s = stays.begin_s[holds], stays.end_s[holds]
    running = mean_count(stays.begin_s[here], stays.end_s[here], edges_s)
    kv_tokens = mean_count(begin_s, end_s, edges_s, prompt_tokens(outcomes)[holds])
    first_s, half = decoding(outcomes)
    kv_tokens += mean_count(first_s[holds], end_s, edges_s, half[holds])
    capacity = _kv_capacity(outcomes, replicas, edges_s)
    drawn = {
        "running": running,
        "kv_tokens": kv_tokens,
        "kv_fraction": np.divide(
            kv_tokens, capacity, out=np.full(len(running), np.nan), where=capacity > 0
        ),
        "tokens_per_s": _tokens(outcomes, among, edges_s),
    }
    return [Curve(of=of, name=name, values=v, is_measured=False) for name, v in drawn.items()]


def prompt_tokens(outcomes: Outcomes) -> Floats:
    """Of the request of each stay [S]."""
    return outcomes.requests.input_tokens[outcomes.stays.row].astype(np.float64)


def decoding(outcomes: Outcomes) -> tuple[Floats, Floats]:
    """Of each stay [S]: since when the request has decoded there, and half its answer in tokens.

    A stay without a first token decodes for no time.
    """
    stays, requests = outcomes.stays, outcomes.requests
    first_s = requests.first_s[stays.row]
    never = ~np.isfinite(first_s) | (first_s > stays.end_s)
    since_s = np.where(never, stays.end_s, np.maximum(first_s, stays.begin_s))
    return since_s, requests.output_tokens[stays.row] / 2.0


def _kv_capacity(outcomes: Outcomes, replicas: Ints, edges_s: Floats) -> Floats:
    """Of the replicas that are up, mean of each interval."""
    ups = [(*span, outcomes.replicas[n].kv_capacity_tokens) for n in replicas for span in outcomes.replicas[n].up]  # fmt: skip
    spans = np.array(ups, dtype=np.float64).reshape(-1, 3)
    return mean_count(spans[:, 0], spans[:, 1], edges_s, spans[:, 2])


def _tokens(outcomes: Outcomes, among: Bools, edges_s: Floats) -> Floats:
    requests = outcomes.requests
    rows = np.flatnonzero(outcomes.finished)
    rows = rows[among[requests.decode_replica[rows]]]
    end_s, tokens = requests.end_s[rows], requests.output_tokens[rows].astype(np.float64)
    first_s = np.where(np.isfinite(requests.first_s), requests.first_s, requests.placed_s)[rows]
    at_once = first_s >= end_s
    rate = np.divide(tokens, end_s - first_s, out=np.zeros(len(tokens)), where=~at_once)
    spread = mean_count(first_s, end_s, edges_s, rate)
    return spread + per_s(end_s[at_once], edges_s, tokens[at_once])


# ---- measured


def _with_measured(
    curves: Sequence[Curve], outcomes: Outcomes, edges_s: Floats
) -> tuple[Curve, ...]:
    """Those that were measured take the place of those that were derived."""
    names = {one.name for one in outcomes.replicas}
    measured = {
        (of, _RATES.get(name, name)): _sampled(name, series, edges_s, outcomes.begin_s)
        for (of, name), series in outcomes.series.items()
        if of not in names and (of, name) != (RUN, "end_s")
    }
    _add_run(measured, outcomes)
    kept = [one for one in curves if (one.of, one.name) not in measured]
    more = [
        Curve(of=of, name=name, values=values, is_measured=True)
        for (of, name), values in measured.items()
    ]
    return tuple(kept + more)


_SUMS: Final = ("running", "waiting", "kv_tokens", "kv_capacity_tokens", "tokens_per_s", "prompt_tokens_per_s", "watts")  # fmt: skip


def _add_run(measured: dict[tuple[str, str], Floats], outcomes: Outcomes) -> None:
    """Of the run what all its pools, or for the queue all its models, add up to."""
    wanted = [("queue", outcomes.models), *((name, outcomes.pools) for name in _SUMS)]
    for name, parts in wanted:
        its = [measured[part, name] for part in parts if (part, name) in measured]
        if its and len(its) == len(parts):
            measured["run", name] = np.sum(its, axis=0)
    for of in {of for of, name in measured if name == "kv_tokens"}:
        if (of, "kv_capacity_tokens") in measured:
            tokens, capacity = measured[of, "kv_tokens"], measured[of, "kv_capacity_tokens"]
            measured[of, "kv_fraction"] = np.divide(tokens, capacity, out=np.full(len(tokens), np.nan), where=capacity > 0)  # fmt: skip


_RATES: Final = {
    "busy_s": "busy_replicas",
    "prompt_busy_s": "prompt_busy_replicas",
    "output_tokens": "tokens_per_s",
    "prompt_tokens": "prompt_tokens_per_s",
    "bytes": "bytes_per_s",
    "co2_kg": "co2_kg_per_s",
}
"""What a count each second is called."""


def _sampled(name: str, series: Series, edges_s: Floats, begin_s: float) -> Floats:
    if name in COUNTS:
        return _each_second(series, series.value, edges_s, begin_s)
    if name in MEANS:
        return _each_second(series, series.value * spans_s(series, begin_s), edges_s, begin_s)
    which = np.maximum(np.searchsorted(edges_s, series.at_s, side="left") - 1, 0)
    ok = (series.at_s >= edges_s[0]) & (series.at_s <= edges_s[-1])
    counts = np.bincount(which[ok], minlength=len(edges_s) - 1)
    sums = np.bincount(which[ok], weights=series.value[ok], minlength=len(edges_s) - 1)
    before = np.searchsorted(series.at_s, edges_s[1:], side="right") - 1
    held = np.where(before >= 0, series.value[np.maximum(before, 0)], np.nan)
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), held))


def spans_s(series: Series, begin_s: float) -> Floats:
    """How much time each sample is about: since the one before, and the first since the run began."""
    return np.diff(series.at_s, prepend=min(begin_s, float(series.at_s[0])))


def _each_second(series: Series, amount: Floats, edges_s: Floats, begin_s: float) -> Floats:
    """What came in each interval over the time of it that samples are about; NaN where that is none."""
    at_s = np.concatenate([[min(begin_s, float(series.at_s[0]))], series.at_s])
    come = np.diff(np.interp(edges_s, at_s, np.concatenate([[0.0], np.cumsum(amount)])))
    covered_s = np.diff(np.clip(edges_s, at_s[0], at_s[-1]))
    rate = np.full(len(come), np.nan)
    np.divide(come, covered_s, out=rate, where=covered_s > 0)
    return rate


# ---- shown

_SHOWN: Final = (
    "arrivals_per_s", "queue", "waiting", "running", "kv_fraction", "tokens_per_s", "goodput_per_s", "unserved_per_s", "watts", "site_watts", "pue", "outside_celsius", "slowdown", "bytes_per_s",
)  # fmt: skip


def series_text(series: OverTime) -> str:
    """Sparklines, a line a curve, each from 0 to its own most; a dot is an interval of which nothing is known."""
    since = units.show(float(series.edges_s[0]), "s")
    columns = min(len(series.edges_s) - 1, MOST_INTERVALS)
    lines = [
        f"from {since} on, {len(series.edges_s) - 1} intervals of {units.show(series.width_s, 's')}"
    ]
    for of in dict.fromkeys(curve.of for curve in series.curves):
        its = {curve.name: curve for curve in series.curves if curve.of == of}
        shown = [its[name] for name in _SHOWN if name in its and np.nanmax(np.nan_to_num(its[name].values)) > 0]  # fmt: skip
        if shown:
            lines += ["", f"{of[: 16 + columns]:<{16 + columns}} {'mean':>7} {'most':>7}"]
        lines += [_spark_line(curve, columns) for curve in shown]
    return "\n".join(lines)


def _spark_line(curve: Curve, columns: int) -> str:
    known = curve.values[np.isfinite(curve.values)]
    mean, most = (_brief(float(value)) for value in (known.mean(), known.max()))
    mark = "*" if curve.is_measured else ""
    return f"{curve.name + mark:<15} {_bars(_coarser(curve.values, columns)):{columns}} {mean:>7} {most:>7}"


def _coarser(values: Floats, columns: int) -> Floats:
    """Means over neighbours, where there are more values than columns."""
    if len(values) <= columns:
        return values
    groups = np.array_split(values, columns)
    return np.array(
        [group[np.isfinite(group)].mean() if np.isfinite(group).any() else np.nan for group in groups]
    )  # fmt: skip


def _bars(values: Floats) -> str:
    """
    >>> _bars(np.array([0.0, 1.0, np.nan, 2.0]))
    '▁▅·█'
    """
    most = np.nanmax(np.nan_to_num(values)) or 1.0
    return "".join(
        "·" if math.isnan(value) else _BARS[min(int(value / most * (len(_BARS) - 1) + 0.5), 7)]
        for value in values.tolist()
    )


def _brief(value: float) -> str:
    """
    >>> _brief(1234567.0), _brief(0.0123), _brief(812.0)
    ('1.23M', '0.0123', '812')
    """
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= scale:
            scale = 1e3 if suffix == "k" else scale
            return units.significant(value / scale) + suffix
    return units.significant(value).replace(",", "")


def series_json(series: OverTime) -> dict[str, Any]:
    """Every curve as a list; null where nothing is known."""
    return {
        "width_s": series.width_s,
        "begin_s": [float(at_s) for at_s in series.edges_s[:-1]],
        "curves": [
            {
                "of": curve.of,
                "name": curve.name,
                "is_measured": curve.is_measured,
                "values": [None if math.isnan(v) else v for v in curve.values.tolist()],
            }
            for curve in series.curves
        ],
    }


def series_csv(series: OverTime) -> str:
    """One row an interval, one column a curve, named `of.name`."""
    header = ["begin_s", *(f"{curve.of}.{curve.name}" for curve in series.curves)]
    columns = [series.edges_s[:-1].tolist(), *(curve.values.tolist() for curve in series.curves)]
    rows = [
        [None if math.isnan(cell) else cell for cell in row] for row in zip(*columns, strict=True)
    ]
    return csv_text(header, rows)
