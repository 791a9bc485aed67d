"""One ghost: an engine emulation on the wall clock, and those who wait for its tokens."""

import asyncio
import math
from dataclasses import dataclass
from typing import Final, Literal, Protocol, assert_never

from polypod.engine import EngineLimits, ReplicaEmulation
from polypod.engine.imbalance import Imbalance
from polypod.engine.replica import PLAIN
from polypod.policy.events import ReplicaUp
from polypod.policy.router import slots_of

State = Literal["up", "hung", "down"]
Phase = Literal["whole", "prefill", "decode"]
_LEAST_WAIT_S: Final = 1e-3  # what a timer can do


class Hears(Protocol):
    """Who waits for an answer."""

    @property
    def is_stream(self) -> bool:
        """Whether it hears of every token; else of the end alone."""

    def gave(self, tokens: int) -> None:
        """So many tokens were given in all by now."""

    def finished(self) -> None:
        """All tokens were given."""

    def dropped(self) -> None:
        """The ghost is dead, and so is the connection."""


@dataclass(slots=True, eq=False)
class _Aboard:
    who: Hears
    tokens: int
    given: int = 0


@dataclass(slots=True, kw_only=True)
class Counts:
    """Since the process began, over all its lives."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    refused: int = 0
    dropped: int = 0
    lives: int = 1


class GhostReplica:
    """Lives on the running loop's clock. `up.step_time` is in seconds of that clock."""

    def __init__(self, up: ReplicaUp, number: int) -> None:
        self.up = up
        self.state: State = "up"
        self.counts = Counts()
        self._number = number
        self._loop = asyncio.get_running_loop()
        self._aboard: dict[int, _Aboard] = {}
        self._streams = 0
        self._last_ticket = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = math.inf
        self._factor = 1.0
        self._emulation = self._begin()

    @property
    def running(self) -> int:
        return 0 if self.state == "down" else self._emulation.running

    @property
    def waiting(self) -> int:
        return 0 if self.state == "down" else self._emulation.waiting

    @property
    def kv_share(self) -> float:
        """Of the cache, in use."""
        kept = 0 if self.state == "down" else self._emulation.kv_tokens
        return kept / self.up.kv_capacity_tokens

    @property
    def preemptions(self) -> int:
        return self._emulation.preemptions

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer together."""
        return min(
            self.up.context_tokens, self.up.kv_capacity_tokens // self.up.step_time.data_ranks
        )

    @property
    def is_full(self) -> bool:
        """As many wait as may run: engines that bound their queues say 503 then."""
        return self.waiting >= slots_of(self.up)

    def submit(
        self, who: Hears, *, prompt_tokens: int, output_tokens: int, phase: Phase = "whole"
    ) -> int:
        """Take a request, or one phase of it, and return its ticket. It must fit `longest_tokens`.

        Of a prompt alone the cache stays until `release`.
        """
        self._last_ticket += 1
        ticket, now_s = self._last_ticket, self._play()
        self._aboard[ticket] = _Aboard(who, output_tokens if phase != "prefill" else 0)
        self._streams += who.is_stream
        self.counts.prompt_tokens += prompt_tokens if phase != "decode" else 0
        emulation, tokens = self._emulation, prompt_tokens
        match phase:
            case "whole":
                emulation.submit(now_s, request=ticket, prompt_tokens=tokens, output_tokens=output_tokens)  # fmt: skip
            case "prefill":
                emulation.prefill(now_s, request=ticket, prompt_tokens=tokens)
            case "decode":
                emulation.decode(now_s, request=ticket, prompt_tokens=tokens, output_tokens=output_tokens)  # fmt: skip
            case _:
                assert_never(phase)
        self._set_timer(now_s)
        return ticket

    def release(self, ticket: int) -> None:
        """Free the cache of a computed prompt."""
        now_s = self._play()
        self._emulation.release(now_s, ticket)
        self._set_timer(now_s)

    def cancel(self, ticket: int) -> None:
        """Nobody waits for it any more; one that is finished is ignored."""
        if ticket in self._aboard:
            now_s = self._play()
            if self._leave(ticket) is not None:
                self.counts.cancelled += 1
                self._emulation.cancel(now_s, ticket)
            self._set_timer(now_s)

    def catch_up(self) -> None:
        """Be as of now; what was cancelled last leaves with a step that nobody else waits for."""
        if self.state == "up":
            self._set_timer(self._play())

    # ---- what goes wrong

    def die(self) -> None:
        """Drop all that is aboard, and refuse until `revive`."""
        self.state = "down"
        self._stop_timer()
        dropped = list(self._aboard.values())
        self._aboard.clear()
        self._streams = 0
        self.counts.dropped += len(dropped)
        for one in dropped:
            one.who.dropped()

    def revive(self) -> None:
        """Begin anew, empty."""
        self.die()
        self.state = "up"
        self.counts.lives += 1
        self._factor = 1.0
        self._emulation = self._begin()

    def hang(self) -> None:
        """Take requests, and answer none."""
        self.state = "hung"
        self._emulation.hang()
        self._stop_timer()

    def slow(self, factor: float) -> None:
        """From the next step on, steps take `factor` times as long; 1 is as planned."""
        now_s = self._play()
        self._factor = factor
        self._emulation.speed(now_s, factor)
        self._set_timer(now_s)

    # ---- time goes by

    def _begin(self) -> ReplicaEmulation:
        up = self.up
        limits = EngineLimits(
            max_sequences=up.max_sequences,
            max_step_tokens=up.max_step_tokens,
            kv_capacity_tokens=up.kv_capacity_tokens,
            behaviour=up.engine or PLAIN,
        )
        lives = Imbalance(
            cv=up.expert_imbalance_cv, seed=0, replica=self._number, epoch=self.counts.lives
        )
        return ReplicaEmulation(up.step_time, limits, imbalance=lives)

    def _play(self) -> float:
        """Bring the emulation to now, and say what has come of it."""
        now_s = self._loop.time()
        if self.state == "hung":
            return now_s
        ends = ("finished", "prefilled")
        over = [one.request for one in self._emulation.advance(now_s) if one.kind in ends]
        for ticket in over:
            done = self._leave(ticket)
            if done is not None:
                self._give(done, done.tokens)
                self.counts.finished += 1
                done.who.finished()
        if self._streams:
            for ticket, one in list(self._aboard.items()):
                if one.who.is_stream and ticket in self._aboard:
                    self._give(one, one.tokens - self._emulation.tokens_left(ticket, now_s))
        return now_s

    def _give(self, one: _Aboard, given: int) -> None:
        if given > one.given:
            self.counts.output_tokens += given - one.given
            one.given = given
            one.who.gave(given)

    def _leave(self, ticket: int) -> _Aboard | None:
        one = self._aboard.pop(ticket, None)
        if one is not None:
            self._streams -= one.who.is_stream
        return one

    def _ring(self) -> None:
        self._timer, self._due_s = None, math.inf
        self._set_timer(self._play())

    def _set_timer(self, now_s: float) -> None:
        """Wake up when the batch changes, or at every step while anybody streams."""
        if not self._aboard or self.state != "up":
            self._stop_timer()
            return
        emulation = self._emulation
        due_s = emulation.next_step_s(now_s) if self._streams else emulation.next_s
        if due_s == self._due_s or due_s == math.inf:
            return
        self._stop_timer()
        self._due_s = due_s
        self._timer = self._loop.call_at(max(due_s, now_s + _LEAST_WAIT_S), self._ring)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due_s = None, math.inf
