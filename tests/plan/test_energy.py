"""Power of accelerators at work: between idle and design power, as measured, and falling for each token with the batch."""

from dataclasses import fields

import pytest

from polypod.cli.asking import model_of
from polypod.cost.deployment import Deployment, native_precision
from polypod.plan.confirm import confirm
from polypod.plan.energy import (
    Estimate,
    Serving,
    drawn_fraction,
    nameplate,
    serving,
    serving_at,
    shares,
    watts,
)
from polypod.plan.place import Island, island, parse_fleet
from polypod.plan.search import Question, search
from polypod.workload.layout import Layout


def place(text: str) -> Island:
    return island("a", parse_fleet(text)["a"])


def deployed(model: str, on: str, layout: Layout | None = None) -> Deployment:
    rank = place(on).rank
    found = model_of(model)
    return Deployment.make(found, layout or Layout(), native_precision(found, rank), rank)


def at_batch(batch: float) -> Serving:
    deployment = deployed("microsoft/Phi-3-mini-4k-instruct", "nvidia-h200-sxm:1")
    return Serving(deployment=deployment, sequences=batch, context_tokens=512.0)


@pytest.mark.parametrize("batch", [1, 16, 128, 1024])
@pytest.mark.parametrize("prompts", [False, True])
def test_an_accelerator_draws_between_idle_and_its_design_power(batch: int, prompts: bool) -> None:
    run = at_batch(batch)
    if prompts:
        question = Question(model=run.deployment.model, input_tokens=4096, output_tokens=64)
        run = serving_at(question, run.deployment, sequences=batch, chunk_tokens=8192)
    drawn, idle = drawn_fraction(run), shares().idle
    assert idle.low < drawn.low < drawn.likely < drawn.high <= 1
    assert idle.likely < drawn.likely


def test_decode_of_a_small_model_draws_what_was_measured_on_an_h200() -> None:
    """Referee: 516.9 W at batch 128 of Phi-3-mini under vLLM (http://api.serialalice.pt/alice-benchmark)."""
    run = at_batch(128)
    question = Question(model=run.deployment.model, input_tokens=256, output_tokens=256)
    whole = serving_at(question, run.deployment, sequences=128, chunk_tokens=2048)
    drawn_w = drawn_fraction(whole) * 700
    assert drawn_w.low < 516.9 < drawn_w.high
    assert drawn_w.likely == pytest.approx(516.9, rel=0.15)


def test_prompts_draw_more_than_decode_and_waiting_for_work_least() -> None:
    """Referee: POLCA (https://arxiv.org/abs/2308.12908), prompts near the design power, tokens below."""
    decode = at_batch(16)
    question = Question(model=decode.deployment.model, input_tokens=4096, output_tokens=16)
    prompts = serving_at(question, decode.deployment, sequences=16, chunk_tokens=8192)
    half = Serving(
        deployment=decode.deployment, sequences=16, context_tokens=512, busy_fraction=0.5
    )
    assert drawn_fraction(prompts).likely > drawn_fraction(decode).likely
    assert drawn_fraction(prompts).likely > 0.8
    both = (drawn_fraction(decode).likely + shares().idle.likely) / 2
    assert drawn_fraction(half).likely == pytest.approx(both)


def test_a_token_takes_less_energy_the_larger_the_batch() -> None:
    joules = []
    for batch in (1.0, 4.0, 16.0, 64.0, 256.0):
        run = at_batch(batch)
        step_s = float(run.deployment.step_s(sequences=batch, kv_tokens=batch * 512))
        joules.append(drawn_fraction(run).likely * 700 * step_s / batch)
    assert joules == sorted(joules, reverse=True)
    assert joules[0] > 30 * joules[-1]


def test_exchanges_alone_draw_less_than_kernels_do() -> None:
    wide = deployed("deepseek-v3", "huawei-cm384", Layout(dp=256, ep=256))
    few = Serving(deployment=wide, sequences=1.0, context_tokens=4096)
    many = Serving(deployment=wide, sequences=64.0, context_tokens=4096)
    assert drawn_fraction(few).likely < drawn_fraction(many).likely


def test_a_confirmed_plan_runs_fewer_sequences_than_its_batch_holds() -> None:
    where = place("nvidia-hgx-h200")
    model = model_of("llama-3.1-8b")
    question = Question(model=model, input_tokens=1024, output_tokens=256, ttft_s=1.0, tpot_s=0.02)
    best = search(question, where, native_precision(model, where.rank)).ranked()[0]
    confirmed = confirm(question, best)
    assert confirmed is not None
    run = serving(question, confirmed)
    assert 0 < run.sequences <= best.sequences_per_rank
    assert 0 < run.busy_fraction <= 1


def test_a_pods_power_is_never_above_what_it_states() -> None:
    where = place("nvidia-gb200-nvl72")
    assert where.pod is not None
    assert where.pod.power_w is not None
    plate = nameplate(where)
    assert not isinstance(plate, str)
    assert plate.most_w * 72 == pytest.approx(where.pod.power_w.value)
    drawn = watts(at_batch(512), plate, Estimate(1.1, 1.2, 1.3))
    assert drawn.it_w.high <= plate.most_w
    assert drawn.site_w.likely == pytest.approx(1.2 * drawn.it_w.likely)


def test_what_is_taken_without_a_figure_is_said() -> None:
    derived, assumed = nameplate(place("huawei-cm384")), nameplate(place("nvidia-hgx-h20"))
    assert not isinstance(derived, str)
    assert not isinstance(assumed, str)
    assert "huawei-ascend-910c: no design power on record" in derived.note
    assert derived.most_w == pytest.approx(559e3 / 384)
    assert "no power of its pod on record" in assumed.note
    assert nameplate(place("baidu-256")) == "no power of kunlun-p800 nor of baidu-256 on record"


def test_every_fraction_on_record_has_its_ends_in_order() -> None:
    at = shares()
    for each in fields(at):
        one = getattr(at, each.name)
        assert 0 < one.low <= one.likely <= one.high <= 1, each.name
    assert at.idle.likely < at.launch.likely < at.memory.likely < at.compute.likely
