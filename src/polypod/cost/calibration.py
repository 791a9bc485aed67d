"""Efficiencies, kept as data with the evidence they came from.

A catalog says what a chip is; a calibration says how much of it kernels and engines get. Every number is a triple
`[fast, likely, slow]`: the ends make the band, the middle the answer. What was measured on the chip or on a relative
(`cost.measured`) lies over a written calibration that fills in the rest; a chip with neither borrows `specification-only`,
whose band is wide, and the answer says so.
"""

from functools import cache
from typing import Final, Literal

import msgspec

from polypod.catalog.schema import Strict
from polypod.cost.measured import (
    BACKENDS,
    DEFAULT,
    GROUPED,
    Exchanges,
    KernelFit,
    Kernels,
    Measured,
    Reference,
    Triple,
    check_fractions,
    generation_of,
    lent_fit,
    measured,
    waiting_share,
    widened,
)
from polypod.cost.shipped import shipped
from polypod.errors import InputError

Evidence = Literal[
    "own kernels",
    "published kernels",
    "same family",
    "transferred",
    "specification only",
    "calibrated",
]
Case = Literal["fast", "likely", "slow"]
CASES: tuple[Case, ...] = ("fast", "likely", "slow")
OTHER: Final = "other"

_STANDS_FOR: Final = {
    "fp8": ("fp8-block", "fp8"),
    "fp4": ("fp4", "fp8-block", "fp8"),
    f"{GROUPED}fp8": (f"{GROUPED}fp8-block",),
}
"""Checkpoints in fp8 are nearly all scaled by blocks, so that curve comes first; fp4 without a curve does as well as fp8."""


class LinkFit(Strict, frozen=True, kw_only=True):
    """The fraction of a tier's bandwidth a collective reaches, and the time to start one."""

    bytes_fraction: Triple
    launch_s: Triple
    source: Reference
    once_per_node: bool = (
        False  # a token goes once to each node, and is handed on to its ranks there
    )
    busy_fraction: float = 0.0  # of the arithmetic, taken by handing on while it runs
    hidden_fraction: Triple = (1.0, 0.8, 0.6)  # of what could pass behind computation, what does

    def __post_init__(self) -> None:
        check_fractions(bytes_fraction=self.bytes_fraction, hidden_fraction=self.hidden_fraction)


class EngineFit(Strict, frozen=True, kw_only=True):
    """What the engine itself adds to a step: scheduling, sampling, detokenising."""

    step_s: Triple
    sequence_s: Triple
    memory_fraction: float  # of the rank's memory that weights and cache may fill
    kernel_launch_s: Triple = (
        15e-6,
        27e-6,
        50e-6,
    )  # of one kernel from the host, where no captured graph is replayed
    source: Reference


class Slowdown(Strict, frozen=True, kw_only=True):
    """What steps take under one engine, over what the chip's best published kernels take."""

    factor: Triple
    source: Reference


class Calibration(Strict, frozen=True, kw_only=True):
    """How much of a chip is reached, by kind of kernel."""

    id: str
    evidence: Evidence
    chips: tuple[str, ...] = ()
    note: str | None = None
    backend: str | None = None  # the engine its kernels are of; None: a blend
    gemm: dict[
        str, KernelFit
    ]  # by compute type, the weights' before it where they are narrower; "other" is the rest
    moe: dict[str, KernelFit]
    attention_prefill: dict[
        str, KernelFit
    ]  # by kind of attention and width of a head; a cache in 8 bits apart
    attention_decode: dict[str, KernelFit]
    elementwise: KernelFit
    reduction: LinkFit  # all-reduce, all-gather, reduce-scatter, send
    all_to_all: LinkFit
    unknown_latency_s: Triple
    engine: EngineFit

    exchanges: Exchanges = msgspec.field(default_factory=dict)  # measured within one tier
    engines: dict[str, Slowdown] = msgspec.field(default_factory=dict)  # by backend
    step_factor: Triple = (1.0, 1.0, 1.0)  # of the engine it was asked for

    def __post_init__(self) -> None:
        for family in ("gemm", "moe", "attention_prefill", "attention_decode"):
            if OTHER not in getattr(self, family):
                msg = (
                    f"calibration {self.id!r} needs {family}.{OTHER} for the types it does not list"
                )
                raise ValueError(msg)

    def gemm_of(self, dtype: str) -> KernelFit:
        return self.fit("gemm", dtype)

    def fit(self, family: str, *keys: str) -> KernelFit:
        """The first of these types that has a curve, else the family's for the rest."""
        fits: dict[str, KernelFit] = getattr(self, family)
        return next(
            (fits[one] for key in keys for one in _STANDS_FOR.get(key, (key,)) if one in fits),
            fits[OTHER],
        )


def of(values: Triple, case: Case) -> float:
    """Pick one case of a triple.

    >>> of((0.9, 0.8, 0.7), "likely")
    0.8
    """
    return values[CASES.index(case)]


@cache
def for_chip(
    chip: str, backend: str | None = None, without: frozenset[str] = frozenset()
) -> Calibration:
    """The calibration of this accelerator under one engine's kernels, or a blend of all.

    Its own kernels come first, then its generation's, then the nearest other chip's (`data/borrowing.toml`), always under
    its own peaks; else a calibration that names it, else the one for bare specifications. `without` hides the measurements
    of some chips, to see how well the others stand in for them. Raises `InputError` for an unknown engine.
    """
    if backend is not None and backend not in BACKENDS:
        msg = f"no kernels of backend {backend!r} are known; there are {', '.join(BACKENDS)}"
        raise InputError(msg)
    generation = generation_of(chip)
    if generation is not None and (donors := generation.donors(chip, without)):
        evidence: Evidence = "own kernels"
        if donors[0] != chip:
            evidence = "same family" if donors[0] in generation.measured else "transferred"
        return _overlaid(chip, named(generation.base), donors, evidence, backend)
    for calibration in _shipped().values():
        if chip in calibration.chips and chip not in without:
            return _under(calibration, backend)
    return _shipped()["specification-only"]


def _under(calibration: Calibration, backend: str | None) -> Calibration:
    """A written calibration, its steps as slow as the engine makes them where that is known."""
    if backend not in calibration.engines:
        return calibration
    factor = calibration.engines[backend].factor
    return msgspec.structs.replace(
        calibration, id=f"{calibration.id} {backend}", backend=backend, step_factor=factor
    )


def _overlaid(
    chip: str,
    base: Calibration,
    donors: tuple[str, ...],
    evidence: Evidence,
    backend: str | None,
) -> Calibration:
    """A written calibration under the curves of several chips, the first of them uppermost."""
    kernels: Kernels = {}
    exchanges: Exchanges = {}
    for donor in reversed(donors):
        one: Measured = measured()[donor]
        waits = 1.0 if evidence == "transferred" else waiting_share(chip, donor)
        for family, fits in one.kernels(backend).items():
            lent = {key: lent_fit(fit, waits) for key, fit in fits.items()}
            kernels[family] = kernels.get(family, {}) | lent
        exchanges |= one.collectives(backend)
    if evidence == "transferred":
        kernels = {
            family: {key: widened(fit) for key, fit in fits.items()}
            for family, fits in kernels.items()
        }
    return msgspec.structs.replace(
        base,
        id=f"{donors[0]} {backend or DEFAULT}",
        evidence=evidence,
        backend=backend,
        exchanges=exchanges,
        **{family: getattr(base, family) | fits for family, fits in kernels.items()},
    )


def named(name: str) -> Calibration:
    """One shipped calibration by its id. Raises `InputError` naming those there are."""
    everything = _shipped()
    if name not in everything:
        msg = f"no engine's kernels and no calibration are called {name!r}; there are {', '.join((*BACKENDS, *sorted(everything)))}"
        raise InputError(msg)
    return everything[name]


@cache
def _shipped() -> dict[str, Calibration]:
    return {calibration.id: calibration for calibration in shipped("chip-", Calibration)}
