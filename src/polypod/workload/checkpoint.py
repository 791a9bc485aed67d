"""Read what a checkpoint in a folder is: its config.json, and the headers of its *.safetensors, without loading a tensor.

A safetensors file is: the header's length in 8 bytes, the header as JSON (name to type, shape and place), the tensors. A file that ends before
its last tensor does is reported here, before any engine tries it. Formats that may hold code are not read, and neither is a checkpoint whose
architecture is code of its own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from polypod.errors import FileError

_DTYPES: Final = {"F32": "fp32", "BF16": "bf16", "F16": "fp16", "F8_E4M3": "fp8", "I8": "int8"}
_LONGEST_HEADER_BYTES: Final = 100 << 20  # what the format itself allows


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One folder."""

    path: Path
    config: Mapping[str, Any]
    tensor_bytes: int
    dtype: str  # of most bytes
    has_chat_template: bool


def read_checkpoint(folder: Path) -> Checkpoint:
    """Raises `FileError` for a folder without a configuration or weights, a damaged file, and code in place of an architecture."""
    config = _read_json(folder / "config.json")
    if "auto_map" in config:
        problem = "names code of its own (auto_map), which is never run; take a checkpoint of an architecture that the engines have"
        raise FileError(folder / "config.json", problem)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = [path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))]  # fmt: skip
        instead = f", only {others[0]}, a format that may hold code" if others else ""
        raise FileError(
            folder, f"has no *.safetensors{instead}; take safetensors, or a GGUF file by its path"
        )
    sizes: dict[str, int] = {}
    for file in files:
        for dtype, size_bytes in _tensors(file):
            sizes[dtype] = sizes.get(dtype, 0) + size_bytes
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return Checkpoint(
        path=folder,
        config=config,
        tensor_bytes=sum(sizes.values()),
        dtype=_DTYPES.get(most, most.lower()),
        has_chat_template=_has_chat_template(folder),
    )


def _tensors(path: Path) -> list[tuple[str, int]]:
    """Type and bytes of each tensor. Raises `FileError` where the file is not whole."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        length_bytes = int.from_bytes(file.read(8), "little")
        if not 2 <= length_bytes <= min(_LONGEST_HEADER_BYTES, size_bytes - 8):
            raise FileError(path, f"is no safetensors file: its header would have {length_bytes:,} of {size_bytes:,} bytes")  # fmt: skip
        try:
            header = json.loads(file.read(length_bytes))
            spans = [_span(one) for name, one in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FileError(path, f"has a header that cannot be read: {error}") from error
    end_bytes = 8 + length_bytes + max((end for _, _, end in spans), default=0)
    if end_bytes != size_bytes:
        problem = f"is cut short or damaged: its tensors end at byte {end_bytes:,}, the file at {size_bytes:,}; fetch it again"
        raise FileError(path, problem)
    return [(dtype, end - start) for dtype, start, end in spans]


def _span(tensor: dict[str, Any]) -> tuple[str, int, int]:
    start, end = tensor["data_offsets"]
    return str(tensor["dtype"]), int(start), int(end)


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    tokeniser = folder / "tokenizer_config.json"
    return tokeniser.is_file() and bool(_read_json(tokeniser).get("chat_template"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileError(path, "is not there; a folder with a model has one") from error
    except (OSError, ValueError) as error:
        raise FileError(path, f"cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise FileError(path, "is no JSON object")
    return found
