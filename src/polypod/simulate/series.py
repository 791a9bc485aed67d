"""What a run looks like over time: at every interval, how much runs, waits and is held, what was done since, and what it draws.

A replica that is busy a share p of an interval with prompts and a share d with decode steps alone draws in the mean

    idle + ((prompt - idle) * p + (decode - idle) * d) / f^2

where f is how many times as long its steps take under a power cap. Under a cap the steps of the interval that comes take as many
times as long as would have held the last one, and `MOST_SLOWDOWN` at most.

The exponent is that of power over clock, between 1 at a fixed voltage and 3 where voltage follows the clock. Measured, it falls with depth. Prompts on RTX 3090
capped from 350 W to 300, 250, 200 and 150 W run at 0.943, 0.853, 0.601 and 0.258 of their speed
(https://llmgarage.ai/power-limit-tokens-per-second-benchmark): exponents of 2.9, 2.4, 1.2 and 0.7 over 30 W idle. With 2 the speed is 3 % too low at 300 and 250 W,
a fifth too high at 200 W, and more than twice too high at 150 W, where no sensible cap is. Decode waits for memory and loses less: LLaMA 65B on A100 capped from
250 to 175 W took 6 to 7 % longer for 23 % less energy (https://arxiv.org/abs/2310.03003), an exponent of 6 to 7; from 2842 to 180 MHz
decode takes 1 to 6 % longer (https://arxiv.org/abs/2501.08219). So under a cap decode is slowed more here than it would be.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError
from polypod.record import Measure
from polypod.simulate.cooling import Site

Floats = NDArray[np.float64]

MOST_SLOWDOWN: Final = 4.0
"""A capped chip runs at a quarter of its clock or more."""

NOW: Final = ("up", "running", "waiting", "kv_tokens", "kv_capacity_tokens")
"""Of a pool at the moment: replicas up, requests inside engines, cache."""

SINCE: Final = ("busy_s", "prompt_busy_s", "prompt_tokens", "output_tokens")
"""Of a pool in the interval: seconds summed over its replicas, tokens computed and given."""

COLUMNS: Final = (*NOW, *SINCE, "watts")


SITE: Final = "site"
"""What measures with cooling are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What one replica draws, hosts and network included: idle, in steps that carry prompts, in decode steps alone."""

    idle_w: float
    prompt_w: float
    decode_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """Replicas that share a feed, and what they may draw together."""

    name: str
    replicas: tuple[str, ...]
    limit_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What is measured while a run is played, every `interval_s`. `draws` are by pool; without them there are no watts."""

    interval_s: float
    draws: Mapping[str, Draw] = field(default_factory=dict)
    caps: tuple[Cap, ...] = ()
    site: Site | None = None

    def __post_init__(self) -> None:
        if not 0 < self.interval_s < math.inf:
            msg = f"a series every {self.interval_s:g} s is none; give an interval above 0 s"
            raise InputError(msg)


def check_caps(watch: Watch, pool_of: Mapping[str, str]) -> None:
    """Raise `InputError` for a cap that cannot be held: no such replica, one under two caps, no power known, less than idle."""
    seen: dict[str, str] = {}
    for cap in watch.caps:
        idle_w = 0.0
        for name in cap.replicas:
            if pool_of.get(name) not in watch.draws:
                msg = f"the cap of {cap.name} holds {name!r}, of which no power is known; name replicas of {', '.join(watch.draws) or 'pools with a power'}"
                raise InputError(msg)
            if name in seen:
                msg = f"{name!r} is under the caps of {seen[name]} and of {cap.name}; put it under one"
                raise InputError(msg)
            seen[name] = cap.name
            idle_w += watch.draws[pool_of[name]].idle_w
        if cap.limit_w <= idle_w:
            msg = f"the cap of {cap.name} is {cap.limit_w:g} W, and its {len(cap.replicas)} replicas draw {idle_w:g} W idle; raise it above that"
            raise InputError(msg)


def slowdown(dynamic_w: float, limit_w: float, idle_w: float) -> float:
    """How many times as long steps must take for this dynamic power, as it would be at the full clock, to stay below the limit."""
    allowed_w = limit_w - idle_w
    return min(math.sqrt(dynamic_w / allowed_w), MOST_SLOWDOWN) if dynamic_w > allowed_w else 1.0


def tick_lines(
    at_s: float,
    pools: Sequence[tuple[str, bool]],
    rows: Floats,
    before: Floats,
    queues: Mapping[str, int],
    slowdowns: Mapping[str, float],
) -> Iterator[Measure]:
    """The lines of one interval's end.

    `pools` are names, and whether their power is known; `rows` and `before` are pools x `COLUMNS`, the seconds and tokens counted from the
    run's start, now and at the last interval's end. `queues` are requests that wait for each model, `slowdowns` those of each cap.
    """
    for (pool, has_power), row, last in zip(pools, rows.tolist(), before.tolist(), strict=True):
        values = dict(zip(COLUMNS, row, strict=True))
        values |= {name: values[name] - last[COLUMNS.index(name)] for name in SINCE}
        if not has_power:
            del values["watts"]
        for name, value in values.items():
            yield Measure(at_s=at_s, of=pool, name=name, value=value)
    for model, waiting in queues.items():
        yield Measure(at_s=at_s, of=model, name="queue", value=float(waiting))
    for cap, factor in slowdowns.items():
        yield Measure(at_s=at_s, of=cap, name="slowdown", value=factor)


def site_lines(
    span_s: tuple[float, float], pools: Sequence[tuple[str, bool]], rows: Floats, site: Site | None
) -> Iterator[Measure]:
    """The lines of the site of one interval, from its first to its last second: the weather at its end, PUE, watts with cooling, kg of CO2 since.

    They follow from the time and the pools' watts alone, so that every driver says the same.
    """
    began_s, at_s = span_s
    watts = {
        pool: float(row[-1])
        for (pool, has_power), row in zip(pools, rows, strict=True)
        if has_power
    }
    if site is None or not watts:
        return
    site_w, it_w = site.site_w(watts, at_s), sum(watts.values())
    found = {"pue": site_w / it_w, "site_watts": site_w, "co2_kg": site.co2_kg(site_w, at_s - began_s)}  # fmt: skip
    if site.outside is not None:
        found["outside_celsius"] = site.outside.celsius(at_s)
    for name, value in found.items():
        yield Measure(at_s=at_s, of=SITE, name=name, value=value)


def tier_lines(
    at_s: float, tiers: Sequence[str], now: Sequence[float], before: Sequence[float]
) -> Iterator[Measure]:
    """What caches sent over each tier in the interval that ends, of bytes since the run's start now and at the last interval's end."""
    for tier, sent, last in zip(tiers, now, before, strict=True):
        yield Measure(at_s=at_s, of=tier, name="bytes", value=sent - last)
