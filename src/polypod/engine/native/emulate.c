/* One engine under arrivals of one length, without a driver: what `plan.confirm` asks of a candidate, and `plan.confirm_apart` of a worker of one phase.

   A library of its own, beside the driver's (core.c): a plan needs no more, and it compiles in a third of the time. */
#include "types.h"
#include "memory.h"
#include "prompts.h"
#include "step.h"
#include "prefix.h"
#include "engine.h"

typedef struct {
    i64 prompt_tokens, output_tokens, warm, allowed; /* those before `warm` are not counted; so many of the others may miss a limit */
    i64 role; /* a Role */
    double ttft_s, tpot_s; /* limits; infinite where there is none */
    double way_s; /* of prefill: for how long a computed prompt keeps its cache here */
} Trial;

typedef struct {
    Core *core;
    Engine *engine;
    const Trial *trial;
    const double *asked_s; /* since when a request has waited */
    double *first_s, *last_s;
    u8 *missed;
    i32 *kept; /* of prefill: computed prompts in order, those from `kept_head` on still here */
    i64 kept_head, kept_count;
    i64 lost; /* requests that have missed a limit */
} Played;

/* Note first and last tokens, and computed prompts. */
static void note_progress(Played *played, double now_s, i64 count) {
    Core *core = played->core;
    const Trial *trial = played->trial;
    i64 steps = trial->output_tokens > 2 ? trial->output_tokens - 1 : 1;
    for (i64 at = 0; at < count; at++) {
        i32 one = core->progress[at] / 4;
        i64 request = core->sequence[one].ticket, what = core->progress[at] % 4;
        int is_late;
        if (what == T_FINISHED) {
            played->last_s[request] = now_s;
            is_late = (now_s - played->first_s[request]) / (double)steps > trial->tpot_s;
            free_sequence(core, one);
        } else {
            played->first_s[request] = now_s;
            is_late = now_s - played->asked_s[request] > trial->ttft_s;
            if (what == T_PREFILLED) {
                played->last_s[request] = now_s;
                played->kept[played->kept_count++] = one;
            }
        }
        if (!is_late || request < trial->warm || played->missed[request]) continue;
        played->missed[request] = 1;
        played->lost++;
    }
}

static double release_s(const Played *played) {
    if (played->kept_head == played->kept_count) return INFINITY;
    return played->first_s[played->core->sequence[played->kept[played->kept_head]].ticket] + played->trial->way_s;
}

/* Play the engine until then, batch change by batch change and cache by cache; of one moment, what the engine does goes first. */
static void play_until(Played *played, double to_s) {
    for (;;) {
        double now_s = next_s(played->engine), gone_s = release_s(played);
        if (now_s <= gone_s) {
            if (now_s > to_s || now_s == INFINITY) return;
            note_progress(played, now_s, engine_advance(played->core, played->engine, now_s));
        } else {
            if (gone_s > to_s) return;
            engine_cancel(played->core, played->engine, played->kept[played->kept_head++], gone_s);
        }
    }
}

static int emulate(
    Core *core, const ReplicaSpec *spec, const Trial *trial, const double *arrivals_s, const double *asked_s, i64 count, double *first_s, double *last_s,
    double *busy_s
) {
    Engine *engine = core->engine = zeroed(core, 1, sizeof *engine);
    u8 *missed = (u8 *)(core->request = zeroed(core, count + (i64)sizeof(Request), 1));
    core->arrived = zeroed(core, count, sizeof *core->arrived);
    Played played = {
        .core = core, .engine = engine, .trial = trial, .asked_s = asked_s, .first_s = first_s, .last_s = last_s, .missed = missed, .kept = core->arrived,
    };
    engine->spec = spec;
    engine->kind = core->kinds;
    engine->factor = engine->slowdown = engine->cap_slowdown = 1.0;
    core->sequence_free = NONE;
    engine_start(core, 0, 1);
    for (i64 request = 0; request <= count; request++) {
        double at_s = request < count ? arrivals_s[request] : INFINITY;
        play_until(&played, at_s);
        if (played.lost > trial->allowed) return 0;
        if (request == count) break;
        i32 one = new_sequence(core);
        core->sequence[one] = (Sequence){
            .ticket = request, .prompt_tokens = trial->prompt_tokens, .output_tokens = trial->output_tokens, .finish_step = -1, .request = NONE,
            .rank = NONE, .prev = NONE, .next = NONE, .chunk_next = NONE, .heap_at = NONE, .state = S_WAITING,
            .ends_at_first = trial->role == PREFILL, .has_cache = trial->role == DECODE,
        };
        engine_submit(core, engine, one, at_s);
    }
    *busy_s = engine->busy_s;
    return 1;
}

enum { TRIAL_PLAYED, TRIAL_GIVEN_UP, TRIAL_NO_MEMORY };

/* Arrivals of one length through one engine: times of first and last tokens, and busy seconds; given up once too many have missed a limit. */
int core_emulate(
    const Kind *kind, const double *knot_tokens, const double *knot_seconds, const ReplicaSpec *spec, const Trial *trial, const double *arrivals_s,
    const double *asked_s, i64 count, double *first_s, double *last_s, double *busy_s
) {
    Core *volatile core = calloc(1, sizeof *core);
    if (core == NULL) return TRIAL_NO_MEMORY;
    core->kinds = kind;
    core->knot_tokens = knot_tokens;
    core->knot_seconds = knot_seconds;
    volatile int status = TRIAL_NO_MEMORY;
    if (!setjmp(core->no_memory)) status = emulate(core, spec, trial, arrivals_s, asked_s, count, first_s, last_s, busy_s) ? TRIAL_PLAYED : TRIAL_GIVEN_UP;
    if (core->engine != NULL) free_engine(core->engine);
    void *arrays[] = {core->engine, core->sequence, core->request, core->arrived, core->progress};
    for (size_t one = 0; one < sizeof arrays / sizeof *arrays; one++) free(arrays[one]);
    free(core);
    return status;
}
