"""From a row's conditions to predicted TTFT and TPOT, with the band of what is known of its chip."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from polypod.catalog.load import known_names, load_accelerator, load_model
from polypod.catalog.topology import loose_tiers
from polypod.cost.calibration import Calibration, Evidence, for_chip
from polypod.cost.chip import Rank, rank_of
from polypod.cost.deployment import Deployment
from polypod.cost.measured import BACKENDS
from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour, Load, Times, closed_loop, held_steps, prompt_s
from polypod.errors import InputError, PolypodError
from polypod.validate.bands import Band, band_of
from polypod.validate.rows import DRAWN_LENGTHS, Row, Workers
from polypod.workload.config import read_model
from polypod.workload.layout import Layout, check_layout
from polypod.workload.model import Mla, Model
from polypod.workload.precision import Precision

SYSTEMS: Final = {
    "h100_sxm": "nvidia-h100-sxm",
    "h200_sxm": "nvidia-h200-sxm",
    "h800_sxm": "nvidia-h800-sxm",
    "h20_sxm": "nvidia-h20",
    "a100_sxm": "nvidia-a100-80g-sxm",
    "b200_sxm": "nvidia-b200-hgx",
    "b300_sxm": "nvidia-b300",
    "gb200": "nvidia-gb200",
    "gb200_sxm": "nvidia-gb200",
    "mi300x": "amd-mi300x",
    "mi325x": "amd-mi325x",
    "mi355x": "amd-mi355x",
    "l20": "nvidia-l20",
}
"""Names that benchmark dumps use for what the catalog calls otherwise; any name of the catalog works as well."""

_QUANTISED: Final = {
    "fp8": "fp8", "fp8_block": "fp8", "fp8_static": "fp8", "fp8_ootb": "fp8", "nvfp4": "nvfp4", "fp4": "nvfp4",
    "int8": "int8", "int8_wo": "int8", "int4": "int4", "int4_wo": "int4", "mxfp4": "mxfp4", "w4a16_mxfp4": "mxfp4", "w4a8_mxfp4_mxfp8": "mxfp4",
    "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16",
}  # fmt: skip


def speculative_gain(concurrency: float) -> float:
    """Tokens a step where drafts are on and nothing says how many are accepted.

    The more sequences, the less a step gains, because verifying drafts is no longer free: TPOT without over TPOT with drafts was 1.4 to 1.8
    up to 8 clients and 1.0 to 1.6 above 32 in public runs of DeepSeek-R1. A straight line in the logarithm through the middles.

    >>> [round(speculative_gain(clients), 2) for clients in (1, 8, 64, 512)]
    [1.6, 1.6, 1.3, 1.0]
    """
    return min(max(1.6 - 0.1 * math.log2(max(concurrency, 1.0) / 8), 1.0), 1.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a row's conditions should have given. Bands hold 80 % of what is measured."""

    ttft_s: float
    tpot_s: float
    ttft_band: Band
    tpot_band: Band
    evidence: Evidence
    notes: tuple[str, ...] = ()


def predict(row: Row, *, without: frozenset[str] = frozenset()) -> Prediction:
    """Predict one row; `without` are accelerators whose own measurements are not used.

    Raises `InputError` (or one of its kinds) where the catalog lacks the system or the model, or the layout cannot be.
    """
    chip = load_accelerator(SYSTEMS.get(row.system, row.system))
    name = model_name(row.model)
    if row.mode == "agg":
        step, calibration = _step(_key(row, row.workers, chip.id, name, without))
        times = closed_loop(step, _load(row), _behaviour(row, name))
    else:
        times, calibration = _disaggregated(row, chip.id, name, without)
    evidence = calibration.evidence
    kind = f"{row.mode}{'-speculative' if row.speculative else ''}"
    return Prediction(
        ttft_s=times.ttft_s,
        tpot_s=times.tpot_s,
        ttft_band=band_of(evidence, kind, "ttft"),
        tpot_band=band_of(evidence, kind, "tpot"),
        evidence=evidence,
        notes=row.repaired,
    )


def _disaggregated(
    row: Row, chip: str, name: str, without: frozenset[str]
) -> tuple[Times, Calibration]:
    """Prefill workers that queue, decode workers that no prompt interrupts; the cache's way between them is not counted."""
    if row.prefill is None or row.decode is None:
        msg = f"row {row.id} is disaggregated and says nothing of its workers"
        raise InputError(msg)
    prefill, _ = _step(_key(row, row.prefill, chip, name, without))
    decode, calibration = _step(_key(row, row.decode, chip, name, without))
    behaviour = _behaviour(row, name)
    context = row.input_tokens + row.output_tokens / 2
    own_s = max(prompt_s(prefill, row.input_tokens, behaviour), behaviour.launch_s)
    decoding, tpot_s, ttft_s = 1.0, 0.0, 0.0
    servers = row.prefill.count * min(prefill.data_ranks, 8)
    for _ in range(30):
        per_rank = max(row.concurrency * decoding / row.decode.count / decode.data_ranks, 1.0)
        step_s = decode.step_s(tokens=per_rank, kv_tokens=per_rank * context, sequences=per_rank)
        tpot_s = step_s / behaviour.tokens_per_step
        waiting = (row.concurrency - 1) * (1 - decoding) / servers
        ttft_s = behaviour.fixed_s + own_s * (1.0 + waiting / 2) + held_steps(behaviour) * step_s
        # Clients that all prefill at once cannot be served faster than the workers compute.
        cycle_s = max(ttft_s + row.output_tokens * tpot_s, row.concurrency * own_s / servers)
        ttft_s = max(ttft_s, cycle_s - row.output_tokens * tpot_s)
        decoding = 0.5 * decoding + 0.5 * row.output_tokens * tpot_s / cycle_s
    return Times(ttft_s=ttft_s, tpot_s=tpot_s, decoding=decoding), calibration


@dataclass(frozen=True, slots=True)
class _Key:
    """All that a step time depends on."""

    chip: str
    model: str
    backend: str
    layout: Layout
    weights: str
    kv: str
    without: frozenset[str]


def _key(row: Row, workers: Workers, chip: str, name: str, without: frozenset[str]) -> _Key:
    weights = _QUANTISED.get(row.precision)
    if weights is None:
        msg = f"precision {row.precision!r} is not understood; known are {', '.join(_QUANTISED)}"
        raise InputError(msg)
    if "gpt-oss" in name:
        weights = "mxfp4"
    kv = "fp8" if weights != "bf16" and not row.sweep else "bf16"
    if "gpt-oss" in name and chip.startswith("nvidia-h") and row.backend == "vllm":
        kv = "bf16"
    return _Key(chip, name, row.backend, workers.layout, weights, kv, without)


@lru_cache(maxsize=4096)
def _step(key: _Key) -> tuple[StepTime, Calibration]:
    model = model_of(key.model)
    check_layout(model, key.layout)
    rank = rank_for(key.chip, key.backend, key.without)
    have = rank.peak_flops_per_s
    wide = "bf16" if "bf16" in have else "fp16"
    blackwell = "fp4" in have
    compute = {
        "nvfp4": "fp4" if blackwell else wide,
        "mxfp4": "fp8" if blackwell else wide,
        "int4": wide,
    }.get(key.weights)
    precision = Precision(weights=key.weights, kv=key.kv, compute=compute)
    deployment = Deployment.make(model, key.layout, precision, rank)
    return deployment.step_time(), rank.calibration


@lru_cache(maxsize=256)
def rank_for(chip: str, backend: str, without: frozenset[str]) -> Rank:
    """One rank of a chip in its usual pod, timed by the engine's kernels where there are any of it."""
    calibration = for_chip(chip, backend if backend in BACKENDS else None, without)
    return rank_of(load_accelerator(chip), loose_tiers(chip), calibration)


@lru_cache(maxsize=256)
def model_of(name: str) -> Model:
    entry = load_model(name)
    return read_model(entry.config, entry.name, entry.path)


_SUFFIXES: Final = ("-NVFP4", "-FP8", "-FP4", "-BF16", "-Instruct", "-hf", "-0528", "-v2")


def model_name(path: str) -> str:
    """The catalog's model of the same shape: quantised and instruction-tuned copies have the shape of what they were made from.

    Raises `InputError` where there is none.
    """
    known = known_names()
    tried = path
    while True:
        base = tried.rpartition("/")[2]
        for candidate in (tried, base):
            if known.get(candidate.casefold()) == "model":
                return candidate
        ending = next((end for end in _SUFFIXES if tried.endswith(end)), None)
        if ending is None:
            msg = f"model {path!r} is not in the catalog; add its config.json with polypod catalog add"
            raise InputError(msg)
        tried = tried.removesuffix(ending)


def _load(row: Row) -> Load:
    """Benchmark dumps send ten requests a client; sweeps eight, all of one length, so that SGLang's stay in one wave."""
    if not row.sweep:
        return Load(
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            concurrency=row.concurrency,
        )
    waves = 1.0 if row.backend == "sglang" else 8.5
    return Load(
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        concurrency=row.concurrency,
        waves=waves,
        start=2.7,
    )


_FIXED_S: Final = 0.020
"""HTTP, tokenising and queueing of a prompt, whatever the engine: fitted to the shipped rows, the one constant that is."""

_BEHAVIOURS: Final = {
    "sglang": Behaviour(exclusive_prefill=True, fixed_s=_FIXED_S),
    "trtllm": Behaviour(fixed_s=_FIXED_S),
    "vllm": Behaviour(fixed_s=_FIXED_S),
}
_LAUNCH_S: Final = {"sglang": 45e-6, "trtllm": 27e-6, "vllm": 25e-6}
"""Seconds a kernel takes to launch in a prompt computed eagerly, by engine."""


def launched_kernels(model: Model) -> int:
    """Kernels of one step, where no captured graph replays them."""
    mla = any(isinstance(group.attention, Mla) for group in model.layers)
    return (32 if mla else 17 if model.is_moe else 10) * model.num_layers


def _behaviour(row: Row, name: str) -> Behaviour:
    """How the row's engine schedules; what its benchmark's script set is in `_script`."""
    kernels = launched_kernels(model_of(name))
    plain = replace(
        _BEHAVIOURS.get(row.backend, Behaviour(fixed_s=_FIXED_S)),
        launch_s=_LAUNCH_S.get(row.backend, 27e-6) * kernels,
        tokens_per_step=speculative_gain(row.concurrency) if row.speculative else 1.0,
    )
    return plain if row.sweep else _script(row, name.casefold(), plain)


def _script(row: Row, name: str, plain: Behaviour) -> Behaviour:
    """What InferenceX's public launch scripts set for this engine and model (github.com/SemiAnalysisAI/InferenceX, benchmarks/)."""
    if row.backend == "sglang":
        fp4 = _QUANTISED.get(row.precision) == "nvfp4"
        return replace(
            plain,
            stream_interval=10.0 if fp4 else 30.0,
            poll_steps=30.0 if row.concurrency >= 16 else 10.0,
            step_tokens=16384.0 if fp4 else 32768.0,
        )
    if row.backend == "trtllm":
        nominal = (
            round(row.input_tokens / DRAWN_LENGTHS),
            round(row.output_tokens / DRAWN_LENGTHS),
        )
        waits = "llama" in name and row.workers.layout.tp < 8 and nominal == (1024, 1024)
        return replace(
            plain,
            stream_interval=20.0 if "gpt-oss" in name else 10.0,
            wait_steps=20.0 if waits else 0.0,
        )
    return plain


def reason_of(error: PolypodError) -> str:
    """One line for a row that cannot be predicted."""
    return str(error).splitlines()[0]
