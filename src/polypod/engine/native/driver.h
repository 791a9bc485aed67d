/* The virtual clock: simulate/run.py's agenda, carried out over arrays. */

enum { K_EVENT, K_ENGINE, K_CACHE, K_TIMER, K_ARRIVAL };

static int earlier(const Agendum *left, const Agendum *right) {
    return left->at_s != right->at_s ? left->at_s < right->at_s : left->key < right->key;
}

static void plan(Core *core, double at_s, int kind, Agendum what) {
    ROOM(core, core->agenda, core->agenda_count, core->agenda_room);
    what.at_s = at_s;
    what.key = ((u64)kind << 60) | (u64)++core->entries;
    i64 at = core->agenda_count++;
    for (; at > 0 && earlier(&what, &core->agenda[(at - 1) / 2]); at = (at - 1) / 2) core->agenda[at] = core->agenda[(at - 1) / 2];
    core->agenda[at] = what;
}

static Agendum take_next(Core *core) {
    Agendum first = core->agenda[0], last = core->agenda[--core->agenda_count];
    i64 at = 0;
    for (;;) {
        i64 child = 2 * at + 1;
        if (child >= core->agenda_count) break;
        if (child + 1 < core->agenda_count && earlier(&core->agenda[child + 1], &core->agenda[child])) child++;
        if (!earlier(&core->agenda[child], &last)) break;
        core->agenda[at] = core->agenda[child];
        at = child;
    }
    if (core->agenda_count) core->agenda[at] = last;
    return first;
}

/* See to it that the engine is looked at when its batch changes next. */
static void plan_engine(Core *core, i32 replica) {
    Engine *engine = &core->engine[replica];
    double at_s = next_s(engine);
    if (at_s < engine->due_s) {
        engine->due_s = at_s;
        plan(core, at_s, K_ENGINE, (Agendum){.word = W_ENGINE, .a = replica, .b = engine->serial});
    }
}

/* The same of the caches on their way. */
static void plan_transfers(Core *core) {
    double at_s = next_transfer_s(core);
    if (at_s < core->transfers_due_s) {
        core->transfers_due_s = at_s;
        plan(core, at_s, K_CACHE, (Agendum){.word = W_TRANSFERS});
    }
}

static void plan_arrival_at(Core *core, double at_s) {
    const Arrival *asked = &core->arrivals[core->arrivals_at++];
    i32 slot = new_request(core);
    Request *request = &core->request[slot];
    memset(request, 0, sizeof *request);
    request->id = ++core->requests_planned;
    request->asked = *asked;
    request->asked.at_s = at_s;
    request->first_token_s = request->prefilled_s = request->placed_s = NAN;
    request->place.load.first_s = NAN;
    request->place.replica = request->source.replica = request->sequence = request->prefill_replica = NONE;
    if (asked->hashes) {
        request->hashes = grown(core, NULL, 1, sizeof *request->hashes + (size_t)asked->hashes * sizeof(i64));
        request->hashes->owners = 1;
        request->hashes->count = asked->hashes;
        memcpy(request->hashes->keys, core->hashes + asked->first_hash, (size_t)asked->hashes * sizeof(i64));
    }
    core->asked++;
    plan(core, at_s, K_ARRIVAL, (Agendum){.word = W_ARRIVED, .a = slot, .b = request->id});
    if (asked->patience_s < INFINITY)
        plan(core, at_s + asked->patience_s, K_TIMER, (Agendum){.word = W_GONE, .a = slot, .b = request->id});
}

static void plan_arrival(Core *core) {
    if (core->arrivals_at < core->arrivals_count) plan_arrival_at(core, core->arrivals[core->arrivals_at].at_s);
}

/* A request has ended: of a closed loop, its user's next one. */
static void plan_after_end(Core *core) {
    if (!core->is_loop || core->arrivals_at == core->arrivals_count) return;
    double at_s = core->now_s + core->arrivals[core->arrivals_at].at_s;
    if (at_s < core->loop_end_s) plan_arrival_at(core, at_s);
}

static void write_outcome(Core *core, const Request *request, i64 status, i64 output_tokens) {
    ROOM(core, core->outcomes, core->outcome_count, core->outcome_room);
    core->outcomes[core->outcome_count++] = (Outcome){
        .request = request->id, .status = status, .attempts = request->attempt, .replica = request->place.replica,
        .prefill_replica = request->prefill_replica,
        .input_tokens = request->asked.input_tokens, .output_tokens = output_tokens, .model = request->asked.model,
        .tenant = request->asked.tenant, .arrival_s = request->asked.at_s, .placed_s = request->placed_s,
        .prefilled_s = request->prefilled_s,
        .first_s = request->first_token_s, .end_s = core->now_s, .predicted_first_s = request->prefill_replica == request->place.replica ? request->place.load.first_s : NAN,
    };
}

static void forget(Core *core, i32 slot, i64 status, i64 output_tokens) {
    write_outcome(core, &core->request[slot], status, output_tokens);
    free_request(core, slot);
    core->asked--;
    plan_after_end(core);
}

enum { ENDED_WELL = 0, ENDED_GONE = 1000, NOT_ENDED = 1001 };

static i64 answer_tokens(const Core *core, const Arrival *asked, const ReplicaSpec *spec) {
    i64 context = spec->kv_capacity_tokens / core->kinds[spec->kind].data_ranks;
    if (spec->context_tokens < context) context = spec->context_tokens;
    i64 tokens = asked->output_tokens;
    if (context - asked->input_tokens < tokens) tokens = context - asked->input_tokens;
    if (asked->max_output_tokens != NONE && asked->max_output_tokens < tokens) tokens = asked->max_output_tokens;
    return tokens > 1 ? tokens : 1;
}

/* Drop all there is of a request: on an engine, and on its way between two. */
static void stop_engine(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    i32 one = request->sequence;
    if (one == NONE) return;
    i32 replica = core->sequence[one].replica;
    core->sequence[one].request = NONE;
    request->sequence = NONE;
    engine_cancel(core, &core->engine[replica], one, core->now_s);
    plan_engine(core, replica);
}

static void stop(Core *core, i32 slot) {
    stop_engine(core, slot);
    if (!core->request[slot].cache.is_on_the_way) return;
    stop_transfer(core, slot, core->now_s);
    plan_transfers(core);
}

static i64 tokens_to_give(const Core *core, const Request *request, i64 word) {
    return word == W_PREFILL ? 1 : answer_tokens(core, &request->asked, &core->replicas[request->place.replica]);
}

/* Hand a request to its engine: whole, its prompt, or its answer with the cache that has come. */
static void submit(Core *core, i32 slot, i64 word) {
    Request *request = &core->request[slot];
    i32 replica = request->place.replica;
    Engine *engine = &core->engine[replica];
    i64 prompt = request->asked.input_tokens, answer = tokens_to_give(core, request, word), ticket = ++core->tickets;
    if (prompt + answer > engine->rank_kv_capacity) {
        plan(core, core->now_s, K_EVENT, (Agendum){.word = W_FAILED, .a = slot, .b = request->id, .factor = (double)ticket});
        return;
    }
    i32 one = new_sequence(core);
    core->sequence[one] = (Sequence){
        .ticket = ticket, .prompt_tokens = prompt, .output_tokens = answer, .finish_step = -1, .request = slot, .replica = replica,
        .rank = NONE, .prev = NONE, .next = NONE, .chunk_next = NONE, .heap_at = NONE, .state = S_WAITING,
        .ends_at_first = word == W_PREFILL, .has_cache = word == W_DECODE,
        .hashes = word == W_DECODE || !engine->prefix.block_tokens ? NULL : share_hashes(request->hashes),
    };
    request->sequence = one;
    engine_submit(core, engine, one, core->now_s);
    plan_engine(core, replica);
}

/* Do what the policy has said since `from`. */
static void carry_out(Core *core, i64 from) {
    for (i64 at = from; at < core->log_count; at++) {
        Entry action = core->log[at];
        i32 slot = (i32)action.slot;
        switch (action.word) {
        case W_DISPATCH:
        case W_PREFILL:
        case W_DECODE: submit(core, slot, action.word); break;
        case W_TRANSFER:
            start_transfer(core, slot, core->now_s);
            plan_transfers(core);
            break;
        case W_CANCEL:
        case W_RETRY: stop(core, slot); break;
        case W_REJECT:
            stop(core, slot);
            forget(core, slot, action.attempt, 0);
            break;
        case W_WAKE_AT:
            plan(core, action.at_s > core->now_s ? action.at_s : core->now_s, K_TIMER, (Agendum){.word = W_WOKE});
            break;
        default: break;
        }
    }
}

static Entry *begin_step(Core *core, i64 word, i64 request) {
    core->events++;
    core->step_at = core->log_count;
    return write_entry(core, word, request, core->now_s);
}

static int is_sampled(const Core *core, i64 request) {
    return request != NONE && mixed_of(core->settings.seed, request, -1) < core->settings.sample_below;
}

/* Of the step just made keep what is about requests of the sample, and starts and ends of replicas. What was done for one of the
   sample on another's event is kept as if an alarm had rung. */
static void keep_sample(Core *core) {
    Entry *event = &core->log[core->step_at];
    int is_kept = event->word == W_UP || event->word == W_DOWN || is_sampled(core, event->request);
    i64 to = core->step_at + 1;
    for (i64 at = to; at < core->log_count; at++)
        if (is_sampled(core, core->log[at].request)) core->log[to++] = core->log[at];
    if (!is_kept) *event = (Entry){.word = W_WOKE, .request = NONE, .replica = NONE, .at_s = event->at_s};
    core->log_count = is_kept || to > core->step_at + 1 ? to : core->step_at;
}

static void end_step(Core *core) {
    serve_queues(core);
    ask_for_wake(core);
    carry_out(core, core->step_at + 1);
    if (core->settings.log == LOG_SAMPLE) keep_sample(core);
    if (core->settings.log == LOG_NOTHING) core->log_count = core->step_at; /* intervals' ends before it stay */
}

static Entry *begin_attempt(Core *core, i64 word, i32 slot) {
    const Request *request = &core->request[slot];
    Entry *entry = begin_step(core, word, request->id);
    entry->attempt = request->attempt;
    entry->replica = request->place.replica;
    entry->epoch = request->place.epoch;
    return entry;
}

/* What an engine reports, as the policy hears it. */
static void hear(Core *core, i32 one, int what) {
    i32 slot = core->sequence[one].request;
    if (slot == NONE) return; /* given up in between */
    Request *request = &core->request[slot];
    if (what == T_PREFILLED) {
        begin_attempt(core, W_PREFILLED, slot)->count = request->asked.input_tokens;
        on_prefilled(core, slot);
        end_step(core);
        return;
    }
    if (what == T_FIRST) {
        begin_attempt(core, W_FIRST, slot);
        if (isnan(request->first_token_s)) begin_answer(core, request);
        end_step(core);
        return;
    }
    i32 replica = request->place.replica;
    i64 tokens = answer_tokens(core, &request->asked, &core->replicas[replica]);
    begin_attempt(core, W_FINISHED, slot)->count = tokens;
    core->sequence[one].request = NONE;
    request->sequence = NONE;
    on_finished(core, slot, tokens);
    end_step(core);
    core->request[slot].place.replica = replica;
    forget(core, slot, ENDED_WELL, tokens);
}

static void advance(Core *core, i32 replica) {
    Engine *engine = &core->engine[replica];
    engine->due_s = INFINITY;
    i64 count = engine_advance(core, engine, core->now_s);
    for (i64 at = 0; at < count; at++) {
        i32 one = core->progress[at] / 4;
        int what = core->progress[at] % 4;
        hear(core, one, what);
        if (what == T_FINISHED) free_sequence(core, one);
    }
    plan_engine(core, replica);
}

/* Caches arrive: their sources are rid of them, and their targets are told to decode. */
static void arrive(Core *core) {
    core->transfers_due_s = INFINITY;
    i64 count = advance_transfers(core, core->now_s);
    for (i64 at = 0; at < count; at++) {
        i32 slot = core->arrived[at];
        stop_engine(core, slot);
        begin_attempt(core, W_KV_ARRIVED, slot);
        on_kv_arrived(core, slot);
        end_step(core);
    }
    plan_transfers(core);
}

/* Whether an entry means nothing any more, so that the run must not last until its time. */
static int is_over(const Core *core, const Agendum *item) {
    switch (item->word) {
    case W_TRANSFERS: return core->transfers_due_s != item->at_s;
    case W_ENGINE: return core->engine[item->a].serial != item->b || core->engine[item->a].due_s != item->at_s;
    case W_GONE: return core->request[item->a].id != item->b;
    case W_ARRIVED: return 0;
    default: return core->requests_planned && !core->asked; /* nobody waits, and nobody will come: nobody hears of a repair */
    }
}

static void set_speed(Core *core, i32 replica, double at_s) {
    Engine *engine = &core->engine[replica];
    engine->factor = engine->slowdown * engine->cap_slowdown;
    if (!engine->is_up) return;
    cut(engine, at_s);
    plan_engine(core, replica);
}

static void change(Core *core, const Agendum *item) {
    if (item->word == W_WAY) {
        slow_way(core, item->a, item->factor, core->now_s);
        plan_transfers(core);
        return;
    }
    i32 replica = (i32)item->a;
    Engine *engine = &core->engine[replica];
    if (item->word == W_SPEED) {
        engine->slowdown = item->factor;
        set_speed(core, replica, core->now_s);
        return;
    }
    if (item->word == W_HANG) {
        if (engine->is_up) engine_hang(core, engine);
        return;
    }
    if (item->word == W_LINK) {
        slow_link(core, replica, item->factor, core->now_s);
        plan_transfers(core);
        return;
    }
    engine_stop(core, replica);
    Entry *entry = begin_step(core, item->word, NONE);
    entry->replica = replica;
    entry->epoch = item->b;
    entry->count = (i64)item->factor; /* which of the changes it was */
    if (item->word == W_UP) {
        engine_start(core, replica, (i32)item->b);
        on_up(core, replica, item->b);
    } else on_down(core, replica, item->b, item->back_in_s);
    end_step(core);
}

static void play(Core *core, const Agendum *item) {
    i32 slot = (i32)item->a;
    switch (item->word) {
    case W_ENGINE: advance(core, slot); return;
    case W_TRANSFERS: arrive(core); return;
    case W_ARRIVED:
        if (!core->is_loop) plan_arrival(core);
        begin_step(core, W_ARRIVED, item->b);
        on_arrived(core, slot);
        end_step(core);
        return;
    case W_GONE:
        begin_step(core, W_GONE, item->b);
        on_gone(core, slot);
        end_step(core);
        forget(core, slot, ENDED_GONE, 0);
        return;
    case W_FAILED: {
        const Request *request = &core->request[slot];
        i64 word = request->phase == IN_PREFILL ? W_PREFILL : W_DISPATCH;
        Entry *entry = begin_attempt(core, W_FAILED, slot);
        entry->count = (i64)item->factor;
        entry->first = (double)(request->asked.input_tokens + tokens_to_give(core, request, word));
        on_refused(core, slot);
        end_step(core);
        return;
    }
    case W_WOKE:
        begin_step(core, W_WOKE, NONE);
        on_woke(core, core->now_s);
        end_step(core);
        return;
    default: change(core, item); return;
    }
}
