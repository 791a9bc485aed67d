"""Which pools a person can launch today, by what sources say of engines on chips."""

import pytest

from polypod.cli.asking import model_of
from polypod.plan.compose import plan_model
from polypod.plan.launchable import state_of
from polypod.plan.place import parse_fleet
from polypod.plan.search import Question


@pytest.mark.parametrize(
    ("chip", "model", "engine", "state", "says"),
    [
        ("nvidia-h200-sxm", "llama-3.1-8b", "vllm", "launchable", "vLLM 0.28.x on nvidia-h200-sxm: supported"),
        ("nvidia-h200-sxm", "llama-3.1-8b", "mindie", "modelled", "no source on record says whether MindIE runs on nvidia-h200-sxm; vLLM 0.28.x does"),
        ("amd-mi300x", "llama-3.1-8b", "trtllm", "modelled", "TensorRT-LLM on amd-mi300x: impossible"),
        ("huawei-ascend-910c", "deepseek-v3", "mindie", "launchable", "MindIE on huawei-ascend-910c: supported"),
        ("huawei-ascend-910c", "gpt-oss-120b", "mindie", "modelled", "lists no gpt_oss (MindIE-LLM, examples"),
        ("hygon-bw1000", "qwen3-32b", "sglang", "modelled", "SGLang on hygon-bw1000: reported"),
        ("hygon-bw1000", "deepseek-v3", "mindie", "modelled", "runs on hygon-bw1000; "),
        ("meta-mtia-v2", "qwen3-32b", "vllm", "modelled", "whether vLLM runs on meta-mtia-v2; no other does"),
        ("thead-zhenwu-810e", "qwen3-32b", None, "modelled", "vLLM on thead-zhenwu-810e: reported"),
        ("iluvatar-bi-v150", "qwen3-32b", None, "launchable", "xLLM on iluvatar-bi-v150: supported"),
        ("iluvatar-bi-v150", "deepseek-v3", None, "modelled", "xLLM on iluvatar-bi-v150 lists no deepseek_v3"),
        ("enflame-s60", "qwen3-32b", None, "launchable", "vLLM on enflame-s60: supported"),
        ("enflame-s60", "deepseek-v3", None, "modelled", "latent attention on enflame-s60: unknown"),
        ("enflame-l600", "qwen3-32b", None, "modelled", "enflame-l600"),
        ("meta-mtia-v2", "qwen3-32b", None, "modelled", "no engine on meta-mtia-v2 is on record, nor on any chip of Meta"),
        ("acme-x1", "qwen3-32b", None, "modelled", "no software of acme-x1 is on record"),
    ],
)  # fmt: skip
def test_a_pool_is_launchable_where_an_engine_on_record_runs_the_family(
    chip: str, model: str, engine: str | None, state: str, says: str
) -> None:
    found, reason = state_of(chip, model_of(model), engine)
    assert found == state
    assert says in reason


@pytest.mark.parametrize(
    ("fleet", "state"), [("nvidia-h200-sxm:8", "launchable"), ("thead-zhenwu-810e:8", "modelled")]
)
def test_a_plan_marks_its_pools(fleet: str, state: str) -> None:
    question = Question(model=model_of("llama-3.1-8b"), input_tokens=1024, output_tokens=256)
    answer = plan_model(question, parse_fleet(fleet))
    assert [pool.state for pool in answer.plan.services[0].pools] == [state]
