"""From a plan to a scenario."""

from collections.abc import Sequence

import msgspec

from polypod.plan.predict import policy_settings, pool_replicas
from polypod.plan.spec import Plan
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.trace import Arrival


def scenario_of(
    plan: Plan,
    trace: Sequence[Arrival],
    *,
    seed: int = 0,
    faults: Sequence[Fault] = (),
    block_tokens: int | None = None,
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
        plan=msgspec.to_builtins(plan),
    )
