"""The shipped facts, held against themselves and against published sums."""

import re
from collections.abc import Iterator

import msgspec
import pytest

from polypod.catalog.claims import sum_of_parts
from polypod.catalog.load import (
    listing,
    load_accelerator,
    load_link,
    load_model,
    load_pod,
    pods_accelerator,
)
from polypod.catalog.schema import Accelerator, Fact, Interconnect, ModelCard, Pod

ACCELERATORS = [entry.id for entry in listing() if entry.kind == "accelerator"]
PODS = [entry.id for entry in listing() if entry.kind == "pod"]
LINKS = [entry.id for entry in listing() if entry.kind == "link"]
MODELS = [entry.id for entry in listing() if entry.kind == "model"]


def facts(entry: object) -> Iterator[Fact]:
    if isinstance(entry, Fact):
        yield entry
    elif isinstance(entry, msgspec.Struct):
        for name in entry.__struct_fields__:
            yield from facts(getattr(entry, name))
    elif isinstance(entry, dict | tuple):
        for item in entry.values() if isinstance(entry, dict) else entry:
            yield from facts(item)


def hardware() -> list[Accelerator | Pod | Interconnect]:
    return [
        *(load_accelerator(name) for name in ACCELERATORS),
        *(load_pod(name) for name in PODS),
        *(load_link(name) for name in LINKS),
    ]


def everything() -> list[Accelerator | Pod | Interconnect | ModelCard]:
    cards = [load_model(name).card for name in MODELS]
    return [*hardware(), *(card for card in cards if card)]


def test_the_catalog_has_the_fields_hardware():
    # 67 accelerators, 40 interconnects and 29 supernodes of the survey of 2026-11, the HGX H200, and the L40S in its server
    assert (len(ACCELERATORS), len(LINKS), len(PODS)) >= (68, 40, 31)


def test_every_source_of_hardware_has_an_address_or_says_that_none_is_on_record():
    cited: list[str] = []
    for entry in hardware():
        for fact in facts(entry):
            cited += [fact.source, *(other.source for other in fact.conflicts)]
        cited += [claim.source for claim in (entry.claims if isinstance(entry, Pod) else ())]
    for source in cited:
        assert re.search(r"https?://\S+\.\S+|no address on record", source), source

    without = [source for source in cited if "http" not in source]
    assert len(without) < 0.1 * len(cited)


def test_what_was_not_read_again_is_said_so():
    for entry in hardware():
        for fact in facts(entry):
            if fact.kind == "datasheet" and "http" not in fact.source:
                assert "memory" in (fact.note or ""), fact


def test_what_is_printed_both_ways_is_halved():
    prefix = {"GB": 1e9, "TB": 1e12}
    seen = 0
    for entry in hardware():
        for fact in facts(entry):
            match = re.search(
                r"printed as ([\d,.]+) (GB|TB)/s\b[^;]*\b(both ways|read as)", fact.note or ""
            )
            if match:
                printed = float(match[1].replace(",", "")) * prefix[match[2]]
                assert 2 * fact.value == pytest.approx(printed, rel=0.01), fact
                seen += 1
    assert seen > 50


# Peaks that rise faster than twice per halving of the bits, and why they are dense all the same.
STEEP = {
    ("cambricon-mlu370-x8", "int8"): "its launch prints 96 and 256",
    ("aws-trainium3", "fp8"): "MXFP8 runs at four times the bf16 rate, dense",
    ("amd-mi455x", "fp8"): "the vendor's racks print 1.45 EFLOPS over 72; its bf16 is the estimate",
}


@pytest.mark.parametrize("name", ACCELERATORS)
def test_no_sparse_peak_slipped_in(name: str):
    # 2:4 sparsity doubles a printed peak: against the next wider type it then stands at four times instead of twice
    peaks = {dtype: fact.value for dtype, fact in load_accelerator(name).peak_flops_per_s.items()}
    wide = peaks.get("bf16") or peaks.get("fp16")
    for dtype in ("fp8", "int8"):
        if wide is not None and dtype in peaks and (name, dtype) not in STEEP:
            assert peaks[dtype] <= 2.2 * wide
    if "fp4" in peaks and "fp8" in peaks:
        assert (
            peaks["fp4"] <= 3.01 * peaks["fp8"]
        )  # three times on Blackwell Ultra and MTIA 450, 500
    if "tf32" in peaks and "bf16" in peaks:
        assert peaks["tf32"] <= 1.01 * peaks["bf16"]
    if {"bf16", "fp16"} <= set(peaks):
        assert peaks["bf16"] == peaks["fp16"]


@pytest.mark.parametrize("name", ACCELERATORS)
def test_memory_turns_over_in_a_plausible_time(name: str):
    # reading all of it once takes 10 to 40 ms from stacked memory, up to 0.65 s from LPDDR: a wrong unit would not
    chip = load_accelerator(name)
    if chip.memory_bytes is not None and chip.memory_bytes_per_s is not None:
        assert 0.008 < chip.memory_bytes.value / chip.memory_bytes_per_s.value < 0.65


@pytest.mark.parametrize("name", PODS)
def test_a_pods_scale_up_is_its_accelerators_own(name: str):
    pod = load_pod(name)
    if pod.accelerator is None or pod.tiers[0].bytes_per_s is None:
        return
    own = load_accelerator(pod.accelerator).scale_up
    if own is not None and own.bytes_per_s is not None:
        assert pod.tiers[0].bytes_per_s.value == own.bytes_per_s.value


def test_a_link_is_as_fast_as_the_accelerators_that_have_it():
    for link, generation, chip in (
        ("nvlink4", "NVLink 4", "nvidia-h100-sxm"),
        ("nvlink5", "NVLink 5", "nvidia-b200-hgx"),
        ("nvlink6", "NVLink 6", "nvidia-rubin"),
        ("ub2", "Ascend 950", "huawei-ascend-950dt"),
        ("hccs", "Ascend 910B", "huawei-ascend-910b2"),
        ("icn", "810E", "thead-zhenwu-810e"),
        ("icn", "M890", "thead-zhenwu-m890"),
        ("mtlink", "S5000", "mthreads-s5000"),
        ("blink1", "BR100", "biren-br100"),
        ("ici", "v7", "google-tpu-v7"),
        ("neuronlink", "v4", "aws-trainium3"),
        ("infinity", "MI300", "amd-mi300x"),
        ("ualoe", "MI455X", "amd-mi455x"),
        ("gculare", "L600", "enflame-l600"),
    ):
        own = load_accelerator(chip).scale_up
        assert own is not None
        assert own.bytes_per_s is not None
        assert load_link(link).bytes_per_s[generation].value == own.bytes_per_s.value


@pytest.mark.parametrize("name", PODS)
def test_a_claim_is_the_sum_of_its_parts_or_its_note_says_why_not(name: str):
    pod = load_pod(name)
    chip = None if pod.accelerator is None else load_accelerator(pod.accelerator)
    for claim in pod.claims:
        parts = sum_of_parts(claim, pod, chip)
        near = parts is not None and abs(parts / claim.value - 1) < 0.03
        assert near or claim.note, claim


def test_an_estimate_says_what_it_rests_on():
    for entry in everything():
        for fact in facts(entry):
            assert fact.kind != "estimated" or fact.note, fact


def test_a_conflict_says_something_else_than_the_fact():
    for entry in everything():
        for fact in facts(entry):
            assert all(other.value != fact.value for other in fact.conflicts), fact


@pytest.mark.parametrize(
    ("pod", "share"),
    [
        ("huawei-cm384", {"300 PFLOPS": 0.96, "1,229 TB/s": 1.0, "49.2 TB": 1.0, "269 TB/s": 1.12}),
        ("sugon-scalex640", {"630 PFLOPS": 0.975, "2,304 TB/s": 0.889}),
        ("sugon-scalex-10k", {"5 EFLOPS": 0.983}),
    ],
)  # fmt: skip
def test_claims_against_the_sum_of_the_parts(pod: str, share: dict[str, float]):
    # what the parts on record come to, as a share of the headline; the notes of the claims say why they differ
    entry = load_pod(pod)
    chip = pods_accelerator(entry)
    for text, expected in share.items():
        claim = next(claim for claim in entry.claims if text in claim.what)
        parts = sum_of_parts(claim, entry, chip)
        assert parts is not None
        assert parts / claim.value == pytest.approx(expected, abs=0.004)
        assert abs(expected - 1) < 0.03 or claim.note
    assert len(share) == len(entry.claims)


def test_the_630_pflops_of_scalex_are_of_two_racks():
    # as a figure of one rack they would need 984 TFLOPS a card; the card has 480
    card = load_accelerator("hygon-bw1000").peak_flops_per_s["bf16"].value

    assert pytest.approx(card, rel=0.03) == 630e15 / 1280
    assert 2 * card < 630e15 / 640


def test_the_cluster_is_sixteen_racks():
    rack, cluster = load_pod("sugon-scalex640"), load_pod("sugon-scalex-10k")

    assert cluster.accelerators == 16 * rack.accelerators
    assert cluster.power_w is not None
    assert rack.power_w is not None
    assert cluster.power_w.value == 16 * rack.power_w.value
    assert cluster.tiers[0].bytes_per_s == rack.tiers[0].bytes_per_s


def test_a_dies_ports_are_half_of_its_packages():
    # the paper prints 392 GB/s of UB and 400 Gb/s of RDMA per package of two dies
    tiers = load_pod("huawei-cm384").tiers

    assert [tier.bytes_per_s and 2 * tier.bytes_per_s.value for tier in tiers[1:]] == [
        392e9,
        392e9,
        400e9 / 8,
    ]


@pytest.mark.parametrize("pod", PODS)
def test_published_layouts_take_the_accelerators_they_name(pod: str):
    entry = load_pod(pod)
    for result in entry.published:
        ranks_each = pods_accelerator(entry).ranks
        layout = {"tp": 1, "pp": 1, "dp": 1, "cp": 1, **result.layout}
        world = layout["tp"] * layout["pp"] * layout["dp"] * layout["cp"]
        assert world == result.accelerators * ranks_each
        assert load_model(result.model).name == result.model


def test_the_published_decode_rate_is_its_batch_over_its_tpot():
    # 96 sequences per package, a token every 49.4 ms: 1,943 tokens/s (arXiv 2506.12708, decode table)
    pod = load_pod("huawei-cm384")
    result = next(result for result in pod.published if result.phase == "decode")
    assert result.sequences_per_rank is not None
    assert result.tpot_s is not None
    batch = result.sequences_per_rank * pods_accelerator(pod).ranks

    assert batch / result.tpot_s == pytest.approx(result.value, rel=0.001)
