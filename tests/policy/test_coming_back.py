"""While the only replica of a model is on its way back, newcomers wait for it, as those do who were there before."""

from polypod.policy.events import ReplicaDown, ReplicaRetiring


def down(node, replica: str = "a", epoch: int = 1, back_in_s: float | None = None) -> list[str]:
    return node.tell(
        ReplicaDown(at_s=node.at, replica=replica, epoch=epoch, reason="it ended", back_in_s=back_in_s)
    )  # fmt: skip


def test_a_newcomer_waits_for_one_that_is_expected_back_in_time(new_node) -> None:
    node = new_node(queue_wait_s=10.0)
    node.up("a")
    down(node, back_in_s=10.0)
    assert node.arrive(1) == ["WakeAt"]
    assert node.arrive(2, only_replica="a") == []
    assert node.up("a", epoch=2) == ["Dispatch a", "Dispatch a"]


def test_and_not_for_one_that_comes_too_late_nor_for_one_of_whom_nothing_is_known(new_node) -> None:
    node = new_node(queue_wait_s=10.0, breaker_open_s=3.0)
    node.up("a")
    down(node, back_in_s=10.5)
    assert node.arrive(1) == ["Reject 503 no_replica"]
    assert node.last[0].retry_after_s == 10.5
    node.at = 1.0
    assert node.arrive(2) == ["WakeAt"]
    down(node, epoch=2)  # the start failed, and nobody promises another
    assert node.arrive(3) == ["Reject 503 no_replica"]
    assert node.last[0].retry_after_s == 3.0


def test_one_that_is_overdue_is_expected_in_as_much_again(new_node) -> None:
    node = new_node(queue_wait_s=10.0)
    node.up("a")
    down(node, back_in_s=5.0)
    node.at = 15.0
    assert node.arrive(1) == ["WakeAt"]
    node.at = 15.5
    assert node.arrive(2) == ["Reject 503 no_replica"]


def test_a_start_that_failed_moves_the_time_and_an_older_word_does_not(new_node) -> None:
    node = new_node(queue_wait_s=10.0)
    node.up("a", epoch=2)
    down(node, epoch=2)
    down(node, epoch=1, back_in_s=1.0)
    assert node.arrive(1) == ["Reject 503 no_replica"]
    down(node, epoch=3, back_in_s=1.0)
    assert node.arrive(2) == ["WakeAt"]


def test_nobody_waits_past_a_promised_first_token(new_node) -> None:
    node = new_node(admission="slo", first_token_limit_s=2.0)
    node.up("a")
    down(node, back_in_s=2.5)
    assert node.arrive(1) == ["Reject 503 no_replica"]
    node.at = 0.5
    assert node.arrive(2) == ["WakeAt"]


def test_one_in_the_place_of_another_is_waited_for_but_not_by_the_others_name(new_node) -> None:
    node = new_node()
    node.up("a")
    node.tell(ReplicaRetiring(at_s=node.at, replica="a", epoch=1))
    down(node, back_in_s=1.0)
    assert node.arrive(1) == ["WakeAt"]
    assert node.arrive(2, only_replica="a") == ["Reject 503 no_replica"]
    assert node.up("b") == ["Dispatch b"]


def test_prompts_wait_only_where_both_phases_are_there_or_expected(new_node) -> None:
    node = new_node()
    for name, role in (("p", "prefill"), ("d", "decode")):
        node.up(name, role=role, pool=name)
    down(node, "p", back_in_s=1.0)
    assert node.arrive(1) == ["WakeAt"]
    assert node.arrive(2, only_replica="p") == []
    down(node, "d")
    assert node.arrive(3) == ["Reject 503 no_replica"]
    assert node.arrive(4, only_replica="p") == ["Reject 503 no_replica"]
    assert node.arrive(5, only_replica="d") == ["Reject 503 no_replica"]
    down(node, "d", back_in_s=2.0)
    assert node.arrive(6) == []


def test_who_waits_for_one_by_name_is_told_when_it_is_not_to_come_back_after_all(new_node) -> None:
    node = new_node()
    node.up("a")
    down(node, back_in_s=1.0)
    assert node.arrive(1, only_replica="a") == ["WakeAt"]
    assert node.arrive(2) == []
    told = node.tell(ReplicaRetiring(at_s=node.at, replica="a", epoch=2))
    assert told == ["Reject 503 no_replica"]
    assert node.arrive(3, only_replica="a") == ["Reject 503 no_replica"]
    assert node.up("b") == ["Dispatch b"]
