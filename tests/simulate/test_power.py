"""What replicas draw beside the planner's own figure and published nodes; energy, weather and caps as laws."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polypod.cli.asking import model_of
from polypod.cost.deployment import native_precision
from polypod.errors import FileError, InputError
from polypod.plan.compose import cost_of, plan_model
from polypod.plan.energy import ENDS, drawn_fraction, nameplate, phases, serving, shares, watts
from polypod.plan.money import pue_of, site
from polypod.plan.place import island, parse_fleet
from polypod.plan.search import Question
from polypod.plan.spec import Plan, Pool, PoolStage, Service, Source, Traffic
from polypod.record import Measure
from polypod.report.summary import summarise
from polypod.simulate.caps import Asked, Fed, Feed, caps_of, feeds_of, parse_cap
from polypod.simulate.compiled import play_compiled
from polypod.simulate.cooling import KINDS, Hall, Site, cooling, kind_of
from polypod.simulate.fleet import scenario_of
from polypod.simulate.outside import Outside, parse_outside
from polypod.simulate.placed import placement
from polypod.simulate.power import draws_of, drawn_by
from polypod.simulate.run import Run, play
from polypod.simulate.series import Cap, Draw, Watch, slowdown
from polypod.simulate.trace import arrivals
from polypod.workload.layout import Layout
from polypod.workload.precision import Precision
from polypod.workload.traffic import poisson

BF16 = Precision(weights="bf16", kv="bf16")


def plan_of(*pools: Pool, fleet: str = "nvidia-h100-sxm:8", model: str = "meta-llama/Llama-3.1-8B", traffic: Traffic | None = Traffic(input=1024, output=64, rate="40 /s")) -> Plan:  # fmt: skip
    return Plan(polypod=1, fleet=parse_fleet(fleet), services=(Service(model=model, pools=pools, traffic=traffic),))  # fmt: skip


def pool(role="both", layout=Layout(), replicas=4, **more) -> Pool:
    return Pool(role=role, on=more.pop("on", "a"), layout=layout, replicas=replicas, precision=more.pop("precision", BF16), state="modelled", **more)  # fmt: skip


def played(plan: Plan, watch: Watch, rate_per_s: float, count: int, driver=play_compiled) -> Run:
    traffic = plan.services[0].traffic
    assert traffic is not None
    trace = poisson(rate_per_s, count, traffic.input, traffic.output, seed=1)
    scenario = scenario_of(plan, arrivals(trace, plan.services[0].model))
    run: Run = driver(replace(scenario, watch=watch))
    return run


def series(run: Run, of: str, name: str) -> np.ndarray:
    return np.array([(m.at_s, m.value) for m in run.lines if isinstance(m, Measure) and (m.of, m.name) == (of, name)])  # fmt: skip


# ---- what is drawn


def test_a_steady_run_draws_what_the_plan_predicts():
    """Both from the same shares, one by the closed form of a mean step, the other by the seconds an emulated engine spends: within 6 %."""
    for text, on in (("meta-llama/Llama-3.1-8B", "nvidia-h100-sxm:8"), ("Qwen/Qwen3-32B", "nvidia-h20:16")):
        question = Question(model=model_of(text), input_tokens=1024, output_tokens=256, ttft_s=2.0, tpot_s=0.05)
        answer = plan_model(question, parse_fleet(on))
        (choice,) = answer.choices
        outcome = choice.confirmed.outcome
        place = choice.island
        plate = nameplate(place)
        assert not isinstance(plate, str)
        predicted_w = watts(serving(question, choice.confirmed), plate, pue_of(place, site())[0]).it_w
        each = choice.confirmed.candidate.deployment.accelerators * choice.replicas

        rate_per_s = outcome.rate_per_s * choice.replicas
        traffic = Traffic(input=1024, output=256, rate=f"{rate_per_s:.6g} /s")
        plan = replace_traffic(answer.plan, traffic)
        drawn = draws_of(plan)
        run = played(plan, Watch(interval_s=5.0, draws=drawn), rate_per_s, int(60 * rate_per_s))
        told = series(run, "pool0.0", "watts")
        steady = told[(told[:, 0] > 20) & (told[:, 0] <= 55), 1].mean()
        assert steady == pytest.approx(predicted_w.likely * each, rel=0.06), text


def replace_traffic(plan: Plan, traffic: Traffic) -> Plan:
    import msgspec

    service = msgspec.structs.replace(plan.services[0], traffic=traffic)
    return msgspec.structs.replace(plan, services=(service,))
