"""How many bytes a number takes, and which of a model's numbers are stored how.

Only the matrices of attention, feed-forward and experts are quantised. Embeddings, the output head, routers, norms and
biases stay in bf16, as the published fp8 and int8 checkpoints keep them. GGUF files quantise embeddings too, so their
weights come out a little high here: by 10 MB for a 135 M model, by under 1 % for an 8 B one.
"""

from typing import Final, Literal

from polypod.catalog.schema import Strict
from polypod.errors import InputError

ELEMENT_BYTES: Final[dict[str, float]] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5,
    "int4": 0.5,
    "mxfp4": 17 / 32,  # blocks of 32 with one 1-byte scale
    "nvfp4": 9 / 16,  # blocks of 16 with one 1-byte scale
    "q8_0": 34 / 32,  # blocks of 32 with one 2-byte scale
    "q5_1": 24 / 32,  # and a 2-byte minimum
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
}
"""Bytes per stored element. Scales of fp8, int8 and 4-bit blocks (under 1 % at 128 x 128, 12 % at 16) are left out."""

_COMPUTE: Final[dict[str, str]] = {"int4": "bf16", "mxfp4": "bf16", "nvfp4": "fp4"} | {
    name: "bf16" for name in ELEMENT_BYTES if name.startswith("q")
}
"""Weight-only formats are widened in the kernel; everything else computes in its own type."""

KEPT: Final = "bf16"
"""What embeddings, head, routers, norms and biases are stored in, whatever the matrices are."""


class Precision(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """Storage types of weights and cache; `compute` is the matrix unit's type where it differs from the weights'."""

    weights: str
    kv: str
    compute: str | None = None

    @property
    def compute_dtype(self) -> str:
        """What the matrix unit runs in.

        >>> Precision(weights="fp8", kv="bf16").compute_dtype, Precision(weights="q4_1", kv="fp16").compute_dtype
        ('fp8', 'bf16')
        """
        return self.compute or _COMPUTE.get(self.weights, self.weights)


def of_the_rest(rest_dtype: str, precision: Precision) -> Precision:
    """Of the matrices that a checkpoint quantises less than others: its own where that is wider than what was asked, else bf16.

    They compute in bf16, whatever the chip has: where they are in fp8 and it computes in that, a little slow.

    >>> of_the_rest("fp8", Precision(weights="mxfp4", kv="bf16")).weights
    'fp8'
    """
    wide = element_bytes(rest_dtype) >= element_bytes(precision.weights)
    return Precision(weights=rest_dtype if wide else KEPT, kv=precision.kv, compute=KEPT)


def element_bytes(dtype: str, of: Literal["weights", "kv", "compute"] = "weights") -> float:
    """Bytes of one element. Raises `InputError` for a type this table does not have.

    >>> element_bytes("bf16"), element_bytes("q4_1")
    (2.0, 0.625)
    """
    if dtype not in ELEMENT_BYTES:
        msg = f"{of} in {dtype!r}: no such number format; known are {', '.join(ELEMENT_BYTES)}"
        raise InputError(msg)
    return ELEMENT_BYTES[dtype]
