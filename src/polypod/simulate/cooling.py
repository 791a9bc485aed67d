"""PUE by the weather: what cooling takes at an outside temperature, anchored at a site's own PUE.

    PUE(T)  = 1 + base + sum over paths of heat_share * x(T) / COP(T)
    x(T)    = (T + free_approach - supply) / range, from 0 to 1       what chillers carry of a path's heat
    1/COP   = (condensing - evaporating) / (carnot_fraction * evaporating temperature in K)
    condensing = T + condenser_approach, evaporating = supply - evaporator_approach

`base` is fans, pumps, power supplies and light, whatever the weather; it is what the site's own PUE leaves at the reference temperature, which
stands for its year. Figures and sources are in `data/cooling.toml`. Left out: humidity and water that evaporates, fans that turn faster as it warms,
a plant at part load.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from polypod.catalog.market import cooling_pue
from polypod.errors import InputError
from polypod.simulate.outside import Outside

KINDS: Final = ("all-liquid", "liquid", "economiser", "air")
"""Least power first: of two that a PUE may belong to the first is taken."""

_KELVIN: Final = 273.15
_J_PER_KWH: Final = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Chiller:
    """What chillers have in common. Temperatures in degrees Celsius, approaches in K."""

    carnot_fraction: float
    condenser_approach_k: float
    evaporator_approach_k: float
    least_condenser_celsius: float

    def power_ratio(self, outside_celsius: float, supply_celsius: float) -> float:
        """Power over the heat that is moved, 1 / COP."""
        evaporating = supply_celsius - self.evaporator_approach_k
        condensing = max(outside_celsius + self.condenser_approach_k, self.least_condenser_celsius)
        return max(condensing - evaporating, 0.0) / (self.carnot_fraction * (evaporating + _KELVIN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One way for heat to leave."""

    heat_share: float
    supply_celsius: float
    free_approach_k: float
    range_k: float

    def power_ratio(self, outside_celsius: float, chiller: Chiller) -> float:
        """Chillers' power over all of the heat, this path's part of it."""
        warm_k = outside_celsius + self.free_approach_k - self.supply_celsius
        chilled = min(max(warm_k / self.range_k, 0.0), 1.0)
        return self.heat_share * chilled * chiller.power_ratio(outside_celsius, self.supply_celsius)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cooling:
    """A kind of cooling, and the yearly PUEs of sites that have it."""

    name: str
    paths: tuple[Path, ...]
    chiller: Chiller
    reference_celsius: float
    least_ratio: float
    most_ratio: float

    def chillers_ratio(self, outside_celsius: float) -> float:
        """Power of the chillers over that of IT."""
        return sum(path.power_ratio(outside_celsius, self.chiller) for path in self.paths)


def cooling(name: str) -> Cooling:
    """A kind by name. Raises `InputError`."""
    if name not in KINDS:
        msg = f"{name!r} is no kind of cooling; there are {', '.join(KINDS)}"
        raise InputError(msg)
    return _on_record()[name]


@cache
def _on_record() -> Mapping[str, Cooling]:
    text = resources.files("polypod.simulate").joinpath("data", "cooling.toml").read_text("utf-8")
    raw: dict[str, Any] = tomllib.loads(text)
    of_chillers = {key: value for key, value in raw["chiller"].items() if isinstance(value, float)}
    years = {one.id: one for one in cooling_pue()}
    return {
        name: Cooling(
            name=name,
            paths=tuple(Path(**path) for path in raw[name]["path"]),
            chiller=Chiller(**of_chillers),
            reference_celsius=raw["reference"]["outside_celsius"],
            least_ratio=years[raw[name]["range"]].least_ratio,
            most_ratio=years[raw[name]["range"]].most_ratio,
        )
        for name in KINDS
    }


def kind_of(pue_ratio: float) -> Cooling:
    """The kind whose sites' yearly PUEs are nearest to this one; of several that hold it the first of `KINDS`.

    >>> [kind_of(ratio).name for ratio in (1.04, 1.1, 1.09, 1.57)]
    ['all-liquid', 'liquid', 'economiser', 'air']
    """

    def away(one: Cooling) -> float:
        return max(one.least_ratio - pue_ratio, pue_ratio - one.most_ratio, 0.0)

    return min((cooling(name) for name in KINDS), key=away)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hall:
    """A building: its cooling, and its PUE over a year, which it has at the reference temperature."""

    cooling: Cooling
    year_pue_ratio: float

    def __post_init__(self) -> None:
        if not self.base_ratio >= 0:
            at, chillers = self.cooling.reference_celsius, self.cooling.chillers_ratio(self.cooling.reference_celsius)  # fmt: skip
            msg = (
                f"a PUE of {self.year_pue_ratio:g} is not had with {self.cooling.name!r} cooling, whose chillers alone take {chillers:.2f} of what IT draws "
                f"at {at:g} C; say another --cooling: {', '.join(KINDS)}"
            )
            raise InputError(msg)

    @property
    def base_ratio(self) -> float:
        """What stays the same whatever the weather, over the power of IT."""
        return self.year_pue_ratio - 1 - self.cooling.chillers_ratio(self.cooling.reference_celsius)

    def pue_ratio(self, outside_celsius: float) -> float:
        """At an outside temperature; 1 or more."""
        return 1 + self.base_ratio + self.cooling.chillers_ratio(outside_celsius)


Halls = tuple[tuple[float, Hall], ...]
"""Buildings, each with its share of the watts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What stands around the pools: the weather, their buildings, and the grid. Depends on time alone, so every driver sees the same."""

    outside: Outside | None  # None: not said, so that every building has the PUE of its year
    halls: Mapping[str, Halls]  # by pool
    kg_co2_per_kwh: float

    def pue_ratio(self, pool: str, at_s: float) -> float:
        """What a pool's watts are multiplied by."""
        return self._ratio(pool, None if self.outside is None else self.outside.celsius(at_s))

    def most_pue_ratio(self) -> float:
        """The highest of any pool at the warmest time."""
        warmest = None if self.outside is None else self.outside.most_celsius
        return max(self._ratio(pool, warmest) for pool in self.halls)

    def _ratio(self, pool: str, celsius: float | None) -> float:
        return sum(share * (hall.year_pue_ratio if celsius is None else hall.pue_ratio(celsius)) for share, hall in self.halls[pool])  # fmt: skip

    def site_w(self, watts: Mapping[str, float], at_s: float) -> float:
        """What the site draws while its pools draw so much."""
        return sum(its * self.pue_ratio(pool, at_s) for pool, its in watts.items())

    def co2_kg(self, site_w: float, span_s: float) -> float:
        """Of the grid, for so many watts over so many seconds."""
        return site_w * span_s / _J_PER_KWH * self.kg_co2_per_kwh
