"""What must hold of a scheduler after every event."""

from typing import TYPE_CHECKING

import numpy as np

from polypod.policy.job_state import (
    CARDS,
    END,
    FIRST_CARD,
    FREE,
    LOST,
    MOST,
    NO_QUOTA,
    NOMINAL,
    NUM_FREE,
    NUM_RESERVED,
    NUM_RUNNING,
    NUM_WAITING,
    PLACE,
    SHAPE,
    TENANT,
    USED,
    WITHIN,
    Ints,
    State,
)

if TYPE_CHECKING:
    from polypod.policy.jobs import Scheduler


def check_scheduler(scheduler: "Scheduler") -> None:
    """Raise `AssertionError` where cards, queue, quotas or reservations contradict each other."""
    tables = scheduler.tables
    state = tables.state
    running = state.run_R[: tables.count(NUM_RUNNING)].tolist()
    waiting = state.wait_W[: tables.count(NUM_WAITING)].tolist()
    everyone = [*scheduler.live.values(), *scheduler.replicas.values()]
    assert sorted(running) == sorted(t.row for t in everyone if t.is_running)
    assert sorted(waiting) == sorted(t.row for t in everyone if not t.is_running)
    _check_cards(state, running)
    _check_gangs(state, running)
    _check_quotas(state, running)
    _check_reservations(state, waiting)
    ends_s = state.time_JX[running, END].tolist()
    assert ends_s == sorted(ends_s), "running jobs stand in the order in which they end"


def cards_of(state: State, row: int) -> list[int]:
    """The cards a running job holds."""
    cards = []
    card = int(state.job_JX[row, FIRST_CARD])
    while card >= 0:
        cards.append(card)
        card = int(state.next_C[card])
    return cards


def _check_cards(state: State, running: list[int]) -> None:
    """A card has one owner, and every owner runs."""
    held = {card: row for row in running for card in cards_of(state, row)}
    for card, owner in enumerate(state.owner_C.tolist()):
        assert owner in (FREE, LOST) or held.get(card) == owner, f"card {card}"
    assert len(held) == int(np.sum(state.owner_C >= 0))
    free_N = np.bincount(state.node_C[state.owner_C == FREE], minlength=int(state.first_L[1]))
    assert state.free_PN[0].tolist() == free_N.tolist()
    assert int(state.tally[NUM_FREE]) == int(free_N.sum())


def _check_gangs(state: State, running: list[int]) -> None:
    """All cards or none, inside one instance of the tier, on every node whole groups."""
    for row in running:
        cards = cards_of(state, row)
        assert len(cards) == len(set(cards)) == int(state.job_JX[row, CARDS])
        shape = int(state.job_JX[row, SHAPE])
        nodes = state.node_C[cards]
        assert len(set(state.above_NL[nodes, state.shape_XX[shape, WITHIN]].tolist())) == 1
        _, counts = np.unique(nodes, return_counts=True)
        assert state.whole_XF[shape, counts].tolist() == counts.tolist()


def _check_quotas(state: State, running: list[int]) -> None:
    """Counted right, never above what may be borrowed, and a cohort never above what it has."""
    used_TK = np.zeros(state.quota_TKX.shape[:2], dtype=np.int64)
    for row in running:
        node = state.node_C[int(state.job_JX[row, FIRST_CARD])]
        used_TK[state.job_JX[row, TENANT], state.tree_DX[node, 2]] += state.job_JX[row, CARDS]
    assert used_TK.tolist() == state.quota_TKX[:, :, USED].tolist()
    has_quota_T = state.quota_TKX[:, 0, NOMINAL] != NO_QUOTA
    assert (used_TK <= state.quota_TKX[:, :, MOST])[has_quota_T].all()
    for cohort in range(len(state.cohort_HKX)):
        members = has_quota_T & (state.cohort_T == cohort)
        assert used_TK[members].sum(axis=0).tolist() == state.cohort_HKX[cohort, :, USED].tolist()
    assert (state.cohort_HKX[:, :, USED] <= state.cohort_HKX[:, :, NOMINAL]).all()


def _check_reservations(state: State, waiting: list[int]) -> None:
    """Kept for jobs that wait, in order of their start; no moment is promised twice."""
    count = int(state.tally[NUM_RESERVED])
    rows = state.reserved_P[:count].tolist()
    assert set(rows) <= set(waiting)
    assert [int(state.job_JX[row, PLACE]) for row in rows] == list(range(count))
    starts_s = state.reserved_PX[:count, 0].tolist()
    assert starts_s == sorted(starts_s)
    assert (state.slack_PN[:count] >= 0).all(), "a reservation takes more than there will be"
    for p in range(count):
        assert state.hold_PN[p].sum() == state.job_JX[rows[p], CARDS]
        least_N = np.minimum(state.free_PN[p], state.slack_PN[p])
        assert state.free_PN[p + 1].tolist() == least_N.tolist()
        assert state.slack_PN[p].tolist() == _slack(state, p).tolist()


def _slack(state: State, place: int) -> Ints:
    """Counted anew: what is free when a reservation starts, once every run has ended that must, less what is reserved then."""
    at_s = state.reserved_PX[place, 0]
    free_N: Ints = state.free_PN[0].copy()
    for row in state.run_R[: int(state.tally[NUM_RUNNING])].tolist():
        if state.time_JX[row, END] <= at_s:
            np.add.at(free_N, state.node_C[cards_of(state, row)], 1)
    for p in range(int(state.tally[NUM_RESERVED])):
        if state.reserved_PX[p, 0] <= at_s < state.reserved_PX[p, 1]:
            free_N -= state.hold_PN[p]
    return free_N
