"""What the policy remembers of a live request; nothing of one that has ended."""

from dataclasses import dataclass

from polypod.policy.events import RequestArrived
from polypod.policy.router import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an attempt runs, and what it added there."""

    replica: str
    epoch: int
    load: Load
    since_s: float


@dataclass(slots=True, eq=False, kw_only=True)
class Tracked:
    """One live request: it waits while it has no place, runs while it has one, and streams from its first token on."""

    arrived: RequestArrived
    order: int  # of arrival; a retry keeps it, and with it its turn
    deadline_s: float  # for waiting
    attempt: int = 0
    place: Place | None = None
    first_token_s: float | None = None
    failures: int = 0
    deaths: int = 0  # of replicas, while it was there
    failed_at: tuple[tuple[str, int], ...] = ()  # replica and epoch of the failures

    @property
    def request(self) -> int:
        return self.arrived.request

    @property
    def turn(self) -> tuple[int, int]:
        """Higher priority first, then first come first served."""
        return (-self.arrived.priority, self.order)
