"""The job scheduler against hand-worked schedules, brute force and laws."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from polypod.errors import InputError
from polypod.policy.events import Woke
from polypod.policy.job_events import (
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
    Within,
)
from polypod.policy.job_fleet import Fleet, IslandCards, JobRules, Tenant
from polypod.policy.jobs import Scheduler


def fleet(cards: int = 8, node: int = 8, rack: int | None = None, kind: str = "x") -> Fleet:
    island = IslandCards(name="a", kind=kind, cards=cards, node_cards=node, rack_cards=rack)
    return Fleet(islands=(island,))


def job(number: int, cards: int = 1, at_s: float = 0.0, limit_s: float = 100.0, **more: Any) -> JobSubmitted:  # fmt: skip
    return JobSubmitted(at_s=at_s, job=number, cards=cards, limit_s=limit_s, **more)


def started(actions: list[Any]) -> dict[int, tuple[int, ...]]:
    return {a.job: a.cards for a in actions if isinstance(a, StartJob)}


def done(number: int, at_s: float, run: int = 1) -> JobFinished:
    return JobFinished(at_s=at_s, job=number, run=run)


def preempted(actions: list[Any]) -> list[tuple[int, str]]:
    return [(a.job, a.reason) for a in actions if isinstance(a, PreemptJob)]


# ---- backfill, worked by hand


def easy_queue(**rules: Any) -> Scheduler:
    """Ten cards: 1 runs on 6 until 100; 2 wants all 10; 3, 4 and 5 come behind it."""
    scheduler = Scheduler(fleet(10, node=10), JobRules(**rules))
    assert started(scheduler.handle(job(1, 6, limit_s=100))) == {1: tuple(range(6))}
    assert started(scheduler.handle(job(2, 8, at_s=1, limit_s=50))) == {}
    return scheduler


def test_the_first_that_waits_is_kept_the_time_at_which_enough_runs_must_have_ended() -> None:
    assert easy_queue().reserved_s == {2: 100.0}


def test_a_job_that_ends_before_the_reserved_time_goes_past() -> None:
    actions = easy_queue().handle(job(3, 4, at_s=2, limit_s=98))
    assert [(a.job, a.is_backfilled) for a in actions if isinstance(a, StartJob)] == [(3, True)]


def test_a_job_that_would_end_after_the_reserved_time_goes_past_on_what_is_left_over_only() -> None:
    # At 100 job 2 takes 8 of 10 cards: 2 are left over for those that last longer.
    scheduler = easy_queue()
    assert started(scheduler.handle(job(3, 3, at_s=2, limit_s=99))) == {}
    assert len(started(scheduler.handle(job(4, 2, at_s=3, limit_s=500)))[4]) == 2
    assert started(scheduler.handle(job(5, 1, at_s=3, limit_s=500))) == {}
    assert len(started(scheduler.handle(job(6, 2, at_s=3, limit_s=97)))[6]) == 2


def test_without_backfill_nobody_goes_past() -> None:
    scheduler = easy_queue(is_backfilling=False)
    assert started(scheduler.handle(job(3, 4, at_s=2, limit_s=10))) == {}
    assert set(started(scheduler.handle(done(1, 50)))) == {2}


def test_an_early_end_brings_the_reserved_job_forward() -> None:
    scheduler = easy_queue()
    scheduler.handle(job(3, 4, at_s=2, limit_s=60))
    assert scheduler.reserved_s == {2: 100.0}
    assert started(scheduler.handle(done(1, 20))) == {}
    assert scheduler.reserved_s == {2: 62.0}
    assert set(started(scheduler.handle(done(3, 30)))) == {2}


def test_conservative_backfill_keeps_a_time_for_each_and_none_is_put_off() -> None:
    """Four cards: 1 has 3 until 10. 2 (4 cards, 10 s) then waits for 10, 3 (2 cards, 10 s) for 20, and 4 (1 card, 20 s) would put off 2 under EASY and here."""
    scheduler = Scheduler(fleet(4, node=4), JobRules(reservations=8))
    scheduler.handle(job(1, 3, limit_s=10))
    scheduler.handle(job(2, 4, limit_s=10))
    scheduler.handle(job(3, 2, limit_s=10))
    assert scheduler.reserved_s == {2: 10.0, 3: 20.0}
    assert started(scheduler.handle(job(4, 1, limit_s=20))) == {}
    assert scheduler.reserved_s == {2: 10.0, 3: 20.0, 4: 20.0}
    assert set(started(scheduler.handle(job(5, 1, limit_s=10)))) == {5}


def test_two_jobs_may_be_kept_the_same_time_and_what_is_left_over_is_less_both() -> None:
    scheduler = Scheduler(fleet(5, node=5), JobRules(reservations=3))
    scheduler.handle(job(1, 5, limit_s=10))
    scheduler.handle(job(2, 2, limit_s=10))
    scheduler.handle(job(3, 2, limit_s=20))
    assert scheduler.reserved_s == {2: 10.0, 3: 10.0}
    assert scheduler.tables.state.slack_PN[:2].tolist() == [[1], [1]]
    scheduler.check()


def test_easy_lets_a_job_put_off_the_second_that_waits_where_conservative_does_not() -> None:
    """Mu'alem and Feitelson's difference of the two: job 4 ends by 2's reserved time, and takes what 3 would have had."""
    for reservations, starts in ((1, {4}), (8, set())):
        scheduler = Scheduler(fleet(6, node=6), JobRules(reservations=reservations))
        scheduler.handle(job(1, 3, limit_s=20))
        scheduler.handle(job(10, 2, limit_s=10))
        scheduler.handle(job(2, 6, limit_s=10))  # at 20
        scheduler.handle(job(3, 3, limit_s=10))  # 10 to 20, if one card stays free
        assert set(started(scheduler.handle(job(4, 1, at_s=1, limit_s=19)))) == starts


def test_no_reservation_lets_a_large_job_wait_while_small_ones_pass() -> None:
    scheduler = easy_queue(reservations=0)
    assert set(started(scheduler.handle(job(3, 4, at_s=2, limit_s=500)))) == {3}


# ---- placing


def nodes_of(cards: tuple[int, ...], node: int = 4) -> list[int]:
    return sorted({card // node for card in cards})


def test_a_gang_goes_to_the_tightest_node_that_holds_it() -> None:
    scheduler = Scheduler(fleet(12, node=4))
    scheduler.handle(job(1, 1))  # node 0 has 3 left
    scheduler.handle(job(2, 4))  # a whole node
    assert nodes_of(started(scheduler.handle(job(3, 3)))[3]) == [0]


def test_a_gang_that_no_node_holds_goes_to_the_tightest_rack() -> None:
    scheduler = Scheduler(fleet(24, node=4, rack=8))
    scheduler.handle(job(1, 2))  # rack 0 has 6 left
    assert nodes_of(started(scheduler.handle(job(2, 6)))[2]) == [0, 1]
    assert nodes_of(started(scheduler.handle(job(3, 8)))[3]) == [2, 3]


def test_a_gang_never_spans_more_than_it_allows() -> None:
    scheduler = Scheduler(fleet(16, node=4, rack=8))
    for number in range(4):
        scheduler.handle(job(number, 3, within="node"))
    assert started(scheduler.handle(job(9, 2, within="node"))) == {}
    assert started(scheduler.handle(job(10, 3, within="rack", limit_s=10))) == {}
    assert nodes_of(started(scheduler.handle(job(11, 2, within="rack", limit_s=10)))[11]) == [0, 1]


def test_groups_stay_whole_inside_nodes() -> None:
    scheduler = Scheduler(fleet(12, node=4))
    scheduler.handle(job(1, 3))
    placed = started(scheduler.handle(job(2, 6, group=2)))[2]
    _, counts = np.unique([card // 4 for card in placed], return_counts=True)
    assert sorted(counts.tolist()) == [2, 4]


def test_kinds_are_taken_in_the_order_asked_for() -> None:
    both = Fleet(islands=(*fleet(4, kind="x").islands, IslandCards(name="b", kind="y", cards=4)))
    scheduler = Scheduler(both)
    assert started(scheduler.handle(job(1, 4, kinds=("y", "x"))))[1] == (4, 5, 6, 7)
    assert started(scheduler.handle(job(2, 4, kinds=("y", "x"))))[2] == (0, 1, 2, 3)


def test_a_fleet_wide_gang_spans_islands_of_one_kind_only() -> None:
    islands = [IslandCards(name=n, kind=k, cards=2) for n, k in (("a", "x"), ("b", "y"), ("c", "x"))]  # fmt: skip
    scheduler = Scheduler(Fleet(islands=tuple(islands)))
    assert started(scheduler.handle(job(1, 4, within="fleet")))[1] == (0, 1, 2, 3)  # a and c
    [reject] = scheduler.handle(job(2, 6, within="fleet"))
    assert isinstance(reject, RejectJob)
    assert reject.most_cards == 4


def best_by_brute_force(free: list[int], cards: int, rack_nodes: int, within: Within) -> tuple[int, int]:  # fmt: skip
    """The nearest tier that holds a gang, and in it the fewest nodes (of one rack) or racks (of one island)."""
    racks = [free[at : at + rack_nodes] for at in range(0, len(free), rack_nodes)]
    if any(node >= cards for node in free):
        return 0, 1
    if within != "node" and any(sum(rack) >= cards for rack in racks):
        tight = min((rack for rack in racks if sum(rack) >= cards), key=sum)
        return 1, fewest(tight, cards)
    if within == "island" and sum(free) >= cards:
        return 2, fewest([sum(rack) for rack in racks], cards)
    return -1, 0


def fewest(rooms: list[int], cards: int) -> int:
    return next(
        count
        for count in range(1, len(rooms) + 1)
        if any(sum(chosen) >= cards for chosen in itertools.combinations(rooms, count))
    )


@pytest.mark.parametrize("within", ["node", "rack", "island"])
def test_placing_is_as_near_and_on_as_few_as_brute_force_finds(within: Within) -> None:
    rng = np.random.default_rng(5)
    tried = set()
    for _ in range(300):
        scheduler = Scheduler(fleet(24, node=4, rack=8), JobRules(is_preempting=False))
        lost = tuple(int(card) for card in np.flatnonzero(rng.random(24) < rng.random()))
        scheduler.handle(CardsLost(at_s=0, cards=lost))
        free = [sum(card not in lost for card in range(n, n + 4)) for n in range(0, 24, 4)]
        cards = int(rng.integers(1, 16 if within == "island" else 8 if within == "rack" else 5))
        level, count = best_by_brute_force(free, cards, 2, within)
        tried.add(level)
        placed = started(scheduler.handle(job(1, cards, within=within))).get(1)
        if level < 0:
            assert placed is None
            continue
        assert placed is not None
        assert not set(placed) & set(lost)
        nodes, racks = {card // 4 for card in placed}, {card // 8 for card in placed}
        assert (len(nodes) == 1, len(racks) == 1) == (level == 0, level <= 1)
        assert len(nodes if level <= 1 else racks) == count
        if level == 0:
            assert free[min(nodes)] == min(room for room in free if room >= cards)
    assert len(tried) >= 2


# ---- what can never be


@pytest.mark.parametrize(
    ("asked", "code", "most", "text"),
    [
        (job(1, 9, within="rack"), "never_fits", 8, "a gang of 9 cards within one rack never fits; the largest that would is 8 cards; ask for fewer, or for a wider tier"),
        (job(1, 25, within="fleet"), "never_fits", 24, "the largest that would is 24 cards"),
        (job(1, 15, group=5), "never_fits", 0, "make its groups smaller"),
        (job(1, 21, group=3), "never_fits", 18, "of 21 cards in groups of 3 within one island"),
        (job(1, 7, group=3), "bad_shape", 6, "7 cards are no whole number of groups of 3; ask for 9"),
        (job(1, 2, kinds=("y",)), "unknown_kind", 0, "no card of the fleet is of kind 'y'"),
        (job(1, 2, kinds=("x", "x")), "bad_shape", 0, "name each once"),
    ],
)  # fmt: skip
def test_a_job_that_can_never_run_is_refused_at_once(
    asked: JobSubmitted, code: str, most: int, text: str
) -> None:
    [reject] = Scheduler(fleet(24, node=4, rack=8)).handle(asked)
    assert isinstance(reject, RejectJob)
    assert (reject.code, reject.most_cards) == (code, most)
    assert text in reject.message


def test_a_job_over_what_its_tenant_may_ever_borrow_is_refused_with_the_most() -> None:
    tenants = (
        Tenant(name="a", quota={"x": 2}, borrow=3),
        Tenant(name="b", quota={"x": 6}, borrow=0),
    )
    scheduler = Scheduler(fleet(8), JobRules(tenants=tenants))
    [reject] = scheduler.handle(job(1, 6, tenant="a"))
    assert isinstance(reject, RejectJob)
    assert (reject.code, reject.most_cards) == ("over_quota", 5)
    assert "quota of tenant 'a'" in reject.message
    assert set(started(scheduler.handle(job(2, 5, tenant="a")))) == {2}


# ---- quotas


def shared(cards: int = 8, **more: Any) -> Scheduler:
    tenants = (Tenant(name="a", quota={"x": 4}), Tenant(name="b", quota={"x": 4}))
    return Scheduler(fleet(cards), JobRules(tenants=tenants, **more))


def test_a_tenant_borrows_what_is_idle_and_the_owner_takes_it_back() -> None:
    scheduler = shared()
    for number in range(4):
        assert started(scheduler.handle(job(number, 2, at_s=number, tenant="a")))
    actions = scheduler.handle(job(9, 3, at_s=10, tenant="b"))
    assert preempted(actions) == [(3, "reclaim"), (2, "reclaim")]  # the last started lose least
    assert set(started(actions)) == {9}
    scheduler.check()


def test_what_is_taken_back_is_no_more_than_was_borrowed() -> None:
    scheduler = shared()
    for number in range(8):
        scheduler.handle(job(number, 1, at_s=number, tenant="a"))
    for number in range(10, 16):
        scheduler.handle(job(number, 1, at_s=20, tenant="b"))
    usage = scheduler.tables.state.quota_TKX[1:3, 0, 0].tolist()
    assert usage == [4, 4]


def test_a_cohort_never_uses_more_than_it_has() -> None:
    scheduler = shared(cards=16)
    assert started(scheduler.handle(job(1, 8, tenant="a")))
    assert started(scheduler.handle(job(2, 1, tenant="a"))) == {}
    assert started(scheduler.handle(job(3, 8, tenant="nobody's")))  # held to no quota


def test_a_job_its_quota_holds_is_not_passed_by_its_own_tenant() -> None:
    tenants = (Tenant(name="a", quota={"x": 4}, borrow=0),)
    scheduler = Scheduler(fleet(8), JobRules(tenants=tenants))
    scheduler.handle(job(1, 2, tenant="a"))
    assert started(scheduler.handle(job(2, 4, tenant="a"))) == {}
    assert started(scheduler.handle(job(3, 1, tenant="a"))) == {}
    assert set(started(scheduler.handle(done(1, 10)))) == {2}


def test_a_backfilled_job_does_not_use_up_the_quota_that_a_reserved_one_needs() -> None:
    tenants = (Tenant(name="a", quota={"x": 4}, borrow=0), Tenant(name="b", quota={"x": 4}))
    scheduler = Scheduler(fleet(8), JobRules(tenants=tenants))
    scheduler.handle(job(1, 6, limit_s=100))
    scheduler.handle(job(2, 4, tenant="a"))
    assert scheduler.reserved_s == {2: 100.0}
    assert set(started(scheduler.handle(job(4, 1, at_s=1, tenant="a", limit_s=99)))) == {4}
    assert started(scheduler.handle(job(3, 1, at_s=1, tenant="a", limit_s=200))) == {}
    assert set(started(scheduler.handle(job(5, 1, at_s=1, limit_s=200)))) == {5}


def test_an_owner_takes_back_what_its_cohort_has_lent_even_where_cards_are_free() -> None:
    scheduler = shared(cards=16)
    for number in range(4):
        scheduler.handle(job(number, 2, at_s=number, tenant="a"))
    actions = scheduler.handle(job(9, 3, at_s=10, tenant="b"))
    assert preempted(actions) == [(3, "reclaim"), (2, "reclaim")]
    assert set(started(actions)) == {9}


def test_nobody_is_put_below_its_own_quota() -> None:
    """a has 6 of its 4, others 2: b wants its 4, and stopping the one job that a borrows for is not enough, so none is stopped."""
    scheduler = shared()
    for number in range(3):
        scheduler.handle(job(number, 2, at_s=number, tenant="a"))
    scheduler.handle(job(3, 2, tenant="nobody's", is_preemptible=False))
    assert preempted(scheduler.handle(job(9, 4, at_s=10, tenant="b"))) == []


def test_a_borrower_of_high_priority_stops_nobody_whose_cards_its_cohort_may_not_use() -> None:
    scheduler = Scheduler(fleet(8), JobRules(tenants=(Tenant(name="a", quota={"x": 4}),)))
    scheduler.handle(job(1, 2, tenant="a", is_preemptible=False))
    scheduler.handle(job(2, 6, tenant="nobody's"))
    actions = scheduler.handle(job(3, 4, at_s=5, tenant="a", priority=9))
    assert preempted(actions) == []
    scheduler.check()


def test_an_owner_stops_nobody_outside_its_cohort_while_the_cohort_has_lent_all() -> None:
    scheduler = shared(cards=16)
    scheduler.handle(job(1, 8, tenant="b", is_preemptible=False))
    scheduler.handle(job(2, 8, tenant="nobody's"))
    actions = scheduler.handle(job(3, 2, at_s=5, tenant="a", priority=9))
    assert preempted(actions) == []
    scheduler.check()


# ---- order


def test_higher_priority_goes_first_and_equals_in_the_order_they_came() -> None:
    scheduler = Scheduler(fleet(1), JobRules(is_preempting=False))
    scheduler.handle(job(0))
    for number, priority in enumerate((0, 5, 0, 5), start=1):
        scheduler.handle(job(number, at_s=number, priority=priority))
    assert scheduler.waiting == (2, 4, 1, 3)


def test_a_job_that_waits_long_enough_comes_before_newcomers_of_higher_priority() -> None:
    rules = JobRules(is_preempting=False, ageing_s=100, period_s=10)
    scheduler = Scheduler(fleet(1), rules)
    scheduler.handle(job(0, limit_s=1000))
    scheduler.handle(job(1, at_s=0))
    scheduler.handle(job(2, at_s=250, priority=2))
    assert scheduler.waiting == (1, 2)  # both count as 2 now, and 1 came first
    scheduler.handle(job(3, at_s=251, priority=3))
    assert scheduler.waiting == (3, 1, 2)


def test_the_tenant_that_had_least_for_its_weight_goes_first() -> None:
    tenants = (Tenant(name="heavy", fair_share=3), Tenant(name="light", fair_share=1))
    scheduler = Scheduler(fleet(2), JobRules(tenants=tenants, period_s=10, half_life_s=1e9))
    scheduler.handle(job(1, tenant="heavy"))
    scheduler.handle(job(2, tenant="light"))
    scheduler.handle(job(3, at_s=1, tenant="light"))
    scheduler.handle(job(4, at_s=2, tenant="heavy"))
    scheduler.handle(Woke(at_s=50))
    assert scheduler.waiting == (4, 3)
    assert scheduler.tables.usage[1:] == pytest.approx([50, 50])
    scheduler.handle(job(5, at_s=51, tenant="heavy"))
    assert scheduler.waiting == (4, 5, 3)


def test_usage_is_halved_by_every_half_life() -> None:
    scheduler = Scheduler(fleet(4), JobRules(half_life_s=100, period_s=10))
    scheduler.handle(job(1, 4, tenant="a", limit_s=1000))
    scheduler.handle(done(1, 100))
    scheduler.handle(Woke(at_s=100))
    # 4 cards for one half-life, each moment weighed by its age: 4 * 100 / ln 2 * (1 - 1/2)
    assert scheduler.tables.usage[1] == pytest.approx(200 / math.log(2))
    scheduler.handle(Woke(at_s=300))
    assert scheduler.tables.usage[1] == pytest.approx(50 / math.log(2))


# ---- preemption


def test_a_higher_priority_stops_the_lowest_that_lose_least_and_no_more_than_it_needs() -> None:
    scheduler = Scheduler(fleet(8))
    scheduler.handle(job(1, 2, priority=1))
    scheduler.handle(job(2, 2, at_s=0))
    scheduler.handle(job(3, 2, at_s=10))
    scheduler.handle(job(4, 2, at_s=20, is_preemptible=False))
    actions = scheduler.handle(job(5, 2, at_s=30, priority=2))
    assert preempted(actions) == [(3, "priority")]
    [stop] = [a for a in actions if isinstance(a, PreemptJob)]
    assert stop.lost_s == 20.0
    assert set(started(actions)) == {5}


def test_of_runs_that_lose_the_same_the_one_that_started_last_is_stopped() -> None:
    scheduler = Scheduler(fleet(4))
    scheduler.handle(job(1, 2, at_s=0, checkpoint_every_s=10.0))
    scheduler.handle(job(2, 2, at_s=10, checkpoint_every_s=10.0))
    assert preempted(scheduler.handle(job(3, 2, at_s=20, priority=1))) == [(2, "priority")]


def test_victims_that_turn_out_not_to_be_needed_are_spared() -> None:
    """4 needs one whole node: 2 on node 0 loses less and is looked at first, but only 3 fills a node."""
    scheduler = Scheduler(fleet(8, node=4))
    scheduler.handle(job(1, 2, is_preemptible=False, within="node"))
    scheduler.handle(job(3, 4, at_s=1, within="node"))
    scheduler.handle(job(2, 2, at_s=5, within="node"))
    actions = scheduler.handle(job(4, 4, at_s=10, priority=1, within="node"))
    assert preempted(actions) == [(3, "priority")]


def test_a_stopped_job_goes_on_from_its_last_checkpoint() -> None:
    scheduler = Scheduler(fleet(2))
    own = {"checkpoint_every_s": 10.0, "checkpoint_cost_s": 1.0, "restart_s": 5.0}
    scheduler.handle(job(1, 2, limit_s=100, **own))
    [stop, *_] = scheduler.handle(job(2, 2, at_s=35, priority=1, limit_s=10))
    assert stop == PreemptJob(job=1, run=1, reason="priority", lost_s=2.0)  # 3 x 11 s, and 2 more
    [resume, _] = [a for a in scheduler.handle(done(2, 45)) if isinstance(a, ResumeJob)], None
    assert [(r.run, r.saved_s) for r in resume] == [(2, 30.0)]
    # restart 5, work 70, six checkpoints of 1 s: the limit is at 45 + 81
    assert not [a for a in scheduler.handle(Woke(at_s=125)) if isinstance(a, EndJob)]
    assert EndJob(job=1, run=2, reason="time_limit") in scheduler.handle(Woke(at_s=126))


def test_equal_priorities_never_stop_each_other_nor_does_anyone_where_it_is_off() -> None:
    for rules, priority in ((JobRules(), 0), (JobRules(is_preempting=False), 9)):
        scheduler = Scheduler(fleet(2), rules)
        scheduler.handle(job(1, 2))
        assert preempted(scheduler.handle(job(2, 2, at_s=1, priority=priority))) == []


# ---- services


def wants(replicas: int, at_s: float = 0.0, cards: int = 2, service: str = "chat") -> ServiceWants:
    return ServiceWants(at_s=at_s, service=service, replicas=replicas, cards=cards)


def test_a_service_takes_cards_from_jobs_and_gives_them_back() -> None:
    scheduler = Scheduler(fleet(8), JobRules(is_preempting=False))
    for number in range(4):
        scheduler.handle(job(number, 2, at_s=number, priority=9))
    actions = scheduler.handle(wants(2, at_s=10))
    assert preempted(actions) == [(3, "service"), (2, "service")]
    assert [a.replica for a in actions if isinstance(a, StartReplica)] == [1, 2]
    actions = scheduler.handle(wants(1, at_s=20))
    assert [(a.replica, a.reason) for a in actions if isinstance(a, StopReplica)] == [(2, "not_wanted")]  # fmt: skip
    assert set(started(actions)) == {2}
    scheduler.check()


def test_a_service_waits_for_jobs_that_may_not_be_stopped_and_is_first_when_they_end() -> None:
    scheduler = Scheduler(fleet(2))
    scheduler.handle(job(1, 2, is_preemptible=False))
    scheduler.handle(job(2, 2, priority=9))
    assert not [a for a in scheduler.handle(wants(1, at_s=5)) if isinstance(a, StartReplica)]
    actions = scheduler.handle(done(1, 10))
    assert [a for a in actions if isinstance(a, StartReplica)]
    assert started(actions) == {}


def test_a_replica_that_lost_a_card_comes_again_elsewhere() -> None:
    scheduler = Scheduler(fleet(4))
    scheduler.handle(wants(1))
    actions = scheduler.handle(CardsLost(at_s=5, cards=(0,)))
    assert actions[0] == StopReplica(service="chat", replica=1, reason="cards_lost")
    assert [a.cards for a in actions if isinstance(a, StartReplica)] == [(1, 2)]


def test_a_service_no_fleet_can_hold_is_an_error_and_changes_nothing() -> None:
    scheduler = Scheduler(fleet(8, node=4))
    with pytest.raises(InputError, match=r"service 'chat': a gang of 5 cards within one node never fits; the largest that would is 4"):  # fmt: skip
        scheduler.handle(wants(1, cards=5))
    assert scheduler.replicas == {}


def test_an_older_word_of_a_service_is_ignored() -> None:
    scheduler = Scheduler(fleet(8))
    scheduler.handle(wants(2, at_s=10))
    assert scheduler.handle(wants(1, at_s=5)) == []
    assert scheduler.handle(wants(2, at_s=10)) == []


# ---- cards and stale words


def test_a_lost_card_stops_its_run_and_is_not_given_out_until_it_is_back() -> None:
    scheduler = Scheduler(fleet(2))
    scheduler.handle(job(1, 2))
    actions = scheduler.handle(CardsLost(at_s=30, cards=(1,)))
    assert preempted(actions) == [(1, "cards_lost")]
    assert started(actions) == {}
    assert set(started(scheduler.handle(job(2, 1, at_s=31, limit_s=10)))) == {2}
    assert started(scheduler.handle(CardsBack(at_s=32, cards=(1,)))) == {}
    assert set(started(scheduler.handle(done(2, 40)))) == {1}


def test_words_about_another_run_or_an_ended_job_change_nothing() -> None:
    scheduler = Scheduler(fleet(1))
    scheduler.handle(job(1, limit_s=50))
    assert scheduler.handle(done(1, 5, run=2)) == []
    assert started(scheduler.handle(job(1, at_s=6))) == {}
    scheduler.handle(done(1, 10))
    assert scheduler.handle(done(1, 11)) == []
    assert scheduler.handle(JobWithdrawn(at_s=12, job=1)) == []
    assert scheduler.handle(job(1, at_s=13)) == []


def test_a_failed_job_is_tried_again_as_often_as_it_says() -> None:
    scheduler = Scheduler(fleet(1))
    scheduler.handle(job(1, retries=1))
    actions = scheduler.handle(JobFailed(at_s=5, job=1, run=1))
    assert [(a.job, a.run) for a in actions if isinstance(a, ResumeJob)] == [(1, 2)]
    assert EndJob(job=1, run=2, reason="failed") in scheduler.handle(JobFailed(at_s=9, job=1, run=2))  # fmt: skip


def test_a_withdrawn_job_leaves_the_queue_and_its_reservation_to_others() -> None:
    scheduler = easy_queue()
    scheduler.handle(job(3, 4, at_s=2, limit_s=500))
    actions = scheduler.handle(JobWithdrawn(at_s=3, job=2))
    assert EndJob(job=2, run=0, reason="withdrawn") in actions
    assert set(started(actions)) == {3}


def test_a_card_the_fleet_does_not_have_is_an_error() -> None:
    with pytest.raises(InputError, match=r"card 8 is not in the fleet, which has 8 cards"):
        Scheduler(fleet(8)).handle(CardsLost(at_s=0, cards=(0, 8)))


def test_a_run_is_ended_at_its_limit() -> None:
    scheduler = Scheduler(fleet(1))
    actions = scheduler.handle(job(1, limit_s=50))
    assert [a.at_s for a in actions if type(a).__name__ == "WakeAt"] == [50.0]
    assert scheduler.handle(Woke(at_s=49)) == []
    assert scheduler.handle(Woke(at_s=50)) == [EndJob(job=1, run=1, reason="time_limit")]


@pytest.mark.parametrize(
    ("islands", "text"),
    [
        ((("a", 8, 3, 4),), r"racks of 4 cards and nodes of 3; make a rack a whole number of nodes"),
        ((("a", 8, 4, 4), ("a", 8, 4, 4)), r"several islands are called a"),
    ],
)  # fmt: skip
def test_a_fleet_that_cannot_be_says_why(islands: tuple[tuple[str, int, int, int], ...], text: str) -> None:  # fmt: skip
    with pytest.raises(InputError, match=text):
        Fleet(islands=tuple(IslandCards(name=n, kind="x", cards=c, node_cards=m, rack_cards=r) for n, c, m, r in islands))  # fmt: skip
