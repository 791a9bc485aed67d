"""One rank of a chip as the cost model sees it: its peaks, its memory, its ways out.

A rank is what an engine addresses: a die on a two-die package. Peaks, bandwidth and memory of a package are divided evenly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from polypod.catalog.schema import Accelerator, Tier
from polypod.cost.calibration import Calibration, Case, KernelFit, LinkFit, of
from polypod.cost.collective import Link
from polypod.cost.roofline import Roof
from polypod.errors import InputError


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
        """Dense peak at one compute type. Raises `InputError` where the chip has none on record."""
        if dtype not in self.peak_flops_per_s:
            known = ", ".join(sorted(self.peak_flops_per_s))
            msg = f"{self.chip} has no {dtype} peak on record (it has {known}); compute in one of these"
            raise InputError(msg)
        return self.peak_flops_per_s[dtype]

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
                )
            )
        return tuple(links)

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
    """Divide a package into its ranks."""
    share = accelerator.ranks
    return Rank(
        chip=accelerator.id,
        ranks_per_accelerator=share,
        peak_flops_per_s={
            str(k): fact.value / share for k, fact in accelerator.peak_flops_per_s.items()
        },
        hbm_bytes_per_s=accelerator.memory_bytes_per_s.value / share,
        memory_bytes=accelerator.memory_bytes.value / share,
        tiers=tuple(tiers),
        calibration=calibration,
    )
