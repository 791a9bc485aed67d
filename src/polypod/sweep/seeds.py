"""What runs that differ in their seed alone say together: means, and how sure they are.

    mean -+ t s / sqrt(n)        n runs, s their standard deviation, t Student's 97.5 % point with n - 1 degrees of freedom

The interval holds the mean over all seeds 95 times in 100 where runs scatter about as a normal distribution; for means over many requests and high
percentiles of many requests they nearly do, for a share that is 1 in most runs they do not.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from polypod.plan.sweep import Row, Value
from polypod.sweep.axes import SEED

_BISECTIONS: Final = 80


def over_seeds(rows: Sequence[Row], asked: Sequence[str], figures: Sequence[str]) -> list[Row]:
    """One row for all that agree in the `asked` columns but the seed: `seeds` that were played to the end, and of each of `figures` the mean and the interval's ends, `NAME low` and `NAME high`."""
    groups: dict[tuple[Value, ...], list[Row]] = {}
    keys = [name for name in asked if name != SEED]
    for row in rows:
        groups.setdefault(tuple(row[name] for name in keys), []).append(row)
    found = []
    for key, members in groups.items():
        played = [row for row in members if row["status"] == "ok"]
        one: Row = dict(zip(keys, key, strict=True)) | {"seeds": len(played)}
        for name in figures:
            one |= _interval(name, [value for row in played if isinstance(value := row[name], int | float)])  # fmt: skip
        found.append(one)
    return found


def seed_columns(asked: Sequence[str], figures: Sequence[str]) -> dict[str, type]:
    """The columns of `over_seeds`."""
    columns: dict[str, type] = {name: str for name in asked if name != SEED} | {"seeds": int}
    for name in figures:
        columns |= {name: float, f"{name} low": float, f"{name} high": float}
    return columns


def _interval(name: str, values: Sequence[float]) -> Mapping[str, float | None]:
    if not values:
        return {name: None, f"{name} low": None, f"{name} high": None}
    mean, half = mean_and_half(values)
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {name: mean, f"{name} low": low, f"{name} high": high}


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and half the width of its 95 % interval; None of one value.

    >>> mean_and_half([1.0, 2.0, 3.0])  # s is 1, t with 2 degrees of freedom 4.303
    (2.0, 2.4841...)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, None
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, student_t(n - 1) * spread / math.sqrt(n)


def student_t(freedom: int, inside: float = 0.95) -> float:
    """The t within which this share of Student's distribution lies, on both sides together.

    >>> round(student_t(1), 3), round(student_t(10), 3), round(student_t(1000), 3)
    (12.706, 2.228, 1.962)
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(freedom)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(freedom, middle) < inside else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _inside(freedom: int, angle: float) -> float:
    """The share of the distribution within `sqrt(freedom) tan(angle)`: finite sums, Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine, cosine if freedom > 1 else 0.0) if odd else (1.0, 1.0)
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
