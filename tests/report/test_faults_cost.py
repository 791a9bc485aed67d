"""What faults cost, on runs where it can be counted by hand."""

import json

import pytest

from polypod.plan.spec import Slo
from polypod.record import FaultNote
from polypod.report.faults_cost import fault_costs, faults_json, faults_text
from polypod.report.fold import fold

SLO = {"m": Slo(ttft="1 s")}


def served(say, numbers, at_s, replica="b", ttft_s=0.1, gap_s=0.5):
    """Requests one after another, half a second apart."""
    return [
        line
        for k, n in enumerate(numbers)
        for line in say.whole(
            n, at_s + gap_s * k, ttft_s=ttft_s, e2e_s=max(ttft_s, 0.4), replica=replica
        )
    ]


def broken_run(say, *, before_ttft_s=0.1, plan=None):
    """Two replicas; a dies at 10 s with one request aboard, is back at 14 s. Ten requests in the 4 s before, eight meanwhile."""
    lines = [say.header(plan=plan), say.up("a"), say.up("b", pool="q")]
    lines += served(say, range(100, 108), 6.0, ttft_s=before_ttft_s)
    lines += [say.arrived(1, 9.5, say.place(1, "a")), say.first(1, 9.6)]
    lines += [say.down("a", 10.0, say.reject(1, 502, "replica_lost"))]
    lines += served(say, range(200, 204), 10.1, ttft_s=3.0)  # late
    lines += served(say, range(300, 304), 10.2)  # in time
    lines += [say.up("a", 14.0, epoch=2)]
    lines += served(say, range(400, 404), 15.0)
    return say.in_order(lines)


def test_what_a_fault_cost_is_what_was_missed_more_than_before(say):
    (cost,) = fault_costs(fold(broken_run(say)), SLO)

    assert (cost.at_s, cost.repaired_s, cost.over_s, cost.is_over) == (10.0, 14.0, 14.0, True)
    assert (cost.replicas, cost.replica_share, cost.models) == (1, 0.5, ("m",))
    assert (cost.hit, cost.exposed, cost.missed, cost.failed) == (1, 9, 5, 1)
    assert cost.before_fraction == 0.0
    assert cost.lost_requests == 5.0


def test_what_was_missed_before_is_taken_off(say):
    """All were late before: of nine that were exposed, nine would have been, and five were."""
    (cost,) = fault_costs(fold(broken_run(say, before_ttft_s=2.0)), SLO)

    assert cost.before_fraction == 1.0
    assert cost.lost_requests < 0
    assert cost.lost_requests == cost.missed - cost.exposed


def test_accelerators_are_those_of_the_plan_a_replica_came_up_by(say):
    def plan(tp):
        return {"services": [{"model": "m", "pools": [{"name": "p", "layout": {"tp": tp}}]}]}

    lines = [*broken_run(say, plan=plan(2)), say.brought_to(20.0, plan(8)), say.up("c", 21.0)]
    lines += [*say.whole(500, 22.0, replica="c"), say.down("a", 30.0, epoch=2), say.down("c", 31.0)]
    lines += [say.up("a", 40.0, epoch=3), say.up("c", 41.0, epoch=2)]

    assert [cost.accelerators for cost in fault_costs(fold(lines), SLO)] == [2, 2, 8]


def test_a_fault_without_a_trace_costs_nothing(say):
    lines = [say.header(), say.up("a"), say.up("b"), *served(say, range(20), 0.0)]
    lines += [say.down("a", 5.0), say.up("a", 6.0, epoch=2)]
    (cost,) = fault_costs(fold(say.in_order(lines)), SLO)

    assert (cost.lost_requests, cost.missed, cost.failed, cost.retried, cost.hit) == (
        0.0,
        0,
        0,
        0,
        0,
    )
    assert cost.exposed > 0


def test_the_window_lasts_until_the_queue_is_no_longer_than_before(say):
    lines = [say.header(), say.up("a"), say.up("b"), *served(say, range(10), 0.0)]
    lines += [say.down("a", 6.0), say.arrived(50, 7.0), say.up("a", 8.0, epoch=2)]
    lines += [say.finished(99, 11.0, 1, "b", say.place(50, "b")), say.first(50, 11.5, "b")]
    lines += [say.finished(50, 12.0, 5, "b"), *served(say, range(60, 64), 12.0)]
    (cost,) = fault_costs(fold(say.in_order(lines)), SLO)

    assert (cost.repaired_s, cost.over_s, cost.is_over) == (8.0, 11.0, True)
    assert cost.waited_s == 4.0
    assert cost.missed == 1


def test_a_fault_that_is_not_repaired_lasts_to_the_end_and_says_so(say):
    lines = [say.header(), say.up("a"), say.up("b"), *served(say, range(20), 0.0), say.down("a", 5.0)]  # fmt: skip
    (cost,) = fault_costs(fold(say.in_order(lines)), SLO)

    assert (cost.repaired_s, cost.is_over) == (None, False)
    assert cost.over_s == pytest.approx(9.9)
    assert "+" in faults_text([cost])


def test_a_fault_of_a_line_lasts_until_its_replicas_are_back(say):
    lines = [say.header(), say.up("a"), say.up("b"), *served(say, range(20), 0.0)]
    note = FaultNote(
        id=1, what="slow", where="card a/1", replicas=("a",), at_s=4.0, repaired_s=5.0, back_s=7.0, by_spare=1
    )  # fmt: skip
    (cost,) = fault_costs(fold([*say.in_order(lines), note]), SLO)

    assert (cost.over_s, cost.is_over, cost.by_spare) == (7.0, True, 1)
    assert "back after 3 s, 1 by a spare" in faults_text([cost])


def test_attempts_given_up_because_of_it_are_counted(say):
    lines = [
        say.header(),
        say.up("a"),
        say.up("b"),
        say.arrived(1, 1.0, say.place(1, "a")),
        say.down("a", 2.0, say.retry(1), say.place(1, "b", attempt=2)),
        say.finished(1, 3.0, 5, "b", attempt=2),
    ]
    (cost,) = fault_costs(fold(lines), SLO)

    assert (cost.retried, cost.failed, cost.hit) == (1, 0, 1)


def test_a_request_is_charged_to_one_fault_the_one_that_hit_it(say):
    """A rack of two of three replicas and one card break together; each spoils what it had aboard, and the rack the one that came later."""
    ups = [say.up(name) for name in "abcd"]
    aboard = [
        say.arrived(n, 4.0, say.place(n, name))
        for n, name in ((1, "a"), (2, "b"), (3, "c"))
    ]  # fmt: skip
    downs = [
        say.down("a", 5.0, say.reject(1), reason="rack"),
        say.down("b", 5.0, say.reject(2), reason="rack"),
        say.down("c", 5.0, say.reject(3), reason="card"),
    ]
    later = [say.arrived(4, 6.0, say.reject(4))]
    backs = [say.up(name, 9.0, epoch=2) for name in "abc"]
    costs = {cost.what: cost for cost in fault_costs(fold([say.header(), *ups, *served(say, range(50, 54), 1.0, "d"), *aboard, *downs, *later, *backs]), SLO)}  # fmt: skip

    assert (costs["rack"].missed, costs["card"].missed) == (3, 1)
    assert sum(cost.exposed for cost in costs.values()) == 4
    assert costs["rack"].overlaps == (costs["card"].id,)


def test_of_two_alike_the_earlier_is_charged(say):
    lines = [say.header(), *(say.up(name) for name in "abc")]
    lines += [say.down("a", 5.0, reason="one"), say.down("b", 6.0, reason="two")]
    lines += [say.up(name, 8.0, epoch=2) for name in "ab"]
    lines += [say.arrived(1, 6.5, say.reject(1))]
    costs = {cost.what: cost.exposed for cost in fault_costs(fold(say.in_order(lines)), SLO)}

    assert costs == {"one": 0, "two": 1}  # of three, and of the two that were left
    lines[4] = say.down("a", 6.0, reason="one")
    costs = {cost.what: cost.exposed for cost in fault_costs(fold(say.in_order(lines)), SLO)}
    assert costs == {"one": 1, "two": 0}


def test_a_fault_of_one_model_exposes_no_other(say):
    lines = [say.header(), say.up("a"), say.up("b", model="n"), say.down("a", 5.0)]
    lines += [say.arrived(1, 6.0, say.reject(1), model="n"), say.arrived(2, 7.0, say.reject(2))]
    (cost,) = fault_costs(fold(lines), SLO)

    assert (cost.exposed, cost.missed) == (1, 1)


def test_accelerators_are_those_of_the_plans_layouts(say):
    plan = {
        "services": [
            {"model": "m", "pools": [{"name": "p", "on": "x", "layout": {"tp": 4, "dp": 2}}]}
        ]
    }
    (cost,) = fault_costs(fold(broken_run(say, plan=plan)), SLO)

    assert cost.accelerators == 8
    assert fault_costs(fold(broken_run(say)), SLO)[0].accelerators is None


def test_text_states_the_rule_and_the_object_form_is_json(say):
    costs = fault_costs(fold(broken_run(say)), SLO)
    text = faults_text(costs)

    assert max(map(len, text.splitlines())) <= 80
    assert "less the share that did in as much time before" in text
    assert "5 of 9 exposed missed, 0.0 % before" in text
    assert json.loads(json.dumps(faults_json(costs)))[0]["lost_requests"] == 5.0
    assert faults_text(()) == "no fault is in this record"
    assert fault_costs(fold([say.header(), say.up()]), SLO) == ()
