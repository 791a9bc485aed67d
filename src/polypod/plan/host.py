"""A plan for this machine's own cores: one replica per group of cores, each on an engine of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from polypod import units
from polypod.cost.calibration import CASES, Case, of
from polypod.cost.cpu import (
    CpuCalibration,
    EngineModel,
    HostRates,
    calibration_for,
    cpu_step_time,
)
from polypod.cost.steptime import StepTime
from polypod.errors import InputError
from polypod.plan.spec import Plan, Pool, PoolPrediction, Service, Source, Spread
from polypod.workload.layout import Layout
from polypod.workload.memory import weight_bytes_per_rank
from polypod.workload.model import Gqa, Model, parameters
from polypod.workload.precision import Precision

NOMINAL_INPUT_TOKENS = 64
NOMINAL_OUTPUT_TOKENS = 64
"""The request that the plan's figures are for, on an idle node."""

MEMORY_FRACTION = 0.25
"""Of the memory that is free, how much one replica's cache may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreGroup:
    """Cores that one replica is pinned to, and what they measured together."""

    cores: tuple[int, ...]
    rates: HostRates


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalEngine:
    """An installed engine, as far as planning needs it."""

    name: str
    version: str
    kv_bytes_per_element: float
    max_step_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModel:
    """A model in a file on this machine."""

    model: Model
    weights: str
    weight_format: str  # as "q4_1"
    served_name: str


def plan_host(
    local: LocalModel,
    groups: Sequence[CoreGroup],
    engines: Sequence[LocalEngine],
    *,
    free_memory_bytes: float,
    context_tokens: int = 4096,
) -> Plan:
    """One pool per group of cores, the engines taken in turn.

    Raises `InputError` where no engine is installed.
    """
    if not engines:
        msg = "no inference engine is installed; install one with: pip install 'polypod[llama-cpp]' or 'polypod[openvino]'"
        raise InputError(msg)
    context = min(context_tokens, local.model.context_tokens or context_tokens)
    pools, fleet = [], {}
    for index, group in enumerate(groups):
        engine = engines[index % len(engines)]
        name = f"cores{index}"
        fleet[name] = Source(host=group.rates.cpu, cores=group.cores, measured=group.rates)
        sequences = _sequences(local, engine, context, free_memory_bytes)
        pool = _pool(local, group, engine, name, sequences)
        if len(engines) < len(groups):  # an engine comes twice, and replicas are named after pools
            pool = msgspec.structs.replace(pool, name=f"{engine.name}-{name}")
        pools.append(pool)
    service = Service(
        model=local.served_name, weights=local.weights, context=context, pools=tuple(pools)
    )
    return Plan(
        polypod=1,
        fleet=fleet,
        services=(service,),
        notes=(
            f"TTFT and TPOT are for one request of {NOMINAL_INPUT_TOKENS} tokens in and "
            f"{NOMINAL_OUTPUT_TOKENS} out on an idle node",
            *_foreign(groups, engines),
        ),
    )


def _foreign(groups: Sequence[CoreGroup], engines: Sequence[LocalEngine]) -> list[str]:
    """Engines that were never measured on this class of CPU, said once each."""
    notes = []
    for engine in engines:
        for wanted in sorted({group.rates.cpu_class for group in groups}):
            calibration, is_own = calibration_for(engine.name, wanted)
            if not is_own:
                notes.append(
                    f"{engine.name} was calibrated on {calibration.cpu_class} and not on {wanted}: its band is taken twice"
                )
    return notes


def engine_model(model: Model, kv_bytes_per_element: float) -> EngineModel:
    """What an engine's step time depends on: matrices, cache bytes, attention arithmetic.

    A tied embedding is the output head, and computed with; an untied one is only looked up. Layers with a window are taken
    to cache and to attend to the whole context, which is high for long ones.
    """
    looked_up = 0 if model.tied else model.embedding_parameters
    pair_flops = sum(
        group.count * 4 * group.attention.heads * group.attention.head_dim
        for group in model.layers
        if isinstance(group.attention, Gqa)
    )
    elements = sum(
        group.count * group.attention.kv_elements for group in model.layers if group.attention
    )
    return EngineModel(
        matrix_parameters=float(parameters(model) - looked_up),
        kv_bytes_per_token=float(elements * kv_bytes_per_element),
        attention_flops_per_pair=float(pair_flops),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTime:
    """What one request on an idle replica is expected to see."""

    ttft_s: dict[Case, float]
    tpot_s: dict[Case, float]


def request_time(
    calibration: CpuCalibration,
    step_times: dict[Case, StepTime],
    *,
    input_tokens: int,
    output_tokens: int,
    max_step_tokens: int,
) -> RequestTime:
    """TTFT and TPOT of one request alone: its prompt in chunks of the step budget, then steps of one token."""
    kv_tokens = input_tokens + output_tokens / 2
    ttft_s, tpot_s = {}, {}
    for case, step in step_times.items():
        prompt_s, done = 0.0, 0
        while done < input_tokens:
            chunk = min(max_step_tokens, input_tokens - done)
            prompt_s += step.prompt_s(chunk, cached=done)
            done += chunk
        ttft_s[case] = of(calibration.first_token_s, case) + prompt_s
        tpot_s[case] = step.step_s(tokens=1, kv_tokens=kv_tokens, sequences=1)
    return RequestTime(ttft_s=ttft_s, tpot_s=tpot_s)


def step_times(
    engine: str, rates: HostRates, model: EngineModel
) -> tuple[CpuCalibration, dict[Case, StepTime]]:
    """The engine's calibration and its step time on these cores, in the three cases."""
    calibration, _ = calibration_for(engine, rates.cpu_class)
    return calibration, {case: cpu_step_time(calibration, rates, model, case) for case in CASES}


def _sequences(
    local: LocalModel, engine: LocalEngine, context: int, free_memory_bytes: float
) -> int:
    per_token = engine_model(local.model, engine.kv_bytes_per_element).kv_bytes_per_token
    fits = int(MEMORY_FRACTION * free_memory_bytes / max(per_token * context, 1.0))
    if fits < 1:
        msg = (
            f"one sequence of {context} tokens takes {units.show(per_token * context, 'bytes')} of cache, a quarter of the "
            f"{units.show(free_memory_bytes, 'bytes')} free is less; free memory, or lower --context"
        )
        raise InputError(msg)
    return min(fits, 8)


def _pool(
    local: LocalModel, group: CoreGroup, engine: LocalEngine, name: str, sequences: int
) -> Pool:
    shape = engine_model(local.model, engine.kv_bytes_per_element)
    calibration, steps = step_times(engine.name, group.rates, shape)
    alone = request_time(
        calibration,
        steps,
        input_tokens=NOMINAL_INPUT_TOKENS,
        output_tokens=NOMINAL_OUTPUT_TOKENS,
        max_step_tokens=engine.max_step_tokens,
    )
    kv_tokens = sequences * (NOMINAL_INPUT_TOKENS + NOMINAL_OUTPUT_TOKENS / 2)
    full_s = steps["likely"].step_s(tokens=sequences, kv_tokens=kv_tokens, sequences=sequences)
    precision = Precision(
        weights=local.weight_format, kv=_cache_format(engine.kv_bytes_per_element)
    )
    held = float(weight_bytes_per_rank(local.model, Layout(), precision))
    return Pool(
        name=engine.name,
        role="both",
        on=name,
        engine=engine.name,
        layout=Layout(),
        replicas=1,
        precision=precision,
        state="launchable",
        max_sequences=sequences,
        max_step_tokens=engine.max_step_tokens,
        predicted=PoolPrediction(
            memory_per_accelerator=units.show(held + kv_tokens * shape.kv_bytes_per_token, "bytes"),
            tokens_per_s_per_accelerator=round(sequences / full_s, 1),
            bound={
                "prefill": _bound(calibration, NOMINAL_INPUT_TOKENS),
                "decode": _bound(calibration, 1),
            },
            ttft=spread(alone.ttft_s),
            tpot=spread(alone.tpot_s),
        ),
    )


def _cache_format(bytes_per_element: float) -> str:
    """The nearest in name; what it takes is known from the engine itself."""
    if bytes_per_element >= 4:
        return "fp32"
    return "fp16" if bytes_per_element >= 2 else "int8"


def _bound(calibration: CpuCalibration, tokens: int) -> str:
    knot = min(calibration.knots, key=lambda one: abs(one.tokens - tokens))
    memory = round(100 * knot.memory_share)
    return f"memory {memory} %, arithmetic {100 - memory} %"


def spread(seconds: dict[Case, float]) -> Spread:
    """The likely time with its band, as a plan has it."""
    return Spread(
        p50=units.show(seconds["likely"], "s"),
        band=(units.show(seconds["fast"], "s"), units.show(seconds["slow"], "s")),
    )
