"""Power and money of a fleet: sums of its pools, between idle and the design power, less where less is asked."""

from dataclasses import replace

import pytest

from polypod.cli.asking import model_of
from polypod.errors import InputError
from polypod.plan.energy import nameplate, shares
from polypod.plan.fleet import Chosen, choose
from polypod.plan.fleet_cost import Load, ShapeCosts, fleet_running, shape_fraction, used_running
from polypod.plan.fleet_offers import Aim
from polypod.plan.money import pue_of, site
from polypod.plan.place import Island, islands, parse_fleet
from polypod.plan.search import Question


def ask(rate: float | None = None) -> Question:
    return Question(
        model=model_of("qwen3-32b"), input_tokens=2048, output_tokens=512, ttft_s=2.0, tpot_s=0.05, percentile=99, rate_per_s=rate
    )  # fmt: skip


def chosen(fleet: str, question: Question, aim: Aim | None = None) -> tuple[list[Island], Chosen]:
    places = islands(parse_fleet(fleet))
    found = choose([question], places, aim or Aim())
    assert isinstance(found, Chosen)
    return places, found


def test_every_shape_draws_between_idle_and_its_design_power() -> None:
    question = ask()
    found = chosen("nvidia-h100-sxm:16", question)[1]
    apart = chosen("nvidia-h20:8+nvidia-h100-sxm:8", question)[1]
    found = replace(found, used=(*found.used, *apart.used))
    assert {one.shape.role for one in found.used} >= {"prefill", "decode"}
    for one in found.used:
        drawn = shape_fraction(question, one.shape)
        assert shares().idle.low <= drawn.low <= drawn.likely <= drawn.high <= 1


def test_a_models_joules_are_all_its_pools_watts_over_its_tokens() -> None:
    question = ask()
    places, found = chosen("nvidia-h100-sxm:16", question)
    (run,), whole = fleet_running([question], found, site())
    plate = nameplate(places[0])
    assert not isinstance(plate, str)
    pue, _ = pue_of(places[0], site())
    watts = sum(one.accelerators * (shape_fraction(question, one.shape).likely * plate.accelerator_w + plate.host_w.likely) * pue.likely for one in found.used)  # fmt: skip
    assert run.site_w is not None
    assert run.joules_per_million_tokens is not None
    assert run.site_w.likely == pytest.approx(watts)
    tokens_per_s = found.served_per_s[0] * 512
    assert run.joules_per_million_tokens.likely == pytest.approx(1e6 * watts / tokens_per_s)
    assert whole.joules_per_million_tokens == pytest.approx(run.joules_per_million_tokens) or whole == run  # fmt: skip


def test_a_pool_of_which_half_is_asked_draws_half_way_to_idle() -> None:
    question = ask()
    _, found = chosen("nvidia-h100-sxm:16", question)
    one = found.used[0]
    full, half, none = (used_running(question, one, Load(1000.0, load), site()).site_w for load in (1.0, 0.5, 0.0))  # fmt: skip
    assert full is not None
    assert half is not None
    assert none is not None
    assert half.likely == pytest.approx((full.likely + none.likely) / 2)
    assert none.likely < full.likely


def test_least_money_costs_no_more_than_fewest_cards_and_least_power_draws_no_more() -> None:
    fleet = "nvidia-h100-sxm:8+huawei-ascend-910c:8"
    question = ask(4.0)
    totals = {}
    for objective, aim in {
        "cards": Aim(objective="cards"),
        "cost": Aim(objective="cost", shape_cost=ShapeCosts(at=site(), what="cost")),
        "energy": Aim(objective="energy", shape_cost=ShapeCosts(at=site(), what="energy")),
    }.items():
        _, found = chosen(fleet, question, aim)
        costs = {what: ShapeCosts(at=site(), what=what) for what in ("cost", "energy")}  # type: ignore[arg-type]
        totals[objective] = {what: sum(one.replicas * float(each(question, one.shape)) for one in found.used) for what, each in costs.items()}  # fmt: skip
    assert totals["cost"]["cost"] <= min(one["cost"] for one in totals.values()) + 1e-6
    assert totals["energy"]["energy"] <= min(one["energy"] for one in totals.values()) + 1e-6


def test_a_chip_without_a_price_is_named_with_the_way_out() -> None:
    question = ask(1.0)
    aim = Aim(objective="cost", shape_cost=ShapeCosts(at=site(), what="cost"))
    with pytest.raises(InputError, match=r"no price of hygon-bw1000 on record.*--prices file.*or --exclude hygon-bw1000"):  # fmt: skip
        choose([question], islands(parse_fleet("hygon-bw1000:8")), aim)
