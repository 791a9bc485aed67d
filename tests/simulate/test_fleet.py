"""From a plan to what is simulated."""

from typing import Any

import pytest

from polypod.plan.spec import Layout, Plan, Pool, Precision, Service, Slo, Source, Traffic
from polypod.policy.events import RequestFinished
from polypod.record import Header, Step
from polypod.report.runs import summarise
from polypod.simulate import arrivals, play, scenario_of
from polypod.workload.traffic import poisson

MODEL = "meta-llama/Llama-3.1-8B"


def plan(**over: Any) -> Plan:
    known: dict[str, Any] = {
        "role": "both", "on": "a", "layout": Layout(tp=1), "replicas": 2,
        "precision": Precision(weights="bf16", kv="bf16"), "state": "modelled", "name": "eight",
    }  # fmt: skip
    service = Service(
        model=MODEL,
        pools=(Pool(**(known | over)),),
        slo=Slo(ttft="1 s", tpot="50 ms"),
        traffic=Traffic(input=1000, output=100, rate="5 /s"),
    )
    return Plan(
        polypod=1, fleet={"a": Source(accelerator="nvidia-h200-sxm", count=8)}, services=(service,)
    )


TRACE = arrivals(poisson(5.0, 200, 1000, 100, seed=0), MODEL)


def test_a_plan_is_played_with_its_own_replicas_limits_and_slo():
    run = play(scenario_of(plan(), TRACE, seed=4))
    header = run.lines[0]
    summary = summarise(run.lines)

    assert isinstance(header, Header)
    assert (header.seed, len(header.plan_sha256 or "")) == (4, 64)
    assert header.policy.services[0].mean_output_tokens == 100.0
    assert [share.name for share in summary.replicas] == ["eight-0", "eight-1"]
    assert summary.finished == 200
    assert summary.goodput is not None
    assert summary.goodput.fraction == 1.0


def test_a_prompt_alone_takes_what_the_cost_model_says():
    scenario = scenario_of(plan(replicas=1), TRACE[:1])
    run = play(scenario)
    (up,) = scenario.replicas
    (done,) = [
        line.event
        for line in run.lines
        if isinstance(line, Step) and isinstance(line.event, RequestFinished)
    ]
    tokens_s = sum(up.step_time.step_s(tokens=1, kv_tokens=1000 + n, sequences=1) for n in range(1, 100))  # fmt: skip

    expected_s = up.step_time.prompt_s(1000) + tokens_s
    assert done.at_s - TRACE[0].at_s == pytest.approx(expected_s, rel=1e-3)
