"""How much is on record, by kind, and how far it can be trusted."""

from collections import Counter
from collections.abc import Iterator

import msgspec

from polypod.catalog import market
from polypod.catalog.load import ModelEntry, listing, load_any
from polypod.catalog.schema import Fact
from polypod.catalog.site import site_entries


def entry_counts() -> Counter[str]:
    """Entries of each kind, the market's among them."""
    counts = Counter(listed.kind for listed in listing())
    own = Counter(stack=len(market.stacks()), event=len(market.events()), price=len(market.prices()), site=len(site_entries()), unreliable=len(market.unreliable()))  # fmt: skip
    return Counter(counts) + own


def fact_counts() -> dict[str, Counter[str]]:
    """Figures of each kind of entry by what they are: datasheet, measured, claimed, estimated; and how many are contradicted."""
    found: dict[str, Counter[str]] = {}
    for listed in listing():
        counts = found.setdefault(listed.kind, Counter())
        for fact in facts(load_any(listed.id)):
            counts[fact.kind] += 1
            counts["contradicted"] += bool(fact.conflicts)
    return found


def facts(value: object) -> Iterator[Fact]:
    """Every figure with a source in an entry; of a model, those of its card."""
    if isinstance(value, Fact):
        yield value
    elif isinstance(value, ModelEntry):
        yield from facts(value.card)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from facts(getattr(value, name))
    elif isinstance(value, dict | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from facts(inner)


def confidence_counts() -> dict[str, Counter[str]]:
    """Records of the market by the confidence they came with."""
    return {
        "engine on a stack": Counter(
            str(one.confidence) for stack in market.stacks() for one in stack.engines
        ),
        "event": Counter(str(one.confidence) for one in market.events()),
        "price": Counter(str(one.confidence) for one in market.prices()),
        "site": Counter(str(one.confidence) for one in site_entries().values()),
    }


def state_counts() -> Counter[str]:
    """Engines on stacks by state: supported, reported, experimental, unknown, impossible."""
    return Counter(str(one.state) for stack in market.stacks() for one in stack.engines)
