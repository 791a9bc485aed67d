"""Traces against laws, against published shapes worked by hand, and against Polypod's own descriptions of the same models.

The kept file is what `make architectures` left: transformers' own code run on tensors without data, which knows nothing of Polypod.
"""

from pathlib import Path

import msgspec
import pytest

from polypod.catalog.load import listing, load_model
from polypod.workload.config import read_model
from polypod.workload.traced import LATENT, Flops, Pass, Traced, agree, checks, is_checked
from polypod.workload.traced_kept import (
    Kept,
    Row,
    compared,
    distinct_checked,
    read_kept,
    write_kept,
)

FILE = Path(__file__).parent / "data" / "architectures.json"
ONE = Traced(
    model_type="tiny",
    architecture="TinyForCausalLM",
    transformers="5.23.0",
    torch="2.13.0",
    parameters=1000,
    used_parameters=900,
    expert_parameters=400,
    weight_bytes=2000,
    experts=4,
    experts_per_token=1,
    formula_cache_bytes=8,
    prompt=(
        Pass(
            n=10,
            flops=Flops(gemm=10_000, experts=2_000, attention=600),
            linear_flops=10_000,
            cache_bytes=180,
        ),
        Pass(
            n=20,
            flops=Flops(gemm=20_000, experts=4_000, attention=2_400),
            linear_flops=20_000,
            cache_bytes=260,
        ),
    ),
    decode=(
        Pass(n=10, flops=Flops(gemm=1_000, experts=200, attention=66), linear_flops=1_000),
        Pass(n=20, flops=Flops(gemm=1_000, experts=200, attention=126), linear_flops=1_000),
    ),
)
"""A token passes 500 weights, and 100 of the experts' 400."""


@pytest.fixture(scope="module")
def kept() -> Kept:
    return read_kept(FILE.read_bytes())


@pytest.fixture(scope="module")
def by_name(kept: Kept) -> dict[str, Row]:
    return {row.name: row for row in kept.rows}


def test_derived_figures_are_those_worked_by_hand():
    assert ONE.active_parameters == 900 - 400 + 100
    assert ONE.cache_bytes_per_token == 8
    assert ONE.cache_bytes_per_sequence == 100
    assert ONE.prompt[0].flops.matrix == 12_600


def test_of_whole_inputs_every_used_parameter_is_active():
    assert msgspec.structs.replace(ONE, unit="inputs").active_parameters == 900


def test_every_law_speaks_of_a_full_trace_and_holds():
    assert checks(ONE) == dict.fromkeys(
        ("linear", "gemm", "experts", "chosen", "attention", "decode", "context", "cache"), True
    )
    assert is_checked(ONE)


def broken_prompt(**kinds: int) -> Traced:
    second = ONE.prompt[1]
    flops = msgspec.structs.replace(second.flops, **kinds)
    prompt = (ONE.prompt[0], msgspec.structs.replace(second, flops=flops))
    return msgspec.structs.replace(ONE, prompt=prompt)


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (broken_prompt(gemm=20_300), "linear"),
        (broken_prompt(gemm=20_300), "gemm"),
        (broken_prompt(experts=4_100), "experts"),
        (broken_prompt(experts=4_100), "chosen"),
        (broken_prompt(attention=1_200), "attention"),
        (msgspec.structs.replace(ONE, decode=(ONE.decode[0], ONE.decode[0])), "context"),
        (msgspec.structs.replace(ONE, decode=ONE.prompt), "decode"),
        (msgspec.structs.replace(ONE, experts_per_token=2), "chosen"),
        (msgspec.structs.replace(ONE, formula_cache_bytes=4), "cache"),
    ],
)
def test_a_law_that_does_not_hold_is_named_and_the_trace_is_not_checked(wrong: Traced, law: str):
    assert checks(wrong)[law] is False
    assert not is_checked(wrong)


def test_a_law_that_does_not_speak_of_a_trace_is_not_among_its_checks():
    bare = msgspec.structs.replace(
        ONE, decode=(), experts=None, formula_cache_bytes=None, how=(LATENT,)
    )
    assert set(checks(bare)) == {"linear", "gemm", "experts", "attention"}


def test_without_a_weight_product_there_is_nothing_counted_twice_and_nothing_checked():
    still = tuple(msgspec.structs.replace(one, flops=Flops(), linear_flops=0) for one in ONE.prompt)
    assert not is_checked(msgspec.structs.replace(ONE, prompt=still, decode=()))


def test_attention_over_more_inputs_grows_with_their_number_and_not_its_square():
    twice = msgspec.structs.replace(ONE, unit="inputs", decode=(), experts=None)
    assert checks(twice)["attention"] is False
    even = msgspec.structs.replace(broken_prompt(attention=1_200), unit="inputs")
    assert checks(even)["attention"] is True


def test_the_kept_file_is_written_as_it_is_read(kept: Kept):
    assert write_kept(kept) == FILE.read_bytes()


def test_a_file_of_another_form_is_refused():
    with pytest.raises(msgspec.ValidationError, match=r"unknown field `speed`"):
        read_kept(b'{"rows":[{"kind":"type","name":"x","speed":1}]}')


def test_every_row_has_a_trace_or_a_reason(kept: Kept):
    assert all((row.traced is None) == bool(row.problem) for row in kept.rows)
    assert len({(row.kind, row.name) for row in kept.rows}) == len(kept.rows)


def test_every_model_of_the_catalog_is_in_the_file(kept: Kept):
    listed = {line.id for line in listing() if line.kind == "model"}
    assert {row.name for row in kept.rows if row.kind == "model"} == listed


def test_as_many_architectures_are_checked_as_the_documents_say(kept: Kept):
    """Counted by another way than the page's: classes of rows whose every check holds, the independent count among them."""
    good = {
        row.traced.architecture
        for row in kept.rows
        if row.traced
        and (found := checks(row.traced))
        and "linear" in found
        and False not in found.values()
    }
    assert len(good) == distinct_checked(kept.rows) >= 375


def test_llama_is_what_its_shape_says(by_name: dict[str, Row]):
    """32 layers of hidden 4096: queries and output 4096 wide, keys and values 1024, feed-forward 14336; vocabulary 128256."""
    traced = by_name["meta-llama/Llama-3.1-8B"].traced
    assert traced is not None
    layer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    weights = 32 * layer + 4096 * 128256

    for one in traced.prompt:
        assert one.flops.gemm == 2 * one.n * weights
        assert one.flops.attention == 32 * 4 * 4096 * one.n**2
        assert one.cache_bytes == one.n * 32 * 2 * 1024 * 2
    assert traced.parameters == weights + 4096 * (128256 + 2 * 32 + 1)


def test_deepseek_has_the_parameters_its_report_states(by_name: dict[str, Row]):
    """671 B, of which 37 B are activated for each token (DeepSeek-V3 Technical Report, arxiv.org/abs/2412.19437)."""
    traced = by_name["deepseek-ai/DeepSeek-V3"].traced
    assert traced is not None
    assert round(traced.parameters / 1e9) == 671
    assert int(traced.active_parameters / 1e9) == 37


def test_a_recurrent_model_keeps_a_state_and_no_cache(by_name: dict[str, Row]):
    traced = by_name["mamba2"].traced
    assert traced is not None
    assert traced.cache_bytes_per_token == 0
    assert traced.cache_bytes_per_sequence > 0


def test_the_native_side_of_every_model_is_what_is_computed_now(kept: Kept):
    for row in kept.rows:
        if row.kind == "model" and row.traced is not None:
            entry = load_model(row.name)
            now = compared(row.traced, read_model(entry.config, entry.name, entry.path))
            assert row.native == now, row.name


def test_described_models_agree_with_their_traces_or_the_reason_is_known(kept: Kept):
    traced = [row for row in kept.rows if row.native is not None]
    unexplained = {
        f"{row.name} {name}: {why}"
        for row in traced
        if row.native
        for name, why in row.native.differs.items()
        if "not explained" in why
    }
    assert unexplained == set()
    assert len(traced) >= 60


def test_parameters_are_the_same_to_the_last_one_but_for_vectors_that_are_named(kept: Kept):
    """Of each: layers x experts (router biases, scales), hidden size (bias of the last norm), vocabulary (of the head)."""
    differing = {
        row.name: row.traced.used_parameters - row.native.parameters
        for row in kept.rows
        if row.native and row.traced and not row.native.agrees["parameters"]
    }
    assert differing == {
        "google/gemma-4-26B-A4B": 30 * 128,
        "microsoft/Phi-3.5-MoE-instruct": 4096,
        "microsoft/Phi-mini-MoE-instruct": 4096 + 32064,
        "openai/gpt-oss-120b": 36 * 128,
        "openai/gpt-oss-20b": 24 * 32,
        "tiiuae/falcon-40b": 8192,
    }


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B"])
def test_a_wrong_shape_would_not_agree(name: str, by_name: dict[str, Row]):
    row, entry = by_name[name], load_model(name)
    assert row.traced is not None
    config = entry.config | {"num_key_value_heads": 2 * entry.config["num_key_value_heads"]}
    found = compared(row.traced, read_model(config, name, "config.json"))
    assert found.agrees["parameters"] is False
    assert "traced: not explained" in found.differs["parameters"]


def test_counts_agree_within_a_hundredth_of_the_greater():
    assert agree(0.991, 1.0)
    assert not agree(0.989, 1.0)
