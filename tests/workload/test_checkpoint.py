"""Checkpoints in folders: whole files of a format that holds no code, or a reason."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from polypod.errors import FileError
from polypod.workload.checkpoint import read_checkpoint


def tensors(**shapes: tuple[str, int]) -> bytes:
    """A safetensors file: each tensor as (type, bytes)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, size_bytes) in shapes.items():
        header[name] = {"dtype": dtype, "shape": [size_bytes], "data_offsets": [end, end + size_bytes]}  # fmt: skip
        end += size_bytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def folder(path: Path, weights: bytes | None = None, **config: Any) -> Path:
    (path / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (path / "a.safetensors").write_bytes(tensors(w=("BF16", 100)) if weights is None else weights)
    return path


def test_a_folder_says_its_configuration_its_size_and_its_type(tmp_path: Path) -> None:
    folder(tmp_path, tensors(a=("F32", 400), b=("BF16", 100)))
    (tmp_path / "b.safetensors").write_bytes(tensors(c=("F32", 50)))
    found = read_checkpoint(tmp_path)

    assert (found.tensor_bytes, found.dtype, found.config["model_type"]) == (550, "fp32", "llama")
    assert not found.has_chat_template


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_template_is_found_where_it_may_be(tmp_path: Path, where: str) -> None:
    folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "e"}')
    text = "{{ messages }}"
    (tmp_path / where).write_text(text if where.endswith("jinja") else json.dumps({"chat_template": text}))  # fmt: skip

    assert read_checkpoint(tmp_path).has_chat_template


@pytest.mark.parametrize("bytes_off", [-1, 1])
def test_a_file_that_is_not_as_long_as_it_says_is_named(tmp_path: Path, bytes_off: int) -> None:
    whole = tensors(w=("BF16", 100))
    folder(tmp_path, whole[:-1] if bytes_off < 0 else whole + b"x")
    with pytest.raises(FileError, match=r"a\.safetensors: is cut short or damaged: its tensors end at byte \d+, the file at \d+; fetch it again"):  # fmt: skip
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (b"", "is no safetensors file"),
        (b"PK\x03\x04" + bytes(60), "is no safetensors file"),
        (struct.pack("<Q", 9) + b"not json!", "has a header that cannot be read"),
        (struct.pack("<Q", 17) + b'{"a": {"dtype":1}}'[:17], "has a header that cannot be read"),
        (struct.pack("<Q", 2) + b"[]", "has a header that cannot be read"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, weights: bytes, says: str) -> None:
    folder(tmp_path, weights)
    with pytest.raises(FileError, match=says):
        read_checkpoint(tmp_path)


def test_a_checkpoint_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    with pytest.raises(FileError, match=r"names code of its own \(auto_map\), which is never run"):
        read_checkpoint(tmp_path)


def test_a_format_that_may_hold_code_is_not_read(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileError, match=r"has no \*\.safetensors, only pytorch_model\.bin, a format that may hold code"):  # fmt: skip
        read_checkpoint(tmp_path)


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"config\.json: is not there"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(FileError, match="is no JSON object"):
        read_checkpoint(tmp_path)
