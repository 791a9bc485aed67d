"""The rates on record against the counts they are from, and against fleets they are not from."""

import math

import pytest

from polypod.catalog.site import find_site
from polypod.errors import InputError, QuantityError
from polypod.simulate.failure_rates import KINDS, default_rates, rates_of, unrated

H = 3600.0


def per_h(cards: int, *, without: tuple[str, ...] = ()) -> float:
    """Failures an hour of so many cards, eight to a server: rates add."""
    rates = {name: rate for name, rate in default_rates().items() if name not in without}
    per = {"node": cards / 8, "uplink": 0.0}
    return sum(per.get(name, cards) * H / rate.mtbf_s for name, rate in rates.items())


def test_the_54_days_of_llama_3_are_the_419_interruptions_that_were_counted():
    # https://direct.datacenterdynamics.com/.../meta-report-details-hundreds-of-gpu-and-hbm3-related-interruptions-to-llama-3-training-run
    assert per_h(16_384) * 54 * 24 == pytest.approx(419, abs=0.5)


def test_every_row_of_the_table_is_in_one_kind():
    llama = find_site("rel-llama3")
    parts = [rate.counted.split()[0] for name, rate in default_rates().items() if name != "uplink"]

    assert sum(float(part) for part in parts) == sum(llama.breakdown.values()) == 419


def test_cards_fail_as_often_as_the_record_derives():
    # its "all GPU events per GPU and year": the same rows
    yearly = default_rates()["card"].per_year

    assert yearly == pytest.approx(find_site("rel-llama3").derived["all_gpu_events_per_gpu_year"], rel=2e-3)  # fmt: skip


def test_opt_175b_s_manual_restarts_are_within_their_poisson_interval():
    # 35 restarts by hand in two months on 992 A100, https://arxiv.org/abs/2205.01068; 95 % of such a count are 24 to 49
    assert 24 <= per_h(992) * 2 * 365 / 12 * 24 <= 49


def test_megascale_s_hundred_repairs_in_several_weeks_are_reached():
    # over 100 on 12,288 GPUs: no fewer in the three weeks that "several" has at least
    assert find_site("rel-megascale").figures["failures_repaired"] == ">100"
    assert per_h(12_288) * 21 * 24 > 100


def test_nodes_fail_between_the_two_research_clusters_of_another_owner():
    # failures in 1,000 node-days: 6.5 and 2.34 on RSC-1 and RSC-2, https://arxiv.org/abs/2410.21680
    figures = find_site("rel-rsc").figures
    low, high = (figures[f"failures_per_1000_node_days, rsc{n}"] for n in (2, 1))

    assert low < per_h(8) * 24 * 1000 < high


def test_a_repair_is_the_geometric_middle_of_what_is_on_record():
    swap = find_site("rep-swap")

    assert default_rates()["card"].repair_s == pytest.approx(math.sqrt(swap.least_s * swap.most_s))
    assert default_rates()["card"].records == ("rel-llama3", "rep-swap")


def test_what_nobody_counted_is_not_drawn_and_said():
    rates = default_rates()

    assert {"rack", "cooling", "power", "island"} <= set(unrated(rates))
    assert set(unrated(rates)) | set(rates) == set(KINDS)


def test_a_person_s_own_rates_take_the_place_and_say_so():
    rates = rates_of(["card=50000h,uplink=never", "cooling=5000d"], ["node=4h"], ["card=0.7"], [], [])  # fmt: skip

    assert (rates["card"].mtbf_s, rates["card"].shape) == (50_000 * H, 0.7)
    assert rates["card"].counted == "--mtbf card=50000h"
    assert rates["node"].repair_s == 4 * H
    assert rates["node"].records == ("rel-llama3",)
    assert "uplink" not in rates
    assert "cooling" in rates


def test_slow_and_flapping_things_say_how_slow_and_how_often():
    rates = rates_of(["slow-card=1000h", "flap=100h"], [], [], ["slow-card=1.5,flap=8"], ["flap=2s/30s"])  # fmt: skip

    assert rates["slow-card"].factor == 1.5
    assert (rates["flap"].burst_s, rates["flap"].every_s) == (2, 30)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"mtbf": ["cadr=1h"]}, "nothing that fails is called 'cadr'; nearest: card"),
        ({"mtbf": ["card"]}, "'card' is no kind and value; write --mtbf card=50000h"),
        ({"mtbf": ["card=0h"]}, "card=0 has to be above 0"),
        ({"mttr": ["rack=4h"]}, "--mttr rack: no rate of it is on record"),
        ({"shapes": ["card=x"]}, "'x' is no number"),
        ({"shapes": ["card=0"]}, "--shape card=0 has to be above 0"),
        ({"factors": ["card=2"]}, "card stops what runs there; a factor is of slow-card"),
        ({"mtbf": ["slow-card=1h"]}, "nothing says how much: give --factor slow-card=F"),
        ({"mtbf": ["flap=1h"], "factors": ["flap=8"]}, "needs bursts shorter"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(said, problem):
    with pytest.raises(InputError, match=problem):
        rates_of(**said)


def test_a_time_wears_its_unit():
    with pytest.raises(QuantityError, match=r"--mtbf card=50000: '50000' has no unit"):
        rates_of(["card=50000"])
