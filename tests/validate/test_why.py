"""Reasons of misses: known of the conditions, of a setting that would have met it, of all rows alike."""

from dataclasses import replace
from functools import cache

from polypod.engine.settings import EngineArgs
from polypod.validate.predict import predict
from polypod.validate.rows import Row, Workers
from polypod.validate.scores import Scored
from polypod.validate.shipped import scored
from polypod.validate.why import Reasons
from polypod.workload.layout import Layout

ROW = Row(
    id="r", line=2, system="h100_sxm", model="Qwen/Qwen3-32B", backend="vllm", version="0.12.0", precision="bf16", mode="agg",
    input_tokens=2000.0, output_tokens=500.0, concurrency=32.0, workers=Workers(layout=Layout(tp=4)),
)  # fmt: skip


@cache
def predicted_s(said: EngineArgs) -> tuple[float, float]:
    found = predict(ROW, said=said, own=False)
    return found.ttft_s, found.tpot_s


def measured(ttft_s: float, tpot_s: float, **changed: object) -> Scored:
    return scored(replace(ROW, ttft_s=ttft_s, tpot_s=tpot_s, **changed))  # type: ignore[arg-type]


def test_a_row_measured_under_an_unsaid_setting_names_it() -> None:
    ttft_s, tpot_s = predicted_s(EngineArgs(num_speculative_tokens=3, acceptance=0.7))
    one = measured(ttft_s, tpot_s)
    assert "as if num_speculative_tokens = 3" in Reasons([one]).of(one, "tpot")
    said = EngineArgs(num_speculative_tokens=3, acceptance=0.7)
    met = scored(one.row, said=said)
    assert Reasons([met], said=said).of(met, "tpot") == "nothing known explains it"


def test_a_row_that_is_near_needs_no_setting() -> None:
    ttft_s, tpot_s = predicted_s(EngineArgs())
    one = measured(ttft_s, 1.1 * tpot_s)
    assert Reasons([one]).of(one, "tpot") == "nothing known explains it"


def test_rows_that_all_miss_alike_say_by_how_much() -> None:
    ttft_s, tpot_s = predicted_s(EngineArgs())
    rows = [measured(ttft_s, 1.1 * tpot_s, id=str(n)) for n in range(6)]
    assert "all 6 rows like it: -9%" in Reasons(rows).of(rows[0], "tpot")
    assert "rows like it" not in Reasons(rows[:5]).of(rows[0], "tpot")


def test_fast_steps_behind_a_long_wait_are_a_cap_on_requests() -> None:
    ttft_s, tpot_s = predicted_s(EngineArgs())
    capped = measured(50 * ttft_s, 0.5 * tpot_s)
    assert "fewer requests ran at once than were sent" in Reasons([capped]).of(capped, "ttft")
    stalled = measured(50 * ttft_s, tpot_s)
    assert "requests waited for something beside prompts" in Reasons([stalled]).of(stalled, "ttft")


def test_what_is_known_of_the_conditions_is_said_of_the_metric_it_concerns() -> None:
    cold = measured(1.0, 0.02, backend="sglang", measured="2025-11")
    assert "the engine was not warmed up" in Reasons([cold]).of(cold, "ttft")
    assert "warmed up" not in Reasons([cold]).of(cold, "tpot")
    warm = measured(1.0, 0.02, backend="sglang", measured="2025-12")
    assert "warmed up" not in Reasons([warm]).of(warm, "ttft")
