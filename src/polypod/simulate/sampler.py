"""The plain driver's series: its engines looked at every interval, and slowed where a cap asks for it."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from polypod.engine.replica import Glimpse
from polypod.policy.events import ReplicaUp
from polypod.record import Measure
from polypod.simulate.engines import Engines
from polypod.simulate.scenario import Scenario
from polypod.simulate.series import (
    COLUMNS,
    Cap,
    Draw,
    Floats,
    Watch,
    site_lines,
    slowdown,
    tick_lines,
    tier_lines,
)


class Sampler:
    """Knows what every replica had done by the last interval's end."""

    def __init__(self, scenario: Scenario, watch: Watch, engines: Engines) -> None:
        self.next_s = watch.interval_s
        self._watch = watch
        self._engines = engines
        self._ups = scenario.replicas
        self._pools = list(dict.fromkeys(up.pool for up in self._ups))
        self.last_s = 0.0
        self._ticks = 1
        self._before = np.zeros((len(self._pools), len(COLUMNS)))
        self._done = {up.replica: (0.0, 0.0) for up in self._ups}  # busy, and of that with prompts
        self._pool_of = {up.replica: up.pool for up in self._ups}
        self._dynamic_w: dict[str, float] = {}
        self._capped = {name: cap.name for cap in watch.caps for name in cap.replicas}
        self._slowdowns = {cap.name: 1.0 for cap in watch.caps}
        self._tiers = () if scenario.ways is None else scenario.ways.tiers
        self._bytes_before: Sequence[float] = [0.0] * len(self._tiers)

    def lines(
        self, at_s: float, queues: Mapping[str, int], tier_bytes: Sequence[float]
    ) -> Iterator[Measure]:
        """Close the interval at this time, with what has gone over each tier since the start."""
        rows = np.zeros_like(self._before)
        for up in self._ups:
            rows[self._pools.index(up.pool)] += self._row(up, at_s)
        pools = [(pool, pool in self._watch.draws) for pool in self._pools]
        yield from tick_lines(at_s, pools, rows, self._before, queues, self._slowdowns)
        yield from site_lines((self.last_s, at_s), pools, rows, self._watch.site)
        yield from tier_lines(at_s, self._tiers, tier_bytes, self._bytes_before)
        self._before, self.last_s, self._bytes_before = rows, at_s, tier_bytes
        self._ticks += 1
        self.next_s = self._ticks * self._watch.interval_s

    def slowed(self) -> Iterator[tuple[str, float]]:
        """Replicas whose cap changes their speed from now on, with how many times as long their steps take."""
        for cap in self._watch.caps:
            factor = self._asked(cap)
            if factor != self._slowdowns[cap.name]:
                self._slowdowns[cap.name] = factor
                for name in cap.replicas:
                    yield name, factor

    def _asked(self, cap: Cap) -> float:
        dynamic_w = idle_w = 0.0
        for name in cap.replicas:
            dynamic_w += self._dynamic_w[name]
            idle_w += self._draw(name).idle_w
        return slowdown(dynamic_w, cap.limit_w, idle_w)

    def _draw(self, name: str) -> Draw:
        return self._watch.draws[self._pool_of[name]]

    def _row(self, up: ReplicaUp, at_s: float) -> Floats:
        """One replica's part of its pool's row."""
        glimpse, done = self._engines.glimpse(up.replica, at_s)
        busy_s, prompt_busy_s = done[:2]
        watts = 0.0
        draw = self._watch.draws.get(up.pool)
        if draw is not None:
            before_s, prompts_before_s = self._done[up.replica]
            prompt_s = prompt_busy_s - prompts_before_s
            decode_s = busy_s - before_s - prompt_s
            spent = (draw.prompt_w - draw.idle_w) * prompt_s
            spent += (draw.decode_w - draw.idle_w) * decode_s
            self._dynamic_w[up.replica] = spent / (at_s - self.last_s)
            factor = self._slowdowns.get(self._capped.get(up.replica, ""), 1.0)
            watts = draw.idle_w + self._dynamic_w[up.replica] / (factor * factor)
        self._done[up.replica] = (busy_s, prompt_busy_s)
        return np.array([*_now(glimpse, up), *done, watts])


def _now(glimpse: Glimpse | None, up: ReplicaUp) -> tuple[float, ...]:
    if glimpse is None:
        return (0.0,) * 5
    return 1.0, glimpse.running, glimpse.waiting, glimpse.kv_tokens, up.kv_capacity_tokens
