"""Numbers and tables as vendors' tools print them. A word that stands for "not told" is None; what is no number at all raises ValueError."""

import csv
import json
import re
from collections.abc import Iterator
from io import StringIO
from typing import Any, Final

from polypod.serve.devices.asking import OddLineError

MIB: Final = 1 << 20

_UNITS: Final = {
    "": MIB, "m": MIB, "mb": MIB, "mib": MIB,  # these tools write MB and mean MiB
    "b": 1, "kb": 1 << 10, "kib": 1 << 10, "gb": 1 << 30, "gib": 1 << 30,
}  # fmt: skip
_NOT_TOLD: Final = {"", "-", "n/a", "na", "[n/a]", "none", "unknown", "[not supported]", "not supported", "[unknown error]", "insufficient permissions", "[insufficient permissions]"}  # fmt: skip
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)\Z", re.IGNORECASE)


def told(text: str | None) -> str | None:
    """A text, or None where it is a tool's way to say that it does not know.

    >>> told(" MTT S80 "), told("[N/A]"), told("Insufficient Permissions")
    ('MTT S80', None, None)
    """
    stripped = (text or "").strip()
    return None if stripped.casefold() in _NOT_TOLD else stripped


def size_bytes(text: str | None) -> int | None:
    """A memory size; without a unit, MiB, which is what these tools count in.

    >>> size_bytes("16384MiB"), size_bytes("67108864 KB"), size_bytes("59963"), size_bytes("N/A")
    (17179869184, 68719476736, 62875762688, None)
    """
    known = told(text)
    if known is None:
        return None
    match = _SIZE.match(known)
    if match is None or match["unit"].casefold() not in _UNITS:
        msg = f"{known!r} is no size of memory"
        raise ValueError(msg)
    return int(float(match["number"]) * _UNITS[match["unit"].casefold()])


def whole(text: str | None) -> int | None:
    """A whole number.

    >>> whole(" 3 "), whole("N/A")
    (3, None)
    """
    known = told(text)
    return None if known is None else int(known)


def used_and_total(text: str) -> tuple[int | None, int | None]:
    """The last pair `used / total` of a cell, in bytes.

    >>> used_and_total("0    0    / 0          29589/ 32768")
    (31026315264, 34359738368)
    >>> used_and_total("666/65536 MiB"), used_and_total("0 MiB/ xxxxx MiB")
    ((698351616, 68719476736), (0, None))
    """
    pairs = re.findall(r"(\w+(?:\s*[KMG]i?B)?)\s*/\s*(\w+(?:\s*[KMG]i?B)?)", text, re.IGNORECASE)
    if not pairs:
        raise OddLineError(text)
    used, total = pairs[-1]
    return _masked(used), _masked(total)


def _masked(text: str) -> int | None:
    """A size, None where somebody wrote x over it."""
    return None if "xx" in text.casefold() else size_bytes(text)


def cells(line: str) -> list[str]:
    """The cells of a table's row, its outer bars left out.

    >>> cells("| 0     910B1 | OK   | 99.3        50 |")
    ['0     910B1', 'OK', '99.3        50']
    """
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def csv_rows(text: str) -> Iterator[list[str]]:
    """Rows of comma-separated values, cells trimmed, empty lines left out. Raises `OddLineError` for a last line that was cut."""
    if not text.endswith("\n"):
        raise OddLineError(text.splitlines()[-1])
    for row in csv.reader(StringIO(text), skipinitialspace=True):
        if row:
            yield [cell.strip() for cell in row]


def json_of(text: str) -> Any:  # noqa: ANN401 - whatever the tool wrote; every reader checks its form
    """JSON in a tool's output, after any lines of warnings. Raises `OddLineError` where it does not parse."""
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    if not starts:
        raise OddLineError(text.strip().splitlines()[0])
    try:
        return json.loads(text[min(starts) :])
    except json.JSONDecodeError as error:
        lines = text[min(starts) :].splitlines() or [""]
        raise OddLineError(lines[min(error.lineno, len(lines)) - 1] or str(error)) from error
