"""Power and money as a person and a program read them."""

import json

from polypod.plan.energy import Estimate
from polypod.plan.money import Running
from polypod.report.running import running_json, running_lines

FOUND = Running(
    it_w=Estimate(8e3, 9e3, 10e3),
    site_w=Estimate(9e3, 11e3, 15e3),
    joules_per_million_tokens=Estimate(1.5e6, 3.27e6, 6e6),
    usd_per_million_tokens=None,
    power_usd_per_million_tokens=None,
    kg_co2_per_million_tokens=Estimate(0.1, 0.2, 0.3),
    usd_per_h=None,
    notes=("hosts taken",),
    unknown=("no price of x on record",),
)


def test_every_figure_stands_with_its_ends_and_what_is_missing_with_its_reason() -> None:
    assert running_lines(FOUND) == [
        "power         11 [9, 15] kW with cooling, 9 [8, 10] kW of IT",
        "a million     output tokens: 3.27 [1.5, 6] MJ, 0.2 [0.1, 0.3] kg CO2",
        "not known     no price of x on record",
        "taken         hosts taken",
    ]


def test_json_has_null_where_nothing_is_known() -> None:
    raw = json.loads(json.dumps(running_json(FOUND)))
    assert raw["usd_per_million_tokens"] is None
    assert raw["site_w"] == {"low": 9e3, "likely": 11e3, "high": 15e3}
    assert raw["unknown"] == ["no price of x on record"]
