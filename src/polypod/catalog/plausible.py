"""Figures that can each be, and cannot be together: how a wrong unit, a sparse peak or a sum of both directions shows.

`files` refuses a number that no such thing has. Here one figure is held against another of the same entry, or against the entry of the
fabric it names. A chip can be the first of its kind, so a figure that is right although it is doubted says why, in `odd_because`,
and is then let through.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeGuard

from polypod.catalog.schema import Accelerator, Dtype, Fact, Pod

# Every bound holds for all of the catalog's accelerators but those whose figure says why it is odd (tests/catalog/test_plausible.py).


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """One figure that does not go with the rest: its key, what is odd, what is probably meant, and why that is the bound."""

    place: str
    says: str

    def __str__(self) -> str:
        return f"{self.says}; if it is right, say so with odd_because - at `$.{self.place}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reads:
    """How often a second a kind of memory can be read from end to end."""

    least_per_s: float
    most_per_s: float
    why: str


_READS: Final[dict[str, _Reads]] = {
    "HBM": _Reads(
        least_per_s=15,
        most_per_s=90,
        why="a stack of HBM2 to HBM4 reads itself 16 to 76 times a second",
    ),
    "GDDR": _Reads(
        least_per_s=8, most_per_s=70, why="GDDR6 and GDDR7 cards read themselves 14 to 56 times"
    ),
    "LPDDR": _Reads(
        least_per_s=1, most_per_s=15, why="LPDDR5 cards read themselves 1.6 to 13 times a second"
    ),
}
_READS_OF_ANY: Final = _Reads(
    least_per_s=1, most_per_s=90, why="from LPDDR5 to HBM4, memory reads itself 1.6 to 76 times"
)

# The most that a narrower type is ahead of a wider one, dense.
_STEPS: Final[tuple[tuple[Dtype, Dtype, float, str], ...]] = (
    ("tf32", "bf16", 0.55, "tf32 goes at half of bf16"),
    ("fp8", "bf16", 2.1, "halving the width doubles the rate"),
    ("int8", "bf16", 2.1, "halving the width doubles the rate"),
    ("fp4", "fp8", 3.1, "halving the width doubles the rate, and triples it where the maker sells fp4"),
    ("fp16", "bf16", 1.1, "the two 16-bit types go at one rate"),
    ("bf16", "fp16", 1.1, "the two 16-bit types go at one rate"),
)  # fmt: skip

# The best dense 16-bit rate for a watt on record up to a year: Biren BR100, NVIDIA B200, Meta MTIA 500.
_FLOPS_PER_JOULE: Final[tuple[tuple[int, float], ...]] = (
    (2023, 2.1e12),
    (2025, 2.5e12),
    (9999, 3.2e12),
)

_LINK_OF_MEMORY: Final = 0.4
"""A port set that takes more than this part of the memory's bandwidth, one way: the catalog's widest is Maia 100 at a third."""


def doubts(entry: Accelerator | Pod) -> list[Doubt]:
    """What does not go together in an entry, by itself."""
    if isinstance(entry, Pod):
        return list(_of_pod(entry))
    return [*_of_memory(entry), *_of_peaks(entry), *_of_power(entry), *_of_ports(entry)]


def doubts_beside(pod: Pod, accelerator: Accelerator) -> list[Doubt]:
    """Tiers that are faster than the ports of the accelerator they join."""
    ports = accelerator.scale_up.bytes_per_s if accelerator.scale_up else None
    if ports is None:
        return []
    rank_bytes_per_s = ports.value / accelerator.ranks
    return [
        Doubt(
            place=f"tiers[{index}].bytes_per_s",
            says=f"{tier.bytes_per_s.value:g} bytes/s a rank is {tier.bytes_per_s.value / rank_bytes_per_s:.2g} times what {accelerator.id} "
            f"has on its scale-up ports, one way ({rank_bytes_per_s:g} bytes/s a rank): both directions summed? A tier is one way, per rank",
        )
        for index, tier in enumerate(pod.tiers)
        if _told(tier.bytes_per_s)
        and (tier.ranks or 0) > accelerator.ranks
        and tier.bytes_per_s.value > 1.5 * rank_bytes_per_s
    ]


def doubts_of_speed(
    name: str, place: str, fact: Fact | None, known: dict[str, Fact]
) -> list[Doubt]:
    """A port speed beside what the catalog has of that generation of the fabric.

    Twice as fast is both directions summed, eight times is bits for bytes; `known` are speeds by generation, spaces left out.
    """
    published = known.get(name.replace(" ", ""))
    if published is None or not _told(fact):
        return []
    ratio = fact.value / published.value
    if ratio < 1.5:
        return []
    meant = "bits for bytes" if 7 < ratio < 9 else "both directions summed"
    says = (
        f"{fact.value:g} bytes/s is {ratio:.2g} times the {published.value:g} bytes/s that {name} has one way "
        f"({published.source}): {meant}?"
    )
    return [Doubt(place=place, says=says)]


def _told(fact: Fact | None) -> TypeGuard[Fact]:
    """Whether a figure is there, and nothing is said about its being odd."""
    return fact is not None and not fact.odd_because


def _of_memory(entry: Accelerator) -> Iterator[Doubt]:
    capacity, bandwidth = entry.memory_bytes, entry.memory_bytes_per_s
    if capacity is None or bandwidth is None or bandwidth.odd_because:
        return
    kind = (entry.memory_type or "").upper()
    named = sorted((kind.index(name), name) for name in _READS if name in kind)  # first one named
    reads = _READS[named[0][1]] if named else _READS_OF_ANY
    rate_per_s = bandwidth.value / capacity.value
    if rate_per_s > reads.most_per_s:
        says = f"{bandwidth.value:g} bytes/s reads the whole memory {rate_per_s:.3g} times a second: Gb/s written for GB/s?"
    elif rate_per_s < reads.least_per_s:
        says = f"{bandwidth.value:g} bytes/s reads the whole memory only {rate_per_s:.2g} times a second: one stack, or one die, of several?"
    else:
        return
    bound = f"{reads.least_per_s:g} to {reads.most_per_s:g} are accepted: {reads.why}"
    yield Doubt(place="memory_bytes_per_s", says=f"{says} {bound}")


def _of_peaks(entry: Accelerator) -> Iterator[Doubt]:
    for narrow, wide, most, why in _STEPS:
        fast, slow = entry.peak(narrow), entry.peak(wide)
        if slow is None or not _told(fast):
            continue
        ratio = fast.value / slow.value
        if ratio > most:
            says = (
                f"{fast.value:g} FLOP/s in {narrow} is {ratio:.3g} times {wide}: with sparsity? Peaks here are dense. "
                f"At most {most:g} times is accepted: {why}"
            )
            yield Doubt(place=f"peak_flops_per_s.{narrow}", says=says)


def _of_power(entry: Accelerator) -> Iterator[Doubt]:
    name = "bf16" if entry.peak("bf16") else "fp16"
    peak, power = entry.peak(name), entry.power_w
    if not _told(peak) or power is None:
        return
    most = next(rate for year, rate in _FLOPS_PER_JOULE if (entry.year or 9999) <= year)
    rate = peak.value / power.value
    if rate > most:
        says = (
            f"{peak.value:g} FLOP/s on {power.value:g} W is {rate:.3g} FLOP/J: with sparsity, or the power of one die? Peaks here are dense. "
            f"At most {most:g} is accepted for {entry.year or 'any year'}: the best on record is below it"
        )
        yield Doubt(place=f"peak_flops_per_s.{name}", says=says)


def _of_ports(entry: Accelerator) -> Iterator[Doubt]:
    ports = entry.scale_up.bytes_per_s if entry.scale_up else None
    memory = entry.memory_bytes_per_s
    if memory is None or not _told(ports):
        return
    share = ports.value / memory.value
    if share > _LINK_OF_MEMORY:
        says = (
            f"{ports.value:g} bytes/s one way is {share:.2g} of the memory's bandwidth: Gb/s written for GB/s, or both directions summed? "
            f"At most {_LINK_OF_MEMORY:g} is accepted: ports are fed from memory, and the widest on record take a third of it"
        )
        yield Doubt(place="scale_up.bytes_per_s", says=says)


def _of_pod(entry: Pod) -> Iterator[Doubt]:
    known = [(index, tier) for index, tier in enumerate(entry.tiers) if tier.bytes_per_s]
    for (_, near), (index, far) in pairwise(known):
        assert near.bytes_per_s is not None
        assert far.bytes_per_s is not None
        if far.bytes_per_s.value > 1.5 * near.bytes_per_s.value and _told(far.bytes_per_s):
            says = (
                f"{far.bytes_per_s.value:g} bytes/s a rank on {far.name!r} is {far.bytes_per_s.value / near.bytes_per_s.value:.2g} times "
                f"the nearer tier {near.name!r}: Gb/s written for GB/s, or the speed of a whole node? Tiers stand nearest first, and "
                f"farther ones are not faster: at most 1.5 times is accepted"
            )
            yield Doubt(place=f"tiers[{index}].bytes_per_s", says=says)
