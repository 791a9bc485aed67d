"""The shipped curves against measured kernels that they were not fitted to, and what a curve may not say."""

import csv
from collections import defaultdict
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypod.catalog.load import load_accelerator
from polypod.catalog.topology import loose_tiers
from polypod.cost.calibration import for_chip
from polypod.cost.chip import Rank, rank_of
from polypod.cost.collective import measured_time
from polypod.cost.measured import (
    GROUPED,
    Curve,
    ExchangeFit,
    Generation,
    KernelFit,
    generation_of,
    lent_fit,
    measured,
    waiting_share,
)
from polypod.cost.step import kernel_time
from polypod.workload.attention import attention_ops
from polypod.workload.forward import step_ops
from polypod.workload.layout import Layout
from polypod.workload.model import Gqa, LayerGroup, Model, Moe
from polypod.workload.ops import Op, Step, StepShape, gemm
from polypod.workload.precision import Precision

BF16 = Precision(weights="bf16", kv="bf16")
DATA = Path(__file__).parent / "data"
L40S = {"bf16": 362.05e12, "fp8": 733e12, "int8": 733e12}  # NVIDIA L40S datasheet, dense
COMPUTE = {"fp8-block": "fp8", "int4-bf16": "bf16", "int8-bf16": "bf16", "mxfp4-bf16": "bf16", "mxfp4-fp8": "fp8"}  # fmt: skip

Row = dict[str, str]


def rows(name: str) -> list[Row]:
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


KERNELS, EXCHANGES = rows("kernels.csv"), rows("exchanges.csv")


@cache
def rank(chip: str, backend: str | None, without: frozenset[str] = frozenset()) -> Rank:
    calibration = for_chip(chip, backend, without)
    if chip != "nvidia-l40s":
        return rank_of(load_accelerator(chip), loose_tiers(chip), calibration)
    return Rank(
        chip=chip,
        ranks_per_accelerator=1,
        peak_flops_per_s=L40S,
        hbm_bytes_per_s=864e9,
        memory_bytes=48e9,
        tiers=(),
        calibration=calibration,
    )


def predicted_s(row: Row, where: Rank) -> float:
    """A sample's time under its own curve, with the quantising kernel that the tables include."""
    fit = getattr(where.calibration, row["family"])[row["key"]]
    key = "bf16" if row["family"].startswith("attention") else row["key"].removeprefix(GROUPED)
    activation_bytes = float(row["activation_bytes"])
    op = Op(
        name="sample",
        kind=row["family"],  # type: ignore[arg-type]
        count=1,
        dtype=COMPUTE.get(key, key),
        rows=float(row["rows"]),
        flops=float(row["flops"]),
        activation_bytes=activation_bytes,
        weight_bytes=float(row["hbm_bytes"]) - activation_bytes,
    )
    return float(kernel_time(op, fit, where, "likely").total_s) + fit.fused_s


def errors(found: list[Row], without: frozenset[str] = frozenset()) -> list[float]:
    """|predicted / measured - 1| of each."""
    return [
        abs(
            predicted_s(row, rank(row["chip"], row["backend"], without)) / float(row["measured_s"])
            - 1
        )
        for row in found
    ]


@pytest.mark.parametrize(
    ("family", "bound"),
    [("gemm", 0.11), ("attention_decode", 0.09), ("attention_prefill", 0.12), ("moe", 0.13)],
)
def test_half_of_the_kernels_held_out_are_within(family: str, bound: float) -> None:
    found = [row for row in KERNELS if row["family"] == family]
    assert 60 <= len(found) <= 200
    assert float(np.median(errors(found))) <= bound


def exchange_error(row: Row) -> float:
    engine = row["backend"] if row["backend"] in ("trtllm", "vllm", "sglang") else None
    where, ranks = rank(row["chip"], engine), int(row["key"])
    mode = row["backend"].removeprefix("deepep_")
    name = row["family"] if mode == row["backend"] else f"{row['family']}.{mode}"
    curve = where.measured(name, ranks, "likely")
    assert curve is not None
    time = measured_time(
        "all_gather", float(row["buffer_bytes"]), ranks=ranks, curves=[curve]
    ).total_s
    return abs(float(time) / float(row["measured_s"]) - 1)


@pytest.mark.parametrize("family", sorted({row["family"] for row in EXCHANGES}))
def test_half_of_the_collectives_held_out_are_within_a_tenth(family: str) -> None:
    found = [row for row in EXCHANGES if row["family"] == family]
    assert 20 <= len(found) <= 200
    assert float(np.median([exchange_error(row) for row in found])) <= 0.10


def test_a_chip_whose_own_kernels_are_hidden_is_timed_worse_and_still_within_half() -> None:
    """H100's curves under B200's peaks, and the other way round; a type the other lacks is left out."""
    for chip in ("nvidia-h100-sxm", "nvidia-b200-hgx"):
        generation = generation_of(chip)
        assert generation is not None
        hidden = frozenset(generation.measured)
        donor = rank(chip, None, hidden).calibration
        found = [
            row
            for row in KERNELS
            if row["chip"] == chip
            and row["key"] in getattr(donor, row["family"])
            and not row["key"].startswith(GROUPED)
        ]
        own, borrowed = float(np.median(errors(found))), float(np.median(errors(found, hidden)))
        assert own < borrowed < 0.5


def test_samples_count_work_as_the_workload_does() -> None:
    """Else the shares of peak that were fitted would mean something else than they are used for."""
    step = Step(
        hidden=1,
        layout=Layout(),
        precision=Precision(weights="bf16", kv="bf16"),
        experts=Precision(weights="bf16", kv="bf16"),
        shape=StepShape(prompt_tokens=1),
    )
    seen: defaultdict[str, int] = defaultdict(int)
    for row in KERNELS:
        if row["key"] not in ("bf16", "gqa-128"):
            continue
        op = _op(row, step)
        seen[row["family"]] += 1
        assert float(row["flops"]) == pytest.approx(float(op.flops), rel=1e-3), row
        if row["family"] == "moe" and not all_touched(row):
            continue  # tables load experts evenly: they touch more of them than routers do
        assert float(row["hbm_bytes"]) == pytest.approx(float(op.hbm_bytes), rel=1e-3), row
        if row["family"] != "gemm":
            assert float(row["rows"]) == pytest.approx(float(op.rows), rel=1e-3), row
    assert set(seen) == {"gemm", "moe", "attention_decode", "attention_prefill"}


def all_touched(row: Row) -> bool:
    """Whether so many tokens choose that every expert is chosen, however they choose."""
    tokens, _, _, chosen, experts, *_ = (int(size) for size in row["shape"].split("x"))
    return tokens * chosen >= 8 * experts


def _op(row: Row, step: Step) -> Op:
    sizes = [int(size) for size in row["shape"].split("x")]
    if row["family"] == "gemm":
        tokens, columns, inner = sizes
        shaped = with_shape(step, StepShape(prompt_tokens=float(tokens)))
        return gemm(shaped, "sample", 1, inner=inner, columns=columns)
    if row["family"] == "moe":
        return _experts(sizes)
    batch, tokens, cached, heads, kv_heads, width = sizes
    mixer = Gqa(heads=heads, kv_heads=kv_heads, head_dim=width)
    if row["family"] == "attention_prefill":
        shape = StepShape(prompt_tokens=float(batch * tokens), pairs=batch * tokens**2 / 2)
    else:
        shape = StepShape(decode_sequences=float(batch), kv_tokens=float(batch * (cached + 1)))
    ops = attention_ops(with_shape(step, shape), mixer, 1)
    return next(op for op in ops if op.kind == row["family"] and np.any(op.count))


def with_shape(step: Step, shape: StepShape) -> Step:
    return Step(
        hidden=step.hidden,
        layout=step.layout,
        precision=step.precision,
        experts=step.experts,
        shape=shape,
    )


def _experts(sizes: list[int]) -> Op:
    tokens, hidden, inner, chosen, experts, tp, ep = sizes
    layout = Layout(tp=tp * ep, ep=ep)
    moe = Moe(experts=experts, experts_per_token=chosen, expert_intermediate=inner, balanced=True)
    layer = LayerGroup(count=1, attention=None, feed_forward=moe)
    model = Model(
        name="sample",
        model_type="sample",
        hidden=hidden,
        vocab=1,
        tied=True,
        layers=(layer,),
        mtp_layers=0,
        context_tokens=None,
        weight_dtype="bf16",
    )
    precision = Precision(weights="bf16", kv="bf16")
    ops = step_ops(model, layout, precision, StepShape(prompt_tokens=float(tokens)))
    return next(op for op in ops if op.name == "experts")


CURVE = {
    "flops_fraction": [0.9, 0.8, 0.7],
    "bytes_fraction": [0.9, 0.8, 0.7],
    "fixed_s": [1e-6, 2e-6, 3e-6],
}
EXCHANGE = {
    "launch_s": [1e-6, 2e-6, 3e-6],
    "ramp_s": [1e-7, 1e-7, 1e-7],
    "bytes_fraction": [0.9, 0.8, 0.7],
    "overlap": 1.0,
}


@pytest.mark.parametrize(
    ("kind", "good", "key"),
    [
        (Curve, CURVE, "flops_fraction"),
        (Curve, CURVE, "bytes_fraction"),
        (ExchangeFit, EXCHANGE, "bytes_fraction"),
    ],
)
def test_a_kernel_that_beats_the_peak_is_refused(kind: type, good: dict, key: str) -> None:
    assert msgspec.convert(good, kind)
    with pytest.raises(msgspec.ValidationError, match=rf"{key} = .*1\.01.* outside 0 to 1"):
        msgspec.convert(good | {key: [1.01, 0.8, 0.7]}, kind)
    with pytest.raises(msgspec.ValidationError, match=rf"{key} .* must fall from fast"):
        msgspec.convert(good | {key: [0.7, 0.8, 0.9]}, kind)


def test_every_curve_falls_from_fast_to_slow_in_its_times_too() -> None:
    for one in measured().values():
        for families in one.backends.values():
            for curves in families.values():
                for curve in curves.values():
                    assert curve.fixed_s[0] <= curve.fixed_s[1] <= curve.fixed_s[2]
                    assert curve.overlap >= 1


def test_the_input_of_a_quantised_gemm_is_not_quantised_twice() -> None:
    """Fixed times stop 2 us above bf16's; the rest is kept beside them. vLLM fuses no quantising to fp4."""
    for one in measured().values():
        for backend, families in one.backends.items():
            gemms = dict(families.get("gemm", {}))
            if backend == "vllm" and "fp4" in gemms:
                assert gemms.pop("fp4").fused_s == 0
            if "bf16" in gemms:
                most_s = gemms["bf16"].fixed_s[1] + 2e-6
                assert all(curve.fixed_s[1] <= most_s * 1.01 for curve in gemms.values())
    assert measured()["nvidia-h100-sxm"].backends["trtllm"]["gemm"]["fp8"].fused_s > 5e-6


def test_every_donor_has_been_measured() -> None:
    generations = {chip: found for chip in measured() if (found := generation_of(chip))}
    assert set(generations) == set(measured())
    for generation in generations.values():
        assert isinstance(generation, Generation)
        assert set(generation.measured) <= set(generation.chips)
        assert set(generation.measured) | set(generation.others) <= set(measured())


def test_engines_without_kernels_of_their_own_take_the_blend() -> None:
    h20 = measured()["nvidia-h20"]
    assert h20.kernels("vllm") == h20.kernels(None)
    h100 = measured()["nvidia-h100-sxm"]
    assert h100.kernels("trtllm")["gemm"]["bf16"] != h100.kernels(None)["gemm"]["bf16"]
    assert h100.kernels("trtllm")["gemm"]["bf16"].source.endswith("trtllm gemm bf16")
    own, blend = h100.collectives("sglang"), h100.collectives(None)
    assert own["custom_all_reduce"] != blend["custom_all_reduce"]
    assert own["all_reduce"] == blend["all_reduce"]


def test_tensorrt_llm_does_not_take_the_blend_of_grouped_experts() -> None:
    """It has its own kernels there, where all others run DeepGEMM."""
    h800 = measured()["nvidia-h800-sxm"]
    assert "grouped-fp8-block" in h800.kernels("vllm")["moe"]
    assert "grouped-fp8-block" not in h800.kernels("trtllm")["moe"]
    own, blend = (for_chip("nvidia-h100-sxm", name).moe["grouped-fp8-block"] for name in ("trtllm", "vllm"))  # fmt: skip
    assert own.flops_fraction != blend.flops_fraction


INFERSIM_H20_PREFILL = {
    (32, 4): {4096: 1126.0, 16384: 16016.2},
    (64, 8): {4096: 2153.0, 16384: 32218.3},
}
"""Microseconds of causal attention of one prompt by its tokens, by query and key heads of 128: H20, bf16, alibaba/InferSim bench_data/mha/prefill."""


@pytest.mark.parametrize("heads", INFERSIM_H20_PREFILL)
def test_attention_lent_to_the_h20_is_within_a_tenth_of_its_own_table(
    heads: tuple[int, int],
) -> None:
    """Four times as far from the peak as on the H100 whose curve it is: too few rows were measured for one of its own."""
    where = rank("nvidia-h20", "sglang")
    queries, keys = heads
    for tokens, us in INFERSIM_H20_PREFILL[heads].items():
        step = Step(
            hidden=4096, layout=Layout(), precision=BF16, experts=BF16,
            shape=StepShape(prompt_tokens=tokens, pairs=tokens**2 / 2),
        )  # fmt: skip
        mixer = Gqa(heads=queries, kv_heads=keys, head_dim=128)
        op = next(op for op in attention_ops(step, mixer, 1) if op.kind == "attention_prefill")
        fit = where.calibration.attention_prefill["gqa-128"]
        assert float(kernel_time(op, fit, where, "likely").total_s) == pytest.approx(
            us / 1e6, rel=0.1
        )


def test_grouped_experts_lent_to_the_h20_reach_what_its_own_do() -> None:
    waits = waiting_share("nvidia-h20", "nvidia-h100-sxm")
    lent = lent_fit(measured()["nvidia-h100-sxm"].kernels(None)["moe"]["grouped-fp8-block"], waits)
    own = measured()["nvidia-h20"].kernels(None)["moe"]["grouped-fp8-block"]
    assert lent.flops_fraction[1] == pytest.approx(own.flops_fraction[1], rel=0.05)


def test_deepgemm_reaches_the_same_on_h800_alone_as_in_sglangs_whole_module_on_h100() -> None:
    """Two tables of two makers: InferSim's GEMMs with the copies around them added, aiconfigurator's module with them in."""
    h800, h100 = (measured()[chip].kernels(None)["moe"]["grouped-fp8-block"] for chip in ("nvidia-h800-sxm", "nvidia-h100-sxm"))  # fmt: skip
    assert h800.flops_fraction[1] == pytest.approx(h100.flops_fraction[1], rel=0.1)


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_lent_fraction_lies_between_its_own_and_the_peak(
    fraction: float, waits: float, other: float
) -> None:
    fit = KernelFit(
        flops_fraction=(fraction,) * 3, bytes_fraction=(1, 1, 1), fixed_s=(0, 0, 0), source="a test"
    )
    lent = lent_fit(fit, waits).flops_fraction[1]
    assert fraction * (1 - 1e-9) <= lent <= 1
    less, more = sorted((waits, other))
    assert lent_fit(fit, less).flops_fraction[1] >= lent_fit(fit, more).flops_fraction[1]


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.floats(0, 1000), st.floats(1, 1e4))
def test_few_rows_are_waited_for_like_everything_else(
    fraction: float, waits: float, half_rows: float, rows: float
) -> None:
    fit = KernelFit(flops_fraction=(fraction,) * 3, bytes_fraction=(1, 1, 1), fixed_s=(0, 0, 0), half_rows=half_rows, source="a test")  # fmt: skip
    lent = lent_fit(fit, waits)
    reached = fraction / (1 + half_rows / rows)
    there = lent.flops_fraction[1] / (1 + lent.half_rows / rows)
    assert there == pytest.approx(1 / (1 + waits * (1 / reached - 1)))


def test_only_chips_of_far_less_arithmetic_are_lent_other_fractions() -> None:
    for chip in ("nvidia-h200-sxm", "nvidia-h800-sxm", "nvidia-h100-sxm"):
        assert waiting_share(chip, "nvidia-h100-sxm") == 1
    assert waiting_share("nobodys-chip", "nvidia-l40s") == 1  # of which the catalog has no peaks
    assert waiting_share("nvidia-l20", "nvidia-l40s") == pytest.approx((119.5 / 59.8) / (362.05 / 91.6), rel=1e-3)  # fmt: skip
    assert waiting_share("nvidia-h100-sxm", "nvidia-h20") == 1  # never lowered
    assert waiting_share("nvidia-h20", "nvidia-h100-sxm") == pytest.approx((148 / 44) / (989.4 / 67))  # fmt: skip
