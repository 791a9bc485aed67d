"""Dates as sources give them: a year, a half, a quarter, a month, a day, or a run of years."""

import re
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

from polypod.errors import InputError

_FORM: Final = re.compile(
    r"(?P<year>\d{4})(?:-(?:H(?P<half>[12])|Q(?P<quarter>[1-4])|(?P<until>\d{4})|(?P<month>\d{2})(?:-(?P<day>\d{2}))?))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The days a date may mean, both included."""

    first: date
    last: date


def parse_date(text: str) -> Span:
    """What days a date may mean.

    >>> parse_date("2025-Q3").first.isoformat(), parse_date("2025-Q3").last.isoformat()
    ('2025-07-01', '2025-09-30')
    >>> parse_date("2024-2025").last.isoformat()
    '2025-12-31'

    Raises `InputError` for what is none of the forms, or no day of the calendar.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise InputError(_problem(text))
    part = {name: int(value) for name, value in found.groupdict().items() if value}
    try:
        return _span(part)
    except ValueError as error:
        msg = f"{_problem(text)}: {error}"
        raise InputError(msg) from error


def shown(text: str, precision: str) -> str:
    """A day cut to what is known of it.

    >>> shown("2023-06-30", "half"), shown("2026-09-30", "quarter"), shown("2025-05-01", "month")
    ('2023-H1', '2026-Q3', '2025-05')
    """
    month = int(text[5:7])
    forms = {
        "day": text,
        "month": text[:7],
        "quarter": f"{text[:4]}-Q{(month + 2) // 3}",
        "half": f"{text[:4]}-H{(month + 5) // 6}",
        "year": text[:4],
    }
    return forms[precision]


def _span(part: dict[str, int]) -> Span:
    year, until = part["year"], part.get("until", part["year"])
    if until < year:
        msg = "it ends before it begins"
        raise ValueError(msg)
    if "day" in part:
        day = date(year, part["month"], part["day"])
        return Span(first=day, last=day)
    months = 6 if "half" in part else 3 if "quarter" in part else 1 if "month" in part else 12
    number = part.get("half") or part.get("quarter") or part.get("month") or 1
    first = date(year, (number - 1) * months + 1, 1)
    after = first.month + months - 1  # months of the year that are over, with it
    last = date(until + after // 12, after % 12 + 1, 1) - timedelta(days=1)
    return Span(first=first, last=last)


def _problem(text: str) -> str:
    return f"{text!r} is no date; one is 2025, 2025-H1, 2025-Q3, 2025-07, 2025-07-14 or 2024-2025"
