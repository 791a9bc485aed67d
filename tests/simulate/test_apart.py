"""Prefill and decode on replicas of their own, on the virtual clock: against times worked by hand, and laws."""

import io
from typing import Any

import numpy as np
import pytest

from polypod.policy.actions import (
    AnyAction,
    Cancel,
    Decode,
    Dispatch,
    Prefill,
    Reject,
    TransferKv,
    WakeAt,
)
from polypod.policy.events import (
    ClientGone,
    FirstToken,
    KvArrived,
    PrefillFinished,
    RequestFinished,
)
from polypod.policy.lifecycle import Validator
from polypod.record import Measure, Step, encode
from polypod.simulate import Fault, Run, play
from polypod.simulate import arrivals as arrivals_of
from polypod.simulate.replay import replay
from polypod.simulate.transfers import Transfers
from polypod.workload.traffic import poisson

LONG = {"queue_wait_s": 1e9}


@pytest.fixture
def replica(make: Any) -> Any:
    def made(name: str, **over: Any) -> Any:
        role = {"p": "prefill", "d": "decode", "w": "both"}[name[0]]
        link = {"kv_token_bytes": 1000.0, "kv_link_bytes_per_s": 10e6, "kv_link_latency_s": 0.005}
        return make["replica"](name, **({"role": role, "pool": name[0]} | link | over))

    return made


@pytest.fixture
def arrivals(make: Any) -> Any:
    return make["arrivals"]


@pytest.fixture
def scenario(make: Any) -> Any:
    return make["scenario"]


def checked(run: Run) -> Run:
    """The run, which keeps to the lifecycle, ends every request, and replays."""
    validator = Validator()
    for step in steps(run):
        validator.feed(step.event, step.actions)
    assert validator.open == {}
    assert replay(run.lines) is None
    return run


def steps(run: Run) -> list[Step]:
    return [line for line in run.lines if isinstance(line, Step)]


def times(run: Run, kind: type) -> dict[int, float]:
    return {
        step.event.request: step.event.at_s for step in steps(run) if isinstance(step.event, kind)
    }


def told(run: Run, kind: Any) -> list[tuple[float, AnyAction]]:
    return [(s.event.at_s, one) for s in steps(run) for one in s.actions if isinstance(one, kind)]


def rejects(run: Run) -> list[tuple[int, str]]:
    return [(one.request, one.code) for _, one in told(run, Reject) if isinstance(one, Reject)]


def test_one_request_takes_its_prompt_its_way_and_its_tokens(replica, arrivals, scenario):
    """A prompt of 100 tokens is 20 ms, its 100 kB at 10 MB/s 10 ms and 5 ms of latency, a decode step 10.1 ms."""
    run = checked(play(scenario([replica("p"), replica("d")], arrivals([(1.0, 100, 11)]))))

    assert times(run, PrefillFinished)[1] == pytest.approx(1.020)
    assert times(run, KvArrived)[1] == pytest.approx(1.035)
    assert times(run, FirstToken)[1] == times(run, KvArrived)[1]
    assert times(run, RequestFinished)[1] == pytest.approx(1.035 + 10 * 0.0101)
    assert [type(one) for _, one in told(run, AnyAction)] == [Prefill, TransferKv, WakeAt, Decode]


def test_prompts_queue_and_caches_share_the_links(replica, arrivals, scenario):
    """Two prompts of 1,000 tokens: 110 ms each, one after the other; 1 MB each. Two of 100 come while they are on their way."""
    fleet = [replica("p", max_step_tokens=1000), replica("d", kv_link_bytes_per_s=5e6)]
    run = checked(play(scenario(fleet, arrivals([(0.0, 1000, 2), (0.0, 1000, 2)]))))
    arrived = times(run, KvArrived)

    # the first alone on the 5 MB/s of the decode replica from 0.115, half of it each from 0.225 on
    assert times(run, PrefillFinished) == pytest.approx({1: 0.110, 2: 0.220})
    left = 1e6 - (0.225 - 0.115) * 5e6
    assert arrived[1] == pytest.approx(0.225 + left / 2.5e6)
    left = 1e6 - (arrived[1] - 0.225) * 2.5e6
    assert arrived[2] == pytest.approx(arrived[1] + left / 5e6)


def test_a_request_of_one_token_ends_where_it_arrives(replica, arrivals, scenario):
    run = checked(play(scenario([replica("p"), replica("d")], arrivals([(0.0, 100, 1)]))))

    assert times(run, RequestFinished)[1] == times(run, KvArrived)[1] == pytest.approx(0.035)


def test_a_cache_joins_at_the_next_step_of_those_who_decode(replica, arrivals, scenario):
    rows = [(0.0, 100, 101), (0.1, 100, 3)]
    run = checked(play(scenario([replica("p"), replica("d")], arrivals(rows))))
    second_s = times(run, KvArrived)[2]  # 0.135
    boundary_s = 0.035 + 10 * 0.0101  # the first step boundary after it

    assert second_s == pytest.approx(0.135)
    assert times(run, FirstToken)[2] == pytest.approx(boundary_s)
    assert times(run, RequestFinished)[2] == pytest.approx(boundary_s + 2 * 0.0102)


def test_caches_wait_where_they_are_while_nobody_has_room(replica, arrivals, scenario):
    """One decode slot, and room for two prompts at the prefill replica: the third prompt begins when the first cache is gone."""
    fleet = [
        replica("p", kv_capacity_tokens=250, kv_link_bytes_per_s=0.0, kv_link_latency_s=0.0),
        replica("d", max_sequences=1, kv_link_bytes_per_s=0.0, kv_link_latency_s=0.0),
    ]
    run = checked(play(scenario(fleet, arrivals([(0.0, 100, 11)] * 4), limits=LONG)))
    prompts = {one.request: at_s for at_s, one in told(run, Prefill) if isinstance(one, Prefill)}
    first, last = times(run, FirstToken), times(run, RequestFinished)

    # prompts 1 and 2 share a step of 30 ms; 1 leaves at once, 3 takes its room, 2 is held until the slot is free
    assert prompts == pytest.approx({1: 0.0, 2: 0.0, 3: 0.030, 4: last[1]})
    assert first == pytest.approx({1: 0.030, 2: last[1], 3: last[2], 4: last[3]})
    assert [last[n] - first[n] for n in (1, 2, 3, 4)] == pytest.approx([10 * 0.0101] * 4)


def test_a_cache_that_nobody_takes_in_time_ends_its_request(replica, arrivals, scenario):
    fleet = [replica("p", kv_capacity_tokens=150), replica("d", max_sequences=1)]
    trace = arrivals([(0.0, 100, 2000), (0.0, 100, 3), (0.1, 100, 3)])
    run = checked(play(scenario(fleet, trace, limits={"queue_wait_s": 1.0})))

    held_s = times(run, PrefillFinished)
    assert rejects(run) == [(2, "queue_timeout"), (3, "queue_timeout")]
    assert [at_s for at_s, _ in told(run, Cancel)] == [held_s[2] + 1.0, held_s[3] + 1.0]
    assert held_s[3] == pytest.approx(held_s[2] + 1.0 + 0.020)  # which the cache made way for


PHASES = {
    "prefill": (0.010, "p"),
    "held": (0.300, "p2"),
    "on the way, its source": (0.030, "p"),
    "on the way, its target": (0.030, "d"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_death_before_the_first_token_costs_a_second_prompt(replica, arrivals, scenario, phase):
    at_s, who = PHASES[phase]
    if phase == "held":  # the decode slot is taken for a second
        fleet = [replica("p"), replica("d", max_sequences=1), replica("p2", at_s=0.15)]
        trace = arrivals([(0.0, 100, 101), (0.2, 3000, 5), (0.2, 100, 5)])
    else:
        fleet = [replica("p"), replica("d")]
        trace = arrivals([(0.0, 100, 101)])
    faults = (
        Fault(at_s=at_s, replica=who, what="down"),
        Fault(at_s=at_s + 0.2, replica=who, what="up"),
    )
    run = checked(play(scenario(fleet, trace, faults=faults)))

    assert rejects(run) == []
    again = [one for _, one in told(run, Prefill) if isinstance(one, Prefill) and one.attempt == 2]
    assert len(again) == 1
    assert set(times(run, RequestFinished)) == set(range(1, len(trace) + 1))


def test_a_source_that_dies_after_the_cache_has_gone_takes_nothing(replica, arrivals, scenario):
    faults = (Fault(at_s=0.1, replica="p", what="down"),)
    run = checked(play(scenario([replica("p"), replica("d")], arrivals([(0.0, 100, 11)]), faults=faults)))  # fmt: skip

    assert set(times(run, RequestFinished)) == {1}


def test_a_decode_replica_that_dies_loses_answers_that_had_begun(replica, arrivals, scenario):
    faults = (Fault(at_s=0.1, replica="d", what="down"),)
    fleet = [replica("p"), replica("d"), replica("d2", at_s=0.05)]
    run = checked(play(scenario(fleet, arrivals([(0.0, 100, 50), (0.2, 100, 5)]), faults=faults)))

    assert rejects(run) == [(1, "replica_lost")]
    assert set(times(run, RequestFinished)) == {2}


@pytest.mark.parametrize(("patience_s", "places"), [(0.01, ["p"]), (0.03, ["p", "d"]), (0.05, ["d"])])  # fmt: skip
def test_a_client_that_goes_is_forgotten_everywhere(replica, arrivals, scenario, patience_s, places):  # fmt: skip
    trace = (
        *arrivals([(0.0, 100, 50)], patience_s=patience_s),
        *arrivals([(1.0, 100, 11)]),
    )
    run = checked(play(scenario([replica("p"), replica("d")], trace)))

    assert set(times(run, ClientGone)) == {1}
    assert [one.replica for _, one in told(run, Cancel) if isinstance(one, Cancel)] == places
    assert times(run, RequestFinished)[2] == pytest.approx(1.035 + 10 * 0.0101)  # as if alone


def test_a_cache_that_arrives_as_its_client_goes_has_arrived(replica, arrivals, scenario):
    """At one moment caches come before timers: nothing is left to cancel at the source."""
    link = {"kv_link_bytes_per_s": 0.0, "kv_link_latency_s": 0.0}
    flat = replica("p").step_time.__class__(tokens=(0, 1), seconds=(0.25, 0.25), kv_token_s=0.0, pair_s=0.0)  # fmt: skip
    fleet = [replica("p", step_time=flat, **link), replica("d", **link)]
    run = checked(play(scenario(fleet, arrivals([(0.0, 100, 50)], patience_s=0.25))))

    assert [one.replica for _, one in told(run, Cancel) if isinstance(one, Cancel)] == ["d"]


def test_a_link_is_shared_evenly_and_by_ranks(replica):
    """100 MB/s over four ranks: one cache goes at 25, eight at 12.5; one between others is not touched, to the bit."""
    flat = replica("p").step_time.__class__(tokens=(0, 1), seconds=(0.1, 0.1), kv_token_s=0.0, pair_s=0.0, data_ranks=4)  # fmt: skip
    transfers = Transfers()
    for name in ("p", "d", "p1", "d1"):
        transfers.link(replica(name, step_time=flat, kv_link_bytes_per_s=100e6, kv_link_latency_s=0.0))  # fmt: skip
    transfers.start(0.0, request=99, ends=("p1", "d1"), kv_bytes=7.7e6)
    for request in range(8):
        transfers.start(0.1 * (request == 7), request=request, ends=("p", "d"), kv_bytes=1e6)

    done = {}
    while transfers.next_s < 9.0:
        at_s = transfers.next_s
        done |= dict.fromkeys(transfers.advance(at_s), at_s)
    assert done[99] == 7.7e6 / 25e6
    # seven together are done within 0.1 s, and the eighth goes alone
    assert done[0] == pytest.approx(7e6 / 100e6)
    assert done[7] == pytest.approx(0.1 + 1e6 / 25e6)


def test_a_cache_is_stopped_and_makes_way(replica):
    transfers = Transfers()
    for name in ("p", "d"):
        transfers.link(replica(name, kv_link_bytes_per_s=1e6, kv_link_latency_s=0.5))
    transfers.start(0.0, request=1, ends=("p", "d"), kv_bytes=1e6)
    transfers.start(0.0, request=2, ends=("p", "d"), kv_bytes=1e6)
    transfers.start(0.2, request=3, ends=("p", "d"), kv_bytes=1e6)  # stopped before its bytes go
    transfers.stop(0.3, 3)
    assert transfers.advance(1.0) == []
    transfers.stop(1.0, 1)  # half a second at half the link, and the rest at the whole one
    transfers.stop(1.0, 1)

    assert transfers.next_s == pytest.approx(1.0 + 0.75)
    assert (transfers.advance(2.0), 2 in transfers) == ([2], False)


def test_a_mixed_service_goes_where_it_ends_first(replica, arrivals, scenario):
    """Whole on `w`: 20 ms and ten steps. Apart: twice as fast a decode, behind a way of 105 ms or of none."""
    step = replica("d").step_time.scaled(0.5)
    for latency_s, expected in ((0.1, [Dispatch]), (0.0, [Prefill, TransferKv, WakeAt, Decode])):
        fleet = [
            replica("w"),
            replica("p", kv_link_bytes_per_s=0.0, kv_link_latency_s=latency_s),
            replica("d", step_time=step, kv_link_bytes_per_s=0.0, kv_link_latency_s=latency_s),
        ]
        trace = arrivals([(0.0, 100, 11)], max_output_tokens=11)
        run = checked(play(scenario(fleet, trace)))
        assert [type(one) for _, one in told(run, AnyAction)] == expected


def test_caches_go_to_named_pools_alone(replica, arrivals, scenario):
    fleet = [
        replica("p", kv_pools=("slow",)),
        replica("d", pool="fast"),
        replica("d2", pool="slow", step_time=replica("d").step_time.scaled(9)),
    ]
    run = checked(play(scenario(fleet, arrivals([(0.0, 100, 5)] * 3))))

    assert {one.replica for _, one in told(run, Decode) if isinstance(one, Decode)} == {"d2"}


def test_nothing_starts_that_nobody_can_decode(replica, arrivals, scenario):
    run = checked(play(scenario([replica("p"), replica("p2")], arrivals([(0.0, 100, 5)]))))
    assert rejects(run) == [(1, "no_replica")]

    short = replica("d", context_tokens=200, kv_capacity_tokens=200)
    trace = arrivals([(0.0, 100, 150)], max_output_tokens=150)
    run = checked(play(scenario([replica("p"), short], trace, limits={"queue_wait_s": 1.0})))
    assert told(run, Prefill) == []
    assert rejects(run) == [(1, "queue_timeout")]


def busy_pairs(replica: Any, arrivals: Any, scenario: Any, **over: Any) -> Any:
    """Three prefill and three decode replicas, one of both, deaths of each kind, and clients that lose patience."""
    rng = np.random.default_rng(7)
    rows = zip(
        np.cumsum(rng.exponential(0.05, 500)), rng.integers(1, 3000, 500), rng.integers(1, 200, 500),
        strict=True,
    )  # fmt: skip
    trace = tuple(
        one
        for n, (at_s, prompt, answer) in enumerate(rows)
        for one in arrivals(
            [(float(at_s), int(prompt), int(answer))], patience_s=2.0 if n % 9 == 0 else None
        )
    )
    fleet = [replica(name, kv_capacity_tokens=9000) for name in ("p", "p1", "p2", "d", "d1", "d2", "w")]  # fmt: skip
    faults = tuple(
        Fault(at_s=at_s, replica=name, what=what)
        for at_s, name, what in (
            (3.0, "p", "down"), (5.0, "p", "up"), (6.0, "d", "down"), (8.0, "d", "up"),
            (9.0, "p1", "down"), (9.5, "d1", "down"), (12.0, "d2", "up"),
        )
    )  # fmt: skip
    limits = {"queue_requests": 40, "queue_wait_s": 4.0}
    return scenario(fleet, trace, faults=faults, limits=limits, **over)


def test_what_arrives_ends_once_whatever_breaks(replica, arrivals, scenario):
    run = checked(play(busy_pairs(replica, arrivals, scenario)))
    ends = [*times(run, RequestFinished), *(request for request, _ in rejects(run)), *times(run, ClientGone)]  # fmt: skip

    assert sorted(ends) == list(range(1, 501))
    assert len(times(run, RequestFinished)) > 250
    assert {type(one) for _, one in told(run, AnyAction)} >= {Dispatch, Prefill, TransferKv, Decode}
    at_s = [step.event.at_s for step in steps(run)]
    assert at_s == sorted(at_s)


def test_the_same_scenario_gives_the_same_bytes(replica, arrivals, scenario):
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        play(busy_pairs(replica, arrivals, scenario), file)
    kept = play(busy_pairs(replica, arrivals, scenario))

    assert files[0].getvalue() == files[1].getvalue()
    assert b"".join(encode(line) for line in kept.lines) == files[0].getvalue()


def test_every_token_is_computed_once_where_it_belongs(replica, scenario):
    """Prompts on prefill replicas, all tokens but the first on decode replicas; their busy time is that of the work."""
    trace = arrivals_of(poisson(5.0, 400, 200, 20, seed=3), "m")
    fleet = [replica(name, max_step_tokens=200) for name in ("p", "p1", "d", "d1")]
    run = checked(play(scenario(fleet, trace, limits=LONG)))
    measured = {(line.of, line.name): line.value for line in run.lines if isinstance(line, Measure)}

    def total(role: str, name: str) -> float:
        return sum(value for (of, what), value in measured.items() if of[0] == role and what == name)  # fmt: skip

    assert total("p", "computed_tokens") == 400 * 200
    assert total("d", "computed_tokens") == 400 * 19
    assert total("p", "busy_s") == pytest.approx(400 * 0.030)
    assert total("d", "busy_s") <= 400 * 19 * 0.0101


def test_requests_in_the_system_are_rate_times_residence(replica, scenario):
    """Little's law, phase by phase, over a run that begins and ends empty: prompts, ways and answers add up to residences."""
    trace = arrivals_of(poisson(40.0, 500, 200, 40, seed=1), "m")
    run = checked(play(scenario([replica(n) for n in ("p", "p1", "d", "d1")], trace, limits=LONG)))
    prefilled, arrived = times(run, PrefillFinished), times(run, KvArrived)
    last = times(run, RequestFinished)

    for n, arrival in enumerate(trace, start=1):
        assert arrival.at_s < prefilled[n] < arrived[n] < last[n]
        assert arrived[n] - prefilled[n] >= 0.005 + 200e3 / 10e6 - 1e-9
