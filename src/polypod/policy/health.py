"""Whom to trust: which start of a replica is the current one, breakers, and what retries may cost.

A failure that could be the replica's opens its breaker after so many in a row. A 4xx answer never counts, and a busy answer only
pauses. After its time out an open breaker admits one request at a time; the first success closes it.
"""

from dataclasses import dataclass, field

from polypod.errors import InputError
from polypod.policy.affinity import Affinity
from polypod.policy.events import ReplicaUp
from polypod.policy.requests import Tracked
from polypod.policy.router import ReplicaTable, slots_of
from polypod.policy.settings import PolicySettings


@dataclass(slots=True, eq=False)
class Replica:
    """One replica by name, up or down. Its row in the table holds what routing needs."""

    name: str
    up: ReplicaUp
    row: int
    is_up: bool = True
    failures: int = 0  # in a row
    requests: dict[int, Tracked] = field(default_factory=dict)

    def is_current(self, epoch: int) -> bool:
        return self.is_up and self.up.epoch == epoch


class Health:
    """The replicas, by name, and what their failures lead to."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._charged: set[int] = set()  # live requests whose retry the budget pays
        self.replicas: dict[str, Replica] = {}
        self.tables = {
            service.model: ReplicaTable(
                Affinity(block_tokens=service.block_tokens, most_blocks=settings.prefix_blocks)
            )
            for service in settings.services
        }

    # ---- starts and deaths

    def is_news(self, up: ReplicaUp) -> bool:
        """Whether this start is later than any known. Raises `InputError` for one that cannot be driven."""
        if up.model not in self.tables:
            msg = (
                f"replica {up.replica!r} serves {up.model!r}, which is none of this node's models "
                f"({', '.join(self.tables)}); list it in the settings' services"
            )
            raise InputError(msg)
        if up.role != "both":
            msg = (
                f"replica {up.replica!r} has the role {up.role!r}, but pools with roles prefill and decode "
                f"are not driven yet; give its pool the role 'both'"
            )
            raise InputError(msg)
        known = self.replicas.get(up.replica)
        return known is None or up.epoch > known.up.epoch

    def add(self, up: ReplicaUp) -> None:
        self.replicas[up.replica] = Replica(up.replica, up, self.tables[up.model].add(up))

    def remove(self, replica: Replica) -> None:
        """Take a dead replica out; what ran there was moved before."""
        self.tables[replica.up.model].remove(replica.row)
        replica.is_up = False

    def current(self, name: str, epoch: int) -> Replica | None:
        """The replica, if this is the start of it that is up."""
        replica = self.replicas.get(name)
        return replica if replica is not None and replica.is_current(epoch) else None

    def any_up(self, model: str) -> bool:
        return bool(self.tables[model].up_R.any())

    # ---- failures

    def failed(self, replica: Replica, now_s: float) -> None:
        """Count a failure; too many in a row take the replica out for a while."""
        replica.failures += 1
        if self.is_broken(replica):
            table = self.tables[replica.up.model]
            table.slots_R[replica.row] = 1
            table.block(replica.row, now_s + self._settings.breaker_open_s)

    def succeeded(self, replica: Replica) -> None:
        if self.is_broken(replica):
            table = self.tables[replica.up.model]
            table.slots_R[replica.row] = slots_of(replica.up)
        replica.failures = 0

    def is_broken(self, replica: Replica) -> bool:
        return replica.failures >= self._settings.breaker_failures

    def busy(self, replica: Replica, now_s: float, retry_after_s: float | None) -> None:
        """Leave a full replica alone for as long as it says, or for the usual while."""
        pause_s = (
            retry_after_s or self._settings.busy_pause_s
        )  # none at all would be asking at once
        self.tables[replica.up.model].block(replica.row, now_s + pause_s)

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
