"""What a user may say of an engine, as it is read, and what it does to the closed form."""

import math

import msgspec
import pytest

from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour, Load, Times, closed_loop
from polypod.engine.settings import (
    ALTERNATIVES,
    NAMES,
    EngineArgs,
    accepted_tokens,
    behaviour_of,
    default_args,
    load_of,
    moves,
    read_engine_args,
)
from polypod.errors import InputError
from polypod.validate.predict import model_of
from polypod.workload.model import Model

STEP = StepTime(
    tokens=(1, 64, 512, 8192), seconds=(0.008, 0.009, 0.012, 0.160), kv_token_s=8e-9, pair_s=2e-10, sequence_s=5e-6
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of("Qwen/Qwen3-32B")


def answer(args: EngineArgs, model: Model, backend: str | None = "vllm") -> Times:
    load = load_of(args, backend, input_tokens=1000, output_tokens=200, concurrency=32)
    return closed_loop(STEP, load, behaviour_of(args, model, backend, 32))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", EngineArgs()),
        ("stream_interval=10", EngineArgs(stream_interval=10)),
        ("prefill=exclusive, prefix_hits=0.25", EngineArgs(prefill="exclusive", prefix_hits=0.25)),
        ("--max-num-batched-tokens 4096 --no-enable-chunked-prefill", EngineArgs(max_num_batched_tokens=4096, prefill="exclusive")),
        ("--chunked-prefill-size=4096 --enable-mixed-chunk", EngineArgs(max_num_batched_tokens=4096, prefill="chunked")),
        ("max_num_tokens=2048 max_draft_len=3", EngineArgs(max_num_batched_tokens=2048, num_speculative_tokens=3)),
        ("num_speculative_tokens=2 acceptance=0.8", EngineArgs(num_speculative_tokens=2, acceptance=0.8)),
    ],
)  # fmt: skip
def test_settings_are_read_in_the_engines_words_and_in_ours(text: str, said: EngineArgs) -> None:
    assert read_engine_args(text) == said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("speed=2", r"'speed' is no setting that moves a prediction; known are prefill, max_num"),
        ("--tensor-parallel-size 4", r"tensor_parallel_size is said with --tp, not here"),
        ("stream_interval", r"stream_interval has no value; write stream_interval=VALUE"),
        ("prefix_hits=1.5", r"Expected `float` < 1.0 - at `\$.prefix_hits`"),
        ("prefill=both", r"Invalid enum value 'both' - at `\$.prefill`"),
        ("stream_interval=a", r"Expected `float \| null`, got `str` - at `\$.stream_interval`"),
        ("acceptance=0.7", r"acceptance=0.7 without drafts; say num_speculative_tokens=N too"),
        ("prefill=chunked prefill=exclusive", r"prefill is said twice, chunked and exclusive"),
        ("'unclosed", r"No closing quotation"),
    ],
)
def test_what_cannot_be_a_setting_is_named(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_engine_args(text)


def test_what_is_said_overrules_the_default_and_nothing_else() -> None:
    said = EngineArgs(stream_interval=5).over(default_args("sglang"))
    assert said.stream_interval == 5
    assert said.prefill == "exclusive"
    assert default_args("vllm").prefill == "chunked"


def test_every_setting_has_a_default_but_acceptance_which_nobody_knows() -> None:
    for backend in (None, "vllm", "sglang", "trtllm"):
        full = msgspec.structs.asdict(default_args(backend))
        assert [name for name, value in full.items() if value is None] == ["acceptance"]
    assert set(ALTERNATIVES) <= set(NAMES)


def test_drafts_all_kept_give_their_number_more_and_none_kept_cost_their_making(
    model: Model,
) -> None:
    plain = answer(EngineArgs(), model)
    kept = answer(EngineArgs(num_speculative_tokens=2, acceptance=0.999), model)
    lost = answer(EngineArgs(num_speculative_tokens=2, acceptance=0.0), model)
    assert plain.tpot_s / 3 < kept.tpot_s < plain.tpot_s
    assert lost.tpot_s > plain.tpot_s
    # 1 + a + a^2 in the limit of certain acceptance
    assert accepted_tokens(2, 1.0) == 3


def test_a_cached_prefix_shortens_the_wait_and_never_lengthens_an_answer(model: Model) -> None:
    found = [answer(EngineArgs(prefix_hits=share), model) for share in (0.0, 0.3, 0.6, 0.9)]
    assert [one.ttft_s for one in found] == sorted((one.ttft_s for one in found), reverse=True)
    assert [one.tpot_s for one in found] == sorted((one.tpot_s for one in found), reverse=True)


def test_a_cold_start_is_shared_by_all_waves(model: Model) -> None:
    warm, cold = answer(EngineArgs(), model), answer(EngineArgs(cold_start_s=30), model)
    # TTFT counts in the share of time that decodes, so the rest moves a little
    assert cold.ttft_s - warm.ttft_s == pytest.approx(30 / 10, rel=0.02)


def test_clients_of_one_length_stay_in_one_wave_where_prompts_are_computed_alone(
    model: Model,
) -> None:
    spread = Load(input_tokens=1000, output_tokens=200, concurrency=32, length_spread=0.1)
    equal = Load(input_tokens=1000, output_tokens=200, concurrency=32, length_spread=0)
    alone = Behaviour(exclusive_prefill=True)
    assert equal.queued(Behaviour()) == spread.queued(Behaviour())
    assert equal.queued(alone) == pytest.approx(1.2 + 31 / 2)
    assert spread.queued(alone) == pytest.approx(1.2 + 31 / 20)


def test_moves_are_what_unsaid_settings_change_and_said_ones_are_left_out(model: Model) -> None:
    said = EngineArgs(prefix_hits=0)
    base = answer(said, model)
    found = moves(said, base, lambda args: answer(args, model))
    names = [one.setting for one in found]
    assert "prefix_hits" not in names
    assert "num_speculative_tokens" in names
    assert all(one.size >= math.log(1.05) for one in found)
    assert [one.size for one in found] == sorted((one.size for one in found), reverse=True)
    drafts = next(one for one in found if one.setting == "num_speculative_tokens")
    again = answer(said.over(EngineArgs(num_speculative_tokens=int(drafts.value.split()[0]), acceptance=0.7)), model)  # fmt: skip
    assert drafts.tpot_ratio == pytest.approx(again.tpot_s / base.tpot_s)


def test_a_setting_that_the_engine_does_not_have_moves_nothing(model: Model) -> None:
    for backend, absent in (("vllm", "scheduler_recv_interval"), ("sglang", "batch_wait_timeout_iters")):  # fmt: skip
        base = answer(EngineArgs(), model, backend)
        found = moves(EngineArgs(), base, lambda args, of=backend: answer(args, model, of), backend)  # type: ignore[misc]
        assert absent not in [one.setting for one in found]
