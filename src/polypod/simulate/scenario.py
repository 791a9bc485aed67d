"""What is simulated: replicas, what arrives, what breaks, and by which rules the policy decides."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from polypod.errors import InputError, nearest_names
from polypod.policy.events import ReplicaUp
from polypod.policy.settings import PolicySettings
from polypod.simulate.trace import Arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A replica dies, or is back with an empty cache."""

    at_s: float
    replica: str
    what: Literal["down", "up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """All that a run depends on: the same scenario gives the same record, byte for byte.

    `slowdowns` makes a replica slower, by this factor, than the step time the policy is told: a straggler.
    """

    replicas: tuple[ReplicaUp, ...]
    settings: PolicySettings
    trace: tuple[Arrival, ...]
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    slowdowns: Mapping[str, float] = field(default_factory=dict)
    plan: dict[str, Any] | None = None  # where the replicas come from; only told in the record

    @property
    def block_tokens(self) -> dict[str, int]:
        """Tokens of a block, by model, of models whose requests come with hashes of their blocks."""
        hashed = {arrival.model for arrival in self.trace if arrival.prefix_hashes}
        return {
            one.model: one.block_tokens for one in self.settings.services if one.model in hashed
        }

    def __post_init__(self) -> None:
        names = [up.replica for up in self.replicas]
        if len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            msg = f"several replicas are called {', '.join(twice)}; give every pool its own name"
            raise InputError(msg)
        for up in self.replicas:
            if up.role != "both":
                msg = (
                    f"pool {up.pool!r} has the role {up.role!r}, which is not simulated yet; "
                    f"give it the role 'both'"
                )
                raise InputError(msg)
        for name in [*(fault.replica for fault in self.faults), *self.slowdowns]:
            if name not in names:
                near = ", ".join(nearest_names(name, names) or names[:5])
                msg = f"no replica of this scenario is called {name!r}; nearest: {near}"
                raise InputError(msg)
        for name, factor in self.slowdowns.items():
            if not factor > 0:
                msg = f"the slowdown of {name!r} is {factor:g}; 2 is half as fast, 1 as told"
                raise InputError(msg)
