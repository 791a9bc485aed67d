"""A stream that broke off goes on elsewhere, where its request allows it and a replica can; otherwise it ends in words."""

import pytest

from polypod.policy import ServiceSettings
from polypod.policy.actions import Dispatch, Reject
from polypod.policy.admission import Service
from polypod.policy.events import ReplicaDown, RequestArrived
from polypod.policy.lifecycle import LifecycleError, Validator

CAN = {"continues": "exact", "build": "x"}


def streaming(new_node, *replicas, continuation="text", **limits):
    """Replicas by name and what they can; request 1 streams from the first of them."""
    node = new_node(**limits)
    node.up(replicas[0][0], **replicas[0][1])
    node.arrive(1, continuation=continuation)
    for name, can in replicas[1:]:
        node.up(name, **can)
    node.first(1)
    return node


def test_a_stream_whose_connection_breaks_goes_on_at_another_replica_after_what_was_sent(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN))

    assert node.fail(1, sent_tokens=17) == ["Retry lost", "Dispatch b"]
    dispatch = node.dispatches[1]
    assert (dispatch.attempt, dispatch.continues_after_tokens) == (2, 17)
    assert node.first(1) == []
    assert node.finish(1, output_tokens=50) == []


def test_so_does_one_whose_replica_dies(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN))
    told = node.tell(ReplicaDown(at_s=0, replica="a", epoch=1, reason="x", sent_tokens=((1, 9),)))

    assert told == ["Retry replica_down", "Dispatch b"]
    assert node.dispatches[1].continues_after_tokens == 9


def test_and_one_whose_engine_says_in_the_middle_that_it_is_full(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN))

    assert node.busy(1) == ["Retry busy", "Dispatch b"]


def test_without_its_requests_word_a_stream_ends_where_it_breaks_off(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN), continuation="off")

    assert node.fail(1, sent_tokens=17) == ["Reject 502 replica_lost"]


def test_what_is_the_requests_own_fault_is_not_tried_elsewhere(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN))

    assert node.fail(1, "client") == ["Reject 502 replica_lost"]


def test_a_continuation_that_is_refused_loses_the_answer_and_blames_no_request(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN))
    node.fail(1, sent_tokens=17)

    assert node.fail(1, "client", status=400) == ["Reject 502 replica_lost"]


@pytest.mark.parametrize(
    ("continuation", "other", "goes_on"),
    [
        ("text", {"continues": "text", "build": "y"}, True),
        ("text", {"continues": "exact", "build": "y"}, True),
        ("text", {}, False),
        ("exact", {"continues": "exact", "build": "x"}, True),
        ("exact", {"continues": "exact", "build": "y"}, False),
        ("exact", {"continues": "text", "build": "x"}, False),
    ],
)
def test_it_goes_only_where_a_replica_can_go_on_with_it(new_node, continuation, other, goes_on):
    node = streaming(new_node, ("a", CAN), ("b", other), continuation=continuation)
    told = node.down("a")

    assert told[0] == "Retry replica_down"
    assert ("Dispatch b" in told) == goes_on


def test_where_only_its_own_replica_could_it_waits_for_the_next_start_of_it(new_node):
    node = streaming(new_node, ("a", CAN), ("b", {}))
    assert node.down("a")[0] == "Retry replica_down"

    assert node.up("a", epoch=2, **CAN) == ["Dispatch a"]


def test_where_nobody_can_it_ends_at_once_and_says_so(new_node):
    node = streaming(new_node, ("a", {}), ("b", {}))

    assert node.down("a") == ["Reject 502 replica_lost"]
    assert "no replica can go on with it (text)" in node.last[0].message


def test_a_second_and_a_third_death_are_gone_on_after_too_and_no_fourth(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN), ("c", CAN), ("d", CAN), ("e", CAN))
    for death in range(3):
        assert node.down(node.where(1))[0] == "Retry replica_down"
        assert node.dispatches[1].attempt == death + 2
        node.first(1)

    assert node.down(node.where(1)) == ["Reject 502 replica_lost"]
    assert "it went on elsewhere 3 times, as often as may" in node.last[0].message


def test_a_prompt_that_kills_its_continuations_is_quarantined(new_node):
    """Before its own first token every death counts, whatever went before."""
    node = streaming(new_node, ("a", CAN), ("b", CAN), ("c", CAN), ("d", CAN))
    node.down(node.where(1))
    node.down(node.where(1))

    assert node.down(node.where(1)) == ["Reject 500 quarantined"]


def test_a_broken_connection_and_the_death_behind_it_are_one(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN), ("c", CAN), quarantine_deaths=1)
    node.fail(1, sent_tokens=3)

    assert node.down("a") == []
    assert node.first(1) == []


def test_an_answer_whose_request_is_suspected_goes_on_nowhere(new_node):
    """Replica a had the prompt and died of whatever it was; what streams from b now ends there, if that dies too."""
    node = new_node(quarantine_deaths=1)
    node.up("a", **CAN)
    node.arrive(1, continuation="text")
    for name in "bc":
        node.up(name, **CAN)
    assert node.fail(1) == ["Retry lost", "Dispatch b"]
    node.first(1)
    assert node.down("a") == []

    assert node.fail(1, sent_tokens=3) == ["Reject 502 replica_lost"]
    assert "goes on nowhere, for 1 replicas died that had it" in node.last[0].message


def test_continuations_are_within_the_retry_budget(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN), retry_budget_floor=0)

    assert node.fail(1, sent_tokens=3) == ["Reject 503 retry_budget"]


def test_a_continuation_takes_up_its_old_turn(new_node):
    node = streaming(new_node, ("a", CAN | {"max_sequences": 1}))
    node.arrive(2)
    node.down("a")

    assert node.up("b", max_sequences=1, **CAN) == ["Dispatch b"]
    assert node.where(1) == "b"


def test_what_was_sent_is_computed_as_prompt_and_the_rest_is_what_is_left(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN))
    before_s = node.dispatches[1].predicted_first_token_s
    node.fail(1, sent_tokens=40)

    # 40 tokens more at 0.1 ms each
    assert node.dispatches[1].predicted_first_token_s == pytest.approx(before_s + 0.004)


def test_what_is_left_of_the_answer_is_expected_to_be_that_much_shorter():
    service = Service(ServiceSettings(model="m", context_tokens=4096, mean_output_tokens=100.0))
    arrived = RequestArrived(at_s=0, request=1, model="m", input_tokens=50)
    asks = [service.ask(arrived, 4096, sent_tokens=sent) for sent in (0, 30, 500)]

    assert [ask.output_tokens for ask in asks] == [100.0, 70.0, 1.0]
    assert [ask.input_tokens for ask in asks] == [50, 80, 550]
    assert [ask.need_tokens for ask in asks] == [51, 81, 551]


def test_a_context_that_the_sent_tokens_fill_is_no_place_to_go_on(new_node):
    node = streaming(new_node, ("a", CAN))
    node.up("b", context_tokens=120, **CAN)
    node.arrive(2, max_output_tokens=None, continuation="text")
    node.first(2)

    assert "Dispatch b" not in node.fail(2, sent_tokens=20)


def test_the_length_of_the_answer_is_learnt_whole_and_the_time_per_token_from_ones_own(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN))
    node.fail(1, sent_tokens=40)
    node.at = 1.0
    node.first(1)
    predicted_s = node.dispatches[1].predicted_token_s
    node.at += 9 * predicted_s
    node.finish(1, output_tokens=50)

    assert node.policy.corrections()["b", "decode"] == pytest.approx(1.0)


def test_a_log_in_which_a_stream_goes_on_unasked_is_found_out(new_node):
    node = streaming(new_node, ("a", CAN), ("b", CAN))
    node.fail(1, sent_tokens=17)
    validator = Validator()
    *before, (event, actions) = node.log
    for heard, told in before:
        is_arrival = isinstance(heard, RequestArrived)
        silent = RequestArrived(at_s=0, request=1, model="m", input_tokens=100)
        validator.feed(silent if is_arrival else heard, told)

    with pytest.raises(LifecycleError, match="does not allow it"):
        validator.feed(event, actions)


def test_so_is_one_that_continues_what_never_broke(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    validator = Validator()
    event, actions = node.log[1]
    validator.feed(*node.log[0])
    wrong = [
        Dispatch(request=1, attempt=1, replica="a", epoch=1, predicted_first_token_s=1, predicted_token_s=1, continues_after_tokens=3)
        if isinstance(one, Dispatch) else one
        for one in actions
    ]  # fmt: skip

    with pytest.raises(LifecycleError, match="has not broken off"):
        validator.feed(event, wrong)


def test_a_late_continuation_ends_in_words(new_node):
    node = streaming(new_node, ("a", CAN), queue_wait_s=5.0)
    node.down("a")
    node.at = 5.0

    assert node.wake() == ["Reject 503 no_replica"]
    assert isinstance(node.last[0], Reject)
