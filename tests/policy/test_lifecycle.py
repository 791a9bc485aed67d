"""The table of legal sequences, and the validator that walks it."""

from typing import Any, get_args

import pytest

from polypod.policy import events
from polypod.policy.actions import (
    Cancel,
    Decode,
    Dispatch,
    Prefill,
    Reject,
    Retry,
    TransferKv,
    WakeAt,
)
from polypod.policy.events import (
    ClientGone,
    FirstToken,
    KvArrived,
    KvLost,
    PrefillFinished,
    ReplicaBusy,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    Woke,
)
from polypod.policy.lifecycle import BETWEEN, TABLE, LifecycleError, State, Validator

A = {"request": 1, "attempt": 1, "replica": "a", "epoch": 1}
B = {"request": 1, "attempt": 1, "replica": "b", "epoch": 1}
PREDICTED = {"predicted_first_token_s": 0.1, "predicted_token_s": 0.01}

ARRIVED = RequestArrived(at_s=0.0, request=1, model="m", input_tokens=10)
DISPATCH = Dispatch(**A, **PREDICTED)
FIRST = FirstToken(at_s=0.0, **A)
FINISHED = RequestFinished(at_s=0.0, **A, output_tokens=5)
FAILED = RequestFailed(at_s=0.0, **A, kind="lost")
RETRY = Retry(request=1, attempt=1, reason="lost")
REJECT = Reject(request=1, status=502, code="x", message="x")
CANCEL = Cancel(**A)
GONE = ClientGone(at_s=0.0, request=1)
PREFILL = Prefill(**A)
PREFILLED = PrefillFinished(at_s=0.0, **A, kv_tokens=10)
TRANSFER = TransferKv(**B, source="a", source_epoch=1)
DECODE = Decode(**B)
FIRST_B = FirstToken(at_s=0.0, **B)
FINISHED_B = RequestFinished(at_s=0.0, **B, output_tokens=5)


def down(replica: str) -> ReplicaDown:
    return ReplicaDown(at_s=0.0, replica=replica, epoch=1, reason="x")


@pytest.fixture
def validator(new_node: Any) -> Validator:
    """Replicas a and b are up."""
    node = new_node()
    node.up("a")
    node.up("b")
    return node.validator


LEGAL = {
    "answered": [(ARRIVED, [DISPATCH]), (FIRST, []), (FINISHED, [])],
    "in one piece": [(ARRIVED, [DISPATCH]), (FINISHED, [])],
    "said twice": [(ARRIVED, [DISPATCH]), (FIRST, []), (FIRST, []), (FINISHED, [])],
    "refused at the door": [(ARRIVED, [REJECT])],
    "never had a turn": [(ARRIVED, [WakeAt(at_s=9.0)]), (Woke(at_s=9.0), [REJECT])],
    "left the queue": [(ARRIVED, []), (GONE, [])],
    "left": [(ARRIVED, [DISPATCH]), (GONE, [CANCEL])],
    "left while streaming": [(ARRIVED, [DISPATCH]), (FIRST, []), (GONE, [CANCEL])],
    "gave up": [(ARRIVED, [DISPATCH]), (FAILED, [REJECT])],
    "broke off": [(ARRIVED, [DISPATCH]), (FIRST, []), (FAILED, [REJECT])],
    "tried again": [
        (ARRIVED, [DISPATCH]),
        (FAILED, [RETRY, Dispatch(**(B | {"attempt": 2}), **PREDICTED)]),
        (FAILED, []),  # of attempt 1: stale
        (RequestFinished(at_s=0.0, **(B | {"attempt": 2}), output_tokens=5), []),
    ],
    "moved": [(ARRIVED, [DISPATCH]), (down("a"), [RETRY]), (GONE, [])],
    "quarantined": [(ARRIVED, [DISPATCH]), (down("b"), [CANCEL, REJECT])],
    "two phases": [
        (ARRIVED, [PREFILL]),
        (PREFILLED, [TRANSFER]),
        (KvArrived(at_s=0.0, **B), [DECODE]),
        (FIRST_B, []),
        (FINISHED_B, []),
    ],
    "two phases, and the source dies after the hand-over": [
        (ARRIVED, [PREFILL]),
        (PREFILLED, [TRANSFER]),
        (KvArrived(at_s=0.0, **B), [DECODE]),
        (down("a"), []),
        (FINISHED_B, []),
    ],
    "two phases on one replica": [
        (ARRIVED, [PREFILL]),
        (PREFILLED, [Decode(**A)]),
        (FINISHED, []),
    ],
    "the cache waits for a decoder": [
        (ARRIVED, [PREFILL]),
        (PREFILLED, []),
        (Woke(at_s=1.0), [TRANSFER]),
        (KvLost(at_s=0.0, **B), [RETRY]),
        (GONE, []),
    ],
    "the cache is let go of while it waits": [
        (ARRIVED, [PREFILL]),
        (PREFILLED, []),
        (KvLost(at_s=0.0, **A), [RETRY]),
        (GONE, []),
    ],
    "nobody takes the cache in time": [
        (ARRIVED, [PREFILL]),
        (PREFILLED, [WakeAt(at_s=9.0)]),
        (Woke(at_s=9.0), [CANCEL, REJECT]),
    ],
    "left on the way": [
        (ARRIVED, [PREFILL]),
        (PREFILLED, [TRANSFER]),
        (GONE, [CANCEL, Cancel(**B)]),
    ],
    "quarantined on the way": [
        (ARRIVED, [PREFILL]),
        (PREFILLED, [TRANSFER]),
        (Woke(at_s=0.0), [CANCEL, Cancel(**B), REJECT]),
    ],
    "an answer of the wrong phase": [
        (ARRIVED, [PREFILL]),
        (FIRST, []),
        (FINISHED, []),
        (GONE, [CANCEL]),
    ],
    "the source dies on the way": [
        (ARRIVED, [PREFILL]),
        (PREFILLED, [TRANSFER]),
        (down("a"), [Retry(request=1, attempt=1, reason="replica_down")]),
        (GONE, []),
    ],
}  # fmt: skip


@pytest.mark.parametrize("story", LEGAL)
def test_a_legal_story_is_walked_to_its_end(validator: Validator, story: str) -> None:
    for event, actions in LEGAL[story]:
        validator.feed(event, actions)

    assert validator.open == {}
    assert validator.ended == 1


ILLEGAL = {
    "a failure left unanswered": ([(ARRIVED, [DISPATCH])], (FAILED, [])),
    "a death left unanswered": ([(ARRIVED, [DISPATCH])], (down("a"), [])),
    "a client gone and no cancel": ([(ARRIVED, [DISPATCH])], (GONE, [])),
    "a retry after the first byte": ([(ARRIVED, [DISPATCH]), (FIRST, [])], (FAILED, [RETRY])),
    "a busy answer after the first byte, and a retry": (
        [(ARRIVED, [DISPATCH]), (FIRST, [])],
        (ReplicaBusy(at_s=0.0, **A), [RETRY]),
    ),
    "an end after the end": ([(ARRIVED, [REJECT])], (Woke(at_s=0.0), [REJECT])),
    "a dispatch after the end": (
        [(ARRIVED, [DISPATCH]), (FINISHED, [])],
        (Woke(at_s=0.0), [DISPATCH]),
    ),
    "a request that never arrived": ([], (Woke(at_s=0.0), [DISPATCH])),
    "two dispatches at once": ([(ARRIVED, [DISPATCH])], (Woke(at_s=0.0), [DISPATCH])),
    "an attempt left out": ([], (ARRIVED, [Dispatch(**(A | {"attempt": 2}), **PREDICTED)])),
    "a replica that is down": ([(down("a"), [])], (ARRIVED, [DISPATCH])),
    "a start that is over": ([], (ARRIVED, [Dispatch(**(A | {"epoch": 2}), **PREDICTED)])),
    "a retry of nothing": ([], (ARRIVED, [RETRY])),
    "a retry of another attempt": (
        [(ARRIVED, [DISPATCH])],
        (FAILED, [Retry(request=1, attempt=2, reason="lost")]),
    ),
    "a cancel where it does not run": ([(ARRIVED, [DISPATCH])], (GONE, [Cancel(**B)])),
    "a stale word that is acted on": (
        [(ARRIVED, [DISPATCH])],
        (RequestFailed(at_s=0.0, **(A | {"attempt": 7}), kind="lost"), [RETRY]),
    ),
    "a cancel and no answer to who waits": (
        [(ARRIVED, [DISPATCH])],
        (Woke(at_s=0.0), [CANCEL]),
    ),
    "a cancel at one of two places": (
        [(ARRIVED, [PREFILL]), (PREFILLED, [TRANSFER])],
        (GONE, [CANCEL]),
    ),
    "a cancel said twice at one of two places": (
        [(ARRIVED, [PREFILL]), (PREFILLED, [TRANSFER])],
        (GONE, [CANCEL, CANCEL]),
    ),
    "a cache that nobody takes, and no cancel": (
        [(ARRIVED, [PREFILL]), (PREFILLED, [])],
        (Woke(at_s=0.0), [REJECT]),
    ),
    "a decode before the cache": ([(ARRIVED, [PREFILL])], (Woke(at_s=0.0), [Decode(**A)])),
}


@pytest.mark.parametrize("story", ILLEGAL)
def test_an_illegal_story_raises_where_it_goes_wrong(validator: Validator, story: str) -> None:
    before, (event, actions) = ILLEGAL[story]
    for earlier, answer in before:
        validator.feed(earlier, answer)

    with pytest.raises(LifecycleError):
        validator.feed(event, actions)


def test_words_about_caches_that_nobody_moves_are_stale(validator: Validator) -> None:
    validator.feed(ARRIVED, [DISPATCH])
    validator.feed(PREFILLED, [])
    validator.feed(KvArrived(at_s=0.0, **A), [])
    validator.feed(KvLost(at_s=0.0, **A), [])

    assert validator.open == {1: "running"}


def test_a_later_start_ends_what_ran_on_the_earlier_one(
    validator: Validator, new_node: Any
) -> None:
    node = new_node()
    node.up("a", epoch=2)
    again: ReplicaUp = node.log[0][0]
    validator.feed(ARRIVED, [DISPATCH])

    with pytest.raises(LifecycleError):
        validator.feed(again, [])


def test_every_state_is_reached_and_all_but_the_end_are_left() -> None:
    states = set(get_args(State))
    reached = {"new"} | set(TABLE.values())
    left = {state for state, _ in TABLE}

    assert reached == states
    assert left == states - {"ended"}


def test_every_word_of_the_table_is_an_event_or_an_action() -> None:
    known = {one.__name__ for one in get_args(events.AnyEvent)}
    known |= {"Dispatch", "Prefill", "TransferKv", "Decode", "Retry", "Reject", "Cancel"}

    assert {word for _, word in TABLE} <= known


def test_from_every_state_there_is_a_way_to_the_end() -> None:
    reaches = {"ended"}
    for _ in TABLE:
        reaches |= {state for (state, _), following in TABLE.items() if following in reaches}

    assert reaches == set(get_args(State))


def test_what_is_in_between_is_left_by_actions_alone() -> None:
    action_names = {"Retry", "Reject", "Cancel"}

    assert {word for state, word in TABLE if state in BETWEEN} == action_names
