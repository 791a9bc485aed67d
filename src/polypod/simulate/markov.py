"""The availability of a pool in closed form: replicas that fail on their own, spares that stand in, crews that repair.

A birth-death chain in two numbers, solved exactly: j units being repaired or waiting for it, i replicas starting (on a spare, after a
repair, or after a restart). Of n replicas with k spares w = max(0, j - k) wait for a unit and u = n - w - i are up.

    u * fail_per_s        j + 1, and i + 1 where a spare is free (j < k)
    u * restart_per_s     i + 1: nothing to repair
    crews(j) / repair_s   j - 1, and i + 1 where a replica waits (w > 0)
    i / start_s           i - 1

With start_s = 0 it is the chain of j alone, whose stationary distribution is the product of the ratios of its rates, rate up over
rate down. What it leaves out: failures of racks, nodes and links that stop several replicas at once, which make the capacity vary more, and faults
that take several spares. Means are enough for unlimited crews and no spares (the distribution of a repair does not matter there); else times are exponential.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError

Floats = NDArray[np.float64]

MOST_STATES: Final = 2500
"""Beyond, the distribution over starting replicas is cut where it no longer matters, then given up."""
_NEGLIGIBLE: Final = 1e-10
_INSTANT_S: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A pool. 0 crews: as many as are needed. Rates are of one replica that is up."""

    replicas: int
    spares: int = 0
    crews: int = 0
    fail_per_s: float
    repair_s: float
    restart_per_s: float = 0.0
    start_s: float = 0.0

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.spares < 0 or self.crews < 0:
            msg = f"a pool of {self.replicas} replicas, {self.spares} spares and {self.crews} crews cannot be; replicas from 1, the others from 0 on"
            raise InputError(msg)
        times = (self.fail_per_s, self.repair_s, self.restart_per_s, self.start_s)
        if not all(0 <= time < math.inf for time in times):
            msg = f"rates and times of a pool are finite and not negative, got {times}"
            raise InputError(msg)


def up_distribution(chain: Chain) -> Floats | None:
    """The share of time with 0 to n replicas up; None where the chain has too many states to be solved.

    One replica without spares is up for MTBF / (MTBF + MTTR) of the time:

    >>> float(up_distribution(Chain(replicas=1, fail_per_s=1 / 99.0, repair_s=1.0))[1].round(12))
    0.99
    """
    if chain.start_s < _INSTANT_S:
        return _birth_death(chain)
    return _two_numbers(chain)


def available(up: Floats, needed: int) -> float:
    """The share of time with at least so many replicas up.

    >>> available(np.array([0.0, 0.25, 0.25, 0.5]), 2)
    0.75
    """
    return float(min(1.0, up[max(needed, 0) :].sum())) if needed < len(up) else 0.0


def _crews(chain: Chain, broken: int) -> int:
    return min(broken, chain.crews) if chain.crews else broken


def _birth_death(chain: Chain) -> Floats:
    n, k = chain.replicas, chain.spares
    logs = [0.0]
    for j in range(n + k):
        up = n - max(0, j - k)
        gone = up * chain.fail_per_s
        back = _crews(chain, j + 1) / chain.repair_s if chain.repair_s else math.inf
        ratio = gone / back
        logs.append(logs[-1] + (math.log(ratio) if ratio > 0 else -math.inf))
    weights = np.exp(np.array(logs) - max(logs))
    share_J = weights / weights.sum()
    up_n = np.zeros(n + 1)
    for j, share in enumerate(share_J):
        up_n[n - max(0, j - k)] += share
    return up_n


def _two_numbers(chain: Chain) -> Floats | None:
    """Solved on as many states as hold all but a negligible share, more until they do."""
    n, k = chain.replicas, chain.spares
    most_j, most_i = min(n + k, 8), min(n, 8)
    while (most_j + 1) * (most_i + 1) <= MOST_STATES:
        share_JI = _solve(chain, most_j, most_i)
        is_whole_j = most_j == n + k or share_JI[-1].sum() < _NEGLIGIBLE
        is_whole_i = most_i == n or share_JI[:, -1].sum() < _NEGLIGIBLE
        if is_whole_j and is_whole_i:
            return _ups(chain, share_JI)
        most_j = most_j if is_whole_j else min(n + k, 2 * most_j)
        most_i = most_i if is_whole_i else min(n, 2 * most_i)
    return None


def _ups(chain: Chain, share_JI: Floats) -> Floats:
    n, k = chain.replicas, chain.spares
    up_n = np.zeros(n + 1)
    for (j, i), share in np.ndenumerate(share_JI):
        up = n - max(0, j - k) - i
        if up >= 0:
            up_n[up] += share
    return up_n


def _solve(chain: Chain, most_j: int, most_i: int) -> Floats:
    """The stationary distribution: balance of every state but one, and a sum of 1."""
    width = most_i + 1
    states = (most_j + 1) * width
    rates = np.zeros((states, states))
    inside = np.zeros(states, dtype=np.bool_)
    for j in range(most_j + 1):
        for i in range(width):
            waiting = max(0, j - chain.spares)
            if waiting + i > chain.replicas:
                continue
            inside[j * width + i] = True
            for to_j, to_i, rate in _moves(chain, j, i, waiting):
                if to_j <= most_j and to_i <= most_i:
                    rates[j * width + i, to_j * width + to_i] += rate
    kept = np.flatnonzero(inside)
    balance = rates[np.ix_(kept, kept)].T
    balance[np.diag_indices_from(balance)] -= balance.sum(axis=0)
    balance[-1] = 1.0
    right = np.zeros(len(kept))
    right[-1] = 1.0
    share = np.zeros(states)
    share[kept] = np.clip(np.linalg.solve(balance, right), 0.0, None)
    return np.asarray((share / share.sum()).reshape(most_j + 1, width), dtype=np.float64)


def _moves(chain: Chain, j: int, i: int, waiting: int) -> list[tuple[int, int, float]]:
    up = chain.replicas - waiting - i
    moves = [
        (j + 1, i + 1 if j < chain.spares else i, up * chain.fail_per_s),
        (j, i + 1, up * chain.restart_per_s),
    ]
    if j and chain.repair_s:
        moves.append((j - 1, i + 1 if waiting else i, _crews(chain, j) / chain.repair_s))
    if i:
        moves.append((j, i - 1, i / chain.start_s))
    return moves
