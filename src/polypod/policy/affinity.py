"""Which replicas the blocks of prompts were last sent to, so that a prompt can go where its beginning is cached.

Nothing is heard from the replicas: a block that was sent is taken as still there until the replica is gone, or until as many others were sent since as
all replicas hold together. The least recently sent go first, a prompt's last block before its first, as in the caches (`engine.prefix`). So a
replica may have evicted what is expected of it, where it got more than its part of late; it then has it again.

One bit a replica and block: row r of the table is bit r.
"""

from collections.abc import Sequence
from typing import Final

from polypod.engine import prefix_kernels as kernels
from polypod.engine.prefix import views, with_room

FEWEST: Final = 64
"""Blocks that there is room for to begin with."""


class Affinity:
    """Blocks by hash, as many as the replicas hold and `most_blocks` at most; 0 remembers none.

    >>> affinity = Affinity(block_tokens=16, most_blocks=100)
    >>> affinity.replicas_hold(10_000)  # tokens
    >>> affinity.sent(0, (11, 12, 13))
    >>> affinity.sent(3, (11, 12))
    >>> affinity.cached_tokens((11, 12, 13, 14), input_tokens=70)  # by row
    {3: 32, 0: 48}
    """

    def __init__(self, *, block_tokens: int = 512, most_blocks: int) -> None:
        self._block_tokens = block_tokens
        self._most_blocks = most_blocks
        self._bound_blocks = 0
        self._store = views(kernels.empty_store(min(FEWEST, most_blocks), 1))
        self._rows_N = [0] * len(self._store.entries_NF)

    def __len__(self) -> int:
        """Blocks that are remembered."""
        return int(self._store.lists_CF[0, kernels.LINKED])

    def cached_tokens(self, hashes: Sequence[int], input_tokens: int) -> dict[int, int]:
        """Tokens of the prompt that a row should have, of those that should have any: its longest beginning of whole blocks, the last token left out."""
        found: dict[int, int] = {}
        most = min(len(hashes), (input_tokens - 1) // self._block_tokens)
        rows = self._rows(hashes[0]) if most > 0 else 0
        block = 1
        while rows:
            here = self._rows(hashes[block]) if block < most else 0
            _note(found, rows & ~here, block * self._block_tokens)
            rows &= here
            block += 1
        return found

    def sent(self, row: int, hashes: Sequence[int]) -> None:
        """Remember that the row was sent these blocks."""
        if not self._bound_blocks:
            return
        for key in reversed(hashes):
            entry = kernels.find(self._store, 0, key)
            if entry == kernels.NONE:
                entry = self._add(key)
            else:
                kernels.unlink(self._store, entry)
            kernels.link(self._store, entry)
            self._rows_N[entry] |= 1 << row

    def replicas_hold(self, tokens: int) -> None:
        """Say how much the replicas that are up hold together."""
        self._bound_blocks = min(self._most_blocks, tokens // self._block_tokens)

    def forget(self, row: int) -> None:
        """The row is another replica's from now on."""
        kept = ~(1 << row)
        self._rows_N = [rows & kept for rows in self._rows_N]

    def _rows(self, key: int) -> int:
        entry = kernels.find(self._store, 0, key)
        return 0 if entry == kernels.NONE else self._rows_N[entry]

    def _add(self, key: int) -> int:
        while len(self) >= self._bound_blocks:
            kernels.evict(self._store, 0)
        self._store = with_room(self._store, 1)
        self._rows_N += [0] * (len(self._store.entries_NF) - len(self._rows_N))
        entry = kernels.add(self._store, 0, key)
        self._rows_N[entry] = 0
        return entry


def _note(found: dict[int, int], rows: int, tokens: int) -> None:
    """Note the tokens for every row that is a bit of `rows`, in the order of rows."""
    while rows:
        lowest = rows & -rows
        found[lowest.bit_length() - 1] = tokens
        rows ^= lowest
