"""From a card to what else is known of it: its catalog entry, the engines on record for that, and the variable that shows it alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

from polypod.catalog.interop import engines_on
from polypod.errors import InputError
from polypod.serve.devices.found import Card, EngineUse, Visible
from polypod.serve.devices.vendor import Shown, Vendor
from polypod.serve.engines import ENGINES
from polypod.serve.engines.facts import platform_of
from polypod.serve.engines.python import python_of, version_in

ADD: Final = "`polypod catalog add` makes an entry"

Installed = Callable[[str, tuple[str, ...]], bool]
"""Whether an engine has any of some packages."""

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

    Of a chip that nothing is on record of, the engines that Polypod can start on its stack, state unknown.
    """
    known = _on_record(chip) if chip is not None else ()
    startable = tuple((name, "unknown") for name in ENGINES if platform_of(name, vendor.stack))
    return tuple(_use(vendor, name, state, is_installed) for name, state in known or startable)


def _use(vendor: Vendor, name: str, state: str, is_installed: Installed) -> EngineUse:
    engine = name.casefold().split()[0]
    platform = platform_of(engine, vendor.stack) if engine in ENGINES else None
    if platform is None:
        return EngineUse(engine=name, state=state, has_adapter=False)
    missing = _missing(engine, platform.distributions, is_installed)
    return EngineUse(engine=name, state=state, has_adapter=True, missing=missing)


def _missing(engine: str, any_of: tuple[str, ...], is_installed: Installed) -> tuple[str, ...]:
    try:
        return () if is_installed(engine, any_of) else (" or ".join(any_of),)
    except InputError as error:  # the engine's own Python is not where it is said to be
        return (str(error),)


@cache
def _on_record(chip: str) -> tuple[tuple[str, str], ...]:
    """Asked once for each kind of chip, however many there are."""
    return tuple((one.engine, one.state) for one in engines_on(chip) if one.state in _GOES)


def installed(engine: str, any_of: tuple[str, ...]) -> bool:
    """Whether the Python of an engine has one of these packages; nothing of them is imported."""
    return version_in(python_of(engine), any_of) is not None


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
