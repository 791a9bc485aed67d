"""Traffic in words: what `--arrivals`, `--lengths` and `--tenants` take."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from polypod import units
from polypod.errors import InputError, QuantityError
from polypod.workload.traffic_arrivals import Arrivals, Diurnal, Gamma, Poisson
from polypod.workload.traffic_files import read_trace
from polypod.workload.traffic_lengths import Fixed, Lengths, Lognormal, Resampled, Uniform
from polypod.workload.traffic_tenants import Tenant

ARRIVALS: Final = "poisson, gamma:cv=4, diurnal:peak=3,at=14h,start=0h, diurnal:hours=1/1/2/... (24 of them), closed:64"
LENGTHS: Final = (
    "fixed, lognormal:cv=1, uniform:input=100..2000,output=10..200, or a trace file to draw from"
)
TENANTS: Final = "NAME=SHARE or NAME=SHARE:PRIORITY, as chat=3:10,batch=1"


def arrivals_of(text: str) -> Arrivals | int:
    """A process, or the number of users of a closed loop."""
    kind, _, rest = text.partition(":")
    match kind:
        case "poisson":
            _values("--arrivals", text, rest, {})
            return Poisson()
        case "gamma":
            return Gamma(**_values("--arrivals", text, rest, {"cv_ratio": ("cv", float)}))
        case "diurnal":
            return Diurnal(**_values("--arrivals", text, rest, _DIURNAL))
        case "closed":
            if not rest.isdecimal() or int(rest) < 1:
                msg = (
                    f"--arrivals {text!r} says no number of users; give one from 1 on, as closed:64"
                )
                raise InputError(msg)
            return int(rest)
    msg = f"--arrivals {text!r} is not known; give one of {ARRIVALS}"
    raise InputError(msg)


def lengths_of(text: str) -> Lengths:
    """How lengths are drawn."""
    kind, _, rest = text.partition(":")
    match kind:
        case "fixed":
            _values("--lengths", text, rest, {})
            return Fixed()
        case "lognormal":
            return Lognormal(**_values("--lengths", text, rest, {"cv_ratio": ("cv", float)}))
        case "uniform":
            ends: dict[str, tuple[str, Callable[[str], Any]]] = {
                "input": ("input", _range),
                "output": ("output", _range),
            }
            given = _values("--lengths", text, rest, ends)
            if set(given) != set(ends):
                msg = f"--lengths {text!r} lacks a range; give both, as uniform:input=100..2000,output=10..200"
                raise InputError(msg)
            return Uniform(**given)
    if not Path(text).exists():
        msg = f"--lengths {text!r} is neither known nor a file; give one of {LENGTHS}"
        raise InputError(msg)
    return Resampled(trace=read_trace(text))


def tenants_of(text: str) -> tuple[Tenant, ...]:
    """Who sends which share, and how urgent it is."""
    tenants: list[Tenant] = []
    for entry in text.split(","):
        match = re.fullmatch(r"\s*([^=:,\s]+)=([0-9.]+)(?::(-?[0-9]+))?\s*", entry)
        if not match or match[2].count(".") > 1 or match[2] == ".":
            msg = f"--tenants {entry!r} is no tenant; give {TENANTS}"
            raise InputError(msg)
        name, share, priority = match[1], float(match[2]), int(match[3] or 0)
        if name in [tenant.name for tenant in tenants]:
            msg = f"--tenants {text!r} names {name} twice; give each once"
            raise InputError(msg)
        tenants.append(Tenant(name=name, share=share, priority=priority))
    return tuple(tenants)


def times(flag: str, text: str) -> float:
    """A positive number of times, as 40x or 0.5."""
    try:
        value = float(text.strip().removesuffix("x"))
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        msg = f"{flag} {text!r} is no number of times; give a positive one, as 40x or 0.5x"
        raise QuantityError(msg)
    return value


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("..")
    return int(low), int(high)


def _hours(text: str) -> tuple[float, ...]:
    return tuple(float(hour) for hour in text.split("/"))


def _seconds(text: str) -> float:
    return units.parse(text, "s")


_DIURNAL: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "peak_ratio": ("peak", float),
    "peak_at_s": ("at", _seconds),
    "start_s": ("start", _seconds),
    "hours": ("hours", _hours),
}


def _values(
    flag: str, text: str, rest: str, known: Mapping[str, tuple[str, Callable[[str], Any]]]
) -> dict[str, Any]:
    """`cv=4,...` as keyword arguments. Raises `InputError` for a name that is not known and a value that is none."""
    names = {name: (key, read) for key, (name, read) in known.items()}
    values: dict[str, Any] = {}
    for word in rest.split(",") if rest else ():
        name, _, value = word.partition("=")
        if name not in names:
            takes = ", ".join(names) or "nothing"
            msg = f"{flag} {text!r}: {name!r} is not known; {text.partition(':')[0]} takes {takes}"
            raise InputError(msg)
        key, read = names[name]
        try:
            values[key] = read(value)
        except ValueError:
            msg = f"{flag} {text!r}: {name}={value!r} is no value of it; examples: {LENGTHS if flag == '--lengths' else ARRIVALS}"
            raise InputError(msg) from None
    return values
