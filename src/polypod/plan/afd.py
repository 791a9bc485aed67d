"""Attention on one island, experts on another (attention/expert disaggregation): the closed form of one decode step, and the best split of a model.

Attention ranks (dp groups of tp) keep caches, attention, norms, routers, dense layers, embedding and head; E expert ranks hold whole routed experts, or
past one expert a rank s slices of each, and all shared ones. A group's batch is cut into m micro-batches of b sequences that go round between the two sides. Of one layer with experts:

    N        dp b                                             tokens of a micro-batch, on all groups
    c        min(k, E / s) s copies to routed experts, and one to a shared one                 of each token
    t_a      what a rank does of the layer without its experts, on b sequences
    t_e      the experts of N tokens, on the busiest of E ranks: `workload.forward`, whose law of unevenly chosen experts holds here too
    t_d      max(b c / tp, N c / E) * H * dispatch bytes / link    sent by a rank, or come in at one, whichever is more
    t_b      the same in bf16, back; a link carries both ways at once
    layer_s  max(m max(t_a, t_e, t_d, t_b), t_a + t_e + t_d + t_b + 2 latency)
    TPOT     sum of layer_s + m * (dense layers, embedding and head) + the engine's own share

The two terms of `layer_s`: the busiest of the four never rests, or a micro-batch comes back before the others are done. With t_a = t_e = t_f and
t_d = t_b = t_c the exchange is hidden where t_c <= t_f and m >= 2 (1 + t_c / t_f): 3 micro-batches where t_c < t_f / 2, else 4 (MegaScale-Infer,
arXiv 2504.02263; Step-3, arXiv 2507.19427, has 3 stages too). Every micro-batch reads all weights anew.

Every slice of an expert is sent the whole token and sends its part of the sum back; nothing is exchanged among expert ranks.

Left out: the first and last layer's filling of the pipeline (1 layer of 60), uneven loads of ranks (part of calibration,
as everywhere). The exchange reaches the share of the link that the all-to-all of the worse side does; a M2N library made for it may do better.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod import units
from polypod.catalog.interop import shared_collectives
from polypod.cost.calibration import Calibration, of
from polypod.cost.chip import Rank
from polypod.cost.deployment import Deployment, Memory, native_precision
from polypod.cost.roofline import Number
from polypod.cost.step import step_cost
from polypod.errors import InputError, LayoutError
from polypod.plan.place import Island
from polypod.plan.search import UTILISATION_LIMIT, Floats, Question, batches, data_ranks
from polypod.workload.forward import Op, StepShape, step_ops
from polypod.workload.layout import Layout, check_layout
from polypod.workload.memory import stage_layers, weight_bytes_per_rank
from polypod.workload.model import Model, Moe, router_parameters
from polypod.workload.ops import ACTIVATION_BYTES
from polypod.workload.precision import KEPT, Precision, element_bytes, of_the_rest

MICRO_BATCHES: Final = (1, 2, 3, 4)
"""Worth asking: past 4 nothing more is hidden, and every one reads the weights anew."""

_ONE: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One rank's way to the other side, in one direction."""

    bytes_per_s: float  # as reached
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one micro-batch takes of one kind of layers with experts."""

    layers: int
    attention_s: Number
    experts_s: Number
    dispatch_s: Number
    combine_s: Number
    latency_s: float

    @property
    def way_round_s(self) -> Number:
        """One micro-batch there and back, waiting for nobody."""
        sent_s = self.dispatch_s + self.combine_s + 2 * self.latency_s
        return self.attention_s + self.experts_s + sent_s

    @property
    def exchange_s(self) -> Number:
        """The longer of the two ways: a link carries both at once."""
        return np.maximum(self.dispatch_s, self.combine_s)

    @property
    def busiest_s(self) -> Number:
        return np.maximum(np.maximum(self.attention_s, self.experts_s), self.exchange_s)

    def layer_s(self, micro_batches: Number) -> Number:
        """All micro-batches through one layer."""
        return np.maximum(micro_batches * self.busiest_s, self.way_round_s)

    def is_hidden(self, micro_batches: int) -> bool:
        """Whether the exchange costs nothing: the busier side computes all the time (scalar times only)."""
        computed_s = np.maximum(self.attention_s, self.experts_s)
        return bool(self.layer_s(micro_batches) <= micro_batches * computed_s)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A model on attention ranks and expert ranks, `sequences` in each of `micro_batches` on each group of attention ranks."""

    attention: Deployment  # of the whole model; its experts are elsewhere
    experts: Rank
    expert_ranks: int
    expert_precision: Precision
    link: Link
    micro_batches: int
    sequences: int

    @property
    def sequences_per_rank(self) -> int:
        return self.micro_batches * self.sequences

    def rounds(self, context_tokens: float) -> tuple[Round, ...]:
        """Every kind of layers with experts, timed."""
        side = attention_side(self.attention, np.array([float(self.sequences)]), context_tokens)
        experts_s = self._offered.experts_s(self._tokens)
        sent_s = self._offered.exchange_s(float(self.sequences), self.attention.layout)
        return tuple(
            Round(
                layers=layers,
                attention_s=float(side.layer_s[kind][0]),
                experts_s=float(experts_s[kind]),
                dispatch_s=float(sent_s[kind][0]),
                combine_s=float(sent_s[kind][1]),
                latency_s=self.link.latency_s,
            )
            for kind, layers in moe_kinds(self.attention.model).items()
        )

    def step_s(self, context_tokens: float) -> float:
        """TPOT at a mean context."""
        side = attention_side(self.attention, np.array([float(self.sequences)]), context_tokens)
        layers_s = sum(one.layers * one.layer_s(self.micro_batches) for one in self.rounds(context_tokens))  # fmt: skip
        return float(
            layers_s + _beside_s(side, self.attention, self.micro_batches, self.sequences)[0]
        )

    def attention_memory(self) -> Memory:
        """What fills an attention rank."""
        return attention_memory(self.attention, float(self.sequences))

    @property
    def expert_weight_bytes(self) -> float:
        """Of the fullest expert rank."""
        return self._offered.weight_bytes

    @property
    def expert_free_bytes(self) -> float:
        """What is left there."""
        return float(self._offered.free_bytes(self._tokens))

    def bound(self, context_tokens: float) -> str:
        """What the commonest layers wait for, in words."""
        one = max(self.rounds(context_tokens), key=lambda kind: kind.layers)
        sides = {"attention": one.attention_s, "experts": one.experts_s, "the link": one.exchange_s}
        name = max(sides, key=lambda side: float(sides[side]))
        if one.way_round_s > self.micro_batches * one.busiest_s:
            name = f"the way round ({self.micro_batches} micro-batches hide not all of it)"
        parts = (f"attention {units.show(float(one.attention_s), 's')}", f"experts {units.show(float(one.experts_s), 's')}", f"dispatch {units.show(float(one.dispatch_s), 's')}", f"combine {units.show(float(one.combine_s), 's')}")  # fmt: skip
        return f"{name}; of a layer and micro-batch {', '.join(parts)}"

    @property
    def _tokens(self) -> float:
        return float(self.attention.layout.dp * self.sequences)

    @cached_property
    def _offered(self) -> "ExpertSide":
        return ExpertSide(
            model=self.attention.model,
            rank=self.experts,
            ranks=self.expert_ranks,
            precision=self.expert_precision,
            link=self.link,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSide:
    """Seconds of one micro-batch on a rank, by kind of layers with experts, and of all the rest of the model."""

    layer_s: dict[int, Floats]
    rest_s: Floats


def attention_side(deployment: Deployment, micro: Floats, context_tokens: float) -> AttentionSide:
    """Time everything but the experts. The number of groups does not matter: they have nothing to say to one another."""
    one = replace(deployment, layout=Layout(tp=deployment.layout.tp))
    ops = [_gathered(op, one.model) for op in one.ops(sequences=micro, kv_tokens=micro * context_tokens) if not _is_experts(op)]  # fmt: skip
    parts = one.cost(ops).parts
    factor = _factor(one.served.calibration)
    kinds = moe_kinds(one.model)
    layer_s = {kind: np.zeros_like(micro) for kind in kinds}
    rest_s = np.zeros_like(micro)
    for op, part in zip(ops, parts, strict=True):
        spent_s = factor * np.asarray(part.total_s)
        if op.layers in kinds:
            layer_s[op.layers] = layer_s[op.layers] + spent_s / kinds[op.layers]
        else:
            rest_s = rest_s + spent_s
    return AttentionSide(layer_s=layer_s, rest_s=rest_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSide:
    """So many ranks that hold all experts of a model, and the link to them."""

    model: Model
    rank: Rank
    ranks: int
    precision: Precision
    link: Link

    @property
    def slices(self) -> int:
        """Ranks that share each expert."""
        return slices_of(self.model, self.ranks)

    @property
    def layout(self) -> Layout:
        return _experts_layout(self.model, self.ranks)

    def experts_s(self, tokens: Number) -> dict[int, Number]:
        """Seconds of one layer's experts on the busiest rank, by kind of layers, for the tokens of a micro-batch."""
        shape = StepShape(decode_sequences=tokens / self.ranks)
        whole = step_ops(self.model, self.layout, self.precision, shape)
        ops = [op for op in whole if _is_experts(op)]
        parts = step_cost(ops, self.rank, self.layout, "likely").parts
        kinds = moe_kinds(self.model)
        factor = _factor(self.rank.calibration)
        found: dict[int, Number] = dict.fromkeys(kinds, 0.0)
        for op, part in zip(ops, parts, strict=True):
            assert op.layers is not None
            found[op.layers] = found[op.layers] + factor * part.total_s / kinds[op.layers]
        return found

    def exchange_s(self, micro: Number, attention: Layout) -> dict[int, tuple[Number, Number]]:
        """Seconds on the link there and back, by kind of layers, for so many sequences of each group."""
        sent = micro * np.maximum(1 / attention.tp, attention.dp / self.ranks)
        narrow = min(element_bytes(self.precision.compute_dtype, "compute"), ACTIVATION_BYTES)
        return {
            kind: (
                sent * self.elements(kind) * narrow / self.link.bytes_per_s,
                sent * self.elements(kind) * ACTIVATION_BYTES / self.link.bytes_per_s,
            )
            for kind in moe_kinds(self.model)
        }

    def elements(self, kind: int) -> float:
        """What is sent of one token: its copies, at most one to each rank, and one to a shared expert."""
        moe = moe_of(self.model, kind)
        copies = min(moe.experts_per_token, self.ranks // self.slices) * self.slices
        routed = copies * (moe.latent or self.model.hidden)
        return float(routed + (self.model.hidden if moe.shared_intermediate else 0))

    def free_bytes(self, tokens: Number) -> Number:
        """What weights and what arrives of a micro-batch leave of the fullest rank's memory; negative where they do not fit."""
        most = max(self.elements(kind) for kind in moe_kinds(self.model))
        arrive_bytes = 4.0 * ACTIVATION_BYTES * most * tokens / self.ranks
        usable_bytes = self.rank.memory_bytes * self.rank.calibration.engine.memory_fraction
        return usable_bytes - self.weight_bytes - arrive_bytes

    @property
    def weight_bytes(self) -> float:
        return expert_bytes(self.model, self.ranks, self.precision)


def moe_kinds(model: Model) -> dict[int, int]:
    """Layers of every kind that has experts, by the number an operator names its kind by."""
    return {kind: int(layers) for kind, (group, layers) in enumerate(stage_layers(model, Layout())) if isinstance(group.feed_forward, Moe)}  # fmt: skip


def slices_of(model: Model, ranks: int) -> int:
    """How many ranks share each expert: one, until there are more ranks than experts of any layer."""
    return max(ranks // max(moe_of(model, kind).experts for kind in moe_kinds(model)), 1)


def _experts_layout(model: Model, ranks: int) -> Layout:
    return Layout(dp=ranks, ep=ranks // slices_of(model, ranks))


def moe_of(model: Model, kind: int) -> Moe:
    found = stage_layers(model, Layout())[kind][0].feed_forward
    assert isinstance(found, Moe)
    return found


def _is_experts(op: Op) -> bool:
    return op.name == "experts" or op.name.startswith("shared experts")


def _gathered(op: Op, model: Model) -> Op:
    """Results of experts come back summed, a slice to each rank of a group: it gathers them, there is nothing to reduce."""
    if op.name == "feed-forward all-reduce" and op.layers in moe_kinds(model):
        return replace(op, name="gather results", pattern="all_gather")
    return op


def _factor(calibration: Calibration) -> float:
    return float(of(calibration.step_factor, "likely"))


def _beside_s(side: AttentionSide, deployment: Deployment, micro_batches: Number, micro: Number) -> Floats:  # fmt: skip
    """Of a step what no layer with experts is: the rest of the model for each micro-batch, sampling, the engine once."""
    fits = deployment.served.calibration
    sampling_s = of(fits.engine.sequence_s, "likely") * micro_batches * micro
    engine_s = of(fits.engine.step_s, "likely")
    return np.asarray(micro_batches * side.rest_s + _factor(fits) * (engine_s + sampling_s))


def attention_bytes(model: Model, tp: int, precision: Precision) -> float:
    """Weights of one attention rank: all but experts."""
    bare = tuple(replace(group, feed_forward=None) if isinstance(group.feed_forward, Moe) else group for group in model.layers)  # fmt: skip
    left = weight_bytes_per_rank(replace(model, layers=bare), Layout(tp=tp), precision)
    return float(left) + _routing_bytes(model, tp, precision)


def expert_bytes(model: Model, ranks: int, precision: Precision) -> float:
    """Weights of the fullest expert rank: its routed experts, and all shared ones."""
    only = tuple(replace(group, attention=None, norms=0, others=0) for group in model.layers if isinstance(group.feed_forward, Moe))  # fmt: skip
    held = replace(model, layers=only, vocab=0, others=0)
    whole = weight_bytes_per_rank(held, _experts_layout(model, ranks), precision)
    last_norm = element_bytes(KEPT) * model.hidden  # counted of any model; stays with attention
    return float(whole) - _routing_bytes(model, 1, precision) - last_norm


def _routing_bytes(model: Model, tp: int, precision: Precision) -> float:
    """Routers, whole on every attention rank, and the ways to and from a latent, cut."""
    rest = of_the_rest(model.rest_dtype, precision)
    latent_bytes = element_bytes((rest if model.quantised == "experts" else precision).weights)
    total = 0.0
    for kind, layers in moe_kinds(model).items():
        moe = moe_of(model, kind)
        latent = 2 * model.hidden * (moe.latent or 0) / tp
        routers = router_parameters(moe, model.hidden)
        total += layers * (routers * element_bytes(KEPT) + latent * latent_bytes)
    return total


def attention_memory(deployment: Deployment, micro: float) -> Memory:
    """What fills an attention rank."""
    whole = deployment.memory(int(micro))
    weights = attention_bytes(deployment.model, deployment.layout.tp, deployment.precision)
    return replace(whole, weight_bytes=weights)


SHOWN: Final = {
    frozenset(
        {"nvidia-h20", "nvidia-l40s"}
    ): "MegaScale-Infer ran attention on H20 and experts on L40S (https://arxiv.org/abs/2504.02263)",
}
"""Pairs of chips that somebody reports to have run apart, where the catalog has no software of one."""

_GOES: Final = ("supported", "experimental", "reported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Whether two chips can exchange activations layer by layer, and who says so."""

    goes: bool
    state: str
    reason: str


def exchange_of(first: str, second: str) -> Exchange:
    """By the best library on record that joins two chips without their hosts' memory and carries an all-to-all.

    >>> exchange_of("nvidia-h20", "hygon-bw1000").goes, exchange_of("nvidia-h20", "huawei-ascend-910c").goes
    (True, False)
    """
    if first == second:
        return Exchange(goes=True, state="supported", reason="both are the same chip")
    if (shown := SHOWN.get(frozenset({first, second}))) is not None:
        return Exchange(goes=True, state="reported", reason=shown)
    answers = shared_collectives(first, second)
    fit = [one for one in answers if one.state in _GOES and not one.through_host and "alltoallv" not in one.lacks]  # fmt: skip
    best = fit[0] if fit else answers[0]
    how = f" by {best.library}" if best.library else ""
    state = "through host memory" if best.through_host else best.state
    return Exchange(goes=bool(fit), state=state, reason=f"{best.reason}{how}")


def link_between(first: Island, second: Island, bytes_per_s: float) -> Link:
    """So wide a link as it is reached: by the worse side's all-to-all, at the longer latency and launch."""
    ends = [island.rank.calibration for island in (first, second)]
    share = min(float(of(fits.all_to_all.bytes_fraction, "likely")) for fits in ends)
    latency_s = max(_latency_s(island, within=first is second) for island in (first, second))
    launch_s = max(float(of(fits.all_to_all.launch_s, "likely")) for fits in ends)
    return Link(bytes_per_s=share * bytes_per_s, latency_s=latency_s + launch_s)


def _latency_s(island: Island, *, within: bool) -> float:
    """Of the tier that joins the island, or of its outermost for a way out; as assumed where none is on record."""
    fits = island.rank.calibration
    links = island.rank.links(fits.all_to_all, "likely")
    joining = [one for one in links if one.ranks is None or one.ranks >= _joined(island)]
    if not links:
        return float(of(fits.unknown_latency_s, "likely"))
    return float(joining[0].latency_s if within and joining else links[-1].latency_s)


def own_way_bytes_per_s(island: Island) -> float | None:
    """One rank's link to any other of its island: the nearest tier that joins them all; None where none is on record."""
    for tier in island.rank.tiers:
        if tier.bytes_per_s is not None and (tier.ranks is None or tier.ranks >= _joined(island)):
            return float(tier.bytes_per_s.value)
    return None


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
    sides = [
        ExpertSide(model=model, rank=second.rank, ranks=ranks, precision=precision, link=link)
        for ranks in _expert_ranks(model, second)
    ]
    found: list[Found] = []
    for tp in _tensor_ranks(model, first):
        deployment = Deployment.make(model, Layout(tp=tp), native_precision(model, first.rank), first.rank)  # fmt: skip
        grid = _Grid.of(question, first, deployment)
        if grid is not None:
            found += [one for side in sides for one in grid.best(side, second)]
    return [one.split for one in _worth_offering(found)]


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
        if tp > _joined(island):
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
        most = _joined(island) // deployment.layout.tp
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
        one_s = other.exchange_s(_ONE, Layout(tp=1, dp=other.ranks))  # of one sequence, sent whole
        total_s = _beside_s(self.side, self.deployment, self.micros_GMB, self.batch_GMB)
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
        return np.asarray(room & (together <= _joined(island)))


def _joined(island: Island) -> int:
    """Ranks of an island that its links of known bandwidth join."""
    reach = island.rank.reach
    return island.ranks if reach is None else min(island.ranks, reach)


def rate_per_s(question: Question, split: Split) -> float:
    """Requests a second of one replica, at nine tenths of the closed form."""
    context = question.input_tokens + question.output_tokens / 2
    sequences = split.attention.layout.dp * split.sequences_per_rank
    return UTILISATION_LIMIT * sequences / (question.output_tokens * split.step_s(context))
