"""How many replicas a service's traffic needs: what the plan predicts of one, held against the rate it is asked.

    replica_per_s = tokens_per_s_per_accelerator * accelerators of a replica / output_tokens

A service is up while every phase of it (prefill, decode) carries the traffic: over the pools of that role, and those of both,

    sum of replicas up * replica_per_s  >=  rate_per_s

Letters: H phases, P pools of the service. `share_HP` is what one replica carries of the traffic.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError, nearest_names
from polypod.plan.place import island
from polypod.plan.spec import Plan, Pool, Service

Floats = NDArray[np.float64]

ENOUGH: Final = 1 - 1e-9
"""Of the traffic; less is a rounding error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a service needs. `first_pool` counts its pools through the plan."""

    model: str
    pools: tuple[str, ...]
    replicas: tuple[int, ...]
    first_pool: int
    share_HP: Floats
    says: str

    def carried(self, up_XP: Floats) -> Floats:
        """The share of the traffic that so many replicas up carry, X times; above 1 is more than enough."""
        return np.asarray((up_XP @ self.share_HP.T).min(axis=1), dtype=np.float64)

    @property
    def whole(self) -> float:
        """What all of them carry."""
        return float(self.carried(np.array([self.replicas], dtype=np.float64))[0])


def demands(plan: Plan, need: Mapping[str, int] | None = None) -> list[Demand]:
    """What every service of the plan needs; `need` says how many replicas of a pool, in the place of the prediction.

    Raises `InputError` where the plan says too little, and where all its replicas would not do.
    """
    said = dict(need or {})
    found = []
    first = 0
    for s, service in enumerate(plan.services):
        names = tuple(pool.name or f"pool{s}.{p}" for p, pool in enumerate(service.pools))
        mine = {name: said.pop(name) for name in names if name in said}
        share_HP, says = _said(service, names, mine) if mine else _predicted(plan, service, s)
        demand = Demand(
            model=service.model,
            pools=names,
            replicas=tuple(pool.replicas for pool in service.pools),
            first_pool=first,
            share_HP=share_HP,
            says=says,
        )
        if demand.whole < ENOUGH:
            msg = f"all replicas of {service.model} carry {demand.whole:.1%} of its traffic ({says}), so it would never be up; plan more, or less traffic"
            raise InputError(msg)
        found.append(demand)
        first += len(names)
    if said:
        known = [name for demand in found for name in demand.pools]
        name = next(iter(said))
        near = ", ".join(nearest_names(name, known) or known[:5])
        msg = f"--need {name}: no pool of this plan is called that; nearest: {near}"
        raise InputError(msg)
    return found


def _said(service: Service, names: tuple[str, ...], need: Mapping[str, int]) -> tuple[Floats, str]:
    rows = []
    for p, (name, pool) in enumerate(zip(names, service.pools, strict=True)):
        if name not in need:
            continue
        if not 0 < need[name] <= pool.replicas:
            msg = f"--need {name}={need[name]}: the pool has {pool.replicas} replicas; give 1 to {pool.replicas}"
            raise InputError(msg)
        rows.append([1 / need[name] if other == p else 0.0 for other in range(len(names))])
    return np.array(rows), ", ".join(f"{count} of {name}" for name, count in need.items())


def _predicted(plan: Plan, service: Service, s: int) -> tuple[Floats, str]:
    rate = service.traffic.rate_per_s if service.traffic else None
    if service.traffic is None or not rate:
        msg = f"{service.model} has no traffic with a rate, so nothing says how many replicas it needs; add `traffic: {{rate: 20 /s}}` at `$.services[{s}]`, or say --need POOL=N"
        raise InputError(msg)
    each = [_replica_per_s(plan, pool, service.traffic.output, f"$.services[{s}].pools[{p}]") for p, pool in enumerate(service.pools)]  # fmt: skip
    roles = {pool.role for pool in service.pools}
    phases = ("prefill", "decode") if roles != {"both"} else ("both",)
    rows = [
        [per_s / rate if pool.role in (phase, "both") else 0.0 for per_s, pool in zip(each, service.pools, strict=True)]
        for phase in phases
    ]  # fmt: skip
    return np.array(rows), f"{rate:g} /s"


def _replica_per_s(plan: Plan, pool: Pool, output_tokens: int, path: str) -> float:
    if pool.predicted is None:
        msg = f"nothing is predicted of what a replica carries; plan it with polypod plan -o, or say --need POOL=N - at `{path}.predicted`"
        raise InputError(msg)
    source = plan.fleet[pool.on]
    per_card = 1 if source.host is not None else island(pool.on, source).rank.ranks_per_accelerator
    accelerators = pool.layout.world / per_card
    return pool.predicted.tokens_per_s_per_accelerator * accelerators / output_tokens


def needed_alone(demand: Demand, pool: int) -> int | None:
    """Replicas of this pool that the traffic needs; None where other pools can stand in for it, or it needs none."""
    column = demand.share_HP[:, pool]
    phases = np.flatnonzero(column)
    if not len(phases) or np.count_nonzero(demand.share_HP[phases]) != len(phases):
        return None
    return max(1, math.ceil(ENOUGH / float(column[phases].min())))
