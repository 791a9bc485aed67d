"""What a fleet carries, beside runs at rates below and above."""

from typing import Any

import pytest

from polypod.cost.steptime import StepTime
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp, RequestFinished
from polypod.record import Step
from polypod.simulate import Scenario, arrivals
from polypod.simulate.capacity import Lengths, capacity_per_s, held_tokens
from polypod.simulate.compiled import play_compiled
from polypod.workload.traffic import poisson

STEP = StepTime(
    tokens=(1, 64, 256, 1024, 8192), seconds=(0.010, 0.011, 0.015, 0.040, 0.300),
    kv_token_s=1e-8, pair_s=1e-10,
)  # fmt: skip


def replica(name: str = "r", **over: Any) -> ReplicaUp:
    known: dict[str, Any] = {
        "at_s": 0.0, "replica": name, "epoch": 1, "model": "m", "pool": name, "role": "both", "step_time": STEP,
        "context_tokens": 8192, "kv_capacity_tokens": 200_000, "max_sequences": 64, "max_step_tokens": 2048,
    }  # fmt: skip
    return ReplicaUp(**(known | over))


def finished_per_s(replicas: list[ReplicaUp], rate_per_s: float) -> float:
    """Over the middle of a run whose queue is never empty, if the rate is too high."""
    settings = PolicySettings(
        services=(ServiceSettings(model="m", context_tokens=8192),), queue_requests=10**6, queue_wait_s=1e6
    )  # fmt: skip
    trace = arrivals(poisson(rate_per_s, 6000, 900, 120, seed=1), "m")
    run = play_compiled(Scenario(replicas=tuple(replicas), settings=settings, trace=trace))
    ends = [line.event.at_s for line in run.lines if isinstance(line, Step) and isinstance(line.event, RequestFinished)]  # fmt: skip
    first, last = len(ends) // 4, 3 * len(ends) // 4
    return (last - first) / (ends[last] - ends[first])


@pytest.mark.parametrize(
    "replicas",
    [
        [replica()],
        [replica(max_sequences=8)],
        [replica(kv_capacity_tokens=12_000)],
        [replica("p", role="prefill"), replica("d", role="decode")],
        [replica("a"), replica("b", step_time=STEP.scaled(2))],
    ],
)
def test_a_flooded_fleet_finishes_about_what_it_is_said_to_carry(replicas):
    lengths = Lengths(rate_per_s=1.0, input_tokens=900, output_tokens=120)
    said = capacity_per_s(replicas, "m", lengths)

    assert finished_per_s(replicas, 10 * said) == pytest.approx(said, rel=0.2)


def test_the_longest_request_is_what_both_phases_hold():
    apart = [replica("p", role="prefill"), replica("d", role="decode", kv_capacity_tokens=5000)]

    assert held_tokens([replica()], "m") == 8192
    assert held_tokens(apart, "m") == 5000
    assert held_tokens(apart, "other") == 0
