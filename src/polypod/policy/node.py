"""The policy of one node: every event goes in here, and what must be done now comes out.

A request waits, runs on one replica, streams, and ends once. `lifecycle.py` lists the legal sequences. A word about an older
attempt, an older start of a replica, or a request that has ended is stale, and changes nothing.
"""

import heapq
import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from polypod.policy.actions import (
    Action,
    AnyAction,
    Cancel,
    Dispatch,
    Reject,
    Retry,
    RetryReason,
    WakeAt,
)
from polypod.policy.admission import Service
from polypod.policy.events import (
    AnyEvent,
    ClientGone,
    FirstToken,
    KvArrived,
    KvLost,
    LoadReported,
    PrefillFinished,
    ReplicaBusy,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    StepObserved,
    Woke,
)
from polypod.policy.health import Health, Replica
from polypod.policy.requests import Place, Tracked
from polypod.policy.settings import PolicySettings

WAKE_SLACK_S: Final = 1e-3
"""A timer may ring this early."""


class Policy:
    """Decides for one node. The same settings, seed and events give the same actions."""

    def __init__(self, settings: PolicySettings, seed: int = 0) -> None:
        self._settings = settings
        self._random = np.random.default_rng(seed)
        self._services = {service.model: Service(service) for service in settings.services}
        self._health = Health(settings)
        self._live: dict[int, Tracked] = {}
        self._arrivals = 0
        self._wakes_s: list[float] = []
        self._now_s = -math.inf
        self._actions: list[AnyAction] = []

    def handle(self, event: AnyEvent) -> list[AnyAction]:
        """Take in one event; return what the driver must now do, in order.

        Raises `InputError`, and changes nothing, for a replica that cannot be driven.
        """
        self._now_s = max(self._now_s, event.at_s)
        self._actions = []
        _HANDLERS[type(event)](self, event)
        for service in self._services.values():
            if service.queue:
                self._serve_queue(service)
        self._ask_for_wake()
        return self._actions

    # ---- requests

    def _arrived(self, event: RequestArrived) -> None:
        if event.request in self._live:
            return
        refusal = self._refusal(event)
        if refusal is not None:
            self._actions.append(refusal)
            return
        self._arrivals += 1
        tracked = Tracked(
            arrived=event,
            order=self._arrivals,
            deadline_s=self._now_s + self._settings.queue_wait_s,
        )
        self._live[event.request] = tracked
        service = self._services[event.model]
        if service.queue or not self._place(service, tracked):
            service.queue.add(tracked)
            self._serve_queue(service)
            self._bound_queue(service, tracked)

    def _refusal(self, event: RequestArrived) -> Reject | None:
        """The answer to a request that may not even wait, or None."""
        service = self._services.get(event.model)
        if service is None:
            return Reject(
                request=event.request,
                status=404,
                code="model_not_found",
                message=f"no model {event.model!r} here; there are: {', '.join(self._services)}",
                param="model",
            )
        too_long = service.refusal(event)
        if too_long is not None:
            return too_long
        pinned = event.only_replica
        if pinned is None:
            return None if self._health.any_up(event.model) else self._no_replica(event)
        replica = self._health.replicas.get(pinned)
        if replica is None or replica.up.model != event.model:
            return Reject(
                request=event.request,
                status=404,
                code="replica_not_found",
                message=f"no replica {pinned!r} of {event.model!r} has been up here",
            )
        return None if replica.is_up else self._no_replica(event)

    def _no_replica(self, event: RequestArrived) -> Reject:
        asked = "" if event.only_replica is None else f" called {event.only_replica!r}"
        return Reject(
            request=event.request,
            status=503,
            code="no_replica",
            message=f"no replica of {event.model!r}{asked} is up now",
            retry_after_s=self._settings.breaker_open_s,
        )

    def _first_token(self, event: FirstToken) -> None:
        tracked = self._running(event)
        if tracked is None or tracked.first_token_s is not None or tracked.place is None:
            return
        tracked.first_token_s = self._now_s
        replica = self._health.replicas[tracked.place.replica]
        self._health.tables[replica.up.model].prompt_done(tracked.place.load, self._now_s)
        self._health.succeeded(replica)

    def _finished(self, event: RequestFinished) -> None:
        tracked = self._running(event)
        if tracked is None or tracked.place is None:
            return
        if tracked.first_token_s is not None and event.output_tokens > 1:
            token_s = (self._now_s - tracked.first_token_s) / (event.output_tokens - 1)
            table = self._health.tables[tracked.arrived.model]
            table.token_time_observed(tracked.place.load, token_s)
        self._health.succeeded(self._leave(tracked))
        self._services[tracked.arrived.model].finished(event.output_tokens, self._now_s)
        self._forget(tracked)

    def _failed(self, event: RequestFailed) -> None:
        tracked = self._running(event)
        if tracked is None:
            return
        replica = self._leave(tracked)
        if event.kind != "client":
            self._health.failed(replica, self._now_s)
            tracked.failures += 1
            tracked.failed_at += ((event.replica, event.epoch),)
            tracked.deadline_s = self._now_s + self._settings.queue_wait_s
        what = f"{event.kind} at {event.replica}{': ' if event.detail else ''}{event.detail}"
        if tracked.first_token_s is not None:
            self._reject(tracked, 502, "replica_lost", f"the answer broke off: {what}")
        elif event.kind == "client":
            self._reject(tracked, event.status or 400, "engine_refused", what, from_engine=True)
        else:
            self._retry(tracked, event.kind, what, is_free=self._health.is_broken(replica))

    def _busy(self, event: ReplicaBusy) -> None:
        tracked = self._running(event)
        if tracked is None:
            return
        replica = self._leave(tracked)
        pause_s = event.retry_after_s
        self._health.busy(
            replica, self._now_s + (self._settings.busy_pause_s if pause_s is None else pause_s)
        )
        if tracked.first_token_s is not None:
            what = f"the answer broke off: {event.replica} turned busy"
            self._reject(tracked, 502, "replica_lost", what)
        else:
            self._requeue(tracked, "busy")

    def _gone(self, event: ClientGone) -> None:
        tracked = self._live.get(event.request)
        if tracked is not None:
            self._cancel(tracked)
            self._forget(tracked)

    # ---- replicas

    def _up(self, event: ReplicaUp) -> None:
        if not self._health.is_news(event):
            return
        before = self._health.replicas.get(event.replica)
        if before is not None and before.is_up:
            self._died(before)
        self._health.add(event)

    def _down(self, event: ReplicaDown) -> None:
        replica = self._health.current(event.replica, event.epoch)
        if replica is not None:
            self._died(replica)

    def _died(self, replica: Replica) -> None:
        """Move what ran there; those that also broke off there just before were part of the same death."""
        start = (replica.name, replica.up.epoch)
        aboard = list(replica.requests.values())
        broken_off = [one for one in self._live.values() if start in one.failed_at]
        for tracked in aboard:
            self._leave(tracked)
        self._health.remove(replica)
        for tracked in aboard:
            tracked.failures += 1
            tracked.deadline_s = self._now_s + self._settings.queue_wait_s
            self._outlive(tracked, replica.name, was_aboard=True)
        for tracked in broken_off:
            self._outlive(tracked, replica.name, was_aboard=False)

    def _outlive(self, tracked: Tracked, replica: str, *, was_aboard: bool) -> None:
        tracked.deaths += 1
        if tracked.first_token_s is not None:
            if was_aboard:
                what = f"the answer broke off: {replica} went down"
                self._reject(tracked, 502, "replica_lost", what)
        elif tracked.deaths >= self._settings.quarantine_deaths:
            self._cancel(tracked)
            what = f"{tracked.deaths} replicas died with this request; it is not tried again"
            self._reject(tracked, 500, "quarantined", what)
        elif was_aboard:
            self._retry(tracked, "replica_down", f"{replica} went down", is_free=True)

    def _observed(self, event: StepObserved) -> None:
        replica = self._health.current(event.replica, event.epoch)
        if replica is not None:
            self._health.tables[replica.up.model].step_observed(replica.row, event)

    def _load(self, event: LoadReported) -> None:
        replica = self._health.current(event.replica, event.epoch)
        if replica is not None:
            self._health.tables[replica.up.model].load_reported(replica.row, event)

    def _woke(self, event: Woke) -> None:
        while self._wakes_s and self._wakes_s[0] <= event.at_s + WAKE_SLACK_S:
            heapq.heappop(self._wakes_s)

    def _stale(self, event: PrefillFinished | KvArrived | KvLost) -> None:
        """Answers to actions that were never asked for."""

    # ---- the queue

    def _serve_queue(self, service: Service) -> None:
        """End the waiting of those who waited too long, then of those there is room for, in turn."""
        for tracked in service.queue.pop_expired(self._now_s):
            self._reject_late(service, tracked)
        table = self._health.tables[service.settings.model]
        least = table.least_limit_tokens()
        for tracked in service.queue:
            if not table.has_room(self._now_s):
                return
            if self._place(service, tracked):
                service.queue.remove(tracked)
            elif self._is_ordinary(service, tracked, least):
                return

    def _is_ordinary(self, service: Service, tracked: Tracked, least_limit_tokens: int) -> bool:
        """Whether any replica would do, so that nobody behind it may pass."""
        arrived = tracked.arrived
        is_free = arrived.only_replica is None and not tracked.failed_at
        return is_free and service.ask(arrived).need_tokens <= least_limit_tokens

    def _reject_late(self, service: Service, tracked: Tracked) -> None:
        model = service.settings.model
        code = "queue_timeout" if self._health.any_up(model) else "no_replica"
        what = f"waited {self._settings.queue_wait_s:g} s and no replica of {model!r} took it"
        retry_after_s = service.drain_s(self._settings.queue_wait_s)
        self._reject(tracked, 503, code, what, retry_after_s=retry_after_s)

    def _bound_queue(self, service: Service, newcomer: Tracked) -> None:
        if len(service.queue) > self._settings.queue_requests and newcomer in service.queue:
            service.queue.remove(newcomer)
            what = f"{len(service.queue)} requests wait already, the limit"
            retry_after_s = service.drain_s(self._settings.queue_wait_s)
            self._reject(newcomer, 429, "queue_full", what, retry_after_s=retry_after_s)

    def _place(self, service: Service, tracked: Tracked) -> bool:
        """Dispatch the request to where it finishes first, if any replica has room for it."""
        table = self._health.tables[service.settings.model]
        ask = service.ask(tracked.arrived)
        best = table.best(ask, self._allowed(service, tracked), self._now_s)
        if not len(best):
            return False
        row = int(best[0] if len(best) == 1 else best[self._random.integers(len(best))])
        up = table.at(row)
        tracked.attempt += 1
        tracked.place = Place(
            replica=up.replica,
            epoch=up.epoch,
            load=table.dispatched(row, ask, self._now_s),
        )
        return True
