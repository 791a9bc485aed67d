"""Efficiencies, kept as data with the evidence they came from.

A catalog says what a chip is; a calibration says how much of it kernels and engines get. Every number is a triple
`[fast, likely, slow]`: the ends make the band, the middle the answer. A chip without its own calibration borrows
`specification-only`, whose band is wide, and the answer says so.
"""

from functools import cache
from typing import Annotated, Literal

import msgspec

from polypod.catalog.schema import Strict
from polypod.cost.shipped import shipped
from polypod.errors import InputError

Evidence = Literal[
    "own kernels", "published kernels", "same family", "transferred", "specification only"
]
Case = Literal["fast", "likely", "slow"]
CASES: tuple[Case, ...] = ("fast", "likely", "slow")

Triple = tuple[float, float, float]
Reference = Annotated[str, msgspec.Meta(min_length=8)]


class KernelFit(Strict, frozen=True, kw_only=True):
    """Fractions of peak one family of kernels reaches, and what a kernel takes with nothing to do."""

    flops_fraction: Triple
    bytes_fraction: Triple
    fixed_s: Triple
    overlap: float = 2.0
    source: Reference


class LinkFit(Strict, frozen=True, kw_only=True):
    """The fraction of a tier's bandwidth a collective reaches, and the time to start one."""

    bytes_fraction: Triple
    launch_s: Triple
    source: Reference


class EngineFit(Strict, frozen=True, kw_only=True):
    """What the engine itself adds to a step: scheduling, sampling, detokenising."""

    step_s: Triple
    sequence_s: Triple
    memory_fraction: float  # of the rank's memory that weights and cache may fill
    source: Reference


class Calibration(Strict, frozen=True, kw_only=True):
    """How much of a chip is reached, by kind of kernel."""

    id: str
    evidence: Evidence
    chips: tuple[str, ...] = ()
    note: str | None = None
    gemm: dict[str, KernelFit]  # by compute type; "other" is the rest
    moe: KernelFit
    attention_prefill: KernelFit
    attention_decode: KernelFit
    elementwise: KernelFit
    reduction: LinkFit  # all-reduce, all-gather, reduce-scatter, send
    all_to_all: LinkFit
    unknown_latency_s: Triple
    engine: EngineFit

    def __post_init__(self) -> None:
        if "other" not in self.gemm:
            msg = f"calibration {self.id!r} needs gemm.other for the types it does not list"
            raise ValueError(msg)

    def gemm_of(self, dtype: str) -> KernelFit:
        return self.gemm.get(dtype, self.gemm["other"])


def of(values: Triple, case: Case) -> float:
    """Pick one case of a triple.

    >>> of((0.9, 0.8, 0.7), "likely")
    0.8
    """
    return values[CASES.index(case)]


def for_chip(chip: str) -> Calibration:
    """The calibration that names this accelerator, else the one for bare specifications."""
    everything = _shipped()
    for calibration in everything.values():
        if chip in calibration.chips:
            return calibration
    return everything["specification-only"]


def named(name: str) -> Calibration:
    """One shipped calibration by its id. Raises `InputError` naming those there are."""
    everything = _shipped()
    if name not in everything:
        msg = f"no calibration is called {name!r}; there are {', '.join(sorted(everything))}"
        raise InputError(msg)
    return everything[name]


@cache
def _shipped() -> dict[str, Calibration]:
    return {calibration.id: calibration for calibration in shipped("chip-", Calibration)}
