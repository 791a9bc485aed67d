"""Who may come in, and who waits."""

import pytest

from polypod.cost.steptime import StepTime
from polypod.policy.events import StepObserved


def test_more_than_the_context_is_400_and_says_what_would_fit(new_node):
    node = new_node(context_tokens=1000)
    node.up("a")

    assert node.arrive(1, input_tokens=600, max_output_tokens=401) == [
        "Reject 400 context_length_exceeded"
    ]
    assert node.last[0].param == "max_tokens"
    assert node.last[0].message == (
        "m holds 1000 tokens; the prompt has 600 and max_tokens asks for 401; max_tokens can be 400 at most"
    )
    assert node.arrive(2, input_tokens=600, max_output_tokens=400) == ["Dispatch a"]


def test_a_prompt_that_fills_the_context_leaves_no_room_for_an_answer(new_node):
    node = new_node(context_tokens=1000)
    node.up("a")

    assert node.arrive(1, input_tokens=1000, max_output_tokens=None) == [
        "Reject 400 context_length_exceeded"
    ]
    assert node.last[0].param is None
    assert node.last[0].message.endswith("shorten the prompt by 1 or more")
    assert node.arrive(2, input_tokens=999, max_output_tokens=None) == ["Dispatch a"]


def test_a_guessed_prompt_length_is_left_to_the_engine(new_node):
    node = new_node(context_tokens=1000)
    node.up("a", context_tokens=1000)

    assert node.arrive(1, input_tokens=5000, input_is_exact=False, max_output_tokens=1000) == [
        "Dispatch a"
    ]
    assert node.arrive(2, input_tokens=10, input_is_exact=False, max_output_tokens=1001) == [
        "Reject 400 context_length_exceeded"
    ]
    assert node.last[0].message == (
        "m holds 1000 tokens; max_tokens asks for 1001; max_tokens can be 1000 at most"
    )


def test_a_guess_beyond_every_replica_goes_to_the_largest(new_node):
    node = new_node(context_tokens=8000)
    node.up("small", context_tokens=1000, step_time=STEP.scaled(0.1))
    node.up("large", context_tokens=2000)

    assert node.arrive(1, input_tokens=3000, input_is_exact=False) == ["Dispatch large"]
    node.down("large")
    assert node.where(1) == "small"
    assert node.arrive(2, input_tokens=3000) == ["WakeAt"]  # exact: no replica could


def test_a_replica_never_gets_more_than_it_can_hold(new_node):
    node = new_node()
    node.up("small", context_tokens=500)
    node.up("large", context_tokens=4096)
    for request in range(1, 9):
        assert node.arrive(request, input_tokens=451, max_output_tokens=50) == ["Dispatch large"]

    assert node.arrive(9, input_tokens=451, max_output_tokens=50) == ["WakeAt"]  # `large` is full
    assert node.arrive(10, input_tokens=450, max_output_tokens=50) == ["Dispatch small"]


def test_the_cache_of_a_data_parallel_rank_is_a_limit_too(new_node):
    node = new_node()
    wide = {"step_time": _ranks(4), "kv_capacity_tokens": 4 * 300, "max_sequences": 8}
    node.up("wide", **wide)
    node.up("one", kv_capacity_tokens=4096)

    pinned = {"only_replica": "wide", "max_output_tokens": 1}
    assert node.arrive(1, input_tokens=299, **pinned) == ["Dispatch wide"]
    assert node.arrive(2, input_tokens=300, **pinned) == ["WakeAt"]
    assert node.arrive(3, input_tokens=300, max_output_tokens=1) == ["Dispatch one"]


def test_each_data_parallel_rank_takes_as_many_sequences_as_the_others(new_node):
    node = new_node()
    node.up("wide", step_time=_ranks(3), max_sequences=8)
    told = [node.arrive(request) for request in range(1, 8)]

    assert told[:6] == [["Dispatch wide"]] * 6
    assert told[6] == ["WakeAt"]


def test_what_finds_no_slot_waits_its_turn(new_node):
    node = new_node()
    node.up("a", max_sequences=2)
    for request in (1, 2, 3, 4, 5):
        node.arrive(request)

    node.finish(2)
    node.finish(1)
    assert list(node.dispatches) == [1, 2, 3, 4]
    node.finish(3)
    assert list(node.dispatches) == [1, 2, 3, 4, 5]


def test_a_higher_priority_passes_and_keeps_the_order_within(new_node):
    node = new_node()
    node.up("a", max_sequences=1)
    node.arrive(1)
    for request, priority in ((2, 0), (3, 5), (4, 0), (5, 5)):
        node.arrive(request, priority=priority)
    for request in (1, 3, 5, 2, 4):
        node.finish(request)

    assert list(node.dispatches) == [1, 3, 5, 2, 4]


def test_a_retry_keeps_its_turn(new_node):
    node = new_node()
    node.up("a", max_sequences=1)
    node.arrive(1)
    node.arrive(2)
    node.down("a")
    node.up("b", max_sequences=1)

    assert node.where(1) == "b"
    assert 2 not in node.dispatches


def test_a_full_queue_is_429_and_the_wait_is_told_from_the_drain_rate(new_node):
    node = new_node(queue_requests=2)
    node.up("a", max_sequences=1)
    for request in (1, 2, 3):
        assert "Reject" not in " ".join(node.arrive(request))
    assert node.arrive(4) == ["Reject 429 queue_full"]
    assert node.last[0].retry_after_s == 1.0  # nothing has finished yet
    assert node.last[0].message == "2 requests for 'm' wait already, as many as may"

    for request in (1, 2):
        node.at += 5.0
        node.finish(request)
        node.arrive(10 + request)
    assert node.arrive(20) == ["Reject 429 queue_full"]
    assert node.last[0].retry_after_s == pytest.approx(10.0)  # two ahead, one in 5 s
    node.at += 15.0
    node.finish(3)
    node.arrive(13)
    node.arrive(21)
    assert node.last[0].retry_after_s == pytest.approx(2 * (5 + 0.1 * (15 - 5)))


def test_the_wait_that_is_told_is_never_longer_than_the_queue_allows(new_node):
    node = new_node(queue_requests=2, queue_wait_s=6.0)
    node.up("a", max_sequences=1)
    for request in (1, 2):
        node.arrive(request)
        node.at += 5.0
        node.finish(request)
    for request in (3, 4, 5):
        node.arrive(request)

    assert node.arrive(6) == ["Reject 429 queue_full"]
    assert node.last[0].retry_after_s == 6.0


def test_no_queue_at_all_still_lets_in_what_finds_a_slot(new_node):
    node = new_node(queue_requests=0)
    node.up("a", max_sequences=1)

    assert node.arrive(1) == ["Dispatch a"]
    assert node.arrive(2) == ["Reject 429 queue_full"]


def test_a_queue_of_the_long_does_not_keep_out_the_short(new_node):
    node = new_node(queue_requests=1)
    node.up("small", context_tokens=200, max_sequences=1)
    node.up("large", max_sequences=1)
    node.arrive(1, input_tokens=500)
    node.arrive(2, input_tokens=500)

    assert node.arrive(3) == ["Dispatch small"]


def test_who_waits_for_a_large_replica_is_passed_by_all_that_fit_a_small_one(new_node):
    node = new_node()
    node.up("small", context_tokens=200, max_sequences=3)
    node.up("large", max_sequences=1)
    node.arrive(0, input_tokens=500)
    for request in (1, 2, 3):
        node.arrive(request, input_tokens=400 + request)
    told = [node.arrive(request, input_tokens=100) for request in (4, 5, 6)]

    assert told == [["Dispatch small"]] * 3
    for request in (0, 1, 2, 3):
        assert node.where(request) == "large"
        node.finish(request)


def test_retries_may_exceed_the_bound_since_they_were_let_in_before(new_node):
    node = new_node(queue_requests=1)
    node.up("a", max_sequences=3)
    for request in (1, 2, 3):
        node.arrive(request)

    assert node.down("a") == ["Retry replica_down"] * 3 + ["WakeAt"]


def test_who_waits_too_long_is_503_while_replicas_are_up(new_node):
    node = new_node(queue_wait_s=10.0)
    node.up("a", max_sequences=1)
    node.arrive(1)
    node.at = 1.0
    assert node.arrive(2) == ["WakeAt"]
    assert node.last[0].at_s == 11.0
    node.at = 2.0
    assert node.arrive(3) == []  # the alarm is set already
    node.at = 11.0

    assert node.wake() == ["Reject 503 queue_timeout", "WakeAt"]
    assert (node.last[0].request, node.last[1].at_s) == (2, 12.0)


def test_a_retry_waits_anew_and_not_until_its_first_deadline(new_node):
    node = new_node(queue_wait_s=10.0)
    node.up("a", max_sequences=1)
    node.up("b", max_sequences=1)
    node.arrive(1, only_replica="a")
    node.arrive(2, only_replica="a")  # waits until 10
    node.at = 1.0
    node.arrive(3)  # could have waited until 11
    node.at = 2.0
    assert node.fail(3) == ["Retry lost"]  # waits until 12
    node.at = 11.0
    assert node.wake() == ["Reject 503 queue_timeout", "WakeAt"]
    assert (node.last[0].request, node.last[1].at_s) == (2, 12.0)


def test_an_alarm_that_rings_early_is_set_again(new_node):
    node = new_node(queue_wait_s=10.0)
    node.up("a", max_sequences=1)
    node.arrive(1)
    node.arrive(2)
    node.at = 10.0 - 1e-4

    assert node.wake() == ["WakeAt"]
    assert node.last[0].at_s == 10.0


def test_a_deadline_is_kept_without_any_alarm(new_node):
    node = new_node(queue_wait_s=10.0)
    node.up("a", max_sequences=1)
    node.arrive(1)
    node.arrive(2)
    node.at = 10.0

    assert node.first(1) == ["Reject 503 queue_timeout"]


def test_alarms_do_not_multiply(new_node):
    node = new_node(queue_wait_s=10.0)
    node.up("a", max_sequences=1)
    node.arrive(0)
    alarms = []
    for request in range(1, 40):
        node.at = request / 2
        node.arrive(request)
        alarms += [action.at_s for action in node.last if hasattr(action, "at_s")]
        while alarms and alarms[0] <= node.at:
            alarms.pop(0)
            node.wake()
            alarms += [action.at_s for action in node.last if hasattr(action, "at_s")]
        assert len(alarms) <= 1


STEP = StepTime(tokens=(0, 1000), seconds=(0.01, 0.11), kv_token_s=0.0, pair_s=0.0)


def _ranks(data_ranks):
    return StepTime(
        tokens=(0, 1000), seconds=(0.01, 0.11), kv_token_s=0.0, pair_s=0.0, data_ranks=data_ranks
    )


# ---- turned away before a wait for nothing


def slow_node(new_node, **limits):
    """One place; the one request that has run kept it for 20 s."""
    node = new_node(admission="slo", queue_wait_s=50.0, **limits)
    node.up("a", max_sequences=1)
    node.arrive(1)
    node.at = 20.0
    node.finish(1)
    node.arrive(2)
    return node


def test_one_that_would_wait_past_its_deadline_is_turned_away_at_once(new_node):
    node = slow_node(new_node)

    assert "Reject" not in " ".join(node.arrive(3) + node.arrive(4))
    assert node.arrive(5) == ["Reject 429 too_late"]
    assert node.last[0].retry_after_s == pytest.approx(10.0)  # 3 times 20 s, and 50 s may pass
    assert "expected in 60.0 s, and may take 50 s; ask again in 10 s" in node.last[0].message


def test_it_may_come_if_its_turn_is_earlier(new_node):
    node = slow_node(new_node)
    node.arrive(3)
    node.arrive(4)

    assert node.arrive(5, priority=1) == []


def test_nothing_is_turned_away_while_no_stay_is_known(new_node):
    node = new_node(admission="slo")
    node.up("a", max_sequences=1)

    assert "Reject" not in " ".join(
        word for request in range(1, 40) for word in node.arrive(request)
    )


def test_a_first_token_past_what_the_model_promises_is_turned_away_too(new_node):
    """A prompt of 1000 tokens takes 110 ms; three are ahead."""
    node = new_node(admission="slo", first_token_limit_s=0.4)
    node.up("a")
    for request in (1, 2, 3):
        assert node.arrive(request, input_tokens=1000) == ["Dispatch a"]

    assert node.arrive(4, input_tokens=1000) == ["Reject 429 too_late"]
    assert node.arrive(5, input_tokens=10) == ["Dispatch a"]


def test_an_idle_replica_is_tried_again_however_slow_it_was_last(new_node):
    """Else what was measured in a bad hour would stand for good: nobody is let in who could measure that it is over."""
    node = new_node(admission="slo", first_token_limit_s=0.4)
    node.up("a")
    slow = {
        "prompt_tokens": 1000,
        "sequences": 0,
        "kv_tokens": 0,
        "step_s": 1.1,
    }  # ten times as long as the model says
    node.tell(StepObserved(at_s=0.0, replica="a", epoch=1, **slow))
    assert node.arrive(1, input_tokens=1000) == ["Dispatch a"]
    assert node.arrive(2, input_tokens=1000) == ["Reject 429 too_late"]  # not idle any more
    assert node.arrive(3, input_tokens=3900) == ["Reject 429 too_late"]
    node.finish(1)

    assert node.arrive(4, input_tokens=3900) == ["Reject 429 too_late"]  # says the model itself


def test_without_the_rule_it_waits(new_node):
    node = new_node(first_token_limit_s=0.1)
    node.up("a")

    assert node.arrive(1, input_tokens=3000) == ["Dispatch a"]
