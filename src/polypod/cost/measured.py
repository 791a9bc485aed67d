"""Curves fitted to measured kernels and collectives, by chip and engine, and which chip borrows whose.

`data/kernels-<chip>.toml` is what was measured (`scripts/fit_kernels.py` writes it), `data/borrowing.toml` the rule.
"""

from functools import cache
from importlib import resources
from typing import Annotated, Final, Literal, get_args

import msgspec

from polypod.catalog.load import load_accelerator
from polypod.catalog.schema import Strict
from polypod.cost.shipped import shipped
from polypod.errors import FileError, UnknownNameError

Backend = Literal["trtllm", "vllm", "sglang"]
BACKENDS: Final[tuple[Backend, ...]] = get_args(Backend)
DEFAULT: Final = "default"
GROUPED: Final = "grouped-"
"""Before a type: kernels of experts over many ranks, which get their tokens from an all-to-all (`cost.step`)."""

Triple = tuple[float, float, float]
Reference = Annotated[str, msgspec.Meta(min_length=8)]
FAMILIES: Final = ("gemm", "moe", "attention_prefill", "attention_decode")


def check_fractions(**triples: Triple) -> None:
    """Nothing gets more than the specification offers. Raises `ValueError` naming the figure."""
    for name, values in triples.items():
        if not all(0 < value <= 1 for value in values):
            msg = f"{name} = {list(values)} is outside 0 to 1: no kernel gets more than the peak; check the peak it was divided by"
            raise ValueError(msg)
        if not values[0] >= values[1] >= values[2]:
            msg = f"{name} = {list(values)} must fall from fast over likely to slow"
            raise ValueError(msg)


class Curve(Strict, frozen=True, kw_only=True):
    """Fractions of peak one family of kernels reaches, and what a kernel takes with nothing to do.

    `half_rows` is how many rows sharing one matrix or context keep half the arithmetic busy; `activation_factor` how often
    activations cross memory for each time the workload counts; `fused_s` what was taken off the measured fixed time
    because engines do it in the kernel before (quantising the input of a GEMM).
    """

    flops_fraction: Triple
    bytes_fraction: Triple
    fixed_s: Triple
    overlap: float = 2.0
    half_rows: float = 0.0
    activation_factor: float = 1.0
    fused_s: float = 0.0

    def __post_init__(self) -> None:
        check_fractions(flops_fraction=self.flops_fraction, bytes_fraction=self.bytes_fraction)


class KernelFit(Curve, frozen=True, kw_only=True):
    """A curve with where it is from."""

    source: Reference


def widened(fit: KernelFit) -> KernelFit:
    """The same curve with its ends pushed out, for a chip of another design."""
    factor = _borrowing().transferred_factor
    return msgspec.structs.replace(
        fit,
        flops_fraction=_wider(fit.flops_fraction, 1 / factor),
        bytes_fraction=_wider(fit.bytes_fraction, 1 / factor),
        fixed_s=_wider(fit.fixed_s, factor),
    )


def lent_fit(fit: KernelFit, waits: float) -> KernelFit:
    """A curve on a relative whose matrix units wait `waits` as long for the rest of the chip.

    A kernel at the fraction f of the peak waits 1 / f - 1 times as long as its arithmetic takes, so

        f' = 1 / (1 + waits * (1 / f - 1))

    which stays at most 1, and is f itself for equal chips. Few rows are one more thing to wait for: where f is f / (1 + r / rows),
    the same gives r' = waits r f' / f. A kernel at 0.6 on an H100 gets to 0.87 on an H20 (waits 0.23);
    its own tables say 0.89 of GEMMs.

    >>> half = KernelFit(flops_fraction=(0.8, 0.5, 0.2), bytes_fraction=(1, 1, 1), fixed_s=(0, 0, 0), source="an example")
    >>> [round(one, 2) for one in lent_fit(half, 0.25).flops_fraction], lent_fit(half, 1.0) is half
    ([0.94, 0.8, 0.5], True)
    """
    if waits == 1.0:
        return fit
    fast, likely, slow = (1 / (1 + waits * (1 / one - 1)) for one in fit.flops_fraction)
    half_rows = waits * fit.half_rows * likely / fit.flops_fraction[1]
    return msgspec.structs.replace(fit, flops_fraction=(fast, likely, slow), half_rows=half_rows)


def waiting_share(chip: str, donor: str) -> float:
    """How long a chip's matrix units wait for the rest of it beside a relative's: matrix peak over vector peak, compared.

    What matrix units wait for (loads from shared memory, scaling, the softmax, writing out) other units do, whose number the
    fp32 peak tells. 1 at most: curves are never lowered so. 1 as well where a peak is not on record.

    >>> round(waiting_share("nvidia-h20", "nvidia-h100-sxm"), 2), waiting_share("nvidia-h200-sxm", "nvidia-h100-sxm")
    (0.23, 1.0)
    """
    own, other = _matrix_over_vector(chip), _matrix_over_vector(donor)
    return 1.0 if own is None or other is None else min(own / other, 1.0)


@cache
def _matrix_over_vector(chip: str) -> float | None:
    """Peak in bf16 over peak in fp32."""
    try:
        peaks = load_accelerator(chip).peak_flops_per_s
    except UnknownNameError:  # the kernels of a chip that the catalog lacks
        return None
    matrix, vector = (next((fact.value for key, fact in peaks.items() if str(key) == name), None) for name in ("bf16", "fp32"))  # fmt: skip
    return matrix / vector if matrix and vector else None


def _wider(values: Triple, slower: float) -> Triple:
    """Fractions end at 1; a time has no end."""
    fast, likely, slow = values
    return (min(fast / slower, 1.0) if slower < 1 else fast / slower, likely, slow * slower)


class ExchangeFit(Strict, frozen=True, kw_only=True):
    """A collective among so many ranks of one tier: launch_s + [(bytes / bandwidth)^p + (ramp_s sqrt(bytes / 64 KiB))^p]^(1/p).

    The first bytes are those that must leave a rank, (n - 1) / n of its buffer: a switch that reduces could bring an
    all-reduce down to them, a ring sends twice as many and gets half the fraction.
    """

    launch_s: Triple
    bytes_fraction: Triple
    ramp_s: Triple
    overlap: float

    def __post_init__(self) -> None:
        check_fractions(bytes_fraction=self.bytes_fraction)


Kernels = dict[str, dict[str, KernelFit]]
"""By family and type."""
Exchanges = dict[str, dict[int, ExchangeFit]]
"""By kind and number of ranks; `custom_all_reduce` and `dispatch`, `combine` with their library behind a dot."""


class Measured(Strict, frozen=True, kw_only=True):
    """What was measured on one chip."""

    id: str
    source: Reference
    backends: dict[str, dict[str, dict[str, Curve]]]
    exchanges: dict[str, dict[str, dict[str, ExchangeFit]]] = msgspec.field(default_factory=dict)

    def kernels(self, backend: str | None) -> Kernels:
        """One engine's, over the blend of all where it has none of its own. The blend of grouped experts is not TensorRT-LLM's."""
        found: Kernels = {family: {} for family in FAMILIES}
        for name in (DEFAULT, backend):
            for family, curves in self.backends.get(name or DEFAULT, {}).items():
                for key, curve in curves.items():
                    if key.startswith(GROUPED) and (name, backend) == (DEFAULT, "trtllm"):
                        continue
                    source = f"{self.source}: {name or DEFAULT} {family} {key}"
                    fit = KernelFit(**msgspec.structs.asdict(curve), source=source)
                    found[family][key] = fit
        return found

    def collectives(self, backend: str | None) -> Exchanges:
        """NCCL's, the engine's own all-reduce (vLLM's where it has none), DeepEP's."""
        custom = backend if backend in self.exchanges else "vllm"
        found: Exchanges = {}
        for library, kinds in self.exchanges.items():
            if library in BACKENDS and library != custom:
                continue
            mode = library.removeprefix("deepep_")
            for kind, fits in kinds.items():
                name = kind if mode == library else f"{kind}.{mode}"
                found[name] = {int(ranks): fit for ranks, fit in fits.items()}
        return found


class Generation(Strict, frozen=True, kw_only=True):
    """Chips that share kernels. `base` is the calibration that fills in what no kernel table says."""

    name: str
    base: str
    chips: tuple[str, ...]
    measured: tuple[str, ...]
    others: tuple[str, ...]
    reason: Reference

    def donors(self, chip: str, without: frozenset[str]) -> tuple[str, ...]:
        """Whose curves a chip takes, those used first at the front.

        >>> hopper = generation_of("nvidia-h20")
        >>> hopper.donors("nvidia-h20", frozenset())
        ('nvidia-h20', 'nvidia-h100-sxm', 'nvidia-h800-sxm')
        >>> hopper.donors("nvidia-h200-sxm", frozenset(hopper.measured))
        ('nvidia-b200-hgx',)
        """
        own = sorted(self.measured, key=lambda one: one != chip)
        if left := tuple(one for one in own if one not in without):
            return left
        return tuple(one for one in self.others if one not in without)[:1]


class _Borrowing(Strict, frozen=True, kw_only=True):
    transferred_factor: float
    transferred_source: Reference
    generations: tuple[Generation, ...]


def generation_of(chip: str) -> Generation | None:
    """The generation that names the chip; None where no kernel of a relative is measured."""
    return next((one for one in _borrowing().generations if chip in one.chips), None)


@cache
def measured() -> dict[str, Measured]:
    """Everything measured, by chip."""
    return {one.id: one for one in shipped("kernels-", Measured)}


@cache
def _borrowing() -> _Borrowing:
    path = resources.files("polypod.cost").joinpath("data").joinpath("borrowing.toml")
    try:
        return msgspec.toml.decode(path.read_bytes(), type=_Borrowing)
    except msgspec.DecodeError as error:
        raise FileError(path.name, str(error)) from error
