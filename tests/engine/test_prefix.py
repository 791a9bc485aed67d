"""The prefix cache: against an ordered dictionary, published hit rates, and laws of caches."""

import csv
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypod.engine import prefix_kernels as kernels
from polypod.engine.prefix import PrefixCache, RemoteStore, TierSettings

MOONCAKE = Path(__file__).parents[1] / "data" / "mooncake"
BLOCK = 512


def rows(name: str) -> list[tuple[int, list[int]]]:
    """Prompt tokens, and the hashes of blocks, the last of which may be cut short."""
    found = []
    with (MOONCAKE / name).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            ids: list[int] = []
            for run in row["hash_ids"].split():
                first, _, last = run.partition("-")
                ids += range(int(first), int(last or first) + 1)
            found.append((int(row["input_length"]), ids))
    return found


def serve(cache: PrefixCache, hashes: list[int], limit_tokens: float) -> int:
    """One prompt alone on the replica, from its coming to its leaving; blocks found."""
    before = int(cache.found_K.sum())
    held = cache.acquire(0, hashes, 0, len(hashes))
    cache.keep(0, hashes, held, len(hashes))
    cache.leave(0, hashes, len(hashes))
    cache.trim(0, limit_tokens)
    return int(cache.found_K.sum()) - before


# ---- the array structure is a dictionary in order of use


class Ordered:
    """The same three tiers as dictionaries."""

    def __init__(self, hbm: int, host: int, remote: int) -> None:
        self.sizes = (hbm, host, remote)
        self.tiers: list[OrderedDict[int, None]] = [OrderedDict(), OrderedDict(), OrderedDict()]
        self.held: dict[int, int] = {}

    def tier(self, key: int) -> int | None:
        if key in self.held:
            return 0
        return next((n for n in range(3) if key in self.tiers[n]), None)

    def acquire(self, hashes: list[int], first: int, most: int) -> int:
        for block in range(first, most):
            if self.tier(hashes[block]) is None:
                return block
            self.hold(hashes[block])
        return max(first, most)

    def hold(self, key: int) -> None:
        self.tiers[0].pop(key, None)
        self.held[key] = self.held.get(key, 0) + 1

    def leave(self, hashes: list[int], held: int) -> None:
        for key in reversed(hashes[:held]):
            self.held[key] -= 1
            if not self.held[key]:
                del self.held[key]
                self.tiers[0][key] = None
            for tier in self.tiers[1:]:
                if key in tier:
                    tier.move_to_end(key)

    def trim(self, most: int) -> None:
        while len(self.tiers[0]) > most:
            key: int | None = self.tiers[0].popitem(last=False)[0]
            for tier, size in zip(self.tiers[1:], self.sizes[1:], strict=True):
                if key is None or not size:
                    continue
                tier[key] = None
                tier.move_to_end(key)
                key = tier.popitem(last=False)[0] if len(tier) > size else None


chains = st.lists(st.integers(0, 1), min_size=1, max_size=5).map(
    lambda path: [hash(tuple(path[: n + 1])) % 2**62 - 2**61 for n in range(len(path))]
)
moves = st.lists(
    st.tuples(chains, st.integers(0, 8), st.integers(0, 6), st.booleans()), max_size=60
)


@given(moves, st.integers(0, 6), st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_the_tiers_are_dictionaries_in_order_of_use(
    moves: list[tuple[list[int], int, int, bool]], host: int, remote: int
) -> None:
    tiers = TierSettings(
        kv_bytes_per_token=1.0, host_bytes=host, host_bytes_per_s=1.0, remote_bytes=remote, remote_bytes_per_s=1.0,
    )  # fmt: skip
    cache = PrefixCache(block_tokens=1, ranks=1, settings=tiers, remote=RemoteStore(tiers, 1))
    plain = Ordered(0, host, remote)
    running: list[tuple[list[int], int]] = []
    for hashes, computed, most, stays in moves:
        held = cache.acquire(0, hashes, 0, len(hashes))
        assert held == plain.acquire(hashes, 0, len(hashes))
        kept = cache.keep(0, hashes, held, min(computed, len(hashes)))
        for key in hashes[held:kept]:
            plain.hold(key)
        running.append((hashes, kept))
        if not stays:
            gone, count = running.pop(0)
            cache.leave(0, gone, count)
            plain.leave(gone, count)
        cache.trim(0, most)
        plain.trim(most)
        assert cache.idle_tokens(0) == len(plain.tiers[0])
        assert cache.shared_tokens(0) == sum(plain.held.values()) - len(plain.held)
        expected = next((n for n, key in enumerate(hashes) if key not in plain.held), len(hashes))
        assert cache.held_ahead(0, hashes, len(hashes)) == expected
        for key in {key for chain, _ in running for key in chain} | set(hashes):
            tier = kernels.tier_of(cache._tiers(0), key)
            assert (None if tier == kernels.NONE else tier) == plain.tier(key)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 2), st.booleans()), max_size=80))
@settings(max_examples=200, deadline=None)
def test_a_table_that_fills_up_and_grows_loses_nothing(
    steps: list[tuple[int, int, bool]],
) -> None:
    store, known = kernels.empty_store(4, 3), set()
    for key, cache, comes in steps:
        key *= 2**58 + 17
        if comes and (cache, key) not in known:
            if not store.meta_F[kernels.ROOM] or (key + cache) % 5 == 0:  # early now and then
                store = kernels.grown(store, 1)
            kernels.link(store, kernels.add(store, cache, key))
            known.add((cache, key))
        elif not comes and (cache, key) in known:
            entry = kernels.find(store, cache, key)
            kernels.unlink(store, entry)
            kernels.remove(store, entry)
            known.remove((cache, key))
        for other in range(3):
            for n in range(-9, 10):
                there = kernels.find(store, other, n * (2**58 + 17)) != kernels.NONE
                assert there == ((other, n * (2**58 + 17)) in known)
    assert store.meta_F[kernels.ROOM] == len(store.entries_NF) - len(known)


# ---- published figures


@pytest.mark.parametrize("name", ["synthetic.csv", "conversation-3000.csv"])
def test_without_limits_every_block_that_was_there_before_is_found(name: str) -> None:
    seen: set[int] = set()
    counted = 0
    prompts = [hashes[: tokens // BLOCK] for tokens, hashes in rows(name)]
    for hashes in prompts:
        counted += next((n for n, key in enumerate(hashes) if key not in seen), len(hashes))
        seen.update(hashes)
    cache = PrefixCache(block_tokens=BLOCK, ranks=1)
    found = sum(serve(cache, hashes, 1e15) for hashes in prompts)

    assert found == counted > 0
    assert cache.idle_tokens(0) == BLOCK * len(seen)


FIGURE_9 = {
    1e5: 0.0117, 1e6: 0.1461, 4e6: 0.3805, 8e6: 0.5447, 1e7: 0.5886, 1e8: 0.6582,
}  # fmt: skip
"""Hit rate of the synthetic trace by cache capacity in tokens: Mooncake (FAST '25), figure 9, read off its vector graphics. One cache for all requests, in
order, with no time taken (https://www.usenix.org/conference/fast25/presentation/qin). Every hash takes a block, and the rate is over full blocks."""


@pytest.mark.parametrize(
    ("capacity_tokens", "tier"),
    [(1e5, "hbm"), (1e6, "hbm"), (4e6, "host"), (8e6, "remote"), (1e7, "hbm"), (1e8, "remote")],
)
def test_hit_rates_are_mooncakes_at_every_capacity(capacity_tokens: float, tier: str) -> None:
    """Within a point; one tier alone has the capacity, and those above only what runs."""
    below = 0.0 if tier == "hbm" else capacity_tokens
    settings = TierSettings(
        kv_bytes_per_token=1.0, host_bytes_per_s=1.0, remote_bytes_per_s=1.0,
        **({} if tier == "hbm" else {f"{tier}_bytes": below}),
    )  # fmt: skip
    remote = RemoteStore(settings, BLOCK)
    cache = PrefixCache(block_tokens=BLOCK, ranks=1, settings=settings, remote=remote)
    limit = capacity_tokens if tier == "hbm" else 0.0
    found = blocks = 0
    for tokens, hashes in rows("synthetic.csv"):
        found += serve(cache, hashes, limit)
        blocks += tokens // BLOCK

    assert found / blocks == pytest.approx(FIGURE_9[capacity_tokens], abs=0.01)


# ---- laws


@given(st.lists(chains, max_size=40), st.integers(0, 12), st.integers(1, 5), st.sampled_from([0, 1, 2]))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_larger_cache_never_finds_less(
    prompts: list[list[int]], small: int, more: int, tier: int
) -> None:
    found = []
    for blocks in (small, small + more):
        sizes = {"host_bytes": float(blocks)} if tier == 1 else {"remote_bytes": float(blocks)} if tier == 2 else {}  # fmt: skip
        settings = TierSettings(
            kv_bytes_per_token=1.0, host_bytes_per_s=1.0, remote_bytes_per_s=1.0, **sizes
        )
        remote = RemoteStore(settings, 1)
        cache = PrefixCache(block_tokens=1, ranks=1, settings=settings, remote=remote)
        limit = blocks if tier == 0 else 3
        found.append([serve(cache, hashes, limit) for hashes in prompts])

    assert all(less <= most for less, most in zip(*found, strict=True))


def test_the_last_block_of_a_prompt_goes_before_its_first() -> None:
    cache = PrefixCache(block_tokens=16, ranks=1)
    serve(cache, [1, 2, 3, 4], 32)

    assert cache.acquire(0, [1, 2, 3, 4], 0, 4) == 2


def test_what_is_evicted_goes_down_a_tier_and_stays_there_when_it_is_loaded() -> None:
    settings = TierSettings(
        kv_bytes_per_token=1.0, host_bytes=32, host_bytes_per_s=8.0, remote_bytes=64, remote_bytes_per_s=4.0,
        remote_latency_s=0.5,
    )  # fmt: skip
    remote = RemoteStore(settings, 16)
    cache = PrefixCache(block_tokens=16, ranks=1, settings=settings, remote=remote)
    serve(cache, [1, 2, 3, 4], 16)  # 1 stays, 4 and 3 and 2 went down in this order, and 4 further
    other = PrefixCache(block_tokens=16, ranks=1, settings=settings, remote=remote)

    assert cache.acquire(0, [1, 2, 3, 4], 0, 4) == 4
    assert cache.found_K.tolist() == [1, 2, 1]
    assert (cache.evicted_blocks(0), cache.evicted_blocks(1)) == (3, 1)
    assert other.acquire(0, [4], 0, 1) == 1  # the store is the pool's
    assert other.found_K.tolist() == [0, 0, 1]
    assert cache.load_s(2, 1) == max(3 * 16 / 8.0, 0.5 + 16 / 4.0)
    assert cache.load_s(0, 0) == 0.0


def test_what_one_replica_uses_stays_in_the_store_for_the_others() -> None:
    """Room for two blocks: 1 is the older there, until a replica loads it and keeps it in HBM."""
    settings = TierSettings(kv_bytes_per_token=1.0, remote_bytes=32, remote_bytes_per_s=1.0)
    remote = RemoteStore(settings, 16)
    one, other = (
        PrefixCache(block_tokens=16, ranks=1, settings=settings, remote=remote) for _ in range(2)
    )
    serve(other, [1], 0)
    serve(other, [2], 0)
    serve(one, [1], 16)
    serve(other, [3], 0)

    assert other.acquire(0, [1], 0, 1) == 1
    assert other.acquire(0, [2], 0, 1) == 0


def test_ranks_have_caches_of_their_own() -> None:
    settings = TierSettings(kv_bytes_per_token=1.0, host_bytes=64, host_bytes_per_s=8.0)
    cache = PrefixCache(block_tokens=16, ranks=2, settings=settings)
    for rank, first in ((0, 10), (1, 20)):
        hashes = [first, first + 1, first + 2]
        cache.keep(rank, hashes, 0, 3)
        cache.leave(rank, hashes, 3)
        cache.trim(rank, 0)  # two of three fit into half of host memory

    assert cache.acquire(0, [10, 11, 12], 0, 3) == 2
    assert cache.acquire(1, [10], 0, 1) == 0
    assert cache.found_K.tolist() == [0, 2, 0]


def test_a_tier_without_a_bandwidth_is_refused() -> None:
    with pytest.raises(ValueError, match=r"host tier has 5 bytes and no bandwidth; say host_bytes_per_s"):  # fmt: skip
        TierSettings(kv_bytes_per_token=1.0, host_bytes=5)
