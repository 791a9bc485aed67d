"""A table of figures with their kinds and sources, and below it what is to be said of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from polypod import units
from polypod.catalog.schema import Fact
from polypod.cli.cited import Sources, hanging
from polypod.report.tables import table


@dataclass(frozen=True, slots=True)
class Figure:
    label: str
    fact: Fact | None
    unit: units.Unit | None  # None: a ratio

    @property
    def shown(self) -> str:
        return "?" if self.fact is None else self.show(self.fact.value)

    def show(self, value: float) -> str:
        return f"{value:g}" if self.unit is None else units.show(value, self.unit, 4)


def figures(listed: list[Figure], sources: Sources) -> Iterator[str]:
    rows = [[figure.label, figure.shown, *(_basis(figure.fact, sources))] for figure in listed]
    yield table(["", "value", "kind", "source"], rows, right=[1])
    for figure in listed:
        if figure.fact is not None:
            yield from _remarks(figure, figure.fact, sources)


def _basis(fact: Fact | None, sources: Sources) -> tuple[str, str]:
    return ("not known", "") if fact is None else (fact.kind, sources.mark(fact.source))


def _remarks(figure: Figure, fact: Fact, sources: Sources) -> Iterator[str]:
    if fact.note:
        yield hanging("  -", f"{figure.label}: {fact.note}")
    if fact.odd_because:
        yield hanging("  -", f"{figure.label}: odd, and right: {fact.odd_because}")
    for other in fact.conflicts:
        yield hanging(
            "  -",
            f"{figure.label}: {figure.show(other.value)} {sources.mark(other.source)} not used: {other.why_not}",
        )
