"""Attention on one island, experts on another (attention/expert disaggregation): the closed form of one decode step.

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
arXiv 2504.02263; Step-3, arXiv 2507.19427, splits a model the same way). Every micro-batch reads all weights anew.

Every slice of an expert is sent the whole token and sends its part of the sum back; nothing is exchanged among expert ranks.

Left out: the first and last layer's filling of the pipeline (1 layer of 60), uneven loads of ranks (part of calibration,
as everywhere). The exchange reaches the share of the link that the all-to-all of the worse side does; a M2N library made for it may do better.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from polypod import units
from polypod.cost.calibration import Calibration, of
from polypod.cost.chip import Rank
from polypod.cost.deployment import Deployment, Memory
from polypod.cost.roofline import Number
from polypod.cost.step import step_cost
from polypod.plan.afd_link import Link
from polypod.plan.search import UTILISATION_LIMIT, Floats, Question
from polypod.workload.forward import Op, StepShape, step_ops
from polypod.workload.layout import Layout
from polypod.workload.memory import stage_layers, weight_bytes_per_rank
from polypod.workload.model import Model, Moe, router_parameters
from polypod.workload.ops import ACTIVATION_BYTES
from polypod.workload.precision import KEPT, Precision, element_bytes, of_the_rest


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
        experts_s = self.offered.experts_s(self._tokens)
        sent_s = self.offered.exchange_s(float(self.sequences), self.attention.layout)
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
            layers_s + beside_s(side, self.attention, self.micro_batches, self.sequences)[0]
        )

    def attention_memory(self) -> Memory:
        """What fills an attention rank."""
        return attention_memory(self.attention, float(self.sequences))

    @property
    def expert_weight_bytes(self) -> float:
        """Of the fullest expert rank."""
        return self.offered.weight_bytes

    @property
    def expert_free_bytes(self) -> float:
        """What is left there."""
        return float(self.offered.free_bytes(self._tokens))

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
    def offered(self) -> "ExpertSide":
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


def steps_s(split: Split, sequences: Floats, context_tokens: Floats) -> Floats:
    """TPOT with other numbers of sequences on each group, in as many micro-batches while there are enough of them."""
    micro_batches = np.minimum(float(split.micro_batches), sequences)
    micro = sequences / micro_batches
    layout, offered = split.attention.layout, split.offered
    side = attention_side(split.attention, micro, context_tokens)
    experts_s = offered.experts_s(layout.dp * micro)
    sent_s = offered.exchange_s(micro, layout)
    total_s = beside_s(side, split.attention, micro_batches, micro)
    for kind, layers in moe_kinds(split.attention.model).items():
        one = Round(
            layers=layers,
            attention_s=side.layer_s[kind],
            experts_s=experts_s[kind],
            dispatch_s=sent_s[kind][0],
            combine_s=sent_s[kind][1],
            latency_s=split.link.latency_s,
        )
        total_s = total_s + layers * one.layer_s(micro_batches)
    return np.asarray(total_s)


def attention_side(deployment: Deployment, micro: Floats, context_tokens: Number) -> AttentionSide:
    """Time everything but the experts. The number of groups does not matter: they have nothing to say to one another."""
    one = replace(deployment, layout=Layout(tp=deployment.layout.tp))
    ops = [_gathered(op, one.model) for op in one.ops(sequences=micro, kv_tokens=micro * context_tokens) if not _is_experts(op)]  # fmt: skip
    parts = one.cost(ops).parts
    factor = one.scale * _factor(one.served.calibration)
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


def beside_s(side: AttentionSide, deployment: Deployment, micro_batches: Number, micro: Number) -> Floats:  # fmt: skip
    """Of a step what no layer with experts is: the rest of the model for each micro-batch, sampling, the engine once."""
    fits = deployment.served.calibration
    sampling_s = of(fits.engine.sequence_s, "likely") * micro_batches * micro
    engine_s = of(fits.engine.step_s, "likely")
    factor = deployment.scale * _factor(fits)
    return np.asarray(micro_batches * side.rest_s + factor * (engine_s + sampling_s))


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


def rate_per_s(question: Question, split: Split) -> float:
    """Requests a second of one replica, at nine tenths of the closed form."""
    context = question.input_tokens + question.output_tokens / 2
    sequences = split.attention.layout.dp * split.sequences_per_rank
    return UTILISATION_LIMIT * sequences / (question.output_tokens * split.step_s(context))
