"""Read the header of a GGUF file: what the model is, without loading its tensors.

The file is: magic, version, counts, key/value pairs, one record per tensor, padding, then the tensors. A file that ends
before its last tensor does is reported here, before any engine tries it.
"""

import mmap
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from polypod.errors import FileError

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # fmt: skip
_STRING: Final = 8
_ARRAY: Final = 9
Value: TypeAlias = (
    Any  # of a key: a number, a bool, a text, a list of them, or the length of a long list
)
_KEPT_ITEMS: Final = 1024  # of an array; a longer one (the vocabulary) is kept as its length

# ggml's tensor types: elements in a block, bytes of a block.
_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip

# The keys of a Hugging Face config.json, and where GGUF keeps them, below the architecture's name.
_CONFIG_KEYS: Final = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor's record; `offset_bytes` counts from the start of the tensor data."""

    name: str
    shape: tuple[int, ...]  # the fastest dimension first, as GGUF writes it
    type: str
    offset_bytes: int
    size_bytes: int

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of its model."""

    path: Path
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]
    file_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    @property
    def name(self) -> str:
        return str(self.metadata.get("general.name", self.path.stem))

    @property
    def parameters(self) -> int:
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def bytes_by_type(self) -> dict[str, int]:
        """Bytes of tensors per type, the largest share first."""
        shares: Counter[str] = Counter()
        for tensor in self.tensors:
            shares[tensor.type] += tensor.size_bytes
        return dict(shares.most_common())

    @property
    def quantisation(self) -> str:
        """The type that holds most of the bytes: "Q4_1"."""
        return next(iter(self.bytes_by_type))

    @property
    def context_tokens(self) -> int:
        return int(self.metadata[f"{self.architecture}.context_length"])

    @property
    def has_chat_template(self) -> bool:
        return "tokenizer.chat_template" in self.metadata

    def config(self) -> dict[str, Any]:
        """The model in the words of a Hugging Face `config.json`; what the file does not say is left out."""
        named = {
            key: self.metadata.get(f"{self.architecture}.{gguf}")
            for key, gguf in _CONFIG_KEYS.items()
        }
        config = {key: value for key, value in named.items() if value is not None}
        config.setdefault("vocab_size", _length(self.metadata.get("tokenizer.ggml.tokens", 0)))
        config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
        if "head_dim" not in config:
            config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
        tied = all(tensor.name != "output.weight" for tensor in self.tensors)
        return {"model_type": self.architecture, **config, "tie_word_embeddings": tied}


def read_header(path: Path) -> GgufHeader:
    """Read a GGUF header; raises `FileError` for a file that is not GGUF, is cut short, or holds an unknown type."""
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise FileError(path, "is not a GGUF file: expected it to begin with 'GGUF'")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data, file_bytes).header()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error


class _Reader:
    """A cursor over the header."""

    def __init__(self, path: Path, data: mmap.mmap, file_bytes: int) -> None:
        self._path = path
        self._data = data
        self._file_bytes = file_bytes
        self._at = 4

    def header(self) -> GgufHeader:
        try:
            return self._header()
        except (struct.error, UnicodeDecodeError) as error:
            problem = (
                f"the header is broken or cut short at byte {self._at:,} of {self._file_bytes:,}"
            )
            raise FileError(self._path, problem) from error

    def _header(self) -> GgufHeader:
        version = self._scalar("I")
        if version not in (2, 3):
            raise FileError(self._path, f"has GGUF version {version}; 2 and 3 are known")
        tensor_count, pair_count = self._scalar("Q"), self._scalar("Q")
        metadata = {self._string(): self._value(self._scalar("I")) for _ in range(pair_count)}
        if "general.architecture" not in metadata:
            raise FileError(self._path, "has no key 'general.architecture'")
        tensors = tuple(self._tensor() for _ in range(tensor_count))
        self._check_length(tensors, int(metadata.get("general.alignment", 32)))
        return GgufHeader(
            path=self._path,
            version=version,
            metadata=metadata,
            tensors=tensors,
            file_bytes=self._file_bytes,
        )

    def _check_length(self, tensors: Sequence[TensorInfo], alignment: int) -> None:
        start = -(-self._at // alignment) * alignment
        end = start + max((t.offset_bytes + t.size_bytes for t in tensors), default=0)
        if end > self._file_bytes:
            problem = f"is cut short: its header promises {end:,} bytes, found {self._file_bytes:,}; fetch it again"
            raise FileError(self._path, problem)

    def _tensor(self) -> TensorInfo:
        name = self._string()
        shape = tuple(self._scalar("Q") for _ in range(self._scalar("I")))
        number, offset = self._scalar("I"), self._scalar("Q")
        if number not in _TYPES:
            raise FileError(self._path, f"tensor {name!r} has the unknown type {number}")
        kind, block_elements, block_bytes = _TYPES[number]
        elements = 1
        for size in shape:
            elements *= size
        return TensorInfo(
            name=name,
            shape=shape,
            type=kind,
            offset_bytes=offset,
            size_bytes=elements // block_elements * block_bytes,
        )

    def _value(self, number: int) -> Value:
        if number == _STRING:
            return self._string()
        if number == _ARRAY:
            return self._array()
        if number not in _SCALARS:
            raise FileError(
                self._path, f"has a value of the unknown type {number} at byte {self._at:,}"
            )
        return self._scalar(_SCALARS[number])

    def _array(self) -> Value:
        number, count = self._scalar("I"), self._scalar("Q")
        if count <= _KEPT_ITEMS:
            return [self._value(number) for _ in range(count)]
        if number == _STRING:
            self._skip_strings(count)
        else:
            self._at += count * struct.calcsize(f"<{_SCALARS[number]}")
        return count

    def _skip_strings(self, count: int) -> None:
        length = struct.Struct("<Q").unpack_from
        at, data = self._at, self._data
        for _ in range(count):
            at += 8 + length(data, at)[0]
        self._at = at

    def _scalar(self, code: str) -> Value:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        if self._at + length > self._file_bytes:
            raise struct.error
        text = self._data[self._at : self._at + length].decode()
        self._at += length
        return text


def _length(value: int | list[Any]) -> int:
    return value if isinstance(value, int) else len(value)
