"""The starts, ends and changes of speed of a run's replicas, in the order a driver enters them into its agenda."""

from collections.abc import Iterator

import msgspec

from polypod.policy.events import ReplicaDown, ReplicaUp
from polypod.simulate.scenario import Fault, Scenario


def changes(scenario: Scenario) -> Iterator[tuple[float, ReplicaUp | ReplicaDown | Fault]]:
    """When, and what: an event for the policy, or a fault that only the engine feels."""
    ups = {up.replica: up for up in scenario.replicas}
    for up in scenario.replicas:
        yield up.at_s, up
    for fault in sorted(scenario.faults, key=lambda fault: fault.at_s):
        if fault.what == "way":
            yield fault.at_s, fault
            continue
        up = ups[fault.replica]
        if fault.what == "down":
            yield (
                fault.at_s,
                ReplicaDown(
                    at_s=fault.at_s,
                    replica=fault.replica,
                    epoch=up.epoch,
                    reason=fault.reason,
                    back_in_s=fault.back_in_s,
                ),
            )
        elif fault.what == "up":
            ups[fault.replica] = msgspec.structs.replace(up, at_s=fault.at_s, epoch=up.epoch + 1)
            yield fault.at_s, ups[fault.replica]
        else:
            yield fault.at_s, fault
