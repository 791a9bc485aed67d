"""Workers apart, emulated: against closed forms, and the laws that no emulation may break."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from polypod.cli.asking import model_of
from polypod.cost.deployment import native_precision
from polypod.errors import InputError
from polypod.plan.compose_fleet import fleet_answer
from polypod.plan.confirm import Floats, Limits, Outcome
from polypod.plan.confirm_apart import (
    Fed,
    Feeder,
    Prompts,
    _caches,
    confirm_decode,
    confirm_prefill,
    prompts_of,
)
from polypod.plan.fleet import Chosen, choose
from polypod.plan.fleet_emulated import fed_by
from polypod.plan.fleet_offers import Aim
from polypod.plan.money import site
from polypod.plan.place import islands, parse_fleet
from polypod.plan.search import Question
from polypod.plan.shapes import Shape
from polypod.plan.spec import Slo
from polypod.plan.workers_apart import SHARES, _decay, _waits_s, apart, boundary_s

NOTHING = Limits(ttft_s=None, tpot_s=None, percentile=0.0)


def shapes(name: str, fleet: str, ttft_s: float | None = 2.0) -> tuple[Question, list[Shape]]:
    (island,) = islands(parse_fleet(fleet))
    question = Question(model=model_of(name), input_tokens=4000, output_tokens=500, ttft_s=ttft_s, tpot_s=0.05)  # fmt: skip
    return question, apart(question, island, native_precision(question.model, island.rank), [50e9])


def of(role: str, found: list[Shape]) -> list[Shape]:
    return [one for one in found if one.role == role]


def waits_at(prompts: Prompts, rate: float) -> Floats:
    arrivals_s = np.cumsum(np.random.default_rng(5).exponential(1 / rate, 20_000))
    found = prompts.waits_s(arrivals_s, NOTHING, 0)
    assert found is not None
    return found[1000:]


def test_the_tail_of_a_queue_is_that_of_one_played_customer_by_customer() -> None:
    """M/D/1 at 0.3, 0.6 and 0.8 of full: 99 of 100 wait less."""
    rng = np.random.default_rng(3)
    for share in (0.3, 0.6, 0.8):
        gaps = rng.exponential(1 / share, 1_000_000)
        walk = np.concatenate([[0.0], np.cumsum(1.0 - gaps)])
        waits = walk - np.minimum.accumulate(walk)  # Lindley
        at = int(np.argmin(np.abs(SHARES - share)))
        told = _waits_s(np.array([1.0]), np.array([1.0]), 0.99)[at]
        assert told == pytest.approx(np.percentile(waits, 99), rel=0.06)
    assert np.all(np.diff(_decay(SHARES)) < 0)


@pytest.mark.parametrize(("name", "fleet", "off"), [("qwen3-32b", "nvidia-h100-sxm:8", 0.25), ("deepseek-v3", "nvidia-h200-sxm:32", 0.45)])  # fmt: skip
def test_prompts_wait_as_the_closed_form_says(name: str, fleet: str, off: float) -> None:
    """TTFT that 99 of 100 keep, at the rate of the closed form: of one rank; and of several side by side, on which prompts do not lie evenly."""
    question, found = shapes(name, fleet)
    for shape in of("prefill", found):
        seen_s = np.percentile(waits_at(prompts_of(question, shape), shape.rate_per_s), 99)
        assert seen_s == pytest.approx(shape.ttft_s, rel=off)


def test_at_a_prefill_workers_rate_the_asked_share_of_prompts_is_in_time_and_at_more_it_is_not() -> None:  # fmt: skip
    question, found = shapes("qwen3-32b", "nvidia-h100-sxm:8")
    for shape in of("prefill", found):
        outcome = confirm_prefill(question, shape)
        assert outcome is not None
        prompts = prompts_of(question, shape)
        left_s = 2.0 - prompts.way_s - boundary_s(question)
        assert np.mean(outcome.ttft_s <= left_s) >= 0.995
        assert outcome.rate_per_s <= shape.most_per_s
        beyond = waits_at(prompts, 1.15 * outcome.rate_per_s)
        assert np.mean(beyond <= left_s) < 0.995


def test_emulation_may_give_a_prefill_worker_more_than_its_closed_form() -> None:
    question, found = shapes("deepseek-v3", "nvidia-h200-sxm:32", 1.0)
    ratios = []
    for shape in of("prefill", found):
        outcome = confirm_prefill(question, shape)
        assert outcome is not None
        ratios.append(outcome.rate_per_s / shape.rate_per_s)
    assert min(ratios) < 1 < max(ratios)


def test_without_a_limit_on_ttft_prefill_is_taken_to_nine_tenths() -> None:
    question, found = shapes("qwen3-32b", "nvidia-h100-sxm:8", None)
    shape = of("prefill", found)[0]
    outcome = confirm_prefill(question, shape)
    assert outcome is not None
    assert outcome.rate_per_s == shape.most_per_s == pytest.approx(shape.rate_per_s)


def test_nothing_is_computed_in_time_where_a_cache_takes_all_of_it() -> None:
    question, found = shapes("qwen3-32b", "nvidia-h100-sxm:8")
    slow = replace(of("prefill", found)[0], narrowest_bytes_per_s=1e6)
    assert confirm_prefill(question, slow) is None


def feeder(question: Question, shape: Shape, way_s: float = 0.01, weight: float = 1.0) -> Feeder:
    outcome = confirm_prefill(question, shape)
    assert outcome is not None
    return Feeder(prompts=prompts_of(question, shape, way_s), rate_per_s=outcome.rate_per_s, weight=weight)  # fmt: skip


def decoded(question: Question, shape: Shape, *feeders: Feeder) -> Fed:
    found = confirm_decode(question, shape, feeders)
    assert found is not None
    return found


def test_caches_come_at_the_asked_rate_each_feeder_with_its_part_and_none_before_its_prompt() -> None:  # fmt: skip
    question, found = shapes("qwen3-32b", "nvidia-h100-sxm:8")
    first, second = of("prefill", found)[:2]
    feeders = (feeder(question, first, weight=0.25), feeder(question, second, weight=0.75))
    for rate in (0.3, 40.0):  # less than one worker's, and that of several
        caches = _caches(feeders, rate, 4000, np.random.default_rng(1))
        assert len(caches.came_s) == 4000
        assert 4000 / caches.came_s[-1] == pytest.approx(rate, rel=0.06)
        assert np.mean(caches.feeder) == pytest.approx(0.75, abs=0.03)
        assert np.all(np.diff(caches.came_s) >= 0)
        own_s = [float(np.min((caches.came_s - caches.asked_s)[caches.feeder == one])) for one in (0, 1)]  # fmt: skip
        assert own_s == pytest.approx([float(np.min(waits_at(one.prompts, 0.1))) + 0.01 for one in feeders], rel=0.01)  # fmt: skip


def test_a_decode_worker_keeps_tpot_and_is_never_past_nine_tenths_of_full() -> None:
    question, found = shapes("qwen3-32b", "nvidia-h100-sxm:8")
    one = feeder(question, of("prefill", found)[0])
    for shape in of("decode", found):
        if shape.sequences_per_rank < 20:
            continue  # slots run out by chance
        fed = decoded(question, shape, one)
        assert np.mean(fed.outcome.tpot_s <= 0.05) >= 0.995
        assert 0.8 * shape.most_per_s <= fed.outcome.rate_per_s <= shape.most_per_s
        assert np.median(fed.outcome.tpot_s) < shape.tpot_s  # nine tenths full, not all


def test_a_decode_worker_of_a_few_sequences_waits_for_slots_and_does_less() -> None:
    question, found = shapes("qwen3-32b", "nvidia-h100-sxm:8")
    one = feeder(question, of("prefill", found)[0])
    whole = of("decode", found)[0]
    few = replace(whole, sequences_per_rank=3, most_per_s=whole.most_per_s * 3 / whole.sequences_per_rank)  # fmt: skip
    assert decoded(question, few, one).outcome.rate_per_s < 0.8 * few.most_per_s


def test_a_longer_way_is_seen_in_ttft_and_is_not_the_decode_workers_fault() -> None:
    question, found = shapes("qwen3-32b", "nvidia-h100-sxm:8")
    prefill, shape = of("prefill", found)[0], of("decode", found)[0]
    near, far = (decoded(question, shape, feeder(question, prefill, way_s)) for way_s in (0.0, 5.0))
    assert far.outcome.rate_per_s == pytest.approx(near.outcome.rate_per_s, rel=0.1)
    gap_s = np.median(far.outcome.ttft_s) - np.median(near.outcome.ttft_s)
    assert gap_s == pytest.approx(5.0, abs=0.05)


def test_what_a_feeders_requests_saw_is_told_apart() -> None:
    outcome = Outcome(rate_per_s=1.0, ttft_s=np.array([1.0, 2.0, 3.0]), tpot_s=np.zeros(3), busy_fraction=1.0)  # fmt: skip
    fed = Fed(outcome=outcome, feeder=np.array([0, 1, 0]))
    assert fed.ttft_s(0).tolist() == [1.0, 3.0]
    assert fed.ttft_s(1).tolist() == [2.0]


def test_all_that_a_plan_uses_is_emulated_and_its_limits_are_kept_by_the_asked_share() -> None:
    question, _ = shapes("deepseek-v3", "nvidia-h200-sxm:32")
    found = choose([question], islands(parse_fleet("nvidia-h200-sxm:32")), Aim())
    assert isinstance(found, Chosen)
    assert {one.shape.role for one in found.used} == {"prefill", "decode"}
    assert all(one.shape.confirmed and one.shape.seen is not None for one in found.used)
    (ttft_s,) = found.flows_ttft_s.values()
    assert np.mean(ttft_s <= 2.0) >= 0.99
    for role in ("prefill", "decode"):
        able = sum(one.replicas * one.shape.rate_per_s for one in found.used if one.shape.role == role)  # fmt: skip
        assert sum(found.flows_per_s.values()) <= able * (1 + 1e-6)


def test_what_no_step_time_says_stays_in_closed_form_and_the_plan_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*_: object) -> None:
        msg = "no sum of tokens comes nearer"
        raise InputError(msg)

    monkeypatch.setattr("polypod.plan.fleet_emulated.confirm_decode", refused)
    question, _ = shapes("deepseek-v3", "nvidia-h200-sxm:32")
    places = islands(parse_fleet("nvidia-h200-sxm:32"))
    found = choose([question], places, Aim())
    assert isinstance(found, Chosen)
    (decode,) = [one.shape for one in found.used if one.shape.role == "decode"]
    assert (decode.confirmed, decode.rate_per_s) == (False, decode.most_per_s)
    (ttft_s,) = found.flows_ttft_s.values()
    assert np.mean(ttft_s <= 2.0) >= 0.99, "of the prompts, with the way and a step on top"
    answer = fleet_answer([question], places, found, parse_fleet("nvidia-h200-sxm:32"), [Slo()], "throughput", site())  # fmt: skip
    assert any("decode of deepseek-ai/DeepSeek-V3 is in closed form, not emulated: no sum of tokens" in note for note in answer.assumptions)  # fmt: skip


def test_caches_come_from_prefill_shapes_in_the_proportions_of_their_flows_and_rates() -> None:
    """Two islands feed one, the second by two shapes: parts worked by hand."""
    shapes = [
        SimpleNamespace(role="decode", island=SimpleNamespace(name="a"), rate_per_s=9.0, narrowest_bytes_per_s=0.0),
        SimpleNamespace(role="prefill", island=SimpleNamespace(name="a"), rate_per_s=2.0, narrowest_bytes_per_s=0.0),
        SimpleNamespace(role="prefill", island=SimpleNamespace(name="b"), rate_per_s=3.0, narrowest_bytes_per_s=5.0),
        SimpleNamespace(role="prefill", island=SimpleNamespace(name="b"), rate_per_s=1.0, narrowest_bytes_per_s=0.0),
        SimpleNamespace(role="prefill", island=SimpleNamespace(name="b"), rate_per_s=1.0, narrowest_bytes_per_s=50.0),
    ]  # fmt: skip
    program = SimpleNamespace(
        flows={(0, "a", "a"): 5, (0, "b", "a"): 6, (0, "b", "b"): 7},
        offers=SimpleNamespace(shapes={0: shapes}),
        counts={(0, s): s for s in range(5)},
        width=lambda *_: 10.0,
    )
    solved = SimpleNamespace(x=[1.0, 2.0, 1.0, 3.0, 1.0, 4.0, 6.0, 8.0])
    # 4 and 6 requests/s; of the latter 1 x 3 and 3 x 1 by shape; the last needs a wider way
    assert fed_by(program, solved, 0, "a") == {1: (0.4, 10.0), 2: (0.3, 10.0), 3: (0.3, 10.0)}  # type: ignore[arg-type]
