"""Which curve an operator lies under, and what a curve does to it."""

import pytest
from msgspec.structs import replace

from polypod.catalog.load import load_accelerator
from polypod.catalog.topology import loose_tiers
from polypod.cost.calibration import for_chip
from polypod.cost.chip import CUSTOM_LIMIT_BYTES, rank_of
from polypod.cost.collective import measured_time
from polypod.cost.measured import KernelFit
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
    assert fit_of(op, CURVES) is getattr(CURVES, kind)[key]


def test_attention_that_was_not_measured_takes_the_nearest_that_was() -> None:
    a100 = for_chip("nvidia-a100-80g-sxm")
    narrow = attention(Gqa(heads=32, kv_heads=8, head_dim=64), "attention_decode", kv="fp8")
    assert fit_of(narrow, a100) is a100.attention_decode["gqa-128"]
    h20 = for_chip("nvidia-h20")
    ascend = for_chip("huawei-ascend-910c")
    assert fit_of(narrow, ascend) is ascend.attention_decode["other"]
    eight_bit = Op(name="x", kind="attention_decode", count=1, variant="gqa-512-fp8")
    assert fit_of(eight_bit, h20) is h20.attention_decode["gqa-128"]
    wide = attention(Gqa(heads=32, kv_heads=8, head_dim=256), "attention_decode", kv="fp8")
    assert fit_of(wide, h20) is h20.attention_decode["gqa-256-fp8"]
    bare = replace(h20, attention_decode={"gqa-256": h20.gemm["bf16"], "other": h20.gemm["other"]})
    assert fit_of(wide, bare) is bare.attention_decode["gqa-256"]


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
    assert fit_of(experts, CURVES) is CURVES.moe[key]


def test_a_gemm_of_narrow_weights_and_wide_arithmetic_has_its_own_curve() -> None:
    a100 = for_chip("nvidia-a100-80g-sxm")
    op = gemm(step("int4"), "x", 1, inner=4096, columns=4096)
    assert fit_of(op, a100) is a100.gemm["int4-bf16"]
    assert fit_of(op, CURVES) is CURVES.gemm["bf16"]


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
