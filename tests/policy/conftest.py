"""A policy under a driver that checks the books and the lifecycle after every event.

What is told returns the answer in short: `Dispatch a`, `Reject 503 no_replica`, `Retry busy`; `last` has it in full.
"""

from typing import Any

import pytest

from polypod.cost.steptime import StepTime
from polypod.policy import Policy, PolicySettings, ServiceSettings
from polypod.policy.actions import AnyAction, Dispatch, Reject
from polypod.policy.events import (
    AnyEvent,
    ClientGone,
    FirstToken,
    ReplicaBusy,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    Woke,
)
from polypod.policy.lifecycle import Validator

STEP = StepTime(
    tokens=(0, 1000), seconds=(0.010, 0.110), kv_token_s=0.0, pair_s=0.0
)  # 10 ms, and 0.1 ms a token


class Node:
    """One policy; times are given by `at`, which stays until it is moved."""

    def __init__(self, *, seed: int = 0, models: tuple[str, ...] = ("m",), **limits: Any) -> None:
        context = limits.pop("context_tokens", 4096)
        mean = limits.pop("mean_output_tokens", 100.0)
        limit_s = limits.pop("first_token_limit_s", None)
        services = tuple(
            ServiceSettings(
                model=model,
                context_tokens=context,
                mean_output_tokens=mean,
                first_token_limit_s=limit_s,
            )
            for model in models
        )
        self.policy = Policy(PolicySettings(services=services, **limits), seed=seed)
        self.validator = Validator()
        self.at = 0.0
        self.dispatches: dict[int, Dispatch] = {}
        self.last: list[AnyAction] = []
        self.log: list[tuple[AnyEvent, list[AnyAction]]] = []

    def tell(self, event: AnyEvent) -> list[str]:
        actions = self.policy.handle(event)
        self.policy.check()
        self.validator.feed(event, actions)
        self.last = actions
        self.log.append((event, actions))
        for action in actions:
            if isinstance(action, Dispatch):
                self.dispatches[action.request] = action
        return words(actions)

    def up(self, replica: str = "a", **over: Any) -> list[str]:
        known: dict[str, Any] = {
            "at_s": self.at, "replica": replica, "epoch": 1, "model": "m", "pool": "p", "role": "both",
            "step_time": STEP, "context_tokens": 4096, "kv_capacity_tokens": 100_000, "max_sequences": 8,
            "max_step_tokens": 1000,
        }  # fmt: skip
        return self.tell(ReplicaUp(**(known | over)))

    def down(self, replica: str = "a", epoch: int = 1) -> list[str]:
        return self.tell(ReplicaDown(at_s=self.at, replica=replica, epoch=epoch, reason="it ended"))

    def arrive(self, request: int, **over: Any) -> list[str]:
        known: dict[str, Any] = {"model": "m", "input_tokens": 100, "max_output_tokens": 50}
        return self.tell(RequestArrived(at_s=self.at, request=request, **(known | over)))

    def first(self, request: int) -> list[str]:
        return self.tell(FirstToken(at_s=self.at, **self._attempt(request)))

    def finish(self, request: int, output_tokens: int = 50) -> list[str]:
        return self.tell(
            RequestFinished(at_s=self.at, output_tokens=output_tokens, **self._attempt(request))
        )

    def fail(self, request: int, kind: Any = "lost", **over: Any) -> list[str]:
        return self.tell(RequestFailed(at_s=self.at, kind=kind, **(self._attempt(request) | over)))

    def busy(self, request: int, retry_after_s: float | None = None) -> list[str]:
        return self.tell(
            ReplicaBusy(at_s=self.at, retry_after_s=retry_after_s, **self._attempt(request))
        )

    def gone(self, request: int) -> list[str]:
        return self.tell(ClientGone(at_s=self.at, request=request))

    def wake(self) -> list[str]:
        return self.tell(Woke(at_s=self.at))

    def where(self, request: int) -> str:
        return self.dispatches[request].replica

    def _attempt(self, request: int) -> dict[str, Any]:
        last = self.dispatches[request]
        return {
            "request": request,
            "attempt": last.attempt,
            "replica": last.replica,
            "epoch": last.epoch,
        }


def words(actions: list[AnyAction]) -> list[str]:
    told = []
    for action in actions:
        parts = [type(action).__name__]
        parts += [str(action.status), action.code] if isinstance(action, Reject) else []
        parts += [
            str(getattr(action, name)) for name in ("replica", "reason") if hasattr(action, name)
        ]
        told.append(" ".join(parts))
    return told


@pytest.fixture(scope="session")
def new_node() -> type[Node]:
    return Node
