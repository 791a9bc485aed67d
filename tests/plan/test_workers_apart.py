"""Prefill and decode workers under engine settings and a person's own calibrations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polypod.cli.asking import model_of
from polypod.cost.deployment import Deployment, native_precision
from polypod.cost.own import OwnFit, OwnMetric, keep
from polypod.engine.settings import EngineArgs, accepted_tokens
from polypod.errors import InputError
from polypod.plan.compose_fleet import fleet_answer
from polypod.plan.fleet import Chosen, choose
from polypod.plan.fleet_offers import Aim
from polypod.plan.frontier import frontier
from polypod.plan.money import site
from polypod.plan.place import islands, parse_fleet
from polypod.plan.search import Question
from polypod.plan.shapes import Shape
from polypod.plan.spec import Slo
from polypod.plan.workers_apart import (
    _waits_s,
    apart,
    cache_bytes,
    experts_apart,
    step_of,
    transfer_s,
)

(ISLAND,) = islands(parse_fleet("nvidia-h100-sxm:8"))
MODEL = model_of("qwen3-32b")
PRECISION = native_precision(MODEL, ISLAND.rank)


def ask(**said: object) -> Question:
    args = EngineArgs(**said)  # type: ignore[arg-type]
    return Question(model=MODEL, input_tokens=4096, output_tokens=512, ttft_s=2.0, tpot_s=0.05, engine_args=args)  # fmt: skip


def of(question: Question, role: str) -> list[Shape]:
    return [one for one in apart(question, ISLAND, PRECISION, [50e9]) if one.role == role]


def best(question: Question, role: str) -> float:
    """Requests a second and rank."""
    return max(one.rate_per_s / one.ranks for one in of(question, role))


def test_what_is_cached_of_prompts_is_not_computed_again_and_is_sent_all_the_same() -> None:
    plain, half = ask(), ask(prefix_hits=0.5)
    # half of the tokens, and of pairs a quarter less: between the two
    assert 1.5 * best(plain, "prefill") < best(half, "prefill") <= 2.3 * best(plain, "prefill")
    assert best(half, "decode") == best(plain, "decode")
    assert cache_bytes(half, of(half, "prefill")[0]) == cache_bytes(plain, of(plain, "prefill")[0])
    assert half.pairs(100.0) == 100 * 2048 + 100 * 2048 / 2


def test_drafts_are_verified_in_each_step_and_those_accepted_are_tokens() -> None:
    question = ask(num_speculative_tokens=2, acceptance=0.8)
    for one in of(question, "decode"):
        step_s = one.deployment.step_s(**step_of(question, one))
        longer = 1 + 2 / MODEL.num_layers  # a draft takes a layer's time
        assert one.tpot_s == pytest.approx(float(step_s) * longer / accepted_tokens(2, 0.8))
        assert one.tpot_s <= 0.05
        assert one.max_step_tokens == 3 * one.sequences_per_rank
    # a cache waits for a step that lasts longer, and the prompt has that much less time
    assert 0.95 * best(ask(), "prefill") < best(question, "prefill") < best(ask(), "prefill")


def test_the_better_drafts_are_kept_the_more_is_decoded() -> None:
    rates = [best(ask(num_speculative_tokens=2, acceptance=kept), "decode") for kept in (0.1, 0.5, 0.9)]  # fmt: skip
    assert rates == sorted(rates)
    assert rates[0] < rates[-1]


def test_a_budget_that_was_said_is_the_step_of_prefill_workers() -> None:
    assert {one.max_step_tokens for one in of(ask(max_num_batched_tokens=3072), "prefill")} == {3072}  # fmt: skip


def test_experts_apart_refuse_drafts() -> None:
    question = replace(ask(num_speculative_tokens=1), model=model_of("mixtral-8x7b"))
    with pytest.raises(InputError, match=r"--afd knows no drafts; leave num_speculative_tokens"):
        experts_apart(question, ISLAND, ISLAND, 50e9)


def fit(kind: str, factor: float) -> OwnFit:
    metric = OwnMetric(rows=9, factor=factor, log_low=-0.1, log_high=0.1)
    return OwnFit(chip="nvidia-h100-sxm", model=MODEL.name, engine="vllm", precision=PRECISION.weights, kind=kind, tpot=metric)  # fmt: skip


@pytest.mark.usefixtures("own_catalog")
def test_a_calibration_of_ones_own_stretches_every_step_of_workers_apart() -> None:
    question = replace(ask(), backend="vllm")
    (island,) = islands(parse_fleet("nvidia-h100-sxm:8"), "vllm")

    def scales() -> set[float]:
        return {one.deployment.scale for one in apart(question, island, PRECISION)}

    assert scales() == {1.0}
    keep([fit("agg", 1.5)])
    assert scales() == {1.5}  # of the same kernels, where none is of workers apart
    keep([fit("disagg", 1.25)])
    assert scales() == {1.25}
    one = apart(question, island, PRECISION)[-1]
    bare = Deployment.make(MODEL, one.deployment.layout, PRECISION, island.rank)
    assert one.deployment.step_s(**step_of(question, one)) == pytest.approx(1.25 * float(bare.step_s(**step_of(question, one))))  # fmt: skip


def test_a_calibration_of_ones_own_moves_the_frontier_and_is_said_of_a_fleet(
    own_catalog: Path,
) -> None:
    question = replace(ask(), backend="vllm", ttft_s=None, tpot_s=None)
    places = islands(parse_fleet("nvidia-h100-sxm:2"), "vllm")
    before = min(one.tpot_s for one in frontier(question, places, site()))
    keep([fit("agg", 2.0)])
    assert own_catalog.exists() or own_catalog.parent.exists()
    assert min(one.tpot_s for one in frontier(question, places, site())) == pytest.approx(2 * before)  # fmt: skip
    found = choose([question], places, Aim())
    assert isinstance(found, Chosen)
    answer = fleet_answer([question], places, found, parse_fleet("nvidia-h100-sxm:2"), [Slo()], "throughput", site())  # fmt: skip
    assert any("take 2 times as long as predicted: a calibration of your own" in note for note in answer.assumptions)  # fmt: skip
    assert any(one.setting == "num_speculative_tokens" for one in answer.unsaid[0])


def test_a_fleet_says_what_fewer_accepted_drafts_would_cost_and_keeps_the_settings() -> None:
    question = ask(num_speculative_tokens=2, acceptance=0.8)
    found = choose([question], [ISLAND], Aim())
    assert isinstance(found, Chosen)
    answer = fleet_answer([question], [ISLAND], found, parse_fleet("nvidia-h100-sxm:8"), [Slo()], "throughput", site())  # fmt: skip
    moved = {one.what: one.change_fraction for one in answer.sensitivities[0]}
    # a fifth of 0.8 less: 1 + 0.64 + 0.41 instead of 1 + 0.8 + 0.64 tokens a step
    assert -0.17 < moved["acceptance of drafts"] < 0
    assert not any(one.setting == "num_speculative_tokens" for one in answer.unsaid[0])
    kept = {pool.engine_args.num_speculative_tokens for pool in answer.plan.services[0].pools}
    assert kept == {2}


def test_whole_prompts_are_held_while_what_is_fresh_of_them_is_computed() -> None:
    """A step of c tokens works on c / f prompts, each of which holds all its L tokens: with 97 % cached 33 times what it computes, too much for two ranks."""
    question = ask(prefix_hits=0.97, max_num_batched_tokens=16384)
    assert min(one.ranks for one in of(question, "prefill")) > 2
    for one in of(question, "prefill"):
        prompts = one.max_step_tokens / question.fresh_tokens
        room = one.deployment.memory(one.max_step_tokens).tokens_of(4096.0)
        assert prompts * 4096 <= room * 1.001


def test_a_prompt_takes_its_steps_and_waits_for_those_before_it() -> None:
    """4,096 tokens in steps of 2,048: two of them, and nobody beside it on one rank."""
    question = replace(ask(max_num_batched_tokens=2048), ttft_s=None)
    shape = next(one for one in of(question, "prefill") if one.deployment.layout.dp == 1)
    step_s = float(shape.deployment.step_s(**step_of(question, shape)))
    waits_s = _waits_s(np.array([step_s]), np.array([2 * step_s]), 0.99)
    assert shape.ttft_s == pytest.approx(2 * step_s + float(waits_s[-1]))
    assert shape.rate_per_s == pytest.approx(0.9 / (2 * step_s))


def test_of_the_limit_on_ttft_a_step_of_the_decode_worker_is_kept_back() -> None:
    limited = of(ask(), "prefill")
    tighter = of(replace(ask(), ttft_s=1.95, tpot_s=None), "prefill")
    assert [one.rate_per_s for one in limited] == [one.rate_per_s for one in tighter]
    assert all(one.ttft_s + transfer_s(ask(), one, 50e9) + 0.05 <= 2.0 for one in limited)
