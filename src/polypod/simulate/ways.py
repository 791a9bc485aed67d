"""Shared links that caches cross between replicas, as arrays that both drivers read: which each replica's take into each tier, and how wide they are.

A replica's caches leave by all its ranks at once (`handover`), so what it takes into a tier is one *way*: the links up into the tier of all the
groups that its ranks are in, as wide as they are together, and as many down. Replicas that are in one group take one way. Where a replica's ranks begin
or end in the middle of a group that another is in too, all groups that hang together so are one way; nothing then tells which of them is full.

Two replicas meet in the nearest tier of which both are in one instance; between parts of a fleet that is where both lead out. From one to the other
a cache crosses the source's ways up into the tiers on the port that leads there, up to that one, and the target's ways down from it. A tier without
a way is entered by the ranks' ports alone, which are the replica's own link.

Shape key: R replicas, T tiers by their place in a part (the last: between parts), W ways. One way has two links, up and down, of one capacity.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NO_WAY: Final = -1
NOT_IN: Final = -1
MOST_TIERS: Final = 8
"""Of a part, and the one between parts: a cache then crosses 16 shared links at most."""

EXACT_CACHES: Final = 32

TOLERANCE_RATIO: Final = 1 / 32
"""Beyond `EXACT_CACHES` a link tells its caches of a new level once it has moved by more than this."""

LEVEL_ROUNDS: Final = 4
"""In which levels are made where more than `EXACT_CACHES` go for the first time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """Ways between the replicas of a scenario, in its order.

    `way_RT` is what a replica takes into a tier (`NO_WAY`: ports alone), `instance_RT` the instance it lies in (`NOT_IN`: in none), `first_RT` the first tier
    on the same port, `tier_RT` the tier's number in `tiers`. `port_bytes_per_s_R` is a replica's own link as caches find it, over all its ranks and
    one way; 0 has no end. At most `exact_caches` on the way get max-min rates, more of them what levels say (`transfers`).
    """

    tiers: tuple[str, ...]
    names: tuple[str, ...]
    capacity_bytes_per_s_W: Floats
    way_RT: Ints
    instance_RT: Ints
    first_RT: Ints
    tier_RT: Ints
    port_bytes_per_s_R: Floats
    exact_caches: int = EXACT_CACHES

    def __post_init__(self) -> None:
        if self.way_RT.shape[1] > MOST_TIERS or len(self.tiers) > 64:
            msg = f"{self.way_RT.shape[1]} tiers in a row and {len(self.tiers)} in all; caches are played over {MOST_TIERS} in a row and 64 in all"
            raise InputError(msg)
        if not (self.capacity_bytes_per_s_W > 0).all():
            name = self.names[int(np.argmin(self.capacity_bytes_per_s_W))]
            msg = f"the way {name!r} has a capacity of {self.capacity_bytes_per_s_W.min():g} bytes/s; give it more than 0, and break it with a fault"
            raise InputError(msg)

    def meet(self, source: int, target: int) -> int:
        """The place of the nearest tier that both are in; `NOT_IN` where nothing joins them."""
        one, other = self.instance_RT[source], self.instance_RT[target]
        both = np.flatnonzero((one == other) & (one != NOT_IN))
        return int(both[0]) if len(both) else NOT_IN

    def path(self, source: int, target: int) -> tuple[list[int], list[int]]:
        """The links that a cache crosses, way w's up as 2 w and its down as 2 w + 1, and the tiers (their numbers, each once)."""
        meets = self.meet(source, target)
        links: list[int] = []
        tiers: dict[int, None] = {}
        for replica, down in ((source, 0), (target, 1)):
            for place in range(int(self.first_RT[replica, meets]), meets + 1) if meets != NOT_IN else ():  # fmt: skip
                tiers[int(self.tier_RT[replica, place])] = None
                way = int(self.way_RT[replica, place])
                if way != NO_WAY:
                    links.append(2 * way + down)
        tiers.pop(NO_WAY, None)
        return links, list(tiers)
