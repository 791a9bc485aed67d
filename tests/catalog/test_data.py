"""The shipped facts, held against themselves and against published sums."""

import re
from collections.abc import Iterator

import msgspec
import pytest

from polypod.catalog.claims import sum_of_parts
from polypod.catalog.load import listing, load_accelerator, load_model, load_pod
from polypod.catalog.schema import Accelerator, Fact, ModelCard, Pod

ACCELERATORS = [entry.id for entry in listing() if entry.kind == "accelerator"]
PODS = [entry.id for entry in listing() if entry.kind == "pod"]
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


def everything() -> list[Accelerator | Pod | ModelCard]:
    cards = [load_model(name).card for name in MODELS]
    return [
        *(load_accelerator(name) for name in ACCELERATORS),
        *(load_pod(name) for name in PODS),
        *(card for card in cards if card),
    ]


def test_every_source_of_hardware_has_an_address_or_an_arxiv_number():
    for name in [*ACCELERATORS, *PODS]:
        entry = load_pod(name) if name in PODS else load_accelerator(name)
        for fact in facts(entry):
            for source in (fact.source, *(other.source for other in fact.conflicts)):
                assert re.search(r"https?://\S+\.\S+", source), source


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
    chip = load_accelerator(entry.accelerator)
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
    ranks_each = load_accelerator(entry.accelerator).ranks
    for result in entry.published:
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
    batch = result.sequences_per_rank * load_accelerator(pod.accelerator).ranks

    assert batch / result.tpot_s == pytest.approx(result.value, rel=0.001)
