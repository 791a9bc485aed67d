/* What the policy decides of requests and replicas: policy/node.py, placement.py and admission.py, action for action. */

/* ---- the log: an event and its actions, or nothing where it is not kept */

static Entry *write_entry(Core *core, i64 word, i64 request, double at_s) {
    ROOM(core, core->log, core->log_count, core->log_room);
    Entry *entry = &core->log[core->log_count++];
    *entry = (Entry){.word = word, .request = request, .attempt = 0, .replica = NONE, .epoch = 0, .count = 0, .at_s = at_s};
    return entry;
}

static Table *table_of(Core *core, const Request *request) { return &core->service[request->asked.model].table; }

/* ---- the waiting */

static int comes_before(const Request *left, const Request *right) {
    if (left->asked.priority != right->asked.priority) return left->asked.priority > right->asked.priority;
    return left->order < right->order;
}

static int deadline_before(const Deadline *left, const Deadline *right) {
    if (left->at_s != right->at_s) return left->at_s < right->at_s;
    return left->low != right->low ? left->low < right->low : left->order < right->order;
}

static void add_deadline(Core *core, Service *service, i32 slot) {
    const Request *request = &core->request[slot];
    Deadline one = {request->deadline_s, -request->asked.priority, request->order, slot};
    ROOM(core, service->deadlines, service->deadline_count, service->deadline_room);
    i64 at = service->deadline_count++;
    while (at > 0 && deadline_before(&one, &service->deadlines[(at - 1) / 2])) {
        service->deadlines[at] = service->deadlines[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    service->deadlines[at] = one;
}

static void pop_deadline(Service *service) {
    Deadline last = service->deadlines[--service->deadline_count];
    i64 at = 0;
    for (;;) {
        i64 child = 2 * at + 1;
        if (child >= service->deadline_count) break;
        if (child + 1 < service->deadline_count && deadline_before(&service->deadlines[child + 1], &service->deadlines[child])) child++;
        if (!deadline_before(&service->deadlines[child], &last)) break;
        service->deadlines[at] = service->deadlines[child];
        at = child;
    }
    if (service->deadline_count) service->deadlines[at] = last;
}

static void wait_in_queue(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    Service *service = &core->service[request->asked.model];
    i32 before = service->queue_tail;
    while (before != NONE && comes_before(request, &core->request[before])) before = core->request[before].queue_prev;
    i32 after = before == NONE ? service->queue_head : core->request[before].queue_next;
    request->queue_prev = before;
    request->queue_next = after;
    if (before == NONE) service->queue_head = slot;
    else core->request[before].queue_next = slot;
    if (after == NONE) service->queue_tail = slot;
    else core->request[after].queue_prev = slot;
    request->waits = 1;
    service->waiting++;
    add_deadline(core, service, slot);
}

static int leave_queue(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    if (!request->waits) return 0;
    Service *service = &core->service[request->asked.model];
    if (request->queue_prev == NONE) service->queue_head = request->queue_next;
    else core->request[request->queue_prev].queue_next = request->queue_next;
    if (request->queue_next == NONE) service->queue_tail = request->queue_prev;
    else core->request[request->queue_next].queue_prev = request->queue_prev;
    request->waits = 0;
    service->waiting--;
    return 1;
}

static double next_deadline_s(Core *core, Service *service) {
    while (service->deadline_count) {
        const Deadline *first = &service->deadlines[0];
        const Request *request = &core->request[first->request];
        if (request->is_live && request->waits && request->order == first->order && request->deadline_s == first->at_s) return first->at_s;
        pop_deadline(service);
    }
    return INFINITY;
}

static double drain_s(const Core *core, const Service *service) {
    if (isnan(service->finish_gap_s)) return MIN_RETRY_AFTER_S;
    double drain = (double)service->waiting * service->finish_gap_s;
    if (drain > core->settings.queue_wait_s) drain = core->settings.queue_wait_s;
    return drain > MIN_RETRY_AFTER_S ? drain : MIN_RETRY_AFTER_S;
}

/* ---- places */

static void come_aboard(Core *core, Member *member, i32 slot) {
    Request *request = &core->request[slot];
    request->aboard_prev = member->aboard_tail;
    request->aboard_next = NONE;
    if (member->aboard_tail == NONE) member->aboard_head = slot;
    else core->request[member->aboard_tail].aboard_next = slot;
    member->aboard_tail = slot;
}

static void go_ashore(Core *core, Member *member, i32 slot) {
    Request *request = &core->request[slot];
    if (request->aboard_prev == NONE) member->aboard_head = request->aboard_next;
    else core->request[request->aboard_prev].aboard_next = request->aboard_next;
    if (request->aboard_next == NONE) member->aboard_tail = request->aboard_prev;
    else core->request[request->aboard_next].aboard_prev = request->aboard_prev;
}

static int place(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    Service *service = &core->service[request->asked.model];
    Table *table = &service->table;
    Ask ask = ask_of(service, &request->asked);
    double least_s = forecast(core, table, &ask, core->now_s, NULL);
    if (least_s == INFINITY) return 0;
    i32 row = chosen_row(core, table, request, least_s);
    dispatched(core, table, row, &ask, request, core->now_s);
    request->attempt++;
    request->placed_s = core->now_s;
    request->replica = table->member[row];
    request->epoch = (i32)core->member[request->replica].epoch;
    come_aboard(core, &core->member[request->replica], slot);
    Entry *entry = write_entry(core, W_DISPATCH, request->id, core->now_s);
    entry->attempt = request->attempt;
    entry->replica = request->replica;
    entry->epoch = request->epoch;
    entry->first = request->first_s;
    entry->second = request->token_s;
    entry->count = slot;
    return 1;
}

/* Take the request off its replica. */
static void leave(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    Table *table = table_of(core, request);
    i64 row = core->member[request->replica].row;
    if (isnan(request->first_token_s)) prompt_given_up(table, row, request, core->now_s);
    left_row(core, table, row, request);
    go_ashore(core, &core->member[request->replica], slot);
    request->replica = NONE;
}

static void serve(Core *core, Service *service) {
    if (service->queue_head == NONE || !has_room(&service->table)) return;
    i64 refused_tokens = INT64_MAX;
    i32 slot = service->queue_head;
    while (slot != NONE) {
        i32 following = core->request[slot].queue_next;
        i64 need_tokens = ask_of(service, &core->request[slot].asked).need_tokens;
        if (need_tokens < refused_tokens) {
            if (place(core, slot)) {
                leave_queue(core, slot);
                if (service->queue_head == NONE || !has_room(&service->table)) return;
            } else refused_tokens = need_tokens;
        }
        slot = following;
    }
}

/* ---- ends */

/* Forget the request, which neither waits nor runs any more. */
static void end_request(Core *core, i32 slot) {
    Request *request = &core->request[slot];
    if (request->is_charged) core->charged--;
    if (request->failures) core->with_failures--;
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
    entry->epoch = slot;
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
    Service *service = &core->service[core->request[slot].asked.model];
    double drain = drain_s(core, service);
    reject_and_end(core, slot, service->table.up_rows ? C_QUEUE_TIMEOUT : C_NO_REPLICA, 0, drain);
}

static void serve_queues(Core *core) {
    for (i64 m = 0; m < core->settings.models; m++) {
        Service *service = &core->service[m];
        serve(core, service);
        i32 first = NONE, last = NONE; /* all of them leave before the first is answered, chained by `queue_next` */
        while (next_deadline_s(core, service) <= core->now_s) {
            i32 slot = service->deadlines[0].request;
            pop_deadline(service);
            leave_queue(core, slot);
            core->request[slot].queue_next = NONE;
            if (first == NONE) first = slot;
            else core->request[last].queue_next = slot;
            last = slot;
        }
        for (i32 slot = first; slot != NONE; slot = core->request[slot].queue_next) end_late(core, slot);
    }
}

static void ask_for_wake(Core *core) {
    double at_s = INFINITY;
    for (i64 m = 0; m < core->settings.models; m++) {
        Service *service = &core->service[m];
        if (service->queue_head == NONE) continue;
        double deadline_s = next_deadline_s(core, service);
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
    Service *service = &core->service[request->asked.model];
    if (request->asked.input_tokens + (most == NONE ? 1 : most) > service->spec->context_tokens) {
        reject(core, slot, C_CONTEXT, service->spec->context_tokens, NAN);
        return;
    }
    if (!service->table.up_rows) {
        reject(core, slot, C_NO_REPLICA, 0, core->settings.breaker_open_s);
        return;
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
    wait_in_queue(core, slot);
    serve_queues(core);
    i64 others = service->waiting - 1;
    if (others >= core->settings.queue_requests && leave_queue(core, slot))
        reject_and_end(core, slot, C_QUEUE_FULL, others, drain_s(core, service));
}

static void begin_answer(Core *core, Request *request) {
    request->first_token_s = core->now_s;
    prompt_done(table_of(core, request), core->member[request->replica].row, request, core->now_s);
}

static void on_finished(Core *core, i32 slot, i64 output_tokens) {
    Request *request = &core->request[slot];
    Service *service = &core->service[request->asked.model];
    if (isnan(request->first_token_s)) begin_answer(core, request);
    i64 row = core->member[request->replica].row;
    if (output_tokens > 1) {
        double token_s = (core->now_s - request->first_token_s) / (double)(output_tokens - 1);
        token_time_observed(core, &service->table, row, request, token_s);
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
    Request *request = &core->request[slot];
    i32 replica = request->replica;
    if (!request->is_live) return;
    leave_queue(core, slot);
    if (replica != NONE) {
        leave(core, slot);
        Entry *entry = write_entry(core, W_CANCEL, request->id, core->now_s);
        entry->attempt = request->attempt;
        entry->replica = replica;
        entry->epoch = request->epoch;
        entry->count = slot;
    }
    end_request(core, slot);
}

/* The engine refused it as its own fault. */
static void on_refused(Core *core, i32 slot) {
    i32 replica = core->request[slot].replica;
    leave(core, slot);
    Entry refused = core->log[core->step_at], *entry = reject_and_end(core, slot, C_ENGINE_REFUSED, refused.count, NAN);
    entry->replica = replica;
    entry->first = refused.first;
}

static void retry_after_death(Core *core, i32 slot, i32 replica) {
    Request *request = &core->request[slot];
    request->attempts_failed++;
    request->deadline_s = core->now_s + core->settings.queue_wait_s;
    if (request->attempts_failed >= core->settings.max_attempts) {
        reject_and_end(core, slot, C_ATTEMPTS, request->attempts_failed, NAN)->replica = replica;
        return;
    }
    Entry *entry = write_entry(core, W_RETRY, request->id, core->now_s);
    entry->attempt = request->attempt;
    entry->count = slot;
    wait_in_queue(core, slot);
}

static void died(Core *core, i32 replica) {
    Member *member = &core->member[replica];
    Table *table = &core->service[core->replicas[replica].model].table;
    i32 first = member->aboard_head;
    for (i32 slot = first; slot != NONE;) { /* the list is kept through `aboard_next` while they leave */
        i32 following = core->request[slot].aboard_next;
        leave(core, slot);
        core->request[slot].aboard_next = following;
        slot = following;
    }
    table_remove(core, table, replica);
    member->is_up = 0;
    for (i32 slot = first; slot != NONE;) {
        Request *request = &core->request[slot];
        i32 following = request->aboard_next;
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
    table_add(core, &core->service[core->replicas[replica].model].table, replica);
}

static void on_down(Core *core, i32 replica, i64 epoch) {
    Member *member = &core->member[replica];
    if (member->is_up && member->epoch == epoch) died(core, replica);
}

#define WAKE_SLACK_S 1e-3

static void on_woke(Core *core, double at_s) {
    while (core->wake_count && core->wakes[0] <= at_s + WAKE_SLACK_S) pop_wake(core);
}
