"""A replica that is to go finishes what it has, and gets nothing new."""

from polypod.policy.actions import Drain
from polypod.policy.events import ReplicaRetiring


def retire(node, replica: str, epoch: int = 1) -> list[str]:
    return node.tell(ReplicaRetiring(at_s=node.at, replica=replica, epoch=epoch))


def test_it_finishes_what_it_has_and_gets_nothing_new(new_node) -> None:
    node = new_node()
    node.up("a")
    node.arrive(1)
    node.up("b")
    node.first(1)

    retire(node, "a")
    assert node.last == [Drain(replica="a", epoch=1)]
    assert [node.arrive(request) for request in (2, 3, 4)] == [["Dispatch b"]] * 3
    assert node.policy.aboard("a") == 1
    assert node.finish(1) == []
    assert node.policy.aboard("a") == 0
    assert node.down("a") == []
    assert node.arrive(5) == ["Dispatch b"]


def test_neither_a_pause_nor_a_breaker_that_closes_brings_it_back(new_node) -> None:
    node = new_node(breaker_failures=1, breaker_open_s=1.0, busy_pause_s=1.0)
    node.up("a")
    for request in (1, 2, 3):
        node.arrive(request)
    retire(node, "a")
    node.up("b")
    node.busy(1)
    node.fail(2)
    node.first(3)
    node.finish(3)
    node.at += 100
    node.wake()
    assert node.arrive(4) == ["Dispatch b"]


def test_the_last_one_lets_others_wait_for_the_next(new_node) -> None:
    node = new_node()
    node.up("a")
    retire(node, "a")
    assert not any(word.startswith("Dispatch") for word in node.arrive(1))
    assert node.up("b")[0] == "Dispatch b"


def test_word_of_an_older_start_changes_nothing(new_node) -> None:
    node = new_node()
    node.up("a")
    node.down("a")
    node.up("a", epoch=2)
    assert retire(node, "a", epoch=1) == []
    assert retire(node, "nobody") == []
    assert node.arrive(1) == ["Dispatch a"]


def test_who_asks_for_one_that_is_to_go_is_told_at_once(new_node) -> None:
    node = new_node()
    node.up("a", max_sequences=1)
    node.up("b")
    node.arrive(1, only_replica="a")
    assert node.arrive(2, only_replica="a") == ["WakeAt"]
    assert retire(node, "a") == ["Drain a", "Reject 503 replica_retiring"]
    assert node.arrive(3, only_replica="a") == ["Reject 503 replica_retiring"]
    assert "'a' is to go" in node.last[0].message
    assert node.busy(1) == ["Reject 503 replica_retiring"]
    assert node.arrive(4) == ["Dispatch b"]
    node.down("a")
    assert node.arrive(5, only_replica="a") == ["Reject 503 no_replica"]
    node.up("a", epoch=2)
    assert node.arrive(6, only_replica="a") == ["Dispatch a"]
