/* What runs, waits, is held and drawn at every interval's end: simulate/sampler.py, figure for figure. */

#define MOST_SLOWDOWN 4.0

static double *more_rows(Core *core, i64 count) {
    while (core->row_count + count > core->row_room) {
        core->row_room = core->row_room ? 2 * core->row_room : 1024;
        core->rows = grown(core, core->rows, core->row_room, sizeof *core->rows);
    }
    double *place = core->rows + core->row_count;
    core->row_count += count;
    return place;
}

static void look_at(Core *core, i32 replica, double at_s, PoolRow *pool) {
    Engine *engine = &core->engine[replica];
    const ReplicaSpec *spec = engine->spec;
    double busy_s = engine->total_busy_s, prompt_busy_s = engine->total_prompt_busy_s;
    double prompt_tokens = (double)engine->total_prompt_tokens, output_tokens = engine->total_output_tokens;
    if (engine->is_up) {
        const Segment *segment = &engine->segment;
        double part_s = 0.0, given = 0.0;
        if (segment->is_running) {
            double end_s = after_s(segment, segment->steps);
            part_s = (at_s < end_s ? at_s : end_s) - segment->start_s;
            if (!(part_s > 0.0)) part_s = 0.0;
            if (segment->decodes && part_s > 0)
                given = part_s / (end_s - segment->start_s) * ((double)segment->steps * engine->given * (double)engine->decoders);
        }
        double kv = 0.0;
        for (i64 r = 0; r < engine->kind->data_ranks; r++) kv += rank_kv(engine, &engine->ranks[r]);
        pool->up += 1.0;
        pool->running += (double)(engine->decoders + engine->prefilling);
        pool->waiting += (double)engine->waiting;
        pool->kv_tokens += (double)(i64)kv;
        pool->kv_capacity_tokens += (double)spec->kv_capacity_tokens;
        busy_s += engine->busy_s + part_s;
        prompt_busy_s += engine->prompt_busy_s + (engine->chunk_head != NONE ? part_s : 0.0);
        prompt_tokens += (double)engine->prompt_tokens;
        output_tokens += (double)engine->output_tokens + given;
    }
    pool->busy_s += busy_s;
    pool->prompt_busy_s += prompt_busy_s;
    pool->prompt_tokens += prompt_tokens;
    pool->output_tokens += output_tokens;
    if (spec->has_power) {
        double prompt_s = prompt_busy_s - engine->last_prompt_busy_s, decode_s = busy_s - engine->last_busy_s - prompt_s;
        double spent = (spec->prompt_w - spec->idle_w) * prompt_s;
        spent += (spec->decode_w - spec->idle_w) * decode_s;
        engine->dynamic_w = spent / (at_s - core->last_tick_s);
        double factor = spec->cap == NONE ? 1.0 : core->slowdowns[spec->cap];
        pool->watts += spec->idle_w + engine->dynamic_w / (factor * factor);
    }
    engine->last_busy_s = busy_s;
    engine->last_prompt_busy_s = prompt_busy_s;
}

static void hold_caps(Core *core, double at_s) {
    for (i64 c = 0; c < core->settings.caps; c++) {
        const CapSpec *cap = &core->caps[c];
        double dynamic_w = 0.0, factor = 1.0, allowed_w = cap->limit_w - cap->idle_w;
        for (i64 at = 0; at < cap->replicas; at++) dynamic_w += core->engine[core->capped[cap->first_replica + at]].dynamic_w;
        if (dynamic_w > allowed_w) factor = sqrt(dynamic_w / allowed_w);
        if (factor > MOST_SLOWDOWN) factor = MOST_SLOWDOWN;
        if (factor == core->slowdowns[c]) continue;
        core->slowdowns[c] = factor;
        for (i64 at = 0; at < cap->replicas; at++) {
            i32 replica = (i32)core->capped[cap->first_replica + at];
            core->engine[replica].cap_slowdown = factor;
            set_speed(core, replica, at_s);
        }
    }
}

static double next_tick_s(const Core *core) { return (double)(core->ticks + 1) * core->settings.interval_s; }

static void tick(Core *core, double at_s) {
    i64 pools = core->settings.pools, models = core->settings.models, caps = core->settings.caps;
    i64 tiers = core->settings.tiers, width = 1 + pools * (i64)(sizeof(PoolRow) / sizeof(double)) + models + caps + tiers;
    double *place = more_rows(core, width);
    memset(place, 0, (size_t)width * sizeof *place);
    *place++ = at_s;
    PoolRow *rows = (PoolRow *)place;
    for (i32 r = 0; r < (i32)core->settings.replicas; r++) look_at(core, r, at_s, &rows[core->replicas[r].pool]);
    place += width - 1 - models - caps - tiers;
    for (i64 m = 0; m < models; m++) *place++ = (double)core->service[m].queue.waiting;
    for (i64 c = 0; c < caps; c++) *place++ = core->slowdowns[c];
    for (i64 tier = 0; tier < tiers; tier++) place[tier] = core->done_bytes[tier];
    for (i64 at = 0; at < core->going_count; at++) add_bytes(core, &core->request[core->going[at]].cache, at_s, place);
    write_entry(core, W_TICK, NONE, at_s);
    core->ticks++;
    core->last_tick_s = at_s;
    hold_caps(core, at_s);
}
