"""Requests over time, as arrays.

Dimension key: n requests, B prefix blocks of all of them together.

Arrays, not objects, because a run may have millions of requests. What a trace does not tell has a default, so that whoever reads
one finds every array there: one model and one tenant without a name, no session, priority 0, no prefix block.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InputError

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def _not_given() -> Counts:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Requests in the order they arrive.

    Per request, n long each: `arrival_s`, `input_tokens`, `output_tokens`; `model` and `tenant`, places in `models` and `tenants`; `session`, a number from
    0 on, or -1 for none; `priority`, the higher the sooner; `max_output_tokens`, where the client cuts its answer, 0 where it does not. The prompt's blocks of `block_tokens` tokens are
    `block_hashes[block_starts[i] : block_starts[i + 1]]`, first block first: a hash stands for its block and all before it, so equal hashes are
    equal prefixes. The last block may be cut short by the prompt's end. `block_starts` is n + 1 long, `block_tokens` is 0 where nothing is known of
    prefixes. `sha256` is of the bytes of the file it comes from.

    Raises `InputError` for arrays that do not fit together.
    """

    name: str
    arrival_s: Floats
    input_tokens: Counts
    output_tokens: Counts
    sha256: str | None = None
    model: Counts = field(default_factory=_not_given)
    models: tuple[str, ...] = ("",)
    tenant: Counts = field(default_factory=_not_given)
    tenants: tuple[str, ...] = ("",)
    session: Counts = field(default_factory=_not_given)
    priority: Counts = field(default_factory=_not_given)
    max_output_tokens: Counts = field(default_factory=_not_given)
    block_hashes: Counts = field(default_factory=_not_given)
    block_starts: Counts = field(default_factory=_not_given)
    block_tokens: int = 0

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        defaults = {"model": 0, "tenant": 0, "session": -1, "priority": 0, "max_output_tokens": 0}
        for key, default in defaults.items():
            if not len(getattr(self, key)):
                object.__setattr__(self, key, np.full(n, default, dtype=np.int64))
        if not len(self.block_starts):
            object.__setattr__(self, "block_starts", np.zeros(n + 1, dtype=np.int64))
        for key in ("input_tokens", "output_tokens", *defaults):
            if len(getattr(self, key)) != n:
                msg = f"a trace of {n} requests has {len(getattr(self, key))} in {key}; make them as many"
                raise InputError(msg)
        if len(self.block_starts) != n + 1 or self.block_starts[-1] != len(self.block_hashes):
            msg = (
                f"block_starts of a trace of {n} requests has {len(self.block_starts)} entries up to {self.block_starts[-1]}; "
                f"it has one more than requests, and ends at the number of hashes, {len(self.block_hashes)}"
            )
            raise InputError(msg)

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def num_blocks(self) -> Counts:
        """Prefix blocks of each request."""
        return np.diff(self.block_starts)

    def take(self, rows: Counts) -> "Trace":
        """These requests, in this order, at the times they had."""
        counts = self.num_blocks[rows]
        starts = starts_of(counts)
        return replace(
            self,
            **{key: getattr(self, key)[rows] for key in _PER_REQUEST},
            block_hashes=self.block_hashes[ranges(self.block_starts[rows], counts)],
            block_starts=starts,
        )


_PER_REQUEST = (
    "arrival_s",
    "input_tokens",
    "output_tokens",
    "model",
    "tenant",
    "session",
    "priority",
    "max_output_tokens",
)


def check_seed(seed: int) -> None:
    """Raise `InputError` for a seed that no generator takes."""
    if seed < 0:
        msg = f"seed={seed} is no seed; give 0 or more"
        raise InputError(msg)


def starts_of(counts: Counts) -> Counts:
    """Where each of consecutive runs of these lengths starts, and where the last ends. One longer than `counts`.

    >>> starts_of(np.array([2, 0, 3])).tolist()
    [0, 2, 2, 5]
    """
    starts = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def ranges(firsts: Counts, counts: Counts) -> Counts:
    """Whole numbers from each of `firsts` on, as many as `counts` says, one run after another.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    starts = starts_of(counts)
    return np.repeat(firsts - starts[:-1], counts) + np.arange(starts[-1])


def distinct(values: Counts) -> Counts:
    """Each value once, ascending: by sorting, which is several times faster than numpy's own way for millions of numbers.

    >>> distinct(np.array([3, 1, 3])).tolist()
    [1, 3]
    """
    ordered = np.sort(values)
    return ordered[np.diff(ordered, prepend=ordered[:1] - 1) > 0]


def join(traces: Sequence[Trace]) -> Trace:
    """One after another, at the times they have. All name the same models and tenants, in one order."""
    first = traces[0]
    assert all((one.models, one.tenants) == (first.models, first.tenants) for one in traces)
    if len(traces) == 1:
        return first
    rows: dict[str, Any] = {
        key: np.concatenate([getattr(one, key) for one in traces]) for key in _PER_REQUEST
    }
    return replace(
        first,
        **rows,
        block_hashes=np.concatenate([one.block_hashes for one in traces]),
        block_starts=starts_of(np.concatenate([one.num_blocks for one in traces])),
        block_tokens=max(one.block_tokens for one in traces),
    )


def rechunk(pieces: Iterable[Trace], block_requests: int) -> Iterator[Trace]:
    """The same requests in blocks of this many, the last one shorter."""
    if block_requests < 1:
        msg = f"block_requests={block_requests} holds nothing; give 1 or more"
        raise InputError(msg)
    held: list[Trace] = []
    count = 0
    for piece in pieces:
        held.append(piece)
        count += len(piece)
        if count < block_requests:
            continue
        whole = join(held)
        full = count - count % block_requests
        for start in range(0, full, block_requests):
            yield whole.take(np.arange(start, start + block_requests))
        held = [whole.take(np.arange(full, count))]
        count -= full
    if count:
        yield join(held)


def reused_blocks(trace: Trace) -> Counts:
    """How many prefix blocks of each request were in an earlier one: what a cache that forgets nothing would have.

    >>> trace = Trace(name="", arrival_s=np.arange(3.0), input_tokens=np.full(3, 9), output_tokens=np.full(3, 1), block_tokens=4,
    ...     block_hashes=np.array([1, 2, 3, 1, 2, 4, 5]), block_starts=np.array([0, 3, 6, 7]))
    >>> reused_blocks(trace).tolist()
    [0, 2, 0]
    """
    _, first = np.unique(trace.block_hashes, return_index=True)
    is_known = np.ones(len(trace.block_hashes), dtype=np.int64)
    is_known[first] = 0
    known = starts_of(is_known)
    return known[trace.block_starts[1:]] - known[trace.block_starts[:-1]]
