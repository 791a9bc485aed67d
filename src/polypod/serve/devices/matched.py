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
    devices_per_entry: int = 1


def catalog_match(vendor: Vendor, card: Card, name: str | None, device_id: str | None) -> Match:
    """By the name the device prints, or by its PCI device id where that tells the product."""
    entry = vendor.entry_of(card.name, device_id, card.memory_total_bytes)
    called = f"called {name!r}" if name else f"of PCI device {device_id}"
    if entry is None:
        return Match(id=None, note=f"no catalog entry is known for a device {called}; {ADD}")
    by = f"a device {called}"
    note = f"{by}; {entry.note}" if entry.note else by
    return Match(id=entry.id, note=note, devices_per_entry=entry.devices_per_entry)


def engines_of(vendor: Vendor, chip: str | None, is_installed: Installed) -> tuple[EngineUse, ...]:
    """Engines that run on the chip by what is on record, best first, and what each lacks here.

    Of a chip that nothing is on record of, the engines that the vendor's data name, state unknown.
    """
    known = _on_record(chip) if chip is not None else ()
    listed = known or tuple((one.engine, "unknown") for one in vendor.packages)
    adapters = {name.casefold() for name in ENGINES}
    return tuple(
        EngineUse(
            engine=name,
            state=state,
            has_adapter=name.casefold().split()[0] in adapters,
            missing=_missing(vendor, name, is_installed),
        )
        for name, state in listed
    )


@cache
def _on_record(chip: str) -> tuple[tuple[str, str], ...]:
    """Asked once for each kind of chip, however many there are."""
    return tuple((one.engine, one.state) for one in engines_on(chip) if one.state in _GOES)


def _missing(vendor: Vendor, engine: str, is_installed: Installed) -> tuple[str, ...]:
    needs = {one.engine.casefold(): one.distributions for one in vendor.packages}
    if engine.casefold() not in needs:
        return (f"packages for {vendor.name} that are not on record",)
    return tuple(name for name in needs[engine.casefold()] if not is_installed(name))


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
    if card.slices and shown.value == "uuid or index":
        named = next((part.uuid for part in card.slices if part.uuid), "UUID")
        reason = f"divided into {len(card.slices)}; show one slice, as {shown.variable}={named}"
        return Visible(reason=reason)
    value = _value(shown, card)
    if value is None:
        return Visible(reason=f"{shown.variable} counts in what this device did not tell")
    return Visible(environment={**shown.beside, shown.variable: value})


def _value(shown: Shown, card: Card) -> str | None:
    if shown.value == "cores":
        return ",".join(map(str, card.cores)) or None
    if shown.value == "uuid or index" and card.uuid:
        return card.uuid
    number = card.physical_id if shown.value == "id" else card.index
    return None if number is None else str(number)
