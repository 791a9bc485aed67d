"""Failure rates, repairs, cooling, carbon: each found, listed and shown with its sources."""

import json

import pytest

from polypod.catalog.market import cooling_pue, grid_co2, reliability, repair_times
from polypod.catalog.search import search
from polypod.catalog.search_market import lines
from polypod.catalog.site import find_site, site_entries, site_title
from polypod.cli.main import main
from polypod.errors import UnknownNameError


def test_every_record_has_an_id_of_its_own() -> None:
    several = (*reliability(), *repair_times(), *cooling_pue(), *grid_co2())
    assert {one.id for one in several} < set(site_entries())
    assert len(site_entries()) == len(lines("site")) == 54


def test_a_repair_is_told_in_hours() -> None:
    assert site_title(find_site("REP-DRAIN")) == "node drained, tested, returned without parts: 2 to 24 h"  # fmt: skip
    assert site_title(find_site("rep-power")).endswith("distribution unit failed: 6 h")


def test_an_unknown_name_has_its_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"nearest: pue-air-hk"):
        find_site("pue-air-h")


def test_words_find_it() -> None:
    assert "rel-llama3" in [hit.id for hit in search("llama 3 pre-training") if hit.kind == "site"]


def test_it_is_shown_with_every_figure_and_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "show", "rel-llama3"]) == 0
    out = capsys.readouterr().out
    assert "interruptions" in out
    assert "said by [1]" in out
    assert max(len(line) for line in out.splitlines() if "http" not in line) <= 80

    assert main(["catalog", "show", "co2-fr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kg_co2_per_kwh"] == 0.041


def test_data_sets_not_to_use_are_listed_with_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["catalog", "list", "--kind", "unreliable"]) == 0
    out = capsys.readouterr().out
    assert "not to be used: 5" in out
    assert max(map(len, out.splitlines())) <= 80
