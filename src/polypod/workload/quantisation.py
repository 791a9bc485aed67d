"""What a checkpoint stores its matrices in, from `quantization_config`, and which of them.

    fp8 (block or static), fbgemm_fp8      fp8
    gptq, awq, auto-round                  int4 or int8, by `bits`
    bitsandbytes                           int4 or int8, by `load_in_4bit` and `load_in_8bit`
    mxfp4                                  mxfp4
    modelopt, compressed-tensors           by the bits and kind of the weights of its groups, else by `quant_algo`
    quark                                  by the weights of its `global_quant_config`
    fp8 with `expert_dtype` fp4            mxfp4 for routed experts (scales are ue8m0), fp8 for the other matrices

Which: the lists of modules left alone are read for two things only, attention and shared experts. A list that names attention
of half the layers or more counts as naming all. What is finer than that, such as a first layer kept in bf16, is left out, and
so is what is named of an encoder of pictures or sound.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal

from polypod.workload.keys import Keys
from polypod.workload.precision import KEPT

Quantised = Literal["matrices", "feed-forward", "experts"]

_METHODS: Final = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "mxfp4": "mxfp4",
    "awq": None,
    "gptq": None,
    "auto-round": None,
    "bitsandbytes": None,
    "quark": None,
    "modelopt": None,
    "modelopt_fp4": None,
    "compressed-tensors": None,
}
_ALGORITHMS: Final = {
    "FP8": "fp8",
    "FP8_PB_WO": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "INT8_SQ": "int8",
    "W8A8_SQ_PER_CHANNEL": "int8",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16_AWQ": "int4",
    "W4A8_AWQ": "int4",
    "MXFP4": "mxfp4",
}
_BITS: Final = {4: "int4", 8: "int8"}
_QUARK: Final = {
    "fp8_e4m3": "fp8",
    "int8": "int8",
    "uint8": "int8",
    "int4": "int4",
    "uint4": "int4",
    "fp4": "mxfp4",
    "mx": "mxfp4",
}
_ENCODERS: Final = ("visual", "vision", "audio", "mm_projector", "multi_modal_projector")
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
    if keys.has("expert_dtype"):
        return "experts"
    kept = list(_kept(quantisation))
    if not _names(kept, "attn", num_layers):
        return "matrices"
    return "experts" if _names(kept, "shared_expert", num_layers) else "feed-forward"


def rest_dtype(keys: Keys) -> str:
    """What matrices are stored in that are not among the quantised ones: fp8 beside 4-bit experts, else bf16."""
    if not isinstance(keys.get("quantization_config"), Mapping) or not keys.has("expert_dtype"):
        return KEPT
    _experts_dtype(keys)
    return "fp8"


def _experts_dtype(keys: Keys) -> str:
    """Experts in 4 bits beside other matrices in fp8, as DeepSeek V4 has them."""
    if keys.text("expert_dtype") != "fp4":
        raise keys.wrong(key="expert_dtype", accepted="fp4, or none")
    return "mxfp4"


def _quantised_dtype(keys: Keys, quantisation: Mapping[str, Any]) -> str:
    method = str(quantisation.get("quant_method"))
    if method not in _METHODS:
        taken = ", ".join(_METHODS)
        raise keys.wrong(key="quantization_config", accepted=f"a quant_method out of {taken}")
    if method == "fp8" and keys.has("expert_dtype"):
        return _experts_dtype(keys)
    if method in _READERS:
        read, accepted = _READERS[method]
        dtype = read(quantisation)
    else:
        accepted = "one group of weights of 4 or 8 bits, or a quant_algo out of " + ", ".join(
            _ALGORITHMS
        )
        dtype = _METHODS[method] or _dtype_of_groups(quantisation)
    if dtype is None:
        raise keys.wrong(key="quantization_config", accepted=accepted)
    return dtype


def _dtype_of_bits(quantisation: Mapping[str, Any]) -> str | None:
    """AWQ's own files say `w_bit`; a file that says neither is of 4 bits, as all were when that was usual."""
    bits = quantisation.get("bits", quantisation.get("w_bit", 4))
    return _BITS.get(bits) if isinstance(bits, int) else None


def _dtype_of_bitsandbytes(quantisation: Mapping[str, Any]) -> str | None:
    """NF4 and FP4 are both 4 bits an element, widened in the kernel."""
    four = quantisation.get("load_in_4bit", quantisation.get("_load_in_4bit"))
    eight = quantisation.get("load_in_8bit", quantisation.get("_load_in_8bit"))
    if bool(four) == bool(eight):
        return None
    return "int4" if four else "int8"


def _dtype_of_quark(quantisation: Mapping[str, Any]) -> str | None:
    """One format for all layers; layers of formats of their own are refused."""
    everywhere = quantisation.get("global_quant_config")
    if not isinstance(everywhere, Mapping) or quantisation.get("layer_quant_config"):
        return None
    weights = everywhere.get("weight")
    return _QUARK.get(str(weights.get("dtype"))) if isinstance(weights, Mapping) else None


_READERS: Final[dict[str, tuple[Callable[[Mapping[str, Any]], str | None], str]]] = {
    "awq": (_dtype_of_bits, "bits of 4 or 8"),
    "gptq": (_dtype_of_bits, "bits of 4 or 8"),
    "auto-round": (_dtype_of_bits, "bits of 4 or 8"),
    "bitsandbytes": (_dtype_of_bitsandbytes, "one of load_in_4bit and load_in_8bit"),
    "quark": (
        _dtype_of_quark,
        f"a global_quant_config of weights in {', '.join(_QUARK)}, and no layer_quant_config",
    ),
}


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
    for key in _LISTS:
        listed = quantisation.get(key)
        for module in map(str, listed) if isinstance(listed, list) else ():
            if not any(encoder in module for encoder in _ENCODERS):
                yield module


_LISTS: Final = (
    "modules_to_not_convert",  # transformers
    "ignore",  # compressed-tensors
    "exclude_modules",  # modelopt
    "exclude",  # quark
    "ignored_layers",
    "llm_int8_skip_modules",  # bitsandbytes
)


def _names(kept: list[str], part: str, num_layers: int) -> bool:
    """Whether the list names this part of every layer: by a pattern, or of half of them or more by number."""
    named = [module for module in kept if part in module]
    numbers = {found[1] for module in named if (found := re.search(r"layers\.(\d+)\.", module))}
    patterns = [module for module in named if not re.search(r"layers\.\d+\.", module)]
    return bool(patterns) or 2 * len(numbers) >= num_layers > 0
