"""What a traffic amounts to: counts, rates, lengths, burstiness, reuse; from blocks, so that it need not be in memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from polypod.errors import InputError
from polypod.workload.traffic_rows import Counts, Trace, distinct

MONTH_S: Final = 30 * 86_400.0
"""A month of 30 days."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Of prompts or answers."""

    mean_tokens: float
    p50_tokens: float
    p99_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of all requests of a traffic, from the first arrival to one mean gap after the last.

    `gap_cv_ratio` is the standard deviation of the times between arrivals over their mean: 1 for Poisson. `reused_fraction` is of the prefix blocks
    that were in an earlier prompt; None where nothing is known of prefixes. `sessions` counts those that are named.
    """

    requests: int
    duration_s: float
    input: Lengths
    output: Lengths
    gap_cv_ratio: float
    sessions: int
    in_sessions: int
    blocks: int
    reused_fraction: float | None
    requests_of_model: dict[str, int]
    requests_of_tenant: dict[str, int]

    @property
    def rate_per_s(self) -> float:
        return self.requests / self.duration_s

    @property
    def tokens_per_s(self) -> float:
        """Prompts' and answers'."""
        return self.rate_per_s * (self.input.mean_tokens + self.output.mean_tokens)

    @property
    def month_tokens(self) -> float:
        """If it went on like this for 30 days."""
        return self.tokens_per_s * MONTH_S


def figures(pieces: Iterable[Trace]) -> Figures:
    """Add up a traffic's blocks. Raises `InputError` where there is no request."""
    seen = _Seen()
    for piece in pieces:
        seen.add(piece)
    return seen.figures()


class _Seen:
    """Sums so far. Lengths are kept, 16 bytes a request, for the percentiles; sessions and hashes for counting them."""

    def __init__(self) -> None:
        self._input: list[Counts] = []
        self._output: list[Counts] = []
        self._sessions: list[Counts] = []
        self._hashes: list[Counts] = []
        self._gaps, self._squares_s2, self._last_s, self._first_s = 0, 0.0, 0.0, 0.0
        self._in_sessions = self._blocks = 0
        self._models: dict[str, int] = {}
        self._tenants: dict[str, int] = {}

    def add(self, piece: Trace) -> None:
        if not len(piece):
            return
        if not self._input:
            self._first_s = self._last_s = float(piece.arrival_s[0])
            gaps_s = np.diff(piece.arrival_s)
        else:
            gaps_s = np.diff(piece.arrival_s, prepend=self._last_s)
        self._gaps += len(gaps_s)
        self._squares_s2 += float(gaps_s @ gaps_s)
        self._last_s = float(piece.arrival_s[-1])
        self._input.append(piece.input_tokens)
        self._output.append(piece.output_tokens)
        named = piece.session[piece.session >= 0]
        self._in_sessions += len(named)
        self._sessions.append(distinct(named))
        self._blocks += len(piece.block_hashes)
        self._hashes.append(distinct(piece.block_hashes))
        _count(self._models, piece.models, piece.model)
        _count(self._tenants, piece.tenants, piece.tenant)

    def figures(self) -> Figures:
        if not self._input:
            msg = "no request arrives in the time that was asked for; make it longer"
            raise InputError(msg)
        span_s = self._last_s - self._first_s
        requests = self._gaps + 1
        mean_s = span_s / self._gaps if self._gaps and span_s > 0 else 1.0
        variance_s2 = self._squares_s2 / max(self._gaps, 1) - mean_s**2
        different = len(distinct(np.concatenate(self._hashes)))
        return Figures(
            requests=requests,
            duration_s=mean_s * requests,
            input=_lengths(self._input),
            output=_lengths(self._output),
            gap_cv_ratio=float(np.sqrt(max(variance_s2, 0.0))) / mean_s,
            sessions=len(distinct(np.concatenate(self._sessions))),
            in_sessions=self._in_sessions,
            blocks=self._blocks,
            reused_fraction=1 - different / self._blocks if self._blocks else None,
            requests_of_model=self._models,
            requests_of_tenant=self._tenants,
        )


def _count(counts: dict[str, int], names: tuple[str, ...], places: Counts) -> None:
    for name, count in zip(names, np.bincount(places, minlength=len(names)).tolist(), strict=True):
        counts[name] = counts.get(name, 0) + count


def _lengths(pieces: list[Counts]) -> Lengths:
    tokens = np.concatenate(pieces)
    p50, p99 = np.percentile(tokens, [50, 99])
    return Lengths(mean_tokens=float(tokens.mean()), p50_tokens=float(p50), p99_tokens=float(p99))
