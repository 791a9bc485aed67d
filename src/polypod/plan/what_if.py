"""A plan with more or fewer replicas than it says."""

from collections.abc import Sequence

import msgspec

from polypod.errors import InputError, nearest_names
from polypod.plan.spec import Plan, Pool, check


def with_replicas(plan: Plan, asked: Sequence[str]) -> Plan:
    """The plan with `POOL=N` replicas in its pools; `N` alone where it has one. Whether the fleet has the cards is asked where places count, as for faults.

    What the plan predicts is left out, since it was of other replicas. Raises `InputError`.
    """
    if not asked:
        return plan
    names = [pool.name or f"pool{s}.{p}" for s, service in enumerate(plan.services) for p, pool in enumerate(service.pools)]  # fmt: skip
    counts = dict(_count(text, names) for text in asked)
    number = iter(names)
    services = tuple(
        msgspec.structs.replace(
            service, pools=tuple(_pool(pool, counts.get(next(number))) for pool in service.pools)
        )
        for service in plan.services
    )
    found = msgspec.structs.replace(plan, services=services, predicted=None)
    check(found)
    return found


def _count(text: str, names: Sequence[str]) -> tuple[str, int]:
    name, _, count = text.rpartition("=")
    if not count.isdecimal() or int(count) < 1:
        msg = f"--replicas {text}: {count!r} is no number of replicas; give POOL=N, a whole number from 1 on"
        raise InputError(msg)
    if not name:
        if len(names) > 1:
            msg = f"--replicas {text} does not say of which pool, and the plan has {', '.join(names)}; give {names[0]}={count}"
            raise InputError(msg)
        return names[0], int(count)
    if name not in names:
        near = ", ".join(nearest_names(name, names) or names[:5])
        msg = f"--replicas {text}: the plan has no pool {name!r}; nearest: {near}"
        raise InputError(msg)
    return name, int(count)


def _pool(pool: Pool, replicas: int | None) -> Pool:
    return pool if replicas is None else msgspec.structs.replace(pool, replicas=replicas, predicted=None)  # fmt: skip
