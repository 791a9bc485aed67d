/* What the compiled driver keeps: one struct for each noun, in arrays; references are indices, and -1 is none. */
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int32_t i32;
typedef int64_t i64;
typedef uint32_t u32;
typedef uint64_t u64;
typedef uint8_t u8;

#define NONE (-1)

/* ---- given by Python, read only; the layout is that of the structured types in layout.py */

typedef struct {
    i64 first_knot, knots; /* into the curve's points */
    double kv_token_s, pair_s, sequence_s;
    i64 data_ranks, stages, budget;
} Kind;

typedef struct {
    i64 model, pool, kind, played_kind; /* the step time that the policy is told, and the one that the engine has */
    i64 context_tokens, kv_capacity_tokens, max_sequences, max_step_tokens;
    double tokens_per_step, drafts, draft_share, prefix_hits;
    i64 exclusive_prefill, schedules_ahead, whole_prompts, balance_steps;
    double slowdown;
    i64 has_power, cap; /* NONE: under no cap */
    double idle_w, prompt_w, decode_w;
    i64 role, pool_bit, to_pools; /* a Role; of decode replicas, and of prefill replicas the bits of those they send to (0: all) */
    double kv_token_bytes, kv_link_bytes_per_s, kv_link_latency_s;
    double imbalance_cv;
    i64 hbm_host_tokens, host_blocks, remote, remote_blocks; /* cached in HBM and host memory; host blocks of a rank; which remote store, or NONE */
    double block_bytes, host_bytes_per_s, remote_bytes_per_s, remote_latency_s; /* no tiers: 0 bytes */
    double port_bytes_per_s; /* its own link as caches find it; 0: no end */
} ReplicaSpec;

enum Role { BOTH, PREFILL, DECODE, ROLES };

typedef struct {
    double limit_w, idle_w;
    i64 first_replica, replicas; /* into the list of those under caps */
} CapSpec;

typedef struct { /* of a pool at an interval's end: the moment, then counts since the start, then the interval's mean power */
    double up, running, waiting, kv_tokens, kv_capacity_tokens, busy_s, prompt_busy_s, prompt_tokens, output_tokens, watts;
} PoolRow;

typedef struct {
    i64 context_tokens;
    double mean_output_tokens;
    i64 block_tokens, is_hashed; /* of each prefix hash; whether the model's requests have any */
} ServiceSpec;

typedef struct {
    i64 seed, models, replicas, kinds, queue_requests, max_attempts, retry_floor, quarantine_deaths;
    double queue_wait_s, kv_wait_s, retry_fraction, breaker_open_s;
    i64 log, pools, caps; /* the log: a Log below */
    u64 sample_below; /* a request is in the sample if its mixed number is below */
    double interval_s; /* of the series; infinite where there is none */
    i64 prefix_blocks, remotes;
    i64 ways, way_tiers, tiers, exact_caches; /* of caches: `way_tiers` a replica, 0 where there are no ways; names of tiers in all */
} Settings;

typedef struct { /* of a replica and one place among its tiers: each may be NONE */
    i64 way, instance, first, tier;
} WayStep;

typedef struct {
    double at_s;
    i64 replica, what, epoch; /* what: a Word below */
    double factor, back_in_s; /* the last of what goes down; infinite where nobody promises its return */
} Change;

typedef struct {
    double at_s, patience_s; /* no patience: infinite */
    i64 model, tenant, input_tokens, output_tokens, max_output_tokens, priority; /* no maximum: NONE */
    i64 first_hash, hashes; /* into the block's hashes */
} Arrival;

/* ---- written for Python */

enum Log { LOG_NOTHING, LOG_ALL, LOG_SAMPLE };

enum Word {
    W_ARRIVED = 1, W_FIRST, W_FINISHED, W_FAILED, W_GONE, W_UP, W_DOWN, W_WOKE, W_PREFILLED, W_KV_ARRIVED,
    W_SPEED, W_HANG, W_LINK, W_WAY, W_TICK, W_ENGINE, W_TRANSFERS, /* of the driver alone: no event of the policy */
    W_DISPATCH = 32, W_RETRY, W_REJECT, W_CANCEL, W_WAKE_AT, W_PREFILL, W_TRANSFER, W_DECODE
};

typedef enum {
    C_CONTEXT = 1, C_NO_REPLICA, C_QUEUE_FULL, C_ENGINE_REFUSED, C_REPLICA_LOST, C_QUARANTINED,
    C_ATTEMPTS, C_QUEUE_TIMEOUT, C_UNKNOWN_MODEL, C_CACHES_LATE /* attempts that failed as often as they may, the last for its cache */
} Code;

typedef struct { /* an event, or one of the actions after it; of a rejection `attempt` is the code */
    i64 word, request, attempt, replica, epoch, count, slot; /* the last is the core's own */
    double at_s, first, second;
} Entry;

typedef struct { /* a request that has ended */
    i64 request, status, attempts, replica, prefill_replica, input_tokens, output_tokens, model, tenant;
    double arrival_s, placed_s, prefilled_s, first_s, end_s, predicted_first_s; /* the last counted from the placing; what never came is NaN */
} Outcome;

/* ---- the driver's own */

#include "blocks.h"

typedef struct { /* what a request added to its row, and what is expected of it */
    i64 row;
    double prompt_s, kv_tokens, first_s, token_s, model_token_s;
} Load;

typedef struct {
    i32 replica, epoch; /* or NONE */
    Load load;
} Place;

#define MOST_LINKS 18 /* two of its ends, and both ways of MOST_TIERS in ways.py */

typedef struct { /* a cache on its way, at this rate since then; below 0: its bytes have not begun */
    i64 order, link_count;
    double size_bytes, left_bytes, since_s, due_s, bytes_per_s;
    u64 tiers; /* a bit for each that it goes over */
    i32 source, target, links[MOST_LINKS], at[MOST_LINKS]; /* its ends' links, then the shared ones, and where it stands in their lists */
    i32 going_at;
    u8 is_on_the_way;
} Cache;

enum Phase { WHOLE, IN_PREFILL, HELD, IN_TRANSFER, IN_DECODE };

enum Queued { NOWHERE, IN_QUEUE, IN_HELD, IN_MOVING };

typedef struct { /* an attempt that came to nothing, at one start of a replica */
    i32 replica, epoch;
} Failure;

typedef struct { /* a request from the moment its arrival is planned to its end */
    i64 id, order, attempt, attempts_failed, deaths;
    Arrival asked;
    double deadline_s, kv_deadline_s, placed_s, prefilled_s, first_token_s; /* what has not come: NaN */
    Place place, source; /* where it is, and where its cache comes from while it is on the way */
    Cache cache;
    i32 sequence, prefill_replica; /* in an engine, and where its prompt was computed last, or NONE */
    i32 queue_prev, queue_next, aboard_prev[2], aboard_next[2], live_prev, live_next; /* aboard a prefill replica: the second of both */
    u8 phase, queued, is_live;
    Hashes *hashes; /* or NULL */
    Failure *failures; /* or NULL */
    i64 failure_count, failure_room;
} Request;

enum { S_WAITING, S_PREFILL, S_DECODE, S_HELD, S_OUT };

typedef struct { /* a request inside an engine */
    i64 ticket, prompt_tokens, output_tokens, computed, finish_step, order, chunk;
    double since_s; /* when it came */
    i32 request, replica, rank, prev, next, chunk_next, heap_at;
    u8 state, told_first, is_cancelled, ends_at_first, has_cache, is_scheduled;
    Hashes *hashes; /* or NULL */
    i64 held, host_loads, remote_loads; /* of its blocks, the first so many; what its first chunk waits for */
} Sequence;

typedef struct {
    i32 sequence;
    i64 ticket;
} Cancelled;

typedef struct {
    i32 head, tail;
} List;

typedef struct {
    i64 sequences, prompts, prompt_kv, reserved;
    i64 kv_limit; /* what its sequences may count together: blocks that several share are counted by each */
    double decode_kv_at_0, room;
    List prefilling, decoding;
    i32 active_prev, active_next; /* among the ranks that have prompts in prefill */
} Rank;

typedef struct {
    double start_s, first_step_s, growth_s;
    i64 steps;
    u8 is_running, decodes;
} Segment;

typedef struct { /* one start of a replica's engine; the places are used again by the next start */
    const ReplicaSpec *spec;
    const Kind *kind;
    u8 is_up, is_hung;
    i32 epoch;
    i64 serial;
    double due_s, slowdown, cap_slowdown, factor; /* the last is the product of the two before it */
    double given, checked, drafting;
    i64 rank_kv_capacity, rank_max_sequences;
    i64 step, order, decoders, waiting, prefilling;
    Rank *ranks;
    List waiting_list, held_list;
    i32 *told; /* progress of caches that were admitted, as of `told_at_s` */
    i64 told_count, told_room;
    double told_at_s;
    i32 active_head, active_tail;
    i32 chunk_head, chunk_tail;
    i32 *heap; /* decoding sequences by (finish step, order) */
    i64 heap_size, heap_room;
    Cancelled *cancelled;
    i64 cancelled_count, cancelled_room;
    Segment segment;
    double seen_s; /* what came until then may be in the next step */
    i64 waited; /* steps in which ranks without a prompt held up the others */
    double busy_s, prompt_busy_s;
    i64 computed_tokens, preemptions, prompt_tokens, output_tokens;
    double total_busy_s, total_prompt_busy_s, total_output_tokens;
    i64 total_computed_tokens, total_preemptions, total_prompt_tokens;
    Prefix prefix;
    i64 segments;
    u32 first_word;
    i64 total_found[3], total_evicted[2]; /* blocks */
    double last_busy_s, last_prompt_busy_s, dynamic_w; /* as of the last interval's end */
} Engine;

typedef struct { /* the policy's view of one replica */
    i32 row;
    i64 epoch, slots;
    u8 is_up, is_known;
    double back_at_s; /* while it is down: when it is expected back; infinite where it is not */
    i32 aboard_head, aboard_tail;
} Member;

typedef struct { /* the replicas of one model that are up, as columns; one scored in a pass */
    i64 rows, up_rows;
    double share_base_s;
    i64 most_limit_tokens;
    i32 *member; /* by row, NONE is free */
    i64 *in_flight, *slots, *limit_tokens, *prompts, *requests, *kind;
    double *prompts_s, *prompts_end_s, *prompt_share, *kv_tokens, *kv_capacity, *kv_read_s, *attend_s, *decode_s;
    double *prompt_factor, *decode_factor, *finish_s, *first_s, *token_s;
    i64 *held, *moving; /* of one phase: caches of computed prompts not yet handed on, and those on the way */
    u8 *able, *closed; /* scratch */
    Affinity affinity;
    i64 held_tokens; /* by all that are up */
    i64 *cached; /* scratch: tokens of the prompt that should be there */
    u64 *bits;
    int has_cached;
} Table;

typedef struct {
    double at_s;
    i64 low, order; /* of the waiting: minus the priority, and the order of arrival */
    i32 request;
} Deadline;

typedef struct {
    i32 head, tail;
    i64 waiting;
    Deadline *deadlines;
    i64 deadline_count, deadline_room;
} Queue;

typedef struct {
    const ServiceSpec *spec;
    double mean_output_tokens, finish_gap_s, last_finish_s; /* not known: NaN */
    Queue queue, held, moving; /* from the prompt on, with a computed one, and with its cache on the way */
    Table tables[ROLES];
} Service;

typedef struct { /* caches whose bytes go over a link: a replica's own, which has a factor, or a shared one */
    i32 *requests;
    i64 count, room, unfixed; /* the last, and what is left, while rates are filled */
    double factor, capacity, told, left;
} Link;

typedef struct {
    double at_s;
    u64 key; /* what kind of entry, then the order of entry */
    i64 word, a, b;
    double factor, back_in_s;
} Agendum;

typedef struct {
    Settings settings;
    const Kind *kinds;
    const double *knot_tokens, *knot_seconds;
    const ReplicaSpec *replicas;
    double now_s;
    i64 events, batch_changes, arrivals_heard, tickets, entries, serials;
    /* requests and sequences, with free lists through `live_next` and `next` */
    Request *request;
    i32 request_room, request_free, live_head, live_tail;
    i64 live, asked;
    Sequence *sequence;
    i32 sequence_room, sequence_free;
    Service *service;
    Member *member;
    Engine *engine;
    Agendum *agenda;
    i64 agenda_count, agenda_room;
    double *wakes;
    i64 wake_count, wake_room;
    double *kind_prompt_s; /* scratch, by kind */
    i64 *kind_steps;
    i32 *progress; /* scratch: sequences, times four, and what they have to tell */
    i64 progress_room;
    const Arrival *arrivals; /* the block being read */
    const i64 *hashes; /* of its prompts */
    Store *remotes;
    i64 arrivals_count, arrivals_at, requests_planned;
    i64 is_last_block;
    i64 is_loop; /* arrivals come when others end: their times are times to think */
    double loop_end_s;
    Link *links; /* by replica, then two of each way: up and down */
    const WayStep *way_steps;
    const double *way_capacities;
    i32 *going; /* requests whose caches' bytes go */
    i64 going_count, going_room;
    double *limits; /* scratch */
    i64 limit_room;
    struct Filling *filling; /* scratch */
    i64 filling_room;
    u8 is_exact;
    double *done_bytes; /* by tier, of caches that are no longer on the way */
    Deadline *transfers; /* a heap of changes: `low` is the order of the transfer */
    i64 transfer_count, transfer_room, transfer_orders;
    double transfers_due_s;
    i32 *arrived; /* scratch */
    i64 arrived_room;
    Entry *log;
    i64 log_count, log_room, step_at;
    Outcome *outcomes;
    i64 outcome_count, outcome_room;
    const CapSpec *caps;
    const i64 *capped;
    double *slowdowns; /* by cap */
    i64 ticks;
    double last_tick_s;
    double *rows; /* drained with the log: for each tick its time, the pools' rows, the models' queues, the caps' slowdowns */
    i64 row_count, row_room;
    jmp_buf no_memory;
} Core;
