"""Latencies of runs too long to keep: counts in buckets of equal ratio, in memory that does not grow.

Bucket k counts values from `edges[k-1]` up to, but not including, `edges[k]`; the edges are LOW_S * 1.01^k, so any value of a bucket is within 0.5 % of
its geometric middle. Bucket 0 holds what is below LOW_S (zero too), the last one what is at HIGH_S or above; of both, quantiles are the value nearest the others.
The bucket is found by comparing with the edges, not by a logarithm, so a compiled driver that does `counts[searchsorted(edges, value, side="right")] += 1`
counts the same, to the last one.

A `Tally` is what a summary needs of one model or tenant: three histograms, counts, sums. Tallies of parts of a run add up to that of the whole.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from polypod.errors import InputError
from polypod.plan.spec import Slo
from polypod.report.outcomes import Bools, Floats, Ints, Outcomes
from polypod.report.slos import inside
from polypod.report.summary import Goodput, Group, Limit, Percentiles

LOW_S: Final = 1e-5
HIGH_S: Final = 1e6
RATIO: Final = 1.01
BUCKETS: Final = math.ceil(math.log(HIGH_S / LOW_S) / math.log(RATIO)) + 2


def edges() -> Floats:
    """The ends of the buckets, in seconds [BUCKETS - 1]."""
    return np.asarray(LOW_S * RATIO ** np.arange(BUCKETS - 1))


_EDGES: Final = edges()


@dataclass(slots=True, eq=False)
class Histogram:
    """Counts of values in seconds, their sum, and the least and the most; the counts may be filled from outside."""

    counts: Ints = field(default_factory=lambda: np.zeros(BUCKETS, dtype=np.int64))
    sum_s: float = 0.0
    least_s: float = math.inf
    most_s: float = -math.inf

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def add(self, values_s: Floats) -> None:
        """Count the values; NaN is none."""
        known = values_s[~np.isnan(values_s)]
        if len(known):
            which = np.searchsorted(_EDGES, known, side="right")
            self.counts += np.bincount(which, minlength=BUCKETS)
            self.sum_s += float(known.sum())
            self.least_s = min(self.least_s, float(known.min()))
            self.most_s = max(self.most_s, float(known.max()))

    def merge(self, other: "Histogram") -> None:
        """Take the other's counts in."""
        self.counts += other.counts
        self.sum_s += other.sum_s
        self.least_s = min(self.least_s, other.least_s)
        self.most_s = max(self.most_s, other.most_s)

    def quantile(self, at: float) -> float:
        """The value at this rank, 0 to 1, to 0.5 %; NaN of nothing. The rank is between the two nearest, as numpy's.

        >>> histogram = Histogram()
        >>> histogram.add(np.array([1.0, 2.0, 4.0]))
        >>> round(histogram.quantile(0.5), 2), histogram.quantile(1.0)
        (2.0, 4.0)
        """
        total = self.total
        if not total:
            return math.nan
        rank = at * (total - 1)
        below, above = self._ranked(math.floor(rank)), self._ranked(math.ceil(rank))
        return below + (above - below) * (rank - math.floor(rank))

    def _ranked(self, rank: int) -> float:
        """The middle of the bucket with the value of this rank, from 0; never beyond the least and the most."""
        bucket = int(np.searchsorted(np.cumsum(self.counts), rank, side="right"))
        below = _EDGES[max(bucket - 1, 0)]
        above = _EDGES[min(bucket, BUCKETS - 2)]
        return min(max(math.sqrt(below * above), self.least_s), self.most_s)

    def fraction_within(self, limit_s: float) -> float:
        """Of the values, those up to the limit; the bucket that holds it is split in proportion. NaN of nothing."""
        total = self.total
        if not total:
            return math.nan
        bucket = int(np.searchsorted(_EDGES, limit_s, side="right"))
        within = int(self.counts[:bucket].sum())
        low = self.least_s if bucket == 0 else _EDGES[bucket - 1]
        high = self.most_s if bucket == BUCKETS - 1 else _EDGES[bucket]
        part = 1.0 if limit_s >= self.most_s else (limit_s - low) / max(high - low, 1e-300)
        return float(within + self.counts[bucket] * min(max(part, 0.0), 1.0)) / total

    def percentiles(self) -> Percentiles | None:
        """Mean (exact) and percentiles; None of nothing."""
        if not self.total:
            return None
        return Percentiles(
            mean_s=self.sum_s / self.total,
            p50_s=self.quantile(0.5),
            p90_s=self.quantile(0.9),
            p99_s=self.quantile(0.99),
        )

    def to_json(self) -> dict[str, Any]:
        """Only the buckets that hold something."""
        held = np.flatnonzero(self.counts)
        return {
            "low_s": LOW_S,
            "ratio": RATIO,
            "buckets": held.tolist(),
            "counts": self.counts[held].tolist(),
            "sum_s": self.sum_s,
            "least_s": self.least_s if len(held) else None,
            "most_s": self.most_s if len(held) else None,
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Histogram":
        """What `to_json` gave. Raises `InputError` for other buckets than these."""
        if (raw["low_s"], raw["ratio"]) != (LOW_S, RATIO):
            msg = f"a histogram with buckets from {raw['low_s']} s by {raw['ratio']} does not fit these, from {LOW_S} s by {RATIO}; make it again with this version"
            raise InputError(msg)
        histogram = cls(sum_s=raw["sum_s"])
        histogram.counts[raw["buckets"]] = raw["counts"]
        if raw["buckets"]:
            histogram.least_s, histogram.most_s = raw["least_s"], raw["most_s"]
        return histogram


@dataclass(slots=True, eq=False)
class Tally:
    """Requests of one model or tenant, counted as they end."""

    requests: int = 0
    finished: int = 0
    inside: int = 0  # of the finished: kept every limit of their model
    output_tokens: int = 0
    rejected: dict[str, int] = field(default_factory=dict)  # by code
    ttft: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)

    def merge(self, other: "Tally") -> None:
        """Take the other's requests in."""
        self.requests += other.requests
        self.finished += other.finished
        self.inside += other.inside
        self.output_tokens += other.output_tokens
        for code, count in other.rejected.items():
            self.rejected[code] = self.rejected.get(code, 0) + count
        for name in ("ttft", "tpot", "e2e"):
            getattr(self, name).merge(getattr(other, name))

    def group(self, name: str, slo: Slo | None, duration_s: float) -> Group:
        """What a summary says of them."""
        goodput = Goodput(
            requests=self.inside,
            fraction=self.inside / max(self.requests, 1),
            per_s=self.inside / duration_s if duration_s else None,
        )
        return Group(
            name=name,
            requests=self.requests,
            finished=self.finished,
            rejected=dict(self.rejected),
            ttft=self.ttft.percentiles(),
            tpot=self.tpot.percentiles(),
            e2e=self.e2e.percentiles(),
            goodput=None if slo is None else goodput,
            ttft_limit=_limit(self.ttft, slo, None if slo is None else slo.ttft_s),
            tpot_limit=_limit(self.tpot, slo, None if slo is None else slo.tpot_s),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "finished": self.finished,
            "inside": self.inside,
            "output_tokens": self.output_tokens,
            "rejected": self.rejected,
            **{name: getattr(self, name).to_json() for name in ("ttft", "tpot", "e2e")},
        }

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Tally":
        histograms = {name: Histogram.from_json(raw[name]) for name in ("ttft", "tpot", "e2e")}
        return cls(**{**raw, **histograms})


def _limit(histogram: Histogram, slo: Slo | None, limit_s: float | None) -> Limit | None:
    if slo is None or limit_s is None or not histogram.total:
        return None
    return Limit(
        limit_s=limit_s,
        percentile=slo.percentile,
        reached_s=histogram.quantile(slo.percentile / 100),
        inside_fraction=histogram.fraction_within(limit_s),
    )


def tallies(outcomes: Outcomes, kept: Bools, index: Ints, names: Sequence[str]) -> dict[str, Tally]:
    """The tallies of a record, or of a part of one: of the requests [N] by `index` into names, `kept` saying which were inside their SLO."""
    found = {}
    for number, name in enumerate(names):
        these = index == number
        codes, counts = np.unique(outcomes.requests.code[these], return_counts=True)
        one = found[name] = Tally(
            requests=int(these.sum()),
            finished=int((these & outcomes.finished).sum()),
            inside=int((these & kept).sum()),
            output_tokens=int(outcomes.requests.output_tokens[these].sum()),
            rejected={outcomes.codes[c]: int(n) for c, n in zip(codes, counts, strict=True) if c >= 0},
        )  # fmt: skip
        one.ttft.add(outcomes.ttft_s[these])
        one.tpot.add(outcomes.tpot_s[these])
        one.e2e.add(outcomes.e2e_s[these])
    return found


def tally(outcomes: Outcomes, slos: dict[str, Slo]) -> dict[str, Tally]:
    """The tallies of the models of a record, or of a part of one."""
    kept = inside(outcomes, slos)
    return tallies(outcomes, kept, outcomes.requests.model, outcomes.models)
