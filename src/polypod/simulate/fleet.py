"""From a plan to a scenario."""

from collections.abc import Sequence

import msgspec

from polypod.plan.predict import policy_settings, pool_replicas
from polypod.plan.spec import Plan
from polypod.simulate.scenario import Fault, Scenario
from polypod.simulate.trace import Arrival


def scenario_of(
    plan: Plan, trace: Sequence[Arrival], *, seed: int = 0, faults: Sequence[Fault] = ()
) -> Scenario:
    """The plan's replicas, all up at time 0, under the plan's policy and this traffic.

    Raises `InputError` for what cannot be simulated: a pool of prefill or decode only, a fault at an unknown replica.
    """
    return Scenario(
        replicas=tuple(pool_replicas(plan)),
        settings=policy_settings(plan),
        trace=tuple(trace),
        seed=seed,
        faults=tuple(faults),
        plan=msgspec.to_builtins(plan),
    )
