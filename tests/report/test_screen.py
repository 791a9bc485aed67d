"""The summary as one screen of 24 lines of 80, and what it says to look at next."""

import dataclasses
import json

import pytest

from polypod.plan.spec import Slo
from polypod.report.fold import fold
from polypod.report.runs import SCREEN_LINES, run_json, run_text
from polypod.report.summary import summary_of


def plan(models):
    return {
        "services": [
            {"model": model, "slo": {"ttft": "1 s", "tpot": "100 ms", "percentile": 99.0},
             "pools": [{"name": f"pool-{model}", "on": f"island-{n % 3}", "layout": {"tp": 2}}]}
            for n, model in enumerate(models)
        ]
    }  # fmt: skip


def many(say, models, replicas=2, tenants=1):
    """A run of so many models, tenants and replicas of each, with everything a record can have."""
    names = [f"a-model-with-a-long-name-{n}" for n in range(models)]
    lines = [say.header(plan=plan(names))]
    for n, name in enumerate(names):
        lines += [say.up(f"replica-{n}-{r}", model=name, pool=f"pool-{name}") for r in range(replicas)]  # fmt: skip
    for n in range(models * tenants):
        model, tenant = n % models, n // models
        lines += say.whole(n, 0.1 * n, 0.2 + model, 9.0 + model, 11, f"replica-{model}-0", model=names[model], tenant=f"tenant-{tenant}")  # fmt: skip
    lines += [say.arrived(9000, 1.0, say.reject(9000), model=names[0])]
    lines += [say.down("replica-0-0", 2.0, reason="rack power"), say.up("replica-0-0", 4.0, epoch=2)]  # fmt: skip
    measures = [
        say.measure(5.0, "hall", "watts", 1e6),
        say.measure(5.0, "hall", "pue", 1.2),
        *(say.measure(9.0, f"tier-{n}", "bytes", 10.0**n) for n in range(9)),
    ]
    return summary_of(fold([*say.in_order(lines), *measures]))


@pytest.mark.parametrize(
    ("models", "replicas", "tenants"),
    [(1, 1, 1), (1, 9, 1), (2, 2, 2), (3, 5, 2), (12, 1, 9), (40, 3, 30)],
)
def test_a_summary_fits_one_screen_whatever_there_is(say, models, replicas, tenants):
    text = run_text(many(say, models, replicas, tenants), "runs/a-folder-with-a-name")
    lines = text.splitlines()

    assert len(lines) <= SCREEN_LINES
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line != line.rstrip()]
    assert "inside the SLO" in text
    assert "--slowest" in text
    assert "--faults" in text
    assert "--series" in text


def test_what_does_not_fit_is_counted_and_the_worst_are_kept(say):
    text = run_text(many(say, 12))

    assert "more: --json" in text
    assert "a-model-with-a-long..." in text.split("TTFT p99")[1].splitlines()[1]


def test_all_lines_are_there_where_they_are_asked_for(say):
    text = run_text(many(say, 12, 1, 9), lines=200)

    assert "more: --json" not in text
    assert text.count("pool-a-model") >= 12
    assert text.count("tenant-") == 9


def test_what_is_next_is_the_worst_model_fault_and_pool(say):
    lines = [say.header(plan=plan(["m", "n"]))]
    lines += [say.up("a", pool="full", max_sequences=1), say.up("b", model="n", pool="empty")]
    lines += [*say.whole(1, 0.0, 3.0, 4.0), *say.whole(2, 0.0, 0.1, 0.5, replica="b", model="n")]
    lines += [say.arrived(3, 4.0, say.place(3, "b"), model="n")]
    lines += [say.down("b", 5.0, say.reject(3, 502, "replica_lost"), reason="card"), say.up("b", 6.0, epoch=2, model="n")]  # fmt: skip
    text = run_text(summary_of(fold(say.in_order(lines))), "R")

    assert "  --slowest --by ttft   TTFT p99 is 3 s of 1 s: m\n" in text
    assert "  --faults              fault down1 (card) cost 1 requests, 0 retries\n" in text
    assert "  --series              full is fullest: " in text


def test_a_run_that_kept_everything_points_at_no_model_and_no_fault(say):
    text = run_text(summary_of(fold([say.header(plan=plan(["m"])), say.up(), *say.whole(1, 0.0)])))

    assert "--slowest" not in text
    assert "--faults" not in text


def test_limits_stand_beside_the_latencies_of_a_single_model(say):
    summary = summary_of(
        fold([say.header(), say.up(), *say.whole(1, 0.0, 1.0), *say.whole(2, 0.0, 2.0, 3.0)]),
        {"m": Slo(ttft="1 s", percentile=50)},
    )
    limit = summary.models[0].ttft_limit

    assert limit is not None
    assert (limit.reached_s, limit.inside_fraction, limit.is_kept) == (1.5, 0.5, False)
    assert "p50 1 s  50.0 %" in run_text(summary)


def test_rejections_are_counted_by_status_and_by_code(say):
    summary = summary_of(
        fold([say.header(), say.arrived(1, 0.0, say.reject(1)), say.arrived(2, 0.0, say.reject(2, 503, "none_up"))])
    )  # fmt: skip

    assert summary.rejected == {429: 1, 503: 1}
    assert summary.rejected_codes == summary.models[0].rejected == {"queue_full": 1, "none_up": 1}
    assert "1 with 429, 1 with 503 (queue_full 1, none_up 1)" in run_text(summary)


def test_models_and_tenants_have_their_own_goodput(say):
    lines = [say.header(), say.up("a"), say.up("b", model="n", pool="q")]
    lines += [*say.whole(1, 0.0, tenant="x"), *say.whole(2, 0.0, 2.0, 3.0, tenant="y")]
    lines += say.whole(3, 0.0, replica="b", model="n", tenant="x")
    summary = summary_of(fold(lines), {"m": Slo(ttft="1 s")})
    kept = {
        group.name: group.goodput.requests
        for group in (*summary.models, *summary.tenants)
        if group.goodput is not None
    }

    assert kept == {"m": 1, "n": 1, "x": 2, "y": 0}
    assert summary.models[1].ttft_limit is None
    assert summary.tenants[0].ttft_limit is None


def test_slots_cache_and_islands_follow_from_the_events_and_the_plan(say):
    header = say.header(plan=plan(["m"]))
    lines = [header, say.up("a", pool="pool-m", max_sequences=2, kv_capacity_tokens=200)]
    lines += [*say.whole(1, 0.0, 2.0, 10.0, 20), say.measure(10.0, "a", "busy_s", 4.0)]
    summary = summary_of(fold(lines))
    (pool,), (island,) = summary.pools, summary.islands

    assert pool.slots_fraction == 0.5
    assert pool.kv_fraction == pytest.approx((100 * 10 + 10 * 8) / 2000)
    assert (island.name, island.busy_fraction, island.requests) == ("island-0", 0.4, 1)


def placed(model="m", pool="p", **over):
    service = {"model": model, "pools": [{"name": pool, "on": over.pop("on"), "layout": {"tp": 2}}]}
    return {"services": [service | over]}


def test_a_replica_is_on_the_island_of_the_plan_it_came_up_by(say):
    old, new, failed = (placed(on=island) for island in ("north", "south", "west"))
    lines = [say.header(plan=old), say.up("p-0"), *say.whole(1, 0.0, replica="p-0")]
    lines += [say.brought_to(5.0, new), say.up("p-0.2", 6.0), say.down("p-0", 7.0)]
    lines += [*say.whole(2, 8.0, replica="p-0.2"), *say.whole(3, 8.0, replica="p-0.2")]
    lines += [say.brought_to(20.0, failed), say.brought_to(21.0, new), say.up("p-1", 22.0)]
    lines += [say.brought_to(30.0, old), say.up("p-2", 31.0), *say.whole(4, 32.0, replica="p-2")]
    lines += [say.up("p-0", 33.0, epoch=2), say.up("q-0", 34.0, pool="q")]
    outcomes = fold(lines)
    summary = summary_of(outcomes)

    assert outcomes.plans == (old, new, failed)
    assert {one.name: one.island for one in summary.replicas} == {"p-0": "north", "p-0.2": "south", "p-1": "south", "p-2": "north", "q-0": ""}  # fmt: skip
    assert {one.name: one.requests for one in summary.islands} == {"north": 2, "south": 2}


def test_limits_are_those_of_the_last_plan_that_has_the_model(say):
    slo = {"ttft": "1 s", "percentile": 50.0}
    first = placed(on="north", slo=slo)
    second = {"services": [*placed("n", "q", on="north", slo=slo | {"ttft": "2 s"})["services"]]}
    third = {"services": [*placed("n", "q", on="north", slo=slo | {"ttft": "3 s"})["services"]]}
    without = placed("n", "q", on="north")
    ups = [say.up("a"), say.up("b", 2.0, model="n", pool="q")]
    runs = [*say.whole(1, 3.0), *say.whole(2, 3.0, 2.5, 3.0, replica="b", model="n")]

    def limits_s(*later):
        lines = [say.header(plan=first), ups[0], *(say.brought_to(1.0, plan) for plan in later), ups[1], *runs]  # fmt: skip
        groups = summary_of(fold(lines)).models
        return {one.name: one.ttft_limit.limit_s for one in groups if one.ttft_limit}

    assert limits_s() == {"m": 1.0}
    assert limits_s(second) == {"m": 1.0, "n": 2.0}
    assert limits_s(second, third) == {"m": 1.0, "n": 3.0}
    assert limits_s(second, third, without) == {"m": 1.0}


def test_a_pool_that_only_computes_prompts_counts_those(say):
    lines = [say.header(), say.up("a", role="prefill"), say.up("b", role="decode", pool="q"), *say.apart(1, 0.0)]  # fmt: skip
    pools = {pool.name: pool for pool in summary_of(fold(lines)).pools}

    assert (pools["p"].requests, pools["p"].output_tokens) == (1, 0)
    assert (pools["q"].requests, pools["q"].output_tokens) == (1, 17)


def test_a_pools_own_measure_of_busy_time_is_taken_where_its_replicas_have_none(say):
    lines = [say.header(), say.up("a"), say.up("b"), *say.whole(1, 0.0, 1.0, 10.0)]
    lines += [say.measure(t, "p", "busy_s", 2.5) for t in (5.0, 10.0)]

    assert summary_of(fold(lines)).pools[0].busy_fraction == 0.25


def test_power_is_a_mean_over_time_and_energy_per_token(say):
    lines = [say.header(), say.up(), *say.whole(1, 0.0, 1.0, 10.0, 100)]
    lines += [say.measure(5.0, "p", "watts", 100.0), say.measure(10.0, "p", "watts", 300.0)]
    lines += [say.measure(10.0, "q", "watts", 50.0)]
    lines += [say.measure(4.0, "hall", "pue", 1.5), say.measure(10.0, "hall", "pue", 1.2)]
    power = summary_of(fold(lines)).power

    assert power is not None
    assert (power.mean_w, power.most_w, power.joules_per_token) == (250.0, 350.0, 25.0)
    assert power.pue_ratio == pytest.approx((4 * 1.5 + 6 * 1.2) / 10)


def test_the_power_of_a_live_run_counts_from_its_first_event(say):
    lines = [say.header(kind="live"), say.up(at_s=9000.0), *say.whole(1, 9001.0, 1.0, 9.0, 100)]
    power = summary_of(fold([*lines, say.measure(9010.0, "p", "watts", 100.0)])).power

    assert power is not None
    assert (power.mean_w, power.joules_per_token) == (100.0, 10.0)


def test_traffic_of_a_tier_is_the_sum_of_its_samples(say):
    lines = [say.header(), *(say.measure(t, "rack", "bytes", 1e9 * t) for t in (1.0, 2.0, 4.0))]
    summary = summary_of(fold(lines))

    assert summary.traffic_bytes == {"rack": 7e9}
    assert "traffic   rack 7 GB" in run_text(summary)


def test_the_routers_foresight_is_happened_over_predicted_from_the_last_dispatch(say):
    lines = [say.header(), say.up()]
    lines += [say.arrived(1, 0.0), say.finished(99, 1.0, 1, "a", say.place(1, predicted_s=0.5))]
    lines += [say.first(1, 2.0), say.finished(1, 3.0)]
    seen = summary_of(fold(lines)).foresight

    assert seen is not None
    assert (seen.requests, seen.mean_error_s, seen.p50_ratio) == (1, 0.5, 2.0)


def test_what_a_live_run_predicted_of_each_replica_stands_beside_what_came(say):
    lines = [say.header(), say.up(), *say.whole(1, 0.0)]
    for at_s, ratio in ((5.0, 9.0), (6.0, 1.25)):
        lines += [say.measure(at_s, "a", "predicted_first_token_s", 0.5), say.measure(at_s, "a", "measured_first_token_s", 0.75), say.measure(at_s, "a", "decode_correction_ratio", ratio)]  # fmt: skip
    summary = summary_of(fold(lines))
    (seen,) = summary.replica_foresight

    assert (seen.predicted_first_token_s, seen.measured_first_token_s, seen.measured_finish_s) == (0.5, 0.75, None)  # fmt: skip
    line = next(line for line in run_text(summary).splitlines() if "0.75 s" in line)
    assert line.split() == ["a", "0.5", "s", "0.75", "s", "-", "-", "-", "1.25"]
    assert run_json(summary)["replica_foresight"][0]["decode_correction_ratio"] == 1.25


def test_a_note_about_the_record_is_on_the_screen(say):
    summary = summary_of(fold([say.header(), say.up()]))
    noted = dataclasses.replace(summary, note="line 9 is cut short")
    assert "note      line 9 is cut short" in run_text(noted)
    assert run_json(noted)["note"] == "line 9 is cut short"


def test_a_record_of_a_sample_says_so(say):
    summary = summary_of(fold([say.header(sample=0.01), say.up(), *say.whole(1, 0.0)]))

    assert (
        summary.note == "the record keeps 1 % of the requests, and what is counted here is of those"
    )


def test_the_object_form_keeps_its_keys_and_has_the_new_ones(say):
    raw = json.loads(json.dumps(run_json(many(say, 2, 2, 2))))

    assert set(raw) >= {
        "kind", "requests", "finished", "rejected", "gone", "open", "retries", "duration_s", "output_tokens", "ttft", "tpot", "e2e",
        "goodput", "replicas", "pools", "requests_per_s", "output_tokens_per_s",
    }  # fmt: skip
    assert {"models", "tenants", "islands", "power", "traffic_bytes", "foresight", "faults", "rejected_codes"} <= set(raw)  # fmt: skip
    assert raw["models"][0]["ttft_limit"]["is_kept"] is True
    assert raw["models"][1]["ttft_limit"]["is_kept"] is False
