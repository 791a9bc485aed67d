"""A trace with more users, faster, longer: what `--scale`, `--scale-rate`, `--duration` and `--requests` mean.

*Scale* is of sessions. 40 times is 40 copies of all of them, each copy with sessions and prefix hashes of its own, so that no copy finds another's blocks in a
cache (a system prompt that all would share in truth is computed once a copy: at most 39 misses more, out of millions of requests). 2.5 times is two copies and a
seeded half of the sessions; a request without a session is a session of its own. Inside a session, order and gaps stay as they are.

Users of different copies do not act in the same second. The period is cut into equal windows, as near to `window_s` as goes into it, and each copy but the first turns
every window by a time of its own, drawn evenly: a session begins so much later, or at the window's front where it would begin in the next one. So each window has
exactly the scale times the beginnings that it has in the trace: what is slower than a window (day and night) is kept. Bursts that are shorter are no longer in
step, and the sum of many copies is smoother than one, as that of many users is. `window_s` 0 keeps copies in step: the trace's burstiness at the scale's rate. By
default a window is a 24th of the period, 10 minutes at most. Requests late in a session may so come up to one window after the period.

*Rate* is of the same sessions: all times are divided by it, gaps inside sessions too.

*Longer than the trace*: it begins again, with new sessions and hashes, after its period: the last arrival and one mean gap. *Shorter*: what arrives later is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from polypod.errors import InputError
from polypod.workload.traffic_rows import Counts, Floats, Trace, check_seed, ranges, rechunk

_LONGEST_WINDOW_S: Final = 600.0
_SLACK_S: Final = 1e-3  # of windows over rounded times; what is outside is left out after


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """A trace as it is to be played. `duration_s` and `requests` end it, whichever comes first; without them it is played once."""

    trace: Trace
    scale: float = 1.0
    rate_ratio: float = 1.0
    window_s: float | None = None
    duration_s: float | None = None
    requests: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not len(self.trace):
            msg = f"{self.trace.name} holds no request"
            raise InputError(msg)
        check_seed(self.seed)
        for name in ("scale", "rate_ratio", "duration_s", "requests"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                msg = f"{name}={value} plays nothing; give a positive number"
                raise InputError(msg)
        if self.window_s is not None and not 0 <= self.window_s <= self.period_s:
            msg = f"window_s={self.window_s:g} is not within the trace's period; give 0 to {self.period_s:g}"
            raise InputError(msg)

    @property
    def period_s(self) -> float:
        """After how long the trace begins again."""
        n, last_s = len(self.trace), float(self.trace.arrival_s[-1]) / self.rate_ratio
        return last_s * n / (n - 1) if n > 1 and last_s > 0 else 1.0

    @property
    def expected_s(self) -> float:
        """About how long it plays."""
        ends_s = [] if self.duration_s is None else [self.duration_s]
        if self.requests is not None:
            ends_s.append(self.requests / (len(self.trace) * self.scale) * self.period_s)
        return min(ends_s, default=self.period_s)

    @property
    def is_as_it_is(self) -> bool:
        """Whether nothing is copied."""
        longer = self.duration_s is not None and self.duration_s > self.period_s
        more = self.requests is not None and self.requests > len(self.trace)
        return self.scale == 1 and not longer and not more

    @property
    def rounds(self) -> float:
        """How often the trace is begun at most."""
        return 1 if self.duration_s is None and self.requests is None else float("inf")


def replayed(replay: Replay, block_requests: int) -> Iterator[Trace]:
    """The requests in the order in which they arrive, in pieces of about this many."""
    pieces = (
        iter([_faster(replay)]) if replay.is_as_it_is else _Copies(replay).pieces(block_requests)
    )
    yield from rechunk(cut(pieces, replay.duration_s, replay.requests), block_requests)


def cut(pieces: Iterator[Trace], duration_s: float | None, requests: int | None) -> Iterator[Trace]:
    """Until the first request that is too late or one too many."""
    left = requests
    for piece in pieces:
        most = len(piece) if left is None else min(left, len(piece))
        if duration_s is not None:
            most = min(most, int(np.searchsorted(piece.arrival_s, duration_s)))
        yield piece if most == len(piece) else piece.take(np.arange(most))
        left = None if left is None else left - most
        if most < len(piece) or left == 0:
            return


def _faster(replay: Replay) -> Trace:
    trace = replay.trace
    return replace(trace, arrival_s=trace.arrival_s / replay.rate_ratio)


class _Copies:
    """All copies of a trace at once, a span of time after another.

    Dimension key: n requests of the trace, U sessions (a request without one is one), C copies, O offsets in time (a round, a copy, and whether it
    is turned to its window's front).
    """

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._trace = _faster(replay)
        self._period_s = replay.period_s
        self._unit_n, self._begin_s_U = _units(self._trace)
        rng = np.random.default_rng([replay.seed, 1])
        self._copies = int(np.ceil(replay.scale))
        self._window_s = self._cell_s()
        self._shift_s_C = rng.uniform(0.0, self._window_s, self._copies)
        self._shift_s_C[0] = 0.0
        self._is_kept_U = self._part(rng)
        self._in_window_s_U = np.fmod(self._begin_s_U, self._window_s or self._period_s)
        span_s_n = self._trace.arrival_s - self._begin_s_U[self._unit_n]
        self._longest_s = float(span_s_n.max())
        ids, hashes = np.unique(self._trace.block_hashes, return_inverse=True)
        self._hashes, self._num_hashes = hashes.astype(np.int64), len(ids)
        named, place = np.unique(self._trace.session, return_inverse=True)
        has_none = int(len(named) > 0 and named[0] < 0)
        self._session_n = place.astype(np.int64) - has_none
        self._num_sessions = len(named) - has_none

    def _cell_s(self) -> float:
        """How long a window is; 0 where copies stay in step."""
        near_s = self._replay.window_s
        if near_s is None:
            near_s = min(self._period_s / 24, _LONGEST_WINDOW_S)
        return self._period_s / max(1, round(self._period_s / near_s)) if near_s else 0.0

    def _part(self, rng: np.random.Generator) -> Counts:
        """Which sessions the last copy has: all, or a seeded part."""
        part = self._replay.scale - (self._copies - 1)
        units = len(self._begin_s_U)
        kept = round(part * units)
        if kept == 0 and self._copies == 1:
            msg = f"scale={self._replay.scale:g} keeps none of the {units} sessions of {self._trace.name}; give {1 / units:.2g} or more"
            raise InputError(msg)
        is_kept = np.zeros(units, dtype=np.int64)
        is_kept[rng.permutation(units)[:kept]] = 1
        return is_kept

    def pieces(self, about_requests: int) -> Iterator[Trace]:
        """Spans of time with about this many requests in the mean, were the last copy whole."""
        width_s = self._period_s * about_requests / (len(self._trace) * self._copies)
        end_s = (self._replay.rounds + 1) * self._period_s + self._longest_s
        step = 0
        while step * width_s <= end_s:
            since_s = step * width_s if step else -1.0
            yield self._between(since_s, (step + 1) * width_s)
            step += 1

    def _between(self, since_s: float, until_s: float) -> Trace:
        copy_O, offset_s_O, round_O, turn_O = self._offsets(since_s, until_s)
        times_s = self._trace.arrival_s
        low = np.searchsorted(times_s, since_s - offset_s_O - _SLACK_S)
        high = np.searchsorted(times_s, until_s - offset_s_O + _SLACK_S)
        counts = high - low
        rows, at = ranges(low, counts), np.repeat(np.arange(len(low)), counts)
        arrival_s = times_s[rows] + offset_s_O[at]
        unit, copy = self._unit_n[rows], copy_O[at]
        later_s = self._in_window_s_U[unit] + self._shift_s_C[copy]
        goes_round = (later_s >= self._window_s) & (copy > 0)
        is_here = (arrival_s >= since_s) & (arrival_s < until_s) & (goes_round == turn_O[at])
        is_here &= (copy < self._copies - 1) | (self._is_kept_U[unit] == 1)
        rows, at, arrival_s = rows[is_here], at[is_here], arrival_s[is_here]
        number = round_O[at] * self._copies + copy_O[at]
        order = np.lexsort((rows, number, arrival_s))
        return self._made(rows[order], number[order], arrival_s[order])

    def _offsets(self, since_s: float, until_s: float) -> tuple[Counts, Floats, Counts, Counts]:
        """Every copy of every round that may have something between, as it is or turned to its window's front."""
        first = max(0, int((since_s - self._longest_s) // self._period_s) - 1)
        last = min(self._replay.rounds - 1, until_s // self._period_s + 1)
        rounds = np.arange(first, int(last) + 1)
        round_O, copy_O, turn_O = (
            axis.ravel()
            for axis in np.meshgrid(rounds, np.arange(self._copies), [0, 1], indexing="ij")
        )
        shift_s_O = self._shift_s_C[copy_O] - turn_O * self._window_s
        offset_s_O = round_O * self._period_s + shift_s_O
        return copy_O, offset_s_O, round_O, turn_O

    def _made(self, rows: Counts, number: Counts, arrival_s: Floats) -> Trace:
        """These requests of these copies: sessions and hashes of copy c are those of copy 0, and c times as many on."""
        fresh = replace(self._trace, block_hashes=self._hashes, session=self._session_n).take(rows)
        has_one = fresh.session >= 0
        session = np.where(has_one, fresh.session + number * self._num_sessions, -1)
        later = np.repeat(number * self._num_hashes, fresh.num_blocks)
        return replace(
            fresh,
            arrival_s=np.maximum(arrival_s, 0.0),
            session=session,
            block_hashes=fresh.block_hashes + later,
        )


def _units(trace: Trace) -> tuple[Counts, Floats]:
    """What is moved as one: each request's number of it (n long), and when each begins."""
    alone = trace.session < 0
    key = np.where(alone, -1 - np.arange(len(trace)), trace.session)
    _, first, unit = np.unique(key, return_index=True, return_inverse=True)
    return unit.astype(np.int64), trace.arrival_s[first]
