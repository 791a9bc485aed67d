"""A record as columns: what came of every request, where it stayed and waited, replicas, faults and measured series.

One pass over the lines (`fold.py`) fills them; every report reads them. Arrays of one table have one length: requests in the order of arrival [N],
stays [S], waits [W]. A time that never came is NaN, an index that stands for nothing is -1.

A *wait* is time of a request with no place: from its arrival, or from a retry, to the next place. A *stay* is time at a replica: a whole request,
the computing of its prompt, the transfer of its cache (at the replica it goes to), or its decoding. One request's waits and stays do not overlap, and
together they last from its arrival to its end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from polypod.record import Header

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

OPEN: Final = 0
FINISHED: Final = 200
GONE: Final = 499
"""What became of a request: its HTTP status, and these where it has none: it was open at the end, or its client left."""

WHOLE: Final = 0
PREFILL: Final = 1
TRANSFER: Final = 2
DECODE: Final = 3
ROLES: Final = ("whole", "prefill", "transfer", "decode")

SENT_ON: Final = ("finished", "prefilled", "arrived")
"""How a stay ends that did what it was for. Any other ending is the reason of a retry, `rejected`, `gone`, or nothing: it was open."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """Columns [N], in the order of arrival."""

    number: Ints
    arrival_s: Floats
    model: Ints  # into `Outcomes.models`
    tenant: Ints  # into `Outcomes.tenants`
    priority: Ints
    input_tokens: Ints
    output_tokens: Ints  # 0 where it did not finish
    first_s: Floats  # when its first token was heard of; NaN for an answer in one piece
    end_s: Floats
    status: Ints
    code: Ints  # of a rejection, into `Outcomes.codes`
    attempts: Ints
    prefill_replica: Ints  # where its prompt was computed last, into `Outcomes.replicas`
    decode_replica: Ints
    placed_s: Floats  # when the last attempt was dispatched
    predicted_first_token_s: Floats  # by the router, from `placed_s` on


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stays:
    """Columns [S]: time of requests at replicas. One that was open at the end of the record ends there, with ending -1."""

    row: Ints  # the request, into the columns of `Requests`
    replica: Ints
    role: Ints  # into `ROLES`
    attempt: Ints
    begin_s: Floats
    end_s: Floats
    ending: Ints  # into `Outcomes.endings`
    predicted_first_token_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waits:
    """Columns [W]: time of requests without a place, more than none. One that was open at the end of the record ends there."""

    row: Ints
    begin_s: Floats
    end_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replica:
    """One replica. Up times add up over its starts."""

    name: str
    pool: str
    model: str
    role: Literal["prefill", "decode", "both"]
    kv_capacity_tokens: int
    slots: int  # requests it runs at once
    up: tuple[tuple[float, float], ...]  # from when to when, seconds
    busy_s: float | None  # None: the driver did not measure it
    plan: int = 0  # by which it first came up, into `Outcomes.plans`

    @property
    def up_s(self) -> float:
        return sum(until_s - since_s for since_s, until_s in self.up)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultSeen:
    """What broke. Where a record has no lines of faults, what went down at one moment for one reason is one fault."""

    id: str
    what: str
    where: str
    replicas: tuple[str, ...]
    at_s: float
    noticed_s: float | None = None
    repaired_s: float | None = None  # None: not in this run
    back_s: float | None = None  # when the last of its replicas served again
    by_spare: int = 0  # of how many a spare took the place
    cause: str = ""

    @property
    def over_s(self) -> float | None:
        """When its replicas served again, or where that is not said, when it was repaired."""
        return self.repaired_s if self.back_s is None else self.back_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """One measured quantity over time."""

    at_s: Floats
    value: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcomes:
    """One record, read."""

    header: Header | None
    models: tuple[str, ...]
    tenants: tuple[str, ...]
    codes: tuple[str, ...]
    endings: tuple[str, ...]
    replicas: tuple[Replica, ...]
    requests: Requests
    stays: Stays
    waits: Waits
    faults: tuple[FaultSeen, ...]
    series: dict[tuple[str, str], Series] = field(
        default_factory=dict
    )  # by what it is of, and its name
    begin_s: float = 0.0  # of its first event: a live record counts from when the machine started
    end_s: float = 0.0  # the last time the record speaks of
    retries: int = 0  # dispatches beyond each request's first
    is_whole: bool = False  # the record says that it ended
    note: str | None = None  # what is wrong with it, where it can be read all the same
    later_plans: tuple[dict[str, Any], ...] = ()  # that the node was brought to

    @property
    def plans(self) -> tuple[dict[str, Any], ...]:
        """All that the run had: the header's, {} where it names none, and those that came later."""
        first = (self.header.plan if self.header is not None else None) or {}
        return (first, *self.later_plans)

    def __len__(self) -> int:
        return len(self.requests.number)

    @cached_property
    def finished(self) -> Bools:
        return np.asarray(self.requests.status == FINISHED)

    @cached_property
    def e2e_s(self) -> Floats:
        """From arrival to the end [N]; NaN where it did not finish."""
        return np.where(self.finished, self.requests.end_s - self.requests.arrival_s, np.nan)

    @cached_property
    def ttft_s(self) -> Floats:
        """From arrival to the first token, over all attempts [N]; an answer in one piece has it at its end; NaN where it did not finish."""
        first_s = self.requests.first_s - self.requests.arrival_s
        return np.where(self.finished & np.isfinite(first_s), first_s, self.e2e_s)

    @cached_property
    def tpot_s(self) -> Floats:
        """Per token after the first [N]; NaN for one token, an answer in one piece, and where it did not finish."""
        gaps = self.requests.output_tokens - 1
        has = self.finished & (gaps > 0)
        return np.where(
            has, (self.requests.end_s - self.requests.first_s) / np.where(has, gaps, 1), np.nan
        )

    @cached_property
    def pools(self) -> tuple[str, ...]:
        """Pools, in the order they came up."""
        return tuple(dict.fromkeys(replica.pool for replica in self.replicas))

    @cached_property
    def duration_s(self) -> float:
        """From the first arrival to the last end of a request."""
        ends_s = self.requests.end_s[np.isfinite(self.requests.end_s)]
        if not len(ends_s):
            return 0.0
        return max(float(ends_s.max()) - float(self.requests.arrival_s.min()), 0.0)

    @cached_property
    def served_at(self) -> Ints:
        """Where each request [N] counts beside its decode replica: the one that computed its prompt, where that does nothing else; -1: none."""
        apart = np.array([one.role == "prefill" for one in self.replicas], dtype=bool)
        where = self.requests.prefill_replica
        known = where >= 0
        found = np.full(len(where), -1, dtype=np.int64)
        found[known] = np.where(apart[where[known]], where[known], -1)
        return found

    def of_pool(self, pool: str) -> Ints:
        """Indices of a pool's replicas."""
        return np.array(
            [n for n, one in enumerate(self.replicas) if one.pool == pool], dtype=np.int64
        )

    def measured(self, name: str) -> dict[str, Series]:
        """Series of that name, by what they are of."""
        return {of: series for (of, its), series in self.series.items() if its == name}


def index_of(names: Sequence[str], name: str) -> int:
    """Where a name is; -1 where it is not."""
    return names.index(name) if name in names else -1
