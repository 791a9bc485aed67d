"""Reads one catalog file: its form, its units, its place in an error.

Root keys of a TOML file stand before its first table, so an entry's names can be read without the rest of it: `read_head`.
"""

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from polypod.catalog.parsed import texts
from polypod.catalog.plausible import doubts
from polypod.catalog.schema import (
    Accelerator,
    Claim,
    Conflict,
    Fact,
    Interconnect,
    ModelCard,
    Pod,
    Published,
    ScaleUp,
    Strict,
    Tier,
)
from polypod.errors import FileError

Entry = TypeVar("Entry", bound=Accelerator | Pod | Interconnect | ModelCard)
Readable = Path | Traversable


@dataclass(frozen=True, slots=True)
class Range:
    """What a number can plausibly be, and how one is written; wide enough for ten years, too narrow for a wrong unit."""

    unit: str
    least: float
    most: float
    example: str


_PEAK: Final = Range("FLOP/s", 1e10, 1e18, "752 TFLOPS is 752e12")
_MEMORY: Final = Range("bytes", 1e8, 1e14, "141 GB is 141e9")
_BANDWIDTH: Final = Range("bytes per second", 1e9, 1e15, "4.8 TB/s is 4.8e12")
_LINK: Final = Range("bytes per second", 1e8, 1e14, "400 Gb/s is 50e9")
_LATENCY: Final = Range("seconds", 1e-9, 1e-1, "1.2 us is 1.2e-6")
_CARD_POWER: Final = Range("watts", 5, 1e5, "0.7 kW is 700")
_POD_POWER: Final = Range("watts", 50, 1e10, "559 kW is 559e3")
_BLOCKING: Final = Range("ports over the way out", 1, 100, "2:1 is 2")
_PUE: Final = Range("times the IT power", 1, 5, "4 % on top is 1.04")


def read_entry(path: Readable, kind: type[Entry]) -> Entry:
    """Read a catalog file of one kind.

    Raises `FileError` with the file, the key and what is accepted: for broken TOML, an unknown key, a wrong type, a
    number that no such thing has, which is how a wrong unit shows, and one that does not go with the others.
    """
    raw = _parse(path, _text(path))
    try:
        entry = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise FileError(str(path), _explain(str(error), kind)) from error
    if not isinstance(entry, ModelCard):
        _check_ranges(entry, path)
    if isinstance(entry, Accelerator | Pod):
        for doubt in doubts(entry):
            raise FileError(str(path), str(doubt))
    return entry


def read_head(path: Readable) -> dict[str, Any]:
    """The keys of a catalog file that stand before its first table: id, name, names and the like."""
    return _parse(path, _text(path).split("\n[", 1)[0])


def read_config(path: Readable) -> dict[str, Any]:
    """Read a config.json. Raises `FileError` where it is none."""
    try:
        config = json.loads(_text(path))
    except json.JSONDecodeError as error:
        problem = f"is not JSON: {error.msg} (line {error.lineno})"
        raise FileError(str(path), problem) from error
    if not isinstance(config, dict):
        raise FileError(str(path), f"holds a {type(config).__name__}; a config.json is one object")
    return config


def kind_of(path: Readable) -> type[Accelerator] | type[Pod] | type[Interconnect]:
    """What a person's file describes, by the keys that only one kind has."""
    raw = _parse(path, _text(path))
    if "owner" in raw or "openness" in raw:
        return Interconnect
    if "tiers" in raw or "accelerators" in raw:
        return Pod
    if "peak_flops_per_s" in raw or "memory_bytes" in raw:
        return Accelerator
    problem = (
        "is neither an accelerator (peak_flops_per_s, memory_bytes) nor a pod (accelerators, tiers) "
        "nor a link (owner, openness)"
    )
    raise FileError(str(path), problem)


def _text(path: Readable) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(str(path), f"cannot be read: {error}") from error


def _parse(path: Readable, text: str) -> dict[str, Any]:
    try:
        return texts().toml(text)
    except tomllib.TOMLDecodeError as error:
        raise FileError(str(path), f"is not TOML: {error}") from error


_STRUCTS: Final[dict[str, type[Strict]]] = {
    "tiers": Tier,
    "claims": Claim,
    "published": Published,
    "conflicts": Conflict,
    "scale_up": ScaleUp,
}
"""What the items of a list are; any other nested table is a Fact."""


def _explain(problem: str, kind: type[Strict]) -> str:
    """Say which keys there are where one is unknown or missing."""
    if "unknown field" not in problem and "missing required field" not in problem:
        return problem
    place = problem.partition(" - at `")[2].rstrip("`")
    last = place.rpartition(".")[2].partition("[")[0]
    struct = kind if last in {"", "$"} else _STRUCTS.get(last, Fact)
    return f"{problem}; the keys there are {', '.join(struct.__struct_fields__)}"


def _check_ranges(entry: Accelerator | Pod | Interconnect, path: Readable) -> None:
    for place, fact, allowed in _ranged(entry):
        if fact is not None and not allowed.least <= fact.value <= allowed.most:
            problem = (
                f"{fact.value:g} {allowed.unit} cannot be; accepted: {allowed.least:g} to {allowed.most:g} "
                f"{allowed.unit} ({allowed.example}) - at `$.{place}.value`"
            )
            raise FileError(str(path), problem)


Ranged = Iterator[tuple[str, Fact | None, Range]]


def _ranged(entry: Accelerator | Pod | Interconnect) -> Ranged:
    if isinstance(entry, Accelerator):
        return _of_accelerator(entry)
    return _of_pod(entry) if isinstance(entry, Pod) else _of_link(entry)


def _of_accelerator(entry: Accelerator) -> Ranged:
    for dtype, peak in entry.peak_flops_per_s.items():
        yield f"peak_flops_per_s.{dtype}", peak, _PEAK
    yield "memory_bytes", entry.memory_bytes, _MEMORY
    yield "memory_bytes_per_s", entry.memory_bytes_per_s, _BANDWIDTH
    yield "power_w", entry.power_w, _CARD_POWER
    if entry.scale_up is not None:
        yield "scale_up.bytes_per_s", entry.scale_up.bytes_per_s, _LINK


def _of_pod(entry: Pod) -> Ranged:
    for index, tier in enumerate(entry.tiers):
        yield f"tiers[{index}].bytes_per_s", tier.bytes_per_s, _LINK
        yield f"tiers[{index}].latency_s", tier.latency_s, _LATENCY
        yield f"tiers[{index}].blocking_ratio", tier.blocking_ratio, _BLOCKING
    yield "power_w", entry.power_w, _POD_POWER
    yield "pue", entry.pue, _PUE


def _of_link(entry: Interconnect) -> Ranged:
    for name, speed in entry.bytes_per_s.items():
        yield f"bytes_per_s.{name}", speed, _LINK
    for name, latency in entry.latency_s.items():
        yield f"latency_s.{name}", latency, _LATENCY
