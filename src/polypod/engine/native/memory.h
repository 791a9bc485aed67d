/* Arrays that grow. Out of memory, the run ends with that status and never with a crash. */

static void *grown(Core *core, void *old, i64 count, size_t size) {
    void *place = realloc(old, (size_t)(count > 0 ? count : 1) * size);
    if (place == NULL) longjmp(core->no_memory, 1);
    return place;
}

static void *zeroed(Core *core, i64 count, size_t size) {
    void *place = calloc((size_t)(count > 0 ? count : 1), size);
    if (place == NULL) longjmp(core->no_memory, 1);
    return place;
}

/* Make room for one more. */
#define ROOM(core, array, count, room)                                                                                  \
    do {                                                                                                                \
        if ((count) == (room)) {                                                                                        \
            i64 more_ = (room) ? 2 * (room) : 64;                                                                       \
            (array) = grown((core), (array), more_, sizeof *(array));                                                   \
            (room) = more_;                                                                                             \
        }                                                                                                               \
    } while (0)

static Hashes *share_hashes(Hashes *hashes) {
    if (hashes != NULL) hashes->owners++;
    return hashes;
}

static void drop_hashes(Hashes *hashes) {
    if (hashes != NULL && --hashes->owners == 0) free(hashes);
}

static i32 new_request(Core *core) {
    if (core->request_free == NONE) {
        i32 room = core->request_room ? 2 * core->request_room : 256;
        core->request = grown(core, core->request, room, sizeof *core->request);
        for (i32 slot = room - 1; slot >= core->request_room; slot--) {
            core->request[slot].is_live = 0;
            core->request[slot].id = 0;
            core->request[slot].hashes = NULL;
            core->request[slot].failures = NULL;
            core->request[slot].live_next = core->request_free;
            core->request_free = slot;
        }
        core->request_room = room;
    }
    i32 slot = core->request_free;
    core->request_free = core->request[slot].live_next;
    return slot;
}

static void free_request(Core *core, i32 slot) {
    drop_hashes(core->request[slot].hashes);
    core->request[slot].hashes = NULL;
    free(core->request[slot].failures);
    core->request[slot].failures = NULL;
    core->request[slot].id = 0;
    core->request[slot].is_live = 0;
    core->request[slot].live_next = core->request_free;
    core->request_free = slot;
}

static i32 new_sequence(Core *core) {
    if (core->sequence_free == NONE) {
        i32 room = core->sequence_room ? 2 * core->sequence_room : 256;
        core->sequence = grown(core, core->sequence, room, sizeof *core->sequence);
        for (i32 slot = room - 1; slot >= core->sequence_room; slot--) {
            core->sequence[slot].hashes = NULL;
            core->sequence[slot].next = core->sequence_free;
            core->sequence_free = slot;
        }
        core->sequence_room = room;
    }
    i32 slot = core->sequence_free;
    core->sequence_free = core->sequence[slot].next;
    return slot;
}

static void free_sequence(Core *core, i32 slot) {
    i32 request = core->sequence[slot].request;
    if (request != NONE) core->request[request].sequence = NONE;
    drop_hashes(core->sequence[slot].hashes);
    core->sequence[slot].hashes = NULL;
    core->sequence[slot].state = S_OUT;
    core->sequence[slot].request = NONE;
    core->sequence[slot].ticket = NONE;
    core->sequence[slot].next = core->sequence_free;
    core->sequence_free = slot;
}
