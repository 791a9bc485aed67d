"""The layout search: its laws, and its closed form against the emulation of the same engine."""

import numpy as np
import pytest

from polypod.catalog.load import load_model
from polypod.cost.deployment import Deployment, native_precision
from polypod.plan.confirm import confirm, emulate
from polypod.plan.place import Island, island, parse_fleet
from polypod.plan.search import (
    Candidate,
    Question,
    batches,
    layouts,
    search,
    steady,
    whole_replicas,
)
from polypod.workload.config import read_model
from polypod.workload.layout import Layout, leaves_copies
from polypod.workload.model import Model


def model(name: str) -> Model:
    entry = load_model(name)
    return read_model(entry.config, name=entry.name, path=entry.path)


def place(text: str) -> Island:
    return island("a", parse_fleet(text)["a"])


LLAMA = model("llama-3.1-8b")
DEEPSEEK = model("deepseek-v3")
HGX = place("nvidia-hgx-h200")
CM384 = place("huawei-cm384")


def ask(**limits: float) -> Question:
    return Question(model=LLAMA, input_tokens=1024, output_tokens=256, **limits)  # type: ignore[arg-type]


def test_every_layout_fits_the_island_and_none_comes_twice() -> None:
    for one, where in ((LLAMA, HGX), (DEEPSEEK, CM384)):
        found = list(layouts(one, where))
        assert len(found) == len(set(found))
        assert all(layout.world <= where.ranks for layout in found)


def test_expert_models_are_asked_at_the_published_layouts() -> None:
    asked = set(layouts(DEEPSEEK, CM384))
    for dp in (32, 96, 320):  # CloudMatrix prefill and decode, and a count that is no power of two
        assert Layout(dp=dp, ep=dp) in asked
    assert Layout(tp=8, dp=32, ep=256) in asked
    assert Layout(tp=16, ep=16) in asked
    assert Layout(tp=16) in asked


def test_copies_of_experts_are_a_choice_of_people_and_not_of_the_search() -> None:
    asked = [layout for layout in layouts(DEEPSEEK, CM384) if leaves_copies(DEEPSEEK, layout)]
    assert Layout(dp=96, ep=96) in asked  # three a rank, 32 copies
    found = search(Question(model=DEEPSEEK, input_tokens=4096, output_tokens=512), CM384, native_precision(DEEPSEEK, CM384.rank))  # fmt: skip
    chosen = {one.deployment.layout for one in found.candidates}
    assert chosen
    assert not chosen & set(asked)


def test_all_layouts_looked_at_are_accounted_for() -> None:
    found = search(ask(ttft_s=0.5, tpot_s=0.02), HGX, native_precision(LLAMA, HGX.rank))
    assert found.looked_at == len(found.candidates) + sum(found.pruned.values())


@pytest.mark.parametrize(("ttft_s", "tpot_s"), [(0.5, 0.02), (0.2, 0.01), (5.0, 0.1)])
def test_every_candidate_keeps_its_limits_and_fits_in_memory(ttft_s: float, tpot_s: float) -> None:
    question = ask(ttft_s=ttft_s, tpot_s=tpot_s)
    found = search(question, HGX, native_precision(LLAMA, HGX.rank))
    assert found.candidates
    for one in found.candidates:
        assert one.ttft_s <= ttft_s
        assert one.tpot_s <= tpot_s
        held = one.sequences_per_rank * (1024 + 256 / 2)
        assert held <= one.deployment.memory().kv_tokens
        assert one.accelerators <= HGX.accelerators


def test_a_looser_limit_never_gives_less() -> None:
    precision = native_precision(LLAMA, HGX.rank)
    best = [
        search(ask(tpot_s=tpot_s), HGX, precision).ranked()[0].tokens_per_s
        for tpot_s in (0.008, 0.012, 0.02, 0.05)
    ]
    assert best == sorted(best)


def test_twice_the_accelerators_give_twice_the_tokens_of_the_same_layout() -> None:
    precision = native_precision(LLAMA, HGX.rank)
    one, two = (
        search(ask(tpot_s=0.02), place(f"nvidia-h200-sxm:{n}"), precision).candidates
        for n in (8, 16)
    )
    for left, right in zip(one, two, strict=False):
        if left.deployment.layout == right.deployment.layout:
            assert right.tokens_per_s == pytest.approx(2 * left.tokens_per_s)


def test_replicas_do_not_straddle_racks() -> None:
    scalex = place("sugon-scalex-10k")  # 16 racks of 640
    assert whole_replicas(scalex, 512) == 16
    assert whole_replicas(scalex, 320) == 32
    assert whole_replicas(scalex, 1280) == 8
    assert whole_replicas(place("nvidia-h200-sxm:12"), 8) == 1
    assert whole_replicas(place("nvidia-h200-sxm:12"), 4) == 3


def test_the_closed_form_is_what_it_says_it_is() -> None:
    """The formulas of the module's docstring, on one batch and chunk, from the same step costs."""
    deployment = Deployment(
        model=DEEPSEEK,
        layout=Layout(dp=32, ep=32),
        precision=native_precision(DEEPSEEK, CM384.rank),
        rank=CM384.rank,
    )
    question = Question(model=DEEPSEEK, input_tokens=4000, output_tokens=500)
    b, k = 10.0, 1024.0
    load = steady(question, deployment, np.array([b]), np.array([k]))

    cached = b * (4000 + 500 / 2)
    decode_s = float(deployment.step_s(sequences=b, kv_tokens=cached))
    mixed_s = float(
        deployment.step_s(sequences=b, kv_tokens=cached, prompt_tokens=k, pairs=k * 4000 / 2)
    )
    share = 1 - np.exp(-32 * b / 500 * 4)
    tpot_s = decode_s + share * (mixed_s - decode_s)
    assert float(load.tpot_s[0]) == pytest.approx(tpot_s)
    assert float(load.ttft_s[0]) == pytest.approx(tpot_s / 2 + 4 * mixed_s)
    assert float(load.tokens_per_s[0]) == pytest.approx(32 * b / tpot_s)
    assert float(load.prompt_share[0]) == pytest.approx(b / 500 * 4)


def test_the_closed_form_agrees_with_the_emulation_at_the_same_batch() -> None:
    """Referee: the engine emulation at a rate that keeps about the same number of sequences running."""
    deployment = Deployment(
        model=LLAMA, layout=Layout(), precision=native_precision(LLAMA, HGX.rank), rank=HGX.rank
    )
    question = ask()
    load = steady(question, deployment, np.array([32.0]), np.array([1024.0]))
    tpot_s, rate = float(load.tpot_s[0]), float(load.tokens_per_s[0]) / question.output_tokens
    candidate = Candidate(
        island=HGX,
        deployment=deployment,
        replicas=1,
        sequences_per_rank=256,
        max_step_tokens=1024 + 256,
        ttft_s=float(load.ttft_s[0]),
        tpot_s=tpot_s,
        tokens_per_s=float(load.tokens_per_s[0]),
    )
    outcome = emulate(question, candidate, deployment.step_time(), rate_per_s=rate)
    assert float(np.mean(outcome.tpot_s)) == pytest.approx(tpot_s, rel=0.1)


def test_a_confirmed_rate_keeps_the_slo_and_a_higher_one_does_not() -> None:
    question = ask(ttft_s=0.3, tpot_s=0.015)
    candidate = search(question, HGX, native_precision(LLAMA, HGX.rank)).ranked()[0]
    confirmed = confirm(question, candidate)
    assert confirmed is not None
    assert confirmed.outcome.keeps(question)
    over = emulate(
        question,
        candidate,
        candidate.deployment.step_time(),
        rate_per_s=1.3 * candidate.tokens_per_s / candidate.replicas / question.output_tokens,
    )
    assert not over.keeps(question)


def test_the_step_time_coefficients_agree_with_the_cost_model_they_come_from() -> None:
    for one, where, layout in ((LLAMA, HGX, Layout(tp=2)), (DEEPSEEK, CM384, Layout(dp=32, ep=32))):
        deployment = Deployment(
            model=one, layout=layout, precision=native_precision(one, where.rank), rank=where.rank
        )
        step = deployment.step_time()
        for sequences, context in ((1, 500), (24, 2000), (90, 4000)):
            exact = float(deployment.step_s(sequences=sequences, kv_tokens=sequences * context))
            told = step.step_s(tokens=sequences, kv_tokens=sequences * context, sequences=sequences)
            assert told == pytest.approx(exact, rel=0.12)
        for prompt in (100, 1000, 5000):
            exact = float(deployment.step_s(prompt_tokens=prompt, pairs=prompt * (prompt + 1) / 2))
            assert step.prompt_s(prompt) == pytest.approx(exact, rel=0.12)


def test_batches_grow_without_a_gap_of_more_than_a_tenth() -> None:
    grid = batches(5000)
    assert (grid[0], grid[-1]) == (1, 5000)
    assert np.all(np.diff(grid) > 0)
    assert np.all(grid[24:] / grid[23:-1] < 1.1)
    assert list(batches(0)) == [1]
