"""What one replica of a model can be on one island: together, prefill alone or decode alone, each at the most requests a second that keep the limits.

Together is `plan.search`'s closed form. Apart, with L tokens in and O out:

    prefill   a step of c tokens a rank takes T; a prompt takes ceil(L / c) of them or shares one with c / L - 1 others; dp ranks side by side give
              dp c / (L T) prompts a second. At a utilisation r a prompt waits W = T r / (2 (1 - r)) ln(r / (1 - p)) or less in p of all cases (the
              exponential tail of M/D/1 with its mean), and r is the highest with T + W + the cache's way inside the limit
    decode    the most sequences b a rank whose step of T is inside the limit and the memory; dp b / (O T) requests a second

Both are taken to nine tenths at most. A prefill worker is offered once for every width its prompts' caches may leave at, with that much less time to wait. A
decode replica can also have its experts on ranks of their own, of the same island or another (`plan.afd`).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from polypod.cost.bands import Band, Metric
from polypod.cost.collective import CollectiveTime
from polypod.cost.deployment import Deployment
from polypod.plan.afd import Split, rate_per_s
from polypod.plan.afd_search import splits
from polypod.plan.place import Island
from polypod.plan.search import (
    UTILISATION_LIMIT,
    Candidate,
    Floats,
    Question,
    Search,
    batches,
    mean_pairs,
    possible_layouts,
    whole_replicas,
)
from polypod.plan.served import band_under, own_of
from polypod.policy.events import Role
from polypod.workload.layout import Layout
from polypod.workload.memory import kv_bytes_per_token_per_rank
from polypod.workload.precision import Precision

STEPS: Final = np.array([2048.0, 4096.0, 8192.0, 16384.0])
"""Tokens a rank and step of a prefill worker worth asking."""

KEPT: Final = 6
"""Shapes of one role and island that are offered to the choice: best per rank first, then smaller ones that fill what is left."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One way to put a replica on an island, and what it does there. `rate_per_s` is requests a second inside the limits, of one replica."""

    role: Role
    island: Island
    deployment: Deployment
    sequences_per_rank: int
    max_step_tokens: int
    rate_per_s: float
    ttft_s: float  # of prefill: a prompt's own time and its wait, without the cache's way
    tpot_s: float
    narrowest_bytes_per_s: float = (
        0.0  # of prefill: the way of a cache, of one rank, that leaves time for this rate
    )
    candidate: Candidate | None = None  # what the emulation can confirm
    confirmed: bool = False
    also: tuple[tuple[Island, int], ...] = ()  # further ranks that a replica takes
    split: Split | None = None  # of decode with its experts on those
    link_bytes_per_s: float = 0.0  # of one rank to them, before what an exchange reaches of it

    @property
    def ranks(self) -> int:
        """On `island`, for what is not apart."""
        return self.deployment.layout.world

    @property
    def islands(self) -> tuple[Island, ...]:
        """All that a replica takes part of, the one with its cache first."""
        found = [self.island, *(island for island, _ in self.also)]
        return tuple(one for n, one in enumerate(found) if all(one is not other for other in found[:n]))  # fmt: skip

    def ranks_on(self, island: Island) -> int:
        """All ranks that a replica takes of an island."""
        own = self.ranks if island is self.island else 0
        return own + sum(ranks for other, ranks in self.also if other is island)

    def accelerators_on(self, island: Island) -> float:
        return self.ranks_on(island) / island.rank.ranks_per_accelerator

    def taken_on(self, island: Island) -> float:
        """Accelerators that a replica makes unusable for others: its own, and its part of what a tier has left over.

        Of a replica on two islands nothing is left over: only the ranks of one attention group stay on one tier.
        """
        if len(self.islands) > 1:
            return self.accelerators_on(island)
        return max(self.accelerators_on(island), island.accelerators / self.most_replicas)

    @property
    def accelerators(self) -> float:
        """On all islands."""
        return sum(self.accelerators_on(island) for island in self.islands)

    @property
    def sequences(self) -> int:
        return self.sequences_per_rank * self.deployment.layout.dp

    @property
    def most_replicas(self) -> int:
        """How many fit where none straddles two instances of the tier that holds one."""
        if len(self.islands) > 1:
            return min(island.ranks // self.ranks_on(island) for island in self.islands)
        return whole_replicas(self.island, self.ranks_on(self.island))


def shape_band(question: Question, shape: Shape, what: Metric) -> Band:
    """The 80 % band of one metric of a shape."""
    own = own_of(shape.deployment, question.backend)
    kind = "agg" if shape.role == "both" else "disagg"
    bands = [band_under(own, one.rank.calibration.evidence, kind, what) for one in shape.islands]
    return Band(low=min(band.low for band in bands), high=max(band.high for band in bands))


def together(question: Question, found: Search) -> list[Shape]:
    """Co-located candidates worth offering: `plan.search` found them."""
    shapes = [
        Shape(
            role="both",
            island=one.island,
            deployment=one.deployment,
            sequences_per_rank=one.sequences_per_rank,
            max_step_tokens=one.max_step_tokens,
            # the closed form knows no queue: nine tenths of it, until the emulation says
            rate_per_s=UTILISATION_LIMIT * one.tokens_per_s / one.replicas / question.output_tokens,
            ttft_s=one.ttft_s,
            tpot_s=one.tpot_s,
            candidate=one,
        )
        for one in found.candidates
    ]
    return offered(shapes)


def offered(shapes: list[Shape], most: int = KEPT) -> list[Shape]:
    """The best per rank, then the best of every smaller size that no larger one beats."""
    ranked = sorted(shapes, key=lambda one: (-one.rate_per_s / one.ranks, one.ranks))
    kept: list[Shape] = []
    for shape in ranked:
        if len(kept) < most // 2 or shape.ranks < min(one.ranks for one in kept):
            kept.append(shape)
        if len(kept) == most:
            break
    return kept


def apart(
    question: Question, island: Island, precision: Precision, ways_bytes_per_s: Sequence[float] = ()
) -> list[Shape]:
    """Prefill workers and decode workers of the model on the island, whose caches may leave at these widths of one rank."""
    deployments = [
        Deployment.make(question.model, layout, precision, island.rank)
        for layout in possible_layouts(question.model, island)
        if layout.pp == 1
    ]
    prefills = [
        shape
        for width in sorted(set(ways_bytes_per_s)) or [math.inf]
        for shape in offered(_all(_prefill(question, island, one, width) for one in deployments), 4)
    ]
    decodes = _all(_decode(question, island, one) for one in deployments)
    return [*prefills, *offered(decodes, 4)]


def _all(shapes: Iterable[Shape | None]) -> list[Shape]:
    return [one for one in shapes if one is not None]


def _prefill(
    question: Question, island: Island, deployment: Deployment, way_bytes_per_s: float
) -> Shape | None:
    length = float(question.input_tokens)
    room = deployment.memory(int(STEPS[-1])).tokens_of(length)
    steps = STEPS[max(room, 0.0) >= STEPS]
    if room < length or not steps.size:
        return None
    pairs = mean_pairs(steps, length)
    step_s = np.asarray(deployment.step_s(prompt_tokens=steps, pairs=pairs))
    own_s = np.ceil(length / steps) * step_s
    way_s = cache_s(question, deployment, way_bytes_per_s)
    share = _share(question, own_s + way_s, step_s)
    rate = share * deployment.layout.dp * steps / (length * step_s)
    if not (rate > 0).any():
        return None
    best = int(np.argmax(rate))
    waits_s = _wait_s(float(step_s[best]), float(share[best]), question.percentile / 100)
    return Shape(
        role="prefill",
        island=island,
        deployment=deployment,
        sequences_per_rank=max(int(steps[best] // length), 1),
        max_step_tokens=int(steps[best]),
        rate_per_s=float(rate[best]),
        ttft_s=float(own_s[best]) + waits_s,
        tpot_s=0.0,
        narrowest_bytes_per_s=way_bytes_per_s,
    )


def _share(question: Question, own_s: Floats, step_s: Floats) -> Floats:
    """The highest utilisation that keeps the limit on TTFT: 0 where a prompt alone does not."""
    shares = np.linspace(0.02, UTILISATION_LIMIT, 45)
    if question.ttft_s is None:
        return np.full_like(own_s, UTILISATION_LIMIT)
    waits_s = _waits_s(step_s[:, None], shares[None, :], question.percentile / 100)
    kept = own_s[:, None] + waits_s <= question.ttft_s
    return np.where(kept.any(axis=1), shares[kept.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)], 0.0)


def _waits_s(service_s: Floats, share: Floats, percentile: float) -> Floats:
    tail = np.log(np.maximum(share / (1 - percentile), 1.0))
    return np.asarray(service_s * share / (2 * (1 - share)) * tail)


def _wait_s(service_s: float, share: float, percentile: float) -> float:
    return float(_waits_s(np.array([service_s]), np.array([share]), percentile)[0])


def _decode(question: Question, island: Island, deployment: Deployment) -> Shape | None:
    whole = question.input_tokens + question.output_tokens
    half = question.input_tokens + question.output_tokens / 2
    memory = deployment.memory(512)
    held = int(memory.tokens_of(half) // half)
    if memory.tokens_of(whole) < whole or held < 1:
        return None
    batch = batches(held)
    step_s = np.asarray(deployment.step_s(sequences=batch, kv_tokens=batch * half))
    kept = (
        np.ones_like(step_s, dtype=bool) if question.tpot_s is None else step_s <= question.tpot_s
    )
    if not kept.any():
        return None
    rate = np.where(kept, deployment.layout.dp * batch / (question.output_tokens * step_s), 0.0)
    best = int(np.argmax(rate))
    sequences = int(batch[best])
    return Shape(
        role="decode",
        island=island,
        deployment=deployment,
        sequences_per_rank=sequences,
        max_step_tokens=sequences,
        rate_per_s=UTILISATION_LIMIT * float(rate[best]),
        ttft_s=0.0,
        tpot_s=float(step_s[best]),
    )


def experts_apart(question: Question, first: Island, second: Island, bytes_per_s: float) -> list[Shape]:  # fmt: skip
    """Decode workers with attention on one island and experts on another, or on other ranks of the same.

    Raises `InputError` for a model without experts.
    """
    context = question.input_tokens + question.output_tokens / 2
    shapes = [
        Shape(
            role="decode",
            island=first,
            deployment=split.attention,
            sequences_per_rank=split.sequences_per_rank,
            max_step_tokens=split.sequences_per_rank,
            rate_per_s=rate_per_s(question, split),
            ttft_s=0.0,
            tpot_s=split.step_s(context),
            also=((second, split.expert_ranks),),
            split=split,
            link_bytes_per_s=bytes_per_s,
        )
        for split in splits(question, first, second, bytes_per_s)
    ]
    return [one for one in shapes if one.most_replicas]


def cache_bytes(question: Question, shape: Shape) -> float:
    """What a request's cache comes to when its prompt is done, no copy counted twice."""
    return _cache_bytes(question, shape.deployment)


def _cache_bytes(question: Question, deployment: Deployment) -> float:
    one = Layout(tp=1)
    each = kv_bytes_per_token_per_rank(deployment.model, one, deployment.precision)
    return question.input_tokens * float(each)


def exchanging_fraction(question: Question, shape: Shape) -> float:
    """The part of a step's time in which the shape's own exchanges with experts fill its ranks' outermost links: none is left then for caches."""
    if shape.split is not None:
        return _split_fraction(question, shape.split)
    deployment, length = shape.deployment, float(question.input_tokens)
    inner = [tier.ranks for tier in shape.island.rank.tiers if tier.ranks is not None]
    if not inner or deployment.layout.world <= max(inner):
        return 0.0
    if shape.role == "prefill":
        tokens = float(shape.max_step_tokens)
        ops = deployment.ops(prompt_tokens=tokens, pairs=tokens * length / 2)
    else:
        batch = float(shape.sequences_per_rank)
        ops = deployment.ops(sequences=batch, kv_tokens=batch * (length + question.output_tokens / 2))  # fmt: skip
    cost = deployment.cost(ops)
    sent_s = sum(float(part.count * part.time.transfer_s) for part in cost.parts if isinstance(part.time, CollectiveTime) and part.kind == "all_to_all")  # fmt: skip
    return sent_s / float(cost.total_s)


def _split_fraction(question: Question, split: Split) -> float:
    context = question.input_tokens + question.output_tokens / 2
    sent_s = sum(one.layers * float(one.exchange_s) for one in split.rounds(context))
    return min(split.micro_batches * sent_s / split.step_s(context), 1.0)


def transfer_s(question: Question, shape: Shape, bytes_per_s: float) -> float:
    """A request's cache to another worker."""
    return cache_s(question, shape.deployment, bytes_per_s)


def cache_s(question: Question, deployment: Deployment, bytes_per_s: float) -> float:
    """The ranks of one data-parallel group send their shares at once."""
    senders = max(deployment.layout.tp, 1)
    return _cache_bytes(question, deployment) / (bytes_per_s * senders)
