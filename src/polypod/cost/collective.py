"""Time of collectives among equal ranks on an ordered list of tiers.

Size convention: `buffer_bytes` is what one rank would hold if nothing were sharded. All-gather *ends* with it,
reduce-scatter *starts* with it, all-reduce does both. In an all-to-all it is what one rank hands out in all, its own share
included. A send is one rank to one other.

A group of n ranks, `stride` apart, fills the tiers from the nearest outwards. Reductions and gathers are hierarchical: with
m_i members inside tier i and g_i = m_i / m_(i-1) groups of the tier below,

    transfer_s = sum over tiers of (g_i - 1) / g_i * (buffer_bytes / m_(i-1)) / bytes_per_s_i      (x 2 for all-reduce)

which is the ring within one tier, and inner rings before outer ones across several. An all-to-all sends to each member its
share over the nearest tier that holds both; tiers have ports of their own, so the slowest decides, or share the port of the tier before
(a switched fabric of several levels), and add up with it:

    transfer_s = max over ports of the sum over their tiers of buffer_bytes * (m_i - m_(i-1)) / n / bytes_per_s_i

Within a tier whose collectives were measured, `measured_time` says what they take. Elsewhere latency is one hop per tier crossed and pass (engines use one-shot kernels for small messages, not n - 1 ring steps), plus
`launch_s`. Left out: contention with other groups on the same links.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from polypod.cost.roofline import Number, power_sum
from polypod.workload.reals import plain

Pattern = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]

RAMP_BYTES = 65536.0

_PASSES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1, "send": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One rank's way into one tier, in one direction. `ranks` is how many the tier joins; None: no end."""

    ranks: int | None
    bytes_per_s: float
    latency_s: float
    shares_port: bool = False  # with the tier before


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLink:
    """One kernel of one collective among so many ranks of one tier, as measured."""

    launch_s: float
    bytes_per_s: float
    ramp_s: float  # at 64 KiB, growing with the square root
    overlap: float
    limit_bytes: float | None = None  # what larger messages are left to other kernels

    def seconds(self, buffer_bytes: Number, ranks: int) -> Number:
        transfer_s = buffer_bytes * ((ranks - 1) / ranks) / self.bytes_per_s
        ramp_s = self.ramp_s * np.sqrt(buffer_bytes / RAMP_BYTES)
        return self.launch_s + power_sum(transfer_s, ramp_s, self.overlap)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTime:
    """Latency and transfer are kept apart: one is cured by fewer messages, the other by wider links."""

    latency_s: Number
    transfer_s: Number

    @property
    def total_s(self) -> Number:
        return self.latency_s + self.transfer_s


def collective_time(  # noqa: PLR0913  # what a collective is timed by
    pattern: Pattern,
    buffer_bytes: Number,
    *,
    ranks: int,
    links: Sequence[Link],
    stride: int = 1,
    launch_s: float = 0.0,
    copies: Number = 1.0,
) -> CollectiveTime:
    """Time one collective; one rank talks to nobody, and takes nothing. `copies` above 1 go to a node once (`sent_once`).

    Eight ranks gather 8 MB over 100 GB/s: 7/8 of it crosses each rank's link, 70 us, after one hop of 1 us.

    >>> nvlink = Link(ranks=8, bytes_per_s=100e9, latency_s=1e-6)
    >>> time = collective_time("all_gather", 8e6, ranks=8, links=[nvlink])
    >>> round(time.transfer_s * 1e6), round(time.latency_s * 1e6)
    (70, 1)

    Raises `ValueError` where the links end before the group does.
    """
    if ranks == 1:
        return CollectiveTime(latency_s=0.0, transfer_s=0.0 * buffer_bytes)
    members = members_per_tier(ranks, links, stride)
    if members[-1] < ranks:
        msg = f"{ranks} ranks {stride} apart do not fit the {len(links)} tiers given, which join {members[-1]}"
        raise ValueError(msg)
    passes = _PASSES[pattern]
    latency_s, transfer_s = launch_s, 0.0 * buffer_bytes
    inner, port_s = 1, 0.0 * buffer_bytes
    for link, held in zip(links, members, strict=True):
        if held > inner:
            latency_s += passes * link.latency_s
            share = _tier_bytes(pattern, buffer_bytes, ranks, (inner, held)) / link.bytes_per_s
            if inner > 1 and pattern == "all_to_all":
                share = share * sent_once(copies, ranks / inner)
            if pattern == "all_to_all":
                port_s = port_s + share if link.shares_port else share
                transfer_s = np.maximum(transfer_s, port_s)
            else:
                transfer_s = transfer_s + passes * share
        inner = held
    return CollectiveTime(latency_s=latency_s, transfer_s=transfer_s)


def measured_time(
    pattern: Pattern, buffer_bytes: Number, *, ranks: int, curves: Sequence[MeasuredLink]
) -> CollectiveTime:
    """Time one collective within a tier by the fastest of the kernels measured for it.

        transfer_s = [(buffer_bytes (n - 1) / n / bytes_per_s)^p + (ramp_s sqrt(buffer_bytes / 64 KiB))^p]^(1/p)

    An engine's own all-reduce is for small messages and left out past its limit; at least one curve must have none.
    Eight ranks reduce 16 KB in little more than the launch:

    >>> nccl = MeasuredLink(launch_s=15e-6, bytes_per_s=240e9, ramp_s=1e-6, overlap=1.0)
    >>> own = MeasuredLink(launch_s=4e-6, bytes_per_s=200e9, ramp_s=1e-6, overlap=1.0, limit_bytes=2**20)
    >>> [round(measured_time("all_reduce", size, ranks=8, curves=[nccl, own]).total_s * 1e6) for size in (16384, 2**26)]
    [5, 292]
    """
    if ranks == 1:
        return CollectiveTime(latency_s=0.0, transfer_s=0.0 * buffer_bytes)
    best_s: Number = np.inf
    for curve in curves:
        seconds = curve.seconds(buffer_bytes, ranks)
        if curve.limit_bytes is not None:
            seconds = np.where(np.asarray(buffer_bytes) > curve.limit_bytes, np.inf, seconds)
        best_s = np.minimum(best_s, seconds)
    launch_s = min(curve.launch_s for curve in curves)
    return CollectiveTime(latency_s=launch_s, transfer_s=plain(np.asarray(best_s - launch_s)))


def members_per_tier(ranks: int, links: Sequence[Link], stride: int = 1) -> list[int]:
    """How many of the group one instance of each tier holds.

    >>> board, pod = Link(ranks=8, bytes_per_s=1, latency_s=0), Link(ranks=64, bytes_per_s=1, latency_s=0)
    >>> members_per_tier(16, [board, pod]), members_per_tier(16, [board, pod], stride=4)
    ([8, 16], [2, 16])
    """
    return [
        ranks if link.ranks is None else max(1, min(ranks, link.ranks // stride)) for link in links
    ]


def sent_once(copies: Number, nodes: float) -> Number:
    """Share of the bytes between nodes that is left where a token with several destinations crosses once to each node.

    Of `copies` sent to nodes at random, n (1 - (1 - 1/n)^k) of n nodes get one or more, instead of k.

    >>> round(sent_once(8, 4), 2), sent_once(1, 4)  # eight experts on four nodes: 3.6 nodes instead of 8 messages
    (0.45, 1.0)
    """
    return plain(
        np.asarray(nodes * (1 - (1 - 1 / nodes) ** np.asarray(copies, dtype=float)) / copies)
    )


def _tier_bytes(
    pattern: Pattern, buffer_bytes: Number, ranks: int, held: tuple[int, int]
) -> Number:
    inner, outer = held
    if pattern == "send":
        return buffer_bytes if outer == ranks else 0.0 * buffer_bytes
    if pattern == "all_to_all":
        return buffer_bytes * (outer - inner) / ranks
    groups = outer / inner
    return (groups - 1) / groups * buffer_bytes / inner
