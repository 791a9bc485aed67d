"""`polypod plan --stages`, as a person asks."""

import json
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from polypod.cli.main import main
from polypod.plan.spec import read_plan
from polypod.policy.events import RequestFinished
from polypod.record import Step
from polypod.simulate import Arrival, play, scenario_of

FLEET = ("plan", "llama-3.1-8b", "--on", "nvidia-l4:1+nvidia-t4:2", "--stages")
ASKED = (*FLEET, "--fabric", "10Gb/s")


def test_the_text_says_what_holds_which_layers_and_what_it_waits_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*ASKED]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    for part in ("1.25 GB/s", "micro-batches of", "waits for", "embedding", "head", "one kind each", "proven best", "specification only", "bf16 on nvidia-l4, fp16 on nvidia-t4"):  # fmt: skip
        assert part in words


def test_the_figures_for_programs_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    total = sum(one["count"] * one["tokens_per_s"] for one in found["pipelines"])
    assert found["tokens_per_s"] == pytest.approx(total)
    assert found["separate_tokens_per_s"] <= found["tokens_per_s"] * (1 + 1e-9)
    for pipeline in found["pipelines"]:
        assert sum(stage["layers"] for stage in pipeline["stages"]) == 32
        assert pipeline["layer_partition"] == ",".join(str(stage["layers"]) for stage in pipeline["stages"])  # fmt: skip
    used = {one["name"]: one["used_ranks"] for one in found["islands"]}
    assert used["a"] <= 1
    assert used["b"] <= 2


def test_the_plan_file_has_the_stages_and_is_played_as_planned(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Far more requests than fit, all at once: the full pipeline gives the closed form's tokens a second."""
    path = tmp_path / "plan.yaml"
    fleet = ("plan", "llama-30b", "--on", "nvidia-a100-40g-sxm:1+nvidia-l4:3+nvidia-t4:4", "--stages")  # fmt: skip
    lengths = ("--input", "763", "--output", "232")
    assert main([*fleet, *lengths, "--fabric", "10Gb/s", "-o", str(path), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["pipelines"]
    plan = read_plan(path)
    [pool] = plan.services[0].pools
    assert sum(stage.layers for stage in pool.stages) == 60
    assert {stage.on for stage in pool.stages} == {"a", "b", "c"}
    assert pool.layout.pp == len(pool.stages) == 8
    assert pool.link == "1.25 GB/s"

    one = Arrival(at_s=0.0, model=plan.services[0].model, input_tokens=763, output_tokens=232)
    scenario = scenario_of(plan, [one] * 6 * pool.max_sequences)
    patient = msgspec.structs.replace(scenario.settings, queue_wait_s=1e9)
    run = play(replace(scenario, settings=patient))
    ends = [s.event for s in run.lines if isinstance(s, Step) and isinstance(s.event, RequestFinished)]  # fmt: skip
    full = [end.output_tokens for end in ends if 0.3 * run.end_s < end.at_s < 0.8 * run.end_s]
    assert sum(full) / (0.5 * run.end_s) == pytest.approx(told["tokens_per_s"], rel=0.05)


def test_a_plan_with_stages_is_simulated_and_not_launched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "plan.yaml"
    fleet = ("plan", "llama-30b", "--on", "nvidia-a100-40g-sxm:1+nvidia-l4:2", "--stages")
    assert main([*fleet, "--fabric", "10Gb/s", "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["simulate", str(path), "--requests", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["finished"] == 50
    assert found["bands"]["pipeline-1"]["evidence"] == "same family"
    assert main(["emit", str(path), "--engine", "vllm", "-o", str(tmp_path / "launch")]) == 2
    problem = capsys.readouterr().err
    assert "pool 'pipeline-1' is a pipeline of unequal stages over b, a" in problem
    assert "no engine is launched with yet" in problem
    assert "at `$.services[0].pools[0].stages`" in problem


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("on: b\n      layers", "on: z\n      layers", r"'z' is not in the fleet"),
        ("pp: 3", "pp: 2", r"pp=2 and 3 stages are given"),
        ("link: 1.25 GB/s", "link: 0 GB/s", r"no link between stages is on record; say one rank's"),
        ("link: 1.25 GB/s", "link: wide", r"'wide'.*pools\[0\].link"),
        ("replicas: 1", "replicas: 2", r"2 replicas of 2 ranks need 4, 'b' has 2"),
        ("layers: 28", "layers: 27", r"the stages hold 59 layers, .* has 60"),
    ],
)
def test_a_plan_file_whose_stages_cannot_be_is_refused(
    old: str, new: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.yaml"
    fleet = ("plan", "llama-30b", "--on", "nvidia-a100-40g-sxm:1+nvidia-l4:2", "--stages")
    assert main([*fleet, "--fabric", "10Gb/s", "-o", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    capsys.readouterr()
    assert main(["simulate", str(path)]) == 2
    assert re.search(problem, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (FLEET, "no network bandwidth is on record between nvidia-l4, nvidia-t4"),
        ((*FLEET, "--fabric", "0 Gb/s"), "joins nothing"),
        ((*ASKED, "--rate", "2/s"), "--rate does not go with --stages: a pipeline carries as much as it can"),
        ((*ASKED, "--max-share", "nvidia=20%"), "--max-share does not go with --stages"),
        ((*ASKED, "--engine-args", "prefix_hits=0.3"), "--engine-args does not go with --stages"),
        ((*ASKED, "--emit", "vllm", "-o", "launch"), "--emit does not go with --stages"),
        ((*ASKED, "--stage-tp", "none"), "--stage-tp 'none' is no number"),
        ((*FLEET[:-1], "--stage-tp", "2"), "say --stages as well"),
        (("plan", "llama-3.1-8b", "qwen3-32b", *ASKED[2:]), "--stages is of one model, 2 are named"),
        (("plan", "llama-3.1-8b:rate=2/s", *ASKED[2:]), "rate= does not go with --stages"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_says_why(
    words: tuple[str, ...], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fabrics", "alone", "problem"),
    [
        ("[{joins: [a, b, c], bandwidth: 10 Gb/s}]", "[]", None),
        ("[{joins: [a, b], bandwidth: 10 Gb/s}]", "[c]", "no fabric joins a and c"),
    ],
)
def test_the_fabrics_of_a_fleet_file_have_to_join_every_two_islands(
    fabrics: str,
    alone: str,
    problem: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    islands = "\n".join(f"  {name}: {{accelerator: {chip}, count: 1}}" for name, chip in (("a", "nvidia-l4"), ("b", "nvidia-t4"), ("c", "nvidia-t4")))  # fmt: skip
    path = tmp_path / "fleet.yaml"
    path.write_text(f"fleet:\n{islands}\nfabrics: {fabrics}\nalone: {alone}\n", encoding="utf-8")
    words = ("plan", "llama-3.1-8b", "--on", str(path), "--stages")
    if problem is None:
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["fabric_bytes_per_s"] == 1.25e9
        assert main([*words, "--fabric", "10Gb/s"]) == 2
        assert "contradict each other" in capsys.readouterr().err
    else:
        assert main([*words]) == 2
        assert problem in capsys.readouterr().err
        assert main([*words, "--exclude", "nvidia-l4"]) == 2  # b and c are not joined either


def test_a_model_that_the_fleet_cannot_hold_says_by_how_much(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (
        "plan",
        "llama-30b",
        "--on",
        "nvidia-l4:1+nvidia-t4:1",
        "--stages",
        "--fabric",
        "1Gb/s",
    )
    assert main([*words]) == 1
    assert (
        "hold 31 of them beside one request: 31 GB of weights are too many"
        in capsys.readouterr().err
    )
