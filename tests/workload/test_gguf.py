"""Reading GGUF headers, of small files written here byte by byte and of the packaged model."""

import struct
from pathlib import Path

import pytest

from polypod.errors import FileError
from polypod.serve.engines.embedded import embedded_weights, verify
from polypod.workload.gguf import read_header


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def number(key: str, value: int) -> bytes:
    return pair(key, 4, struct.pack("<I", value))


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dimensions = b"".join(struct.pack("<Q", size) for size in shape)
    return (
        text(name) + struct.pack("<I", len(shape)) + dimensions + struct.pack("<IQ", kind, offset)
    )


PAIRS = [
    pair("general.architecture", 8, text("llama")),
    number("llama.embedding_length", 64),
    number("llama.block_count", 2),
    number("llama.attention.head_count", 4),
    number("llama.attention.head_count_kv", 2),
    number("llama.feed_forward_length", 128),
    number("llama.context_length", 256),
    pair(
        "tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2000) + b"".join(map(text, ["ab"] * 2000))
    ),
    pair("tokenizer.ggml.scores", 9, struct.pack("<IQ", 6, 1500) + bytes(6000)),
    pair("tiny.list", 9, struct.pack("<IQ", 5, 3) + struct.pack("<iii", 1, -2, 3)),
    pair("tiny.flag", 7, b"\x01"),
]
TENSORS = [tensor("token_embd.weight", (64, 10), 3, 0), tensor("norm.weight", (64,), 0, 416)]
DATA_BYTES = 416 + 256  # 20 blocks of 20 bytes, padded to 32, and 64 floats


def write(path: Path, *, version: int = 3, pairs=PAIRS, tensors=TENSORS, data=DATA_BYTES) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs))
    body = head + b"".join(pairs) + b"".join(tensors)
    path.write_bytes(body + bytes(-len(body) % 32 + data))
    return path


def test_a_header_tells_the_model_in_the_words_of_a_config_json(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "m.gguf"))

    assert header.config() == {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 256,
        "vocab_size": 2000,
        "head_dim": 16,
        "tie_word_embeddings": True,
    }
    assert header.metadata["tiny.list"] == [1, -2, 3]
    assert header.metadata["tiny.flag"] is True


def test_parameters_and_bytes_are_those_of_the_tensors(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "m.gguf"))

    assert header.parameters == 64 * 10 + 64
    assert header.bytes_by_type == {"Q4_1": 400, "F32": 256}
    assert (header.tensor_bytes, header.quantisation, header.context_tokens) == (656, "Q4_1", 256)


def test_an_output_matrix_of_its_own_means_that_embeddings_are_not_tied(tmp_path: Path) -> None:
    tensors = [*TENSORS, tensor("output.weight", (64, 10), 3, 416 + 256)]
    header = read_header(write(tmp_path / "m.gguf", tensors=tensors, data=DATA_BYTES + 400))

    assert header.config()["tie_word_embeddings"] is False


def test_a_file_one_byte_short_is_reported_with_both_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])

    promised = f"promises {len(whole):,} bytes, found {len(whole) - 1:,}"
    with pytest.raises(FileError, match=promised) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kept", [5, 30, 60, 100, 20_000])
def test_a_file_cut_in_its_header_is_reported(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:kept])

    with pytest.raises(FileError, match="cut short"):
        read_header(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": 1}, "has GGUF version 1; 2 and 3 are known"),
        ({"pairs": PAIRS[1:]}, "has no key 'general.architecture'"),
        ({"pairs": [pair("x", 77, b"")]}, "a value of the unknown type 77"),
        ({"tensors": [tensor("t", (1,), 5, 0)]}, "tensor 't' has the unknown type 5"),
    ],
)
def test_what_it_does_not_know_it_names(tmp_path: Path, change, problem: str) -> None:
    with pytest.raises(FileError, match=problem):
        read_header(write(tmp_path / "m.gguf", **change))


# Bits a weight, as llama.cpp's documentation of its quantisation types gives them.
BITS = {
    2: 4.5, 3: 5.0, 6: 5.5, 7: 6.0, 8: 8.5, 9: 9.0, 10: 2.625, 11: 3.4375, 12: 4.5, 13: 5.5, 14: 6.5625, 15: 9.125,
    16: 2.0625, 17: 2.3125, 18: 3.0625, 19: 1.5625, 20: 4.5, 21: 3.4375, 22: 2.5625, 23: 4.25, 29: 1.75,
    34: 1.6875, 35: 2.0625, 39: 4.25, 0: 32, 1: 16, 24: 8, 25: 16, 26: 32, 27: 64, 28: 64, 30: 16,
}  # fmt: skip


@pytest.mark.parametrize(("kind", "bits"), BITS.items())
def test_a_tensor_has_the_bytes_of_its_type(tmp_path: Path, kind: int, bits: float) -> None:
    size_bytes = int(256 * bits / 8)
    path = write(tmp_path / "m.gguf", tensors=[tensor("t", (256,), kind, 0)], data=size_bytes)

    assert read_header(path).tensor_bytes == size_bytes


def test_another_format_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"\x80\x02}q\x00")
    (tmp_path / "empty.gguf").touch()

    for name in ("m.bin", "empty.gguf"):
        with pytest.raises(FileError, match="is not a GGUF file"):
            read_header(tmp_path / name)
    with pytest.raises(FileError, match="No such file"):
        read_header(tmp_path / "absent.gguf")


def test_the_packaged_model_is_the_published_one() -> None:
    header = read_header(embedded_weights())

    assert header.parameters == 134_515_008
    assert header.tensor_bytes == 96_576_768  # as llama.cpp counts it
    assert header.has_chat_template
    assert header.config() | {"rms_norm_eps": 1e-5} == {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "vocab_size": 49152,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
    }


def test_a_file_with_another_size_or_another_byte_is_not_the_packaged_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"abc")
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    verify(path, size_bytes=3, sha256=abc)
    with pytest.raises(FileError, match="expected 4 bytes, found 3"):
        verify(path, size_bytes=4, sha256=abc)
    path.write_bytes(b"abd")
    with pytest.raises(FileError, match=f"expected sha256 {abc}"):
        verify(path, size_bytes=3, sha256=abc)
