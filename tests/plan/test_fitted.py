"""Step times fitted to forms that are no sums: against sums, and against the forms themselves."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.cli.asking import model_of
from polypod.cost.steptime import StepTime
from polypod.errors import InputError
from polypod.plan.afd_search import splits
from polypod.plan.fitted import (
    Floats,
    Line,
    Steps,
    fit,
    line_fit,
    said_bytes_per_s,
    split_fit,
    traffic_of,
)
from polypod.plan.place import island, joined_by_network
from polypod.plan.search import Question
from polypod.plan.spec import Source, Traffic
from polypod.plan.stages import plan_stages
from polypod.plan.workers import cut_out, workers_of

KNOTS = np.array([1.0, 8.0, 64.0, 512.0])
TRAFFIC = Traffic(input=763, output=232)


def grid(seed: int, size: int = 300) -> Steps:
    rng = np.random.default_rng(seed)
    sequences = rng.integers(1, 128, size).astype(float)
    prompts = rng.integers(0, 384, size).astype(float)
    contexts = rng.uniform(100, 4000, size)
    return Steps(
        sequences=sequences,
        kv_tokens=sequences * contexts,
        prompt_tokens=prompts,
        pairs=prompts * rng.uniform(1, 2000, size),
    )


def form_of(step: StepTime) -> Any:
    def form_s(steps: Steps) -> Floats:
        rows = zip(steps.tokens, steps.kv_tokens, steps.pairs, steps.sequences, strict=True)
        return np.array([step.step_s(tokens=t, kv_tokens=k, pairs=p, sequences=s) for t, k, p, s in rows])  # fmt: skip

    return form_s


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(1e-3, 0.5), min_size=4, max_size=4),
    st.floats(0, 1e-6), st.floats(0, 1e-7), st.floats(0, 1e-3),
)  # fmt: skip
def test_a_sum_is_found_again(seconds: Any, kv: float, pair: float, sequence: float) -> None:
    step = StepTime(tokens=tuple(KNOTS), seconds=tuple(sorted(seconds)), kv_token_s=kv, pair_s=pair, sequence_s=sequence)  # fmt: skip
    found = fit(form_of(step), grid(1), grid(2), KNOTS)

    assert found.error_fraction < 1e-4


def test_the_longer_of_two_that_are_far_apart_is_refused_with_its_error() -> None:
    """Cache that costs nothing until it costs everything is no sum."""

    def form_s(steps: Steps) -> Floats:
        return np.maximum(0.01 + 0 * steps.tokens, 1e-6 * steps.kv_tokens)

    with pytest.raises(InputError, match=r"comes nearer to its steps than \d\d% \(10% is let pass"):
        fit(form_s, grid(1), grid(2), KNOTS)


@pytest.fixture(scope="module")
def line() -> tuple[Line, int, int]:
    """LLaMA-30B over an A100, three L4 and four T4, as planned."""
    question = Question(model=model_of("huggyllama/llama-30b"), input_tokens=763, output_tokens=232)
    chips = {"a": ("nvidia-a100-40g-sxm", 1), "b": ("nvidia-l4", 3), "c": ("nvidia-t4", 4)}
    places = [joined_by_network(name, Source(accelerator=chip, count=count), None) for name, (chip, count) in chips.items()]  # fmt: skip
    found = plan_stages(question, workers_of(question, places), 1.25e9)
    ((pipeline, _),) = found.pipelines
    stages = tuple(
        (cut_out(question.model, one.worker.island, one.worker.tp, one.part), one.part)
        for one in pipeline.stages
    )
    line = Line(stages=stages, micro_batches=pipeline.micro_batches, bytes_per_s=1.25e9, hidden=question.model.hidden)  # fmt: skip
    full = np.array([float(pipeline.sequences)])
    prompts = full * 763 / 232
    steps = Steps(sequences=full, kv_tokens=full * (763 + 116), prompt_tokens=prompts, pairs=prompts * 763 / 2)  # fmt: skip
    assert line.round_s(steps)[0] == pytest.approx(pipeline.round_s, rel=1e-9)
    return line, pipeline.sequences, round(full[0] + prompts[0])


def test_a_pipeline_is_the_planners_and_its_fit_is_near(line: Any) -> None:
    made, sequences, tokens = line
    found = line_fit(made, TRAFFIC, sequences, tokens)

    assert found.error_fraction < 0.02
    full = Steps(
        sequences=np.array([float(sequences)]), kv_tokens=np.array([sequences * 879.0]),
        prompt_tokens=np.array([float(tokens - sequences)]), pairs=np.array([(tokens - sequences) * 381.5]),
    )  # fmt: skip
    assert form_of(found.step_time)(full)[0] == pytest.approx(made.round_s(full)[0], rel=0.02)


def test_more_of_anything_never_makes_a_round_shorter(line: Any) -> None:
    made, sequences, tokens = line
    step = line_fit(made, TRAFFIC, sequences, tokens).step_time
    base = step.step_s(tokens=tokens / 2, kv_tokens=1e4, pairs=1e4, sequences=sequences / 2)

    assert step.step_s(tokens=tokens / 2, kv_tokens=2e4, pairs=1e4, sequences=sequences / 2) >= base
    assert step.step_s(tokens=2.0 * tokens) >= step.step_s(tokens=float(tokens))


def test_experts_apart_are_fitted_within_two_percent() -> None:
    question = Question(model=model_of("deepseek-v3"), input_tokens=2048, output_tokens=512)
    first = island("a", Source(accelerator="nvidia-h20", count=48))
    second = island("b", Source(accelerator="nvidia-l40s", count=64))
    for split in splits(question, first, second, 25e9)[::4]:
        found = split_fit(split, Traffic(input=2048, output=512), split.sequences_per_rank)
        step, n = found.step_time, float(split.sequences_per_rank)
        played_s = step.step_s(tokens=n, kv_tokens=n * 2304, sequences=n)
        assert found.error_fraction < 0.02
        assert played_s == pytest.approx(split.step_s(2304), rel=0.02)
        assert step.step_s(tokens=8192) > 2 * step.step_s(tokens=n)  # a prompt is not for nothing


def test_what_is_not_said_is_asked_for() -> None:
    assert said_bytes_per_s("50 GB/s", None, "x") == 50e9
    assert said_bytes_per_s(None, 3.0, "x") == 3.0
    with pytest.raises(InputError, match="no link between stages is on record; say one rank's"):
        said_bytes_per_s(None, None, "between stages")
    with pytest.raises(InputError, match="a pipeline is timed for its service's traffic, which is not said"):  # fmt: skip
        traffic_of(None, "a pipeline")
