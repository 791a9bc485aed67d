"""What each fault of a run cost.

The rule. A fault's *window* runs from when it happened to when it is over: once its replicas serve again, and no more requests of the models it hit wait for a place
than did on the mean of the window before. The *window before* is as long, and ends where the fault begins; less where the run has less.

A request is *exposed* if its model is one of those hit, it was there at some time of the window, and it ended. It was *hit* if it was at a replica of the fault
when that happened. Exposed requests that did not finish inside their SLO are *missed*. The same share of them as was missed in the window before would have
been so anyway; the rest is what the fault cost:

    lost = missed - exposed * missed_before / exposed_before

A request that several faults could have spoiled is exposed to one only: the one that hit it, else the one of them that took the
largest part of its model's replicas, else the earlier. So costs add up. Less than nothing can be lost, where the window before was worse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from polypod import units
from polypod.plan.spec import Slo
from polypod.report.outcomes import OPEN, Bools, FaultSeen, Floats, Ints, Outcomes, Replica
from polypod.report.slos import inside, plan_slos
from polypod.report.tables import table


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultCost:
    """One fault, how far it reached and what it cost."""

    id: str
    what: str
    where: str
    at_s: float
    noticed_s: float | None
    repaired_s: float | None
    back_s: float | None  # when the last of its replicas served again
    by_spare: int  # of how many of its replicas a spare took the place
    over_s: float  # when its window ends
    is_over: bool  # False: the record ends before
    models: tuple[str, ...]
    replicas: int
    replica_share: float  # of the replicas of those models that were up
    accelerators: int | None  # None: the plan is not known
    hit: int  # requests aboard
    exposed: int
    missed: int
    failed: int  # of the missed: ended with an error
    retried: int  # attempts that ended in the window with the replica or the way to it lost
    lost_requests: float  # requests of goodput, against the window before
    before_fraction: (
        float | None
    )  # missed of those in the window before; None: there were none, and all is lost
    waited_s: float  # in which requests waited for a place, less that in the window before
    overlaps: tuple[str, ...]  # faults whose windows meet this one or the one before it


_LOST: tuple[str, ...] = ("replica_down", "lost", "timeout", "refused", "engine", "kv_lost")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Window:
    """A fault on its way to a cost."""

    fault: FaultSeen
    replicas: Ints
    models: Ints
    share: float
    over_s: float
    is_over: bool
    before_s: float  # where the window before begins
    hit: Bools  # [N]

    @property
    def length_s(self) -> float:
        return self.over_s - self.fault.at_s


def fault_costs(outcomes: Outcomes, slos: Mapping[str, Slo] | None = None) -> tuple[FaultCost, ...]:
    """The faults of a run in their order. SLOs: those of the plan unless given."""
    if not outcomes.faults or not len(outcomes):
        return ()
    slos = plan_slos(outcomes.plans) if slos is None else slos
    ended = outcomes.requests.status != OPEN
    missed = ended & ~inside(outcomes, slos)
    windows = [_window(fault, outcomes) for fault in outcomes.faults]
    charged = _charged(windows, outcomes)
    accelerators = _accelerators(outcomes)
    return tuple(
        _cost(
            window,
            outcomes,
            missed,
            (charged == n) & ended,
            [other for other in windows if other is not window],
            accelerators,
        )
        for n, window in enumerate(windows)
    )


def _window(fault: FaultSeen, outcomes: Outcomes) -> _Window:
    index = {one.name: n for n, one in enumerate(outcomes.replicas)}
    replicas = np.array([index[name] for name in fault.replicas if name in index], dtype=np.int64)
    names = {outcomes.replicas[n].model for n in replicas}
    models = np.array([n for n, name in enumerate(outcomes.models) if name in names], dtype=np.int64)  # fmt: skip
    stays = outcomes.stays
    aboard = np.isin(stays.replica, replicas) & (stays.begin_s <= fault.at_s) & (stays.end_s >= fault.at_s)  # fmt: skip
    hit = np.zeros(len(outcomes), dtype=bool)
    hit[stays.row[aboard]] = True
    repaired_s = outcomes.end_s if fault.over_s is None else fault.over_s
    repaired_s = min(max(repaired_s, fault.at_s), outcomes.end_s)
    over_s = _drained_s(fault.at_s, repaired_s, models, outcomes)
    length_s = (outcomes.end_s if over_s is None else over_s) - fault.at_s
    first_s = float(outcomes.requests.arrival_s[0])
    return _Window(
        fault=fault,
        replicas=replicas,
        models=models,
        share=_share(fault.at_s, replicas, names, outcomes),
        over_s=outcomes.end_s if over_s is None else over_s,
        is_over=over_s is not None and fault.over_s is not None and fault.over_s <= outcomes.end_s,
        before_s=max(fault.at_s - length_s, first_s),
        hit=hit,
    )


def _share(at_s: float, replicas: Ints, models: set[str], outcomes: Outcomes) -> float:
    """Of the replicas of these models that were up just before."""
    up = [
        n
        for n, one in enumerate(outcomes.replicas)
        if one.model in models and any(since_s < at_s <= until_s for since_s, until_s in one.up)
    ]
    return len(set(up) & set(replicas.tolist())) / len(up) if up else 0.0


def _drained_s(at_s: float, repaired_s: float, models: Ints, outcomes: Outcomes) -> float | None:
    """When, from the repair on, no more wait than on the mean of the time before the fault; None: not in this record."""
    waits = outcomes.waits
    ours = np.isin(outcomes.requests.model[waits.row], models)
    begin_s, end_s = waits.begin_s[ours], waits.end_s[ours]
    before_s = max(at_s - (repaired_s - at_s), 0.0)
    usual = _overlap_s(begin_s, end_s, before_s, at_s).sum() / max(at_s - before_s, 1e-9)
    begun, over = np.sort(begin_s), np.sort(end_s)
    at = np.unique(np.concatenate([[repaired_s], over[over > repaired_s]]))
    waiting = np.searchsorted(begun, at, side="right") - np.searchsorted(over, at, side="right")
    low = np.flatnonzero(waiting <= usual)
    return float(at[low[0]]) if len(low) else None


def _overlap_s(begin_s: Floats, end_s: Floats, since_s: float, until_s: float) -> Floats:
    return np.asarray(np.maximum(np.minimum(end_s, until_s) - np.maximum(begin_s, since_s), 0.0))


def _there(outcomes: Outcomes, models: Ints, since_s: float, until_s: float) -> Bools:
    """Requests [N] of these models that were there at some time of this window."""
    requests = outcomes.requests
    gone = np.where(np.isfinite(requests.end_s), requests.end_s, np.inf)
    return np.isin(requests.model, models) & (requests.arrival_s <= until_s) & (gone >= since_s)


def _charged(windows: Sequence[_Window], outcomes: Outcomes) -> Ints:
    """The fault that each request [N] is exposed to; -1: none."""
    charged = np.full(len(outcomes), -1, dtype=np.int64)
    best = np.full(len(outcomes), -1.0)
    for n, window in enumerate(windows):
        exposed = window.hit | _there(outcomes, window.models, window.fault.at_s, window.over_s)
        rank = np.where(window.hit, 2.0, window.share)
        better = exposed & (rank > best)
        charged[better], best[better] = n, rank[better]
    return charged


def _cost(
    window: _Window, outcomes: Outcomes, missed: Bools, exposed: Bools, others: Sequence[_Window], accelerators: Sequence[Mapping[str, int]] | None
) -> FaultCost:  # fmt: skip
    fault, requests = window.fault, outcomes.requests
    before = _there(outcomes, window.models, window.before_s, fault.at_s)
    before &= requests.end_s < fault.at_s
    usual = float(np.mean(missed[before])) if before.any() else None
    failed = exposed & (requests.status != OPEN) & ~outcomes.finished
    return FaultCost(
        id=fault.id,
        what=fault.what,
        where=fault.where,
        at_s=fault.at_s,
        noticed_s=fault.noticed_s,
        repaired_s=fault.repaired_s,
        back_s=fault.back_s,
        by_spare=fault.by_spare,
        over_s=window.over_s,
        is_over=window.is_over,
        models=tuple(outcomes.models[n] for n in window.models),
        replicas=len(window.replicas),
        replica_share=window.share,
        accelerators=None
        if accelerators is None
        else sum(_of_replica(accelerators, outcomes.replicas[n]) for n in window.replicas),
        hit=int(window.hit.sum()),
        exposed=int(exposed.sum()),
        missed=int((exposed & missed).sum()),
        failed=int(failed.sum()),
        retried=_retried(window, outcomes),
        lost_requests=float((exposed & missed).sum() - exposed.sum() * (usual or 0.0)),
        before_fraction=usual,
        waited_s=_waited_s(window, outcomes),
        overlaps=tuple(
            other.fault.id
            for other in others
            if other.fault.at_s < window.over_s and other.over_s > window.before_s
        ),
    )


def _retried(window: _Window, outcomes: Outcomes) -> int:
    """Attempts at its replicas that were given up in the window because of the replica."""
    stays = outcomes.stays
    reasons = [n for n, name in enumerate(outcomes.endings) if name in _LOST]
    there = np.isin(stays.replica, window.replicas) & np.isin(stays.ending, reasons)
    return int(np.sum(there & (stays.end_s >= window.fault.at_s) & (stays.end_s <= window.over_s)))


def _waited_s(window: _Window, outcomes: Outcomes) -> float:
    """Seconds with at least one request of these models waiting: in the window, less those before it."""
    waits = outcomes.waits
    ours = np.isin(outcomes.requests.model[waits.row], window.models)
    begin_s, end_s = waits.begin_s[ours], waits.end_s[ours]
    at_s, over_s = window.fault.at_s, window.over_s
    during = _covered_s(begin_s, end_s, at_s, over_s)
    return during - _covered_s(begin_s, end_s, window.before_s, at_s)


def _covered_s(begin_s: Floats, end_s: Floats, since_s: float, until_s: float) -> float:
    """Length of the union of spans inside a window.

    >>> _covered_s(np.array([0.0, 1.0, 5.0]), np.array([2.0, 3.0, 9.0]), 0.5, 6.0)
    3.5
    """
    order = np.argsort(begin_s)
    begin_s = np.clip(begin_s[order], since_s, until_s)
    ends_s = np.concatenate([[since_s], np.clip(end_s[order], since_s, until_s)])
    reach_s = np.maximum.accumulate(ends_s)
    return float(np.maximum(reach_s[1:] - np.maximum(begin_s, reach_s[:-1]), 0.0).sum())


def _accelerators(outcomes: Outcomes) -> list[dict[str, int]] | None:
    """Of one replica of each pool, as the layouts of each plan say."""
    if not outcomes.plans[0].get("services"):
        return None
    return [
        {
            pool.get("name") or f"pool{s}.{p}": _world(pool.get("layout", {}))
            for s, service in enumerate(plan.get("services", []))
            for p, pool in enumerate(service.get("pools", []))
        }
        for plan in outcomes.plans
    ]


def _of_replica(accelerators: Sequence[Mapping[str, int]], replica: Replica) -> int:
    return accelerators[replica.plan].get(replica.pool, 0)


def _world(layout: Mapping[str, Any]) -> int:
    return int(np.prod([layout.get(axis, 1) for axis in ("tp", "pp", "dp", "cp")]))


# ---- shown


def faults_text(costs: Sequence[FaultCost]) -> str:
    """The faults that cost most, first; the rule below them."""
    if not costs:
        return "no fault is in this record"
    worst = sorted(costs, key=lambda cost: -cost.lost_requests)
    rows = [
        [
            cost.id[:10],
            cost.what[:12],
            cost.where[:16],
            units.show(cost.at_s, "s"),
            units.show(cost.over_s - cost.at_s, "s") + ("" if cost.is_over else "+"),
            f"{cost.lost_requests:,.0f}",
            f"{cost.failed:,}",
            f"{cost.retried:,}",
        ]
        for cost in worst[:20]
    ]
    header = ["fault", "what", "where", "at", "lasted", "lost", "failed", "retried"]
    parts = [table(header, rows, right=(3, 4, 5, 6, 7))]
    if len(costs) > len(rows):
        parts.append(f"... and {len(costs) - len(rows)} more: --json")
    parts += ["\n".join(_in_words(cost)) for cost in worst[:3]]
    parts.append(_RULE)
    return "\n\n".join(parts)


_RULE = """\
lost: requests that missed their SLO or failed while there during the fault and
its backlog, less the share that did in as much time before. A request counts
for one fault: the one it was aboard of, else the one with most replicas.
+: not over at the end of the record."""


def _in_words(cost: FaultCost) -> list[str]:
    if not cost.replicas:
        return [f"fault {cost.id}: no replica was there"]
    chips = "" if cost.accelerators is None else f", {cost.accelerators:,} accelerators"
    noticed = "" if cost.noticed_s is None else f", noticed after {units.show(cost.noticed_s - cost.at_s, 's')}"  # fmt: skip
    over_s = cost.repaired_s if cost.back_s is None else cost.back_s
    back = "not back" if over_s is None else f"back after {units.show(over_s - cost.at_s, 's')}"
    spare = f", {cost.by_spare} by a spare" if cost.by_spare else ""
    usual = "none there before" if cost.before_fraction is None else f"{100 * cost.before_fraction:.1f} % before"  # fmt: skip
    lines = [
        f"fault {cost.id}: {cost.replicas} replicas, {100 * cost.replica_share:.0f} % of {', '.join(cost.models)[:30]}{chips}",
        f"  {back}{spare}{noticed}; {cost.hit:,} requests aboard",
        f"  {cost.missed:,} of {cost.exposed:,} exposed missed, {usual}; {units.show(max(cost.waited_s, 0.0), 's')} more with requests waiting",
    ]
    if cost.overlaps:
        lines.append(f"  met by {', '.join(cost.overlaps[:5])}: what was before is not undisturbed")
    return [line[:80] for line in lines]


def faults_json(costs: Sequence[FaultCost]) -> list[dict[str, Any]]:
    """Every fault with all that is known of it."""
    return [msgspec.to_builtins(cost) for cost in costs]
