"""Which replica would finish a request first: the replicas of one model as columns, scored in one pass.

For every replica, with P prompt tokens and O expected output tokens,

    finish_s = wait_s + prompt_s + O * token_s

    wait_s    what is left of the prompts sent there before, and of the wait for a slot or for cache that others hold
    prompt_s  this prompt's steps at the chunk budget, each carrying the attention of the sequences that decode meanwhile
    token_s   a decode step with this sequence added, at the mean cache it will read, over the share of time that the
              replica has left for decode steps: one minus the share that prompts took of late

Of a prompt that comes with hashes of its blocks, what a replica should have cached is not computed there (`affinity`): finishing first then decides
between a warm replica that is busy and a cold one that is not.

The times come from the replica's `StepTime`, times two factors that measurement corrects, one for prompts and one for
decoding. A first token that is overdue by d seconds is expected in d more, so a replica that hangs loses its appeal by the
second, with no report from anybody. Left out: what this request costs those already there, and what it takes to load a block from below HBM.

Columns end in the shape suffix R (rows, one per replica; free rows have `up_R` false) or K (kinds of replica that share a step
time and a chunk budget).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from polypod.policy.affinity import Affinity
from polypod.policy.compiled import CompiledRows, Functions
from polypod.policy.events import LoadReported, ReplicaUp
from polypod.policy.kinds import Floats, Kinds
from polypod.policy.requests import Ask, Load

PROMPT_MEMORY_S: Final = 10.0
"""The share of time that prompts take is remembered with this time constant."""

REBASE_S: Final = 100 * PROMPT_MEMORY_S
"""The base time of the remembered shares moves on before they grow past what a float holds well."""

MOST_PROMPT_SHARE: Final = 0.9
"""Some time is always left for decode steps, since an engine mixes them into those of prompts."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The rows where a request would finish first (none without room, several on a tie), and the forecast of all that have room.

    It holds until the table chooses again: the compiled twin writes into the same arrays.
    """

    rows: npt.NDArray[np.intp]
    first_s_R: Floats
    token_s_R: Floats
    cached_tokens: Mapping[int, int] = field(
        default_factory=dict
    )  # of the prompt, on rows that should have any


@dataclass(slots=True, eq=False)
class _Others:
    """What other gateways last said of one replica."""

    running: dict[str, int] = field(default_factory=dict)
    prompt_s: dict[str, float] = field(default_factory=dict)


_NOWHERE: Final = Choice(np.empty(0, dtype=np.intp), np.empty(0), np.empty(0), {})


class ReplicaTable:
    """The replicas of one model that are up. A row is a replica's for as long as it is.

    With `compiled` functions the same is done in C; what follows is the definition.
    """

    def __init__(
        self, affinity: Affinity | None = None, rows: int = 4, compiled: Functions | None = None
    ) -> None:
        self._core = None if compiled is None else CompiledRows(compiled)
        self.affinity = Affinity(most_blocks=0) if affinity is None else affinity
        self.up_R = np.zeros(rows, dtype=bool)
        self.in_flight_R = np.zeros(rows, dtype=np.int64)
        self.slots_R = np.zeros(rows, dtype=np.int64)
        self.limit_tokens_R = np.zeros(rows, dtype=np.int64)
        self.blocked_until_s_R = np.zeros(rows)
        self.prompts_R = np.zeros(rows, dtype=np.int64)  # sent, first token to be heard of
        self.prompts_s_R = np.zeros(rows)  # their work, shared out over the data-parallel ranks
        self.prompts_end_s_R = np.zeros(rows)  # when the work of all that were sent should be done
        self.prompt_share_R = np.zeros(
            rows
        )  # of the time, of late, as it would have been at `share_base_s`
        self.share_base_s = 0.0
        self.kv_tokens_R = np.zeros(rows)
        self.kv_capacity_R = np.zeros(rows)
        self.kv_read_s_R = np.zeros(rows)  # per cached token, corrected
        self.attend_s_R = np.zeros(rows)  # a step's attention over the sequences there, corrected
        self.decode_s_R = np.zeros(rows)  # a decode step with one sequence more, corrected
        self.prompt_factor_R = np.ones(rows)
        self.decode_factor_R = np.ones(rows)
        self.requests_R = np.zeros(rows, dtype=np.int64)  # whose time per token was measured
        self.others_running_R = np.zeros(rows, dtype=np.int64)
        self.others_prompt_s_R = np.zeros(rows)
        self.kind_R = np.zeros(rows, dtype=np.intp)
        # tokens that a decode step gives a sequence, and that it computes for it; 0 where prompts are all there is
        self.given_R, self.checked_R, self.decoding_R = np.ones(rows), np.ones(rows), np.ones(rows)
        # of replicas for one phase: `policy.pairing`
        self.held_R = np.zeros(
            rows, dtype=np.int64
        )  # caches of computed prompts, not yet handed on
        self.moving_R = np.zeros(rows, dtype=np.int64)  # caches on their way from here, or to here
        self.data_ranks_R = np.ones(rows, dtype=np.int64)
        self.kv_link_bytes_per_s_R = np.zeros(rows)  # endless where it is not limited
        self.kv_link_latency_s_R = np.zeros(rows)
        self.pool_bit_R = np.zeros(rows, dtype=np.int64)
        self.to_pools_R = np.zeros(rows, dtype=np.int64)  # bits of those it hands to; 0: to all
        self.up: list[ReplicaUp | None] = [None] * rows
        self.num_up = 0
        self.most_limit_tokens = 0  # over the replicas that are up
        self._held_tokens = 0  # by all that are up
        self._kinds = Kinds()
        self._others: dict[int, _Others] = {}
        self.measured: set[tuple[int, str]] = set()  # rows and phases of which a step was timed
        self._blocked: set[int] = set()

    # ---- replicas come and go

    def add(self, up: ReplicaUp) -> int:
        """Give the replica a row, with nothing known of it but the cost model."""
        if None not in self.up:
            self._grow()
        row = self.up.index(None)
        ranks = up.step_time.data_ranks
        for column in self._columns():
            column[row] = 0
        self.slots_R[row] = slots_of(up)
        self.limit_tokens_R[row] = min(up.context_tokens, up.kv_capacity_tokens // ranks)
        self._occupy(row, up)
        self.kv_capacity_R[row] = up.kv_capacity_tokens
        self.data_ranks_R[row] = ranks
        self.given_R[row], self.checked_R[row] = _step_of(up)
        self.decoding_R[row] = up.role != "prefill"
        self.kv_link_bytes_per_s_R[row] = up.kv_link_bytes_per_s or math.inf
        self.kv_link_latency_s_R[row] = up.kv_link_latency_s
        self.prompt_factor_R[row] = self.decode_factor_R[row] = 1.0
        self.kind_R[row] = self._kinds.take(up)
        self._bind()
        self.refresh(row)
        return row

    def remove(self, row: int) -> None:
        self._kinds.release(int(self.kind_R[row]))
        self._bind()
        self._occupy(row, None)
        self._blocked.discard(row)
        self._others.pop(row, None)
        self.measured -= {(row, "prompt"), (row, "decode")}
        self.affinity.forget(row)

    def _occupy(self, row: int, up: ReplicaUp | None) -> None:
        for known, sign in ((self.up[row], -1), (up, 1)):
            self._held_tokens += 0 if known is None else sign * held_tokens(known)
        self.affinity.replicas_hold(self._held_tokens)
        self.num_up += (up is not None) - (self.up[row] is not None)
        self.up[row] = up
        self.up_R[row] = up is not None
        self.most_limit_tokens = int((self.limit_tokens_R * self.up_R).max())

    def at(self, row: int) -> ReplicaUp:
        up = self.up[row]
        assert up is not None, f"row {row} is free"
        return up

    # ---- what a request would meet

    def fits(self, ask: Ask) -> npt.NDArray[np.bool_]:
        """Rows that could ever take the request."""
        return self.up_R & (self.limit_tokens_R >= ask.need_tokens)

    def takes(self, row: int, ask: Ask, now_s: float) -> bool:
        """Whether this replica could ever take the request, and has room for it now: `fits` and `open` of one row."""
        has_slot = bool(self.in_flight_R[row] < self.slots_R[row])
        is_long_enough = bool(self.limit_tokens_R[row] >= ask.need_tokens)
        is_up = self.up[row] is not None and bool(self.blocked_until_s_R[row] <= now_s)
        return has_slot and is_long_enough and is_up

    def has_room(self, now_s: float) -> bool:
        """Whether any replica can take a request now."""
        if self._core is not None:
            return self._core.have_room(now_s)
        return bool(self.open(now_s).any())

    def best(self, ask: Ask, among_R: npt.NDArray[np.bool_] | None, now_s: float) -> Choice:
        """Where the request would finish first, among these rows that have room; among all that it fits where none are said."""
        if not self.num_up:
            return _NOWHERE
        cached = self._cached_tokens(ask)
        if self._core is not None:
            rows = self._core.best(ask, among_R, now_s, self._kept(now_s), cached)
            return Choice(rows, self._core.first_s_R, self._core.token_s_R, cached)
        open_R = self.open(now_s) & (self.fits(ask) if among_R is None else among_R)
        if not open_R.any():
            return _NOWHERE
        first_s_R, token_s_R = self._forecast(ask, cached, now_s)
        finish_s_R = np.where(open_R, first_s_R + ask.output_tokens * token_s_R, np.inf)
        rows = np.flatnonzero(finish_s_R == finish_s_R.min())
        return Choice(rows, first_s_R, token_s_R, cached)

    def open(self, now_s: float) -> npt.NDArray[np.bool_]:
        """Rows with a free slot that are not taken out."""
        open_R = self.up_R & (self.in_flight_R < self.slots_R)
        if self._blocked:
            open_R &= self.blocked_until_s_R <= now_s
        return open_R

    def _cached_tokens(self, ask: Ask) -> dict[int, int]:
        if not ask.prefix_hashes:
            return {}
        return self.affinity.cached_tokens(ask.prefix_hashes, ask.input_tokens)

    def _forecast(self, ask: Ask, cached: Mapping[int, int], now_s: float) -> tuple[Floats, Floats]:
        """Seconds to the first token, and for each one after it, on every row."""
        alone_s_R, steps_R = self._alone(ask, cached)
        token_s_R = self.decode_s_R + self.kv_read_s_R * ask.mean_kv_tokens
        token_s_R /= 1 - np.minimum(self._prompt_share(now_s), MOST_PROMPT_SHARE)
        prompt_s_R = self.prompt_factor_R * alone_s_R
        prompt_s_R += steps_R * self.attend_s_R
        first_s_R = self.backlog_s(now_s) + self.others_prompt_s_R + prompt_s_R
        first_s_R += self.crowding(ask) * (ask.output_tokens * token_s_R)
        return first_s_R, token_s_R

    def _alone(self, ask: Ask, cached: Mapping[int, int]) -> tuple[Floats, Floats]:
        """Seconds of the prompt alone on every row, and its steps, without what is cached there."""
        prompt_s_K, steps_K = self._kinds.prompts(ask.input_tokens)
        alone_s_R, steps_R = prompt_s_K[self.kind_R], steps_K[self.kind_R]
        known: dict[tuple[int, int], tuple[float, int]] = {}
        for row, tokens in cached.items():
            case = (int(self.kind_R[row]), tokens)
            if case not in known:
                known[case] = self._kinds[case[0]].prompt(ask.input_tokens, tokens)
            alone_s_R[row], steps_R[row] = known[case]
        return alone_s_R, steps_R

    def _prompt_share(self, now_s: float) -> Floats:
        """Share of the time that prompts took of late; it fades while none is sent."""
        return self.prompt_share_R * self._kept(now_s)

    def _kept(self, now_s: float) -> float:
        """What is still remembered of the shares as they are noted."""
        return math.exp((self.share_base_s - now_s) / PROMPT_MEMORY_S)

    def backlog_s(self, now_s: float) -> Floats:
        ahead_s_R = self.prompts_end_s_R - now_s
        return np.maximum(ahead_s_R, -ahead_s_R * (self.prompts_R > 0))

    def crowding(self, ask: Ask) -> Floats:
        """Lifetimes of a request to wait until enough of those there have left: for cache, and for a slot."""
        over_kv_R = self.kv_tokens_R + ask.mean_kv_tokens - self.kv_capacity_R
        over_slots_R = self.in_flight_R + self.others_running_R + 1 - self.slots_R
        crowding_R = np.maximum(over_kv_R, 0.0) / np.maximum(self.kv_tokens_R, 1.0)
        crowding_R += np.maximum(over_slots_R, 0) / np.maximum(self.slots_R, 1)
        return crowding_R

    # ---- a request's stay

    def dispatched(self, row: int, ask: Ask, choice: Choice, now_s: float) -> Load:
        """Add the request to the row; returns what it added and what is expected of it."""
        if now_s - self.share_base_s > REBASE_S:
            self.prompt_share_R *= self._kept(now_s)
            self.share_base_s = now_s
        cached = choice.cached_tokens.get(row, 0)
        grown = math.exp((now_s - self.share_base_s) / PROMPT_MEMORY_S)
        if self._core is not None:
            prompt_s, first_s, token_s, model_token_s = self._core.dispatched(row, ask, cached, now_s, grown)  # fmt: skip
        else:
            alone_s, _ = self._kinds[int(self.kind_R[row])].prompt(ask.input_tokens, cached)
            prompt_s = (
                alone_s * float(self.prompt_factor_R[row]) / self.at(row).step_time.data_ranks
            )
            first_s, token_s = float(choice.first_s_R[row]), float(choice.token_s_R[row])
            model_token_s = token_s / float(self.decode_factor_R[row])
            self._add(row, ask, prompt_s, now_s, grown)
        if self.at(row).caches_prefixes:
            self.affinity.sent(row, ask.prefix_hashes)
        return Load(
            row=row,
            is_streamed=ask.is_streamed,
            prompt_s=prompt_s,
            kv_tokens=ask.mean_kv_tokens,
            first_token_s=first_s,
            token_s=token_s,
            model_token_s=model_token_s,
        )

    def _add(self, row: int, ask: Ask, prompt_s: float, now_s: float, grown: float) -> None:
        self.prompt_share_R[row] += grown * prompt_s / PROMPT_MEMORY_S
        late_s = now_s - float(self.prompts_end_s_R[row])
        if late_s > 0:
            self.prompts_end_s_R[row] = now_s + (late_s if self.prompts_R[row] else 0.0)
        self.prompts_end_s_R[row] += prompt_s
        if ask.is_streamed:
            self.prompts_s_R[row] += prompt_s
            self.prompts_R[row] += 1
        self.in_flight_R[row] += 1
        self.kv_tokens_R[row] += ask.mean_kv_tokens
        self.refresh(row)

    def prompt_done(self, load: Load, now_s: float) -> None:
        """The prompt is computed; engines take prompts in order, so all the others are still to come."""
        if self._core is not None and load.is_streamed:
            self._core.prompt_over(load, now_s, is_given_up=False)
        elif load.is_streamed:
            self._drop_prompt(load)
            self.prompts_end_s_R[load.row] = now_s + self.prompts_s_R[load.row]

    def prompt_given_up(self, load: Load, now_s: float) -> None:
        """The prompt is not waited for any more; what is overdue stays so."""
        if self._core is not None and load.is_streamed:
            self._core.prompt_over(load, now_s, is_given_up=True)
        elif load.is_streamed:
            self._drop_prompt(load)
            end_s = float(self.prompts_end_s_R[load.row])
            if end_s > now_s:
                self.prompts_end_s_R[load.row] = max(end_s - load.prompt_s, now_s)

    def _drop_prompt(self, load: Load) -> None:
        row = load.row
        self.prompts_R[row] -= 1
        self.prompts_s_R[row] -= load.prompt_s
        if not self.prompts_R[row]:
            self.prompts_s_R[row] = 0.0  # no residue of sums

    def left(self, load: Load) -> None:
        """The request is gone from the replica; its prompt was accounted for before."""
        if self._core is not None:
            self._core.left(load)
            return
        row = load.row
        self.in_flight_R[row] -= 1
        self.kv_freed(load)
        self.refresh(row)

    def kv_freed(self, load: Load) -> None:
        """The request's cache is gone from the replica."""
        row = load.row
        self.kv_tokens_R[row] -= load.kv_tokens
        if not self.in_flight_R[row] and not self.held_R[row]:
            self.kv_tokens_R[row] = 0.0  # no residue of sums

    # ---- what others say

    def load_reported(self, row: int, event: LoadReported) -> None:
        """Take another gateway's share of the load, in place of what it said before."""
        kind = self._kinds[int(self.kind_R[row])]
        others = self._others.setdefault(row, _Others())
        ranks = kind.step_time.data_ranks
        prompt_s = kind.prompt_token_s() / ranks
        others.running[event.gateway] = event.running
        others.prompt_s[event.gateway] = event.queued_prompt_tokens * prompt_s
        self.others_running_R[row] = sum(others.running.values())
        self.others_prompt_s_R[row] = sum(others.prompt_s.values())
        self.refresh(row)

    # ---- taken out, and let in again

    def block(self, row: int, until_s: float) -> None:
        """Send nothing there until then; a longer block stays."""
        self.blocked_until_s_R[row] = max(self.blocked_until_s_R[row], until_s)
        self._blocked.add(row)

    def next_unblock_s(self, now_s: float) -> float:
        """When the next blocked replica comes back; infinite when none is."""
        self._blocked = {row for row in self._blocked if self.blocked_until_s_R[row] > now_s}
        return min((float(self.blocked_until_s_R[row]) for row in self._blocked), default=math.inf)

    # ---- upkeep

    def refresh(self, row: int) -> None:
        """Bring the row's decode times up to what is there now: evenly on all ranks, and one sequence more on its own."""
        if self._core is not None:
            self._core.refresh(row)
            return
        step, checked = self.at(row).step_time, float(self.checked_R[row])
        factor = float(self.decode_factor_R[row]) / float(self.given_R[row])
        decoding = float(self.decoding_R[row])
        there = decoding * int(self.in_flight_R[row] + self.others_running_R[row]) / step.data_ranks
        kv_tokens = decoding * float(self.kv_tokens_R[row]) / step.data_ranks
        self.kv_read_s_R[row] = factor * step.kv_token_s
        self.attend_s_R[row] = factor * step.step_s(tokens=0, kv_tokens=kv_tokens, sequences=there)
        self.decode_s_R[row] = factor * step.step_s(
            tokens=checked * (there + 1), kv_tokens=kv_tokens, sequences=there + 1
        )

    def _columns(self) -> list[npt.NDArray[np.generic]]:
        return [value for value in vars(self).values() if isinstance(value, np.ndarray)]

    def _grow(self) -> None:
        rows = len(self.up)
        for name, value in list(vars(self).items()):
            if isinstance(value, np.ndarray):
                setattr(self, name, np.concatenate([value, np.zeros_like(value)]))
        self.up += [None] * rows

    def _bind(self) -> None:
        if self._core is not None:
            self._core.bind(self, self._kinds)


def _step_of(up: ReplicaUp) -> tuple[float, float]:
    """Tokens that a decode step gives a sequence and that it computes for it: more than one where it drafts."""
    return (up.engine.tokens_per_step, 1.0 + up.engine.drafts) if up.engine else (1.0, 1.0)


def held_tokens(up: ReplicaUp) -> int:
    """Tokens that a replica caches, in HBM and in host memory."""
    tiers = up.prefix_tiers
    host = 0 if tiers is None else int(tiers.host_bytes // tiers.kv_bytes_per_token)
    return up.kv_capacity_tokens + host


def slots_of(up: ReplicaUp) -> int:
    """Requests a replica runs at once: the same number on every data-parallel rank, at least one.

    Eight sequences over three ranks are two on each:

    >>> from polypod.cost.steptime import StepTime
    >>> step = StepTime(tokens=(1, 2), seconds=(1, 2), kv_token_s=0, pair_s=0, data_ranks=3)
    >>> slots_of(ReplicaUp(at_s=0, replica="r", epoch=1, model="m", pool="p", role="both", step_time=step,
    ...          context_tokens=64, kv_capacity_tokens=640, max_sequences=8, max_step_tokens=64))
    6
    """
    ranks = up.step_time.data_ranks
    return max(up.max_sequences // ranks, 1) * ranks
