"""The driver on a virtual clock, against laws of queues that need no simulator."""

import io
import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.errors import InputError
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.actions import Reject
from polypod.policy.events import (
    ClientGone,
    FirstToken,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
)
from polypod.policy.lifecycle import Validator
from polypod.record import Header, Measure, Step, encode
from polypod.simulate import Arrival, Fault, Run, Scenario, play
from polypod.simulate import arrivals as arrivals_of
from polypod.simulate.compiled import play_compiled
from polypod.workload.traffic import poisson

LONG = {"queue_wait_s": 1e9}


@pytest.fixture
def replica(make: Any) -> Any:
    return make["replica"]


@pytest.fixture
def arrivals(make: Any) -> Any:
    return make["arrivals"]


@pytest.fixture
def scenario(make: Any) -> Any:
    return make["scenario"]


def steps(run: Run) -> list[Step]:
    return [line for line in run.lines if isinstance(line, Step)]


def times(run: Run, kind: type) -> dict[int, float]:
    return {
        step.event.request: step.event.at_s for step in steps(run) if isinstance(step.event, kind)
    }


def rejects(run: Run) -> list[Reject]:
    return [action for step in steps(run) for action in step.actions if isinstance(action, Reject)]


def test_one_request_takes_its_prompt_and_its_tokens(replica, arrivals, scenario):
    run = play(scenario([replica()], arrivals([(1.0, 100, 11)])))

    assert times(run, FirstToken)[1] == pytest.approx(1.0 + 0.020)
    assert times(run, RequestFinished)[1] == pytest.approx(1.0 + 0.020 + 10 * 0.0101)
    assert run.end_s == times(run, RequestFinished)[1]
    assert run.events == 4  # up, arrived, first, finished


def test_waiting_times_follow_lindley(replica, arrivals, scenario):
    """One server, first come first served: W[n+1] = max(0, W[n] + S[n] - A[n])."""
    rng = np.random.default_rng(3)
    rows = [
        (float(at_s), int(prompt), int(answer))
        for at_s, prompt, answer in zip(
            np.cumsum(rng.exponential(0.5, 400)), rng.integers(1, 1500, 400), rng.integers(1, 60, 400),
            strict=True,
        )
    ]  # fmt: skip
    run = play(scenario([replica(max_sequences=1)], arrivals(rows), limits=LONG))
    first, last = times(run, FirstToken), times(run, RequestFinished)

    wait_s, waited = 0.0, 0
    for request, (at_s, prompt, answer) in enumerate(rows, start=1):
        if request > 1:
            wait_s = max(0.0, wait_s + service_s - (at_s - rows[request - 2][0]))  # noqa: F821
        prompt_s = 0.010 + 1e-4 * prompt
        service_s = prompt_s + (answer - 1) * 0.0101
        waited += wait_s > 0
        assert first[request] - at_s == pytest.approx(wait_s + prompt_s, abs=1e-9)
        assert last[request] - at_s == pytest.approx(wait_s + service_s, abs=1e-9)
    assert 100 < waited < 399


def test_the_mean_wait_is_pollaczek_and_khinchines(replica, scenario):
    """M/D/1: Poisson arrivals, one server, constant service S; the mean wait is load * S / (2 * (1 - load))."""
    service_s, load = 0.020 + 10 * 0.0101, 0.5
    trace = arrivals_of(poisson(load / service_s, 8_000, 100, 11, seed=5), "m")
    run = play(scenario([replica(max_sequences=1)], trace, limits=LONG))
    first = times(run, FirstToken)
    waits_s = [first[n] - 0.020 - arrival.at_s for n, arrival in enumerate(trace, start=1)]

    assert np.mean(waits_s) == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.05)
    (busy,) = [line for line in run.lines if isinstance(line, Measure) and line.name == "busy_s"]
    assert busy.value == pytest.approx(8_000 * service_s)


def test_requests_in_the_system_are_rate_times_residence(replica, scenario):
    """Little's law, over a run that begins and ends empty: an identity, so it holds to rounding."""
    trace = arrivals_of(poisson(40.0, 1000, 200, 40, seed=1), "m")
    run = play(scenario([replica("a"), replica("b")], trace, limits=LONG))
    last = times(run, RequestFinished)
    residence_s = sum(last[n] - arrival.at_s for n, arrival in enumerate(trace, start=1))

    inside, area, before_s = 0, 0.0, 0.0
    for step in steps(run):
        area += inside * (step.event.at_s - before_s)
        before_s = step.event.at_s
        inside += isinstance(step.event, RequestArrived) - isinstance(step.event, RequestFinished)
    assert inside == 0
    assert area == pytest.approx(residence_s)


def busy_fleet(replica: Any, arrivals: Any, scenario: Any, **over: Any) -> Any:
    """Two fast and two slow replicas, one fault of each kind, and enough requests to be turned away."""
    rng = np.random.default_rng(11)
    rows = [
        (float(at_s), int(prompt), int(answer))
        for at_s, prompt, answer in zip(
            np.cumsum(rng.exponential(0.06, 600)), rng.integers(1, 3000, 600), rng.integers(1, 200, 600),
            strict=True,
        )
    ]  # fmt: skip
    step = StepTime(tokens=(1, 64, 2048), seconds=(0.01, 0.012, 0.15), kv_token_s=1e-7, pair_s=1e-9)
    fleet = [
        replica(name, step_time=step.scaled(1 + (name > "b")), kv_capacity_tokens=9000)
        for name in "abcd"
    ]
    faults = (
        Fault(at_s=3.0, replica="a", what="down"),
        Fault(at_s=5.0, replica="a", what="up"),
        Fault(at_s=6.0, replica="d", what="down"),
    )
    limits = {"queue_requests": 40, "queue_wait_s": 4.0}
    return scenario(fleet, arrivals(rows), faults=faults, limits=limits, **over)


def test_what_arrives_finishes_or_is_rejected_once(replica, arrivals, scenario):
    played = busy_fleet(replica, arrivals, scenario)
    run = play(played)
    validator = Validator()
    for step in steps(run):
        validator.feed(step.event, step.actions)
    finished, rejected = times(run, RequestFinished), [one.request for one in rejects(run)]

    assert validator.open == {}
    assert sorted([*finished, *rejected]) == list(range(1, 601))
    assert {"queue_full", "replica_lost", "queue_timeout"} <= {one.code for one in rejects(run)}
    assert len(finished) > 300


def test_the_same_scenario_gives_the_same_bytes(replica, arrivals, scenario):
    files = [io.BytesIO(), io.BytesIO()]
    for file in files:
        run = play(busy_fleet(replica, arrivals, scenario), file)
        assert run.lines == ()
    kept = play(busy_fleet(replica, arrivals, scenario))

    assert files[0].getvalue() == files[1].getvalue()
    assert b"".join(encode(line) for line in kept.lines) == files[0].getvalue()


def test_the_order_of_the_trace_does_not_matter_only_its_times(replica, arrivals, scenario):
    rows = [(float(n % 7), 10 + n, 5) for n in range(20)]
    by_time = sorted(rows, key=lambda row: row[0])

    assert play(scenario([replica()], arrivals(rows))) .lines[1:] == (
        play(scenario([replica()], arrivals(by_time))).lines[1:]
    )  # fmt: skip


def test_another_seed_breaks_ties_otherwise(replica, arrivals, scenario):
    trace = arrivals([(float(n), 100, 5) for n in range(30)])
    runs = [play(scenario([replica("a"), replica("b")], trace, seed=seed)) for seed in (0, 1)]
    places = [[s.actions[0].replica for s in steps(run) if isinstance(s.event, RequestArrived)] for run in runs]  # fmt: skip

    assert places[0] != places[1]
    assert {"a", "b"} == set(places[0])


def test_unequal_replicas_carry_load_by_what_they_can_do(replica, scenario):
    """At an arrival rate near what all can do, one that is k times slower carries 1 / k as much."""
    slowness = {"a": 1.0, "b": 1.5, "c": 3.0}
    fleet = [
        replica(name, step_time=_flat(0.010).scaled(k), max_sequences=1)
        for name, k in slowness.items()
    ]
    capacity = sum(1 / (k * 0.1) for k in slowness.values())  # an answer is ten steps of k x 10 ms
    trace = arrivals_of(poisson(0.97 * capacity, 4000, 10, 10, seed=2), "m")
    run = play(scenario(fleet, trace, limits=LONG))
    counts = Counter(s.event.replica for s in steps(run) if isinstance(s.event, RequestFinished))

    share = {name: (1 / k) / sum(1 / other for other in slowness.values()) for name, k in slowness.items()}  # fmt: skip
    for name, expected in share.items():
        assert counts[name] / 4000 == pytest.approx(expected, rel=0.06)


def test_a_straggler_that_nobody_announced_is_found_out(replica, scenario):
    trace = arrivals_of(poisson(20.0, 1500, 100, 50, seed=4), "m")
    fleet = [replica(name, max_sequences=32) for name in "abc"]
    even = play(scenario(fleet, trace))
    slow = play(scenario(fleet, trace, slowdowns={"a": 4.0}))

    def share(run: Run) -> float:
        counts = Counter(
            s.event.replica for s in steps(run) if isinstance(s.event, RequestFinished)
        )
        return counts["a"] / 1500

    assert share(even) == pytest.approx(1 / 3, abs=0.05)
    assert share(slow) < 0.1


def test_a_dead_replica_loses_only_answers_that_had_begun(replica, arrivals, scenario):
    rows = [(0.0, 2000, 50), (0.1, 2000, 50), (0.2, 2000, 50)]  # 210 ms a prompt, one after another
    faults = (Fault(at_s=0.3, replica="a", what="down"), Fault(at_s=2.0, replica="a", what="up"))
    run = play(scenario([replica("a")], arrivals(rows), faults=faults))

    assert [(one.request, one.code) for one in rejects(run)] == [(1, "replica_lost")]
    last = times(run, RequestFinished)
    assert set(last) == {2, 3}
    assert times(run, FirstToken)[2] == pytest.approx(2.0 + 0.21)
    up = next(s for s in steps(run) if isinstance(s.event, ReplicaUp) and s.event.epoch == 2)
    assert [action.epoch for action in up.actions] == [2, 2]


@pytest.mark.parametrize("driver", [play, play_compiled])
def test_newcomers_wait_for_a_promised_return_and_for_none_that_is_too_late_or_not_promised(
    driver, replica, arrivals, scenario
):
    def told(back_in_s: float | None, *, wait_s: float = 5.0) -> list[str]:
        faults = (
            Fault(at_s=1.0, replica="a", what="down", back_in_s=back_in_s),
            Fault(at_s=2.5, replica="a", what="up"),
        )
        rows, limits = [(0.5, 100, 500), (2.0, 100, 1)], {"queue_wait_s": wait_s}
        run = driver(scenario([replica()], arrivals(rows), faults=faults, limits=limits))
        return [*(one.code for one in rejects(run)), *(f"{one} ended" for one in times(run, RequestFinished))]  # fmt: skip

    assert told(3.0) == ["replica_lost", "2 ended"]
    assert told(6.0) == ["replica_lost", "2 ended"]  # which is 5 s later
    assert told(6.1) == ["replica_lost", "no_replica"]
    assert told(0.0, wait_s=1.0) == ["replica_lost", "2 ended"]  # overdue by 1 s
    assert told(0.0, wait_s=0.9) == ["replica_lost", "no_replica"]
    assert told(None) == ["replica_lost", "no_replica"]


def test_what_is_up_is_not_promised_and_a_promise_is_a_time():
    with pytest.raises(InputError, match=r"'up' of 'a' has a time to be back in; only 'down' takes one"):  # fmt: skip
        Fault(at_s=1.0, replica="a", what="up", back_in_s=1.0)
    for wrong_s in (-1.0, math.inf, math.nan):
        with pytest.raises(InputError, match=r"it has to be 0 or more, or not be said"):
            Fault(at_s=1.0, replica="a", what="down", back_in_s=wrong_s)


def test_work_moves_to_the_survivor_and_back(replica, scenario):
    trace = arrivals_of(poisson(20.0, 1000, 100, 20, seed=8), "m")
    faults = (Fault(at_s=10.0, replica="a", what="down"), Fault(at_s=30.0, replica="a", what="up"))
    fleet = [replica(name, max_sequences=64) for name in "ab"]
    run = play(scenario(fleet, trace, faults=faults))
    where: dict[str, list[float]] = defaultdict(list)
    for step in steps(run):
        if isinstance(step.event, RequestFinished):
            where[step.event.replica].append(step.event.at_s)

    assert not [at_s for at_s in where["a"] if 10.0 < at_s < 30.0]
    assert len([at_s for at_s in where["a"] if at_s > 30.0]) > 120
    assert {one.code for one in rejects(run)} == {"replica_lost"}
    assert len(rejects(run)) < 12


def test_a_replica_that_dies_twice_in_one_moment_is_dead_once(replica, arrivals, scenario):
    faults = tuple(Fault(at_s=1.0, replica="a", what="down") for _ in range(2))
    run = play(scenario([replica()], arrivals([(0.5, 100, 500), (2.0, 100, 1)]), faults=faults))

    assert sum(isinstance(s.event, ReplicaDown) for s in steps(run)) == 2
    assert [one.code for one in rejects(run)] == ["replica_lost", "no_replica"]


def test_the_client_cuts_the_answer_and_so_does_the_context(replica, arrivals, scenario):
    trace = (
        *arrivals([(0.0, 100, 500)], max_output_tokens=7),
        *arrivals([(9.0, 4000, 500)]),
        *arrivals([(99.0, 100, 3)], max_output_tokens=7),
    )
    run = play(scenario([replica()], trace))
    answers = [s.event.output_tokens for s in steps(run) if isinstance(s.event, RequestFinished)]

    assert answers == [7, 96, 3]


def test_a_client_that_loses_patience_frees_its_slot(replica, arrivals, scenario):
    trace = (
        *arrivals([(0.25, 100, 500)], patience_s=0.75),
        *arrivals([(0.5, 100, 5)], patience_s=9.0),  # waits for the slot, and is served in time
    )
    run = play(scenario([replica(max_sequences=1)], trace))
    gone = times(run, ClientGone)

    assert gone == {1: 1.0}
    assert set(times(run, RequestFinished)) == {2}
    boundary_s = 0.270 + math.ceil((1.0 - 0.270) / 0.0101) * 0.0101  # of the step that runs
    assert times(run, FirstToken)[2] == pytest.approx(boundary_s + 0.020)
    assert (
        run.end_s == times(run, RequestFinished)[2]
    )  # and not until an alarm that nobody waits for


def test_what_an_engine_cannot_take_is_a_400_of_its_own(replica, arrivals, scenario):
    run = play(scenario([replica()], arrivals([(0.0, 0, 5), (1.0, 10, 5)])))

    assert [(one.request, one.status, one.code) for one in rejects(run)] == [
        (1, 400, "engine_refused")
    ]
    assert sum(isinstance(s.event, RequestFailed) for s in steps(run)) == 1
    assert set(times(run, RequestFinished)) == {2}


def test_times_never_go_back(replica, arrivals, scenario):
    at_s = [step.event.at_s for step in steps(play(busy_fleet(replica, arrivals, scenario)))]

    assert at_s == sorted(at_s)


def test_at_one_moment_a_death_comes_before_an_arrival(replica, arrivals, scenario):
    faults = (Fault(at_s=1.0, replica="a", what="down"),)
    run = play(scenario([replica()], arrivals([(1.0, 10, 5)]), faults=faults))

    assert [one.code for one in rejects(run)] == ["no_replica"]


def test_a_slot_that_is_free_at_the_moment_of_an_arrival_is_free_for_it(
    replica, arrivals, scenario
):
    step = _flat(0.25)  # four steps in a second, exactly
    rows = [(0.0, 10, 4), (1.0, 10, 4)]
    limits = {"queue_requests": 0}
    fleet = [replica(step_time=step, max_sequences=1)]
    run = play(scenario(fleet, arrivals(rows), limits=limits))

    assert times(run, RequestFinished) == {1: 1.0, 2: 2.0}


def test_the_record_begins_with_what_the_run_was_made_from(replica, arrivals, scenario):
    one = scenario([replica()], arrivals([(0.0, 10, 5)]), seed=9, plan={"polypod": 1})
    other = scenario([replica()], arrivals([(0.0, 10, 6)]), seed=9, plan={"polypod": 2})
    header, differs = play(one).lines[0], play(other).lines[0]

    assert isinstance(header, Header)
    assert isinstance(differs, Header)
    assert (header.kind, header.seed, header.plan) == ("simulated", 9, {"polypod": 1})
    assert header.policy == one.settings
    assert header.started_utc is None
    assert header.trace_sha256 != differs.trace_sha256
    assert header.plan_sha256 != differs.plan_sha256
    assert len(header.trace_sha256 or "") == 64


def test_what_replicas_did_is_measured_over_all_their_starts(replica, arrivals, scenario):
    faults = (Fault(at_s=5.0, replica="a", what="down"), Fault(at_s=6.0, replica="a", what="up"))
    run = play(scenario([replica()], arrivals([(0.0, 100, 11), (7.0, 100, 11)]), faults=faults))
    measured = {line.name: line.value for line in run.lines if isinstance(line, Measure)}

    assert measured["busy_s"] == pytest.approx(2 * (0.020 + 10 * 0.0101))
    assert measured["computed_tokens"] == 2 * 110
    assert measured["preemptions"] == 0


def test_an_empty_trace_is_a_run_with_nothing_in_it(replica, scenario):
    run = play(scenario([replica()], ()))

    assert [type(line) for line in run.lines] == [Header, Step, *[Measure] * 4]
    assert run.end_s == 0.0


def test_a_fault_at_an_unknown_replica_names_the_nearest(replica, scenario):
    fault = Fault(at_s=1.0, replica="poo-1", what="down")
    with pytest.raises(
        InputError, match="no replica of this scenario is called 'poo-1'; nearest: pool-1"
    ):
        scenario([replica("pool-1"), replica("x")], (), faults=(fault,))


def test_two_replicas_of_one_name_are_refused(replica, scenario):
    with pytest.raises(InputError, match="several replicas are called a; give every pool its own"):
        scenario([replica("a"), replica("a")], ())


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_a_slowdown_that_cannot_be_is_refused(replica, scenario, factor):
    with pytest.raises(InputError, match="the slowdown of 'a'"):
        scenario([replica()], (), slowdowns={"a": factor})


def test_several_models_share_a_run(replica):
    services = tuple(ServiceSettings(model=m, context_tokens=4096) for m in ("m", "n"))
    trace = tuple(
        Arrival(at_s=float(n), model="mn"[n % 2], input_tokens=10, output_tokens=5)
        for n in range(10)
    )
    fleet = (replica("a"), replica("b", model="n"))
    run = play(Scenario(replicas=fleet, settings=PolicySettings(services=services), trace=trace))
    finished = [s.event for s in steps(run) if isinstance(s.event, RequestFinished)]

    assert {(event.request % 2, event.replica) for event in finished} == {(1, "a"), (0, "b")}


def _flat(step_s: float) -> StepTime:
    """The same time for every step, whatever is in it."""
    return StepTime(tokens=(0, 1), seconds=(step_s, step_s), kv_token_s=0.0, pair_s=0.0)


def test_a_slow_replica_takes_so_many_times_as_long_from_its_next_step_on(
    replica, arrivals, scenario
):
    slow = Fault(at_s=1.0, replica="a", what="speed", factor=3.0)
    run = play(scenario([replica()], arrivals([(1.0, 100, 11), (9.0, 100, 1)]), faults=(slow,)))

    assert times(run, FirstToken)[1] == pytest.approx(1.0 + 3 * 0.020)
    assert times(run, RequestFinished)[1] == pytest.approx(1.0 + 3 * (0.020 + 10 * 0.0101))


def test_a_replica_that_hangs_answers_nothing_until_it_is_taken_down(replica, arrivals, scenario):
    faults = (
        Fault(at_s=1.05, replica="a", what="hang"),
        Fault(at_s=5.0, replica="a", what="down"),
        Fault(at_s=6.0, replica="a", what="up"),
    )
    run = play(
        scenario(
            [replica()], arrivals([(1.0, 100, 50), (2.0, 100, 2), (7.0, 100, 2)]), faults=faults
        )
    )

    first = times(run, FirstToken)
    assert list(first) == [1, 2, 3]
    assert first[2] == pytest.approx(
        6.0 + 0.020
    )  # nobody knew before, and then it went to the next start
    assert [one.code for one in rejects(run)] == ["replica_lost"]


def test_a_run_ends_with_its_last_request_whatever_is_repaired_later(replica, arrivals, scenario):
    faults = (Fault(at_s=0.1, replica="b", what="down"), Fault(at_s=900.0, replica="b", what="up"))
    run = play(scenario([replica(), replica("b")], arrivals([(1.0, 100, 11)]), faults=faults))

    assert run.end_s == times(run, RequestFinished)[1] < 2
