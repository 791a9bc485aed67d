"""The file of a sweep over simulations: plans, and values of the flags of `polypod simulate`, as their product.

Every key is one value or a list, the first key of the file changing slowest. `also` adds single points, `skip` leaves out what matches, as in a sweep
of plans. Values are kept as the text that the flag takes; null leaves the flag out.
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from polypod.errors import InputError, nearest_names

Text = str | None

PLAN: Final = "plan"
SEED: Final = "seed"

_OWN: Final = ("kind", "also", "skip")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SEEDS: Final = 1_000_000


class RunPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One simulation: a plan, and the flags that the file says, in its order, None where a flag is left out."""

    plan: str
    said: tuple[tuple[str, Text], ...]

    @property
    def asked(self) -> dict[str, Text]:
        """All that the file says of it, by key."""
        return {PLAN: self.plan, **dict(self.said)}


def run_points(raw: Mapping[str, Any], known: set[str], most: int | None) -> list[RunPoint]:
    """The points of a file that was read; `known` are the flags. Raises `InputError` with the path to the key."""
    axes = _axes({key: value for key, value in raw.items() if key not in _OWN}, known, "$")
    if PLAN not in axes or None in axes[PLAN]:
        msg = "names no `plan`; give the plan file that is played, or several - at `$`"
        raise InputError(msg)
    size = math.prod(len(values) for values in axes.values())
    if most is not None and size > most:
        sizes = " x ".join(f"{len(values)} {key}" for key, values in axes.items() if len(values) > 1)  # fmt: skip
        msg = f"asks for {sizes} = {size:,} points, over the limit of {most:,}; shorten a list, or say --yes - at `$`"
        raise InputError(msg)
    asked = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    for at, entry in enumerate(_entries(raw, "skip")):
        asked = _without(asked, _axes(entry, set(axes), f"$.skip[{at}]"), f"$.skip[{at}]")
    for at, entry in enumerate(_entries(raw, "also")):
        asked.append(_single(axes, _axes(entry, set(axes), f"$.also[{at}]"), f"$.also[{at}]"))
    if not asked:
        msg = "`skip` leaves no point of the product; take an entry out - at `$.skip`"
        raise InputError(msg)
    return list(dict.fromkeys(_point(one) for one in asked))


def _point(asked: Mapping[str, Text]) -> RunPoint:
    return RunPoint(
        plan=str(asked[PLAN]),
        said=tuple((key, text) for key, text in asked.items() if key != PLAN),
    )


def _entries(raw: Mapping[str, Any], key: str) -> Iterator[Mapping[str, Any]]:
    entries = raw.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        msg = f"is no list of entries such as {{seed: 0}} - at `$.{key}`"
        raise InputError(msg)
    yield from entries


def _axes(raw: Mapping[str, Any], known: set[str], path: str) -> dict[str, list[Text]]:
    """Each key's values, once each."""
    found: dict[str, list[Text]] = {}
    for key, value in raw.items():
        where = f"{path}.{key}"
        if key != PLAN and key not in known:
            near = ", ".join(nearest_names(str(key), sorted(known))) or ", ".join(sorted(known))
            msg = f"{key!r} is no key of it; nearest: {near} - at `{where}`"
            raise InputError(msg)
        values = value if isinstance(value, list) else [value]
        if not values:
            msg = f"is an empty list, which makes a sweep of no points; give a value, or leave the key out - at `{where}`"
            raise InputError(msg)
        found[key] = list(dict.fromkeys(text for one in values for text in _texts(key, one, where)))
    return found


def _texts(key: str, value: object, where: str) -> Iterator[Text]:
    """What a value is as text; a range of seeds is several."""
    if isinstance(value, bool):
        yield "true" if value else "false"
    elif value is None or isinstance(value, str | int | float):
        text = None if value is None else str(value).strip()
        seeds = _RANGE.fullmatch(text or "") if key == SEED else None
        yield from [text] if seeds is None else _seeds(int(seeds[1]), int(seeds[2]), where)
    else:
        msg = f"{value!r} is no value of a flag; give a text, a number, true or false, or null - at `{where}`"
        raise InputError(msg)


def _seeds(first: int, last: int, where: str) -> Iterator[str]:
    if not 0 <= last - first < _MOST_SEEDS:
        msg = f"{first}..{last} is no range of seeds; give the lower one first, as 0..9, and {_MOST_SEEDS:,} at most - at `{where}`"
        raise InputError(msg)
    return map(str, range(first, last + 1))


def _without(
    asked: list[dict[str, Text]], said: Mapping[str, list[Text]], path: str
) -> list[dict[str, Text]]:
    if not said:
        msg = f"says nothing, and would leave every point out; say what to skip - at `{path}`"
        raise InputError(msg)
    kept = [one for one in asked if not all(one[key] in values for key, values in said.items())]
    if len(kept) == len(asked):
        msg = f"matches no point of the product; correct it or take it out - at `{path}`"
        raise InputError(msg)
    return kept


def _single(
    axes: Mapping[str, list[Text]], said: Mapping[str, list[Text]], path: str
) -> dict[str, Text]:
    """A point of its own; what it does not say is the file's value, where that is one."""
    found = {}
    for key, values in axes.items():
        one = said.get(key, values)
        if len(one) > 1:
            why = f"lists {len(one)} of" if key in said else f"does not say, and the file lists {len(one)} of,"  # fmt: skip
            msg = f"is a single point and {why} `{key}`; give one - at `{path}`"
            raise InputError(msg)
        found[key] = one[0]
    return found
