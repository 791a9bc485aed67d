"""The best ways to put a model's attention on one island and its experts on another, by the closed form of `plan.afd`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.cost.chip import Rank
from polypod.cost.deployment import Deployment, native_precision
from polypod.errors import InputError, LayoutError
from polypod.plan.afd import (
    AttentionSide,
    ExpertSide,
    Round,
    Split,
    attention_memory,
    attention_side,
    beside_s,
    moe_kinds,
    moe_of,
)
from polypod.plan.afd_link import joined_ranks, link_between
from polypod.plan.place import Island
from polypod.plan.search import Floats, Question, batches, data_ranks, own_scale
from polypod.workload.layout import Layout, check_layout
from polypod.workload.model import Model, Moe

MICRO_BATCHES: Final = (1, 2, 3, 4)
"""Worth asking: past 4 nothing more is hidden, and every one reads the weights anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A split and what it gives."""

    split: Split
    tokens_per_s: float

    @property
    def ranks(self) -> tuple[int, int]:
        return self.split.attention.layout.world, self.split.expert_ranks

    @property
    def accelerators(self) -> float:
        sides = (self.split.attention.rank, self.split.experts)
        return sum(ranks / rank.ranks_per_accelerator for ranks, rank in zip(self.ranks, sides, strict=True))  # fmt: skip


def splits(question: Question, first: Island, second: Island, bytes_per_s: float) -> list[Split]:
    """Splits of a model worth offering: attention on `first`, experts on `second`, `bytes_per_s` from rank to rank between them.

    Of every number of attention ranks the one with the most requests a second per accelerator inside the limits and the one with the most in all, less
    those that another beats with no more ranks on either side. Raises `InputError` for a model without experts.
    """
    model = question.model
    if not model.is_moe:
        msg = f"{model.name}: no experts to put apart; leave --afd out, or ask for a model with experts"
        raise InputError(msg)
    link = link_between(first, second, bytes_per_s)
    precision = native_precision(model, second.rank)
    rank = _calibrated(second.rank, own_scale(question, second, precision, "disagg"))
    sides = [
        ExpertSide(model=model, rank=rank, ranks=ranks, precision=precision, link=link)
        for ranks in _expert_ranks(model, second)
    ]
    found: list[Found] = []
    for tp in _tensor_ranks(model, first):
        held = native_precision(model, first.rank)
        scale = own_scale(question, first, held, "disagg")
        deployment = Deployment.make(model, Layout(tp=tp), held, first.rank, scale)
        grid = _Grid.of(question, first, deployment)
        if grid is not None:
            found += [one for side in sides for one in grid.best(side, second)]
    return [one.split for one in _worth_offering(found)]


def _calibrated(rank: Rank, scale: float) -> Rank:
    """With a person's own factor in that of every step."""
    if scale == 1.0:
        return rank
    low, likely, high = rank.calibration.step_factor
    fits = replace(rank.calibration, step_factor=(scale * low, scale * likely, scale * high))
    return replace(rank, calibration=fits)


def _worth_offering(found: list[Found]) -> list[Found]:
    by_ranks: dict[int, list[Found]] = {}
    for one in found:
        by_ranks.setdefault(one.ranks[0], []).append(one)
    kept: list[Found] = []
    for _, some in sorted(by_ranks.items()):
        most = max(some, key=lambda one: (one.tokens_per_s, -one.accelerators))
        each = max(some, key=lambda one: one.tokens_per_s / one.accelerators)
        kept += [each] if each is most else [each, most]
    return [one for one in kept if not any(_beats(other, one) for other in kept)]


def _beats(one: Found, other: Found) -> bool:
    """With no more ranks on either side."""
    fewer = all(mine <= its for mine, its in zip(one.ranks, other.ranks, strict=True))
    return fewer and one.tokens_per_s > other.tokens_per_s


def _expert_ranks(model: Model, island: Island) -> Iterator[int]:
    """Numbers of ranks that hold whole experts, as many each, or up to eight equal slices of one."""
    moes = [moe_of(model, kind) for kind in moe_kinds(model)]
    most = max(moe.experts for moe in moes)
    whole = [ranks for ranks in range(1, most + 1) if all(moe.experts % ranks == 0 for moe in moes)]
    sliced = [most * cut for cut in (2, 4, 8) if all(moe.experts == most and moe.expert_intermediate % cut == 0 for moe in moes)]  # fmt: skip
    yield from (ranks for ranks in (*whole, *sliced) if ranks <= island.ranks)


def _tensor_ranks(model: Model, island: Island) -> Iterator[int]:
    bare = tuple(replace(group, feed_forward=None) if isinstance(group.feed_forward, Moe) else group for group in model.layers)  # fmt: skip
    for tp in (1, 2, 4, 8, 16):
        if tp > joined_ranks(island):
            continue
        try:
            check_layout(replace(model, layers=bare), Layout(tp=tp))
        except LayoutError:
            continue
        yield tp


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """All there is to choose at one tp. Axes: G groups, M micro-batches, B sequences in each."""

    question: Question
    island: Island
    deployment: Deployment
    context_tokens: float
    groups_GMB: Floats
    micros_GMB: Floats
    batch_GMB: Floats
    held: int  # sequences of a group that its memory holds
    side: AttentionSide

    @classmethod
    def of(cls, question: Question, island: Island, deployment: Deployment) -> "_Grid | None":
        """None where weights and one request do not fit."""
        whole = question.input_tokens + question.output_tokens
        context = question.input_tokens + question.output_tokens / 2
        memory = attention_memory(deployment, 512.0)
        held = int(memory.tokens_of(context) // context)
        if memory.tokens_of(whole) < whole or held < 1:
            return None
        batch = batches(held)
        most = joined_ranks(island) // deployment.layout.tp
        return cls(
            question=question,
            island=island,
            deployment=deployment,
            context_tokens=context,
            groups_GMB=np.array(data_ranks(most), dtype=float)[:, None, None],
            micros_GMB=np.array(MICRO_BATCHES, dtype=float)[None, :, None],
            batch_GMB=batch[None, None, :],
            held=held,
            side=attention_side(deployment, batch, context),
        )

    def step_s(self, other: ExpertSide) -> Floats:
        """TPOT of every choice."""
        experts_s = other.experts_s(self.groups_GMB * self.batch_GMB)
        tp = self.deployment.layout.tp
        share = np.maximum(1 / tp, self.groups_GMB / other.ranks)
        one_s = other.exchange_s(1.0, Layout(tp=1, dp=other.ranks))  # of one sequence, sent whole
        total_s = beside_s(self.side, self.deployment, self.micros_GMB, self.batch_GMB)
        for kind, layers in moe_kinds(self.question.model).items():
            sent = self.batch_GMB * share
            one = Round(
                layers=layers,
                attention_s=self.side.layer_s[kind],
                experts_s=experts_s[kind],
                dispatch_s=sent * one_s[kind][0],
                combine_s=sent * one_s[kind][1],
                latency_s=other.link.latency_s,
            )
            total_s = total_s + layers * one.layer_s(self.micros_GMB)
        return np.asarray(total_s)

    def best(self, other: ExpertSide, island: Island) -> Iterator["Found"]:
        """Of every number of groups the most requests a second that keep memory and limit."""
        step_s = self.step_s(other)
        kept = self._fits(other, island) & (self.micros_GMB * self.batch_GMB <= self.held)
        if self.question.tpot_s is not None:
            kept = kept & (step_s <= self.question.tpot_s)
        sequences = self.groups_GMB * self.micros_GMB * self.batch_GMB
        worth = np.where(kept, sequences / step_s, 0.0)
        for g, worth_MB in enumerate(worth):
            m, b = np.unravel_index(int(np.argmax(worth_MB)), worth_MB.shape)
            if worth_MB[m, b] == 0.0:
                continue
            layout = Layout(tp=self.deployment.layout.tp, dp=int(self.groups_GMB[g, 0, 0]))
            split = Split(
                attention=replace(self.deployment, layout=layout),
                experts=other.rank,
                expert_ranks=other.ranks,
                expert_precision=other.precision,
                link=other.link,
                micro_batches=int(self.micros_GMB[0, m, 0]),
                sequences=int(self.batch_GMB[0, 0, b]),
            )
            yield Found(split=split, tokens_per_s=float(worth_MB[m, b]))

    def _fits(self, other: ExpertSide, island: Island) -> NDArray[np.bool_]:
        """Where experts and what arrives fit on their ranks, and both sides on the links of an island that they share."""
        room = other.free_bytes(self.groups_GMB * self.batch_GMB) >= 0
        if island is not self.island:
            return np.asarray(room)
        together = self.groups_GMB * self.deployment.layout.tp + other.ranks
        return np.asarray(room & (together <= joined_ranks(island)))
