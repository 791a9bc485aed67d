/* Caches of hashed blocks: engine/prefix_kernels.py and engine/prefix.py. A store grows by itself; nothing that is decided depends on its places. */

static i64 home(const Store *store, i32 cache, i64 key) {
    u64 mixed = ((u64)key + (u64)cache * 0x9E3779B97F4A7C15ULL) * 0xBF58476D1CE4E5B9ULL;
    mixed = (mixed ^ (mixed >> 29)) * 0x94D049BB133111EBULL;
    return (i64)((mixed ^ (mixed >> 32)) & (u64)(store->places - 1));
}

static void seat(Store *store, i32 one) {
    i64 at = home(store, store->blocks[one].cache, store->blocks[one].key);
    while (store->table[at]) at = (at + 1) & (store->places - 1);
    store->table[at] = one + 1;
}

static void make_store(Core *core, Store *store, i64 caches) {
    store->caches = caches;
    store->lists = zeroed(core, caches, sizeof *store->lists);
    store->free = NONE;
}

static void empty_store(Store *store) {
    for (i64 c = 0; c < store->caches; c++) {
        i64 capacity = store->lists[c].capacity;
        store->lists[c] = (BlockList){.oldest = NONE, .newest = NONE, .capacity = capacity};
    }
    if (store->places) memset(store->table, 0, (size_t)store->places * sizeof *store->table);
    store->free = NONE;
    for (i64 one = store->count - 1; one >= 0; one--) {
        store->blocks[one].next = store->free;
        store->free = (i32)one;
    }
}

static void free_store(Store *store) {
    free(store->table);
    free(store->blocks);
    free(store->lists);
}

static void grow_store(Core *core, Store *store) {
    i64 before = store->count, count = before ? 2 * before : 64;
    store->blocks = grown(core, store->blocks, count, sizeof *store->blocks);
    i32 *table = zeroed(core, 2 * count, sizeof *table);
    i32 *old = store->table;
    i64 places = store->places;
    store->table = table;
    store->places = 2 * count;
    store->count = count;
    for (i64 at = 0; at < places; at++)
        if (old[at]) seat(store, old[at] - 1);
    free(old);
    for (i64 one = count - 1; one >= before; one--) {
        store->blocks[one].next = store->free;
        store->free = (i32)one;
    }
}

static i32 find_block(const Store *store, i32 cache, i64 key) {
    if (!store->places) return NONE;
    i64 at = home(store, cache, key);
    while (store->table[at]) {
        i32 one = store->table[at] - 1;
        if (store->blocks[one].key == key && store->blocks[one].cache == cache) return one;
        at = (at + 1) & (store->places - 1);
    }
    return NONE;
}

static i32 add_block(Core *core, Store *store, i32 cache, i64 key) {
    if (store->free == NONE) grow_store(core, store);
    i32 one = store->free;
    store->free = store->blocks[one].next;
    store->blocks[one] = (Block){.key = key, .cache = cache, .prev = NONE, .next = NONE};
    seat(store, one);
    return one;
}

static void remove_block(Store *store, i32 one) {
    i64 last = store->places - 1, gap = home(store, store->blocks[one].cache, store->blocks[one].key);
    while (store->table[gap] != one + 1) gap = (gap + 1) & last;
    for (i64 at = (gap + 1) & last; store->table[at]; at = (at + 1) & last) {
        i32 other = store->table[at] - 1;
        i64 belongs = home(store, store->blocks[other].cache, store->blocks[other].key);
        if (((at - belongs) & last) >= ((at - gap) & last)) {
            store->table[gap] = other + 1;
            gap = at;
        }
    }
    store->table[gap] = 0;
    store->blocks[one].next = store->free;
    store->free = one;
}

static void link_block(Store *store, i32 one) {
    BlockList *list = &store->lists[store->blocks[one].cache];
    store->blocks[one].prev = list->newest;
    store->blocks[one].next = NONE;
    if (list->newest == NONE) list->oldest = one;
    else store->blocks[list->newest].next = one;
    list->newest = one;
    list->linked++;
}

static void unlink_block(Store *store, i32 one) {
    BlockList *list = &store->lists[store->blocks[one].cache];
    i32 before = store->blocks[one].prev, after = store->blocks[one].next;
    if (before == NONE) list->oldest = after;
    else store->blocks[before].next = after;
    if (after == NONE) list->newest = before;
    else store->blocks[after].prev = before;
    list->linked--;
}

static int touch_block(Store *store, i32 cache, i64 key) {
    i32 one = find_block(store, cache, key);
    if (one == NONE) return 0;
    if (!store->blocks[one].held) {
        unlink_block(store, one);
        link_block(store, one);
    }
    return 1;
}

static void put_block(Core *core, Store *store, i32 cache, i64 key) {
    if (!touch_block(store, cache, key)) link_block(store, add_block(core, store, cache, key));
}

static int is_over_capacity(const BlockList *list) { return list->capacity != NONE && list->linked > list->capacity; }

static i64 evict_block(Store *store, i32 cache) {
    i32 one = store->lists[cache].oldest;
    i64 key = store->blocks[one].key;
    unlink_block(store, one);
    remove_block(store, one);
    store->lists[cache].evicted++;
    return key;
}

static void hold_block(Core *core, Store *store, i32 cache, i64 key) {
    i32 one = find_block(store, cache, key);
    if (one == NONE) one = add_block(core, store, cache, key);
    else if (!store->blocks[one].held) unlink_block(store, one);
    else store->lists[cache].shared++;
    store->blocks[one].held++;
}

static void let_block_go(Store *store, i32 cache, i64 key) {
    i32 one = find_block(store, cache, key);
    if (--store->blocks[one].held == 0) link_block(store, one);
    else store->lists[cache].shared--;
}

/* ---- a replica's tiers: HBM of rank r is cache 2r of its store, host memory 2r + 1; the remote store is its pool's */

static i64 idle_blocks(const Prefix *prefix, i64 rank) { return prefix->store.lists[2 * rank].linked; }

static i64 shared_tokens(const Prefix *prefix, i64 rank) { return prefix->store.lists[2 * rank].shared * prefix->block_tokens; }

static int tier_of(const Prefix *prefix, i32 rank, i64 key) {
    if (find_block(&prefix->store, 2 * rank, key) != NONE) return 0;
    if (prefix->has_host && find_block(&prefix->store, 2 * rank + 1, key) != NONE) return 1;
    if (prefix->remote != NULL && find_block(prefix->remote, 0, key) != NONE) return 2;
    return NONE;
}

/* Hold the blocks from `first` on until one is nowhere; how many are held then. */
static i64 acquire_blocks(Core *core, Prefix *prefix, i32 rank, const Hashes *hashes, i64 first, i64 most, i64 *found) {
    for (i64 block = first; block < most; block++) {
        int tier = tier_of(prefix, rank, hashes->keys[block]);
        if (tier == NONE) return block;
        hold_block(core, &prefix->store, 2 * rank, hashes->keys[block]);
        found[tier]++;
    }
    return first > most ? first : most;
}

/* Let go of the first `held` blocks, the last one first; copies below are as recently used then. */
static void let_blocks_go(Prefix *prefix, i32 rank, const Hashes *hashes, i64 held) {
    for (i64 block = held - 1; block >= 0; block--) {
        i64 key = hashes->keys[block];
        let_block_go(&prefix->store, 2 * rank, key);
        if (prefix->has_host) touch_block(&prefix->store, 2 * rank + 1, key);
        if (prefix->remote != NULL) touch_block(prefix->remote, 0, key);
    }
}

static i64 held_ahead(const Prefix *prefix, i32 rank, const Hashes *hashes, i64 most) {
    for (i64 block = 0; block < most; block++) {
        i32 one = find_block(&prefix->store, 2 * rank, hashes->keys[block]);
        if (one == NONE || !prefix->store.blocks[one].held) return block;
    }
    return most;
}

/* What HBM evicted goes to host memory, and what is evicted there to the remote store. */
static void sink_block(Core *core, Prefix *prefix, i32 rank, i64 key) {
    if (prefix->has_host) {
        put_block(core, &prefix->store, 2 * rank + 1, key);
        if (!is_over_capacity(&prefix->store.lists[2 * rank + 1])) return;
        key = evict_block(&prefix->store, 2 * rank + 1);
    }
    if (prefix->remote == NULL) return;
    put_block(core, prefix->remote, 0, key);
    if (is_over_capacity(&prefix->remote->lists[0])) evict_block(prefix->remote, 0);
}

static void trim_rank(Core *core, Prefix *prefix, i32 rank, i64 most) {
    while (idle_blocks(prefix, rank) > most) sink_block(core, prefix, rank, evict_block(&prefix->store, 2 * rank));
}

static double load_s(const Prefix *prefix, i64 host, i64 remote) {
    if (prefix->block_bytes == 0.0 || !(host + remote)) return 0.0;
    double host_s = 0.0, remote_s = 0.0;
    if (prefix->host_bytes_per_s > 0) host_s = (double)(host + remote) * prefix->block_bytes / prefix->host_bytes_per_s;
    if (remote) {
        remote_s = prefix->remote_latency_s;
        remote_s += (double)remote * prefix->block_bytes / prefix->remote_bytes_per_s;
    }
    return host_s > remote_s ? host_s : remote_s;
}

/* ---- where the blocks of prompts were last sent: policy/affinity.py */

static void affinity_sent(Core *core, Affinity *affinity, i64 row, const i64 *keys, i64 count) {
    if (!affinity->bound) return;
    for (i64 at = count - 1; at >= 0; at--) {
        i32 one = find_block(&affinity->store, 0, keys[at]);
        if (one == NONE) {
            while (affinity->store.lists[0].linked >= affinity->bound) evict_block(&affinity->store, 0);
            one = add_block(core, &affinity->store, 0, keys[at]);
            if (affinity->store.count > affinity->room) {
                affinity->room = affinity->store.count;
                affinity->rows = grown(core, affinity->rows, affinity->room * affinity->words, sizeof *affinity->rows);
            }
            memset(affinity->rows + one * affinity->words, 0, (size_t)affinity->words * sizeof *affinity->rows);
        } else unlink_block(&affinity->store, one);
        link_block(&affinity->store, one);
        affinity->rows[one * affinity->words + row / 64] |= 1ULL << (row % 64);
    }
}

static void affinity_forget(Affinity *affinity, i64 row) {
    for (i64 one = 0; one < affinity->room; one++) affinity->rows[one * affinity->words + row / 64] &= ~(1ULL << (row % 64));
}

/* Tokens that each row should have of the prompt, into `cached`, which is zero before; whether any has some. */
static int affinity_cached(const Affinity *affinity, const i64 *keys, i64 count, i64 input_tokens, i64 *cached, u64 *bits) {
    i64 most = (input_tokens - 1) / affinity->block_tokens;
    if (count < most) most = count;
    i32 one = most > 0 ? find_block(&affinity->store, 0, keys[0]) : NONE;
    if (one == NONE) return 0;
    memcpy(bits, affinity->rows + one * affinity->words, (size_t)affinity->words * sizeof *bits);
    int found = 0;
    for (i64 block = 1;; block++) {
        i32 here = block < most ? find_block(&affinity->store, 0, keys[block]) : NONE;
        u64 left = 0;
        for (i64 word = 0; word < affinity->words; word++) {
            u64 these = here == NONE ? 0 : affinity->rows[here * affinity->words + word];
            for (u64 ending = bits[word] & ~these; ending; ending &= ending - 1) {
                cached[word * 64 + __builtin_ctzll(ending)] = block * affinity->block_tokens;
                found = 1;
            }
            bits[word] &= these;
            left |= bits[word];
        }
        if (!left) return found;
    }
}
