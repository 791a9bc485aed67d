"""A simulated run as one flat row of figures."""

from collections.abc import Sequence
from typing import Final

from polypod.plan.sweep import Row
from polypod.report.outcomes import Outcomes
from polypod.report.summary import RunSummary, Share, summary_of

FIGURES: Final[dict[str, type]] = {
    "requests": int, "finished": int, "rejected": int, "gone": int, "retries": int, "duration_s": float,
    "goodput_per_s": float, "goodput_fraction": float, "requests_per_s": float, "output_tokens_per_s": float,
    **{f"{what}_{which}_s": float for what in ("ttft", "tpot", "e2e") for which in ("mean", "p50", "p90", "p99")},
    "busy_fraction": float, "slots_fraction": float, "kv_fraction": float, "up_fraction": float, "faults": int,
    "mean_w": float, "most_w": float, "joules_per_token": float,
}  # fmt: skip
"""Of every run. Fractions of goodput are of the requests that arrived, `up_fraction` is of all replicas' time; the rest of them are as in `polypod report`."""

OF_MODEL: Final = ("goodput_fraction", "ttft_inside_fraction", "tpot_inside_fraction")
"""Of every model, as `MODEL goodput_fraction`."""


def figure_columns(models: Sequence[str]) -> dict[str, type]:
    """The columns of runs in which these models are served."""
    return FIGURES | {f"{model} {name}": float for model in models for name in OF_MODEL}


def figures(outcomes: Outcomes) -> Row:
    """What came of one run; what is not known, as watts or an SLO that the plan does not name, is not there."""
    summary = summary_of(outcomes)
    goodput, power = summary.goodput, summary.power
    whole_s = len(summary.replicas) * outcomes.end_s
    row: Row = {
        "requests": summary.requests,
        "finished": summary.finished,
        "rejected": sum(summary.rejected.values()),
        "gone": summary.gone,
        "retries": summary.retries,
        "duration_s": summary.duration_s,
        "goodput_per_s": None if goodput is None else goodput.per_s,
        "goodput_fraction": None if goodput is None else goodput.fraction,
        "requests_per_s": summary.requests_per_s,
        "output_tokens_per_s": summary.output_tokens_per_s,
        "busy_fraction": _busy(summary.pools),
        "slots_fraction": _mean(summary.pools, "slots_fraction"),
        "kv_fraction": _mean(summary.pools, "kv_fraction"),
        "up_fraction": sum(one.up_s for one in summary.replicas) / whole_s if whole_s else None,
        "faults": len(outcomes.faults),
    }
    if power is not None:
        row |= {"mean_w": power.mean_w, "most_w": power.most_w, "joules_per_token": power.joules_per_token}  # fmt: skip
    return row | _times(summary) | _models(summary)


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


def _busy(pools: Sequence[Share]) -> float | None:
    """Over the time that replicas were up."""
    busy_s = [pool.busy_s for pool in pools if pool.busy_s is not None]
    up_s = sum(pool.up_s for pool in pools)
    return sum(busy_s) / up_s if up_s and len(busy_s) == len(pools) else None


def _mean(pools: Sequence[Share], name: str) -> float | None:
    known = [(getattr(pool, name), pool.up_s) for pool in pools if getattr(pool, name) is not None]
    up_s = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / up_s if up_s else None
