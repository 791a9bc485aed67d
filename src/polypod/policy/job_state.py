"""The scheduler's state as arrays, shared by the plain rules and their compiled twins.

Letters: C cards, N nodes, D domains (nodes, then racks, islands and kinds), L tiers, K kinds, X shapes of jobs, J rows of jobs,
W places in the queue, R running jobs in the order they end, T tenants, H cohorts, P reservations in the order they start,
F free cards of a node.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polypod.policy.job_fleet import TIERS, Fleet

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FREE: Final = -1
LOST: Final = -2
NO_QUOTA: Final = -1
HUGE: Final = 2**60

# columns of tree_DX
CHILD, CHILD_END, KIND_OF = range(3)
# columns of shape_XX; from FIRST_KIND on the kinds in their order, ended by -1
GROUP, WITHIN, FIRST_KIND = range(3)
# columns of job_JX
CARDS, SHAPE, TENANT, PRIORITY, BASE, SEQUENCE, FIRST_CARD, KIND, PLACE, CAN_STOP = range(10)
# columns of time_JX
LIMIT, START, END, EVERY, COST, RESTART, SINCE = range(7)
# what `tally` counts
(
    NUM_WAITING,
    NUM_RUNNING,
    NUM_RESERVED,
    NUM_FREE,
    NUM_PICKED,
    NUM_OUT,
    MOST_RESERVED,
    IS_BACKFILLING,
    HAS_QUOTA,
    IS_HOLDING,
    IS_HIT,
    IS_BLOCKED,
    NUM_OUT_CARDS,
    STEPS,
) = range(14)
# columns of quota_TKX and cohort_HKX
USED, NOMINAL, PLEDGED, MOST, HOLD = range(5)


class State(NamedTuple):
    """Everything the rules read and write."""

    tree_DX: Ints  # children as a range of domains, for nodes of cards; and the kind
    first_L: Ints  # the first domain of each tier, and the end
    span_KLX: Ints  # by kind and tier, its domains as a range
    above_NL: Ints  # the domain of each tier that a node is in
    node_C: Ints
    owner_C: Ints  # the row of the job that holds the card, or FREE, or LOST
    next_C: Ints  # the next card of the same job
    free_PN: Ints  # free now, and at no moment before the end of reservation p less than this
    slack_PN: Ints  # free at the start of reservation p, after all reservations
    hold_PN: Ints  # what reservation p takes
    work_YN: Ints  # scratch: cards free at a time looked at, and for a test
    room_D: Ints  # scratch: what a domain offers a shape
    picked_NX: Ints  # scratch: nodes picked, and how many cards of each
    shape_XX: Ints
    whole_XF: Ints  # the cards of a node with F free that whole groups can use
    best_XP: Ints  # no larger gang of the shape fits row p of free_PN
    job_JX: Ints
    time_JX: Floats
    wait_W: Ints
    run_R: Ints
    reserved_P: Ints  # rows of jobs
    reserved_PX: Floats  # start and end
    quota_TKX: Ints
    cohort_T: Ints
    cohort_HKX: Ints
    fair_T: Floats
    tally: Ints
    out_RX: Ints  # rows started, whether backfilled, and the end of their cards in out_C
    out_C: Ints
    victim_R: Ints  # running rows, in the order in which to stop them


def blank(fleet: Fleet, *, reservations: int, is_backfilling: bool) -> State:
    """All cards free, and nothing known of jobs, shapes and tenants."""
    domains = _domains(fleet)
    cards, nodes, kinds = fleet.cards, int(domains["first_L"][1]), len(fleet.kinds)
    rows = reservations + 1
    tally = np.zeros(14, dtype=np.int64)
    tally[NUM_FREE], tally[MOST_RESERVED] = cards, reservations
    tally[IS_BACKFILLING] = int(is_backfilling)
    node_C = np.repeat(
        np.arange(nodes), domains["tree_DX"][:nodes, CHILD_END] - domains["tree_DX"][:nodes, CHILD]
    )
    free_PN = np.zeros((rows, nodes), dtype=np.int64)
    free_PN[0] = np.bincount(node_C, minlength=nodes)
    widest = int(free_PN[0].max())
    return State(
        **domains,
        node_C=node_C,
        owner_C=np.full(cards, FREE, dtype=np.int64),
        next_C=np.full(cards, -1, dtype=np.int64),
        free_PN=free_PN,
        slack_PN=_ints(rows, nodes),
        hold_PN=_ints(rows, nodes),
        work_YN=_ints(2, nodes),
        room_D=_ints(len(domains["tree_DX"])),
        picked_NX=_ints(nodes, 2),
        shape_XX=_ints(0, FIRST_KIND + kinds + 1),
        whole_XF=_ints(0, widest + 1),
        best_XP=_ints(0, rows),
        job_JX=_ints(0, 10),
        time_JX=np.zeros((0, 7)),
        wait_W=_ints(0),
        run_R=_ints(cards + 1),
        reserved_P=_ints(rows),
        reserved_PX=np.zeros((rows, 2)),
        quota_TKX=_ints(0, kinds, 5),
        cohort_T=_ints(0),
        cohort_HKX=_ints(0, kinds, 5),
        fair_T=np.zeros(0),
        tally=tally,
        out_RX=_ints(cards + 1, 3),
        out_C=_ints(cards + 1),
        victim_R=_ints(cards + 1),
    )


def grown(rows: Any, count: int) -> Any:  # noqa: ANN401 (an array in, one of the same kind out)
    """The same rows, and zeros up to `count` of them."""
    more = np.zeros((count, *rows.shape[1:]), dtype=rows.dtype)
    more[: len(rows)] = rows
    return more


def _ints(*shape: int) -> Ints:
    return np.zeros(shape, dtype=np.int64)


def _domains(fleet: Fleet) -> dict[str, Ints]:
    """Number the domains of each tier, and say which are inside which."""
    kinds = fleet.kinds
    tiers: list[list[tuple[int, int, int]]] = [[], [], [], []]  # begin, end of children; kind
    card = 0
    for island in fleet.ordered:
        kind = kinds.index(island.kind)
        rack_cards = island.rack_cards or island.cards
        racks_before = len(tiers[1])
        for rack in range(0, island.cards, rack_cards):
            nodes_before = len(tiers[0])
            in_rack = min(rack_cards, island.cards - rack)
            for node in range(0, in_rack, island.node_cards):
                count = min(island.node_cards, in_rack - node)
                tiers[0].append((card, card + count, kind))
                card += count
            tiers[1].append((nodes_before, len(tiers[0]), kind))
        tiers[2].append((racks_before, len(tiers[1]), kind))
    for kind in range(len(kinds)):
        inside = [place for place, (_, _, its) in enumerate(tiers[2]) if its == kind]
        tiers[3].append((inside[0], inside[-1] + 1, kind))
    return _numbered(tiers, len(kinds))


def _numbered(tiers: list[list[tuple[int, int, int]]], kinds: int) -> dict[str, Ints]:
    first_L = np.cumsum([0, *map(len, tiers)])
    tree_DX = np.array([row for tier in tiers for row in tier], dtype=np.int64)
    for level in range(1, len(TIERS)):
        tree_DX[first_L[level] : first_L[level + 1], :KIND_OF] += first_L[level - 1]
    above_NL = np.zeros((len(tiers[0]), len(TIERS)), dtype=np.int64)
    above_NL[:, 0] = np.arange(len(tiers[0]))
    parent_D = np.zeros(len(tree_DX), dtype=np.int64)
    for domain in range(int(first_L[1]), len(tree_DX)):
        parent_D[tree_DX[domain, CHILD] : tree_DX[domain, CHILD_END]] = domain
    for level in range(1, len(TIERS)):
        above_NL[:, level] = parent_D[above_NL[:, level - 1]]
    span_KLX = np.zeros((kinds, len(TIERS), 2), dtype=np.int64)
    for kind in range(kinds):
        for level in range(len(TIERS)):
            of_kind = np.flatnonzero(tree_DX[first_L[level] : first_L[level + 1], KIND_OF] == kind)
            span_KLX[kind, level] = (
                first_L[level] + of_kind[0],
                first_L[level] + of_kind[-1] + 1,
            )
    return {
        "tree_DX": tree_DX,
        "first_L": first_L.astype(np.int64),
        "span_KLX": span_KLX,
        "above_NL": above_NL,
    }
