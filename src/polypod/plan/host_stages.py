"""One model over unlike groups of a host's cores: a pipeline with a stage on each, as large as its cores are fast.

    stage_s = m * matrix_share * memory_s + (1 - m) * layer_share * gemm_s + hop_s       of a step of so many tokens
    round_s = max(stages * slowest stage_s, sum of stage_s)     of as many micro-batches as stages, one token for every sequence
    alone_s = sum of stage_s                                     of one sequence, a token

`memory_s` and `gemm_s` are a whole step's time on the cores of the stage, by what they measured, and `m` is the share of it that reads weights (`cost.cpu`).
Bytes go by a stage's part of the matrices, with the head in the last; everything else goes by its part of the layers, for a prompt needs the
head at its last token only, and at few tokens an operator's own cost, which is per layer, is most of it. `hop_s`, of the calibration, is what
handing a micro-batch on costs. Every order of the groups is tried, and layers are spread so that the slowest stage is the fastest it can be at the
micro-batches of a full replica. Left out: that stages share the memory's bandwidth.

`plan.stages` does the same for chips of the catalog, where compositions and memory are chosen too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Final

import msgspec

from polypod.cost.calibration import CASES, Case
from polypod.cost.cpu import CpuCalibration, HostRates, calibration_for, cpu_step_time
from polypod.cost.steptime import StepTime
from polypod.errors import InputError
from polypod.plan.host import (
    NOMINAL_INPUT_TOKENS,
    NOMINAL_OUTPUT_TOKENS,
    CoreGroup,
    LocalEngine,
    LocalModel,
    engine_model,
    plan_host,
    request_time,
    spread,
    step_times,
)
from polypod.plan.spec import Plan, Pool, PoolPrediction, PoolStage, Source
from polypod.workload.layout import Layout
from polypod.workload.model import Model, layer_parameters
from polypod.workload.precision import element_bytes

ENGINES: Final = ("vllm",)
"""That run a pipeline over processes of a host."""

MOST_GROUPS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStage:
    """One stage: how much of the model's matrices it holds, on cores that measured so much."""

    layers: int
    matrix_share: float
    layer_share: float  # of the layers
    rates: HostRates


def plan_host_stages(
    local: LocalModel,
    groups: Sequence[CoreGroup],
    engine: LocalEngine,
    *,
    free_memory_bytes: float,
    context_tokens: int = 4096,
) -> Plan:
    """One replica over all groups.

    Raises `InputError` for an engine that runs no pipelines, and where there are too few or too many groups.
    """
    if engine.name not in ENGINES:
        msg = f"engine {engine.name!r} runs no pipeline over unlike cores; use --engine {' or '.join(ENGINES)}"
        raise InputError(msg)
    if not 2 <= len(groups) <= MOST_GROUPS:
        msg = f"a pipeline over a host's cores has 2 to {MOST_GROUPS} stages, {len(groups)} groups of cores are given"
        raise InputError(msg)
    whole = plan_host(local, groups[:1], [engine], free_memory_bytes=free_memory_bytes, context_tokens=context_tokens)  # fmt: skip
    service = whole.services[0]
    pool = service.pools[0]
    micro_batch = max(1, pool.max_sequences // len(groups))
    fleet = {f"cores{n}": Source(host=g.rates.cpu, cores=g.cores, measured=g.rates) for n, g in enumerate(groups)}  # fmt: skip
    chosen = _best(local.model, engine, fleet, micro_batch)
    staged = msgspec.structs.replace(
        pool,
        name=f"{engine.name}-stages",
        on=chosen[0].on,
        layout=Layout(pp=len(chosen)),
        stages=chosen,
        micro_batches=len(chosen),
    )
    staged = msgspec.structs.replace(staged, predicted=_predicted(local.model, engine, staged, fleet))  # fmt: skip
    service = msgspec.structs.replace(service, pools=(staged,))
    return msgspec.structs.replace(whole, fleet=fleet, services=(service,))


def host_stages(model: Model, pool_stages: Sequence[PoolStage], fleet: Mapping[str, Source]) -> tuple[HostStage, ...]:  # fmt: skip
    """A plan's stages with what they hold. Raises `InputError` where their layers are not the model's."""
    layers = sum(stage.layers for stage in pool_stages)
    if layers != model.num_layers:
        msg = f"the stages hold {layers} layers, {model.name} has {model.num_layers}; make them the same"
        raise InputError(msg)
    head_share, layers_share = _shares(model)
    found = []
    for n, stage in enumerate(pool_stages):
        rates = fleet[stage.on].measured
        assert rates is not None, "only hosts come here"
        head = head_share if n == len(pool_stages) - 1 else 0.0
        layer_share = stage.layers / model.num_layers
        found.append(
            HostStage(
                layers=stage.layers,
                matrix_share=layer_share * layers_share + head,
                layer_share=layer_share,
                rates=rates,
            )
        )
    return tuple(found)


def part_of(calibration: CpuCalibration, stage: HostStage) -> CpuCalibration:
    """The calibration of a part of the model: bytes by its matrices, all else by its layers."""
    knots = []
    for knot in calibration.knots:
        bytes_s = knot.memory_share * stage.matrix_share * knot.seconds
        rest_s = (1 - knot.memory_share) * stage.layer_share * knot.seconds
        whole_s = bytes_s + rest_s
        knots.append(msgspec.structs.replace(knot, seconds=whole_s, memory_share=bytes_s / whole_s))
    return msgspec.structs.replace(
        calibration,
        knots=tuple(knots),
        kv_token_s=stage.layer_share * calibration.kv_token_s,
        pair_s=stage.layer_share * calibration.pair_s,
    )


def stages_step_time(
    engine: str, model: Model, kv_bytes_per_element: float, stages: Sequence[HostStage], case: Case
) -> tuple[CpuCalibration, StepTime]:
    """The pipeline as one step time: a round is a `stages`-th of the batch in each, as `StepTime` has it."""
    shape = engine_model(model, kv_bytes_per_element)
    calibration, _ = calibration_for(engine, stages[0].rates.cpu_class)
    own = [cpu_step_time(part_of(calibration, stage), stage.rates, shape, case) for stage in stages]
    count = len(stages)

    def each_s(tokens: float) -> list[float]:
        return [step.curve_s(tokens) + calibration.hop_s for step in own]

    knots = [knot.tokens for knot in calibration.knots]
    rounds = {
        float(count * tokens): max(count * max(each_s(tokens)), sum(each_s(tokens)))
        for tokens in knots
    }
    seconds = dict(sorted(({1.0: sum(each_s(1.0))} | rounds).items()))
    return calibration, StepTime(
        tokens=tuple(seconds),
        seconds=tuple(seconds.values()),
        kv_token_s=sum(step.kv_token_s for step in own),
        pair_s=sum(step.pair_s for step in own) / count,
        sequence_s=max(step.sequence_s for step in own),
        stages=count,
    )


def pool_step_times(
    model: Model, pool: Pool, fleet: Mapping[str, Source]
) -> tuple[CpuCalibration, dict[Case, StepTime]]:
    """The calibration and the step times of a pool on a host's cores, in one piece or in stages, in the three cases.

    Raises `InputError` where its engine is not said or was never measured on a CPU.
    """
    if pool.engine is None:
        msg = "a pool on a host needs its engine, as 'llama.cpp' or 'openvino'"
        raise InputError(msg)
    per_element = element_bytes(pool.precision.kv, "kv")
    if not pool.stages:
        rates = fleet[pool.on].measured
        assert rates is not None, "only hosts come here"
        return step_times(pool.engine, rates, engine_model(model, per_element))
    stages = host_stages(model, pool.stages, fleet)
    times: dict[Case, StepTime] = {}
    for case in CASES:
        calibration, times[case] = stages_step_time(pool.engine, model, per_element, stages, case)
    return calibration, times


def _best(
    model: Model, engine: LocalEngine, fleet: Mapping[str, Source], micro_batch: int
) -> tuple[PoolStage, ...]:
    """The order and the layers whose slowest stage is the fastest; among equals the shortest way through, then the order given."""
    found = []
    for order in permutations(fleet):
        stages, times_s = _spread(model, engine, fleet, order, micro_batch)
        found.append((max(times_s), sum(times_s), stages))
    return min(found, key=lambda one: one[:2])[2]


def _spread(
    model: Model,
    engine: LocalEngine,
    fleet: Mapping[str, Source],
    order: Sequence[str],
    micro_batch: int,
) -> tuple[tuple[PoolStage, ...], list[float]]:
    """Give one layer after another to the stage that is then the fastest of all; every stage has one. Also the stages' times."""
    shape = engine_model(model, engine.kv_bytes_per_element)
    head_share, layers_share = _shares(model)

    def stage_s(at: int, layers: int) -> float:
        rates = fleet[order[at]].measured
        assert rates is not None, "only hosts come here"
        calibration, _ = calibration_for(engine.name, rates.cpu_class)
        layer_share = layers / model.num_layers
        head = head_share if at == len(order) - 1 else 0.0
        part = HostStage(
            layers=layers,
            matrix_share=layer_share * layers_share + head,
            layer_share=layer_share,
            rates=rates,
        )
        step = cpu_step_time(part_of(calibration, part), rates, shape, "likely")
        return step.curve_s(micro_batch) + calibration.hop_s

    layers = [1] * len(order)
    for _ in range(model.num_layers - len(order)):
        after_s = [stage_s(at, n + 1) for at, n in enumerate(layers)]
        layers[after_s.index(min(after_s))] += 1
    stages = tuple(PoolStage(on=name, layers=n) for name, n in zip(order, layers, strict=True))
    return stages, [stage_s(at, n) for at, n in enumerate(layers)]


def _shares(model: Model) -> tuple[float, float]:
    """Of the matrices that a token is multiplied with: the head's part, and all layers'."""
    layers = sum(group.count * layer_parameters(group, model.hidden) for group in model.layers)
    total = layers + model.embedding_parameters
    return model.embedding_parameters / total, layers / total


def _predicted(model: Model, engine: LocalEngine, pool: Pool, fleet: Mapping[str, Source]) -> PoolPrediction:  # fmt: skip
    calibration, times = pool_step_times(model, pool, fleet)
    alone = request_time(
        calibration,
        times,
        input_tokens=NOMINAL_INPUT_TOKENS,
        output_tokens=NOMINAL_OUTPUT_TOKENS,
        max_step_tokens=engine.max_step_tokens,
    )
    kv_tokens = pool.max_sequences * (NOMINAL_INPUT_TOKENS + NOMINAL_OUTPUT_TOKENS / 2)
    full_s = times["likely"].step_s(
        tokens=pool.max_sequences, kv_tokens=kv_tokens, sequences=pool.max_sequences
    )
    assert pool.predicted is not None
    return msgspec.structs.replace(
        pool.predicted,
        tokens_per_s_per_accelerator=round(pool.max_sequences / full_s, 1),
        ttft=spread(alone.ttft_s),
        tpot=spread(alone.tpot_s),
    )
