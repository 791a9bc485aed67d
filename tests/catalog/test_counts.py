"""Counts add up to what they count."""

from polypod.catalog.counts import (
    confidence_counts,
    entry_counts,
    fact_counts,
    facts_of,
    state_counts,
)
from polypod.catalog.load import listing, load_any
from polypod.catalog.market import events, prices, stacks, unreliable
from polypod.catalog.site import site_entries


def test_entries_are_counted_once() -> None:
    counts = entry_counts()
    market = len(stacks()) + len(events()) + len(prices()) + len(site_entries()) + len(unreliable())
    assert counts.total() == len(listing()) + market
    assert (counts["accelerator"], counts["event"], counts["stack"]) == (71, 106, 17)


def test_every_figure_is_of_one_kind() -> None:
    found = sum(1 for listed in listing() for _ in facts_of(load_any(listed.id)))
    counted = sum(
        count
        for counts in fact_counts().values()
        for what, count in counts.items()
        if what != "contradicted"
    )
    assert counted == found > 700


def test_a_figure_with_a_conflict_is_counted_as_contradicted() -> None:
    pods = [load_any(listed.id) for listed in listing() if listed.kind == "link"]
    assert fact_counts()["link"]["contradicted"] == sum(
        1 for pod in pods for fact in facts_of(pod) if fact.conflicts
    )


def test_the_markets_records_each_have_a_confidence_and_engines_a_state() -> None:
    found = confidence_counts()
    assert found["event"].total() == len(events())
    assert found["price"].total() == len(prices())
    assert found["engine on a stack"].total() == state_counts().total() == 63
