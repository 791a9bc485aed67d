"""The engine with prefix caches and uneven steps: what is found is not computed, what is shared is stored once, and memory is never overcommitted."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.cost.steptime import StepTime
from polypod.engine import EngineLimits, Progress, ReplicaEmulation
from polypod.engine.imbalance import Imbalance
from polypod.engine.prefix import PrefixCache, RemoteStore, TierSettings

BLOCK = 16
LINE = StepTime(tokens=(0, 1000), seconds=(0.010, 0.110), kv_token_s=0.0, pair_s=0.0)
"""10 ms a step, and 0.1 ms a token."""
CURVED = StepTime(
    tokens=(1, 64, 512), seconds=(0.010, 0.011, 0.050), kv_token_s=2e-6, pair_s=1e-8, sequence_s=1e-5
)  # fmt: skip


class Watched(ReplicaEmulation):
    """Checks its memory whenever its batch changes."""

    def _compose(self, at_s: float) -> None:
        super()._compose(at_s)
        assert self.prefix is not None
        segment = self._segment
        kv_R = self._decode_kv_R() + self._prompt_kv_R
        if segment is not None:
            for sequence, tokens in segment.chunks:
                kv_R[sequence.rank] += tokens
        for rank, kv in enumerate(kv_R.tolist()):
            idle, shared = self.prefix.idle_tokens(rank), self.prefix.shared_tokens(rank)
            assert kv - shared + idle <= self._rank_kv_capacity
            assert self._rank_kv_limit_R[rank] == self._rank_kv_capacity + shared


class StepByStep(Watched):
    """The same engine without the closed form: one step at a time."""

    def _steps_ahead(self) -> int:
        super()._steps_ahead()
        return 1


def replica(
    kind: type[ReplicaEmulation] = Watched, step: StepTime = LINE, tiers: TierSettings | None = None, **limits: Any
) -> ReplicaEmulation:  # fmt: skip
    known = {"max_sequences": 8, "max_step_tokens": 512, "kv_capacity_tokens": 100_000}
    remote = None if tiers is None else RemoteStore(tiers, BLOCK)
    cache = PrefixCache(block_tokens=BLOCK, ranks=step.data_ranks, settings=tiers, remote=remote)
    return kind(step, EngineLimits(**(known | limits)), prefix=cache)


def times(progress: list[Progress], kind: str) -> dict[int, float]:
    return {one.request: one.at_s for one in progress if one.kind == kind}


def test_a_prompt_that_was_there_before_takes_its_rest() -> None:
    """160 tokens: nine blocks of sixteen may be found, the tenth holds the last token and is computed."""
    engine, hashes = replica(), tuple(range(10))
    engine.submit(0.0, request=1, prompt_tokens=160, output_tokens=1, hashes=hashes)
    engine.advance(1.0)
    engine.submit(1.0, request=2, prompt_tokens=160, output_tokens=1, hashes=hashes)
    first = times(engine.advance(2.0), "first")
    engine.submit(2.0, request=3, prompt_tokens=161, output_tokens=1, hashes=hashes)
    first |= times(engine.advance(math.inf), "first")

    assert first[2] == pytest.approx(1.0 + 0.010 + 16e-4)
    assert first[3] == pytest.approx(2.0 + 0.010 + 1e-4)
    assert engine.computed_tokens == 160 + 16 + 1
    assert engine.prefix is not None
    assert engine.prefix.found_K.tolist() == [9 + 10, 0, 0]


def test_a_prompt_finds_what_one_ahead_of_it_computes_in_the_same_step() -> None:
    engine = replica()
    for request in (1, 2):
        engine.submit(0.0, request=request, prompt_tokens=170, output_tokens=1, hashes=range(10))
    first = times(engine.advance(math.inf), "first")

    assert first[1] == first[2] == pytest.approx(0.010 + 180e-4)
    assert engine.computed_tokens == 170 + 10


def test_blocks_of_an_answer_are_found_once_it_is_complete() -> None:
    """40 prompt tokens and 25 of the answer, the last of which is in no cache: four blocks; the prompt alone has two."""
    engine = replica()
    engine.submit(0.0, request=1, prompt_tokens=40, output_tokens=25, hashes=(1, 2, 3, 4))
    engine.advance(10.0)
    engine.submit(10.0, request=2, prompt_tokens=70, output_tokens=1, hashes=(1, 2, 3, 4))
    engine.advance(math.inf)

    assert engine.computed_tokens == 40 + 24 + 70 - 4 * BLOCK


def test_a_cancelled_prompt_leaves_what_it_had_computed() -> None:
    engine = replica(max_step_tokens=64)
    engine.submit(0.0, request=1, prompt_tokens=320, output_tokens=9, hashes=range(20))
    engine.cancel(0.012, 1)  # in its first step
    engine.advance(5.0)
    engine.submit(5.0, request=2, prompt_tokens=321, output_tokens=1, hashes=range(20))
    engine.advance(math.inf)

    assert engine.computed_tokens == 64 + 321 - 4 * BLOCK


def test_a_step_takes_as_long_as_its_computation_or_its_loads() -> None:
    """Eight of ten blocks come from host memory, at 16 tokens of a byte each: 128 bytes."""
    for bytes_per_s, seconds in ((1e6, 0.010 + 2e-4), (1280.0, 0.1)):
        tiers = TierSettings(kv_bytes_per_token=1.0, host_bytes=1e6, host_bytes_per_s=bytes_per_s)
        engine = replica(tiers=tiers, kv_capacity_tokens=192)
        engine.submit(0.0, request=1, prompt_tokens=161, output_tokens=1, hashes=range(10))
        engine.advance(1.0)
        engine.submit(1.0, request=2, prompt_tokens=160, output_tokens=1, hashes=range(90, 100))
        engine.advance(2.0)
        engine.submit(2.0, request=3, prompt_tokens=161, output_tokens=1, hashes=range(10))
        engine.submit(2.0, request=4, prompt_tokens=1, output_tokens=1)  # makes the batch once more
        first = times(engine.advance(math.inf), "first")

        assert engine.prefix is not None
        assert engine.prefix.found_K.tolist() == [2, 8, 0]
        assert first[3] - 2.0 == pytest.approx(seconds)


def test_what_a_prompt_waits_for_is_what_it_found_when_it_came_and_when_it_began() -> None:
    """Two blocks in host memory when it is admitted, at 16 bytes each; a third that the prompt ahead of it computes in the very step it begins with."""
    tiers = TierSettings(kv_bytes_per_token=1.0, host_bytes=1e6, host_bytes_per_s=320.0)
    engine = replica(tiers=tiers, kv_capacity_tokens=320)
    engine.submit(0.0, request=1, prompt_tokens=33, output_tokens=1, hashes=(1, 2))
    engine.advance(1.0)
    engine.submit(1.0, request=2, prompt_tokens=319, output_tokens=1)
    engine.advance(2.0)
    engine.submit(2.0, request=3, prompt_tokens=100, output_tokens=1)
    engine.submit(2.001, request=4, prompt_tokens=33, output_tokens=1, hashes=(90, 3))
    engine.submit(2.001, request=5, prompt_tokens=49, output_tokens=1, hashes=(1, 2, 3))
    first = times(engine.advance(math.inf), "first")

    assert engine.prefix is not None
    assert engine.prefix.found_K.tolist() == [1, 2, 0]
    assert first[3] == pytest.approx(2.0 + 0.020)
    assert first[4] == first[5] == pytest.approx(2.020 + 0.1)


def test_what_an_answer_has_overwritten_is_not_found_once_it_is_complete() -> None:
    """Of 160 tokens the first prompt leaves 32, and the second grows to 139 until it ends at once with its last step."""
    found = {}
    for answer in (80, 100):
        engine = replica(kv_capacity_tokens=160)
        engine.submit(0.0, request=1, prompt_tokens=33, output_tokens=1, hashes=(1, 2))
        engine.advance(1.0)
        engine.submit(1.0, request=2, prompt_tokens=40, output_tokens=answer)
        engine.advance(10.0)
        engine.submit(10.0, request=3, prompt_tokens=33, output_tokens=1, hashes=(1, 2))
        engine.advance(math.inf)
        assert engine.prefix is not None
        found[answer] = int(engine.prefix.found_K.sum())

    assert found == {80: 2, 100: 1}


def test_a_shared_beginning_is_stored_once() -> None:
    """Four of 320 tokens and 30 that share 304 need 304 + 4 * (16 + 30) tokens, and fit into 512; two with nothing in common do not."""
    together = {}
    for shared in (True, False):
        engine = replica(kv_capacity_tokens=512)
        most = 0
        for request in range(4):
            base = 0 if shared else 100 * request
            hashes = (*range(base, base + 19), 1000 + request)
            engine.submit(0.06 * request, request=request, prompt_tokens=320, output_tokens=30, hashes=hashes)  # fmt: skip
            engine.advance(0.06 * request + 0.06)
            most = max(most, engine.running)
        together[shared] = most

    assert together == {True: 4, False: 1}


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    engine = replica(kv_capacity_tokens=256, step=LINE)
    engine.submit(0.0, request=1, prompt_tokens=100, output_tokens=100, hashes=range(6))
    engine.submit(0.0, request=2, prompt_tokens=100, output_tokens=100, hashes=range(50, 56))
    progress = engine.advance(math.inf)

    assert sorted(times(progress, "finished")) == [1, 2]
    assert engine.preemptions == 1
    assert engine.prefix is not None
    assert engine.prefix.found_K.sum() > 0


prompts_of = st.lists(
    st.tuples(
        st.floats(0, 2),
        st.lists(st.integers(0, 2), min_size=1, max_size=12),
        st.integers(1, BLOCK),
        st.integers(1, 60),
        st.booleans(),
    ),
    min_size=1,
    max_size=20,
).map(sorted)
limits_of = st.fixed_dictionaries(
    {
        "max_sequences": st.integers(1, 10),
        "max_step_tokens": st.integers(32, 300),
        "kv_capacity_tokens": st.integers(600, 1500),
    }
)
TIERS = TierSettings(
    kv_bytes_per_token=1.0, host_bytes=320.0, host_bytes_per_s=1e5, remote_bytes=640.0, remote_bytes_per_s=1e4,
    remote_latency_s=0.001,
)  # fmt: skip


def play(engine: ReplicaEmulation, prompts: list[Any]) -> list[Progress]:
    progress: list[Progress] = []
    for request, (at_s, path, rest, output, has_answer) in enumerate(prompts):
        hashes = [hash(tuple(path[: n + 1])) % 2**60 for n in range(len(path))]
        hashes += [hash((request, n)) % 2**60 for n in range(4)] if has_answer else []
        progress += engine.advance(at_s)
        engine.submit(
            at_s, request=request, prompt_tokens=len(path) * BLOCK - BLOCK + rest, output_tokens=output, hashes=hashes
        )  # fmt: skip
        if request % 5 == 4:
            engine.cancel(at_s, request - 2)
    return progress + engine.advance(math.inf)


@given(prompts_of, limits_of, st.sampled_from([None, TIERS]), st.sampled_from([1, 2]))
@settings(max_examples=150, deadline=None)
def test_the_closed_form_equals_playing_every_step_and_memory_is_never_overcommitted(
    prompts: list[Any], limits: dict[str, int], tiers: TierSettings | None, ranks: int
) -> None:
    step = StepTime(
        tokens=CURVED.tokens, seconds=CURVED.seconds, kv_token_s=CURVED.kv_token_s, pair_s=CURVED.pair_s,
        sequence_s=CURVED.sequence_s, data_ranks=ranks,
    )  # fmt: skip
    fast = replica(Watched, step, tiers, **limits)
    slow = replica(StepByStep, step, tiers, **limits)
    quick, exact = play(fast, prompts), play(slow, prompts)

    assert sorted((p.request, p.kind) for p in quick) == sorted((p.request, p.kind) for p in exact)
    assert fast.prefix is not None
    assert slow.prefix is not None
    for engine in (fast, slow):
        assert engine.prefix is not None
        assert [engine.prefix.shared_tokens(rank) for rank in range(ranks)] == [0] * ranks
        entries = np.asarray(engine.prefix._store.entries_NF)
        assert engine.kv_tokens == 0
        assert entries[:, 4].max(initial=0) <= 0  # nobody holds anything any more
    if ranks == 1:
        assert [(p.request, p.kind) for p in quick] == [(p.request, p.kind) for p in exact]
        assert [p.at_s for p in quick] == pytest.approx([p.at_s for p in exact])
        assert fast.prefix.found_K.tolist() == slow.prefix.found_K.tolist()
        assert fast.computed_tokens == slow.computed_tokens


@given(prompts_of, limits_of)
@settings(max_examples=50, deadline=None)
def test_prompts_that_share_nothing_run_as_without_a_cache(
    prompts: list[Any], limits: dict[str, int]
) -> None:
    own = [(at_s, [n + 10, *path], rest, output, answer) for n, (at_s, path, rest, output, answer) in enumerate(prompts)]  # fmt: skip
    cached = replica(step=CURVED, kv_capacity_tokens=10**6, **{k: v for k, v in limits.items() if k != "kv_capacity_tokens"})  # fmt: skip
    plain = ReplicaEmulation(CURVED, cached.limits)

    assert play(cached, own) == play(plain, own)


# ---- uneven experts


def test_factors_are_normal_about_one_and_cut_at_three_sigma() -> None:
    uneven = Imbalance(cv=0.2, seed=11, replica=3)
    draws = np.array([uneven.factor(n, 1) for n in range(40_000)])

    assert draws.mean() == pytest.approx(1.0, abs=0.003)
    assert draws.std() == pytest.approx(0.2, rel=0.02)
    assert (draws.min(), draws.max()) == (pytest.approx(0.4), pytest.approx(1.6))
    within = [float((abs(draws - 1) < sigma * 0.2).mean()) for sigma in (1, 2)]
    assert within == pytest.approx([0.6827, 0.9545], abs=0.01)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 0.02


def test_many_steps_have_the_mean_of_as_many_draws() -> None:
    uneven = Imbalance(cv=0.2, seed=11)
    draws = np.array([uneven.factor(n, 25) for n in range(20_000)])

    assert draws.std() == pytest.approx(0.2 / 5, rel=0.03)


def test_seeds_replicas_epochs_and_segments_each_change_the_draw() -> None:
    same = {"seed": 1, "replica": 2, "epoch": 3}
    base = Imbalance(cv=0.1, **same)
    others = [Imbalance(cv=0.1, **(same | {key: 9})) for key in same]

    assert base.factor(4, 1) == Imbalance(cv=0.1, **same).factor(4, 1)
    assert len({one.factor(4, 1) for one in (base, *others)} | {base.factor(5, 1)}) == 5
    assert Imbalance(cv=0.0).factor(4, 1) == 1.0


def test_uneven_steps_take_the_factor_times_as_long() -> None:
    uneven = Imbalance(cv=0.3, seed=4)
    step = StepTime(tokens=(0, 1000), seconds=(0.010, 0.110), kv_token_s=1e-5, pair_s=0.0)
    engine = ReplicaEmulation(step, replica().limits, imbalance=uneven)
    engine.submit(0.0, request=1, prompt_tokens=100, output_tokens=11)
    progress = engine.advance(math.inf)
    answer_s = sum(0.0101 + 1e-5 * (100 + n) for n in range(10))

    assert progress[0].at_s == pytest.approx(uneven.factor(0, 1) * 0.020)
    assert progress[1].at_s - progress[0].at_s == pytest.approx(uneven.factor(1, 10) * answer_s)
