"""The temperature outside over a run, in degrees Celsius: constant, a day that repeats, or read from a file."""

import csv
import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from polypod.errors import FileError, InputError

HOUR_S: Final = 3600.0
DAY_H: Final = 24.0
WARMEST_H: Final = 15.0
"""Of a day that is said by its ends alone: air is warmest in mid-afternoon."""

_COLDEST, _HOTTEST = -60.0, 60.0
_CELSIUS: Final = re.compile(r"(?P<value>[+-]?\d+(\.\d+)?)\s*°?C\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """Points of hours and temperatures, straight lines between them, held beyond the ends; with `repeats` a day that comes again.

    Between `low` and `high` alone it is a sinusoid, warmest at `WARMEST_H`. Second 0 of a run is `start_s` after midnight.
    """

    hours: tuple[float, ...] = ()
    points_celsius: tuple[float, ...] = ()
    low_celsius: float = math.nan
    high_celsius: float = math.nan
    repeats: bool = False
    start_s: float = 0.0

    @property
    def most_celsius(self) -> float:
        return max(self.points_celsius) if self.hours else self.high_celsius

    def celsius(self, at_s: float) -> float:
        """At a second of the run.

        >>> day = parse_outside("25C..38C")
        >>> [round(day.celsius(hour * 3600.0), 2) for hour in (3, 9, 15, 39)]
        [25.0, 31.5, 38.0, 38.0]
        """
        if self.hours and not self.repeats:
            return self._between(at_s / HOUR_S)
        hour = (at_s + self.start_s) / HOUR_S
        if self.hours:
            return self._between(hour % DAY_H)
        middle, half = (self.low_celsius + self.high_celsius) / 2, (self.high_celsius - self.low_celsius) / 2  # fmt: skip
        return middle + half * math.cos(2 * math.pi * (hour - WARMEST_H) / DAY_H)

    def _between(self, hour: float) -> float:
        right = bisect_right(self.hours, hour)
        if right in (0, len(self.hours)):
            return self.points_celsius[min(right, len(self.hours) - 1)]
        before, after = self.hours[right - 1], self.hours[right]
        share = (hour - before) / (after - before)
        return self.points_celsius[right - 1] + share * (self.points_celsius[right] - self.points_celsius[right - 1])  # fmt: skip


def parse_outside(text: str) -> Outside:
    """`35C`, `25C..38C`, or a CSV file of hour and temperature. Raises `InputError`, `FileError`."""
    low, between, high = text.partition("..")
    if _CELSIUS.match(low.strip()):
        ends = (_celsius(low, text), _celsius(high if between else low, text))
        if ends[0] > ends[1]:
            msg = f"--outside {text} falls from its first end to its second; say the lower one first, as 25C..38C"
            raise InputError(msg)
        return Outside(low_celsius=ends[0], high_celsius=ends[1])
    if not Path(text).is_file():
        msg = f"--outside {text} is no temperature and no file; write 35C, 25C..38C, or the name of a CSV file of hour and temperature"
        raise InputError(msg)
    return read_outside(Path(text))


def _celsius(text: str, whole: str) -> float:
    match = _CELSIUS.match(text.strip())
    if match is None:
        msg = f"--outside {whole}: {text!r} is no temperature; write it in degrees Celsius, as 35C"
        raise InputError(msg)
    value = float(match["value"])
    if not _COLDEST <= value <= _HOTTEST:
        msg = f"--outside {whole}: {value:g} C is not found outside; give one between {_COLDEST:g}C and {_HOTTEST:g}C"
        raise InputError(msg)
    return value


def read_outside(path: Path) -> Outside:
    """Rows of an hour of the run and degrees Celsius, hours rising; a first row of words is passed over. Hours from 0 to 24 repeat each day.

    Raises `FileError` with the line.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read: {error}") from error
    hours: list[float] = []
    points: list[float] = []
    for number, row in enumerate(rows, start=1):
        if not row or (number == 1 and not _numbers(row)):
            continue
        hour, degrees = _row(path, number, row)
        if hours and hour <= hours[-1]:
            raise FileError(path, f"line {number}: hour {hour:g} does not come after {hours[-1]:g}; sort the rows")  # fmt: skip
        hours.append(hour)
        points.append(degrees)
    if not hours:
        raise FileError(path, "has no row of hour and temperature, as 14,31.5")
    return Outside(
        hours=tuple(hours),
        points_celsius=tuple(points),
        repeats=(hours[0], hours[-1]) == (0.0, DAY_H),
    )


def _numbers(row: list[str]) -> list[float]:
    try:
        return [float(cell) for cell in row]
    except ValueError:
        return []


def _row(path: Path, number: int, row: list[str]) -> tuple[float, float]:
    found = _numbers(row)
    if len(found) != 2 or not all(map(math.isfinite, found)):
        raise FileError(path, f"line {number}: {','.join(row)!r} is not an hour and a temperature, as 14,31.5")  # fmt: skip
    if not _COLDEST <= found[1] <= _HOTTEST:
        raise FileError(path, f"line {number}: {found[1]:g} C is not found outside; give degrees Celsius")  # fmt: skip
    return found[0], found[1]
