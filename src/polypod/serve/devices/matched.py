"""From a card to what else is known of it: its catalog entry, the engines on record for that, and the variable that shows it alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Final

from polypod.catalog.interop import engines_on
from polypod.serve.devices.found import Card, EngineUse, Visible
from polypod.serve.devices.vendor import Shown, Vendor
from polypod.serve.engines import ENGINES

ADD: Final = "`polypod catalog add` makes an entry"

Installed = Callable[[str], bool]

_GOES: Final = ("supported", "experimental", "reported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A catalog entry and by what it was found, or why there is none."""

    id: str | None
    note: str


def catalog_match(vendor: Vendor, card: Card, name: str | None, device_id: str | None) -> Match:
    """By the name the device prints, or by its PCI device id where that tells the product."""
    entry = vendor.entry_of(name, device_id, card.memory_total_bytes)
    called = f"called {name!r}" if name else f"of PCI device {device_id}"
    if entry is None:
        return Match(id=None, note=f"no catalog entry is known for a device {called}; {ADD}")
    by = f"a device {called}"
    return Match(id=entry.id, note=f"{by}; {entry.note}" if entry.note else by)


def engines_of(vendor: Vendor, chip: str | None, is_installed: Installed) -> tuple[EngineUse, ...]:
    """Engines that run on the chip by what is on record, best first, and what each lacks here."""
    if chip is None:
        return ()
    return tuple(
        EngineUse(engine=name, state=state, missing=_missing(vendor, name, is_installed))
        for name, state in _on_record(chip)
    )


@cache
def _on_record(chip: str) -> tuple[tuple[str, str], ...]:
    """Asked once for each kind of chip, however many there are."""
    return tuple((one.engine, one.state) for one in engines_on(chip) if one.state in _GOES)


def _missing(vendor: Vendor, engine: str, is_installed: Installed) -> tuple[str, ...]:
    needs = {one.engine.casefold(): one.distributions for one in vendor.packages}
    lacking = []
    if engine.casefold() not in {name.casefold() for name in ENGINES}:
        lacking.append(f"Polypod has no adapter that starts {engine}")
    if engine.casefold() not in needs:
        return (*lacking, "what it needs is not on record")
    absent = [name for name in needs[engine.casefold()] if not is_installed(name)]
    return (*lacking, *(f"{name} is not installed" for name in absent))


@cache
def installed(distribution: str) -> bool:
    """Whether a package is installed here; nothing of it is imported."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def visible_as(shown: Shown, card: Card) -> Visible:
    """The environment in which an engine sees this device and no other."""
    if shown.variable is None:
        return Visible(reason=shown.note or "the vendor has no such variable on record")
    value = _value(shown, card)
    if value is None:
        return Visible(reason=f"{shown.variable} counts in what this device did not tell")
    return Visible(environment={**shown.beside, shown.variable: value})


def _value(shown: Shown, card: Card) -> str | None:
    if shown.value == "cores":
        return ",".join(map(str, card.cores)) or None
    if shown.value == "uuid or index" and card.uuid and not card.slices:
        return card.uuid
    return None if card.index is None else str(card.index)
