"""Failure rates, repair times, cooling and carbon on record, and the data sets not to use: found by id, listed, searched."""

from collections.abc import Iterator
from functools import cache

from polypod.catalog.market import (
    cooling_other,
    cooling_pue,
    grid_co2,
    reliability,
    repair_times,
    unreliable,
)
from polypod.catalog.market_schema import Cooling, GridCo2, Pue, Reliability, Repair
from polypod.errors import UnknownNameError

SiteEntry = Reliability | Repair | Pue | Cooling | GridCo2


@cache
def site_entries() -> dict[str, SiteEntry]:
    """Everything of what running a site takes, by id: fleets' failures first, then repairs, cooling, the grid's carbon."""
    found: list[SiteEntry] = [*reliability(), *repair_times()]
    found += [*cooling_pue(), *cooling_other(), *grid_co2()]
    return {one.id: one for one in found}


def find_site(name: str) -> SiteEntry:
    """One entry. Raises `UnknownNameError` with the nearest."""
    entries = site_entries()
    if name.casefold() not in entries:
        raise UnknownNameError(kind="failure rate, repair, cooling or grid", name=name, known=entries)  # fmt: skip
    return entries[name.casefold()]


def site_title(entry: SiteEntry) -> str:
    """What it is, and its figure where it is one.

    >>> site_title(find_site("pue-cold-plate-warm"))
    'PUE, cold plate, warm water, all-liquid: 1.03 to 1.06'
    """
    if isinstance(entry, Pue):
        return f"PUE, {entry.technology}: {entry.least_ratio:g} to {entry.most_ratio:g}"
    if isinstance(entry, GridCo2):
        return f"{entry.region}: {entry.kg_co2_per_kwh:g} kg CO2 per kWh ({entry.kind}, {entry.year})"  # fmt: skip
    if isinstance(entry, Repair):
        hours = dict.fromkeys(f"{end_s / 3600:g}" for end_s in (entry.least_s, entry.most_s))
        return f"{entry.what}: {' to '.join(hours)} h"
    return entry.what


def unreliable_lines() -> Iterator[tuple[str, str]]:
    """Data sets and pages found wrong, and why."""
    for one in unreliable():
        yield one.what, one.why
