"""What the core wrote down, as the lines of a record: the events it heard, each with the policy's answer."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import numpy as np

from polypod.policy import answers
from polypod.policy.actions import (
    AnyAction,
    Cancel,
    Decode,
    Dispatch,
    Prefill,
    Reject,
    Retry,
    TransferKv,
    WakeAt,
)
from polypod.policy.events import (
    AnyEvent,
    ClientGone,
    FirstToken,
    KvArrived,
    PrefillFinished,
    ReplicaDown,
    ReplicaUp,
    RequestArrived,
    RequestFailed,
    RequestFinished,
    Woke,
)
from polypod.record import Measure, Step
from polypod.simulate.native.layout import WORDS, Encoded, Rows
from polypod.simulate.scenario import Scenario
from polypod.simulate.series import COLUMNS, Floats, site_lines, tick_lines, tier_lines
from polypod.simulate.trace import Arrival, arrived

Row = tuple[int, int, int, int, int, int, int, float, float, float]
"""word, request, attempt, replica, epoch, count, slot, at_s, first, second."""

_FIRST_ACTION: Final = WORDS["dispatch"]
_TICK: Final = WORDS["tick"]


class Lines:
    """Turns drained entries into steps. Changes of replicas are told once each, in the order they were planned."""

    def __init__(
        self,
        encoded: Encoded,
        scenario: Scenario,
        asked: Callable[[int], Arrival],
        changes: Sequence[ReplicaUp | ReplicaDown],
    ) -> None:
        self._names = encoded.names
        self._capacities = _rank_capacities(encoded)
        self._models = encoded.models
        self._settings = scenario.settings
        self._block_tokens = scenario.block_tokens
        watch = scenario.watch
        draws = () if watch is None else watch.draws
        self._pools = [(pool, pool in draws) for pool in encoded.pools]
        self._site = None if watch is None else watch.site
        self._last_s = 0.0
        self._caps = [] if watch is None else [cap.name for cap in watch.caps]
        self._before = np.zeros((len(encoded.pools), len(COLUMNS)))
        self._tiers = () if scenario.ways is None else scenario.ways.tiers
        self._bytes_before = [0.0] * len(self._tiers)
        self._width = 1 + self._before.size + len(self._models) + len(self._caps) + len(self._tiers)
        self._asked = asked
        self._changes = changes

    def lines(self, entries: Rows, ticks: Floats) -> Iterator[Step | Measure]:
        """Every event with its actions, and the intervals' ends between them; the last step must be whole."""
        rows: list[Row] = entries.tolist()
        ends = iter(ticks.reshape(-1, self._width))
        starts = np.flatnonzero(entries["word"] < _FIRST_ACTION).tolist()
        for start, end in pairwise([*starts, len(rows)]):
            if rows[start][0] == _TICK:
                yield from self.tick(next(ends))
                continue
            yield Step(
                event=self._event(rows[start]),
                actions=[self._action(row) for row in rows[start + 1 : end]],
            )

    def tick(self, row: Floats) -> Iterator[Measure]:
        """The lines of one interval's end; the one before it must have been told."""
        pools = len(self._pools) * len(COLUMNS)
        now = row[1 : 1 + pools].reshape(-1, len(COLUMNS))
        queues = row[1 + pools :][: len(self._models)].astype(int).tolist()
        first = 1 + pools + len(self._models)
        factors = row[first : first + len(self._caps)].tolist()
        at_s = float(row[0])
        yield from tick_lines(
            at_s,
            self._pools,
            now,
            self._before,
            dict(zip(self._models, queues, strict=True)),
            dict(zip(self._caps, factors, strict=True)),
        )
        yield from site_lines((self._last_s, at_s), self._pools, now, self._site)
        self._before, self._last_s = now, at_s
        bytes_now = row[first + len(self._caps) :].tolist()
        yield from tier_lines(at_s, self._tiers, bytes_now, self._bytes_before)
        self._bytes_before = bytes_now

    def _event(self, row: Row) -> AnyEvent:
        return _EVENTS[row[0]](self, row)

    def _action(self, row: Row) -> AnyAction:
        return _ACTIONS[row[0]](self, row)

    def _about(self, row: Row) -> dict[str, Any]:
        return {
            "request": row[1],
            "attempt": row[2],
            "replica": self._names[row[3]],
            "epoch": row[4],
        }

    # ---- events

    def _arrived(self, row: Row) -> RequestArrived:
        asked = self._asked(row[1])
        now = asked if asked.at_s == row[7] else replace(asked, at_s=row[7])
        return arrived(row[1], now, self._block_tokens.get(asked.model))

    def _first(self, row: Row) -> FirstToken:
        return FirstToken(at_s=row[7], **self._about(row))

    def _finished(self, row: Row) -> RequestFinished:
        tokens = self._asked(row[1]).input_tokens
        return RequestFinished(
            at_s=row[7], **self._about(row), input_tokens=tokens, output_tokens=row[5]
        )

    def _failed(self, row: Row) -> RequestFailed:
        return RequestFailed(
            at_s=row[7], **self._about(row), kind="client", status=400, detail=self._too_long(row)
        )

    def _too_long(self, row: Row) -> str:
        need, capacity = int(row[8]), self._capacities[row[3]]
        return f"request {row[5]} needs {need} cached tokens, a data-parallel rank holds {capacity}"

    def _prefilled(self, row: Row) -> PrefillFinished:
        return PrefillFinished(at_s=row[7], **self._about(row), kv_tokens=row[5])

    def _kv_arrived(self, row: Row) -> KvArrived:
        return KvArrived(at_s=row[7], **self._about(row))

    def _gone(self, row: Row) -> ClientGone:
        return ClientGone(at_s=row[7], request=row[1])

    def _changed(self, row: Row) -> ReplicaUp | ReplicaDown:
        return self._changes[row[5]]

    def _woke(self, row: Row) -> Woke:
        return Woke(at_s=row[7])

    # ---- actions

    def _dispatch(self, row: Row) -> Dispatch:
        return Dispatch(
            **self._about(row), predicted_first_token_s=row[8], predicted_token_s=row[9]
        )

    def _prefill(self, row: Row) -> Prefill:
        return Prefill(**self._about(row))

    def _transfer(self, row: Row) -> TransferKv:
        return TransferKv(**self._about(row), source=self._names[row[5]], source_epoch=int(row[8]))

    def _decode(self, row: Row) -> Decode:
        return Decode(**self._about(row))

    def _retry(self, row: Row) -> Retry:
        return Retry(request=row[1], attempt=row[2], reason="kv_lost" if row[5] else "replica_down")

    def _cancel(self, row: Row) -> Cancel:
        return Cancel(**self._about(row))

    def _wake_at(self, row: Row) -> WakeAt:
        return WakeAt(at_s=row[7])

    def _reject(self, row: Row) -> Reject:
        return _REJECTS[row[2]](self, row)

    def _context(self, row: Row) -> Reject:
        return answers.context_length_exceeded(self._arrived(row), row[5])

    def _no_replica(self, row: Row) -> Reject:
        return answers.no_replica(self._arrived(row), row[9])

    def _queue_full(self, row: Row) -> Reject:
        return answers.queue_full(self._arrived(row), row[5], row[9])

    def _refused(self, row: Row) -> Reject:
        what = f"client at {self._names[row[3]]}: {self._too_long(row)}"
        return answers.engine_refused(row[1], 400, what)

    def _lost(self, row: Row) -> Reject:
        return answers.replica_lost(row[1], f"{self._names[row[3]]} went down")

    def _quarantined(self, row: Row) -> Reject:
        return answers.quarantined(row[1], row[5])

    def _attempts(self, row: Row) -> Reject:
        return answers.attempts_exhausted(row[1], row[5], f"{self._names[row[3]]} went down")

    def _caches_late(self, row: Row) -> Reject:
        ends = f"{self._names[row[4]]} to {self._names[row[3]]}"
        what = f"its cache did not come from {ends} within {self._settings.kv_wait_s:g} s"
        return answers.attempts_exhausted(row[1], row[5], what)

    def _timeout(self, row: Row) -> Reject:
        return answers.queue_timeout(self._arrived(row), self._settings.queue_wait_s, row[9])

    def _unknown(self, row: Row) -> Reject:
        return answers.model_not_found(self._arrived(row), self._models)


def _rank_capacities(encoded: Encoded) -> Sequence[int]:
    ranks = encoded.kinds["data_ranks"][encoded.replicas["kind"]]
    capacities: list[int] = (encoded.replicas["kv_capacity_tokens"] // ranks).tolist()
    return capacities


_EVENTS: Final[dict[int, Callable[[Lines, Row], AnyEvent]]] = {
    WORDS["arrived"]: Lines._arrived,
    WORDS["first"]: Lines._first,
    WORDS["finished"]: Lines._finished,
    WORDS["failed"]: Lines._failed,
    WORDS["prefilled"]: Lines._prefilled,
    WORDS["kv_arrived"]: Lines._kv_arrived,
    WORDS["gone"]: Lines._gone,
    WORDS["up"]: Lines._changed,
    WORDS["down"]: Lines._changed,
    WORDS["woke"]: Lines._woke,
}
_ACTIONS: Final[dict[int, Callable[[Lines, Row], AnyAction]]] = {
    WORDS["dispatch"]: Lines._dispatch,
    WORDS["prefill"]: Lines._prefill,
    WORDS["transfer"]: Lines._transfer,
    WORDS["decode"]: Lines._decode,
    WORDS["retry"]: Lines._retry,
    WORDS["reject"]: Lines._reject,
    WORDS["cancel"]: Lines._cancel,
    WORDS["wake_at"]: Lines._wake_at,
}
_REJECTS: Final[dict[int, Callable[[Lines, Row], Reject]]] = {
    1: Lines._context,
    2: Lines._no_replica,
    3: Lines._queue_full,
    4: Lines._refused,
    5: Lines._lost,
    6: Lines._quarantined,
    7: Lines._attempts,
    8: Lines._timeout,
    9: Lines._unknown,
    10: Lines._caches_late,
}
