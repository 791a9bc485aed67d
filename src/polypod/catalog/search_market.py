"""Stacks, events, prices and what running a site takes, as lines of a list and as rows of the search."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

from polypod.catalog.dates import parse_date, shown
from polypod.catalog.load import names_by_id
from polypod.catalog.market import events, price_kind, prices, stacks
from polypod.catalog.market_schema import Event, Price, Stack
from polypod.catalog.site import site_entries, site_title, unreliable_lines

MarketKind = Literal["stack", "event", "price", "site", "unreliable"]
MARKET_KINDS: Final[tuple[MarketKind, ...]] = get_args(MarketKind)

Row = tuple[dict[str, float | str | None], str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a list, whatever it is of."""

    kind: str
    id: str
    title: str
    year: int | None = None


def lines(kind: str) -> list[Line]:
    """One line per entry: stacks by id, events by date, prices by kind, sites by what they are of; data sets not to use."""
    if kind == "site":
        return [
            Line(kind=kind, id=one.id, title=site_title(one)) for one in site_entries().values()
        ]
    if kind == "unreliable":
        found = enumerate(unreliable_lines(), start=1)
        return [Line(kind=kind, id=f"not-{n}", title=f"{what}: {why}") for n, (what, why) in found]
    if kind == "stack":
        return [Line(kind=kind, id=one.id, title=f"{one.vendor} {one.name}") for one in stacks()]
    if kind == "event":
        return [
            Line(kind=kind, id=one.id, title=one.what, year=int(one.date[:4])) for one in events()
        ]
    return [
        Line(kind=kind, id=one.id, title=price_title(one), year=parse_date(one.date).last.year)
        for one in prices()
    ]


def amount(price: Price) -> str:
    """Low to high in the price's own currency and unit.

    >>> from polypod.catalog.market import prices
    >>> amount(prices()[0])
    '10,000-15,000 USD each'
    """
    if price.least is None or price.most is None:
        return "no figure found"
    low, high = (f"{value:,g}" if value < 1e6 else f"{value:,.0f}" for value in _ends(price))
    span = low if low == high else f"{low}-{high}"
    usual = f", usually {price.usual:g}" if price.usual else ""
    unit = price.unit if price.unit.startswith(("each", "per ")) else f"per {price.unit}"
    return f"{span} {price.currency} {unit}{usual}"


def price_title(price: Price) -> str:
    """What it is of, and how much.

    >>> from polypod.catalog.market import prices_of_kind
    >>> price_title(prices_of_kind("power")[4])
    'US average commercial: 0.125-0.14 USD per kWh'
    """
    of = " ".join(part for part in (price.target, price.what) if part) or price.region
    return f"{of}: {amount(price)}"


def event_date(event: Event) -> str:
    """The part of an event's date that is known."""
    return shown(event.date, event.precision)


def market_rows() -> Iterator[Row]:
    """Columns, names and other text of every stack, event and price, and of what running a site takes."""
    names = names_by_id()
    for stack in stacks():
        yield _stack_row(stack)
    for event in events():
        yield _event_row(event, names)
    for price in prices():
        yield _price_row(price, names)
    for site in site_entries().values():
        title = site_title(site)
        row: dict[str, float | str | None] = {"id": site.id, "kind": "site", "title": title}
        yield row, "", f"{title} {site.basis} {site.note or ''}"


def _ends(price: Price) -> tuple[float, float]:
    assert price.least is not None, "the caller looked"
    assert price.most is not None, "the caller looked"
    return price.least, price.most


def _stack_row(stack: Stack) -> Row:
    row: dict[str, float | str | None] = {
        "id": stack.id,
        "kind": "stack",
        "title": f"{stack.vendor} {stack.name}",
        "vendor": stack.vendor,
        "software": stack.name,
    }
    engines = " ".join(f"{one.engine} {one.how or ''} {one.note or ''}" for one in stack.engines)
    return row, f"{stack.id} {stack.name} {stack.vendor}", f"{engines} {stack.note or ''}"


def _event_row(event: Event, names: dict[str, list[str]]) -> Row:
    row: dict[str, float | str | None] = {
        "id": event.id,
        "kind": "event",
        "title": event.what,
        "year": float(event.date[:4]),
        "effect": event.effect,
        "region": event.region,
    }
    parts = (event.actor, event.effect, event.kind, event.region, event.magnitude, event.note)
    said = " ".join(part for part in (event.date, event.what, *event.vendors, *parts) if part)
    return row, "", f"{said} {_names(event.chips, names)}"


def _price_row(price: Price, names: dict[str, list[str]]) -> Row:
    row: dict[str, float | str | None] = {
        "id": price.id,
        "kind": "price",
        "title": price_title(price),
        "year": float(parse_date(price.date).last.year),
        "region": price.region,
    }
    parts = (price.condition, price.note, price.terms, price.region, price.date, price_kind(price))
    said = " ".join(part for part in (price_title(price), *parts) if part)
    return row, "", f"price {said} {_names((price.target,) if price.target else (), names)}"


def _names(ids: tuple[str, ...], names: dict[str, list[str]]) -> str:
    """All names of entries, Chinese ones among them."""
    return " ".join(name for one in ids for name in names.get(one, [one]))
