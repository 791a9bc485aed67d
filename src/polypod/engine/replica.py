"""One engine instance under continuous batching with chunked prefill and a paged KV cache.

What is emulated, as vLLM's scheduler does it: at every step boundary waiting prompts are admitted first come first served
while a sequence slot and KV room are free; a step computes one token of each decoding sequence plus prompt chunks up to the
token budget; the step that completes a prompt gives its first token; when the cache overflows, the sequence admitted last
is preempted and its tokens are computed again later. Data-parallel ranks step together, each with its own sequences and
cache; a prompt sits on one rank.

Between batch changes decode advances in closed form. With `a` the first step's time and `g` its growth per step (every
sequence lengthens by one cached token), m steps take

    m * a + g * m * (m - 1) / 2

so the cost of an emulation grows with batch changes, not with tokens.

Left out: speculative tokens, prefix hits, exclusive prefill, block rounding (under 16 tokens a sequence). With several
ranks the step is timed at the largest load of each kind over the ranks: exact for one rank, from above for more.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

from polypod.cost.steptime import StepTime, causal_pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What bounds a batch. Sequences and cache are over all data-parallel ranks, the token budget is per rank."""

    max_sequences: int
    max_step_tokens: int
    kv_capacity_tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A request gave its first token, or its last."""

    at_s: float
    request: int
    kind: Literal["first", "finished"]


@dataclass(slots=True, kw_only=True, eq=False)
class _Sequence:
    request: int
    prompt_tokens: (
        int  # to compute before its next token; after a preemption, what it had generated too
    )
    output_tokens: int  # still to give
    computed: int = 0
    rank: int = -1
    finish_step: int = -1
    told_first: bool = False


@dataclass(slots=True, kw_only=True)
class _Segment:
    """Steps that run without a change of the batch; more than one only while nothing is in prefill."""

    start_s: float
    steps: int
    first_step_s: float
    growth_s: float
    chunks: list[tuple[_Sequence, int]]

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


class ReplicaEmulation:
    """One replica on a virtual clock. Times given to it must not go back.

    >>> step = StepTime(tokens=(1, 101), seconds=(0.01, 0.02), kv_token_s=0.0, pair_s=0.0)
    >>> limits = EngineLimits(max_sequences=8, max_step_tokens=512, kv_capacity_tokens=10_000)
    >>> replica = ReplicaEmulation(step, limits)
    >>> replica.submit(0.0, request=1, prompt_tokens=101, output_tokens=11)
    >>> [(round(p.at_s, 3), p.kind) for p in replica.advance(1.0)]  # a 20 ms prompt, ten 10 ms steps
    [(0.02, 'first'), (0.12, 'finished')]
    """

    def __init__(self, step_time: StepTime, limits: EngineLimits) -> None:
        self.step_time = step_time
        self.limits = limits
        self.busy_s = 0.0
        self.computed_tokens = 0
        self.preemptions = 0
        self._ranks = step_time.data_ranks
        self._rank_kv_capacity = limits.kv_capacity_tokens // self._ranks
        self._rank_max_sequences = max(limits.max_sequences // self._ranks, 1)
        self._waiting: deque[_Sequence] = deque()
        self._prefilling: list[list[_Sequence]] = [[] for _ in range(self._ranks)]
        self._decoding: list[dict[int, _Sequence]] = [{} for _ in range(self._ranks)]
        self._kv_tokens = [0] * self._ranks
        self._finishes: list[tuple[int, int, _Sequence]] = []
        self._by_request: dict[int, _Sequence] = {}
        self._cancelled: set[int] = set()
        self._step = 0
        self._order = 0
        self._segment: _Segment | None = None

    @property
    def next_s(self) -> float:
        """When the batch changes next; infinite when idle. A later `submit` may bring it forward."""
        return math.inf if self._segment is None else self._segment.end_s

    @property
    def running(self) -> int:
        return sum(map(len, self._decoding)) + sum(map(len, self._prefilling))

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_tokens(self) -> int:
        """Cached tokens of admitted sequences, as of the last batch change."""
        return sum(self._kv_tokens)

    def submit(self, at_s: float, *, request: int, prompt_tokens: int, output_tokens: int) -> None:
        """Hand the engine a request. Raises `ValueError` for one that can never fit."""
        if prompt_tokens < 1 or output_tokens < 1:
            msg = f"request {request} needs at least 1 token each way, got {prompt_tokens} in and {output_tokens} out"
            raise ValueError(msg)
        if prompt_tokens + output_tokens > self._rank_kv_capacity:
            msg = (
                f"request {request} needs {prompt_tokens + output_tokens} cached tokens, "
                f"a data-parallel rank holds {self._rank_kv_capacity}"
            )
            raise ValueError(msg)
        sequence = _Sequence(
            request=request, prompt_tokens=prompt_tokens, output_tokens=output_tokens
        )
        self._by_request[request] = sequence
        blocked = bool(self._waiting)
        self._waiting.append(sequence)
        if self._segment is None or self._segment.start_s >= at_s:
            self._compose(at_s)  # idle, or the batch is being made at this very moment
        elif not blocked:
            self._cut(at_s)

    def cancel(self, at_s: float, request: int) -> None:
        """Drop a request at the next step boundary; one that is unknown or finished is ignored."""
        if request in self._by_request:
            self._cancelled.add(request)
            self._cut(at_s)

    def advance(self, to_s: float) -> list[Progress]:
        """Play until `to_s`, that moment included; return what happened, in time order."""
        progress: list[Progress] = []
        while self._segment is not None and self._segment.end_s <= to_s:
            segment = self._segment
            end_s = segment.end_s
            self.busy_s += end_s - segment.start_s
            self._end_steps(segment.steps)
            self._finish_decodes(end_s, progress)
            self._end_chunks(segment, end_s, progress)
            self._drop_cancelled()
            self._compose(end_s)
        return progress

    # ---- a segment ends

    def _end_steps(self, steps: int) -> None:
        self._step += steps
        for rank, decoding in enumerate(self._decoding):
            grown = steps * len(decoding)
            self._kv_tokens[rank] += grown
            self.computed_tokens += grown

    def _finish_decodes(self, at_s: float, progress: list[Progress]) -> None:
        while self._finishes and self._finishes[0][0] <= self._step:
            finish_step, _, sequence = heapq.heappop(self._finishes)
            if sequence.finish_step == finish_step and sequence.request in self._by_request:
                self._leave_decoding(sequence)
                self._by_request.pop(sequence.request)
                if sequence.request not in self._cancelled:
                    progress.append(Progress(at_s, sequence.request, "finished"))

    def _end_chunks(self, segment: _Segment, at_s: float, progress: list[Progress]) -> None:
        for sequence, tokens in segment.chunks:
            sequence.computed += tokens
            self._kv_tokens[sequence.rank] += tokens
            self.computed_tokens += tokens
            if sequence.computed == sequence.prompt_tokens:
                self._prefilling[sequence.rank].remove(sequence)
                self._first_token(sequence, at_s, progress)

    def _first_token(self, sequence: _Sequence, at_s: float, progress: list[Progress]) -> None:
        gone = sequence.request in self._cancelled
        if not sequence.told_first and not gone:
            progress.append(Progress(at_s, sequence.request, "first"))
        sequence.told_first = True
        sequence.output_tokens -= 1
        if sequence.output_tokens == 0:
            self._kv_tokens[sequence.rank] -= sequence.computed
            self._by_request.pop(sequence.request)
            if not gone:
                progress.append(Progress(at_s, sequence.request, "finished"))
            return
        sequence.finish_step = self._step + sequence.output_tokens
        self._order += 1
        heapq.heappush(self._finishes, (sequence.finish_step, self._order, sequence))
        self._decoding[sequence.rank][sequence.request] = sequence

    def _drop_cancelled(self) -> None:
        for request in self._cancelled:
            sequence = self._by_request.pop(request, None)
            if sequence is None:
                continue
            if sequence.rank < 0:
                self._waiting.remove(sequence)
            elif request in self._decoding[sequence.rank]:
                self._leave_decoding(sequence)
            else:
                self._prefilling[sequence.rank].remove(sequence)
                self._kv_tokens[sequence.rank] -= sequence.computed
        self._cancelled.clear()

    def _leave_decoding(self, sequence: _Sequence) -> None:
        del self._decoding[sequence.rank][sequence.request]
        generated = sequence.output_tokens - (sequence.finish_step - self._step)
        self._kv_tokens[sequence.rank] -= sequence.prompt_tokens + generated
        sequence.output_tokens -= generated
        sequence.prompt_tokens += generated

    # ---- the next one begins

    def _compose(self, at_s: float) -> None:
        self._preempt()
        self._admit()
        chunks, tokens, pairs = self._chunks()
        sequences = max(map(len, self._decoding))
        if not chunks and not sequences:
            self._segment = None
            return
        self._segment = _Segment(
            start_s=at_s,
            steps=1 if chunks else self._steps_ahead(),
            first_step_s=self.step_time.step_s(
                tokens=tokens,
                pairs=pairs,
                kv_tokens=self._decoding_kv_tokens(),
                sequences=sequences,
            ),
            growth_s=self.step_time.kv_token_s * sequences,
            chunks=chunks,
        )

    def _preempt(self) -> None:
        """Make room for the next token of every decoding sequence; the last admitted goes first."""
        for rank, decoding in enumerate(self._decoding):
            while decoding and self._kv_tokens[rank] + len(decoding) > self._rank_kv_capacity:
                if len(decoding) == 1 and not self._prefilling[rank]:
                    break  # alone it fits: submit saw to that
                _, sequence = decoding.popitem()
                decoding[sequence.request] = sequence
                self._leave_decoding(sequence)
                sequence.finish_step = -1
                sequence.computed = 0
                sequence.rank = -1
                self._waiting.appendleft(sequence)
                self.preemptions += 1

    def _admit(self) -> None:
        while self._waiting:
            head = self._waiting[0]
            rank = self._roomiest()
            reserved = sum(one.prompt_tokens - one.computed for one in self._prefilling[rank])
            need = (
                self._kv_tokens[rank]
                + reserved
                + head.prompt_tokens
                + len(self._decoding[rank])
                + 1
            )
            slots = len(self._decoding[rank]) + len(self._prefilling[rank])
            if need > self._rank_kv_capacity or slots >= self._rank_max_sequences:
                return
            self._waiting.popleft()
            head.rank = rank
            self._prefilling[rank].append(head)

    def _roomiest(self) -> int:
        """The rank with the fewest sequences, then the least cache in use."""
        if self._ranks == 1:
            return 0
        loads = [
            (len(prefilling), len(decoding), kv, rank)
            for rank, (prefilling, decoding, kv) in enumerate(
                zip(self._prefilling, self._decoding, self._kv_tokens, strict=True)
            )
        ]
        return min(loads)[-1]

    def _chunks(self) -> tuple[list[tuple[_Sequence, int]], int, float]:
        """Prompt chunks of the next step, and the busiest rank's tokens and pairs."""
        chunks: list[tuple[_Sequence, int]] = []
        most_tokens, most_pairs = 0, 0.0
        for prefilling, decoding in zip(self._prefilling, self._decoding, strict=True):
            tokens, pairs = len(decoding), 0.0
            for sequence in prefilling:
                room = self.limits.max_step_tokens - tokens
                if room <= 0:
                    break
                chunk = min(room, sequence.prompt_tokens - sequence.computed)
                chunks.append((sequence, chunk))
                pairs += causal_pairs(chunk, sequence.computed)
                tokens += chunk
            most_tokens, most_pairs = max(most_tokens, tokens), max(most_pairs, pairs)
        return chunks, most_tokens, most_pairs

    def _decoding_kv_tokens(self) -> int:
        if not any(self._prefilling):
            return max(self._kv_tokens)
        return max(
            kv - sum(sequence.computed for sequence in prefilling)
            for kv, prefilling in zip(self._kv_tokens, self._prefilling, strict=True)
        )

    def _steps_ahead(self) -> int:
        """Pure decode goes on until a sequence finishes or a rank's cache is full."""
        while self._finishes[0][2].finish_step != self._finishes[0][0]:
            heapq.heappop(self._finishes)  # preempted or cancelled since
        steps = self._finishes[0][0] - self._step
        for kv, decoding in zip(self._kv_tokens, self._decoding, strict=True):
            if decoding:
                steps = min(steps, max((self._rank_kv_capacity - kv) // len(decoding), 1))
        return steps

    def _cut(self, at_s: float) -> None:
        """Let the running segment end at the first step boundary from `at_s` on."""
        segment = self._segment
        if segment is not None and segment.steps > 1:
            segment.steps = segment.steps_until(at_s)
