"""The scheduler's loops over arrays, in plain Python; `job_kernels` compiles this very text, and tests hold the two equal.

Placing. A gang goes to the nearest tier that holds it: one node, else one rack, one island, one kind. Of the domains of that tier which hold it,
the one with the least room takes it, the first of equals; inside, whole children are filled, the largest first, and the rest goes
where it leaves the least over. That is the fewest children a gang can span.

Backfilling. Of the waiting jobs, in order, the first few that cannot start have a time and a place kept: the earliest at which they
fit if every run lasts as long as it may (EASY with one of them, conservative with all; Mu'alem and Feitelson, IEEE TPDS 12(6), 2001,
https://doi.org/10.1109/71.932708). `slack_PN` is what each of them leaves of every node at the moment it starts. A later job may start
where it fits in what is free now and in the slack of every reservation that starts before it must end: so none is ever delayed.
"""

import math

from polypod.policy.job_state import (
    CARDS,
    CHILD,
    CHILD_END,
    END,
    FIRST_CARD,
    FIRST_KIND,
    FREE,
    HAS_QUOTA,
    HOLD,
    HUGE,
    IS_BACKFILLING,
    IS_BLOCKED,
    IS_HIT,
    IS_HOLDING,
    KIND,
    KIND_OF,
    LIMIT,
    LOST,
    MOST,
    MOST_RESERVED,
    NO_QUOTA,
    NOMINAL,
    NUM_FREE,
    NUM_OUT,
    NUM_OUT_CARDS,
    NUM_PICKED,
    NUM_RESERVED,
    NUM_RUNNING,
    NUM_WAITING,
    PLACE,
    PLEDGED,
    PRIORITY,
    SEQUENCE,
    SHAPE,
    START,
    STEPS,
    TENANT,
    USED,
    WITHIN,
    State,
)

BUSY = 0
TEST = 1
ALL_HELD = 2
BORROWING_HELD = 1
WAITS, STARTED, SWEEP = 0, 1, 2

# ---- what can be asked for (the entry points)


def submit(s: State, row: int, now_s: float) -> int:
    """Put a job into the queue, and start it if it can start; SWEEP where it comes before a job with a reservation, or one is overdue."""
    s.tally[NUM_OUT] = 0
    s.tally[NUM_OUT_CARDS] = 0
    place = _place_in_queue(s, row)
    count = s.tally[NUM_WAITING]
    for at in range(count, place, -1):
        s.wait_W[at] = s.wait_W[at - 1]
    s.wait_W[place] = row
    s.tally[NUM_WAITING] = count + 1
    for p in range(s.tally[NUM_RESERVED]):
        if s.reserved_PX[p, 0] < now_s or comes_before(s, row, s.reserved_P[p]):
            return SWEEP
    if _must_wait_its_turn(s, place):
        return WAITS
    if consider(s, row, now_s):
        withdraw(s, row)
        return STARTED
    return WAITS


def sweep_afresh(s: State, now_s: float) -> int:
    """Forget every reservation, then `sweep`."""
    _forget_reservations(s)
    return sweep(s, now_s)


def sweep(s: State, now_s: float) -> int:
    """Go through the queue in order, start what can start, keep places for the first that cannot; return how many started.

    Reservations there are stay, and only move forward in time; those overdue, for runs that last longer than they may, are made again.
    """
    if s.tally[NUM_RESERVED] > 0 and s.reserved_PX[0, 0] < now_s:
        _forget_reservations(s)
    tally = s.tally
    tally[NUM_OUT] = 0
    tally[NUM_OUT_CARDS] = 0
    _forget_holds(s)
    _forget_best(s)
    tally[IS_BLOCKED] = 0
    count = tally[NUM_WAITING]
    kept = 0
    at = 0
    while at < count and not _is_over(s):
        passed = _hopeless(s, at, now_s)
        for _ in range(passed):
            s.wait_W[kept] = s.wait_W[at]
            kept += 1
            at += 1
        if at < count:
            row = s.wait_W[at]
            at += 1
            if not consider(s, row, now_s):
                s.wait_W[kept] = row
                kept += 1
    while at < count:
        s.wait_W[kept] = s.wait_W[at]
        kept += 1
        at += 1
    tally[NUM_WAITING] = kept
    return int(tally[NUM_OUT])


def _hopeless(s: State, at: int, now_s: float) -> int:
    """How many jobs from a place in the queue on are larger than what is known not to fit. No calls in here: it is the innermost loop."""
    count = s.tally[NUM_WAITING]
    reserved = s.tally[NUM_RESERVED]
    first = at
    if reserved < s.tally[MOST_RESERVED]:
        return 0
    while at < count:
        row = s.wait_W[at]
        end_s = now_s + s.time_JX[row, LIMIT]
        before = 0
        while before < reserved and s.reserved_PX[before, 0] < end_s:
            before += 1
        is_free = s.quota_TKX[s.job_JX[row, TENANT], 0, NOMINAL] == NO_QUOTA
        is_small = s.job_JX[row, CARDS] <= s.best_XP[s.job_JX[row, SHAPE], before]
        if is_small or s.job_JX[row, PLACE] >= 0 or not is_free:
            break
        at += 1
    if at > first:
        s.tally[IS_BLOCKED] = 1
    s.tally[STEPS] += at - first
    return int(at - first)


def release(s: State, row: int) -> None:
    """Free a running job's cards."""
    end_s = s.time_JX[row, END]
    card = s.job_JX[row, FIRST_CARD]
    while card >= 0:
        s.owner_C[card] = FREE
        s.tally[NUM_FREE] += 1
        _shift(s, s.node_C[card], 1, end_s)
        card = s.next_C[card]
    s.job_JX[row, FIRST_CARD] = -1
    _charge(s, row, USED, -s.job_JX[row, CARDS])
    count = s.tally[NUM_RUNNING]
    at = 0
    while s.run_R[at] != row:
        at += 1
    for later in range(at, count - 1):
        s.run_R[later] = s.run_R[later + 1]
    s.tally[NUM_RUNNING] = count - 1


def withdraw(s: State, row: int) -> None:
    """Take a waiting job out of the queue, and its reservation with it."""
    if s.job_JX[row, PLACE] >= 0:
        _unreserve(s, s.job_JX[row, PLACE])
    count = s.tally[NUM_WAITING]
    at = 0
    while s.wait_W[at] != row:
        at += 1
    for later in range(at, count - 1):
        s.wait_W[later] = s.wait_W[later + 1]
    s.tally[NUM_WAITING] = count - 1


def force(s: State, row: int, allowed: int, now_s: float) -> bool:
    """Start a waiting job on what is free, whatever is reserved; False where it does not fit."""
    s.tally[NUM_OUT] = 0
    s.tally[NUM_OUT_CARDS] = 0
    _copy(s, 0, BUSY)
    _measure(s, BUSY, s.job_JX[row, SHAPE])
    if not _place(s, row, allowed):
        return False
    withdraw(s, row)
    _allocate(s, row, now_s)
    return True


def evict(s: State, row: int, allowed: int, count: int, least_cards: int) -> int:
    """Of the first `count` of `victim_R`, in order, leave those that must stop so that the job fits; return how many.

    Runs are added until it fits and at least `least_cards` cards come free; then, the last added first, those are left out that are
    not needed. 0 where it does not fit without all of them either.
    """
    shape = s.job_JX[row, SHAPE]
    _copy(s, 0, BUSY)
    _measure(s, BUSY, shape)
    s.tally[IS_HIT] = int(_is_room(s, row, allowed))
    freed = 0
    used = 0
    while used < count and not (freed >= least_cards and s.tally[IS_HIT] == 1):
        freed += s.job_JX[s.victim_R[used], CARDS]
        _release_into(s, s.victim_R[used], row, allowed)
        used += 1
    if freed < least_cards or s.tally[IS_HIT] == 0:
        return 0
    return _spared(s, row, allowed, used, freed - least_cards)


def lose(s: State, card: int) -> None:
    """A free card is gone."""
    s.owner_C[card] = LOST
    s.tally[NUM_FREE] -= 1
    _shift(s, s.node_C[card], -1, math.inf)


def restore(s: State, card: int) -> None:
    """A lost card is there again, and free."""
    s.owner_C[card] = FREE
    s.tally[NUM_FREE] += 1
    _shift(s, s.node_C[card], 1, math.inf)


def largest(s: State, shape: int) -> int:
    """The most cards that a gang of this shape could have if every card were there and free."""
    for node in range(s.first_L[1]):
        s.work_YN[TEST, node] = s.tree_DX[node, CHILD_END] - s.tree_DX[node, CHILD]
    _measure(s, TEST, shape)
    return _most(s, shape)


# ---- the order of the queue


def comes_before(s: State, row: int, other: int) -> bool:
    """Whether the queue has `row` before `other`."""
    mine, its = s.job_JX[row], s.job_JX[other]
    if mine[PRIORITY] != its[PRIORITY]:
        return bool(mine[PRIORITY] > its[PRIORITY])
    my_share, its_share = s.fair_T[mine[TENANT]], s.fair_T[its[TENANT]]
    if my_share != its_share:
        return bool(my_share > its_share)
    return bool(mine[SEQUENCE] < its[SEQUENCE])


def _place_in_queue(s: State, row: int) -> int:
    low = 0
    high = s.tally[NUM_WAITING]
    while low < high:
        middle = (low + high) // 2
        if comes_before(s, row, s.wait_W[middle]):
            high = middle
        else:
            low = middle + 1
    return low


def _must_wait_its_turn(s: State, place: int) -> bool:
    """Without backfill nobody starts behind a job that waits for cards."""
    return bool(place > 0 and s.tally[IS_BACKFILLING] == 0 and s.tally[IS_BLOCKED] == 1)


def _is_over(s: State) -> bool:
    """Whether nothing later in the queue can start or be reserved."""
    if s.tally[IS_BACKFILLING] == 0 and s.tally[IS_BLOCKED] == 1:
        return True
    return bool(s.tally[NUM_FREE] == 0 and s.tally[NUM_RESERVED] >= s.tally[MOST_RESERVED])


# ---- one job


def consider(s: State, row: int, now_s: float) -> bool:
    """Start the job if it can; else keep a place for it where it is among the first that wait."""
    own = s.job_JX[row, PLACE]
    if own >= 0:
        _unreserve(s, own)
    if own >= 0 or s.tally[NUM_RESERVED] < s.tally[MOST_RESERVED]:
        return _reserve(s, row, now_s)
    return _backfill(s, row, now_s)


def _reserve(s: State, row: int, now_s: float) -> bool:
    allowed = allowed_kinds(s, row, 1)
    if allowed == 0:
        _hold(s, row)
        return False
    is_now, at_s = earliest(s, row, allowed, now_s)
    if is_now:
        _allocate(s, row, now_s)
        return True
    s.tally[IS_BLOCKED] = 1
    if at_s < math.inf:
        _add_reservation(s, row, at_s)
    return False


def _backfill(s: State, row: int, now_s: float) -> bool:
    shape = s.job_JX[row, SHAPE]
    cards = s.job_JX[row, CARDS]
    end_s = now_s + s.time_JX[row, LIMIT]
    before = 0
    while before < s.tally[NUM_RESERVED] and s.reserved_PX[before, 0] < end_s:
        before += 1
    if s.tally[HAS_QUOTA] == 0 and cards > s.best_XP[shape, before]:
        return False
    allowed = allowed_kinds(s, row, min(1, before))
    if allowed == 0:
        _hold(s, row)
        return False
    if cards > s.best_XP[shape, before]:
        s.tally[IS_BLOCKED] = 1
        return False
    _copy(s, before, TEST)
    _measure(s, TEST, shape)
    if not _place(s, row, allowed):
        s.best_XP[shape, before] = _most(s, shape)
        s.tally[IS_BLOCKED] = 1
        return False
    _allocate(s, row, now_s)
    return True


def earliest(s: State, row: int, allowed: int, now_s: float) -> tuple[bool, float]:
    """Whether the job can start now, and else the earliest time at which it fits; its nodes are then picked. Infinite: never.

    Runs are taken to last as long as they may. Every reservation but the job's own is respected.
    """
    _copy(s, 0, BUSY)
    for p in range(s.tally[NUM_RESERVED]):
        if s.reserved_PX[p, 0] <= now_s < s.reserved_PX[p, 1]:
            _add_row(s, p, -1)
    _look_again(s, row, allowed)
    if _fits_from(s, row, allowed, now_s):
        return True, now_s
    run = 0
    at_s = now_s
    while at_s < math.inf:
        edge_s = _next_edge(s, at_s)
        before = run
        run = _release_until(s, run, (at_s, edge_s), row, allowed)
        end_s = s.time_JX[s.run_R[run - 1], END] if run > before else math.inf
        at_s = max(at_s, min(end_s, edge_s))
        if at_s == edge_s:
            _turn_reservations(s, at_s)
            _look_again(s, row, allowed)
        if at_s < math.inf and _fits_from(s, row, allowed, at_s):
            break
    return False, at_s


def _release_until(s: State, run: int, span_s: tuple[float, float], row: int, allowed: int) -> int:
    """Release runs in the order they end, from the one of this number on, until the job has room, and all that end with the last of them;
    none that ends after the span. Those that should have ended before the span count as ending at its begin. The number of the first that is left."""
    until_s = -math.inf
    while run < s.tally[NUM_RUNNING]:
        end_s = max(s.time_JX[s.run_R[run], END], span_s[0])
        if end_s > span_s[1] or (s.tally[IS_HIT] == 1 and -math.inf < until_s < end_s):
            break
        _release_into(s, s.run_R[run], row, allowed)
        until_s = end_s
        run += 1
    return run


def _look_again(s: State, row: int, allowed: int) -> None:
    _measure(s, BUSY, s.job_JX[row, SHAPE])
    s.tally[IS_HIT] = int(_is_room(s, row, allowed))


def _next_edge(s: State, at_s: float) -> float:
    """When a reservation next starts or ends, after a time."""
    edge_s = math.inf
    for p in range(s.tally[NUM_RESERVED]):
        for edge in range(2):
            if at_s < s.reserved_PX[p, edge] < edge_s:
                edge_s = s.reserved_PX[p, edge]
    return float(edge_s)


def _turn_reservations(s: State, at_s: float) -> None:
    """Take what reservations that start now take, and give back what those that end now give."""
    for p in range(s.tally[NUM_RESERVED]):
        if s.reserved_PX[p, 0] == at_s:
            _add_row(s, p, -1)
        if s.reserved_PX[p, 1] == at_s:
            _add_row(s, p, 1)


def _fits_from(s: State, row: int, allowed: int, at_s: float) -> bool:
    """Whether the job fits from a time on, beside reservations that start while it runs; its nodes are then picked."""
    if s.tally[IS_HIT] == 0:
        return False
    end_s = at_s + s.time_JX[row, LIMIT]
    work = s.work_YN
    for node in range(work.shape[1]):
        work[TEST, node] = work[BUSY, node]
    for p in range(s.tally[NUM_RESERVED]):
        if at_s < s.reserved_PX[p, 0] < end_s:
            for node in range(work.shape[1]):
                work[TEST, node] = min(work[TEST, node], s.slack_PN[p, node])
    _measure(s, TEST, s.job_JX[row, SHAPE])
    if _place(s, row, allowed):
        return True
    _measure(s, BUSY, s.job_JX[row, SHAPE])
    return False


def _release_into(s: State, run: int, row: int, allowed: int) -> None:
    """Count a run's cards as free in the row looked at, and note when the job's tier has room for it."""
    shape = s.job_JX[row, SHAPE]
    within = s.shape_XX[shape, WITHIN]
    card = s.job_JX[run, FIRST_CARD]
    while card >= 0:
        node = s.node_C[card]
        free = s.work_YN[BUSY, node]
        before = s.whole_XF[shape, free] if free > 0 else 0
        while card >= 0 and s.node_C[card] == node:
            free += 1
            card = s.next_C[card]
        s.work_YN[BUSY, node] = free
        more = (s.whole_XF[shape, free] if free > 0 else 0) - before
        if more > 0:
            for level in range(4):
                s.room_D[s.above_NL[node, level]] += more
            has_room = s.room_D[s.above_NL[node, within]] >= s.job_JX[row, CARDS]
            if has_room and (allowed >> s.tree_DX[node, KIND_OF]) & 1:
                s.tally[IS_HIT] = 1


def _spared(s: State, row: int, allowed: int, used: int, to_spare: int) -> int:
    """Take back the victims that need not stop, the last added first; put those that must first in `victim_R`."""
    shape = s.job_JX[row, SHAPE]
    for at in range(used - 1, -1, -1):
        victim = s.victim_R[at]
        _count_cards(s, victim, -1)
        _measure(s, BUSY, shape)
        if s.job_JX[victim, CARDS] <= to_spare and _is_room(s, row, allowed):
            to_spare -= s.job_JX[victim, CARDS]
            s.victim_R[at] = -1
        else:
            _count_cards(s, victim, 1)
    kept = 0
    for at in range(used):
        if s.victim_R[at] >= 0:
            s.victim_R[kept] = s.victim_R[at]
            kept += 1
    return kept


def _count_cards(s: State, run: int, by: int) -> None:
    card = s.job_JX[run, FIRST_CARD]
    while card >= 0:
        s.work_YN[BUSY, s.node_C[card]] += by
        card = s.next_C[card]


# ---- quotas


def allowed_kinds(s: State, row: int, pledges: int) -> int:
    """The kinds the job takes and its tenant may have more of, as bits; 0 where its quota holds it.

    What reservations will take counts `pledges` times: 1, or not at all.
    """
    shape = s.job_JX[row, SHAPE]
    bits = 0
    at = FIRST_KIND
    while s.shape_XX[shape, at] >= 0:
        kind = s.shape_XX[shape, at]
        if s.tally[HAS_QUOTA] == 0 or _is_within_quota(s, row, kind, pledges):
            bits |= 1 << kind
        at += 1
    return bits


def _is_within_quota(s: State, row: int, kind: int, pledges: int) -> bool:
    tenant = s.job_JX[row, TENANT]
    cards = s.job_JX[row, CARDS]
    mine = s.quota_TKX[tenant, kind]
    if mine[NOMINAL] == NO_QUOTA:
        return True
    ours = s.cohort_HKX[s.cohort_T[tenant], kind]
    more = cards + pledges * mine[PLEDGED]
    if mine[USED] + more > mine[MOST] or mine[HOLD] == ALL_HELD:
        return False
    if mine[HOLD] == BORROWING_HELD and mine[USED] + more > mine[NOMINAL]:
        return False
    our_more = cards + pledges * ours[PLEDGED]
    return bool(ours[USED] + our_more <= ours[NOMINAL])


def _hold(s: State, row: int) -> None:
    """A job that its quota holds is not passed by later ones of its tenant that would take the same: its own, or borrowed."""
    shape = s.job_JX[row, SHAPE]
    s.tally[IS_HOLDING] = 1
    at = FIRST_KIND
    while s.shape_XX[shape, at] >= 0:
        mine = s.quota_TKX[s.job_JX[row, TENANT], s.shape_XX[shape, at]]
        level = ALL_HELD if s.job_JX[row, CARDS] <= mine[NOMINAL] else BORROWING_HELD
        mine[HOLD] = max(mine[HOLD], level)
        at += 1


def _charge(s: State, row: int, column: int, cards: int) -> None:
    """Count a job's cards, of the kind it has, for its tenant and its cohort."""
    tenant = s.job_JX[row, TENANT]
    kind = s.job_JX[row, KIND]
    s.quota_TKX[tenant, kind, column] += cards
    if s.quota_TKX[tenant, kind, NOMINAL] != NO_QUOTA:
        s.cohort_HKX[s.cohort_T[tenant], kind, column] += cards


def _forget_holds(s: State) -> None:
    if s.tally[IS_HOLDING] == 1:
        s.quota_TKX[:, :, HOLD] = 0
        s.tally[IS_HOLDING] = 0


# ---- reservations


def _add_reservation(s: State, row: int, at_s: float) -> None:
    """Keep the picked nodes for the job from a time on, and take them off what others may use."""
    end_s = at_s + s.time_JX[row, LIMIT]
    count = s.tally[NUM_RESERVED]
    place = 0
    while place < count and s.reserved_PX[place, 0] <= at_s:
        place += 1
    for p in range(count, place, -1):
        _move_reservation(s, p - 1, p)
    s.reserved_P[place] = row
    s.job_JX[row, PLACE] = place
    s.reserved_PX[place, 0] = at_s
    s.reserved_PX[place, 1] = end_s
    for node in range(s.hold_PN.shape[1]):
        s.hold_PN[place, node] = 0
        s.slack_PN[place, node] = s.work_YN[BUSY, node]
    s.tally[NUM_RESERVED] = count + 1
    for at in range(s.tally[NUM_PICKED]):
        node, cards = s.picked_NX[at, 0], s.picked_NX[at, 1]
        s.hold_PN[place, node] = cards
        s.job_JX[row, KIND] = s.tree_DX[node, KIND_OF]
        for p in range(count + 1):
            if p == place or at_s <= s.reserved_PX[p, 0] < end_s:
                s.slack_PN[p, node] -= cards
    _charge(s, row, PLEDGED, s.job_JX[row, CARDS])
    _rebuild(s)


def _unreserve(s: State, place: int) -> None:
    """Give up a reservation."""
    row = s.reserved_P[place]
    at_s, end_s = s.reserved_PX[place, 0], s.reserved_PX[place, 1]
    count = s.tally[NUM_RESERVED]
    for p in range(count):
        if p != place and at_s <= s.reserved_PX[p, 0] < end_s:
            for node in range(s.hold_PN.shape[1]):
                s.slack_PN[p, node] += s.hold_PN[place, node]
    _charge(s, row, PLEDGED, -s.job_JX[row, CARDS])
    s.job_JX[row, PLACE] = -1
    for p in range(place, count - 1):
        _move_reservation(s, p + 1, p)
    s.tally[NUM_RESERVED] = count - 1
    _rebuild(s)


def _move_reservation(s: State, source: int, target: int) -> None:
    s.reserved_P[target] = s.reserved_P[source]
    s.job_JX[s.reserved_P[target], PLACE] = target
    s.reserved_PX[target, 0] = s.reserved_PX[source, 0]
    s.reserved_PX[target, 1] = s.reserved_PX[source, 1]
    for node in range(s.hold_PN.shape[1]):
        s.hold_PN[target, node] = s.hold_PN[source, node]
        s.slack_PN[target, node] = s.slack_PN[source, node]


def _forget_reservations(s: State) -> None:
    for p in range(s.tally[NUM_RESERVED]):
        _charge(s, s.reserved_P[p], PLEDGED, -s.job_JX[s.reserved_P[p], CARDS])
        s.job_JX[s.reserved_P[p], PLACE] = -1
    s.tally[NUM_RESERVED] = 0


def _rebuild(s: State) -> None:
    """Row p + 1 of `free_PN` is row p, or the slack of reservation p where that is less."""
    for p in range(s.tally[NUM_RESERVED]):
        for node in range(s.free_PN.shape[1]):
            s.free_PN[p + 1, node] = min(s.free_PN[p, node], s.slack_PN[p, node])
    _forget_best(s)


def _forget_best(s: State) -> None:
    s.best_XP[:, :] = HUGE


def _shift(s: State, node: int, by: int, end_s: float) -> None:
    """So many more cards of a node are free until `end_s`, or fewer: so it is for every reservation that starts before."""
    s.free_PN[0, node] += by
    for p in range(s.tally[NUM_RESERVED]):
        if s.reserved_PX[p, 0] < end_s:
            s.slack_PN[p, node] += by
        s.free_PN[p + 1, node] = min(s.free_PN[p, node], s.slack_PN[p, node])


# ---- cards


def _copy(s: State, p: int, target: int) -> None:
    for node in range(s.work_YN.shape[1]):
        s.work_YN[target, node] = s.free_PN[p, node]


def _add_row(s: State, reservation: int, by: int) -> None:
    for node in range(s.work_YN.shape[1]):
        s.work_YN[BUSY, node] += by * s.hold_PN[reservation, node]


def _measure(s: State, which: int, shape: int) -> None:
    """What every domain offers gangs of a shape: on each node whole groups only."""
    for node in range(s.first_L[1]):
        free = s.work_YN[which, node]
        s.room_D[node] = s.whole_XF[shape, free] if free > 0 else 0
    for domain in range(s.first_L[1], s.first_L[4]):
        room = 0
        for child in range(s.tree_DX[domain, CHILD], s.tree_DX[domain, CHILD_END]):
            room += s.room_D[child]
        s.room_D[domain] = room


def _is_room(s: State, row: int, allowed: int) -> bool:
    """Whether any domain of the job's tier, of an allowed kind, holds it."""
    within = s.shape_XX[s.job_JX[row, SHAPE], WITHIN]
    for kind in range(s.span_KLX.shape[0]):
        if (allowed >> kind) & 1:
            for domain in range(s.span_KLX[kind, within, 0], s.span_KLX[kind, within, 1]):
                if s.room_D[domain] >= s.job_JX[row, CARDS]:
                    return True
    return False


def _most(s: State, shape: int) -> int:
    """The largest gang of a shape that fits what was measured."""
    within = s.shape_XX[shape, WITHIN]
    most = 0
    at = FIRST_KIND
    while s.shape_XX[shape, at] >= 0:
        kind = s.shape_XX[shape, at]
        for domain in range(s.span_KLX[kind, within, 0], s.span_KLX[kind, within, 1]):
            most = max(most, s.room_D[domain])
        at += 1
    return most


def _place(s: State, row: int, allowed: int) -> bool:
    """Pick nodes for the job in what was measured, or say that it does not fit."""
    shape = s.job_JX[row, SHAPE]
    at = FIRST_KIND
    while s.shape_XX[shape, at] >= 0:
        kind = s.shape_XX[shape, at]
        if (allowed >> kind) & 1:
            domain = _nearest(s, kind, s.shape_XX[shape, WITHIN], s.job_JX[row, CARDS])
            if domain >= 0:
                _fill(s, domain, s.job_JX[row, CARDS])
                return True
        at += 1
    return False


def _nearest(s: State, kind: int, within: int, cards: int) -> int:
    """The domain of the nearest tier that holds so many cards, the tightest of them; -1 where none does."""
    for level in range(within + 1):
        best = _tightest(s, s.span_KLX[kind, level, 0], s.span_KLX[kind, level, 1], cards)
        if best >= 0:
            return best
    return -1


def _tightest(s: State, first: int, end: int, cards: int) -> int:
    best = -1
    for domain in range(first, end):
        if s.room_D[domain] >= cards and (best < 0 or s.room_D[domain] < s.room_D[best]):
            best = domain
    return best


def _fill(s: State, domain: int, cards: int) -> None:
    """Pick nodes of a domain for so many cards. Uses `picked_NX` as its stack: what is not yet a node is split again."""
    picked = s.picked_NX
    picked[0, 0], picked[0, 1] = domain, cards
    count = 1
    at = 0
    while at < count:
        domain, cards = picked[at, 0], picked[at, 1]
        if domain < s.first_L[1]:
            at += 1
            continue
        count -= 1
        picked[at, 0], picked[at, 1] = picked[count, 0], picked[count, 1]
        first, end = s.tree_DX[domain, CHILD], s.tree_DX[domain, CHILD_END]
        while cards > 0:
            child = _tightest(s, first, end, cards)
            if child < 0:
                child = _roomiest(s, first, end)
            taken = min(cards, s.room_D[child])
            picked[count, 0], picked[count, 1] = child, taken
            count += 1
            cards -= taken
            s.room_D[child] = 0
    s.tally[NUM_PICKED] = count


def _roomiest(s: State, first: int, end: int) -> int:
    best = first
    for domain in range(first + 1, end):
        if s.room_D[domain] > s.room_D[best]:
            best = domain
    return best


def _allocate(s: State, row: int, now_s: float) -> None:
    """Give the job the first free cards of the picked nodes, and write down that it runs."""
    tally = s.tally
    is_past = False
    for p in range(tally[NUM_RESERVED]):
        is_past = is_past or comes_before(s, s.reserved_P[p], row)
    end_s = now_s + s.time_JX[row, LIMIT]
    s.time_JX[row, START] = now_s
    s.time_JX[row, END] = end_s
    last = -1
    for at in range(tally[NUM_PICKED]):
        last = _take(s, row, at, last)
        _shift(s, s.picked_NX[at, 0], -s.picked_NX[at, 1], end_s)
    s.next_C[last] = -1
    tally[NUM_FREE] -= s.job_JX[row, CARDS]
    s.job_JX[row, KIND] = s.tree_DX[s.picked_NX[0, 0], KIND_OF]
    _charge(s, row, USED, s.job_JX[row, CARDS])
    _add_run(s, row)
    out = tally[NUM_OUT]
    s.out_RX[out, 0] = row
    s.out_RX[out, 1] = int(is_past)
    s.out_RX[out, 2] = tally[NUM_OUT_CARDS]
    tally[NUM_OUT] = out + 1


def _take(s: State, row: int, at: int, last: int) -> int:
    """Link the first free cards of one picked node to the job's; the last of them."""
    node, cards = s.picked_NX[at, 0], s.picked_NX[at, 1]
    card = s.tree_DX[node, CHILD]
    while cards > 0:
        if s.owner_C[card] == FREE:
            s.owner_C[card] = row
            if last < 0:
                s.job_JX[row, FIRST_CARD] = card
            else:
                s.next_C[last] = card
            last = card
            cards -= 1
            s.out_C[s.tally[NUM_OUT_CARDS]] = card
            s.tally[NUM_OUT_CARDS] += 1
        card += 1
    return last


def _add_run(s: State, row: int) -> None:
    """Running jobs stand in the order in which they must end."""
    end_s = s.time_JX[row, END]
    at = s.tally[NUM_RUNNING]
    while at > 0 and s.time_JX[s.run_R[at - 1], END] > end_s:
        s.run_R[at] = s.run_R[at - 1]
        at -= 1
    s.run_R[at] = row
    s.tally[NUM_RUNNING] += 1
