"""The driver, with a policy that answers by rote."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from polypod.cost.steptime import StepTime
from polypod.policy.actions import (
    AnyAction,
    Cancel,
    Decode,
    Dispatch,
    Drain,
    Prefill,
    Reject,
    Retry,
    Scale,
    TransferKv,
    WakeAt,
)
from polypod.policy.events import AnyEvent, ClientGone, ReplicaDown, ReplicaUp, Woke
from polypod.record import Line, Step
from polypod.serve.engines.spec import Endpoint
from polypod.serve.loop import Driver, Outlets

STEP = StepTime(tokens=(1, 2), seconds=(0.1, 0.2), kv_token_s=0.0, pair_s=0.0)
PLACE = {"attempt": 1, "replica": "a", "epoch": 1}
ENDPOINT = Endpoint(socket=Path("/run/a.sock"))


class ByRote:
    """Answers each event with the next list, then with nothing."""

    def __init__(self, *answers: list[AnyAction]) -> None:
        self.heard: list[AnyEvent] = []
        self._answers = list(answers)

    def handle(self, event: AnyEvent) -> list[AnyAction]:
        self.heard.append(event)
        return self._answers.pop(0) if self._answers else []


def gone(request: int = 1) -> ClientGone:
    return ClientGone(at_s=0.0, request=request)


def up(epoch: int = 1) -> ReplicaUp:
    return ReplicaUp(
        at_s=0.0,
        replica="a",
        epoch=epoch,
        model="m",
        pool="p",
        role="both",
        step_time=STEP,
        context_tokens=9,
        kv_capacity_tokens=9,
        max_sequences=1,
        max_step_tokens=9,
    )


def dispatch(request: int) -> Dispatch:
    return Dispatch(request=request, predicted_first_token_s=0.0, predicted_token_s=0.0, **PLACE)


def reject(request: int) -> Reject:
    return Reject(request=request, status=503, code="c", message="m")


def test_each_action_reaches_the_request_it_is_about() -> None:
    actions: list[AnyAction] = [
        dispatch(2),
        Retry(request=1, attempt=1, reason="lost"),
        Cancel(request=2, **PLACE),
        reject(1),
    ]
    driver = Driver(ByRote(actions))
    taken: list[tuple[int, AnyAction]] = []
    first = driver.open(lambda action: taken.append((1, action)))
    second = driver.open(lambda action: taken.append((2, action)))
    driver.tell(gone())

    assert (first, second) == (1, 2)
    assert taken == [(2, actions[0]), (1, actions[1]), (2, actions[2]), (1, actions[3])]


def test_a_closed_request_hears_nothing_more() -> None:
    driver = Driver(ByRote([dispatch(1)]))
    taken: list[AnyAction] = []
    driver.close(driver.open(taken.append))
    driver.tell(gone())

    assert taken == []


def test_every_event_is_recorded_with_its_answer_before_it_is_carried_out() -> None:
    lines: list[Line] = []
    seen: list[int] = []
    driver = Driver(ByRote([reject(1)], []), Outlets(write=lines.append))
    driver.open(lambda _: seen.append(len(lines)))
    driver.tell(gone(1))
    driver.tell(gone(2))

    assert seen == [1]
    assert lines == [Step(event=gone(1), actions=[reject(1)]), Step(event=gone(2), actions=[])]


def test_an_event_told_while_actions_are_carried_out_waits_its_turn() -> None:
    policy = ByRote([reject(1), reject(2)])
    driver = Driver(policy)
    order: list[str] = []

    def first(_: AnyAction) -> None:
        order.append("first")
        driver.tell(gone(7))
        order.append("told")

    driver.open(first)
    driver.open(lambda _: order.append(f"second, {len(policy.heard)} heard"))
    driver.tell(gone(1))

    assert order == ["first", "told", "second, 1 heard"]
    assert policy.heard == [gone(1), gone(7)]


def test_a_policy_that_raises_leaves_the_driver_usable() -> None:
    class Faulty(ByRote):
        def handle(self, event: AnyEvent) -> list[AnyAction]:
            if not self.heard:
                super().handle(event)
                raise ValueError
            return super().handle(event)

    policy = Faulty()
    driver = Driver(policy)
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it was
        driver.tell(gone(1))
    driver.tell(gone(2))

    assert policy.heard == [gone(1), gone(2)]


@pytest.mark.parametrize(
    "action",
    [
        Prefill(request=1, **PLACE),
        Decode(request=1, **PLACE),
        TransferKv(request=1, source="b", source_epoch=1, **PLACE),
    ],
)
def test_every_step_of_a_request_over_two_replicas_reaches_whoever_carries_it_out(
    action: AnyAction,
) -> None:
    driver, taken = Driver(ByRote([action])), list[AnyAction]()
    assert driver.open(taken.append) == action.request

    driver.tell(gone())

    assert taken == [action]


def test_drain_and_scale_go_to_whoever_runs_the_engines() -> None:
    drain, scale = Drain(replica="a", epoch=1), Scale(pool="p", replicas=2)
    done: list[AnyAction] = []
    driver = Driver(ByRote([drain, scale]), Outlets(drain=done.append, scale=done.append))
    driver.tell(gone())

    assert done == [drain, scale]


def test_a_replica_is_found_by_name_and_start() -> None:
    driver = Driver(ByRote())
    driver.attach(up(epoch=2), ENDPOINT)

    assert driver.endpoint("a", 2) == ENDPOINT
    assert driver.endpoint("a", 1) is None
    assert driver.endpoint("b", 2) is None


def states(driver: Driver) -> list[tuple[int, str, str]]:
    return [(known.epoch, known.state, known.reason) for known in driver.replicas()]


def test_a_replica_goes_up_drains_goes_down_and_comes_back() -> None:
    driver = Driver(ByRote([], [Drain(replica="a", epoch=1)]))
    driver.attach(up(), ENDPOINT)
    assert states(driver) == [(1, "up", "")]

    driver.tell(gone())
    assert states(driver) == [(1, "draining", "")]

    driver.tell(ReplicaDown(at_s=0.0, replica="a", epoch=1, reason="exit code 1"))
    assert states(driver) == [(1, "down", "exit code 1")]

    driver.attach(up(epoch=2), ENDPOINT)
    driver.tell(ReplicaDown(at_s=0.0, replica="a", epoch=1, reason="late word"))
    assert states(driver) == [(2, "up", "")]


def with_alarms(
    times_s: list[float], lateness: Callable[[float], float] = lambda now_s: now_s
) -> tuple[list[AnyEvent], list[float]]:
    """Ask to be woken at these times from now; return what the policy heard, and the times asked for."""
    asked: list[float] = []

    async def main() -> list[AnyEvent]:
        loop = asyncio.get_running_loop()
        errors: list[dict[str, object]] = []
        loop.set_exception_handler(lambda _, context: errors.append(context))
        driver = Driver(policy := ByRote(), clock=lambda: lateness(loop.time()))
        asked.extend(driver.now_s() + time_s for time_s in times_s)
        policy._answers.append([WakeAt(at_s=at_s) for at_s in asked])
        driver.tell(gone())
        await asyncio.sleep(max(*times_s, 0.0) + 0.2)
        driver.stop()
        assert errors == []
        return policy.heard[1:]

    return uvloop.run(main()), asked


def test_the_policy_is_woken_when_it_asked_and_not_before() -> None:
    heard, asked = with_alarms([0.02, 0.05, -3.0])

    assert [type(event) for event in heard] == [Woke] * 3
    for event, at_s in zip(heard, sorted(asked), strict=True):
        assert at_s <= event.at_s < max(at_s, asked[0]) + 1.0


def test_asking_twice_for_the_same_time_wakes_once() -> None:
    heard, _ = with_alarms([0.01, 0.01])

    assert len(heard) == 1


def test_a_loop_whose_timer_is_early_by_our_clock_does_not_wake_the_policy_early() -> None:
    heard, asked = with_alarms([0.03], lambda loop_s: loop_s * 0.7)

    assert len(heard) == 1
    assert heard[0].at_s >= asked[0]


def test_a_stopped_driver_sets_no_alarm_off() -> None:
    async def main() -> list[AnyEvent]:
        driver = Driver(policy := ByRote([WakeAt(at_s=0.0)]))
        driver.tell(gone())
        driver.stop()
        await asyncio.sleep(0.01)
        return policy.heard

    assert asyncio.run(main()) == [gone()]
