"""The live node and its simulation, on one real record: the same events get the same decisions, and the same arrivals take about as long.

The record is of `polypod up` under rough traffic: streamed and not, clients who leave, a model that is not served, and an engine that is killed.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from polypod.cli.main import main
from polypod.policy.events import ClientGone, ReplicaDown, ReplicaUp
from polypod.policy.lifecycle import Validator
from polypod.record import Step, read
from polypod.report.fold import read_outcomes
from polypod.report.outcomes import GONE
from polypod.report.recorded import read_recorded
from polypod.simulate.replay import replay
from polypod.validate.halves import fitted, played

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(400),
    pytest.mark.skipif(os.cpu_count() == 1, reason="a second replica needs a second core"),
]

SCRIPT = Path(__file__).parents[2] / "scripts" / "live_parity.py"
REQUESTS = 72


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("state"))),
            *("--requests", str(REQUESTS), "--rate", "2", "--runs", "1", "--rough"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(done.stdout.splitlines()[-1])


def test_the_run_had_all_that_was_meant_to_go_wrong(path):
    outcomes = read_outcomes(path)
    events = [line.event for line in read(path) if isinstance(line, Step)]

    assert any(isinstance(event, ReplicaDown) for event in events)
    assert any(isinstance(event, ClientGone) for event in events)
    assert outcomes.retries > 0
    assert "model_not_found" in outcomes.codes
    assert (outcomes.requests.status == GONE).any()
    assert int(outcomes.finished.sum()) > REQUESTS // 2


def test_a_live_records_events_asked_again_get_the_same_decisions(path):
    assert replay(read(path)) is None


def test_a_decision_that_was_changed_in_a_live_record_is_found(path):
    lines = list(read(path))
    at, step = next(
        (n, one) for n, one in enumerate(lines) if isinstance(one, Step) and one.actions
    )
    lines[at] = Step(event=step.event, actions=[])
    assert replay(lines) is not None


def test_a_live_record_keeps_the_lifecycle(path):
    validator = Validator()
    for line in read(path):
        if isinstance(line, Step):
            validator.feed(line.event, line.actions)
    assert validator.open == {}


def test_its_arrivals_on_its_own_replicas_take_about_as_long_as_they_did(path):
    """Within five times: tests share their machine, and two live runs on it are half or twice as fast. `make live-parity` judges."""
    recorded, measured = read_recorded(path), read_outcomes(path)
    may = measured.finished & recorded.is_streamed & ~recorded.is_pinned & ~recorded.is_drawn
    simulated = played(recorded, fitted(recorded, measured, may))
    both = may & simulated.finished

    assert both.sum() >= 20
    assert measured.retries > 0
    for one, begin_s in ((measured, recorded.begin_s), (simulated, 0.0)):
        assert _placed_while_down(recorded, one, begin_s) == 0, "the engine is down when it was"
    for one, other in ((measured.ttft_s, simulated.ttft_s), (measured.tpot_s, simulated.tpot_s)):
        ratio = float(np.nanmedian(other[both]) / np.nanmedian(one[both]))
        assert abs(math.log(ratio)) < math.log(5)


def _placed_while_down(recorded, outcomes, begin_s):
    """Requests that were last handed to the engine that was killed before it was up again; some were before and since."""
    down = next(one for one in recorded.changes if isinstance(one, ReplicaDown))
    up_s = next(
        one.at_s
        for one in recorded.changes
        if isinstance(one, ReplicaUp) and one.replica == down.replica and one.at_s > down.at_s
    )
    number = [one.name for one in outcomes.replicas].index(down.replica)
    placed_s = outcomes.requests.placed_s[outcomes.requests.decode_replica == number] - begin_s
    down_s, up_s = down.at_s - recorded.begin_s, up_s - recorded.begin_s
    assert (placed_s < down_s).any()
    return int(((placed_s > down_s + 1e-6) & (placed_s < up_s - 1e-6)).sum())


def test_a_live_run_is_played_on_another_plan_beside_itself(path, tmp_path, capsys):
    plan = tmp_path / "plan.yaml"
    text = path.with_name("plan.yaml").read_text()
    plan.write_text(text.replace("max_sequences: 8", "max_sequences: 2"))
    assert main(["replay", str(path), "--plan", str(plan), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert found["diff"]["is_paired"]
    assert (
        found["a"]["requests"] == found["b"]["requests"] == REQUESTS + 2
    )  # and the first question to each replica
    assert found["requests"]["pinned"] == 2
    assert found["requests"]["drawn_lengths"] > 0
    assert found["a"]["rejected"]["404"] == found["b"]["rejected"]["404"] > 0
