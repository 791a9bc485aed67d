"""The Markov model's answer to the same question, from the same rates: what `availability` is checked against and printed beside.

A replica fails at the sum of the rates of everything that stops it, and is repaired in their mean time, weighted by rate. Pools are
independent of each other, so pools that share spares have no such answer. Where there are spares every repaired unit takes the failover, also one that
comes back to where it was; `simulate.markov` says what else is left out.

Letters: R replicas, as in `seats`; n of a pool's replicas up.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polypod.simulate.demand import ENOUGH, Demand
from polypod.simulate.failure_rates import Rate
from polypod.simulate.markov import Chain, up_distribution
from polypod.simulate.seats import Seated
from polypod.simulate.spots import size_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_VALUES = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedForm:
    """The share of the time a service is up, or why there is no answer."""

    up_fraction: float | None
    why_not: str | None = None


def hits_R(seated: Seated, rate: Rate) -> Ints:
    """How many components of a kind stop each replica.

    A dead link stops nobody who has all cards on one side of it, unless it hands caches on.
    """
    found = np.zeros(len(seated.order_R), dtype=np.int64)
    seats = seated.seats
    for part in seated.placed.parts:
        if part.place is None:
            continue
        size = size_of(part, rate.kind.of, seated.domains)
        mine = (seats.first_card_R >= part.first_card) & (seats.first_card_R < part.first_card + part.cards)  # fmt: skip
        first = (seats.first_card_R - part.first_card) // size
        count = (seats.end_card_R - 1 - part.first_card) // size - first + 1
        if rate.kind.of.startswith("link"):
            count = np.where((count > 1) | seats.is_apart_R, count, 0)
        found[mine] = count[mine]
    return found


def chain_of(seated: Seated, rates: Mapping[str, Rate], pool: int) -> Chain:
    """A pool of the plan as a chain, its replicas' rates averaged."""
    mine = seated.pool_R == pool
    replicas = int(mine.sum())
    stopping = [rate for rate in rates.values() if rate.kind.what in ("crash", "hang")]
    per_s = {rate.kind.name: float(hits_R(seated, rate)[mine].mean()) / rate.mtbf_s for rate in stopping}  # fmt: skip
    broken = [rate for rate in stopping if not rate.kind.restarts]
    restarted = [rate for rate in stopping if rate.kind.restarts]
    fail_per_s = sum(per_s[rate.kind.name] for rate in broken)
    restart_per_s = sum(per_s[rate.kind.name] for rate in restarted)
    part = int(seated.placed.part_R[seated.order_R[mine]][0])
    spares = seated.help(part).spares
    load_s = float(seated.seats.load_s_R[mine].mean())
    waits = {rate.kind.name: (seated.recovery.detect_s if rate.kind.what == "hang" else 0.0) + rate.repair_s for rate in stopping}  # fmt: skip
    begun = fail_per_s * (seated.recovery.failover_s if spares else 0.0) + sum(per_s[rate.kind.name] * waits[rate.kind.name] for rate in restarted)  # fmt: skip
    whole = fail_per_s + restart_per_s
    repaired = sum(per_s[rate.kind.name] * waits[rate.kind.name] for rate in broken)
    return Chain(
        replicas=replicas,
        spares=spares,
        crews=seated.recovery.crews,
        fail_per_s=fail_per_s,
        repair_s=repaired / fail_per_s if fail_per_s else 0.0,
        restart_per_s=restart_per_s,
        start_s=load_s + begun / whole if whole else 0.0,
    )


def closed_form(seated: Seated, rates: Mapping[str, Rate], demand: Demand) -> ClosedForm:
    """Every phase carries its traffic, whatever the others do."""
    pools = range(demand.first_pool, demand.first_pool + len(demand.pools))
    shared = _shares_spares(seated, list(pools))
    if shared:
        return ClosedForm(up_fraction=None, why_not=shared)
    if any(np.count_nonzero(column) > 1 for column in demand.share_HP.T):
        return ClosedForm(up_fraction=None, why_not="a pool takes part in several phases")
    up = 1.0
    spread = {pool: up_distribution(chain_of(seated, rates, pool)) for pool in pools}
    for row in demand.share_HP:
        phase = {demand.first_pool + p: share for p, share in enumerate(row.tolist()) if share}
        if any(spread[pool] is None for pool in phase):
            return ClosedForm(up_fraction=None, why_not="its chain has too many states")
        share = _carries({pool: (spread[pool], each) for pool, each in phase.items()})
        if share is None:
            return ClosedForm(up_fraction=None, why_not="its pools have too many states together")
        up *= share
    return ClosedForm(up_fraction=up)


def _shares_spares(seated: Seated, pools: list[int]) -> str | None:
    """Why spares or crews are not a pool's own."""
    for pool in pools:
        part_R = seated.placed.part_R[seated.order_R]
        part = int(part_R[seated.pool_R == pool][0])
        others = len(np.unique(seated.pool_R[part_R == part])) > 1
        if others and (seated.help(part).spares or seated.recovery.crews):
            return f"pools share the spares or the crews of {seated.placed.parts[part].name!r}"
    return None


def _carries(phase: Mapping[int, tuple[Floats | None, float]]) -> float | None:
    """The chance that replicas up of several pools carry the traffic together."""
    values, chances = np.zeros(1), np.ones(1)
    for up_n, share in phase.values():
        assert up_n is not None, "asked before"
        if len(values) * len(up_n) > _MOST_VALUES:
            return None
        values = np.add.outer(values, share * np.arange(len(up_n))).ravel()
        chances = np.multiply.outer(chances, up_n).ravel()
    return math.fsum(chances[values >= ENOUGH].tolist())
