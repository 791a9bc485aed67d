"""Whose kernels a chip is timed with, and what it says of it."""

import pytest

from polypod.cost.calibration import Calibration, for_chip, named
from polypod.cost.measured import KernelFit, lent_fit, measured, waiting_share, widened
from polypod.errors import InputError


@pytest.mark.parametrize(
    ("chip", "evidence", "identity"),
    [
        ("nvidia-h100-sxm", "own kernels", "nvidia-h100-sxm default"),
        ("nvidia-h20", "own kernels", "nvidia-h20 default"),
        ("nvidia-h200-sxm", "same family", "nvidia-h100-sxm default"),
        ("nvidia-gb200", "same family", "nvidia-b200-hgx default"),
        ("nvidia-b300", "same family", "nvidia-b200-hgx default"),
        ("nvidia-a800-80g-sxm", "same family", "nvidia-a100-80g-sxm default"),
        ("nvidia-l20", "same family", "nvidia-l40s default"),
        ("nvidia-rubin", "transferred", "nvidia-b200-hgx default"),
        ("huawei-ascend-910c", "published kernels", "huawei-ascend-910c"),
        ("huawei-ascend-910b2", "same family", "huawei-ascend-910b2"),
        ("amd-mi325x", "published kernels", "amd-cdna3"),
        ("amd-mi355x", "published kernels", "amd-cdna4"),
        ("intel-gaudi3", "published kernels", "intel-gaudi3"),
        ("hygon-bw1000", "specification only", "specification-only"),
    ],
)
def test_a_calibration_says_what_it_rests_on(chip: str, evidence: str, identity: str) -> None:
    found = for_chip(chip)
    assert (found.evidence, found.id) == (evidence, identity)


def test_a_hidden_chip_borrows_from_its_generation_and_then_from_the_nearest_other() -> None:
    hidden = for_chip("nvidia-h100-sxm", without=frozenset({"nvidia-h100-sxm"}))
    assert (hidden.evidence, hidden.id) == ("same family", "nvidia-h800-sxm default")
    hopper = frozenset({"nvidia-h100-sxm", "nvidia-h800-sxm", "nvidia-h20"})
    hidden = for_chip("nvidia-h100-sxm", without=hopper)
    assert (hidden.evidence, hidden.id) == ("transferred", "nvidia-b200-hgx default")
    hidden = for_chip("nvidia-h100-sxm", without=frozenset(measured()))
    assert hidden.evidence == "specification only"
    hidden = for_chip("huawei-ascend-910c", without=frozenset({"huawei-ascend-910c"}))
    assert hidden.evidence == "specification only"


def test_hiding_another_chip_changes_nothing() -> None:
    b200 = frozenset({"nvidia-b200-hgx"})
    assert for_chip("nvidia-h100-sxm", "vllm", b200) == for_chip("nvidia-h100-sxm", "vllm")


def test_a_chip_measured_in_part_takes_the_rest_from_its_generation() -> None:
    h20, h100 = for_chip("nvidia-h20", "vllm"), for_chip("nvidia-h100-sxm", "vllm")
    assert h20.gemm["fp8-block"].source.startswith("alibaba/InferSim")
    assert h20.gemm["bf16"] == lent_fit(h100.gemm["bf16"], waiting_share("nvidia-h20", "nvidia-h100-sxm"))  # fmt: skip
    assert h20.exchanges == h100.exchanges
    h200 = for_chip("nvidia-h200-sxm", "vllm")
    assert (h200.gemm["bf16"], h200.moe) == (h100.gemm["bf16"], h100.moe)  # of equal compute


def test_borrowed_from_another_design_the_band_is_wider_and_the_middle_the_same() -> None:
    fit = measured()["nvidia-b200-hgx"].kernels(None)["gemm"]["bf16"]
    wide = widened(fit)
    for name in ("flops_fraction", "bytes_fraction"):
        narrow_of, wide_of = getattr(fit, name), getattr(wide, name)
        assert narrow_of[0] < wide_of[0] <= 1
        assert wide_of[1] == narrow_of[1]
        assert wide_of[2] == pytest.approx(narrow_of[2] / 1.3)
    assert wide.fixed_s[0] == pytest.approx(fit.fixed_s[0] / 1.3)
    assert wide.fixed_s[1] == fit.fixed_s[1]
    assert wide.fixed_s[2] == pytest.approx(fit.fixed_s[2] * 1.3)
    assert for_chip("nvidia-rubin").gemm["bf16"] == wide


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"backend 'tgi' are known; there are trtllm, vllm, sglang"
    ):
        for_chip("nvidia-h100-sxm", "tgi")


def test_types_without_a_curve_take_the_nearest() -> None:
    vllm = for_chip("nvidia-b200-hgx", "vllm")
    assert vllm.fit("moe", "mxfp4-bf16", "bf16") == vllm.moe["mxfp4-bf16"]
    assert vllm.fit("moe", "q4_0-bf16", "bf16") == vllm.moe["bf16"]
    assert vllm.fit("moe", "fp8-fp8", "fp8") == vllm.moe["fp8-block"]
    assert vllm.fit("gemm", "int8-int8", "int8") == vllm.gemm["other"]
    hopper = for_chip("nvidia-h100-sxm")
    assert hopper.fit("gemm", "nvfp4-fp4", "fp4") == hopper.gemm["fp8-block"]


def test_a_calibration_without_a_curve_for_the_rest_is_refused() -> None:
    base = named("nvidia-hopper")
    fields = {name: getattr(base, name) for name in base.__struct_fields__}
    fits: dict[str, KernelFit] = {"fp8": base.moe["other"]}
    with pytest.raises(ValueError, match=r"needs moe\.other"):
        Calibration(**fields | {"moe": fits})


def test_an_engine_that_is_slower_than_the_published_kernels_says_by_how_much() -> None:
    plain, vllm = for_chip("huawei-ascend-910c"), for_chip("huawei-ascend-910c", "vllm")
    assert plain.step_factor == (1.0, 1.0, 1.0)
    assert vllm.step_factor == plain.engines["vllm"].factor
    assert vllm.step_factor[0] <= vllm.step_factor[1] <= vllm.step_factor[2]
    assert for_chip("huawei-ascend-910c", "sglang").step_factor == plain.step_factor
