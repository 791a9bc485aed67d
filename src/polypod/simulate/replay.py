"""Ask a fresh policy the questions of a record, and compare the answers."""

from collections.abc import Iterable
from dataclasses import dataclass

from polypod.errors import InputError
from polypod.policy.actions import AnyAction
from polypod.policy.events import AnyEvent
from polypod.policy.node import Policy
from polypod.record import Header, Line, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first event that was answered otherwise, counted from 1."""

    step: int
    event: AnyEvent
    recorded: list[AnyAction]
    replayed: list[AnyAction]


def replay(lines: Iterable[Line]) -> Difference | None:
    """Replay a record, live or simulated; None when every answer is the same.

    Raises `InputError` for a record of a sample: the policy answered events that are not in it.
    """
    policy: Policy | None = None
    steps = 0
    for line in lines:
        if isinstance(line, Header):
            if line.sample is not None:
                msg = f"this record keeps the steps of {100 * line.sample:g} % of its requests, and the policy's answers rest on all; simulate without --sample"
                raise InputError(msg)
            policy = Policy(line.policy, seed=line.seed or 0)
        elif isinstance(line, Step):
            assert policy is not None, "a record begins with its header"
            steps += 1
            replayed = policy.handle(line.event)
            if replayed != line.actions:
                return Difference(
                    step=steps, event=line.event, recorded=line.actions, replayed=replayed
                )
    return None
