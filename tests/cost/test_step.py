"""Which curve an operator lies under, and what a curve does to it."""

import dataclasses

import pytest
from msgspec.structs import replace

from polypod.catalog.load import load_accelerator
from polypod.catalog.topology import loose_tiers
from polypod.cost.calibration import for_chip
from polypod.cost.chip import CUSTOM_LIMIT_BYTES, rank_of
from polypod.cost.collective import measured_time
from polypod.cost.measured import KernelFit
from polypod.cost.roofline import OpTime
from polypod.cost.step import fit_of, floor_s, kernel_time, step_cost
from polypod.workload.attention import attention_ops
from polypod.workload.forward import step_ops
from polypod.workload.layout import Layout
from polypod.workload.model import Gqa, LayerGroup, Mixer, Mla, Model, Moe
from polypod.workload.ops import Op, Step, StepShape, collective, gemm
from polypod.workload.precision import Precision

B200 = rank_of(
    load_accelerator("nvidia-b200-hgx"), loose_tiers("nvidia-b200-hgx"), for_chip("nvidia-b200-hgx")
)
CURVES = B200.calibration
ONE = Layout()
MLA = Mla(
    heads=128, q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
)  # fmt: skip


def step(weights: str = "bf16", kv: str = "bf16", tp: int = 1, drafts: float = 0.0) -> Step:
    precision = Precision(weights=weights, kv=kv)
    shape = StepShape(
        prompt_tokens=100, pairs=5000, decode_sequences=4, kv_tokens=4000, drafts=drafts
    )
    return Step(
        hidden=4096, layout=Layout(tp=tp), precision=precision, experts=precision, shape=shape
    )


def attention(mixer: Mixer, kind: str, **kwargs: object) -> Op:
    ops = attention_ops(step(**kwargs), mixer, 1)  # type: ignore[arg-type]
    return next(op for op in ops if op.kind == kind)


@pytest.mark.parametrize("kind", ["attention_prefill", "attention_decode"])
@pytest.mark.parametrize(
    ("mixer", "kv", "key"),
    [
        (Gqa(heads=32, kv_heads=8, head_dim=64), "bf16", "gqa-64"),
        (Gqa(heads=32, kv_heads=8, head_dim=128), "bf16", "gqa-128"),
        (Gqa(heads=32, kv_heads=8, head_dim=192), "fp8", "gqa-256-fp8"),
        (Gqa(heads=32, kv_heads=8, head_dim=128), "int8", "gqa-128-fp8"),
        (MLA, "bf16", "mla"),
        (MLA, "fp8", "mla-fp8"),
    ],
)
def test_attention_lies_under_the_curve_of_its_heads_and_cache(
    kind: str, mixer: Mixer, kv: str, key: str
) -> None:
    op = attention(mixer, kind, kv=kv)
    assert fit_of(op, CURVES, ONE) is getattr(CURVES, kind)[key]


def test_attention_that_was_not_measured_takes_the_nearest_that_was() -> None:
    a100 = for_chip("nvidia-a100-80g-sxm")
    narrow = attention(Gqa(heads=32, kv_heads=8, head_dim=64), "attention_decode", kv="fp8")
    assert fit_of(narrow, a100, ONE) is a100.attention_decode["gqa-128"]
    h20 = for_chip("nvidia-h20")
    ascend = for_chip("huawei-ascend-910c")
    assert fit_of(narrow, ascend, ONE) is ascend.attention_decode["other"]
    eight_bit = Op(name="x", kind="attention_decode", count=1, variant="gqa-512-fp8")
    assert fit_of(eight_bit, h20, ONE) is h20.attention_decode["gqa-128"]
    wide = attention(Gqa(heads=32, kv_heads=8, head_dim=256), "attention_decode", kv="fp8")
    assert fit_of(wide, h20, ONE) is h20.attention_decode["gqa-256-fp8"]
    bare = replace(h20, attention_decode={"gqa-256": h20.gemm["bf16"], "other": h20.gemm["other"]})
    assert fit_of(wide, bare, ONE) is bare.attention_decode["gqa-256"]


@pytest.mark.parametrize(
    ("weights", "key"),
    [("bf16", "bf16"), ("fp8", "fp8-block"), ("nvfp4", "fp4"), ("mxfp4", "mxfp4-bf16"), ("int4", "int4-bf16")],
)  # fmt: skip
def test_experts_lie_under_the_curve_of_their_weights_and_arithmetic(
    weights: str, key: str
) -> None:
    moe = Moe(experts=64, experts_per_token=4, expert_intermediate=1024)
    layer = LayerGroup(count=1, attention=None, feed_forward=moe)
    model = Model(name="x", model_type="x", hidden=2048, vocab=1, tied=True, layers=(layer,), mtp_layers=0,
                  context_tokens=None, weight_dtype=weights)  # fmt: skip
    ops = step_ops(
        model, Layout(), Precision(weights=weights, kv="bf16"), StepShape(prompt_tokens=8)
    )
    experts = next(op for op in ops if op.kind == "moe")
    assert fit_of(experts, CURVES, ONE) is CURVES.moe[key]


def test_a_gemm_of_narrow_weights_and_wide_arithmetic_has_its_own_curve() -> None:
    a100 = for_chip("nvidia-a100-80g-sxm")
    op = gemm(step("int4"), "x", 1, inner=4096, columns=4096)
    assert fit_of(op, a100, ONE) is a100.gemm["int4-bf16"]
    assert fit_of(op, CURVES, ONE) is CURVES.gemm["bf16"]


def test_queries_that_share_a_cached_key_are_counted_per_rank_and_with_drafts() -> None:
    grouped = Gqa(heads=32, kv_heads=8, head_dim=128)
    assert attention(grouped, "attention_decode").rows == 4
    assert attention(grouped, "attention_decode", drafts=1.0).rows == 8
    assert attention(grouped, "attention_decode", tp=16).rows == 2
    assert attention(MLA, "attention_decode", tp=8).rows == 16
    assert attention(MLA, "attention_decode", drafts=1.0).rows == 256
    assert attention(MLA, "attention_prefill").rows == 100


def test_a_curve_stretches_arithmetic_by_rows_and_memory_by_activations() -> None:
    fit = KernelFit(
        flops_fraction=(0.5, 0.5, 0.5),
        bytes_fraction=(0.5, 0.5, 0.5),
        fixed_s=(0, 0, 0),
        half_rows=30.0,
        activation_factor=3.0,
        source="a test",
    )
    op = Op(name="x", kind="moe", count=1, rows=10.0, flops=1e12, weight_bytes=1e9, activation_bytes=1e8)  # fmt: skip
    time = kernel_time(op, fit, B200, "likely")
    assert time.compute_s == pytest.approx(1e12 * 4 / (0.5 * B200.peak("bf16")))
    assert time.memory_s == pytest.approx(1.3e9 / (0.5 * B200.hbm_bytes_per_s))


def test_the_floor_lets_a_switch_reduce() -> None:
    """An all-reduce takes one pass then, as a gather does; NVLink switches do it, rings take two."""
    layout = Layout(tp=8)
    reduce, gather = (
        floor_s([collective("x", 1, pattern, "tp", 1e9)], B200, layout)
        for pattern in ("all_reduce", "all_gather")
    )
    assert float(reduce) == pytest.approx(7 / 8 * 1e9 / 900e9)
    assert float(reduce) == pytest.approx(float(gather))


def test_tokens_go_to_experts_by_the_faster_of_the_two_libraries_kernels() -> None:
    layout = Layout(dp=8, ep=8)
    for name in ("dispatch", "combine"):
        for buffer_bytes in (1e4, 1e9):
            op = collective(name, 1, "all_to_all", "ep", buffer_bytes)
            took_s = float(step_cost([op], B200, layout, "likely").parts[0].time.total_s)
            each = [
                float(measured_time("all_to_all", buffer_bytes, ranks=8, curves=[curve]).total_s)
                for mode in (f"{name}.ll", f"{name}.normal")
                if (curve := B200.measured(mode, 8, "likely"))
            ]
            assert len(each) == 2
            assert took_s == pytest.approx(min(each))


def test_an_engines_own_all_reduce_is_used_to_a_megabyte() -> None:
    curve = B200.measured("custom_all_reduce", 8, "likely")
    assert curve is not None
    assert curve.limit_bytes == CUSTOM_LIMIT_BYTES == 1048576
    nccl = B200.measured("all_reduce", 8, "likely")
    assert nccl is not None
    assert nccl.limit_bytes is None
    assert B200.measured("all_reduce", 16, "likely") == nccl  # the next number measured
    assert B200.measured("all_reduce", 3, "likely") == B200.measured("all_reduce", 4, "likely")
    assert B200.measured("broadcast", 8, "likely") is None


def test_experts_over_more_ranks_than_a_node_has_run_grouped_gemms() -> None:
    h100 = for_chip("nvidia-h100-sxm", "sglang")
    op = Op(name="experts", kind="moe", count=1, dtype="fp8", variant="fp8")
    assert fit_of(op, h100, Layout(dp=8, ep=8)) is h100.moe["fp8-block"]
    assert fit_of(op, h100, Layout(dp=16, ep=16)) is h100.moe["grouped-fp8-block"]
    assert fit_of(op, h100, Layout(tp=16)) is h100.moe["fp8-block"]  # slices of all experts
    wide = Op(name="experts", kind="moe", count=1, variant="bf16")
    assert fit_of(wide, h100, Layout(dp=16, ep=16)) is h100.moe["bf16"]  # nobody measured those
    matrix = Op(name="x", kind="gemm", count=1, dtype="fp8", variant="fp8")
    assert fit_of(matrix, h100, Layout(dp=16, ep=16)) is h100.gemm["fp8-block"]


DEEPEP_US = {16: (118, 195), 32: (155, 273), 64: (173, 314), 128: (192, 369), 256: (194, 360)}
"""Dispatch and combine of 128 tokens to 8 of DeepSeek-V3's experts by ranks: low-latency kernels on H800, https://github.com/deepseek-ai/DeepEP docs/legacy.md."""


@pytest.mark.parametrize("ranks", DEEPEP_US)
def test_exchanges_between_nodes_of_h800_take_what_deepep_says(ranks: int) -> None:
    """From a line through another's tables, of other cards: aiconfigurator's on H100."""
    chip = "nvidia-h800-sxm"
    where = rank_of(load_accelerator(chip), loose_tiers(chip), for_chip(chip))
    for name, width, us in zip(("dispatch", "combine"), (1, 2), DEEPEP_US[ranks], strict=True):
        op = collective(name, 1, "all_to_all", "ep", 128 * 8 * 7168.0 * width)
        cost = step_cost([op], where, Layout(dp=ranks, ep=ranks), "likely")
        assert float(cost.parts[0].time.total_s) == pytest.approx(us / 1e6, rel=0.1)


def test_two_halves_hide_what_the_shorter_of_two_neighbours_takes() -> None:
    chip = "nvidia-h100-sxm"
    where = rank_of(load_accelerator(chip), loose_tiers(chip), for_chip(chip))
    layout = Layout(dp=32, ep=32)
    ops = [
        gemm(step(), "before", 10, inner=4096, columns=40960.0),
        collective("dispatch", 10, "all_to_all", "ep", 2e7),
        Op(name="experts", kind="moe", count=10, flops=1e12, weight_bytes=1e8),
        collective("combine", 10, "all_to_all", "ep", 4e7),
        gemm(step(), "elsewhere", 7, inner=4096, columns=40960.0),
    ]
    ops = [op if op.name == "elsewhere" else dataclasses.replace(op, layers=0) for op in ops]
    for case, gained in (("fast", 1.0), ("likely", 0.8), ("slow", 0.6)):
        apart = step_cost(ops, where, layout, case)  # type: ignore[arg-type]
        a, d, m, b, rest = (float(part.total_s) for part in apart.parts)
        at_best = max(a, d) + max(m, d) + max(m, b) + max(a, b)
        both = step_cost(ops, where, layout, case, two_batches=True)  # type: ignore[arg-type]
        one_by_one = 2 * (a + d + m + b)
        expected = one_by_one - gained * (one_by_one - at_best) + 2 * rest + both.engine_s
        assert float(both.total_s) == pytest.approx(expected)
        sent_s = 2 * (d + b) - float(both.hidden_s)  # what is seen of it
        seen = sum(share for name, share in both.shares().items() if "all_to_all" in name)
        assert seen == pytest.approx(sent_s / float(both.total_s))


def test_an_exchange_that_is_handed_on_takes_multiprocessors_from_arithmetic() -> None:
    chip = "nvidia-h100-sxm"
    where = rank_of(load_accelerator(chip), loose_tiers(chip), for_chip(chip))
    experts = Op(name="experts", kind="moe", count=1, flops=1e13, weight_bytes=1e8, layers=0)
    took = []
    for copies in (1.0, 8.0):
        sent = dataclasses.replace(collective("dispatch", 1, "all_to_all", "ep", 1e6, copies=copies), layers=0)  # fmt: skip
        cost = step_cost([experts, sent], where, Layout(dp=32, ep=32), "likely", two_batches=True)
        took.append(cost.parts[0].time)
    assert isinstance(took[0], OpTime)
    assert isinstance(took[1], OpTime)
    assert took[1].compute_s == pytest.approx(took[0].compute_s / (1 - 0.18))
    assert took[1].memory_s == took[0].memory_s
