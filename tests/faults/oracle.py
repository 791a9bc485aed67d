"""What must be true of every answer, worked out a second time from the words alone.

The oracle reads nothing of the policy: from events and actions it keeps its own books of who waits since when, who is aboard where, whose breaker is
open until when, who is charged for a retry, and which deaths a request was in. What it demands:

    every answer is one of those that the books allow, with the right reason; a request ends once, and nothing is said of it after
    nobody is sent to a replica that is down, blocked, full, or on trial with somebody else
    a request is in `quarantine_deaths` deaths of replicas at most, and fails `max_attempts` times at most
    a stream that broke off goes on only where its request allows it, at most so often, on replicas that can, after as many tokens as were said
    retries that are charged stay within the budget of the moment they are granted in
    nobody waits beside a replica that would take it, nor past its deadline, and an alarm is set for what time alone changes
    in turn: while one waits, none of a later turn that asks as much or more is placed where the one could have gone
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from polypod.policy import PolicySettings
from polypod.policy.actions import (
    AnyAction,
    Cancel,
    Decode,
    Dispatch,
    Prefill,
    Reject,
    Retry,
    TransferKv,
    WakeAt,
)
from polypod.policy.events import (
    AnyEvent,
    ClientGone,
    FirstToken,
    KvArrived,
    KvLost,
    PrefillFinished,
    ReplicaBusy,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    Woke,
)

SLACK_S = 1e-3
"""An alarm may ring this early."""

Start = tuple[str, int]
OF_ATTEMPT = {
    FirstToken: ("whole", "decode"),
    RequestFinished: ("whole", "decode"),
    PrefillFinished: ("prefill",),
    KvArrived: ("transfer",),
    KvLost: ("held", "transfer"),
    RequestFailed: ("whole", "prefill", "held", "transfer", "decode"),
    ReplicaBusy: ("whole", "prefill", "held", "transfer", "decode"),
}
AT_THE_DOOR = (
    "model_not_found",
    "context_length_exceeded",
    "replica_not_found",
    "no_replica",
    "queue_full",
    "too_late",
)


class Broken(AssertionError):
    """A law does not hold."""


def hold(is_so: bool, law: str) -> None:
    if not is_so:
        raise Broken(law)


@dataclass(slots=True, eq=False)
class Life:
    """A live request: `places` are the starts of replicas that have something of it, the last is the one it is heard from."""

    arrived: RequestArrived
    order: int
    since_s: float
    sent_s: float = math.inf  # its cache, the last time
    phase: str = "waiting"
    attempt: int = 0
    places: list[Start] = field(default_factory=list)
    streams: bool = False  # the attempt that runs does
    continued: int = 0
    sent_tokens: int = 0
    build: str = ""
    failed: int = 0
    deaths: int = 0
    let_down: set[Start] = field(default_factory=set)
    failures: set[Start] = field(default_factory=set)

    @property
    def turn(self) -> tuple[int, int]:
        return (-self.arrived.priority, self.order)

    @property
    def need_tokens(self) -> int:
        most = self.arrived.max_output_tokens
        return self.arrived.input_tokens + (self.sent_tokens + 1 if most is None else most)

    def goes_on_at(self, up: ReplicaUp) -> bool:
        """Whether the replica may have it, as far as it is an answer that goes on."""
        if not self.continued:
            return True
        return up.role == "both" and could_go_on(self, up)


@dataclass(slots=True, eq=False)
class Place:
    """One start of a replica that is up."""

    up: ReplicaUp
    failures: int = 0  # in a row
    blocked_until_s: float = -math.inf

    @property
    def slots(self) -> int:
        ranks = self.up.step_time.data_ranks
        return max(self.up.max_sequences // ranks, 1) * ranks

    @property
    def limit_tokens(self) -> int:
        ranks = self.up.step_time.data_ranks
        return min(self.up.context_tokens, self.up.kv_capacity_tokens // ranks)


def could_go_on(life: Life, up: ReplicaUp) -> bool:
    if life.arrived.continuation == "exact":
        return (up.continues, up.build) == ("exact", life.build)
    return up.continues in ("text", "exact")


class Oracle:
    """Feed it every event with its answer; it raises `Broken` at the first law that does not hold."""

    def __init__(self, settings: PolicySettings) -> None:
        self.settings = settings
        self.live: dict[int, Life] = {}
        self.outcomes: dict[int, str] = {}
        self.up: dict[str, Place] = {}
        self.known: dict[str, ReplicaUp] = {}  # up or down
        self.epochs: dict[str, int] = {}
        self.now_s = -math.inf
        self.alarms: list[float] = []  # asked for, and not rung
        self._charged: set[int] = set()
        self._due: dict[int, set[str]] = {}  # what must be answered now
        self._to_cancel: set[tuple[int, Start]] = set()
        self._started: list[tuple[Life, Place, Any]] = []

    def is_current(self, event: AnyEvent) -> bool:
        """Whether the word is about what goes on now."""
        phases = OF_ATTEMPT.get(type(event))
        if phases is None:
            return False
        said: Any = event
        life = self.live.get(said.request)
        if life is None or not life.places or life.phase not in phases:
            return False
        return life.attempt == said.attempt and life.places[-1] == (said.replica, said.epoch)

    def feed(self, event: AnyEvent, actions: Sequence[AnyAction]) -> None:
        self.now_s = max(self.now_s, event.at_s)
        self._due, self._started = {}, []
        if isinstance(event, Woke):
            self.alarms = [at_s for at_s in self.alarms if at_s > event.at_s + SLACK_S]
        self._hear(event)
        for action in actions:
            _SEEN[type(action)](self, action)
        hold(not self._due, f"not answered: {self._due}")
        hold(not self._to_cancel, f"not cancelled: {self._to_cancel}")
        self._check_new(event)
        self._check_turns()
        self._check_waiting()
        self._check_alarms()

    # ---- what is heard

    def _hear(self, event: AnyEvent) -> None:
        if isinstance(event, RequestArrived):
            self._arrived(event)
        elif isinstance(event, ClientGone):
            self._gone(event)
        elif isinstance(event, ReplicaUp | ReplicaDown):
            self._turned(event)
        elif self.is_current(event):
            _HEARD[type(event)](self, event, self.live[event.request])  # type: ignore[union-attr]

    def _arrived(self, event: RequestArrived) -> None:
        if event.request not in self.live:
            hold(event.request not in self.outcomes, f"{event.request} has ended, and comes again")
            self.live[event.request] = Life(event, len(self.outcomes) + len(self.live), self.now_s)

    def _gone(self, event: ClientGone) -> None:
        life = self.live.get(event.request)
        if life is not None:
            self._to_cancel |= {(event.request, start) for start in life.places}
            self._end(event.request, "gone")

    def _turned(self, event: ReplicaUp | ReplicaDown) -> None:
        known, place = self.epochs.get(event.replica, 0), self.up.get(event.replica)
        if isinstance(event, ReplicaUp):
            if event.epoch > known:
                self._died(place, {})
                self.known[event.replica] = event
                self.epochs[event.replica] = event.epoch
                self.up[event.replica] = Place(event)
        elif place is not None and event.epoch == place.up.epoch:
            self._died(place, dict(event.sent_tokens))

    def _died(self, place: Place | None, sent_tokens: dict[int, int]) -> None:
        if place is None:
            return
        start = (place.up.replica, place.up.epoch)
        del self.up[place.up.replica]
        for request, life in self.live.items():
            if start in life.places:
                life.places.clear()
                if life.streams:
                    sent = sent_tokens.get(request, 0)
                    self._broke_off(life, place.up, sent, "replica_down", is_free=True)
                else:
                    life.deaths += 1
                    self._moved_on(request, life)
            elif start in life.let_down:
                life.deaths += 1
                if not life.streams and life.deaths >= self.settings.quarantine_deaths:
                    self._to_cancel |= {(request, other) for other in life.places}
                    self._due[request] = {"quarantined"}

    def _moved_on(self, request: int, life: Life) -> None:
        if life.deaths >= self.settings.quarantine_deaths:
            self._due[request] = {"quarantined"}
        else:
            self._failed_once(request, life, "replica_down", is_free=True)

    def _broke_off(self, life: Life, up: ReplicaUp, sent_tokens: int, reason: str, *, is_free: bool) -> None:  # fmt: skip
        """A stream ends where it broke off, or goes on elsewhere."""
        request, pin = life.arrived.request, life.arrived.only_replica
        life.build = life.build or up.build
        able = [
            one for name, one in self.known.items()
            if one.model == life.arrived.model and one.role == "both" and pin in (None, name) and could_go_on(life, one)
        ]  # fmt: skip
        is_allowed = life.arrived.continuation != "off"
        is_suspect = life.deaths >= self.settings.quarantine_deaths
        if (
            not is_allowed
            or is_suspect
            or life.continued >= self.settings.max_continuations
            or not able
        ):
            self._due[request] = {"replica_lost"}
            return
        life.continued += 1
        life.sent_tokens = max(life.sent_tokens, sent_tokens)
        life.streams = False
        self._paid_for(request, life, reason, is_free=is_free)

    def _failed_once(self, request: int, life: Life, reason: str, *, is_free: bool) -> None:
        life.failed += 1
        if life.failed >= self.settings.max_attempts:
            self._due[request] = {"attempts_exhausted"}
            return
        self._paid_for(request, life, reason, is_free=is_free)

    def _paid_for(self, request: int, life: Life, reason: str, *, is_free: bool) -> None:
        life.since_s = self.now_s
        settings = self.settings
        budget = max(
            settings.retry_budget_floor, int(settings.retry_budget_fraction * len(self.live))
        )
        if is_free or request in self._charged or len(self._charged) < budget:
            self._due[request] = {f"retry {reason}"}
            self._charged |= set() if is_free else {request}
        else:
            self._due[request] = {"retry_budget"}

    def _first(self, event: FirstToken, life: Life) -> None:
        if not life.streams:
            self._well(event.replica)
        life.streams = True

    def _finished(self, event: RequestFinished, life: Life) -> None:
        self._well(event.replica)
        self._end(event.request, "finished")

    def _failed(self, event: RequestFailed, life: Life) -> None:
        hold(len(life.places) == 1 or life.phase == "transfer", f"{life} is in two places")
        place = self.up[event.replica]
        life.places.clear()
        if event.kind != "client":
            self._ill(place)
        if event.kind == "client":
            self._due[event.request] = {
                "replica_lost" if life.streams or life.continued else "engine_refused"
            }
        elif life.streams:
            life.failures.add((event.replica, event.epoch))
            is_free = self._is_broken(place)
            self._broke_off(life, place.up, event.sent_tokens, event.kind, is_free=is_free)
        else:
            start = (event.replica, event.epoch)
            life.failures.add(start)
            life.let_down |= {start} if event.kind != "refused" else set()
            is_free = self._is_broken(place)
            if event.kind == "refused":
                self._not_taken(event.request, life, is_free=is_free)
            else:
                self._failed_once(event.request, life, event.kind, is_free=is_free)

    def _not_taken(self, request: int, life: Life, *, is_free: bool) -> None:
        """Nobody listened: no attempt, and no reason to wait any longer than before."""
        if life.since_s + self.settings.queue_wait_s <= self.now_s:
            self._due[request] = {"queue_timeout", "no_replica"}
            return
        since_s = life.since_s
        self._paid_for(request, life, "refused", is_free=is_free)
        life.since_s = since_s

    def _busy(self, event: ReplicaBusy, life: Life) -> None:
        place = self.up[event.replica]
        pause_s = event.retry_after_s or self.settings.busy_pause_s
        place.blocked_until_s = max(place.blocked_until_s, self.now_s + pause_s)
        life.places.clear()
        if life.streams:
            self._broke_off(life, place.up, event.sent_tokens, "busy", is_free=True)
        elif life.since_s + self.settings.queue_wait_s <= self.now_s:
            self._due[event.request] = {"queue_timeout", "no_replica"}
        else:
            self._due[event.request] = {"retry busy"}

    def _prefilled(self, event: PrefillFinished, life: Life) -> None:
        self._well(event.replica)
        life.phase, life.since_s = "held", self.now_s

    def _kv_came(self, event: KvArrived, life: Life) -> None:
        life.places, life.phase = life.places[-1:], "came"
        self._due[event.request] = {"decode"}

    def _kv_lost(self, event: KvLost, life: Life) -> None:
        places = [self.up[name] for name, _ in life.places]
        for place in places:
            self._ill(place)
        is_free = any(self._is_broken(place) for place in places)
        life.failures |= set(life.places)
        life.let_down |= set(life.places)
        life.places.clear()
        self._failed_once(event.request, life, "kv_lost", is_free=is_free)

    def _well(self, replica: str) -> None:
        self.up[replica].failures = 0

    def _ill(self, place: Place) -> None:
        place.failures += 1
        if self._is_broken(place):
            until_s = self.now_s + self.settings.breaker_open_s
            place.blocked_until_s = max(place.blocked_until_s, until_s)

    def _is_broken(self, place: Place) -> bool:
        return place.failures >= self.settings.breaker_failures

    # ---- what is answered

    def _owed(self, request: int, answer: str) -> None:
        owed = self._due.pop(request, set())
        hold(answer in owed, f"request {request} is answered {answer}, and owed {owed or 'nothing'}")  # fmt: skip

    def _life(self, request: int) -> Life:
        hold(request in self.live, f"request {request} is spoken of after its end: {self.outcomes.get(request)}")  # fmt: skip
        return self.live[request]

    def _retried(self, action: Retry) -> None:
        life = self._life(action.request)
        self._owed(action.request, f"retry {action.reason}")
        hold(action.attempt == life.attempt, f"{action} of attempt {life.attempt}")
        life.phase = "waiting"

    def _rejected(self, action: Reject) -> None:
        life = self._life(action.request)
        if action.request in self._due:
            self._owed(action.request, action.code)
        elif action.code not in AT_THE_DOOR or life.attempt:
            hold(action.code in ("queue_timeout", "no_replica"), f"{action}, and nothing was wrong")
            hold(life.phase in ("waiting", "held"), f"{action}, and it is {life.phase}")
            waited_s = self.now_s - life.since_s
            is_late = waited_s >= self.settings.queue_wait_s * (1 - 1e-9)
            hold(is_late, f"{action} after {waited_s} s")
        self._end(action.request, action.code)

    def _cancelled(self, action: Cancel) -> None:
        key = (action.request, (action.replica, action.epoch))
        if key in self._to_cancel:
            self._to_cancel.remove(key)
            return
        life = self._life(action.request)
        hold(life.phase in ("held", "transfer") and key[1] in life.places, f"{action} of {life}")
        life.places.remove(key[1])
        if life.phase == "transfer":  # its cache has not come in time: of both ends
            waited_s = self.now_s - life.sent_s
            hold(waited_s >= self.settings.kv_wait_s * (1 - 1e-9), f"{action} after {waited_s} s")
            life.failures.add(key[1])
            if not life.places:
                self._failed_once(action.request, life, "kv_lost", is_free=True)

    def _started_one(self, action: Dispatch | Prefill) -> None:
        life = self._life(action.request)
        hold(life.phase == "waiting", f"{action}, and it is {life.phase}")
        hold(not life.streams, f"{action}, and its answer has begun")
        hold(life.deaths < self.settings.quarantine_deaths, f"{action} after {life.deaths} deaths")
        after_tokens = getattr(action, "continues_after_tokens", 0)
        hold(after_tokens == life.sent_tokens, f"{action} after {life.sent_tokens} tokens")
        hold(life.failed < self.settings.max_attempts, f"{action} after {life.failed} failures")
        life.attempt += 1
        hold(action.attempt == life.attempt, f"{action} should be attempt {life.attempt}")
        place = self._open(action)
        hold(life.goes_on_at(place.up), f"{action} to one that cannot go on with {life}")
        is_whole = isinstance(action, Dispatch)
        hold(place.up.role == ("both" if is_whole else "prefill"), f"{action} to {place.up.role}")
        if isinstance(action, Dispatch):
            for predicted_s in (action.predicted_first_token_s, action.predicted_token_s):
                hold(0 <= predicted_s < math.inf, f"{action} predicts {predicted_s}")
        self._check_elsewhere(life, place)
        life.places = [(action.replica, action.epoch)]
        life.phase = "whole" if is_whole else "prefill"
        self._started.append((life, place, action))

    def _check_elsewhere(self, life: Life, place: Place) -> None:
        """It does not go back to where it failed while another replica could ever take it."""
        if place.up.role != "both" or self._may_go(life, place) or life.arrived.only_replica is not None:  # fmt: skip
            return
        others = [
            one
            for one in self.up.values()
            if one.up.model == place.up.model and one.up.role == "both" and self._may_go(life, one)
        ]
        is_known = life.arrived.input_is_exact
        hold(not is_known or all(one.limit_tokens < life.need_tokens for one in others), f"{life} goes back to {place.up.replica}")  # fmt: skip

    def _transferred(self, action: TransferKv) -> None:
        life = self._life(action.request)
        hold(life.phase == "held", f"{action}, and it is {life.phase}")
        hold([(action.source, action.source_epoch)] == life.places, f"{action} from {life.places}")
        place = self._open(action)
        hold(place.up.role == "decode", f"{action} to {place.up.role}")
        hold(self._hands_to(life, place), f"{action} to pool {place.up.pool}")
        life.places.append((action.replica, action.epoch))
        life.phase, life.sent_s = "transfer", self.now_s
        self._started.append((life, place, action))

    def _decoded(self, action: Decode) -> None:
        self._owed(action.request, "decode")
        life = self._life(action.request)
        hold([(action.replica, action.epoch)] == life.places, f"{action} at {life.places}")
        life.phase = "decode"

    def _alarmed(self, action: WakeAt) -> None:
        self.alarms.append(action.at_s)

    def _open(self, action: Dispatch | Prefill | TransferKv) -> Place:
        """The replica of a start, which must be up, let in, and have a slot."""
        place = self.up.get(action.replica)
        hold(place is not None and place.up.epoch == action.epoch, f"{action} to one that is down")
        assert place is not None
        life = self.live[action.request]
        hold(place.up.model == life.arrived.model, f"{action} to another model")
        hold(place.blocked_until_s <= self.now_s, f"{action} to one that is left alone")
        slots = 1 if self._is_broken(place) else place.slots
        hold(self._running(place) < slots, f"{action} to one that has {self._running(place)} of {slots}")  # fmt: skip
        hold(self._may_fit(life, place), f"{action} needs {life.need_tokens}, and there is {place.limit_tokens}")  # fmt: skip
        return place

    def _running(self, place: Place) -> int:
        """Requests that have a slot there."""
        start = (place.up.replica, place.up.epoch)
        return sum(
            start in life.places and not (place.up.role == "prefill" and life.phase != "prefill")
            for life in self.live.values()
        )

    def _may_fit(self, life: Life, place: Place) -> bool:
        if not life.arrived.input_is_exact:
            return True
        need = life.arrived.input_tokens + 1 if place.up.role == "prefill" else life.need_tokens
        return place.limit_tokens >= need

    def _hands_to(self, life: Life, place: Place) -> bool:
        source = self.up[life.places[0][0]].up
        return not source.kv_pools or place.up.pool in source.kv_pools

    def _end(self, request: int, how: str) -> None:
        hold(request not in self.outcomes, f"request {request} ends twice: {how}")
        self.outcomes[request] = how
        self._charged.discard(request)
        del self.live[request]

    # ---- what holds between events

    def _check_new(self, event: AnyEvent) -> None:
        """A request is turned away at the door for a cause that is there."""
        if not isinstance(event, RequestArrived):
            return
        asked = event
        waiting = sum(
            life.phase == "waiting" and life.arrived.model == asked.model and life.arrived is not asked
            for life in self.live.values()
        )  # fmt: skip
        if asked.request in self.live:
            life = self.live[asked.request]
            is_let_in = life.phase != "waiting" or waiting < self.settings.queue_requests
            hold(is_let_in or life.attempt > 0 or life.arrived is not asked, f"{asked} waits with {waiting} others")  # fmt: skip
            return
        how = self.outcomes[asked.request]
        models = [service.model for service in self.settings.services]
        if how == "context_length_exceeded":
            self._check_length(asked)
        elif how == "model_not_found":
            hold(asked.model not in models, f"{asked} is turned away: {how}")
        elif how == "too_late":
            hold(self.settings.admission == "slo", f"{asked} is turned away: {how}")
        elif how == "queue_full":
            hold(waiting >= self.settings.queue_requests, f"{how}, and {waiting} wait")
        elif how == "no_replica" and asked.only_replica is None:
            roles = {place.up.role for place in self.up.values() if place.up.model == asked.model}
            hold("both" not in roles and roles != {"prefill", "decode"}, f"{how} beside {roles}")

    def _check_length(self, asked: RequestArrived) -> None:
        context_tokens = {one.model: one.context_tokens for one in self.settings.services}
        most = asked.max_output_tokens
        need = asked.input_tokens * asked.input_is_exact + (1 if most is None else most)
        hold(need > context_tokens[asked.model], f"{asked} is turned away for its length")

    def _check_turns(self) -> None:
        for later, place, action in self._started:
            phase = "held" if isinstance(action, TransferKv) else "waiting"
            model = later.arrived.model
            ahead = [life for life in self.live.values() if life.phase == phase and self._is_before(life, later) and life.arrived.model == model]  # fmt: skip
            for life in ahead:
                overtaken = self._asks_no_more(life, later) and self._could_use(life, place)
                hold(not overtaken, f"{life} waits, and {action} is placed")
            if ahead and place.up.role != "both":
                self._check_head(min(ahead, key=lambda life: life.turn), place, action)

    def _is_before(self, one: Life, other: Life) -> bool:
        """Whether it is surely its turn before the other's; between tenants with fair turns, nobody here knows."""
        is_told = self.settings.turns == "arrival" or one.arrived.tenant == other.arrived.tenant
        return one.turn < other.turn and (is_told or one.arrived.priority > other.arrived.priority)

    def _check_head(self, head: Life, place: Place, action: Any) -> None:
        """A replica for one phase without room for the first in turn is given to nobody behind it, however little that asks."""
        if not head.arrived.input_is_exact or not self._could_use(head, place):
            return
        partners = [place] if place.up.role == "decode" else [one for one in self.up.values() if one.up.role == "decode" and one.up.model == place.up.model]  # fmt: skip
        may_end = any(
            one.limit_tokens >= head.need_tokens
            and (not place.up.kv_pools or one.up.pool in place.up.kv_pools or one is place)
            for one in partners
        )
        hold(not may_end or not self._may_fit(head, place), f"{head} is first in turn, and {action} is placed before it")  # fmt: skip

    def _asks_no_more(self, one: Life, other: Life) -> bool:
        a, b = one.arrived, other.arrived
        if a.model != b.model or a.input_is_exact != b.input_is_exact:
            return False
        if (a.max_output_tokens is None) != (b.max_output_tokens is None):
            return False
        return a.input_tokens + one.sent_tokens <= b.input_tokens + other.sent_tokens and (a.max_output_tokens or 0) <= (b.max_output_tokens or 0)  # fmt: skip

    def _could_use(self, life: Life, place: Place) -> bool:
        """Whether nothing but its turn could keep the request from there."""
        if place.up.role != "both":
            is_plain = life.arrived.only_replica is None and not life.failures and not life.continued  # fmt: skip
            return is_plain and (place.up.role == "prefill" or self._hands_to(life, place))
        return self._may_go(life, place)

    def _may_go(self, life: Life, place: Place) -> bool:
        if not life.goes_on_at(place.up):
            return False
        if life.arrived.only_replica is not None:
            return life.arrived.only_replica == place.up.replica
        return (place.up.replica, place.up.epoch) not in life.failures

    def _check_waiting(self) -> None:
        """Nobody waits past its deadline, or beside a whole replica that would take it, and no cache is awaited past its own."""
        for life in self.live.values():
            is_overdue = life.phase == "transfer" and life.sent_s + self.settings.kv_wait_s <= self.now_s  # fmt: skip
            hold(not is_overdue, f"{life} waits for its cache too long")
        waiting = [life for life in self.live.values() if life.phase in ("waiting", "held")]
        if not waiting:
            return
        places = [place for place in self.up.values() if self._has_room(place)]
        for life in waiting:
            hold(life.since_s + self.settings.queue_wait_s > self.now_s, f"{life} waits too long")
            for place in places if life.phase == "waiting" and life.arrived.input_is_exact else ():
                could = place.up.model == life.arrived.model and self._may_go(life, place)
                hold(not could or place.limit_tokens < life.need_tokens, f"{life} waits beside {place}")  # fmt: skip

        for life in waiting:
            self._check_prompt(life, waiting)

    def _check_prompt(self, life: Life, waiting: list[Life]) -> None:
        """Nor does it wait beside a prefill replica that has a slot and room for its prompt, unless one before it waits for that room."""
        is_plain = life.arrived.only_replica is None and not life.failures and not life.continued
        if life.phase != "waiting" or not is_plain or not life.arrived.input_is_exact:
            return
        ahead = [one for one in waiting if one.phase == "waiting" and not self._is_before(life, one) and one is not life and one.arrived.model == life.arrived.model]  # fmt: skip
        for place in self.up.values():
            if place.up.model != life.arrived.model or place.up.role != "prefill":
                continue
            is_claimed = any(one.arrived.input_tokens < place.limit_tokens for one in ahead)
            could = not is_claimed and self._has_partner(life, place) and self._takes(life, place)
            hold(not could, f"{life} waits beside {place}")

    def _has_partner(self, life: Life, place: Place) -> bool:
        pools = place.up.kv_pools
        return any(
            one.up.role == "decode" and one.up.model == place.up.model and one.limit_tokens >= life.need_tokens
            and (not pools or one.up.pool in pools)
            for one in self.up.values()
        )  # fmt: skip

    def _takes(self, life: Life, place: Place) -> bool:
        """Whether a prefill replica has a slot and room for the prompt."""
        start, slots = (place.up.replica, place.up.epoch), 1 if self._is_broken(place) else place.slots  # fmt: skip
        there = [one.arrived.input_tokens for one in self.live.values() if start in one.places]
        room = place.up.kv_capacity_tokens - sum(there) - life.arrived.input_tokens
        is_let_in = place.blocked_until_s <= self.now_s and self._running(place) < slots
        return is_let_in and self._may_fit(life, place) and (room >= 0 or not there)

    def _has_room(self, place: Place) -> bool:
        slots = 1 if self._is_broken(place) else place.slots
        return (
            place.up.role == "both"
            and place.blocked_until_s <= self.now_s
            and self._running(place) < slots
        )

    def _check_alarms(self) -> None:
        """Time alone must not pass by what it changes."""
        needed_s = math.inf
        for life in self.live.values():
            if life.phase == "transfer":
                needed_s = min(needed_s, life.sent_s + self.settings.kv_wait_s)
            if life.phase not in ("waiting", "held"):
                continue
            needed_s = min(needed_s, life.since_s + self.settings.queue_wait_s)
            roles = ("decode",) if life.phase == "held" else ("both", "prefill")
            for place in self.up.values():
                is_his = place.up.model == life.arrived.model and place.up.role in roles
                if is_his and place.blocked_until_s > self.now_s:
                    needed_s = min(needed_s, place.blocked_until_s)
        hold(min(self.alarms, default=math.inf) <= needed_s + 1e-9 or needed_s == math.inf, f"no alarm for {needed_s}: {self.alarms}")  # fmt: skip


_HEARD: dict[type, Any] = {
    FirstToken: Oracle._first,
    RequestFinished: Oracle._finished,
    RequestFailed: Oracle._failed,
    ReplicaBusy: Oracle._busy,
    PrefillFinished: Oracle._prefilled,
    KvArrived: Oracle._kv_came,
    KvLost: Oracle._kv_lost,
}
_SEEN: dict[type, Any] = {
    Dispatch: Oracle._started_one,
    Prefill: Oracle._started_one,
    TransferKv: Oracle._transferred,
    Decode: Oracle._decoded,
    Retry: Oracle._retried,
    Reject: Oracle._rejected,
    Cancel: Oracle._cancelled,
    WakeAt: Oracle._alarmed,
}
