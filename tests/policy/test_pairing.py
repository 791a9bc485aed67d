"""Prefill and decode on replicas of their own: which pair, who waits, and what a loss costs."""

from typing import Any

import msgspec
import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.policy import pairing
from polypod.policy.actions import Cancel, Decode, Prefill, TransferKv, WakeAt
from polypod.policy.events import (
    FirstToken,
    KvArrived,
    KvLost,
    PrefillFinished,
    ReplicaBusy,
    ReplicaUp,
    RequestFailed,
    RequestFinished,
    SettingsChanged,
)
from polypod.policy.requests import Ask
from polypod.policy.router import ReplicaTable, slots_of

from .conftest import STEP

LONG_S = 1e6
"""Caches are waited for; where they are not, a test says so."""

LINK = {"kv_token_bytes": 1000.0, "kv_link_bytes_per_s": 1e6}  # 1 ms a token


@pytest.fixture
def node(new_node: Any) -> Any:
    """Nothing is up; tell it `prefill`, `decode`, and what comes of a request by `go`."""
    return Pairs(new_node(kv_wait_s=LONG_S))


class Pairs:
    """A node whose requests go through two phases."""

    def __init__(self, node: Any) -> None:
        self.node = node

    def __getattr__(self, name: str) -> Any:
        return getattr(self.node, name)

    def prefill(self, name: str = "p", **over: Any) -> list[str]:
        told: list[str] = self.node.up(name, **({"role": "prefill", "pool": "p"} | LINK | over))
        return told

    def decode(self, name: str = "d", **over: Any) -> list[str]:
        told: list[str] = self.node.up(name, **({"role": "decode", "pool": "d"} | LINK | over))
        return told

    def start_of(self, request: int) -> Any:
        starts = [one for _, actions in self.node.log for one in actions if isinstance(one, Prefill | TransferKv | Decode) and one.request == request]  # fmt: skip
        return starts[-1]

    def go(self, request: int, word: Any, at_s: float | None = None, **over: Any) -> list[str]:
        start = self.start_of(request)
        if at_s is not None:
            self.node.at = at_s
        told: list[str] = self.node.tell(
            word(
                at_s=self.node.at, request=request, attempt=start.attempt, replica=start.replica,
                epoch=start.epoch, **over,
            )
        )  # fmt: skip
        return [
            word
            for word, action in zip(told, self.node.last, strict=True)
            if not (isinstance(action, WakeAt) and action.at_s >= LONG_S)
        ]

    def hold(self, request: int, kv_tokens: int = 100, at_s: float | None = None) -> list[str]:
        return self.go(request, PrefillFinished, at_s, kv_tokens=kv_tokens)

    def busy_decode(self, *requests: int, name: str = "d") -> None:
        """Fill slots of a decode replica, by requests that are there already."""
        for request in requests:
            self.node.arrive(request)
            assert self.hold(request) == [f"TransferKv {name}"]
            assert self.go(request, KvArrived) == [f"Decode {name}"]


def test_a_request_goes_through_both_phases(node):
    node.prefill()
    node.decode()

    assert node.arrive(1) == ["Prefill p"]
    assert node.hold(1) == ["TransferKv d"]
    assert (node.last[0].source, node.last[0].source_epoch) == ("p", 1)
    assert node.go(1, KvArrived) == ["Decode d"]
    assert node.go(1, FirstToken) == []
    assert node.go(1, RequestFinished, output_tokens=50) == []


def test_a_prompt_goes_where_its_first_token_comes_first(node):
    node.prefill("slow", step_time=STEP.scaled(1.5))
    node.prefill("fast")
    node.decode()

    assert [node.arrive(n, input_tokens=1000)[0] for n in (1, 2, 3)] == ["Prefill fast", "Prefill slow", "Prefill fast"]  # fmt: skip


def test_a_cache_goes_where_the_request_ends_first_its_way_included(node):
    """50 tokens at 10.1 ms are 505 ms on `near`, half on `far`; 100 ms of cache take 100 ms there, or 400 ms."""
    node.prefill(kv_link_bytes_per_s=0.0)
    node.decode("near")
    node.decode("far", step_time=STEP.scaled(0.5))
    node.arrive(1)
    assert node.hold(1) == ["TransferKv far"]

    node.decode("farther", step_time=STEP.scaled(0.4), kv_link_bytes_per_s=0.1e6)
    node.arrive(2, max_output_tokens=10)
    assert node.hold(2) == ["TransferKv near"]  # `far` has its link taken by the first: 200 ms


def test_a_way_is_as_wide_as_its_narrower_end_and_one_rank(node):
    """The source's ranks are four: a cache goes by one of them, at a quarter of the link."""
    ranks = StepTime(tokens=STEP.tokens, seconds=STEP.seconds, kv_token_s=0.0, pair_s=0.0, data_ranks=4)  # fmt: skip
    node.prefill(step_time=ranks, kv_link_bytes_per_s=0.4e6)  # 0.1 MB/s: a second
    node.decode("wide", kv_link_bytes_per_s=0.0)
    node.decode("narrow", kv_link_bytes_per_s=0.09e6, step_time=STEP.scaled(0.9))
    node.arrive(1)
    assert node.hold(1) == ["TransferKv wide"]  # 1 s and 505 ms, or 1.11 s and 455 ms


def test_caches_wait_in_turn_and_prompts_behind_them(node):
    node.prefill(kv_capacity_tokens=350)
    node.decode(max_sequences=1)
    node.busy_decode(1)
    for request, priority in ((2, 0), (3, 1), (4, 0)):
        assert node.arrive(request, priority=priority) == ["Prefill p"]
    for request in (2, 3, 4):
        assert node.hold(request) == (["WakeAt"] if request == 2 else [])
    assert node.arrive(5) == []  # 300 of 350 tokens are held

    assert node.go(1, RequestFinished, output_tokens=50) == ["TransferKv d"]
    assert node.last[0].request == 3
    assert node.go(3, KvArrived) == ["Decode d", "Prefill p"]  # its cache makes room for a prompt
    assert node.go(3, RequestFinished, output_tokens=50) == ["TransferKv d"]
    assert node.last[0].request == 2


def test_a_large_request_is_not_overtaken_where_it_waits(node):
    """Room for 400 tokens: one of 100 is there, one of 350 waits, and one of 100 that would fit beside the first waits behind it."""
    node.prefill()
    node.decode(kv_capacity_tokens=475, context_tokens=475)
    node.busy_decode(1)
    for request, tokens in ((2, 350), (3, 100)):
        node.arrive(request, input_tokens=tokens)
        assert "TransferKv d" not in node.hold(request, tokens)
    assert node.go(1, RequestFinished, output_tokens=50) == ["TransferKv d"]
    assert node.last[0].request == 2


def test_a_large_request_holds_up_nobody_where_it_cannot_go(node):
    node.prefill()
    node.decode("large", max_sequences=1)
    node.decode("small", max_sequences=1, context_tokens=200, kv_capacity_tokens=200)
    node.arrive(1, only_replica="large")
    node.hold(1)
    node.arrive(2, input_tokens=1000)
    assert node.hold(2, 1000) == ["WakeAt"]
    node.arrive(3)

    assert node.hold(3) == ["TransferKv small"]


def test_a_request_alone_may_fill_a_replica_beyond_its_expected_cache(node):
    """Without a limit 100 tokens are expected: 250 and half of those do not fit 260, and nothing else is there."""
    node.prefill()
    node.decode(context_tokens=260, kv_capacity_tokens=260)
    node.arrive(1, input_tokens=250, max_output_tokens=None)

    assert node.hold(1, 250) == ["TransferKv d"]


def test_a_decode_replica_that_hangs_loses_its_appeal(node):
    node.prefill()
    node.decode("hangs", step_time=STEP.scaled(0.7))
    node.decode("well")
    node.arrive(1)
    assert node.hold(1) == ["TransferKv hangs"]
    node.go(1, KvArrived, at_s=0.1)
    node.arrive(2)
    assert node.hold(2, at_s=0.11) == ["TransferKv hangs"]
    node.arrive(3)
    assert node.hold(3, at_s=2.0) == ["TransferKv well"]  # a first token is late by 1.9 s there


def test_a_lost_cache_counts_for_both_ends_and_costs_a_prompt(node):
    node.prefill("p")
    node.decode("d")
    node.arrive(1)
    node.hold(1)
    node.prefill("q")
    node.decode("e", step_time=STEP.scaled(3.0))

    assert node.go(1, KvLost) == ["Retry kv_lost", "Prefill q"]
    assert node.hold(1) == ["TransferKv e"]  # not where it failed
    health = node.policy._health
    assert {name: health.replicas[name].failures for name in "pdqe"} == {"p": 1, "d": 1, "q": 0, "e": 0}  # fmt: skip


def test_caches_that_are_lost_too_often_end_the_request(node):
    node.prefill()
    node.decode()
    node.arrive(1)
    for _ in range(2):
        node.hold(1)
        assert node.go(1, KvLost) == ["Retry kv_lost", "Prefill p"]
    node.hold(1)
    assert node.go(1, KvLost)[0] == "Reject 502 attempts_exhausted"


def test_a_replica_that_lets_go_of_a_cache_costs_a_prompt_too(node):
    node.prefill()
    node.decode(max_sequences=1)
    node.busy_decode(1)
    for lost in (KvLost, RequestFailed, ReplicaBusy):
        over = {"kind": "engine"} if lost is RequestFailed else {}
        node.arrive(2)
        assert "TransferKv d" not in node.hold(2)
        told = node.go(2, lost, **over)
        assert told[0].startswith("Retry")
        node.gone(2)


def test_first_words_of_the_wrong_phase_change_nothing(node):
    node.prefill()
    node.decode()
    node.arrive(1)
    for kind, over in ((FirstToken, {}), (RequestFinished, {"output_tokens": 5}), (KvArrived, {}), (KvLost, {})):  # fmt: skip
        assert node.go(1, kind, **over) == []
    node.hold(1)
    assert node.go(1, PrefillFinished, kv_tokens=5) == []
    assert node.go(1, FirstToken) == []
    assert node.go(1, KvArrived) == ["Decode d"]


def test_who_leaves_is_cancelled_wherever_something_is(node):
    node.prefill()
    node.decode()
    node.arrive(1)
    node.hold(1)

    assert node.gone(1) == ["Cancel p", "Cancel d"]
    assert [one.replica for one in node.last if isinstance(one, Cancel)] == ["p", "d"]
    assert node.go(1, KvArrived) == []


def test_replicas_that_die_with_a_prompt_quarantine_it(node):
    node.prefill("p")
    node.prefill("q")
    node.decode()
    node.arrive(1)
    first = node.start_of(1).replica
    assert node.down(first)[0] == "Retry replica_down"

    assert node.down(node.start_of(1).replica) == ["Reject 500 quarantined"]


def test_a_pin_binds_its_phase_and_leaves_the_other_free(node):
    for name in "pq":
        node.prefill(name)
    for name in "de":
        node.decode(name, step_time=STEP.scaled(1 + (name == "e")))

    for request in (1, 2, 3):
        assert node.arrive(request, only_replica="q") == ["Prefill q"]
    node.arrive(4, only_replica="e")
    assert node.hold(4) == ["TransferKv e"]
    node.down("q")
    assert node.arrive(5, only_replica="q") == ["Reject 503 no_replica"]


def test_slow_answers_correct_the_decode_replica_alone(node):
    node.prefill()
    node.decode()
    node.arrive(1)
    node.hold(1)
    node.go(1, KvArrived)
    node.go(1, FirstToken, at_s=1.0)
    node.go(1, RequestFinished, at_s=3.0, output_tokens=50)
    factors = node.policy.corrections()

    assert factors["d", "decode"] > 1.1
    assert factors["p", "prefill"] == factors["p", "decode"] == factors["d", "prefill"] == 1.0


def test_a_held_cache_wakes_the_policy_when_its_time_is_up(node):
    node.prefill()
    node.decode(max_sequences=1)
    node.busy_decode(1)
    node.arrive(2)
    node.hold(2, at_s=5.0)
    (wake,) = [one for one in node.last if isinstance(one, WakeAt)]
    node.node.at = wake.at_s

    assert wake.at_s == 65.0
    assert node.wake() == ["Cancel p", "Reject 503 queue_timeout"]


def test_a_mixed_service_counts_those_who_hold_caches_against_the_pair(node):
    """Apart is faster, until the decode replica's queue is longer than what it saves."""
    node.prefill(kv_link_bytes_per_s=0.0)
    node.decode(max_sequences=1, step_time=STEP.scaled(0.5), kv_link_bytes_per_s=0.0)
    node.up("w")
    assert node.arrive(1) == ["Prefill p"]
    node.hold(1)
    node.go(1, KvArrived)

    assert node.arrive(2) == ["Dispatch w"]  # the slot is taken for a whole answer


def test_a_large_prompt_is_not_overtaken_where_it_waits(node):
    node.prefill(kv_capacity_tokens=500, context_tokens=500)
    node.decode()
    node.arrive(1, input_tokens=200, max_output_tokens=10)
    node.arrive(2, input_tokens=400, max_output_tokens=10)
    assert (
        node.arrive(3, input_tokens=50, max_output_tokens=10) == []
    )  # it would fit beside the first
    node.hold(1, 200)
    assert node.go(1, KvArrived) == ["Decode d", "Prefill p", "Prefill p"]
    assert [one.request for one in node.last if isinstance(one, Prefill)] == [2, 3]


def test_room_is_exact_and_so_is_the_longest_prompt(node):
    """100 tokens and half of 50 are 125; a prompt of 299 and its first token are 300."""
    node.prefill(context_tokens=300)
    node.decode(kv_capacity_tokens=250, context_tokens=300)
    node.busy_decode(1)
    node.arrive(2)
    assert node.hold(2) == ["TransferKv d"]
    node.decode("e", kv_capacity_tokens=600, context_tokens=400)
    assert node.arrive(3, input_tokens=299, max_output_tokens=50) == ["Prefill p"]
    assert "Prefill p" not in node.arrive(4, input_tokens=300, max_output_tokens=50)


def test_of_equals_the_whole_replica_is_taken(node):
    node.prefill(kv_link_bytes_per_s=0.0)
    node.decode(kv_link_bytes_per_s=0.0)
    node.up("w")

    assert node.arrive(1) == ["Dispatch w"]


def test_prompts_on_a_prefill_replica_wait_for_no_answers(node):
    """With 10 ms a sequence, what decodes beside a prompt would cost it; here nothing does."""
    slow = StepTime(tokens=STEP.tokens, seconds=STEP.seconds, kv_token_s=1e-4, pair_s=0.0, sequence_s=0.01)  # fmt: skip
    node.prefill("p", step_time=slow)
    node.decode()
    for request in (1, 2, 3):
        node.arrive(request)
    table = node.policy._health.tables["m", "prefill"]
    assert table.attend_s_R[0] == 0.0
    assert table.decode_s_R[0] == slow.step_s(tokens=1, sequences=1)


def test_those_who_hold_caches_are_shared_out_over_the_slots_there_are(node):
    """Each of two slots has one before the newcomer: an answer of 50 tokens at 4 ms, twice, is less than one at 10.1 ms."""
    node.prefill(kv_link_bytes_per_s=0.0)
    node.decode(max_sequences=2, step_time=STEP.scaled(0.4), kv_link_bytes_per_s=0.0)
    node.busy_decode(1, 2)
    for request in (3, 4, 5, 6, 7, 8):
        node.arrive(request)
        node.hold(request)
    node.up("w")
    assert node.arrive(9) == ["Dispatch w"]
    for request in (8, 7, 6, 5, 4, 3):
        node.gone(request)
    assert node.arrive(10) == ["Prefill p"]


def test_the_columns_agree_with_scalar_arithmetic_on_random_fleets():
    rng = np.random.default_rng(5)
    for _ in range(60):
        prefill, decode = ReplicaTable(), ReplicaTable()
        ups = [_random_up(rng, f"d{n}", "decode") for n in range(int(rng.integers(1, 9)))]
        rows = [decode.add(up) for up in ups]
        source = _random_up(rng, "p", "prefill")
        row = prefill.add(source)
        prefill.moving_R[row] = rng.integers(0, 5)
        for at in rows:
            decode.moving_R[at], decode.in_flight_R[at] = rng.integers(0, 5), rng.integers(0, 3)
            decode.kv_tokens_R[at] = rng.integers(0, 3000) * (decode.in_flight_R[at] > 0)
            decode.prompts_R[at], decode.prompts_end_s_R[at] = rng.integers(0, 2), rng.uniform(0, 2)
            decode.refresh(at)
        tokens, output, now_s = int(rng.integers(1, 4000)), float(rng.integers(1, 300)), 2.0
        ask = Ask(input_tokens=tokens, output_tokens=output, need_tokens=tokens + 1)
        cache = pairing.Cache.on(prefill, row, tokens)
        choice = pairing.decode_choice(decode, ask, decode.up_R.copy(), cache, now_s)

        finishes = {at: _finish_s(decode, at, up, (source, int(prefill.moving_R[row])), ask, now_s) for at, up in zip(rows, ups, strict=True)}  # fmt: skip
        best = min(finishes, key=lambda at: finishes[at])
        assert best in choice.rows
        assert pairing.finish_s(choice, ask) == pytest.approx(finishes[best], rel=1e-12)


def _random_up(rng: Any, name: str, role: Any) -> ReplicaUp:
    step = StepTime(
        tokens=(1, 100), seconds=(rng.uniform(0.005, 0.02), rng.uniform(0.02, 0.1)), kv_token_s=rng.uniform(0, 1e-6),
        pair_s=0.0, data_ranks=int(rng.integers(1, 4)),
    )  # fmt: skip
    return ReplicaUp(
        at_s=0.0, replica=name, epoch=1, model="m", pool=name, role=role, step_time=step, context_tokens=8000,
        kv_capacity_tokens=9000, max_sequences=8, max_step_tokens=512, kv_token_bytes=1e5,
        kv_link_bytes_per_s=float(rng.choice([0.0, rng.uniform(1e8, 1e10)])), kv_link_latency_s=rng.uniform(0, 0.1),
    )  # fmt: skip


def _finish_s(table: ReplicaTable, at: int, up: ReplicaUp, source: tuple[ReplicaUp, int], ask: Ask, now_s: float) -> float:  # fmt: skip
    """The docstring of `policy.pairing`, one replica at a time."""
    ends = ((source[0], source[1]), (up, int(table.moving_R[at])))
    shares = [one.kv_link_bytes_per_s / max(moving + 1, one.step_time.data_ranks) for one, moving in ends if one.kv_link_bytes_per_s]  # fmt: skip
    way_s = max(source[0].kv_link_latency_s, up.kv_link_latency_s)
    way_s += ask.input_tokens * source[0].kv_token_bytes / min(shares) if shares else 0.0
    ahead_s = float(table.prompts_end_s_R[at]) - now_s
    late_s = max(ahead_s, -ahead_s if table.prompts_R[at] else 0.0)
    there, kv_tokens = int(table.in_flight_R[at]), float(table.kv_tokens_R[at])
    ranks, mean_kv = up.step_time.data_ranks, ask.input_tokens + ask.output_tokens / 2
    token_s = up.step_time.step_s(tokens=there / ranks + 1, kv_tokens=kv_tokens / ranks + mean_kv, sequences=there / ranks + 1)  # fmt: skip
    crowding = max(kv_tokens + mean_kv - up.kv_capacity_tokens, 0) / max(kv_tokens, 1)
    crowding += max(there + 1 - slots_of(up), 0) / slots_of(up)
    return way_s + late_s + (1 + crowding) * ask.output_tokens * token_s


def test_a_first_token_is_late_from_when_its_cache_is_there(node):
    node.prefill()
    node.decode("fast", step_time=STEP.scaled(0.7))
    node.decode("slow")
    node.arrive(1)
    node.hold(1, at_s=100.0)
    node.go(1, KvArrived)
    node.arrive(2)

    assert node.hold(2, at_s=100.01) == ["TransferKv fast"]


def test_a_small_prompt_passes_where_the_large_one_cannot_go(node):
    """`p` would be faster, and has room for it; but one that is before it waits for that."""
    node.prefill("p", kv_capacity_tokens=500, context_tokens=500)
    node.prefill("q", kv_capacity_tokens=100, context_tokens=100, step_time=STEP.scaled(3.0))
    node.decode()
    node.arrive(1, input_tokens=200, max_output_tokens=10)
    node.hold(1, 200, at_s=1.0)
    node.arrive(2, input_tokens=400, max_output_tokens=10)

    assert node.arrive(3, input_tokens=50, max_output_tokens=10) == ["Prefill q"]


def test_whoever_waits_too_long_for_a_prefill_replica_s_cache_leaves_it_to_the_next_at_once(
    new_node: Any,
) -> None:
    """The long prompt has no room beside the first one's cache, and is not overtaken; when it gives up, the short one goes."""
    pairs = Pairs(new_node(queue_wait_s=10.0))
    pairs.prefill(kv_capacity_tokens=1000)
    pairs.decode(max_sequences=1)
    pairs.arrive(1, input_tokens=500)
    pairs.arrive(2, input_tokens=600)
    pairs.node.at = 1.0
    assert pairs.arrive(3, input_tokens=100) == []

    pairs.node.at = 10.0
    assert pairs.wake() == ["Reject 503 queue_timeout", "Prefill p"]


def test_a_cache_that_waits_too_long_for_a_decode_replica_leaves_it_to_the_next_at_once(
    new_node: Any,
) -> None:
    pairs = Pairs(new_node(queue_wait_s=10.0, kv_wait_s=LONG_S))
    pairs.prefill()
    pairs.decode(kv_capacity_tokens=1000)
    pairs.busy_decode(1)
    pairs.arrive(2, input_tokens=900)
    assert pairs.hold(2) == ["WakeAt"]
    pairs.node.at = 1.0
    pairs.arrive(3)
    assert pairs.hold(3) == []

    pairs.node.at = 10.0
    assert pairs.wake() == ["Cancel p", "Reject 503 queue_timeout", "TransferKv d"]


def test_a_long_answer_does_not_wait_for_the_prefill_replica_that_a_long_prompt_waits_for(
    node: Any,
) -> None:
    """Its prompt is short: it goes to the small one, which the long prompt cannot use."""
    node.prefill("big", max_sequences=1)
    node.prefill("small", max_sequences=1, context_tokens=500)
    node.decode()
    assert node.arrive(1, input_tokens=1000, max_output_tokens=10) == ["Prefill big"]
    assert node.arrive(2, input_tokens=1000, max_output_tokens=10) == ["WakeAt"]

    assert node.arrive(3, input_tokens=100, max_output_tokens=2000) == ["Prefill small"]


def test_a_cache_that_does_not_come_is_computed_again_elsewhere(new_node):
    """10 s after it left: both ends are told to drop it, neither is blamed, and the second try avoids both."""
    node = Pairs(new_node(kv_wait_s=10.0))
    for prefill, decode in (("p", "d"), ("q", "e")):
        node.prefill(prefill)
        node.decode(decode)
    (first,) = [word.removeprefix("Prefill ") for word in node.arrive(1)]
    other = {"p": "q", "q": "p"}[first]
    word, alarm = node.hold(1, at_s=2.0)
    assert (alarm, node.last[1].at_s) == ("WakeAt", 12.0)
    sent_to = word.removeprefix("TransferKv ")

    node.node.at = 11.9
    assert node.wake() == []
    node.node.at = 12.0
    assert node.wake() == [f"Cancel {first}", f"Cancel {sent_to}", "Retry kv_lost", f"Prefill {other}"]  # fmt: skip
    assert node.hold(1)[0] == f"TransferKv { {'d': 'e', 'e': 'd'}[sent_to] }"
    assert node.go(1, KvArrived) == [f"Decode { {'d': 'e', 'e': 'd'}[sent_to] }"]
    assert {node.arrive(2)[0], node.arrive(3)[0]} == {"Prefill p", "Prefill q"}


def test_caches_that_never_come_use_up_the_attempts(new_node):
    node = Pairs(new_node(kv_wait_s=10.0, max_attempts=2))
    node.prefill()
    node.decode()
    node.arrive(1)
    node.hold(1)
    node.node.at += 10.0
    assert node.wake() == [
        "Cancel p",
        "Cancel d",
        "Retry kv_lost",
        "Prefill p",
    ]  # there is no other
    node.hold(1)
    node.node.at += 10.0
    assert node.wake() == ["Cancel p", "Cancel d", "Reject 502 attempts_exhausted"]
    assert "its cache did not come from p to d within 10 s" in node.last[-1].message


def test_a_cache_is_awaited_for_as_long_as_was_told_when_it_left(new_node):
    pairs = Pairs(new_node(kv_wait_s=10.0, max_attempts=1))
    pairs.prefill()
    pairs.decode()
    pairs.arrive(1)
    pairs.hold(1)
    node = pairs.node
    settings = msgspec.structs.replace(node.policy._settings, kv_wait_s=2.0)
    assert node.tell(SettingsChanged(at_s=node.at, settings=settings)) == []
    pairs.arrive(2)
    _, alarm = pairs.hold(2)
    assert (alarm, node.last[1].at_s) == ("WakeAt", node.at + 2.0)
    node.at += 2.0
    assert pairs.wake() == ["Cancel p", "Cancel d", "Reject 502 attempts_exhausted"]
    assert "did not come from p to d within 2 s" in node.last[-1].message
    node.at += 8.0
    assert pairs.wake() == ["Cancel p", "Cancel d", "Reject 502 attempts_exhausted"]
    assert "did not come from p to d within 10 s" in node.last[-1].message


def test_a_cache_that_comes_in_time_is_awaited_no_more(new_node):
    node = Pairs(new_node(kv_wait_s=10.0))
    node.prefill()
    node.decode()
    node.arrive(1)
    node.hold(1)
    node.node.at += 9.0
    assert node.go(1, KvArrived) == ["Decode d"]
    node.node.at += 9.0
    assert node.wake() == []
