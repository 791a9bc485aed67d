"""Laws of a step's operators, and figures counted by hand.

T tokens, H hidden, I columns, L layers; DeepSeek-V3: H = 7168, 61 layers of which 58 have 256 experts, 8 per token.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.catalog.load import load_model
from polypod.workload.config import read_model
from polypod.workload.forward import Op, StepShape, step_ops, touched_experts
from polypod.workload.layout import Layout, LayoutGrid
from polypod.workload.model import (
    Dense,
    Gqa,
    LayerGroup,
    Mla,
    Model,
    Moe,
    active_parameters,
    layer_vector_parameters,
)
from polypod.workload.precision import Precision

BF16 = Precision(weights="bf16", kv="bf16")
FP8 = Precision(weights="fp8", kv="bf16")
INT8 = Precision(weights="int8", kv="bf16")
DEEPSEEK = "deepseek-ai/DeepSeek-V3"
LLAMA = "meta-llama/Llama-3.1-8B"
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"
NAMES = [DEEPSEEK, LLAMA, MIXTRAL, "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-30B-A3B"]
Tiny = Callable[[Gqa | Mla, Dense | Moe], Model]


def total(ops: list[Op], quantity: str, *kinds: str) -> Any:
    """Over the whole step; `kinds` none means all."""
    return sum(op.count * getattr(op, quantity) for op in ops if not kinds or op.kind in kinds)


def named(ops: list[Op], name: str) -> Op:
    (found,) = [op for op in ops if op.name == name]
    return found


@pytest.mark.parametrize("name", NAMES)
@given(tokens=st.integers(1, 100_000))
def test_a_prompt_costs_two_flops_for_each_active_parameter_and_token(
    name: str, tokens: int, shapes: dict[str, Model]
):
    # with a row of logits for each token; the input embedding is looked up, norms and biases are no GEMM
    model = shapes[name]
    shape = StepShape(prompt_tokens=tokens, pairs=tokens**2 / 2, finished_prompts=tokens)
    looked_up = 0 if model.tied else model.embedding_parameters
    vectors = model.hidden + sum(
        group.count * layer_vector_parameters(group, model.hidden) for group in model.layers
    )

    ops = step_ops(model, Layout(), BF16, shape)

    assert total(ops, "flops", "gemm", "moe") == pytest.approx(
        2 * tokens * (active_parameters(model) - looked_up - vectors), rel=1e-9
    )


def test_prompt_attention_is_four_flops_for_each_head_dimension_and_pair(shapes: dict[str, Model]):
    # scores and values, 2 each: 32 layers x 32 heads x 128
    ops = step_ops(shapes[LLAMA], Layout(), BF16, StepShape(prompt_tokens=10, pairs=55))

    assert total(ops, "flops", "attention_prefill") == 32 * 4 * 32 * 128 * 55


def test_latent_attention_computes_prompts_with_whole_heads(shapes: dict[str, Model]):
    # 61 layers x 128 heads x 2 x (192 for scores + 128 for values)
    ops = step_ops(shapes[DEEPSEEK], Layout(), BF16, StepShape(prompt_tokens=10, pairs=55))

    assert total(ops, "flops", "attention_prefill") == 61 * 2 * 128 * (192 + 128) * 55


def test_latent_attention_decodes_on_576_elements_that_all_heads_share(shapes: dict[str, Model]):
    ops = step_ops(shapes[DEEPSEEK], Layout(), BF16, StepShape(decode_sequences=1, kv_tokens=4096))
    decode = named([op for op in ops if op.count == 58], "decode attention")

    assert decode.flops == 2 * 128 * (576 + 512) * 4096
    assert decode.kv_bytes == 2 * 576 * (4096 + 1)  # the cache is read, one token is written
    assert decode.activation_bytes == 2 * 128 * (576 + 512)


def test_grouped_heads_read_their_share_of_the_cache(shapes: dict[str, Model]):
    def kv_bytes(tp: int) -> float:
        shape = StepShape(decode_sequences=2, kv_tokens=1000)
        op = named(step_ops(shapes[LLAMA], Layout(tp=tp), BF16, shape), "decode attention")
        return float(op.kv_bytes)

    # 2 x 8 heads x 128 elements of 2 bytes, for 1,000 tokens read and 2 written
    assert [kv_bytes(1), kv_bytes(8), kv_bytes(16)] == [
        4096 * 1002, 512 * 1002, 512 * 1002,
    ]  # fmt: skip


def test_a_cache_in_eight_bits_is_read_in_half_the_bytes(shapes: dict[str, Model]):
    shape = StepShape(decode_sequences=2, kv_tokens=1000)
    wide, narrow = (
        total(
            step_ops(shapes[LLAMA], Layout(), Precision(weights="bf16", kv=kv), shape), "kv_bytes"
        )
        for kv in ("bf16", "fp8")
    )

    assert wide == 2 * narrow


def test_a_decode_step_reads_every_weight_of_a_dense_model_once(shapes: dict[str, Model]):
    model = shapes[LLAMA]
    ops = step_ops(model, Layout(), BF16, StepShape(decode_sequences=7, kv_tokens=70))
    vectors = 65 * 4096  # norms are not counted as GEMM weights

    read = total(ops, "weight_bytes")

    assert read == 2 * (active_parameters(model) - model.embedding_parameters - vectors)


@pytest.mark.parametrize("name", NAMES)
@given(
    tp=st.sampled_from([1, 3]),
    prompt=st.integers(0, 5000),
    sequences=st.integers(1, 500),
)
def test_tensor_ranks_share_the_work(
    name: str, tp: int, prompt: int, sequences: int, shapes: dict[str, Model]
):
    model = shapes[name]
    shape = StepShape(
        prompt_tokens=prompt, decode_sequences=sequences, kv_tokens=sequences * 100, pairs=prompt**2
    )
    one, many = (step_ops(model, Layout(tp=n), BF16, shape) for n in (tp, 2 * tp))

    for quantity in ("flops", "weight_bytes", "hbm_bytes"):
        assert (
            total(many, quantity) <= total(one, quantity) <= 2 * total(many, quantity) * (1 + 1e-9)
        )


@pytest.mark.parametrize(
    "layout", [Layout(tp=8), Layout(tp=8, ep=8), Layout(dp=8, ep=8), Layout(tp=2, dp=4, ep=4), Layout(dp=8)]
)  # fmt: skip
def test_ranks_together_compute_each_tokens_experts_once(layout: Layout, shapes: dict[str, Model]):
    # 8 data-parallel ranks of 100 tokens, or one of 800: 2 experts each of 3 x 4096 x 14336
    shape = StepShape(prompt_tokens=800 / layout.dp)
    op = named(step_ops(shapes[MIXTRAL], layout, BF16, shape), "experts")

    assert op.flops * layout.world == pytest.approx(2 * 800 * 2 * 3 * 4096 * 14336)


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(tp=8), Layout(tp=8, ep=4), Layout(dp=8, ep=8), Layout(dp=4)]
)
def test_a_large_batch_reads_every_expert_that_is_held(layout: Layout, shapes: dict[str, Model]):
    op = named(step_ops(shapes[MIXTRAL], layout, BF16, StepShape(prompt_tokens=1e5)), "experts")

    assert op.weight_bytes * layout.world == pytest.approx(2 * 8 * 3 * 4096 * 14336)


@given(
    experts=st.integers(1, 512),
    ep=st.integers(1, 144),
    tokens=st.floats(1, 1e6),
)
def test_no_more_experts_are_touched_than_held_or_chosen(experts: int, ep: int, tokens: float):
    moe = Moe(experts=experts, experts_per_token=1, expert_intermediate=1)
    layout = Layout(dp=ep, ep=ep)
    held = np.ceil(experts / ep)

    touched = float(touched_experts(moe, layout, tokens))

    assert 0 < touched <= held
    assert touched <= tokens * held / (held * ep)  # its share of what all tokens chose
    assert touched <= touched_experts(moe, layout, 2 * tokens)


def test_touched_experts_are_what_a_draw_at_random_touches():
    # 64 tokens choosing 8 of 256: a draw with replacement, averaged over seeds
    rng = np.random.default_rng(0)
    drawn = np.mean([len(np.unique(rng.integers(0, 256, 64 * 8))) for _ in range(300)])
    moe = Moe(experts=256, experts_per_token=8, expert_intermediate=1, balanced=True)

    assert touched_experts(moe, Layout(), 64) == pytest.approx(drawn, rel=0.01)


@pytest.mark.parametrize("tokens", [4, 16, 64, 512])
def test_uneven_experts_are_touched_as_a_draw_by_popularity_touches_them(tokens: int):
    # popularity evenly on a log scale over a factor of 20, drawn with replacement, averaged over seeds
    rng = np.random.default_rng(0)
    weight = 20.0 ** ((np.arange(128) + 0.5) / 128)
    chosen = rng.choice(128, size=(400, tokens * 8), p=weight / weight.sum())
    drawn = np.mean([len(np.unique(row)) for row in chosen])
    moe = Moe(experts=128, experts_per_token=8, expert_intermediate=1)

    assert touched_experts(moe, Layout(), tokens) == pytest.approx(drawn, rel=0.015)
    assert drawn < 128 * (1 - np.exp(-tokens * 8 / 128))


def test_the_published_decode_exchanges_eight_copies_of_each_token(shapes: dict[str, Model]):
    # 7.5 KB of int8 per token in the paper (7,168 and its scale), bf16 back (arXiv 2506.12708, dispatch table)
    shape = StepShape(decode_sequences=48, kv_tokens=48 * 4096)
    ops = step_ops(shapes[DEEPSEEK], Layout(dp=320, ep=320), INT8, shape)
    dispatch, combine = named(ops, "dispatch"), named(ops, "combine")

    assert (dispatch.pattern, dispatch.group, dispatch.count) == ("all_to_all", "ep", 58)
    assert dispatch.buffer_bytes == 48 * 8 * 7168
    assert combine.buffer_bytes == 2 * 48 * 8 * 7168
    assert not [op for op in ops if op.group == "tp"]


@pytest.mark.parametrize(
    ("layout", "copies"),
    [
        (Layout(dp=4, ep=4), 2.0),  # two experts, on two ranks at most
        (Layout(tp=2, dp=4, ep=8), 1.0),  # either tensor rank hands out half of the tokens
        (Layout(tp=2, dp=4, ep=4), 2.0),  # experts in two slices: either tensor rank hands out all
    ],
)
def test_tensor_ranks_hand_out_what_their_slices_need(
    layout: Layout, copies: float, shapes: dict[str, Model]
):
    ops = step_ops(shapes[MIXTRAL], layout, BF16, StepShape(prompt_tokens=10))

    assert named(ops, "dispatch").buffer_bytes == 10 * copies * 4096 * 2


def test_sliced_experts_gather_all_tokens_and_scatter_the_results(shapes: dict[str, Model]):
    ops = step_ops(shapes[MIXTRAL], Layout(dp=4), BF16, StepShape(prompt_tokens=10))
    gather, scatter = named(ops, "gather tokens"), named(ops, "scatter results")

    assert (gather.pattern, scatter.pattern) == ("all_gather", "reduce_scatter")
    assert gather.buffer_bytes == scatter.buffer_bytes == 4 * 10 * 4096 * 2
    assert not [op for op in ops if op.pattern == "all_to_all"]


@pytest.mark.parametrize("tp", [2, 4])
def test_tensor_ranks_reduce_twice_a_layer(tp: int, shapes: dict[str, Model]):
    ops = step_ops(shapes[LLAMA], Layout(tp=tp), BF16, StepShape(prompt_tokens=10))
    reduces = [op for op in ops if op.pattern == "all_reduce"]

    assert [(op.group, op.count, op.buffer_bytes) for op in reduces] == 2 * [
        ("tp", 32, 10 * 4096 * 2)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_one_rank_talks_to_nobody(name: str, shapes: dict[str, Model]):
    ops = step_ops(shapes[name], Layout(), BF16, StepShape(prompt_tokens=9))

    assert not [op for op in ops if op.kind == "collective"]


@pytest.mark.parametrize("pp", [2, 4])
def test_stages_share_the_layers_and_send_once(pp: int, shapes: dict[str, Model]):
    ops = step_ops(shapes[LLAMA], Layout(pp=pp), BF16, StepShape(prompt_tokens=10))
    send = named(ops, "to the next stage")

    assert named(ops, "qkv").count == 32 / pp
    assert (send.pattern, send.group, send.count, send.buffer_bytes) == (
        "send",
        "pp",
        1,
        10 * 4096 * 2,
    )


def test_logits_are_made_for_sequences_that_get_a_token(shapes: dict[str, Model]):
    def rows(**shape: float) -> float:
        ops = step_ops(shapes[LLAMA], Layout(), BF16, StepShape(**shape))
        return total([op for op in ops if op.name == "head"], "flops") / (2 * 4096 * 128256)

    assert rows(prompt_tokens=100) == 0
    assert rows(prompt_tokens=100, finished_prompts=2) == 2
    assert rows(prompt_tokens=100, decode_sequences=5, finished_prompts=2) == 7


@pytest.mark.parametrize(
    ("name", "flops"), [(LLAMA, 4 * 32 * 128), (DEEPSEEK, 2 * 128 * (576 + 512))]
)
def test_a_drafted_token_attends_to_the_cache_as_its_sequence_does(
    name: str, flops: int, shapes: dict[str, Model]
):
    shape = StepShape(decode_sequences=8, kv_tokens=8000, drafts=2)
    ops = step_ops(shapes[name], Layout(), BF16, shape)
    attention = next(op for op in ops if op.name == "decode attention")

    assert attention.flops == flops * 8000 * 3


def test_a_step_is_empty_until_something_is_in_it():
    shape = StepShape()

    assert (shape.tokens, shape.kv_tokens, shape.pairs, shape.finished_prompts) == (0, 0, 0, 0)


def test_a_draft_adds_a_token_per_sequence_and_one_layer(shapes: dict[str, Model]):
    model = shapes[DEEPSEEK]
    shape = {"decode_sequences": 8, "kv_tokens": 8000}
    plain = step_ops(model, Layout(), INT8, StepShape(**shape))
    drafted = step_ops(model, Layout(), INT8, StepShape(**shape, drafts=1))

    assert named(drafted, "experts").count == named(plain, "experts").count + 1
    assert named(drafted, "experts").flops == 2 * named(plain, "experts").flops
    assert named(drafted, "head").count == 2
    assert named(drafted, "draft projection").weight_bytes == 2 * 7168 * 7168
    attention = next(op for op in drafted if op.name == "decode attention")
    assert attention.kv_bytes == 2 * 576 * (8000 + 16)  # the cache is read once for both tokens


def test_a_model_without_mtp_layers_drafts_elsewhere(shapes: dict[str, Model]):
    ops = step_ops(
        shapes[LLAMA], Layout(), BF16, StepShape(decode_sequences=8, kv_tokens=80, drafts=1)
    )

    assert (named(ops, "qkv").count, named(ops, "head").count) == (32, 1)
    assert not [op for op in ops if op.name == "draft projection"]


def test_what_stays_in_bf16_is_computed_in_it(shapes: dict[str, Model]):
    shape = StepShape(prompt_tokens=10, pairs=55, decode_sequences=1, kv_tokens=9)
    ops = step_ops(shapes[DEEPSEEK], Layout(), INT8, shape)
    kept = {op.name for op in ops if op.dtype == "bf16"}

    assert kept == {
        "router", "head", "embedding", "norms and residuals", "prompt attention", "decode attention",
    }  # fmt: skip
    assert {op.dtype for op in ops} == {"bf16", "int8"}


def test_a_layer_by_hand(tiny: Tiny):
    # one head of 4, 8 columns, hidden 4; 3 tokens
    ops = step_ops(
        tiny(Gqa(heads=1, kv_heads=1, head_dim=4), Dense(intermediate=8)),
        Layout(),
        BF16,
        StepShape(prompt_tokens=3, pairs=6, finished_prompts=1),
    )
    by_name = {op.name: (op.count, op.flops, op.weight_bytes, op.activation_bytes) for op in ops}
    assert {op.name: op.kv_bytes for op in ops if op.kv_bytes} == {"prompt attention": 2 * 8 * 3}
    assert not any(op.buffer_bytes for op in ops)

    assert by_name == {
        "qkv": (2, 2 * 3 * 4 * 12, 2 * 4 * 12, 2 * 3 * (4 + 12)),
        "prompt attention": (2, 4 * 4 * 6, 0, 4 * 3 * 4),
        "attention output": (2, 2 * 3 * 4 * 4, 2 * 16, 2 * 3 * 8),
        "feed-forward up": (2, 2 * 3 * 4 * 16, 2 * 4 * 16, 2 * 3 * (4 + 16)),
        "feed-forward down": (2, 2 * 3 * 8 * 4, 2 * 8 * 4, 2 * 3 * (8 + 4)),
        "norms and residuals": (2, 0, 0, 10 * 2 * 3 * 4),
        "embedding": (1, 0, 0, 2 * 2 * 3 * 4),
        "head": (1, 2 * 4 * 10, 2 * 4 * 10, 2 * (4 + 10)),
    }


def test_an_expert_layer_by_hand(tiny: Tiny):
    # 4 experts of 2 columns, 2 per token, 6 shared columns; two ranks of 5 tokens, two experts each
    moe = Moe(
        experts=4, experts_per_token=2, expert_intermediate=2, shared_intermediate=6, balanced=True
    )
    ops = step_ops(
        tiny(Gqa(heads=1, kv_heads=1, head_dim=4), moe),
        Layout(dp=2, ep=2),
        BF16,
        StepShape(prompt_tokens=5, pairs=15),
    )
    experts, router = named(ops, "experts"), named(ops, "router")
    rows = 5 * 2 * 2 / 2  # both ranks' tokens, two experts each, half of them here
    touched = 2 * (1 - np.exp(-5 * 2 * 2 / 4))

    assert experts.flops == 2 * rows * 3 * 4 * 2
    assert experts.weight_bytes == pytest.approx(touched * 3 * 4 * 2 * 2)
    assert experts.activation_bytes == 2 * rows * (2 * 4 + 3 * 2)
    assert (router.flops, router.weight_bytes) == (2 * 5 * 4 * 4, 2 * 4 * 4)
    assert named(ops, "shared experts up").flops == 2 * 5 * 4 * 12
    assert named(ops, "shared experts down").flops == 2 * 5 * 6 * 4


def test_latent_projections_by_hand(tiny: Tiny):
    # 2 heads of 3 + 1 (scores) and 5 (values), latents of 6 (queries) and 7; only what has heads is sliced
    mla = Mla(heads=2, q_lora_rank=6, kv_lora_rank=7, qk_nope_head_dim=3, qk_rope_head_dim=1, v_head_dim=5)  # fmt: skip
    model = tiny(mla, Dense(intermediate=8))

    def weights(tp: int) -> list[float]:
        ops = step_ops(model, Layout(tp=tp), BF16, StepShape(prompt_tokens=1, pairs=1))
        names = ("to latents", "queries", "latent to heads", "attention output")
        return [float(named(ops, name).weight_bytes) / 2 for name in names]

    assert weights(1) == [4 * (7 + 1 + 6), 6 * 2 * 4, 7 * 2 * 8, 2 * 5 * 4]
    assert weights(2) == [4 * (7 + 1 + 6), 6 * 1 * 4, 7 * 1 * 8, 1 * 5 * 4]


@pytest.mark.parametrize("name", NAMES)
def test_arrays_of_layouts_and_shapes_answer_as_each_does(name: str, shapes: dict[str, Model]):
    model = shapes[name]
    layouts = [Layout(), Layout(tp=4), Layout(tp=2, pp=3), Layout(dp=4, ep=4), Layout(tp=2, dp=2)]
    grid = LayoutGrid(
        **{
            axis: np.array([[float(getattr(one, axis))] for one in layouts])
            for axis in ("tp", "pp", "dp", "ep")
        }
    )
    sequences = np.array([0.0, 8.0, 300.0])
    prompt = np.array([512.0, 0.0, 100.0])

    many = step_ops(
        model,
        grid,
        INT8,
        StepShape(
            prompt_tokens=prompt,
            decode_sequences=sequences,
            kv_tokens=100 * sequences,
            pairs=prompt**2,
            finished_prompts=prompt / 256,
        ),
    )

    for quantity in ("flops", "weight_bytes", "activation_bytes", "kv_bytes", "buffer_bytes"):
        expected = [
            [
                total(
                    step_ops(
                        model,
                        layout,
                        INT8,
                        StepShape(
                            prompt_tokens=p, decode_sequences=s, kv_tokens=100 * s, pairs=p**2, finished_prompts=p / 256
                        ),
                    ),
                    quantity,
                )
                for p, s in zip(prompt, sequences, strict=True)
            ]
            for layout in layouts
        ]  # fmt: skip
        np.testing.assert_allclose(
            np.broadcast_to(total(many, quantity), (5, 3)), expected, rtol=1e-12
        )


def test_the_largest_layers_of_two_kinds_come_first(tiny: Tiny):
    model = tiny(Gqa(heads=1, kv_heads=1, head_dim=4), Dense(intermediate=8))
    small, large = (
        LayerGroup(count=1, attention=model.layers[0].attention, feed_forward=Dense(intermediate=i))
        for i in (8, 16)
    )
    two_kinds = Model(
        **{field: getattr(model, field) for field in model.__slots__} | {"layers": (small, large)}
    )
    ops = step_ops(two_kinds, Layout(pp=2), BF16, StepShape(prompt_tokens=1))

    assert named(ops, "feed-forward up").weight_bytes == 2 * 4 * 32


def test_prompts_send_a_token_to_several_experts_together_and_decode_one_by_one() -> None:
    entry = load_model("deepseek-ai/DeepSeek-V3")
    model = read_model(entry.config, entry.name, entry.path)
    precision, layout = Precision(weights="fp8", kv="bf16"), Layout(dp=32, ep=32)
    for shape, copies in (
        (StepShape(prompt_tokens=4096, pairs=4096**2 / 2), 8),
        (StepShape(decode_sequences=64, kv_tokens=64 * 4096), 1),
    ):
        found = [op for op in step_ops(model, layout, precision, shape) if op.name == "dispatch"]
        assert [float(op.copies) for op in found] == [copies]


def test_more_ranks_and_copies_never_load_the_busiest_rank_more(shapes: dict[str, Model]):
    # the same 4,608 tokens of a stage over ever more ranks, whether or not they divide the experts
    shares = []
    for ep in (32, 36, 64, 72, 128, 144, 256, 288, 384):
        shape = StepShape(decode_sequences=4608 / ep)
        experts = named(step_ops(shapes[DEEPSEEK], Layout(dp=ep, ep=ep), FP8, shape), "experts")
        shares.append((experts.flops, experts.weight_bytes))

    for before, after in pairwise(shares):
        assert after[0] < before[0]
        assert after[1] <= before[1] * 1.001


def test_operators_know_their_kind_of_layer(shapes: dict[str, Model]):
    ops = step_ops(shapes[DEEPSEEK], Layout(dp=32, ep=32), FP8, StepShape(prompt_tokens=100))
    with_experts = {op.layers for op in ops if op.kind == "moe"}
    queries = [op for op in ops if op.name == "queries"]

    assert {op.count for op in queries} == {58, 3}
    assert len({op.layers for op in queries}) == 2
    assert {op.layers for op in ops if op.name in ("dispatch", "combine")} == with_experts
    assert named(ops, "embedding").layers is None
