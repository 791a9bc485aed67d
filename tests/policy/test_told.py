"""A policy is told other settings while it runs: models come and go, limits change, and what runs runs on."""

from typing import Any

import pytest

from polypod.errors import InputError
from polypod.policy import Policy
from polypod.policy.events import ReplicaRetiring, SettingsChanged
from polypod.policy.settings import PolicySettings, ServiceSettings


def told(node, *models: str, context_tokens: int = 4096, **limits: Any) -> list[str]:
    services = tuple(ServiceSettings(model=one, context_tokens=context_tokens) for one in models)
    settings = PolicySettings(services=services, **limits)
    return node.tell(SettingsChanged(at_s=node.at, settings=settings))


def test_a_model_is_added_and_served(new_node) -> None:
    node = new_node()
    node.up("a")
    assert node.arrive(1, model="n") == ["Reject 404 model_not_found"]
    assert told(node, "m", "n") == []
    assert node.arrive(2, model="n") == ["Reject 503 no_replica"]
    node.up("b", model="n")
    assert node.arrive(3, model="n") == ["Dispatch b"]
    assert node.arrive(4) == ["Dispatch a"]
    assert node.arrive(5, model="o") == ["Reject 404 model_not_found"]
    assert node.last[0].message.endswith("there are: m, n")


def test_a_model_that_is_removed_ends_what_it_runs_and_nobody_waits_for_it(new_node) -> None:
    node = new_node(models=("m", "n"))
    node.up("a", max_sequences=1)
    node.arrive(1)
    node.first(1)
    node.arrive(2)
    assert told(node, "n") == ["Reject 404 model_removed"]
    assert (node.last[0].request, node.last[0].message.endswith("there are: n")) == (2, True)
    assert node.arrive(3) == ["Reject 404 model_not_found"]
    node.tell(ReplicaRetiring(at_s=node.at, replica="a", epoch=1))
    assert node.policy.aboard("a") == 1
    assert node.finish(1) == []
    node.down("a")
    with pytest.raises(InputError, match="none of this node's models \\(n\\)"):
        node.up("a", epoch=2)


def test_what_would_have_to_wait_for_a_removed_model_again_ends_in_words(new_node) -> None:
    node = new_node(models=("m", "n"))
    node.up("a")
    node.arrive(1)
    node.arrive(2)
    told(node, "n")
    assert node.fail(1) == ["Reject 404 model_removed"]
    assert node.down("a") == ["Reject 404 model_removed"]


def test_a_model_that_comes_back_before_its_replicas_went_has_them(new_node) -> None:
    node = new_node(models=("m", "n"))
    node.up("a")
    told(node, "n")
    told(node, "m", "n")
    assert node.arrive(1) == ["Dispatch a"]
    told(node, "n")
    node.finish(1)
    node.down("a")
    told(node, "m", "n")
    node.up("a", epoch=2)
    assert node.arrive(2) == ["Dispatch a"]


def test_a_shorter_context_holds_at_once_and_those_who_wait_are_told(new_node) -> None:
    node = new_node()
    node.up("a", max_sequences=1)
    for request in (1, 2):
        node.arrive(request, input_tokens=2000)
    node.arrive(3)
    assert told(node, "m", context_tokens=1024) == ["Reject 400 context_length_exceeded"]
    assert node.last[0].request == 2
    assert node.arrive(4, input_tokens=2000) == ["Reject 400 context_length_exceeded"]
    told(node, "m")
    assert node.arrive(5, input_tokens=2000) == []
    assert node.finish(1) == ["Dispatch a"]


def test_a_shorter_queue_keeps_who_is_in_it(new_node) -> None:
    node = new_node()
    node.up("a", max_sequences=1)
    for request in (1, 2, 3):
        node.arrive(request)
    assert told(node, "m", queue_requests=1) == []
    assert node.arrive(4) == ["Reject 429 queue_full"]
    assert node.finish(1) == ["Dispatch a"]


def test_tenants_told_apart_from_now_on_and_then_no_longer(new_node) -> None:
    node = new_node()
    node.up("a", max_sequences=1)
    for request in (1, 2):
        node.arrive(request, tenant="loud")
    told(node, "m", turns="tenants")
    for request in (3, 4):
        node.arrive(request, tenant="loud")
    node.arrive(5, tenant="quiet")
    order = []
    for _ in range(3):
        node.finish(order[-1] if order else 1)
        order.append(node.last[0].request)
    assert order == [2, 3, 5]
    node.arrive(6, tenant="quiet")
    told(node, "m")
    node.arrive(7, tenant="quiet")
    for _ in range(3):
        node.finish(order[-1])
        order.append(node.last[0].request)
    assert order[3:] == [4, 6, 7]


def test_weights_of_tenants_change_for_those_who_come(new_node) -> None:
    orders = {}
    for weight in (1.0, 8.0):
        node = new_node(turns="tenants")
        node.up("a", max_sequences=1)
        node.arrive(1, tenant="x")
        told(node, "m", turns="tenants", tenant_weights={"y": weight})
        for request in (2, 3):
            node.arrive(request, tenant="x")
        for request in (4, 5):
            node.arrive(request, tenant="y")
        orders[weight] = []
        for _ in range(4):
            node.finish((orders[weight] or [1])[-1])
            orders[weight].append(node.last[0].request)
    assert orders == {1.0: [4, 2, 5, 3], 8.0: [4, 5, 2, 3]}


def test_what_memory_is_laid_out_by_does_not_change_and_nothing_else_either(new_node) -> None:
    node = new_node()
    node.up("a")
    with pytest.raises(InputError, match="prefix_blocks, session_entries cannot change"):
        told(node, "m", "n", prefix_blocks=7, session_entries=1, kv_wait_s=1.0)
    assert node.arrive(1, model="n") == ["Reject 404 model_not_found"]


def test_the_same_events_give_the_same_answers(new_node) -> None:
    node = new_node(models=("m", "n"))
    node.up("a", max_sequences=1)
    for request in (1, 2):
        node.arrive(request)
    told(node, "n", "o", turns="tenants", queue_requests=3)
    node.up("b", model="o")
    node.arrive(3, model="o")
    node.down("a")
    fresh = Policy(PolicySettings(services=tuple(
        ServiceSettings(model=one, context_tokens=4096, mean_output_tokens=100.0) for one in "mn"
    )))  # fmt: skip
    for event, actions in node.log:
        assert fresh.handle(event) == actions


def test_blocks_of_prompts_stay_as_long_as_a_model_was_begun_with(new_node) -> None:
    node = new_node()
    for model, tokens, is_refused in (("n", 64, False), ("n", 128, True), ("o", 128, False)):
        service = ServiceSettings(model=model, context_tokens=9, block_tokens=tokens)
        settings = PolicySettings(services=(service,))
        if is_refused:
            with pytest.raises(InputError, match="block_tokens of n cannot change"):
                node.policy.handle(SettingsChanged(at_s=0.0, settings=settings))
        else:
            node.tell(SettingsChanged(at_s=0.0, settings=settings))
