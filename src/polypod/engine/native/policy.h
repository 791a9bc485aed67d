/* What the policy decides of requests and replicas: policy/node.py, placement.py and admission.py, action for action. */

/* ---- the log: an event and its actions, or nothing where it is not kept */

static Entry *write_entry(Core *core, i64 word, i64 request, double at_s) {
    ROOM(core, core->log, core->log_count, core->log_room);
    Entry *entry = &core->log[core->log_count++];
    *entry = (Entry){.word = word, .request = request, .attempt = 0, .replica = NONE, .epoch = 0, .count = 0, .at_s = at_s};
    return entry;
}

static Service *service_of(Core *core, const Request *request) { return &core->service[request->asked.model]; }

static Table *table_of(Core *core, i32 replica) {
    const ReplicaSpec *spec = &core->replicas[replica];
    return &core->service[spec->model].tables[spec->role];
}

static int is_any_up(const Service *service) {
    return service->tables[BOTH].up_rows || (service->tables[PREFILL].up_rows && service->tables[DECODE].up_rows);
}

/* When the model can be served from prompt to end, of the replicas that are up or expected back. One that is overdue is expected in as much again. */
static double expected_in_s(const Core *core, i64 model) {
    double least_s[ROLES] = {INFINITY, INFINITY, INFINITY};
    for (i64 r = 0; r < core->settings.replicas; r++) {
        const Member *member = &core->member[r];
        const ReplicaSpec *spec = &core->replicas[r];
        if (spec->model != model || !member->is_known) continue;
        double in_s = member->is_up ? 0.0 : fabs(member->back_at_s - core->now_s);
        if (in_s < least_s[spec->role]) least_s[spec->role] = in_s;
    }
    double apart_s = least_s[PREFILL] > least_s[DECODE] ? least_s[PREFILL] : least_s[DECODE];
    return least_s[BOTH] < apart_s ? least_s[BOTH] : apart_s;
}

/* ---- the waiting */

static int comes_before(const Request *left, const Request *right) {
    if (left->asked.priority != right->asked.priority) return left->asked.priority > right->asked.priority;
    return left->order < right->order;
}

static int deadline_before(const Deadline *left, const Deadline *right) {
    if (left->at_s != right->at_s) return left->at_s < right->at_s;
    return left->low != right->low ? left->low < right->low : left->order < right->order;
}

static void add_deadline(Core *core, Queue *queue, Deadline one) {
    ROOM(core, queue->deadlines, queue->deadline_count, queue->deadline_room);
    i64 at = queue->deadline_count++;
    for (; at > 0 && deadline_before(&one, &queue->deadlines[(at - 1) / 2]); at = (at - 1) / 2)
        queue->deadlines[at] = queue->deadlines[(at - 1) / 2];
    queue->deadlines[at] = one;
}

static void pop_deadline(Deadline *deadlines, i64 *count) {
    Deadline last = deadlines[--*count];
    i64 at = 0;
    for (;;) {
        i64 child = 2 * at + 1;
        if (child >= *count) break;
        if (child + 1 < *count && deadline_before(&deadlines[child + 1], &deadlines[child])) child++;
        if (!deadline_before(&deadlines[child], &last)) break;
        deadlines[at] = deadlines[child];
        at = child;
    }
    if (*count) deadlines[at] = last;
}

static Queue *queue_of(Service *service, int which) {
    return which == IN_MOVING ? &service->moving : which == IN_HELD ? &service->held : &service->queue;
}

static double due_in(const Request *request, int which) { return which == IN_MOVING ? request->kv_deadline_s : request->deadline_s; }

static void wait_in(Core *core, i32 slot, int which) {
    Request *request = &core->request[slot];
    Queue *queue = queue_of(service_of(core, request), which);
    i32 before = queue->tail;
    while (before != NONE && comes_before(request, &core->request[before])) before = core->request[before].queue_prev;
    i32 after = before == NONE ? queue->head : core->request[before].queue_next;
    request->queue_prev = before;
    request->queue_next = after;
    if (before == NONE) queue->head = slot;
    else core->request[before].queue_next = slot;
    if (after == NONE) queue->tail = slot;
    else core->request[after].queue_prev = slot;
    request->queued = (u8)which;
    queue->waiting++;
    add_deadline(core, queue, (Deadline){due_in(request, which), -request->asked.priority, request->order, slot});
}

static int leave_queue(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    if (request->queued == NOWHERE) return 0;
    Queue *queue = queue_of(service_of(core, request), request->queued);
    if (request->queue_prev == NONE) queue->head = request->queue_next;
    else core->request[request->queue_prev].queue_next = request->queue_next;
    if (request->queue_next == NONE) queue->tail = request->queue_prev;
    else core->request[request->queue_next].queue_prev = request->queue_prev;
    request->queued = NOWHERE;
    queue->waiting--;
    return 1;
}

static double next_deadline_s(Core *core, Service *service, int which) {
    Queue *queue = queue_of(service, which);
    while (queue->deadline_count) {
        const Deadline *first = &queue->deadlines[0];
        const Request *request = &core->request[first->request];
        if (request->is_live && request->queued == which && request->order == first->order && due_in(request, which) == first->at_s) return first->at_s;
        pop_deadline(queue->deadlines, &queue->deadline_count);
    }
    return INFINITY;
}

/* Take out those whose deadline has come: a chain through `queue_next`, since all of them leave before the first is answered. */
static i32 pop_expired(Core *core, Service *service, int which) {
    Queue *queue = queue_of(service, which);
    i32 first = NONE, last = NONE;
    while (next_deadline_s(core, service, which) <= core->now_s) {
        i32 slot = queue->deadlines[0].request;
        pop_deadline(queue->deadlines, &queue->deadline_count);
        leave_queue(core, slot);
        core->request[slot].queue_next = NONE;
        if (first == NONE) first = slot;
        else core->request[last].queue_next = slot;
        last = slot;
    }
    return first;
}

static double drain_s(const Core *core, const Service *service) {
    if (isnan(service->finish_gap_s)) return MIN_RETRY_AFTER_S;
    double drain = (double)service->queue.waiting * service->finish_gap_s;
    if (drain > core->settings.queue_wait_s) drain = core->settings.queue_wait_s;
    return drain > MIN_RETRY_AFTER_S ? drain : MIN_RETRY_AFTER_S;
}

/* ---- places */

static int side_of(const Core *core, i32 replica) { return core->replicas[replica].role == PREFILL; }

static void come_aboard(Core *core, i32 replica, i32 slot) {
    Member *member = &core->member[replica];
    int side = side_of(core, replica);
    core->request[slot].aboard_prev[side] = member->aboard_tail;
    core->request[slot].aboard_next[side] = NONE;
    if (member->aboard_tail == NONE) member->aboard_head = slot;
    else core->request[member->aboard_tail].aboard_next[side] = slot;
    member->aboard_tail = slot;
}

static void go_ashore(Core *core, i32 replica, i32 slot) {
    Member *member = &core->member[replica];
    int side = side_of(core, replica);
    i32 prev = core->request[slot].aboard_prev[side], next = core->request[slot].aboard_next[side];
    if (prev == NONE) member->aboard_head = next;
    else core->request[prev].aboard_next[side] = next;
    if (next == NONE) member->aboard_tail = prev;
    else core->request[next].aboard_prev[side] = prev;
}

static Entry *write_start(Core *core, i64 word, i32 slot) {
    const Request *request = &core->request[slot];
    Entry *entry = write_entry(core, word, request->id, core->now_s);
    entry->attempt = request->attempt;
    entry->replica = request->place.replica;
    entry->epoch = request->place.epoch;
    entry->slot = slot;
    return entry;
}

/* The request goes to this row of a table; its place, where its books are kept. */
static Place take(Core *core, Table *table, i64 row, i32 slot, Load load) {
    i32 replica = table->member[row];
    come_aboard(core, replica, slot);
    return (Place){replica, (i32)core->member[replica].epoch, load};
}

static void start_whole(Core *core, i32 slot, const Ask *ask, double least_s) {
    Request *request = &core->request[slot];
    Table *table = &service_of(core, request)->tables[BOTH];
    i32 row = chosen_row(core, table, request, least_s);
    Load load = dispatched(core, table, row, ask, core->now_s);
    request->attempt++;
    request->placed_s = core->now_s;
    request->place = take(core, table, row, slot, load);
    request->prefill_replica = request->place.replica;
    Entry *entry = write_start(core, W_DISPATCH, slot);
    entry->first = load.first_s;
    entry->second = load.token_s;
}

static void start_prompt(Core *core, i32 slot, const Ask *ask, double least_s) {
    Request *request = &core->request[slot];
    Table *table = &service_of(core, request)->tables[PREFILL];
    Ask prompt = prompt_of(ask);
    i32 row = chosen_row(core, table, request, least_s);
    Load load = dispatched(core, table, row, &prompt, core->now_s);
    request->attempt++;
    request->placed_s = core->now_s;
    request->phase = IN_PREFILL;
    request->place = take(core, table, row, slot, load);
    request->prefill_replica = request->place.replica;
    write_start(core, W_PREFILL, slot);
}

static i64 first_row(const Table *table, double least_s) {
    i64 row = 0;
    while (table->finish_s[row] != least_s) row++;
    return row;
}

/* When a request ends that is decoded apart, those who hold a cache already shared out over all that decode. */
static double by_pair_s(Core *core, Service *service, const Request *request, const Ask *ask, double least_s) {
    Table *prefill = &service->tables[PREFILL], *decode = &service->tables[DECODE];
    i64 row = first_row(prefill, least_s), to_pools = spec_at(core, prefill, row)->to_pools, slots = 0;
    allow_rows(core, request, decode, ask);
    for (i64 one = 0; one < decode->rows; one++) {
        decode->able[one] = decode->able[one] && (!to_pools || (spec_at(core, decode, one)->pool_bit & to_pools) != 0);
        if (decode->member[one] != NONE) slots += decode->slots[one];
    }
    Sent sent = sent_from(core, prefill, row, ask->input_tokens);
    double rest_s = decode_forecast(core, decode, ask, &sent, core->now_s);
    double alone_s = prefill->first_s[row] + rest_s;
    if (rest_s == INFINITY) return INFINITY;
    double answer_s = ask->output_tokens * decode->token_s[first_row(decode, rest_s)];
    return alone_s + (double)service->held.waiting / (double)slots * answer_s;
}

/* Send the request to where it would finish first, on one replica or a pair. */
static int place(Core *core, i32 slot) {
    Service *service = service_of(core, &core->request[slot]);
    Table *prefill = &service->tables[PREFILL];
    Ask ask = ask_of(service, &core->request[slot]);
    double whole_s = forecast(core, &service->tables[BOTH], &ask, core->now_s, NULL), pair_s = INFINITY;
    if (prefill->most_limit_tokens) {
        Ask prompt = prompt_of(&ask);
        prompt_rows(core, service, &core->request[slot], &ask);
        for (i64 row = 0; row < prefill->rows; row++)
            if (prefill->able[row]) prefill->able[row] = !prefill->closed[row] && takes_cache(prefill, row, &prompt);
        pair_s = forecast(core, prefill, &prompt, core->now_s, prefill->able);
    }
    if (pair_s < INFINITY && whole_s < INFINITY && !(by_pair_s(core, service, &core->request[slot], &ask, pair_s) < whole_s)) pair_s = INFINITY;
    if (pair_s < INFINITY) start_prompt(core, slot, &ask, pair_s);
    else if (whole_s < INFINITY) start_whole(core, slot, &ask, whole_s);
    else return 0;
    return 1;
}

static void end_transfer(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    Service *service = service_of(core, request);
    service->tables[PREFILL].moving[request->source.load.row]--;
    service->tables[DECODE].moving[request->place.load.row]--;
    released(&service->tables[PREFILL], &request->source.load);
    go_ashore(core, request->source.replica, slot);
    request->source.replica = NONE;
    leave_queue(core, slot);
}

/* Take the request off all its replicas. */
static void leave(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    if (request->phase == IN_TRANSFER) end_transfer(core, slot);
    Table *table = table_of(core, request->place.replica);
    if (request->phase == HELD) {
        leave_queue(core, slot);
        released(table, &request->place.load);
    } else {
        if (isnan(request->first_token_s) && request->phase != IN_TRANSFER) prompt_given_up(table, &request->place.load, core->now_s);
        left_row(core, table, &request->place.load);
    }
    go_ashore(core, request->place.replica, slot);
    request->place.replica = NONE;
    request->phase = WHOLE;
}

static int has_slot(const Service *service) {
    const Table *prefill = &service->tables[PREFILL];
    if (prefill->most_limit_tokens)
        for (i64 row = 0; row < prefill->rows; row++)
            if (is_open(prefill, row) && !prefill->closed[row]) return 1;
    return has_room(&service->tables[BOTH]);
}

static void serve(Core *core, Service *service) {
    Table *prefill = &service->tables[PREFILL];
    if (service->queue.head == NONE) return;
    memset(prefill->closed, 0, (size_t)prefill->rows);
    if (!has_slot(service)) return;
    i64 refused_tokens = INT64_MAX, refused_prompt = prefill->most_limit_tokens ? INT64_MAX : 0; /* prefill replicas hold the prompt alone */
    for (i32 slot = service->queue.head; slot != NONE;) {
        i32 following = core->request[slot].queue_next;
        Ask ask = ask_of(service, &core->request[slot]);
        if (ask.need_tokens < refused_tokens || ask.input_tokens < refused_prompt) {
            if (place(core, slot)) leave_queue(core, slot);
            else {
                if (!core->request[slot].failure_count) { /* there is no room for it, wherever it may go */
                    refused_tokens = ask.need_tokens;
                    if (prefill->most_limit_tokens) refused_prompt = ask.input_tokens;
                }
                if (prefill->most_limit_tokens) {
                    prompt_rows(core, service, &core->request[slot], &ask);
                    for (i64 row = 0; row < prefill->rows; row++) prefill->closed[row] |= prefill->able[row];
                }
            }
            if (service->queue.head == NONE || !has_slot(service)) return;
        }
        slot = following;
    }
}

/* ---- caches of computed prompts */

static void transfer(Core *core, i32 slot, const Ask *ask, double least_s) {
    Request *request = &core->request[slot];
    Service *service = service_of(core, request);
    Table *decode = &service->tables[DECODE];
    i32 row = chosen_row(core, decode, request, least_s);
    Load load = reserved(core, decode, row, ask);
    service->tables[PREFILL].moving[request->place.load.row]++;
    decode->moving[row]++;
    request->phase = IN_TRANSFER;
    request->source = request->place;
    request->place = take(core, decode, row, slot, load);
    request->kv_deadline_s = core->now_s + core->settings.kv_wait_s;
    wait_in(core, slot, IN_MOVING);
    Entry *entry = write_start(core, W_TRANSFER, slot);
    entry->count = request->source.replica;
    entry->first = (double)request->source.epoch;
}

/* Send caches on, in turn: a decode replica without room for one that may go there is not given to those behind it. */
static void hand_over(Core *core, Service *service) {
    Table *prefill = &service->tables[PREFILL], *decode = &service->tables[DECODE];
    if (service->held.head == NONE) return;
    memset(decode->closed, 0, (size_t)decode->rows);
    for (i32 slot = service->held.head; slot != NONE;) {
        const Request *request = &core->request[slot];
        i32 following = request->queue_next;
        i64 left = 0;
        for (i64 row = 0; row < decode->rows; row++) left += decode->member[row] != NONE && !decode->closed[row];
        if (!has_room(decode) || !left) return;
        Ask ask = ask_of(service, request);
        i64 to_pools = spec_at(core, prefill, request->place.load.row)->to_pools;
        Sent sent = sent_from(core, prefill, request->place.load.row, request->asked.input_tokens);
        allow_rows(core, request, decode, &ask);
        for (i64 row = 0; row < decode->rows; row++) {
            int may = decode->able[row] && (!to_pools || (spec_at(core, decode, row)->pool_bit & to_pools) != 0);
            decode->able[row] = may && !decode->closed[row] && takes_cache(decode, row, &ask) && is_open(decode, row);
        }
        double least_s = decode_forecast(core, decode, &ask, &sent, core->now_s);
        if (least_s < INFINITY) {
            leave_queue(core, slot);
            transfer(core, slot, &ask, least_s);
        } else {
            allow_rows(core, request, decode, &ask);
            for (i64 row = 0; row < decode->rows; row++)
                if (decode->able[row] && (!to_pools || (spec_at(core, decode, row)->pool_bit & to_pools) != 0)) decode->closed[row] = 1;
        }
        slot = following;
    }
}

/* ---- ends */

/* Forget the request, which neither waits nor runs any more. */
static void end_request(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    if (request->live_prev == NONE) core->live_head = request->live_next;
    else core->request[request->live_prev].live_next = request->live_next;
    if (request->live_next == NONE) core->live_tail = request->live_prev;
    else core->request[request->live_next].live_prev = request->live_prev;
    core->live--;
    request->is_live = 0;
}

/* The answer is an error. The request's place is kept until the driver has carried it out. */
static Entry *reject(Core *core, i32 slot, Code code, i64 count, double second) {
    Entry *entry = write_entry(core, W_REJECT, core->request[slot].id, core->now_s);
    entry->attempt = code;
    entry->slot = slot;
    entry->count = count;
    entry->second = second;
    return entry;
}

static Entry *reject_and_end(Core *core, i32 slot, Code code, i64 count, double second) {
    Entry *entry = reject(core, slot, code, count, second);
    end_request(core, slot);
    return entry;
}

static void end_late(Core *core, i32 slot) {
    Service *service = service_of(core, &core->request[slot]);
    double drain = drain_s(core, service);
    reject_and_end(core, slot, is_any_up(service) ? C_QUEUE_TIMEOUT : C_NO_REPLICA, 0, drain);
}

static void write_cancel(Core *core, i32 slot, const Place *place) {
    const Request *request = &core->request[slot];
    Entry *entry = write_entry(core, W_CANCEL, request->id, core->now_s);
    entry->attempt = request->attempt;
    entry->replica = place->replica;
    entry->epoch = place->epoch;
    entry->slot = slot;
}

/* End its waiting and its running, whichever it does, wherever it does it. */
static void stop_request(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    Place source = request->source, place = request->place;
    leave_queue(core, slot);
    if (place.replica == NONE) return;
    leave(core, slot);
    if (source.replica != NONE) write_cancel(core, slot, &source);
    write_cancel(core, slot, &place);
}

static void write_retry(Core *core, i32 slot, int is_for_cache) {
    const Request *request = &core->request[slot];
    Entry *entry = write_entry(core, W_RETRY, request->id, core->now_s);
    entry->attempt = request->attempt;
    entry->count = is_for_cache;
    entry->slot = slot;
    wait_in(core, slot, IN_QUEUE);
}

/* Another attempt has failed: whether there may be one more. */
static int may_retry(Core *core, Request *request) {
    request->attempts_failed++;
    request->deadline_s = core->now_s + core->settings.queue_wait_s;
    return request->attempts_failed < core->settings.max_attempts;
}

static void add_failure(Core *core, Request *request, const Place *place) {
    ROOM(core, request->failures, request->failure_count, request->failure_room);
    request->failures[request->failure_count++] = (Failure){place->replica, place->epoch};
}

/* Caches that do not come are lost: they count against neither end, and are tried elsewhere. */
static void give_up_caches(Core *core, Service *service) {
    for (i32 slot = pop_expired(core, service, IN_MOVING); slot != NONE;) {
        Request *request = &core->request[slot];
        i32 following = request->queue_next;
        Place ends[2] = {request->source, request->place};
        stop_request(core, slot);
        for (int end = 0; end < 2; end++) add_failure(core, request, &ends[end]);
        if (may_retry(core, request)) write_retry(core, slot, 1);
        else {
            Entry *entry = reject_and_end(core, slot, C_CACHES_LATE, request->attempts_failed, NAN);
            entry->replica = ends[1].replica;
            entry->epoch = ends[0].replica;
        }
        slot = following;
    }
}

static void serve_queues(Core *core) {
    for (i64 m = 0; m < core->settings.models; m++) {
        Service *service = &core->service[m];
        give_up_caches(core, service);
        hand_over(core, service);
        i32 expired = pop_expired(core, service, IN_HELD);
        for (i32 slot = expired; slot != NONE; slot = core->request[slot].queue_next) {
            stop_request(core, slot); /* which makes room for prompts */
            end_late(core, slot);
        }
        if (expired != NONE) hand_over(core, service); /* they kept decode replicas from those behind them */
        serve(core, service);
        expired = pop_expired(core, service, IN_QUEUE);
        for (i32 slot = expired; slot != NONE; slot = core->request[slot].queue_next) end_late(core, slot);
        if (expired != NONE) serve(core, service); /* and these prefill replicas */
    }
}

static void ask_for_wake(Core *core) {
    double at_s = INFINITY;
    for (i64 m = 0; m < core->settings.models; m++)
        for (int which = IN_QUEUE; which <= IN_MOVING; which++) {
            Service *service = &core->service[m];
            if (queue_of(service, which)->head == NONE) continue;
            double deadline_s = next_deadline_s(core, service, which);
            if (deadline_s < at_s) at_s = deadline_s;
        }
    if (!(at_s < (core->wake_count ? core->wakes[0] : INFINITY))) return;
    ROOM(core, core->wakes, core->wake_count, core->wake_room);
    i64 at = core->wake_count++;
    for (; at > 0 && at_s < core->wakes[(at - 1) / 2]; at = (at - 1) / 2) core->wakes[at] = core->wakes[(at - 1) / 2];
    core->wakes[at] = at_s;
    write_entry(core, W_WAKE_AT, NONE, at_s);
}

static void pop_wake(Core *core) {
    double last = core->wakes[--core->wake_count];
    i64 at = 0;
    for (;;) {
        i64 child = 2 * at + 1;
        if (child >= core->wake_count) break;
        if (child + 1 < core->wake_count && core->wakes[child + 1] < core->wakes[child]) child++;
        if (!(core->wakes[child] < last)) break;
        core->wakes[at] = core->wakes[child];
        at = child;
    }
    if (core->wake_count) core->wakes[at] = last;
}

/* ---- events */

static void on_arrived(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    i64 most = request->asked.max_output_tokens;
    if (request->asked.model == NONE) {
        reject(core, slot, C_UNKNOWN_MODEL, 0, NAN);
        return;
    }
    Service *service = service_of(core, request);
    if (request->asked.input_tokens + (most == NONE ? 1 : most) > service->spec->context_tokens) {
        reject(core, slot, C_CONTEXT, service->spec->context_tokens, NAN);
        return;
    }
    if (!is_any_up(service)) {
        double expected_s = expected_in_s(core, request->asked.model);
        if (!(expected_s <= core->settings.queue_wait_s)) {
            reject(core, slot, C_NO_REPLICA, 0, expected_s == INFINITY ? core->settings.breaker_open_s : expected_s);
            return;
        }
    }
    request->order = ++core->arrivals_heard;
    request->deadline_s = core->now_s + core->settings.queue_wait_s;
    request->is_live = 1;
    request->live_prev = core->live_tail;
    request->live_next = NONE;
    if (core->live_tail == NONE) core->live_head = slot;
    else core->request[core->live_tail].live_next = slot;
    core->live_tail = slot;
    core->live++;
    wait_in(core, slot, IN_QUEUE);
    serve_queues(core);
    i64 others = service->queue.waiting - 1;
    if (others >= core->settings.queue_requests && leave_queue(core, slot))
        reject_and_end(core, slot, C_QUEUE_FULL, others, drain_s(core, service));
}

static void begin_answer(Core *core, Request *request) {
    request->first_token_s = core->now_s;
    prompt_done(table_of(core, request->place.replica), &request->place.load, core->now_s);
}

static void on_finished(Core *core, i32 slot, i64 output_tokens) {
    Request *request = &core->request[slot];
    Service *service = service_of(core, request);
    if (isnan(request->first_token_s)) begin_answer(core, request);
    if (output_tokens > 1) {
        double token_s = (core->now_s - request->first_token_s) / (double)(output_tokens - 1);
        token_time_observed(core, table_of(core, request->place.replica), &request->place.load, token_s);
    }
    leave(core, slot);
    service->mean_output_tokens += OUTPUT_WEIGHT * ((double)output_tokens - service->mean_output_tokens);
    if (!isnan(service->last_finish_s)) {
        double gap_s = core->now_s - service->last_finish_s;
        double known_s = isnan(service->finish_gap_s) ? gap_s : service->finish_gap_s;
        service->finish_gap_s = known_s + GAP_WEIGHT * (gap_s - known_s);
    }
    service->last_finish_s = core->now_s;
    end_request(core, slot);
}

static void on_gone(Core *core, i32 slot) {
    if (!core->request[slot].is_live) return;
    stop_request(core, slot);
    end_request(core, slot);
}

/* The engine refused it as its own fault. */
static void on_refused(Core *core, i32 slot) {
    i32 replica = core->request[slot].place.replica;
    leave(core, slot);
    Entry refused = core->log[core->step_at], *entry = reject_and_end(core, slot, C_ENGINE_REFUSED, refused.count, NAN);
    entry->replica = replica;
    entry->first = refused.first;
}

static void on_prefilled(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    request->deadline_s = core->now_s + core->settings.queue_wait_s;
    request->prefilled_s = core->now_s;
    prompt_held(core, table_of(core, request->place.replica), &request->place.load, core->now_s);
    request->phase = HELD;
    wait_in(core, slot, IN_HELD);
}

static void on_kv_arrived(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    end_transfer(core, slot);
    begun(table_of(core, request->place.replica), &request->place.load, core->now_s);
    request->phase = IN_DECODE;
    write_start(core, W_DECODE, slot);
}

static void retry_after_death(Core *core, i32 slot, i32 replica) {
    Request *request = &core->request[slot];
    if (may_retry(core, request)) write_retry(core, slot, 0);
    else reject_and_end(core, slot, C_ATTEMPTS, request->attempts_failed, NAN)->replica = replica;
}

static void died(Core *core, i32 replica) {
    Member *member = &core->member[replica];
    int side = side_of(core, replica);
    i32 first = member->aboard_head;
    for (i32 slot = first; slot != NONE;) { /* the list is kept through `aboard_next` while they leave */
        i32 following = core->request[slot].aboard_next[side];
        leave(core, slot);
        core->request[slot].aboard_next[side] = following;
        slot = following;
    }
    table_remove(core, table_of(core, replica), replica);
    member->is_up = 0;
    for (i32 slot = first; slot != NONE;) {
        Request *request = &core->request[slot];
        i32 following = request->aboard_next[side];
        request->deaths++;
        if (!isnan(request->first_token_s)) reject_and_end(core, slot, C_REPLICA_LOST, 0, NAN)->replica = replica;
        else if (request->deaths >= core->settings.quarantine_deaths) reject_and_end(core, slot, C_QUARANTINED, request->deaths, NAN);
        else retry_after_death(core, slot, replica);
        slot = following;
    }
}

static void on_up(Core *core, i32 replica, i64 epoch) {
    Member *member = &core->member[replica];
    if (member->is_known && epoch <= member->epoch) return;
    if (member->is_up) died(core, replica);
    member->is_known = member->is_up = 1;
    member->epoch = epoch;
    member->aboard_head = member->aboard_tail = NONE;
    table_add(core, table_of(core, replica), replica);
}

static void on_down(Core *core, i32 replica, i64 epoch, double back_in_s) {
    Member *member = &core->member[replica];
    if (!member->is_known || epoch < member->epoch) return;
    member->back_at_s = core->now_s + back_in_s;
    if (member->is_up && member->epoch == epoch) died(core, replica);
}

#define WAKE_SLACK_S 1e-3

static void on_woke(Core *core, double at_s) {
    while (core->wake_count && core->wakes[0] <= at_s + WAKE_SLACK_S) pop_wake(core);
}
