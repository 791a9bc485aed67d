"""The links a rank has, nearest first, and which of them a group of ranks needs.

Ranks are numbered so that neighbours are near: ranks 0 and 1 are a die pair, the next ones are on the same board, and so on.
A group of n ranks `stride` apart then spans n * stride consecutive numbers.
"""

from dataclasses import dataclass
from itertools import pairwise

from polypod.catalog.load import accelerators_pod, load_accelerator
from polypod.catalog.schema import Fact, Kind, Pod
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
    links = tuple(
        TierLink(
            name=tier.name,
            ranks=tier.ranks,
            bytes_per_s=_value(tier.bytes_per_s),
            latency_s=_value(tier.latency_s),
            bandwidth_kind=_kind(tier.bytes_per_s),
            latency_kind=_kind(tier.latency_s),
        )
        for tier in pod.tiers
    )
    for near, far in pairwise(links):
        if near.ranks is None or (far.ranks is not None and far.ranks < near.ranks):
            msg = f"{pod.id}: tier {far.name!r} joins fewer ranks than {near.name!r} before it; list tiers nearest first"
            raise InputError(msg)
    return Topology(ranks=pod.accelerators * load_accelerator(pod.accelerator).ranks, links=links)


def loose_topology(accelerator: str, count: int) -> Topology:
    """Links of `count` accelerators taken by themselves: those of the pod they usually come in.

    Raises `InputError` where several are asked for and no pod in the catalog says how they are joined.
    """
    chip = load_accelerator(accelerator)
    home = accelerators_pod(chip.id)
    if home is not None:
        return Topology(ranks=count * chip.ranks, links=topology(home).links)
    if count * chip.ranks > 1:
        msg = (
            f"no pod in the catalog says how {chip.id} accelerators are joined (tiers, their ranks and bytes_per_s); "
            f"describe one in a .toml file, or ask for one rank alone"
        )
        raise InputError(msg)
    return Topology(ranks=1, links=())


def _value(fact: Fact | None) -> float | None:
    return None if fact is None else fact.value


def _kind(fact: Fact | None) -> Kind | None:
    return None if fact is None else fact.kind
