/* Caches of hashed blocks: what is kept of them. HBM of a replica's rank r is cache 2r of its store, host memory 2r + 1; the remote store is its pool's. */

typedef struct {
    i64 key;
    i32 cache, prev, next, held; /* held by so many sequences; held by none it is on its cache's list, the least recently used first */
} Block;

typedef struct {
    i32 oldest, newest;
    i64 linked, shared, capacity, evicted; /* `shared`: holds past the first of each block; a capacity of NONE is no bound */
} BlockList;

typedef struct {
    i32 *table; /* block + 1, 0 is free; linear probing without tombstones */
    i64 places;
    Block *blocks;
    i64 count; /* of `blocks` */
    i32 free;
    BlockList *lists;
    i64 caches;
} Store;

typedef struct { /* of one prompt, counted by who refers to it */
    i64 owners, count;
    i64 keys[];
} Hashes;

typedef struct {
    Store store;
    Store *remote; /* or NULL */
    i64 block_tokens; /* 0: no prefix cache at all */
    int has_host;
    i64 found[3]; /* blocks, by tier, since the start */
    double block_bytes, host_bytes_per_s, remote_bytes_per_s, remote_latency_s;
} Prefix;

typedef struct {
    Store store;
    u64 *rows; /* bits, `words` of them for each block */
    i64 words, room, bound, block_tokens, most_blocks;
} Affinity;
