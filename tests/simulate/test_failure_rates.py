"""The rates on record against the counts they are from, and against fleets they are not from."""

import math

import pytest

from polypod.catalog.site import find_site
from polypod.errors import InputError, QuantityError
from polypod.simulate.failure_rates import (
    KINDS,
    ONLY_CLAIMED,
    default_rates,
    poisson_limits,
    rates_of,
    unrated,
)

H = 3600.0


LLAMA = ("card", "node", "link", "software", "hang")


def per_h(cards: int) -> float:
    """Failures an hour of so many cards, eight to a server, of all that Llama 3's table has: rates add."""
    rates = {name: default_rates()[name] for name in LLAMA}
    per = {"node": cards / 8}
    return sum(per.get(name, cards) * H / rate.mtbf_s for name, rate in rates.items())


def test_the_54_days_of_llama_3_are_the_419_interruptions_that_were_counted():
    # https://direct.datacenterdynamics.com/.../meta-report-details-hundreds-of-gpu-and-hbm3-related-interruptions-to-llama-3-training-run
    assert per_h(16_384) * 54 * 24 == pytest.approx(419, abs=0.5)


def test_every_row_of_the_table_is_in_one_kind():
    llama = find_site("rel-llama3")
    parts = [default_rates()[name].counted.split()[0] for name in LLAMA]

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


RACKS = 16_384 / 16
"""Of Llama 3's cluster: two servers of eight behind one top-of-rack switch, https://arxiv.org/abs/2407.21783 section 3.3.1."""


def in_54_days(name: str) -> float:
    return RACKS * 54 * 24 * H / default_rates()[name].mtbf_s


def test_switches_of_racks_fail_about_as_often_as_another_cloud_s_did_ten_years_before():
    # about 5 % of its top-of-rack switches within a year, SIGCOMM 2011
    yearly = 1 - math.exp(-default_rates()["uplink"].per_year)

    assert find_site("rel-tor-2011").figures["tor_fail_per_year"] == pytest.approx(yearly, rel=0.2)


def test_the_switches_and_feeds_that_would_have_failed_under_llama_3_fit_into_its_table():
    rows = find_site("rel-llama3").breakdown

    assert in_54_days("uplink") < rows["network_switch_cable"]
    assert in_54_days("power") < rows["power_supply"] + rows["unplanned_host_maintenance"]


def test_switches_and_feeds_are_all_the_interruptions_that_were_counted():
    # 2 % of 180,000 in three months, and as many again as fail among those that already had: -ln 0.98 is 1 % more
    parts = [default_rates()[name] for name in ("uplink", "power")]

    assert sum(part.failures for part in parts) == pytest.approx(180_000 * 0.02, rel=0.011)
    assert parts[1].failures / sum(part.failures for part in parts) == pytest.approx(0.28)
    assert [part.watched_s for part in parts] == pytest.approx([180_000 * 2190 * H] * 2)  # fmt: skip


def test_a_feed_of_2008_is_within_what_one_failure_seen_in_a_year_can_say():
    # one power distribution unit of 500 to 1,000 of 1,800 servers in a cluster's first year
    figures = find_site("rel-google-2008").figures
    feeds = figures["servers"] / math.sqrt(500 * 1000)
    least, most = poisson_limits(figures["pdu_failures_per_year"])

    assert least < feeds * default_rates()["power"].per_year < most


def test_racks_of_2008_would_have_failed_more_often_than_llama_3_s_table_has_room_for():
    # which is why they are not drawn by that list: 67, where switches, cables and power supplies were 38
    figures, rows = find_site("rel-google-2008").figures, find_site("rel-llama3").breakdown
    racks = figures["servers"] / figures["servers_per_rack"]
    mtbf_h = racks * 365 * 24 / figures["rack_failures_per_year"]
    expected = RACKS * 54 * 24 / mtbf_h

    assert round(mtbf_h) == 19_710
    assert round(expected) == 67
    assert poisson_limits(rows["network_switch_cable"] + rows["power_supply"])[1] < expected
    assert "rack" not in default_rates()


@pytest.mark.parametrize(("count", "low", "high"), [(1, 0.0253, 5.572), (20, 12.22, 30.89), (268, 236.9, 302.1)])  # fmt: skip
def test_limits_of_a_count_are_the_exact_ones_within_a_fiftieth(count, low, high):
    # Garwood's: half the chi-squared quantiles of 2n and 2n + 2 degrees of freedom
    found = poisson_limits(count)

    assert found[1] == pytest.approx(high, rel=0.02)
    assert found[0] == pytest.approx(low, rel=0.02, abs=0.02)


def test_an_mtbf_has_the_limits_of_its_count_and_a_said_one_has_none():
    card = default_rates()["card"]
    few, many = poisson_limits(268)

    assert card.mtbf_limits_s == pytest.approx((card.mtbf_s * 268 / many, card.mtbf_s * 268 / few))
    assert rates_of(["card=50000h"])["card"].mtbf_limits_s is None


def test_a_repair_is_the_geometric_middle_of_what_is_on_record():
    swap = find_site("rep-swap")

    assert default_rates()["card"].repair_s == pytest.approx(math.sqrt(swap.least_s * swap.most_s))
    assert default_rates()["card"].records == ("rel-llama3", "rep-swap")


def test_what_nobody_counted_is_not_drawn_and_said():
    rates = default_rates()

    assert {"rack", "cooling", "nic", "island"} <= set(unrated(rates))
    assert set(ONLY_CLAIMED) <= set(unrated(rates))
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
        ({"mttr": ["rack=4h"]}, "--mttr rack: no count of it is on record"),
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
