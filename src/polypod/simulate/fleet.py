"""From a plan to a scenario."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from polypod.plan.predict import policy_settings, pool_replicas
from polypod.plan.spec import Plan
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.trace import Arrival
from polypod.simulate.ways import Ways


def scenario_of(
    plan: Plan,
    trace: Sequence[Arrival],
    *,
    seed: int = 0,
    faults: Sequence[Fault] = (),
    block_tokens: int | None = None,
    ways: Ways | None = None,
) -> Scenario:
    """The plan's replicas, all up at time 0, under the plan's policy and this traffic, of whose prompts each hash is of `block_tokens` tokens.

    Raises `InputError` for what cannot be simulated: a pool of prefill or decode only, a fault at an unknown replica.
    """
    policy = policy_settings(plan)
    if block_tokens is not None:
        services = [
            msgspec.structs.replace(one, block_tokens=block_tokens) for one in policy.services
        ]
        policy = msgspec.structs.replace(policy, services=tuple(services))
    return Scenario(
        replicas=tuple(pool_replicas(plan)),
        settings=policy,
        trace=tuple(trace),
        seed=seed,
        faults=tuple(faults),
        ways=ways,
        plan=msgspec.to_builtins(plan),
    )


def beside(faults: Sequence[Fault], slowdowns: Mapping[str, float]) -> tuple[Fault, ...]:
    """The faults of replicas that are slower than told all the time: their speeds are times that.

    >>> [fault] = beside([Fault(at_s=1.0, replica="a", what="speed", factor=2.0)], {"a": 1.5})
    >>> fault.factor
    3.0
    """
    return tuple(
        replace(fault, factor=fault.factor * slowdowns.get(fault.replica, 1.0))
        if fault.what == "speed"
        else fault
        for fault in faults
    )
