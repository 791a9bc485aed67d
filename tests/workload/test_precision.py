import msgspec
import pytest

from polypod.errors import InputError
from polypod.workload.precision import ELEMENT_BYTES, Precision, element_bytes


@pytest.mark.parametrize(
    ("dtype", "block_bytes"),
    # a block of 32 numbers in ggml: its scale (and minimum) of 2 bytes each, and the packed numbers
    [("q4_0", 2 + 16), ("q4_1", 2 + 2 + 16), ("q5_0", 2 + 4 + 16), ("q5_1", 2 + 2 + 4 + 16), ("q8_0", 2 + 32)],
)  # fmt: skip
def test_gguf_types_take_the_bytes_of_their_blocks(dtype: str, block_bytes: int):
    assert element_bytes(dtype) * 32 == block_bytes


def test_halving_the_bits_halves_the_bytes():
    assert [element_bytes(dtype) for dtype in ("fp32", "bf16", "fp8", "fp4")] == [4, 2, 1, 0.5]


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(
        InputError, match="weights in 'fp7': no such number format; known are fp32, bf16"
    ):
        element_bytes("fp7")


@pytest.mark.parametrize("dtype", ["int4", *(name for name in ELEMENT_BYTES if name[0] == "q")])
def test_weight_only_formats_compute_in_bf16(dtype: str):
    assert Precision(weights=dtype, kv="bf16").compute_dtype == "bf16"


def test_a_stated_compute_type_wins():
    assert Precision(weights="fp8", kv="bf16", compute="int8").compute_dtype == "int8"


def test_a_plan_file_names_the_compute_type_only_where_it_differs():
    assert msgspec.to_builtins(Precision(weights="fp8", kv="bf16")) == {
        "weights": "fp8",
        "kv": "bf16",
    }
