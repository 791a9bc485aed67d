import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.workload.layout import Layout, LayoutGrid
from polypod.workload.memory import (
    expert_slices,
    experts_per_rank,
    kv_bytes_per_token_per_rank,
    stage_layers,
    weight_bytes_per_rank,
)
from polypod.workload.model import (
    Gqa,
    Model,
    Moe,
    kv_bytes_per_token,
    layer_vector_parameters,
    parameters,
    router_parameters,
)
from polypod.workload.precision import Precision

BF16 = Precision(weights="bf16", kv="bf16")
FP8 = Precision(weights="fp8", kv="fp8")
DEEPSEEK = "deepseek-ai/DeepSeek-V3"
LLAMA = "meta-llama/Llama-3.1-8B"
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"
NAMES = [DEEPSEEK, LLAMA, MIXTRAL, "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V2-Lite"]


@pytest.mark.parametrize("name", [*NAMES, "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-7B"])
def test_one_rank_holds_the_whole_model(name: str, shapes: dict[str, Model]):
    model = shapes[name]

    assert weight_bytes_per_rank(model, Layout(), BF16) == 2 * parameters(model)
    assert kv_bytes_per_token_per_rank(model, Layout(), BF16) == kv_bytes_per_token(model, 2)


@pytest.mark.parametrize("tp", [2, 4, 8])
@pytest.mark.parametrize("name", [LLAMA, MIXTRAL])
def test_ranks_together_hold_the_model_once_but_for_norms_and_routers(
    name: str, tp: int, shapes: dict[str, Model]
):
    model = shapes[name]
    whole = model.hidden + sum(
        group.count * layer_vector_parameters(group, model.hidden) for group in model.layers
    )
    for group in model.layers:
        if isinstance(group.feed_forward, Moe):
            whole += group.count * router_parameters(group.feed_forward, model.hidden)

    together = tp * weight_bytes_per_rank(model, Layout(tp=tp), BF16)

    assert together == 2 * (parameters(model) + (tp - 1) * whole)


def test_spread_experts_are_held_once_and_attention_on_every_rank(shapes: dict[str, Model]):
    model = shapes[MIXTRAL]
    experts = 32 * 8 * 3 * 4096 * 14336
    rest = parameters(model) - experts

    assert weight_bytes_per_rank(model, Layout(dp=8, ep=8), BF16) == 2 * (rest + experts / 8)


@pytest.mark.parametrize("ep", [1, 2, 4, 8])
def test_experts_take_the_same_room_spread_or_sliced(ep: int, shapes: dict[str, Model]):
    model = shapes[MIXTRAL]

    whole_ranks = weight_bytes_per_rank(model, Layout(tp=8, ep=ep), BF16)

    assert whole_ranks == weight_bytes_per_rank(model, Layout(tp=8), BF16)


@pytest.mark.parametrize("name", NAMES)
@given(tp=st.sampled_from([1, 2, 4]), pp=st.sampled_from([1, 2, 3, 8]), dp=st.sampled_from([1, 2]))
def test_more_tensor_or_pipeline_ranks_never_add_to_a_rank(
    name: str, tp: int, pp: int, dp: int, shapes: dict[str, Model]
):
    model = shapes[name]
    here = weight_bytes_per_rank(model, Layout(tp=tp, pp=pp, dp=dp), FP8)
    cache = kv_bytes_per_token_per_rank(model, Layout(tp=tp, pp=pp, dp=dp), FP8)

    for wider in (Layout(tp=2 * tp, pp=pp, dp=dp), Layout(tp=tp, pp=pp + 1, dp=dp)):
        assert weight_bytes_per_rank(model, wider, FP8) <= here
        assert kv_bytes_per_token_per_rank(model, wider, FP8) <= cache


def test_only_matrices_shrink_with_their_precision(shapes: dict[str, Model]):
    model = shapes[LLAMA]
    kept = 2 * model.embedding_parameters + 65 * model.hidden  # embedding, head, 2 x 32 + 1 norms

    narrow = weight_bytes_per_rank(model, Layout(), FP8)

    assert narrow == (parameters(model) - kept) + 2 * kept


def test_a_die_of_the_published_deployment_holds_one_expert_per_layer(shapes: dict[str, Model]):
    # 320 dies for 256 experts: 64 of them hold copies (arXiv 2506.12708, section 4)
    model = shapes[DEEPSEEK]
    moe = model.layers[1].feed_forward
    assert isinstance(moe, Moe)

    assert experts_per_rank(moe, Layout(dp=320, ep=320)) == 1
    assert experts_per_rank(moe, Layout(dp=256, ep=256)) == 1
    assert experts_per_rank(moe, Layout(dp=32, ep=32)) == 8
    assert weight_bytes_per_rank(model, Layout(dp=320, ep=320), FP8) == weight_bytes_per_rank(
        model, Layout(dp=256, ep=256), FP8
    )


def test_the_latent_cache_is_copied_to_every_tensor_rank(shapes: dict[str, Model]):
    model = shapes[DEEPSEEK]

    assert kv_bytes_per_token_per_rank(model, Layout(tp=8), BF16) == 70_272


@pytest.mark.parametrize(("tp", "cache_bytes"), [(1, 131072), (2, 65536), (8, 16384), (32, 16384)])
def test_grouped_heads_are_divided_until_one_is_left(
    tp: int, cache_bytes: int, shapes: dict[str, Model]
):
    assert kv_bytes_per_token_per_rank(shapes[LLAMA], Layout(tp=tp), BF16) == cache_bytes


def test_the_fullest_stage_has_as_many_of_the_largest_layers_as_there_are(shapes: dict[str, Model]):
    model = shapes[DEEPSEEK]

    def counts(pp: int) -> list[float]:
        return [float(count) for _, count in stage_layers(model, Layout(pp=pp))]

    assert (counts(1), counts(2), counts(61)) == ([58, 3], [31, 0], [1, 0])


def test_a_tied_matrix_lies_on_the_first_stage_and_on_the_last(shapes: dict[str, Model]):
    model = shapes["HuggingFaceTB/SmolLM2-135M-Instruct"]
    layer = 3 * 576 * 1536 + 2 * 576 * 64 * (9 + 3) + 2 * 576

    staged = weight_bytes_per_rank(model, Layout(pp=2), BF16)

    assert staged == 2 * (15 * layer + 576 + 49152 * 576)


def test_untied_matrices_part_with_the_second_stage(shapes: dict[str, Model]):
    model = shapes[LLAMA]
    layers = parameters(model) - 2 * model.embedding_parameters - model.hidden

    staged = weight_bytes_per_rank(model, Layout(pp=2), BF16)

    assert staged == 2 * (layers / 2 + model.hidden + model.embedding_parameters)


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_answers_as_its_layouts_do(name: str, shapes: dict[str, Model]):
    layouts = [Layout(), Layout(tp=4), Layout(tp=2, pp=3), Layout(dp=4, ep=4), Layout(tp=2, dp=2)]
    grid = LayoutGrid(
        tp=np.array([float(one.tp) for one in layouts]),
        pp=np.array([float(one.pp) for one in layouts]),
        dp=np.array([float(one.dp) for one in layouts]),
        ep=np.array([float(one.ep) for one in layouts]),
    )

    for measure in (weight_bytes_per_rank, kv_bytes_per_token_per_rank):
        many = measure(shapes[name], grid, FP8)
        assert np.array_equal(many, [measure(shapes[name], one, FP8) for one in layouts])


def test_scalar_answers_are_plain_floats(shapes: dict[str, Model]):
    assert type(weight_bytes_per_rank(shapes[LLAMA], Layout(tp=2), BF16)) is float
    assert type(kv_bytes_per_token_per_rank(shapes[LLAMA], Layout(tp=2), BF16)) is float
    assert isinstance(shapes[LLAMA].layers[0].attention, Gqa)


def test_ranks_that_expert_groups_leave_hold_slices():
    assert [expert_slices(Layout(tp=8, ep=ep)) for ep in (1, 2, 8)] == [8, 4, 1]


@pytest.mark.parametrize(("ep", "held"), [(32, 8), (72, 4), (144, 2), (256, 1), (320, 1)])
def test_a_rank_holds_as_many_experts_as_the_published_deployments_do(
    ep: int, held: int, shapes: dict[str, Model]
):
    # 32 redundant experts at LMSYS (72 ranks) and DeepSeek (144); one to a die of CloudMatrix384
    model, layout = shapes[DEEPSEEK], Layout(dp=ep, ep=ep)
    moe = next(group.feed_forward for group in model.layers if isinstance(group.feed_forward, Moe))
    whole = weight_bytes_per_rank(model, Layout(dp=256, ep=256), FP8)

    assert experts_per_rank(moe, layout) == held
    beyond = weight_bytes_per_rank(model, layout, FP8) - whole
    assert beyond == pytest.approx(58 * (held - 1) * 3 * 7168 * 2048)


@given(experts=st.integers(1, 512), ep=st.integers(1, 512))
def test_ranks_have_room_for_every_expert_and_less_than_one_more_each(experts: int, ep: int):
    held = experts_per_rank(Moe(experts=experts, experts_per_token=1, expert_intermediate=1), Layout(dp=ep, ep=ep))  # fmt: skip

    assert experts <= held * ep < experts + ep
