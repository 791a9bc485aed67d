/* One engine under arrivals of one length, without a driver: what `plan.confirm` asks of a candidate. */

typedef struct {
    i64 prompt_tokens, output_tokens, warm, allowed; /* those before `warm` are not counted; so many of the others may miss a limit */
    double ttft_s, tpot_s; /* limits; infinite where there is none */
} Trial;

/* Note first and last tokens; how many more requests have missed a limit. */
static i64 note_progress(Core *core, const Trial *trial, const double *arrivals_s, double now_s, i64 count, double *first_s, double *last_s, u8 *missed) {
    i64 steps = trial->output_tokens > 2 ? trial->output_tokens - 1 : 1, more = 0;
    for (i64 at = 0; at < count; at++) {
        i32 one = core->progress[at] / 4;
        i64 request = core->sequence[one].ticket;
        int is_late;
        if (core->progress[at] % 4 == T_FIRST) {
            first_s[request] = now_s;
            is_late = now_s - arrivals_s[request] > trial->ttft_s;
        } else {
            last_s[request] = now_s;
            is_late = (now_s - first_s[request]) / (double)steps > trial->tpot_s;
            free_sequence(core, one);
        }
        if (!is_late || request < trial->warm || missed[request]) continue;
        missed[request] = 1;
        more++;
    }
    return more;
}

/* Play the engine until then, batch change by batch change; how many requests have missed a limit on the way. */
static i64 play_until(Core *core, Engine *engine, const Trial *trial, const double *arrivals_s, double to_s, double *first_s, double *last_s, u8 *missed) {
    i64 more = 0;
    while (next_s(engine) <= to_s) {
        double now_s = next_s(engine);
        if (now_s == INFINITY) break;
        more += note_progress(core, trial, arrivals_s, now_s, engine_advance(core, engine, now_s), first_s, last_s, missed);
    }
    return more;
}

static int emulate(
    Core *core, const ReplicaSpec *spec, const Trial *trial, const double *arrivals_s, i64 count, double *first_s, double *last_s, double *busy_s
) {
    Engine *engine = core->engine = zeroed(core, 1, sizeof *engine);
    u8 *missed = (u8 *)(core->request = zeroed(core, count + (i64)sizeof(Request), 1)); /* freed with the core */
    i64 lost = 0;
    engine->spec = spec;
    engine->kind = core->kinds;
    engine->factor = engine->slowdown = engine->cap_slowdown = 1.0;
    core->sequence_free = NONE;
    engine_start(core, 0, 1);
    for (i64 request = 0; request <= count; request++) {
        double at_s = request < count ? arrivals_s[request] : INFINITY;
        lost += play_until(core, engine, trial, arrivals_s, at_s, first_s, last_s, missed);
        if (lost > trial->allowed) return 0;
        if (request == count) break;
        i32 one = new_sequence(core);
        core->sequence[one] = (Sequence){
            .ticket = request, .prompt_tokens = trial->prompt_tokens, .output_tokens = trial->output_tokens, .finish_step = -1, .request = NONE,
            .rank = NONE, .prev = NONE, .next = NONE, .chunk_next = NONE, .heap_at = NONE, .state = S_WAITING,
        };
        engine_submit(core, engine, one, at_s);
    }
    *busy_s = engine->busy_s;
    return 1;
}
