"""The second half of a run foretold from its first. The referee is a run whose replicas are known to be slower than told, by factors that must be found."""

import math
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from polypod import record
from polypod.cost.steptime import StepTime
from polypod.errors import FileError, InputError
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.events import ReplicaUp, StepObserved
from polypod.record import Header, Line, Step
from polypod.report.fold import read_outcomes
from polypod.report.outcomes import Outcomes
from polypod.report.recorded import read_recorded
from polypod.simulate import Arrival, Fault, Scenario, play
from polypod.validate.halves import (
    FLOOR,
    Factors,
    Row,
    factored,
    fitted,
    judge,
    judged_json,
    judged_text,
    played,
)

TOLD = StepTime(
    tokens=(1, 8, 64, 512), seconds=(0.02, 0.04, 0.1, 0.8), kv_token_s=2e-6, pair_s=1e-6
)
TRUTH = {
    "fast": Factors(prompt_ratio=0.6, decode_ratio=1.7),
    "slow": Factors(prompt_ratio=2.5, decode_ratio=0.8),
}
SETTINGS = PolicySettings(services=(ServiceSettings(model="m", context_tokens=4096),))
BEGIN_S = 1000.0


def up(name: str) -> ReplicaUp:
    return ReplicaUp(
        at_s=0.0, replica=name, epoch=1, model="m", pool=name, role="both",
        step_time=TOLD,
        context_tokens=4096, kv_capacity_tokens=32_768, max_sequences=8, max_step_tokens=512,
    )  # fmt: skip


def arriving(requests: int, seed: int = 1, gap_s: float = 0.5) -> tuple[Arrival, ...]:
    draw = np.random.default_rng(seed)
    at_s = np.cumsum(draw.exponential(gap_s, requests))
    lengths = draw.integers(10, 400, size=(requests, 2)) // (1, 6) + (0, 2)
    return tuple(
        Arrival(at_s=float(at), model="m", input_tokens=int(asked), output_tokens=int(answer))
        for at, (asked, answer) in zip(at_s, lengths, strict=True)
    )


def live(path: Path, trace: tuple[Arrival, ...], faults: tuple[Fault, ...] = (), factors: dict[str, Factors] = TRUTH) -> Path:  # fmt: skip
    """A run as a live node records one: on a clock that begins anywhere, of replicas that are told wrong step times."""
    scenario = Scenario(
        replicas=tuple(up(name) for name in factors),
        step_times={name: factored(TOLD, its, 8) for name, its in factors.items()},
        settings=SETTINGS,
        trace=trace,
        faults=faults,
    )
    with path.open("wb") as file:
        for line in play(scenario).lines:
            file.write(record.encode(_as_live(line)))
    return path


def _as_live(line: Line) -> Line:
    if isinstance(line, Header):
        return msgspec.structs.replace(line, kind="live", trace_sha256=None)
    if not isinstance(line, Step):
        return line
    later = msgspec.structs.replace(line.event, at_s=line.event.at_s + BEGIN_S)
    return msgspec.structs.replace(line, event=later)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live(tmp_path_factory.mktemp("live") / "record.jsonl", arriving(300, gap_s=0.5))


def test_factors_that_are_known_are_found_and_the_second_half_is_foretold(path):
    found = judge(path)

    assert found.first == found.second == 150
    for name, truth in TRUTH.items():
        assert found.factors[name].prompt_ratio == pytest.approx(truth.prompt_ratio, rel=0.05), name
        assert found.factors[name].decode_ratio == pytest.approx(truth.decode_ratio, rel=0.05), name
    assert all(row.holds for row in found.rows)


def test_at_the_true_factors_the_run_is_played_as_it_was(path):
    measured, simulated = read_outcomes(path), played(read_recorded(path), TRUTH)

    assert np.array_equal(measured.requests.decode_replica, simulated.requests.decode_replica)
    assert np.allclose(measured.ttft_s, simulated.ttft_s, rtol=0, atol=1e-6)
    assert np.allclose(measured.tpot_s, simulated.tpot_s, rtol=0, atol=1e-6, equal_nan=True)


def test_the_router_is_told_what_the_warm_up_measured(path):
    recorded = read_recorded(path)
    seen = StepObserved(
        at_s=0.0, replica="fast", epoch=1, prompt_tokens=512, sequences=0, kv_tokens=0,
        step_s=3 * TOLD.prompt_s(512),
    )  # fmt: skip
    plain, warm, stale = (
        played(replace(recorded, warm_ups=words), TRUTH)
        for words in ((), (seen,), (msgspec.structs.replace(seen, epoch=2),))
    )

    def fast_first(run: Outcomes) -> float:
        on_fast = np.flatnonzero(run.requests.decode_replica == 0)
        return float(
            run.requests.predicted_first_token_s[on_fast[0]] / run.requests.input_tokens[on_fast[0]]
        )

    assert fast_first(warm) > 1.5 * fast_first(plain)
    assert np.count_nonzero(warm.requests.decode_replica == 0) < np.count_nonzero(
        plain.requests.decode_replica == 0
    )
    assert np.array_equal(stale.requests.decode_replica, plain.requests.decode_replica)


def test_nothing_of_the_second_half_is_in_the_fit(path):
    recorded, measured = read_recorded(path), read_outcomes(path)
    first = np.arange(300) < 150
    requests = measured.requests
    later = replace(
        measured,
        requests=replace(
            requests,
            first_s=np.where(first, requests.first_s, requests.first_s + 99),
            end_s=np.where(first, requests.end_s, requests.end_s + 999),
        ),
    )

    assert fitted(recorded, later, first) == fitted(recorded, measured, first)


def test_replicas_go_down_and_come_back_when_they_did(tmp_path):
    trace = arriving(200, gap_s=0.25)
    faults = (
        Fault(at_s=20.0, replica="fast", what="down"),
        Fault(at_s=45.0, replica="fast", what="up"),
    )
    path = live(tmp_path / "record.jsonl", trace, faults)
    measured, simulated = read_outcomes(path), played(read_recorded(path), TRUTH)

    assert measured.retries == simulated.retries > 0
    assert np.allclose(measured.e2e_s, simulated.e2e_s, rtol=0, atol=1e-6, equal_nan=True)
    spans = {one.name: one.up for one in simulated.replicas}["fast"]
    begin_s = trace[0].at_s
    assert [round(until_s + begin_s, 6) for _, until_s in spans[:1]] == [20.0]
    assert [round(since_s + begin_s, 6) for since_s, _ in spans[1:]] == [45.0]


def test_what_a_run_promised_of_its_restarts_is_promised_again(tmp_path):
    trace = arriving(60, gap_s=0.25)
    begin_s = trace[0].at_s
    faults = [
        Fault(at_s=at_s, replica=name, what="down", back_in_s=back_in_s)
        for name in TRUTH
        for at_s, back_in_s in ((begin_s / 2, 1.0), (begin_s + 8.0, 2.0), (begin_s + 12.0, None))
    ]
    faults += [
        Fault(at_s=begin_s + at_s, replica=name, what="up")
        for name in TRUTH
        for at_s in (1.0, 10.5, 13.0)
    ]
    path = live(tmp_path / "record.jsonl", trace, tuple(faults))
    measured, simulated = read_outcomes(path), played(read_recorded(path), TRUTH)

    refused, refused_again = measured.requests.status == 503, simulated.requests.status == 503

    asked_s = np.array([one.at_s for one in trace]) - begin_s
    assert np.array_equal(refused, (asked_s > 12.0) & (asked_s < 13.0))
    assert np.array_equal(refused, refused_again)


def test_a_node_that_became_slower_in_its_second_half_is_off(tmp_path):
    trace = arriving(300, gap_s=0.8)
    middle_s = trace[150].at_s
    slower = tuple(Fault(at_s=middle_s, replica=name, what="speed", factor=1.5) for name in TRUTH)
    found = judge(live(tmp_path / "record.jsonl", trace, slower))

    assert not all(row.holds for row in found.rows)
    assert all(row.off_fraction < 0 for row in found.rows if row.what == "p50")
    for name, factors in found.factors.items():  # fitted again they say what has changed
        assert found.later[name].prompt_ratio == pytest.approx(1.5 * factors.prompt_ratio, rel=0.1)
        assert found.later[name].decode_ratio == pytest.approx(1.5 * factors.decode_ratio, rel=0.1)


def test_a_second_run_with_the_same_arrivals_widens_the_band_by_its_own_difference(path, tmp_path):
    noisy = {
        name: Factors(prompt_ratio=1.4 * its.prompt_ratio, decode_ratio=1.4 * its.decode_ratio)
        for name, its in TRUTH.items()
    }
    other = live(tmp_path / "record.jsonl", arriving(300, gap_s=0.5), factors=noisy)
    found = judge(path, other)

    for row in found.rows:
        assert row.spread_fraction is not None
        if row.what != "distance":
            assert row.band_fraction == max(FLOOR, abs(row.beside_s / row.measured_s - 1))
    assert min(row.band_fraction for row in found.rows if row.what == "p50") > 0.3


def test_another_runs_requests_are_no_second_run(path, tmp_path):
    other = live(tmp_path / "record.jsonl", arriving(299))
    with pytest.raises(FileError, match=r"does not have the same requests .*: 299 and 300"):
        judge(path, other)


def test_answers_in_one_piece_and_requests_for_one_replica_are_not_judged(path, tmp_path):
    other = tmp_path / "record.jsonl"
    lines = []
    for line in path.read_text().splitlines():
        is_fifth, is_last = ('"request":5,' in line), ('"request":300,' in line)
        if '"type":"RequestArrived"' in line and (is_fifth or is_last):
            asked = '"is_streamed":false' if is_fifth else '"only_replica":"fast"'
            line = line.replace('"is_streamed":true' if is_fifth else '"only_replica":null', asked)
        lines.append(line)
    other.write_text("\n".join([*lines, ""]))
    found = judge(other)

    assert (found.first, found.second) == (149, 149)


def test_a_run_of_a_few_requests_is_not_judged(tmp_path):
    with pytest.raises(InputError, match=r"has 19 streamed requests .* first half and 20 in its second; 20 in each"):  # fmt: skip
        judge(live(tmp_path / "record.jsonl", arriving(39)))


@pytest.mark.parametrize(
    ("simulated", "beside", "holds"),
    [(1.14, None, True), (1.16, None, False), (0.84, None, False), (0.86, None, True), (1.3, 1.31, True), (0.7, 1.31, True), (1.3, 1.29, False)],
)  # fmt: skip
def test_a_quantile_holds_within_the_floor_or_the_spread_of_two_runs(simulated, beside, holds):
    row = Row(
        metric="ttft", what="p50", measured_s=1.0, simulated_s=simulated, beside_s=beside,
        off_fraction=simulated - 1, spread_fraction=None if beside is None else beside - 1,
    )  # fmt: skip
    assert row.holds is holds


def test_steps_without_a_prompt_take_one_factor_and_those_with_one_the_other():
    slower = factored(TOLD, Factors(prompt_ratio=3.0, decode_ratio=2.0), 8)

    for tokens in (1, 4.5, 8):
        assert slower.curve_s(tokens) == pytest.approx(2 * TOLD.curve_s(tokens))
    for tokens in (9, 30, 64, 512, 900):
        assert slower.curve_s(tokens) == pytest.approx(3 * TOLD.curve_s(tokens))


def test_the_text_and_the_object_say_the_same(path):
    found = judge(path, path)
    text, shown = judged_text(found), judged_json(found)

    assert max(map(len, text.splitlines())) <= 80
    assert "calibrated on 150 requests of the first half, judged on 150 of the second" in text
    assert f"{len(found.rows)} of {len(found.rows)} hold" in text
    assert [row["holds"] for row in shown["rows"]] == [True] * len(found.rows)
    assert all(math.isfinite(row["off_fraction"]) for row in shown["rows"])
