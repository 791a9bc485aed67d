"""How much of this host's memory each engine may take.

Nine tenths of what the machine or its container has are shared out by what the plan predicts for each replica, so that all limits together fit: an
engine that leaks is ended with its reason, before the kernel ends whatever it finds. A limit is never below what was predicted.
"""

from typing import Final

from polypod import units
from polypod.plan.spec import Plan, Pool
from polypod.serve.devices.cpu import HostCpu

SHARED_FRACTION: Final = 0.9


def limits_bytes(plan: Plan, cpu: HostCpu) -> dict[str, int]:
    """By the name of a pool on this host: the limit of each of its replicas. Pools without a prediction have none."""
    limit_bytes = cpu.limits.memory_bytes
    has_bytes = min(cpu.memory_total_bytes, limit_bytes or cpu.memory_total_bytes)
    needs = {
        str(pool.name): (need_bytes(pool), pool.replicas)
        for service in plan.services
        for pool in service.pools
        if plan.fleet[pool.on].cores is not None
    }
    in_all = sum((need or 0.0) * replicas for need, replicas in needs.values())
    return {
        name: int(max(need, has_bytes * SHARED_FRACTION * need / in_all))
        for name, (need, _) in needs.items()
        if need
    }


def need_bytes(pool: Pool) -> float | None:
    """Weights and cache of one replica, as predicted."""
    if pool.predicted is None:
        return None
    return units.parse(pool.predicted.memory_per_accelerator, "bytes")
