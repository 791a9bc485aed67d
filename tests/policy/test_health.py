"""Breakers, busy pauses, the retry budget and quarantine."""

from polypod.policy.events import ReplicaDown


def test_failures_in_a_row_take_a_replica_out(new_node):
    node = new_node(breaker_failures=2, breaker_open_s=5.0, max_attempts=9)
    node.up("a")
    node.up("b", max_sequences=64)
    for request in (1, 2):
        node.arrive(request, only_replica="a")
    node.fail(1)
    assert node.arrive(3, only_replica="a") == ["Dispatch a"]  # one is not enough
    node.fail(2)

    for request in range(10, 20):
        assert node.arrive(request) == ["Dispatch b"]


def test_an_answer_between_two_failures_starts_the_count_again(new_node):
    node = new_node(breaker_failures=2, max_attempts=9)
    node.up("a")
    for request in (1, 2, 3):
        node.arrive(request)
    node.fail(1)
    node.first(2)
    node.fail(3)

    assert node.arrive(4) == ["Dispatch a"]


def test_a_broken_replica_is_tried_with_one_request_until_one_succeeds(new_node):
    node = new_node(breaker_failures=1, breaker_open_s=5.0, max_attempts=9)
    node.up("a")
    node.arrive(1)
    assert node.fail(1) == ["Retry lost", "WakeAt"]
    assert node.last[1].at_s == 5.0
    node.arrive(2)
    node.at = 5.0
    assert node.wake() == ["Dispatch a", "WakeAt"]  # one at a time
    assert node.last[1].at_s == 60.0  # how long the other may wait
    node.at = 6.0
    assert node.fail(1) == ["Retry lost", "WakeAt"]
    assert node.last[1].at_s == 11.0  # it failed again, and rests again
    node.at = 11.0
    assert node.wake() == ["Dispatch a"]
    assert node.first(1) == ["Dispatch a"]  # and then as many as before


def test_waiting_for_a_broken_replica_ends_in_503(new_node):
    node = new_node(breaker_failures=1, breaker_open_s=100.0, queue_wait_s=10.0)
    node.up("a")
    node.arrive(1)
    node.fail(1)
    assert node.arrive(2) == []  # it is up, so the request waits
    node.at = 10.0

    assert node.wake() == ["Reject 503 queue_timeout", "Reject 503 queue_timeout"]


def test_a_busy_replica_is_paused_and_the_request_goes_elsewhere(new_node):
    node = new_node(busy_pause_s=2.0)
    node.up("a")
    node.arrive(1)
    node.up("b")

    assert node.busy(1) == ["Retry busy", "Dispatch b"]
    node.at = 1.99
    assert node.arrive(2) == ["Dispatch b"]
    node.at = 2.0
    assert node.arrive(3) == ["Dispatch a"]


def test_a_busy_replica_says_itself_for_how_long(new_node):
    node = new_node(busy_pause_s=2.0)
    node.up("a")
    node.arrive(1)

    assert node.busy(1, retry_after_s=0.5) == ["Retry busy", "WakeAt"]
    assert node.last[1].at_s == 0.5
    node.at = 0.5
    assert node.wake() == ["Dispatch a"]


def test_busy_answers_count_neither_against_the_replica_nor_against_the_request(new_node):
    node = new_node(breaker_failures=1, max_attempts=2, retry_budget_floor=0, busy_pause_s=1.0)
    node.up("a")
    node.arrive(1)
    for second in range(1, 6):
        assert node.busy(1)[0] == "Retry busy"
        node.at = float(second)
        assert node.wake() == ["Dispatch a"]
    node.arrive(2)
    assert node.where(2) == "a"


def test_busy_answers_do_not_prolong_the_wait(new_node):
    node = new_node(queue_wait_s=3.0, busy_pause_s=1.0)
    node.up("a")
    node.arrive(1)
    for second in (1.0, 2.0):
        node.busy(1)
        node.at = second
        node.wake()
    node.busy(1, retry_after_s=9.0)
    node.at = 3.0

    assert node.wake() == ["Reject 503 queue_timeout"]


def test_a_request_that_always_meets_busy_replicas_ends_too(new_node):
    node = new_node(queue_wait_s=3.0, busy_pause_s=0.5)
    node.up("a")
    node.up("b")
    node.arrive(1)
    told = []
    while 1 in node.validator.open:
        told += node.busy(1, retry_after_s=0.0)
        node.at += 0.25
        told += node.wake()

    assert told[-1] == "Reject 503 queue_timeout"
    assert node.at == 3.25
    assert told.count("Retry busy") == 12  # never at once on the same replica


def test_a_short_pause_does_not_end_a_long_one(new_node):
    node = new_node()
    node.up("a")
    node.arrive(1)
    node.arrive(2)
    node.busy(1, retry_after_s=8.0)
    node.busy(2, retry_after_s=1.0)
    node.at = 1.0

    assert node.wake() == []
    node.at = 8.0
    assert node.wake() == ["Dispatch a", "Dispatch a"]


def test_nobody_waits_for_the_end_of_a_pause_of_the_dead(new_node):
    node = new_node(queue_wait_s=60.0)
    node.up("a")
    node.arrive(1)
    node.up("b", max_sequences=1)
    assert node.busy(1, retry_after_s=9.0) == ["Retry busy", "Dispatch b"]
    node.down("a")
    node.at = 1.0

    assert node.arrive(2) == ["WakeAt"]
    assert node.last[0].at_s == 61.0


def test_a_connection_that_nobody_takes_is_no_attempt_and_no_reason_to_wait_longer(new_node):
    """A process that died takes no connection until it is known that it did: a request asked three of its siblings in vain and was lost."""
    node = new_node(max_attempts=2, queue_wait_s=10.0, breaker_failures=99, retry_budget_floor=9)
    for replica in "abcd":
        node.up(replica)
    node.arrive(1)
    for at_s in (1.0, 2.0, 3.0):
        node.at = at_s
        assert node.fail(1, "refused")[0] == "Retry refused"
    assert node.fail(1)[0] == "Retry lost"  # was sent: the first attempt
    node.at = 12.9  # ten seconds after that one
    assert node.fail(1, "refused")[0] == "Retry refused"
    node.at = 13.0
    assert node.fail(1, "refused") == ["Reject 503 queue_timeout"]


def test_after_so_many_attempts_a_request_ends_in_502(new_node):
    node = new_node(max_attempts=3)
    for replica in "abcd":
        node.up(replica)
    node.arrive(1)
    assert node.fail(1)[0] == "Retry lost"
    assert node.fail(1, "engine")[0] == "Retry engine"
    assert node.fail(1, "timeout") == ["Reject 502 attempts_exhausted"]
    assert node.last[0].message.startswith(
        "3 attempts failed, as many as may; the last: timeout at "
    )


def test_the_fleet_has_a_budget_of_retries(new_node):
    node = new_node(
        retry_budget_floor=2, retry_budget_fraction=0.0, breaker_failures=99, max_attempts=9
    )
    node.up("a")
    node.up("b")
    for request in (1, 2, 3):
        node.arrive(request)
    assert node.fail(1)[0] == "Retry lost"
    assert node.fail(2)[0] == "Retry lost"
    assert node.fail(1)[0] == "Retry lost"  # charged once a request
    assert node.fail(3) == ["Reject 503 retry_budget"]
    assert node.last[0].retry_after_s is not None

    node.finish(1)
    node.arrive(4)
    assert node.fail(4)[0] == "Retry lost"  # what has ended is free again


def test_the_budget_grows_with_what_is_alive(new_node):
    node = new_node(
        retry_budget_floor=0, retry_budget_fraction=0.2, breaker_failures=99, max_attempts=9
    )
    node.up("a", max_sequences=100)
    for request in range(10):
        node.arrive(request)

    assert [node.fail(request)[0] for request in range(3)] == [
        "Retry lost",
        "Retry lost",
        "Reject 503 retry_budget",
    ]


def test_what_a_broken_replica_drops_is_not_charged(new_node):
    node = new_node(retry_budget_floor=2, retry_budget_fraction=0.0, breaker_failures=3)
    node.up("a", max_sequences=100)
    for request in range(50):
        node.arrive(request)
    node.up("b", max_sequences=100)

    assert all(node.fail(request) == ["Retry lost", "Dispatch b"] for request in range(50))


def test_a_death_is_not_charged(new_node):
    node = new_node(retry_budget_floor=0, retry_budget_fraction=0.0)
    node.up("a", max_sequences=100)
    for request in range(50):
        node.arrive(request)
    node.up("b", max_sequences=100)

    assert node.down("a") == ["Retry replica_down"] * 50 + ["Dispatch b"] * 50


def test_a_request_in_flight_at_two_deaths_is_quarantined(new_node):
    node = new_node(quarantine_deaths=2, max_attempts=9)
    for replica in "abc":
        node.up(replica)
    node.arrive(1)
    assert node.down(node.where(1))[0] == "Retry replica_down"
    node.arrive(2, only_replica=node.where(1))

    assert node.down(node.where(1)) == ["Reject 500 quarantined", "Retry replica_down", "WakeAt"]
    assert node.last[0].request == 1
    assert node.last[0].message == (
        "2 replicas died with this request in flight; it is not tried again"
    )


def test_a_request_that_broke_off_just_before_a_death_is_held_to_have_been_there(new_node):
    node = new_node(quarantine_deaths=2, max_attempts=9)
    for replica in "abc":
        node.up(replica)
    node.arrive(1)
    first = node.where(1)
    node.fail(1, "lost")
    assert node.down(first) == []
    second = node.where(1)
    node.fail(1, "lost")

    assert node.down(second) == [f"Cancel {node.where(1)}", "Reject 500 quarantined"]


def test_replicas_that_go_down_together_die_one_death(new_node):
    def die(node, replica, *others):
        also = tuple((name, 1) for name in others)
        return node.tell(ReplicaDown(at_s=0, replica=replica, epoch=1, reason="x", also=also))

    node = new_node(quarantine_deaths=2, max_attempts=9)
    for replica in "abc":
        node.up(replica)
    node.arrive(1)
    first = node.where(1)
    node.fail(1, "lost")
    second = node.where(1)
    other = next(name for name in "abc" if name not in (first, second))

    assert die(node, first, second) == ["Retry replica_down", f"Dispatch {other}"]
    assert die(node, second) == []
    assert die(node, other)[0] == "Reject 500 quarantined"


def test_a_request_that_was_never_sent_caused_no_death(new_node):
    node = new_node(quarantine_deaths=1, max_attempts=9)
    node.up("a")
    node.arrive(1)
    node.up("b")
    node.fail(1, "refused")

    assert node.down("a") == []
    assert node.where(1) == "b"


def test_one_death_is_counted_once(new_node):
    node = new_node(quarantine_deaths=2, max_attempts=9)
    node.up("a")
    node.arrive(1)
    node.fail(1, "lost")  # and back to the only one there is

    assert node.down("a") == ["Retry replica_down", "WakeAt"]
    assert node.up("a", epoch=2) == ["Dispatch a"]
