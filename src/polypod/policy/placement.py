"""Who goes where, and whose turn it is: the queues and the replicas, brought together.

The queue's bound holds for newcomers that find no room; a retry is never turned away for it, since it was let in once.
"""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from polypod.policy.actions import Dispatch
from polypod.policy.admission import Service
from polypod.policy.health import Health, Replica
from polypod.policy.requests import Ask, Place, Tracked
from polypod.policy.router import ReplicaTable
from polypod.policy.settings import PolicySettings

MASK: Final = 2**64 - 1


def pick(seed: int, request: int, attempt: int, count: int) -> int:
    """One of `count`, as good as at random, the same for the same numbers (splitmix64's finish; Steele, Lea, Flood 2014).

    >>> [pick(7, request, 0, 4) for request in range(8)]
    [1, 1, 0, 3, 1, 0, 1, 1]
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + request * 0xBF58476D1CE4E5B9 + attempt + 1) & MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & MASK
    return (mixed ^ (mixed >> 31)) % count


class Placement:
    """Gives waiting requests their places, and takes them back."""

    def __init__(self, settings: PolicySettings, health: Health, seed: int) -> None:
        self._seed = seed
        self._health = health
        self.services = {service.model: Service(service) for service in settings.services}

    def wait(self, tracked: Tracked) -> None:
        self.services[tracked.model].queue.add(tracked)

    def withdraw(self, tracked: Tracked) -> bool:
        """Take the request out of its queue; false when it does not wait."""
        queue = self.services[tracked.model].queue
        if tracked in queue:
            queue.remove(tracked)
            return True
        return False

    def serve(self, service: Service, now_s: float) -> list[Dispatch]:
        """Place those who wait, in turn, for as long as there is room.

        One that the free replicas cannot take (it is pinned, long, or was let down by them) does not hold up those behind it.
        """
        table = self._health.tables[service.settings.model]
        dispatches: list[Dispatch] = []
        if not service.queue or not table.has_room(now_s):
            return dispatches
        refused_tokens = math.inf  # there is no room for this much, wherever it may go
        for tracked in service.queue:
            is_plain = tracked.arrived.only_replica is None and not tracked.failures
            need_tokens = self._ask(tracked).need_tokens
            if need_tokens >= refused_tokens:
                continue
            dispatch = self.place(tracked, now_s)
            if dispatch is not None:
                service.queue.remove(tracked)
                dispatches.append(dispatch)
                if not service.queue or not table.has_room(now_s):
                    break
            elif is_plain:
                refused_tokens = need_tokens
        return dispatches

    def place(self, tracked: Tracked, now_s: float) -> Dispatch | None:
        """Send the request to where it would finish first; ties fall by the seed. None without room."""
        ask = self._ask(tracked)
        table = self._health.tables[tracked.model]
        choice = table.best(ask, self._allowed(tracked, ask, table), now_s)
        rows = choice.rows
        if not len(rows):
            return None
        row = int(rows[pick(self._seed, tracked.request, tracked.attempt, len(rows))])
        up, load = table.at(row), table.dispatched(row, ask, choice, now_s)
        tracked.attempt += 1
        tracked.place = Place(replica=up.replica, epoch=up.epoch, load=load)
        self._health.replicas[up.replica].requests[tracked.request] = tracked
        return Dispatch(
            request=tracked.request,
            attempt=tracked.attempt,
            replica=up.replica,
            epoch=up.epoch,
            predicted_first_token_s=load.first_token_s,
            predicted_token_s=load.token_s,
        )

    def leave(self, tracked: Tracked, now_s: float) -> Replica:
        """Take the request off its replica, which is returned."""
        place = tracked.place
        assert place is not None, f"request {tracked.request} runs nowhere"
        table = self._health.tables[tracked.model]
        if not tracked.is_streaming:
            table.prompt_given_up(place.load, now_s)
        table.left(place.load)
        tracked.place = None
        replica = self._health.replicas[place.replica]
        del replica.requests[tracked.request]
        return replica

    def next_change_s(self, now_s: float) -> float:
        """When time alone will change something for those who wait; infinite when it will not."""
        times = [math.inf]
        for model, service in self.services.items():
            if service.queue:
                table = self._health.tables[model]
                times += [service.queue.next_deadline_s(), table.next_unblock_s(now_s)]
        return min(times)

    def has_room_for(self, tracked: Tracked, now_s: float) -> bool:
        """Whether a replica could take the request now."""
        table = self._health.tables[tracked.model]
        ask = self._ask(tracked)
        return len(table.best(ask, self._allowed(tracked, ask, table), now_s).rows) > 0

    def _ask(self, tracked: Tracked) -> Ask:
        most_tokens = self._health.tables[tracked.model].most_limit_tokens
        return self.services[tracked.model].ask(tracked.arrived, most_tokens)

    def _allowed(self, tracked: Tracked, ask: Ask, table: ReplicaTable) -> npt.NDArray[np.bool_]:
        """Rows that may take the request: its pin if it has one; else not where it failed, if there is any other."""
        fits_R = table.fits(ask)
        pin = tracked.arrived.only_replica
        if pin is not None:
            only_R = np.zeros_like(fits_R)
            replica = self._health.replicas[pin]
            if replica.is_up:
                only_R[replica.row] = fits_R[replica.row]
            return only_R
        if not tracked.failures:
            return fits_R
        for failures in (tracked.failures, tracked.failures[-1:]):
            others_R = fits_R.copy()
            for failure in failures:
                replica_there = self._health.current(failure.replica, failure.epoch)
                if replica_there is not None:
                    others_R[replica_there.row] = False
            if others_R.any():
                return others_R
        return fits_R
