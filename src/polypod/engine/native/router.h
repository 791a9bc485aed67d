/* Where a request would finish first: the columns of policy/router.py, in the same order of operations. */

#define REBASE_S (100 * PROMPT_MEMORY_S)
#define OUTPUT_WEIGHT 0.05
#define GAP_WEIGHT 0.1
#define MIN_RETRY_AFTER_S 1.0
#define FACTOR_LIMIT 16.0
#define REQUEST_WEIGHT 0.02
#define FIRST_REQUESTS 10

typedef struct {
    i64 input_tokens, need_tokens;
    double output_tokens, mean_kv_tokens;
    const i64 *keys; /* of the prompt's full blocks */
    i64 key_count;
} Ask;

static Ask ask_of(const Service *service, const Request *request) {
    const Arrival *asked = &request->asked;
    i64 most = asked->max_output_tokens;
    double expected = service->mean_output_tokens;
    if (most != NONE && (double)most < expected) expected = (double)most;
    Ask ask = {asked->input_tokens, asked->input_tokens + (most == NONE ? 1 : most), expected > 1.0 ? expected : 1.0, 0.0, NULL, 0};
    if (request->hashes != NULL) {
        i64 blocks = asked->input_tokens / service->spec->block_tokens;
        ask.keys = request->hashes->keys;
        ask.key_count = blocks < request->hashes->count ? blocks : request->hashes->count;
    }
    ask.mean_kv_tokens = (double)ask.input_tokens + ask.output_tokens / 2;
    return ask;
}

static const Kind *kind_at(const Core *core, const Table *table, i64 row) { return &core->kinds[table->kind[row]]; }

static void refresh(const Core *core, Table *table, i64 row) {
    const Kind *kind = kind_at(core, table, row);
    const ReplicaSpec *spec = &core->replicas[table->member[row]];
    double factor = table->decode_factor[row] / spec->tokens_per_step;
    i64 decoding = spec->role == PREFILL ? 0 : 1; /* there, prompts are all there is */
    double there = (double)(decoding * table->in_flight[row]) / (double)kind->data_ranks;
    double kv_tokens = (double)decoding * table->kv_tokens[row] / (double)kind->data_ranks;
    table->kv_read_s[row] = factor * kind->kv_token_s;
    table->attend_s[row] = factor * step_time_s(core, kind, 0.0, kv_tokens, 0.0, there);
    table->decode_s[row] = factor * step_time_s(core, kind, (1 + spec->drafts) * (there + 1), kv_tokens, 0.0, there + 1);
}

static void count_rows(const Core *core, Table *table) {
    (void)core;
    table->most_limit_tokens = 0;
    for (i64 row = 0; row < table->rows; row++)
        if (table->member[row] != NONE && table->limit_tokens[row] > table->most_limit_tokens)
            table->most_limit_tokens = table->limit_tokens[row];
}

/* How much the replicas that are up hold together bounds what is remembered of prompts. */
static void hold_tokens(Table *table, i64 tokens) {
    Affinity *affinity = &table->affinity;
    table->held_tokens += tokens;
    i64 blocks = table->held_tokens / affinity->block_tokens;
    affinity->bound = blocks < affinity->most_blocks ? blocks : affinity->most_blocks;
}

static i64 slots_of(const ReplicaSpec *spec, const Kind *kind) {
    i64 each = spec->max_sequences / kind->data_ranks;
    return (each > 1 ? each : 1) * kind->data_ranks;
}

static void table_add(Core *core, Table *table, i32 replica) {
    const ReplicaSpec *spec = &core->replicas[replica];
    const Kind *kind = &core->kinds[spec->kind];
    i32 row = 0;
    while (table->member[row] != NONE) row++;
    i64 rank_kv = spec->kv_capacity_tokens / kind->data_ranks;
    table->member[row] = replica;
    table->in_flight[row] = table->prompts[row] = table->requests[row] = table->held[row] = table->moving[row] = 0;
    table->prompts_s[row] = table->prompts_end_s[row] = table->prompt_share[row] = table->kv_tokens[row] = 0.0;
    table->slots[row] = slots_of(spec, kind);
    table->limit_tokens[row] = spec->context_tokens < rank_kv ? spec->context_tokens : rank_kv;
    table->kv_capacity[row] = (double)spec->kv_capacity_tokens;
    table->prompt_factor[row] = table->decode_factor[row] = 1.0;
    table->kind[row] = spec->kind;
    table->up_rows++;
    hold_tokens(table, spec->hbm_host_tokens);
    count_rows(core, table);
    refresh(core, table, row);
    core->member[replica].row = row;
}

static void table_remove(Core *core, Table *table, i32 replica) {
    table->member[core->member[replica].row] = NONE;
    table->up_rows--;
    hold_tokens(table, -core->replicas[replica].hbm_host_tokens);
    affinity_forget(&table->affinity, core->member[replica].row);
    count_rows(core, table);
}

static int is_open(const Table *table, i64 row) { return table->member[row] != NONE && table->in_flight[row] < table->slots[row]; }

static int has_room(const Table *table) {
    for (i64 row = 0; row < table->rows; row++)
        if (is_open(table, row)) return 1;
    return 0;
}

static double backlog_s(const Table *table, i64 row, double now_s) {
    double ahead_s = table->prompts_end_s[row] - now_s, overdue_s = table->prompts[row] > 0 ? -ahead_s : 0.0;
    return ahead_s > overdue_s ? ahead_s : overdue_s;
}

/* Lifetimes of a request to wait until enough of those there have left: for cache, and for a slot. */
static double crowding(const Table *table, i64 row, const Ask *ask) {
    double over_kv = table->kv_tokens[row] + ask->mean_kv_tokens - table->kv_capacity[row];
    double over_slots = (double)(table->in_flight[row] + 1 - table->slots[row]);
    double lives = (over_kv > 0.0 ? over_kv : 0.0) / (table->kv_tokens[row] > 1.0 ? table->kv_tokens[row] : 1.0);
    return lives + (over_slots > 0.0 ? over_slots : 0.0) / (double)(table->slots[row] > 1 ? table->slots[row] : 1);
}

/* What each row should have cached of the prompt. */
static void look_for_cached(Table *table, const Ask *ask) {
    if (table->has_cached) memset(table->cached, 0, (size_t)(64 * table->affinity.words) * sizeof *table->cached);
    table->has_cached = ask->key_count && table->affinity.room
                        && affinity_cached(&table->affinity, ask->keys, ask->key_count, ask->input_tokens, table->cached, table->bits);
}

/* Forecast every row and leave it in the columns `first_s`, `token_s` and `finish_s` (infinite where the request cannot go);
   the least finish. `among` is none, or says which rows may be chosen. */
static double forecast(Core *core, Table *table, const Ask *ask, double now_s, const u8 *among) {
    for (i64 k = 0; k < core->settings.kinds; k++)
        core->kind_prompt_s[k] = prompt_alone_s(core, &core->kinds[k], ask->input_tokens, 0, &core->kind_steps[k]);
    look_for_cached(table, ask);
    double scale = exp((table->share_base_s - now_s) / PROMPT_MEMORY_S), least_s = INFINITY;
    for (i64 row = 0; row < table->rows; row++) {
        table->finish_s[row] = INFINITY;
        if (!is_open(table, row) || (among != NULL ? !among[row] : table->limit_tokens[row] < ask->need_tokens)) continue;
        double share = table->prompt_share[row] * scale;
        double token_s = table->decode_s[row] + table->kv_read_s[row] * ask->mean_kv_tokens;
        token_s /= 1 - (share < MOST_PROMPT_SHARE ? share : MOST_PROMPT_SHARE);
        double alone_s = core->kind_prompt_s[table->kind[row]];
        i64 steps = core->kind_steps[table->kind[row]];
        if (table->has_cached && table->cached[row]) alone_s = prompt_alone_s(core, kind_at(core, table, row), ask->input_tokens, table->cached[row], &steps);
        double prompt_s = table->prompt_factor[row] * alone_s;
        prompt_s += (double)steps * table->attend_s[row];
        double first_s = backlog_s(table, row, now_s) + 0.0 + prompt_s;
        double answer_s = ask->output_tokens * token_s;
        first_s += crowding(table, row, ask) * answer_s;
        table->first_s[row] = first_s;
        table->token_s[row] = token_s;
        table->finish_s[row] = first_s + answer_s;
        if (table->finish_s[row] < least_s) least_s = table->finish_s[row];
    }
    return least_s;
}

/* One of `count`, the same for the same numbers: policy/placement.py's pick. */
static u64 mixed_of(i64 seed, i64 request, i64 attempt) {
    u64 mixed = (u64)seed * 0x9E3779B97F4A7C15ULL + (u64)request * 0xBF58476D1CE4E5B9ULL + (u64)attempt + 1;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9ULL;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBULL;
    return mixed ^ (mixed >> 31);
}

static i64 pick(i64 seed, i64 request, i64 attempt, i64 count) { return (i64)(mixed_of(seed, request, attempt) % (u64)count); }

static i32 chosen_row(const Core *core, const Table *table, const Request *request, double least_s) {
    i64 ties = 0;
    for (i64 row = 0; row < table->rows; row++) ties += table->finish_s[row] == least_s;
    i64 nth = pick(core->settings.seed, request->id, request->attempt, ties);
    for (i64 row = 0; row < table->rows; row++)
        if (table->finish_s[row] == least_s && nth-- == 0) return (i32)row;
    return NONE;
}

/* Add the request to the row, and write down what it added. */
static Load dispatched(Core *core, Table *table, i64 row, const Ask *ask, double now_s) {
    const Kind *kind = kind_at(core, table, row);
    i64 steps;
    i64 cached = table->has_cached ? table->cached[row] : 0;
    double alone_s = prompt_alone_s(core, kind, ask->input_tokens, cached, &steps);
    Load load = {
        .row = row, .prompt_s = alone_s * table->prompt_factor[row] / (double)kind->data_ranks, .kv_tokens = ask->mean_kv_tokens,
        .first_s = table->first_s[row], .token_s = table->token_s[row], .model_token_s = table->token_s[row] / table->decode_factor[row],
    };
    if (now_s - table->share_base_s > REBASE_S) {
        double kept = exp((table->share_base_s - now_s) / PROMPT_MEMORY_S);
        for (i64 one = 0; one < table->rows; one++) table->prompt_share[one] *= kept;
        table->share_base_s = now_s;
    }
    double grown_by = exp((now_s - table->share_base_s) / PROMPT_MEMORY_S);
    table->prompt_share[row] += grown_by * load.prompt_s / PROMPT_MEMORY_S;
    double late_s = now_s - table->prompts_end_s[row];
    if (late_s > 0) table->prompts_end_s[row] = now_s + (table->prompts[row] ? late_s : 0.0);
    table->prompts_end_s[row] += load.prompt_s;
    table->prompts_s[row] += load.prompt_s;
    table->prompts[row]++;
    table->in_flight[row]++;
    table->kv_tokens[row] += load.kv_tokens;
    affinity_sent(core, &table->affinity, row, ask->keys, ask->key_count);
    refresh(core, table, row);
    return load;
}

static void drop_prompt(Table *table, const Load *load) {
    table->prompts[load->row]--;
    table->prompts_s[load->row] -= load->prompt_s;
    if (!table->prompts[load->row]) table->prompts_s[load->row] = 0.0;
}

static void prompt_done(Table *table, const Load *load, double now_s) {
    drop_prompt(table, load);
    table->prompts_end_s[load->row] = now_s + table->prompts_s[load->row];
}

static void prompt_given_up(Table *table, const Load *load, double now_s) {
    drop_prompt(table, load);
    double end_s = table->prompts_end_s[load->row], sooner_s = end_s - load->prompt_s;
    if (end_s > now_s) table->prompts_end_s[load->row] = sooner_s > now_s ? sooner_s : now_s;
}

static void kv_freed(Table *table, const Load *load) {
    table->kv_tokens[load->row] -= load->kv_tokens;
    if (!table->in_flight[load->row] && !table->held[load->row]) table->kv_tokens[load->row] = 0.0;
}

static void left_row(Core *core, Table *table, const Load *load) {
    table->in_flight[load->row]--;
    kv_freed(table, load);
    refresh(core, table, load->row);
}

static void token_time_observed(Core *core, Table *table, const Load *load, double token_s) {
    i64 row = load->row;
    if (load->model_token_s <= 0 || !(0 < token_s && token_s < INFINITY)) return;
    table->requests[row]++;
    double weight = 1.0 / (double)(table->requests[row] + FIRST_REQUESTS);
    if (weight < REQUEST_WEIGHT) weight = REQUEST_WEIGHT;
    double factor = table->decode_factor[row];
    double blended = factor + weight * (token_s / load->model_token_s - factor);
    if (blended < 1 / FACTOR_LIMIT) blended = 1 / FACTOR_LIMIT;
    table->decode_factor[row] = blended < FACTOR_LIMIT ? blended : FACTOR_LIMIT;
    refresh(core, table, row);
}
