"""Plans as answers: what they promise, what they refuse, what they say of themselves."""

from pathlib import Path

import pytest

from polypod.cli.asking import model_of, published_beside
from polypod.errors import InfeasibleError, InputError, UnknownNameError
from polypod.plan.compose import plan_model
from polypod.plan.place import island, parse_fleet
from polypod.plan.search import Question
from polypod.plan.spec import Slo, read_plan, write_plan


def ask(name: str, **rest: float) -> Question:
    return Question(model=model_of(name), input_tokens=4096, output_tokens=1024, **rest)  # type: ignore[arg-type]


def test_deepseek_on_cloudmatrix_is_planned_within_its_slo_and_written_and_read_back(
    tmp_path: Path,
) -> None:
    slo = Slo(ttft="2s", tpot="50ms")
    answer = plan_model(
        ask("deepseek-v3", ttft_s=2.0, tpot_s=0.05), parse_fleet("huawei-cm384"), slo
    )
    (choice,) = answer.choices
    outcome = choice.confirmed.outcome

    assert outcome.percentiles_s("ttft", (99,))[0] <= 2.0
    assert outcome.percentiles_s("tpot", (99,))[0] <= 0.05
    assert choice.replicas * choice.confirmed.candidate.deployment.accelerators <= 384
    write_plan(answer.plan, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == answer.plan


def test_published_decode_on_cloudmatrix_lies_inside_the_band() -> None:
    """Referee: arXiv 2506.12708, which the operator figures come from and no serving figure was fitted to."""
    beside = published_beside(
        model_of("deepseek-v3"), [island("a", parse_fleet("huawei-cm384")["a"])]
    )
    values = {(one.published.phase, one.published.value): one for one in beside}
    decode = values["decode", 1943.0]
    assert decode.slow <= 1943 <= decode.fast
    assert decode.predicted == pytest.approx(1943, rel=0.25)
    prefill = values["prefill", 6688.0]
    assert prefill.slow <= 6688 <= prefill.fast


def test_a_rate_takes_the_fewest_replicas_that_carry_it() -> None:
    fleet = parse_fleet("nvidia-hgx-h200")
    few = plan_model(ask("llama-3.1-8b", tpot_s=0.03, ttft_s=2.0, rate_per_s=2.0), fleet)
    (choice,) = few.choices
    each = choice.confirmed.outcome.rate_per_s
    assert (choice.replicas - 1) * each < 2.0 <= choice.replicas * each


def test_a_rate_too_high_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        InfeasibleError, match=r"is more than this fleet carries .* nearest is .*/s"
    ):
        plan_model(
            ask("llama-3.1-8b", tpot_s=0.03, rate_per_s=1e6), parse_fleet("nvidia-h200-sxm:1")
        )


def test_two_islands_carry_a_rate_that_one_cannot() -> None:
    alone = plan_model(
        ask("llama-3.1-8b", tpot_s=0.03, ttft_s=2.0), parse_fleet("nvidia-h200-sxm:1")
    )
    most = alone.choices[0].confirmed.goodput_per_s
    both = plan_model(
        ask("llama-3.1-8b", tpot_s=0.03, ttft_s=2.0, rate_per_s=1.2 * most),
        parse_fleet("nvidia-h200-sxm:1+huawei-ascend-910c:4"),
    )
    assert [choice.island.rank.chip for choice in both.choices] == [
        "nvidia-h200-sxm",
        "huawei-ascend-910c",
    ]


def test_an_slo_nobody_keeps_names_the_nearest_layout_and_by_how_much_it_misses() -> None:
    with pytest.raises(InfeasibleError, match=r"nearest is tp\d.* TPOT .* over by a factor of"):
        plan_model(ask("llama-3.1-8b", tpot_s=1e-4), parse_fleet("nvidia-hgx-h200"))


def test_a_model_too_large_for_the_fleet_says_that_it_does_not_fit() -> None:
    with pytest.raises(
        InfeasibleError, match=r"does not run on this fleet: .* do not fit in memory"
    ):
        plan_model(ask("deepseek-v3"), parse_fleet("nvidia-h200-sxm:2"))


def test_the_parts_of_a_fleet_are_named_in_order() -> None:
    fleet = parse_fleet("nvidia-h200-sxm:8 + huawei-cm384 + hygon-bw1000:1")
    assert list(fleet) == ["a", "b", "c"]
    assert (fleet["a"].count, fleet["b"].pod, fleet["c"].accelerator) == (
        8,
        "huawei-cm384",
        "hygon-bw1000",
    )


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("huawei-cm385", UnknownNameError, "huawei-cm384"),
        ("nvidia-h200-sxm", InputError, "say how many, as in nvidia-h200-sxm:8"),
        ("nvidia-h200-sxm:0", InputError, "at least 1"),
        ("nvidia-h200-sxm:8+", InputError, "is no part of a fleet"),
        ("deepseek-v3:8", UnknownNameError, "pod or accelerator"),
    ],
)
def test_a_fleet_that_is_none_is_refused(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        parse_fleet(text)


def test_more_of_a_pod_than_it_has_is_refused() -> None:
    with pytest.raises(InputError, match="has 384 accelerators, 400 were asked for"):
        island("a", parse_fleet("huawei-cm384:400")["a"])


def test_a_plan_says_what_it_draws_and_costs_and_what_that_is_for_a_token() -> None:
    answer = plan_model(
        ask("llama-3.1-8b", tpot_s=0.03, ttft_s=2.0), parse_fleet("nvidia-hgx-h200")
    )
    total, predicted = answer.in_all, answer.plan.predicted
    assert predicted is not None
    assert predicted.tokens_per_s is not None
    assert total.site_w is not None
    assert total.joules_per_million_tokens is not None
    assert total.usd_per_million_tokens is not None
    assert total.it_w is not None
    assert total.it_w.high <= 10200  # what the pod is rated
    assert predicted.watts == round(total.site_w.likely)
    assert predicted.usd_per_million_tokens == pytest.approx(total.usd_per_million_tokens.likely, rel=1e-3)  # fmt: skip
    joules = total.site_w.likely / predicted.tokens_per_s * 1e6
    assert total.joules_per_million_tokens.likely == pytest.approx(joules, rel=1e-3)


def test_power_and_money_of_several_islands_are_added() -> None:
    one, other = (
        plan_model(ask("llama-3.1-8b", tpot_s=0.03, ttft_s=2.0), parse_fleet(fleet))
        for fleet in ("nvidia-hgx-h200", "nvidia-hgx-h200+nvidia-hgx-h200")
    )
    assert one.in_all.usd_per_h is not None
    assert other.in_all.usd_per_h is not None
    assert other.in_all.usd_per_h.likely == pytest.approx(2 * one.in_all.usd_per_h.likely)
    assert other.in_all.usd_per_million_tokens is not None
    assert one.in_all.usd_per_million_tokens is not None
    assert other.in_all.usd_per_million_tokens.likely == pytest.approx(one.in_all.usd_per_million_tokens.likely)  # fmt: skip
