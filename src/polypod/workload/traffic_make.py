"""Requests that nobody sent: drawn from a seed, for one or several services, alone or as the turns of conversations.

Dimension key: n requests, S sessions.

The same seed gives the same requests, however many are read at a time: all are drawn in pieces of one size. A stream of its own is drawn for arrivals, prompts,
answers, services and conversations, so that changing one of them leaves the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import numpy as np

from polypod.errors import InputError
from polypod.workload.traffic_arrivals import Arrivals, Poisson, times_s
from polypod.workload.traffic_lengths import Drawn, Fixed, Lengths
from polypod.workload.traffic_rows import (
    Counts,
    Floats,
    Trace,
    check_seed,
    join,
    ranges,
    rechunk,
    starts_of,
)
from polypod.workload.traffic_scale import cut

_BLOCKS_PER_SESSION: Final = 2**20
_SESSIONS_DRAWN: Final = 2048

_Numbers = TypeVar("_Numbers", Floats, Counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What one service is asked: so many requests a second, of these mean lengths."""

    model: str
    rate_per_s: float
    input_tokens: float
    output_tokens: float

    def __post_init__(self) -> None:
        for name in ("rate_per_s", "input_tokens", "output_tokens"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                msg = f"{name}={value} of {self.model} makes no traffic; give a positive number"
                raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """Conversations: a prompt is the system prompt, all that was said before, and the new question.

    Their number of turns is geometric with mean `mean_turns`. The time from one question to the next, the answer's own and the reader's in one, is
    exponential with mean `gap_s`. Drawn lengths are of the new question and of the answer. All conversations with a service begin with the same
    `system_tokens`. Full blocks of `block_tokens` have hashes.
    """

    mean_turns: int = 4
    gap_s: float = 60.0
    system_tokens: int = 0
    block_tokens: int = 512

    def __post_init__(self) -> None:
        least = {"mean_turns": 1, "gap_s": 0, "system_tokens": 0, "block_tokens": 1}
        for name, limit in least.items():
            if not limit <= getattr(self, name) < float("inf"):
                msg = f"{name}={getattr(self, name)} makes no conversations; give {limit} or more"
                raise InputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """Drawn traffic. It ends after `requests` or `duration_s`, whichever comes first; one of them has to be said.

    With several streams each request is of a stream with the share that its rate is of all: a burst is of all together. With `turns` the rate is of
    requests too: conversations begin at the rate over their mean number of turns.
    """

    streams: tuple[Stream, ...]
    arrivals: Arrivals = field(default_factory=Poisson)
    lengths: Lengths = field(default_factory=Fixed)
    turns: Turns | None = None
    requests: int | None = None
    duration_s: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.requests is None and self.duration_s is None:
            msg = "drawn traffic has no end of its own; say how many requests, or for how long"
            raise InputError(msg)
        for name in ("requests", "duration_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                msg = f"{name}={value} makes no traffic; give a positive number"
                raise InputError(msg)

    @property
    def rate_per_s(self) -> float:
        return sum(stream.rate_per_s for stream in self.streams)

    @property
    def expected_s(self) -> float:
        """About how long it goes on."""
        ends_s = [] if self.duration_s is None else [self.duration_s]
        if self.requests is not None:
            ends_s.append(self.requests / self.rate_per_s)
        return min(ends_s)


def made(synthetic: Synthetic, block_requests: int) -> Iterator[Trace]:
    """The requests in the order in which they arrive, in blocks of this many."""
    pieces = _single(synthetic) if synthetic.turns is None else _Conversations(synthetic).pieces()
    yield from rechunk(cut(pieces, synthetic.duration_s, synthetic.requests), block_requests)


class _Asked:
    """Of which stream a request is, and how long: drawn in order."""

    def __init__(self, synthetic: Synthetic) -> None:
        rates = np.array([stream.rate_per_s for stream in synthetic.streams])
        self._bounds = np.cumsum(rates) / rates.sum()
        self._input = np.array([float(stream.input_tokens) for stream in synthetic.streams])
        self._output = np.array([float(stream.output_tokens) for stream in synthetic.streams])
        self._which = np.random.default_rng([synthetic.seed, 5])
        self._lengths = Drawn(synthetic.lengths, synthetic.seed)

    def stream(self, count: int) -> Counts:
        if len(self._bounds) == 1:
            return np.zeros(count, dtype=np.int64)
        return np.searchsorted(self._bounds[:-1], self._which.random(count), side="right")

    def lengths(self, stream: Counts) -> tuple[Counts, Counts]:
        return self._lengths.next(self._input[stream], self._output[stream])


def _single(synthetic: Synthetic) -> Iterator[Trace]:
    asked = _Asked(synthetic)
    for arrival_s in times_s(synthetic.arrivals, synthetic.rate_per_s, synthetic.seed):
        stream = asked.stream(len(arrival_s))
        input_tokens, output_tokens = asked.lengths(stream)
        yield Trace(
            name=_name(synthetic),
            arrival_s=arrival_s,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            model=stream,
            models=tuple(one.model for one in synthetic.streams),
        )


def _name(synthetic: Synthetic) -> str:
    kind = type(synthetic.arrivals).__name__.lower()
    return f"{kind} {synthetic.rate_per_s:g}/s, seed {synthetic.seed}"


class _Conversations:
    """Turns of conversations, merged in time: what is still to come of those that have begun is kept until it is due."""

    def __init__(self, synthetic: Synthetic) -> None:
        assert synthetic.turns is not None
        self._synthetic, self._turns = synthetic, synthetic.turns
        self._asked = _Asked(synthetic)
        self._rng = np.random.default_rng([synthetic.seed, 6])
        self._begun = 0

    def pieces(self) -> Iterator[Trace]:
        rate_per_s = self._synthetic.rate_per_s / self._turns.mean_turns
        waiting: list[Trace] = []
        for starts_s in times_s(self._synthetic.arrivals, rate_per_s, self._synthetic.seed):
            for at in range(0, len(starts_s), _SESSIONS_DRAWN):
                begun_s = starts_s[at : at + _SESSIONS_DRAWN]
                waiting = [join([*waiting, self._begin(begun_s)])]
                order = np.lexsort((waiting[0].session, waiting[0].arrival_s))
                due = int(np.sum(waiting[0].arrival_s < begun_s[-1]))
                yield waiting[0].take(order[:due])
                waiting = [waiting[0].take(order[due:])]

    def _begin(self, starts_s: Floats) -> Trace:
        """All turns of the conversations that begin then, one conversation after another."""
        turns_S = self._rng.geometric(1 / self._turns.mean_turns, len(starts_s))
        first_S = starts_of(turns_S)[:-1]
        stream_S = self._asked.stream(len(starts_s))
        session = np.repeat(self._begun + np.arange(len(starts_s)), turns_S)
        self._begun += len(starts_s)
        stream = np.repeat(stream_S, turns_S)
        question, answer = self._asked.lengths(stream)
        gaps_s = self._rng.exponential(self._turns.gap_s, len(stream))
        gaps_s[first_S] = 0.0
        said = _so_far(question + answer, first_S, turns_S)
        trace = Trace(
            name=f"conversations, {_name(self._synthetic)}",
            arrival_s=np.repeat(starts_s, turns_S) + _so_far(gaps_s, first_S, turns_S),
            input_tokens=self._turns.system_tokens + said - answer,
            output_tokens=answer,
            model=stream,
            models=tuple(one.model for one in self._synthetic.streams),
            session=session,
        )
        return self._with_blocks(trace)

    def _with_blocks(self, trace: Trace) -> Trace:
        """Full blocks: those of the system prompt are its service's, all others the conversation's own; the two differ in their places."""
        size = self._turns.block_tokens
        counts = trace.input_tokens // size
        place = ranges(np.zeros_like(counts), counts)
        is_system = place < self._turns.system_tokens // size
        own, shared = (np.repeat(of, counts) for of in (trace.session, trace.model))
        return replace(
            trace,
            block_hashes=np.where(is_system, shared, own) * _BLOCKS_PER_SESSION + place,
            block_starts=starts_of(counts),
            block_tokens=size,
        )


def _so_far(values: _Numbers, first_S: Counts, turns_S: Counts) -> _Numbers:
    """Sums within each conversation, up to each turn and with it."""
    total = np.cumsum(values)
    sums: _Numbers = total - np.repeat(total[first_S] - values[first_S], turns_S)
    return sums
