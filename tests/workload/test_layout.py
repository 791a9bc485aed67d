import msgspec
import numpy as np
import pytest

from polypod.errors import LayoutError
from polypod.workload.layout import Layout, LayoutGrid, check_layout
from polypod.workload.model import Model

DEEPSEEK = "deepseek-ai/DeepSeek-V3"
LLAMA = "meta-llama/Llama-3.1-8B"
SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        (
            DEEPSEEK,
            Layout(dp=320, ep=320),
        ),  # CloudMatrix384 decodes so: one expert per die, 64 copies
        (DEEPSEEK, Layout(dp=32, ep=32)),
        (DEEPSEEK, Layout(dp=144, ep=144)),  # DeepSeek decodes so: two a rank, 32 copies
        (DEEPSEEK, Layout(dp=72, ep=72)),  # LMSYS decodes so: four a rank, 32 copies
        (MIXTRAL, Layout(dp=6, ep=6)),
        (DEEPSEEK, Layout(tp=8)),
        (DEEPSEEK, Layout(tp=8, ep=8)),
        (DEEPSEEK, Layout(tp=4, dp=4, ep=16)),
        (DEEPSEEK, Layout(tp=4, dp=4, ep=4)),
        (DEEPSEEK, Layout(dp=8, ep=1)),
        (DEEPSEEK, Layout(tp=16, pp=61)),
        (LLAMA, Layout(tp=16)),  # eight key-value heads, each on two ranks
        (LLAMA, Layout(dp=4)),
        (SMOLLM, Layout(tp=3)),
    ],
)
def test_layouts_that_engines_run_are_taken(name: str, layout: Layout, shapes: dict[str, Model]):
    check_layout(shapes[name], layout)


@pytest.mark.parametrize(
    ("name", "layout", "says"),
    [
        (SMOLLM, Layout(tp=2), r"tp=2 does not divide the 9 attention heads of HuggingFaceTB/SmolLM2-135M-Instruct; take tp from 1, 3, 9"),
        (SMOLLM, Layout(pp=31), r"pp=31 stages for the 30 layers of .*; make pp at most 30"),
        (LLAMA, Layout(ep=2, dp=2), r"ep=2: meta-llama/Llama-3\.1-8B has no experts; use ep=1"),
        (LLAMA, Layout(cp=2), r"cp=2: context parallelism is not modelled; use cp=1"),
        (MIXTRAL, Layout(tp=2, dp=3, ep=4), r"ep=4 does not divide the tp\*dp=6 ranks of a stage; take ep from 1, 2, 3, 6"),
        (MIXTRAL, Layout(tp=4, ep=8), r"ep=8 does not divide the tp\*dp=4 ranks of a stage; take ep from 1, 2, 4"),
        (MIXTRAL, Layout(dp=8, ep=4), r"ep=4 is no multiple of dp=8; spread the experts over all ranks with ep=8"),
        (MIXTRAL, Layout(dp=17, ep=17), r"ep=17 for 8 experts of .* make ep at most 16"),
        (MIXTRAL, Layout(dp=3), r"tp\*dp/ep=3 does not divide the 14336 columns of one expert"),
        (DEEPSEEK, Layout(tp=256), r"tp=256 does not divide the 128 attention heads"),
    ],
)  # fmt: skip
def test_a_layout_the_model_cannot_have_is_refused_with_the_way_out(
    name: str, layout: Layout, says: str, shapes: dict[str, Model]
):
    with pytest.raises(LayoutError, match=says):
        check_layout(shapes[name], layout)


def test_key_value_heads_that_no_rank_can_share_evenly_are_refused(shapes: dict[str, Model]):
    # 28 heads divide by 14, but 4 key-value heads neither divide 14 nor are divided by it
    with pytest.raises(
        LayoutError, match=r"tp=14 and 4 key-value heads .* take tp from 1, 2, 4 or a multiple of 4"
    ):
        check_layout(shapes["Qwen/Qwen2.5-7B"], Layout(tp=14))


def test_the_world_is_all_axes_but_expert_parallelism():
    assert Layout(tp=2, pp=3, dp=5, ep=10, cp=7).world == 2 * 3 * 5 * 7


def test_a_grid_of_layouts_has_a_world_for_each():
    one = np.ones(3)
    grid = LayoutGrid(tp=np.array([1.0, 2.0, 4.0]), pp=2 * one, dp=one, ep=one)

    assert grid.world.tolist() == [2, 4, 8]


def test_a_plan_file_names_only_the_axes_that_are_cut():
    assert msgspec.to_builtins(Layout(tp=8)) == {"tp": 8}
    with pytest.raises(msgspec.ValidationError, match=r"Expected `int` >= 1 - at `\$\.tp`"):
        msgspec.convert({"tp": 0}, Layout)
