"""Rows of the scheduler's arrays: for jobs, for the shapes they ask for, and for tenants with their quotas and their usage."""

import math
from typing import Final

import numpy as np

from polypod.policy.job_events import JobSubmitted
from polypod.policy.job_fleet import TIERS, Fleet, JobRules, Tenant
from polypod.policy.job_progress import wall_s
from polypod.policy.job_state import (
    CARDS,
    COST,
    EVERY,
    FIRST_KIND,
    HAS_QUOTA,
    HUGE,
    LIMIT,
    MOST,
    NO_QUOTA,
    NOMINAL,
    NUM_RUNNING,
    RESTART,
    START,
    TENANT,
    Floats,
    Ints,
    blank,
    grown,
)

SERVICES: Final = 0
"""The row of the tenant that services are."""
ABOVE_ALL: Final = 2**30
"""The priority of services."""


class Tables:
    """Gives out rows, and makes room for more."""

    def __init__(self, fleet: Fleet, rules: JobRules) -> None:
        self.state = blank(
            fleet, reservations=rules.reservations, is_backfilling=rules.is_backfilling
        )
        self.kinds = fleet.kinds
        self._rules = rules
        self._rows: list[int] = []
        self._shapes: dict[tuple[tuple[int, ...], int, int], int] = {}
        self.most: dict[int, int] = {}  # by shape, the largest gang that ever fits
        self._tenants: dict[str, int] = {}
        self._listed = {tenant.name: tenant for tenant in rules.tenants}
        self._cohorts = {name: at for at, name in enumerate(sorted({t.cohort for t in rules.tenants}))}  # fmt: skip
        self.weights: list[float] = []
        self.usage: list[float] = []  # card-seconds, halved for every half-life before `origin_s`
        self.origin_s = 0.0
        self._add_cohorts()
        self._add_tenant("", Tenant(name=""))  # services
        for tenant in rules.tenants:
            self.tenant(tenant.name)

    def count(self, what: int) -> int:
        return int(self.state.tally[what])

    # ---- tenants

    def tenant(self, name: str) -> int:
        """The row of a tenant; one not listed in the rules has a share of 1 and no quota."""
        if name not in self._tenants:
            self._tenants[name] = self._add_tenant(name, self._listed.get(name, Tenant(name=name)))
        return self._tenants[name]

    @property
    def tenant_names(self) -> tuple[str, ...]:
        """By row; the first, of services, has none."""
        return ("", *self._tenants)

    def _add_cohorts(self) -> None:
        state = self.state
        state = state._replace(cohort_HKX=grown(state.cohort_HKX, max(1, len(self._cohorts))))
        for tenant in self._rules.tenants:
            for kind, cards in (tenant.quota or {}).items():
                if kind in self.kinds:
                    at = self._cohorts[tenant.cohort], self.kinds.index(kind), NOMINAL
                    state.cohort_HKX[at] += cards
        self.state = state

    def _add_tenant(self, name: str, tenant: Tenant) -> int:
        row = len(self.weights)
        state = self.state
        self.state = state = state._replace(
            quota_TKX=grown(state.quota_TKX, row + 1),
            cohort_T=grown(state.cohort_T, row + 1),
            fair_T=grown(state.fair_T, row + 1),
        )
        self.weights.append(tenant.fair_share)
        self.usage.append(0.0)
        state.quota_TKX[row, :, NOMINAL] = NO_QUOTA
        if tenant.quota is None:
            return row
        state.tally[HAS_QUOTA] = 1
        state.cohort_T[row] = self._cohorts[tenant.cohort]
        for kind, kind_name in enumerate(self.kinds):
            own = tenant.quota.get(kind_name, 0)
            state.quota_TKX[row, kind, NOMINAL] = own
            state.quota_TKX[row, kind, MOST] = (
                HUGE if tenant.borrow is None else own + tenant.borrow
            )
        return row

    # ---- usage

    def charge(self, tenant: int, cards: int, begin_s: float, end_s: float) -> None:
        """Count what a tenant used between two times, both after `origin_s`.

        Card-seconds at time t count 2^((t - origin) / half-life) as much as at the origin, integrated exactly.
        """
        half_s = self._rules.half_life_s
        if end_s - self.origin_s > 100 * half_s:
            self._fade(end_s)  # before powers of two get out of hand
        late, early = (end_s - self.origin_s) / half_s, (begin_s - self.origin_s) / half_s
        self.usage[tenant] += cards * half_s / math.log(2.0) * (2.0**late - 2.0**early)

    def charge_running(self, now_s: float) -> None:
        """Count what running jobs used since `origin_s`, and make this the new origin."""
        state = self.state
        origin_s = self.origin_s
        rows = state.run_R[: self.count(NUM_RUNNING)]
        is_older = state.time_JX[rows, START] <= origin_s
        older = state.job_JX[rows[is_older]]
        for tenant in range(len(self.weights)):
            cards = int(older[older[:, TENANT] == tenant, CARDS].sum())
            self.charge(tenant, cards, origin_s, now_s)
        for row in rows[~is_older].tolist():
            tenant, cards = int(state.job_JX[row, TENANT]), int(state.job_JX[row, CARDS])
            self.charge(tenant, cards, float(state.time_JX[row, START]), now_s)
        self._fade(now_s)
        state.fair_T[:] = [
            -usage / weight for usage, weight in zip(self.usage, self.weights, strict=True)
        ]

    def _fade(self, now_s: float) -> None:
        """Make a later time the origin."""
        faded = 2.0 ** ((self.origin_s - now_s) / self._rules.half_life_s)
        self.usage = [usage * faded for usage in self.usage]
        self.origin_s = now_s

    # ---- shapes

    def shape(self, asked: JobSubmitted) -> int:
        """The row of a shape: kinds in order, group and tier."""
        kinds = tuple(self.kinds.index(kind) for kind in asked.kinds or self.kinds)
        key = kinds, asked.group, TIERS.index(asked.within)
        if key not in self._shapes:
            self._shapes[key] = self._add_shape(*key)
        return self._shapes[key]

    def _add_shape(self, kinds: tuple[int, ...], group: int, within: int) -> int:
        row = len(self._shapes)
        state = self.state
        self.state = state = state._replace(
            shape_XX=grown(state.shape_XX, row + 1),
            whole_XF=grown(state.whole_XF, row + 1),
            best_XP=grown(state.best_XP, row + 1),
        )
        state.shape_XX[row] = -1
        state.shape_XX[row, : FIRST_KIND + len(kinds)] = (group, within, *kinds)
        state.whole_XF[row] = np.arange(state.whole_XF.shape[1]) // group * group
        state.best_XP[row] = HUGE
        return row

    # ---- jobs

    def take_row(self) -> int:
        if not self._rows:
            old = len(self.state.job_JX)
            new = max(256, 2 * old)
            self.state = self.state._replace(
                job_JX=grown(self.state.job_JX, new),
                time_JX=grown(self.state.time_JX, new),
                wait_W=grown(self.state.wait_W, new),
            )
            self._rows = list(range(new - 1, old - 1, -1))
        return self._rows.pop()

    def give_row(self, row: int) -> None:
        self._rows.append(row)

    def write(self, row: int, asked: JobSubmitted, tenant: int, sequence: int) -> None:
        """All that the loops must know of a job that has not run yet."""
        shape = self.shape(asked)
        state = self.state
        base = ABOVE_ALL if tenant == SERVICES else asked.priority
        can_stop = int(asked.is_preemptible and tenant != SERVICES)
        state.job_JX[row] = (asked.cards, shape, tenant, base, base, sequence, -1, 0, -1, can_stop)
        limit_s = wall_s(asked, asked.limit_s, is_restart=False)
        every_s = asked.checkpoint_every_s or 0.0
        state.time_JX[row] = (limit_s, 0.0, 0.0, every_s, asked.checkpoint_cost_s, 0.0, asked.at_s)

    def write_rest(self, row: int, asked: JobSubmitted, saved_s: float) -> None:
        """What is left of a job that has run."""
        left_s = max(0.0, asked.limit_s - saved_s)
        self.state.time_JX[row, LIMIT] = wall_s(asked, left_s, is_restart=True)
        self.state.time_JX[row, RESTART] = asked.restart_s

    # ---- views over running jobs

    def losses_card_s(self, rows: Ints, now_s: float) -> Floats:
        """Card-seconds of work that each running job would lose if it stopped now."""
        time_JX = self.state.time_JX[rows]
        running_s = np.maximum(0.0, now_s - time_JX[:, START] - time_JX[:, RESTART])
        has_any = time_JX[:, EVERY] > 0
        cycle_s = np.where(has_any, time_JX[:, EVERY] + time_JX[:, COST], 1.0)
        saved_s = np.where(has_any, np.floor(running_s / cycle_s) * cycle_s, 0.0)
        most_s = np.where(has_any, time_JX[:, EVERY], np.inf)
        lost: Floats = np.minimum(running_s - saved_s, most_s) * self.state.job_JX[rows, CARDS]
        return lost
