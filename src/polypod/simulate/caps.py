"""Caps on power: what may be said of racks, nodes, islands, parts of the fleet, pools and the site, as caps that a run holds.

A cap c of L watts over replicas whose share s_rc of their cards is in it allows of their power above idle

    rho_c = (L - sum s_rc idle_r) / sum s_rc (most_r - idle_r)

and a replica is slowed as the tightest of its caps asks, for all its cards go in step. Replicas under the same caps are held together, at

    sum idle_r + min over their caps of rho_c * sum (most_r - idle_r)

so one cap by itself is held as said, and what its replicas do not use others of them may; of nested or crossing caps each group has a fixed share, and no
cap is passed when all are at their most. Cards without a replica are taken to draw nothing. A cap of the site is on what it draws with cooling: it is divided by the highest PUE of
the weather.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from polypod import units
from polypod.errors import InputError, QuantityError, nearest_names
from polypod.simulate.placed import Level, Placed
from polypod.simulate.series import Cap, Draw

EACH: Final[dict[str, Level]] = {"node": "node", "rack": "rack", "island": "island"}
"""Words of which every instance is capped."""

WORDS: Final = (*EACH, "pod", "pool NAME", "site")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One thing that is said: `rack=120kW`, `pool chat=1MW`."""

    what: str
    name: str
    limit_w: float

    @property
    def label(self) -> str:
        return f"{self.what} {self.name}".strip()


def parse_cap(text: str) -> Asked:
    """Read `WHAT=POWER` or `WHAT NAME=POWER`. Raises `InputError`."""
    said, equals, power = text.partition("=")
    what, _, name = said.strip().partition(" ")
    known = {word.split()[0] for word in WORDS}
    is_named = {"pool": bool(name.strip()), "pod": True}.get(what, not name.strip())
    if not equals or what not in known or not is_named:
        msg = f"--power-cap {text} is none; write one of {', '.join(f'{word}=120kW' for word in WORDS)}"
        raise InputError(msg)
    try:
        limit_w = units.parse(power, "w")
    except QuantityError as error:
        msg = f"--power-cap {text}: {error}"
        raise QuantityError(msg) from error
    return Asked(what=what, name=name.strip(), limit_w=limit_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What one limit is on: replicas, each with the share of it that is there."""

    name: str
    limit_w: float
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """A plan's replicas: the pool of each, of each pool the share of its power on parts of the fleet, and where cards are, if that was asked for."""

    pool_of: Mapping[str, str]
    parts_of: Mapping[str, Mapping[str, float]]
    placed: Placed | None
    most_pue_ratio: float


def needs_places(asked: Sequence[Asked]) -> bool:
    """Whether any cap is of nodes, racks or islands."""
    return any(one.what in EACH for one in asked)


def feeds_of(asked: Asked, fed: Fed) -> Iterator[Feed]:
    """What one thing said is on. Raises `InputError` for a pool or a part of the fleet that is not there."""
    if asked.what in EACH:
        yield from _instances(asked, fed)
    elif asked.what == "site":
        limit_w = asked.limit_w / fed.most_pue_ratio
        yield Feed(name="site", limit_w=limit_w, shares=dict.fromkeys(fed.pool_of, 1.0))
    else:
        yield from _named(asked, fed)


def _named(asked: Asked, fed: Fed) -> Iterator[Feed]:
    """Of a pool or a part of the fleet, or of each part."""
    where = {pool: {pool: 1.0} for pool in fed.parts_of} if asked.what == "pool" else fed.parts_of
    known = list(dict.fromkeys(name for its in where.values() for name in its))
    if asked.name and asked.name not in known:
        near = ", ".join(nearest_names(asked.name, known) or known)
        msg = f"--power-cap {asked.label}: there is no {asked.what} of that name; nearest: {near}"
        raise InputError(msg)
    for name in [asked.name] if asked.name else known:
        its = {replica: where[pool][name] for replica, pool in fed.pool_of.items() if name in where[pool]}  # fmt: skip
        yield Feed(name=f"{asked.what} {name}", limit_w=asked.limit_w, shares=its)


def _instances(asked: Asked, fed: Fed) -> Iterator[Feed]:
    placed = fed.placed
    assert placed is not None, "nodes and racks are of replicas on cards"
    where_C = placed.instances_C(EACH[asked.what])
    shares: dict[int, dict[str, float]] = {}
    for name, first, cards in zip(placed.replicas, placed.first_card_R.tolist(), placed.cards_R.tolist(), strict=True):  # fmt: skip
        numbers, counts = np.unique(where_C[first : first + cards], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            shares.setdefault(number, {})[name] = count / cards
    for number, its in sorted(shares.items()):
        yield Feed(name=f"{asked.what} {number}", limit_w=asked.limit_w, shares=its)


def caps_of(feeds: Sequence[Feed], pool_of: Mapping[str, str], draws: Mapping[str, Draw]) -> tuple[Cap, ...]:  # fmt: skip
    """One cap for each group of replicas under the same limits. Raises `InputError` for a replica without watts, and for less than idle."""
    allowed = [_allowed(feed, pool_of, draws) for feed in feeds]
    groups: dict[tuple[int, ...], list[str]] = {}
    for replica in pool_of:
        under = tuple(n for n, feed in enumerate(feeds) if replica in feed.shares)
        if under:
            groups.setdefault(under, []).append(replica)
    found = []
    for under, replicas in groups.items():
        idle_w, above_w = _power(dict.fromkeys(replicas, 1.0), pool_of, draws)
        tightest = min(under, key=lambda n: allowed[n])
        limit_w = feeds[tightest].limit_w if _alone(under, feeds, replicas) else idle_w + allowed[tightest] * above_w  # fmt: skip
        found.append(Cap(name=" in ".join(feeds[n].name for n in under), replicas=tuple(replicas), limit_w=limit_w))  # fmt: skip
    return tuple(found)


def _alone(under: Sequence[int], feeds: Sequence[Feed], replicas: Sequence[str]) -> bool:
    """Whether a group is all of its one limit, whole: it is held as said."""
    shares = feeds[under[0]].shares
    return len(under) == 1 and len(shares) == len(replicas) and set(shares.values()) == {1.0}


def _allowed(feed: Feed, pool_of: Mapping[str, str], draws: Mapping[str, Draw]) -> float:
    """rho: of the power above idle at the most."""
    unknown = sorted({pool_of[name] for name in feed.shares} - set(draws))
    if unknown:
        msg = f"the power cap of {feed.name} holds replicas of {', '.join(unknown)}, of which no power is known; cap what has one: {', '.join(draws)}"
        raise InputError(msg)
    idle_w, above_w = _power(feed.shares, pool_of, draws)
    if feed.limit_w <= idle_w:
        msg = f"the power cap of {feed.name} is {units.show(feed.limit_w, 'w')}, and its replicas draw {units.show(idle_w, 'w')} idle; raise it above that"
        raise InputError(msg)
    return (feed.limit_w - idle_w) / above_w


def _power(
    shares: Mapping[str, float], pool_of: Mapping[str, str], draws: Mapping[str, Draw]
) -> tuple[float, float]:
    """Watts idle, and above that at the most."""
    idle_w = above_w = 0.0
    for replica, share in shares.items():
        draw = draws[pool_of[replica]]
        idle_w += share * draw.idle_w
        above_w += share * (max(draw.prompt_w, draw.decode_w) - draw.idle_w)
    return idle_w, above_w
