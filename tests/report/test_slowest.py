"""Slow requests explained: their stages add up, and every step is there."""

import json

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.errors import UnknownNameError
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp
from polypod.report.fold import fold
from polypod.report.slowest import slowest, slowest_json, slowest_text, stages_of
from polypod.simulate import Scenario, arrivals, play
from polypod.simulate.scenario import Fault
from polypod.workload.traffic import poisson


def crowded():
    step = StepTime(tokens=(1, 64, 1024), seconds=(0.01, 0.02, 0.1), kv_token_s=1e-8, pair_s=1e-10)
    ups = tuple(
        ReplicaUp(
            at_s=0.0, replica=f"r{n}", epoch=1, model="m", pool="p", role="both", step_time=step, context_tokens=9000,
            kv_capacity_tokens=20_000, max_sequences=8, max_step_tokens=1024,
        )
        for n in range(4)
    )  # fmt: skip
    faults = (Fault(at_s=3.0, replica="r0", what="down"), Fault(at_s=5.0, replica="r0", what="up"))
    settings = PolicySettings(services=(ServiceSettings(model="m", context_tokens=9000),))
    trace = arrivals(poisson(40.0, 300, 500, 40, seed=2), "m")
    return play(Scenario(replicas=ups, settings=settings, trace=trace, seed=2, faults=faults)).lines


def test_stages_add_up_to_the_whole_time_of_every_request():
    outcomes = fold(crowded())
    requests = outcomes.requests
    for row in range(len(outcomes)):
        whole_s = requests.end_s[row] - requests.arrival_s[row]
        assert stages_of(outcomes, row).total_s == pytest.approx(whole_s, abs=1e-9)
    assert len(outcomes) == 300


def test_stages_of_a_request_that_waits_is_lost_and_served_again(say):
    outcomes = fold(
        [
            say.header(),
            say.up("a"),
            say.up("b"),
            say.arrived(1, 0.0),
            say.finished(77, 3.0, 1, "b", say.place(1, "a")),
            say.down("a", 5.0, say.retry(1)),
            say.finished(78, 5.5, 1, "b", say.place(1, "b", attempt=2)),
            say.first(1, 6.5, "b", attempt=2),
            say.finished(1, 12.5, 5, "b", attempt=2),
        ]
    )
    stages = stages_of(outcomes, 0)

    assert (stages.waited_s, stages.lost_s) == (3.5, 2.0)
    assert (stages.prefill_s, stages.transfer_s, stages.decode_s) == (1.0, 0.0, 6.0)


def test_stages_of_prefill_and_decode_apart(say):
    outcomes = fold([say.header(), say.up("a", role="prefill"), say.up("b", role="decode"), *say.apart(1, 0.0)])  # fmt: skip
    stages = stages_of(outcomes, 0)

    assert (stages.waited_s, stages.prefill_s, stages.transfer_s) == (1.5, 2.0, 1.0)
    assert (stages.decode_s, stages.lost_s) == (4.25, 0.0)


def test_an_answer_in_one_piece_is_all_decode(say):
    outcomes = fold([say.header(), say.up(), say.arrived(1, 0.0, say.place(1)), say.finished(1, 3.0)])  # fmt: skip

    assert (stages_of(outcomes, 0).prefill_s, stages_of(outcomes, 0).decode_s) == (0.0, 3.0)


def test_the_slowest_come_first_by_what_is_asked(say):
    lines = [say.header(), say.up(max_sequences=99)]
    lines += say.whole(1, 0.0, ttft_s=3.0, e2e_s=4.0, tokens=101)
    lines += say.whole(2, 10.0, ttft_s=0.1, e2e_s=9.0, tokens=101)
    lines += say.whole(3, 20.0, ttft_s=0.2, e2e_s=2.0, tokens=2)
    outcomes = fold(lines)

    assert [one.request for one in slowest(outcomes)] == [2, 1, 3]
    assert [one.request for one in slowest(outcomes, by="ttft")] == [1, 3, 2]
    assert [one.request for one in slowest(outcomes, by="tpot")] == [3, 2, 1]
    assert [one.request for one in slowest(outcomes, 1)] == [2]
    assert slowest(outcomes)[0].median_by_s == 4.0
    with pytest.raises(UnknownNameError, match="no measure of slowness is called 'width'"):
        slowest(outcomes, by="width")


def test_every_step_is_told_in_order_with_the_reason_of_the_wait(say):
    full = [say.arrived(n, 2.0, say.place(n)) for n in range(2, 6)]  # at the same moment
    lines = [
        say.header(),
        say.up("a", max_sequences=4),
        say.arrived(8, 1.5),
        *full,
        say.arrived(1, 2.0),
        say.finished(2, 6.0, 5, "a", say.place(1, "a", predicted_s=0.25)),
        say.first(1, 7.0),
        say.finished(1, 30.0, 5),
    ]
    one = next(one for one in slowest(fold(lines)) if one.request == 1)

    assert [moment.at_s for moment in one.moments] == [2.0, 2.0, 6.0, 7.0, 30.0]
    assert [moment.what for moment in one.moments] == [
        "arrived",
        "waits 4 s, no room: 4 of 4 slots on 1 replicas, 1 waiting",
        "dispatched to a, first token predicted in 250 ms",
        "first token",
        "finished",
    ]


def test_a_wait_with_no_replica_up_says_so(say):
    lines = [say.header(), say.arrived(1, 2.0), say.up("a", 5.0)]
    lines += [say.finished(9, 5.0, 1, "a", say.place(1)), say.finished(1, 6.0, 5)]
    (one,) = slowest(fold(lines))

    assert one.moments[1].what == "waits 3 s, no replica of m is up"


def test_a_wait_with_free_slots_is_the_routers(say):
    lines = [say.header(), say.up("a"), say.arrived(1, 2.0), say.finished(9, 5.0, 1, "a", say.place(1)), say.finished(1, 6.0, 5)]  # fmt: skip
    (one,) = slowest(fold(lines))

    assert one.moments[1].what == "waits 3 s, held back: 0 of 4 slots on 1 replicas, 0 waiting"


def test_a_wait_after_the_prompt_is_for_a_place_to_decode(say):
    lines = [say.header(), say.up("a", role="prefill"), say.up("b", role="decode", max_sequences=1)]
    lines += say.apart(1, 0.0)  # at b from 3.5 s to 8.75 s
    lines += [line for line in say.apart(2, 5.0) if line.event.at_s < 8.4 or line.event.at_s > 9]
    two = next(one for one in slowest(fold(say.in_order(lines))) if one.request == 2)

    assert [moment.what for moment in two.moments[1:4]] == [
        "waits 1 s, held back: 0 of 4 slots on 1 replicas, 0 waiting",
        "prefill to a",
        "prefilled",
    ]
    assert two.moments[4].what == "waits 1.5 s, no room: 1 of 1 slots on 1 replicas, 0 waiting"


def test_what_comes_at_one_moment_is_told_in_the_order_it_happens(say):
    lines = [say.header(), say.up("a", role="prefill"), say.up("b", role="decode"), *say.apart(1, 0.0)]  # fmt: skip
    (one,) = slowest(fold(lines))

    assert [moment.what for moment in one.moments] == [
        "arrived", "waits 1 s, held back: 0 of 4 slots on 1 replicas, 0 waiting", "prefill to a", "prefilled",
        "waits 500 ms, held back: 0 of 4 slots on 1 replicas, 0 waiting", "transfer of its cache to b", "decode to b", "first token", "finished",
    ]  # fmt: skip


def test_faults_under_way_at_replicas_of_its_model_are_named_and_no_others(say):
    lines = [
        say.header(),
        say.up("a"),
        say.up("b"),
        say.up("c", model="n"),
        say.down("a", 1.0, reason="rack"),
        say.down("c", 2.0, reason="other model"),
        say.up("a", 3.0, epoch=2),
        *say.whole(1, 2.5, replica="b"),
        *say.whole(2, 3.5, replica="b"),
    ]
    by_number = {one.request: one for one in slowest(fold(lines))}

    assert by_number[1].faults == ("down1 (rack at a), from 1 s until 3 s",)
    assert by_number[2].faults == ()


def test_text_fits_eighty_columns_and_the_object_form_is_json():
    found = slowest(fold(crowded()), 20)
    text = slowest_text(found)

    assert len(found) == 20
    assert max(map(len, text.splitlines())) <= 80
    assert json.loads(json.dumps(slowest_json(found)))[0]["stages"]["waited_s"] >= 0
    assert text.splitlines()[0].startswith("1. request ")
    assert np.all(np.diff([one.by_s for one in found]) <= 0)


def test_no_request_is_said_so(say):
    assert (
        slowest_text(slowest(fold([say.header()]))) == "no request of this record has that measure"
    )
