"""Files of faults, in YAML or JSON, meant to be written by hand; quantities wear their units.

    - {at: 10min, what: crash, where: rack a/3, repair: 2h}
    - {at: 1h, what: hang, where: card a/17, repair: 20min}
    - {at: 90min, what: slow, where: card a/9, factor: 1.5, repair: 1h}
    - {at: 2h, what: flap, where: link node a/2, factor: 8, burst: 2s, every: 30s, repair: 10min}
    - {at: 3h, what: slow-link, where: link card a/4, factor: 4, speed: 1.2}

A link that caches of several replicas share is slow or dead for those caches alone. Without `repair` nothing is repaired. `speed` says by what the steps take longer, where the cost model is not to be asked. Rows with `at_s` are what
a driver plays, as `{"at_s": 60, "replica": "pool0.0-0", "what": "down", "back_in_s": 8}`, where `back_in_s` is a promise that newcomers may wait for; the list may stand
under `faults`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from polypod import units
from polypod.catalog.schema import Strict
from polypod.errors import FileError, InputError, nearest_names
from polypod.plan.spec import read_yaml
from polypod.simulate.failure_rates import What
from polypod.simulate.faults import Broken
from polypod.simulate.placed import Placed
from polypod.simulate.scenario import Fault, FaultKind
from polypod.simulate.spots import Domains, read_spot

WHATS: tuple[What, ...] = get_args(What)


class _Row(Strict, frozen=True, kw_only=True):
    at: str | int | float
    what: str
    where: str
    repair: str | int | float | None = None
    factor: float | None = None
    speed: float | None = None
    burst: str | int | float | None = None
    every: str | int | float | None = None


class _Played(Strict, frozen=True, kw_only=True):
    at_s: float
    replica: str
    what: FaultKind
    factor: float = 1.0
    back_in_s: float | None = None
    reason: str = "a fault"


class _Listed(Strict, frozen=True, kw_only=True):
    faults: list[Any]


def read_faults(path: Path, placed: Placed, domains: Domains | None = None, ways: Sequence[str] = ()) -> tuple[list[Broken], list[Fault]]:  # fmt: skip
    """What breaks, and what is to be played as it stands.

    Raises `FileError` with the path to the row, what it says, and what can be there.
    """
    raw = read_yaml(path)
    prefix = "$"
    try:
        if isinstance(raw, dict):
            raw, prefix = msgspec.convert(raw, _Listed).faults, "$.faults"
        rows = msgspec.convert(raw, list[dict[str, Any]])
    except msgspec.ValidationError as error:
        msg = f"{error}; a file of faults is a list, as `- {{at: 10min, what: crash, where: rack a/3, repair: 2h}}`"
        raise FileError(path, msg) from error
    broken: list[Broken] = []
    played: list[Fault] = []
    for number, row in enumerate(rows):
        try:
            if "at_s" in row:
                played.append(_played(row, placed, ways))
            else:
                broken.append(_broken(row, placed, domains or Domains()))
        except (msgspec.ValidationError, InputError) as error:
            msg = f"{error} - at `{prefix}[{number}]`"
            raise FileError(path, msg) from error
    return broken, played


def _played(row: dict[str, Any], placed: Placed, ways: Sequence[str]) -> Fault:
    said = msgspec.convert(row, _Played)
    if said.what == "way" and said.replica not in ways:
        near = ", ".join(nearest_names(said.replica, ways) or list(ways)[:5])
        msg = f"caches share no way called {said.replica!r}; nearest: {near or 'none, as nothing hands caches on'}"
        raise InputError(msg)
    if said.what != "way" and said.replica not in placed.replicas:
        read_spot(f"replica {said.replica}", placed, Domains())  # which says the nearest
    return Fault(
        at_s=said.at_s,
        replica=said.replica,
        what=said.what,
        factor=said.factor,
        back_in_s=said.back_in_s,
        reason=said.reason,
    )


def _broken(row: dict[str, Any], placed: Placed, domains: Domains) -> Broken:
    said = msgspec.convert(row, _Row)
    what = next((one for one in WHATS if one == said.what), None)
    if what is None:
        near = ", ".join(nearest_names(said.what, WHATS) or WHATS)
        msg = f"nothing breaks by {said.what!r}; nearest: {near}"
        raise InputError(msg)
    place = read_spot(said.where, placed, domains)
    burst_s, every_s = _bursts(said)
    return Broken(
        at_s=_seconds("at", said.at),
        what=what,
        spot=place,
        repair_s=math.inf if said.repair is None else _seconds("repair", said.repair),
        factor=_factor(said),
        speed_ratio=said.speed,
        burst_s=burst_s,
        every_s=every_s,
        restarts=place.replica is not None,
    )


def _bursts(said: _Row) -> tuple[float, float]:
    if said.what != "flap":
        if said.burst is not None or said.every is not None:
            msg = f"burst and every are of a link that flaps, not of what: {said.what}"
            raise InputError(msg)
        return 0.0, 0.0
    if said.burst is None or said.every is None or said.repair is None:
        msg = "a link that flaps needs burst, every and repair, as burst: 2s, every: 30s, repair: 10min"
        raise InputError(msg)
    return _seconds("burst", said.burst), _seconds("every", said.every)


def _factor(said: _Row) -> float:
    slows = said.what not in ("crash", "hang")
    if slows and (said.factor is None or not said.factor > 1):
        msg = f"what: {said.what} needs a factor above 1, 2 for twice as long; it is {said.factor}"
        raise InputError(msg)
    if not slows and (said.factor is not None or said.speed is not None):
        msg = f"what: {said.what} stops what runs there and takes no factor and no speed; say what: slow, or slow-link"
        raise InputError(msg)
    if said.speed is not None and (said.what == "slow" or not said.speed >= 1):
        msg = f"speed: {said.speed:g} is by what steps take longer over a slow link, 1 or more; a slow card has its factor"
        raise InputError(msg)
    return said.factor or 1.0


def _seconds(key: Literal["at", "repair", "burst", "every"], value: str | float) -> float:
    try:
        return 0.0 if value == 0 else units.parse(value, "s")
    except InputError as error:
        msg = f"{key}: {error}"
        raise InputError(msg) from error
