"""The scheduler of jobs: gangs of cards for batch and training work, beside the services that hold cards of the same fleet.

Pure as the rest of policy: events in, actions out. `job_rules` places and backfills, this module keeps what each job is and has done.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from polypod.errors import InputError
from polypod.policy.actions import WakeAt
from polypod.policy.events import Woke
from polypod.policy.job_claims import claim_of, claimants, line_up, refuse
from polypod.policy.job_events import (
    AnyJobAction,
    AnyJobEvent,
    CardsBack,
    CardsLost,
    EndJob,
    EndReason,
    JobFailed,
    JobFinished,
    JobSubmitted,
    JobWithdrawn,
    PreemptJob,
    PreemptReason,
    ResumeJob,
    ServiceWants,
    StartJob,
    StartReplica,
    StopReplica,
)
from polypod.policy.job_fleet import Fleet, JobRules
from polypod.policy.job_invariants import check_scheduler
from polypod.policy.job_kernels import PLAIN, Rules
from polypod.policy.job_progress import done_s
from polypod.policy.job_rules import STARTED, SWEEP
from polypod.policy.job_state import (
    BASE,
    CARDS,
    END,
    FREE,
    HAS_QUOTA,
    IS_HOLDING,
    LOST,
    NUM_FREE,
    NUM_OUT,
    NUM_OUT_CARDS,
    NUM_RESERVED,
    NUM_RUNNING,
    NUM_WAITING,
    PLACE,
    PRIORITY,
    SEQUENCE,
    SINCE,
    START,
    TENANT,
)
from polypod.policy.job_tables import ABOVE_ALL, SERVICES, Tables

WAKE_SLACK_S: Final = 1e-3
"""A timer may ring this early."""


@dataclass(slots=True, kw_only=True)
class Tracked:
    """What is known of a job, or of one replica of a service, that has not ended."""

    asked: JobSubmitted
    row: int
    service: str | None = None
    run: int = 0
    is_running: bool = False
    saved_s: float = 0.0
    failures: int = 0


class Scheduler:
    """Decides for one fleet. The same fleet, rules and events give the same actions, with plain and with compiled rules."""

    def __init__(
        self, fleet: Fleet, rules: JobRules | None = None, *, loops: Rules = PLAIN
    ) -> None:
        self.fleet = fleet
        self.rules = rules or JobRules()
        self.tables = Tables(fleet, self.rules)
        self.live: dict[int, Tracked] = {}
        self.replicas: dict[int, Tracked] = {}
        self._loops = loops
        self._wants: dict[str, ServiceWants] = {}
        self._of_row: dict[int, Tracked] = {}
        self._seen: set[int] = set()  # jobs that have ended or were refused
        self._replicas_made = 0
        self._submissions = 0
        self._wakes_s: list[float] = []
        self._now_s = 0.0
        self._refreshed_s = -math.inf
        self._is_fresh = False
        self._is_due = False
        self._actions: list[AnyJobAction] = []
        self._stoppable: dict[int, int] = {}
        self._interrupted: list[Tracked] = []

    # ---- the one way in

    def handle(self, event: AnyJobEvent) -> list[AnyJobAction]:
        """Take in one event; return what the driver must now do, in order.

        Stale and repeated events change nothing. Raises `InputError`, and changes nothing, for cards the fleet does not have.
        """
        self._now_s = max(self._now_s, float(event.at_s))  # an int would be compiled for again
        self._actions = []
        if self._now_s >= self._refreshed_s + self.rules.period_s:
            self._refresh()
        _HANDLERS[type(event)](self, event)
        if self._is_due:
            self._sweep()
        if self._may_preempt():
            self._preempt()
        self._ask_for_wake()
        return self._actions

    @property
    def waiting(self) -> tuple[int, ...]:
        """The jobs that wait, in the order of the queue."""
        rows = self.tables.state.wait_W[: self.tables.count(NUM_WAITING)].tolist()
        return tuple(
            self._of_row[row].asked.job for row in rows if self._of_row[row].service is None
        )

    @property
    def reserved_s(self) -> dict[int, float]:
        """The start kept for each job that has one."""
        state = self.tables.state
        return {
            self._of_row[int(state.reserved_P[p])].asked.job: float(state.reserved_PX[p, 0])
            for p in range(self.tables.count(NUM_RESERVED))
            if self._of_row[int(state.reserved_P[p])].service is None
        }

    def check(self) -> None:
        """Raise `AssertionError` if any invariant is broken; tests call this after every event."""
        check_scheduler(self)

    # ---- jobs

    def _submitted(self, event: JobSubmitted) -> None:
        if event.job in self.live or event.job in self._seen:
            return
        refusal = refuse(event, self.tables, self._loops)
        if refusal is not None:
            self._seen.add(event.job)
            self._actions.append(refusal)
            return
        tracked = self._track(event, self.tables.tenant(event.tenant))
        self.live[event.job] = tracked
        self._enqueue(tracked)

    def _finished(self, event: JobFinished) -> None:
        tracked = self._running(event)
        if tracked is not None:
            self._free(tracked)
            self._forget(tracked)

    def _failed(self, event: JobFailed) -> None:
        tracked = self._running(event)
        if tracked is None:
            return
        self._stop(tracked)
        tracked.failures += 1
        if tracked.failures > tracked.asked.retries:
            self._end(tracked, "failed")
        else:
            self._enqueue(tracked)

    def _withdrawn(self, event: JobWithdrawn) -> None:
        tracked = self.live.get(event.job)
        if tracked is None:
            return
        if tracked.is_running:
            self._stop(tracked)
        else:
            self._leave_queue(tracked)
        self._end(tracked, "withdrawn")

    def _running(self, event: JobFinished | JobFailed) -> Tracked | None:
        """The job a word is about, where it is about the present run."""
        tracked = self.live.get(event.job)
        if tracked is None or not tracked.is_running or tracked.run != event.run:
            return None
        return tracked

    def _track(self, asked: JobSubmitted, tenant: int, service: str | None = None) -> Tracked:
        self._submissions += 1
        row = self.tables.take_row()
        self.tables.write(row, asked, tenant, self._submissions)
        tracked = Tracked(asked=asked, row=row, service=service)
        self._of_row[row] = tracked
        return tracked

    def _enqueue(self, tracked: Tracked) -> None:
        state = self.tables.state
        state.job_JX[tracked.row, PRIORITY] = self._effective(tracked)
        code = self._loops.submit(state, tracked.row, self._now_s)
        if code == STARTED:
            self._report_started()
        elif code == SWEEP:
            self._is_due = self._is_fresh = True

    def _effective(self, tracked: Tracked) -> int:
        """The priority after ageing."""
        if tracked.service is not None:
            return ABOVE_ALL
        waited_s = self._now_s - tracked.asked.at_s
        return tracked.asked.priority + max(0, math.floor(waited_s / self.rules.ageing_s))

    def _free(self, tracked: Tracked) -> float:
        """Free a run's cards, and count what the tenant used; when the run began."""
        state, row = self.tables.state, tracked.row
        start_s = float(state.time_JX[row, START])
        cards = tracked.asked.cards
        begin_s = max(start_s, self.tables.origin_s)
        self.tables.charge(int(state.job_JX[row, TENANT]), cards, begin_s, self._now_s)
        self._loops.release(state, row)
        tracked.is_running = False
        self._is_due = True
        if tracked.asked.is_preemptible:
            self._count_stoppable(tracked, -cards)
        return start_s

    def _stop(self, tracked: Tracked) -> float:
        """Free a run's cards and keep what a checkpoint holds; the seconds of work that are lost."""
        ran_s = self._now_s - self._free(tracked)
        did_s, kept_s = done_s(tracked.asked, ran_s, is_restart=tracked.run > 1)
        tracked.saved_s += kept_s
        self.tables.write_rest(tracked.row, tracked.asked, tracked.saved_s)
        return did_s - kept_s

    def _leave_queue(self, tracked: Tracked) -> None:
        if int(self.tables.state.job_JX[tracked.row, PLACE]) >= 0:
            self._is_due = True
        self._loops.withdraw(self.tables.state, tracked.row)

    def _end(self, tracked: Tracked, reason: EndReason) -> None:
        self._actions.append(EndJob(job=tracked.asked.job, run=tracked.run, reason=reason))
        self._forget(tracked)

    def _forget(self, tracked: Tracked) -> None:
        if tracked.service is None:
            del self.live[tracked.asked.job]
            self._seen.add(tracked.asked.job)
        else:
            del self.replicas[tracked.asked.job]
        del self._of_row[tracked.row]
        self.tables.give_row(tracked.row)

    def _count_stoppable(self, tracked: Tracked, cards: int) -> None:
        """Cards of running jobs that may be stopped, by priority: few priorities are in use at once."""
        if tracked.service is not None:
            return
        priority = tracked.asked.priority
        self._stoppable[priority] = self._stoppable.get(priority, 0) + cards
        if self._stoppable[priority] == 0:
            del self._stoppable[priority]

    # ---- cards

    def _cards_lost(self, event: CardsLost) -> None:
        self._known_cards(event.cards)
        owner_C = self.tables.state.owner_C
        for card in event.cards:
            row = int(owner_C[card])
            if row >= 0:
                self._interrupt(self._of_row[row])
            if int(owner_C[card]) == FREE:
                self._loops.lose(self.tables.state, card)
                self._is_due = self._is_fresh = True
        for tracked in self._interrupted:
            self._enqueue(tracked)
        self._interrupted = []

    def _interrupt(self, tracked: Tracked) -> None:
        """A run that held a lost card stops; it may not start again before all lost cards are marked."""
        if tracked.service is None:
            self._announce_preemption(tracked, "cards_lost")
        else:
            self._stop(tracked)
            self._actions.append(StopReplica(service=tracked.service, replica=tracked.asked.job, reason="cards_lost"))  # fmt: skip
            tracked = self._replica_again(tracked)
        self._interrupted.append(tracked)

    def _replica_again(self, tracked: Tracked) -> Tracked:
        """A replica that lost its cards comes again under a new number."""
        service = str(tracked.service)
        self._forget(tracked)
        return self._new_replica(self._wants[service])

    def _cards_back(self, event: CardsBack) -> None:
        self._known_cards(event.cards)
        for card in event.cards:
            if int(self.tables.state.owner_C[card]) == LOST:
                self._loops.restore(self.tables.state, card)
                self._is_due = True

    def _known_cards(self, cards: tuple[int, ...]) -> None:
        wrong = [card for card in cards if not 0 <= card < self.fleet.cards]
        if wrong:
            msg = f"card {wrong[0]} is not in the fleet, which has {self.fleet.cards} cards, numbered from 0"
            raise InputError(msg)

    # ---- services

    def _service_wants(self, event: ServiceWants) -> None:
        before = self._wants.get(event.service)
        if before is not None and event.at_s < before.at_s:
            return
        asked = _replica(event, 0)
        refusal = refuse(asked, self.tables, self._loops)
        if refusal is not None:
            msg = f"service {event.service!r}: {refusal.message}"
            raise InputError(msg)
        self._wants[event.service] = event
        its = [tracked for tracked in self.replicas.values() if tracked.service == event.service]
        stale = [tracked for tracked in its if not _is_alike(tracked.asked, asked)]
        kept = [tracked for tracked in its if _is_alike(tracked.asked, asked)]
        surplus = sorted(kept, key=lambda tracked: (tracked.is_running, -tracked.asked.job))
        for tracked in [*stale, *surplus[: max(0, len(kept) - event.replicas)]]:
            self._give_back(tracked)
        for _ in range(event.replicas - len(kept)):
            self._enqueue(self._new_replica(event))

    def _new_replica(self, wants: ServiceWants) -> Tracked:
        self._replicas_made += 1
        asked = _replica(wants, self._replicas_made, at_s=self._now_s)
        tracked = self._track(asked, SERVICES, wants.service)
        self.replicas[asked.job] = tracked
        return tracked

    def _give_back(self, tracked: Tracked) -> None:
        if tracked.is_running:
            self._stop(tracked)
            self._actions.append(StopReplica(service=str(tracked.service), replica=tracked.asked.job, reason="not_wanted"))  # fmt: skip
        else:
            self._leave_queue(tracked)
        self._forget(tracked)

    # ---- time

    def _woke(self, _: Woke) -> None:
        state = self.tables.state
        while self._wakes_s and self._wakes_s[0] <= self._now_s + WAKE_SLACK_S:
            heapq.heappop(self._wakes_s)
        while self.tables.count(NUM_RUNNING):
            row = int(state.run_R[0])
            if float(state.time_JX[row, END]) > self._now_s + WAKE_SLACK_S:
                break
            tracked = self._of_row[row]
            self._stop(tracked)
            self._end(tracked, "time_limit")

    def _refresh(self) -> None:
        """Bring usage, ageing and the order of the queue up to date."""
        self._refreshed_s = self._now_s
        self.tables.charge_running(self._now_s)
        state = self.tables.state
        rows = state.wait_W[: self.tables.count(NUM_WAITING)].copy()
        waited_s = self._now_s - state.time_JX[rows, SINCE]
        aged = np.maximum(0, np.floor(waited_s / self.rules.ageing_s)).astype(np.int64)
        of_job = state.job_JX[rows, TENANT] != SERVICES
        state.job_JX[rows, PRIORITY] = state.job_JX[rows, BASE] + np.where(of_job, aged, 0)
        order = np.lexsort(
            (
                state.job_JX[rows, SEQUENCE],
                -state.fair_T[state.job_JX[rows, TENANT]],
                -state.job_JX[rows, PRIORITY],
            )
        )
        if not np.array_equal(order, np.arange(len(rows))):
            state.wait_W[: len(rows)] = rows[order]
            self._is_due = self._is_fresh = True

    def _ask_for_wake(self) -> None:
        """Ring when the next run must end, and when the queue, if there is one, must be put in order again."""
        state = self.tables.state
        wake_s = math.inf
        if state.tally[NUM_RUNNING]:
            wake_s = float(state.time_JX[state.run_R[0], END])
        if state.tally[NUM_WAITING]:
            wake_s = min(wake_s, self._refreshed_s + self.rules.period_s)
        if wake_s < math.inf and (not self._wakes_s or wake_s < self._wakes_s[0]):
            heapq.heappush(self._wakes_s, wake_s)
            self._actions.append(WakeAt(at_s=wake_s))

    # ---- who starts, and who stops for it

    def _sweep(self) -> None:
        state = self.tables.state
        is_fresh = self._is_fresh or self.rules.reservations == 1 or bool(state.tally[IS_HOLDING])
        self._is_due = self._is_fresh = False
        go = self._loops.sweep_afresh if is_fresh else self._loops.sweep
        if go(state, self._now_s):
            self._report_started()

    def _report_started(self) -> None:
        state = self.tables.state
        count = int(state.tally[NUM_OUT])
        cards = state.out_C[: int(state.tally[NUM_OUT_CARDS])].tolist()
        for row, is_past, end in state.out_RX[:count].tolist():
            tracked = self._of_row[row]
            own = tuple(cards[end - tracked.asked.cards : end])
            self._start(tracked, own, is_backfilled=bool(is_past))

    def _start(self, tracked: Tracked, cards: tuple[int, ...], *, is_backfilled: bool) -> None:
        tracked.run += 1
        tracked.is_running = True
        asked = tracked.asked
        if tracked.service is not None:
            self._actions.append(StartReplica(service=tracked.service, replica=asked.job, cards=cards))  # fmt: skip
            return
        if asked.is_preemptible:
            self._count_stoppable(tracked, asked.cards)
        start = StartJob(job=asked.job, run=tracked.run, cards=cards, is_backfilled=is_backfilled)
        if tracked.run > 1:
            start = ResumeJob(
                job=asked.job,
                run=tracked.run,
                cards=cards,
                is_backfilled=is_backfilled,
                saved_s=tracked.saved_s,
            )
        self._actions.append(start)

    def _may_preempt(self) -> bool:
        """Whether it is worth a look who could stop for the first in the queue."""
        state = self.tables.state
        if not state.tally[NUM_WAITING] or not self._stoppable:
            return False
        if state.tally[HAS_QUOTA]:
            return True
        cards, first = state.job_JX[state.wait_W[0], [CARDS, BASE]].tolist()
        if min(self._stoppable) >= first or not (self.rules.is_preempting or first == ABOVE_ALL):
            return False
        lower = sum(count for priority, count in self._stoppable.items() if priority < first)
        return lower + self.tables.count(NUM_FREE) >= int(cards)

    def _preempt(self) -> None:
        while self._preempt_one():
            self._is_fresh = True
            self._sweep()

    def _preempt_one(self) -> bool:
        """Stop runs for one waiting job that may ask for it, and start it; False where there is none."""
        for row, reason in claimants(self.tables, self.rules):
            claim = claim_of(self.tables, row, reason)
            for allowed, least_cards in claim:
                count = line_up(self.tables, row, reason, allowed, self._now_s)
                count = self._loops.evict(self.tables.state, row, allowed, count, least_cards)
                if count:
                    self._make_room(row, reason, allowed, count)
                    return True
        return False

    def _make_room(self, row: int, reason: PreemptReason, allowed: int, count: int) -> None:
        state = self.tables.state
        victims = [self._of_row[victim] for victim in state.victim_R[:count].tolist()]
        for victim in victims:
            self._announce_preemption(victim, reason)
        is_started = self._loops.force(state, row, allowed, self._now_s)
        assert is_started, "evict said that it fits"
        self._report_started()
        for victim in victims:
            self._enqueue(victim)
        self._is_due = False

    def _announce_preemption(self, tracked: Tracked, reason: PreemptReason) -> None:
        lost_s = self._stop(tracked)
        self._actions.append(PreemptJob(job=tracked.asked.job, run=tracked.run, reason=reason, lost_s=lost_s))  # fmt: skip


def _replica(wants: ServiceWants, number: int, at_s: float = 0.0) -> JobSubmitted:
    return JobSubmitted(
        at_s=at_s,
        job=number,
        cards=wants.cards,
        kinds=wants.kinds,
        group=wants.group,
        within=wants.within,
        limit_s=math.inf,
        is_preemptible=False,
    )


def _is_alike(one: JobSubmitted, other: JobSubmitted) -> bool:
    shapes = [(asked.cards, asked.kinds, asked.group, asked.within) for asked in (one, other)]
    return shapes[0] == shapes[1]


_HANDLERS: Final[dict[type, Callable[[Scheduler, Any], None]]] = {
    JobSubmitted: Scheduler._submitted,
    JobFinished: Scheduler._finished,
    JobFailed: Scheduler._failed,
    JobWithdrawn: Scheduler._withdrawn,
    CardsLost: Scheduler._cards_lost,
    CardsBack: Scheduler._cards_back,
    ServiceWants: Scheduler._service_wants,
    Woke: Scheduler._woke,
}
