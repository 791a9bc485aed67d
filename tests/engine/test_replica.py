"""The engine emulation, against its own definition played step by step, and against laws of queues."""

import dataclasses
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.cost.steptime import StepTime, causal_pairs
from polypod.engine import EngineLimits, Progress, ReplicaEmulation
from polypod.engine.closed_loop import Behaviour

STEP = StepTime(
    tokens=(1, 64, 512),
    seconds=(0.010, 0.011, 0.050),
    kv_token_s=2e-6,
    pair_s=1e-8,
    sequence_s=1e-5,
)
FLAT = StepTime(tokens=(1, 10**6), seconds=(0.01, 0.01), kv_token_s=0.0, pair_s=0.0)
ROOMY = EngineLimits(max_sequences=64, max_step_tokens=256, kv_capacity_tokens=100_000)


class StepByStep(ReplicaEmulation):
    """The same engine without the closed form: one step at a time."""

    def _steps_ahead(self) -> int:
        super()._steps_ahead()
        return 1


def play(replica: ReplicaEmulation, arrivals: list[tuple[float, int, int]]) -> list[Progress]:
    progress: list[Progress] = []
    for request, (at_s, prompt, output) in enumerate(arrivals):
        progress += replica.advance(at_s)
        replica.submit(at_s, request=request, prompt_tokens=prompt, output_tokens=output)
    progress += replica.advance(math.inf)
    return progress


arrivals_of = st.lists(
    st.tuples(st.floats(0, 2), st.integers(1, 700), st.integers(1, 60)), min_size=1, max_size=25
).map(lambda rows: sorted(rows))
limits_of = st.builds(
    EngineLimits,
    max_sequences=st.integers(1, 20),
    max_step_tokens=st.integers(32, 600),
    kv_capacity_tokens=st.integers(1600, 6000),
    behaviour=st.builds(
        Behaviour,
        exclusive_prefill=st.booleans(),
        tokens_per_step=st.sampled_from([1.0, 1.0, 1.5, 2.25]),
        drafts=st.sampled_from([0.0, 2.0]),
        draft_share=st.sampled_from([0.0, 0.1]),
        prefix_hits=st.sampled_from([0.0, 0.0, 0.5]),
    ),
)


@given(arrivals_of, limits_of, st.sampled_from([1, 2]))
@settings(max_examples=150, deadline=None)
def test_the_closed_form_equals_playing_every_step(
    arrivals: list[tuple[float, int, int]], limits: EngineLimits, ranks: int
) -> None:
    step = StepTime(
        tokens=STEP.tokens,
        seconds=STEP.seconds,
        kv_token_s=STEP.kv_token_s,
        pair_s=STEP.pair_s,
        sequence_s=STEP.sequence_s,
        data_ranks=ranks,
    )
    fast, slow = ReplicaEmulation(step, limits), StepByStep(step, limits)
    quick, exact = play(fast, arrivals), play(slow, arrivals)

    assert sorted((p.request, p.kind) for p in quick) == sorted((p.request, p.kind) for p in exact)
    if ranks == 1:  # with more, the busiest rank may change within a segment
        assert [(p.request, p.kind) for p in quick] == [(p.request, p.kind) for p in exact]
        assert [p.at_s for p in quick] == pytest.approx([p.at_s for p in exact], rel=1e-9)
        # tokens of a step are whole in the mean alone, and are rounded once a segment
        steps = sum(output for _, _, output in arrivals)
        assert fast.computed_tokens == pytest.approx(slow.computed_tokens, abs=steps)
        assert fast.preemptions == slow.preemptions


@given(arrivals_of, limits_of)
@settings(max_examples=100, deadline=None)
def test_every_request_gives_one_first_token_and_one_last_and_leaves_nothing(
    arrivals: list[tuple[float, int, int]], limits: EngineLimits
) -> None:
    replica = ReplicaEmulation(STEP, limits)
    progress = play(replica, arrivals)

    firsts = [p.request for p in progress if p.kind == "first"]
    lasts = [p.request for p in progress if p.kind == "finished"]
    assert sorted(firsts) == sorted(lasts) == list(range(len(arrivals)))
    assert [p.at_s for p in progress] == sorted(p.at_s for p in progress)
    assert (replica.kv_tokens, replica.running, replica.waiting) == (0, 0, 0)
    assert replica.next_s == math.inf


def test_decode_stands_still_while_prompts_are_computed_alone() -> None:
    alone = dataclasses.replace(ROOMY, behaviour=Behaviour(exclusive_prefill=True))
    replica = ReplicaEmulation(FLAT, alone)
    replica.submit(0.0, request=1, prompt_tokens=1, output_tokens=11)
    replica.advance(0.025)
    replica.submit(0.025, request=2, prompt_tokens=1000, output_tokens=1)

    done = {p.request: p.at_s for p in replica.advance(math.inf) if p.kind == "finished"}
    assert done[2] == pytest.approx(0.07)  # four chunks from the boundary at 0.03
    assert done[1] == pytest.approx(0.11 + 0.04)  # held up by all of them


def test_accepted_drafts_finish_an_answer_in_fewer_steps_that_take_longer() -> None:
    # 2 tokens a step, each step computing 3; the tenth of a step that makes each draft is added
    drafting = Behaviour(tokens_per_step=2.0, drafts=2.0, draft_share=0.1)
    replica = ReplicaEmulation(STEP, dataclasses.replace(ROOMY, behaviour=drafting))
    replica.submit(0.0, request=1, prompt_tokens=64, output_tokens=11)
    first, last = (p.at_s for p in replica.advance(math.inf))

    steps = [STEP.step_s(tokens=3, kv_tokens=64 + 2 * done, sequences=1) for done in range(5)]
    assert last - first == pytest.approx(sum(steps) * 1.2)


def test_what_is_cached_of_a_prompt_is_not_computed_again() -> None:
    half = dataclasses.replace(ROOMY, behaviour=Behaviour(prefix_hits=0.5))
    replica = ReplicaEmulation(STEP, half)
    replica.submit(0.0, request=1, prompt_tokens=200, output_tokens=1)
    first, _ = (p.at_s for p in replica.advance(math.inf))

    assert first == pytest.approx(STEP.prompt_s(100, cached=100))
    assert replica.computed_tokens == 100


@given(arrivals_of)
@settings(max_examples=50, deadline=None)
def test_without_preemption_the_tokens_computed_are_those_asked_for(
    arrivals: list[tuple[float, int, int]],
) -> None:
    replica = ReplicaEmulation(STEP, ROOMY)
    play(replica, arrivals)

    # the last token of an answer is given, and never computed on
    assert replica.computed_tokens == sum(prompt + output - 1 for _, prompt, output in arrivals)
    assert replica.preemptions == 0


def test_one_at_a_time_waits_as_lindley_says() -> None:
    arrivals = [(0.003 * i * (1 + i % 3), 1, 1 + i % 7) for i in range(200)]
    limits = EngineLimits(max_sequences=1, max_step_tokens=256, kv_capacity_tokens=1000)
    progress = play(ReplicaEmulation(FLAT, limits), sorted(arrivals))

    free_s, expected = 0.0, []
    for at_s, _, output in sorted(arrivals):
        free_s = max(free_s, at_s) + 0.01 * output
        expected.append(free_s)
    assert [p.at_s for p in progress if p.kind == "finished"] == pytest.approx(expected)


def test_a_long_prompt_is_computed_in_chunks_of_the_token_budget() -> None:
    replica = ReplicaEmulation(FLAT, ROOMY)
    replica.submit(0.0, request=1, prompt_tokens=1000, output_tokens=1)  # 4 chunks of up to 256

    assert [round(p.at_s, 6) for p in replica.advance(math.inf)] == [0.04, 0.04]


def test_decoding_goes_on_while_a_prompt_is_computed() -> None:
    replica = ReplicaEmulation(FLAT, ROOMY)
    replica.submit(0.0, request=1, prompt_tokens=1, output_tokens=11)
    replica.advance(0.025)
    replica.submit(0.025, request=2, prompt_tokens=1000, output_tokens=1)

    done = {p.request: p.at_s for p in replica.advance(math.inf) if p.kind == "finished"}
    assert done[1] == pytest.approx(0.11)  # as if alone: steps are flat here
    assert done[2] == pytest.approx(0.07)  # starts at the boundary at 0.03, four chunks


def test_a_cache_too_small_for_all_preempts_the_last_admitted_and_still_finishes() -> None:
    limits = EngineLimits(max_sequences=8, max_step_tokens=512, kv_capacity_tokens=300)
    replica = ReplicaEmulation(FLAT, limits)
    for request in range(3):
        replica.submit(0.0, request=request, prompt_tokens=90, output_tokens=100)
    progress = replica.advance(math.inf)

    assert replica.preemptions > 0
    finished = [p.request for p in progress if p.kind == "finished"]
    assert finished[0] == 0
    assert sorted(finished) == [0, 1, 2]


def test_a_request_that_can_never_fit_is_refused() -> None:
    replica = ReplicaEmulation(
        FLAT, EngineLimits(max_sequences=8, max_step_tokens=512, kv_capacity_tokens=300)
    )
    with pytest.raises(ValueError, match=r"request 7 needs 301 cached tokens, .* holds 300"):
        replica.submit(0.0, request=7, prompt_tokens=200, output_tokens=101)
    with pytest.raises(ValueError, match="at least 1 token each way"):
        replica.submit(0.0, request=8, prompt_tokens=0, output_tokens=1)


@pytest.mark.parametrize("when_s", [0.0, 0.005, 0.035, 0.061])
def test_a_cancelled_request_says_nothing_more_and_frees_its_room(when_s: float) -> None:
    limits = EngineLimits(max_sequences=1, max_step_tokens=256, kv_capacity_tokens=2000)
    replica = ReplicaEmulation(FLAT, limits)
    replica.submit(0.0, request=1, prompt_tokens=1000, output_tokens=500)
    replica.submit(0.0, request=2, prompt_tokens=10, output_tokens=2)
    before = replica.advance(when_s)
    replica.cancel(when_s, 1)
    after = replica.advance(math.inf)

    assert all(p.request == 2 for p in after)
    assert [p.kind for p in after] == ["first", "finished"]
    assert all(p.kind == "first" for p in before)
    assert (replica.kv_tokens, replica.running) == (0, 0)


def test_cancelling_what_waits_or_is_unknown_does_no_harm() -> None:
    limits = EngineLimits(max_sequences=1, max_step_tokens=256, kv_capacity_tokens=2000)
    replica = ReplicaEmulation(FLAT, limits)
    for request in (1, 2, 3):
        replica.submit(0.0, request=request, prompt_tokens=10, output_tokens=5)
    replica.cancel(0.0, 2)
    replica.cancel(0.0, 99)

    assert [p.request for p in replica.advance(math.inf) if p.kind == "finished"] == [1, 3]


def test_ranks_share_the_load_and_step_together() -> None:
    two = StepTime(tokens=(1, 10**6), seconds=(0.01, 0.01), kv_token_s=0, pair_s=0, data_ranks=2)
    limits = EngineLimits(max_sequences=2, max_step_tokens=256, kv_capacity_tokens=2000)
    replica = ReplicaEmulation(two, limits)
    for request in (1, 2):
        replica.submit(0.0, request=request, prompt_tokens=10, output_tokens=5)

    assert [round(p.at_s, 6) for p in replica.advance(math.inf) if p.kind == "finished"] == [
        0.05,
        0.05,
    ]


def test_requests_of_one_moment_share_their_first_step() -> None:
    replica = ReplicaEmulation(FLAT, ROOMY)
    for request in (1, 2, 3):
        replica.submit(1.0, request=request, prompt_tokens=10, output_tokens=1)

    assert [round(p.at_s, 6) for p in replica.advance(1.01) if p.kind == "first"] == [1.01] * 3


def test_busy_time_is_time_with_work() -> None:
    replica = ReplicaEmulation(FLAT, ROOMY)
    replica.submit(1.0, request=1, prompt_tokens=10, output_tokens=5)
    replica.advance(10.0)
    replica.submit(10.0, request=2, prompt_tokens=10, output_tokens=1)
    replica.advance(math.inf)

    assert replica.busy_s == pytest.approx(0.06)


@given(st.integers(1, 200), st.integers(2, 3000))
def test_a_cut_falls_on_the_first_boundary_not_before_the_arrival(prompt: int, output: int) -> None:
    alone, joined = ReplicaEmulation(STEP, ROOMY), ReplicaEmulation(STEP, ROOMY)
    alone.submit(0.0, request=1, prompt_tokens=prompt, output_tokens=output)
    boundary_s = alone.next_s  # the end of the prompt's step
    joined.submit(0.0, request=1, prompt_tokens=prompt, output_tokens=output)
    joined.advance(boundary_s)
    arrive_s = boundary_s + 0.005  # inside the first decode step
    joined.submit(arrive_s, request=2, prompt_tokens=1, output_tokens=1)

    first_decode_s = STEP.step_s(tokens=1, kv_tokens=prompt, sequences=1)
    assert joined.next_s == pytest.approx(boundary_s + first_decode_s)


def test_a_prompt_holds_up_every_micro_batch_of_a_pipeline_and_several_prompts_fill_it() -> None:
    halves = msgspec.structs.replace(STEP, stages=2)
    alone = ReplicaEmulation(halves, ROOMY)
    alone.submit(0.0, request=1, prompt_tokens=100, output_tokens=1)
    assert alone.advance(math.inf)[0].at_s == pytest.approx(halves.prompt_s(100))
    assert halves.prompt_s(100) > STEP.prompt_s(100)
    # two prompts, one to each stage's micro-batch: no bubble
    both = ReplicaEmulation(halves, dataclasses.replace(ROOMY, max_step_tokens=512))
    both.submit(0.0, request=1, prompt_tokens=100, output_tokens=1)
    both.submit(0.0, request=2, prompt_tokens=100, output_tokens=1)
    pairs = 2 * causal_pairs(100)
    assert both.advance(math.inf)[-1].at_s == pytest.approx(STEP.step_s(tokens=200, pairs=pairs))
