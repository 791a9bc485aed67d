"""Laws that hold under any driver of the job scheduler: one that repeats itself, is late, and loses cards; and the plain rules equal the compiled ones."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polypod.policy.events import Woke
from polypod.policy.job_events import (
    AnyJobAction,
    AnyJobEvent,
    CardsBack,
    CardsLost,
    EndJob,
    JobFailed,
    JobFinished,
    JobSubmitted,
    JobWithdrawn,
    PreemptJob,
    RejectJob,
    ResumeJob,
    ServiceWants,
    StartJob,
    StartReplica,
    StopReplica,
)
from polypod.policy.job_fleet import Fleet, IslandCards, JobRules, Tenant
from polypod.policy.job_kernels import PLAIN, RULES, Rules, compiled, has_numba
from polypod.policy.jobs import Scheduler

FLEET = Fleet(
    islands=(
        IslandCards(name="a", kind="x", cards=12, node_cards=4, rack_cards=8),
        IslandCards(name="b", kind="y", cards=6, node_cards=2),
        IslandCards(name="c", kind="x", cards=3, node_cards=4),
    )
)
TENANTS = (
    Tenant(name="a", fair_share=2, quota={"x": 6, "y": 2}),
    Tenant(name="b", quota={"x": 4}, borrow=3),
)
RULES_TRIED = tuple(
    JobRules(
        reservations=reservations,
        is_backfilling=backfilling,
        tenants=tenants,
        period_s=40,
        ageing_s=100,
        half_life_s=200,
    )
    for reservations, backfilling in ((1, True), (0, True), (4, True), (2, False))
    for tenants in ((), TENANTS)
)
WITHIN = ("node", "rack", "island", "fleet")


@dataclass
class Driver:
    """Does what it is told as far as a driver can; keeps its own account of who holds which card."""

    rules: JobRules
    loops: Rules = PLAIN
    at: float = 0.0
    jobs: int = 0
    log: list[list[AnyJobAction]] = field(default_factory=list)
    told: list[AnyJobEvent] = field(default_factory=list)
    holds: dict[tuple[str, int], tuple[int, ...]] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(FLEET, self.rules, loops=self.loops)

    def tell(self, event: AnyJobEvent) -> None:
        self.told.append(event)
        if isinstance(event, JobFinished | JobFailed) and self.runs.get(event.job) == event.run:
            self.holds.pop(("job", event.job), None)
        if isinstance(event, CardsBack):
            self.lost -= set(event.cards)
        before = dict(self.scheduler.reserved_s)
        actions = self.scheduler.handle(event)
        self.log.append(actions)
        for action in actions:
            self.obey(action)
        if isinstance(event, CardsLost):
            self.lost |= set(event.cards)
        self.scheduler.check()
        held = [card for cards in self.holds.values() for card in cards]
        assert len(held) == len(set(held)), "a card is given out once"
        assert not set(held) & self.lost, "a lost card is not given out"
        if isinstance(event, JobFinished | Woke) and not self.rules.tenants:
            self.check_promises(before, actions)

    def check_promises(self, before: dict[int, float], actions: list[AnyJobAction]) -> None:
        """Where nobody of higher priority came, no card was lost and no run lasts longer than it may, the first reserved job is never put off."""
        replicas = self.scheduler.replicas.values()
        if any(isinstance(a, PreemptJob | StartReplica) for a in actions) or not before:
            return
        if min(before.values()) < self.at or not all(replica.is_running for replica in replicas):
            return
        if any(isinstance(a, StartJob) and not a.is_backfilled for a in actions):
            return  # the order changed
        after = self.scheduler.reserved_s
        waiting = self.scheduler.waiting
        first = next((job for job in waiting if job in before), None)
        if first is not None and waiting[0] == first and first in after:
            assert after[first] <= before[first]

    def obey(self, action: AnyJobAction) -> None:
        match action:
            case StartJob():
                assert ("job", action.job) not in self.holds
                assert action.job not in self.ended
                assert action.run == self.runs.get(action.job, 0) + 1
                assert isinstance(action, ResumeJob) == (action.run > 1)
                self.runs[action.job] = action.run
                self.holds["job", action.job] = action.cards
            case PreemptJob():
                assert action.lost_s >= 0
                del self.holds["job", action.job]
            case EndJob():
                assert action.job not in self.ended
                self.ended.add(action.job)
                self.holds.pop(("job", action.job), None)
            case RejectJob():
                self.ended.add(action.job)
            case StartReplica():
                self.holds["replica", action.replica] = action.cards
            case StopReplica():
                del self.holds["replica", action.replica]
            case _:
                pass

    # ---- what can happen

    def submit(self, n: int, size: int) -> None:
        self.jobs += 1
        self.tell(
            JobSubmitted(
                at_s=self.at,
                job=self.jobs,
                cards=1 + size % 7,
                kinds=((), ("x",), ("y",), ("y", "x"))[n % 4],
                group=(1, 1, 2)[size % 3],
                within=WITHIN[n // 4 % 4],
                limit_s=float(5 + size % 90),
                tenant=("a", "b", "c")[n % 3],
                priority=n % 5 // 3,
                checkpoint_every_s=(None, 7.0)[size % 2],
                checkpoint_cost_s=0.5,
                restart_s=1.0,
                is_preemptible=n % 7 > 0,
                retries=n % 2,
            )
        )

    def finish(self, n: int, size: int) -> None:
        if self.runs:
            job = sorted(self.runs)[n % len(self.runs)]
            run = self.runs[job] + (size % 9 == 0)
            self.tell((JobFinished, JobFailed)[size % 4 == 3](at_s=self.at, job=job, run=run))

    def withdraw(self, n: int, size: int) -> None:
        self.tell(JobWithdrawn(at_s=self.at, job=n % (self.jobs + 2)))

    def lose(self, n: int, size: int) -> None:
        self.tell(CardsLost(at_s=self.at, cards=tuple(sorted({n % 21, (n + size % 5) % 21}))))

    def back(self, n: int, size: int) -> None:
        self.tell(CardsBack(at_s=self.at, cards=tuple(range(n % 21, 21))))

    def wants(self, n: int, size: int) -> None:
        late_s = 5.0 * (size % 6 == 0)
        self.tell(
            ServiceWants(at_s=self.at - late_s, service="st"[n % 2], replicas=size % 4, cards=1 + n % 2)
        )  # fmt: skip

    def wake(self, n: int, size: int) -> None:
        self.tell(Woke(at_s=self.at))

    def repeat(self, n: int, size: int) -> None:
        if self.told:
            self.tell(self.told[-1 - n % len(self.told)])


WHATS = ("submit", "submit", "submit", "finish", "finish", "withdraw", "lose", "back", "wants", "wake", "repeat")  # fmt: skip
STEPS = st.lists(
    st.tuples(st.integers(0, len(WHATS) - 1), st.integers(0, 999), st.integers(0, 999), st.sampled_from([0.0, 0.5, 3.0, 20.0])),
    max_size=60,
)  # fmt: skip


def driven(rules: JobRules, steps: list[tuple[int, int, int, float]], loops: Rules = PLAIN) -> Driver:  # fmt: skip
    driver = Driver(rules, loops)
    for what, n, size, gap_s in steps:
        driver.at += gap_s
        getattr(driver, WHATS[what])(n, size)
    return driver


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(RULES_TRIED), STEPS)
def test_no_driver_can_break_an_invariant(rules: JobRules, steps: list[Any]) -> None:
    driven(rules, steps)


@pytest.mark.timeout(600)  # compiles, where nothing is cached yet
@pytest.mark.skipif(not has_numba(), reason="Numba is an optional extra")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(RULES_TRIED), STEPS)
def test_compiled_rules_decide_as_the_plain_ones(rules: JobRules, steps: list[Any]) -> None:
    plain, fast = driven(rules, steps), driven(rules, steps, compiled())
    assert plain.log == fast.log
    for mine, its in zip(plain.scheduler.tables.state, fast.scheduler.tables.state, strict=True):
        assert mine.tolist() == its.tolist()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(RULES_TRIED), STEPS)
def test_the_same_events_give_the_same_actions(rules: JobRules, steps: list[Any]) -> None:
    assert driven(rules, steps).log == driven(rules, steps).log


def test_every_rule_is_compiled() -> None:
    assert set(Rules._fields) < set(RULES)
