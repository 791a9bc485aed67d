"""One engine in C beside the emulation in Python: the same times to the bit, the same giving up."""

import math

import numpy as np
import pytest

from polypod.cost.steptime import StepTime
from polypod.engine import EngineLimits
from polypod.engine.closed_loop import Behaviour
from polypod.engine.compiled import emulate
from polypod.engine.trial import Phase, Trial, tried


def asked(seed: int, phase: Phase = "both") -> tuple[StepTime, EngineLimits, Trial]:
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
    arrivals_s = np.cumsum(rng.exponential(1 / float(rng.choice([2, 10, 40])), count))
    trial = Trial(
        arrivals_s=arrivals_s,
        prompt_tokens=int(rng.integers(1, 1500)),
        output_tokens=int(rng.integers(1, 200)),
        warm=int(rng.integers(0, 100)),
        allowed=int(rng.choice([2, 30, count])),
        ttft_s=None if rng.random() < 0.3 else float(rng.uniform(0.1, 2)),
        tpot_s=None if rng.random() < 0.3 else float(rng.uniform(0.01, 0.1)),
        phase=phase,
        way_s=float(rng.choice([0.0, 0.02, 1.5])),
        asked_s=arrivals_s - rng.uniform(0, 0.5, count) if phase == "decode" else None,
    )
    return step, limits, trial


@pytest.mark.parametrize("phase", ["both", "prefill", "decode"])
@pytest.mark.parametrize("seed", range(40))
def test_both_give_the_same_times_or_both_give_up(seed: int, phase: Phase) -> None:
    run = asked(seed, phase)
    plain, compiled = tried(*run), emulate(*run)

    if plain is None or compiled is None:
        assert plain is compiled
        return
    assert compiled.first_s.tolist() == plain.first_s.tolist()
    assert compiled.last_s.tolist() == plain.last_s.tolist()
    assert compiled.busy_s == plain.busy_s
    assert not math.isnan(compiled.last_s[-1])


@pytest.mark.parametrize("phase", ["both", "prefill", "decode"])
def test_some_give_up_and_some_do_not(phase: Phase) -> None:
    ends = [emulate(*asked(seed, phase)) is None for seed in range(40)]

    assert 2 < sum(ends) < 38


def test_a_cache_on_its_way_takes_room_where_its_prompt_was_computed() -> None:
    """Two caches fit: the third prompt begins when the first has gone, a second after it was computed in 0.11 s."""
    step = StepTime(tokens=(0, 1000), seconds=(0.010, 0.110), kv_token_s=0.0, pair_s=0.0)
    limits = EngineLimits(max_sequences=4, max_step_tokens=1000, kv_capacity_tokens=2500)
    trial = Trial(arrivals_s=np.zeros(3), prompt_tokens=1000, output_tokens=1, warm=0, allowed=3, ttft_s=None, tpot_s=None, phase="prefill", way_s=1.0)  # fmt: skip

    found = emulate(step, limits, trial)

    assert found is not None
    assert found.first_s.tolist() == pytest.approx([0.11, 0.22, 1.22])
    assert found.last_s.tolist() == found.first_s.tolist()
