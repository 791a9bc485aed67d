"""A record, asked again: a fresh policy gives the same answers."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from polypod import record
from polypod.cost.steptime import StepTime
from polypod.policy import Policy, PolicySettings, ServiceSettings
from polypod.policy.actions import Dispatch, WakeAt
from polypod.policy.events import FirstToken, ReplicaUp, RequestArrived, RequestFinished, Woke
from polypod.policy.lifecycle import Validator
from polypod.record import Header, Line, Step, Writer
from polypod.simulate import Arrival, Fault, Scenario, play, replay

STEP = StepTime(tokens=(1, 64, 2048), seconds=(0.01, 0.012, 0.15), kv_token_s=1e-7, pair_s=1e-9)
SETTINGS = PolicySettings(
    services=(ServiceSettings(model="m", context_tokens=4096),), queue_requests=5
)


def up(name: str) -> ReplicaUp:
    return ReplicaUp(
        at_s=0.0, replica=name, epoch=1, model="m", pool="p", role="both", step_time=STEP,
        context_tokens=4096, kv_capacity_tokens=20_000, max_sequences=4, max_step_tokens=2048,
    )  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: Any) -> Path:
    """The record of a run with faults, a full queue and ties."""
    path: Path = tmp_path_factory.mktemp("run") / "record.jsonl"
    scenario = Scenario(
        replicas=(up("a"), up("b")),
        settings=SETTINGS,
        trace=tuple(
            Arrival(at_s=n // 2 * 0.25, model="m", input_tokens=1 + n * 37 % 3000, output_tokens=40)
            for n in range(200)
        ),
        seed=6,
        faults=(Fault(at_s=3.0, replica="b", what="down"), Fault(at_s=9.0, replica="b", what="up")),
    )
    with path.open("wb") as file:
        play(scenario, file)
    return path


def test_a_simulated_record_replays_from_its_file(path):
    assert replay(record.read(path)) is None


def test_a_simulated_record_keeps_to_the_lifecycle(path):
    validator = Validator()
    for line in record.read(path):
        if isinstance(line, Step):
            validator.feed(line.event, line.actions)

    assert validator.open == {}
    assert validator.ended == 200


def test_an_action_that_was_changed_is_found_with_its_place(path):
    lines = list(record.read(path))
    at = next(
        n for n, line in enumerate(lines) if n > 50 and isinstance(line, Step) and line.actions
    )
    true = lines[at]
    assert isinstance(true, Step)
    lines[at] = msgspec.structs.replace(true, actions=[])
    difference = replay(lines)

    assert difference is not None
    assert (difference.step, difference.event) == (at, true.event)
    assert (difference.recorded, difference.replayed) == ([], true.actions)


def test_another_seed_is_another_policy(path):
    lines = list(record.read(path))
    assert isinstance(lines[0], Header)
    lines[0] = msgspec.structs.replace(lines[0], seed=9)

    assert replay(lines) is not None


def test_a_live_record_replays_though_its_clock_and_its_alarms_are_late():
    """What a wall-clock driver would write: uneven times, early alarms, and its own request numbers."""
    policy = Policy(SETTINGS)
    lines: list[Line] = [Header(kind="live", polypod="x", policy=SETTINGS)]

    def tell(event: Any) -> Any:
        actions = policy.handle(event)
        lines.append(Step(event=event, actions=actions))
        return actions

    tell(up("a"))
    now_s, running = 1234.5, []
    for request in range(100, 140):
        now_s += 0.0137
        for action in tell(
            RequestArrived(
                at_s=now_s, request=request, model="m", input_tokens=50, input_is_exact=False
            )
        ):
            if isinstance(action, Dispatch):
                running.append(action)
            if isinstance(action, WakeAt):
                tell(Woke(at_s=action.at_s - 0.0004))
        if len(running) > 3:
            done = running.pop(0)
            about = {"request": done.request, "attempt": 1, "replica": "a", "epoch": 1}
            tell(FirstToken(at_s=now_s - 0.001, **about))  # told a little late
            running += [one for one in tell(RequestFinished(at_s=now_s, **about, output_tokens=3)) if isinstance(one, Dispatch)]  # fmt: skip

    data = b"".join(record.encode(line) for line in lines)
    decoded = [msgspec.json.decode(raw, type=Line) for raw in data.splitlines()]
    assert decoded == lines
    assert replay(decoded) is None


def test_a_writer_and_a_reader_agree(tmp_path, path):
    copy = tmp_path / "copy.jsonl"
    with copy.open("wb") as file:
        writer = Writer(file)
        for line in record.read(path):
            writer.write(line)

    assert list(record.read(copy)) == list(record.read(path))
