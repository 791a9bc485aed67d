"""What one replica of a model can be on one island: together, prefill alone or decode alone, each at the most requests a second that keep the limits.

Together is `plan.search`'s closed form; apart is `plan.workers_apart`'s.
"""

from dataclasses import dataclass, field
from typing import Final

from polypod.cost.bands import Band, Metric
from polypod.cost.deployment import Deployment
from polypod.plan.afd import Split
from polypod.plan.confirm import Outcome
from polypod.plan.place import Island
from polypod.plan.search import (
    UTILISATION_LIMIT,
    Candidate,
    Question,
    Search,
    whole_replicas,
)
from polypod.plan.served import band_under, own_of
from polypod.policy.events import Role

KEPT: Final = 6
"""Shapes of one role and island that are offered to the choice: best per rank first, then smaller ones that fill what is left."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One way to put a replica on an island, and what it does there. `rate_per_s` is requests a second inside the limits, of one replica."""

    role: Role
    island: Island
    deployment: Deployment
    sequences_per_rank: int
    max_step_tokens: int
    rate_per_s: float
    ttft_s: float  # of prefill: a prompt's own time and its wait, without the cache's way
    tpot_s: float
    narrowest_bytes_per_s: float = (
        0.0  # of prefill: the way of a cache, of one rank, that leaves time for this rate
    )
    most_per_s: float = 0.0  # of workers apart: at nine tenths of full, whatever the limit on TTFT
    candidate: Candidate | None = None  # what the emulation can confirm
    seen: Outcome | None = field(
        default=None, compare=False, repr=False
    )  # by its requests, emulated
    confirmed: bool = False
    fed: frozenset[frozenset[int]] = (
        frozenset()
    )  # of decode: the sets of prefill shapes, by number, behind which it was emulated
    unplayed: str = ""  # of decode: why no emulation plays it
    also: tuple[tuple[Island, int], ...] = ()  # further ranks that a replica takes
    split: Split | None = None  # of decode with its experts on those
    link_bytes_per_s: float = 0.0  # of one rank to them, before what an exchange reaches of it

    @property
    def ranks(self) -> int:
        """On `island`, for what is not apart."""
        return self.deployment.layout.world

    @property
    def islands(self) -> tuple[Island, ...]:
        """All that a replica takes part of, the one with its cache first."""
        found = [self.island, *(island for island, _ in self.also)]
        return tuple(one for n, one in enumerate(found) if all(one is not other for other in found[:n]))  # fmt: skip

    def ranks_on(self, island: Island) -> int:
        """All ranks that a replica takes of an island."""
        own = self.ranks if island is self.island else 0
        return own + sum(ranks for other, ranks in self.also if other is island)

    def accelerators_on(self, island: Island) -> float:
        return self.ranks_on(island) / island.rank.ranks_per_accelerator

    def taken_on(self, island: Island) -> float:
        """Accelerators that a replica makes unusable for others: its own, and its part of what a tier has left over.

        Of a replica on two islands nothing is left over: only the ranks of one attention group stay on one tier.
        """
        if len(self.islands) > 1:
            return self.accelerators_on(island)
        return max(self.accelerators_on(island), island.accelerators / self.most_replicas)

    @property
    def accelerators(self) -> float:
        """On all islands."""
        return sum(self.accelerators_on(island) for island in self.islands)

    @property
    def sequences(self) -> int:
        return self.sequences_per_rank * self.deployment.layout.dp

    @property
    def most_replicas(self) -> int:
        """How many fit where none straddles two instances of the tier that holds one."""
        if len(self.islands) > 1:
            return min(island.ranks // self.ranks_on(island) for island in self.islands)
        return whole_replicas(self.island, self.ranks_on(self.island))


def shape_band(question: Question, shape: Shape, what: Metric) -> Band:
    """The 80 % band of one metric of a shape."""
    kind = "agg" if shape.role == "both" else "disagg"
    fits = (own_of(shape.deployment, question.backend, one) for one in (kind, "agg"))
    own = next((fit for fit in fits if fit is not None), None)
    bands = [band_under(own, one.rank.calibration.evidence, kind, what) for one in shape.islands]
    return Band(low=min(band.low for band in bands), high=max(band.high for band in bands))


def together(question: Question, found: Search) -> list[Shape]:
    """Co-located candidates worth offering: `plan.search` found them."""
    shapes = [
        Shape(
            role="both",
            island=one.island,
            deployment=one.deployment,
            sequences_per_rank=one.sequences_per_rank,
            max_step_tokens=one.max_step_tokens,
            # the closed form knows no queue: nine tenths of it, until the emulation says
            rate_per_s=UTILISATION_LIMIT * one.tokens_per_s / one.replicas / question.output_tokens,
            ttft_s=one.ttft_s,
            tpot_s=one.tpot_s,
            candidate=one,
        )
        for one in found.candidates
    ]
    return offered(shapes)


def offered(shapes: list[Shape], most: int = KEPT) -> list[Shape]:
    """The best per rank, then the best of every smaller size that no larger one beats."""
    ranked = sorted(shapes, key=lambda one: (-one.rate_per_s / one.ranks, one.ranks))
    kept: list[Shape] = []
    for shape in ranked:
        if len(kept) < most // 2 or shape.ranks < min(one.ranks for one in kept):
            kept.append(shape)
        if len(kept) == most:
            break
    return kept
