"""What dumps call things is found in the catalog, and what is no such thing is said."""

import pytest

from polypod.catalog.load import known_names
from polypod.errors import InputError
from polypod.validate.names import SYSTEMS, model_name, system_name


def test_every_system_is_an_accelerator_of_the_catalog() -> None:
    known = known_names()
    assert {known.get(chip) for chip in SYSTEMS.values()} == {"accelerator"}


@pytest.mark.parametrize(
    ("said", "chip"),
    [
        ("h200_sxm", "nvidia-h200-sxm"),
        ("B200-SXM", "nvidia-b200-hgx"),
        ("gb200_nvl72", "nvidia-gb200"),
        ("nvidia_h20_141gb", "nvidia-h20"),
        ("l40s", "l40s"),
        ("huawei-ascend-910c", "huawei-ascend-910c"),
        ("h100_pcie", "h100_pcie"),  # another chip, which nothing stands for
    ],
)
def test_systems_are_told_by_their_first_word_and_boards_left_out(said: str, chip: str) -> None:
    assert system_name(said) == chip


@pytest.mark.parametrize(
    ("said", "model"),
    [
        ("nvidia/DeepSeek-R1-0528-FP4-v2", "DeepSeek-R1-0528"),
        ("RedHatAI/Qwen3-32B-NVFP4", "Qwen3-32B"),
        ("Qwen/Qwen2.5-32B-Instruct-AWQ", "Qwen/Qwen2.5-32B-Instruct"),
        ("amd/Llama-3.3-70B-Instruct-FP8-KV", "Llama-3.3-70B-Instruct"),
        ("deepseek-ai/DeepSeek-V3.2-Exp", "deepseek-ai/DeepSeek-V3.2"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "Qwen2.5-32B-Instruct"),
        ("moonshotai/Kimi-K2.5", "Kimi-K2-Instruct"),
        ("QWEN3_32B", "qwen3-32b"),
        ("DEEPSEEK_V3", "deepseek-v3"),
    ],
)
def test_copies_take_the_shape_of_what_they_were_made_from(said: str, model: str) -> None:
    found = model_name(said)
    assert found.casefold() == model.casefold()
    assert known_names()[found.casefold()] == "model"


@pytest.mark.parametrize("said", ["nobody/None-7B", "FP8", "", "-Instruct"])
def test_a_model_that_nothing_is_like_is_an_error(said: str) -> None:
    with pytest.raises(InputError, match=r"is not in the catalog; add its config\.json"):
        model_name(said)
