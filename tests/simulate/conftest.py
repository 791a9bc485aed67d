"""Small fleets and traces."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from polypod.cost.steptime import StepTime
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp
from polypod.simulate import Arrival, Scenario

STEP = StepTime(tokens=(0, 1000), seconds=(0.010, 0.110), kv_token_s=0.0, pair_s=0.0)
"""10 ms a step, and 0.1 ms a token."""


def replica(name: str = "a", **over: Any) -> ReplicaUp:
    known: dict[str, Any] = {
        "at_s": 0.0, "replica": name, "epoch": 1, "model": "m", "pool": "p", "role": "both",
        "step_time": STEP, "context_tokens": 4096, "kv_capacity_tokens": 100_000, "max_sequences": 8,
        "max_step_tokens": 2000,
    }  # fmt: skip
    return ReplicaUp(**(known | over))


def arrivals(rows: Iterable[tuple[float, int, int]], **over: Any) -> tuple[Arrival, ...]:
    return tuple(
        Arrival(at_s=at_s, model="m", input_tokens=prompt, output_tokens=answer, **over)
        for at_s, prompt, answer in rows
    )


def scenario(
    replicas: Iterable[ReplicaUp],
    trace: Iterable[Arrival],
    *,
    limits: dict[str, Any] | None = None,
    **rest: Any,
) -> Scenario:
    service = ServiceSettings(model="m", context_tokens=4096)
    settings = PolicySettings(services=(service,), **({"queue_requests": 10**6} | (limits or {})))
    return Scenario(replicas=tuple(replicas), settings=settings, trace=tuple(trace), **rest)


@pytest.fixture(scope="session")
def make() -> dict[str, Callable[..., Any]]:
    return {"replica": replica, "arrivals": arrivals, "scenario": scenario}
