"""What a million tokens cost: every part by itself, nothing where a price is missing, and a person's own figures first."""

from dataclasses import replace
from pathlib import Path

import pytest

from polypod.cli.asking import model_of
from polypod.cost.bands import Band
from polypod.cost.deployment import Deployment, native_precision
from polypod.errors import FileError, UnknownNameError
from polypod.plan.energy import Estimate, Serving
from polypod.plan.money import Output, Running, Site, in_all, pue_of, running, site
from polypod.plan.place import island, parse_fleet
from polypod.workload.layout import Layout

EXACT = Band(1.0, 1.0)


def costs(on: str, at: Site | None = None, band: Band = EXACT) -> Running:
    where = island("a", parse_fleet(on)["a"])
    model = model_of("llama-3.1-8b")
    deployment = Deployment.make(model, Layout(), native_precision(model, where.rank), where.rank)
    run = Serving(deployment=deployment, sequences=64, context_tokens=2048)
    output = Output(accelerators=8, tokens_per_s=2000.0, band=band)
    return running(where, run, output, at or site())


def known(value: Estimate | None) -> Estimate:
    assert value is not None
    return value


def own(tmp_path: Path, text: str) -> Site:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    return site(file)


def test_doubling_the_price_of_power_moves_a_token_by_exactly_the_powers_part() -> None:
    at = site()
    once = costs("nvidia-hgx-h200", at)
    twice = costs("nvidia-hgx-h200", replace(at, usd_per_kwh=at.usd_per_kwh * 2))
    for end in ("low", "likely", "high"):
        part = getattr(known(once.power_usd_per_million_tokens), end)
        before, after = (getattr(known(one.usd_per_million_tokens), end) for one in (once, twice))
        assert 0 < part < before
        assert after - before == pytest.approx(part)


def test_joules_are_the_sites_watts_for_as_long_as_a_million_tokens_take() -> None:
    found = costs("nvidia-hgx-h200")
    each = known(found.site_w).likely / 8
    assert known(found.joules_per_million_tokens).likely == pytest.approx(each * 1e6 / 2000)
    kwh = known(found.joules_per_million_tokens).likely / 3.6e6
    assert known(found.kg_co2_per_million_tokens).likely == pytest.approx(kwh * 0.35)
    assert known(found.power_usd_per_million_tokens).likely == pytest.approx(kwh * 0.085)


def test_an_owned_hour_is_its_purchase_its_place_and_its_power(tmp_path: Path) -> None:
    at = own(
        tmp_path,
        "life_years = 5\nupkeep_fraction_per_year = 0.05\nusd_per_kwh = 0.1\nusd_per_kw_month = 200\npue = 1.2\n"
        "[accelerator_usd]\nnvidia-h200-sxm = 40000\n",
    )
    found = costs("nvidia-hgx-h200", at)
    capital_usd = 40000 * (1 / 5 + 0.05) / 8766
    hosting_usd = 200 * 1.275 * 12 / 8766
    power_usd = 0.1 * known(found.site_w).likely / 8 / 1000
    assert known(found.usd_per_h).likely == pytest.approx(
        8 * (capital_usd + hosting_usd + power_usd)
    )
    assert known(found.site_w).likely == pytest.approx(1.2 * known(found.it_w).likely)


def test_a_chip_without_a_price_has_none_and_says_so() -> None:
    found = costs("sugon-scalex640")
    assert found.usd_per_million_tokens is None
    assert found.usd_per_h is None
    assert found.joules_per_million_tokens is not None
    (why,) = found.unknown
    assert why.startswith("no price of hygon-bw1000 on record, though one was looked for")


def test_a_chip_without_power_and_price_says_both() -> None:
    found = costs("baidu-256")
    assert found.site_w is None
    assert found.kg_co2_per_million_tokens is None
    assert found.unknown[0] == "no power of kunlun-p800 nor of baidu-256 on record"
    assert found.unknown[1].startswith("no price of kunlun-p800 on record")


def test_rent_has_the_power_in_it() -> None:
    found = costs("google-v6e-pod")
    assert known(found.usd_per_h).likely == pytest.approx(8 * 2.7)
    assert known(found.power_usd_per_million_tokens).likely == 0
    assert "rent hr-11 of 2025" in found.notes[-1]


def test_a_pods_own_price_comes_before_that_of_its_accelerators(tmp_path: Path) -> None:
    free = own(tmp_path, "usd_per_kwh = 1e-9\nusd_per_kw_month = 1e-9\nlife_years = 4\nupkeep_fraction_per_year = 1e-9\n")  # fmt: skip
    found = costs("huawei-cm384", free)
    assert known(found.usd_per_h).likely == pytest.approx(8 * 8.1e6 / 384 / 4 / 8766)


def test_yuan_are_changed_at_the_rate_said(tmp_path: Path) -> None:
    text = "usd_per_kwh = 1e-9\nusd_per_kw_month = 1e-9\nlife_years = 4\nupkeep_fraction_per_year = 1e-9\n"
    dear, cheap = (
        known(costs("huawei-ascend-910b2:8", own(tmp_path, f"{text}cny_per_usd = {rate}\n")).usd_per_h).likely
        for rate in (7, 14)
    )  # fmt: skip
    assert dear == pytest.approx(2 * cheap)
    assert dear == pytest.approx(8 * 115_000 / 7 * 1.3 / 4 / 8766)


def test_a_slower_token_costs_more_by_the_predictions_band() -> None:
    sharp, wide = costs("nvidia-hgx-h200"), costs("nvidia-hgx-h200", band=Band(0.8, 1.25))
    assert known(wide.usd_per_million_tokens).low == pytest.approx(0.8 * known(sharp.usd_per_million_tokens).low)  # fmt: skip
    assert known(wide.usd_per_million_tokens).high == pytest.approx(1.25 * known(sharp.usd_per_million_tokens).high)  # fmt: skip
    assert known(wide.usd_per_million_tokens).likely == known(sharp.usd_per_million_tokens).likely


def test_sums_are_of_all_and_unknown_where_one_is() -> None:
    one, other = costs("nvidia-hgx-h200"), costs("sugon-scalex640")
    both = in_all([(300.0, one), (100.0, one)])
    assert known(both.site_w).likely == pytest.approx(2 * known(one.site_w).likely)
    assert known(both.usd_per_million_tokens).likely == pytest.approx(known(one.usd_per_million_tokens).likely)  # fmt: skip
    mixed = in_all([(300.0, one), (100.0, other)])
    assert mixed.usd_per_million_tokens is None
    joules = [known(each.joules_per_million_tokens).likely for each in (one, other)]
    assert known(mixed.joules_per_million_tokens).likely == pytest.approx(0.75 * joules[0] + 0.25 * joules[1])  # fmt: skip
    assert mixed.unknown == other.unknown


def test_a_pods_own_pue_stands_unless_the_person_says_another(tmp_path: Path) -> None:
    where = island("a", parse_fleet("huawei-cm384")["a"])
    assert pue_of(where, site())[0] == Estimate(1.1, 1.1, 1.25)
    assert pue_of(where, own(tmp_path, "pue = 1.3"))[0] == Estimate(1.3, 1.3, 1.3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pu = 1.3", r"'pu' is no figure of a site; there are life_years, "),
        ("pue = -1", r"pue = -1; give a number above 0"),
        ("pue = [1.3, 1.2, 1.1]", r"pue = \[1.3, 1.2, 1.1\]; give a number above 0, or its low"),
        ("pue = ", r"prices.toml: cannot be read: "),
        ("[accelerator_usd]\nx = 'a'", r"accelerator_usd.x = 'a'; give a number above 0"),
    ],
)
def test_a_broken_figure_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(FileError, match=says):
        own(tmp_path, text)


def test_a_name_that_the_catalog_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no failure rate, repair, cooling or grid is called 'co2-uss'"):  # fmt: skip
        own(tmp_path, 'kg_co2_per_kwh = {catalog = "co2-uss"}')


def test_the_file_that_the_documents_show_is_read(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "compare.md"
    text = page.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    at = own(tmp_path, text)
    assert at.rent_usd_per_h["nvidia-h800-sxm"] == Estimate(1.9, 1.9, 1.9)
    assert at.usd_per_kwh == Estimate(0.65 / 7.1, 0.775 / 7.1, 0.9 / 7.1)
    rented = known(costs("nvidia-hgx-h800", at).usd_per_h)
    assert rented.likely == pytest.approx(8 * 1.9)


def test_a_servers_price_is_divided_by_its_accelerators(tmp_path: Path) -> None:
    """H20: a module of 12,000 to 15,000 USD, or an eighth of a server of 1.0 to 1.2 million CNY."""
    text = "usd_per_kwh = 1e-9\nusd_per_kw_month = 1e-9\nlife_years = 4\nupkeep_fraction_per_year = 1e-9\n"
    at = own(tmp_path, text + "server_ratio = 1.3\ncny_per_usd = 7\n")
    found = known(costs("nvidia-hgx-h20", at).usd_per_h)
    hours = 4 * 8766
    assert found.low == pytest.approx(8 * 12_000 * 1.3 / hours)
    assert found.high == pytest.approx(8 * 1.2e6 / 7 / 8 / hours)


def test_the_middle_of_several_figures_is_the_middle_one() -> None:
    """PUE: 1.115 of the best air, 1.175 of cold plates, 1.57 of air everywhere."""
    assert site().pue == Estimate(1.08, 1.175, 1.58)
