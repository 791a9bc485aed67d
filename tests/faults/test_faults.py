"""A few hundred bad days: nothing is lost, answered twice, overcommitted, sent to the dead, or left waiting. `make soak` has more of them."""

import pytest

from polypod.policy.actions import Dispatch
from polypod.policy.node import Policy
from tests.faults.harness import play, replays
from tests.faults.oracle import Broken
from tests.faults.run import command, fault_of, shrink
from tests.faults.story import Story, draw

SEEDS = 300
AT_ONCE = 20


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
def test_every_law_holds_on_a_bad_day(first):
    failed = {command(draw(seed)): what for seed in range(first, first + AT_ONCE) if (what := fault_of(draw(seed)))}  # fmt: skip

    assert failed == {}


@pytest.mark.parametrize(
    "seed",
    [
        570,  # one that gave up its wait for a prefill replica's cache left those behind it waiting
        646,
        1102,
        252,  # a long answer waited for the prefill replica that a long prompt waited for
    ],
)
def test_what_once_failed_holds(seed):
    assert fault_of(draw(seed)) is None


def test_a_seed_is_one_story():
    first, again = play(draw(7)), play(draw(7))

    assert first.log == again.log
    assert replays(draw(7), first.log)


def test_the_days_are_bad_and_of_all_kinds():
    """Every way to end, and every word that the policy can say or hear, is in the batch."""
    ends, words, gone_on = set(), set(), 0
    for seed in range(80):
        played = play(draw(seed))
        after = {word.request for _, actions in played.log for word in actions if isinstance(word, Dispatch) and word.continues_after_tokens}  # fmt: skip
        gone_on += sum(played.outcomes[request] == "finished" for request in after)
        ends |= set(played.outcomes.values())
        words |= {type(word).__name__ for event, actions in played.log for word in (event, *actions)}  # fmt: skip

    assert ends >= {
        "finished", "gone", "queue_full", "queue_timeout", "no_replica", "attempts_exhausted", "replica_lost", "quarantined",
        "retry_budget", "engine_refused", "model_not_found", "replica_not_found", "too_late",
    }  # fmt: skip
    assert gone_on > 8  # streams that broke off, and came to their end elsewhere
    assert words >= {
        "Dispatch", "Prefill", "TransferKv", "Decode", "Retry", "Reject", "Cancel", "WakeAt", "KvLost", "KvArrived", "ReplicaBusy",
        "PrefillFinished", "RequestFailed", "ReplicaDown", "ReplicaUp", "ClientGone", "StepObserved", "LoadReported", "Woke",
    }  # fmt: skip


def test_a_failing_story_is_made_as_short_as_can_be():
    story = draw(5)
    needed = {story.requests[1].number, story.requests[-1].number}

    def fails(one: Story) -> bool:
        return needed <= {asked.number for asked in one.requests}

    short = shrink(story, fails)

    assert {asked.number for asked in short.requests} == needed
    assert short.troubles == ()
    assert (
        command(short) == f"python -m tests.faults.run --seed 5 --requests {','.join(map(str, sorted(needed)))}"
        + " --troubles none" * bool(story.troubles)
    )  # fmt: skip


def test_the_oracle_hears_a_policy_that_forgets(monkeypatch):
    """A policy that drops a retry is found out."""

    def silent(self, tracked, *rest, **more):
        self._end(tracked)

    monkeypatch.setattr(Policy, "_retry", silent)
    found = [fault_of(draw(seed)) for seed in range(20)]

    assert any(found)
    with pytest.raises((Broken, AssertionError), match=r"not answered|left hanging"):
        play(draw(next(seed for seed, what in enumerate(found) if what)))
