"""What a run's record says: how requests fared and how busy replicas were, for live and simulated runs alike.

TTFT runs from a request's arrival to its first token, over all its attempts; an answer in one piece has its first token when it
ends, and no TPOT. TPOT is (finish - first token) / (output tokens - 1), and there is none for one token. E2E runs from arrival to the end.
All three are over the requests that finished. Percentiles are linear between the two nearest ranks.

Goodput counts finished requests inside every limit of their model's SLO; its fraction is of all that arrived. A limit is *kept* where the percentile
that the SLO names, of those that finished, is not above it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polypod.plan.spec import Slo
from polypod.record import Line
from polypod.report.faults_cost import FaultCost, fault_costs
from polypod.report.fold import fold
from polypod.report.foresight import ReplicaForesight, foresight_of
from polypod.report.outcomes import GONE, OPEN, TRANSFER, Bools, Floats, Outcomes, Series
from polypod.report.series import decoding, prompt_tokens, spans_s
from polypod.report.slos import inside, plan_slos


@dataclass(frozen=True, slots=True, kw_only=True)
class Percentiles:
    """Seconds over some requests, at least one."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """Requests inside the SLO."""

    requests: int
    fraction: float  # of those that arrived
    per_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One limit of an SLO, and what came of it over the requests that finished and have the quantity."""

    limit_s: float
    percentile: float
    reached_s: float  # at that percentile
    inside_fraction: float

    @property
    def is_kept(self) -> bool:
        return self.reached_s <= self.limit_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The requests of one model, or of one tenant. A tenant's requests may be of several models, so it has no limits of its own."""

    name: str
    requests: int
    finished: int
    rejected: dict[str, int]  # by code
    ttft: Percentiles | None
    tpot: Percentiles | None
    e2e: Percentiles | None
    goodput: Goodput | None  # None: no SLO
    ttft_limit: Limit | None
    tpot_limit: Limit | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one replica, or the replicas of one pool or island, did. Up times add up over replicas."""

    name: str
    pool: str
    model: str
    requests: int  # finished that were answered there, or whose prompts were computed there where it does nothing else
    output_tokens: int
    up_s: float
    busy_s: float | None  # None: the driver did not measure it
    island: str = ""  # the part of the fleet that the plan puts the pool on
    slots_fraction: float | None = None  # of the requests it may run at once, mean
    kv_fraction: float | None = None  # of its cache, mean

    @property
    def busy_fraction(self) -> float | None:
        return None if self.busy_s is None or not self.up_s else self.busy_s / self.up_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Of everything whose `watts` were measured, added up."""

    mean_w: float
    most_w: float
    joules_per_token: float | None  # of output
    pue_ratio: float | None  # mean over time
    site_mean_w: float | None = None  # with cooling
    site_joules_per_token: float | None = None
    co2_kg: float | None = None
    kg_co2_per_million_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """The router's word on the first token beside what came, over the last attempts that gave one."""

    requests: int
    mean_error_s: float  # happened less predicted
    p10_ratio: float | None  # happened over predicted; None where nothing more than 0 was predicted
    p50_ratio: float | None
    p90_ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run. Requests are finished, rejected (by status), gone (the client left), or were open at the end."""

    kind: str
    requests: int
    finished: int
    rejected: dict[int, int]
    gone: int
    open: int
    retries: int  # dispatches beyond each request's first
    duration_s: float  # from the first arrival to the last end of a request
    input_tokens: int  # of the requests that finished
    output_tokens: int
    ttft: Percentiles | None
    tpot: Percentiles | None
    e2e: Percentiles | None
    goodput: Goodput | None  # None: no SLO
    replicas: tuple[Share, ...]
    pools: tuple[Share, ...]
    rejected_codes: dict[str, int]
    models: tuple[Group, ...]
    tenants: tuple[Group, ...]
    islands: tuple[Share, ...]
    traffic_bytes: dict[str, float]  # by tier
    cached_tokens: dict[
        str, float
    ]  # of prompts, that were found in this tier; empty where no prefixes were played
    power: Power | None
    foresight: Foresight | None
    replica_foresight: tuple[ReplicaForesight, ...]
    faults: tuple[FaultCost, ...]
    is_whole: bool  # the record says that the run ended
    note: str | None  # what is wrong with the record

    @property
    def requests_per_s(self) -> float | None:
        return self.finished / self.duration_s if self.duration_s else None

    @property
    def output_tokens_per_s(self) -> float | None:
        return self.output_tokens / self.duration_s if self.duration_s else None


def summarise(lines: Iterable[Line], slos: Mapping[str, Slo] | None = None) -> RunSummary:
    """Read a record once. SLOs are by model; those of the plan in the header unless others are given."""
    return summary_of(fold(lines), slos)


def summary_of(outcomes: Outcomes, slos: Mapping[str, Slo] | None = None) -> RunSummary:
    """The same, of a record that was read."""
    slos = plan_slos(outcomes.plans) if slos is None else slos
    kept = inside(outcomes, slos)
    status = outcomes.requests.status
    replicas, everyone = _replicas(outcomes), np.ones(len(outcomes), dtype=bool)
    whole = _group("", outcomes, everyone, kept, slos)
    refused = status[(status != OPEN) & (status != GONE) & ~outcomes.finished]
    return RunSummary(
        kind="" if outcomes.header is None else outcomes.header.kind,
        requests=len(outcomes),
        finished=whole.finished,
        rejected={int(one): int(n) for one, n in zip(*np.unique(refused, return_counts=True), strict=True)},
        gone=int(np.sum(status == GONE)),
        open=int(np.sum(status == OPEN)),
        retries=outcomes.retries,
        duration_s=outcomes.duration_s,
        input_tokens=int(outcomes.requests.input_tokens[outcomes.finished].sum()),
        output_tokens=int(outcomes.requests.output_tokens.sum()),
        ttft=whole.ttft,
        tpot=whole.tpot,
        e2e=whole.e2e,
        goodput=whole.goodput,
        replicas=replicas,
        pools=pools_of(outcomes, replicas),
        rejected_codes=whole.rejected,
        models=_groups(outcomes.models, outcomes.requests.model, outcomes, kept, slos),
        tenants=_groups(outcomes.tenants, outcomes.requests.tenant, outcomes, kept, slos),
        islands=islands_of(replicas),
        traffic_bytes={of: float(one.value.sum()) for of, one in outcomes.measured("bytes").items()},
        cached_tokens=_cached(outcomes),
        power=power_of(outcomes, int(outcomes.requests.output_tokens.sum())),
        foresight=_foresight(outcomes),
        replica_foresight=foresight_of(outcomes),
        faults=fault_costs(outcomes, slos),
        is_whole=outcomes.is_whole,
        note=outcomes.note,
    )  # fmt: skip


def percentiles(values_s: Sequence[float] | Floats) -> Percentiles | None:
    """Mean and percentiles; None of nothing, and of one value that value.

    >>> percentiles([1.0, 2.0, 3.0, 4.0, 5.0])
    Percentiles(mean_s=3.0, p50_s=3.0, p90_s=4.6, p99_s=4.96)
    """
    if not len(values_s):
        return None
    p50_s, p90_s, p99_s = (float(value) for value in np.percentile(values_s, (50, 90, 99)))
    return Percentiles(mean_s=float(np.mean(values_s)), p50_s=p50_s, p90_s=p90_s, p99_s=p99_s)


# ---- requests


def _groups(
    names: Sequence[str], index: npt.NDArray[np.int64], outcomes: Outcomes, kept: Bools, slos: Mapping[str, Slo]
) -> tuple[Group, ...]:  # fmt: skip
    return tuple(_group(name, outcomes, index == n, kept, slos) for n, name in enumerate(names))


def _group(
    name: str, outcomes: Outcomes, these: Bools, kept: Bools, slos: Mapping[str, Slo]
) -> Group:
    requests, inside_slo = int(these.sum()), int((these & kept).sum())
    codes, counts = np.unique(outcomes.requests.code[these], return_counts=True)
    slo = slos.get(name, Slo())
    ttft_s, tpot_s, e2e_s = (
        _known(one[these]) for one in (outcomes.ttft_s, outcomes.tpot_s, outcomes.e2e_s)
    )
    goodput = Goodput(
        requests=inside_slo,
        fraction=inside_slo / max(requests, 1),
        per_s=inside_slo / outcomes.duration_s if outcomes.duration_s else None,
    )
    return Group(
        name=name,
        requests=requests,
        finished=int((these & outcomes.finished).sum()),
        rejected={
            outcomes.codes[code]: int(n) for code, n in zip(codes, counts, strict=True) if code >= 0
        },
        ttft=percentiles(ttft_s),
        tpot=percentiles(tpot_s),
        e2e=percentiles(e2e_s),
        goodput=goodput if slos else None,
        ttft_limit=_limit(ttft_s, slo.ttft_s, slo.percentile),
        tpot_limit=_limit(tpot_s, slo.tpot_s, slo.percentile),
    )


def _known(values: Floats) -> Floats:
    return np.asarray(values[np.isfinite(values)])


def _limit(values_s: Floats, limit_s: float | None, percentile: float) -> Limit | None:
    if limit_s is None or not len(values_s):
        return None
    return Limit(
        limit_s=limit_s,
        percentile=percentile,
        reached_s=float(np.percentile(values_s, percentile)),
        inside_fraction=float(np.mean(values_s <= limit_s)),
    )


def _foresight(outcomes: Outcomes) -> Foresight | None:
    requests = outcomes.requests
    happened_s = requests.first_s - requests.placed_s
    predicted_s = requests.predicted_first_token_s
    both = np.isfinite(happened_s) & np.isfinite(predicted_s) & (happened_s >= 0)
    if not both.any():
        return None
    happened_s, predicted_s = happened_s[both], predicted_s[both]
    some = predicted_s > 0
    ratios = happened_s[some] / predicted_s[some]
    p10, p50, p90 = np.percentile(ratios, (10, 50, 90)).tolist() if some.any() else (None,) * 3
    return Foresight(
        requests=int(both.sum()),
        mean_error_s=float(np.mean(happened_s - predicted_s)),
        p10_ratio=p10,
        p50_ratio=p50,
        p90_ratio=p90,
    )


# ---- places


def _replicas(outcomes: Outcomes) -> tuple[Share, ...]:
    stays, n = outcomes.stays, len(outcomes.replicas)
    rows = np.flatnonzero(outcomes.finished & (outcomes.requests.decode_replica >= 0))
    where = outcomes.requests.decode_replica[rows]
    prompts = outcomes.served_at[outcomes.finished]
    counts = np.bincount(where, minlength=n) + np.bincount(prompts[prompts >= 0], minlength=n)
    tokens = np.bincount(where, weights=outcomes.requests.output_tokens[rows], minlength=n)
    stayed_s = stays.end_s - stays.begin_s
    held = stays.role != TRANSFER
    since_s, half = decoding(outcomes)
    token_s = prompt_tokens(outcomes) * stayed_s + half * (stays.end_s - since_s)
    slots_s = np.bincount(stays.replica[held], weights=stayed_s[held], minlength=n)
    kv_token_s = np.bincount(stays.replica[held], weights=token_s[held], minlength=n)
    islands = [pool_islands(plan) for plan in outcomes.plans]
    return tuple(
        Share(
            name=one.name,
            pool=one.pool,
            model=one.model,
            requests=int(counts[at]),
            output_tokens=int(tokens[at]),
            up_s=one.up_s,
            busy_s=one.busy_s,
            island=islands[one.plan].get(one.pool, ""),
            slots_fraction=_over(float(slots_s[at]), one.slots * one.up_s),
            kv_fraction=_over(float(kv_token_s[at]), one.kv_capacity_tokens * one.up_s),
        )
        for at, one in enumerate(outcomes.replicas)
    )


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def pool_islands(plan: Mapping[str, Any]) -> dict[str, str]:
    """The part of the fleet that each pool of the plan is on, by the pool's name."""
    return {
        pool.get("name") or f"pool{s}.{p}": pool.get("on", "")
        for s, service in enumerate(plan.get("services", []))
        for p, pool in enumerate(service.get("pools", []))
    }


def pools_of(outcomes: Outcomes, replicas: Sequence[Share]) -> tuple[Share, ...]:
    """The same by pool and model."""
    by_pool: dict[tuple[str, str], list[Share]] = {}
    for share in replicas:
        by_pool.setdefault((share.pool, share.model), []).append(share)
    busy = outcomes.measured("busy_s")
    return tuple(_sum(pool, shares, busy.get(pool)) for (pool, _), shares in by_pool.items())


def islands_of(replicas: Sequence[Share]) -> tuple[Share, ...]:
    """The same by the part of the fleet; none where the record names none."""
    by_island: dict[str, list[Share]] = {}
    for share in replicas:
        by_island.setdefault(share.island, []).append(share)
    by_island.pop("", None)
    return tuple(_sum(island, shares, None) for island, shares in by_island.items())


def _sum(name: str, shares: Sequence[Share], measured: Series | None) -> Share:
    busy_s = [share.busy_s for share in shares if share.busy_s is not None]
    summed_s = sum(busy_s) if len(busy_s) == len(shares) else None
    if summed_s is None and measured is not None:
        summed_s = float(measured.value.sum())
    first = shares[0]
    return Share(
        name=name,
        pool=first.pool if all(share.pool == first.pool for share in shares) else "",
        model=first.model if all(share.model == first.model for share in shares) else "",
        requests=sum(share.requests for share in shares),
        output_tokens=sum(share.output_tokens for share in shares),
        up_s=sum(share.up_s for share in shares),
        busy_s=summed_s,
        island=first.island,
        slots_fraction=_mean([(share.slots_fraction, share.up_s) for share in shares]),
        kv_fraction=_mean([(share.kv_fraction, share.up_s) for share in shares]),
    )


def _mean(parts: Sequence[tuple[float | None, float]]) -> float | None:
    """Over the time they were up."""
    known = [(value, weight) for value, weight in parts if value is not None]
    whole = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / whole if whole else None


# ---- measured


def _cached(outcomes: Outcomes) -> dict[str, float]:
    """Tokens found, by tier: replicas say what they found over the whole run."""
    found = {}
    for tier in ("hbm", "host", "remote"):
        measured = outcomes.measured(f"found_{tier}_tokens")
        if measured:
            found[tier] = float(sum(one.value[-1] for one in measured.values()))
    return found


def power_of(outcomes: Outcomes, tokens: int) -> Power | None:
    """What was measured of power, over so many tokens of output. Each sample is the mean over the time since the one before it."""
    drawn = list(outcomes.measured("watts").values())
    if not drawn:
        return None
    joules = sum(float(np.sum(one.value * spans_s(one, outcomes.begin_s))) for one in drawn)
    length_s = max(float(one.at_s[-1]) for one in drawn) - outcomes.begin_s
    at_s = np.unique(np.concatenate([one.at_s for one in drawn]))
    watts = sum((_then(one, at_s) for one in drawn), np.zeros(len(at_s)))
    pues = list(outcomes.measured("pue").values())
    return Power(
        mean_w=joules / length_s if length_s > 0 else float(watts[-1]),
        most_w=float(watts.max()),
        joules_per_token=joules / tokens if tokens else None,
        pue_ratio=_in_time(pues[0], outcomes.begin_s) if len(pues) == 1 else None,
        **_site(outcomes, tokens),
    )


def _site(outcomes: Outcomes, tokens: int) -> dict[str, float]:
    """What was measured of the site: watts with cooling, CO2."""
    sites, co2 = outcomes.measured("site_watts"), outcomes.measured("co2_kg")
    found = {}
    if len(sites) == 1:
        (site,) = sites.values()
        found["site_mean_w"] = _in_time(site, outcomes.begin_s)
        if tokens:
            found["site_joules_per_token"] = (
                float(np.sum(site.value * spans_s(site, outcomes.begin_s))) / tokens
            )
    if co2:
        kg = sum(float(one.value.sum()) for one in co2.values())
        found["co2_kg"] = kg
        if tokens:
            found["kg_co2_per_million_tokens"] = kg * 1e6 / tokens
    return found


def _then(series: Series, at_s: Floats) -> Floats:
    """The sample that each time belongs to: the first at or after it; 0 after the last."""
    which = np.searchsorted(series.at_s, at_s)
    last = len(series.value) - 1
    return np.where(which <= last, series.value[np.minimum(which, last)], 0.0)


def _in_time(series: Series, begin_s: float) -> float:
    lengths_s = spans_s(series, begin_s)
    whole_s = float(lengths_s.sum())
    return float(np.sum(series.value * lengths_s)) / whole_s if whole_s else float(series.value[-1])
