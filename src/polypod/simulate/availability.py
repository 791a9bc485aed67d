"""What share of the time each service has the replicas its traffic needs: failures played for years, with no requests.

Every run has its own seed and the same length; the mean over runs comes with Student's 95 % interval. The same failures are played whatever
the number of spares, so that two numbers of spares differ by the spares alone. All is up at the start, which favours short runs by
one repair in the run's length. Slow cards and links count as up here: `polypod simulate` plays what they do to requests.

Shape key: S runs, X moments at which something changes, P pools of a service, K kinds of failure, N outages.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InfeasibleError, InputError
from polypod.simulate.demand import ENOUGH, Demand
from polypod.simulate.failure_rates import YEAR_S, Rate, poisson_limits
from polypod.simulate.outages import Outages, compiled, reach
from polypod.simulate.seats import Seated
from polypod.simulate.spots import count_of, size_of
from polypod.simulate.timeline import Timeline, draw

Floats = NDArray[np.float64]

MINUTES: Final = YEAR_S / 60
TARGETS: Final = (0.999, 0.9999)
MOST_FAILURES: Final = 5_000_000
WIDEST: Final = 0.5
"""Of the time down that an answer is given for: half of it, more or less."""

_T95: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip
"""Student's two-sided 95 % quantiles for 1 to 20 degrees of freedom; 1.96 and 2.4 / degrees beyond, which is within 0.3 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean over runs, and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """One service. Minutes are of a year; `capacity` has, for each share of the time, the least share of the traffic carried in all but that of it."""

    model: str
    up_fraction: Interval
    down_minutes: Interval
    outages_per_year: float
    seen_outages: int
    minutes_by_cause: dict[str, float]
    capacity: dict[str, float]
    mean_carried_fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Failures drawn for every run."""

    seated: Seated
    demands: tuple[Demand, ...]
    timelines: tuple[Timeline, ...]
    years: float

    @property
    def failures(self) -> int:
        return sum(len(one) for one in self.timelines)


def draw_runs(
    seated: Seated,
    demands: Sequence[Demand],
    rates: Mapping[str, Rate],
    *,
    years: float,
    runs: int,
    seed: int = 0,
) -> Runs:
    """Draw the failures. Raises `InfeasibleError` where so few would be seen that the answer would say nothing, with how wide its interval would be."""
    if runs < 2:
        msg = f"{runs} run has no interval; play 2 or more"
        raise InputError(msg)
    stops = {name: rate for name, rate in rates.items() if rate.kind.what in ("crash", "hang")}
    per_year = sum(failures_per_year(seated, rate) for rate in stops.values())
    check_length(per_year, years, runs)
    if per_year * years * runs > MOST_FAILURES:
        msg = f"{runs} runs of {years:g} years hold {per_year * years * runs:,.0f} failures, more than {MOST_FAILURES:,} at once; {_rounded(2 * (1.96 / 0.01) ** 2 / per_year)} years in all are enough for +- 1% (--years, --runs)"
        raise InputError(msg)
    timelines = [
        draw(seated.placed, stops, years * YEAR_S, seed=seed * 100_003 + run, domains=seated.domains)
        for run in range(runs)
    ]  # fmt: skip
    return Runs(seated=seated, demands=tuple(demands), timelines=tuple(timelines), years=years)


def check_length(per_year: float, years: float, runs: int) -> None:
    """Refuse what is too short to say anything.

    Of N failures with exponential repairs, the time down is known to within 1.96 * sqrt(2 / N) of itself.
    """
    expected = per_year * years * runs
    if not expected > 0:
        msg = "nothing of this plan ever fails at these rates, so it is always up; give rates with --mtbf"
        raise InfeasibleError(msg)
    if half_width(expected) > WIDEST:
        least, good = (2 * (1.96 / width) ** 2 / per_year for width in (WIDEST, 0.1))
        msg = (
            f"{years * runs:.3g} years in all hold {expected:.2g} failures of this plan's replicas: their time down would be known to within +- {half_width(expected):.0%} of itself, "
            f"and availability is not to be had from so little; play {_rounded(least)} years for +- {WIDEST:.0%}, {_rounded(good)} for +- 10% (--years, --runs)"
        )
        raise InfeasibleError(msg)


def half_width(failures: float) -> float:
    """Of the 95 % interval of the time down, relative to it.

    >>> round(half_width(769), 2)
    0.1
    """
    return 1.96 * math.sqrt(2 / failures)


def _rounded(years: float) -> str:
    return f"{years:.2g}" if years < 10 else f"{math.ceil(years):,}"


def failures_per_year(seated: Seated, rate: Rate) -> float:
    """Failures of one kind, of components that some replica has cards of."""
    used = 0
    for part in seated.placed.parts:
        if part.place is None:
            continue
        size = size_of(part, rate.kind.of, seated.domains)
        first = part.first_card + size * np.arange(count_of(part, rate.kind.of, seated.domains))
        begin, end = reach(
            seated.seats, first, np.minimum(first + size, part.first_card + part.cards)
        )
        used += int(np.count_nonzero(begin < end))
    return used * rate.per_year


def play_runs(runs: Runs, spares: int | None = None) -> list[Availability]:
    """What every service sees, with other spares than the recovery's where they are given."""
    seated = runs.seated
    if spares is not None:
        recovery = replace(seated.recovery, spares=spares, spare_fraction=0.0)
        seated = replace(seated, recovery=recovery)
    walk = compiled()
    sums = [_Sum(demand, runs.years) for demand in runs.demands]
    for timeline in runs.timelines:
        outages = seated.outages(timeline, walk)
        for one in sums:
            one.add(seated, timeline, outages)
    return [one.answer() for one in sums]


class _Sum:
    """One service over the runs."""

    def __init__(self, demand: Demand, years: float) -> None:
        self._demand, self._years = demand, years
        self._down: list[float] = []  # shares of each run's time
        self._outages = 0
        self._replica_s: list[Floats] = [np.zeros(0)]  # how long replicas are down at a time
        self._by_cause: dict[str, float] = {}
        self._values: list[Floats] = []
        self._lasts: list[Floats] = []

    def add(self, seated: Seated, timeline: Timeline, outages: Outages) -> None:
        end_s = self._years * YEAR_S
        down_XP, down_XK, lasts_X = changes(self._demand, seated, timeline, outages, end_s)
        carried_X = self._demand.carried(np.array(self._demand.replicas) - down_XP)
        is_down_X = carried_X < ENOUGH
        self._down.append(float(lasts_X[is_down_X].sum()) / end_s)
        self._outages += int(np.count_nonzero(np.diff(is_down_X.astype(np.int8), prepend=0) == 1))
        whole_X = np.maximum(down_XK.sum(axis=1), 1)
        shared_K = ((lasts_X * is_down_X / whole_X) @ down_XK) / end_s
        for rate, share in zip(timeline.rates, shared_K.tolist(), strict=True):
            name = rate.kind.name
            self._by_cause[name] = self._by_cause.get(name, 0.0) + share
        self._replica_s.append(outages.end_s_N - outages.start_s_N)
        self._values.append(carried_X)
        self._lasts.append(lasts_X)

    def answer(self) -> Availability:
        runs = len(self._down)
        seen_years = runs * self._years
        down = _widened(_interval(self._down), self._outages, float(np.concatenate(self._replica_s).mean()) / (seen_years * YEAR_S))  # fmt: skip
        carried, lasts = np.concatenate(self._values), np.concatenate(self._lasts)
        minutes = {name: MINUTES * share / runs for name, share in self._by_cause.items()}
        return Availability(
            model=self._demand.model,
            up_fraction=Interval(mean=1 - down.mean, low=1 - down.high, high=1 - down.low),
            down_minutes=Interval(mean=MINUTES * down.mean, low=MINUTES * down.low, high=MINUTES * down.high),
            outages_per_year=self._outages / seen_years,
            seen_outages=self._outages,
            minutes_by_cause={name: value for name, value in sorted(minutes.items(), key=lambda item: -item[1]) if value},
            capacity={f"{100 * share:g}": _least(carried, lasts, share) for share in (0.5, 0.9, 0.99, 0.999, 0.9999)},
            mean_carried_fraction=float(carried @ lasts / lasts.sum()),
        )  # fmt: skip


def changes(
    demand: Demand, seated: Seated, timeline: Timeline, outages: Outages, end_s: float
) -> tuple[Floats, Floats, Floats]:
    """Replicas down after each change, by pool and by kind, and how long it stays so; the first row is from the start.

    Shapes XP, XK and X.
    """
    pool_N = seated.pool_R[outages.replica_N] - demand.first_pool
    mine_N = (pool_N >= 0) & (pool_N < len(demand.pools)) & (outages.start_s_N < end_s)
    pool_N = pool_N[mine_N]
    kind_N = timeline.kind_F[outages.failure_N[mine_N]]
    count = len(pool_N)
    at_s = np.concatenate([outages.start_s_N[mine_N], np.minimum(outages.end_s_N[mine_N], end_s)])
    sign = np.concatenate([np.ones(count), -np.ones(count)])
    order = np.argsort(at_s, kind="stable")
    rows = np.arange(1, 2 * count + 1)
    down_XP = np.zeros((2 * count + 1, len(demand.pools)))
    down_XK = np.zeros((2 * count + 1, len(timeline.rates)))
    down_XP[rows, np.tile(pool_N, 2)[order]] = sign[order]
    down_XK[rows, np.tile(kind_N, 2)[order]] = sign[order]
    lasts_X = np.diff(np.concatenate([[0.0], at_s[order], [end_s]]))
    return down_XP.cumsum(axis=0), down_XK.cumsum(axis=0), lasts_X


def _interval(values: Sequence[float]) -> Interval:
    """Student's interval of shares, cut at 0."""
    freedom = len(values) - 1
    mean = float(np.mean(values))
    t = _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.4 / freedom
    half = t * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def _widened(down: Interval, outages: int, each: float) -> Interval:
    """With few outages the runs' spread says too little: at least the 95 % limits of their number, as of a Poisson count.

    `each` is what one outage as long as a replica's takes of the whole time, for where none was seen.
    """
    low, high = poisson_limits(outages)
    if not outages:
        return Interval(mean=0.0, low=0.0, high=high * each)
    return Interval(
        mean=down.mean,
        low=min(down.low, down.mean * low / outages),
        high=max(down.high, down.mean * high / outages),
    )


def _least(carried: Floats, lasts: Floats, share: float) -> float:
    """What is carried or more in that share of the time."""
    order = np.argsort(-carried, kind="stable")
    spent = np.cumsum(lasts[order])
    at = int(np.searchsorted(spent, share * spent[-1] * (1 - 1e-12)))
    return float(carried[order][min(at, len(order) - 1)])


@dataclass(frozen=True, slots=True, kw_only=True)
class SparesFor:
    """The fewest spares with which a service reaches a target; None where none do, and what they reach then."""

    target_fraction: float
    spares: int | None
    up_fraction: float


MOST_SPARES: Final = 4096


def spares_for(runs: Runs, targets: Sequence[float] = TARGETS) -> list[list[SparesFor]]:
    """For every service and target: by doubling and halving, over the same failures. Spares are cards of each part."""
    known: dict[int, list[float]] = {}

    def reached(service: int, spares: int) -> float:
        if spares not in known:
            known[spares] = [one.up_fraction.mean for one in play_runs(runs, spares)]
        return known[spares][service]

    most = min(MOST_SPARES, max(part.cards for part in runs.seated.placed.parts))
    return [
        [_fewest(partial(reached, service), target, most) for target in targets]
        for service in range(len(runs.demands))
    ]  # fmt: skip


def _fewest(reached: Callable[[int], float], target: float, most: int) -> SparesFor:
    """The fewest of 0 to `most` that reach it. More spares are taken to do no harm, which holds up to the failures of the spares themselves."""
    low, high = 0, 1
    if reached(0) >= target:
        return SparesFor(target_fraction=target, spares=0, up_fraction=reached(0))
    while reached(high) < target:
        if high >= most:
            return SparesFor(target_fraction=target, spares=None, up_fraction=reached(high))
        low, high = high, min(most, 2 * high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= target else (middle, high)
    return SparesFor(target_fraction=target, spares=high, up_fraction=reached(high))
