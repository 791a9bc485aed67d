"""The life of a request as a table: which word may come in which state, and what it leads to.

A word is the name of an event or an action. States in `BETWEEN` last no longer than one answer of the policy: a failure is answered
by a retry or an error in the same breath. The table covers whole requests (`Dispatch`) and those whose prompt is computed on one
replica and decoded on another (`Prefill`, `TransferKv`, `Decode`). While a cache is on the way two replicas have something of the
request, and both are told to drop it where it is cancelled.

`Validator` walks the table along a log, live or simulated, and raises at the first thing that is not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from polypod.policy.actions import (
    AnyAction,
    Cancel,
    Decode,
    Dispatch,
    Drain,
    Prefill,
    Reject,
    Retry,
    Scale,
    TransferKv,
    WakeAt,
)
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

State = Literal[
    "new", "waiting", "running", "streaming", "prefilling", "prefilled", "transferring", "placed",
    "failed", "broken", "abandoned", "cancelled", "ended",
]  # fmt: skip

TABLE: Final[dict[tuple[State, str], State]] = {
    ("new", "RequestArrived"): "waiting",
    # it waits for a place
    ("waiting", "Dispatch"): "running",
    ("waiting", "Prefill"): "prefilling",
    ("waiting", "Reject"): "ended",
    ("waiting", "ClientGone"): "ended",
    # a whole request on one replica
    ("running", "FirstToken"): "streaming",
    ("running", "RequestFinished"): "ended",  # an answer in one piece
    ("running", "RequestFailed"): "failed",
    ("running", "ReplicaBusy"): "failed",
    ("running", "ReplicaDown"): "failed",
    ("running", "ClientGone"): "abandoned",
    ("running", "Cancel"): "cancelled",  # quarantined: replicas died with it
    # from the first byte on there is no second try, but another replica may go on
    ("streaming", "FirstToken"): "streaming",  # said twice
    ("streaming", "RequestFinished"): "ended",
    ("streaming", "RequestFailed"): "broken",
    ("streaming", "ReplicaBusy"): "broken",
    ("streaming", "ReplicaDown"): "broken",
    ("streaming", "ClientGone"): "abandoned",
    # the prompt on one replica, its cache to another
    ("prefilling", "PrefillFinished"): "prefilled",
    ("prefilling", "RequestFailed"): "failed",
    ("prefilling", "ReplicaBusy"): "failed",
    ("prefilling", "ReplicaDown"): "failed",
    ("prefilling", "ClientGone"): "abandoned",
    ("prefilling", "Cancel"): "cancelled",
    ("prefilled", "TransferKv"): "transferring",
    ("prefilled", "Decode"): "running",  # where the cache is
    ("prefilled", "KvLost"): "failed",
    ("prefilled", "RequestFailed"): "failed",
    ("prefilled", "ReplicaBusy"): "failed",
    ("prefilled", "ReplicaDown"): "failed",
    ("prefilled", "ClientGone"): "abandoned",
    ("prefilled", "Cancel"): "cancelled",  # no decode replica had room in time
    ("transferring", "KvArrived"): "placed",
    ("transferring", "KvLost"): "failed",
    ("transferring", "RequestFailed"): "failed",
    ("transferring", "ReplicaBusy"): "failed",
    ("transferring", "ReplicaDown"): "failed",
    ("transferring", "ClientGone"): "abandoned",
    ("transferring", "Cancel"): "cancelled",
    ("placed", "Decode"): "running",
    ("placed", "ReplicaDown"): "failed",
    ("placed", "ClientGone"): "abandoned",
    # what must be answered at once
    ("failed", "Retry"): "waiting",
    ("failed", "Reject"): "ended",
    ("broken", "Retry"): "waiting",  # only of a request that allows to be continued
    ("broken", "Reject"): "ended",
    ("abandoned", "Cancel"): "ended",
    ("cancelled", "Reject"): "ended",
    ("cancelled", "Retry"): "waiting",  # its cache did not come in time
}

BETWEEN: Final[frozenset[State]] = frozenset({"failed", "broken", "abandoned", "cancelled"})

OfAttempt = (
    FirstToken
    | RequestFinished
    | RequestFailed
    | ReplicaBusy
    | PrefillFinished
    | KvArrived
    | KvLost
)
Start = Dispatch | Prefill | TransferKv | Decode

_DURING: Final[dict[type, tuple[State, ...]]] = {
    PrefillFinished: ("prefilling",),
    KvArrived: ("transferring",),
    KvLost: ("prefilled", "transferring"),
    FirstToken: ("running", "streaming"),
    RequestFinished: ("running", "streaming"),
}
"""Words that are about the running attempt only while one of these goes on."""


class LifecycleError(AssertionError):
    """A log has something that the table does not."""


@dataclass(slots=True, eq=False)
class _Life:
    state: State = "new"
    attempt: int = 0
    may_continue: bool = False
    has_broken: bool = False  # its stream did
    at: tuple[
        tuple[str, int], ...
    ] = ()  # replicas and epochs it depends on; the last is where it runs


class Validator:
    """Follows every request of a log through the table."""

    def __init__(self) -> None:
        self._lives: dict[int, _Life] = {}
        self._epochs: dict[str, int] = {}
        self._up: set[tuple[str, int]] = set()
        self._between: set[int] = set()
        self.ended = 0

    @property
    def open(self) -> dict[int, State]:
        """Requests that have not ended, and their states."""
        return {request: life.state for request, life in self._lives.items()}

    def feed(self, event: AnyEvent, actions: Sequence[AnyAction]) -> None:
        """Take in one event and its answer. Raises `LifecycleError` for what the table does not list."""
        self._hear(event)
        for action in actions:
            self._see(action)
        if self._between:
            msg = f"after {event}, requests {sorted(self._between)} were left hanging: {actions}"
            raise LifecycleError(msg)

    # ---- events

    def _hear(self, event: AnyEvent) -> None:
        match event:
            case RequestArrived():
                if event.request not in self._lives:
                    may_continue = event.continuation != "off"
                    self._lives[event.request] = _Life(may_continue=may_continue)
                    self._step(event.request, event)
            case ClientGone():
                if event.request in self._lives:
                    self._step(event.request, event)
            case ReplicaUp() | ReplicaDown():
                self._replica(event)
            case ReplicaRetiring() | StepObserved() | LoadReported() | SettingsChanged() | Woke():
                pass
            case _:
                if self._is_current(event):
                    self._step(event.request, event)

    def _is_current(self, event: OfAttempt) -> bool:
        """Whether the word is about what goes on now; an older one is stale, and must change nothing."""
        life = self._lives.get(event.request)
        if life is None or not life.at or life.attempt != event.attempt:
            return False
        during = _DURING.get(type(event), (life.state,))
        return life.at[-1] == (event.replica, event.epoch) and life.state in during

    def _replica(self, event: ReplicaUp | ReplicaDown) -> None:
        known = self._epochs.get(event.replica, 0)
        start = (event.replica, known)
        if isinstance(event, ReplicaDown):
            if start in self._up and event.epoch == known:  # else it is stale, with all it says
                self._fall(start, *event.also)
        elif event.epoch > known:
            self._fall(start)
            self._epochs[event.replica] = event.epoch
            self._up.add((event.replica, event.epoch))

    def _fall(self, *starts: tuple[str, int]) -> None:
        fallen = self._up.intersection(starts)
        self._up -= fallen
        for request in [one for one, life in self._lives.items() if fallen & set(life.at)]:
            self._move(request, "ReplicaDown")

    # ---- actions

    def _see(self, action: AnyAction) -> None:
        match action:
            case Dispatch() | Prefill() | TransferKv() | Decode():
                self._start(action)
            case Cancel():
                self._same_attempt(action)
                self._cancel(action)
            case Retry():
                self._same_attempt(action)
                self._check_retry(action)
                self._step(action.request, action)
            case Reject():
                self._step(action.request, action)
            case Drain() | Scale() | WakeAt():
                pass

    def _start(self, action: Start) -> None:
        start = (action.replica, action.epoch)
        if start not in self._up:
            msg = f"{action} goes to a replica that is not up"
            raise LifecycleError(msg)
        is_new = isinstance(action, Dispatch | Prefill)
        life = self._lives.get(action.request, _Life())
        if action.attempt != life.attempt + is_new:
            msg = f"{action} should be attempt {life.attempt + is_new}"
            raise LifecycleError(msg)
        if isinstance(action, Dispatch) and action.continues_after_tokens and not life.has_broken:
            msg = f"{action} continues an answer that has not broken off"
            raise LifecycleError(msg)
        life.attempt = action.attempt
        life.at = (*life.at, start) if isinstance(action, TransferKv) else (start,)
        self._step(action.request, action)

    def _check_retry(self, action: Retry) -> None:
        """A stream that broke off is only gone on with where the request allows it."""
        life = self._lives.get(action.request)
        if life is None or life.state != "broken":
            return
        if not life.may_continue:
            msg = f"{action} goes on with a stream whose request does not allow it"
            raise LifecycleError(msg)
        life.has_broken = True

    def _same_attempt(self, action: Retry | Cancel) -> None:
        life = self._lives.get(action.request, _Life())
        is_there = isinstance(action, Retry) or (action.replica, action.epoch) in life.at
        if action.attempt != life.attempt or not is_there:
            msg = f"{action} is not about attempt {life.attempt} at {life.at}"
            raise LifecycleError(msg)

    def _cancel(self, action: Cancel) -> None:
        """Of two places that have something of it, the first only loses it; the last one ends it."""
        life = self._lives[action.request]
        if len(life.at) > 1:
            life.at = tuple(start for start in life.at if start != (action.replica, action.epoch))
        else:
            self._step(action.request, action)

    # ---- the table

    def _step(self, request: int, word: AnyEvent | AnyAction) -> None:
        self._move(request, type(word).__name__)

    def _move(self, request: int, word: str) -> None:
        life = self._lives.get(request, _Life("ended"))
        following = TABLE.get((life.state, word))
        if following is None:
            msg = f"request {request} is {life.state}, and {word} is not in the table for that"
            raise LifecycleError(msg)
        life.state = following
        (self._between.add if following in BETWEEN else self._between.discard)(request)
        if following in ("waiting", "failed"):
            life.at = ()
        if following == "ended":
            self.ended += 1
            del self._lives[request]
