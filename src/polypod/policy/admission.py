"""Who may come in, and who waits: context limits, and one queue per model.

The queue is first come first served within a priority, or fair between tenants (`fairness`). A retry keeps its turn. Nobody waits past a deadline, and
with `admission: slo` nobody begins a wait that is expected to last past it.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from polypod.policy.events import RequestArrived
from polypod.policy.fairness import Shares, cost_tokens
from polypod.policy.requests import Ask, Tracked, Turn
from polypod.policy.settings import ServiceSettings

OUTPUT_WEIGHT: Final = 0.05
"""Weight of one finished answer in the expected length of the next."""

GAP_WEIGHT: Final = 0.1
"""Weight of one gap between two finishes in the drain rate."""

MIN_RETRY_AFTER_S: Final = 1.0


class Queue:
    """Requests of one model that wait, in turn, each until its deadline: the time that `due_s` says of it."""

    def __init__(self, due_s: Callable[[Tracked], float] = attrgetter("deadline_s")) -> None:
        self._due_s = due_s
        self._waiting: dict[Turn, Tracked] = {}
        self.turns: list[Turn] = []  # of those who wait, in order
        self._deadlines: list[tuple[float, Turn]] = []

    def __len__(self) -> int:
        return len(self.turns)

    def __iter__(self) -> Iterator[Tracked]:
        """In turn; the one just given may be taken out."""
        for turn in self.turns.copy():
            yield self._waiting[turn]

    def __contains__(self, tracked: Tracked) -> bool:
        return tracked.turn in self._waiting

    def add(self, tracked: Tracked) -> None:
        turn, turns = tracked.turn, self.turns
        assert turn not in self._waiting, f"request {tracked.request} waits already"
        self._waiting[turn] = tracked
        if turns:
            insort(turns, turn)
        else:
            turns.append(turn)
        heapq.heappush(self._deadlines, (self._due_s(tracked), turn))

    def remove(self, tracked: Tracked) -> None:
        del self._waiting[tracked.turn]
        del self.turns[bisect_left(self.turns, tracked.turn)]
        if not self.turns:
            self._deadlines.clear()  # nobody looks at them while nobody waits

    def by_arrival(self) -> None:
        """Let nobody's turn be a tenant's any more."""
        waiting = list(self)
        for tracked in waiting:
            self.remove(tracked)
            tracked.moved_to(0.0)
            self.add(tracked)

    def ahead_of(self, tracked: Tracked) -> int:
        """How many have their turn before one that waits."""
        return bisect_left(self.turns, tracked.turn)

    def pop_expired(self, now_s: float) -> list[Tracked]:
        """Take out those whose deadline has come."""
        expired = []
        while self.next_deadline_s() <= now_s:
            _, turn = heapq.heappop(self._deadlines)
            expired.append(self._waiting[turn])
            self.remove(expired[-1])
        return expired

    def next_deadline_s(self) -> float:
        """The earliest deadline of one that waits; infinite when none does."""
        while self._deadlines:
            deadline_s, turn = self._deadlines[0]
            tracked = self._waiting.get(turn)
            if tracked is not None and self._due_s(tracked) == deadline_s:
                return deadline_s
            heapq.heappop(self._deadlines)
        return math.inf


@dataclass(slots=True, eq=False)
class Service:
    """One model: its limits, who waits for it from its prompt on or with a computed one, and what its finished requests have taught."""

    settings: ServiceSettings
    queue: Queue = field(default_factory=Queue)
    held: Queue = field(default_factory=Queue)  # whose caches wait for a decode replica
    moving: Queue = field(default_factory=lambda: Queue(attrgetter("kv_deadline_s")))
    shares: Shares | None = None  # None: tenants are not told apart
    is_leaving: bool = False  # it takes nothing new
    mean_output_tokens: float = 0.0
    mean_stay_s: float | None = None  # from its place to its end
    finish_gap_s: float | None = None
    last_finish_s: float | None = None

    def __post_init__(self) -> None:
        self.mean_output_tokens = self.settings.mean_output_tokens

    def ask(self, arrived: RequestArrived, most_tokens: int, sent_tokens: int = 0) -> Ask:
        """What the request needs. A guessed prompt length never asks for more than `most_tokens`, all that any replica holds.

        What its client has of the answer is computed again as a part of the prompt.
        """
        most = arrived.max_output_tokens
        need = arrived.input_tokens + (sent_tokens + 1 if most is None else most)
        expected = self.mean_output_tokens if most is None else min(most, self.mean_output_tokens)
        return Ask(
            input_tokens=arrived.input_tokens + sent_tokens,
            output_tokens=max(expected - sent_tokens, 1.0),
            need_tokens=need if arrived.input_is_exact else min(need, most_tokens),
            is_streamed=arrived.is_streamed,
            prefix_hashes=arrived.prefix_hashes,
        )

    def can_hold(self, arrived: RequestArrived) -> bool:
        """Whether the model's context takes the request, as far as its length is known."""
        prompt = arrived.input_tokens if arrived.input_is_exact else 0
        most = arrived.max_output_tokens
        return prompt + (1 if most is None else most) <= self.settings.context_tokens

    def told(self, settings: ServiceSettings, shares: Shares | None) -> None:
        """Other limits hold, or other turns: where tenants are no longer told apart, those who wait go by their arrival."""
        if settings.mean_output_tokens != self.settings.mean_output_tokens:
            self.mean_output_tokens = settings.mean_output_tokens
        self.settings, self.is_leaving = settings, False
        if shares is None and self.shares is not None:
            for queue in (self.queue, self.held, self.moving):
                queue.by_arrival()
        self.shares = shares

    # ---- fair turns

    @property
    def has_waiting(self) -> bool:
        """Whether anybody waits: for a replica from the prompt on, with a computed one, or for its cache."""
        return bool(self.queue.turns or self.held.turns or self.moving.turns)

    @property
    def has_caches(self) -> bool:
        """Whether any computed prompt waits for a decode replica, or is on its way to one."""
        return bool(self.held.turns or self.moving.turns)

    def charge(self, tracked: Tracked) -> None:
        """Give a newcomer its turn among tenants."""
        if self.shares is not None:
            ask = self.ask(tracked.arrived, tracked.arrived.input_tokens)
            tracked.cost_tokens = cost_tokens(ask.input_tokens, ask.output_tokens)
            tracked.moved_to(self.shares.charge(tracked.arrived.tenant, tracked.cost_tokens))

    def placed(self, tracked: Tracked) -> None:
        if self.shares is not None:
            self.shares.placed(tracked.start_tokens)

    def settle(self, tracked: Tracked, used_tokens: float) -> None:
        """Its tenant pays what it has used, more or less than it was charged for."""
        if self.shares is not None:
            self.shares.correct(tracked.arrived.tenant, used_tokens - tracked.cost_tokens)

    # ---- how long it will take

    def finished(self, output_tokens: int, now_s: float) -> None:
        """Learn the length of answers and the rate at which they end."""
        self.mean_output_tokens += OUTPUT_WEIGHT * (output_tokens - self.mean_output_tokens)
        if self.last_finish_s is not None:
            gap_s = now_s - self.last_finish_s
            known_s = gap_s if self.finish_gap_s is None else self.finish_gap_s
            self.finish_gap_s = known_s + GAP_WEIGHT * (gap_s - known_s)
        self.last_finish_s = now_s

    def stayed(self, stay_s: float) -> None:
        """Learn how long a request keeps its place."""
        known_s = stay_s if self.mean_stay_s is None else self.mean_stay_s
        self.mean_stay_s = known_s + OUTPUT_WEIGHT * (stay_s - known_s)

    def wait_s(self, tracked: Tracked, running: int) -> float:
        """How long one that waits will wait while so many run, places becoming free evenly; 0 while nothing is known of stays."""
        return (self.queue.ahead_of(tracked) + 1) * (self.mean_stay_s or 0.0) / max(running, 1)

    def drain_s(self, longest_s: float) -> float:
        """How long those who wait will take to leave the queue, at the rate of late; never past `longest_s`."""
        if self.finish_gap_s is None:
            return MIN_RETRY_AFTER_S
        return max(MIN_RETRY_AFTER_S, min(len(self.queue) * self.finish_gap_s, longest_s))
