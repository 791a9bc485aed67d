"""What the node decides, as sentences."""

import pytest

from polypod.errors import InputError
from polypod.policy.events import KvArrived, KvLost, PrefillFinished


def test_a_request_goes_to_the_replica_that_is_up(new_node):
    node = new_node()
    node.up("a")

    assert node.arrive(1) == ["Dispatch a"]
    assert node.last[0].attempt == 1
    assert node.first(1) == []
    assert node.finish(1) == []
    assert node.validator.ended == 1


def test_the_prediction_is_the_step_time_in_seconds(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1, input_tokens=400)

    assert node.last[0].predicted_first_token_s == pytest.approx(0.050)  # 10 ms + 400 x 0.1 ms
    assert node.last[0].predicted_token_s == pytest.approx(0.0101)  # one sequence


def test_a_second_prompt_waits_for_the_first_and_decodes_beside_it(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1, input_tokens=400)
    node.arrive(2, input_tokens=400)

    assert node.last[0].predicted_first_token_s == pytest.approx(0.100)
    decode_s, prompt_share = 0.0102, 0.050 / 10.0  # two sequences; 50 ms of prompts in memory
    assert node.last[0].predicted_token_s == pytest.approx(decode_s / (1 - prompt_share))


def test_an_unknown_model_is_404_and_names_the_known_ones(new_node):
    node = new_node(models=("m", "n"))
    node.up("a")

    assert node.arrive(1, model="x") == ["Reject 404 model_not_found"]
    assert node.last[0].param == "model"
    assert node.last[0].message == "no model 'x' here; there are: m, n"


def test_a_known_model_without_a_replica_is_503_with_retry_after(new_node):
    node = new_node(models=("m", "n"), breaker_open_s=7.0)
    node.up("a", model="n")

    assert node.arrive(1, model="m") == ["Reject 503 no_replica"]
    assert node.last[0].retry_after_s == 7.0


def test_each_model_goes_to_its_own_replicas(new_node):
    node = new_node(models=("m", "n"))
    node.up("a", model="m")
    node.up("b", model="n")

    assert node.arrive(1, model="n") == ["Dispatch b"]
    assert node.arrive(2, model="m") == ["Dispatch a"]


def test_a_4xx_answer_is_handed_on_and_never_counts_against_the_replica(new_node):
    node = new_node(breaker_failures=1)
    node.up("a")
    node.arrive(1)

    assert node.fail(1, "client", status=422) == ["Reject 422 engine_refused"]
    assert node.last[0].from_engine
    assert node.arrive(2) == ["Dispatch a"]
    assert node.fail(2, "client") == [
        "Reject 400 engine_refused"
    ]  # no status is still the client's
    assert node.arrive(3) == ["Dispatch a"]


@pytest.mark.parametrize("kind", ["refused", "lost", "timeout", "engine"])
def test_a_failure_before_the_first_token_is_tried_elsewhere(new_node, kind):
    node = new_node()
    node.up("a")
    node.up("b")
    node.arrive(1)
    other = {"a": "b", "b": "a"}[node.where(1)]

    assert node.fail(1, kind) == [f"Retry {kind}", f"Dispatch {other}"]
    assert node.last[0].attempt == 1
    assert node.last[1].attempt == 2


def test_a_retry_waits_for_another_replica_rather_than_go_back(new_node):
    node = new_node()
    node.up("a", max_sequences=1)
    node.arrive(1)
    node.up("b", max_sequences=1)
    node.arrive(2)

    assert node.where(1) == "a"
    assert node.fail(1) == ["Retry lost", "WakeAt"]
    assert node.finish(2) == ["Dispatch b"]


def test_a_retry_goes_back_when_there_is_no_other(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)

    assert node.fail(1) == ["Retry lost", "Dispatch a"]


def test_a_retry_that_failed_everywhere_goes_where_it_did_not_fail_last(new_node):
    node = new_node(max_attempts=4)
    for replica in ("a", "b"):
        node.up(replica)
    node.arrive(1)
    first = node.where(1)
    node.fail(1)
    node.fail(1)

    assert node.where(1) == first


def test_after_the_first_token_a_failure_is_told_and_not_retried(new_node):
    node = new_node()
    node.up("a")
    node.up("b")
    node.arrive(1)
    node.first(1)

    assert node.fail(1, "lost", detail="reset by peer") == ["Reject 502 replica_lost"]
    replica = node.where(1)
    assert node.last[0].message == f"the answer broke off: lost at {replica}: reset by peer"


def test_a_dead_replica_moves_what_had_no_token_and_ends_what_streamed(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    node.arrive(2)
    node.first(1)
    node.up("b")

    assert node.down("a") == ["Reject 502 replica_lost", "Retry replica_down", "Dispatch b"]


def test_with_no_other_replica_a_moved_request_waits_for_the_next(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)

    assert node.down("a") == ["Retry replica_down", "WakeAt"]
    assert node.arrive(2) == ["Reject 503 no_replica"]  # a newcomer is told at once
    assert node.up("a", epoch=2) == ["Dispatch a"]
    assert node.dispatches[1].epoch == 2


def test_nobody_comes_back_and_the_wait_ends_in_503(new_node):
    node = new_node(queue_wait_s=30.0)
    node.up("a")
    node.arrive(1)
    node.at = 5.0
    node.down("a")
    assert node.last[1].at_s == 35.0
    node.at = 35.0

    assert node.wake() == ["Reject 503 no_replica"]
    assert node.last[0].retry_after_s >= 1.0


def test_a_later_start_of_a_replica_means_that_the_earlier_one_died(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)

    assert node.up("a", epoch=2) == ["Retry replica_down", "Dispatch a"]
    assert node.down("a", epoch=1) == []
    assert node.finish(1) == []


def test_an_earlier_start_heard_late_is_stale(new_node):
    node = new_node()
    node.up("a", epoch=3)

    assert node.up("a", epoch=2) == []
    assert node.arrive(1) == ["Dispatch a"]
    assert node.dispatches[1].epoch == 3


def test_words_about_an_older_attempt_change_nothing(new_node):
    node = new_node()
    node.up("a")
    node.up("b")
    node.arrive(1)
    old = node.dispatches[1]
    node.fail(1)

    for tell in (node.first, node.finish, node.fail, node.busy):
        new, node.dispatches[1] = node.dispatches[1], old
        assert tell(1) == []
        node.dispatches[1] = new
    assert node.first(1) == []
    assert node.fail(1) == [
        "Reject 502 replica_lost"
    ]  # so the first token of the new attempt counted


def test_words_said_twice_change_nothing(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    assert node.arrive(1) == []
    node.first(1)
    assert node.first(1) == []
    node.finish(1)
    assert node.finish(1) == []
    assert node.fail(1) == []
    assert node.gone(1) == []
    node.down("a")
    assert node.down("a") == []


def test_a_client_that_leaves_frees_the_replica(new_node):
    node = new_node()
    node.up("a", max_sequences=1)
    node.arrive(1)
    node.arrive(2)

    assert node.gone(1) == ["Cancel a", "Dispatch a"]
    assert (node.last[0].request, node.last[1].request) == (1, 2)


def test_a_client_that_leaves_the_queue_is_forgotten(new_node):
    node = new_node()
    node.up("a", max_sequences=1)
    node.arrive(1)
    node.arrive(2)

    assert node.gone(2) == []
    assert node.finish(1) == []
    assert node.gone(77) == []


def test_a_pin_is_kept_even_when_another_would_be_faster(new_node):
    node = new_node()
    node.up("a")
    node.up("b")
    for request in range(1, 5):
        assert node.arrive(request, only_replica="b") == ["Dispatch b"]
    assert node.fail(4) == ["Retry lost", "Dispatch b"]


def test_a_pin_to_an_unknown_replica_is_404(new_node):
    node = new_node(models=("m", "n"))
    node.up("a")
    node.up("b", model="n")

    assert node.arrive(1, only_replica="z") == ["Reject 404 replica_not_found"]
    assert node.arrive(2, only_replica="b") == ["Reject 404 replica_not_found"]  # of another model


def test_a_pin_to_a_replica_that_is_down_is_503(new_node):
    node = new_node()
    node.up("a")
    node.up("b")
    node.down("b")

    assert node.arrive(1, only_replica="b") == ["Reject 503 no_replica"]


def test_a_pinned_request_that_waits_lets_others_pass(new_node):
    node = new_node()
    node.up("a", max_sequences=1)
    node.up("b", max_sequences=1)
    node.arrive(1, only_replica="a")

    assert node.arrive(2, only_replica="a") == ["WakeAt"]
    assert node.arrive(3) == ["Dispatch b"]
    assert node.finish(1) == ["Dispatch a"]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_half_a_pair_serves_nobody(new_node, role):
    node = new_node()
    node.up("a", role=role)

    assert node.arrive(1) == ["Reject 503 no_replica"]
    assert node.arrive(2, only_replica="a") == ["Reject 503 no_replica"]


def test_more_pools_than_a_node_tells_apart_are_refused_and_change_nothing(new_node):
    node = new_node()
    for n in range(62):
        node.up(f"d{n}", role="decode", pool=f"pool{n}")

    with pytest.raises(InputError, match=r"'p' of pool 'p' makes 63 pools .* tells 62 apart"):
        node.up("p", role="prefill", kv_pools=("another",))
    assert node.arrive(1) == ["Reject 503 no_replica"]


def test_a_replica_of_a_model_that_is_no_service_is_refused(new_node):
    node = new_node(models=("m", "n"))

    with pytest.raises(
        InputError, match=r"'a' serves 'x', which is none of this node's models \(m, n\)"
    ):
        node.up("a", model="x")


def test_words_about_moved_caches_were_not_asked_for(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    about = {"at_s": 0.0, "request": 1, "attempt": 1, "replica": "a", "epoch": 1}

    assert node.tell(PrefillFinished(**about, kv_tokens=100)) == []
    assert node.tell(KvArrived(**about)) == []
    assert node.tell(KvLost(**about)) == []
    assert node.finish(1) == []


def test_a_busy_answer_after_the_first_token_ends_the_request(new_node):
    node = new_node()
    node.up("a")
    node.up("b")
    node.arrive(1)
    node.first(1)

    assert node.busy(1) == ["Reject 502 replica_lost"]


def test_a_word_dated_back_does_not_turn_back_the_clock(new_node):
    node = new_node(queue_wait_s=60.0)
    node.up("a", max_sequences=1)
    node.at = 10.0
    node.arrive(1)
    node.at = 4.0

    assert node.arrive(2) == ["WakeAt"]
    assert node.last[0].at_s == 70.0


def test_nothing_is_kept_of_requests_that_have_ended(new_node):
    node = new_node(queue_requests=2)
    node.up("a", max_sequences=2)
    for request in range(1, 200):
        node.at = float(request)
        node.arrive(request)
        if node.dispatches.get(request):
            node.first(request)
        if request % 3 == 0:
            node.gone(request)
        elif request in node.dispatches:
            node.finish(request)
    policy = node.policy

    assert not policy._live
    assert not policy._health._charged
    assert not policy._health.replicas["a"].requests
    assert len(policy._placement.services["m"].queue._deadlines) <= 2
    assert len(policy._wakes_s) <= 1
