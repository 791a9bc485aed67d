"""Failures drawn over a run: which component, when, for how long; as arrays, in the order of time.

Shape key: F failures. Each kind in each part of the fleet has a generator of its own, so that a kind more or a rate changed leaves the
others as they were. A component of shape 1 fails as a Poisson process over the whole run, and whoever plays it drops what falls on something
that is down: without memory that is the process of a component whose life starts anew with every repair. Another shape is drawn as lives
and repairs in turn, from new at the start. Repairs are exponential, with the mean of their rate.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError
from polypod.simulate.failure_rates import KINDS, Rate
from polypod.simulate.placed import Part, Placed
from polypod.simulate.spots import Domains, Spot, count_of, size_of, spot

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_ORDER = tuple(KINDS)
MOST_FAILURES = 50_000_000
"""More would not fit into memory; a run that long is many runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """`kind_F` indexes `rates`, `part_F` the parts of the fleet, `number_F` counts within a part; cards are of the whole fleet."""

    rates: tuple[Rate, ...]
    at_s_F: Floats
    repair_s_F: Floats
    kind_F: Ints
    part_F: Ints
    number_F: Ints
    first_card_F: Ints
    end_card_F: Ints

    def __len__(self) -> int:
        return len(self.at_s_F)

    def flags_F(self, flags: Sequence[bool]) -> Bools:
        """A property of each rate, for every failure."""
        return np.array(flags, dtype=np.bool_)[self.kind_F] if len(self) else np.zeros(0, dtype=np.bool_)  # fmt: skip

    def spot(self, failure: int, placed: Placed, domains: Domains) -> Spot:
        rate = self.rates[int(self.kind_F[failure])]
        part = placed.parts[int(self.part_F[failure])]
        return spot(part, rate.kind.of, int(self.number_F[failure]), domains)


def draw(
    placed: Placed,
    rates: Mapping[str, Rate],
    duration_s: float,
    *,
    seed: int,
    domains: Domains | None = None,
) -> Timeline:
    """Failures of every component of the fleet, used or not, from 0 to `duration_s`; the same seed draws the same.

    Raises `InputError` for a duration that is none, and for more failures than can be held.
    """
    if not 0 < duration_s < math.inf:
        msg = f"failures are drawn over a time above 0 s, got {duration_s:g} s"
        raise InputError(msg)
    known = tuple(rates.values())
    where = domains or Domains()
    drawn = [
        _drawn(part, rate, duration_s, np.random.default_rng([seed, _ORDER.index(rate.kind.name), number]), where)
        for rate in known
        for number, part in enumerate(placed.parts)
        if part.place is not None  # a host's cores are no accelerators
    ]  # fmt: skip
    labels = [
        (kind, number)
        for kind in range(len(known))
        for number, part in enumerate(placed.parts)
        if part.place is not None
    ]
    counts = [len(at_s) for at_s, _, _ in drawn]
    at_s_F = np.concatenate([np.zeros(0), *(at_s for at_s, _, _ in drawn)])
    repair_s_F = np.concatenate([np.zeros(0), *(repair_s for _, _, repair_s in drawn)])
    number_F = np.concatenate([np.zeros(0, np.int64), *(number for _, number, _ in drawn)])
    kind_F, part_F = (
        np.repeat(np.array([label[column] for label in labels], dtype=np.int64), counts)
        for column in (0, 1)
    )
    order = np.argsort(at_s_F, kind="stable")
    found = Timeline(
        rates=known,
        at_s_F=at_s_F[order],
        repair_s_F=repair_s_F[order],
        kind_F=kind_F[order],
        part_F=part_F[order],
        number_F=number_F[order],
        first_card_F=np.zeros(0, dtype=np.int64),
        end_card_F=np.zeros(0, dtype=np.int64),
    )
    return _with_cards(found, placed, where)


def _drawn(
    part: Part, rate: Rate, duration_s: float, random: np.random.Generator, domains: Domains
) -> tuple[Floats, Ints, Floats]:
    """Times, components and repairs of one kind in one part, not in order."""
    components = count_of(part, rate.kind.of, domains)
    expected = components * duration_s / rate.mtbf_s
    if expected > MOST_FAILURES:
        msg = f"{rate.kind.name} would fail {expected:,.0f} times in {part.name!r}, more than {MOST_FAILURES:,}; make the run shorter, or its MTBF longer"
        raise InputError(msg)
    if rate.shape != 1.0:
        return _renewed(components, rate, duration_s, random)
    count = int(random.poisson(expected))
    at_s = random.uniform(0.0, duration_s, count)
    number = random.integers(0, components, count)
    return at_s, number, random.exponential(rate.repair_s, count)


def _renewed(
    components: int, rate: Rate, duration_s: float, random: np.random.Generator
) -> tuple[Floats, Ints, Floats]:
    """Lives and repairs in turn. Weibull's mean is scale * gamma(1 + 1 / shape), which is made `mtbf_s`."""
    scale_s = rate.mtbf_s / math.gamma(1 + 1 / rate.shape)
    number = np.arange(components, dtype=np.int64)
    now_s = np.zeros(components)
    times: list[Floats] = [np.zeros(0)]
    numbers: list[Ints] = [np.zeros(0, dtype=np.int64)]
    repairs: list[Floats] = [np.zeros(0)]
    while len(number):
        now_s = now_s + scale_s * random.weibull(rate.shape, len(number))
        number, now_s = number[now_s < duration_s], now_s[now_s < duration_s]
        repair_s = random.exponential(rate.repair_s, len(number))
        times.append(now_s)
        numbers.append(number)
        repairs.append(repair_s)
        now_s = now_s + repair_s
    return np.concatenate(times), np.concatenate(numbers), np.concatenate(repairs)


def _with_cards(found: Timeline, placed: Placed, domains: Domains) -> Timeline:
    sizes_KP = np.array([[size_of(part, rate.kind.of, domains) for part in placed.parts] for rate in found.rates], dtype=np.int64).reshape(len(found.rates), len(placed.parts))  # fmt: skip
    size_F = sizes_KP[found.kind_F, found.part_F]
    begin_F = np.array([part.first_card for part in placed.parts], dtype=np.int64)[found.part_F]
    end_F = begin_F + np.array([part.cards for part in placed.parts], dtype=np.int64)[found.part_F]
    first_F = begin_F + found.number_F * size_F
    return replace(found, first_card_F=first_F, end_card_F=np.minimum(first_F + size_F, end_F))
