/* Caches on their way from prefill to decode replicas: simulate/transfers.py, figure for figure. */

#define TOLERANCE_RATIO (1.0 / 32)
#define LEVEL_ROUNDS 4

static double link_part(const Core *core, i32 replica) {
    const ReplicaSpec *spec = &core->replicas[replica];
    if (spec->port_bytes_per_s == 0.0) return INFINITY;
    i64 ranks = core->kinds[spec->kind].data_ranks, caches = core->links[replica].count;
    return spec->port_bytes_per_s / (double)(caches > ranks ? caches : ranks) / core->links[replica].factor;
}

/* ---- ways: simulate/ways.py */

static const WayStep *way_step(const Core *core, i32 replica, i64 place) { return &core->way_steps[replica * core->settings.way_tiers + place]; }

/* The place of the nearest tier that both are in, or NONE. */
static i64 meeting_place(const Core *core, i32 source, i32 target) {
    for (i64 place = 0; place < core->settings.way_tiers; place++) {
        i64 instance = way_step(core, source, place)->instance;
        if (instance != NONE && instance == way_step(core, target, place)->instance) return place;
    }
    return NONE;
}

/* The links that a cache crosses, its ends' own first, and the tiers, a bit each. */
static void find_path(const Core *core, Cache *cache) {
    i32 ends[2] = {cache->source, cache->target};
    i64 meets = meeting_place(core, cache->source, cache->target);
    cache->links[0] = cache->source;
    cache->links[1] = cache->target;
    cache->link_count = 2;
    if (meets == NONE) return;
    for (int down = 0; down < 2; down++)
        for (i64 place = way_step(core, ends[down], meets)->first; place <= meets; place++) {
            const WayStep *step = way_step(core, ends[down], place);
            if (step->tier != NONE) cache->tiers |= (u64)1 << step->tier;
            if (step->way != NONE) cache->links[cache->link_count++] = (i32)(core->settings.replicas + 2 * step->way + down);
        }
}

static double whole_of(const Core *core, i64 link) {
    return core->way_capacities[(link - core->settings.replicas) / 2];
}

static int goes(const Cache *cache) { return cache->bytes_per_s >= 0.0; }

static double sent_bytes(const Cache *cache, double at_s) {
    if (cache->bytes_per_s <= 0.0) return floor(cache->size_bytes - cache->left_bytes);
    if (at_s >= cache->due_s) return floor(cache->size_bytes);
    double left = cache->left_bytes - cache->bytes_per_s * (at_s - cache->since_s);
    return floor(cache->size_bytes - (left > 0.0 ? left : 0.0));
}

static void add_bytes(const Core *core, const Cache *cache, double at_s, double *tiers) {
    double sent = sent_bytes(cache, at_s);
    for (i64 tier = 0; tier < core->settings.tiers; tier++)
        if (cache->tiers >> tier & 1) tiers[tier] += sent;
}

/* ---- when a cache changes next */

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
static void time_cache(Core *core, i32 slot, double rate, double at_s) {
    Cache *cache = &core->request[slot].cache;
    if (rate == cache->bytes_per_s) return;
    if (goes(cache)) {
        double left_bytes = cache->left_bytes - cache->bytes_per_s * (at_s - cache->since_s);
        cache->left_bytes = left_bytes > 0.0 ? left_bytes : 0.0;
    }
    cache->since_s = at_s;
    cache->bytes_per_s = rate;
    cache->due_s = rate > 0.0 ? at_s + cache->left_bytes / rate : INFINITY;
    if (rate > 0.0) push_transfer(core, slot);
}

/* ---- equal shares, where caches have their ends' own links and no others */

static void time_evenly(Core *core, i64 link, double at_s) {
    for (i64 at = 0; at < core->links[link].count; at++) {
        i32 slot = core->links[link].requests[at];
        const Cache *cache = &core->request[slot].cache;
        double source = link_part(core, cache->source), target = link_part(core, cache->target);
        time_cache(core, slot, source < target ? source : target, at_s);
    }
}

/* ---- levels */

static double own_capacity(const Core *core, i32 replica) {
    double whole = core->replicas[replica].port_bytes_per_s;
    return (whole != 0.0 ? whole : INFINITY) / core->links[replica].factor;
}

static double port_of(const Core *core, i32 replica) {
    return own_capacity(core, replica) / (double)core->kinds[core->replicas[replica].kind].data_ranks;
}

static double capacity_of(const Core *core, i64 link) {
    return link < core->settings.replicas ? own_capacity(core, (i32)link) : core->links[link].capacity;
}

/* What a cache's ports and the levels of its links let it have, one of them left out. */
static double limit_of(const Core *core, const Cache *cache, i64 but) {
    double source = port_of(core, cache->source), rate = port_of(core, cache->target);
    if (source < rate) rate = source;
    for (i64 n = 0; n < cache->link_count; n++) {
        double told = core->links[cache->links[n]].told;
        if (cache->links[n] != but && told < rate) rate = told;
    }
    return rate;
}

static double level_of(Core *core, i64 number) {
    const Link *link = &core->links[number];
    double capacity = capacity_of(core, number);
    if (!link->count || capacity == INFINITY) return capacity;
    if (link->count > core->limit_room) {
        core->limit_room = 2 * link->count;
        core->limits = grown(core, core->limits, core->limit_room, sizeof *core->limits);
    }
    for (i64 at = 0; at < link->count; at++) {
        double limit = limit_of(core, &core->request[link->requests[at]].cache, number);
        core->limits[at] = floor(limit < capacity ? limit : capacity);
    }
    for (double level = capacity / (double)link->count;;) {
        double sum = 0.0, most = 0.0;
        i64 under = 0;
        for (i64 at = 0; at < link->count; at++) {
            if (!(core->limits[at] < level)) continue;
            under++;
            sum += core->limits[at]; /* whole numbers: in any order the same */
            if (core->limits[at] > most) most = core->limits[at];
        }
        if (under == link->count) return capacity - sum + most;
        double higher = (capacity - sum) / (double)(link->count - under);
        if (higher <= level) return level;
        level = higher;
    }
}

static void time_link(Core *core, i64 link, double at_s) {
    for (i64 at = 0; at < core->links[link].count; at++) {
        i32 slot = core->links[link].requests[at];
        time_cache(core, slot, limit_of(core, &core->request[slot].cache, NONE), at_s);
    }
}

/* Make these links' levels anew; caches on those that are told hear of all of them at once. */
static void tell_links(Core *core, const i32 *links, i64 count, double at_s) {
    double levels[MOST_LINKS];
    u8 is_told[MOST_LINKS];
    for (i64 at = 0; at < count; at++) levels[at] = level_of(core, links[at]);
    for (i64 at = 0; at < count; at++) {
        Link *link = &core->links[links[at]];
        is_told[at] = fabs(levels[at] - link->told) > TOLERANCE_RATIO * link->told;
        if (is_told[at]) link->told = levels[at];
    }
    for (i64 at = 0; at < count; at++)
        if (is_told[at]) time_link(core, links[at], at_s);
}

/* Levels of all links from nothing, some times over. */
static void tell_all(Core *core, double at_s) {
    i64 links = core->settings.replicas + 2 * core->settings.ways;
    for (i64 link = 0; link < links; link++) core->links[link].told = capacity_of(core, link);
    for (int round = 0; round < LEVEL_ROUNDS; round++) {
        for (i64 link = 0; link < links; link++)
            if (core->links[link].count) core->links[link].left = level_of(core, link);
        for (i64 link = 0; link < links; link++)
            if (core->links[link].count) core->links[link].told = core->links[link].left;
    }
    for (i64 at = 0; at < core->going_count; at++) {
        i32 slot = core->going[at];
        time_cache(core, slot, limit_of(core, &core->request[slot].cache, NONE), at_s);
    }
}

/* ---- max-min */

typedef struct Filling { /* of a cache that goes */
    double most, rate;
    u8 is_fixed, is_next;
} Filling;

static double share_left(const Link *link) { return (link->left > 0.0 ? link->left : 0.0) / (double)link->unfixed; }

static void begin_filling(Core *core, Filling *filling) {
    for (i64 at = 0; at < core->going_count; at++) {
        const Cache *cache = &core->request[core->going[at]].cache;
        double source = port_of(core, cache->source), target = port_of(core, cache->target);
        filling[at] = (Filling){.most = target < source ? target : source};
        for (i64 n = 0; n < cache->link_count; n++) {
            Link *link = &core->links[cache->links[n]];
            link->left = n < 2 ? own_capacity(core, cache->links[n]) : link->capacity;
            link->unfixed = link->count;
        }
    }
}

static double least_share(const Core *core, const Filling *filling) {
    double share = INFINITY;
    for (i64 at = 0; at < core->going_count; at++) {
        if (filling[at].is_fixed) continue;
        const Cache *cache = &core->request[core->going[at]].cache;
        if (filling[at].most < share) share = filling[at].most;
        for (i64 n = 0; n < cache->link_count; n++) {
            double its = share_left(&core->links[cache->links[n]]);
            if (its < share) share = its;
        }
    }
    return share;
}

/* Whether the cache is on a link, or has a port, that has no more than this for each. */
static int is_at(const Core *core, const Cache *cache, const Filling *one, double share) {
    if (one->most <= share) return 1;
    for (i64 n = 0; n < cache->link_count; n++)
        if (share_left(&core->links[cache->links[n]]) <= share) return 1;
    return 0;
}

/* Rates of all caches that go, in rounds: all of a round take the same share off, so that no order changes a figure. */
static void fill(Core *core, double at_s) {
    if (core->going_count > core->filling_room) {
        core->filling_room = core->settings.exact_caches;
        core->filling = grown(core, core->filling, core->filling_room, sizeof *core->filling);
    }
    Filling *filling = core->filling;
    begin_filling(core, filling);
    for (i64 left = core->going_count; left > 0;) {
        double share = least_share(core, filling);
        for (i64 at = 0; at < core->going_count; at++)
            filling[at].is_next = !filling[at].is_fixed && is_at(core, &core->request[core->going[at]].cache, &filling[at], share);
        for (i64 at = 0; at < core->going_count; at++) {
            if (!filling[at].is_next) continue;
            const Cache *cache = &core->request[core->going[at]].cache;
            filling[at].is_fixed = 1;
            filling[at].rate = share;
            left--;
            for (i64 n = 0; n < cache->link_count; n++) {
                core->links[cache->links[n]].left -= share;
                core->links[cache->links[n]].unfixed--;
            }
        }
    }
    for (i64 at = 0; at < core->going_count; at++) time_cache(core, core->going[at], filling[at].rate, at_s);
}

/* ---- what changes */

/* Exact rates where few caches go; whether it was so. */
static int retime_exactly(Core *core, double at_s) {
    if (!core->settings.way_tiers) return 0;
    if (core->going_count <= core->settings.exact_caches) {
        core->is_exact = 1;
        fill(core, at_s);
        return 1;
    }
    if (!core->is_exact) return 0;
    core->is_exact = 0;
    tell_all(core, at_s);
    return 1;
}

static void slow_link(Core *core, i32 replica, double factor, double at_s) {
    core->links[replica].factor = factor;
    if (retime_exactly(core, at_s)) return;
    if (!core->settings.way_tiers) time_evenly(core, replica, at_s);
    else {
        tell_links(core, &replica, 1, at_s);
        time_link(core, replica, at_s); /* whatever its level is, ports have changed */
    }
}

static void slow_way(Core *core, i64 way, double factor, double at_s) {
    i32 up = (i32)(core->settings.replicas + 2 * way), links[2] = {up, up + 1};
    for (int n = 0; n < 2; n++) core->links[links[n]].capacity = whole_of(core, links[n]) / factor;
    if (!retime_exactly(core, at_s)) tell_links(core, links, 2, at_s);
}

static void join_link(Core *core, Link *link, i32 slot, i64 n) {
    ROOM(core, link->requests, link->count, link->room);
    core->request[slot].cache.at[n] = (i32)link->count;
    link->requests[link->count++] = slot;
}

static void leave_link(Core *core, i32 number, i32 slot, i64 n) {
    Link *link = &core->links[number];
    i32 place = core->request[slot].cache.at[n], last = link->requests[--link->count];
    link->requests[place] = last;
    Cache *moved = &core->request[last].cache;
    for (i64 its = 0; its < moved->link_count; its++)
        if (moved->links[its] == number) moved->at[its] = place;
}

static void join_going(Core *core, i32 slot) {
    ROOM(core, core->going, core->going_count, core->going_room);
    core->request[slot].cache.going_at = (i32)core->going_count;
    core->going[core->going_count++] = slot;
}

static void leave_going(Core *core, i32 slot) {
    i32 place = core->request[slot].cache.going_at, last = core->going[--core->going_count];
    core->going[place] = last;
    core->request[last].cache.going_at = place;
}

/* One more or one less is on its links: time all on them anew. */
static void share_links(Core *core, i32 slot, double at_s, int begins) {
    i64 count = core->request[slot].cache.link_count;
    i32 links[MOST_LINKS];
    memcpy(links, core->request[slot].cache.links, sizeof links);
    if (begins) join_going(core, slot);
    else leave_going(core, slot);
    for (i64 n = 0; n < count; n++) {
        if (begins) join_link(core, &core->links[links[n]], slot, n);
        else leave_link(core, links[n], slot, n);
    }
    if (retime_exactly(core, at_s)) return;
    if (!core->settings.way_tiers) {
        for (int end = 0; end < 2; end++) time_evenly(core, links[end], at_s);
        return;
    }
    tell_links(core, links, count, at_s);
    if (begins) time_cache(core, slot, limit_of(core, &core->request[slot].cache, NONE), at_s);
}

static void start_transfer(Core *core, i32 slot, double at_s) {
    Request *request = &core->request[slot];
    const ReplicaSpec *source = &core->replicas[request->source.replica], *target = &core->replicas[request->place.replica];
    double latency_s = target->kv_link_latency_s > source->kv_link_latency_s ? target->kv_link_latency_s : source->kv_link_latency_s;
    double size_bytes = (double)request->asked.input_tokens * source->kv_token_bytes;
    request->cache = (Cache){
        .order = ++core->transfer_orders, .size_bytes = size_bytes, .left_bytes = size_bytes, .since_s = at_s, .due_s = at_s + latency_s,
        .bytes_per_s = -1.0, .source = request->source.replica, .target = request->place.replica, .is_on_the_way = 1,
    };
    find_path(core, &request->cache);
    push_transfer(core, slot);
}

static void stop_transfer(Core *core, i32 slot, double at_s) {
    Cache *cache = &core->request[slot].cache;
    if (!cache->is_on_the_way) return;
    cache->is_on_the_way = 0;
    if (!goes(cache)) return;
    add_bytes(core, cache, at_s, core->done_bytes);
    share_links(core, slot, at_s, 0);
}

/* The requests whose caches have arrived by then, in order, into `core->arrived`; how many. */
static i64 advance_transfers(Core *core, double to_s) {
    i64 count = 0;
    while (next_transfer_s(core) <= to_s) {
        double at_s = core->transfers[0].at_s;
        i32 slot = core->transfers[0].request;
        pop_deadline(core->transfers, &core->transfer_count);
        if (goes(&core->request[slot].cache)) {
            ROOM(core, core->arrived, count, core->arrived_room);
            core->arrived[count++] = slot;
            stop_transfer(core, slot, at_s);
        } else share_links(core, slot, at_s, 1);
    }
    return count;
}
