"""Unequal stages, against laws, every choice tried out, and Helix (ASPLOS 2025)."""

import csv
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement, pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.cli.asking import model_of
from polypod.cost.deployment import Deployment, native_precision
from polypod.errors import InfeasibleError, InputError
from polypod.plan.place import Island, joined_by_network
from polypod.plan.search import Question
from polypod.plan.spec import Source
from polypod.plan.stages import SIZES, Pipeline, Staged, plan_stages, total_tokens_per_s
from polypod.plan.workers import Floats, Part, Worker, by_layer, fabric_bytes_per_s, workers_of
from polypod.workload.layout import Layout

HELIX = Path(__file__).parents[1] / "data" / "helix"
CHIPS = {"a100": "nvidia-a100-40g-sxm", "l4": "nvidia-l4", "t4": "nvidia-t4"}
LLAMA = Question(model=model_of("huggyllama/llama-30b"), input_tokens=763, output_tokens=232)
SMALL = Question(model=model_of("llama-3.1-8b"), input_tokens=512, output_tokens=128)
FABRIC_BYTES_PER_S = 1.25e9


def place(name: str, count: int) -> Island:
    return joined_by_network(name, Source(accelerator=CHIPS[name], count=count), None)


def planned(question: Question, bytes_per_s: float = FABRIC_BYTES_PER_S, **counts: int) -> Staged:
    workers = workers_of(question, [place(name, count) for name, count in counts.items()])
    return plan_stages(question, workers, bytes_per_s)


@pytest.fixture(scope="module")
def helix() -> Staged:
    return planned(LLAMA, a100=4, l4=8, t4=12)


def layers(pipeline: Pipeline) -> list[int]:
    return [stage.part.layers for stage in pipeline.stages]


def ends(pipeline: Pipeline) -> list[tuple[bool, bool]]:
    return [(stage.part.first, stage.part.last) for stage in pipeline.stages]


def test_every_pipeline_holds_all_layers_once_with_an_embedding_and_a_head(helix: Staged) -> None:
    for pipeline, _ in (*helix.pipelines, *(helix.separate or ())):
        assert sum(layers(pipeline)) == 60
        assert ends(pipeline)[0][0]
        assert ends(pipeline)[-1][1]
        assert sum(first + last for first, last in ends(pipeline)) == 2


def test_no_more_ranks_are_used_than_there_are(helix: Staged) -> None:
    assert all(helix.used[name] <= have for name, have in (("a100", 4), ("l4", 8), ("t4", 12)))


def test_every_stage_holds_its_layers_and_the_cache_of_all_sequences_in_flight(
    helix: Staged,
) -> None:
    for pipeline, _ in helix.pipelines:
        for stage in pipeline.stages:
            assert stage.worker.sequences(stage.part) >= pipeline.sequences


def test_a_round_is_what_its_stages_take(helix: Staged) -> None:
    for pipeline, _ in helix.pipelines:
        sizes = np.array([float(pipeline.micro_batch)])
        times_s = [float(stage.worker.step_s(stage.part, sizes)[0]) for stage in pipeline.stages]
        assert times_s == pytest.approx([stage.step_s for stage in pipeline.stages])
        tokens = pipeline.micro_batch * (1 + 763 / 232)
        send_s = tokens * 2 * 2 * 6656 / FABRIC_BYTES_PER_S
        round_s = max(
            pipeline.micro_batches * max(*times_s, send_s),
            sum(times_s) + (len(times_s) - 1) * send_s,
        )
        assert pipeline.round_s == pytest.approx(round_s)
        in_flight = pipeline.micro_batches * pipeline.micro_batch
        assert pipeline.tokens_per_s == pytest.approx(in_flight / round_s)
        assert pipeline.ttft_s == pytest.approx(round_s * (0.5 + max(1, 232 / in_flight)))


def test_equal_chips_get_equal_stages() -> None:
    [(pipeline, count)] = planned(LLAMA, a100=4).pipelines
    assert (count, layers(pipeline)) == (1, [15, 15, 15, 15])
    [(pipeline, _)] = planned(LLAMA, l4=8).pipelines
    assert max(layers(pipeline)) - min(layers(pipeline)) <= 1


def test_a_faster_chip_with_room_gets_more_layers() -> None:
    [(pipeline, _)] = planned(SMALL, a100=1, t4=1).pipelines
    held = {stage.worker.island.name: stage.part.layers for stage in pipeline.stages}
    alone = planned(SMALL, a100=1).tokens_per_s
    if "t4" in held:
        assert held["a100"] > held["t4"]
    assert pipeline.tokens_per_s >= alone


@pytest.mark.parametrize("more", ["a100", "l4", "t4"])
def test_more_workers_never_serve_less(more: str) -> None:
    counts = {"a100": 1, "l4": 1, "t4": 2}
    few = planned(SMALL, **counts).tokens_per_s
    many = planned(SMALL, **{**counts, more: counts[more] + 1}).tokens_per_s
    assert many >= few * (1 - 1e-4)


def test_a_faster_network_never_hurts() -> None:
    served = [
        planned(SMALL, speed, l4=2, t4=3).tokens_per_s for speed in (1e6, 1e7, 1e8, 1e9, 1e12)
    ]
    assert all(slow <= fast * (1 + 1e-4) for slow, fast in pairwise(served))
    assert served[0] < served[-1]


def test_a_slow_network_is_what_a_pipeline_waits_for() -> None:
    [(pipeline, _), *_] = planned(LLAMA, 1e6, a100=4).pipelines
    assert pipeline.bound == "sending"
    assert pipeline.round_s >= pipeline.micro_batches * pipeline.send_s


def test_mixing_is_never_worse_than_pipelines_of_one_kind_each(helix: Staged) -> None:
    assert helix.separate is not None
    assert helix.tokens_per_s >= total_tokens_per_s(helix.separate) * (1 - 1e-4)


def test_chips_that_hold_no_model_alone_do_together() -> None:
    for alone in ({"a100": 1}, {"l4": 2}):
        with pytest.raises(InfeasibleError, match="60 layers and"):
            planned(LLAMA, **alone)
    found = planned(LLAMA, a100=1, l4=2)
    assert found.separate is None
    assert found.tokens_per_s > 0


def test_limits_are_kept() -> None:
    free = planned(SMALL, a100=1, t4=2)
    tpot_s = max(pipeline.round_s for pipeline, _ in free.pipelines) / 2
    held = planned(replace(SMALL, tpot_s=tpot_s), a100=1, t4=2)
    assert all(pipeline.round_s <= tpot_s for pipeline, _ in held.pipelines)
    assert held.tokens_per_s <= free.tokens_per_s
    with pytest.raises(InfeasibleError, match=r"keeps TPOT <= 1 us"):
        planned(replace(SMALL, tpot_s=1e-6), a100=1, t4=2)


def test_one_worker_that_holds_everything_computes_what_the_deployment_does() -> None:
    one = place("a100", 1)
    [worker] = workers_of(SMALL, [one])
    model = SMALL.model
    step_s = Deployment.make(model, Layout(), native_precision(model, one.rank), one.rank).step_s(
        sequences=SIZES,
        kv_tokens=SIZES * (512 + 64),
        prompt_tokens=SIZES * 4,
        pairs=SIZES * 4 * 256,
    )
    whole = Part(layers=model.num_layers, first=True, last=True)
    assert worker.step_s(whole, SIZES) == pytest.approx(np.asarray(step_s))


def test_the_roomiest_worker_takes_the_head_and_the_next_the_embedding() -> None:
    [(pipeline, _)] = planned(LLAMA, l4=1, t4=3, a100=1).pipelines
    memory = [stage.worker.memory_bytes for stage in pipeline.stages]
    assert memory[-1] == max(memory) == 40e9
    assert memory[0] == max(memory[:-1]) == 24e9


def test_the_head_takes_time_and_the_embedding_next_to_none() -> None:
    [worker] = workers_of(SMALL, [place("a100", 1)])
    bare, first, last = (
        float(worker.step_s(part, SIZES)[-1])
        for part in (Part(layers=4), Part(layers=4, first=True), Part(layers=4, last=True))
    )
    assert 0 < first - bare < 1e-3 < last - bare


@pytest.mark.parametrize(("name", "tables"), [("smollm2-135m", 1), ("llama-3.1-8b", 2)])
def test_a_part_keeps_the_tables_it_has_once_where_they_are_one(name: str, tables: int) -> None:
    model = model_of(name)
    one = place("a100", 1)
    [worker] = workers_of(replace(SMALL, model=model), [one])
    none, first, last, both = (
        worker.sequences(Part(layers=model.num_layers, first=has_first, last=has_last))
        for has_first, has_last in ((False, False), (True, False), (False, True), (True, True))
    )
    memory = Deployment.make(model, Layout(), native_precision(model, one.rank), one.rank).memory(512 + 128)  # fmt: skip
    assert both == memory.tokens_of(512 + 64) // (512 + 64)
    assert none > first == last >= both
    assert (first == both) == (tables == 1)


def test_layers_of_unlike_kinds_count_as_evenly_spread() -> None:
    question = replace(SMALL, model=model_of("deepseek-v3"))  # 3 dense layers, then 58 of experts
    big = joined_by_network("big", Source(accelerator="amd-mi300x", count=1), None)
    [worker] = workers_of(question, [big])
    sizes = np.array([16.0])  # with prompts enough to read every expert
    few_s, half_s, all_s = (
        float(worker.step_s(Part(layers=count), sizes)[0]) for count in (10, 30, 61)
    )
    assert few_s == pytest.approx(all_s * 10 / 61, rel=0.1)
    assert half_s == pytest.approx(all_s * 30 / 61, rel=0.1)


def test_a_measured_layer_goes_on_as_it_ended() -> None:
    [worker] = workers_of(SMALL, [place("t4", 1)])
    line = (np.array([0.0, 2.0, 4.0]), np.array([0.0, 1e-3, 3e-3]))
    none = (np.array([0.0, 1.0]), np.array([0.0, 0.0]))
    sequences = np.array([1.0, 3.0, 6.0])
    decode = by_layer(worker, SMALL, line, none).step_s(Part(layers=2), sequences)
    assert decode == pytest.approx([1e-3, 4e-3, 10e-3])
    prompt = by_layer(worker, SMALL, none, line).step_s(Part(layers=1), sequences / 4)
    assert prompt == pytest.approx([0.5e-3, 2e-3, 5e-3])  # 512 / 128 tokens for each sequence


def test_fewer_micro_batches_than_stages_where_one_stage_takes_most_of_the_time() -> None:
    model = replace(SMALL.model, layers=(replace(SMALL.model.layers[0], count=5),))
    slow, fast = toy("a", 1, 1e-4, 1e-2, 1), toy("b", 1, 1e-4, 1e-3, 1)
    two = [
        replace(one, sequences=lambda part: 16.0 if part.layers <= 3 else 0.0)
        for one in (slow, fast)
    ]
    [(pipeline, _)] = plan_stages(replace(SMALL, model=model), two, 1e12).pipelines
    # one batch of 16 goes around in 11 ms and more; two of 8 would wait for the slow stage twice
    assert (len(pipeline.stages), pipeline.micro_batches, pipeline.micro_batch) == (2, 1, 16)


def test_stages_cut_by_tp_join_ranks_within_their_fabric() -> None:
    ways = workers_of(LLAMA, [place("a100", 4), place("l4", 8)], most_tp=8)
    assert [(worker.chip, worker.tp) for worker in ways] == [
        ("nvidia-a100-40g-sxm", 1),
        ("nvidia-a100-40g-sxm", 2),
        ("nvidia-a100-40g-sxm", 4),
        ("nvidia-l4", 1),
    ]
    found = plan_stages(LLAMA, ways, FABRIC_BYTES_PER_S)
    assert found.tokens_per_s >= planned(LLAMA, a100=4, l4=8).tokens_per_s * (1 - 1e-4)
    assert found.used["a100"] <= 4


def test_a_network_nobody_knows_has_to_be_said() -> None:
    # NVLink joins 8 A100 to each other, and to nothing else
    for counts, unknown in (({"a100": 4, "l4": 1}, "nvidia-a100-40g-sxm, nvidia-l4"), ({"a100": 9}, "nvidia-a100-40g-sxm")):  # fmt: skip
        with pytest.raises(InputError, match=f"between {unknown} and others; say it, as --fabric"):
            fabric_bytes_per_s([place(name, count) for name, count in counts.items()])
    assert fabric_bytes_per_s([place("a100", 8)]) == 300e9


def test_between_islands_the_narrowest_network_on_record_counts() -> None:
    one, other = (
        joined_by_network(chip, Source(accelerator=chip, count=1), None)
        for chip in ("nvidia-h100-sxm", "huawei-ascend-910c")
    )
    assert fabric_bytes_per_s([one]) == 50e9  # 400 Gb/s of scale-out
    assert fabric_bytes_per_s([one, other]) == fabric_bytes_per_s([other]) == 25e9


def test_what_does_not_fit_says_by_how_much() -> None:
    with pytest.raises(
        InfeasibleError, match=r"1 nvidia-t4 hold 13 of them .*: 50.3 GB of weights"
    ):
        planned(LLAMA, t4=1)


def test_a_chip_that_cannot_compute_in_the_models_precision_is_named() -> None:
    t4 = place("t4", 1)
    narrow = replace(t4, rank=replace(t4.rank, peak_flops_per_s={"int4": 1e12}))
    with pytest.raises(InputError, match=r"nvidia-t4 has no peak on record that .* can compute in"):
        workers_of(SMALL, [narrow])
    [worker] = workers_of(SMALL, [t4])
    assert worker.weights == "fp16"  # it knows no bf16


# every choice tried out


def toy(name: str, count: int, layer_s: float, fixed_s: float, room: float) -> Worker:
    """A worker whose time is a straight line, and whose memory is shared by layers and cache."""
    island = replace(place("t4", count), name=name)
    return Worker(
        island=island,
        tp=1,
        weights="fp16",
        step_s=lambda part, sizes: fixed_s + part.layers * layer_s * (1 + sizes / 32),
        sequences=lambda part: float(room // part.layers),
    )


def every_pipeline(question: Question, workers: Sequence[Worker], send_s: Floats) -> Iterator[tuple[Counter[int], float]]:  # fmt: skip
    """The best rate of every composition, over every spread of layers and every number and size of micro-batches."""
    n = question.model.num_layers
    for stages in range(1, min(n, sum(worker.available for worker in workers)) + 1):
        for kinds in combinations_with_replacement(range(len(workers)), stages):
            counts = Counter(kinds)
            if any(counts[j] > workers[j].available for j in counts):
                continue
            best = 0.0
            for spread in product(range(1, n + 1), repeat=stages):
                if sum(spread) != n:
                    continue
                parts = [Part(layers=k) for k in spread]
                times_SB = np.array([workers[j].step_s(part, SIZES) for j, part in zip(kinds, parts, strict=True)])  # fmt: skip
                room = min(workers[j].sequences(part) for j, part in zip(kinds, parts, strict=True))
                hop_s = send_s if stages > 1 else 0 * send_s
                for flights in range(1, stages + 1):
                    slowest_s = np.maximum(times_SB.max(axis=0), hop_s)
                    round_s = np.maximum(flights * slowest_s, times_SB.sum(axis=0) + (stages - 1) * hop_s)  # fmt: skip
                    rates = np.where(flights * SIZES <= room, flights * SIZES / round_s, 0.0)
                    best = max(best, float(rates.max()))
            if best:
                yield counts, best


def best_sum(options: Sequence[tuple[Counter[int], float]], left: Counter[int]) -> float:
    best = 0.0
    for number, (counts, rate) in enumerate(options):
        if all(counts[j] <= left[j] for j in counts):
            rest = left.copy()
            rest.subtract(counts)
            best = max(best, rate + best_sum(options[number:], rest))
    return best


@settings(max_examples=25, deadline=None)
@given(
    st.floats(0.5e-3, 4e-3),
    st.floats(0.5e-3, 4e-3),
    st.floats(0, 4e-3),
    st.integers(20, 400),
    st.integers(20, 400),
    st.floats(1e6, 1e10),
)
def test_the_choice_is_the_best_of_all_that_can_be_tried(
    layer_s: float, other_s: float, fixed_s: float, room: int, other_room: int, bytes_per_s: float
) -> None:
    model = replace(SMALL.model, layers=(replace(SMALL.model.layers[0], count=5),))
    question = replace(SMALL, model=model)
    workers = [toy("a", 2, layer_s, fixed_s, room), toy("b", 2, other_s, fixed_s, other_room)]
    send_s = SIZES * (1 + 512 / 128) * 2 * 2 * model.hidden / bytes_per_s
    best = best_sum(list(every_pipeline(question, workers, send_s)), Counter({0: 2, 1: 2}))
    assert plan_stages(question, workers, bytes_per_s).tokens_per_s == pytest.approx(best, rel=1e-3)


# Helix: LLaMA-30B on 4 A100 40GB, 8 L4, 12 T4 at 10 Gb/s, prompts of 763 and answers of 232 tokens, offline;
# ae_readme.md and artifact_evaluation/single_cluster/layout_llama30b of Thesys-lab/Helix-ASPLOS25, commit 148b733080

PLACED = {"a100": [15] * 4, "l4": [7] * 4 + [8] * 4, "t4": [5] * 12}
"""Layers of a worker, in Helix's own placement and in its pipelines of one kind each: the two are the same."""
MEASURED_PER_S = {"a100": 198.9, "l4": 64.8, "t4": 57.5}
"""Tokens of decode by its prototype, 321.2 in all; pipelines of one kind each under another scheduler 295.1."""


def curve(name: str, phase: str) -> tuple[Floats, Floats]:
    with (HELIX / f"llama1_30b__{name}__{phase}_bs2time.csv").open() as file:
        rows = [(float(at), float(ms) / 1000) for at, ms in csv.reader(file)]
    return np.array([at for at, _ in rows]), np.array([s for _, s in rows])


@pytest.fixture(scope="module")
def profiled() -> Staged:
    """The same plan with Helix's measured times of a layer instead of the cost model."""
    places = [place(name, len(PLACED[name])) for name in PLACED]
    timed = [
        by_layer(one, LLAMA, curve(one.island.name, "decode"), curve(one.island.name, "prompt"))
        for one in workers_of(LLAMA, places)
    ]
    return plan_stages(LLAMA, timed, FABRIC_BYTES_PER_S)


def separate_by_kind(found: Staged) -> dict[str, Pipeline]:
    assert found.separate is not None
    assert all(count == 1 for _, count in found.separate)
    return {pipeline.stages[0].worker.island.name: pipeline for pipeline, _ in found.separate}


@pytest.mark.parametrize("timing", ["helix", "profiled"])
def test_pipelines_of_one_kind_hold_the_layers_that_helix_placed(
    timing: str, request: pytest.FixtureRequest
) -> None:
    held = separate_by_kind(request.getfixturevalue(timing))
    assert {name: sorted(layers(pipeline)) for name, pipeline in held.items()} == PLACED


@pytest.mark.parametrize("timing", ["helix", "profiled"])
def test_mixing_brings_as_little_here_as_helix_found(
    timing: str, request: pytest.FixtureRequest
) -> None:
    # Helix's own search, free to mix, kept the kinds apart
    found = request.getfixturevalue(timing)
    assert found.tokens_per_s == pytest.approx(total_tokens_per_s(found.separate), rel=0.03)


@pytest.mark.parametrize("timing", ["helix", "profiled"])
def test_the_kinds_serve_in_the_proportions_that_helix_measured(
    timing: str, request: pytest.FixtureRequest
) -> None:
    found = request.getfixturevalue(timing)
    for name, pipeline in separate_by_kind(found).items():
        share = pipeline.tokens_per_s / total_tokens_per_s(found.separate)
        assert share == pytest.approx(MEASURED_PER_S[name] / sum(MEASURED_PER_S.values()), abs=0.05)


@pytest.mark.parametrize("timing", ["helix", "profiled"])
def test_full_pipelines_are_promised_three_times_what_helixs_engine_served(
    timing: str, request: pytest.FixtureRequest
) -> None:
    # a closed form of full pipelines; Helix's prototype runs whatever has arrived, in small batches (below)
    found = request.getfixturevalue(timing)
    assert 2.8 < found.tokens_per_s / 321.2 < 3.2
    assert 3.0 < total_tokens_per_s(found.separate) / 295.1 < 3.4


def test_stages_that_take_what_has_come_serve_what_helix_measured_where_steps_are_long() -> None:
    """`bench/stages.py` plays them by Helix's profiles and rules alone: L4 and T4 within a fifth in a short run, the A100's short steps not."""
    spec = importlib.util.spec_from_file_location("stages", HELIX.parents[2] / "bench/stages.py")
    assert spec is not None
    assert spec.loader is not None
    bench = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    for name, between_s in (("l4", 0.533), ("t4", 0.697)):
        pipeline = bench.FirstCome(bench.FIRST_COME[name], until_s=450.0)
        tokens_per_s, tpot_s, batch = pipeline.run()
        assert tokens_per_s == pytest.approx(MEASURED_PER_S[name], rel=0.2)
        assert tpot_s == pytest.approx(between_s, rel=0.1)
        assert 2 < batch < 5, "of 38 to 43 in flight"
    tokens_per_s, *_ = bench.FirstCome(bench.FIRST_COME["a100"], until_s=300.0).run()
    assert 1.4 < tokens_per_s / MEASURED_PER_S["a100"] < 1.8


@pytest.mark.parametrize(("name", "within"), [("a100", 0.35), ("l4", 0.1), ("t4", 0.15)])
def test_one_more_layer_in_decode_takes_about_what_helix_measured(name: str, within: float) -> None:
    sequences, measured_s = (column[1:] for column in curve(name, "decode"))
    one = place(name, 1)
    [worker] = workers_of(LLAMA, [one])
    assert worker.weights == "fp16"
    times_s = [
        np.asarray(
            Deployment.make(
                replace(LLAMA.model, layers=(replace(LLAMA.model.layers[0], count=count),)),
                Layout(),
                native_precision(LLAMA.model, one.rank),
                one.rank,
            ).step_s(sequences=sequences, kv_tokens=sequences * (763 + 116))
        )
        for count in (30, 60)
    ]
    errors = (times_s[1] - times_s[0]) / 30 / measured_s - 1
    assert float(np.median(np.abs(errors))) < within
