"""Who may come in, and who waits: context limits, and one bounded queue per model.

The queue is first come first served within a priority. Its bound holds for newcomers; a retry keeps its place and is never
turned away, since it was let in once. Nobody waits past a deadline.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from polypod.policy.actions import Reject
from polypod.policy.events import RequestArrived
from polypod.policy.requests import Tracked
from polypod.policy.router import Ask
from polypod.policy.settings import ServiceSettings

OUTPUT_WEIGHT: Final = 0.05
"""Weight of one finished answer in the expected length of the next."""

GAP_WEIGHT: Final = 0.1
"""Weight of one gap between two finishes in the drain rate."""

MIN_RETRY_AFTER_S: Final = 1.0


class Queue:
    """Requests of one model that wait, in turn, each until its deadline."""

    def __init__(self) -> None:
        self._turns: list[tuple[tuple[int, int], Tracked]] = []
        self._deadlines: list[tuple[float, tuple[int, int], Tracked]] = []

    def __len__(self) -> int:
        return len(self._turns)

    def __iter__(self) -> Iterator[Tracked]:
        return iter([tracked for _, tracked in self._turns])

    def __contains__(self, tracked: Tracked) -> bool:
        at = self._at(tracked)
        return at < len(self._turns) and self._turns[at][1] is tracked

    def __getitem__(self, index: int) -> Tracked:
        return self._turns[index][1]

    def add(self, tracked: Tracked) -> None:
        insort(self._turns, (tracked.turn, tracked), key=_turn)
        heapq.heappush(self._deadlines, (tracked.deadline_s, tracked.turn, tracked))

    def remove(self, tracked: Tracked) -> None:
        assert tracked in self, f"request {tracked.request} does not wait"
        del self._turns[self._at(tracked)]

    def pop_expired(self, now_s: float) -> list[Tracked]:
        """Take out those whose deadline has come."""
        expired = []
        while self.next_deadline_s() <= now_s:
            _, _, tracked = heapq.heappop(self._deadlines)
            self.remove(tracked)
            expired.append(tracked)
        return expired

    def next_deadline_s(self) -> float:
        """The earliest deadline of one that waits; infinite when none does."""
        deadlines = self._deadlines
        while deadlines and not self._waits_until(*deadlines[0]):
            heapq.heappop(deadlines)
        return deadlines[0][0] if deadlines else math.inf

    def _waits_until(self, deadline_s: float, _turn: tuple[int, int], tracked: Tracked) -> bool:
        return tracked.deadline_s == deadline_s and tracked in self

    def _at(self, tracked: Tracked) -> int:
        return bisect_left(self._turns, tracked.turn, key=_turn)


def _turn(entry: tuple[tuple[int, int], Tracked]) -> tuple[int, int]:
    return entry[0]


@dataclass(slots=True, eq=False)
class Service:
    """One model: its limits, who waits for it, and what its finished requests have taught."""

    settings: ServiceSettings
    queue: Queue = field(default_factory=Queue)
    mean_output_tokens: float = 0.0
    finish_gap_s: float | None = None
    last_finish_s: float | None = None

    def __post_init__(self) -> None:
        self.mean_output_tokens = self.settings.mean_output_tokens

    def ask(self, arrived: RequestArrived) -> Ask:
        """What the request needs. A guessed prompt length is never taken to need more than the model's context."""
        most = arrived.max_output_tokens
        need = arrived.input_tokens + (1 if most is None else most)
        if not arrived.input_is_exact:
            need = min(need, self.settings.context_tokens)
        expected = self.mean_output_tokens if most is None else min(most, self.mean_output_tokens)
        return Ask(
            input_tokens=arrived.input_tokens, output_tokens=max(expected, 1.0), need_tokens=need
        )

    def refusal(self, arrived: RequestArrived) -> Reject | None:
        """The answer to a request that no replica of the model could hold, or None."""
        context, most = self.settings.context_tokens, arrived.max_output_tokens
        known_input = arrived.input_tokens if arrived.input_is_exact else 0
        if known_input + (1 if most is None else most) <= context:
            return None
        asked = f"the prompt has {known_input}" if known_input else ""
        if most is not None:
            asked += f"{' and ' if asked else ''}max_tokens asks for {most}"
        if known_input < context:
            way_out = f"max_tokens can be {context - known_input} at most"
        else:
            way_out = f"shorten the prompt by {known_input - context + 1} or more"
        return Reject(
            request=arrived.request,
            status=400,
            code="context_length_exceeded",
            message=f"{arrived.model} holds {context} tokens of context; {asked}; {way_out}",
            param=None if most is None else "max_tokens",
        )

    def finished(self, output_tokens: int, now_s: float) -> None:
        """Learn the length of answers and the rate at which they end."""
        self.mean_output_tokens += OUTPUT_WEIGHT * (output_tokens - self.mean_output_tokens)
        if self.last_finish_s is not None:
            gap_s = now_s - self.last_finish_s
            known_s = gap_s if self.finish_gap_s is None else self.finish_gap_s
            self.finish_gap_s = known_s + GAP_WEIGHT * (gap_s - known_s)
        self.last_finish_s = now_s

    def drain_s(self, longest_s: float) -> float:
        """How long those who wait will take to leave the queue, at the rate of late; never past `longest_s`."""
        if self.finish_gap_s is None:
            return MIN_RETRY_AFTER_S
        return max(MIN_RETRY_AFTER_S, min(len(self.queue) * self.finish_gap_s, longest_s))
