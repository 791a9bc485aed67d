"""Summaries of runs too long to keep: requests are counted in parts, in memory that does not grow with their number.

Latencies are histograms with buckets of 1 % (`report.histogram`), so percentiles are within 0.5 %; counts, means and sums are exact. What rests on
single requests is not there: the router's foresight, and what each fault cost; a record has both.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from polypod.plan.spec import Slo
from polypod.report.histogram import Tally, tallies
from polypod.report.outcomes import FINISHED, GONE, OPEN, TRANSFER, Ints, Outcomes
from polypod.report.slos import inside, plan_slos
from polypod.report.summary import (
    Goodput,
    Group,
    RunSummary,
    islands_of,
    pools_of,
    power_of,
    summary_of,
)

NOTE: Final = "percentiles are within 0.5 %: the run is too long to keep every request"


class Coarse:
    """Takes a run's requests in parts, each once, in any order."""

    def __init__(self, slos: Mapping[str, Slo] | None = None) -> None:
        self._slos = slos
        self._whole = Tally()
        self._models: dict[str, Tally] = {}
        self._tenants: dict[str, Tally] = {}
        self._rejected: Counter[int] = Counter()
        self._counts: Counter[str] = Counter()
        self._first_s, self._last_s = math.inf, 0.0
        self._per_replica = np.zeros((3, 0))  # requests, tokens, seconds of slots

    def add(self, part: Outcomes) -> None:
        slos = self._slos_of(part)
        kept = inside(part, slos)
        for known, found in (
            (self._models, tallies(part, kept, part.requests.model, part.models)),
            (self._tenants, tallies(part, kept, part.requests.tenant, part.tenants)),
            ({"": self._whole}, tallies(part, kept, np.zeros(len(part), dtype=np.int64), ("",))),
        ):
            for name, one in found.items():
                known.setdefault(name, Tally()).merge(one)
        status = part.requests.status
        refused = status[(status != OPEN) & (status != GONE) & (status != FINISHED)]
        self._rejected.update(refused.tolist())
        self._counts["gone"] += int((status == GONE).sum())
        self._counts["open"] += int((status == OPEN).sum())
        self._counts["retries"] += part.retries
        self._counts["input_tokens"] += int(part.requests.input_tokens[part.finished].sum())
        ends_s = part.requests.end_s[np.isfinite(part.requests.end_s)]
        self._first_s = min(self._first_s, float(part.requests.arrival_s.min(initial=math.inf)))
        self._last_s = max(self._last_s, float(ends_s.max(initial=0.0)))
        self._add_replicas(part)

    @property
    def last_s(self) -> float:
        """When the last request ended; 0 where none did."""
        return self._last_s

    def merge(self, other: "Coarse", places: Ints, count: int) -> None:
        """Take in what another has counted, whose replicas are at `places` among the `count` of the whole."""
        for known, found in (
            (self._models, other._models),
            (self._tenants, other._tenants),
            ({"": self._whole}, {"": other._whole}),
        ):
            for name, one in found.items():
                known.setdefault(name, Tally()).merge(one)
        self._rejected.update(other._rejected)
        self._counts.update(other._counts)
        self._first_s = min(self._first_s, other._first_s)
        self._last_s = max(self._last_s, other._last_s)
        if self._per_replica.shape[1] < count:
            self._per_replica = np.zeros((3, count))
        self._per_replica[:, places] += other._per_replica

    def summary(self, last: Outcomes) -> RunSummary:
        """Of all parts; `last` has the run's replicas, series and end."""
        slos = self._slos_of(last)
        duration_s = max(self._last_s - self._first_s, 0.0)
        whole = self._whole.group("", Slo() if slos else None, duration_s)
        base = summary_of(last, slos)
        requests, tokens, slots_s = self._per_replica.tolist()
        replicas = tuple(
            replace(
                share,
                requests=int(requests[at]),
                output_tokens=int(tokens[at]),
                slots_fraction=slots_s[at] / (one.slots * one.up_s) if one.up_s else None,
                kv_fraction=None,
            )
            for at, (share, one) in enumerate(zip(base.replicas, last.replicas, strict=True))
        )
        return replace(
            base,
            requests=self._whole.requests,
            finished=self._whole.finished,
            rejected=dict(sorted(self._rejected.items())),
            gone=self._counts["gone"],
            open=self._counts["open"],
            retries=self._counts["retries"],
            duration_s=duration_s,
            input_tokens=self._counts["input_tokens"],
            output_tokens=self._whole.output_tokens,
            ttft=whole.ttft,
            tpot=whole.tpot,
            e2e=whole.e2e,
            goodput=_goodput(self._whole, duration_s) if slos else None,
            replicas=replicas,
            pools=pools_of(last, replicas),
            islands=islands_of(replicas),
            rejected_codes=dict(self._whole.rejected),
            models=_groups(self._models, slos, duration_s),
            tenants=_groups(self._tenants, {}, duration_s),
            power=power_of(last, self._whole.output_tokens),
            foresight=None,
            replica_foresight=(),
            faults=(),
            note=NOTE,
        )

    def _slos_of(self, part: Outcomes) -> dict[str, Slo]:
        return dict(plan_slos(part.plans) if self._slos is None else self._slos)

    def _add_replicas(self, part: Outcomes) -> None:
        count, done = len(part.replicas), part.finished & (part.requests.decode_replica >= 0)
        where = part.requests.decode_replica[done]
        stays = part.stays
        held = stays.role != TRANSFER
        added = np.stack(
            [
                np.bincount(where, minlength=count),
                np.bincount(where, weights=part.requests.output_tokens[done], minlength=count),
                np.bincount(
                    stays.replica[held],
                    weights=(stays.end_s - stays.begin_s)[held],
                    minlength=count,
                ),
            ]
        )
        if self._per_replica.shape[1] < count:
            self._per_replica = np.zeros((3, count))
        self._per_replica += added


def _goodput(whole: Tally, duration_s: float) -> Goodput:
    return Goodput(
        requests=whole.inside,
        fraction=whole.inside / max(whole.requests, 1),
        per_s=whole.inside / duration_s if duration_s else None,
    )


def _groups(
    tallied: Mapping[str, Tally], slos: Mapping[str, Slo], duration_s: float
) -> tuple[Group, ...]:
    return tuple(one.group(name, slos.get(name), duration_s) for name, one in tallied.items())
