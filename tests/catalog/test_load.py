from collections.abc import Callable
from pathlib import Path

import pytest

from polypod.catalog import load
from polypod.catalog.load import (
    accelerators_pod,
    known_names,
    listing,
    load_accelerator,
    load_file,
    load_link,
    load_model,
    load_pod,
)
from polypod.catalog.schema import Pod
from polypod.errors import FileError, InputError, UnknownNameError

DATA = Path(load.__file__).parent / "data"
ENTRIES = [
    path for path in sorted(DATA.glob("*/*.toml")) if path.parent.name not in {"claims", "market"}
]


@pytest.mark.parametrize("name", ["huawei-ascend-910c", "910C", "ASCEND-910c", "昇腾910C"])
def test_a_chip_answers_to_its_id_and_its_names_in_any_case(name: str):
    assert load_accelerator(name).id == "huawei-ascend-910c"


@pytest.mark.parametrize(
    ("name", "pod"),
    [
        ("CloudMatrix384", "huawei-cm384"),
        ("华为昇腾384超节点", "huawei-cm384"),
        ("曙光scaleX640", "sugon-scalex640"),
        ("英伟达 HGX H200", "nvidia-hgx-h200"),
    ],
)
def test_a_pod_answers_in_english_and_chinese(name: str, pod: str):
    assert load_pod(name).id == pod


@pytest.mark.parametrize(
    ("name", "chip"),
    [
        ("寒武纪思元590", "cambricon-mlu590"),
        ("昆仑芯P800", "kunlun-p800"),
        ("沐曦C500", "metax-c500"),
        ("摩尔线程S5000", "mthreads-s5000"),
        ("壁仞BR100", "biren-br100"),
        ("天数智芯天垓100", "iluvatar-bi-v100"),
        ("燧原S60", "enflame-s60"),
        ("平头哥真武810E", "thead-zhenwu-810e"),
        ("英伟达 H20", "nvidia-h20"),
        ("PPU", "thead-zhenwu-810e"),
    ],
)
def test_chips_answer_to_their_chinese_names(name: str, chip: str):
    assert load_accelerator(name).id == chip


def test_links_answer_in_english_and_chinese():
    assert load_link("灵衢2.0") == load_link("UB2") == load_link("UnifiedBus 2.0")


def test_the_listing_reads_heads_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(load, "read_entry")
    load._index_with.cache_clear()

    kinds = {entry.kind for entry in listing()}

    assert kinds == set(load.KINDS)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("SmolLM2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("deepseek-v3", "deepseek-ai/DeepSeek-V3"),
    ],
)
def test_a_model_answers_to_its_aliases(name: str, model: str):
    entry = load_model(name)

    assert entry.name == model
    assert entry.card is not None
    assert entry.config["hidden_size"] > 0


TYPED = {
    "deepseek-r1": "deepseek-ai/DeepSeek-R1", "DeepSeek-V3": "deepseek-ai/DeepSeek-V3", "deepseek-v3.2": "deepseek-ai/DeepSeek-V3.2",
    "qwen3-235b": "Qwen/Qwen3-235B-A22B", "Qwen3-30B-A3B": "Qwen/Qwen3-30B-A3B", "qwen2.5-72b-instruct": "Qwen/Qwen2.5-72B",
    "qwen3-coder": "Qwen/Qwen3-Coder-480B-A35B-Instruct", "qwen3-next": "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "llama-3.1-70b": "meta-llama/Meta-Llama-3.1-70B", "llama3-70b": "meta-llama/Meta-Llama-3.1-70B",
    "Llama-3.1-405B": "meta-llama/Meta-Llama-3.1-405B", "llama-4-scout": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "kimi-k2": "moonshotai/Kimi-K2-Instruct", "glm-4.5": "zai-org/GLM-4.5", "GLM-5": "zai-org/GLM-5",
    "gpt-oss-120b": "openai/gpt-oss-120b", "GPT-OSS-20B": "openai/gpt-oss-20b", "minimax-m2": "MiniMaxAI/MiniMax-M2",
    "gemma-3-27b": "google/gemma-3-27b-it", "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1", "phi-4": "microsoft/phi-4",
    "nemotron-h-56b": "nvidia/Nemotron-H-56B-Base-8K", "nemotron-3-nano": "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
    "command-r": "CohereLabs/c4ai-command-r-v01", "ernie-4.5-300b": "baidu/ERNIE-4.5-300B-A47B-PT", "yi-34b": "01-ai/Yi-34B",
    "exaone-4-32b": "LGAI-EXAONE/EXAONE-4.0-32B", "olmo-3-32b": "allenai/Olmo-3.1-32B-Instruct", "dots1": "rednote-hilab/dots.llm1.inst",
    "mimo-v2-flash": "XiaomiMiMo/MiMo-V2-Flash", "internlm3-8b": "internlm/internlm3-8b-instruct", "ling-1t": "inclusionAI/Ling-1T",
    "codellama-34b": "codellama/CodeLlama-34b-Instruct-hf", "phi-3.5-moe": "microsoft/Phi-3.5-MoE-instruct",
}  # fmt: skip


@pytest.mark.parametrize("spelt", [str.lower, str.upper, str])
def test_the_short_names_that_people_type_are_known_in_any_case(spelt: Callable[[str], str]):
    assert {name: load.entry_id(spelt(name)) for name in TYPED} == TYPED


def test_a_model_answers_to_its_id_without_the_maker():
    lacking = [
        listed.id
        for listed in listing()
        if listed.kind == "model" and load.entry_id(listed.id.split("/")[-1]) != listed.id
    ]

    assert lacking == []


def test_an_id_opens_its_own_file_and_no_other(monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **how: opened.append(self.name) or read_text(self, **how)
    )

    load_pod("huawei-cm384")

    assert opened == ["huawei-cm384.toml"]


def test_every_entry_is_named_after_its_file():
    files = {path.stem.replace("--", "/") for path in ENTRIES}

    assert {entry.id for entry in listing()} == files


def test_no_name_belongs_to_two_entries():
    claimed: dict[str, str] = {}
    for path in ENTRIES:
        head = load.read_head(path)
        for name in {
            n.casefold() for n in (head["id"], *head.get("names", ()), *head.get("aliases", ()))
        }:
            assert claimed.setdefault(name, head["id"]) == head["id"]


def test_an_unknown_name_gets_the_nearest_of_its_kind():
    with pytest.raises(
        UnknownNameError, match="no pod is called 'huawei-cm385'; nearest: huawei-cm384"
    ):
        load_pod("huawei-cm385")


def test_a_pod_where_a_chip_is_asked_for_is_said_to_be_one():
    with pytest.raises(InputError, match="'CM384' is the pod huawei-cm384, not an accelerator"):
        load_accelerator("CM384")


@pytest.mark.parametrize("name", ["../pods/huawei-cm384", "", "/etc/passwd", "x" * 5000, "a\0b"])
def test_no_name_reaches_outside_its_folder(name: str):
    with pytest.raises(UnknownNameError):
        load_accelerator(name)


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\0b", "nobody/nothing"])
def test_what_is_no_model_and_no_path_is_an_unknown_name(name: str):
    with pytest.raises(UnknownNameError, match="no model is called"):
        load_model(name)


def test_loose_chips_come_in_the_smallest_pod_there_is_of_them():
    home = accelerators_pod("bw1000")

    assert home is not None
    assert home.id == "sugon-scalex640"  # not the cluster of 16 of them


def test_known_names_say_what_they_name():
    names = known_names()

    assert names["910c"] == "accelerator"
    assert names["cm384"] == "pod"
    assert names["smollm2"] == "model"


def test_a_persons_own_pod_is_read_by_its_path(tmp_path: Path):
    own = tmp_path / "mine.toml"
    own.write_text((DATA / "pods/huawei-cm384.toml").read_text().replace("huawei-cm384", "mine"))

    found = load_file(own)

    assert isinstance(found, Pod)
    assert found == load_pod(str(own))
    assert found.id == "mine"


def test_a_persons_own_chip_is_read_by_its_path():
    path = DATA / "accelerators/hygon-bw1000.toml"

    assert load_file(path) == load_accelerator(str(path)) == load_accelerator("hygon-bw1000")


def test_a_persons_own_link_is_read_by_its_path():
    path = DATA / "links/ub2.toml"

    assert load_file(path) == load_link(str(path)) == load_link("ub2")


def test_a_model_is_read_from_a_config_or_the_folder_that_holds_it(tmp_path: Path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')

    entry = load_model(str(folder))

    assert (entry.name, entry.card) == ("my-model", None)
    assert load_model(str(folder / "config.json")) == entry == load_file(folder)


def test_a_folder_without_a_config_is_said_to_have_none(tmp_path: Path):
    with pytest.raises(FileError, match=r"config\.json: does not exist"):
        load_model(str(tmp_path))
