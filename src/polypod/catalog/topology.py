"""The links a rank has, nearest first, and which of them a group of ranks needs.

Ranks are numbered so that neighbours are near: ranks 0 and 1 are a die pair, the next ones are on the same board, and so on.
A group of n ranks `stride` apart then spans n * stride consecutive numbers.
"""

from dataclasses import dataclass
from itertools import pairwise

import msgspec

from polypod.catalog.load import accelerators_pod, load_accelerator, pods_accelerator
from polypod.catalog.schema import Accelerator, Fact, Kind, Pod, Tier
from polypod.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLink:
    """One rank's way into one tier, in one direction. None: unknown, or for `ranks` no end."""

    name: str
    ranks: int | None
    bytes_per_s: float | None
    latency_s: float | None
    bandwidth_kind: Kind | None = None
    latency_kind: Kind | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """An ordered tuple of links, each joining at least as many ranks as the one before; `ranks` are there in all."""

    ranks: int
    links: tuple[TierLink, ...]

    def spanning(self, ranks: int, stride: int = 1) -> int:
        """Index of the nearest tier that holds `ranks` ranks `stride` apart. One rank needs no link: the first tier has it.

        Four dies next to each other are past the pair; two dies 16 apart are past the node.

        >>> from polypod.catalog.load import load_pod
        >>> supernode = topology(load_pod("huawei-cm384"))
        >>> [supernode.spanning(2), supernode.spanning(4), supernode.spanning(2, stride=16), supernode.spanning(768)]
        [0, 1, 2, 2]

        Raises `InputError` where there are not that many ranks.
        """
        span = (ranks - 1) * stride + 1
        if ranks < 1 or stride < 1:
            msg = f"a group has at least 1 rank at a stride of at least 1, got ranks={ranks}, stride={stride}"
            raise InputError(msg)
        if span > self.ranks:
            msg = f"{ranks} ranks {stride} apart span {span}, there are {self.ranks}; use fewer ranks, or a larger pod"
            raise InputError(msg)
        for index, link in enumerate(self.links):
            if link.ranks is None or link.ranks >= span:
                return index
        if ranks == 1:
            return 0
        msg = f"no tier on record joins {span} ranks; the widest joins {self.links[-1].ranks if self.links else 1}"
        raise InputError(msg)


def topology(pod: Pod) -> Topology:
    """The tiers of a pod as links. Raises `InputError` where a tier joins fewer ranks than one before it."""
    links = _links(pod.tiers)
    for near, far in pairwise(links):
        if near.ranks is None or (far.ranks is not None and far.ranks < near.ranks):
            msg = f"{pod.id}: tier {far.name!r} joins fewer ranks than {near.name!r} before it; list tiers nearest first"
            raise InputError(msg)
    return Topology(ranks=pod.accelerators * pods_accelerator(pod).ranks, links=links)


def loose_tiers(accelerator: str) -> tuple[Tier, ...]:
    """The tiers of accelerators taken by themselves: their usual pod's, else those of servers built with their own fabric.

    >>> [(tier.name, tier.ranks) for tier in loose_tiers("nvidia-a800-80g-sxm")]
    [('NVLink3', 8)]
    """
    chip = load_accelerator(accelerator)
    home = accelerators_pod(chip.id)
    tiers = home.tiers if home is not None else ()
    own = _own_tier(chip)
    if own is not None and (not tiers or tiers[0].bytes_per_s is None):
        return (own,)
    return tiers


def _own_tier(chip: Accelerator) -> Tier | None:
    """An accelerator's scale-up fabric as a tier; None where its speed or its end is not known."""
    fabric = chip.scale_up
    if fabric is None or fabric.bytes_per_s is None or fabric.accelerators is None:
        return None
    each = msgspec.structs.replace(fabric.bytes_per_s, value=fabric.bytes_per_s.value / chip.ranks)
    return Tier(name=fabric.name, ranks=fabric.accelerators * chip.ranks, bytes_per_s=each)


def loose_topology(accelerator: str, count: int) -> Topology:
    """Links of `count` accelerators taken by themselves: `loose_tiers` of them.

    Raises `InputError` where several are asked for and nothing in the catalog says how they are joined.
    """
    chip = load_accelerator(accelerator)
    tiers = loose_tiers(chip.id)
    if tiers:
        return Topology(ranks=count * chip.ranks, links=_links(tiers))
    if count * chip.ranks > 1:
        msg = (
            f"no pod in the catalog says how {chip.id} accelerators are joined (tiers, their ranks and bytes_per_s); "
            f"describe one in a .toml file, or ask for one rank alone"
        )
        raise InputError(msg)
    return Topology(ranks=1, links=())


def _links(tiers: tuple[Tier, ...]) -> tuple[TierLink, ...]:
    return tuple(
        TierLink(
            name=tier.name,
            ranks=tier.ranks,
            bytes_per_s=_value(tier.bytes_per_s),
            latency_s=_value(tier.latency_s),
            bandwidth_kind=_kind(tier.bytes_per_s),
            latency_kind=_kind(tier.latency_s),
        )
        for tier in tiers
    )


def _value(fact: Fact | None) -> float | None:
    return None if fact is None else fact.value


def _kind(fact: Fact | None) -> Kind | None:
    return None if fact is None else fact.kind
