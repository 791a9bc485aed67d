"""One engine in C beside the emulation in Python: the same times to the bit, the same giving up."""

import math
from typing import Any

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.engine import EngineLimits
from polypod.engine.closed_loop import Behaviour
from polypod.engine.compiled import Trial, emulate
from polypod.plan.confirm import _tried


class Run:
    """What the plain way reads of a run."""

    def __init__(self, step_time: StepTime, limits: EngineLimits) -> None:
        self.step_time, self.limits = step_time, limits


def run_and_trial(seed: int) -> tuple[Any, Trial]:
    rng = np.random.default_rng(seed)
    ranks = int(rng.choice([1, 2, 5]))
    step = StepTime(
        tokens=(1, 64, 256, 1024, 8192), seconds=(0.010, 0.011, 0.015, 0.040, 0.300), kv_token_s=float(rng.choice([0, 1e-7])),
        pair_s=1e-10, sequence_s=1e-6, data_ranks=ranks, stages=int(rng.choice([1, 2])),
    )  # fmt: skip
    limits = EngineLimits(
        max_sequences=int(rng.choice([4, 64])) * ranks,
        max_step_tokens=int(rng.choice([256, 2048])),
        kv_capacity_tokens=int(rng.choice([3000, 40_000])) * ranks,
        behaviour=Behaviour(
            exclusive_prefill=bool(rng.random() < 0.3),
            schedules_ahead=bool(rng.random() < 0.3),
            whole_prompts=bool(rng.random() < 0.3),
            balance_steps=int(rng.choice([0, 0, 3])),
            tokens_per_step=float(rng.choice([1.0, 1.7])),
            drafts=float(rng.choice([0, 2])),
            draft_share=float(rng.choice([0.0, 0.1])),
            prefix_hits=float(rng.choice([0.0, 0.3])),
        ),
    )
    count = 300
    trial = Trial(
        arrivals_s=np.cumsum(rng.exponential(1 / float(rng.choice([2, 10, 40])), count)),
        prompt_tokens=int(rng.integers(1, 1500)),
        output_tokens=int(rng.integers(1, 200)),
        warm=int(rng.integers(0, 100)),
        allowed=int(rng.choice([2, 30, count])),
        ttft_s=None if rng.random() < 0.3 else float(rng.uniform(0.1, 2)),
        tpot_s=None if rng.random() < 0.3 else float(rng.uniform(0.01, 0.1)),
    )
    return Run(step, limits), trial


@pytest.mark.parametrize("seed", range(40))
def test_both_give_the_same_times_or_both_give_up(seed):
    run, trial = run_and_trial(seed)
    plain, compiled = _tried(run, trial), emulate(run.step_time, run.limits, trial)

    if plain is None or compiled is None:
        assert plain is compiled
        return
    assert compiled.first_s.tolist() == plain.first_s.tolist()
    assert compiled.last_s.tolist() == plain.last_s.tolist()
    assert compiled.busy_s == plain.busy_s
    assert not math.isnan(compiled.last_s[-1])


def test_some_give_up_and_some_do_not():
    ends = [
        emulate(run.step_time, run.limits, trial) is None
        for run, trial in map(run_and_trial, range(40))
    ]

    assert 5 < sum(ends) < 35
