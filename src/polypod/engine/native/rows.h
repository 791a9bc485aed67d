/* The rows of policy/router.py while a node serves: what each of its methods does, over the same columns, in the same order of operations.
   The columns are Python's; a `Rows` says where they are. */

typedef struct {
    i64 rows, kinds;
    /* of a replica */
    const u8 *up;
    i64 *in_flight;
    const i64 *slots, *limit_tokens;
    const double *blocked_until_s;
    i64 *prompts;
    double *prompts_s, *prompts_end_s, *prompt_share, *kv_tokens;
    const double *kv_capacity;
    double *kv_read_s, *attend_s, *decode_s;
    const double *prompt_factor;
    double *decode_factor;
    i64 *requests;
    const i64 *others_running;
    const double *others_prompt_s;
    const i64 *kind, *held, *data_ranks;
    const double *given, *checked, *decoding; /* tokens that a step gives and computes a sequence; 0 where prompts are all there is */
    /* of a kind */
    const i64 *used, *first_knot, *knots, *budget;
    const double *kv_token_s, *pair_s, *sequence_s;
    const double *knot_tokens, *knot_seconds;
    double *prompt_alone_s;
    i64 *prompt_steps;
    /* answers */
    double *first_s, *token_s;
    i64 *best, *cached;
} Rows;

typedef struct {
    double prompt_s, first_s, token_s, model_token_s;
} Added;

static double rows_curve_s(const Rows *rows, i64 kind, double tokens) {
    if (tokens <= 0) return 0.0;
    const double *knots = rows->knot_tokens + rows->first_knot[kind], *seconds = rows->knot_seconds + rows->first_knot[kind];
    i64 right = 0, last = rows->knots[kind] - 1;
    while (right <= last && knots[right] <= tokens) right++;
    if (right < 1) right = 1;
    if (right > last) right = last;
    i64 left = right - 1;
    double slope = (seconds[right] - seconds[left]) / (knots[right] - knots[left]);
    double value = seconds[left] + slope * (tokens - knots[left]);
    return value > 0.0 ? value : 0.0;
}

static double rows_prompt_s(const Rows *rows, i64 kind, i64 tokens, i64 cached, i64 *steps) {
    i64 left = tokens - cached, budget = rows->budget[kind], full = left / budget, rest = left % budget;
    *steps = full + (rest > 0);
    double chunks_s = (double)full * rows_curve_s(rows, kind, (double)budget) + rows_curve_s(rows, kind, (double)rest);
    return chunks_s + rows->pair_s[kind] * causal_pairs(left, cached);
}

static double rows_step_s(const Rows *rows, i64 kind, double tokens, double kv_tokens, double sequences) {
    return rows_curve_s(rows, kind, tokens) + rows->kv_token_s[kind] * kv_tokens + rows->pair_s[kind] * 0.0
           + rows->sequence_s[kind] * sequences;
}

void rows_refresh(Rows *rows, i64 row) {
    i64 kind = rows->kind[row];
    double factor = rows->decode_factor[row] / rows->given[row], ranks = (double)rows->data_ranks[row];
    double there = rows->decoding[row] * (double)(rows->in_flight[row] + rows->others_running[row]) / ranks;
    double kv_tokens = rows->decoding[row] * rows->kv_tokens[row] / ranks;
    rows->kv_read_s[row] = factor * rows->kv_token_s[kind];
    rows->attend_s[row] = factor * rows_step_s(rows, kind, 0.0, kv_tokens, there);
    rows->decode_s[row] = factor * rows_step_s(rows, kind, rows->checked[row] * (there + 1), kv_tokens, there + 1);
}

static int rows_is_open(const Rows *rows, i64 row, double now_s) {
    return rows->up[row] && rows->in_flight[row] < rows->slots[row] && rows->blocked_until_s[row] <= now_s;
}

i64 rows_have_room(const Rows *rows, double now_s) {
    for (i64 row = 0; row < rows->rows; row++)
        if (rows_is_open(rows, row, now_s)) return 1;
    return 0;
}

static double rows_crowding(const Rows *rows, i64 row, double mean_kv_tokens) {
    double over_kv = rows->kv_tokens[row] + mean_kv_tokens - rows->kv_capacity[row], lives = 0.0;
    i64 slots = rows->slots[row], over_slots = rows->in_flight[row] + rows->others_running[row] + 1 - slots;
    if (over_kv > 0.0) lives = over_kv / (rows->kv_tokens[row] > 1.0 ? rows->kv_tokens[row] : 1.0);
    if (over_slots > 0) lives += (double)over_slots / (double)(slots > 1 ? slots : 1);
    return lives;
}

/* Forecast one row: seconds to the first token and for each after it; when it would finish. */
static double rows_forecast(Rows *rows, i64 row, double now_s, double kept, i64 input_tokens, double output_tokens, double mean_kv_tokens) {
    i64 kind = rows->kind[row], steps = rows->prompt_steps[kind];
    double alone_s = rows->prompt_alone_s[kind];
    if (rows->cached[row]) alone_s = rows_prompt_s(rows, kind, input_tokens, rows->cached[row], &steps);
    double share = rows->prompt_share[row] * kept;
    double token_s = rows->decode_s[row] + rows->kv_read_s[row] * mean_kv_tokens;
    if (share != 0.0) token_s /= 1 - (share < MOST_PROMPT_SHARE ? share : MOST_PROMPT_SHARE);
    double prompt_s = rows->prompt_factor[row] * alone_s;
    prompt_s += (double)steps * rows->attend_s[row];
    double ahead_s = rows->prompts_end_s[row] - now_s, overdue_s = rows->prompts[row] > 0 ? -ahead_s : 0.0;
    double first_s = (ahead_s > overdue_s ? ahead_s : overdue_s) + rows->others_prompt_s[row] + prompt_s;
    double answer_s = output_tokens * token_s;
    first_s += rows_crowding(rows, row, mean_kv_tokens) * answer_s;
    rows->first_s[row] = first_s;
    rows->token_s[row] = token_s;
    return first_s + answer_s;
}

/* Where the request would finish first: how many rows tie, which are in `best`. `among`, if any, says which may be chosen, in place of the room for
   its tokens; some rows have cached a part of its prompt. */
i64 rows_best(
    Rows *rows, double now_s, double kept, i64 input_tokens, i64 need_tokens, double output_tokens, double mean_kv_tokens, const u8 *among,
    i64 warm, const i64 *warm_rows, const i64 *warm_tokens
) {
    double least_s = INFINITY;
    i64 ties = 0;
    for (i64 k = 0; k < rows->kinds; k++)
        if (rows->used[k]) rows->prompt_alone_s[k] = rows_prompt_s(rows, k, input_tokens, 0, &rows->prompt_steps[k]);
    for (i64 w = 0; w < warm; w++) rows->cached[warm_rows[w]] = warm_tokens[w];
    for (i64 row = 0; row < rows->rows; row++) {
        if (!rows_is_open(rows, row, now_s) || (among != NULL ? !among[row] : rows->limit_tokens[row] < need_tokens)) continue;
        double finish_s = rows_forecast(rows, row, now_s, kept, input_tokens, output_tokens, mean_kv_tokens);
        if (finish_s > least_s) continue;
        if (finish_s < least_s) least_s = finish_s, ties = 0;
        rows->best[ties++] = row;
    }
    for (i64 w = 0; w < warm; w++) rows->cached[warm_rows[w]] = 0;
    return ties;
}

/* Add a request to the row where `rows_best` put it. */
void rows_dispatched(
    Rows *rows, i64 row, double now_s, double grown, i64 input_tokens, double mean_kv_tokens, i64 cached, i64 is_streamed, Added *added
) {
    i64 steps;
    double alone_s = rows_prompt_s(rows, rows->kind[row], input_tokens, cached, &steps);
    added->prompt_s = alone_s * rows->prompt_factor[row] / (double)rows->data_ranks[row];
    added->first_s = rows->first_s[row];
    added->token_s = rows->token_s[row];
    added->model_token_s = rows->token_s[row] / rows->decode_factor[row];
    rows->prompt_share[row] += grown * added->prompt_s / PROMPT_MEMORY_S;
    double late_s = now_s - rows->prompts_end_s[row];
    if (late_s > 0) rows->prompts_end_s[row] = now_s + (rows->prompts[row] ? late_s : 0.0);
    rows->prompts_end_s[row] += added->prompt_s;
    if (is_streamed) {
        rows->prompts_s[row] += added->prompt_s;
        rows->prompts[row]++;
    }
    rows->in_flight[row]++;
    rows->kv_tokens[row] += mean_kv_tokens;
    rows_refresh(rows, row);
}

/* The prompt is computed, or (`is_given_up`) not waited for any more. */
void rows_prompt_over(Rows *rows, i64 row, double now_s, double prompt_s, i64 is_given_up) {
    rows->prompts[row]--;
    rows->prompts_s[row] -= prompt_s;
    if (!rows->prompts[row]) rows->prompts_s[row] = 0.0;
    double end_s = rows->prompts_end_s[row], sooner_s = end_s - prompt_s;
    if (!is_given_up) rows->prompts_end_s[row] = now_s + rows->prompts_s[row];
    else if (end_s > now_s) rows->prompts_end_s[row] = sooner_s > now_s ? sooner_s : now_s;
}

void rows_left(Rows *rows, i64 row, double kv_tokens) {
    rows->in_flight[row]--;
    rows->kv_tokens[row] -= kv_tokens;
    if (!rows->in_flight[row] && !rows->held[row]) rows->kv_tokens[row] = 0.0;
    rows_refresh(rows, row);
}
