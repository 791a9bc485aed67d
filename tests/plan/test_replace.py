"""What replaces what: as much is served, never less on the way, and what does not do says why."""

from dataclasses import replace

import pytest

from polypod.cli.asking import model_of
from polypod.errors import InfeasibleError, InputError
from polypod.plan.fleet import Chosen, Short, Used, choose
from polypod.plan.fleet_offers import Aim
from polypod.plan.money import site
from polypod.plan.place import Island, island
from polypod.plan.replace import Option, Replaced, migration, replaced
from polypod.plan.search import Question
from polypod.plan.spec import Source
from polypod.workload.layout import Layout


def key(one: Used) -> tuple[str, Layout]:
    return one.shape.role, one.shape.deployment.layout


def ask(rate: float | None = None, name: str = "qwen3-32b") -> Question:
    return Question(
        model=model_of(name), input_tokens=2048, output_tokens=512, ttft_s=2.0, tpot_s=0.05, percentile=99, rate_per_s=rate
    )  # fmt: skip


def cards(chip: str, count: int, name: str = "today") -> Island:
    return island(name, Source(accelerator=chip, count=count))


@pytest.fixture(scope="module")
def answer() -> Replaced:
    goes = [cards("nvidia-h20", 16)]
    return replaced([ask()], (goes, []), ["amd-mi300x", "kunlun-p800"], Aim(), site(), "2026-01")


def of(answer: Replaced, *chips: str) -> Option:
    return next(one for one in answer.options if one.chips == chips)


def test_what_comes_serves_what_went_served(answer: Replaced) -> None:
    option = of(answer, "amd-mi300x")
    assert isinstance(option.found, Chosen)
    assert option.found.served_per_s[0] >= answer.questions[0].rate_per_s  # type: ignore[operator]
    assert answer.questions[0].rate_per_s == pytest.approx(answer.today.served_per_s[0])
    # 16 H20 hold 4 TB/s each and little arithmetic; MI300X has more of both
    assert 0 < option.cards < 16


def test_a_chip_that_cannot_be_planned_says_what_is_missing(answer: Replaced) -> None:
    option = of(answer, "kunlun-p800")
    if isinstance(option.found, Short):
        why = [*option.found.reasons.values(), *option.found.idle.values()]
        assert any("bandwidth is on record" in reason or "memory" in reason for reason in why)
    assert of(answer, "amd-mi300x", "kunlun-p800").cards <= of(answer, "amd-mi300x").cards + 1e-6


def test_options_come_with_the_fewest_new_cards_first(answer: Replaced) -> None:
    assert [one.cards for one in answer.options] == sorted(one.cards for one in answer.options)


def test_a_migration_never_serves_less_than_the_demand_and_ends_with_nothing_old(
    answer: Replaced,
) -> None:
    steps = of(answer, "amd-mi300x").steps
    assert steps
    assert all(step.share >= 1 - 1e-9 for step in steps)
    assert steps[0].what.startswith("start ")
    drained = " ".join(step.what for step in steps if step.what.startswith("send no more"))
    assert "nvidia-h20" in drained
    assert steps[-1].share == pytest.approx(of(answer, "amd-mi300x").found.served_per_s[0] / answer.questions[0].rate_per_s, rel=1e-6)  # type: ignore[operator]  # fmt: skip


def test_events_after_the_date_do_not_count(answer: Replaced) -> None:
    risk = next(one for one in answer.risks if one.chip == "nvidia-h20")
    assert risk.events
    assert all(event.date <= "2026-01-31" for event in risk.events)
    assert [event.date for event in risk.events] == sorted((e.date for e in risk.events), reverse=True)  # fmt: skip


def test_what_stays_saves_new_cards() -> None:
    full = replaced([ask(4.0)], ([cards("nvidia-h20", 16)], []), ["amd-mi300x"], Aim(), site())
    goes, stays = [cards("nvidia-h20", 8, "goes")], [cards("nvidia-h20", 8, "stays")]
    half = replaced([ask(4.0)], (goes, stays), ["amd-mi300x"], Aim(), site())
    assert of(half, "amd-mi300x").cards <= of(full, "amd-mi300x").cards
    assert any(one.chips == () for one in half.options)
    moved = of(half, "amd-mi300x")
    assert isinstance(moved.found, Chosen)
    # what is used of what stays is either left alone or started when cards of it are free, and never more than there are
    kept = [one for one in moved.found.used if one.shape.island.name == "stays"]
    before = [one for one in half.today.used if one.shape.island.name == "stays"]
    said = " ".join(step.what for step in moved.steps if step.what.startswith("start "))
    assert all(key(one) in map(key, before) or "on nvidia-h20" in said for one in kept)
    assert all(step.share >= 1 - 1e-9 for step in moved.steps)


def test_cards_that_stay_and_never_come_free_are_said_to_be_short() -> None:
    """One pool fills what there is, and the other way to cut the same cards serves as much: neither can go before the other is up."""
    stays = [cards("nvidia-h20", 8, "stays")]
    whole = choose([ask()], stays, Aim())
    assert isinstance(whole, Chosen)
    rate = whole.served_per_s[0]
    today = replace(whole, used=whole.used[:1], served_per_s=(rate,))
    shape = today.used[0].shape
    after = replace(today, used=(replace(today.used[0], shape=replace(shape, rate_per_s=shape.rate_per_s * 1.01, narrowest_bytes_per_s=1.0)),))  # fmt: skip
    served = today.used[0].replicas * shape.rate_per_s
    (step,) = migration([ask(served)], today, after, stays)
    assert step.what.startswith("what stays has no card free for 1 replica on nvidia-h20")
    assert step.share == pytest.approx(1.0)


def test_more_than_today_serves_is_refused() -> None:
    with pytest.raises(InfeasibleError, match="today's fleet does not serve this"):
        replaced([ask(1000.0)], ([cards("nvidia-h20", 8)], []), ["amd-mi300x"], Aim(), site())


def test_several_models_need_rates() -> None:
    with pytest.raises(InputError, match="2 models share the fleet; say how much of each"):
        replaced(
            [ask(), ask(name="llama-3.1-8b")], ([cards("nvidia-h20", 8)], []), [], Aim(), site()
        )
