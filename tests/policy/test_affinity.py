"""Where blocks were sent: against sets, and as the router uses it."""

from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.cost.steptime import StepTime
from polypod.policy import Policy, PolicySettings, ServiceSettings
from polypod.policy.actions import AnyAction, Dispatch
from polypod.policy.affinity import Affinity
from polypod.policy.events import (
    FirstToken,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFinished,
)
from polypod.policy.kinds import Kind

BLOCK = 16
LINE = StepTime(tokens=(0, 1000), seconds=(0.010, 0.110), kv_token_s=0.0, pair_s=0.0)
"""10 ms a step, and 0.1 ms a token."""

chains = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(
    lambda path: tuple(hash(tuple(path[: n + 1])) % 2**60 for n in range(len(path)))
)


class Sets:
    """The same as a dictionary of sets."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.known: OrderedDict[int, set[int]] = OrderedDict()

    def cached_tokens(self, hashes: tuple[int, ...], tokens: int) -> dict[int, int]:
        found: dict[int, int] = {}
        for n, key in enumerate(hashes, start=1):
            if n * BLOCK < tokens:
                whole = [row for row in self.known.get(key, ()) if found.get(row, 0) == (n - 1) * BLOCK]  # fmt: skip
                found |= dict.fromkeys(whole, n * BLOCK)
        return found

    def sent(self, row: int, hashes: tuple[int, ...]) -> None:
        for key in reversed(hashes):
            if key not in self.known and len(self.known) >= self.most:
                self.known.popitem(last=False)
            self.known.setdefault(key, set()).add(row)
            self.known.move_to_end(key)

    def forget(self, row: int) -> None:
        for rows in self.known.values():
            rows.discard(row)


@given(st.lists(st.tuples(chains, st.integers(0, 70), st.integers(0, 110)), max_size=60), st.integers(1, 12))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_it_is_a_bounded_dictionary_of_sets(
    steps: list[tuple[tuple[int, ...], int, int]], most: int
) -> None:
    affinity, sets = Affinity(block_tokens=BLOCK, most_blocks=most), Sets(min(most, 10))
    affinity.replicas_hold(BLOCK * 10)
    for hashes, row, tokens in steps:
        assert affinity.cached_tokens(hashes, tokens) == sets.cached_tokens(hashes, tokens)
        for one in (affinity, sets):
            if tokens % 9 == 8:
                one.forget(row)
            else:
                one.sent(row, hashes)
        assert len(affinity) == len(sets.known)


# ---- in the policy


def policy(blocks: int = 1000, seed: int = 0) -> Policy:
    service = ServiceSettings(model="m", context_tokens=100_000, block_tokens=BLOCK)
    return Policy(PolicySettings(services=(service,), prefix_blocks=blocks), seed=seed)


def up(name: str, epoch: int = 1, **over: Any) -> ReplicaUp:
    known: dict[str, Any] = {
        "at_s": 0.0, "replica": name, "epoch": epoch, "model": "m", "pool": "p", "role": "both", "step_time": LINE,
        "context_tokens": 100_000, "kv_capacity_tokens": 1_000_000, "max_sequences": 64, "max_step_tokens": 2048,
    }  # fmt: skip
    return ReplicaUp(**(known | over))


def ask(request: int, tokens: int, hashes: tuple[int, ...] = (), at_s: float = 0.0) -> RequestArrived:  # fmt: skip
    return RequestArrived(
        at_s=at_s, request=request, model="m", input_tokens=tokens, max_output_tokens=1, prefix_hashes=hashes
    )  # fmt: skip


def sent(actions: list[AnyAction]) -> Dispatch:
    (action,) = [one for one in actions if isinstance(one, Dispatch)]
    return action


def finish(policy: Policy, dispatch: Dispatch, at_s: float) -> None:
    about = {
        "request": dispatch.request, "attempt": dispatch.attempt, "replica": dispatch.replica, "epoch": dispatch.epoch
    }  # fmt: skip
    policy.handle(FirstToken(at_s=at_s, **about))
    policy.handle(RequestFinished(at_s=at_s, output_tokens=1, **about))


HASHES = tuple(range(100, 150))
"""Fifty blocks, 800 tokens, 80 ms of a prompt."""


@pytest.mark.parametrize(("other_tokens", "goes_to"), [(600, "warm"), (900, "cold")])
def test_finishing_first_decides_between_a_warm_busy_replica_and_a_cold_idle_one(
    other_tokens: int, goes_to: str
) -> None:
    """The warm one has 784 of 801 tokens to gain, and a prompt ahead of it that takes less or more than they do."""
    node = policy()
    node.handle(up("warm"))
    first = sent(node.handle(ask(1, 801, HASHES)))
    finish(node, first, 0.1)
    node.handle(ask(2, other_tokens, at_s=0.2))
    node.handle(up("cold"))
    chosen = sent(node.handle(ask(3, 801, HASHES, at_s=0.2)))

    assert chosen.replica == goes_to
    if goes_to == "warm":
        assert chosen.predicted_first_token_s == pytest.approx(0.010 + 600e-4 + 0.010 + 1e-4)
    else:
        assert chosen.predicted_first_token_s == pytest.approx(0.010 + 801e-4)


def test_the_work_of_a_prompt_that_is_cached_is_counted_without_what_is() -> None:
    node = policy()
    node.handle(up("a"))
    finish(node, sent(node.handle(ask(1, 801, HASHES))), 0.1)
    node.handle(ask(2, 801, HASHES, at_s=0.2))
    table = node._health.tables["m", "both"]

    assert table.prompts_s_R[0] == pytest.approx(0.010 + 1e-4)


def test_a_replica_that_was_down_is_cold() -> None:
    node = policy()
    node.handle(up("a"))
    node.handle(up("b"))
    home = sent(node.handle(ask(1, 801, HASHES)))
    finish(node, home, 0.1)
    again = sent(node.handle(ask(2, 801, HASHES, at_s=0.2)))
    finish(node, again, 0.3)
    node.handle(ReplicaDown(at_s=0.4, replica=home.replica, epoch=1, reason="a fault"))
    node.handle(up(home.replica, epoch=2))
    cold = sent(node.handle(ask(3, 801, HASHES, at_s=0.5)))

    assert again.replica == home.replica
    assert again.predicted_first_token_s == pytest.approx(0.010 + 1e-4)
    assert cold.predicted_first_token_s == pytest.approx(0.010 + 801e-4)


@given(st.lists(st.tuples(st.integers(20, 3000), st.integers(0, 3)), max_size=40), st.sampled_from(["own", "off", "short"]))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_hashes_that_nobody_knows_change_no_decision(
    requests: list[tuple[int, int]], how: str
) -> None:
    """Blocks of one's own; a router that takes no notice; or a block of which the prompt's last token is in."""
    answers = []
    for hashed in (False, True):
        node = policy(blocks=0 if how == "off" else 1000, seed=3)
        said = [node.handle(up(name, step_time=LINE.scaled(1 + n))) for n, name in enumerate("abc")]
        for request, (tokens, fate) in enumerate(requests):
            hashes: tuple[int, ...] = ()
            if hashed:
                base = 10_000 * request if how == "own" else 0
                hashes = tuple(range(base, base + tokens // BLOCK))
            if how == "short":
                tokens, hashes = 16, hashes[:1]
            at_s = 0.01 * request
            said.append(node.handle(ask(request, tokens, hashes, at_s)))
            dispatches = [one for one in said[-1] if isinstance(one, Dispatch)]
            if fate and dispatches:
                finish(node, dispatches[0], at_s)
            node.check()
        answers.append(said)

    assert answers[0] == answers[1]


def test_the_memory_is_as_large_as_the_replicas() -> None:
    node = policy(blocks=10**6)
    node.handle(up("a", kv_capacity_tokens=40 * BLOCK, context_tokens=40 * BLOCK))
    for request in range(5):
        hashes = tuple(range(1000 * request, 1000 * request + 20))
        finish(
            node, sent(node.handle(ask(request, 330, hashes, at_s=float(request)))), request + 0.5
        )
    affinity = node._health.tables["m", "both"].affinity

    assert len(affinity) == 40
    assert affinity.cached_tokens(tuple(range(4000, 4020)), 330) == {0: 320}
    assert affinity.cached_tokens(tuple(range(2000, 2020)), 330) == {}
    node.handle(up("b", kv_capacity_tokens=10 * BLOCK, context_tokens=160))
    node.handle(ReplicaDown(at_s=9.0, replica="a", epoch=1, reason="a fault"))
    finish(node, sent(node.handle(ask(9, 100, tuple(range(9000, 9006)), at_s=9.5))), 10.0)

    assert len(affinity) == 10


def test_a_cached_beginning_is_attended_to_and_not_computed() -> None:
    """600 tokens after 200: two steps of 300, and causal pairs with all that was before."""
    step = StepTime(tokens=(0, 1000), seconds=(0.010, 0.110), kv_token_s=0.0, pair_s=1e-6)
    seconds, steps = Kind(step, budget=300).prompt(800, 200)

    assert steps == 2
    assert seconds == pytest.approx(2 * 0.040 + 1e-6 * sum(range(201, 801)))
