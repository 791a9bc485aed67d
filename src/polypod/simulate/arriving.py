"""Where a run's requests come from: single arrivals, or blocks of a trace that are made as they are played."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from polypod.errors import InputError
from polypod.simulate.native.layout import Integers, Rows, arrival_rows, rows_of
from polypod.simulate.trace import Arrival, one_arrival
from polypod.workload.traffic import Trace
from polypod.workload.traffic_loop import ClosedLoop


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Arrivals in order of time, the hashes that they point into, and whether none follow."""

    rows: Rows
    hashes: Integers
    is_last: bool


class Arriving(Protocol):
    """What a run reads. Requests are numbered from 1 in the order they arrive."""

    def block(self, models: Sequence[str]) -> Block:
        """The next arrivals as the core reads them."""

    def asked(self, request: int) -> Arrival:
        """A request of this block or the last one of that before it."""


class Listed:
    """Arrivals that are there, in order of time."""

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._arrivals = sorted(arrivals, key=lambda arrival: arrival.at_s)

    def block(self, models: Sequence[str]) -> Block:
        rows, hashes = rows_of(self._arrivals, models)
        return Block(rows=rows, hashes=hashes, is_last=True)

    def asked(self, request: int) -> Arrival:
        return self._arrivals[request - 1]


class Blocks:
    """Blocks of a trace, each made when the one before it has been read. Raises `InputError` where they hold no request."""

    def __init__(self, blocks: Iterator[Trace]) -> None:
        self._blocks = blocks
        self._next = next(blocks, None)
        self._before: Arrival | None = None
        self._block: Trace | None = None
        self._numbers: dict[str, int] = {}  # of tenants
        self._first = 1  # the number of the block's first request
        if self._next is None:
            msg = "no request arrives in the time that was asked for; make it longer"
            raise InputError(msg)

    def block(self, models: Sequence[str]) -> Block:
        """The tenants in it are numbers of `tenants`."""
        if self._block is not None:
            self._before = self.asked(self._first + len(self._block) - 1)
            self._first += len(self._block)
        assert self._next is not None, "no block follows the last"
        self._block, self._next = self._next, next(self._blocks, None)
        self._model = models[0]
        rows, hashes = arrival_rows(self._block, models)
        places = [
            self._numbers.setdefault(name, len(self._numbers)) for name in self._block.tenants
        ]
        rows["tenant"] = np.array(places)[self._block.tenant]
        return Block(rows=rows, hashes=hashes, is_last=self._next is None)

    @property
    def first(self) -> Trace:
        """The block that is read next."""
        assert self._next is not None, "all blocks have been read"
        return self._next

    @property
    def tenants(self) -> tuple[str, ...]:
        """Of the blocks so far."""
        return tuple(self._numbers)

    def asked(self, request: int) -> Arrival:
        if request < self._first:
            assert self._before is not None, f"request {request} is of a block that is gone"
            return self._before
        assert self._block is not None, "no block has been read"
        return one_arrival(self._block, request - self._first, self._model)


class Looped:
    """The requests of a closed loop, in the order they are sent; their times are those to think."""

    tenants = ("",)

    def __init__(self, loop: ClosedLoop) -> None:
        self.loop = loop

    def block(self, models: Sequence[str]) -> Block:
        self._model = models[0]
        rows, hashes = arrival_rows(self.loop.trace, models)
        rows["at_s"] = self.loop.think_s
        return Block(rows=rows, hashes=hashes, is_last=True)

    def asked(self, request: int) -> Arrival:
        """With a time that means nothing."""
        return one_arrival(self.loop.trace, request - 1, self._model)
