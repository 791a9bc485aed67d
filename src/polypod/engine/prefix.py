"""Prefix caches of a replica: blocks of prompts that were computed before and need not be again.

A prompt's blocks are known by hashes, one for each full block, each of the whole prompt up to its end. What is emulated, and where it is from:

    only full blocks are cached; a block that nobody uses stays until its room is needed, the least recently used going first, and of one
    prompt the last one first; the last token of a prompt is always computed; blocks can be found from the scheduling of their step on; a block
    that several sequences use is stored once
        vLLM, docs/design/prefix_caching.md (https://docs.vllm.ai/en/latest/design/prefix_caching/) and `KVCacheManager.get_computed_blocks`
    three tiers: HBM and host memory of the replica's own, a store that all replicas of a pool share; what is evicted goes a tier down (the policy
    `write_back`), and a copy stays below when it is loaded
        SGLang, HiCache (https://docs.sglang.io/advanced_features/hicache_design.html)
    below HBM too the least recently used goes first, and a prompt's last block before its first
        vLLM, `LRUOffloadingManager.touch` in vllm/v1/kv_offload; Mooncake (Qin et al., FAST '25, section 3.2, https://www.usenix.org/conference/fast25/presentation/qin)
    a load is overlapped with the computation layer by layer, so that a step takes the longer of both
        the Ascend plugin's layer-wise pool (https://docs.vllm.ai/projects/ascend/en/latest/user_guide/feature_guide/layerwise_kv_pool.html)

Each data-parallel rank has its own HBM and an equal part of host memory, as engines that are one process a rank do. Loads of all ranks cross the
replica's one way to host memory, those of the remote store too, whose own way they cross first. Writing down is free. Left out: that replicas
wait for each other at the remote store, and blocks that two sequences compute at the same time (they are stored once).
"""

from collections.abc import Sequence
from typing import Annotated, Final, cast

import msgspec
import numpy as np

from polypod.engine import prefix_kernels as kernels
from polypod.engine.prefix_kernels import Integers, Store, Tiers

TIERS: Final = ("hbm", "host", "remote")

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class TierSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a replica has below HBM. Bytes of 0 are no tier; a tier that is there has a bandwidth.

    Host memory is over all data-parallel ranks of one replica, the remote store is one for all replicas of the pool; bandwidths are one way, of each
    replica. `kv_bytes_per_token` is the whole cache of a token, over all ranks that share a sequence.
    """

    kv_bytes_per_token: Positive
    host_bytes: NotNegative = 0.0
    host_bytes_per_s: NotNegative = 0.0
    remote_bytes: NotNegative = 0.0
    remote_bytes_per_s: NotNegative = 0.0
    remote_latency_s: NotNegative = 0.0

    def __post_init__(self) -> None:
        for tier in ("host", "remote"):
            held, speed = getattr(self, f"{tier}_bytes"), getattr(self, f"{tier}_bytes_per_s")
            if held > 0 and not speed > 0:
                msg = f"the prefix cache's {tier} tier has {held:g} bytes and no bandwidth; say {tier}_bytes_per_s too"
                raise ValueError(msg)

    def blocks(self, held_bytes: float, block_tokens: int) -> int:
        """Whole blocks that so many bytes hold."""
        return int(held_bytes // (self.kv_bytes_per_token * block_tokens))


class RemoteStore:
    """The third tier, of a pool: outlives its replicas."""

    def __init__(self, settings: TierSettings, block_tokens: int) -> None:
        self.store = views(kernels.empty_store(64, 1))
        capacity = settings.blocks(settings.remote_bytes, block_tokens)
        self.store.lists_CF[0, kernels.CAPACITY] = capacity
        self.has_room = capacity > 0

    @property
    def evicted_blocks(self) -> int:
        return int(self.store.lists_CF[0, kernels.EVICTED])

    def make_room(self, blocks: int) -> None:
        self.store = with_room(self.store, blocks)


class PrefixCache:
    """The caches of one start of a replica. Blocks of a rank's sequences are held in HBM; `found_K` counts those that were found, by tier.

    >>> cache = PrefixCache(block_tokens=16, ranks=1)
    >>> cache.acquire(0, (11, 12, 13), 0, 3)  # nothing is there yet
    0
    >>> cache.keep(0, (11, 12, 13), 0, 3)  # it is computed
    3
    >>> cache.acquire(0, (11, 12, 99), 0, 3), cache.found_K.tolist(), cache.shared_tokens(0)
    (2, [2, 0, 0], 32)
    """

    def __init__(
        self,
        *,
        block_tokens: int,
        ranks: int,
        settings: TierSettings | None = None,
        remote: RemoteStore | None = None,
    ) -> None:
        self.block_tokens = block_tokens
        self.found_K: Integers = np.zeros(3, dtype=np.int64)
        self._settings = settings
        self._remote = remote if remote is not None and remote.has_room else None
        self._store = views(kernels.empty_store(64, 2 * ranks))
        self._ranks = ranks
        host_blocks = settings.blocks(settings.host_bytes / ranks, block_tokens) if settings else 0
        self._has_host = host_blocks > 0
        for rank in range(ranks):
            self._store.lists_CF[2 * rank + 1, kernels.CAPACITY] = host_blocks

    # ---- a sequence's blocks

    def acquire(self, rank: int, hashes: Sequence[int], held: int, most: int) -> int:
        """Hold the blocks after the first `held` that are found, up to `most`; return how many the sequence holds then."""
        self._make_room(most - held)
        return kernels.acquire(self._tiers(rank), _of(hashes), held, most, self.found_K)

    def keep(self, rank: int, hashes: Sequence[int], held: int, most: int) -> int:
        """Hold the blocks that the sequence computes, after the first `held` up to `most`; return how many it holds then."""
        self._make_room(most - held)
        return kernels.keep(self._tiers(rank), _of(hashes), held, most)

    def leave(self, rank: int, hashes: Sequence[int], held: int) -> None:
        """Let go of the first `held` blocks; they stay until their room is needed."""
        kernels.leave(self._tiers(rank), _of(hashes), held)

    def held_ahead(self, rank: int, hashes: Sequence[int], most: int) -> int:
        """Leading blocks that other sequences hold, so that they take no room of their own."""
        return kernels.held_ahead(self._tiers(rank), _of(hashes), most)

    # ---- room

    def shared_tokens(self, rank: int) -> int:
        """Tokens that the rank's sequences count more than once."""
        return int(self._store.lists_CF[2 * rank, kernels.SHARED]) * self.block_tokens

    def idle_tokens(self, rank: int) -> int:
        """Tokens cached in HBM that no sequence uses."""
        return int(self._store.lists_CF[2 * rank, kernels.LINKED]) * self.block_tokens

    def trim(self, rank: int, most_tokens: float) -> None:
        """Evict the least recently used until what no sequence uses takes no more than this."""
        most = max(int(most_tokens // self.block_tokens), 0)
        going = int(self._store.lists_CF[2 * rank, kernels.LINKED]) - most
        if going > 0:
            self._make_room(1)
            if self._remote is not None:
                self._remote.make_room(going)
            kernels.trim(self._tiers(rank), most)

    # ---- what it takes

    def load_s(self, host_blocks: int, remote_blocks: int) -> float:
        """Seconds to load so many blocks from host memory and from the remote store, both at once.

        >>> tiers = TierSettings(kv_bytes_per_token=1e5, host_bytes=1e12, host_bytes_per_s=50e9)
        >>> PrefixCache(block_tokens=500, ranks=1, settings=tiers).load_s(100, 0)  # 5 GB at 50 GB/s
        0.1
        """
        if self._settings is None or not host_blocks + remote_blocks:
            return 0.0
        block_bytes = self._settings.kv_bytes_per_token * self.block_tokens
        host_s = remote_s = 0.0
        if self._settings.host_bytes_per_s > 0:
            host_s = (host_blocks + remote_blocks) * block_bytes / self._settings.host_bytes_per_s
        if remote_blocks:
            remote_s = self._settings.remote_latency_s
            remote_s += remote_blocks * block_bytes / self._settings.remote_bytes_per_s
        return max(host_s, remote_s)

    def evicted_blocks(self, tier: int) -> int:
        """Blocks that went from HBM (0) or host memory (1), over all ranks."""
        evicted = (self._store.lists_CF[2 * rank + tier, kernels.EVICTED] for rank in range(self._ranks))  # fmt: skip
        return int(sum(evicted))

    def _make_room(self, blocks: int) -> None:
        self._store = with_room(self._store, blocks)

    def _tiers(self, rank: int) -> Tiers:
        return Tiers(
            self._store,
            2 * rank,
            2 * rank + 1 if self._has_host else kernels.NONE,
            self._store if self._remote is None else self._remote.store,
            kernels.NONE if self._remote is None else 0,
        )


def _of(hashes: Sequence[int]) -> Integers:
    """The kernels read hashes one by one, so that in Python a tuple does as well as an array."""
    return cast(Integers, hashes)


def views(store: Store) -> Store:
    """Views of the arrays, whose elements Python reads and writes several times faster than an array's."""
    return Store(*(cast(Integers, memoryview(array)) for array in store))  # type: ignore[arg-type]


def with_room(store: Store, blocks: int) -> Store:
    """The store, or a larger copy of it, with room for so many more blocks."""
    if store.meta_F[kernels.ROOM] >= blocks:
        return store
    return views(kernels.grown(Store(*map(np.asarray, store)), blocks))
