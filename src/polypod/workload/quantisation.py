"""What a checkpoint stores its matrices in, from `quantization_config`, and which of them.

    fp8 (block or static), fbgemm_fp8      fp8
    gptq, awq                              int4, or int8 where `bits` is 8
    mxfp4                                  mxfp4
    modelopt, compressed-tensors           by the bits and kind of the weights of its groups, else by `quant_algo`

Which: the lists of modules left alone are read for two things only, attention and shared experts. A list that names attention
of half the layers or more counts as naming all. What is finer than that, such as a first layer kept in bf16, is left out.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from polypod.workload.keys import Keys

Quantised = Literal["matrices", "feed-forward", "experts"]

_METHODS: Final = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "awq": "int4",
    "gptq": "int4",
    "modelopt": None,
    "modelopt_fp4": None,
    "compressed-tensors": None,
}
_ALGORITHMS: Final = {"FP8": "fp8", "NVFP4": "nvfp4", "W4A16_AWQ": "int4", "MXFP4": "mxfp4"}
_GROUPS: Final = {
    ("int", 4, None): "int4",
    ("int", 8, None): "int8",
    ("float", 8, None): "fp8",
    ("float", 4, 16): "nvfp4",
    ("float", 4, 32): "mxfp4",
}
_STORED: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def weight_dtype(keys: Keys) -> str:
    """The quantisation's type, else torch_dtype, else bf16."""
    quantisation = keys.config.get("quantization_config")
    if isinstance(quantisation, Mapping):
        return _quantised_dtype(keys, quantisation)
    stored = keys.config.get("torch_dtype") or keys.config.get("dtype") or "bfloat16"
    known = _STORED.get(str(stored))
    if known is None:
        key = "torch_dtype" if "torch_dtype" in keys.config else "dtype"
        raise keys.wrong(key=key, accepted="bfloat16, float16 or float32")
    return known


def quantised(keys: Keys, num_layers: int) -> Quantised:
    """Which matrices are stored in that type; the others stay in bf16."""
    quantisation = keys.config.get("quantization_config")
    if not isinstance(quantisation, Mapping):
        return "matrices"
    kept = list(_kept(quantisation))
    if not _names(kept, "attn", num_layers):
        return "matrices"
    return "experts" if _names(kept, "shared_expert", num_layers) else "feed-forward"


def _quantised_dtype(keys: Keys, quantisation: Mapping[str, Any]) -> str:
    method = str(quantisation.get("quant_method"))
    if method not in _METHODS:
        taken = ", ".join(_METHODS)
        raise keys.wrong(key="quantization_config", accepted=f"a quant_method out of {taken}")
    if method in {"awq", "gptq"}:
        return "int8" if quantisation.get("bits") == 8 else "int4"
    dtype = _METHODS[method] or _dtype_of_groups(quantisation)
    if dtype is None:
        raise keys.wrong(
            key="quantization_config",
            accepted="one group of weights of 4 or 8 bits, or a quant_algo out of "
            + ", ".join(_ALGORITHMS),
        )
    return dtype


def _dtype_of_groups(quantisation: Mapping[str, Any]) -> str | None:
    groups = quantisation.get("config_groups")
    if not isinstance(groups, Mapping):
        return _ALGORITHMS.get(str(quantisation.get("quant_algo")))
    found = {_dtype_of_group(group) for group in groups.values()}
    return found.pop() if len(found) == 1 else None


def _dtype_of_group(group: object) -> str | None:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    kind, bits = str(weights.get("type")), weights.get("num_bits")
    size = weights.get("group_size") if (kind, bits) == ("float", 4) else None
    return _GROUPS.get((kind, bits, size))  # type: ignore[arg-type]


def _kept(quantisation: Mapping[str, Any]) -> Iterator[str]:
    for key in ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers"):
        listed = quantisation.get(key)
        if isinstance(listed, list):
            yield from map(str, listed)


def _names(kept: list[str], part: str, num_layers: int) -> bool:
    """Whether the list names this part of every layer: by a pattern, or of half of them or more by number."""
    named = [module for module in kept if part in module]
    numbers = {found[1] for module in named if (found := re.search(r"layers\.(\d+)\.", module))}
    patterns = [module for module in named if not re.search(r"layers\.\d+\.", module)]
    return bool(patterns) or 2 * len(numbers) >= num_layers > 0
