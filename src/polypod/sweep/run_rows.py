"""A simulated run as one flat row of figures."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from polypod.plan.sweep import Row
from polypod.report.outcomes import Outcomes, Series
from polypod.report.summary import RunSummary, power_of

FIGURES: Final[dict[str, type]] = {
    "arrived": int, "finished": int, "rejected": int, "gone": int, "retries": int, "duration_s": float,
    "goodput_per_s": float, "goodput_fraction": float, "requests_per_s": float, "output_tokens_per_s": float,
    **{f"{what}_{which}_s": float for what in ("ttft", "tpot", "e2e") for which in ("mean", "p50", "p90", "p99")},
    "busy_fraction": float, "slots_fraction": float, "up_fraction": float, "faults_begun": int,
    "mean_w": float, "most_w": float, "joules_per_token": float, "site_mean_w": float, "pue_ratio": float, "co2_kg": float,
}  # fmt: skip
"""Of every run, named as `polypod simulate --json` does, except for `requests` and `faults`, which are flags, and for how full and how long up the replicas were: that is from the start to the last end of a
request here, since a run goes on until what broke is repaired. So are watts, and what follows from them."""

OF_MODEL: Final = ("goodput_fraction", "ttft_inside_fraction", "tpot_inside_fraction")
"""Of every model, as `MODEL goodput_fraction`."""


def figure_columns(models: Sequence[str]) -> dict[str, type]:
    """The columns of runs in which these models are served."""
    return FIGURES | {f"{model} {name}": float for model in models for name in OF_MODEL}


def figures(outcomes: Outcomes, summary: RunSummary) -> Row:
    """What came of one run; what is not known, as watts or an SLO that the plan does not name, is not there."""
    goodput = summary.goodput
    row: Row = {
        "arrived": summary.requests,
        "finished": summary.finished,
        "rejected": sum(summary.rejected.values()),
        "gone": summary.gone,
        "retries": summary.retries,
        "duration_s": summary.duration_s,
        "goodput_per_s": None if goodput is None else goodput.per_s,
        "goodput_fraction": None if goodput is None else goodput.fraction,
        "requests_per_s": summary.requests_per_s,
        "output_tokens_per_s": summary.output_tokens_per_s,
        "faults_begun": len(outcomes.faults),
    }
    until_s = max(_last_end_s(outcomes), summary.duration_s)
    row |= _full(outcomes, summary, until_s) | _power(outcomes, summary, until_s)
    return row | _times(summary) | _models(summary)


def _last_end_s(outcomes: Outcomes) -> float:
    """When the last request ended; where none did, when the run did."""
    ends_s = outcomes.requests.end_s[np.isfinite(outcomes.requests.end_s)]
    return float(ends_s.max()) if len(ends_s) else outcomes.end_s


def _full(outcomes: Outcomes, summary: RunSummary, until_s: float) -> Row:
    """How much of the time that replicas were up they had something to do, and how much of all time they were up."""
    up_s = sum(
        max(min(to_s, until_s) - from_s, 0.0)
        for one in outcomes.replicas
        for from_s, to_s in one.up
    )
    if not up_s:
        return {"up_fraction": 0.0 if until_s else None}
    busy_s = [pool.busy_s for pool in summary.pools]
    slots_s = sum((pool.slots_fraction or 0.0) * pool.up_s for pool in summary.pools)
    return {
        "up_fraction": up_s / (len(outcomes.replicas) * until_s),
        "busy_fraction": None if None in busy_s else sum(filter(None, busy_s)) / up_s,
        "slots_fraction": slots_s / up_s,
    }


def _power(outcomes: Outcomes, summary: RunSummary, until_s: float) -> Row:
    """Samples are means since the one before: the last that counts is the first after the last request's end."""
    series = {key: _until(one, until_s) for key, one in outcomes.series.items()}
    power = power_of(replace(outcomes, series=series), summary.output_tokens)
    if power is None:
        return {}
    names = ("mean_w", "most_w", "joules_per_token", "site_mean_w", "pue_ratio", "co2_kg")
    return {name: getattr(power, name) for name in names}


def _until(series: Series, until_s: float) -> Series:
    kept = int(np.searchsorted(series.at_s, until_s)) + 1
    return Series(at_s=series.at_s[:kept], value=series.value[:kept])


def _times(summary: RunSummary) -> Row:
    return {
        f"{what}_{which}_s": getattr(spread, f"{which}_s")
        for what, spread in (("ttft", summary.ttft), ("tpot", summary.tpot), ("e2e", summary.e2e))
        if spread is not None
        for which in ("mean", "p50", "p90", "p99")
    }


def _models(summary: RunSummary) -> Row:
    row: Row = {}
    for group in summary.models:
        limits = {"ttft": group.ttft_limit, "tpot": group.tpot_limit}
        if group.goodput is not None:
            row[f"{group.name} goodput_fraction"] = group.goodput.fraction
        for name, limit in limits.items():
            if limit is not None:
                row[f"{group.name} {name}_inside_fraction"] = limit.inside_fraction
    return row
