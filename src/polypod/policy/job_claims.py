"""Who may stop running jobs to start, and which of them; and which jobs are refused at once.

Services stop any job that may be stopped. The first waiting job stops jobs of lower priority; if it would borrow for that, only those of its own tenant
or that borrow themselves. The first waiting job of a tenant within its quota takes back what other tenants of the cohort borrowed.
"""

from collections.abc import Iterator

import numpy as np

from polypod.errors import nearest_names
from polypod.policy.job_events import JobSubmitted, PreemptReason, RejectJob
from polypod.policy.job_fleet import JobRules
from polypod.policy.job_kernels import Rules
from polypod.policy.job_state import (
    BASE,
    CAN_STOP,
    CARDS,
    FIRST_KIND,
    HAS_QUOTA,
    KIND,
    MOST,
    NO_QUOTA,
    NOMINAL,
    NUM_RUNNING,
    NUM_WAITING,
    SEQUENCE,
    SHAPE,
    START,
    TENANT,
    USED,
    Ints,
)
from polypod.policy.job_tables import ABOVE_ALL, SERVICES, Tables

Claim = tuple[int, int]
"""Kinds as bits, and how many cards must come free at least, for the quota's sake."""


def refuse(asked: JobSubmitted, tables: Tables, loops: Rules) -> RejectJob | None:
    """The refusal of a job that can never run here, or None."""
    problem = _bad_shape(asked, tables)
    if problem is not None:
        return problem
    shape = tables.shape(asked)
    if shape not in tables.most:
        tables.most[shape] = int(loops.largest(tables.state, shape))
    most = tables.most[shape]
    if asked.cards > most:
        text = f"{_gang(asked)} never fits; the largest that would is {most} cards{_way_out(asked, most)}"
        return RejectJob(job=asked.job, code="never_fits", message=text, most_cards=most)
    return _over_quota(asked, tables, shape)


def _bad_shape(asked: JobSubmitted, tables: Tables) -> RejectJob | None:
    unknown = [kind for kind in asked.kinds if kind not in tables.kinds]
    if unknown:
        near = ", ".join(nearest_names(unknown[0], tables.kinds) or tables.kinds)
        text = f"no card of the fleet is of kind {unknown[0]!r}; nearest: {near}"
        return RejectJob(job=asked.job, code="unknown_kind", message=text, most_cards=0)
    if len(set(asked.kinds)) < len(asked.kinds):
        text = f"kinds {', '.join(asked.kinds)} name one twice; name each once"
        return RejectJob(job=asked.job, code="bad_shape", message=text, most_cards=0)
    if asked.cards % asked.group:
        fewer = asked.cards // asked.group * asked.group
        text = f"{asked.cards} cards are no whole number of groups of {asked.group}; ask for {fewer + asked.group}"
        return RejectJob(job=asked.job, code="bad_shape", message=text, most_cards=fewer)
    return None


def _gang(asked: JobSubmitted) -> str:
    groups = f" in groups of {asked.group}" if asked.group > 1 else ""
    kinds = f" of {' or '.join(asked.kinds)}" if asked.kinds else ""
    return f"a gang of {asked.cards} cards{kinds}{groups} within one {asked.within}"


def _way_out(asked: JobSubmitted, most: int) -> str:
    if most == 0:
        return "; make its groups smaller"
    return "" if asked.within == "fleet" else "; ask for fewer, or for a wider tier"


def _over_quota(asked: JobSubmitted, tables: Tables, shape: int) -> RejectJob | None:
    tenant = tables.tenant(asked.tenant)
    state = tables.state
    mine_KX, ours_KX = state.quota_TKX[tenant], state.cohort_HKX[state.cohort_T[tenant]]
    kinds = [kind for kind in state.shape_XX[shape, FIRST_KIND:].tolist() if kind >= 0]
    if mine_KX[kinds[0], NOMINAL] == NO_QUOTA:
        return None
    most = max(int(min(mine_KX[kind, MOST], ours_KX[kind, NOMINAL])) for kind in kinds)
    if asked.cards <= most:
        return None
    text = f"{_gang(asked)} is more than the quota of tenant {asked.tenant!r} ever allows; the most is {most} cards, borrowed ones included"
    return RejectJob(job=asked.job, code="over_quota", message=text, most_cards=most)


def claimants(tables: Tables, rules: JobRules) -> Iterator[tuple[int, PreemptReason]]:
    """Waiting jobs that may stop others, in the order of the queue, and by what right."""
    state = tables.state
    has_quota = bool(state.tally[HAS_QUOTA])
    tenants: set[int] = set()
    shapes: set[tuple[int, int]] = set()
    for at, row in enumerate(state.wait_W[: tables.count(NUM_WAITING)].tolist()):
        tenant = int(state.job_JX[row, TENANT])
        if tenant == SERVICES:
            shape = int(state.job_JX[row, SHAPE]), int(state.job_JX[row, CARDS])
            if shape not in shapes:
                yield row, "service"
            shapes.add(shape)
            continue
        if rules.is_preempting and not tenants:
            yield row, "priority"
        if has_quota and tenant not in tenants:
            yield row, "reclaim"
        tenants.add(tenant)
        if not has_quota or at >= 1000:
            return


def claim_of(tables: Tables, row: int, reason: PreemptReason) -> list[Claim]:
    """What may be cleared for a job: one try for several kinds together, or one for each kind."""
    state = tables.state
    tenant, cards = int(state.job_JX[row, TENANT]), int(state.job_JX[row, CARDS])
    shape_kinds = state.shape_XX[int(state.job_JX[row, SHAPE]), FIRST_KIND:].tolist()
    kinds = [kind for kind in shape_kinds if kind >= 0]
    mine_KX, ours_KX = state.quota_TKX[tenant], state.cohort_HKX[state.cohort_T[tenant]]
    if mine_KX[0, NOMINAL] == NO_QUOTA:
        return [] if reason == "reclaim" else [(sum(1 << kind for kind in kinds), 0)]
    if reason == "priority":
        kinds = [kind for kind in kinds if mine_KX[kind, USED] + cards <= mine_KX[kind, MOST]]
    else:
        kinds = [kind for kind in kinds if mine_KX[kind, USED] + cards <= mine_KX[kind, NOMINAL]]
    over = [max(0, int(ours_KX[kind, USED]) + cards - int(ours_KX[kind, NOMINAL])) for kind in kinds]  # fmt: skip
    return [(1 << kind, least) for kind, least in zip(kinds, over, strict=True)]


def line_up(tables: Tables, row: int, reason: PreemptReason, allowed: int, now_s: float) -> int:
    """Write the runs that may be stopped for a job into `victim_R`, those to stop first in front; return how many.

    In front are the lowest priorities; among equals, those that lose the least work, then those that started last.
    """
    state = tables.state
    rows: Ints = state.run_R[: tables.count(NUM_RUNNING)]
    jobs = state.job_JX[rows]
    may = (jobs[:, CAN_STOP] == 1) & ((allowed >> jobs[:, KIND]) & 1 == 1)
    if reason == "priority":
        may &= (jobs[:, BASE] < state.job_JX[row, BASE]) & _priority_reaches(tables, row, jobs)
        may &= _relieves(tables, row, jobs)
    elif reason == "reclaim":
        may &= _is_borrowed(tables, row, jobs)
    rows = rows[may]
    jobs = jobs[may]
    losses = tables.losses_card_s(rows, now_s)
    order = np.lexsort((jobs[:, SEQUENCE], -state.time_JX[rows, START], losses, jobs[:, BASE]))
    rows = rows[order]
    if reason == "reclaim":
        rows = _while_borrowing(tables, rows)
    state.victim_R[: len(rows)] = rows
    return len(rows)


def _is_borrowed(
    tables: Tables, row: int, jobs: Ints
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Runs of other tenants of the job's cohort that have more than their quota of the run's kind."""
    state = tables.state
    tenant = int(state.job_JX[row, TENANT])
    tenants, kinds = jobs[:, TENANT], jobs[:, KIND]
    own, used = state.quota_TKX[tenants, kinds, NOMINAL], state.quota_TKX[tenants, kinds, USED]
    near = state.cohort_T[tenants] == state.cohort_T[tenant]
    return (tenants != tenant) & near & (own != NO_QUOTA) & (used > own)  # type: ignore[no-any-return]


def _priority_reaches(
    tables: Tables, row: int, jobs: Ints
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """A job within its quota, or held to none, reaches every run; one that borrows, its tenant's own and those that borrow."""
    state = tables.state
    tenant, cards = int(state.job_JX[row, TENANT]), int(state.job_JX[row, CARDS])
    mine = state.quota_TKX[tenant, jobs[:, KIND]]
    is_own = (mine[:, NOMINAL] == NO_QUOTA) | (mine[:, USED] + cards <= mine[:, NOMINAL])
    return is_own | (jobs[:, TENANT] == tenant) | _is_borrowed(tables, row, jobs)  # type: ignore[no-any-return]


def _relieves(tables: Tables, row: int, jobs: Ints) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Where a cohort has no more cards of a kind to give, only runs of the cohort make room for one of its jobs."""
    state = tables.state
    tenant, cards = int(state.job_JX[row, TENANT]), int(state.job_JX[row, CARDS])
    tenants, kinds = jobs[:, TENANT], jobs[:, KIND]
    if state.quota_TKX[tenant, 0, NOMINAL] == NO_QUOTA:
        return np.ones(len(jobs), dtype=np.bool_)
    ours_KX = state.cohort_HKX[state.cohort_T[tenant]]
    is_full = ours_KX[kinds, USED] + cards > ours_KX[kinds, NOMINAL]
    has_quota = state.quota_TKX[tenants, kinds, NOMINAL] != NO_QUOTA
    return ~is_full | (has_quota & (state.cohort_T[tenants] == state.cohort_T[tenant]))  # type: ignore[no-any-return]


def _while_borrowing(tables: Tables, rows: Ints) -> Ints:
    """Of each tenant and kind only so many runs as it still borrows when each of them stops."""
    state = tables.state
    over: dict[tuple[int, int], int] = {}
    kept = []
    for row in rows.tolist():
        key = int(state.job_JX[row, TENANT]), int(state.job_JX[row, KIND])
        left = over.setdefault(key, int(state.quota_TKX[(*key, USED)] - state.quota_TKX[(*key, NOMINAL)]))  # fmt: skip
        if left > 0:
            kept.append(row)
            over[key] = left - int(state.job_JX[row, CARDS])
    return np.array(kept, dtype=np.int64)


__all__ = ["ABOVE_ALL", "claim_of", "claimants", "line_up", "refuse"]
