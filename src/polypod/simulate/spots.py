"""Where something breaks: `card a/17`, `node a/2`, `rack a/3`, `link card a/17`, `cooling a/0`, `power a/1`, `island a`, and the cards of it.

Numbers count from 0 within a part of the fleet. A cooling unit and a power feed serve so many consecutive racks, one unless it is
said; `link card` is a card's own port, `link node` a node's way out, `link rack` a rack's uplink.
"""

import re
from dataclasses import dataclass
from typing import Final, get_args

from polypod.errors import InputError, nearest_names
from polypod.simulate.failure_rates import Of
from polypod.simulate.placed import Level, Part, Placed

OFS: Final[tuple[Of, ...]] = get_args(Of)

_LEVELS: Final[dict[Of, Level]] = {
    "card": "card", "node": "node", "rack": "rack", "island": "island", "cooling": "rack", "power": "rack",
    "link card": "card", "link node": "node", "link rack": "rack",
}  # fmt: skip

_WHERE: Final = re.compile(r"(?P<of>(?:link\s+)?[a-z]+)\s+(?P<part>[^/\s]+)(?:\s*/\s*(?P<number>\d+))?\Z")  # fmt: skip
_EXAMPLES: Final = "'card a/17', 'node a/2', 'rack a/3', 'island a', 'link card a/17', 'link node a/2', 'link rack a/3', 'cooling a/0', 'power a/0' or 'replica NAME'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Domains:
    """How many racks stand on one cooling unit and on one power feed."""

    cooling_racks: int = 1
    power_racks: int = 1

    def racks(self, of: Of) -> int:
        return {"cooling": self.cooling_racks, "power": self.power_racks}.get(of, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """A place of the fleet: cards `first_card` up to `end_card` of the whole fleet; a link is of those cards together."""

    of: Of | None  # None: a replica, which is where its cards are
    name: str
    first_card: int
    end_card: int
    replica: str | None = None

    @property
    def is_link(self) -> bool:
        return self.of is not None and self.of.startswith("link")


def size_of(part: Part, of: Of, domains: Domains) -> int:
    """Cards of one component."""
    return part.size(_LEVELS[of]) * domains.racks(of)


def count_of(part: Part, of: Of, domains: Domains) -> int:
    """Components of a part."""
    return -(-part.cards // size_of(part, of, domains))


def spot(part: Part, of: Of, number: int, domains: Domains) -> Spot:
    """One component. Its number is not checked.

    An island of several is told by its number, a part that is one by its name alone.
    """
    size = size_of(part, of, domains)
    first = number * size
    bare = of == "island" and count_of(part, of, domains) == 1
    return Spot(
        of=of,
        name=f"{of} {part.name}" if bare else f"{of} {part.name}/{number}",
        first_card=part.first_card + first,
        end_card=part.first_card + min(first + size, part.cards),
    )


def read_spot(text: str, placed: Placed, domains: Domains) -> Spot:
    """Where a text says. Raises `InputError` with the limit and the nearest for what is not there."""
    word, _, rest = " ".join(text.split()).partition(" ")
    if word == "replica":
        return _replica(rest, placed)
    match = _WHERE.match(" ".join(text.split()))
    if match is None:
        msg = f"{text!r} is no place; write {_EXAMPLES}"
        raise InputError(msg)
    of = next((one for one in OFS if one == match["of"]), None)
    if of is None:
        near = ", ".join(nearest_names(match["of"], OFS) or OFS)
        msg = f"{text!r}: nothing here is a {match['of']!r}; nearest: {near}"
        raise InputError(msg)
    parts = {part.name: part for part in placed.parts}
    if match["part"] not in parts:
        near = ", ".join(nearest_names(match["part"], parts) or list(parts)[:5])
        msg = f"{text!r}: no part of the fleet is called {match['part']!r}; nearest: {near}"
        raise InputError(msg)
    return _numbered(text, parts[match["part"]], of, match["number"], domains)


def _numbered(text: str, part: Part, of: Of, number: str | None, domains: Domains) -> Spot:
    count = count_of(part, of, domains)
    if number is None and count > 1:
        msg = f"{text!r}: {part.name!r} has {count} of these; say which, '{of} {part.name}/0' to '{of} {part.name}/{count - 1}'"
        raise InputError(msg)
    found = int(number or 0)
    if found >= count:
        msg = f"{text!r}: {part.name!r} has {count} of these, numbered from 0; nearest: '{of} {part.name}/{count - 1}'"
        raise InputError(msg)
    return spot(part, of, found, domains)


def _replica(name: str, placed: Placed) -> Spot:
    if name not in placed.replicas:
        near = ", ".join(nearest_names(name, placed.replicas) or placed.replicas[:5])
        msg = f"no replica of this plan is called {name!r}; nearest: {near}"
        raise InputError(msg)
    row = placed.replicas.index(name)
    first = int(placed.first_card_R[row])
    return Spot(
        of=None,
        name=f"replica {name}",
        first_card=first,
        end_card=first + int(placed.cards_R[row]),
        replica=name,
    )
