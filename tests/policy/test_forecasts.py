"""What was predicted of a replica and what came stand side by side."""

import pytest


def test_the_first_token_and_the_end_are_shown_as_predicted_and_as_they_came(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    dispatch = node.dispatches[1]
    node.at = 0.5
    node.first(1)
    node.at = 2.0
    node.finish(1, output_tokens=50)
    seen = node.policy.foresight()["a"]

    assert seen["predicted_first_token_s"] == pytest.approx(dispatch.predicted_first_token_s)
    assert seen["measured_first_token_s"] == pytest.approx(0.5)
    expected_s = dispatch.predicted_first_token_s + 49 * dispatch.predicted_token_s
    assert seen["predicted_finish_s"] == pytest.approx(expected_s)
    assert seen["measured_finish_s"] == pytest.approx(2.0)
    assert seen["decode_correction_ratio"] == node.policy.corrections()["a", "decode"]


def test_they_are_means_of_late(new_node):
    node = new_node()
    node.up("a")
    for request, took_s in ((1, 1.0), (2, 3.0)):
        node.arrive(request)
        node.at += took_s
        node.first(request)
        node.finish(request)

    assert node.policy.foresight()["a"]["measured_first_token_s"] == pytest.approx(2.0)


def test_an_answer_in_one_piece_says_nothing_of_its_first_token(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1, is_streamed=False)
    node.at = 1.0
    node.finish(1)
    seen = node.policy.foresight()["a"]

    assert "measured_first_token_s" not in seen
    assert seen["measured_finish_s"] == pytest.approx(1.0)


def test_of_an_answer_that_went_on_each_replica_has_its_own_part(new_node):
    node = new_node()
    for name in "ab":
        node.up(name, continues="text")
    node.arrive(1, continuation="text")
    first = node.where(1)
    node.at = 1.0
    node.first(1)
    node.fail(1, sent_tokens=40)
    second = node.dispatches[1]
    node.at = 1.5
    node.first(1)
    node.at = 2.0
    node.finish(1, output_tokens=50)
    seen = node.policy.foresight()

    assert "measured_finish_s" not in seen[first]
    assert seen[second.replica]["measured_finish_s"] == pytest.approx(1.0)
    expected_s = second.predicted_first_token_s + 9 * second.predicted_token_s
    assert seen[second.replica]["predicted_finish_s"] == pytest.approx(expected_s)


def test_one_that_is_down_is_not_shown(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    node.finish(1)
    node.down("a")

    assert node.policy.foresight() == {}
