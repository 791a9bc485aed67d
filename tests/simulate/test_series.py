"""Series over time: what they add up to, and what a cap may not ask."""

from typing import Any

import pytest

from polypod.errors import InputError
from polypod.policy.events import RequestFinished
from polypod.record import Measure, Step
from polypod.simulate import Fault
from polypod.simulate.compiled import play_compiled
from polypod.simulate.series import SINCE, Cap, Draw, Watch

DRAW = Draw(idle_w=100.0, prompt_w=700.0, decode_w=400.0)
TRACE = [(0.5 * n, 300 + 10 * n, 20 + n) for n in range(60)]


def play(make: Any, *, names: str = "ab", slots: int = 4, watch: Watch, **over: Any) -> list[Any]:
    fleet = [make["replica"](name, max_sequences=slots) for name in names]
    scenario = make["scenario"](fleet, make["arrivals"](TRACE), watch=watch, **over)
    return list(play_compiled(scenario).lines)


def values(lines: list[Any], of: str, name: str) -> list[float]:
    return [line.value for line in lines if isinstance(line, Measure) and (line.of, line.name) == (of, name)]  # fmt: skip


def test_intervals_add_up_to_what_replicas_did(make):
    lines = play(make, watch=Watch(interval_s=0.7))
    finished = [line.event.output_tokens for line in lines if isinstance(line, Step) and isinstance(line.event, RequestFinished)]  # fmt: skip
    whole_s = sum(values(lines, name, "busy_s")[-1] for name in "ab")

    assert sum(values(lines, "p", "busy_s")) == pytest.approx(whole_s)
    assert sum(values(lines, "p", "output_tokens")) == pytest.approx(sum(finished))
    assert sum(values(lines, "p", "prompt_tokens")) == sum(prompt for _, prompt, _ in TRACE)
    assert all(value >= 0 for name in SINCE for value in values(lines, "p", name))


def test_a_crash_loses_what_ran_and_what_is_counted_stays_counted(make):
    faults = (Fault(at_s=5.0, replica="a", what="down"), Fault(at_s=9.0, replica="a", what="up"))
    lines = play(make, watch=Watch(interval_s=1.0), faults=faults)

    assert values(lines, "p", "up")[4:10] == [2.0, 1.0, 1.0, 1.0, 1.0, 2.0]
    assert min(values(lines, "p", "busy_s")) >= 0
    assert values(lines, "p", "running")[-1] == 0


def test_what_waits_for_a_replica_is_the_models_queue(make):
    lines = play(
        make, names="a", slots=1, watch=Watch(interval_s=1.0), limits={"queue_wait_s": 1e6}
    )

    assert max(values(lines, "m", "queue")) > 3
    assert values(lines, "m", "queue")[-1] == 0


@pytest.mark.parametrize(
    ("caps", "says"),
    [
        ([Cap(name="r", replicas=("a", "x"), limit_w=900.0)], r"the cap of r holds 'x', of which no power is known"),
        ([Cap(name="r", replicas=("a",), limit_w=900.0), Cap(name="s", replicas=("a",), limit_w=900.0)], r"'a' is under the caps of r and of s"),
        ([Cap(name="r", replicas=("a", "b"), limit_w=200.0)], r"the cap of r is 200 W, and its 2 replicas draw 200 W idle"),
    ],
)  # fmt: skip
def test_a_cap_that_cannot_be_held_is_an_error(make, caps, says):
    with pytest.raises(InputError, match=says):
        play(make, watch=Watch(interval_s=1.0, draws={"p": DRAW}, caps=tuple(caps)))


def test_an_interval_of_nothing_is_an_error():
    with pytest.raises(InputError, match=r"a series every 0 s is none"):
        Watch(interval_s=0.0)
