/* The compiled driver of `polypod simulate`: simulate/run.py, policy/ and engine/replica.py over arrays, decision for decision.

   One translation unit, compiled at first use (engine/native/build.py) without fast-math and without contraction, so that every figure is the
   one that Python computes. Python makes a core, gives it changes of replicas and blocks of arrivals, and calls `core_run` until it
   is done, draining the log and the outcomes in between. */
#include "types.h"
#include "memory.h"
#include "prompts.h"
#include "step.h"
#include "prefix.h"
#include "engine.h"
#include "router.h"
#include "pairing.h"
#include "policy.h"
#include "transfers.h"
#include "driver.h"
#include "series.h"
#include "rows.h"

enum { RUN_DONE, RUN_WANTS_ARRIVALS, RUN_PAUSED, RUN_NO_MEMORY };

static void make_table(Core *core, Table *table, i64 rows, const ServiceSpec *spec) {
    i64 **whole[] = {
        &table->in_flight, &table->slots, &table->limit_tokens, &table->prompts, &table->requests, &table->kind, &table->held, &table->moving,
    };
    double **real[] = {
        &table->prompts_s, &table->prompts_end_s, &table->prompt_share, &table->kv_tokens, &table->kv_capacity, &table->kv_read_s,
        &table->attend_s, &table->decode_s, &table->prompt_factor, &table->decode_factor, &table->finish_s, &table->first_s, &table->token_s,
    };
    table->rows = rows;
    table->member = zeroed(core, rows, sizeof *table->member);
    table->able = zeroed(core, rows, sizeof *table->able);
    table->closed = zeroed(core, rows, sizeof *table->closed);
    table->affinity.words = (rows + 63) / 64;
    table->cached = zeroed(core, 64 * table->affinity.words, sizeof *table->cached);
    table->bits = zeroed(core, table->affinity.words, sizeof *table->bits);
    table->affinity.block_tokens = spec->block_tokens;
    table->affinity.most_blocks = core->settings.prefix_blocks;
    make_store(core, &table->affinity.store, 1);
    table->affinity.store.lists[0] = (BlockList){.oldest = NONE, .newest = NONE, .capacity = NONE};
    for (i64 row = 0; row < rows; row++) table->member[row] = NONE;
    for (size_t one = 0; one < sizeof whole / sizeof *whole; one++) *whole[one] = zeroed(core, rows, sizeof(i64));
    for (size_t one = 0; one < sizeof real / sizeof *real; one++) *real[one] = zeroed(core, rows, sizeof(double));
}

static void make_prefix(Core *core, Engine *engine, const ServiceSpec *service) {
    const ReplicaSpec *spec = engine->spec;
    Prefix *prefix = &engine->prefix;
    if (!service->is_hashed) return;
    *prefix = (Prefix){
        .block_tokens = service->block_tokens, .has_host = spec->host_blocks > 0, .block_bytes = spec->block_bytes,
        .host_bytes_per_s = spec->host_bytes_per_s, .remote_bytes_per_s = spec->remote_bytes_per_s, .remote_latency_s = spec->remote_latency_s,
    };
    make_store(core, &prefix->store, 2 * engine->kind->data_ranks);
    for (i64 cache = 0; cache < prefix->store.caches; cache++)
        prefix->store.lists[cache] = (BlockList){.oldest = NONE, .newest = NONE, .capacity = cache % 2 ? spec->host_blocks : NONE};
    if (spec->remote == NONE) return;
    prefix->remote = &core->remotes[spec->remote];
    if (prefix->remote->caches) return; /* another replica of the pool has made it */
    make_store(core, prefix->remote, 1);
    prefix->remote->lists[0] = (BlockList){.oldest = NONE, .newest = NONE, .capacity = spec->remote_blocks};
}

static void make(Core *core, const ServiceSpec *services) {
    i64 replicas = core->settings.replicas;
    core->request_free = core->sequence_free = core->live_head = core->live_tail = NONE;
    core->service = zeroed(core, core->settings.models, sizeof *core->service);
    core->member = zeroed(core, replicas, sizeof *core->member);
    core->engine = zeroed(core, replicas, sizeof *core->engine);
    core->kind_prompt_s = zeroed(core, core->settings.kinds, sizeof *core->kind_prompt_s);
    core->kind_steps = zeroed(core, core->settings.kinds, sizeof *core->kind_steps);
    core->slowdowns = zeroed(core, core->settings.caps, sizeof *core->slowdowns);
    for (i64 c = 0; c < core->settings.caps; c++) core->slowdowns[c] = 1.0;
    core->remotes = zeroed(core, core->settings.remotes, sizeof *core->remotes);
    i64 links = replicas + 2 * core->settings.ways;
    core->links = zeroed(core, links, sizeof *core->links);
    for (i64 link = replicas; link < links; link++) core->links[link].capacity = core->links[link].told = whole_of(core, link);
    core->done_bytes = zeroed(core, core->settings.tiers, sizeof *core->done_bytes);
    core->is_exact = 1;
    core->transfers_due_s = INFINITY;
    for (i64 r = 0; r < replicas; r++) {
        core->links[r].factor = 1.0;
        core->links[r].told = own_capacity(core, (i32)r);
        core->engine[r].spec = &core->replicas[r];
        core->engine[r].kind = &core->kinds[core->replicas[r].played_kind];
        core->engine[r].due_s = INFINITY;
        core->engine[r].slowdown = core->engine[r].factor = core->replicas[r].slowdown;
        core->engine[r].cap_slowdown = 1.0;
        make_prefix(core, &core->engine[r], &services[core->replicas[r].model]);
        core->member[r].aboard_head = core->member[r].aboard_tail = NONE;
    }
    for (i64 m = 0; m < core->settings.models; m++) {
        Service *service = &core->service[m];
        i64 rows[ROLES] = {0};
        for (i64 r = 0; r < replicas; r++)
            if (core->replicas[r].model == m) rows[core->replicas[r].role]++;
        service->spec = &services[m];
        service->mean_output_tokens = services[m].mean_output_tokens;
        service->finish_gap_s = service->last_finish_s = NAN;
        service->queue.head = service->queue.tail = service->held.head = service->held.tail = service->moving.head = service->moving.tail = NONE;
        for (int role = 0; role < ROLES; role++) make_table(core, &service->tables[role], rows[role], &services[m]);
    }
}

static void free_table(Table *table) {
    void *columns[] = {
        table->member, table->able, table->closed, table->in_flight, table->slots, table->limit_tokens, table->prompts, table->requests,
        table->kind, table->held, table->moving, table->prompts_s, table->prompts_end_s, table->prompt_share, table->kv_tokens,
        table->kv_capacity, table->kv_read_s, table->attend_s, table->decode_s, table->prompt_factor, table->decode_factor, table->finish_s,
        table->first_s, table->token_s, table->cached, table->bits, table->affinity.rows,
    };
    for (size_t one = 0; one < sizeof columns / sizeof *columns; one++) free(columns[one]);
    free_store(&table->affinity.store);
}

void core_free(Core *core) {
    if (core == NULL) return;
    for (i64 m = 0; core->service != NULL && m < core->settings.models; m++) {
        Service *service = &core->service[m];
        free(service->queue.deadlines);
        free(service->held.deadlines);
        free(service->moving.deadlines);
        for (int role = 0; role < ROLES; role++) free_table(&service->tables[role]);
    }
    for (i64 r = 0; core->engine != NULL && r < core->settings.replicas; r++) free_engine(&core->engine[r]);
    for (i64 link = 0; core->links != NULL && link < core->settings.replicas + 2 * core->settings.ways; link++) free(core->links[link].requests);
    for (i64 r = 0; core->remotes != NULL && r < core->settings.remotes; r++) free_store(&core->remotes[r]);
    for (i32 slot = 0; slot < core->request_room; slot++) {
        drop_hashes(core->request[slot].hashes);
        free(core->request[slot].failures);
    }
    for (i32 slot = 0; slot < core->sequence_room; slot++) drop_hashes(core->sequence[slot].hashes);
    void *arrays[] = {
        core->remotes, core->request, core->sequence, core->service, core->member, core->engine, core->agenda, core->wakes, core->kind_prompt_s,
        core->kind_steps, core->progress, core->log, core->outcomes,
        core->rows, core->slowdowns, core->links, core->transfers, core->arrived, core->going,
        core->filling, core->limits, core->done_bytes,
    };
    for (size_t one = 0; one < sizeof arrays / sizeof *arrays; one++) free(arrays[one]);
    free(core);
}

/* NULL when there is no memory. What is pointed to must outlive the core. */
Core *core_new(
    const Settings *settings, const Kind *kinds, const double *knot_tokens, const double *knot_seconds, const ReplicaSpec *replicas,
    const ServiceSpec *services, const CapSpec *caps, const i64 *capped, const WayStep *way_steps, const double *way_capacities
) {
    Core *volatile core = calloc(1, sizeof *core);
    if (core == NULL) return NULL;
    core->settings = *settings;
    core->kinds = kinds;
    core->knot_tokens = knot_tokens;
    core->knot_seconds = knot_seconds;
    core->replicas = replicas;
    core->caps = caps;
    core->capped = capped;
    core->way_steps = way_steps;
    core->way_capacities = way_capacities;
    if (setjmp(core->no_memory)) {
        core_free(core);
        return NULL;
    }
    make(core, services);
    return core;
}

/* Replicas' starts, ends and changes of speed, in the order of their entry. */
int core_plan(Core *core, const Change *changes, i64 count) {
    if (setjmp(core->no_memory)) return RUN_NO_MEMORY;
    for (i64 at = 0; at < count; at++)
        plan(core, changes[at].at_s, K_EVENT, (Agendum){
            .word = changes[at].what, .a = changes[at].replica, .b = changes[at].epoch, .factor = changes[at].factor,
            .back_in_s = changes[at].back_in_s});
    return RUN_DONE;
}

/* The next block of arrivals, in order of time; it must outlive its reading. The first is planned at once where none was before. */
int core_feed(Core *core, const Arrival *arrivals, const i64 *hashes, i64 count, i64 is_last) {
    if (setjmp(core->no_memory)) return RUN_NO_MEMORY;
    int is_first = core->arrivals == NULL;
    core->arrivals = arrivals;
    core->hashes = hashes;
    core->arrivals_count = count;
    core->arrivals_at = 0;
    core->is_last_block = is_last;
    if (is_first) plan_arrival(core);
    return RUN_DONE;
}

/* All requests of a closed loop in the order they are sent, their times those to think since another ended; so many users begin at time 0, and nothing is
   sent from the end on. */
int core_loop(Core *core, const Arrival *arrivals, const i64 *hashes, i64 count, i64 users, double end_s) {
    if (setjmp(core->no_memory)) return RUN_NO_MEMORY;
    core->arrivals = arrivals;
    core->hashes = hashes;
    core->arrivals_count = count;
    core->is_last_block = core->is_loop = 1;
    core->loop_end_s = end_s;
    for (i64 user = 0; user < users; user++) plan_arrival_at(core, 0.0);
    return RUN_DONE;
}

/* Play on for so many entries of the agenda at most. */
int core_run(Core *core, i64 entries) {
    if (setjmp(core->no_memory)) return RUN_NO_MEMORY;
    volatile i64 most = entries;
    while (core->agenda_count) {
        if (core->agenda[0].word == W_ARRIVED && core->arrivals_at == core->arrivals_count && !core->is_last_block) return RUN_WANTS_ARRIVALS;
        if (most-- <= 0) return RUN_PAUSED;
        if (is_over(core, &core->agenda[0])) take_next(core);
        else if (next_tick_s(core) <= core->agenda[0].at_s) tick(core, next_tick_s(core));
        else {
            Agendum item = take_next(core);
            core->now_s = item.at_s;
            play(core, &item);
        }
    }
    if (core->settings.interval_s < INFINITY && core->last_tick_s < core->now_s) tick(core, core->now_s);
    return RUN_DONE;
}

i64 core_entries(const Core *core, const Entry **entries) {
    *entries = core->log;
    return core->log_count;
}

i64 core_rows(const Core *core, const double **rows) {
    *rows = core->rows;
    return core->row_count;
}

i64 core_outcomes(const Core *core, const Outcome **outcomes) {
    *outcomes = core->outcomes;
    return core->outcome_count;
}

/* Write down those that have not ended; asked when a run is left before its end. */
int core_leave(Core *core) {
    if (setjmp(core->no_memory)) return RUN_NO_MEMORY;
    for (i32 slot = core->live_head; slot != NONE; slot = core->request[slot].live_next)
        write_outcome(core, &core->request[slot], NOT_ENDED, 0);
    return RUN_DONE;
}

/* Forget what has been drained. */
void core_drained(Core *core) { core->log_count = core->outcome_count = core->row_count = 0; }

void core_now(const Core *core, double *now_s, i64 *events, i64 *live, i64 *batch_changes) {
    *now_s = core->now_s;
    *events = core->events;
    *live = core->live;
    *batch_changes = core->batch_changes;
}

/* Of one replica over all its starts: busy seconds, tokens computed, preemptions; prompt tokens found cached in each of three tiers, and tokens
   evicted from the first two. Asked once, at the end. */
void core_totals(Core *core, i64 replica, double *totals) {
    Engine *engine = &core->engine[replica];
    if (engine->is_up) add_totals(engine);
    totals[0] = engine->total_busy_s;
    totals[1] = (double)engine->total_computed_tokens;
    totals[2] = (double)engine->total_preemptions;
    for (int tier = 0; tier < 3; tier++) totals[3 + tier] = (double)(engine->total_found[tier] * engine->prefix.block_tokens);
    for (int tier = 0; tier < 2; tier++) totals[6 + tier] = (double)(engine->total_evicted[tier] * engine->prefix.block_tokens);
}
