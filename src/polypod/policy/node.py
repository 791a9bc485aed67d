"""The policy of one node: every event goes in here, and what must be done now comes out.

A request waits, runs on one replica, streams, and ends once. `lifecycle.py` lists the legal sequences. A word about an older
attempt, an older start of a replica, or a request that has ended is stale, and changes nothing.

A stream that breaks off goes on elsewhere where its request allows it: it waits again, in its old turn, and the next attempt is told how many tokens its
client has. Replicas that cannot go on with an answer are left out; of the others the best is chosen as for any request.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from polypod.policy import answers, corrections
from polypod.policy.actions import AnyAction, Cancel, Drain, Reject, Retry, RetryReason, WakeAt
from polypod.policy.admission import MIN_RETRY_AFTER_S, Service
from polypod.policy.compiled import Functions
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
    ReplicaRetiring,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    SettingsChanged,
    StepObserved,
    Woke,
)
from polypod.policy.fairness import cost_tokens
from polypod.policy.forecasts import Forecasts, shown
from polypod.policy.health import Health, Replica
from polypod.policy.invariants import check_policy
from polypod.policy.placement import Placement
from polypod.policy.requests import Failure, Phase, Tracked
from polypod.policy.settings import PolicySettings, check_change

WAKE_SLACK_S: Final = 1e-3
"""A timer may ring this early."""

OfAttempt = (
    FirstToken
    | RequestFinished
    | RequestFailed
    | ReplicaBusy
    | PrefillFinished
    | KvArrived
    | KvLost
)
PHASES: Final[tuple[Phase, ...]] = ("whole", "prefill", "held", "transfer", "decode")


class Policy:
    """Decides for one node. The same settings, seed and events give the same actions, with `compiled` functions sooner."""

    def __init__(
        self, settings: PolicySettings, seed: int = 0, compiled: Functions | None = None
    ) -> None:
        self._settings = settings
        self._health = Health(settings, compiled)
        self._placement = Placement(settings, self._health, seed)
        self._forecasts = Forecasts()
        self._live: dict[int, Tracked] = {}
        self._arrivals = 0
        self._wakes_s: list[float] = []  # a heap: asked for, and not yet come
        self._now_s = -math.inf
        self._actions: list[AnyAction] = []

    def handle(self, event: AnyEvent) -> list[AnyAction]:
        """Take in one event; return what the driver must now do, in order.

        Raises `InputError`, and changes nothing, for a replica that cannot be driven, and for settings that cannot change.
        """
        self._now_s = max(self._now_s, event.at_s)
        self._actions = []
        _HANDLERS[type(event)](self, event)
        if self._placement.has_waiting:
            self._serve_queues()
            self._ask_for_wake()
        return self._actions

    def corrections(self) -> dict[tuple[str, str], float]:
        """By replica and phase: how many times as long steps take as the cost model said; above 1 is slower."""
        factors = {}
        for name, replica in self._health.replicas.items():
            if replica.is_up:
                table = replica.table
                factors[name, "prefill"] = float(table.prompt_factor_R[replica.row])
                factors[name, "decode"] = float(table.decode_factor_R[replica.row])
        return factors

    def foresight(self) -> dict[str, dict[str, float]]:
        """By replica that is up: what was predicted of its requests of late, what came, and the corrections (`forecasts.MEASURES`)."""
        up = {name for name, replica in self._health.replicas.items() if replica.is_up}
        known = {name: one for name, one in self._forecasts.items() if name in up}
        return shown(known, self.corrections())

    def queues(self) -> dict[str, int]:
        """By model: requests that wait here for a replica."""
        return {model: len(one.queue) for model, one in self._placement.services.items()}

    def aboard(self, replica: str) -> int:
        """How many requests a replica has."""
        known = self._health.replicas.get(replica)
        return 0 if known is None or not known.is_up else len(known.requests)

    def check(self) -> None:
        """Raise `AssertionError` if any invariant is broken; tests call this after every event."""
        check_policy(self._live, self._health, self._placement, self._now_s)

    # ---- requests

    def _arrived(self, event: RequestArrived) -> None:
        if event.request in self._live:
            return
        refusal = self._refusal(event)
        if refusal is not None:
            self._actions.append(refusal)
            return
        self._arrivals += 1
        tracked = Tracked.of(event, self._arrivals, self._deadline_s())
        self._live[event.request] = tracked
        service = self._placement.services[event.model]
        promised_s = service.settings.first_token_limit_s or math.inf
        if self._is_shed(tracked, self._placement.first_token_s, promised_s):
            return
        service.charge(tracked)
        self._placement.wait(tracked)
        self._serve_queues()
        if not service.queue.turns:
            return
        others = len(service.queue) - 1
        if others >= self._settings.queue_requests and self._placement.withdraw(tracked):
            retry_after_s = service.drain_s(self._settings.queue_wait_s)
            self._end(tracked, answers.queue_full(event, others, retry_after_s))
        elif tracked in service.queue:
            limit_s = min(self._settings.queue_wait_s, promised_s)
            self._is_shed(tracked, self._placement.wait_s, limit_s)

    def _is_shed(
        self, tracked: Tracked, expected: Callable[[Tracked, float], float], limit_s: float
    ) -> bool:
        """Turn a newcomer away that is expected to come past its limit, in place of letting it wait for nothing."""
        if self._settings.admission != "slo" or limit_s == math.inf:
            return False
        expected_s = expected(tracked, self._now_s)
        if expected_s <= limit_s:
            return False
        self._placement.withdraw(tracked)
        retry_after_s = max(expected_s - limit_s, MIN_RETRY_AFTER_S)
        late = answers.too_late(tracked.arrived, expected_s, limit_s, retry_after_s)
        self._end(tracked, late)
        return True

    def _refusal(self, event: RequestArrived) -> Reject | None:
        """The answer to a request that may not even wait, or None."""
        service = self._placement.services.get(event.model)
        if service is None or service.is_leaving:
            return answers.model_not_found(event, self._placement.models())
        if event.only_replica is not None:
            replica = self._health.replicas.get(event.only_replica)
            if replica is None or replica.up.model != event.model:
                return answers.replica_not_found(event)
        hopeless = self._hopeless(event)
        if hopeless is not None:
            return hopeless
        is_up = self._health.any_up(event.model, event.only_replica)
        return None if is_up else self._unless_expected(event, service)

    def _hopeless(self, arrived: RequestArrived) -> Reject | None:
        """The answer to a request that would wait in vain whatever comes, or None."""
        service = self._placement.services[arrived.model]
        if service.is_leaving:
            return answers.model_removed(arrived, self._placement.models())
        if not service.can_hold(arrived):
            return answers.context_length_exceeded(arrived, service.settings.context_tokens)
        pin = arrived.only_replica
        if pin is None or not self._health.replicas[pin].is_retiring:
            return None
        if self._health.replicas[pin].is_up:
            return answers.replica_retiring(arrived)
        return answers.no_replica(arrived, self._settings.breaker_open_s)

    def _unless_expected(self, event: RequestArrived, service: Service) -> Reject | None:
        """None is up: the answer to a newcomer, unless one is expected before it has waited too long."""
        expected_s = self._health.expected_in_s(event.model, event.only_replica, self._now_s)
        limit_s = self._settings.queue_wait_s
        if self._settings.admission == "slo":
            limit_s = min(limit_s, service.settings.first_token_limit_s or math.inf)
        if expected_s <= limit_s:
            return None
        retry_after_s = self._settings.breaker_open_s if expected_s == math.inf else expected_s
        return answers.no_replica(event, retry_after_s)

    def _first_token(self, event: FirstToken) -> None:
        tracked = self._running(event, "whole", "decode")
        if tracked is not None and not tracked.is_streaming:
            self._begin_answer(tracked)

    def _finished(self, event: RequestFinished) -> None:
        tracked = self._running(event, "whole", "decode")
        if tracked is None:
            return
        if not tracked.is_streaming:
            self._begin_answer(tracked)
        assert tracked.place is not None
        assert tracked.first_token_s is not None
        own_tokens = event.output_tokens - tracked.sent_tokens  # of this attempt
        if own_tokens > 1:
            token_s = (self._now_s - tracked.first_token_s) / (own_tokens - 1)
            table = self._health.replicas[tracked.place.replica].table
            corrections.token_time_observed(table, tracked.place.load, token_s)
        self._forecasts.finished(tracked, own_tokens, self._now_s)
        self._health.succeeded(self._placement.leave(tracked, self._now_s))
        self._learn(tracked, event)
        self._end(tracked)

    def _learn(self, tracked: Tracked, event: RequestFinished) -> None:
        service = self._placement.services[tracked.model]
        asked = tracked.arrived.input_tokens
        input_tokens = asked if event.input_tokens is None else event.input_tokens
        service.settle(tracked, cost_tokens(input_tokens, event.output_tokens))
        service.finished(event.output_tokens, self._now_s)
        service.stayed(self._now_s - tracked.placed_s)

    def _begin_answer(self, tracked: Tracked) -> None:
        """The replica answers: it is well, and the prompt is done."""
        assert tracked.place is not None
        tracked.first_token_s = self._now_s
        self._forecasts.begun(tracked, self._now_s)
        replica = self._health.replicas[tracked.place.replica]
        replica.table.prompt_done(tracked.place.load, self._now_s)
        self._health.succeeded(replica)

    def _failed(self, event: RequestFailed) -> None:
        tracked = self._running(event)
        if tracked is None:
            return
        replica = self._placement.leave(tracked, self._now_s)
        what = f"{event.kind} at {event.replica}{': ' if event.detail else ''}{event.detail}"
        if event.kind == "client":
            if tracked.has_begun:  # the client's own request was taken once: what was refused is our asking for the rest of its answer
                self._end(tracked, answers.replica_lost(event.request, what))
            else:
                self._end(tracked, answers.engine_refused(event.request, event.status, what))
            return
        self._health.failed(replica, self._now_s)
        was_sent = event.kind != "refused"
        tracked.failures += (
            Failure(event.replica, event.epoch, was_sent, had_answered=tracked.is_streaming),
        )
        is_free = self._health.is_broken(replica)
        if tracked.is_streaming:
            self._continue(tracked, replica, event.sent_tokens, what, event.kind, is_free=is_free)
        else:
            self._retry(tracked, event.kind, what, is_free=is_free, was_sent=was_sent)

    def _busy(self, event: ReplicaBusy) -> None:
        tracked = self._running(event)
        if tracked is None:
            return
        replica = self._placement.leave(tracked, self._now_s)
        self._health.busy(replica, self._now_s, event.retry_after_s)
        if tracked.is_streaming:
            what = f"{event.replica} is busy"
            self._continue(tracked, replica, event.sent_tokens, what, "busy", is_free=True)
        elif tracked.deadline_s <= self._now_s:
            self._end_late(tracked)
        else:
            self._requeue(tracked, "busy")

    def _gone(self, event: ClientGone) -> None:
        tracked = self._live.get(event.request)
        if tracked is not None:
            self._stop(tracked)
            self._end(tracked)

    # ---- requests whose prompt and answer are on replicas of their own

    def _prefilled(self, event: PrefillFinished) -> None:
        tracked = self._running(event, "prefill")
        if tracked is not None:
            self._health.succeeded(self._health.replicas[event.replica])
            tracked.deadline_s = self._deadline_s()
            self._placement.hold(tracked, event.kv_tokens, self._now_s)

    def _kv_arrived(self, event: KvArrived) -> None:
        tracked = self._running(event, "transfer")
        if tracked is not None:
            self._actions.append(self._placement.arrived(tracked, self._now_s))

    def _kv_lost(self, event: KvLost) -> None:
        """Either end may be the cause, or what is between them: it counts against both."""
        tracked = self._running(event, "held", "transfer")
        if tracked is None:
            return
        places = tracked.places
        what = f"its cache was lost between {' and '.join(place.replica for place in places)}"
        self._placement.leave(tracked, self._now_s)
        is_free = False
        for place in places:
            replica = self._health.replicas[place.replica]
            self._health.failed(replica, self._now_s)
            tracked.failures += (Failure(place.replica, place.epoch, was_sent=True),)
            is_free = is_free or self._health.is_broken(replica)
        self._retry(tracked, "kv_lost", what, is_free=is_free)

    # ---- replicas

    def _up(self, event: ReplicaUp) -> None:
        if not self._health.is_news(event):
            return
        before = self._health.replicas.get(event.replica)
        if before is not None and before.is_up:
            self._died([before], {})
        self._health.add(event)

    def _retiring(self, event: ReplicaRetiring) -> None:
        replica = self._health.replicas.get(event.replica)
        if replica is None or event.epoch < replica.up.epoch:
            return
        replica.is_retiring = True
        if replica.is_current(event.epoch):
            replica.table.block(replica.row, math.inf)
            self._actions.append(Drain(replica=event.replica, epoch=event.epoch))
        service = self._placement.services.get(replica.up.model)
        if service is not None:
            self._end_hopeless(service)

    def _down(self, event: ReplicaDown) -> None:
        replica = self._health.replicas.get(event.replica)
        if replica is None or event.epoch < replica.up.epoch:
            return
        back_in_s = event.back_in_s
        replica.back_at_s = None if back_in_s is None else self._now_s + back_in_s
        if replica.is_current(event.epoch):
            others = (self._health.current(*one) for one in event.also)
            self._died([replica, *filter(None, others)], dict(event.sent_tokens))
            self._forget_models()

    def _told(self, event: SettingsChanged) -> None:
        check_change(self._settings, event.settings)
        self._settings = event.settings
        self._health.told(event.settings)
        self._placement.told(event.settings)
        for service in self._placement.services.values():
            self._end_hopeless(service)
        self._forget_models()

    def _end_hopeless(self, service: Service) -> None:
        """Answer those who wait for what will not come any more."""
        for tracked in service.queue:
            answer = self._hopeless(tracked.arrived)
            if answer is not None:
                service.queue.remove(tracked)
                self._end(tracked, answer)

    def _forget_models(self) -> None:
        """Of a model that left nothing is kept once its last replica is down: what ran there has ended with it."""
        leaving = [model for model, one in self._placement.services.items() if one.is_leaving]
        for model in leaving:
            if not self._health.has_replica(model):
                self._placement.forget_model(model)
                self._health.forget_model(model)

    def _died(self, replicas: Sequence[Replica], sent_tokens: Mapping[int, int]) -> None:
        """Move on those that were aboard, and mark those that they had just let down: both may be the cause."""
        aboard = {request: one for one in replicas for request in one.requests}
        failures = {Failure(one.name, one.up.epoch, was_sent=True) for one in replicas}
        let_down = [
            tracked
            for tracked in self._live.values()
            if tracked.request not in aboard and not failures.isdisjoint(tracked.failures)
        ]
        for request in aboard:
            self._placement.leave(self._live[request], self._now_s)
        for replica in replicas:
            self._health.remove(replica)
            replica.back_at_s = replicas[0].back_at_s
        for request, replica in aboard.items():
            tracked, what = self._live[request], f"{replica.name} went down"
            if tracked.is_streaming:
                sent = sent_tokens.get(request, 0)
                self._continue(tracked, replica, sent, what, "replica_down", is_free=True)
                continue
            tracked.deaths += 1
            if not self._quarantine(tracked):
                self._retry(tracked, "replica_down", what, is_free=True)
        for tracked in let_down:
            tracked.deaths += 1
            if not tracked.is_streaming:
                self._quarantine(tracked)

    def _continue(
        self, tracked: Tracked, replica: Replica, sent_tokens: int, what: str, reason: RetryReason, *, is_free: bool
    ) -> None:  # fmt: skip
        """Its stream broke off at this replica, which it has left: let it go on elsewhere, or end it in words."""
        tracked.build = replica.up.build
        why_not = self._why_not_continued(tracked)
        if why_not is not None:
            self._end(tracked, answers.replica_lost(tracked.request, what + why_not))
            return
        tracked.continued += 1
        tracked.sent_tokens = max(sent_tokens, tracked.sent_tokens)
        tracked.first_token_s = None
        if is_free or self._health.charge_retry(tracked.request, len(self._live)):
            tracked.deadline_s = self._deadline_s()
            self._requeue(tracked, reason)
        else:
            self._end_over_budget(tracked, what)

    def _why_not_continued(self, tracked: Tracked) -> str | None:
        if tracked.arrived.continuation == "off":
            return ""
        if tracked.deaths >= self._settings.quarantine_deaths:
            return f"; it goes on nowhere, for {tracked.deaths} replicas died that had it"
        if tracked.continued >= self._settings.max_continuations:
            return f"; it went on elsewhere {tracked.continued} times, as often as may"
        if not self._placement.could_continue(tracked):
            return f"; no replica can go on with it ({tracked.arrived.continuation})"
        return None

    def _quarantine(self, tracked: Tracked) -> bool:
        if tracked.deaths < self._settings.quarantine_deaths:
            return False
        self._stop(tracked)
        self._end(tracked, answers.quarantined(tracked.request, tracked.deaths))
        return True

    def _observed(self, event: StepObserved) -> None:
        replica = self._health.current(event.replica, event.epoch)
        if replica is not None:
            table = replica.table
            corrections.step_observed(table, replica.row, event)

    def _load(self, event: LoadReported) -> None:
        replica = self._health.current(event.replica, event.epoch)
        if replica is not None:
            replica.table.load_reported(replica.row, event)

    def _woke(self, event: Woke) -> None:
        while self._wakes_s and self._wakes_s[0] <= event.at_s + WAKE_SLACK_S:
            heapq.heappop(self._wakes_s)

    # ---- what all of them do

    def _running(self, event: OfAttempt, *phases: Phase) -> Tracked | None:
        """The request, if the word is about the attempt that runs now, and about what it does now (none said: about any)."""
        tracked = self._live.get(event.request)
        if tracked is None or tracked.place is None or tracked.phase not in (phases or PHASES):
            return None
        place = tracked.place
        said = (event.attempt, event.replica, event.epoch)
        return tracked if said == (tracked.attempt, place.replica, place.epoch) else None

    def _retry(
        self, tracked: Tracked, reason: RetryReason, what: str, *, is_free: bool, was_sent: bool = True
    ) -> None:  # fmt: skip
        """Try again, unless the request or the fleet has failed too often. One that nobody took was no attempt, and waits on for as long as it would have."""
        if was_sent:
            tracked.attempts_failed += 1
            tracked.deadline_s = self._deadline_s()
        elif tracked.deadline_s <= self._now_s:
            self._end_late(tracked)
            return
        if tracked.attempts_failed >= self._settings.max_attempts:
            exhausted = answers.attempts_exhausted(tracked.request, tracked.attempts_failed, what)
            self._end(tracked, exhausted)
        elif is_free or self._health.charge_retry(tracked.request, len(self._live)):
            self._requeue(tracked, reason)
        else:
            self._end_over_budget(tracked, what)

    def _end_over_budget(self, tracked: Tracked, what: str) -> None:
        retry_after_s = self._settings.breaker_open_s
        self._end(tracked, answers.retry_budget(tracked.request, what, retry_after_s))

    def _requeue(self, tracked: Tracked, reason: RetryReason) -> None:
        hopeless = self._hopeless(tracked.arrived)
        if hopeless is not None:
            self._end(tracked, hopeless)
            return
        self._actions.append(Retry(request=tracked.request, attempt=tracked.attempt, reason=reason))
        self._placement.wait(tracked)

    def _stop(self, tracked: Tracked) -> None:
        """End its waiting and its running, whichever it does, wherever it does it."""
        places = tracked.places
        self._placement.withdraw(tracked)
        if places:
            self._placement.leave(tracked, self._now_s)
        self._actions += [
            Cancel(
                request=tracked.request,
                attempt=tracked.attempt,
                replica=place.replica,
                epoch=place.epoch,
            )
            for place in places
        ]

    def _end(self, tracked: Tracked, answer: Reject | None = None) -> None:
        """Forget the request, which neither waits nor runs any more."""
        if answer is not None:
            self._actions.append(answer)
        self._health.forget(tracked.request)
        if not tracked.attempt:  # it never ran: its tenant gets back what it was charged
            self._placement.services[tracked.model].settle(tracked, 0.0)
        del self._live[tracked.request]

    def _deadline_s(self) -> float:
        return self._now_s + self._settings.queue_wait_s

    def _serve_queues(self) -> None:
        """Place those there is room for, and end the waiting of those who have waited too long."""
        for service in self._placement.services.values():
            if not service.has_waiting:
                continue
            if service.has_caches:
                self._give_up_caches(service)
                self._actions += self._placement.hand_over(service, self._now_s)
                if self._end_held(service):  # they kept decode replicas from those behind them
                    self._actions += self._placement.hand_over(service, self._now_s)
            self._actions += self._placement.serve(service, self._now_s)
            if service.queue.turns and self._end_queued(service):  # and these prefill replicas
                self._actions += self._placement.serve(service, self._now_s)

    def _give_up_caches(self, service: Service) -> None:
        """Caches that do not come are lost. Their replicas may be well and what is between them not: they count against neither, and are tried elsewhere."""
        for tracked in service.moving.pop_expired(self._now_s):
            places = tracked.places
            ends = " to ".join(place.replica for place in places)
            self._stop(tracked)
            tracked.failures += tuple(
                Failure(place.replica, place.epoch, was_sent=False) for place in places
            )
            what = f"its cache did not come from {ends} within {tracked.kv_wait_s:g} s"
            self._retry(tracked, "kv_lost", what, is_free=True)

    def _end_held(self, service: Service) -> bool:
        """End those whose caches have waited too long, which makes room for prompts; whether there were any."""
        expired = service.held.pop_expired(self._now_s)
        for tracked in expired:
            self._stop(tracked)
            self._end_late(tracked)
        return bool(expired)

    def _end_queued(self, service: Service) -> bool:
        expired = service.queue.pop_expired(self._now_s)
        for tracked in expired:
            self._end_late(tracked)
        return bool(expired)

    def _end_late(self, tracked: Tracked) -> None:
        wait_s = self._settings.queue_wait_s
        drain_s = self._placement.services[tracked.model].drain_s(wait_s)
        if self._health.any_up(tracked.model):
            self._end(tracked, answers.queue_timeout(tracked.arrived, wait_s, drain_s))
        else:
            self._end(tracked, answers.no_replica(tracked.arrived, drain_s))

    def _ask_for_wake(self) -> None:
        at_s = self._placement.next_change_s(self._now_s)
        if at_s < (self._wakes_s[0] if self._wakes_s else math.inf):
            heapq.heappush(self._wakes_s, at_s)
            self._actions.append(WakeAt(at_s=at_s))


_HANDLERS: Final[dict[type, Callable[[Policy, Any], None]]] = {
    RequestArrived: Policy._arrived,
    FirstToken: Policy._first_token,
    RequestFinished: Policy._finished,
    RequestFailed: Policy._failed,
    ReplicaBusy: Policy._busy,
    ClientGone: Policy._gone,
    PrefillFinished: Policy._prefilled,
    KvArrived: Policy._kv_arrived,
    KvLost: Policy._kv_lost,
    ReplicaUp: Policy._up,
    ReplicaDown: Policy._down,
    ReplicaRetiring: Policy._retiring,
    StepObserved: Policy._observed,
    LoadReported: Policy._load,
    SettingsChanged: Policy._told,
    Woke: Policy._woke,
}
