"""Every co-located layout of a model on one island: enumerated, pruned with a count and a reason, scored in closed form.

For one layout, a batch of `b` sequences per data-parallel rank and prompt chunks of `k` tokens (arrays over both),

    decode_s    = step(b sequences, cache b * (input + output / 2))
    mixed_s     = the same step with a prompt chunk of k tokens in it
    chunks      = ceil(input / k) steps carry a prompt's chunks; over dp ranks, x = dp * b / output prompts start per step
    share       = 1 - exp(-x * chunks)        of the steps carry some rank's chunk, and all ranks wait for it
    step        = decode_s + share * (mixed_s - decode_s)
    TPOT        = step / g,  tokens/s = dp * b / TPOT          g tokens a step: 1 without drafts
    TTFT        = step / 2 + chunks * mixed_s                  without queueing, which `plan.confirm` emulates

An engine that computes prompts alone adds max(b g chunks / output, share) steps of a chunk to each decode step instead; of a prompt whose prefix
is cached the rest is computed.

A rank can keep up while its own prompts fit: (b / output) * chunks < 1. Data-parallel attention pays for this in co-located
service: the more ranks, the rarer a step without a prompt. Left out: length spread.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from polypod.cost.calibration import Case
from polypod.cost.deployment import Deployment
from polypod.cost.own import scale
from polypod.cost.roofline import Number
from polypod.engine.closed_loop import Behaviour
from polypod.engine.settings import NOTHING, EngineArgs, behaviour_of, tokens_per_step
from polypod.errors import LayoutError
from polypod.plan.place import Island
from polypod.workload.layout import Layout, check_layout, leaves_copies
from polypod.workload.model import Model
from polypod.workload.precision import Precision

Floats = NDArray[np.float64]

CHUNKS = (64, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16384)
"""Prompt tokens per step and rank worth asking. An engine's token budget is the chunk and one token per sequence."""

UTILISATION_LIMIT = 0.9
"""Of a rank's time, how much its prompts may take: past it the queue grows without end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked of a model. Lengths are means, in tokens; a limit that is None does not bind."""

    model: Model
    input_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    percentile: float = 99.0
    rate_per_s: float | None = None
    backend: str | None = None  # whose kernels and defaults; None: a blend, chunked prefill
    engine_args: EngineArgs = NOTHING

    def behaviour(self, concurrency: float) -> Behaviour:
        """How the engine schedules with so many requests on a replica."""
        return behaviour_of(self.engine_args, self.model, self.backend, concurrency)

    @property
    def cached_tokens(self) -> float:
        """Of a prompt, what is cached already in the mean."""
        return self.behaviour(1.0).prefix_hits * self.input_tokens

    @property
    def fresh_tokens(self) -> float:
        """Of a prompt, what is to be computed."""
        return self.input_tokens - self.cached_tokens

    def pairs(self, chunk: Number) -> Number:
        """Prompt token x context token pairs of so many tokens of prompts: all of what is cached is before them, and half of the rest."""
        return chunk * self.cached_tokens + mean_pairs(chunk, self.fresh_tokens)

    def given(self, sequences: Number) -> Number:
        """Tokens that a step gives each of so many sequences on a replica."""
        return tokens_per_step(self.engine_args, sequences)

    def decoding(self) -> tuple[float, float]:
        """Tokens drafted of each sequence and verified in a step, and such a step's time with making the drafts over its own."""
        engine = self.behaviour(1.0)
        # of models with a layer for drafts the step counts making them
        making = 0.0 if self.model.mtp_layers else engine.drafts * engine.draft_share
        return engine.drafts, 1 + making


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One layout at its best batch and budget that keeps the limits."""

    island: Island
    deployment: Deployment
    replicas: int
    sequences_per_rank: int
    max_step_tokens: int
    ttft_s: float
    tpot_s: float
    tokens_per_s: float  # output tokens of all the replicas

    @property
    def accelerators(self) -> float:
        return self.replicas * self.deployment.layout.world / self.island.rank.ranks_per_accelerator

    @property
    def tokens_per_s_per_accelerator(self) -> float:
        return self.tokens_per_s / self.accelerators

    @property
    def chunk_tokens(self) -> int:
        """Prompt tokens that fit beside a full batch."""
        return self.max_step_tokens - self.sequences_per_rank

    @property
    def sequences(self) -> int:
        """Running at once on one replica."""
        return self.sequences_per_rank * self.deployment.layout.dp


@dataclass(frozen=True, slots=True, kw_only=True)
class Miss:
    """A layout that holds the model and misses a limit, and by what factor: the nearest answers."""

    layout: Layout
    ttft_s: float
    tpot_s: float
    factor: float


@dataclass(slots=True, kw_only=True)
class Search:
    """What was looked at, and what came of it."""

    candidates: list[Candidate] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    pruned: Counter[str] = field(default_factory=Counter)
    looked_at: int = 0

    def ranked(self, *, by_accelerator: bool = False) -> list[Candidate]:
        """Most output tokens of the whole island first, or per accelerator used; then the fewer ranks per replica."""

        def worth(one: Candidate) -> float:
            return one.tokens_per_s_per_accelerator if by_accelerator else one.tokens_per_s

        return sorted(self.candidates, key=lambda one: (-worth(one), one.deployment.layout.world))


def search(question: Question, island: Island, precision: Precision) -> Search:
    """Score every layout of the model on the island."""
    found = Search()
    for layout in layouts(question.model, island):
        found.looked_at += 1
        if (why := _impossible(question.model, island, layout)) is not None:
            found.pruned[why] += 1
            continue
        deployment = Deployment.make(
            question.model, layout, precision, island.rank, own_scale(question, island, precision)
        )
        _judge(question, island, deployment, found)
    return found


def possible_layouts(model: Model, island: Island) -> Iterator[Layout]:
    """Those that divide the model and reach."""
    return (one for one in layouts(model, island) if _impossible(model, island, one) is None)


def _impossible(model: Model, island: Island, layout: Layout) -> str | None:
    """Why a layout cannot be, in words; None where it can."""
    reach = island.rank.reach
    if reach is not None and layout.world > reach:
        return "no bandwidth is on record for the links it would need"
    try:
        check_layout(model, layout)
    except LayoutError:
        return "the model does not divide that way"
    return "the model does not divide that way" if leaves_copies(model, layout) else None


def own_scale(question: Question, island: Island, precision: Precision, kind: str = "agg") -> float:
    """What a person's own calibration of this engine says of every step; 1 without one."""
    if question.backend is None:
        return 1.0
    return scale(island.rank.chip, question.model.name, question.backend, precision.weights, kind)


def layouts(model: Model, island: Island) -> Iterator[Layout]:
    """The layouts worth asking: powers of two, and for data-parallel attention every count of whole nodes that divides.

    Dense models take replicas instead of data-parallel ranks. Experts are spread over all the ranks of a stage or, without
    data-parallel attention, cut like the rest.
    """
    for tp in _powers(min(16, island.ranks)):
        for pp in _powers(min(16, island.ranks // tp)):
            for dp in data_ranks(island.ranks // (tp * pp)) if model.is_moe else (1,):
                spread = tp * dp
                yield from (
                    Layout(tp=tp, pp=pp, dp=dp, ep=ep)
                    for ep in (
                        {1, spread} if model.is_moe and dp == 1 else {spread if model.is_moe else 1}
                    )
                )


def _powers(limit: int) -> list[int]:
    return [2**n for n in range(int(math.log2(limit)) + 1)] if limit >= 1 else []


def data_ranks(limit: int) -> list[int]:
    """Numbers of data-parallel groups worth asking: powers of two, and three and five times those."""
    odd = [3 * n for n in _powers(limit // 3)] + [5 * n for n in _powers(limit // 5)]
    return sorted({*_powers(limit), *odd})


def _judge(question: Question, island: Island, deployment: Deployment, found: Search) -> None:
    memory = deployment.memory(question.input_tokens + question.output_tokens)
    whole = question.input_tokens + question.output_tokens
    if memory.tokens_of(whole) < whole:
        found.pruned["weights and one request do not fit in memory"] += 1
        return
    half = question.input_tokens + question.output_tokens / 2
    batch = batches(int(memory.tokens_of(half) // half))
    batch, chunk = _keeping_up(question, deployment, batch, chunks_of(question, batch))
    load = steady(question, deployment, batch, chunk)
    stable = load.prompt_share < UTILISATION_LIMIT
    if not stable.any():
        found.pruned["prompts alone take more than the time there is"] += 1
        return
    kept = stable & _within(load.tpot_s, question.tpot_s) & _within(load.ttft_s, question.ttft_s)
    if not kept.any():
        found.pruned[_missed(question, load, stable)] += 1
        found.misses.append(_nearest(question, deployment.layout, load, stable))
        return
    best = int(np.argmax(np.where(kept, load.tokens_per_s, -1.0)))
    replicas = whole_replicas(island, deployment.layout.world)
    found.candidates.append(
        Candidate(
            island=island,
            deployment=deployment,
            replicas=replicas,
            sequences_per_rank=int(batch[best]),
            max_step_tokens=int(chunk[best] + batch[best]),
            ttft_s=float(load.ttft_s[best]),
            tpot_s=float(load.tpot_s[best]),
            tokens_per_s=replicas * float(load.tokens_per_s[best]),
        )
    )


def _keeping_up(
    question: Question, deployment: Deployment, batch: Floats, chunks: Floats
) -> tuple[Floats, Floats]:
    """The pairs of a batch and a chunk, one after another, whose prompts alone leave time; of an engine that computes prompts alone, all there are."""
    able = chunks > 0
    if not question.behaviour(1.0).exclusive_prefill:
        steps = _prompt_steps(question, deployment, batch, np.maximum(chunks, 1.0))
        able &= steps < UTILISATION_LIMIT
    return np.broadcast_to(batch, chunks.shape)[able], chunks[able]


def _prompt_steps(
    question: Question, deployment: Deployment, batch: Floats, chunk: Floats
) -> Floats:
    """Of a rank's prompts, chunks for each decode step."""
    chunks = np.ceil(question.fresh_tokens / np.clip(chunk, 1.0, question.fresh_tokens))
    given = question.given(deployment.layout.dp * batch)
    return np.asarray(batch * given / question.output_tokens * chunks)


def chunks_of(question: Question, batch: Floats) -> Floats:
    """Prompt tokens worth asking beside each batch: all of `CHUNKS`, or what a budget that was said leaves."""
    budget = question.engine_args.max_num_batched_tokens
    if budget is None:
        return np.array(CHUNKS, dtype=float)[:, None] + 0 * batch
    return np.asarray(budget - batch)[None, :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The closed form's answer, over chunks and batches."""

    tpot_s: Floats
    ttft_s: Floats
    tokens_per_s: Floats
    prompt_share: Floats


def steady(
    question: Question, deployment: Deployment, batch: Floats, chunk: Floats, case: Case = "likely"
) -> Steady:
    """A replica at a constant batch: the formulas above, broadcast."""
    length, output = float(question.input_tokens), float(question.output_tokens)
    dp = deployment.layout.dp
    given = question.given(dp * batch)
    chunk = np.clip(chunk, 1.0, question.fresh_tokens)
    chunks = np.ceil(question.fresh_tokens / chunk)
    step_s = partial(deployment.step_s, case=case)
    drafts, longer = question.decoding()
    decode = _Decode(batch=batch, context_tokens=length + output / 2, drafts=drafts)
    each = batch * given / output * chunks  # of a rank's prompt steps, per decode step
    stages = deployment.layout.pp
    bubbles = stages / np.clip(each, 1.0, stages)  # see `cost.steptime`
    prompts = _Prompts(tokens=bubbles * chunk, pairs=bubbles * question.pairs(chunk))
    share = 1 - np.exp(-dp * each)
    if question.behaviour(1.0).exclusive_prefill:
        decode_s = decode.seconds(step_s) * longer
        prompt_s = np.asarray(step_s(prompt_tokens=prompts.tokens, pairs=prompts.pairs))
        waits_s = np.maximum(each, share) * prompt_s
        busy = waits_s / (decode_s + waits_s)
    else:
        verify_s, mixed_s = decode.seconds_with(prompts, step_s)
        decode_s = verify_s * longer
        prompt_s = decode_s - verify_s + mixed_s
        waits_s = share * (prompt_s - decode_s)
        busy = each
    mean_s = decode_s + waits_s
    return Steady(
        tpot_s=mean_s / given,
        ttft_s=mean_s / 2 + chunks * prompt_s,
        tokens_per_s=dp * batch * given / mean_s,
        prompt_share=busy + 0 * mean_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompts:
    """What steps compute of prompts, beside their decoding sequences."""

    tokens: Floats
    pairs: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decode:
    """Decoding sequences of steps."""

    batch: Floats
    context_tokens: float
    drafts: float

    def seconds(self, step_s: Callable[..., Number]) -> Floats:
        kv_tokens = self.batch * self.context_tokens
        return np.asarray(step_s(sequences=self.batch, kv_tokens=kv_tokens, drafts=self.drafts))

    def seconds_with(
        self, prompts: _Prompts, step_s: Callable[..., Number]
    ) -> tuple[Floats, Floats]:
        """Without prompts and with them, worked out at once: a step costs a millisecond to describe, whatever the size of its arrays."""
        single, whose = np.unique(self.batch, return_inverse=True)
        shape = np.broadcast_shapes(self.batch.shape, prompts.tokens.shape)
        every = np.concatenate([single, np.broadcast_to(self.batch, shape).ravel()])
        tokens, pairs = (
            np.concatenate([np.zeros_like(single), np.broadcast_to(one, shape).ravel()])
            for one in (prompts.tokens, prompts.pairs)
        )
        seconds = np.asarray(step_s(sequences=every, kv_tokens=every * self.context_tokens, prompt_tokens=tokens, pairs=pairs, drafts=self.drafts))  # fmt: skip
        return seconds[: single.size][whose].reshape(self.batch.shape), seconds[single.size :].reshape(shape)  # fmt: skip


def whole_replicas(island: Island, world: int) -> int:
    """How many replicas fit so that none straddles two instances of the nearest tier that holds one.

    16 racks of 640 hold one replica of 512 ranks each: the 128 left in a rack join no replica across racks, whose expert
    exchanges would crawl over the slower tier.
    """
    links = island.topology.links
    joined = links[island.topology.spanning(world)].ranks if links else None
    if joined is None:
        return island.ranks // world
    full, rest = divmod(island.ranks, joined)
    return full * (joined // world) + rest // world


def mean_pairs(chunk: Number, length: Number) -> Number:
    """Prompt token x context token pairs of a chunk, in the mean over a prompt's chunks: half of its length is before it.

    >>> mean_pairs(512.0, 4096.0)
    1048576.0
    """
    return chunk * length / 2


def batches(most: int) -> Floats:
    """Batch sizes worth asking: all the small ones, then steps of about 4 %.

    >>> [int(b) for b in batches(20)]
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]
    """
    most = max(most, 1)
    grid = np.unique(np.round(np.geomspace(1, most, num=max(2, int(25 * math.log(most) + 2)))))
    small = np.arange(1, min(most, 24) + 1)
    return np.asarray(np.union1d(grid, small), dtype=float)


def _within(values: Floats, limit: float | None) -> NDArray[np.bool_]:
    return np.ones_like(values, dtype=bool) if limit is None else values <= limit


def _overshoot(question: Question, load: Steady) -> tuple[Floats, Floats]:
    none = np.zeros_like(load.tpot_s)
    ttft = none if question.ttft_s is None else load.ttft_s / question.ttft_s
    tpot = none if question.tpot_s is None else load.tpot_s / question.tpot_s
    return ttft, tpot


def _missed(question: Question, load: Steady, stable: NDArray[np.bool_]) -> str:
    ttft, tpot = _overshoot(question, load)
    if not (stable & (tpot <= 1)).any():
        return "TPOT is over the limit at every batch"
    if not (stable & (ttft <= 1)).any():
        return "TTFT is over the limit at every batch"
    return "TTFT and TPOT are never inside their limits at once"


def _nearest(question: Question, layout: Layout, load: Steady, stable: NDArray[np.bool_]) -> Miss:
    worst = np.maximum(*_overshoot(question, load))
    at = np.unravel_index(int(np.argmin(np.where(stable, worst, np.inf))), worst.shape)
    return Miss(
        layout=layout,
        ttft_s=float(load.ttft_s[at]),
        tpot_s=float(load.tpot_s[at]),
        factor=float(worst[at]),
    )
