"""Quantities: SI inside, parsed and formatted at the edge.

Inside, every number is seconds, bytes, bytes per second, FLOP per second, watts or US dollars, and its name says which
(`_s`, `_bytes`, `_bytes_per_s`, `_flops_per_s`, `_w`, `_usd`). A decimal prefix means powers of 1000 (GB, Gb, GFLOP), a
binary one powers of 1024 (GiB). A small `b` is a bit, a capital `B` a byte: 400 Gb/s is 50 GB/s.

    >>> parse("400 Gb/s", "bytes_per_s")
    50000000000.0
    >>> parse("2.1us", "s")
    2.1e-06
    >>> show(50e9, "bytes_per_s"), show(0.0494, "s"), show(96 * 2**30, "bytes")
    ('50 GB/s', '49.4 ms', '103 GB')
"""

import math
import re
from typing import Final, Literal

from polypod.errors import QuantityError

Unit = Literal["s", "bytes", "bytes_per_s", "flops_per_s", "w", "per_s", "usd", "tokens"]

_DECIMAL: Final = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY: Final = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}


def _prefixed(stems: dict[str, float], *, binary: bool = False) -> dict[str, float]:
    prefixes = _DECIMAL | (_BINARY if binary else {})
    return {
        p + stem: factor * scale for p, factor in prefixes.items() for stem, scale in stems.items()
    }


_SUFFIXES: Final[dict[str, dict[str, float]]] = {
    "s": {
        "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0,
        "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0,
    },
    "bytes": _prefixed({"B": 1.0, "b": 0.125}, binary=True),
    "bytes_per_s": _prefixed({"B/s": 1.0, "b/s": 0.125, "bps": 0.125, "bit/s": 0.125}, binary=True),
    "flops_per_s": _prefixed({"FLOPS": 1.0, "FLOP/s": 1.0, "OPS": 1.0, "F": 1.0}),
    "w": _prefixed({"W": 1.0}),
    "per_s": {"/s": 1.0, "": 1.0, "/min": 1 / 60, "/h": 1 / 3600, "rps": 1.0, "req/s": 1.0},
    "usd": {"USD": 1.0, "$": 1.0, "": 1.0},
    "tokens": {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "tokens": 1.0},
}  # fmt: skip

_EXAMPLE: Final = {
    "s": "50ms",
    "bytes": "96 GiB",
    "bytes_per_s": "400 Gb/s",
    "flops_per_s": "752 TFLOPS",
    "w": "700 W",
    "per_s": "20 /s",
    "usd": "2.5 USD",
    "tokens": "4096",
}

_QUANTITY: Final = re.compile(
    r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*\Z", re.DOTALL
)


def parse(text: str | float, unit: Unit) -> float:
    """Read a quantity with its unit into SI.

    Raises `QuantityError` for a text that is no number, a suffix the unit does not have, a missing suffix where one
    is needed, and a value that is negative or not finite.

    >>> parse("50", "s")
    Traceback (most recent call last):
    polypod.errors.QuantityError: '50' has no unit; a value in s looks like '50ms' (ns, us, µs, μs, ms, s, min, m, h, d)
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = repr(text)
    match = _QUANTITY.match(str(text))
    if not match:
        msg = f"{text!r} is not a quantity in {unit}; one looks like {_EXAMPLE[unit]!r}"
        raise QuantityError(msg)
    suffixes = _SUFFIXES[unit]
    number, suffix = float(match[1]), match[2]
    if suffix not in suffixes:
        problem = f"has the unknown unit {suffix!r}" if suffix else "has no unit"
        msg = f"{text!r} {problem}; a value in {unit} looks like {_EXAMPLE[unit]!r} ({_some(suffixes)})"
        raise QuantityError(msg)
    value = number * suffixes[suffix]
    if not math.isfinite(value) or value < 0:
        msg = f"{text!r} is negative or not finite; a value in {unit} looks like {_EXAMPLE[unit]!r}"
        raise QuantityError(msg)
    return value


def _some(suffixes: dict[str, float]) -> str:
    listed = [suffix for suffix in suffixes if suffix]
    return ", ".join(listed[:12]) + (", ..." if len(listed) > 12 else "")


_SHOWN: Final[dict[str, list[tuple[float, str]]]] = {
    "s": [(86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")],
    "bytes": [(1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")],
    "bytes_per_s": [(1e15, "PB/s"), (1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s")],
    "flops_per_s": [(1e18, "EFLOPS"), (1e15, "PFLOPS"), (1e12, "TFLOPS"), (1e9, "GFLOPS"), (1e6, "MFLOPS")],
    "w": [(1e6, "MW"), (1e3, "kW"), (1.0, "W")],
    "per_s": [(1.0, "/s"), (1e-3, "/ks")],
    "usd": [(1.0, "USD")],
    "tokens": [(1.0, "")],
}  # fmt: skip


def show(value: float | None, unit: Unit, digits: int = 3) -> str:
    """Format for people, `digits` significant figures; unknown shows as a question mark.

    >>> show(None, "w"), show(0.0, "s"), show(1943.2, "tokens", 4), show(150.0, "s")
    ('?', '0 s', '1,943', '2.5 min')
    """
    if value is None:
        return "?"
    scales = _SHOWN[unit]
    base = min(scales, key=lambda entry: abs(math.log10(entry[0])))
    scale, suffix = next((entry for entry in scales if abs(value) >= entry[0]), scales[-1])
    if value == 0:
        scale, suffix = base
    return f"{significant(value / scale, digits)} {suffix}".rstrip()


def significant(value: float, digits: int = 3) -> str:
    """Round to significant figures, without an exponent, thousands separated.

    >>> significant(1943.21), significant(0.04944), significant(12.0), significant(66000.0)
    ('1,943', '0.0494', '12', '66,000')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
