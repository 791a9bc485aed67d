/* Prefill and decode on replicas of their own: policy/pairing.py, in the same order of operations. */

typedef struct {
    double kv_bytes, bytes_per_s, latency_s;
} Sent;

static const ReplicaSpec *spec_at(const Core *core, const Table *table, i64 row) { return &core->replicas[table->member[row]]; }

static double link_bytes_per_s(const ReplicaSpec *spec) { return spec->kv_link_bytes_per_s != 0.0 ? spec->kv_link_bytes_per_s : INFINITY; }

static Ask prompt_of(const Ask *ask) {
    return (Ask){ask->input_tokens, ask->input_tokens + 1, 0.0, (double)ask->input_tokens + 0.0 / 2, ask->keys, ask->key_count};
}

static int fits(const Table *table, i64 row, const Ask *ask) {
    return table->member[row] != NONE && table->limit_tokens[row] >= ask->need_tokens;
}

static int takes_cache(const Table *table, i64 row, const Ask *ask) {
    return table->kv_tokens[row] + ask->mean_kv_tokens <= table->kv_capacity[row] || (!table->in_flight[row] && !table->held[row]);
}

/* Whether it came to nothing there: in any of its attempts, or in the last. */
static int has_failed_at(const Core *core, const Request *request, i32 replica, int in_last) {
    for (i64 one = in_last ? request->failure_count - 1 : 0; one < request->failure_count; one++)
        if (request->failures[one].replica == replica && request->failures[one].epoch == core->member[replica].epoch) return 1;
    return 0;
}

/* Rows that may take the request, into the column `able`: not where it failed, if there is any other. */
static void allow_rows(const Core *core, const Request *request, Table *table, const Ask *ask) {
    for (int in_last = 0; in_last < 2 && request->failure_count; in_last++) {
        int is_any = 0;
        for (i64 row = 0; row < table->rows; row++) {
            table->able[row] = fits(table, row, ask) && !has_failed_at(core, request, table->member[row], in_last);
            is_any |= table->able[row];
        }
        if (is_any) return;
    }
    for (i64 row = 0; row < table->rows; row++) table->able[row] = (u8)fits(table, row, ask);
}

/* Prefill rows that may take the prompt and hand its cache to a decode replica that may take it, into the column `able`. */
static void prompt_rows(Core *core, Service *service, const Request *request, const Ask *ask) {
    Table *prefill = &service->tables[PREFILL], *decode = &service->tables[DECODE];
    Ask prompt = prompt_of(ask);
    i64 bits = 0;
    int is_any = 0;
    allow_rows(core, request, decode, ask);
    for (i64 row = 0; row < decode->rows; row++) {
        if (!decode->able[row]) continue;
        bits |= spec_at(core, decode, row)->pool_bit;
        is_any = 1;
    }
    allow_rows(core, request, prefill, &prompt);
    for (i64 row = 0; row < prefill->rows; row++) {
        if (!prefill->able[row]) continue;
        i64 to_pools = spec_at(core, prefill, row)->to_pools;
        prefill->able[row] = to_pools ? (to_pools & bits) != 0 : is_any;
    }
}

static Sent sent_from(const Core *core, const Table *prefill, i64 row, i64 kv_tokens) {
    const ReplicaSpec *spec = spec_at(core, prefill, row);
    i64 ranks = core->kinds[spec->kind].data_ranks, caches = prefill->moving[row] + 1;
    return (Sent){
        (double)kv_tokens * spec->kv_token_bytes, link_bytes_per_s(spec) / (double)(caches > ranks ? caches : ranks), spec->kv_link_latency_s
    };
}

/* Where the rest of the request would end first among the decode rows that are `able`: columns as of `forecast`. */
static double decode_forecast(Core *core, Table *table, const Ask *ask, const Sent *sent, double now_s) {
    double least_s = INFINITY;
    for (i64 row = 0; row < table->rows; row++) {
        table->finish_s[row] = INFINITY;
        if (!table->able[row]) continue;
        const ReplicaSpec *spec = spec_at(core, table, row);
        i64 ranks = core->kinds[spec->kind].data_ranks, caches = table->moving[row] + 1;
        double share = link_bytes_per_s(spec) / (double)(caches > ranks ? caches : ranks);
        if (sent->bytes_per_s < share) share = sent->bytes_per_s;
        double latency_s = spec->kv_link_latency_s > sent->latency_s ? spec->kv_link_latency_s : sent->latency_s;
        double token_s = table->decode_s[row] + table->kv_read_s[row] * ask->mean_kv_tokens;
        double first_s = latency_s + sent->kv_bytes / share + backlog_s(table, row, now_s);
        first_s += crowding(table, row, ask) * (ask->output_tokens * token_s);
        table->first_s[row] = first_s;
        table->token_s[row] = token_s;
        table->finish_s[row] = first_s + ask->output_tokens * token_s;
        if (table->finish_s[row] < least_s) least_s = table->finish_s[row];
    }
    return least_s;
}

/* ---- a request's stay */

static void prompt_held(Core *core, Table *table, const Load *load, double now_s) {
    prompt_done(table, load, now_s);
    table->in_flight[load->row]--;
    table->held[load->row]++;
    refresh(core, table, load->row);
}

static void released(Table *table, const Load *load) {
    table->held[load->row]--;
    kv_freed(table, load);
}

static Load reserved(Core *core, Table *table, i64 row, const Ask *ask) {
    Load load = {
        .row = row, .prompt_s = 0.0, .kv_tokens = ask->mean_kv_tokens, .first_s = table->first_s[row], .token_s = table->token_s[row],
        .model_token_s = table->token_s[row] / table->decode_factor[row],
    };
    table->in_flight[row]++;
    table->kv_tokens[row] += load.kv_tokens;
    refresh(core, table, row);
    return load;
}

static void begun(Table *table, const Load *load, double now_s) {
    if (!table->prompts[load->row]) table->prompts_end_s[load->row] = now_s;
    table->prompts[load->row]++;
}
