"""What only the plain driver plays, the compiled one refuses by name."""

import pytest

from polypod.cost.steptime import StepTime
from polypod.errors import InputError
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp, RequestFinished
from polypod.record import Step
from polypod.simulate.compiled import only_plain, play_compiled
from polypod.simulate.run import play
from polypod.simulate.scenario import Scenario
from polypod.simulate.trace import Arrival

STEP = StepTime(tokens=(1, 1000), seconds=(0.01, 0.11), kv_token_s=0.0, pair_s=0.0)


def scenario(*, hashes=(), caches=True, **settings):
    up = ReplicaUp(at_s=0, replica="a", epoch=1, model="m", pool="p", role="both", step_time=STEP, context_tokens=4096, kv_capacity_tokens=8000, max_sequences=1, max_step_tokens=512, caches_prefixes=caches)  # fmt: skip
    asked = {"model": "m", "input_tokens": 100, "output_tokens": 20, "prefix_hashes": hashes}
    loud = [Arrival(at_s=0.1, tenant="loud", **asked) for _ in range(4)]
    service = ServiceSettings(model="m", context_tokens=4096, block_tokens=64)
    return Scenario(replicas=(up,), settings=PolicySettings(services=(service,), **settings), trace=(*loud, Arrival(at_s=0.2, tenant="quiet", **asked)))  # fmt: skip


def finished(run):
    return [line.event.request for line in run.lines if isinstance(line, Step) and isinstance(line.event, RequestFinished)]  # fmt: skip


def test_turns_of_tenants_are_played_plainly():
    assert finished(play(scenario())) == [1, 2, 3, 4, 5]
    assert finished(play(scenario(turns="tenants"))) == [1, 5, 2, 3, 4]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"turns": "tenants"}, "turns are by tenants"),
        ({"admission": "slo"}, "admission is slo"),
        ({"hashes": (1,), "caches": False}, "replica 'a' caches no prefixes"),
    ],
)
def test_the_compiled_driver_says_what_it_does_not_play(told, why):
    assert only_plain(scenario(**told)) == why
    with pytest.raises(InputError, match=why):
        play_compiled(scenario(**told))


def test_all_else_both_play():
    assert only_plain(scenario()) is None
    assert only_plain(scenario(caches=False)) is None
