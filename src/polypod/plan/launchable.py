"""Whether a pool can be launched today, by what is on record of engines on chips.

Launchable: a source says that an engine is supported on the chip, and nothing on record takes the model's family out. Everything else is
modelled, with the reason: no engine on record, an engine that one side reports or that is an open pull request, an engine whose table
of models lacks the family, latent attention that no source says runs there.
"""

from dataclasses import dataclass
from typing import Final, Literal

from polypod.catalog.interop import EngineAnswer, abilities_of, engines_on
from polypod.catalog.load import known_names, listing, load_accelerator
from polypod.catalog.market import stack_of
from polypod.workload.model import Mla, Model

LaunchState = Literal["launchable", "modelled"]

ENGINE_NAMES: Final = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "lmdeploy": "LMDeploy",
    "mindie": "MindIE",
    "trtllm": "TensorRT-LLM",
    "llama.cpp": "llama.cpp",
}
"""What the catalog calls an engine that plans call otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Families:
    """The model types in an engine's own table, and where the table is."""

    types: tuple[str, ...]
    source: str


_MINDIE: Final = _Families(
    types=(
        "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2",
        "glm4_moe", "ernie_moe", "internlm3", "phi3", "hunyuan",
    ),
    source="MindIE-LLM, examples/atb_models/atb_llm/models and docs/zh/user_guide/models",
)  # fmt: skip

_XLLM_TABLE: Final = "xLLM, docs/en/supported_models.md"
_LMDEPLOY_TABLE: Final = "LMDeploy, docs/en/supported_models/supported_models.md"

_TABLES: Final = {
    ("MindIE", "cann"): _MINDIE,
    ("xLLM", "corex"): _Families(types=("llama", "qwen2", "qwen3", "qwen3_moe"), source=_XLLM_TABLE),
    ("xLLM", "dtk"): _Families(types=("qwen2", "qwen3"), source=_XLLM_TABLE),
    ("xLLM", "neuware"): _Families(
        types=("qwen2", "qwen3", "deepseek_v3", "deepseek_v32", "deepseek_v4"), source=_XLLM_TABLE
    ),
    ("LMDeploy", "neuware"): _Families(types=("llama", "internlm3", "qwen2", "qwen3"), source=_LMDEPLOY_TABLE),
}  # fmt: skip
"""Engines on a stack whose table of models is short, as the notes of the catalog's stacks say it."""


def state_of(chip: str, model: Model, engine: str | None = None) -> tuple[LaunchState, str]:
    """Launchable or modelled, and why; of one engine, or of the best on record.

    >>> from polypod.catalog.load import load_model
    >>> from polypod.workload.config import read_model
    >>> entry = load_model("deepseek-v3")
    >>> model = read_model(entry.config, name=entry.name, path=entry.path)
    >>> state_of("huawei-ascend-910c", model)[0], state_of("thead-zhenwu-810e", model)[0]
    ('launchable', 'modelled')

    A chip that the catalog does not have, or no stack of, is modelled. Where one engine is asked for that cannot be launched, the reason names one that can.
    """
    if chip.casefold() not in known_names():
        return "modelled", f"no software of {chip} is on record"
    if engine is not None:
        return _of_engine(chip, model, ENGINE_NAMES.get(engine, engine))
    answers = engines_on(chip)
    if not answers:
        return "modelled", f"no engine on {chip} is on record{_nearest(chip)}"
    missing = [_missing(answer, chip, model) for answer in answers]
    for answer, reason in zip(answers, missing, strict=True):
        if reason is None:
            return "launchable", f"{_named(answer)} on {chip}: {answer.state}, {answer.reason}"
    return "modelled", str(missing[0])


def _of_engine(chip: str, model: Model, name: str) -> tuple[LaunchState, str]:
    """Of one engine; where it cannot be launched, another that can."""
    answer = next((one for one in engines_on(chip) if one.engine.casefold() == name.casefold()), None)  # fmt: skip
    reason = f"no source on record says whether {name} runs on {chip}" if answer is None else _missing(answer, chip, model)  # fmt: skip
    if answer is not None and reason is None:
        return "launchable", f"{_named(answer)} on {chip}: {answer.state}, {answer.reason}"
    other = next((one for one in engines_on(chip) if _missing(one, chip, model) is None), None)
    return "modelled", f"{reason}; {'no other does' if other is None else f'{_named(other)} does'}"


def _nearest(chip: str) -> str:
    """The best engine on record for the chip of the same vendor that is nearest in years."""
    own = load_accelerator(chip)
    others = [load_accelerator(one.id) for one in listing() if one.kind == "accelerator"]
    kin = [one for one in others if one.vendor == own.vendor and engines_on(one.id)]
    if not kin:
        return f", nor on any chip of {own.vendor}"
    one = min(kin, key=lambda other: (abs((other.year or 0) - (own.year or 0)), other.id))
    best = engines_on(one.id)[0]
    return f"; nearest is {_named(best)} on {one.id}: {best.state}, {best.reason}"


def _missing(answer: EngineAnswer, chip: str, model: Model) -> str | None:
    """Why this engine does not launch the model there; None where nothing on record says that it does not."""
    if answer.state != "supported":
        return f"{answer.engine} on {chip}: {answer.state}, {answer.reason}"
    stack = stack_of(chip)
    table = _TABLES.get((answer.engine, stack.id if stack else ""))
    if table is not None and model.model_type not in table.types:
        return f"{answer.engine} on {chip} lists no {model.model_type} ({table.source})"
    if table is None and _is_latent(model):
        return _latent_missing(chip)
    return None


def _latent_missing(chip: str) -> str | None:
    """Whether the stack's kernels have latent attention is one fact for all its engines."""
    answer = abilities_of(chip).get("mla")
    if answer is None:
        return f"no source on record says whether latent attention runs on {chip}"
    if answer.state in ("supported", "reported"):
        return None
    return f"latent attention on {chip}: {answer.state}, {answer.reason}"


def _is_latent(model: Model) -> bool:
    return any(isinstance(group.attention, Mla) for group in model.layers)


def _named(answer: EngineAnswer) -> str:
    return f"{answer.engine} {answer.version}" if answer.version else answer.engine
