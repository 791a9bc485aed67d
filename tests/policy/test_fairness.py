"""Tenants share a node by tokens and weights; within a tenant it stays first come first served."""

import pytest

from polypod.policy.fairness import MOST_TENANTS, Shares, cost_tokens


def busy_node(new_node, **limits):
    """One place, taken by request 1 of nobody."""
    node = new_node(turns="tenants", **limits)
    node.up("a", max_sequences=1)
    node.arrive(1, tenant="nobody")
    return node


def served(node, requests):
    """Finish what runs, over and over: the order in which those who wait get the place."""
    order, running = [], 1
    for _ in range(requests):
        node.finish(running)
        running = node.last[0].request
        order.append(running)
    return order


def test_a_flood_does_not_hold_up_another_tenant(new_node):
    node = busy_node(new_node)
    for request in range(2, 8):
        node.arrive(request, tenant="loud")
    node.arrive(8, tenant="quiet")

    assert served(node, 3) == [2, 8, 3]


def test_first_come_first_served_is_what_others_get(new_node):
    node = new_node()
    node.up("a", max_sequences=1)
    node.arrive(1)
    for request in range(2, 5):
        node.arrive(request, tenant="loud")
    node.arrive(5, tenant="quiet")

    assert served(node, 4) == [2, 3, 4, 5]


def test_priority_goes_before_fairness(new_node):
    node = busy_node(new_node)
    node.arrive(2, tenant="quiet")
    node.arrive(3, tenant="loud", priority=1)
    node.arrive(4, tenant="loud", priority=1)

    assert served(node, 3) == [3, 4, 2]


def test_a_tenant_of_twice_the_weight_gets_twice_as_much(new_node):
    node = busy_node(new_node, tenant_weights={"heavy": 2.0})
    for request in range(2, 14):
        node.arrive(request, tenant="heavy" if request % 2 else "light")
    order = served(node, 9)

    assert sum(request % 2 for request in order) == 6


def test_long_requests_count_for_more(new_node):
    node = busy_node(new_node)
    for request in range(2, 6):
        node.arrive(request, tenant="long", input_tokens=1000)
    for request in range(6, 12):
        node.arrive(request, tenant="short", input_tokens=100)
    order = served(node, 6)

    assert sum(request < 6 for request in order) == 1


def test_an_answer_longer_than_expected_is_charged_when_it_has_ended(new_node):
    node = busy_node(new_node, mean_output_tokens=10.0)
    node.arrive(2, tenant="x", max_output_tokens=None)
    node.arrive(3, tenant="y", max_output_tokens=None)
    node.finish(1)
    node.finish(2, output_tokens=2000)
    node.arrive(4, tenant="x", max_output_tokens=None)
    node.arrive(5, tenant="y", max_output_tokens=None)
    node.finish(3, output_tokens=10)

    assert node.where(5) == "a"
    assert 4 not in node.dispatches


def test_what_never_ran_costs_nothing(new_node):
    node = busy_node(new_node)
    node.arrive(2, tenant="x", input_tokens=4000, max_output_tokens=50)
    node.gone(2)
    node.arrive(3, tenant="x")
    node.arrive(4, tenant="y")

    assert served(node, 2) == [3, 4]


def test_one_that_was_away_gets_no_credit_for_it():
    shares = Shares({})
    for _ in range(5):
        shares.placed(shares.charge("here", 100.0))

    assert shares.charge("back", 100.0) == shares.charge("new", 100.0) == 400.0


def test_a_tenants_own_requests_never_overtake_each_other():
    shares = Shares({})
    first = shares.charge("x", 1000.0)
    second = shares.charge("x", 1000.0)
    shares.correct("x", -2000.0)

    assert first <= second <= shares.charge("x", 10.0)


def test_tenants_that_are_long_gone_are_forgotten():
    shares = Shares({})
    for number in range(MOST_TENANTS + 50):
        shares.placed(shares.charge(f"tenant {number}", 1.0 + number))

    assert len(shares._tags) <= MOST_TENANTS


def test_a_token_of_the_answer_counts_for_two_of_the_prompt():
    assert cost_tokens(10, 5.0) == pytest.approx(20.0)
