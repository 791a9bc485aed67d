"""Failures drawn: their number, their lives, and that the same seed draws the same."""

import math

import numpy as np
import pytest

from polypod.errors import InputError
from polypod.plan.spec import Layout, Plan, Pool, Precision, Service, Source
from polypod.simulate.failure_rates import default_rates, rates_of
from polypod.simulate.placed import placement
from polypod.simulate.timeline import draw

YEAR_S = 365 * 86400.0


def placed(cards: int, tp: int = 8):
    pool = Pool(
        role="both", on="a", layout=Layout(tp=tp), replicas=cards // tp,
        precision=Precision(weights="bf16", kv="bf16"), state="modelled", name="p",
    )  # fmt: skip
    service = Service(model="meta-llama/Llama-3.1-8B", pools=(pool,))
    return placement(Plan(polypod=1, fleet={"a": Source(accelerator="nvidia-h100-sxm", count=cards)}, services=(service,)))  # fmt: skip


FLEET = placed(10_240)


def test_the_same_seed_draws_the_same_and_another_does_not():
    first, again, other = (draw(FLEET, default_rates(), YEAR_S, seed=seed) for seed in (1, 1, 2))

    np.testing.assert_array_equal(first.at_s_F, again.at_s_F)
    np.testing.assert_array_equal(first.repair_s_F, again.repair_s_F)
    assert len(first) != len(other)


def test_a_rate_changed_leaves_the_other_kinds_as_they_were():
    def nodes(rates):
        found = draw(FLEET, rates, YEAR_S, seed=3)
        names = [rate.kind.name for rate in found.rates]
        return found.at_s_F[found.kind_F == names.index("node")]

    np.testing.assert_array_equal(nodes(rates_of(["card=never"])), nodes(rates_of(["card=9000h"])))


def test_rates_add_whatever_the_kind():
    # superposition: Poisson processes together are one of the summed rate
    found = draw(FLEET, default_rates(), 5 * YEAR_S, seed=0)
    per = {"node": 1280, "uplink": 320, "power": 320}
    expected = sum(per.get(name, 10_240) * rate.per_year for name, rate in default_rates().items()) * 5  # fmt: skip

    assert abs(len(found) - expected) < 4 * math.sqrt(expected)
    assert np.all(np.diff(found.at_s_F) >= 0)
    gaps_s = np.diff(found.at_s_F)
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.05)  # exponential


def test_a_component_is_its_cards():
    found = draw(placed(64), rates_of(["node=9000h,rack=9000h"]), 9 * YEAR_S, seed=0)
    names = [rate.kind.name for rate in found.rates]
    for name, size in (("card", 1), ("node", 8), ("rack", 32), ("link", 1), ("uplink", 32)):
        mine = found.kind_F == names.index(name)
        np.testing.assert_array_equal(found.end_card_F[mine] - found.first_card_F[mine], size)
        np.testing.assert_array_equal(found.first_card_F[mine], found.number_F[mine] * size)
        assert found.end_card_F[mine].max(initial=0) <= 64


def test_the_last_rack_of_a_part_ends_with_it():
    found = draw(placed(40), rates_of(["rack=900h"]), YEAR_S, seed=0)
    names = [rate.kind.name for rate in found.rates]
    last = (found.kind_F == names.index("rack")) & (found.number_F == 1)

    assert set(found.end_card_F[last].tolist()) == {40}


@pytest.mark.parametrize("shape", [0.7, 2.0])
def test_lives_of_another_shape_keep_their_mean_and_have_weibull_s_spread(shape):
    rates = rates_of(["card=1000h", "node=never,link=never,software=never,hang=never,uplink=never,power=never"], ["card=1h"], [f"card={shape}"])  # fmt: skip
    found = draw(placed(64), rates, 20 * YEAR_S, seed=0)
    lives_s = np.concatenate([
        np.diff(found.at_s_F[found.number_F == card]) - found.repair_s_F[found.number_F == card][:-1]
        for card in range(64)
    ])  # fmt: skip
    mean, square = math.gamma(1 + 1 / shape), math.gamma(1 + 2 / shape)

    assert lives_s.mean() == pytest.approx(1000 * 3600, rel=0.03)
    assert lives_s.std() / lives_s.mean() == pytest.approx(math.sqrt(square / mean**2 - 1), rel=0.03)  # fmt: skip


def test_repairs_have_the_mean_of_their_rate():
    found = draw(FLEET, rates_of(mttr=["card=5h"]), 5 * YEAR_S, seed=0)
    names = [rate.kind.name for rate in found.rates]
    repairs_s = found.repair_s_F[found.kind_F == names.index("card")]

    assert repairs_s.mean() == pytest.approx(5 * 3600, rel=0.05)


@pytest.mark.parametrize("duration_s", [0.0, -1.0, math.inf, math.nan])
def test_a_time_that_is_none_is_refused(duration_s):
    with pytest.raises(InputError, match="failures are drawn over a time above 0 s"):
        draw(FLEET, default_rates(), duration_s, seed=0)


def test_more_failures_than_fit_are_refused_with_the_kind():
    with pytest.raises(InputError, match=r"card would fail .* times in 'a'"):
        draw(FLEET, rates_of(["card=1us"]), YEAR_S, seed=0)
