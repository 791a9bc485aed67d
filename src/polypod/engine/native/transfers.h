/* Caches on their way from prefill to decode replicas: simulate/transfers.py, figure for figure. */

static double link_part(const Core *core, i32 replica) {
    const ReplicaSpec *spec = &core->replicas[replica];
    if (spec->kv_link_bytes_per_s == 0.0) return INFINITY;
    i64 ranks = core->kinds[spec->kind].data_ranks, caches = core->links[replica].count;
    return spec->kv_link_bytes_per_s / (double)(caches > ranks ? caches : ranks) / core->links[replica].factor;
}

static void push_transfer(Core *core, i32 slot) {
    const Cache *cache = &core->request[slot].cache;
    Deadline one = {cache->due_s, cache->order, 0, slot};
    ROOM(core, core->transfers, core->transfer_count, core->transfer_room);
    i64 at = core->transfer_count++;
    for (; at > 0 && deadline_before(&one, &core->transfers[(at - 1) / 2]); at = (at - 1) / 2)
        core->transfers[at] = core->transfers[(at - 1) / 2];
    core->transfers[at] = one;
}

static double next_transfer_s(Core *core) {
    while (core->transfer_count) {
        const Deadline *first = &core->transfers[0];
        const Cache *cache = &core->request[first->request].cache;
        if (cache->is_on_the_way && cache->order == first->low && cache->due_s == first->at_s) return first->at_s;
        pop_deadline(core->transfers, &core->transfer_count);
    }
    return INFINITY;
}

/* Set the rate, and with it when it arrives; one whose rate stays keeps its time to the bit. */
static void time_cache(Core *core, i32 slot, double at_s) {
    Cache *cache = &core->request[slot].cache;
    double source = link_part(core, cache->source), target = link_part(core, cache->target);
    double rate = target < source ? target : source;
    if (rate == cache->bytes_per_s) return;
    if (cache->bytes_per_s != 0.0) {
        double left_bytes = cache->left_bytes - cache->bytes_per_s * (at_s - cache->since_s);
        cache->left_bytes = left_bytes > 0.0 ? left_bytes : 0.0;
    }
    cache->since_s = at_s;
    cache->bytes_per_s = rate;
    cache->due_s = at_s + cache->left_bytes / rate;
    push_transfer(core, slot);
}

static void time_link(Core *core, i32 replica, double at_s) {
    for (i64 at = 0; at < core->links[replica].count; at++) time_cache(core, core->links[replica].requests[at], at_s);
}

/* One more or one less is on two links: time all on them anew. */
static void share_links(Core *core, i32 slot, double at_s, int begins) {
    Cache *cache = &core->request[slot].cache;
    i32 ends[2] = {cache->source, cache->target};
    for (int end = 0; end < 2; end++) {
        Link *link = &core->links[ends[end]];
        if (begins) {
            ROOM(core, link->requests, link->count, link->room);
            cache->at[end] = (i32)link->count;
            link->requests[link->count++] = slot;
            continue;
        }
        i32 last = link->requests[--link->count];
        link->requests[cache->at[end]] = last;
        Cache *moved = &core->request[last].cache;
        moved->at[moved->source == ends[end] ? 0 : 1] = cache->at[end];
    }
    for (int end = 0; end < 2; end++) time_link(core, ends[end], at_s);
}

static void start_transfer(Core *core, i32 slot, double at_s) {
    Request *request = &core->request[slot];
    const ReplicaSpec *source = &core->replicas[request->source.replica], *target = &core->replicas[request->place.replica];
    double latency_s = target->kv_link_latency_s > source->kv_link_latency_s ? target->kv_link_latency_s : source->kv_link_latency_s;
    request->cache = (Cache){
        .order = ++core->transfer_orders, .left_bytes = (double)request->asked.input_tokens * source->kv_token_bytes, .since_s = at_s,
        .due_s = at_s + latency_s, .source = request->source.replica, .target = request->place.replica, .is_on_the_way = 1,
    };
    push_transfer(core, slot);
}

static void stop_transfer(Core *core, i32 slot, double at_s) {
    Cache *cache = &core->request[slot].cache;
    if (!cache->is_on_the_way) return;
    cache->is_on_the_way = 0;
    if (cache->bytes_per_s != 0.0) share_links(core, slot, at_s, 0);
}

/* The requests whose caches have arrived by then, in order, into `core->arrived`; how many. */
static i64 advance_transfers(Core *core, double to_s) {
    i64 count = 0;
    while (next_transfer_s(core) <= to_s) {
        double at_s = core->transfers[0].at_s;
        i32 slot = core->transfers[0].request;
        pop_deadline(core->transfers, &core->transfer_count);
        if (core->request[slot].cache.bytes_per_s != 0.0) {
            ROOM(core, core->arrived, count, core->arrived_room);
            core->arrived[count++] = slot;
            stop_transfer(core, slot, at_s);
        } else share_links(core, slot, at_s, 1);
    }
    return count;
}
