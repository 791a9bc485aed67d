"""Cards that hold a model, against arithmetic by hand."""

from dataclasses import replace

import pytest

from polypod.catalog.load import load_accelerator, load_model
from polypod.cost.calibration import for_chip
from polypod.cost.holding import cuts, holdings, sequence_tokens
from polypod.workload.config import read_model
from polypod.workload.layout import Layout
from polypod.workload.memory import weight_bytes_per_rank
from polypod.workload.model import Model, cache_bytes_per_sequence
from polypod.workload.precision import Precision


def model_of(name: str) -> Model:
    entry = load_model(name)
    return read_model(entry.config, entry.name, entry.path)


@pytest.mark.parametrize(
    ("model", "chip", "weights", "cards"),
    [
        ("deepseek-r1", "nvidia-h200-sxm", "fp8", 8),  # 671 GB; four have 564
        ("deepseek-r1", "nvidia-h100-sxm", "fp8", 16),  # eight have 640
        ("deepseek-r1", "huawei-ascend-910c", "int8", 8),  # two dies each; four have 512
        ("llama-3.1-70b", "nvidia-h200-sxm", "bf16", 2),  # 141 GB of 141, not all of which may be filled
        ("llama-3.1-8b", "nvidia-h100-sxm", "bf16", 1),
    ],
)  # fmt: skip
def test_the_fewest_cards_are_the_next_power_of_two(
    model: str, chip: str, weights: str, cards: int
):
    (held,) = holdings(model_of(model), [load_accelerator(chip)])

    assert (held.weights, held.cards) == (weights, cards)


def test_one_cut_less_does_not_fit():
    model, chip = model_of("deepseek-r1"), load_accelerator("nvidia-h200-sxm")
    assert chip.memory_bytes is not None
    usable_bytes = chip.memory_bytes.value * for_chip(chip.id).engine.memory_fraction
    by_tp = {cut.tp: cut.per_rank_bytes for cut in cuts(model, Precision(weights="fp8", kv="bf16"))}

    assert by_tp[8] <= usable_bytes < by_tp[4]
    assert list(by_tp) == [1, 2, 4, 8, 16, 32, 64, 128]  # as many as there are heads


def test_the_cache_of_one_sequence_must_fit_beside_the_weights():
    model = model_of("llama-3.1-8b")
    (cut, *_) = cuts(model, Precision(weights="bf16", kv="bf16"))

    assert sequence_tokens(model) == 8192
    assert cut.per_rank_bytes == pytest.approx(2 * 8_030_261_248 + 8192 * 131_072)


def test_a_shorter_context_is_taken_as_it_is():
    assert sequence_tokens(model_of("gpt3")) == 2048


def test_what_tp_cannot_divide_is_said_with_both_sizes():
    (held,) = holdings(model_of("gpt-oss-120b"), [load_accelerator("thead-hanguang800")])

    assert held.cards is None
    assert held.why_not is not None
    assert "cut 64 ways" in held.why_not or "peak" in held.why_not


@pytest.mark.parametrize(
    "name", ["gemma-3-27b", "codestral-mamba", "deepseek-v4-flash", "minimax-m3", "qwen3-next"]
)
def test_one_rank_keeps_the_weights_and_all_that_is_kept_of_a_sequence(name: str):
    model, bf16 = model_of(name), Precision(weights="bf16", kv="bf16")
    (cut, *_) = cuts(model, bf16)

    kept = cache_bytes_per_sequence(model, 2, sequence_tokens(model))
    assert kept > 0
    assert cut.per_rank_bytes - weight_bytes_per_rank(model, Layout(), bf16) == pytest.approx(kept)


def test_a_context_shorter_than_a_window_keeps_no_more_than_itself():
    model = replace(model_of("gemma-3-27b"), context_tokens=512)
    (cut, *_) = cuts(model, Precision(weights="bf16", kv="bf16"))

    assert cut.per_rank_bytes == pytest.approx(2 * 27_009_002_240 + 512 * 62 * 2 * 16 * 128 * 2)
