"""polypod availability as a person meets it, and the flags of what breaks."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.cli.fault_flags import add_fault_arguments, faults_of
from polypod.cli.main import main
from polypod.errors import InputError
from polypod.plan.spec import read_plan
from polypod.record import FaultNote
from polypod.report.runs import summarise
from polypod.simulate import arrivals, play, replay, scenario_of
from polypod.workload.traffic import poisson

PLAN = """
polypod: 1
fleet: {a: {accelerator: nvidia-h100-sxm, count: 64}}
services:
- model: meta-llama/Llama-3.1-8B
  traffic: {input: 1000, output: 100, rate: 40 /s}
  pools:
  - {role: both, on: a, name: p, layout: {tp: 8}, replicas: 8, precision: {weights: bf16, kv: bf16}, state: modelled,
     predicted: {memory_per_accelerator: 1 GB, tokens_per_s_per_accelerator: 80, bound: {}}}
"""


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return str(path)


def test_the_answer_fits_the_terminal_and_says_needs_time_causes_spares_and_sources(plan, capsys):
    assert main(["availability", plan, "--spares", "1"]) == 0
    out = capsys.readouterr().out

    assert max(len(line) for line in out.splitlines() if "https://" not in line) <= 80
    for said in (
        "20 runs of 10 years of 64 cards:", "8 replicas, 7 needed", "Markov  ", "no spares ", "99.99 %  ", "rel-llama3: Llama 3 405B",
        "268 in 21,233,664 GPU h", "not drawn     rack, island, cooling, nic", "of rack and cooling see `polypod catalog show rel-google-2008`", "counts say    card 70,", "recovery      1 spare card for each part, crews enough;", "assumed  ",
    ):  # fmt: skip
        assert said in out


def test_json_has_the_same_figures_twice_from_the_same_seed(plan, capsys):
    found = []
    for seed in ("0", "0", "1"):
        assert main(["availability", plan, "--json", "--seed", seed, "--runs", "5"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    service = found[0]["services"][0]

    assert found[0] == found[1] != found[2]
    assert service["pools"] == {"p": {"replicas": 8, "needed": 7}}
    assert service["up_fraction"]["low"] < service["up_fraction"]["mean"] < 1
    assert [one["target_fraction"] for one in service["spares_for"]] == [0.999, 0.9999]
    assert service["markov"]["up_fraction"] == pytest.approx(service["up_fraction"]["mean"], abs=1e-3)  # fmt: skip
    assert found[0]["rates"]["card"]["records"] == ["rel-llama3", "rep-swap"]


@pytest.mark.parametrize(
    ("said", "code", "problem"),
    [
        (["--years", "0.0001"], 1, "known to within"),
        (["--years", "0"], 2, "--years 0 is no length of a run"),
        (["--runs", "1"], 2, "1 run has no interval"),
        (["--seed", "-1"], 2, "--seed -1 is negative"),
        (["--spares", "many"], 2, "--spares 'many' is no number of cards"),
        (["--need", "p"], 2, "--need 'p' is no pool and number"),
        (["--storage", "10"], 2, "--storage: '10' has no unit"),
        (["--storage", "0GB/s"], 2, "it has to be above 0"),
        (["--failover", "soon"], 2, "--failover: 'soon' is not a quantity"),
        (["--crews", "0"], 2, "--crews '0' is no number"),
        (["--mtbf", "card=never,node=never,link=never,software=never,hang=never,uplink=never,power=never"], 1, "nothing of this plan ever fails"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_line(plan, capsys, said, code, problem):
    assert main(["availability", plan, *said]) == code
    err = capsys.readouterr().err
    assert problem in err
    assert err.count("\n") == 1


def flags(*said: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    add_fault_arguments(parser)
    return parser.parse_args(said)


def test_nothing_breaks_unless_it_is_said(plan):
    found = faults_of(flags(), read_plan(Path(plan)), 3600.0)

    assert (found.faults, found.notes) == ((), ())


def test_rates_without_a_draw_are_refused(plan):
    with pytest.raises(InputError, match="--mtbf is of failures that are drawn; say --draw-faults"):
        faults_of(flags("--mtbf", "card=50h"), read_plan(Path(plan)), 3600.0)


def test_drawn_and_written_faults_are_played_recorded_replayed_and_summarised(plan, tmp_path):
    file = tmp_path / "faults.yaml"
    file.write_text("- {at: 20s, what: crash, where: node a/2, repair: 30s}\n")
    asked = read_plan(Path(plan))
    found = faults_of(flags("--faults", str(file), "--draw-faults", "--mtbf", "card=300s", "--mttr", "card=10s", "--seed", "3"), asked, 60.0)  # fmt: skip
    trace = arrivals(poisson(20.0, 1200, 500, 50, seed=0), asked.services[0].model)
    scenario = scenario_of(asked, trace, faults=found.faults)
    bare = play(scenario)
    noted = play(replace(scenario, notes=found.notes))
    notes = [line for line in noted.lines if isinstance(line, FaultNote)]

    assert [note.cause for note in notes].count("a fault file") == 1
    assert len(notes) > 5
    assert tuple(line for line in noted.lines if not isinstance(line, FaultNote)) == bare.lines
    assert replay(noted.lines) is None
    summary = summarise(noted.lines)
    assert replace(summary, faults=()) == replace(summarise(bare.lines), faults=())
    assert summary.rejected  # answers that had begun where something died
    assert {one.where for one in summary.faults} <= {note.where for note in notes}
    assert "node a/2" in {one.where for one in summary.faults}


def test_the_share_of_a_step_is_asked_of_the_plan_s_own_cost_model(plan, tmp_path):
    file = tmp_path / "faults.yaml"
    file.write_text("- {at: 20s, what: slow-link, where: link card a/2, factor: 3, repair: 30s}\n")
    found = faults_of(flags("--faults", str(file)), read_plan(Path(plan)), 60.0)
    speed = next(fault.factor for fault in found.faults if fault.what == "speed")

    assert 1 < speed < 2
