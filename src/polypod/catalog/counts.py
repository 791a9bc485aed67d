"""How much is on record, by kind, and how far it can be trusted."""

from collections import Counter

from polypod.catalog import market
from polypod.catalog.load import ModelEntry, listing, load_any
from polypod.catalog.schema import Accelerator, Fact, Interconnect, Pod, facts
from polypod.catalog.site import site_entries

Entry = Accelerator | Pod | Interconnect | ModelEntry


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
        for fact in facts_of(load_any(listed.id)):
            counts[fact.kind] += 1
            counts["contradicted"] += bool(fact.conflicts)
    return found


def facts_of(entry: Entry) -> list[Fact]:
    """Every figure with a source in an entry; of a model, those of its card."""
    sourced = entry.card if isinstance(entry, ModelEntry) else entry
    return [fact for _, fact in facts(sourced)]


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
