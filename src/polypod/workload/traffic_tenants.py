"""Who sends the requests, where a trace does not say: tenants with shares and priorities, drawn from a seed.

All requests of a session are one tenant's. The draw of a session is a function of the seed and its number, that of a request without one of
the seed and its place: so they are the same in whatever blocks a trace is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError
from polypod.workload.traffic_rows import Counts, Floats, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """One who sends a share of the requests (3 and 1 are three quarters and one), all of one priority."""

    name: str
    share: float
    priority: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < float("inf"):
            msg = f"tenant {self.name!r} has the share {self.share:g}; give a positive number"
            raise InputError(msg)


def with_tenants(
    pieces: Iterator[Trace], tenants: tuple[Tenant, ...], seed: int
) -> Iterator[Trace]:
    """The same requests, each of one of these tenants and of its priority. Raises `InputError` for a trace that says whose they are."""
    bounds = np.cumsum([tenant.share for tenant in tenants])[:-1] / sum(t.share for t in tenants)
    priorities = np.array([tenant.priority for tenant in tenants], dtype=np.int64)
    names = tuple(tenant.name for tenant in tenants)
    begun = 0
    for piece in pieces:
        if piece.tenants != ("",):
            msg = f"{piece.name} says whose its requests are ({', '.join(piece.tenants[:5])}); leave out the tenants, or its column"
            raise InputError(msg)
        place = np.arange(begun, begun + len(piece))
        key = np.where(piece.session < 0, 2 * place, 2 * piece.session + 1)
        tenant = np.searchsorted(bounds, even(key, seed), side="right").astype(np.int64)
        yield replace(piece, tenant=tenant, tenants=names, priority=priorities[tenant])
        begun += len(piece)


_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = ((30, np.uint64(0xBF58476D1CE4E5B9)), (27, np.uint64(0x94D049BB133111EB)))


def even(keys: Counts, seed: int) -> Floats:
    """A number from 0 to below 1 for each key, as if drawn evenly: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of the key and the seed's."""
    start = _mixed(np.full(1, seed % 2**63, dtype=np.uint64))
    bits = _mixed(keys.astype(np.uint64) + start)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bits = state * _GOLDEN + _GOLDEN
    for shift, factor in _MIX:
        bits = (bits ^ (bits >> np.uint64(shift))) * factor
    return bits ^ (bits >> np.uint64(31))
