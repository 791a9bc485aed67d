"""Requests over time: read from a trace file, scaled and repeated, or drawn from a seed.

    traffic_rows        Trace, the arrays that a run reads
    traffic_files       Azure's, Mooncake's and general CSV, JSON lines and Parquet
    traffic_sessions    sessions from prefix chains
    traffic_scale       Replay: more users, faster, longer, shorter
    traffic_arrivals    Poisson, Gamma, Diurnal
    traffic_lengths     Fixed, Lognormal, Uniform, Resampled
    traffic_make        Synthetic: streams of services, and conversations
    traffic_tenants     whose the requests are
    traffic_loop        ClosedLoop: users who wait for their answers

A day of a large service does not fit in memory, so traffic is an iterator of blocks, sorted in time; the rows do not depend on the blocks' size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from polypod.errors import InputError
from polypod.workload.traffic_files import read_trace
from polypod.workload.traffic_make import Synthetic, made
from polypod.workload.traffic_rows import Trace, join
from polypod.workload.traffic_scale import Replay, replayed
from polypod.workload.traffic_tenants import Tenant, with_tenants

__all__ = ["Trace", "Traffic", "blocks", "poisson", "read_trace", "trace_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Requests of one source. With `tenants` each is of one of them."""

    source: Replay | Synthetic
    tenants: tuple[Tenant, ...] = ()

    @property
    def name(self) -> str:
        source = self.source
        return source.trace.name if isinstance(source, Replay) else "synthetic"

    @property
    def expected_s(self) -> float:
        """About how long its arrivals go on, in seconds."""
        return self.source.expected_s

    @property
    def block_tokens(self) -> int:
        """Tokens of the prompt that each of its hashes stands for; 0 where prompts have none."""
        source = self.source
        if isinstance(source, Replay):
            return source.trace.block_tokens
        return 0 if source.turns is None else source.turns.block_tokens


def blocks(traffic: Traffic, block_requests: int = 65_536) -> Iterator[Trace]:
    """All requests in the order in which they arrive, in blocks of this many, the last one shorter."""
    source = traffic.source
    if isinstance(source, Replay):
        pieces = replayed(source, block_requests)
    else:
        pieces = made(source, block_requests)
    if not traffic.tenants:
        return pieces
    return with_tenants(pieces, traffic.tenants, source.seed)


def trace_of(traffic: Traffic) -> Trace:
    """All requests at once. Raises `InputError` where there are none."""
    pieces = list(blocks(traffic))
    if not pieces:
        msg = f"{traffic.name}: no request arrives in the time that was asked for; make it longer"
        raise InputError(msg)
    return join(pieces)


def poisson(
    rate_per_s: float, count: int, input_tokens: int, output_tokens: int, seed: int
) -> Trace:
    """Draw `count` arrivals with exponential gaps of mean 1 / rate, all of one length; the first is at second 0.

    >>> trace = poisson(10.0, 1001, input_tokens=512, output_tokens=64, seed=1)
    >>> len(trace), round(float(trace.arrival_s[-1]) / 1000, 2)  # mean gap in seconds
    (1001, 0.1)

    Raises `InputError` for a rate, count or length that is not positive.
    """
    given = {
        "rate_per_s": rate_per_s,
        "count": count,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
    }
    for name, value in given.items():
        if not 0 < value < float("inf"):
            msg = f"{name}={value} makes no traffic; give a positive number"
            raise InputError(msg)
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_per_s, count)
    arrival_s = np.cumsum(gaps_s)
    return Trace(
        name=f"poisson {rate_per_s:g}/s, seed {seed}",
        arrival_s=arrival_s - arrival_s[0],
        input_tokens=np.full(count, input_tokens, dtype=np.int64),
        output_tokens=np.full(count, output_tokens, dtype=np.int64),
    )
