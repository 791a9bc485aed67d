"""Replicas on several kinds of ranks, read from a plan's pool: experts apart, and pipelines of unequal stages."""

import math
from dataclasses import dataclass

from polypod.cost.deployment import Deployment, native_precision
from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour
from polypod.engine.settings import NOTHING
from polypod.errors import InputError
from polypod.plan.afd import Split, attention_memory
from polypod.plan.afd_link import link_between, own_way_bytes_per_s
from polypod.plan.fitted import Line, line_fit, said_bytes_per_s, split_step, traffic_of
from polypod.plan.place import island, joined_by_network, way_between_bytes_per_s
from polypod.plan.spec import Plan, Pool, Service
from polypod.plan.workers import Part, cut_out, fabric_bytes_per_s, part_memory
from polypod.workload.layout import Layout, check_layout
from polypod.workload.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """What all replicas of a pool have in common."""

    step_time: StepTime
    kv_capacity_tokens: int
    max_step_tokens: int | None = None  # None: as the pool says
    max_sequences: int | None = None
    engine: Behaviour | None = None
    error_fraction: float = 0.0  # of the step time, where it is fitted to a form


def with_experts_apart(plan: Plan, service: Service, model: Model, pool: Pool) -> Timed:
    """Attention on `on`, experts on `experts_on`.

    Raises `InputError` for a model without experts, ranks that are not there, no link on record, or a form that no step time says.
    """
    assert pool.experts_on is not None
    assert pool.expert_ranks is not None
    _check_settings(pool)
    traffic = traffic_of(service.traffic, "a pool with experts apart")
    if not model.is_moe:
        msg = f"{model.name}: no experts to put apart; leave experts_on out"
        raise InputError(msg)
    first = island(pool.on, plan.fleet[pool.on])
    second = first if pool.experts_on == pool.on else island(pool.experts_on, plan.fleet[pool.experts_on])  # fmt: skip
    check_layout(model, Layout(tp=pool.layout.tp))
    for place, each in {
        first.name: (first, pool.layout.world + (pool.expert_ranks if second is first else 0)),
        second.name: (second, pool.expert_ranks + (pool.layout.world if second is first else 0)),
    }.values():
        _check_ranks(pool, each, place.ranks, place.name)
    found = (
        own_way_bytes_per_s(first) if second is first else way_between_bytes_per_s(first, second)
    )
    what = f"between {first.rank.chip} on {first.name!r} and {second.rank.chip} on {second.name!r}"
    attention = Deployment(
        model=model, layout=pool.layout, precision=pool.precision, rank=first.rank
    )
    micro_batches = pool.micro_batches or 1
    per_group = max(pool.max_sequences // pool.layout.dp, 1)
    split = Split(
        attention=attention,
        experts=second.rank,
        expert_ranks=pool.expert_ranks,
        expert_precision=native_precision(model, second.rank),
        link=link_between(first, second, said_bytes_per_s(pool.link, found, what)),
        micro_batches=micro_batches,
        sequences=max(per_group // micro_batches, 1),
    )
    fitted = split_step(split, traffic, per_group)
    tokens = int(attention_memory(attention, float(split.sequences)).kv_tokens)
    if tokens < 2:
        msg = f"the attention's weights leave no room for a cache on {first.rank.chip}; raise tp, or lower the precision"
        raise InputError(msg)
    return Timed(
        step_time=fitted.step_time,
        kv_capacity_tokens=tokens * pool.layout.dp,
        error_fraction=fitted.error_fraction,
    )


def with_stages(plan: Plan, service: Service, model: Model, pool: Pool) -> Timed:
    """A pipeline over several parts of the fleet. Its rounds carry as many tokens as all its micro-batches together.

    The pool's sequences all decode, in the form; those whose prompts are computed meanwhile come on top.

    Raises `InputError` for layers that are not the model's, ranks that are not there, no link on record, or a form that no step time says.
    """
    _check_settings(pool)
    traffic = traffic_of(service.traffic, "a pipeline of unequal stages")
    line = line_of(plan, model, pool)
    tokens = pool.max_step_tokens * line.micro_batches
    whole = traffic.input + traffic.output
    context = traffic.input + traffic.output / 2
    memories = [part_memory(deployment, part, whole) for deployment, part in line.stages]
    held = int(min(memory.tokens_of(context) for memory in memories))
    if held < whole:
        msg = f"a stage has room for {held} cached tokens, a request of the traffic fills {whole}; give it fewer layers"
        raise InputError(msg)
    sequences = pool.max_sequences + max(math.ceil(pool.max_sequences / traffic.output), 1)
    fitted = line_fit(line, traffic, sequences, tokens)
    return Timed(
        step_time=fitted.step_time,
        kv_capacity_tokens=held,
        max_step_tokens=tokens,
        max_sequences=sequences,
        error_fraction=fitted.error_fraction,
    )


def line_of(plan: Plan, model: Model, pool: Pool) -> Line:
    """The pool's stages, each as a deployment of its own layers, and the link between them. Raises `InputError` as `with_stages` does."""
    layers = sum(stage.layers for stage in pool.stages)
    if layers != model.num_layers:
        msg = f"the stages hold {layers} layers, {model.name} has {model.num_layers}; make them the same"
        raise InputError(msg)
    names = list(dict.fromkeys(stage.on for stage in pool.stages))
    places = {name: joined_by_network(name, plan.fleet[name], None) for name in names}
    for name, place in places.items():
        each = sum(stage.ranks for stage in pool.stages if stage.on == name)
        _check_ranks(pool, each, place.ranks, name)
    last = len(pool.stages) - 1
    stages = []
    for n, stage in enumerate(pool.stages):
        part = Part(layers=stage.layers, first=n == 0, last=n == last)
        stages.append((cut_out(model, places[stage.on], stage.ranks, part), part))
    found = None if pool.link else fabric_bytes_per_s(list(places.values())) if last else 1.0
    return Line(
        stages=tuple(stages),
        micro_batches=pool.micro_batches or len(stages),
        bytes_per_s=said_bytes_per_s(pool.link, found, "between stages"),
        hidden=model.hidden,
    )


def _check_settings(pool: Pool) -> None:
    """The forms know no drafts, no prompts alone and no cached prefixes."""
    if pool.engine_args != NOTHING:
        msg = "engine_args are not played with experts apart or stages, whose steps are of plain chunked prefill; leave them out"
        raise InputError(msg)


def _check_ranks(pool: Pool, each: int, there: int, name: str) -> None:
    if each * pool.replicas > there:
        msg = f"{pool.replicas} replicas of {each} ranks need {each * pool.replicas}, {name!r} has {there}; use fewer"
        raise InputError(msg)
