"""Where things can run: a fleet, read into islands of like ranks on tiers of links."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from polypod.catalog.load import (
    accelerators_pod,
    known_names,
    load_accelerator,
    load_pod,
    pods_accelerator,
)
from polypod.catalog.schema import Pod
from polypod.catalog.topology import Topology, loose_tiers, loose_topology, topology
from polypod.cost.calibration import for_chip
from polypod.cost.chip import Rank, rank_of
from polypod.errors import InputError, UnknownNameError
from polypod.plan.contention import contended
from polypod.plan.spec import Source

_TERM = re.compile(r"(?P<name>[^:+\s]+)(?::(?P<count>\d+))?\Z")

_NODE: Final = 16
"""The most ranks that a tier joins and is still taken for a node."""

_TRAYS: Final = {"nvidia-gb200": 4, "nvidia-b300": 4, "nvidia-rubin": 4}
"""Devices of a node where racks are one tier: NVL72 is 18 trays of 4."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Island:
    """Like accelerators on one scale-up fabric, or what a pod's tiers join."""

    name: str
    rank: Rank
    accelerators: int
    topology: Topology
    pod: Pod | None = None

    @property
    def ranks(self) -> int:
        return self.accelerators * self.rank.ranks_per_accelerator


def parse_fleet(text: str) -> dict[str, Source]:
    """Read `huawei-cm384`, `nvidia-h200-sxm:64` or several of them joined by `+`, named a, b, c and so on.

    >>> parse_fleet("nvidia-h200-sxm:64")
    {'a': Source(pod=None, accelerator='nvidia-h200-sxm', accelerators=None, count=64, host=None, cores=None, measured=None, blocking_ratio=None)}

    Raises `InputError` for a term of another shape, `UnknownNameError` for a name nothing has.
    """
    sources: dict[str, Source] = {}
    for index, term in enumerate(text.split("+")):
        match = _TERM.match(term.strip())
        if match is None:
            msg = (
                f"{term!r} is no part of a fleet; write a pod's name, or chip:count, joined by '+'"
            )
            raise InputError(msg)
        sources[chr(ord("a") + index)] = _source(match["name"], match["count"])
    return sources


def _source(name: str, count: str | None) -> Source:
    known = known_names()
    kind = known.get(name.casefold())
    if kind not in {"pod", "accelerator"}:
        places = [entry for entry, what in known.items() if what in {"pod", "accelerator"}]
        raise UnknownNameError(kind="pod or accelerator", name=name, known=places)
    number = int(count) if count is not None else None
    if number == 0:
        msg = f"{name}:0 is no part of a fleet; ask for at least 1 accelerator"
        raise InputError(msg)
    if kind == "pod":
        return Source(pod=load_pod(name).id, accelerators=number)
    if number is None:
        msg = f"{name} is an accelerator; say how many, as in {name}:8"
        raise InputError(msg)
    return Source(accelerator=load_accelerator(name).id, count=number)


def islands(fleet: Mapping[str, Source], backend: str | None = None) -> list[Island]:
    """The fleet's catalog parts as islands, in the order given; hosts are planned by their engines' calibrations."""
    return [island(name, source, backend) for name, source in fleet.items() if source.host is None]


def island(name: str, source: Source, backend: str | None = None) -> Island:
    """Read one part of a fleet, timed by one engine's kernels where it has any on the chip (None: a blend of all).

    Links that block give each rank what is left when all send at once (`plan.contention`). Loose accelerators take the tiers of the pod that the catalog knows them in; one alone needs none.
    Raises `InputError` where more is asked of a pod than it has, or loose accelerators have no known fabric.
    """
    if source.pod is not None:
        pod = load_pod(source.pod)
        accelerators = source.accelerators or pod.accelerators
        if accelerators > pod.accelerators:
            msg = f"{pod.id} has {pod.accelerators} accelerators, {accelerators} were asked for"
            raise InputError(msg)
        chip = pods_accelerator(pod)
        return Island(
            name=name,
            rank=rank_of(
                chip, contended(pod.tiers, source.blocking_ratio), for_chip(chip.id, backend)
            ),
            accelerators=accelerators,
            topology=topology(pod),
            pod=pod,
        )
    if source.accelerator is None or source.count is None:
        msg = f"fleet entry {name!r} names no pod and no accelerator with a count"
        raise InputError(msg)
    chip = load_accelerator(source.accelerator)
    return Island(
        name=name,
        rank=rank_of(
            chip, contended(loose_tiers(chip.id), source.blocking_ratio), for_chip(chip.id, backend)
        ),
        accelerators=source.count,
        topology=loose_topology(chip.id, source.count),
        pod=accelerators_pod(chip.id),
    )


def node_ranks_of(place: Island) -> tuple[int, str | None]:
    """Ranks of a node: the widest tier that is no rack, a tray of a rack, or a guess, and then the words to say that it is one."""
    tiers = [tier.ranks for tier in place.rank.tiers if tier.ranks is not None and tier.ranks <= _NODE]  # fmt: skip
    if tiers:
        return max(tiers), None
    chip = place.rank.chip
    if chip in _TRAYS:
        return _TRAYS[chip], None
    guess = 8 * place.rank.ranks_per_accelerator
    return (
        guess,
        f"a node of {chip} is taken to have {guess} devices, which no source in the catalog says; --node-ranks says another number",
    )


def joined_by_network(name: str, source: Source, backend: str | None) -> Island:
    """Accelerators that need no fabric of their own to take part."""
    if source.accelerator is None or source.count is None:
        return island(name, source, backend)
    one = island(name, msgspec.structs.replace(source, count=1), backend)
    return replace(one, accelerators=source.count)


def way_out_bytes_per_s(place: Island) -> float | None:
    """One rank's link to other islands: its outermost tier without an end; None where none is on record."""
    for tier in reversed(place.rank.tiers):
        if tier.bytes_per_s is not None and tier.ranks is None:
            return float(tier.bytes_per_s.value)
    return None


def way_between_bytes_per_s(first: Island, second: Island) -> float | None:
    """What one rank sends to another worker: within an island over its outermost tier, between two over the narrower way out."""
    if first.name == second.name:
        known = [tier.bytes_per_s.value for tier in first.rank.tiers if tier.bytes_per_s is not None]  # fmt: skip
        return float(known[-1]) if known else None
    ways = [way_out_bytes_per_s(place) for place in (first, second)]
    return min(way for way in ways if way is not None) if None not in ways else None
