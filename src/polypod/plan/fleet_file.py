"""A fleet as a file: its islands by name, and the fabrics that join them.

    fleet:
      a: {pod: huawei-cm384}
      b: {accelerator: nvidia-h20, count: 64}
      c: {accelerator: hygon-bw1000, count: 64}
    fabrics:
      - {joins: [a, b], bandwidth: 400 Gb/s}     # of one rank, one way
    alone: [c]

`blocking: 2` of an island says that its outermost links block 2:1 (`plan.contention`), of a fabric that it does: then each of all ranks has half.

With fabrics, caches cross only between islands that one of them joins, at the widest of those; an island that none joins is said to be `alone`. Without any, what
is on record of the chips' links counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec

from polypod import units
from polypod.catalog.schema import Strict
from polypod.errors import FileError, InputError
from polypod.plan.place import parse_fleet
from polypod.plan.spec import Name, Source, check_source, read_yaml

_ENDS: Final = (".yaml", ".yml")


class Fabric(Strict, frozen=True, kw_only=True):
    """What joins islands. `bandwidth` is one rank's to another island, one way."""

    joins: Annotated[tuple[Name, ...], msgspec.Meta(min_length=2)]
    bandwidth: str
    blocking_ratio: Annotated[float, msgspec.Meta(ge=1)] = msgspec.field(
        name="blocking", default=1.0
    )


class _File(Strict, frozen=True, kw_only=True):
    fleet: Annotated[dict[Name, Source], msgspec.Meta(min_length=1)]
    fabrics: tuple[Fabric, ...] = ()
    alone: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """Parts by name, and the bandwidth of one rank between two of them; None where no fabric was said."""

    sources: dict[str, Source]
    widths_bytes_per_s: Mapping[frozenset[str], float] | None = field(default=None)


def fleet_of(text: str) -> Fleet:
    """What `--on` names: a file by its ending, else terms joined by `+`.

    Raises `FileError` for a file that cannot be read or contradicts itself, and what `parse_fleet` raises.
    """
    if not text.endswith(_ENDS):
        return Fleet(sources=parse_fleet(text))
    path = Path(text)
    try:
        found = msgspec.convert(read_yaml(path), _File)
        return _joined(found)
    except (msgspec.ValidationError, InputError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(path, str(error)) from error


def _joined(found: _File) -> Fleet:
    for name, source in found.fleet.items():
        check_source(f"$.fleet.{name}", source)
    widths: dict[frozenset[str], float] = {}
    for number, fabric in enumerate(found.fabrics):
        _known(fabric.joins, found, f"$.fabrics[{number}].joins")
        width = _width(fabric, f"$.fabrics[{number}].bandwidth")
        pairs = {frozenset((one, other)) for one in fabric.joins for other in fabric.joins if one != other}  # fmt: skip
        widths |= {pair: max(width, widths.get(pair, 0.0)) for pair in pairs}
    _known(found.alone, found, "$.alone")
    if not found.fabrics:
        return Fleet(sources=found.fleet)
    reached = set().union(*widths)
    for name in found.fleet:
        if name not in reached and name not in found.alone:
            msg = f"island {name!r} reaches nothing: no fabric joins it; add it to one, or to `alone` - at `$.fleet.{name}`"
            raise InputError(msg)
        if name in reached and name in found.alone:
            msg = f"island {name!r} is alone and joined by a fabric; take it out of one - at `$.alone`"
            raise InputError(msg)
    return Fleet(sources=found.fleet, widths_bytes_per_s=widths)


def _known(names: tuple[str, ...], found: _File, path: str) -> None:
    for name in names:
        if name not in found.fleet:
            msg = f"{name!r} is not in the fleet ({', '.join(found.fleet)}) - at `{path}`"
            raise InputError(msg)


def _width(fabric: Fabric, path: str) -> float:
    try:
        return units.parse(fabric.bandwidth, "bytes_per_s") / fabric.blocking_ratio
    except InputError as error:
        msg = f"{error} - at `{path}`"
        raise InputError(msg) from error
