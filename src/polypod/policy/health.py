"""Whom to trust: which start of a replica is the current one, which is expected back, breakers, and what retries may cost.

A failure that could be the replica's opens its breaker after so many in a row. A 4xx answer never counts, and a busy answer only
pauses. After its time out an open breaker admits one request at a time; the first success closes it.
"""

import math
from dataclasses import dataclass, field
from typing import Final

from polypod.errors import InputError
from polypod.policy.affinity import Affinity
from polypod.policy.compiled import Functions
from polypod.policy.events import ReplicaUp, Role
from polypod.policy.requests import Tracked
from polypod.policy.router import ReplicaTable, slots_of
from polypod.policy.settings import PolicySettings

ROLES: Final[tuple[Role, ...]] = ("both", "prefill", "decode")

MOST_POOLS: Final = 62
"""Pools of replicas for one phase that one node tells apart: bits of a column."""


@dataclass(slots=True, eq=False)
class Replica:
    """One replica by name, up or down. Its row in the table holds what routing needs."""

    name: str
    up: ReplicaUp
    row: int
    table: ReplicaTable
    is_up: bool = True
    is_retiring: bool = False  # or was, before it went down
    back_at_s: float | None = None  # while it is down: when one is expected in its place
    failures: int = 0  # in a row
    requests: dict[int, Tracked] = field(default_factory=dict)

    def is_current(self, epoch: int) -> bool:
        return self.is_up and self.up.epoch == epoch


class Health:
    """The replicas, by name, and what their failures lead to."""

    def __init__(self, settings: PolicySettings, compiled: Functions | None = None) -> None:
        self._settings = settings
        self._charged: set[int] = set()  # live requests whose retry the budget pays
        self.replicas: dict[str, Replica] = {}
        self._pools: dict[str, int] = {}  # bits of those with replicas for one phase
        self._compiled = compiled
        self.tables: dict[tuple[str, Role], ReplicaTable] = {}
        self.told(settings)

    def told(self, settings: PolicySettings) -> None:
        """Other settings hold; models that are new have no replica yet."""
        self._settings = settings
        for service in settings.services:
            for role in ROLES:
                if (service.model, role) not in self.tables:
                    blocks = Affinity(
                        block_tokens=service.block_tokens, most_blocks=settings.prefix_blocks
                    )
                    self.tables[service.model, role] = ReplicaTable(blocks, compiled=self._compiled)

    def forget_model(self, model: str) -> None:
        """It has no replica any more, and gets none."""
        for role in ROLES:
            del self.tables[model, role]

    # ---- starts and deaths

    def is_news(self, up: ReplicaUp) -> bool:
        """Whether this start is later than any known. Raises `InputError` for one that cannot be driven."""
        if (up.model, up.role) not in self.tables:
            msg = (
                f"replica {up.replica!r} serves {up.model!r}, which is none of this node's models "
                f"({', '.join(dict.fromkeys(model for model, _ in self.tables))}); list it in the settings' services"
            )
            raise InputError(msg)
        pools = {*self._pools, *pools_of(up)}
        if len(pools) > MOST_POOLS:
            msg = (
                f"replica {up.replica!r} of pool {up.pool!r} makes {len(pools)} pools of prefill and decode, "
                f"and a node tells {MOST_POOLS} apart; make fewer and larger pools, or another node"
            )
            raise InputError(msg)
        known = self.replicas.get(up.replica)
        return known is None or up.epoch > known.up.epoch

    def add(self, up: ReplicaUp) -> None:
        table = self.tables[up.model, up.role]
        row = table.add(up)
        self.replicas[up.replica] = Replica(up.replica, up, row, table)
        for pool in pools_of(up):
            self._pools.setdefault(pool, 1 << len(self._pools))
        if up.role == "decode":
            table.pool_bit_R[row] = self._pools[up.pool]
        elif up.role == "prefill":
            table.to_pools_R[row] = sum(self._pools[pool] for pool in pools_of(up))

    def remove(self, replica: Replica) -> None:
        """Take a dead replica out; what ran there was moved before."""
        replica.table.remove(replica.row)
        replica.is_up = False

    def current(self, name: str, epoch: int) -> Replica | None:
        """The replica, if this is the start of it that is up."""
        replica = self.replicas.get(name)
        return replica if replica is not None and replica.is_current(epoch) else None

    def any_up(self, model: str, pin: str | None = None) -> bool:
        """Whether the model can be served from prompt to end; with a pin, by this replica or with it as one of a pair."""
        if pin is None and self.tables[model, "both"].num_up:
            return True
        up = {role: self.tables[model, role].num_up > 0 for role in ROLES}
        if pin is None:
            return up["both"] or (up["prefill"] and up["decode"])
        replica = self.replicas[pin]
        other: dict[Role, Role] = {"both": "both", "prefill": "decode", "decode": "prefill"}
        return replica.is_up and up[other[replica.up.role]]

    def has_replica(self, model: str) -> bool:
        """Whether any replica of it is up, of whatever role."""
        return any(self.tables[model, role].num_up for role in ROLES)

    def expected_in_s(self, model: str, pin: str | None, now_s: float) -> float:
        """When the model can be served from prompt to end, of the replicas that are up or expected back; infinite where they do not suffice.

        One that is overdue by d seconds is expected in d more.
        """
        least_s = dict.fromkeys(ROLES, math.inf)
        for name, replica in self.replicas.items():
            if replica.up.model == model and pin in (None, name):
                role = replica.up.role
                least_s[role] = min(least_s[role], _expected_in_s(replica, now_s))
        if pin is not None and (role := self.replicas[pin].up.role) != "both":
            other: Role = "decode" if role == "prefill" else "prefill"
            least_s[other] = 0.0 if self.tables[model, other].num_up else math.inf
        return min(least_s["both"], max(least_s["prefill"], least_s["decode"]))

    # ---- failures

    def failed(self, replica: Replica, now_s: float) -> None:
        """Count a failure; too many in a row take the replica out for a while."""
        replica.failures += 1
        if self.is_broken(replica):
            table = replica.table
            table.slots_R[replica.row] = 1
            table.block(replica.row, now_s + self._settings.breaker_open_s)

    def succeeded(self, replica: Replica) -> None:
        if not replica.failures:
            return
        if self.is_broken(replica):
            replica.table.slots_R[replica.row] = slots_of(replica.up)
        replica.failures = 0

    def is_broken(self, replica: Replica) -> bool:
        return replica.failures >= self._settings.breaker_failures

    def busy(self, replica: Replica, now_s: float, retry_after_s: float | None) -> None:
        """Leave a full replica alone for as long as it says, or for the usual while."""
        pause_s = (
            retry_after_s or self._settings.busy_pause_s
        )  # none at all would be asking at once
        replica.table.block(replica.row, now_s + pause_s)

    # ---- the retry budget

    def charge_retry(self, request: int, live_requests: int) -> bool:
        """Whether the budget pays for a retry; a request is charged once."""
        fraction = self._settings.retry_budget_fraction
        budget = max(self._settings.retry_budget_floor, int(fraction * live_requests))
        if request not in self._charged and len(self._charged) >= budget:
            return False
        self._charged.add(request)
        return True

    def forget(self, request: int) -> None:
        self._charged.discard(request)


def _expected_in_s(replica: Replica, now_s: float) -> float:
    if replica.is_up:
        return 0.0
    return math.inf if replica.back_at_s is None else abs(replica.back_at_s - now_s)


def pools_of(up: ReplicaUp) -> tuple[str, ...]:
    """Pools that a hand-over knows by name: of decode replicas."""
    return {"both": (), "decode": (up.pool,), "prefill": tuple(dict.fromkeys(up.kv_pools))}[up.role]
