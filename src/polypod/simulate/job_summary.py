"""What a run of jobs comes to: use, waits, preemptions, fairness. Computed from the run alone."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from polypod.simulate.jobs import JobLife, JobRun

SIZES: Final = (1, 8, 64, 512)
"""Upper ends of the groups that waits are told for, in cards; above the last is one more."""

BOUND_S: Final = 10.0
"""A slowdown counts a job as at least this long (Feitelson and Rudolph, JSSPP 1998, https://doi.org/10.1007/BFb0053978)."""


def jain(values: Sequence[float]) -> float:
    """Jain's index: 1 where all have the same, 1/n where one has all (Jain, Chiu, Hawe, DEC-TR-301, 1984, https://arxiv.org/abs/cs/9809099).

    >>> jain([1.0, 1.0]), jain([1.0, 0.0]), round(jain([1.0, 2.0, 3.0]), 3)
    (1.0, 0.5, 0.857)
    """
    squares = sum(value * value for value in values)
    return 1.0 if squares == 0 else sum(values) ** 2 / (len(values) * squares)


def summary(run: JobRun, weights: dict[str, float] | None = None) -> dict[str, Any]:
    """One object of numbers and names, stable, in SI units."""
    lives = run.lives
    lost_card_s = sum(life.lost_s * life.job.asked.cards for life in lives)
    started = [life for life in lives if life.first_start_s is not None]
    outcomes = [life.outcome for life in lives]
    weights = weights or {}
    got = [used / weights.get(tenant, 1.0) for tenant, used in run.tenant_card_s.items()]
    return {
        "cards": run.cards,
        "window_s": run.window_s,
        "end_s": run.end_s,
        "jobs": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "used_fraction": _fraction(run, run.job_card_s + run.service_card_s),
        "job_fraction": _fraction(run, run.job_card_s),
        "service_fraction": _fraction(run, run.service_card_s),
        "broken_fraction": _fraction(run, run.lost_card_s),
        "fragmented_fraction": _mean(
            [s.fragmented_cards / s.free_cards for s in run.samples if s.free_cards]
        ),
        "waiting_jobs_mean": _mean([float(s.waiting_jobs) for s in run.samples]),
        "backfilled_fraction": _mean([float(life.is_backfilled) for life in started]),
        "preemptions": sum(life.preemptions for life in lives),
        "lost_card_s": lost_card_s,
        "jain_of_use_by_weight": jain(got),
        "unserved_replicas": run.unserved_replicas,
        "waits": _waits(lives, lambda life: "all"),
        "waits_by_tenant": _waits(lives, lambda life: life.job.asked.tenant),
        "waits_by_cards": _waits(lives, lambda life: _size(life.job.asked.cards)),
        "tenant_card_s": dict(run.tenant_card_s),
    }


def _fraction(run: JobRun, card_s: float) -> float:
    whole_card_s = run.cards * run.window_s
    return card_s / whole_card_s if whole_card_s else 0.0


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _size(cards: int) -> str:
    lower = 1
    for end in SIZES:
        if cards <= end:
            return f"{lower}-{end}" if lower < end else f"{end}"
        lower = end + 1
    return f"{lower}+"


def _waits(lives: Sequence[JobLife], group: Callable[[JobLife], str]) -> dict[str, dict[str, float]]:  # fmt: skip
    """Waits to the first start by group, and the mean slowdown of those that finished."""
    groups: dict[str, list[JobLife]] = {}
    for life in lives:
        if life.wait_s is not None:
            groups.setdefault(group(life), []).append(life)
    return {name: _of(groups[name]) for name in sorted(groups, key=_order)}


def _order(name: str) -> tuple[float, str]:
    head = name.rstrip("+").split("-")[0]
    return (float(head) if head.isdecimal() else math.inf, name)


def _of(lives: list[JobLife]) -> dict[str, float]:
    waits_s = np.array([life.wait_s for life in lives])
    slowdowns = [
        max(1.0, (life.end_s - life.job.asked.at_s) / max(life.job.work_s, BOUND_S))
        for life in lives
        if life.end_s is not None and life.outcome == "finished"
    ]
    return {
        "jobs": len(lives),
        "mean_s": float(waits_s.mean()),
        "p50_s": float(np.percentile(waits_s, 50)),
        "p95_s": float(np.percentile(waits_s, 95)),
        "most_s": float(waits_s.max()),
        "slowdown_mean": _mean(slowdowns),
    }
