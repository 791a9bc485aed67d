"""Dates as sources give them."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.catalog.dates import parse_date, shown
from polypod.errors import InputError


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2025", "2025-01-01", "2025-12-31"),
        ("2024-2025", "2024-01-01", "2025-12-31"),
        ("2025-H1", "2025-01-01", "2025-06-30"),
        ("2025-H2", "2025-07-01", "2025-12-31"),
        ("2026-Q4", "2026-10-01", "2026-12-31"),
        ("2024-02", "2024-02-01", "2024-02-29"),
        ("2025-12", "2025-12-01", "2025-12-31"),
        ("2025-07-14", "2025-07-14", "2025-07-14"),
    ],
)
def test_a_date_spans_the_days_it_may_mean(text: str, first: str, last: str) -> None:
    span = parse_date(text)
    assert (span.first.isoformat(), span.last.isoformat()) == (first, last)


@pytest.mark.parametrize(
    "text", ["", "25", "2025-13", "2025-02-30", "2025-H3", "2025-7", "2025-2024", "2025-07-14T00", "soon"]
)  # fmt: skip
def test_what_is_no_date_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(InputError, match=r"is no date; one is 2025, 2025-H1"):
        parse_date(text)


@given(st.dates(max_value=date(9998, 12, 31)))  # the year after it has to be one
def test_every_day_is_in_its_month_its_quarter_its_half_and_its_year(day) -> None:
    text = day.isoformat()
    for precision in ("day", "month", "quarter", "half", "year"):
        span = parse_date(shown(text, precision))
        assert span.first <= day <= span.last
