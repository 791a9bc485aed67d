"""From a plan to what is simulated."""

import dataclasses
from typing import Any

import pytest

from polypod.errors import InputError
from polypod.plan.spec import (
    Layout,
    Plan,
    Pool,
    PoolCache,
    Precision,
    Service,
    Slo,
    Source,
    Traffic,
)
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


def test_a_pools_tiers_are_its_replicas_with_one_copy_of_a_tokens_cache():
    """Llama 3.1 8B in bf16: 32 layers, keys and values, 8 heads of 128, 2 bytes, however the ranks slice it."""
    cache = PoolCache(host="512 GiB", host_bandwidth="50 GB/s", remote="10 TB", remote_bandwidth="100 Gb/s", remote_latency="2 ms")  # fmt: skip
    for layout in (Layout(tp=1), Layout(tp=2)):
        (up, _) = scenario_of(plan(prefix_cache=cache, layout=layout), TRACE[:1]).replicas
        tiers = up.prefix_tiers

        assert tiers is not None
        assert tiers.kv_bytes_per_token == 32 * 2 * 8 * 128 * 2
        assert (tiers.host_bytes, tiers.host_bytes_per_s) == (512 * 2**30, 50e9)
        assert (tiers.remote_bytes, tiers.remote_bytes_per_s, tiers.remote_latency_s) == (1e13, 12.5e9, 0.002)  # fmt: skip
    assert scenario_of(plan(), TRACE[:1]).replicas[0].prefix_tiers is None


def test_a_model_without_experts_has_none_that_are_uneven():
    with pytest.raises(InputError, match=r"expert_imbalance_cv is 0.1, and .* has no experts; leave it out - at `\$.services\[0\].pools\[0\]`"):  # fmt: skip
        scenario_of(plan(expert_imbalance_cv=0.1), TRACE[:1])


def test_hashes_are_of_as_many_tokens_as_the_trace_says():
    hashed = [dataclasses.replace(TRACE[0], prefix_hashes=(1, 2, 3))]
    said = scenario_of(plan(), hashed, block_tokens=64)

    assert said.block_tokens == {MODEL: 64}
    assert scenario_of(plan(), TRACE[:1], block_tokens=64).block_tokens == {}
