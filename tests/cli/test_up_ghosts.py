"""polypod up --ghost, as a person starts it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from polypod.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"
PLAN = str(EXAMPLES / "one-pool.yaml")


def up(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "polypod", "up", "--port", "0", "--once", *arguments]
    environment = os.environ | {"XDG_STATE_HOME": str(state)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_a_plan_for_cards_that_are_not_here_is_served_and_said_to_be_made_up(tmp_path):
    done = up(tmp_path, "--plan", PLAN, "--ghost", "--ghost-speed", "5x")

    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert (
        "answers are made up, and their times are what the plan predicts, 5 times as fast as planned"
        in said
    )
    assert "4 ghosts of [tp1] on nvidia-h200-sxm" in said


def test_a_plan_whose_engine_is_ghost_needs_no_flag_and_one_object_says_what_was_measured(tmp_path):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        Path(PLAN).read_text().replace("state: launchable", "state: launchable, engine: ghost")
    )
    done = up(tmp_path, "--plan", str(plan), "--json")

    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    (answer,) = shown["answers"]
    assert (shown["ghosts"], answer["output_tokens"]) == (4, 48)
    assert "made up" in shown["made_up"]
    assert answer["ttft_s"] > answer["predicted"]["ttft_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ghost"], "name it with --plan"),
        (["--plan", PLAN, "--ghost", "--ghost-speed", "fast"], "--ghost-speed fast is no speed"),
        (
            ["--plan", PLAN, "--ghost", "--ghost-processes", "0"],
            "--ghost-processes '0' is no number",
        ),
        (["--plan", PLAN, "--ghost", "--ghost-processes", "999"], "999 is more than 256"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    assert main(["up", "--port", "0", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_ghosts_do_not_mix_with_engines(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    text = Path(PLAN).read_text()
    pool = text[text.index("  - {role") :]
    plan = tmp_path / "plan.yaml"
    plan.write_text(text.replace("replicas: 4", "replicas: 4, engine: ghost, name: a") + pool.replace("replicas: 4", "replicas: 4, name: b"))  # fmt: skip

    assert main(["up", "--port", "0", "--plan", str(plan)]) == 2
    assert "made-up answers do not mix" in capsys.readouterr().err
