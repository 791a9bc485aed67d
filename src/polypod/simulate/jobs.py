"""The driver of the job scheduler on a virtual clock: jobs come, run, are stopped and end; cards break; services grow and shrink.

At one moment runs end first, then cards are lost or come back, then services say what they want, then timers ring, then jobs come.
"""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Final, Literal

import msgspec
import numpy as np

from polypod.errors import InputError
from polypod.policy.actions import WakeAt
from polypod.policy.events import Woke
from polypod.policy.job_events import (
    AnyJobAction,
    AnyJobEvent,
    CardsBack,
    CardsLost,
    EndJob,
    JobFinished,
    PreemptJob,
    RejectJob,
    ServiceWants,
    StartJob,
    StartReplica,
    StopReplica,
)
from polypod.policy.job_fleet import Fleet, JobRules
from polypod.policy.job_kernels import PLAIN, Rules
from polypod.policy.job_progress import done_s, wall_s
from polypod.policy.job_state import LOST, NUM_WAITING
from polypod.policy.jobs import Scheduler
from polypod.simulate.job_trace import Job

SAMPLES: Final = 500
"""How often the fleet is looked at between the first job and the last, for what is not counted at every event."""


class CardFault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Cards are lost, or are back."""

    at_s: Annotated[float, msgspec.Meta(ge=0)]
    cards: tuple[int, ...]
    what: Literal["lost", "back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobScenario:
    """All that a run depends on."""

    fleet: Fleet
    jobs: tuple[Job, ...]
    rules: JobRules = field(default_factory=JobRules)
    services: tuple[ServiceWants, ...] = ()
    faults: tuple[CardFault, ...] = ()


@dataclass(slots=True, kw_only=True)
class JobLife:
    """What became of one job. Times are None where it never came so far."""

    job: Job
    first_start_s: float | None = None
    end_s: float | None = None
    outcome: Literal["finished", "time_limit", "rejected", "failed", "withdrawn", "waiting"] = (
        "waiting"
    )
    runs: int = 0
    preemptions: int = 0
    lost_s: float = 0.0  # work done and lost
    saved_s: float = 0.0
    is_backfilled: bool = False  # at its first start
    reason: str = ""  # of a rejection

    @property
    def wait_s(self) -> float | None:
        """From submission to the first start."""
        return None if self.first_start_s is None else self.first_start_s - self.job.asked.at_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The fleet at one moment, in cards and jobs."""

    at_s: float
    job_cards: int
    service_cards: int
    lost_cards: int
    free_cards: int
    fragmented_cards: int  # free, on a node that is not wholly free
    waiting_jobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRun:
    """A simulation that has ended.

    Card-seconds are counted from the first submission to the last (`window_s`), while jobs still come, except those of work.
    """

    lives: tuple[JobLife, ...]
    cards: int
    end_s: float
    window_s: float
    job_card_s: float
    service_card_s: float
    lost_card_s: float  # of cards that were broken
    tenant_card_s: Mapping[str, float]
    samples: tuple[Sample, ...]
    steps: tuple[tuple[AnyJobEvent, tuple[AnyJobAction, ...]], ...] = ()
    events: int = 0
    unserved_replicas: int = 0  # that still wait for cards at the end


class _Order(IntEnum):
    """What comes first at one moment."""

    FINISH = 0
    CARDS = 1
    SERVICE = 2
    TIMER = 3
    ARRIVAL = 4


def play_jobs(scenario: JobScenario, *, loops: Rules = PLAIN, is_keeping: bool = False) -> JobRun:
    """Play the scenario until every job has ended or nothing more can happen. With `is_keeping` the result has every event and its actions.

    Raises `InputError` for cards or services that the fleet cannot have.
    """
    driver = _Driver(scenario, loops, is_keeping=is_keeping)
    driver.run()
    return driver.result()


@dataclass(slots=True, kw_only=True)
class _Usage:
    """Card-seconds, counted at every change up to the end of the window."""

    window_s: float
    jobs: int = 0
    services: int = 0
    lost: int = 0
    at_s: float = 0.0
    job_card_s: float = 0.0
    service_card_s: float = 0.0
    lost_card_s: float = 0.0
    tenants: dict[str, int] = field(default_factory=dict)
    tenant_card_s: dict[str, float] = field(default_factory=dict)

    def advance(self, now_s: float) -> None:
        span_s = min(now_s, self.window_s) - self.at_s
        if span_s <= 0:
            return
        self.job_card_s += self.jobs * span_s
        self.service_card_s += self.services * span_s
        self.lost_card_s += self.lost * span_s
        for tenant, cards in self.tenants.items():
            self.tenant_card_s[tenant] += cards * span_s
        self.at_s = now_s

    def job(self, tenant: str, cards: int) -> None:
        self.jobs += cards
        self.tenants[tenant] = self.tenants.get(tenant, 0) + cards
        self.tenant_card_s.setdefault(tenant, 0.0)


class _Driver:
    def __init__(self, scenario: JobScenario, loops: Rules, *, is_keeping: bool) -> None:
        self._scenario = scenario
        self._scheduler = Scheduler(scenario.fleet, scenario.rules, loops=loops)
        self._lives = {job.asked.job: JobLife(job=job) for job in scenario.jobs}
        if len(self._lives) < len(scenario.jobs):
            msg = "several jobs have the same number; give each its own"
            raise InputError(msg)
        self._running: dict[int, tuple[int, float]] = {}  # run, and when it began
        self._replicas: dict[int, int] = {}  # cards of each
        self._agenda: list[tuple[float, _Order, int, AnyJobEvent]] = []
        self._entries = 0
        self._open = len(self._lives)
        self._to_come = 0  # events that are not timers
        window_s = max((job.asked.at_s for job in scenario.jobs), default=0.0)
        self._usage = _Usage(window_s=window_s)
        self._samples: list[Sample] = []
        self._steps: list[tuple[AnyJobEvent, tuple[AnyJobAction, ...]]] | None = (
            [] if is_keeping else None
        )
        self._events = 0
        self._now_s = 0.0

    def run(self) -> None:
        for job in self._scenario.jobs:
            self._plan(job.asked.at_s, _Order.ARRIVAL, job.asked)
        for wants in self._scenario.services:
            self._plan(wants.at_s, _Order.SERVICE, wants)
        for fault in self._scenario.faults:
            kind = CardsLost if fault.what == "lost" else CardsBack
            self._plan(fault.at_s, _Order.CARDS, kind(at_s=fault.at_s, cards=fault.cards))
        while self._agenda and self._open:
            at_s, _, _, event = heapq.heappop(self._agenda)
            if isinstance(event, Woke):
                if self._to_come == 0 and not self._running:
                    break  # whoever still waits waits for ever
            else:
                self._to_come -= 1
            if isinstance(event, JobFinished) and not self._is_present(event):
                continue
            self._tell(at_s, event)

    def _is_present(self, event: JobFinished) -> bool:
        return self._running.get(event.job, (0, 0.0))[0] == event.run

    def _plan(self, at_s: float, order: _Order, event: AnyJobEvent) -> None:
        self._entries += 1
        self._to_come += order != _Order.TIMER
        heapq.heappush(self._agenda, (at_s, order, self._entries, event))

    def _tell(self, at_s: float, event: AnyJobEvent) -> None:
        self._sample_until(at_s)
        self._usage.advance(at_s)
        self._now_s = at_s
        self._events += 1
        if isinstance(event, JobFinished):
            self._end(event.job, "finished")
        actions = self._scheduler.handle(event)
        if isinstance(event, CardsLost | CardsBack):
            owner_C = self._scheduler.tables.state.owner_C
            self._usage.lost = int(np.count_nonzero(owner_C == LOST))
        if self._steps is not None:
            self._steps.append((event, tuple(actions)))
        for action in actions:
            self._carry_out(action)

    # ---- what is done

    def _carry_out(self, action: AnyJobAction) -> None:
        match action:
            case StartJob():
                self._start(action)
            case PreemptJob():
                self._preempt(action)
            case EndJob():
                self._end(action.job, action.reason)
            case RejectJob():
                self._lives[action.job].reason = action.message
                self._end(action.job, "rejected")
            case StartReplica():
                self._replicas[action.replica] = len(action.cards)
                self._usage.services += len(action.cards)
            case StopReplica():
                self._usage.services -= self._replicas.pop(action.replica)
            case WakeAt():
                at_s = max(action.at_s, self._now_s)
                self._plan(at_s, _Order.TIMER, Woke(at_s=at_s))

    def _start(self, action: StartJob) -> None:
        life = self._lives[action.job]
        asked = life.job.asked
        if life.first_start_s is None:
            life.first_start_s = self._now_s
            life.is_backfilled = action.is_backfilled
        life.runs = action.run
        self._running[action.job] = (action.run, self._now_s)
        self._usage.job(asked.tenant, asked.cards)
        left_s = life.job.work_s - life.saved_s
        end_s = self._now_s + wall_s(asked, left_s, is_restart=action.run > 1)
        finished = JobFinished(at_s=end_s, job=action.job, run=action.run)
        self._plan(end_s, _Order.FINISH, finished)

    def _preempt(self, action: PreemptJob) -> None:
        life = self._lives[action.job]
        run, start_s = self._running.pop(action.job)
        did_s, kept_s = done_s(life.job.asked, self._now_s - start_s, is_restart=run > 1)
        life.saved_s += kept_s
        life.lost_s += did_s - kept_s
        life.preemptions += 1
        self._usage.job(life.job.asked.tenant, -life.job.asked.cards)

    def _end(self, job: int, outcome: Literal["finished", "time_limit", "rejected", "failed", "withdrawn"]) -> None:  # fmt: skip
        life = self._lives[job]
        if job in self._running:
            del self._running[job]
            self._usage.job(life.job.asked.tenant, -life.job.asked.cards)
        life.end_s, life.outcome = self._now_s, outcome
        self._open -= 1

    # ---- what is counted

    def _sample_until(self, at_s: float) -> None:
        """Look at the fleet at every moment of the window that is due before a time."""
        gap_s = self._usage.window_s / SAMPLES
        while gap_s > 0 and len(self._samples) < SAMPLES:
            due_s = gap_s * len(self._samples)
            if due_s >= at_s:
                return
            self._samples.append(self._sample(due_s))

    def _sample(self, at_s: float) -> Sample:
        state = self._scheduler.tables.state
        free_N = state.free_PN[0]
        whole_N = state.tree_DX[: len(free_N), 1] - state.tree_DX[: len(free_N), 0]
        return Sample(
            at_s=at_s,
            job_cards=self._usage.jobs,
            service_cards=self._usage.services,
            lost_cards=self._usage.lost,
            free_cards=int(free_N.sum()),
            fragmented_cards=int(free_N[free_N < whole_N].sum()),
            waiting_jobs=int(state.tally[NUM_WAITING]),
        )

    def result(self) -> JobRun:
        self._usage.advance(math.inf)
        usage = self._usage
        waiting = [tracked for tracked in self._scheduler.replicas.values() if not tracked.is_running]  # fmt: skip
        return JobRun(
            lives=tuple(self._lives.values()),
            cards=self._scenario.fleet.cards,
            end_s=self._now_s,
            window_s=usage.window_s,
            job_card_s=usage.job_card_s,
            service_card_s=usage.service_card_s,
            lost_card_s=usage.lost_card_s,
            tenant_card_s=dict(sorted(usage.tenant_card_s.items())),
            samples=tuple(self._samples),
            steps=tuple(self._steps or ()),
            events=self._events,
            unserved_replicas=len(waiting),
        )
