"""Prefill workers and decode workers: what each does of a model on one island, and a cache's way from one to the other.

With L tokens in, of which f are computed anew (`prefix_hits` leaves out the rest), and O out:

    prefill   a step of c tokens a rank takes T; a prompt takes k = ceil(f / c) of them or shares one with n - 1 others, n = max(floor(c / f), 1); dp
              ranks side by side need S = k T / (dp n) a prompt. At a utilisation r = rate * S a prompt waits W or less in p of all cases: until the
              step that runs ends, and for those before it as in M/D/1, whose tail falls exponentially at t, the root of r (e^t - 1) = t,

                  W = max(T - S, 0) (1 - (1 - p) / r) + S ln((1 - r) / ((r + t - 1) (1 - p))) / t

              and r is the highest with k T + W + the cache's way + a step of the decode worker inside the limit
    decode    the most sequences b a rank whose step of T, over the g tokens it gives each, is inside the limit and the memory; dp b g / (O T)
              requests a second

Both are taken to nine tenths at most. `plan.confirm_apart` emulates what is chosen. A prefill worker is offered once for every width its prompts' caches may leave at, with that much less time to wait. The
whole cache of a prompt goes over, also what was cached before. A decode replica can have its experts on ranks of their own, of the same island or
another (`plan.afd`). A person's own calibration of workers apart makes every step longer or shorter (`cost.own`).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final, TypedDict

import numpy as np

from polypod.cost.collective import CollectiveTime
from polypod.cost.deployment import Deployment
from polypod.errors import InputError
from polypod.plan.afd import Split, rate_per_s
from polypod.plan.afd_search import splits
from polypod.plan.place import Island
from polypod.plan.search import (
    UTILISATION_LIMIT,
    Floats,
    Question,
    batches,
    own_scale,
    possible_layouts,
)
from polypod.plan.shapes import Shape, offered
from polypod.workload.layout import Layout
from polypod.workload.memory import kv_bytes_per_token_per_rank
from polypod.workload.precision import Precision

STEPS: Final = np.array([2048.0, 4096.0, 8192.0, 16384.0])
"""Tokens a rank and step of a prefill worker worth asking, where nobody said how many."""


def apart(
    question: Question, island: Island, precision: Precision, ways_bytes_per_s: Sequence[float] = ()
) -> list[Shape]:
    """Prefill workers and decode workers of the model on the island, whose caches may leave at these widths of one rank."""
    scale = own_scale(question, island, precision, "disagg")
    deployments = [
        Deployment.make(question.model, layout, precision, island.rank, scale)
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
    length, fresh = float(question.input_tokens), question.fresh_tokens
    steps = _step_tokens(question)
    room = deployment.memory(int(steps[-1])).tokens_of(length)
    steps = steps[steps <= max(room, 0.0) * fresh / length]
    if room < length or not steps.size:
        return None
    step_s = np.asarray(deployment.step_s(prompt_tokens=steps, pairs=question.pairs(steps)))
    whole = np.maximum(steps // fresh, 1.0)  # of a rank's prompts in a step
    own_s = np.ceil(fresh / steps) * step_s
    each_s = own_s / (deployment.layout.dp * whole)
    waits_s = np.asarray(_waits_s(step_s[:, None], each_s[:, None], question.percentile / 100))
    way_s = cache_s(question, deployment, way_bytes_per_s) + boundary_s(question)
    share = _share(question, own_s + way_s, waits_s)
    rate = share / each_s
    if not (rate > 0).any():
        return None
    best = int(np.argmax(rate))
    waited_s = float(waits_s[best, np.searchsorted(SHARES, share[best])])
    return Shape(
        role="prefill",
        island=island,
        deployment=deployment,
        sequences_per_rank=int(whole[best]),
        max_step_tokens=int(steps[best]),
        rate_per_s=float(rate[best]),
        most_per_s=UTILISATION_LIMIT / float(each_s[best]),
        ttft_s=float(own_s[best]) + waited_s,
        tpot_s=0.0,
        narrowest_bytes_per_s=way_bytes_per_s,
    )


def _step_tokens(question: Question) -> Floats:
    budget = question.engine_args.max_num_batched_tokens
    return STEPS if budget is None else np.array([budget])


SHARES: Final = np.linspace(0.02, UTILISATION_LIMIT, 45)
"""Utilisations of a prefill worker worth asking."""


def _share(question: Question, own_s: Floats, waits_s: Floats) -> Floats:
    """The highest utilisation that keeps the limit on TTFT: 0 where a prompt alone does not."""
    if question.ttft_s is None:
        return np.full_like(own_s, UTILISATION_LIMIT)
    kept = own_s[:, None] + waits_s <= question.ttft_s
    return np.where(kept.any(axis=1), SHARES[kept.shape[1] - 1 - kept[:, ::-1].argmax(axis=1)], 0.0)


def _waits_s(step_s: Floats, each_s: Floats, percentile: float) -> Floats:
    """W of the head of this module at all utilisations, along the last axis."""
    tail = _decay(SHARES)
    more = (1 - SHARES) / ((SHARES + tail - 1) * (1 - percentile))
    running = np.maximum(1 - (1 - percentile) / SHARES, 0.0)
    behind = np.log(np.maximum(more, 1.0)) / tail
    return np.asarray(np.maximum(step_s - each_s, 0.0) * running + each_s * behind)


def _decay(share: Floats) -> Floats:
    """How fast the tail of M/D/1 falls, over service times: by Newton's way from above.

    >>> [round(float(t), 3) for t in _decay(np.array([0.3, 0.9]))]
    [2.065, 0.207]
    """
    found = -2 * np.log(share)
    for _ in range(10):
        found = found - (share * np.expm1(found) - found) / (share * np.exp(found) - 1)
    return np.asarray(found)


def boundary_s(question: Question) -> float:
    """What a cache waits at most for the decode worker's step under way: one within the limit; where there is none it is not counted."""
    limit_s = 0.0 if question.tpot_s is None else question.tpot_s
    return limit_s * float(question.given(1.0))


def _decode(question: Question, island: Island, deployment: Deployment) -> Shape | None:
    whole = question.input_tokens + question.output_tokens
    half = question.input_tokens + question.output_tokens / 2
    memory = deployment.memory(512)
    held = int(memory.tokens_of(half) // half)
    if memory.tokens_of(whole) < whole or held < 1:
        return None
    batch = batches(held)
    drafts, longer = question.decoding()
    given = question.given(deployment.layout.dp * batch)
    verify_s = np.asarray(deployment.step_s(sequences=batch, kv_tokens=batch * half, drafts=drafts))
    tpot_s = verify_s * longer / given
    limit_s = math.inf if question.tpot_s is None else question.tpot_s
    kept = tpot_s <= limit_s
    if not kept.any():
        return None
    rate = np.where(kept, deployment.layout.dp * batch / (question.output_tokens * tpot_s), 0.0)
    best = int(np.argmax(rate))
    sequences = int(batch[best])
    return Shape(
        role="decode",
        island=island,
        deployment=deployment,
        sequences_per_rank=sequences,
        max_step_tokens=sequences * (1 + (question.engine_args.num_speculative_tokens or 0)),
        rate_per_s=UTILISATION_LIMIT * float(rate[best]),
        most_per_s=UTILISATION_LIMIT * float(rate[best]),
        ttft_s=0.0,
        tpot_s=float(tpot_s[best]),
    )


def experts_apart(question: Question, first: Island, second: Island, bytes_per_s: float) -> list[Shape]:  # fmt: skip
    """Decode workers with attention on one island and experts on another, or on other ranks of the same.

    Raises `InputError` for a model without experts, and where drafts are asked for: nobody has them there, and nothing is known of them.
    """
    if question.engine_args.num_speculative_tokens:
        msg = "--afd knows no drafts; leave num_speculative_tokens out of --engine-args, or --afd"
        raise InputError(msg)
    context = question.input_tokens + question.output_tokens / 2
    shapes = [
        Shape(
            role="decode",
            island=first,
            deployment=split.attention,
            sequences_per_rank=split.sequences_per_rank,
            max_step_tokens=split.sequences_per_rank,
            rate_per_s=rate_per_s(question, split),
            most_per_s=rate_per_s(question, split),
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
    deployment = shape.deployment
    inner = [tier.ranks for tier in shape.island.rank.tiers if tier.ranks is not None]
    if not inner or deployment.layout.world <= max(inner):
        return 0.0
    ops = deployment.ops(**step_of(question, shape))
    cost = deployment.cost(ops)
    sent_s = sum(float(part.count * part.time.transfer_s) for part in cost.parts if isinstance(part.time, CollectiveTime) and part.kind == "all_to_all")  # fmt: skip
    return sent_s / float(cost.total_s)


class StepWork(TypedDict, total=False):
    """What a step computes, as `Deployment.ops` and `step_s` take it."""

    sequences: float
    kv_tokens: float
    prompt_tokens: float
    pairs: float
    drafts: float


def step_of(question: Question, shape: Shape) -> StepWork:
    """A full step of a worker."""
    if shape.role == "prefill":
        tokens = float(shape.max_step_tokens)
        return {"prompt_tokens": tokens, "pairs": float(question.pairs(tokens))}
    batch = float(shape.sequences_per_rank)
    kv_tokens = batch * (question.input_tokens + question.output_tokens / 2)
    return {"sequences": batch, "kv_tokens": kv_tokens, "drafts": question.decoding()[0]}


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
