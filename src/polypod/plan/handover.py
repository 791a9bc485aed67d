"""What a plan's prefill and decode pools need for caches to go between them: how many bytes, how wide a link, to which pools.

One rank's link is what the plan says, else the narrowest way on record between the pool's island and those it hands caches to or has
them from. A replica sends by all its ranks. On a host both ends are processes of one engine, a cache goes by a file in memory, and what is
counted as its way is the reading of it; it was written before its prefill replica said that it was done.
"""

from dataclasses import dataclass

from polypod import units
from polypod.cost.calibration import of
from polypod.cost.cpu import HandoverRates, handover_rates
from polypod.errors import InputError
from polypod.plan.place import Island, island, way_between_bytes_per_s
from polypod.plan.spec import Plan, Pool, Service
from polypod.workload.layout import Layout
from polypod.workload.memory import kv_bytes_per_token_per_rank
from polypod.workload.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """Of one replica; nothing of one that does both."""

    token_bytes: float = 0.0
    link_bytes_per_s: float = 0.0
    latency_s: float = 0.0
    pools: tuple[str, ...] = ()


def handover(plan: Plan, service: Service, model: Model, pool: Pool) -> Handover:
    """How replicas of the pool hand caches on, or have them handed.

    Raises `InputError` where the other phase has no pool, a pool is on a host, both ends keep caches in unlike formats, or no link is on record.
    """
    if pool.role == "both":
        return Handover()
    others = _others(service, pool)
    if not others:
        other = "decode" if pool.role == "prefill" else "prefill"
        msg = f"a {pool.role} pool without a {other} pool of its service; add one, or make its role both"
        raise InputError(msg)
    unlike = sorted({one.precision.kv for one in others} - {pool.precision.kv})
    if unlike:
        msg = f"caches are {pool.precision.kv} here and {', '.join(unlike)} where they come from or go to; keep them in one format"
        raise InputError(msg)
    token_bytes = float(kv_bytes_per_token_per_rank(model, Layout(tp=1), pool.precision))
    if any(plan.fleet[one.on].host is not None for one in (pool, *others)):
        rates = _host_rates(plan, pool, others)
        return Handover(
            token_bytes=token_bytes,
            link_bytes_per_s=of(rates.restore_bytes_per_s, "likely"),
            latency_s=of(rates.restore_latency_s, "likely"),
            pools=pool.hands_to,
        )
    mine = _place(plan, pool)
    return Handover(
        token_bytes=token_bytes,
        link_bytes_per_s=_rank_bytes_per_s(plan, pool, mine, others) * pool.layout.world,
        latency_s=_latency_s(mine),
        pools=pool.hands_to,
    )


def _others(service: Service, pool: Pool) -> list[Pool]:
    """Pools that its caches go to, or come from."""
    if pool.role == "prefill":
        return [one for one in service.pools if one.role == "decode" and (not pool.hands_to or one.name in pool.hands_to)]  # fmt: skip
    return [one for one in service.pools if one.role == "prefill" and (not one.hands_to or pool.name in one.hands_to)]  # fmt: skip


def _host_rates(plan: Plan, pool: Pool, others: list[Pool]) -> HandoverRates:
    """Of the one engine that is at both ends, on cores of hosts."""
    pools = (pool, *others)
    afar = [one.on for one in pools if plan.fleet[one.on].host is None]
    engines = sorted({str(one.engine) for one in pools})
    rates = handover_rates(engines[0])
    if afar or len(engines) > 1 or rates is None:
        what = f"{afar[0]!r} is no host" if afar else f"the engines are {' and '.join(engines)}"
        msg = f"a pool for {pool.role!r} on a host: caches go between llama.cpp processes of one host alone, and {what}; make role both"
        raise InputError(msg)
    return rates


def _place(plan: Plan, pool: Pool) -> Island:
    return island(pool.on, plan.fleet[pool.on])


def _rank_bytes_per_s(plan: Plan, pool: Pool, mine: Island, others: list[Pool]) -> float:
    if pool.kv_link is not None:
        said = units.parse(pool.kv_link, "bytes_per_s")
        if not said > 0:
            msg = (
                f"kv_link {pool.kv_link} lets no cache through; give a bandwidth above 0, as 50GB/s"
            )
            raise InputError(msg)
        return said
    ways = []
    for other in others:
        there = _place(plan, other)
        way = way_between_bytes_per_s(mine, there)
        if way is None:
            msg = f"no link for caches between {mine.rank.chip} on {pool.on!r} and {there.rank.chip} on {other.on!r} is on record; say one rank's as kv_link: 50GB/s"
            raise InputError(msg)
        ways.append(way)
    return min(ways)


def _latency_s(place: Island) -> float:
    """Of the outermost tier; as assumed where none is on record."""
    fits = place.rank.calibration
    links = place.rank.links(fits.reduction, "likely")
    return float(links[-1].latency_s if links else of(fits.unknown_latency_s, "likely"))
