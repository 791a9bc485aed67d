"""One engine instance under continuous batching with chunked prefill and a paged KV cache.

What is emulated, as vLLM's scheduler does it: at every step boundary waiting prompts are admitted first come first served
while a sequence slot and KV room are free; a step computes one token of each decoding sequence plus prompt chunks up to the
token budget; the step that completes a prompt gives its first token; when the cache overflows, the sequence admitted last
is preempted and its tokens are computed again later. Data-parallel ranks step together, each with its own sequences and
cache; a prompt sits on one rank.

Between batch changes decode advances in closed form. With `a` the first step's time and `g` its growth per step (every
sequence lengthens by one cached token), m steps take

    m * a + g * m * (m - 1) / 2

so the cost of an emulation grows with batch changes, not with tokens. `Behaviour` says how the engine schedules: exclusive prefill has steps of
prompts alone, in which decode stands still; drafted tokens make steps longer, give `tokens_per_step` in the mean and finish a sequence in as many
fewer; a share of each prompt is cached already, where it does not come with hashes of its blocks. With them, a prompt looks for its blocks in the
rank's caches (`prefix`) when it is admitted and again when its first chunk is scheduled, and its own can be found from then on.

A replica of one phase takes parts of requests. `prefill` ends at the first token, and keeps the cache, without a slot, until `release`; `decode`
takes a request whose cache has come: it is admitted in turn like a prompt, and its first token, which came with the cache, leaves at that step
boundary. One that is preempted has its prompt computed here.

Left out: the front end, polling intervals, batch waits, stream intervals, block rounding (under 16 tokens a sequence), and prefixes in a replica that decodes only. With several
ranks the step is timed at the largest load of each kind over the ranks: exact for one rank, from above for more.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polypod.cost.steptime import StepTime, causal_pairs
from polypod.engine.closed_loop import Behaviour
from polypod.engine.imbalance import Imbalance
from polypod.engine.prefix import PrefixCache

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
PLAIN = Behaviour()
EVEN = Imbalance(cv=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What bounds a batch. Sequences and cache are over all data-parallel ranks, the token budget is per rank."""

    max_sequences: int
    max_step_tokens: int
    kv_capacity_tokens: int
    behaviour: Behaviour = PLAIN  # its own step budget is not used here


@dataclass(frozen=True, slots=True)
class Progress:
    """A request gave its first token, or its last, or its prompt is computed and its cache kept."""

    at_s: float
    request: int
    kind: Literal["first", "finished", "prefilled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Glimpse:
    """An engine at one moment: requests and cache there now, seconds and tokens since its start."""

    running: int
    waiting: int
    kv_tokens: int
    busy_s: float
    prompt_busy_s: float  # in steps that carry prompts
    prompt_tokens: int
    output_tokens: float


@dataclass(slots=True, kw_only=True, eq=False)
class _Sequence:
    request: int
    prompt_tokens: (
        int  # to compute before its next token; after a preemption, what it had generated too
    )
    output_tokens: int  # still to give
    hashes: Sequence[int] = ()  # of its full blocks; those past the prompt are of what it answers
    held: int = 0  # of its blocks, the first so many
    loads: tuple[int, int] = (
        0,
        0,
    )  # blocks that its first chunk waits for, from host memory and the remote store
    is_scheduled: bool = False  # its first chunk was
    computed: int = 0
    rank: int = -1
    finish_step: int = -1
    told_first: bool = False
    ends_at_first: bool = False  # its cache is kept then
    since_s: float = 0.0  # when it came
    has_cache: bool = False  # it came with its cache


@dataclass(slots=True, kw_only=True)
class _Segment:
    """Steps that run without a change of the batch; more than one only while nothing is in prefill."""

    start_s: float
    steps: int
    first_step_s: float
    growth_s: float
    chunks: list[tuple[_Sequence, int]]
    decodes: bool = True

    def after_s(self, steps: int) -> float:
        return self.start_s + steps * self.first_step_s + self.growth_s * steps * (steps - 1) / 2

    @property
    def end_s(self) -> float:
        return self.after_s(self.steps)

    def steps_until(self, at_s: float) -> int:
        """The fewest steps, at least one, whose end is not before `at_s`."""
        span_s = at_s - self.start_s
        linear = self.first_step_s - self.growth_s / 2
        if self.growth_s > 0:
            root = (
                math.sqrt(linear**2 + 2 * self.growth_s * max(span_s, 0.0)) - linear
            ) / self.growth_s
        else:
            root = span_s / linear
        steps = max(math.floor(root) - 1, 1)
        while steps < self.steps and self.after_s(steps) < at_s:
            steps += 1
        return min(steps, self.steps)

    def steps_ended(self, at_s: float) -> int:
        """Steps whose end is not after `at_s`."""
        steps = self.steps_until(at_s)
        return steps if self.after_s(steps) <= at_s else steps - 1


class ReplicaEmulation:
    """One replica on a virtual clock. Times given to it must not go back.

    >>> step = StepTime(tokens=(1, 101), seconds=(0.01, 0.02), kv_token_s=0.0, pair_s=0.0)
    >>> limits = EngineLimits(max_sequences=8, max_step_tokens=512, kv_capacity_tokens=10_000)
    >>> replica = ReplicaEmulation(step, limits)
    >>> replica.submit(0.0, request=1, prompt_tokens=101, output_tokens=11)
    >>> [(round(p.at_s, 3), p.kind) for p in replica.advance(1.0)]  # a 20 ms prompt, ten 10 ms steps
    [(0.02, 'first'), (0.12, 'finished')]
    """

    def __init__(
        self,
        step_time: StepTime,
        limits: EngineLimits,
        *,
        prefix: PrefixCache | None = None,
        imbalance: Imbalance = EVEN,
    ) -> None:
        self.prefix = prefix
        self.step_time = step_time
        self.limits = limits
        self.busy_s = 0.0
        self.computed_tokens = 0
        self.preemptions = 0
        self._prompt_busy_s = 0.0
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._behaviour = limits.behaviour
        self._given = limits.behaviour.tokens_per_step  # tokens a sequence gets from a step
        self._checked = 1 + limits.behaviour.drafts  # tokens of it that the step computes
        self._drafting = limits.behaviour.drafts * limits.behaviour.draft_share
        self._ranks = step_time.data_ranks
        self._rank_kv_capacity = limits.kv_capacity_tokens // self._ranks
        self._rank_kv_limit_R = np.full(self._ranks, self._rank_kv_capacity, dtype=np.int64)
        """What a rank's sequences may count together: blocks that several share are counted by each."""
        self._imbalance = imbalance
        self._segments = 0
        self._rank_max_sequences = max(limits.max_sequences // self._ranks, 1)
        self._waiting: deque[_Sequence] = deque()
        self._prefilling: dict[int, list[_Sequence]] = {}  # of the ranks that have any
        self._decoding: list[dict[int, _Sequence]] = [{} for _ in range(self._ranks)]
        # Per rank (R): decoding sequences, prompts in prefill, and cached tokens of each. A decoding rank's cache grows by
        # the tokens a step gives each sequence, so it is kept as what it would have been at step 0.
        self._sequences_R = np.zeros(self._ranks, dtype=np.int64)
        self._prompts_R = np.zeros(self._ranks, dtype=np.int64)
        self._decode_kv_at_0_R = np.zeros(self._ranks)
        self._prompt_kv_R = np.zeros(self._ranks, dtype=np.int64)
        self._decoders = 0
        self._finishes: list[tuple[int, int, _Sequence]] = []
        self._by_request: dict[int, _Sequence] = {}
        self._cancelled: set[int] = set()
        self._held: dict[int, _Sequence] = {}  # computed prompts; their cache counts as prompts'
        self._told: list[Progress] = []  # first tokens of admitted caches, not yet told
        self._step = 0
        self._order = 0
        self._segment: _Segment | None = None
        self._factor = 1.0  # of every step's time
        self._seen_s = 0.0  # what came until then may be in the next step
        self._waited = 0  # steps in which ranks without a prompt held up the others
        self._hangs = False

    @property
    def next_s(self) -> float:
        """When the batch changes next; infinite when idle. A later `submit` may bring it forward."""
        if self._told:
            return self._told[0].at_s
        return math.inf if self._segment is None else self._segment.end_s

    def next_step_s(self, at_s: float) -> float:
        """When the first step ends that has not by `at_s`, which is what a stream of tokens waits for; infinite when idle."""
        segment = self._segment
        if self._told or segment is None:
            return self.next_s
        return segment.after_s(min(segment.steps_ended(at_s) + 1, segment.steps))

    def tokens_left(self, request: int, at_s: float) -> int:
        """Tokens that a request has still to give, of one played until `at_s`; 0 where it is unknown or finished.

        >>> step = StepTime(tokens=(1, 101), seconds=(0.01, 0.02), kv_token_s=0.0, pair_s=0.0)
        >>> limits = EngineLimits(max_sequences=8, max_step_tokens=512, kv_capacity_tokens=10_000)
        >>> replica = ReplicaEmulation(step, limits)
        >>> replica.submit(0.0, request=1, prompt_tokens=101, output_tokens=11)
        >>> replica.advance(0.055)[0].kind, replica.tokens_left(1, 0.055)  # one after 20 ms, then one each 10 ms
        ('first', 7)
        >>> round(replica.next_step_s(0.055), 3)
        0.06
        """
        sequence = self._by_request.get(request)
        if sequence is None:
            return 0
        if sequence.finish_step < 0:
            return sequence.output_tokens
        segment, step = self._segment, self._step
        if segment is not None and segment.decodes:
            step += segment.steps_ended(at_s)
        ahead = sequence.finish_step - step
        steps = math.ceil(sequence.output_tokens / self._given) - ahead
        return sequence.output_tokens - min(round(steps * self._given), sequence.output_tokens)

    @property
    def running(self) -> int:
        return self._decoders + sum(map(len, self._prefilling.values()))

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_tokens(self) -> int:
        """Cached tokens of admitted sequences, as of the last batch change."""
        return int(sum(self._rank_kv(rank) for rank in range(self._ranks)))

    def glimpse(self, at_s: float) -> Glimpse:
        """What runs, and what was done until now; of the running segment its share of decode tokens, and no prompt tokens yet."""
        segment = self._segment
        busy_s = prompt_busy_s = output_tokens = 0.0
        if segment is not None:
            busy_s = max(min(at_s, segment.end_s) - segment.start_s, 0.0)
            prompt_busy_s = busy_s if segment.chunks else 0.0
            if segment.decodes and busy_s > 0:
                fraction = busy_s / (segment.end_s - segment.start_s)
                output_tokens = fraction * (segment.steps * self._given * self._decoders)
        return Glimpse(
            running=self.running,
            waiting=self.waiting,
            kv_tokens=self.kv_tokens,
            busy_s=self.busy_s + busy_s,
            prompt_busy_s=self._prompt_busy_s + prompt_busy_s,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens + output_tokens,
        )

    def submit(
        self,
        at_s: float,
        *,
        request: int,
        prompt_tokens: int,
        output_tokens: int,
        hashes: Sequence[int] = (),
    ) -> None:
        """Hand the engine a request, with the hashes of its blocks if it has any. Raises `ValueError` for one that can never fit."""
        sequence = _Sequence(
            request=request,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            hashes=() if self.prefix is None else hashes,
        )
        self._enter(at_s, sequence)

    def prefill(
        self, at_s: float, *, request: int, prompt_tokens: int, hashes: Sequence[int] = ()
    ) -> None:
        """Hand it a prompt alone. Raises `ValueError` for one that can never fit."""
        sequence = _Sequence(
            request=request,
            prompt_tokens=prompt_tokens,
            output_tokens=1,
            hashes=() if self.prefix is None else hashes,
            ends_at_first=True,
        )
        self._enter(at_s, sequence)

    def decode(self, at_s: float, *, request: int, prompt_tokens: int, output_tokens: int) -> None:
        """Hand it a request with the cache of its prompt. Raises `ValueError` for one that can never fit."""
        sequence = _Sequence(
            request=request,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            has_cache=True,
        )
        self._enter(at_s, sequence)

    def release(self, at_s: float, request: int) -> None:
        """Free the cache of a computed prompt; one that is unknown is ignored."""
        sequence = self._held.pop(request, None)
        if sequence is not None:
            self._prompt_kv_R[sequence.rank] -= sequence.prompt_tokens
            self._leave_blocks(sequence)
            if self._waiting:
                self._change(at_s)

    def _enter(self, at_s: float, sequence: _Sequence) -> None:
        request = sequence.request
        prompt_tokens, output_tokens = sequence.prompt_tokens, sequence.output_tokens
        if prompt_tokens < 1 or output_tokens < 1:
            msg = f"request {request} needs at least 1 token each way, got {prompt_tokens} in and {output_tokens} out"
            raise ValueError(msg)
        if prompt_tokens + output_tokens > self._rank_kv_capacity:
            msg = (
                f"request {request} needs {prompt_tokens + output_tokens} cached tokens, "
                f"a data-parallel rank holds {self._rank_kv_capacity}"
            )
            raise ValueError(msg)
        sequence.since_s = at_s
        self._by_request[request] = sequence
        blocked = bool(self._waiting)
        self._waiting.append(sequence)
        if not blocked or self._is_between(at_s):
            self._change(at_s)

    def _change(self, at_s: float) -> None:
        """Make the batch anew, now or at the first step boundary from now on."""
        if self._is_between(at_s):
            self._compose(at_s)
        else:
            self._cut(at_s)

    def _is_between(self, at_s: float) -> bool:
        """Idle, or the batch is being made at this very moment."""
        return self._segment is None or self._segment.start_s >= at_s

    def cancel(self, at_s: float, request: int) -> None:
        """Drop a request at the next step boundary, the cache of a computed prompt at once; one that is unknown or finished is ignored."""
        self.release(at_s, request)
        if request in self._by_request:
            self._cancelled.add(request)
            if self._segment is None:  # caches that are kept hold up all that wait
                self._drop_cancelled()
                self._compose(at_s)
            self._cut(at_s)

    def speed(self, at_s: float, factor: float) -> None:
        """From the next step boundary on, steps take `factor` times as long as told; 1 is as told."""
        self._factor = factor
        self._cut(at_s)

    def hang(self) -> None:
        """Stop for good, with all that is aboard."""
        self._hangs = True
        self._segment = None
        self._told = []

    def advance(self, to_s: float) -> list[Progress]:
        """Play until `to_s`, that moment included; return what happened, in time order."""
        progress, self._told = self._told, []
        while self._segment is not None and self._segment.end_s <= to_s:
            segment = self._segment
            end_s = segment.end_s
            self._seen_s = segment.after_s(segment.steps - 1)
            self.busy_s += end_s - segment.start_s
            if segment.chunks:
                self._prompt_busy_s += end_s - segment.start_s
            if segment.decodes:
                self._end_steps(segment.steps)
            if self._behaviour.balance_steps:
                self._waited = (self._waited + segment.steps - 1) % self._behaviour.balance_steps
            self._trim_blocks(0.0)
            self._finish_decodes(end_s, progress)
            self._end_chunks(segment, end_s, progress)
            self._drop_cancelled()
            self._compose(end_s)
            progress += self._told
            self._told = []
        return progress

    # ---- a segment ends

    def _decode_kv_R(self) -> Floats:
        """Cached tokens of each rank's decoding sequences, at this step."""
        return self._decode_kv_at_0_R + self._sequences_R * (self._given * self._step)

    def _end_steps(self, steps: int) -> None:
        self._step += steps
        generated = round(steps * self._given * self._decoders)
        self.computed_tokens += generated
        self._output_tokens += generated

    def _finish_decodes(self, at_s: float, progress: list[Progress]) -> None:
        while self._finishes and self._finishes[0][0] <= self._step:
            finish_step, _, sequence = heapq.heappop(self._finishes)
            if sequence.finish_step == finish_step and sequence.request in self._by_request:
                self._leave_decoding(sequence)
                self._leave_blocks(sequence)
                self._by_request.pop(sequence.request)
                if sequence.request not in self._cancelled:
                    progress.append(Progress(at_s, sequence.request, "finished"))

    def _end_chunks(self, segment: _Segment, at_s: float, progress: list[Progress]) -> None:
        for sequence, tokens in segment.chunks:
            sequence.computed += tokens
            sequence.loads = (0, 0)
            self._prompt_kv_R[sequence.rank] += tokens
            self.computed_tokens += tokens
            self._prompt_tokens += tokens
            if sequence.computed == sequence.prompt_tokens:
                self._leave_prefill(sequence)
                if sequence.ends_at_first:
                    self._hold(sequence, at_s, progress)
                else:
                    self._first_token(sequence, at_s, progress)

    def _hold(self, sequence: _Sequence, at_s: float, progress: list[Progress]) -> None:
        del self._by_request[sequence.request]
        if sequence.request in self._cancelled:
            self._leave_blocks(sequence)
        else:
            self._held[sequence.request] = sequence
            self._prompt_kv_R[sequence.rank] += sequence.prompt_tokens
            progress.append(Progress(at_s, sequence.request, "prefilled"))

    def _first_token(self, sequence: _Sequence, at_s: float, progress: list[Progress]) -> None:
        gone = sequence.request in self._cancelled
        if not sequence.told_first and not gone:
            progress.append(Progress(at_s, sequence.request, "first"))
        sequence.told_first = True
        self._output_tokens += 1
        sequence.output_tokens -= 1
        if sequence.output_tokens == 0:
            self._leave_blocks(sequence)
            self._by_request.pop(sequence.request)
            if not gone:
                progress.append(Progress(at_s, sequence.request, "finished"))
            return
        sequence.finish_step = self._step + math.ceil(sequence.output_tokens / self._given)
        self._order += 1
        heapq.heappush(self._finishes, (sequence.finish_step, self._order, sequence))
        self._decoding[sequence.rank][sequence.request] = sequence
        self._decoders += 1
        self._sequences_R[sequence.rank] += 1
        self._decode_kv_at_0_R[sequence.rank] += sequence.prompt_tokens - self._given * self._step

    def _drop_cancelled(self) -> None:
        for request in sorted(self._cancelled):
            sequence = self._by_request.pop(request, None)
            if sequence is None:
                continue
            if sequence.rank < 0:
                self._waiting.remove(sequence)
                continue
            if request in self._decoding[sequence.rank]:
                self._leave_decoding(sequence)
            else:
                self._leave_prefill(sequence)
            self._leave_blocks(sequence)
        self._cancelled.clear()

    def _leave_prefill(self, sequence: _Sequence) -> None:
        prefilling = self._prefilling[sequence.rank]
        prefilling.remove(sequence)
        if not prefilling:
            del self._prefilling[sequence.rank]
        self._prompts_R[sequence.rank] -= 1
        self._prompt_kv_R[sequence.rank] -= sequence.computed

    def _leave_decoding(self, sequence: _Sequence) -> None:
        del self._decoding[sequence.rank][sequence.request]
        steps = math.ceil(sequence.output_tokens / self._given) - (sequence.finish_step - self._step)  # fmt: skip
        generated = min(round(steps * self._given), sequence.output_tokens)
        self._decoders -= 1
        self._sequences_R[sequence.rank] -= 1
        kept = sequence.prompt_tokens + (steps - self._step) * self._given
        self._decode_kv_at_0_R[sequence.rank] -= kept
        sequence.output_tokens -= generated
        sequence.prompt_tokens += generated
        sequence.finish_step = -1
        self._keep_blocks(
            sequence, sequence.prompt_tokens
        )  # its answer's too, as far as their hashes are known

    # ---- blocks that are cached

    def _find_blocks(self, sequence: _Sequence) -> None:
        """Hold what the caches have of its prompt after what it holds already; the last token is computed in any case."""
        prefix = self.prefix
        most = self._prompt_blocks(sequence)
        if prefix is None or most <= sequence.held:
            return
        before = prefix.found_K.tolist()
        held = prefix.acquire(sequence.rank, sequence.hashes, sequence.held, most)
        _, host, remote = (now - then for now, then in zip(prefix.found_K.tolist(), before, strict=True))  # fmt: skip
        found = (held - sequence.held) * prefix.block_tokens
        sequence.loads = (sequence.loads[0] + host, sequence.loads[1] + remote)
        sequence.held = held
        sequence.computed += found
        self._prompt_kv_R[sequence.rank] += found
        self._count_shared(sequence.rank)

    def _prompt_blocks(self, sequence: _Sequence) -> int:
        """Full blocks of its prompt that may be found."""
        if self.prefix is None or not sequence.hashes:
            return 0
        return min((sequence.prompt_tokens - 1) // self.prefix.block_tokens, len(sequence.hashes))

    def _keep_blocks(self, sequence: _Sequence, computed: int) -> None:
        """Let what it has computed, or does in this step, be found."""
        if self.prefix is None or not sequence.hashes:
            return
        most = min(computed // self.prefix.block_tokens, len(sequence.hashes))
        if most > sequence.held:
            sequence.held = self.prefix.keep(sequence.rank, sequence.hashes, sequence.held, most)
            self._count_shared(sequence.rank)

    def _leave_blocks(self, sequence: _Sequence) -> None:
        """Let go of its blocks, which stay until their room is needed."""
        if self.prefix is None or not sequence.hashes:
            return
        self.prefix.leave(sequence.rank, sequence.hashes, sequence.held)
        sequence.held = 0
        self._count_shared(sequence.rank)

    def _count_shared(self, rank: int) -> None:
        assert self.prefix is not None
        shared = self.prefix.shared_tokens(rank)
        self._rank_kv_limit_R[rank] = self._rank_kv_capacity + shared

    def _trim_blocks(self, given: float, chunks: Sequence[tuple[_Sequence, int]] = ()) -> None:
        """Evict what no sequence uses where its room is needed: by what the sequences have, so many tokens more of those that decode, and the chunks."""
        prefix = self.prefix
        if prefix is None:
            return
        room_R = self._rank_kv_limit_R - self._decode_kv_R() - self._prompt_kv_R
        room_R -= given * self._sequences_R
        for sequence, tokens in chunks:
            room_R[sequence.rank] -= tokens
        for rank, room in enumerate(room_R.tolist()):
            if prefix.idle_tokens(rank) > room:
                prefix.trim(rank, room)

    def _load_s(self, chunks: Sequence[tuple[_Sequence, int]]) -> float:
        """Seconds to load what the prompts that start in this step found below HBM."""
        host = remote = 0
        for sequence, _ in chunks:
            host, remote = host + sequence.loads[0], remote + sequence.loads[1]
        return 0.0 if self.prefix is None else self.prefix.load_s(host, remote)

    # ---- the next one begins

    def _compose(self, at_s: float) -> None:
        if self._hangs:
            return
        decode_kv = self._preempt()
        self._trim_blocks(self._given)
        if not self._behaviour.schedules_ahead or not self.running:
            self._seen_s = at_s
        if self._admit(at_s):
            decode_kv = float(self._decode_kv_R().max())
        sequences = int(self._sequences_R.max())
        withheld = self._is_withheld()
        chunks, tokens, pairs = ([], self._checked * sequences, 0.0) if withheld else self._chunks()
        self._trim_blocks(self._given, chunks)
        if not chunks and not sequences:
            self._segment = None
            return
        decodes = not (chunks and self._behaviour.exclusive_prefill)
        is_single = chunks or withheld or self._has_unseen()
        steps = 1 if is_single else self._steps_ahead()
        factor = self._factor * self._imbalance.factor(self._segments, steps)
        self._segments += 1
        growth_s = self.step_time.kv_token_s * sequences * self._given * (1 + self._drafting)
        step_s = self._step_s(tokens, pairs, decode_kv, sequences if decodes else 0)
        self._segment = _Segment(
            start_s=at_s,
            steps=steps,
            first_step_s=max(factor * step_s, self._load_s(chunks)),
            growth_s=factor * growth_s,
            chunks=chunks,
            decodes=decodes,
        )

    def _step_s(self, tokens: float, pairs: float, decode_kv: float, sequences: int) -> float:
        """One step of the busiest rank; drafts are made in a part of a decode step each."""
        if not sequences:
            return self.step_time.step_s(tokens=tokens, pairs=pairs)
        step_s = self.step_time.step_s(
            tokens=tokens, pairs=pairs, kv_tokens=decode_kv, sequences=sequences
        )
        if not self._drafting:
            return step_s
        verified = sequences * self._checked
        return step_s + self._drafting * self.step_time.step_s(
            tokens=verified, kv_tokens=decode_kv, sequences=sequences
        )

    def _preempt(self) -> float:
        """Make room for the next token of every decoding sequence, the last admitted going first.

        Return the largest cache that a rank's decoding sequences read.
        """
        decode_kv_R = self._decode_kv_R()
        wanted_R = decode_kv_R + self._given * self._sequences_R + self._prompt_kv_R
        full_R = wanted_R > self._rank_kv_limit_R
        if not full_R.any():
            return float(decode_kv_R.max())
        for rank in np.flatnonzero(full_R).tolist():
            self._preempt_rank(rank)
        return float(self._decode_kv_R().max())

    def _preempt_rank(self, rank: int) -> None:
        decoding = self._decoding[rank]
        while (
            decoding
            and self._rank_kv(rank) + self._given * len(decoding) > self._rank_kv_limit_R[rank]
        ):
            if len(decoding) == 1 and rank not in self._prefilling:
                return  # alone it fits: submit saw to that
            sequence = decoding[next(reversed(decoding))]
            self._leave_decoding(sequence)
            self._leave_blocks(sequence)
            sequence.computed = 0
            sequence.is_scheduled = False
            sequence.has_cache = False
            sequence.rank = -1
            self._waiting.appendleft(sequence)
            self.preemptions += 1

    def _rank_kv(self, rank: int) -> float:
        steps = self._given * self._step
        decode_kv = self._decode_kv_at_0_R[rank] + self._sequences_R[rank] * steps
        return float(decode_kv + self._prompt_kv_R[rank])

    def _admit(self, at_s: float) -> bool:
        """Admit in turn; whether caches came."""
        came = False
        while self._waiting:
            head = self._waiting[0]
            if head.since_s > self._seen_s:
                break
            rank = self._roomiest()
            prefilling = self._prefilling.get(rank, [])
            reserved = sum(one.prompt_tokens - one.computed for one in prefilling)
            decoding = len(self._decoding[rank])
            need = self._rank_kv(rank) + reserved + head.prompt_tokens + decoding + 1
            if decoding + len(prefilling) >= self._rank_max_sequences or not self._has_kv(rank, head, need):  # fmt: skip
                break
            self._waiting.popleft()
            head.rank = rank
            if head.has_cache:
                self._first_token(head, at_s, self._told)
                came = True
                continue
            self._begin_prompt(head)
            self._prefilling.setdefault(rank, []).append(head)
            self._prompts_R[rank] += 1
        return came

    def _is_withheld(self) -> bool:
        """Whether prompts wait for ranks that have none; called once a step."""
        most = self._behaviour.balance_steps
        if not most or self._ranks == 1:
            return False
        self._waited = 0 if len(self._prefilling) == self._ranks else self._waited + 1
        if self._waited >= most or not self._sequences_R.all():
            self._waited = 0
        return self._waited > 0 and bool(self._prefilling)

    def _has_unseen(self) -> bool:
        """Whether the next in turn came too late for this step."""
        return bool(self._waiting) and self._waiting[0].since_s > self._seen_s

    def _begin_prompt(self, head: _Sequence) -> None:
        """Take what is cached of a prompt that is admitted."""
        if head.hashes:
            self._find_blocks(head)
            return
        head.computed = int(self._behaviour.prefix_hits * head.prompt_tokens)
        self._prompt_kv_R[head.rank] += head.computed

    def _has_kv(self, rank: int, head: _Sequence, need: float) -> bool:
        """Whether the rank holds so many tokens more; leading blocks that others hold take no room."""
        limit = int(self._rank_kv_limit_R[rank])
        if need > limit and self.prefix is not None and head.hashes:
            ahead = self.prefix.held_ahead(rank, head.hashes, self._prompt_blocks(head))
            need -= ahead * self.prefix.block_tokens
        return need <= limit

    def _roomiest(self) -> int:
        """The rank with the fewest prompts, then the fewest sequences, then the least cache in use."""
        if self._ranks == 1:
            return 0
        counts_R = (self._prompts_R << 20) + self._sequences_R
        least_R = np.flatnonzero(counts_R == counts_R.min())
        return int(least_R[np.argmin((self._decode_kv_R() + self._prompt_kv_R)[least_R])])

    def _chunks(self) -> tuple[list[tuple[_Sequence, int]], float, float]:
        """Prompt chunks of the next step, and the busiest rank's tokens and pairs, those that a pipeline's other stages wait for with them."""
        chunks: list[tuple[_Sequence, int]] = []
        shared = 0.0 if self._behaviour.exclusive_prefill and self._prefilling else self._checked
        most_tokens, most_pairs = shared * int(self._sequences_R.max()), 0.0
        budget, stages = self.limits.max_step_tokens, self.step_time.stages
        for rank, prefilling in self._prefilling.items():
            decoded = shared * len(self._decoding[rank])
            tokens, pairs, count = decoded, 0.0, 0
            for sequence in prefilling:
                room = int(budget - tokens)
                if room <= 0 or (count and self._is_cut(sequence, room)):
                    break
                chunk = self._chunk(sequence, room)
                chunks.append((sequence, chunk))
                pairs += causal_pairs(chunk, sequence.computed)
                tokens += chunk
                count += 1
            bubbles = stages / min(stages, max(count, 1))
            tokens, pairs = decoded + bubbles * (tokens - decoded), bubbles * pairs
            if tokens > most_tokens:
                most_tokens = tokens
            if pairs > most_pairs:
                most_pairs = pairs
        return chunks, most_tokens, most_pairs

    def _is_cut(self, sequence: _Sequence, room: int) -> bool:
        """Whether it would be cut by an engine that does not."""
        left = sequence.prompt_tokens - sequence.computed
        return self._behaviour.whole_prompts and left > room

    def _chunk(self, sequence: _Sequence, room: int) -> int:
        """Tokens of the sequence in this step; what others have computed since it came in, it need not."""
        if not sequence.hashes:
            return min(room, sequence.prompt_tokens - sequence.computed)
        if not sequence.is_scheduled:
            self._find_blocks(sequence)
            sequence.is_scheduled = True
        chunk = min(room, sequence.prompt_tokens - sequence.computed)
        self._keep_blocks(sequence, sequence.computed + chunk)
        return chunk

    def _steps_ahead(self) -> int:
        """Pure decode goes on until a sequence finishes or a rank's cache is full."""
        while self._finishes[0][2].finish_step != self._finishes[0][0]:
            heapq.heappop(self._finishes)  # preempted or cancelled since
        steps = self._finishes[0][0] - self._step
        room_R = self._rank_kv_limit_R - self._decode_kv_R() - self._prompt_kv_R
        if room_R.min() >= steps * self._given * int(self._sequences_R.max()):
            return steps
        full_R = room_R // (self._given * np.maximum(self._sequences_R, 1))
        return max(min(steps, int(full_R[self._sequences_R > 0].min())), 1)

    def _cut(self, at_s: float) -> None:
        """Let the running segment end at the first step boundary from `at_s` on."""
        segment = self._segment
        if segment is not None and segment.steps > 1:
            segment.steps = segment.steps_until(at_s)
