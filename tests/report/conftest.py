"""Lines of records, short enough to write a run by hand."""

from types import SimpleNamespace
from typing import Any

import pytest

from polypod.cost.steptime import StepTime
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.actions import Decode, Dispatch, Prefill, Reject, Retry, TransferKv
from polypod.policy.events import (
    ClientGone,
    FirstToken,
    KvArrived,
    PrefillFinished,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFinished,
)
from polypod.record import Header, Line, Measure, PlanNote, Step

STEP_TIME = StepTime(tokens=(0, 1), seconds=(1.0, 1.0), kv_token_s=0.0, pair_s=0.0)


def header(**over: Any) -> Header:
    policy = PolicySettings(services=(ServiceSettings(model="m", context_tokens=9),))
    return Header(**({"kind": "simulated", "polypod": "0", "policy": policy} | over))


def up(replica: str = "a", at_s: float = 0.0, epoch: int = 1, **over: Any) -> Step:
    known: dict[str, Any] = {
        "model": "m", "pool": "p", "role": "both", "step_time": STEP_TIME, "context_tokens": 9, "kv_capacity_tokens": 1000,
        "max_sequences": 4, "max_step_tokens": 9,
    }  # fmt: skip
    return Step(event=ReplicaUp(at_s=at_s, replica=replica, epoch=epoch, **(known | over)))


def down(replica: str, at_s: float, *actions: Any, epoch: int = 1, reason: str = "x") -> Step:
    event = ReplicaDown(at_s=at_s, replica=replica, epoch=epoch, reason=reason)
    return Step(event=event, actions=list(actions))


def arrived(request: int, at_s: float, *actions: Any, **over: Any) -> Step:
    known = {"model": "m", "input_tokens": 100}
    event = RequestArrived(at_s=at_s, request=request, **(known | over))
    return Step(event=event, actions=list(actions))


def about(request: int, replica: str, attempt: int = 1, epoch: int = 1) -> dict[str, Any]:
    return {"request": request, "attempt": attempt, "replica": replica, "epoch": epoch}


def place(request: int, replica: str = "a", predicted_s: float = 0.1, **over: Any) -> Dispatch:
    return Dispatch(
        **about(request, replica, **over), predicted_first_token_s=predicted_s, predicted_token_s=0.0
    )  # fmt: skip


def first(request: int, at_s: float, replica: str = "a", *actions: Any, **over: Any) -> Step:
    return Step(
        event=FirstToken(at_s=at_s, **about(request, replica, **over)), actions=list(actions)
    )


def finished(
    request: int, at_s: float, tokens: int = 11, replica: str = "a", *actions: Any, **over: Any
) -> Step:
    event = RequestFinished(at_s=at_s, **about(request, replica, **over), output_tokens=tokens)
    return Step(event=event, actions=list(actions))


def gone(request: int, at_s: float) -> Step:
    return Step(event=ClientGone(at_s=at_s, request=request))


def prefilled(request: int, at_s: float, replica: str, *actions: Any) -> Step:
    event = PrefillFinished(at_s=at_s, **about(request, replica), kv_tokens=100)
    return Step(event=event, actions=list(actions))


def kv_arrived(request: int, at_s: float, replica: str, *actions: Any) -> Step:
    return Step(event=KvArrived(at_s=at_s, **about(request, replica)), actions=list(actions))


def reject(request: int, status: int = 429, code: str = "queue_full") -> Reject:
    return Reject(request=request, status=status, code=code, message="x")


def retry(request: int, attempt: int = 1, reason: Any = "replica_down") -> Retry:
    return Retry(request=request, attempt=attempt, reason=reason)


def whole(
    request: int, at_s: float, ttft_s: float = 0.5, e2e_s: float = 1.5, tokens: int = 11, replica: str = "a", **over: Any
) -> list[Line]:  # fmt: skip
    return [
        arrived(request, at_s, place(request, replica), **over),
        first(request, at_s + ttft_s, replica),
        finished(request, at_s + e2e_s, tokens, replica),
    ]


def apart(request: int, at_s: float) -> list[Line]:
    """Prompt on a from 1 s on, for 2 s; half a second until there is a place; transfer to b, 1 s; first token 0.25 s later; end 4 s after that."""
    place_there = TransferKv(**about(request, "b"), source="a", source_epoch=1)
    t = at_s
    return [
        arrived(request, t),
        finished(99, t + 1.0, 1, "a", Prefill(**about(request, "a"))),
        prefilled(request, t + 3.0, "a"),
        finished(98, t + 3.5, 1, "b", place_there),
        kv_arrived(request, t + 4.5, "b", Decode(**about(request, "b"))),
        first(request, t + 4.75, "b"),
        finished(request, t + 8.75, 17, "b"),
    ]


def measure(at_s: float, of: str, name: str, value: float) -> Measure:
    return Measure(at_s=at_s, of=of, name=name, value=value)


def brought_to(at_s: float, plan: dict[str, Any]) -> PlanNote:
    return PlanNote(at_s=at_s, plan=plan, plan_sha256="")


def in_order(lines: list[Line]) -> list[Line]:
    """Steps in the order of their times."""
    return sorted(lines, key=lambda line: line.event.at_s if isinstance(line, Step) else -1.0)


@pytest.fixture
def say() -> SimpleNamespace:
    """What lines are made with."""
    return SimpleNamespace(
        header=header, up=up, down=down, arrived=arrived, place=place, first=first, finished=finished, gone=gone, prefilled=prefilled,
        kv_arrived=kv_arrived, reject=reject, retry=retry, whole=whole, apart=apart, measure=measure, in_order=in_order,
        brought_to=brought_to,
    )  # fmt: skip
