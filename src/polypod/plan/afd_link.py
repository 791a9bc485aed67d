"""Between attention ranks and expert ranks: whether two chips can exchange activations layer by layer, and how fast."""

from dataclasses import dataclass
from typing import Final

from polypod.catalog.interop import shared_collectives
from polypod.cost.calibration import of
from polypod.plan.place import Island


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One rank's way to the other side, in one direction."""

    bytes_per_s: float  # as reached
    latency_s: float


SHOWN: Final = {
    frozenset(
        {"nvidia-h20", "nvidia-l40s"}
    ): "MegaScale-Infer ran attention on H20 and experts on L40S (https://arxiv.org/abs/2504.02263)",
}
"""Pairs of chips that somebody reports to have run apart, where the catalog has no software of one."""

_GOES: Final = ("supported", "experimental", "reported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Whether two chips can exchange activations layer by layer, and who says so."""

    goes: bool
    state: str
    reason: str


def exchange_of(first: str, second: str) -> Exchange:
    """By the best library on record that joins two chips without their hosts' memory and carries an all-to-all.

    >>> exchange_of("nvidia-h20", "hygon-bw1000").goes, exchange_of("nvidia-h20", "huawei-ascend-910c").goes
    (True, False)
    """
    if first == second:
        return Exchange(goes=True, state="supported", reason="both are the same chip")
    if (shown := SHOWN.get(frozenset({first, second}))) is not None:
        return Exchange(goes=True, state="reported", reason=shown)
    answers = shared_collectives(first, second)
    fit = [one for one in answers if one.state in _GOES and not one.through_host and "alltoallv" not in one.lacks]  # fmt: skip
    best = fit[0] if fit else answers[0]
    how = f" by {best.library}" if best.library else ""
    state = "through host memory" if best.through_host else best.state
    return Exchange(goes=bool(fit), state=state, reason=f"{best.reason}{how}")


def link_between(first: Island, second: Island, bytes_per_s: float) -> Link:
    """So wide a link as it is reached: by the worse side's all-to-all, at the longer latency and launch."""
    ends = [island.rank.calibration for island in (first, second)]
    share = min(float(of(fits.all_to_all.bytes_fraction, "likely")) for fits in ends)
    latency_s = max(_latency_s(island, within=first is second) for island in (first, second))
    launch_s = max(float(of(fits.all_to_all.launch_s, "likely")) for fits in ends)
    return Link(bytes_per_s=share * bytes_per_s, latency_s=latency_s + launch_s)


def _latency_s(island: Island, *, within: bool) -> float:
    """Of the tier that joins the island, or of its outermost for a way out; as assumed where none is on record."""
    fits = island.rank.calibration
    links = island.rank.links(fits.all_to_all, "likely")
    joining = [one for one in links if one.ranks is None or one.ranks >= joined_ranks(island)]
    if not links:
        return float(of(fits.unknown_latency_s, "likely"))
    return float(joining[0].latency_s if within and joining else links[-1].latency_s)


def own_way_bytes_per_s(island: Island) -> float | None:
    """One rank's link to any other of its island: the nearest tier that joins them all; None where none is on record."""
    for tier in island.rank.tiers:
        if tier.bytes_per_s is not None and (
            tier.ranks is None or tier.ranks >= joined_ranks(island)
        ):
            return float(tier.bytes_per_s.value)
    return None


def joined_ranks(island: Island) -> int:
    """Ranks of an island that its links of known bandwidth join."""
    reach = island.rank.reach
    return island.ranks if reach is None else min(island.ranks, reach)
