"""A person's measured rows as calibrations of their own: groups, factors, bands, and what is not to be taken in.

Rows are grouped by accelerator, model, engine, precision and kind; TPOT and TTFT are fitted apart. With r = measured / predicted of n rows, in logarithms:

    factor     exp(m - pull) with m = median(r), pull = m * 2 / (2 + n): as if two more rows had come out as predicted, but never more than
               class / sqrt(n), so that many rows, or few that are far off, are believed
    residuals  of each row under the factor of the others
    band       half-width^2 = (6 * class^2 * (1 + 1/n) + n * own^2) / (6 + n) on either side: `class` is the spread within groups of the rows that
               ship (`data/bands.toml`), `own` the 10th or 90th percentile of the residuals. Of 1 or 2 rows it is mixed with the band that the
               prediction had before, n to 2. Never narrower than measurements repeat: 2 % of TPOT, 8 % of TTFT

The weights, 2 and 6, were chosen while looking at rows of the shipped groups that no fit saw (`held_out`): half or twice of either moves the interval
score there by less than 1 % of TPOT and 3 % of TTFT.

A row outside the prediction's band and far from its group's median is set aside; a group whose median lies outside the band is not taken
in unless it is asked for: a wrong layout or unit is more likely than a prediction that is so far off.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np

from polypod.cost.bands import METRICS, Band, Metric, band_of
from polypod.cost.own import Key, OwnFit, OwnMetric
from polypod.errors import FileError, PolypodError
from polypod.validate.predict import group_of, predict, reason_of
from polypod.validate.rows import Row, unique
from polypod.validate.scores import Scored

ENOUGH_ROWS: Final = 3
PRIOR_ROWS: Final = 2
_CLASS_ROWS: Final = 6
_NOISE: Final[dict[Metric, float]] = {"tpot": math.log(1.02), "ttft": math.log(1.08)}
_FAR_HALF_WIDTHS: Final = 3.0
_FAR_DEVIATIONS: Final = 3.5 * 1.4826
"""Times the median absolute deviation, as the usual 3.5 standard deviations."""
_ABSURD: Final = 100.0
"""Times off: no prediction is, but a unit is 1,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """One measured time beside what is predicted of it without a calibration of one's own."""

    file: str
    row: Row
    measured_s: float
    predicted_s: float
    band: Band

    @property
    def log(self) -> float:
        return math.log(self.measured_s / self.predicted_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One metric of a group: the fit, how far off rows were before and are after, what was set aside, and what speaks against it."""

    fit: OwnMetric
    before: Band
    median_abs_error: float
    median_abs_error_after: float | None  # each row under the fit of the others; None with one row
    outliers: tuple[Ratio, ...] = ()
    doubt: str | None = None
    is_kept: bool = True

    @property
    def after(self) -> Band:
        """The band about the calibrated prediction."""
        return Band(math.exp(self.fit.log_low), math.exp(self.fit.log_high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that one calibration can be of, and what became of them."""

    key: Key
    rows: int
    versions: tuple[str, ...]
    files: tuple[str, ...]
    fitted: dict[Metric, Fitted]
    warnings: tuple[str, ...] = ()
    so_far: OwnFit | None = None

    @property
    def stays(self) -> dict[Metric, OwnMetric]:
        """What was kept of this group before and has nothing to take its place."""
        before: dict[Metric, OwnMetric | None] = {}
        if self.so_far is not None:
            before = {"tpot": self.so_far.tpot, "ttft": self.so_far.ttft}
        return {name: fit for name, fit in before.items() if fit and name not in self._kept}

    @property
    def _kept(self) -> dict[Metric, OwnMetric]:
        return {name: one.fit for name, one in self.fitted.items() if one.is_kept}

    def own_fit(self, date: str) -> OwnFit | None:
        """What is to be kept; None where nothing is. A metric that is not kept stays as it was."""
        if not self._kept:
            return None
        chip, model, engine, precision, kind = self.key
        kept = self.stays | self._kept
        older = self.so_far if self.so_far and self.stays else None
        return OwnFit(
            chip=chip,
            model=model,
            engine=engine,
            precision=precision,
            kind=kind,
            versions=tuple(sorted({*self.versions, *(older.versions if older else ())})),
            source=", ".join(dict.fromkeys([*([older.source] if older else []), *self.files])),
            date=date,
            tpot=kept.get("tpot"),
            ttft=kept.get("ttft"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """All groups of some files, and the rows that no prediction could be made for, with their reasons."""

    groups: tuple[Group, ...]
    not_predicted: tuple[Scored, ...]


def calibrate(
    rows: Sequence[tuple[str, Row]],
    *,
    accept: bool = False,
    so_far: Mapping[Key, OwnFit] = MappingProxyType({}),
) -> Calibrated:
    """Fit every group of rows, each of which comes with its file's name.

    `accept` keeps groups that lie outside their bands; `so_far` are the fits whose place these are to take.

    Raises `FileError` for a file whose times are as a whole in another unit.
    """
    files = {id(row): file for file, row in rows}
    groups: dict[Key, list[Scored]] = defaultdict(list)
    missing = []
    for row in unique([row for _, row in rows]):
        try:
            groups[group_of(row)].append(Scored(row=row, prediction=predict(row, own=False)))
        except PolypodError as error:
            missing.append(Scored(row=row, prediction=None, reason=reason_of(error)))
    for metric in METRICS:
        _check_units([one for found in groups.values() for one in _ratios(found, metric, files)], metric)  # fmt: skip
    return Calibrated(
        groups=tuple(
            _group(key, found, files, accept=accept, so_far=so_far.get(key))
            for key, found in sorted(groups.items())
        ),
        not_predicted=tuple(missing),
    )


def _ratios(found: Iterable[Scored], metric: Metric, files: dict[int, str]) -> list[Ratio]:
    """Of rows where the metric was measured."""
    return [
        Ratio(file=files[id(one.row)], row=one.row, measured_s=times[0], predicted_s=times[1], band=times[2])
        for one in found
        if (times := one.times(metric)) is not None
    ]  # fmt: skip


def _check_units(ratios: Sequence[Ratio], metric: Metric) -> None:
    by_file: dict[str, list[float]] = defaultdict(list)
    for one in ratios:
        by_file[one.file].append(one.log)
    for file, logs in by_file.items():
        median = math.exp(float(np.median(logs)))
        if 1 / _ABSURD <= median <= _ABSURD:
            continue
        like = ("seconds: multiply them by 1,000" if median < 1 else "microseconds: divide them by 1,000")  # fmt: skip
        problem = (
            f"silicon_{metric}_ms is {median:.2g} times what is predicted, in the median of {len(logs)} rows; "
            f"it takes milliseconds, and these look like {like}"
        )
        raise FileError(file, problem)


def _group(
    key: Key, found: list[Scored], files: dict[int, str], *, accept: bool, so_far: OwnFit | None
) -> Group:
    fitted = {
        metric: fit_of(ratios, metric, key[-1], accept=accept)
        for metric in METRICS
        if (ratios := _ratios(found, metric, files))
    }
    versions = tuple(sorted({one.row.version for one in found if one.row.version}))
    return Group(
        key=key,
        rows=len(found),
        versions=versions,
        files=tuple(dict.fromkeys(files[id(one.row)] for one in found)),
        fitted=fitted,
        warnings=tuple(_warnings(key[2], versions, so_far)),
        so_far=so_far,
    )


def _warnings(engine: str, versions: tuple[str, ...], so_far: OwnFit | None) -> Iterable[str]:
    if len(versions) > 1:
        yield f"rows of {engine} {' and '.join(versions)} are fitted together: the fit is of their mixture"
    before = so_far.versions if so_far else ()
    if before and versions and before != versions:
        yield f"the fit so far is of {engine} {', '.join(before)}, these rows are of {', '.join(versions)}"


def fit_of(ratios: Sequence[Ratio], metric: Metric, kind: str, *, accept: bool) -> Fitted:
    """Fit one metric of one group."""
    median = float(np.median([one.log for one in ratios]))
    outliers = _outliers(ratios, median)
    apart = {id(one) for one in outliers}
    used = [one for one in ratios if id(one) not in apart]
    logs = [one.log for one in used]
    before = used[0].band
    middle = float(np.median(logs))
    doubt = _doubt(middle, before)
    within = band_of("calibrated", kind, metric)
    fit = OwnMetric(
        rows=len(used),
        factor=math.exp(log_factor(logs, within)),
        **_log_band(logs, before, within, metric),
    )
    return Fitted(
        fit=fit,
        before=before,
        median_abs_error=_error(logs),
        median_abs_error_after=_error(_left_out(logs, within)) if len(logs) > 1 else None,
        outliers=outliers,
        doubt=doubt,
        is_kept=doubt is None or (accept and abs(middle) <= math.log(_ABSURD)),
    )


def log_factor(logs: Sequence[float], within: Band) -> float:
    """The logarithm of the factor: the median, pulled towards 0 as far as rows are few, and no farther than they may err.

    >>> [round(log_factor([0.3] * n, Band(0.87, 1.14)), 3) for n in (1, 3, 12)]
    [0.165, 0.222, 0.261]
    """
    return _pulled(float(np.median(logs)), len(logs), within)


def _pulled(median: float, n: int, within: Band) -> float:
    pull = min(
        abs(median) * PRIOR_ROWS / (n + PRIOR_ROWS), math.log(within.ratio) / 2 / math.sqrt(n)
    )
    return math.copysign(abs(median) - pull, median)


def _outliers(ratios: Sequence[Ratio], median: float) -> tuple[Ratio, ...]:
    """Rows outside the prediction's band and far from what the group says, by the band's width and by the group's own spread."""
    if len(ratios) < ENOUGH_ROWS:
        return ()
    deviation = float(np.median([abs(one.log - median) for one in ratios]))
    return tuple(
        one
        for one in ratios
        if not one.band.low <= math.exp(one.log) <= one.band.high
        and abs(one.log - median)
        > max(_FAR_HALF_WIDTHS * math.log(one.band.ratio) / 2, _FAR_DEVIATIONS * deviation)
    )


def _doubt(median: float, band: Band) -> str | None:
    ratio = math.exp(median)
    if band.low <= ratio <= band.high:
        return None
    end = band.high if ratio > band.high else band.low
    about = f"measured is {ratio:.3g} times the prediction, the band ends at {end:.3g}"
    if not 1 / _ABSURD <= ratio <= _ABSURD:
        return f"{about}: are the times in milliseconds?"
    return f"{about}: check the layout, precision and drafts, or say --accept"


def _left_out(logs: Sequence[float], within: Band) -> list[float]:
    """Each row's residual under the factor of the others, the least row first."""
    ordered = sorted(logs)
    others = len(ordered) - 1
    middles = [(others - 1) // 2, others // 2]  # in the order of the others
    return [
        log - _pulled(sum(ordered[k + (k >= at)] for k in middles) / 2, others, within)
        for at, log in enumerate(ordered)
    ]


def _error(logs: Sequence[float]) -> float:
    """The median of |predicted / measured - 1|."""
    return float(np.median(np.abs(np.exp(-np.array(logs)) - 1)))


def _log_band(
    logs: Sequence[float], before: Band, within: Band, metric: Metric
) -> dict[str, float]:
    n = len(logs)
    low, high = math.log(within.low), math.log(within.high)
    own_low, own_high = (low, high)  # a single row has no residual
    if n > 1:
        own_low, own_high = (float(end) for end in np.quantile(_left_out(logs, within), [0.1, 0.9]))
    sides = [(low, min(own_low, 0.0), math.log(before.low)), (high, max(own_high, 0.0), math.log(before.high))]  # fmt: skip
    halves = []
    for of_class, of_own, of_evidence in sides:
        square = (_CLASS_ROWS * of_class**2 * (1 + 1 / n) + n * of_own**2) / (_CLASS_ROWS + n)
        weight = 1.0 if n >= ENOUGH_ROWS else n / (n + PRIOR_ROWS)
        mixed = math.sqrt(weight * square + (1 - weight) * of_evidence**2)
        halves.append(max(mixed, _NOISE[metric]))
    return {"log_low": -halves[0], "log_high": halves[1]}
