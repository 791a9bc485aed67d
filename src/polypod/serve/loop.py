"""The wall-clock driver: tells the policy what happened, and carries out what it answers.

Its twin, `simulate.run`, does the same on a virtual clock. Everything here runs in one event loop, without awaiting: an
event is decided, recorded and routed before the next one is looked at.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

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
from polypod.policy.events import AnyEvent, ReplicaDown, ReplicaUp, Woke
from polypod.record import Line, Step
from polypod.serve.continuation import described
from polypod.serve.engines.spec import Endpoint

ForRequest = Dispatch | Prefill | TransferKv | Decode | Retry | Reject | Cancel


class Decides(Protocol):
    """The policy, as its driver sees it."""

    def handle(self, event: AnyEvent, /) -> Sequence[AnyAction]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlets:
    """Who carries out what is not about one request; by default nobody."""

    drain: Callable[[Drain], None] = lambda _: None
    scale: Callable[[Scale], None] = lambda _: None
    write: Callable[[Line], None] = lambda _: None  # the record


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """One replica, as the node last heard of it."""

    replica: str
    epoch: int
    model: str
    pool: str
    state: Literal["up", "draining", "down"]
    endpoint: Endpoint
    reason: str = ""  # why it is down


class Driver:
    """Owns a policy, its clock, the replicas' addresses, and who waits for which request."""

    def __init__(
        self,
        policy: Decides,
        outlets: Outlets | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now_s = clock
        self._policy = policy
        self._outlets = outlets or Outlets()
        self._takers: dict[int, Callable[[ForRequest], None]] = {}
        self._sent: dict[int, Callable[[], int]] = {}  # of streams that may go on elsewhere
        self._replicas: dict[str, ReplicaState] = {}
        self._ups: dict[str, ReplicaUp] = {}
        self._caching: set[str] = set()  # models of whose replicas one caches prefixes
        self._alarms: dict[float, asyncio.TimerHandle] = {}
        self._inbox: deque[AnyEvent] = deque()
        self._is_deciding = False
        self._last_request = 0

    def open(
        self, take: Callable[[ForRequest], None], sent_tokens: Callable[[], int] | None = None
    ) -> int:
        """Number a new request; `take` gets every action about it until `close`. `sent_tokens` counts what its client has of a stream that may go on."""
        self._last_request += 1
        self._takers[self._last_request] = take
        if sent_tokens is not None:
            self._sent[self._last_request] = sent_tokens
        return self._last_request

    def close(self, request: int) -> None:
        """Nobody waits for this request any more; later actions about it are dropped."""
        self._takers.pop(request, None)
        self._sent.pop(request, None)

    def attach(self, up: ReplicaUp, endpoint: Endpoint) -> None:
        """A replica is ready, and here it listens. What its engine can do of continuations and caches is added to what is known of it."""
        up = described(up, endpoint) if endpoint.build else up
        self._ups[up.replica] = up
        if up.caches_prefixes:
            self._caching.add(up.model)
        self._replicas[up.replica] = ReplicaState(
            replica=up.replica,
            epoch=up.epoch,
            model=up.model,
            pool=up.pool,
            state="up",
            endpoint=endpoint,
        )
        self.tell(up)

    def endpoint(self, replica: str, epoch: int) -> Endpoint | None:
        """Where this start of a replica listens, or listened."""
        known = self._replicas.get(replica)
        return known.endpoint if known is not None and known.epoch == epoch else None

    def announced(self, replica: str) -> ReplicaUp:
        """What the policy was told of the replica's latest start."""
        return self._ups[replica]

    def forget(self, replica: str) -> None:
        """It was taken out for good, and is told of no more."""
        self._replicas.pop(replica, None)
        self._ups.pop(replica, None)

    def caches_prefixes(self, model: str) -> bool:
        """Whether any replica of the model that was ever up keeps what it has computed of prompts."""
        return model in self._caching

    def replicas(self) -> Iterable[ReplicaState]:
        """All replicas ever attached, each in its latest start."""
        return self._replicas.values()

    def tell(self, event: AnyEvent) -> None:
        """Have one event decided, recorded and carried out.

        Carrying out an action may bring the next event (a drained replica goes down); it waits its turn.
        """
        self._inbox.append(event)
        if self._is_deciding:
            return
        self._is_deciding = True
        try:
            while self._inbox:
                self._decide(self._inbox.popleft())
        finally:
            self._is_deciding = False

    def stop(self) -> None:
        """Set no more alarms off."""
        for alarm in self._alarms.values():
            alarm.cancel()
        self._alarms.clear()

    def _decide(self, event: AnyEvent) -> None:
        if isinstance(event, ReplicaDown):
            self._mark(event.replica, event.epoch, "down", event.reason)
            sent = tuple((request, count()) for request, count in self._sent.items() if count())
            event = msgspec.structs.replace(event, sent_tokens=sent)
        actions = self._policy.handle(event)
        self._outlets.write(Step(event=event, actions=list(actions)))
        for action in actions:
            self._carry_out(action)

    def _carry_out(self, action: AnyAction) -> None:
        match action:
            case Dispatch() | Prefill() | TransferKv() | Decode() | Retry() | Reject() | Cancel():
                take = self._takers.get(action.request)
                if take is not None:
                    take(action)
            case WakeAt():
                self._wake_at(action.at_s)
            case Drain():
                self._mark(action.replica, action.epoch, "draining")
                self._outlets.drain(action)
            case Scale():
                self._outlets.scale(action)

    def _mark(
        self, replica: str, epoch: int, state: Literal["draining", "down"], reason: str = ""
    ) -> None:
        known = self._replicas.get(replica)
        if known is not None and known.epoch == epoch and known.state != "down":
            self._replicas[replica] = ReplicaState(
                replica=replica,
                epoch=epoch,
                model=known.model,
                pool=known.pool,
                state=state,
                endpoint=known.endpoint,
                reason=reason,
            )

    def _wake_at(self, at_s: float) -> None:
        if at_s not in self._alarms:
            delay_s = max(0.0, at_s - self.now_s())
            loop = asyncio.get_running_loop()
            self._alarms[at_s] = loop.call_later(delay_s, self._ring, at_s)

    def _ring(self, at_s: float) -> None:
        """A loop's timers may be a millisecond early by our clock; the policy is woken when it asked."""
        del self._alarms[at_s]
        now_s = self.now_s()
        if now_s < at_s:
            self._wake_at(at_s)
        else:
            self.tell(Woke(at_s=now_s))
