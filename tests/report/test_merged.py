"""Runs of several gateways as one."""

from dataclasses import replace

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.policy.actions import Dispatch, Reject
from polypod.policy.events import (
    FirstToken,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFinished,
)
from polypod.record import FaultNote, Measure, Step, ended
from polypod.report.fold import fold
from polypod.report.merged import merged
from polypod.report.outcomes import Outcomes
from polypod.report.summary import power_of, summary_of

STEP = StepTime(tokens=(1, 64), seconds=(0.01, 0.02), kv_token_s=0.0, pair_s=0.0)


def up(name: str, pool: str) -> Step:
    return Step(
        event=ReplicaUp(
            at_s=0.0, replica=name, epoch=1, model="m", pool=pool, role="both", step_time=STEP, context_tokens=9000,
            kv_capacity_tokens=4000, max_sequences=8, max_step_tokens=2048,
        )
    )  # fmt: skip


def answered(number: int, at_s: float, replica: str) -> list[Step]:
    about = {"request": number, "attempt": 1, "replica": replica, "epoch": 1}
    arrived = RequestArrived(at_s=at_s, request=number, model="m", input_tokens=100)
    place = Dispatch(**about, predicted_first_token_s=0.1, predicted_token_s=0.01)
    return [
        Step(event=arrived, actions=[place]),
        Step(event=FirstToken(at_s=at_s + 0.25, **about)),
        Step(event=RequestFinished(at_s=at_s + 1.25, **about, output_tokens=11)),
    ]


def part(pools: dict[str, str], times_s: list[float], *lines: object) -> Outcomes:
    """A gateway whose first replica answers all, with other lines after."""
    first = next(iter(pools))
    steps = [up(name, pool) for name, pool in pools.items()]
    for number, at_s in enumerate(times_s, start=1):
        steps += answered(number, at_s, first)
    return fold([*steps, *lines, ended(times_s[-1] + 1.25)])


def watts(*samples: tuple[float, float]) -> list[Measure]:
    return [Measure(at_s=at_s, of="x", name="watts", value=value) for at_s, value in samples]


def test_requests_stand_in_the_order_of_arrival_with_their_own_times_and_places():
    whole = merged([part({"x-0": "x", "y-0": "y"}, [1.0, 3.0]), part({"x-1": "x", "y-1": "y"}, [2.0, 3.0, 4.0])])  # fmt: skip

    assert [one.name for one in whole.replicas] == ["x-0", "x-1", "y-0", "y-1"]
    assert whole.requests.arrival_s.tolist() == [1.0, 2.0, 3.0, 3.0, 4.0]
    assert whole.requests.number.tolist() == [1, 2, 3, 4, 5]
    assert [whole.replicas[n].name for n in whole.requests.decode_replica] == ["x-0", "x-1", "x-0", "x-1", "x-1"]  # fmt: skip
    assert np.all(whole.ttft_s == 0.25)
    stays = whole.stays
    assert np.array_equal(whole.requests.arrival_s[stays.row], stays.begin_s)
    assert np.array_equal(whole.requests.decode_replica[stays.row], stays.replica)
    assert whole.is_whole


def test_the_whole_is_what_one_record_of_all_would_say():
    lines = [*answered(1, 1.0, "a"), *answered(2, 2.0, "b"), *answered(3, 2.5, "a")]
    together = fold([up("a", "x"), up("b", "x"), *sorted(lines, key=lambda step: step.event.at_s), ended(3.75)])  # fmt: skip

    whole = summary_of(merged([part({"a": "x"}, [1.0, 2.5]), part({"b": "x"}, [2.0])]))

    assert replace(whole, replicas=()) == replace(summary_of(together), replicas=())
    assert [(one.name, one.requests, one.up_s) for one in whole.replicas] == [("a", 2, 3.75), ("b", 1, 3.75)]  # fmt: skip


def test_models_and_codes_are_joined_by_name():
    lost = RequestArrived(at_s=0.5, request=9, model="other", input_tokens=1)
    refused = Step(event=lost, actions=[Reject(request=9, status=404, code="model_not_found", message="no such model")])  # fmt: skip
    full = Step(event=RequestArrived(at_s=0.25, request=8, model="m", input_tokens=1), actions=[Reject(request=8, status=429, code="queue_full", message="full")])  # fmt: skip
    one = fold([up("a", "x"), full, *answered(9, 1.0, "a"), ended(2.25)])
    whole = merged([one, fold([up("b", "x"), refused, *answered(10, 1.5, "b"), ended(2.75)])])

    names = [whole.models[n] for n in whole.requests.model]
    assert names == ["m", "other", "m", "m"]
    assert whole.requests.code.tolist() == [0, 1, -1, -1]
    assert whole.codes == ("queue_full", "model_not_found")


def test_counts_are_added_where_they_were_counted_and_none_is_lost():
    def counts(*samples: tuple[float, float]) -> list[Measure]:
        return [Measure(at_s=at_s, of="x", name="output_tokens", value=value) for at_s, value in samples]  # fmt: skip

    whole = merged([
        part({"a": "x"}, [0.0, 18.0], *counts((10.0, 5.0), (19.25, 7.0))),
        part({"b": "x"}, [0.0, 3.0], *counts((4.25, 2.0))),
    ])  # fmt: skip

    found = whole.series["x", "output_tokens"]
    assert found.at_s.tolist() == [4.25, 10.0, 19.25]
    assert found.value.tolist() == [2.0, 5.0, 7.0]


def test_watts_add_up_and_one_that_ended_draws_its_least_until_the_end():
    parts = [
        part({"a": "x"}, [0.0, 18.0], *watts((10.0, 100.0), (19.25, 200.0))),
        part({"b": "x"}, [0.0, 13.0], *watts((10.0, 30.0), (14.25, 50.0))),
    ]

    found = merged(parts).series["x", "watts"]

    assert found.at_s.tolist() == [10.0, 14.25, 19.25]
    assert found.value.tolist() == [130.0, 250.0, 230.0]
    joules = [power_of(one, 1).joules_per_token for one in parts]
    assert power_of(merged(parts), 1).joules_per_token == pytest.approx(sum(joules) + 5.0 * 30.0)


def test_pue_is_that_of_the_watts_inside():
    def site(value: float, pue: float) -> list[Measure]:
        return [Measure(at_s=5.0, of="site", name=name, value=x) for name, x in (("site_watts", value), ("pue", pue))]  # fmt: skip

    whole = merged([part({"a": "x"}, [3.75], *site(120.0, 1.2)), part({"b": "x"}, [3.75], *site(450.0, 1.5))])  # fmt: skip

    assert whole.series["site", "site_watts"].value.tolist() == [570.0]
    assert whole.series["site", "pue"].value[0] == pytest.approx(570.0 / 400.0)


def test_a_fault_of_several_gateways_is_one_and_back_times_are_kept():
    def note(*names: str) -> FaultNote:
        return FaultNote(id=4, at_s=1.0, what="crash", where="rack a/0", replicas=names, back_s=9.0)

    whole = merged([part({"a": "x"}, [2.0], note("a")), part({"b": "x"}, [2.0], note("b"))])

    assert [(fault.id, fault.replicas, fault.back_s) for fault in whole.faults] == [("4", ("a", "b"), 9.0)]  # fmt: skip


def test_the_whole_ends_with_its_last_request_though_a_repair_lasts_longer():
    down = Step(event=ReplicaDown(at_s=2.0, replica="a2", epoch=1, reason="a fault"))
    again = replace_up(up("a2", "x"), 5000.0)
    long = fold([up("a", "x"), up("a2", "x"), *answered(1, 0.0, "a"), down, again, *watts((10.0, 7.0), (5000.0, 1.0)), ended(5000.0)])  # fmt: skip
    whole = merged([long, part({"b": "x"}, [0.0, 8.75], *watts((10.0, 5.0)))])

    assert whole.end_s == 10.0
    assert [one.up for one in whole.replicas] == [((0.0, 10.0),), ((0.0, 2.0),), ((0.0, 10.0),)]
    assert whole.series["x", "watts"].at_s.tolist() == [10.0]


def replace_up(step: Step, at_s: float) -> Step:
    fields = {name: getattr(step.event, name) for name in step.event.__struct_fields__}
    return Step(event=ReplicaUp(**fields | {"at_s": at_s, "epoch": 2}))


def test_one_gateway_is_the_whole():
    one = part({"a": "x"}, [1.0], *watts((2.25, 4.0)))
    whole = merged([one])

    assert summary_of(whole) == summary_of(one)
