"""The market on record: stacks, hand-over, events, prices, failure rates. Every file is read when it is first asked for.

A person's own files take part: those below `market/` of the catalog's own folder, in the same subfolders. An own entry with the id
of a shipped one stands in its place.
"""

import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import msgspec

from polypod.catalog.dates import parse_date
from polypod.catalog.load import listing, own_folders
from polypod.catalog.market_schema import (
    Background,
    Beyond,
    Collectives,
    Cooling,
    Disagreement,
    Event,
    GridCo2,
    Handovers,
    NoPrice,
    Price,
    PriceKind,
    Pue,
    Regime,
    Reliability,
    Repair,
    Stack,
    Unreliable,
)
from polypod.catalog.parsed import texts
from polypod.catalog.schema import Strict
from polypod.errors import FileError, InputError, UnknownNameError

Readable = Path | Traversable
Item = TypeVar("Item", Stack, Event, Price)
Shape = TypeVar("Shape", bound=Strict)

PRICE_KINDS: Final[tuple[PriceKind, ...]] = get_args(PriceKind)


class _Events(Strict, frozen=True, kw_only=True):
    events: tuple[Event, ...]


class _Standing(Strict, frozen=True, kw_only=True):
    background: tuple[Background, ...]
    regimes: tuple[Regime, ...]


class _Prices(Strict, frozen=True, kw_only=True):
    prices: tuple[Price, ...] = ()
    no_price_found: NoPrice | None = None


class _Site(Strict, frozen=True, kw_only=True):
    grid_co2: tuple[GridCo2, ...] = ()
    reliability: tuple[Reliability, ...] = ()
    repair: tuple[Repair, ...] = ()
    pue: tuple[Pue, ...] = ()
    other: tuple[Cooling, ...] = ()


class _Conflicts(Strict, frozen=True, kw_only=True):
    conflicts: tuple[Disagreement, ...]


class _Unreliable(Strict, frozen=True, kw_only=True):
    unreliable: tuple[Unreliable, ...]


def stacks() -> tuple[Stack, ...]:
    """Every vendor's software, by id."""
    return _stacks(_own_files("stacks"))


def stack_of(chip: str) -> Stack | None:
    """The stack an accelerator is programmed with; None where none is on record.

    >>> stack = stack_of("nvidia-h20")
    >>> stack.id if stack else None
    'cuda'
    """
    return next((stack for stack in stacks() if chip in stack.chips), None)


def events() -> tuple[Event, ...]:
    """Every event, oldest first."""
    return _events(_own_files("events"))


def background() -> tuple[Background, ...]:
    """What was so before the first event."""
    return _standing().background


def regimes() -> tuple[Regime, ...]:
    """How matters stand by the last evidence."""
    return _standing().regimes


def prices_of_kind(kind: PriceKind) -> tuple[Price, ...]:
    """Prices of one kind: what a chip costs, its hour, a kilowatt-hour, a place for a rack."""
    return _prices(kind, _own_files("prices"))


def prices() -> tuple[Price, ...]:
    """Every price, kind by kind."""
    return tuple(price for kind in PRICE_KINDS for price in prices_of_kind(kind))


def price_kind(price: Price) -> PriceKind:
    """Which kind a price is of."""
    return next(kind for kind in PRICE_KINDS if price in prices_of_kind(kind))


@cache
def no_price_found() -> NoPrice:
    """What a price was looked for and not found."""
    found = read_market(_shipped().joinpath("prices", "purchase.toml"), _Prices).no_price_found
    assert found is not None, "purchase.toml says what has no price"
    return found


@cache
def collectives() -> Collectives:
    """Every stack's own library, and those that join unlike accelerators."""
    return read_market(_shipped().joinpath("collectives.toml"), Collectives)


@cache
def handovers() -> Handovers:
    """Which accelerators hand a cache to which, and the rules of it."""
    return read_market(_shipped().joinpath("kv-handover.toml"), Handovers)


def reliability() -> tuple[Reliability, ...]:
    """What fleets' owners counted."""
    return _site("reliability").reliability


def repair_times() -> tuple[Repair, ...]:
    """How long until a part is back."""
    return _site("reliability").repair


def grid_co2() -> tuple[GridCo2, ...]:
    """CO2 per kilowatt-hour, by grid and year."""
    return _site("grid-co2").grid_co2


def cooling_pue() -> tuple[Pue, ...]:
    """Total power over IT power, by technology and climate."""
    return _site("cooling").pue


def cooling_other() -> tuple[Cooling, ...]:
    """What else is said of cooling."""
    return _site("cooling").other


@cache
def disagreements() -> tuple[Disagreement, ...]:
    """Where sources disagree, and which is used."""
    return read_market(_shipped().joinpath("conflicts.toml"), _Conflicts).conflicts


@cache
def unreliable() -> tuple[Unreliable, ...]:
    """Data sets and pages found wrong."""
    return read_market(_shipped().joinpath("unreliable.toml"), _Unreliable).unreliable


@cache
def beyond() -> Beyond:
    """Names the catalog knows of without having an entry of them."""
    return read_market(_shipped().joinpath("beyond.toml"), Beyond)


def find_entry(name: str) -> Stack | Event | Price:
    """A stack by id, name or vendor-free name in any case; an event or a price by id.

    Raises `UnknownNameError` with the nearest names.
    """
    wanted = name.casefold()
    known: dict[str, Stack | Event | Price] = {}
    for price in prices():
        known[price.id] = price
    for event in events():
        known[event.id] = event
    for stack in stacks():
        known |= {stack.name.casefold(): stack, stack.id: stack}
    if wanted not in known:
        raise UnknownNameError(kind="stack, event or price", name=name, known=known)
    return known[wanted]


def read_market(path: Readable, shape: type[Shape]) -> Shape:
    """Read one market file, its sources in the place of their keys.

    Raises `FileError` with the file and the key: for broken TOML, an unknown key, an unknown source, a date that is none, a
    range upside down, and a chip that neither the catalog has nor `beyond.toml` names.
    """
    try:
        raw = texts().toml(path.read_text(encoding="utf-8"))
        cited = raw.pop("cited", {})
        entry = msgspec.convert(_cite(raw, cited), shape)
        _check(raw, known_targets())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileError(str(path), f"cannot be read: {error}") from error
    except (msgspec.ValidationError, InputError) as error:
        raise FileError(str(path), str(error)) from error
    return entry


def known_targets() -> frozenset[str]:
    """What an event or a price may be about: accelerators, pods, and names declared beside them."""
    entries = frozenset(one.id for one in listing() if one.kind in {"accelerator", "pod"})
    return entries | _declared()


@cache
def _declared() -> frozenset[str]:
    raw = texts().toml(_shipped().joinpath("beyond.toml").read_text(encoding="utf-8"))
    return frozenset(cpu["id"] for cpu in raw["host_cpus"])


def _cite(raw: Any, cited: dict[str, Any]) -> Any:  # noqa: ANN401  # TOML as parsed
    """The same tree with sources in the place of their keys."""
    if isinstance(raw, list):
        return [_cite(item, cited) for item in raw]
    if not isinstance(raw, dict):
        return raw
    return {
        key: [_source(name, cited) for name in value]
        if key in {"sources", "dtype_sources"}
        else _cite(value, cited)
        for key, value in raw.items()
    }


def _source(name: str, cited: dict[str, Any]) -> Any:  # noqa: ANN401  # TOML as parsed
    if name not in cited:
        msg = f"cites {name!r}, which its [cited] table does not have; it has {', '.join(cited)}"
        raise InputError(msg)
    if "date" in cited[name]:
        parse_date(cited[name]["date"])
    return cited[name]


_OF_CHIPS: Final = frozenset({"chips", "prefill_chips", "decode_chips", "targets", "chip_limits"})


def _check(raw: Any, targets: frozenset[str]) -> None:  # noqa: ANN401  # TOML as parsed
    """Dates, targets and ranges, wherever they stand."""
    for item in _tables(raw):
        for key in ("date", "evidence"):
            if key in item:
                parse_date(item[key])
        named = [chip for key in _OF_CHIPS & item.keys() for chip in item[key]]
        for chip in [*named, *([item["target"]] if "target" in item else [])]:
            if chip not in targets:
                place = item.get("id", item.get("engine", "an entry"))
                msg = f"{place} is about {chip!r}, which the catalog does not have; polypod catalog list shows what it has"
                raise InputError(msg)
        _check_range(item)


def _check_range(item: dict[str, Any]) -> None:
    for least, most in (("least", "most"), ("least_s", "most_s"), ("least_ratio", "most_ratio")):
        if least in item and most in item and item[least] > item[most]:
            msg = f"{item['id']}: {least} = {item[least]:g} is above {most} = {item[most]:g}"
            raise InputError(msg)


def _tables(raw: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401  # TOML as parsed
    if isinstance(raw, dict):
        yield raw
        raw = list(raw.values())
    if isinstance(raw, list):
        for item in raw:
            yield from _tables(item)


def _shipped() -> Traversable:
    return resources.files("polypod.catalog").joinpath("data", "market")


def _own_files(folder: str) -> tuple[Path, ...]:
    folders = (entries.parent / "market" / folder for entries in own_folders("accelerator"))
    return tuple(file for own in folders for file in sorted(own.glob("*.toml")))


def _files(folder: str, own: tuple[Path, ...]) -> list[Readable]:
    """Files of a folder, shipped ones first, so that a person's own ones have the last word."""
    shipped = [
        file for file in _shipped().joinpath(folder).iterdir() if file.name.endswith(".toml")
    ]
    return [*sorted(shipped, key=lambda file: file.name), *own]


@cache
def _stacks(own: tuple[Path, ...]) -> tuple[Stack, ...]:
    found = [read_market(path, Stack) for path in _files("stacks", own)]
    return tuple(sorted(_latest(found), key=lambda stack: stack.id))


@cache
def _events(own: tuple[Path, ...]) -> tuple[Event, ...]:
    files = _files("events", own)
    found = [event for path in files for event in read_market(path, _Events).events]
    return tuple(sorted(_latest(found), key=lambda event: (event.date, event.id)))


@cache
def _prices(kind: PriceKind, own: tuple[Path, ...]) -> tuple[Price, ...]:
    files = [path for path in _files("prices", own) if path.name == f"{kind}.toml"]
    return tuple(_latest([price for path in files for price in read_market(path, _Prices).prices]))


def _latest(items: Iterable[Item]) -> Iterable[Item]:
    return {item.id: item for item in items}.values()


@cache
def _standing() -> _Standing:
    return read_market(_shipped().joinpath("regimes.toml"), _Standing)


@cache
def _site(name: str) -> _Site:
    return read_market(_shipped().joinpath("site", f"{name}.toml"), _Site)
