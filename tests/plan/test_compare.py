"""Pods side by side: each as `plan` plans it, in the order asked, none dropped."""

import itertools

import pytest

from polypod.catalog.load import listing
from polypod.cli.asking import model_of
from polypod.cost.deployment import Deployment, native_precision
from polypod.plan.compare import BYS, Comparison, compare, largest_context, worth
from polypod.plan.compose import plan_model
from polypod.plan.money import site
from polypod.plan.place import island, parse_fleet
from polypod.plan.search import Question
from polypod.plan.spec import Source
from polypod.workload.layout import Layout

PODS = ("nvidia-hgx-h200", "nvidia-hgx-h20", "sugon-scalex640")


def places(*names: str) -> dict[str, Source]:
    return {name: parse_fleet(name)["a"] for name in names}


def ask(model: str = "llama-3.1-8b", **limits: float) -> Question:
    return Question(model=model_of(model), input_tokens=1024, output_tokens=256, **limits)  # type: ignore[arg-type]


def on(question: Question, *names: str, tried: int = 3) -> Comparison:
    return compare(question, places(*names), site(), tried=tried)


@pytest.mark.parametrize("limits", [{}, {"ttft_s": 1.0, "tpot_s": 0.03}])
def test_a_pods_figures_are_those_of_a_plan_on_it(limits: dict[str, float]) -> None:
    """Referee: `plan_model`, which knows nothing of the comparison."""
    question = ask(**limits)
    for one in on(question, *PODS).placed:
        answer = plan_model(question, {"a": parse_fleet(one.name)["a"]})
        (choice,) = answer.choices
        chosen = choice.confirmed.candidate
        assert one.confirmed.candidate.deployment.layout == chosen.deployment.layout
        assert one.tokens_per_s.likely == pytest.approx(choice.confirmed.goodput_per_s * 256)
        assert one.running.site_w == answer.in_all.site_w
        assert one.running.usd_per_million_tokens == answer.in_all.usd_per_million_tokens
        assert answer.plan.services[0].pools[0].predicted is not None
        assert one.bound == answer.plan.services[0].pools[0].predicted.bound


def test_a_pod_beside_itself_is_equal() -> None:
    source = parse_fleet("nvidia-hgx-h200")["a"]
    found = compare(ask(tpot_s=0.03), {"one": source, "other": source}, site())
    one, other = found.placed
    assert one.tokens_per_s == other.tokens_per_s
    assert one.stream == other.stream
    assert one.running == other.running


def test_more_slack_never_gives_less() -> None:
    rates = [
        on(ask(ttft_s=2.0, tpot_s=tpot_s), "nvidia-hgx-h200").placed[0].tokens_per_s.likely
        for tpot_s in (0.01, 0.02, 0.04, 0.08)
    ]
    free = on(ask(), "nvidia-hgx-h200").placed[0].tokens_per_s.likely
    assert all(less <= more * 1.03 for less, more in itertools.pairwise([*rates, free]))
    assert rates[0] < free


def test_one_layout_emulated_is_never_better_than_three() -> None:
    question = ask(ttft_s=0.3, tpot_s=0.02)
    one, three = on(question, *PODS, tried=1), on(question, *PODS)
    best = {each.name: each.tokens_per_s.likely for each in three.placed}
    assert one.tried == 1
    assert all(each.tokens_per_s.likely <= best[each.name] for each in one.placed)


@pytest.mark.parametrize("by", BYS)
def test_pods_stand_in_the_order_asked_the_unknown_last(by: str) -> None:
    found = compare(ask(), places(*PODS), site(), by)  # type: ignore[arg-type]
    values = [worth(one, found.by) for one in found.placed]
    assert values == sorted(values, reverse=True)
    if by == "usd":
        assert found.placed[-1].name == "sugon-scalex640"
        assert found.placed[-1].per_usd_h is None


def test_rates_per_kilowatt_and_dollar_are_the_rate_over_them() -> None:
    (one,) = on(ask(), "nvidia-hgx-h200").placed
    run = one.running
    assert one.per_kw_site is not None
    assert one.per_kw_it is not None
    assert one.per_usd_h is not None
    assert run.site_w is not None
    assert run.it_w is not None
    assert run.usd_per_h is not None
    assert one.per_kw_site.likely == pytest.approx(one.tokens_per_s.likely / run.site_w.likely * 1e3)  # fmt: skip
    assert one.per_kw_it.likely == pytest.approx(one.tokens_per_s.likely / run.it_w.likely * 1e3)
    assert one.per_usd_h.likely == pytest.approx(one.tokens_per_s.likely / run.usd_per_h.likely)
    assert one.per_accelerator.likely == pytest.approx(one.tokens_per_s.likely / one.accelerators)
    assert one.tokens_per_s.low == pytest.approx(one.tokens_per_s.likely / one.band.high)
    assert one.tokens_per_s.high == pytest.approx(one.tokens_per_s.likely / one.band.low)


def test_one_stream_is_faster_than_any_of_a_batch_and_no_layout_is_faster_for_it() -> None:
    (one,) = on(ask(), "nvidia-hgx-h200").placed
    assert one.stream is not None
    assert one.stream.tpot_s.likely < float(one.confirmed.outcome.tpot_s.mean())
    rank, model = one.island.rank, one.confirmed.candidate.deployment.model
    for tp in (1, 2, 4, 8):
        single = Deployment.make(model, Layout(tp=tp), native_precision(model, rank), rank)
        assert one.stream.tpot_s.likely <= single.step_s(sequences=1.0, kv_tokens=1152.0)
    assert one.stream.layout == Layout(tp=8)


def test_the_largest_context_fills_the_memory_and_no_more() -> None:
    rank = island("a", places("nvidia-hgx-h200")["nvidia-hgx-h200"]).rank
    for name in ("llama-3.1-8b", "deepseek-v3"):
        model = model_of(name)
        deployment = Deployment.make(model, Layout(tp=8, ep=8 if model.is_moe else 1), native_precision(model, rank), rank)  # fmt: skip
        memory, most = deployment.memory(), largest_context(deployment)
        assert most is not None
        assert memory.cache_bytes(sequences=1, context_tokens=most) == pytest.approx(
            memory.kv_bytes
        )


def test_every_pod_of_the_catalog_is_placed_or_says_what_is_missing() -> None:
    pods = [one.id for one in listing() if one.kind == "pod"]
    found = on(ask("qwen3-32b"), *pods, tried=1)
    names = [one.name for one in (*found.placed, *found.missing)]
    assert sorted(names) == sorted(pods)
    why = {one.name: one.why for one in found.missing}
    assert "thead-zhenwu-m890 has no memory bandwidth on record" in why["alibaba-al128"]
    assert "of a make that is not disclosed" in why["sugon-scalex40"]
    assert "nvidia-rubin has no peak on record that" in why["nvidia-vr-nvl72"]


def test_a_link_that_nobody_measured_is_named() -> None:
    (missing,) = on(ask("deepseek-v3"), "baidu-256").missing
    assert missing.why.startswith(
        "no bandwidth of its 'supernode, XPU-Link' tier on record; on one rank alone"
    )


def test_a_pod_too_slow_for_the_limits_says_how_near_it_comes() -> None:
    found = on(ask("llama-3.1-70b", tpot_s=0.001), "nvidia-hgx-h200")
    assert found.placed == ()
    assert "nothing on this fleet keeps the SLO" in found.missing[0].why
    assert "over by a factor of" in found.missing[0].why


def test_pods_of_one_chip_that_differ_in_size_alone_give_in_proportion() -> None:
    found = on(ask("deepseek-v3"), "huawei-atlas950", "huawei-atlas950-supercluster")
    one, other = found.placed
    assert one.per_accelerator.likely == pytest.approx(other.per_accelerator.likely)
    assert other.tokens_per_s.likely == pytest.approx(64 * one.tokens_per_s.likely)


def test_a_model_that_fits_before_an_unknown_link_is_judged_by_the_limits() -> None:
    (missing,) = on(ask("llama-3.1-8b", tpot_s=0.001), "baidu-256").missing
    assert missing.why.startswith("nothing on this fleet keeps the SLO")
