"""Claims of the field's systems and what is said of them."""

import pytest

from polypod.catalog.load import load_pod
from polypod.catalog.verdicts import Verdict, all_verdicts, digests, headlines, judged

VERDICTS = {one.id: one for one in all_verdicts()}


def test_every_claim_has_one_verdict_with_a_reason() -> None:
    assert len(VERDICTS) == len(all_verdicts()) > 80
    assert all(one.reason for one in VERDICTS.values())
    assert {one.ruling for one in VERDICTS.values()} == {"reproduced", "contradicted", "untestable"}


def test_a_verdict_has_our_figure_exactly_where_it_rules_on_one() -> None:
    for one in VERDICTS.values():
        if one.ruling != "untestable":
            assert one.ours is not None
            assert one.claimed is not None


@pytest.mark.parametrize(
    ("claim", "ruling", "says"),
    [
        # 384 x 752 TFLOPS = 288.8 PFLOPS, 3.7 % below the headline
        ("cm384-flops", "reproduced", "ours is 3.7 % less"),
        # 10,240 x 480 TFLOPS = 4.915 EFLOPS
        ("scalex-flops", "reproduced", "ours is 1.7 % less"),
        ("scalex-size", "reproduced", "the same"),
        # agreement with another claim reproduces nothing
        ("scalex-pue", "untestable", "itself claimed"),
        ("cm384-latency", "untestable", "itself estimated"),
        ("sd200-tpot", "untestable", "not disclosed"),
        ("asic-share", "untestable", "a market estimate"),
    ],
)
def test_a_digests_figure_is_ruled_by_what_is_on_record(claim: str, ruling: str, says: str) -> None:
    assert VERDICTS[claim].ruling == ruling
    assert says in VERDICTS[claim].reason


def test_the_sparse_headline_of_nvl72_is_contradicted_by_half() -> None:
    claims = headlines(load_pod("nvidia-gb200-nvl72"))
    fp4 = next(one for one in claims if "1.44 EFLOPS" in one.says)
    assert fp4.ruling == "contradicted"
    assert fp4.claimed is not None
    assert fp4.ours == pytest.approx(fp4.claimed / 2)


def test_a_pod_of_an_undisclosed_make_has_no_parts_to_add_up() -> None:
    assert {one.ruling for one in headlines(load_pod("inspur-sd200"))} == {"untestable"}


@pytest.mark.parametrize(
    ("claimed", "ours", "ruling"),
    [(100.0, 110.0, "reproduced"), (100.0, 110.1, "contradicted"), (100.0, 90.0, "reproduced"), (100.0, 89.9, "contradicted")],
)  # fmt: skip
def test_a_tenth_is_rounding_and_more_is_not(claimed: float, ours: float, ruling: str) -> None:
    assert judged(claimed, ours)[0] == ruling


def test_the_digests_are_all_there() -> None:
    read: list[Verdict] = digests()
    assert len(read) == 46
    assert {one.source for one in read} == {f"news digest {letter}" for letter in "ABCDE"}
