"""A plan and a jobs file become one scenario, and what comes of it is told in figures that add up."""

import json
from pathlib import Path
from typing import Any

import pytest

from polypod.cli.job_flags import run_jobs
from polypod.errors import FileError, InputError
from polypod.plan.spec import Plan, read_plan
from polypod.policy.job_fleet import IslandCards
from polypod.simulate.job_plan import fleet_of_plan, job_scenario, replicas_of_plan
from polypod.simulate.job_summary import jain, summary
from polypod.simulate.jobs import play_jobs

POOL = "{name: chat, role: both, on: a, layout: {tp: 8, ep: 8}, replicas: 2, precision: {weights: fp8, kv: bf16}, state: launchable}"


def plan(tmp_path: Path, fleet: str = "{a: {accelerator: nvidia-h20, count: 64}}", pool: str = POOL) -> Plan:  # fmt: skip
    path = tmp_path / "plan.yaml"
    path.write_text(f"polypod: 1\nfleet: {fleet}\nservices: [{{model: m, pools: [{pool}]}}]\n")
    return read_plan(path)


def jobs_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "jobs.yaml"
    path.write_text(text)
    return path


def test_tiers_of_the_catalog_become_nodes_and_racks(tmp_path: Path) -> None:
    """A CloudMatrix 384 has nodes of 8 packages (16 dies); an H20 server has 8; an NVL72 is one node."""
    fleet = "{a: {accelerator: nvidia-h20, count: 64}, b: {pod: huawei-cm384}, c: {pod: nvidia-gb200-nvl72}}"
    assert fleet_of_plan(plan(tmp_path, fleet)).islands == (
        IslandCards(name="a", kind="nvidia-h20", cards=64, node_cards=8),
        IslandCards(name="b", kind="huawei-ascend-910c", cards=384, node_cards=8),
        IslandCards(name="c", kind="nvidia-gb200", cards=72, node_cards=72),
    )


def test_a_plans_replicas_hold_their_cards_from_the_start(tmp_path: Path) -> None:
    [wants] = replicas_of_plan(plan(tmp_path))
    assert (wants.service, wants.replicas, wants.cards, wants.kinds, wants.within) == ("chat", 2, 8, ("nvidia-h20",), "node")  # fmt: skip


def test_dies_are_counted_as_packages(tmp_path: Path) -> None:
    pool = POOL.replace("tp: 8, ep: 8", "tp: 32, ep: 32")
    [wants] = replicas_of_plan(plan(tmp_path, "{a: {pod: huawei-cm384}}", pool))
    assert (wants.cards, wants.within) == (16, "island")


def test_a_swing_follows_a_cosine_and_stands_for_the_plans_pool(tmp_path: Path) -> None:
    text = "draw: {count: 200, seed: 1, most_cards: 8}\nswings: [{service: chat, cards: 8, low: 1, high: 5, period_s: 14400}]\n"
    scenario, _ = job_scenario(plan(tmp_path), jobs_file(tmp_path, text))
    assert {wants.service for wants in scenario.services} == {"chat"}
    assert [wants.replicas for wants in scenario.services[:5]] == [1, 3, 5, 3, 1]
    assert [wants.at_s for wants in scenario.services[:3]] == [0, 3600, 7200]


@pytest.mark.parametrize(
    ("text", "error", "problem"),
    [
        ("rules: {reservations: 1}\n", FileError, r"needs jobs from one place: give `trace` or `draw`"),
        ("draw: {count: 0}\n", FileError, r"`int` >= 1 - at `\$.draw.count`"),
        ("drew: {}\n", FileError, r"unknown field `drew`"),
        ("draw: {most_cards: 128}\n", InputError, r"jobs of up to 128 cards are drawn, and the fleet has 64; set most_cards lower"),
        ("trace: nothing.csv\n", FileError, r"nothing.csv: cannot be read"),
    ],
)  # fmt: skip
def test_a_jobs_file_that_cannot_be_says_why(tmp_path: Path, text: str, error: type[Exception], problem: str) -> None:  # fmt: skip
    with pytest.raises(error, match=problem):
        job_scenario(plan(tmp_path), jobs_file(tmp_path, text))


def test_cores_of_a_host_run_no_jobs(tmp_path: Path) -> None:
    here = plan(tmp_path, "{a: {host: me, cores: [0]}}")
    with pytest.raises(InputError, match=r"part 'a' of the fleet is cores of a host, and jobs run on accelerators"):  # fmt: skip
        fleet_of_plan(here)


def test_figures_add_up(tmp_path: Path) -> None:
    text = (
        "draw: {count: 300, load_ratio: 0.8, seed: 2, most_cards: 16}\nrules: {reservations: 2}\n"
    )
    scenario, _ = job_scenario(plan(tmp_path), jobs_file(tmp_path, text))
    run = play_jobs(scenario)
    found = summary(run)
    assert found["used_fraction"] == pytest.approx(found["job_fraction"] + found["service_fraction"])  # fmt: skip
    assert found["service_fraction"] == pytest.approx(16 / 64)
    for key in ("waits", "waits_by_tenant", "waits_by_cards"):
        assert sum(of["jobs"] for of in found[key].values()) == 300
    mean_s = sum(of["jobs"] * of["mean_s"] for of in found["waits_by_cards"].values()) / 300
    assert mean_s == pytest.approx(found["waits"]["all"]["mean_s"])
    assert list(found["waits_by_cards"]) == ["1", "2-8", "9-64"]
    assert jain(list(found["tenant_card_s"].values())) == pytest.approx(found["jain_of_use_by_weight"])  # fmt: skip


def test_it_is_printed_for_people_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    trace = tmp_path / "jobs.csv"
    trace.write_text("submit_s,cards,minutes\n0,8,10\n0,99,10\n60,8,10\n")
    assert run_jobs(plan(tmp_path), trace, is_json=False) == 0
    out, err = capsys.readouterr()
    assert "jobs.csv: 2 finished, 1 rejected" in out
    assert "job 2: a gang of 99 cards within one island never fits; the largest that would is 64" in err  # fmt: skip
    assert run_jobs(plan(tmp_path), trace, is_json=True) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["jobs"] == {"finished": 2, "rejected": 1}
    assert found["waits"]["all"]["most_s"] == 0
