"""What arrives: request traces, read from the formats they are published in or drawn at a rate.

Two formats are read, told apart by their first line:

    TIMESTAMP,ContextTokens,GeneratedTokens                    CSV of the Azure LLM inference traces
    {"timestamp": 27482, "input_length": 6955, "output_length": 52, ...}    JSON lines of Mooncake; milliseconds

Times are made relative to the first request. An answer of 0 tokens is taken as 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from polypod.errors import FileError, InputError, TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request to be. `output_tokens` is what the answer will have: the driver knows, the policy does not.

    A client whose answer is not complete after `patience_s` leaves.
    """

    at_s: float
    model: str
    input_tokens: int
    output_tokens: int
    max_output_tokens: int | None = None  # what the client says
    priority: int = 0
    patience_s: float | None = None


def read_trace(path: Path, model: str) -> tuple[Arrival, ...]:
    """Read a trace, for requests of one model, in order of time.

    Raises `FileError` for a file that cannot be read, `TraceError` with the line number for a line that is broken.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read: {error}") from error
    is_csv = bool(lines) and lines[0].replace(" ", "") == _CSV_HEADER
    read_line = _azure if is_csv else _mooncake
    rows = [
        _row(path, number, line, read_line)
        for number, line in enumerate(lines, start=1)
        if line.strip() and not (is_csv and number == 1)
    ]
    if not rows:
        raise FileError(path, "has no requests")
    rows.sort(key=lambda row: row.at_s)
    return tuple(
        Arrival(
            at_s=row.at_s - rows[0].at_s,
            model=model,
            input_tokens=row.input_tokens,
            output_tokens=max(row.output_tokens, 1),
        )
        for row in rows
    )


def poisson_trace(
    model: str, *, rate_per_s: float, lengths: tuple[int, int], requests: int, seed: int = 0
) -> tuple[Arrival, ...]:
    """Draw a Poisson stream: gaps are exponential with mean 1 / rate_per_s; `lengths` are tokens in and out, constant."""
    if not 0 < rate_per_s < math.inf:
        msg = f"requests arrive at a positive rate, got {rate_per_s:g} /s; give one such as 20 /s"
        raise InputError(msg)
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, requests)
    return tuple(
        Arrival(at_s=float(at_s), model=model, input_tokens=lengths[0], output_tokens=lengths[1])
        for at_s in np.cumsum(gaps_s)
    )


_EPOCH: Final = datetime.fromisoformat("1970-01-01")
_CSV_HEADER: Final = "TIMESTAMP,ContextTokens,GeneratedTokens"


@dataclass(frozen=True, slots=True)
class _Row:
    at_s: float
    input_tokens: int
    output_tokens: int


def _row(path: Path, number: int, line: str, read_line: Callable[[str], _Row]) -> _Row:
    try:
        row = read_line(line)
    except (ValueError, KeyError, TypeError, msgspec.DecodeError) as error:
        raise TraceError(path, number, f"{line[:60]!r} is not a request: {error}") from error
    if not math.isfinite(row.at_s) or row.input_tokens < 1 or row.output_tokens < 0:
        problem = f"has {row.input_tokens} tokens in and {row.output_tokens} out at {row.at_s:g} s; at least 1 and 0"
        raise TraceError(path, number, problem)
    return row


def _azure(line: str) -> _Row:
    at, context_tokens, generated_tokens = line.split(",")
    since = datetime.fromisoformat(at) - _EPOCH  # without a zone: only differences are used
    return _Row(since.total_seconds(), int(context_tokens), int(generated_tokens))


def _mooncake(line: str) -> _Row:
    raw: dict[str, Any] = msgspec.json.decode(line)
    at_s = float(raw["timestamp"]) / 1000
    return _Row(at_s, int(raw["input_length"]), int(raw["output_length"]))
