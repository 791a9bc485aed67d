"""A fleet behind several gateways: independent nodes, each with a part of the replicas, of the traffic, and a policy of its own.

One policy weighs all its replicas for every request, so that a fleet of n under one costs as n^2; behind gateways of a fixed size it costs as n. It is also how
very large fleets are run: a front door for each pod. Nothing spills from one gateway to another, so a gateway whose
replicas are full or broken queues and rejects while others are idle.

Replicas go to gateways in their order, pool by pool, so that neighbours in a rack mostly stay together: of n replicas of a pool the i-th, from 0, goes to gateway
floor(i * gateways / n). A request goes by its session, where it has one, so that a conversation stays with its caches, else by its
place in the traffic; both by a seeded hash.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np

from polypod.errors import InputError
from polypod.policy.events import ReplicaUp
from polypod.record import FaultNote
from polypod.simulate.scenario import Scenario
from polypod.simulate.series import Cap, Watch
from polypod.workload.traffic import Trace
from polypod.workload.traffic_rows import Counts
from polypod.workload.traffic_tenants import even

_APART: Final = 0x6761746577617973
"""Added to the seed, so that a request's gateway says nothing of its tenant, which is drawn from the same numbers."""


def split(scenario: Scenario, gateways: int) -> tuple[Scenario, ...]:
    """The scenario of each gateway, in order; their arrivals come apart (`Doors`).

    A cap whose replicas are behind several gateways is held by each over its own, at their share of the limit. A fault that hits no replica is told by
    the first. Raises `InputError` where a pool has fewer replicas than there are gateways.
    """
    door = _doors_of(scenario.replicas, gateways)
    return tuple(_part(scenario, door, which, gateways) for which in range(gateways))


def gateway_of(trace: Trace, first: int, gateways: int, seed: int) -> Counts:
    """The gateway of each request [n] of a block whose first request is number `first` of the traffic, from 0."""
    place = np.arange(first, first + len(trace))
    key = np.where(trace.session < 0, 2 * place, 2 * trace.session + 1)
    return (even(key, seed + _APART) * gateways).astype(np.int64)


class Doors:
    """One traffic, read once, and given out by gateway. Each of `mine` is read with `of`, in step with the others: what one is ahead is kept for the rest."""

    def __init__(self, blocks: Iterator[Trace], gateways: int, seed: int, mine: Sequence[int]) -> None:  # fmt: skip
        self._blocks = blocks
        self._gateways = gateways
        self._seed = seed
        self._kept: dict[int, deque[Trace]] = {which: deque() for which in mine}
        self._first = 0

    def of(self, which: int) -> Iterator[Trace]:
        """The requests of one gateway, in order, block by block."""
        kept = self._kept[which]
        while True:
            while not kept:
                block = next(self._blocks, None)
                if block is None:
                    return
                self._give_out(block)
            yield kept.popleft()

    def _give_out(self, block: Trace) -> None:
        door = gateway_of(block, self._first, self._gateways, self._seed)
        self._first += len(block)
        order = np.argsort(door, kind="stable")
        bounds = np.searchsorted(door[order], np.arange(self._gateways + 1))
        for which, kept in self._kept.items():
            rows = order[bounds[which] : bounds[which + 1]]
            if len(rows):
                kept.append(block.take(rows))


def _doors_of(replicas: Sequence[ReplicaUp], gateways: int) -> dict[str, int]:
    """The gateway of each replica, by name."""
    pools: dict[str, list[str]] = {}
    for up in replicas:
        pools.setdefault(up.pool, []).append(up.replica)
    for pool, names in pools.items():
        if len(names) < gateways:
            msg = f"{gateways} gateways each need a replica of every pool, and {pool} has {len(names)}; say {len(names)} gateways at most"
            raise InputError(msg)
    return {
        name: place * gateways // len(names)
        for names in pools.values()
        for place, name in enumerate(names)
    }


def _part(scenario: Scenario, door: dict[str, int], which: int, gateways: int) -> Scenario:
    """What is behind one gateway."""
    mine = {name for name, its in door.items() if its == which}
    return replace(
        scenario,
        replicas=tuple(up for up in scenario.replicas if up.replica in mine),
        faults=tuple(fault for fault in scenario.faults if fault.replica in mine),
        notes=tuple(_notes(scenario.notes, mine, is_first=which == 0)),
        slowdowns={name: by for name, by in scenario.slowdowns.items() if name in mine},
        watch=None if scenario.watch is None else _watch(scenario.watch, mine, which),
        gateway=which,
        gateways=gateways,
    )


def _notes(notes: Sequence[FaultNote], mine: set[str], *, is_first: bool) -> Iterator[FaultNote]:
    """Of what broke, what is told here: the faults of these replicas, and those of none."""
    for note in notes:
        hit = tuple(name for name in note.replicas if name in mine)
        if hit or (is_first and not note.replicas):
            yield msgspec.structs.replace(note, replicas=hit)


def _watch(watch: Watch, mine: set[str], which: int) -> Watch:
    return replace(watch, caps=tuple(_caps(watch.caps, mine, which)))


def _caps(caps: Sequence[Cap], mine: set[str], which: int) -> Iterator[Cap]:
    for cap in caps:
        hit = tuple(name for name in cap.replicas if name in mine)
        if len(hit) == len(cap.replicas):
            yield cap
        elif hit:
            share = len(hit) / len(cap.replicas)
            yield replace(cap, name=f"{cap.name}, gateway {which}", replicas=hit, limit_w=cap.limit_w * share)  # fmt: skip
