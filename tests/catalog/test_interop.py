"""What goes together, and that unknown is not no."""

import itertools

import pytest

from polypod.catalog import interop
from polypod.catalog.load import listing, load_accelerator
from polypod.catalog.market import stack_of
from polypod.catalog.market_schema import STATES
from polypod.errors import UnknownNameError

CHIPS = [one.id for one in listing() if one.kind == "accelerator"]


@pytest.mark.parametrize(
    ("engine", "chip", "state"),
    [
        ("vLLM", "nvidia-h20", "supported"),
        ("vllm", "910C", "supported"),  # any name, any case
        ("TensorRT-LLM", "amd-mi300x", "impossible"),
        ("xLLM", "huawei-ascend-910c", "supported"),
        ("xLLM", "huawei-ascend-950pr", "unknown"),  # its table has A2 and A3
        ("vLLM", "kunlun-p800", "supported"),
        ("vLLM", "kunlun-m100", "unknown"),  # P800 only
        ("SGLang", "biren-br104", "unknown"),
        ("OpenVINO GenAI", "intel-gaudi3", "no native support"),
        ("an engine of tomorrow", "nvidia-h20", "unknown"),
        ("vLLM", "microsoft-maia200", "unknown"),  # no software of it on record
    ],
)
def test_an_engine_runs_on_a_chip_as_far_as_a_source_says(
    engine: str, chip: str, state: str
) -> None:
    assert interop.engine_on(engine, chip).state == state


def test_engines_of_a_chip_come_best_first() -> None:
    ranks = [STATES.index(one.state) for one in interop.engines_on("huawei-ascend-910c")]
    assert ranks == sorted(ranks)
    assert len(ranks) == 9


@pytest.mark.parametrize(
    ("chip", "dtype", "state"),
    [
        ("nvidia-a100-80g-sxm", "fp8", "no native support"),
        ("nvidia-h20", "fp8", "supported"),
        ("nvidia-h20", "nvfp4", "no native support"),
        ("nvidia-b300", "nvfp4", "supported"),
        ("amd-mi300x", "mxfp4", "no native support"),
        ("amd-mi355x", "mxfp4", "supported"),
        ("huawei-ascend-910c", "fp8", "no native support"),
        ("huawei-ascend-950pr", "fp8", "supported"),
        ("metax-c600", "fp8", "reported"),
        ("google-tpu-v7", "fp8", "supported"),
        ("google-tpu-v6e", "fp8", "no native support"),
        ("google-tpu-v8t", "fp8", "unknown"),
        ("cambricon-mlu590", "fp8", "unknown"),
    ],
)
def test_a_format_is_served_by_chip_and_not_only_by_stack(
    chip: str, dtype: str, state: str
) -> None:
    assert interop.dtypes_on(chip)[dtype].state == state


def test_what_is_said_of_a_whole_stack_is_not_passed_off_as_said_of_a_chip() -> None:
    assert interop.dtypes_on("hygon-z100")["bf16"].reason == "said of DTK as a whole"
    assert interop.dtypes_on("910C")["int8_w8a8"].reason.endswith("said of CANN as a whole")
    assert "as a whole" not in interop.dtypes_on("metax-c600")["fp8"].reason


def test_a_chip_of_no_stack_has_nothing_on_record() -> None:
    assert stack_of("microsoft-maia200") is None
    assert interop.dtypes_on("microsoft-maia200") == interop.abilities_of("microsoft-maia200") == {}
    assert interop.engines_on("microsoft-maia200") == []


def test_a_chip_that_there_is_not_is_an_error_and_not_unknown() -> None:
    with pytest.raises(UnknownNameError, match=r"nvidia-h20"):
        interop.engines_on("nvidia-h2o")


def test_no_chip_whose_fp8_units_outrun_its_bf16_ones_lacks_fp8() -> None:
    """Referee: the same chips' peaks, gathered apart from what engines say."""
    fast = []
    for chip in CHIPS:
        fp8, bf16 = (load_accelerator(chip).peak(dtype) for dtype in ("fp8", "bf16"))
        if fp8 is not None and bf16 is not None and fp8.value > bf16.value:
            fast.append(chip)
    answers = {chip: interop.dtypes_on(chip).get("fp8") for chip in fast}
    assert [chip for chip, it in answers.items() if it and it.state == "no native support"] == []
    assert len(fast) > 20


@pytest.mark.parametrize(
    ("a", "b", "library", "state"),
    [
        ("nvidia-h20", "nvidia-h100-sxm", "NCCL", "supported"),
        ("910C", "910B", "HCCL", "supported"),
        ("nvidia-h100-sxm", "iluvatar-bi-v150", "FlagCX", "supported"),  # shown by its authors
        ("nvidia-h20", "cambricon-mlu590", "FlagCX", "reported"),  # in its table, never shown
        ("nvidia-h20", "huawei-ascend-910c", "Gloo", "supported"),  # FlagCX has HCCL alone
        ("nvidia-h20", "biren-br104", "Gloo", "supported"),
        ("nvidia-h20", "microsoft-maia200", None, "unknown"),
    ],
)
def test_two_chips_share_the_best_library_on_record(
    a: str, b: str, library: str | None, state: str
) -> None:
    answer = interop.shared_collective(a, b)
    assert (answer.library, answer.state) == (library, state)


def test_a_library_that_refuses_is_kept_apart_from_one_that_is_silent() -> None:
    ways = {way.library: way for way in interop.shared_collectives("nvidia-h20", "910C")}
    assert ways["FlagCX"].state == "no native support"
    ways = {way.library: way for way in interop.shared_collectives("nvidia-h20", "biren-br104")}
    assert ways["FlagCX"].state == "unknown"
    assert ways["Gloo"].through_host


def test_a_library_of_both_memories_is_not_thereby_one_of_both_at_once() -> None:
    """UCX moves CUDA's memory and ROCm's; that it joins the two is said and was not seen."""
    ways = {way.library: way for way in interop.shared_collectives("nvidia-h20", "amd-mi300x")}
    assert ways["Open MPI / UCX"].state == "reported"
    assert interop.shared_collective("amd-mi300x", "nvidia-h20").state == "experimental"


def test_what_a_library_lacks_is_said() -> None:
    """Kunlun's has no gather, scatter or alltoallv, and the last is what expert parallelism needs."""
    assert interop.shared_collective("kunlun-p800", "nvidia-h20").lacks == (
        "gather",
        "scatter",
        "alltoallv",
    )
    assert "alltoallv" in interop.shared_collective("nvidia-h20", "kunlun-p800").lacks
    assert interop.shared_collective("metax-c500", "nvidia-h20").lacks == ()


def test_a_collective_does_not_depend_on_who_is_named_first() -> None:
    for a, b in itertools.combinations(CHIPS[::3], 2):
        one, other = interop.shared_collective(a, b), interop.shared_collective(b, a)
        assert (one.library, one.state) == (other.library, other.state)


@pytest.mark.parametrize(
    ("a", "b", "state"),
    [
        ("huawei-ascend-910b2", "nvidia-h20", "experimental"),
        ("nvidia-h20", "huawei-ascend-910b2", "unknown"),  # only the push from 910B exists
        ("huawei-ascend-910c", "nvidia-h20", "unknown"),  # shown of the 910B, not of this one
        ("nvidia-h100-sxm", "intel-gaudi3", "experimental"),
        ("intel-gaudi3", "nvidia-h20", "experimental"),  # the source names vendors
        ("cambricon-mlu590", "nvidia-h20", "unknown"),  # on record either way round
        ("nvidia-h20", "nvidia-h100-sxm", "supported"),
        ("cambricon-mlu590", "cambricon-mlu590", "reported"),
        ("kunlun-p800", "kunlun-p800", "unknown"),
        ("metax-c500", "metax-c550", "reported"),  # by what its stack says of itself
        ("nvidia-h20", "microsoft-maia200", "unknown"),
    ],
)
def test_a_cache_crosses_as_far_as_a_source_says(a: str, b: str, state: str) -> None:
    answer = interop.kv_handover(a, b)
    assert answer.state == state
    assert answer.reason


def test_each_library_and_each_path_is_named_once() -> None:
    libraries = [one.library for one in interop.shared_collectives("nvidia-h20", "hygon-bw1000")]
    assert libraries == ["FlagCX", "Gloo"]
    assert len(interop.kv_handovers("nvidia-h20", "nvidia-h100-sxm")) == 1


def test_crossings_are_to_other_vendors_and_say_which_way() -> None:
    found = {(one.to, one.chip) for one in interop.crossings("910B")}
    assert found == {(True, "nvidia-h20")}


def test_a_path_on_record_either_way_is_found_from_both_ends() -> None:
    for pair in (("nvidia-h20", "cambricon-mlu590"), ("cambricon-mlu590", "nvidia-h20")):
        assert interop.kv_handover(*pair).via == "Mooncake RDMA on both sides"


def test_the_conditions_of_a_path_stand_before_the_rules_of_all() -> None:
    conditions = interop.kv_handover("910B", "h20").conditions
    assert conditions[0].startswith("WRITE only")
    assert "KV cache dtype must match" in conditions
    assert conditions[-1].startswith("any with FP8 KV to any with bf16 KV")


@pytest.mark.parametrize(
    ("a", "b", "engine", "state"),
    [
        ("nvidia-h20", "nvidia-h20", "vLLM", "supported"),
        ("nvidia-h20", "nvidia-h20", "an engine of tomorrow", "unknown"),
        ("hygon-bw1000", "hygon-bw1000", "SGLang", "reported"),  # no further than the engine itself
        ("910C", "910B", "xLLM", "supported"),
        ("910C", "huawei-ascend-950pr", "xLLM", "unknown"),  # nor further than on either end
        ("huawei-ascend-950pr", "910C", "xLLM", "unknown"),
        ("nvidia-h100-sxm", "intel-gaudi3", "vLLM", "experimental"),
        ("nvidia-h100-sxm", "intel-gaudi3", "SGLang", "unknown"),
    ],
)
def test_with_an_engine_a_cache_goes_no_further_than_the_engine(
    a: str, b: str, engine: str, state: str
) -> None:
    assert interop.kv_handover(a, b, engine).state == state


def test_events_of_a_chip_end_where_they_are_told_to() -> None:
    """Referee: the H20's timeline, licence from 2025-04-09, assurance on 2025-07-14."""
    assert len(interop.events_of("nvidia-h20")) == 15
    until = interop.events_of("nvidia-h20", until="2025-07-13")
    assert until[0].date == "2025-04-09"
    assert interop.events_of("nvidia-h20", until="2025-07-14")[0].date == "2025-07-14"
    assert interop.events_of("nvidia-h20", until="2025")[0].date.startswith("2025-1")
    assert interop.events_of("nvidia-h20", until="2023") == []


def test_the_latest_rule_is_a_policy_and_no_launch() -> None:
    latest = interop.latest_rule("huawei-ascend-910c", until="2025-05-31")
    assert latest is not None
    assert (latest.kind, latest.date) == ("policy", "2025-05-13")
    assert interop.latest_rule("nvidia-h20", until="2024-06") is None


def test_a_regime_that_names_the_chip_stands_before_one_of_its_vendor() -> None:
    assert [one.id for one in interop.regimes_of("nvidia-h20")] == ["reg-h20-cn", "reg-cn-state-dc"]
    assert interop.regimes_of("cambricon-mlu590") == []


def test_a_price_not_found_is_not_a_price_not_looked_for() -> None:
    assert interop.looked_for_price("kunlun-p800")
    assert not interop.looked_for_price("microsoft-maia200")
    assert [price.id for price in interop.prices_of("nvidia-h20")] == ["buy-06", "buy-07", "hr-17"]
