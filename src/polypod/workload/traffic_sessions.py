"""Sessions of a trace that gives prefix blocks and no sessions, as Mooncake's.

A prompt's chain of block hashes says which earlier prompts it extends, so requests form a tree. Near its root are system prompts, which many
conversations begin with; a conversation goes on along one path, and forks only where a question is asked again or another way. So:

* a block is *common* where prompts go on from it in `COMMON_SUCCESSORS` ways or more;
* a request's session is its first block that is not common: all requests with that block are one session;
* a request without such a block has none.

In Mooncake's conversation trace block 0 is in all prompts and goes on in 7,373 ways, every other block in at most 11; its synthetic trace has no block that
goes on in more than 13 (https://github.com/kvcache-ai/Mooncake, FAST25-release/traces). The limit is between.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from polypod.workload.traffic_rows import Counts, Trace, distinct

COMMON_SUCCESSORS: Final = 32


def with_sessions(trace: Trace) -> Trace:
    """The trace, its sessions told from its prefixes: numbers from 0 on, in the order in which they begin."""
    own = first_own_block(trace)
    has = own >= 0
    session = np.full(len(trace), -1, dtype=np.int64)
    _, first, place = np.unique(
        trace.block_hashes[own[has]], return_index=True, return_inverse=True
    )
    began = np.empty(len(first), dtype=np.int64)
    began[np.argsort(first)] = np.arange(len(first))
    session[has] = began[place]
    return replace(trace, session=session)


def first_own_block(trace: Trace) -> Counts:
    """Where in `block_hashes` each request's first block stands that is not common; -1 for none. n long."""
    ids, place = np.unique(trace.block_hashes, return_inverse=True)
    goes_on = np.ones(len(place), dtype=bool)
    goes_on[trace.block_starts[1:][trace.num_blocks > 0] - 1] = False  # the last of its prompt
    at = np.flatnonzero(goes_on)
    steps = distinct(place[at] * len(ids) + place[at + 1])
    ways = np.bincount(steps // max(len(ids), 1), minlength=len(ids))
    own = np.flatnonzero(ways[place] < COMMON_SUCCESSORS)
    following = np.searchsorted(own, trace.block_starts[:-1])
    found = np.append(own, len(place))[following]
    return np.where(found < trace.block_starts[1:], found, -1)
