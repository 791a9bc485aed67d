"""Prefill and decode on replicas of their own: which pair a request should use, and what it adds to their books.

A prompt goes where its first token would come first. When it is computed, its cache goes to the decode replica where the request would
finish first, of those with room:

    finish_s   = transfer_s + late_s + (1 + crowding) * O * token_s
    transfer_s = latency_s + kv_tokens * kv_token_bytes / min(share of the source's link, share of the target's link)
    share      = kv_link_bytes_per_s / max(caches on it, this one included, data-parallel ranks)

`late_s` (of first tokens that are overdue there), `crowding` and `token_s` are the router's. A cache leaves one data-parallel group for another, so that no transfer has more than a
rank's part of the link. Room is a free slot, and cache for what the request holds on average, or a replica with nothing on it. A prompt
that is computed gives its slot back and keeps its cache, as engines do it, so that prefill replicas stop when their memory is full of
caches that nobody takes.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polypod.policy.kinds import Floats
from polypod.policy.requests import Ask, Load
from polypod.policy.router import Choice, ReplicaTable

Rows = npt.NDArray[np.bool_]


def prompt_of(ask: Ask) -> Ask:
    """What the same request needs of a replica that computes its prompt and nothing else; its end is always heard of."""
    return Ask(
        input_tokens=ask.input_tokens,
        output_tokens=0.0,
        need_tokens=ask.input_tokens + 1,
        prefix_hashes=ask.prefix_hashes,
    )


def with_room(table: ReplicaTable, ask: Ask) -> Rows:
    """Rows whose cache takes the request beside what is there; slots are the router's to look at."""
    is_empty_R = (table.in_flight_R == 0) & (table.held_R == 0)
    return np.asarray((table.kv_tokens_R + ask.mean_kv_tokens <= table.kv_capacity_R) | is_empty_R)


def senders(prefill: ReplicaTable, decode: ReplicaTable, able_R: Rows) -> Rows:
    """Prefill rows that hand their caches to any of these decode rows."""
    bits = 0
    for row in np.flatnonzero(able_R).tolist():
        bits |= int(decode.pool_bit_R[row])
    sends_to_all_R = (prefill.to_pools_R == 0) & bool(able_R.any())
    return np.asarray(prefill.up_R & (sends_to_all_R | ((prefill.to_pools_R & bits) != 0)))


def takers(decode: ReplicaTable, to_pools: int) -> Rows:
    """Decode rows that a prefill replica with these bits hands its caches to."""
    return np.asarray(decode.up_R & ((to_pools == 0) | ((decode.pool_bit_R & to_pools) != 0)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A computed prompt: how many bytes it is, and how fast its replica sends it, with so many others on the way."""

    kv_bytes: float
    bytes_per_s: float
    latency_s: float

    @classmethod
    def on(cls, prefill: ReplicaTable, row: int, kv_tokens: int) -> "Cache":
        caches = max(int(prefill.moving_R[row]) + 1, int(prefill.data_ranks_R[row]))
        return cls(
            kv_bytes=kv_tokens * prefill.at(row).kv_token_bytes,
            bytes_per_s=float(prefill.kv_link_bytes_per_s_R[row]) / caches,
            latency_s=float(prefill.kv_link_latency_s_R[row]),
        )


def way_s(decode: ReplicaTable, cache: Cache) -> Floats:
    """Seconds of the cache's way to every row, with as many others on the links all the while as there are now."""
    caches_R = np.maximum(decode.moving_R + 1, decode.data_ranks_R)
    share_R = np.minimum(decode.kv_link_bytes_per_s_R / caches_R, cache.bytes_per_s)
    latency_s_R = np.maximum(decode.kv_link_latency_s_R, cache.latency_s)
    sent_s_R = np.zeros_like(share_R)
    np.divide(cache.kv_bytes, share_R, out=sent_s_R, where=decode.up_R)
    return latency_s_R + sent_s_R


def decode_choice(
    table: ReplicaTable, ask: Ask, among_R: Rows, cache: Cache, now_s: float
) -> Choice:
    """Where the rest of the request would end first among these rows, whether or not they have room now.

    The choice's first seconds are those before decoding begins.
    """
    token_s_R = table.decode_s_R + table.kv_read_s_R * ask.mean_kv_tokens
    first_s_R = np.where(among_R, way_s(table, cache), 0.0) + table.backlog_s(now_s)
    first_s_R += table.crowding(ask) * (ask.output_tokens * token_s_R)
    finish_s_R = np.where(among_R, first_s_R + ask.output_tokens * token_s_R, np.inf)
    rows = np.flatnonzero(among_R & (finish_s_R == finish_s_R.min()))
    return Choice(rows, first_s_R, token_s_R)


def finish_s(choice: Choice, ask: Ask) -> float:
    """When the request ends where it ends first; endless where it goes nowhere."""
    if not len(choice.rows):
        return math.inf
    row = int(choice.rows[0])
    return float(choice.first_s_R[row] + ask.output_tokens * choice.token_s_R[row])


# ---- a request's stay


def held(table: ReplicaTable, load: Load, now_s: float) -> None:
    """The prompt is computed; its cache stays."""
    table.prompt_done(load, now_s)
    table.in_flight_R[load.row] -= 1
    table.held_R[load.row] += 1
    table.refresh(load.row)


def released(table: ReplicaTable, load: Load) -> None:
    """The cache that was kept is gone."""
    table.held_R[load.row] -= 1
    table.kv_freed(load)


def reserved(table: ReplicaTable, row: int, ask: Ask, choice: Choice) -> Load:
    """A slot and cache are kept for a request whose cache is on the way."""
    token_s: Floats = choice.token_s_R
    load = Load(
        row=row,
        is_streamed=ask.is_streamed,
        prompt_s=0.0,
        kv_tokens=ask.mean_kv_tokens,
        first_token_s=float(choice.first_s_R[row]),
        token_s=float(token_s[row]),
        model_token_s=float(token_s[row]) / float(table.decode_factor_R[row]),
    )
    table.in_flight_R[row] += 1
    table.kv_tokens_R[row] += load.kv_tokens
    table.refresh(row)
    return load


def begun(table: ReplicaTable, load: Load, now_s: float) -> None:
    """The cache is there: the first token is due at once, and late from now on."""
    if load.is_streamed:
        if not table.prompts_R[load.row]:
            table.prompts_end_s_R[load.row] = now_s
        table.prompts_R[load.row] += 1
