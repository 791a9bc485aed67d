"""What benchmark dumps call systems and models, and what the catalog calls them."""

import re
from functools import cache
from typing import Final

from polypod.catalog.load import known_names
from polypod.errors import InputError

SYSTEMS: Final = {
    "h100": "nvidia-h100-sxm",
    "h200": "nvidia-h200-sxm",
    "h800": "nvidia-h800-sxm",
    "h20": "nvidia-h20",
    "a100": "nvidia-a100-80g-sxm",
    "a800": "nvidia-a800-80g-sxm",
    "b200": "nvidia-b200-hgx",
    "b300": "nvidia-b300",
    "gb200": "nvidia-gb200",
    "gb300": "nvidia-b300",
    "mi300x": "amd-mi300x",
    "mi325x": "amd-mi325x",
    "mi355x": "amd-mi355x",
    "l20": "nvidia-l20",
    "l40s": "nvidia-l40s",
    "gaudi3": "intel-gaudi3",
    "910b": "huawei-ascend-910b2",
    "910c": "huawei-ascend-910c",
}
"""Accelerators by the names of dumps, boards left out: h100_sxm, b200-nvl and gb200_nvl72 are the first word's."""


def system_name(name: str) -> str:
    """The catalog's accelerator of a dump's system; a name that no dump uses is the catalog's own.

    >>> system_name("h200_sxm"), system_name("GB200-NVL72"), system_name("kunlun-p800")
    ('nvidia-h200-sxm', 'nvidia-gb200', 'kunlun-p800')
    """
    if known_names().get(name.casefold()) == "accelerator":
        return name
    words = re.split(r"[_\-\s]", name.casefold())
    if words[0] in {"nvidia", "amd", "intel"} and len(words) > 1:
        words = words[1:]
    is_board = all(re.fullmatch(r"sxm\d?|nvl\d*|hgx|80gb?|141gb?|96gb?|192gb?|oam", word) for word in words[1:])  # fmt: skip
    return SYSTEMS.get(words[0], name) if is_board else name


_SUFFIXES: Final = (
    "-NVFP4", "-FP8", "-FP4", "-BF16", "-MXFP4", "-MXFP8", "-INT8", "-INT4", "-AWQ", "-GPTQ-Int4", "-GPTQ-Int8", "-GPTQ", "-W8A8", "-W4A16", "-W4A8",
    "-FP8-dynamic", "-FP8-KV", "-KV", "-Preview", "-Instruct", "-Chat", "-Base", "-Thinking", "-hf", "-0528", "-v2", "-Exp",
)  # fmt: skip
"""Copies that have the shape of what they were made from: quantised, tuned, of another date."""

_SHAPES: Final = {
    "Kimi-K2-Thinking": "Kimi-K2-Instruct",
    "Kimi-K2.5": "Kimi-K2-Instruct",
    "Kimi-K2.6": "Kimi-K2-Instruct",
    "DeepSeek-R1-Distill-Llama-8B": "Llama-3.1-8B",
    "DeepSeek-R1-Distill-Llama-70B": "Llama-3.1-70B",
    "DeepSeek-R1-Distill-Qwen-7B": "Qwen2.5-7B-Instruct",
    "DeepSeek-R1-Distill-Qwen-14B": "Qwen2.5-14B-Instruct",
    "DeepSeek-R1-Distill-Qwen-32B": "Qwen2.5-32B-Instruct",
}
"""Models of another's shape, as their makers say: distilled into it, or trained on from it."""


def model_name(path: str) -> str:
    """The catalog's model of the same shape: quantised and instruction-tuned copies have the shape of what they were made from.

    >>> model_name("nvidia/Qwen3-30B-A3B-FP4"), model_name("LLAMA3.1_70B"), model_name("moonshotai/Kimi-K2-Thinking")
    ('Qwen3-30B-A3B', 'llama-3.1-70b', 'Kimi-K2-Instruct')

    Raises `InputError` where there is none.
    """
    known = known_names()
    tried = path
    while True:
        base = tried.rpartition("/")[2]
        for candidate in (tried, base, _SHAPES.get(base, base)):
            if known.get(candidate.casefold()) == "model":
                return candidate
        folded = tried.casefold()
        ending = next((end for end in _SUFFIXES if folded.endswith(end.casefold())), None)
        if ending is None:
            break
        tried = tried[: -len(ending)]
    alike = _by_letters().get(_letters(base))
    if alike is None:
        msg = f"model {path!r} is not in the catalog; add its config.json with polypod catalog add"
        raise InputError(msg)
    return alike


def _letters(name: str) -> str:
    """A name without what spellings differ in: LLAMA3.1_70B and Meta-Llama-3.1-70B are one."""
    return re.sub(r"[^a-z0-9]", "", name.casefold()).removeprefix("meta")


@cache
def _by_letters() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, kind in sorted(known_names().items()):
        if kind == "model":
            base = re.sub(r"-(instruct|chat|it|hf)\Z", "", name.rpartition("/")[2])
            for spelled in (name.rpartition("/")[2], base):
                found.setdefault(_letters(spelled), name.rpartition("/")[2])
    return found
