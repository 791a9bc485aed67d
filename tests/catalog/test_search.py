"""Search by words in two languages, and by figures."""

import pytest

from polypod.catalog.load import listing, load_accelerator
from polypod.catalog.search import search
from polypod.errors import InputError


def ids(query: str) -> list[str]:
    return [hit.id for hit in search(query)]


@pytest.mark.parametrize(
    ("query", "among"),
    [
        ("昇腾", {"huawei-ascend-910c", "huawei-cm384"}),
        ("寒武纪", {"cambricon-mlu590"}),
        ("曙光", {"sugon-scalex640"}),
        ("h200", {"nvidia-h200-sxm", "nvidia-hgx-h200"}),
        ("2025 H20", {"h20-timeline"}),
        ("deepseek", {"deepseek-ai/DeepSeek-V3"}),
        ("unifiedbus", {"ub1", "atlas950"}),
    ],
)
def test_words_find_entries_and_claims_by_any_of_their_names(query: str, among: set[str]) -> None:
    assert among <= set(ids(query))


def test_a_name_counts_for_more_than_a_mention() -> None:
    assert ids("910c")[0] == "huawei-ascend-910c"


def test_every_word_must_be_there() -> None:
    assert set(ids("huawei 910c")) < set(ids("huawei"))
    assert ids("huawei zzz") == []


def test_figures_are_compared_in_si_and_unknown_ones_fit_nothing() -> None:
    """Referee: the same comparison over all entries, one by one."""
    found = set(ids("hbm > 100 GB and vendor != NVIDIA"))
    chips = [load_accelerator(one.id) for one in listing() if one.kind == "accelerator"]
    expected = {
        chip.id
        for chip in chips
        if chip.memory_bytes is not None
        and chip.memory_bytes.value > 100e9
        and chip.vendor != "NVIDIA"
    }
    assert found == expected
    below = set(ids("hbm <= 100 GB")) | set(ids("hbm > 100 GB"))
    assert {chip.id for chip in chips if chip.memory_bytes is None}.isdisjoint(below)


def test_and_binds_tighter_than_or() -> None:
    either = set(ids("vendor = Sugon and kind = pod or vendor = Inspur"))
    assert either == set(ids("vendor = Sugon and kind = pod")) | set(ids("vendor = Inspur"))


def test_a_hit_shows_the_figures_it_was_found_by() -> None:
    (hit,) = [
        one for one in search("bf16 >= 900 TFLOPS and hbm = 141 GB") if one.id == "nvidia-h200-sxm"
    ]
    assert hit.shown == {"bf16": 989.4e12, "hbm": 141e9}


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("  ", "an empty search"),
        ('""', "has no word"),
        ("colour = red", "'colour' is no field; there are hbm"),
        ("hbm > 100", "'100' has no unit"),
        ("hbm > many GB", "is not a quantity"),
        ("hbm >", "is no comparison"),
        ("hbm > 1 GB and", "is no comparison|not a quantity|unknown unit"),
    ],
)
def test_a_query_that_is_none_is_explained(query: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        search(query)


def test_a_query_is_data_and_never_sql() -> None:
    assert ids("vendor = x'; drop table entry; --") == []
    assert ids('"; drop table entry; --') == []
    assert ids("NEAR(910c OR") == []
