"""One rank of a chip as the cost model sees it: its peaks, its memory, its ways out.

A rank is what an engine addresses: a die on a two-die package. Peaks, bandwidth and memory of a package are divided evenly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from polypod.catalog.schema import Accelerator, Fact, Tier
from polypod.cost.calibration import Calibration, Case, LinkFit, of
from polypod.cost.collective import Link, MeasuredLink
from polypod.cost.measured import KernelFit
from polypod.cost.roofline import Roof
from polypod.errors import InputError
from polypod.units import Unit, show

CUSTOM_LIMIT_BYTES = 2.0**20
"""Engines' own all-reduce kernels were fitted up to here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What one rank has, by specification, and how much of it is reached."""

    chip: str
    ranks_per_accelerator: int
    peak_flops_per_s: dict[str, float]
    hbm_bytes_per_s: float
    memory_bytes: float
    tiers: tuple[Tier, ...]
    calibration: Calibration

    def peak(self, dtype: str) -> float:
        """Dense peak at one compute type. A chip of which only fp16 is on record does its bf16 work in it.

        Raises `InputError` where the chip has none on record.
        """
        if dtype == "bf16" and dtype not in self.peak_flops_per_s:
            dtype = "fp16" if "fp16" in self.peak_flops_per_s else dtype
        if dtype not in self.peak_flops_per_s:
            known = ", ".join(sorted(self.peak_flops_per_s))
            msg = f"{self.chip} has no {dtype} peak on record (it has {known}); compute in one of these"
            raise InputError(msg)
        return self.peak_flops_per_s[dtype]

    @property
    def reach(self) -> int | None:
        """How many ranks the tiers of known bandwidth join, which is what can be planned over; None: no end."""
        joined: int | None = 1
        for tier in self.tiers:
            if tier.bytes_per_s is None:
                break
            joined = tier.ranks
        return joined

    def roof(self, fit: KernelFit, dtype: str, case: Case) -> Roof:
        """What is left of the peaks for one kind of kernel."""
        return Roof(
            flops_per_s=self.peak(dtype) * of(fit.flops_fraction, case),
            hbm_bytes_per_s=self.hbm_bytes_per_s * of(fit.bytes_fraction, case),
            fixed_s=of(fit.fixed_s, case),
            overlap=fit.overlap,
        )

    def links(self, fit: LinkFit, case: Case) -> tuple[Link, ...]:
        """The tiers at the bandwidth a collective reaches; an unknown latency is the calibration's assumption.

        A tier whose bandwidth nobody published ends the list: what lies beyond cannot be planned over.
        """
        links = []
        for tier in self.tiers:
            if tier.bytes_per_s is None:
                break
            latency_s = (
                tier.latency_s.value
                if tier.latency_s
                else of(self.calibration.unknown_latency_s, case)
            )
            links.append(
                Link(
                    ranks=tier.ranks,
                    bytes_per_s=tier.bytes_per_s.value * of(fit.bytes_fraction, case),
                    latency_s=latency_s,
                    shares_port=tier.shares_port,
                )
            )
        return tuple(links)

    def measured(self, name: str, ranks: int, case: Case) -> MeasuredLink | None:
        """A collective's kernel as measured among as many ranks of the nearest tier, or the next number measured.

        None where it was not measured.
        """
        fits = self.calibration.exchanges.get(name)
        tier = self.tiers[0] if self.tiers else None
        if not fits or tier is None or tier.bytes_per_s is None:
            return None
        fit = fits[min((one for one in fits if one >= ranks), default=max(fits))]
        return MeasuredLink(
            launch_s=of(fit.launch_s, case),
            bytes_per_s=tier.bytes_per_s.value * of(fit.bytes_fraction, case),
            ramp_s=of(fit.ramp_s, case),
            overlap=fit.overlap,
            limit_bytes=CUSTOM_LIMIT_BYTES if name == "custom_all_reduce" else None,
        )

    @property
    def assumptions(self) -> list[str]:
        """What is assumed because no source says it."""
        return [
            f"latency of {self.chip}'s {tier.name!r} tier is not published; "
            f"{self.calibration.unknown_latency_s[1] * 1e6:.1f} us assumed"
            for tier in self.tiers
            if tier.bytes_per_s is not None and tier.latency_s is None and (tier.ranks or 2) > 1
        ]


def rank_of(accelerator: Accelerator, tiers: Sequence[Tier], calibration: Calibration) -> Rank:
    """Divide a package into its ranks.

    Raises `InputError` where nobody published its memory, its memory bandwidth or any peak: no step can be timed then.
    """
    share = accelerator.ranks
    memory, bandwidth = accelerator.memory_bytes, accelerator.memory_bytes_per_s
    if memory is None or bandwidth is None or not accelerator.peak_flops_per_s:
        raise InputError(_unplannable(accelerator))
    return Rank(
        chip=accelerator.id,
        ranks_per_accelerator=share,
        peak_flops_per_s={
            str(k): fact.value / share for k, fact in accelerator.peak_flops_per_s.items()
        },
        hbm_bytes_per_s=bandwidth.value / share,
        memory_bytes=memory.value / share,
        tiers=tuple(tiers),
        calibration=calibration,
    )


def _unplannable(accelerator: Accelerator) -> str:
    """Which of the figures a plan needs are missing, and which there are."""
    needed: list[tuple[str, Fact | None, Unit]] = [
        ("memory", accelerator.memory_bytes, "bytes"),
        ("memory bandwidth", accelerator.memory_bytes_per_s, "bytes_per_s"),
    ]
    peaks: list[tuple[str, Fact | None, Unit]] = [
        (f"{dtype} peak", fact, "flops_per_s")
        for dtype, fact in accelerator.peak_flops_per_s.items()
    ]
    missing = [name for name, fact, _ in needed if fact is None] + ([] if peaks else ["peak"])
    known = [f"{name} {show(fact.value, unit)}" for name, fact, unit in needed + peaks if fact]
    return (
        f"{accelerator.id} has no {' and no '.join(missing)} on record, so it cannot be planned on; "
        f"what is known: {', '.join(known) or 'nothing that a plan needs'}; polypod catalog show {accelerator.id}"
    )
