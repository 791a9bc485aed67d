"""Stacks, events and prices among what the search finds."""

import pytest

from polypod.catalog.interop import events_of
from polypod.catalog.market import events, prices, stacks
from polypod.catalog.search import search
from polypod.catalog.search_market import MARKET_KINDS, amount, lines


def ids(query: str, kind: str) -> list[str]:
    return [hit.id for hit in search(query) if hit.kind == kind]


def test_a_year_and_a_chip_find_that_chips_events_of_that_year() -> None:
    """Referee: the events whose list of chips has the H20 and whose date is of 2025."""
    expected = {event.id for event in events_of("nvidia-h20") if event.date.startswith("2025")}
    assert len(expected) == 12
    assert expected <= set(ids("2025 H20", "event"))


def test_a_chips_chinese_name_finds_its_events_and_prices() -> None:
    expected = {event.id for event in events_of("huawei-ascend-910c")}
    assert expected <= set(ids("昇腾", "event"))
    assert "buy-19" in ids("昇腾", "price")


def test_an_engine_finds_the_stacks_that_have_it() -> None:
    expected = {stack.id for stack in stacks() if "LMDeploy" in [e.engine for e in stack.engines]}
    assert set(ids("lmdeploy", "stack")) == expected == {"cuda", "cann", "maca", "neuware"}


@pytest.mark.parametrize(
    ("kind", "count"), [("event", 106), ("stack", 17), ("price", 56), ("site", 54)]
)
def test_a_kind_is_compared_like_any_other(kind: str, count: int) -> None:
    assert len(ids(f"kind = {kind}", kind)) == len(search(f"kind = {kind}")) == count
    assert len(lines(kind)) == count
    assert kind in MARKET_KINDS


def test_effect_and_region_are_compared() -> None:
    expected = [event.id for event in events() if event.effect == "barred" and event.region == "CN"]
    assert ids("effect = barred and region = CN", "event") == expected
    assert ids("effect = barred and year < 2023", "event") == [
        event.id for event in events() if event.effect == "barred" and event.date < "2023"
    ]


@pytest.mark.parametrize(
    ("price", "shown"),
    [
        ("buy-06", "12,000-15,000 USD each"),
        ("buy-05", "27,000 USD each"),
        ("buy-16", "7,800,000-9,100,000 USD per rack"),
        ("hr-02", "1.99-5 USD per accelerator-hour, usually 2.95"),
        ("pw-us-industrial", "0.08-0.09 USD per kWh"),
        ("hr-17", "no figure found"),
    ],
)
def test_an_amount_is_low_to_high_in_its_own_currency(price: str, shown: str) -> None:
    assert amount(next(one for one in prices() if one.id == price)) == shown


def test_a_price_of_two_years_is_listed_under_the_later() -> None:
    years = {line.id: line.year for line in lines("price")}
    assert (years["buy-06"], years["hr-03"], years["pw-eu-nonhousehold"]) == (2025, 2025, 2025)
    assert "buy-06" in ids("kind = price and year = 2025", "price")
