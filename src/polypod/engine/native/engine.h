/* One engine under continuous batching: the emulation of engine/replica.py, over arrays. */

/* ---- lists of sequences */

static void append(Core *core, List *list, i32 one) {
    core->sequence[one].prev = list->tail;
    core->sequence[one].next = NONE;
    if (list->tail == NONE) list->head = one;
    else core->sequence[list->tail].next = one;
    list->tail = one;
}

static void prepend(Core *core, List *list, i32 one) {
    core->sequence[one].prev = NONE;
    core->sequence[one].next = list->head;
    if (list->head == NONE) list->tail = one;
    else core->sequence[list->head].prev = one;
    list->head = one;
}

static void unlink(Core *core, List *list, i32 one) {
    Sequence *sequence = &core->sequence[one];
    if (sequence->prev == NONE) list->head = sequence->next;
    else core->sequence[sequence->prev].next = sequence->next;
    if (sequence->next == NONE) list->tail = sequence->prev;
    else core->sequence[sequence->next].prev = sequence->prev;
}

/* ---- the heap of decoding sequences, first to finish first */

static int finishes_before(const Core *core, i32 left, i32 right) {
    const Sequence *a = &core->sequence[left], *b = &core->sequence[right];
    return a->finish_step != b->finish_step ? a->finish_step < b->finish_step : a->order < b->order;
}

static void heap_put(Core *core, Engine *engine, i64 at, i32 one) {
    engine->heap[at] = one;
    core->sequence[one].heap_at = (i32)at;
}

static void heap_up(Core *core, Engine *engine, i64 at, i32 one) {
    while (at > 0) {
        i64 parent = (at - 1) / 2;
        if (!finishes_before(core, one, engine->heap[parent])) break;
        heap_put(core, engine, at, engine->heap[parent]);
        at = parent;
    }
    heap_put(core, engine, at, one);
}

static void heap_down(Core *core, Engine *engine, i64 at, i32 one) {
    for (;;) {
        i64 child = 2 * at + 1;
        if (child >= engine->heap_size) break;
        if (child + 1 < engine->heap_size && finishes_before(core, engine->heap[child + 1], engine->heap[child])) child++;
        if (!finishes_before(core, engine->heap[child], one)) break;
        heap_put(core, engine, at, engine->heap[child]);
        at = child;
    }
    heap_put(core, engine, at, one);
}

static void heap_add(Core *core, Engine *engine, i32 one) {
    ROOM(core, engine->heap, engine->heap_size, engine->heap_room);
    heap_up(core, engine, engine->heap_size++, one);
}

static void heap_remove(Core *core, Engine *engine, i32 one) {
    i64 at = core->sequence[one].heap_at;
    i32 last = engine->heap[--engine->heap_size];
    if (last == one) return;
    if (at > 0 && finishes_before(core, last, engine->heap[(at - 1) / 2])) heap_up(core, engine, at, last);
    else heap_down(core, engine, at, last);
}

/* ---- figures of a rank */

static double given_so_far(const Engine *engine) { return engine->given * (double)engine->step; }

static double decode_kv(const Engine *engine, const Rank *rank) {
    return rank->decode_kv_at_0 + (double)rank->sequences * given_so_far(engine);
}

static double rank_kv(const Engine *engine, const Rank *rank) {
    return decode_kv(engine, rank) + (double)rank->prompt_kv;
}

static double after_s(const Segment *segment, i64 steps) {
    return segment->start_s + (double)steps * segment->first_step_s
           + segment->growth_s * (double)steps * (double)(steps - 1) / 2;
}

static double next_s(const Engine *engine) {
    if (engine->told_count) return engine->told_at_s;
    return engine->segment.is_running ? after_s(&engine->segment, engine->segment.steps) : INFINITY;
}

/* numpy's floor division of positive divisors. */
static double floor_divided(double value, double divisor) {
    double mod = fmod(value, divisor), div = (value - mod) / divisor;
    if (mod != 0.0 && mod < 0.0) div -= 1.0;
    if (div == 0.0) return 0.0;
    double whole = floor(div);
    return div - whole > 0.5 ? whole + 1.0 : whole;
}

/* ---- blocks that are cached: engine/replica.py's */

static void count_shared(Engine *engine, i32 rank) {
    engine->ranks[rank].kv_limit = engine->rank_kv_capacity + shared_tokens(&engine->prefix, rank);
}

/* Full blocks of its prompt that may be found; the last token is computed in any case. */
static i64 prompt_blocks(const Engine *engine, const Sequence *sequence) {
    if (sequence->hashes == NULL) return 0;
    i64 most = (sequence->prompt_tokens - 1) / engine->prefix.block_tokens;
    return most < sequence->hashes->count ? most : sequence->hashes->count;
}

/* Hold what the caches have of its prompt after what it holds already; how many tokens that is. */
static i64 find_blocks(Core *core, Engine *engine, Sequence *sequence) {
    i64 most = prompt_blocks(engine, sequence), found[3] = {0};
    if (most <= sequence->held) return 0;
    i64 held = acquire_blocks(core, &engine->prefix, sequence->rank, sequence->hashes, sequence->held, most, found);
    i64 tokens = (held - sequence->held) * engine->prefix.block_tokens;
    for (int tier = 0; tier < 3; tier++) engine->prefix.found[tier] += found[tier];
    sequence->host_loads += found[1];
    sequence->remote_loads += found[2];
    sequence->held = held;
    sequence->computed += tokens;
    engine->ranks[sequence->rank].prompt_kv += tokens;
    count_shared(engine, sequence->rank);
    return tokens;
}

/* Let what it has computed, or does in this step, be found. */
static void keep_blocks(Core *core, Engine *engine, Sequence *sequence, i64 computed) {
    if (sequence->hashes == NULL) return;
    i64 most = computed / engine->prefix.block_tokens;
    if (sequence->hashes->count < most) most = sequence->hashes->count;
    if (most <= sequence->held) return;
    for (i64 block = sequence->held; block < most; block++)
        hold_block(core, &engine->prefix.store, 2 * sequence->rank, sequence->hashes->keys[block]);
    sequence->held = most;
    count_shared(engine, sequence->rank);
}

static void leave_blocks(Engine *engine, Sequence *sequence) {
    if (sequence->hashes == NULL) return;
    let_blocks_go(&engine->prefix, sequence->rank, sequence->hashes, sequence->held);
    sequence->held = 0;
    count_shared(engine, sequence->rank);
}

/* Evict what no sequence uses where its room is needed: by what the sequences have, so many tokens more of those that decode, and the chunks. */
static void trim_blocks(Core *core, Engine *engine, double given, int with_chunks) {
    Prefix *prefix = &engine->prefix;
    if (!prefix->block_tokens) return;
    for (i64 r = 0; r < engine->kind->data_ranks; r++) {
        Rank *rank = &engine->ranks[r];
        rank->room = (double)rank->kv_limit - decode_kv(engine, rank) - (double)rank->prompt_kv;
        rank->room -= given * (double)rank->sequences;
    }
    if (with_chunks)
        for (i32 one = engine->chunk_head; one != NONE; one = core->sequence[one].chunk_next)
            engine->ranks[core->sequence[one].rank].room -= (double)core->sequence[one].chunk;
    for (i64 r = 0; r < engine->kind->data_ranks; r++) {
        double room = engine->ranks[r].room;
        if (!((double)(idle_blocks(prefix, r) * prefix->block_tokens) > room)) continue;
        i64 most = (i64)floor_divided(room, (double)prefix->block_tokens);
        trim_rank(core, prefix, (i32)r, most > 0 ? most : 0);
    }
}

/* ---- in and out of prefill and decode */

static void rank_is_active(Engine *engine, i32 rank) {
    engine->ranks[rank].active_prev = engine->active_tail;
    engine->ranks[rank].active_next = NONE;
    if (engine->active_tail == NONE) engine->active_head = rank;
    else engine->ranks[engine->active_tail].active_next = rank;
    engine->active_tail = rank;
}

static void rank_is_idle(Engine *engine, i32 rank) {
    Rank *one = &engine->ranks[rank];
    if (one->active_prev == NONE) engine->active_head = one->active_next;
    else engine->ranks[one->active_prev].active_next = one->active_next;
    if (one->active_next == NONE) engine->active_tail = one->active_prev;
    else engine->ranks[one->active_next].active_prev = one->active_prev;
}

static void enter_prefill(Core *core, Engine *engine, i32 one, i32 to) {
    Sequence *sequence = &core->sequence[one];
    Rank *rank = &engine->ranks[to];
    sequence->rank = to;
    sequence->state = S_PREFILL;
    if (sequence->hashes != NULL) find_blocks(core, engine, sequence);
    else {
        sequence->computed = (i64)(engine->spec->prefix_hits * (double)sequence->prompt_tokens);
        rank->prompt_kv += sequence->computed;
    }
    rank->reserved += sequence->prompt_tokens - sequence->computed;
    if (!rank->prompts) rank_is_active(engine, to);
    append(core, &rank->prefilling, one);
    rank->prompts++;
    engine->prefilling++;
}

static void leave_prefill(Core *core, Engine *engine, i32 one) {
    Sequence *sequence = &core->sequence[one];
    Rank *rank = &engine->ranks[sequence->rank];
    unlink(core, &rank->prefilling, one);
    if (!--rank->prompts) rank_is_idle(engine, sequence->rank);
    rank->prompt_kv -= sequence->computed;
    rank->reserved -= sequence->prompt_tokens - sequence->computed;
    engine->prefilling--;
}

static void leave_decoding(Core *core, Engine *engine, i32 one) {
    Sequence *sequence = &core->sequence[one];
    Rank *rank = &engine->ranks[sequence->rank];
    heap_remove(core, engine, one);
    unlink(core, &rank->decoding, one);
    i64 steps = (i64)ceil((double)sequence->output_tokens / engine->given) - (sequence->finish_step - engine->step);
    i64 generated = rounded((double)steps * engine->given);
    if (generated > sequence->output_tokens) generated = sequence->output_tokens;
    engine->decoders--;
    rank->sequences--;
    rank->decode_kv_at_0 -= (double)sequence->prompt_tokens + (double)(steps - engine->step) * engine->given;
    sequence->output_tokens -= generated;
    sequence->prompt_tokens += generated;
    keep_blocks(core, engine, sequence, sequence->prompt_tokens); /* its answer's too, as far as their hashes are known */
}

/* ---- a segment ends */

enum Told { T_FIRST, T_FINISHED, T_PREFILLED };

typedef struct { /* where progress goes: the list of a running advance, or of what is still to be told */
    i32 **list;
    i64 *count, *room;
} Told;

static void report(Core *core, Told to, i32 one, int what) {
    ROOM(core, *to.list, *to.count, *to.room);
    (*to.list)[(*to.count)++] = 4 * one + what;
}

/* An ended sequence stays in its place until its word has been told. */
static void finish_decodes(Core *core, Engine *engine, Told progress) {
    while (engine->heap_size && core->sequence[engine->heap[0]].finish_step <= engine->step) {
        i32 one = engine->heap[0];
        leave_decoding(core, engine, one);
        leave_blocks(engine, &core->sequence[one]);
        core->sequence[one].state = S_OUT;
        report(core, progress, one, T_FINISHED);
    }
}

static void first_token(Core *core, Engine *engine, i32 one, Told progress) {
    Sequence *sequence = &core->sequence[one];
    if (!sequence->told_first) report(core, progress, one, T_FIRST);
    sequence->told_first = 1;
    engine->output_tokens++;
    if (--sequence->output_tokens == 0) {
        leave_blocks(engine, sequence);
        sequence->state = S_OUT;
        report(core, progress, one, T_FINISHED);
        return;
    }
    Rank *rank = &engine->ranks[sequence->rank];
    sequence->state = S_DECODE;
    sequence->finish_step = engine->step + (i64)ceil((double)sequence->output_tokens / engine->given);
    sequence->order = ++engine->order;
    heap_add(core, engine, one);
    append(core, &rank->decoding, one);
    engine->decoders++;
    rank->sequences++;
    rank->decode_kv_at_0 += (double)sequence->prompt_tokens - engine->given * (double)engine->step;
}

/* A computed prompt keeps its cache, without a slot, until it is released. */
static void hold(Core *core, Engine *engine, i32 one, Told progress) {
    Sequence *sequence = &core->sequence[one];
    if (sequence->is_cancelled) {
        leave_blocks(engine, sequence);
        sequence->state = S_OUT;
        report(core, progress, one, T_FINISHED);
        return;
    }
    sequence->state = S_HELD;
    append(core, &engine->held_list, one);
    engine->ranks[sequence->rank].prompt_kv += sequence->prompt_tokens;
    report(core, progress, one, T_PREFILLED);
}

static void end_chunks(Core *core, Engine *engine, Told progress) {
    i32 one = engine->chunk_head;
    while (one != NONE) {
        Sequence *sequence = &core->sequence[one];
        Rank *rank = &engine->ranks[sequence->rank];
        i32 following = sequence->chunk_next;
        sequence->computed += sequence->chunk;
        sequence->host_loads = sequence->remote_loads = 0;
        rank->prompt_kv += sequence->chunk;
        rank->reserved -= sequence->chunk;
        engine->computed_tokens += sequence->chunk;
        engine->prompt_tokens += sequence->chunk;
        if (sequence->computed == sequence->prompt_tokens) {
            leave_prefill(core, engine, one);
            if (sequence->ends_at_first) hold(core, engine, one, progress);
            else first_token(core, engine, one, progress);
        }
        one = following;
    }
    engine->chunk_head = engine->chunk_tail = NONE;
}

/* Those given up, in the order they came in. */
static void drop_cancelled(Core *core, Engine *engine) {
    Cancelled *cancelled = engine->cancelled;
    for (i64 i = 1; i < engine->cancelled_count; i++) {
        Cancelled one = cancelled[i];
        i64 at = i;
        for (; at > 0 && cancelled[at - 1].ticket > one.ticket; at--) cancelled[at] = cancelled[at - 1];
        cancelled[at] = one;
    }
    for (i64 i = 0; i < engine->cancelled_count; i++) {
        i32 one = cancelled[i].sequence;
        Sequence *sequence = &core->sequence[one];
        if (sequence->ticket != cancelled[i].ticket || sequence->state == S_OUT) continue; /* it ended, and is freed with those */
        if (sequence->state == S_WAITING) {
            unlink(core, &engine->waiting_list, one);
            engine->waiting--;
        } else {
            if (sequence->state == S_DECODE) leave_decoding(core, engine, one);
            else leave_prefill(core, engine, one);
            leave_blocks(engine, sequence);
        }
        free_sequence(core, one);
    }
    engine->cancelled_count = 0;
}

/* ---- the next one begins */

static void preempt_rank(Core *core, Engine *engine, Rank *rank) {
    while (rank->sequences
           && rank_kv(engine, rank) + engine->given * (double)rank->sequences > (double)rank->kv_limit) {
        if (rank->sequences == 1 && !rank->prompts) return; /* alone it fits: submit saw to that */
        i32 one = rank->decoding.tail;
        leave_decoding(core, engine, one);
        Sequence *sequence = &core->sequence[one];
        leave_blocks(engine, sequence);
        sequence->is_scheduled = 0;
        sequence->finish_step = -1;
        sequence->computed = 0;
        sequence->has_cache = 0;
        sequence->rank = NONE;
        sequence->state = S_WAITING;
        prepend(core, &engine->waiting_list, one);
        engine->waiting++;
        engine->preemptions++;
    }
}

static double most_decode_kv(const Engine *engine) {
    double most = -INFINITY;
    for (i64 r = 0; r < engine->kind->data_ranks; r++) {
        double kv = decode_kv(engine, &engine->ranks[r]);
        if (kv > most) most = kv;
    }
    return most;
}

/* Make room for the next token of every decoding sequence; the largest cache that a rank's sequences read. */
static double preempt(Core *core, Engine *engine) {
    double most = -INFINITY;
    int is_full = 0;
    for (i64 r = 0; r < engine->kind->data_ranks; r++) {
        const Rank *rank = &engine->ranks[r];
        double kv = decode_kv(engine, rank);
        double wanted = kv + engine->given * (double)rank->sequences + (double)rank->prompt_kv;
        is_full |= wanted > (double)rank->kv_limit;
        if (kv > most) most = kv;
    }
    if (!is_full) return most;
    for (i64 r = 0; r < engine->kind->data_ranks; r++) {
        Rank *rank = &engine->ranks[r];
        double wanted = decode_kv(engine, rank) + engine->given * (double)rank->sequences + (double)rank->prompt_kv;
        if (wanted > (double)rank->kv_limit) preempt_rank(core, engine, rank);
    }
    return most_decode_kv(engine);
}

/* The rank with the fewest prompts, then the fewest sequences, then the least cache in use. */
static i32 roomiest(const Engine *engine) {
    i32 best = 0;
    i64 least = INT64_MAX;
    double least_kv = INFINITY;
    for (i32 r = 0; r < (i32)engine->kind->data_ranks; r++) {
        const Rank *rank = &engine->ranks[r];
        i64 count = (rank->prompts << 20) + rank->sequences;
        if (count > least) continue;
        double kv = rank_kv(engine, rank);
        if (count < least || kv < least_kv) {
            least = count;
            least_kv = kv;
            best = r;
        }
    }
    return best;
}

/* Whether the rank holds so many tokens more; leading blocks that others hold take no room. */
static int has_kv(const Engine *engine, i32 rank, const Sequence *head, double need) {
    double limit = (double)engine->ranks[rank].kv_limit;
    if (need > limit && head->hashes != NULL)
        need -= (double)(held_ahead(&engine->prefix, rank, head->hashes, prompt_blocks(engine, head)) * engine->prefix.block_tokens);
    return need <= limit;
}

/* Admit in turn; whether caches came. */
static int admit(Core *core, Engine *engine, double at_s) {
    int came = 0;
    while (engine->waiting_list.head != NONE) {
        i32 one = engine->waiting_list.head;
        if (core->sequence[one].since_s > engine->seen_s) break;
        i32 to = roomiest(engine);
        const Rank *rank = &engine->ranks[to];
        double need = rank_kv(engine, rank) + (double)rank->reserved + (double)core->sequence[one].prompt_tokens
                      + (double)rank->sequences + 1;
        if (rank->sequences + rank->prompts >= engine->rank_max_sequences || !has_kv(engine, to, &core->sequence[one], need)) break;
        unlink(core, &engine->waiting_list, one);
        engine->waiting--;
        if (!core->sequence[one].has_cache) {
            enter_prefill(core, engine, one, to);
            continue;
        }
        core->sequence[one].rank = to;
        engine->told_at_s = at_s;
        first_token(core, engine, one, (Told){&engine->told, &engine->told_count, &engine->told_room});
        came = 1;
    }
    return came;
}

static i64 most_sequences(const Engine *engine) {
    i64 most = 0;
    for (i64 r = 0; r < engine->kind->data_ranks; r++)
        if (engine->ranks[r].sequences > most) most = engine->ranks[r].sequences;
    return most;
}

/* Tokens of the sequence in this step; what others have computed since it came in, it need not. */
static i64 chunk_of(Core *core, Engine *engine, Sequence *sequence, i64 room) {
    if (sequence->hashes != NULL && !sequence->is_scheduled) {
        engine->ranks[sequence->rank].reserved -= find_blocks(core, engine, sequence);
        sequence->is_scheduled = 1;
    }
    i64 left = sequence->prompt_tokens - sequence->computed, chunk = room < left ? room : left;
    keep_blocks(core, engine, sequence, sequence->computed + chunk);
    return chunk;
}

/* Prompt chunks of the next step, and the busiest rank's tokens and pairs. */
static void make_chunks(Core *core, Engine *engine, i64 sequences, double *tokens_out, double *pairs_out) {
    double shared = engine->spec->exclusive_prefill && engine->prefilling ? 0.0 : engine->checked;
    double most_tokens = shared * (double)sequences, most_pairs = 0.0;
    double budget = (double)engine->spec->max_step_tokens;
    i64 stages = engine->kind->stages;
    engine->chunk_head = engine->chunk_tail = NONE;
    for (i32 r = engine->active_head; r != NONE; r = engine->ranks[r].active_next) {
        const Rank *rank = &engine->ranks[r];
        double decoded = shared * (double)rank->sequences, tokens = decoded, pairs = 0.0;
        i64 count = 0;
        for (i32 one = rank->prefilling.head; one != NONE; one = core->sequence[one].next) {
            Sequence *sequence = &core->sequence[one];
            i64 room = (i64)(budget - tokens);
            i64 left = sequence->prompt_tokens - sequence->computed;
            if (room <= 0 || (count && engine->spec->whole_prompts && left > room)) break;
            sequence->chunk = chunk_of(core, engine, sequence, room);
            sequence->chunk_next = NONE;
            if (engine->chunk_tail == NONE) engine->chunk_head = one;
            else core->sequence[engine->chunk_tail].chunk_next = one;
            engine->chunk_tail = one;
            pairs += causal_pairs(sequence->chunk, sequence->computed);
            tokens += (double)sequence->chunk;
            count++;
        }
        i64 full = count > 1 ? count : 1;
        double bubbles = (double)stages / (double)(stages < full ? stages : full);
        tokens = decoded + bubbles * (tokens - decoded);
        pairs = bubbles * pairs;
        if (tokens > most_tokens) most_tokens = tokens;
        if (pairs > most_pairs) most_pairs = pairs;
    }
    *tokens_out = most_tokens;
    *pairs_out = most_pairs;
}

/* One step of the busiest rank; drafts are made in a part of a decode step each. */
static double engine_step_s(const Core *core, const Engine *engine, double tokens, double pairs, double kv, i64 sequences) {
    if (!sequences) return step_time_s(core, engine->kind, tokens, 0.0, pairs, 0.0);
    double step_s = step_time_s(core, engine->kind, tokens, kv, pairs, (double)sequences);
    if (engine->drafting == 0.0) return step_s;
    double verified = (double)sequences * engine->checked;
    return step_s + engine->drafting * step_time_s(core, engine->kind, verified, kv, 0.0, (double)sequences);
}

/* Pure decode goes on until a sequence finishes or a rank's cache is full. */
static i64 steps_ahead(const Core *core, const Engine *engine, i64 sequences) {
    i64 steps = core->sequence[engine->heap[0]].finish_step - engine->step;
    double least = INFINITY, fewest = INFINITY;
    for (i64 r = 0; r < engine->kind->data_ranks; r++) {
        const Rank *rank = &engine->ranks[r];
        double room = (double)rank->kv_limit - decode_kv(engine, rank) - (double)rank->prompt_kv;
        if (room < least) least = room;
    }
    if (least >= (double)steps * engine->given * (double)sequences) return steps;
    for (i64 r = 0; r < engine->kind->data_ranks; r++) {
        const Rank *rank = &engine->ranks[r];
        if (!rank->sequences) continue;
        double room = (double)rank->kv_limit - decode_kv(engine, rank) - (double)rank->prompt_kv;
        double full = floor_divided(room, engine->given * (double)rank->sequences);
        if (full < fewest) fewest = full;
    }
    i64 until_full = (i64)fewest;
    if (until_full < steps) steps = until_full;
    return steps > 1 ? steps : 1;
}

/* ---- steps of a mixture of experts that are longer or shorter: engine/imbalance.py */

static u32 mixed_32(u32 word) {
    word = (word ^ (word >> 16)) * 0x7FEB352DU;
    word = (word ^ (word >> 15)) * 0x6C8E9CF5U;
    return word ^ (word >> 16);
}

static u32 first_word(i64 seed, i64 replica, i64 epoch) {
    u32 word = mixed_32((u32)seed ^ 0x243F6A88U);
    word = mixed_32(word ^ (u32)replica);
    return mixed_32(word ^ (u32)epoch);
}

static double imbalance_factor(const Engine *engine, i64 steps) {
    double cv = engine->spec->imbalance_cv;
    if (cv == 0.0) return 1.0;
    u32 own = mixed_32(engine->first_word ^ (u32)engine->segments);
    double radius = ((double)mixed_32(own ^ 0x13198A2EU) + 0.5) / 4294967296.0;
    double angle = ((double)mixed_32(own ^ 0x03707344U) + 0.5) / 4294967296.0;
    double z = sqrt(-2.0 * log(radius)) * cos(2.0 * 3.141592653589793 * angle);
    if (z < -3.0) z = -3.0;
    if (z > 3.0) z = 3.0;
    return 1.0 + cv / sqrt((double)steps) * z;
}

/* Seconds to load what the prompts that start in this step found below HBM. */
static double chunks_load_s(const Core *core, const Engine *engine) {
    i64 host = 0, remote = 0;
    if (!engine->prefix.block_tokens) return 0.0;
    for (i32 one = engine->chunk_head; one != NONE; one = core->sequence[one].chunk_next) {
        host += core->sequence[one].host_loads;
        remote += core->sequence[one].remote_loads;
    }
    return load_s(&engine->prefix, host, remote);
}

/* Whether prompts wait for ranks that have none; called once a step. */
static int is_withheld(Engine *engine) {
    i64 most = engine->spec->balance_steps, with_prompts = 0, decoding = 0, ranks = engine->kind->data_ranks;
    if (!most || ranks == 1) return 0;
    for (i64 r = 0; r < ranks; r++) {
        with_prompts += engine->ranks[r].prompts > 0;
        decoding += engine->ranks[r].sequences > 0;
    }
    engine->waited = with_prompts == ranks ? 0 : engine->waited + 1;
    if (engine->waited >= most || decoding < ranks) engine->waited = 0;
    return engine->waited > 0 && with_prompts > 0;
}

/* Whether the next in turn came too late for this step. */
static int has_unseen(const Core *core, const Engine *engine) {
    i32 head = engine->waiting_list.head;
    return head != NONE && core->sequence[head].since_s > engine->seen_s;
}

static void compose(Core *core, Engine *engine, double at_s) {
    engine->segment.is_running = 0;
    if (engine->is_hung) return;
    double kv = preempt(core, engine), tokens, pairs;
    trim_blocks(core, engine, engine->given, 0);
    if (!engine->spec->schedules_ahead || !(engine->decoders + engine->prefilling)) engine->seen_s = at_s;
    if (admit(core, engine, at_s)) kv = most_decode_kv(engine);
    i64 sequences = most_sequences(engine);
    int withheld = is_withheld(engine);
    if (withheld) {
        engine->chunk_head = engine->chunk_tail = NONE;
        tokens = engine->checked * (double)sequences;
        pairs = 0.0;
    } else make_chunks(core, engine, sequences, &tokens, &pairs);
    trim_blocks(core, engine, engine->given, 1);
    int has_chunks = engine->chunk_head != NONE;
    if (!has_chunks && !sequences) return;
    Segment *segment = &engine->segment;
    segment->is_running = 1;
    segment->decodes = !(has_chunks && engine->spec->exclusive_prefill);
    segment->start_s = at_s;
    segment->steps = has_chunks || withheld || has_unseen(core, engine) ? 1 : steps_ahead(core, engine, sequences);
    double factor = engine->factor * imbalance_factor(engine, segment->steps);
    engine->segments++;
    core->batch_changes++;
    double growth_s = engine->kind->kv_token_s * (double)sequences * engine->given * (1 + engine->drafting);
    double step_s = factor * engine_step_s(core, engine, tokens, pairs, kv, segment->decodes ? sequences : 0);
    double loads_s = chunks_load_s(core, engine);
    segment->first_step_s = loads_s > step_s ? loads_s : step_s;
    segment->growth_s = factor * growth_s;
}

/* Let the running segment end at the first step boundary from `at_s` on. */
static void cut(Engine *engine, double at_s) {
    Segment *segment = &engine->segment;
    if (!segment->is_running || segment->steps <= 1) return;
    double span_s = at_s - segment->start_s, linear = segment->first_step_s - segment->growth_s / 2, root;
    if (segment->growth_s > 0)
        root = (sqrt(linear * linear + 2 * segment->growth_s * (span_s > 0.0 ? span_s : 0.0)) - linear) / segment->growth_s;
    else root = span_s / linear;
    i64 steps = (i64)floor(root) - 1;
    if (steps < 1) steps = 1;
    while (steps < segment->steps && after_s(segment, steps) < at_s) steps++;
    if (steps < segment->steps) segment->steps = steps;
}

/* ---- from outside */

/* Idle, or the batch is being made at this very moment. */
static int is_between(const Engine *engine, double at_s) {
    return !engine->segment.is_running || engine->segment.start_s >= at_s;
}

/* Make the batch anew, now or at the first step boundary from now on. */
static void change_batch(Core *core, Engine *engine, double at_s) {
    if (is_between(engine, at_s)) compose(core, engine, at_s);
    else cut(engine, at_s);
}

static void engine_submit(Core *core, Engine *engine, i32 one, double at_s) {
    int is_blocked = engine->waiting_list.head != NONE;
    core->sequence[one].since_s = at_s;
    append(core, &engine->waiting_list, one);
    engine->waiting++;
    if (!is_blocked || is_between(engine, at_s)) change_batch(core, engine, at_s);
}

/* Drop it at the next step boundary, the cache of a computed prompt at once. */
static void engine_cancel(Core *core, Engine *engine, i32 one, double at_s) {
    Sequence *sequence = &core->sequence[one];
    if (sequence->state == S_HELD) {
        engine->ranks[sequence->rank].prompt_kv -= sequence->prompt_tokens;
        leave_blocks(engine, sequence);
        unlink(core, &engine->held_list, one);
        free_sequence(core, one);
        if (engine->waiting_list.head != NONE) change_batch(core, engine, at_s);
        return;
    }
    if (sequence->is_cancelled || sequence->state == S_OUT) return;
    sequence->is_cancelled = 1;
    ROOM(core, engine->cancelled, engine->cancelled_count, engine->cancelled_room);
    engine->cancelled[engine->cancelled_count++] = (Cancelled){one, sequence->ticket};
    if (!engine->segment.is_running) { /* caches that are kept hold up all that wait */
        drop_cancelled(core, engine);
        compose(core, engine, at_s);
    }
    cut(engine, at_s);
}

static void tell_on(Core *core, Engine *engine, Told progress) {
    for (i64 at = 0; at < engine->told_count; at++) report(core, progress, engine->told[at] / 4, engine->told[at] % 4);
    engine->told_count = 0;
}

/* Play until `to_s`, that moment included; the number of words in `core->progress`. */
static i64 engine_advance(Core *core, Engine *engine, double to_s) {
    i64 count = 0;
    Told progress = {&core->progress, &count, &core->progress_room};
    tell_on(core, engine, progress);
    while (engine->segment.is_running && after_s(&engine->segment, engine->segment.steps) <= to_s) {
        Segment *segment = &engine->segment;
        double end_s = after_s(segment, segment->steps);
        engine->seen_s = after_s(segment, segment->steps - 1);
        engine->busy_s += end_s - segment->start_s;
        if (engine->chunk_head != NONE) engine->prompt_busy_s += end_s - segment->start_s;
        if (segment->decodes) {
            engine->step += segment->steps;
            i64 generated = rounded((double)segment->steps * engine->given * (double)engine->decoders);
            engine->computed_tokens += generated;
            engine->output_tokens += generated;
        }
        if (engine->spec->balance_steps) engine->waited = (engine->waited + segment->steps - 1) % engine->spec->balance_steps;
        trim_blocks(core, engine, 0.0, 0);
        finish_decodes(core, engine, progress);
        end_chunks(core, engine, progress);
        drop_cancelled(core, engine);
        compose(core, engine, end_s);
        tell_on(core, engine, progress);
    }
    return count;
}

static void forget_told(Core *core, Engine *engine) {
    for (i64 at = 0; at < engine->told_count; at++)
        if (engine->told[at] % 4 == T_FINISHED) free_sequence(core, engine->told[at] / 4);
    engine->told_count = 0;
}

/* Stop for good, with all that is aboard. */
static void engine_hang(Core *core, Engine *engine) {
    engine->is_hung = 1;
    engine->segment.is_running = 0;
    engine->due_s = INFINITY;
    forget_told(core, engine);
}

static void engine_start(Core *core, i32 replica, i32 epoch) {
    Engine *engine = &core->engine[replica];
    const ReplicaSpec *spec = engine->spec;
    i64 ranks = engine->kind->data_ranks;
    if (engine->ranks == NULL) engine->ranks = zeroed(core, ranks, sizeof *engine->ranks);
    memset(engine->ranks, 0, (size_t)ranks * sizeof *engine->ranks);
    for (i64 r = 0; r < ranks; r++) {
        engine->ranks[r].prefilling = engine->ranks[r].decoding = (List){NONE, NONE};
        engine->ranks[r].active_prev = engine->ranks[r].active_next = NONE;
    }
    engine->is_up = 1;
    engine->is_hung = 0;
    engine->epoch = epoch;
    engine->serial = ++core->serials;
    engine->due_s = INFINITY;
    engine->given = spec->tokens_per_step;
    engine->checked = 1 + spec->drafts;
    engine->drafting = spec->drafts * spec->draft_share;
    engine->rank_kv_capacity = spec->kv_capacity_tokens / ranks;
    for (i64 r = 0; r < ranks; r++) engine->ranks[r].kv_limit = engine->rank_kv_capacity;
    if (engine->prefix.block_tokens) empty_store(&engine->prefix.store);
    memset(engine->prefix.found, 0, sizeof engine->prefix.found);
    engine->segments = 0;
    engine->first_word = first_word(core->settings.seed, replica, epoch);
    engine->rank_max_sequences = spec->max_sequences / ranks > 1 ? spec->max_sequences / ranks : 1;
    engine->step = engine->order = engine->decoders = engine->waiting = engine->prefilling = 0;
    engine->waiting_list = engine->held_list = (List){NONE, NONE};
    engine->told_count = 0;
    engine->active_head = engine->active_tail = engine->chunk_head = engine->chunk_tail = NONE;
    engine->heap_size = engine->cancelled_count = 0;
    engine->segment.is_running = 0;
    engine->seen_s = 0.0;
    engine->waited = 0;
    engine->busy_s = engine->prompt_busy_s = 0.0;
    engine->computed_tokens = engine->preemptions = engine->prompt_tokens = engine->output_tokens = 0;
}

static void free_list(Core *core, List *list) {
    i32 one = list->head;
    while (one != NONE) {
        i32 following = core->sequence[one].next;
        free_sequence(core, one);
        one = following;
    }
    *list = (List){NONE, NONE};
}

static void add_totals(Engine *engine) {
    engine->total_busy_s += engine->busy_s;
    engine->total_computed_tokens += engine->computed_tokens;
    engine->total_preemptions += engine->preemptions;
    engine->total_prompt_busy_s += engine->prompt_busy_s;
    engine->total_prompt_tokens += engine->prompt_tokens;
    engine->total_output_tokens += (double)engine->output_tokens;
    for (int tier = 0; tier < 3; tier++) engine->total_found[tier] += engine->prefix.found[tier];
    for (i64 cache = 0; cache < engine->prefix.store.caches; cache++) engine->total_evicted[cache % 2] += engine->prefix.store.lists[cache].evicted;
}

/* Take the engine away with all it had. */
static void engine_stop(Core *core, i32 replica) {
    Engine *engine = &core->engine[replica];
    if (!engine->is_up) return;
    add_totals(engine);
    for (i64 r = 0; r < engine->kind->data_ranks; r++) {
        free_list(core, &engine->ranks[r].prefilling);
        free_list(core, &engine->ranks[r].decoding);
    }
    free_list(core, &engine->waiting_list);
    free_list(core, &engine->held_list);
    forget_told(core, engine);
    engine->is_up = 0;
    engine->segment.is_running = 0;
    engine->due_s = INFINITY;
}

static void free_engine(Engine *engine) {
    free(engine->ranks);
    free(engine->heap);
    free(engine->cancelled);
    free(engine->told);
    free_store(&engine->prefix.store);
}
