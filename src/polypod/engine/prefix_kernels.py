"""Caches of hashed blocks as arrays: plain functions over int64, of which the simulator's core has its own in C.

A store (`Store`) holds any number of caches. Its arrays, N entries, T places of the hash table (a power of two), C caches:

    table_T     entry + 1 of what hashes there; 0 is free. Linear probing; a removal closes the gap, so there are no tombstones
    entries_NF  KEY, CACHE, PREV, NEXT, HELD: the block's hash; whose it is; its neighbours by age; how many sequences hold it
    lists_CF    OLDEST, NEWEST, LINKED, SHARED, CAPACITY, EVICTED of each cache: the ends of its list by age, and how long that is; holds past
                the first of each block; how many blocks it may list (negative: any number); how many were evicted
    meta_F      FREE, ROOM: the first free entry, and how many are free

A block that a sequence holds is on no list and cannot be evicted. A block that nobody holds is on its cache's list, the least recently used first.
Nothing grows here: whoever calls sees to `room` first, and takes a `grown` copy where there is too little.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

KEY: Final = 0
CACHE: Final = 1
PREV: Final = 2
NEXT: Final = 3
HELD: Final = 4
OLDEST: Final = 0
NEWEST: Final = 1
LINKED: Final = 2
SHARED: Final = 3
CAPACITY: Final = 4
EVICTED: Final = 5
FREE: Final = 0
ROOM: Final = 1
NONE: Final = -1
LOW_32: Final = 0xFFFFFFFF


class Store(NamedTuple):
    """The arrays of some caches."""

    table_T: Integers
    entries_NF: Integers
    lists_CF: Integers
    meta_F: Integers


class Tiers(NamedTuple):
    """Which caches one data-parallel rank has; a negative number is none. HBM and host memory are in one store, what is shared in another."""

    store: Store
    hbm: int
    host: int
    remote_store: Store
    remote: int


def empty_store(entries: int, caches: int) -> Store:
    """Room for so many blocks, in so many caches without bounds."""
    places = 8
    while places < 2 * entries:
        places *= 2
    entries_NF = np.full((entries, 5), NONE, dtype=np.int64)
    entries_NF[:, NEXT] = np.arange(1, entries + 1)
    lists_CF = np.full((caches, 6), NONE, dtype=np.int64)
    lists_CF[:, LINKED] = 0
    lists_CF[:, SHARED] = 0
    lists_CF[:, EVICTED] = 0
    meta_F = np.zeros(2, dtype=np.int64)
    meta_F[ROOM] = entries
    return Store(np.zeros(places, dtype=np.int64), entries_NF, lists_CF, meta_F)


def grown(store: Store, more: int) -> Store:
    """The same caches with room for so many more blocks, and twice as many at least."""
    before = len(store.entries_NF)
    larger = empty_store(before + max(before, more), len(store.lists_CF))
    larger.entries_NF[:before] = store.entries_NF
    larger.lists_CF[:] = store.lists_CF
    larger.entries_NF[len(larger.entries_NF) - 1, NEXT] = store.meta_F[FREE]
    larger.meta_F[FREE] = before
    larger.meta_F[ROOM] = store.meta_F[ROOM] + len(larger.entries_NF) - before
    for place in range(len(store.table_T)):
        entry = store.table_T[place] - 1
        if entry >= 0:
            at = vacant(larger, store.entries_NF[entry, CACHE], store.entries_NF[entry, KEY])
            larger.table_T[at] = entry + 1
    return larger


# ---- the table


def home(store: Store, cache: int, key: int) -> int:
    """Where a block belongs in the table. No product reaches 2**63, so that no overflow matters."""
    low = key & LOW_32
    high = (key >> 32) & LOW_32
    mixed = (low * 0x2C1B3C6D + high * 0x1B873593 + cache * 0x297A2D39) & LOW_32
    mixed = ((mixed ^ (mixed >> 15)) * 0x6C8E9CF5) & LOW_32
    return (mixed ^ (mixed >> 13)) & (len(store.table_T) - 1)


def vacant(store: Store, cache: int, key: int) -> int:
    """The table's place for a block that is not there."""
    at = home(store, cache, key)
    while store.table_T[at] != 0:
        at = (at + 1) & (len(store.table_T) - 1)
    return at


def find(store: Store, cache: int, key: int) -> int:
    """The block's entry in this cache, or NONE."""
    at = home(store, cache, key)
    while store.table_T[at] != 0:
        entry: int = store.table_T[at] - 1
        if store.entries_NF[entry, KEY] == key and store.entries_NF[entry, CACHE] == cache:
            return entry
        at = (at + 1) & (len(store.table_T) - 1)
    return NONE


def add(store: Store, cache: int, key: int) -> int:
    """A new entry, held by nobody and on no list; there must be room, and the block not be there."""
    entry: int = store.meta_F[FREE]
    store.meta_F[FREE] = store.entries_NF[entry, NEXT]
    store.meta_F[ROOM] -= 1
    store.entries_NF[entry, KEY] = key
    store.entries_NF[entry, CACHE] = cache
    store.entries_NF[entry, PREV] = NONE
    store.entries_NF[entry, NEXT] = NONE
    store.entries_NF[entry, HELD] = 0
    store.table_T[vacant(store, cache, key)] = entry + 1
    return entry


def remove(store: Store, entry: int) -> None:
    """Give back an entry that is on no list, and close its gap in the table (Knuth, volume 3, algorithm 6.4R)."""
    last = len(store.table_T) - 1
    gap = home(store, store.entries_NF[entry, CACHE], store.entries_NF[entry, KEY])
    while store.table_T[gap] != entry + 1:
        gap = (gap + 1) & last
    at = (gap + 1) & last
    while store.table_T[at] != 0:
        other = store.table_T[at] - 1
        belongs = home(store, store.entries_NF[other, CACHE], store.entries_NF[other, KEY])
        if ((at - belongs) & last) >= ((at - gap) & last):
            store.table_T[gap] = other + 1
            gap = at
        at = (at + 1) & last
    store.table_T[gap] = 0
    store.entries_NF[entry, NEXT] = store.meta_F[FREE]
    store.meta_F[FREE] = entry
    store.meta_F[ROOM] += 1


# ---- one cache: what nobody holds, by age


def link(store: Store, entry: int) -> None:
    """Put an entry on its cache's list, as the most recently used."""
    cache = store.entries_NF[entry, CACHE]
    newest = store.lists_CF[cache, NEWEST]
    store.entries_NF[entry, PREV] = newest
    store.entries_NF[entry, NEXT] = NONE
    if newest == NONE:
        store.lists_CF[cache, OLDEST] = entry
    else:
        store.entries_NF[newest, NEXT] = entry
    store.lists_CF[cache, NEWEST] = entry
    store.lists_CF[cache, LINKED] += 1


def unlink(store: Store, entry: int) -> None:
    """Take an entry off its cache's list."""
    cache = store.entries_NF[entry, CACHE]
    before = store.entries_NF[entry, PREV]
    after = store.entries_NF[entry, NEXT]
    if before == NONE:
        store.lists_CF[cache, OLDEST] = after
    else:
        store.entries_NF[before, NEXT] = after
    if after == NONE:
        store.lists_CF[cache, NEWEST] = before
    else:
        store.entries_NF[after, PREV] = before
    store.lists_CF[cache, LINKED] -= 1


def touch(store: Store, cache: int, key: int) -> bool:
    """Make a block the most recently used; whether it is there."""
    entry = find(store, cache, key)
    if entry == NONE:
        return False
    if store.entries_NF[entry, HELD] == 0:
        unlink(store, entry)
        link(store, entry)
    return True


def put(store: Store, cache: int, key: int) -> None:
    """Make a block the most recently used, put there if it was not. There must be room."""
    if not touch(store, cache, key):
        link(store, add(store, cache, key))


def is_over(store: Store, cache: int) -> bool:
    """Whether the list is longer than the cache may be, which `put` lets happen."""
    capacity: int = store.lists_CF[cache, CAPACITY]
    linked: int = store.lists_CF[cache, LINKED]
    return 0 <= capacity < linked


def evict(store: Store, cache: int) -> int:
    """Drop the least recently used block that nobody holds, and return its hash; there must be one."""
    entry = store.lists_CF[cache, OLDEST]
    key: int = store.entries_NF[entry, KEY]
    unlink(store, entry)
    remove(store, entry)
    store.lists_CF[cache, EVICTED] += 1
    return key


def hold(store: Store, cache: int, key: int) -> None:
    """Let one more sequence hold a block, put there if it was not. There must be room."""
    entry = find(store, cache, key)
    if entry == NONE:
        entry = add(store, cache, key)
    elif store.entries_NF[entry, HELD] == 0:
        unlink(store, entry)
    else:
        store.lists_CF[cache, SHARED] += 1
    store.entries_NF[entry, HELD] += 1


def let_go(store: Store, cache: int, key: int) -> None:
    """Undo one `hold`; a block that nobody holds any more becomes the most recently used."""
    entry = find(store, cache, key)
    store.entries_NF[entry, HELD] -= 1
    if store.entries_NF[entry, HELD] == 0:
        link(store, entry)
    else:
        store.lists_CF[cache, SHARED] -= 1


# ---- a rank's tiers: what a sequence does with the blocks of its prompt, hashes_B in order


def tier_of(tiers: Tiers, key: int) -> int:
    """The highest tier that has a block: 0 HBM, 1 host memory, 2 the remote store; NONE where none has it."""
    if find(tiers.store, tiers.hbm, key) != NONE:
        return 0
    if tiers.host >= 0 and find(tiers.store, tiers.host, key) != NONE:
        return 1
    if tiers.remote >= 0 and find(tiers.remote_store, tiers.remote, key) != NONE:
        return 2
    return NONE


def acquire(tiers: Tiers, hashes_B: Integers, first: int, most: int, found_K: Integers) -> int:
    """Hold the blocks from `first` on, until one is nowhere; return how many the sequence holds then.

    Adds to `found_K` how many were found in each tier. What was found below HBM is copied there: there must be room for `most - first`.
    """
    for block in range(first, most):
        tier = tier_of(tiers, hashes_B[block])
        if tier == NONE:
            return block
        hold(tiers.store, tiers.hbm, hashes_B[block])
        found_K[tier] += 1
    return max(first, most)


def keep(tiers: Tiers, hashes_B: Integers, first: int, most: int) -> int:
    """Hold the blocks from `first` to before `most`, which the sequence computes; return how many it holds then. There must be room."""
    for block in range(first, most):
        hold(tiers.store, tiers.hbm, hashes_B[block])
    return max(first, most)


def leave(tiers: Tiers, hashes_B: Integers, held: int) -> None:
    """Let go of the first `held` blocks, the last one first, so that it is evicted first; copies below are as recently used then."""
    for back in range(held):
        key = hashes_B[held - 1 - back]
        let_go(tiers.store, tiers.hbm, key)
        if tiers.host >= 0:
            touch(tiers.store, tiers.host, key)
        if tiers.remote >= 0:
            touch(tiers.remote_store, tiers.remote, key)


def held_ahead(tiers: Tiers, hashes_B: Integers, most: int) -> int:
    """Leading blocks, `most` at most, that some sequence holds in HBM."""
    for block in range(most):
        entry = find(tiers.store, tiers.hbm, hashes_B[block])
        if entry == NONE or tiers.store.entries_NF[entry, HELD] == 0:
            return block
    return most


def trim(tiers: Tiers, most: int) -> None:
    """Evict from HBM what nobody holds until `most` such blocks are left. Each store must have room for one more, the remote one for as many as go."""
    while tiers.store.lists_CF[tiers.hbm, LINKED] > most:
        sink(tiers, evict(tiers.store, tiers.hbm))


def sink(tiers: Tiers, key: int) -> None:
    """Take a block that HBM evicted into host memory, and what is evicted there into the remote store."""
    if tiers.host >= 0:
        put(tiers.store, tiers.host, key)
        if not is_over(tiers.store, tiers.host):
            return
        key = evict(tiers.store, tiers.host)
    if tiers.remote >= 0:
        put(tiers.remote_store, tiers.remote, key)
        if is_over(tiers.remote_store, tiers.remote):
            evict(tiers.remote_store, tiers.remote)
