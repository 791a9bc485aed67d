"""From a row's conditions to predicted TTFT and TPOT, with the band of what is known of its chip."""

from dataclasses import dataclass, replace
from functools import lru_cache

from polypod.catalog.load import entry_id, load_accelerator, load_model
from polypod.catalog.topology import loose_tiers
from polypod.cost.bands import Band, band_of
from polypod.cost.calibration import Calibration, Evidence, for_chip
from polypod.cost.chip import Rank, rank_of
from polypod.cost.deployment import Deployment
from polypod.cost.measured import BACKENDS
from polypod.cost.own import Key, own_fits
from polypod.cost.steptime import StepTime
from polypod.engine.apart import Role, apart
from polypod.engine.closed_loop import Load, Times, closed_loop
from polypod.engine.settings import NOTHING, EngineArgs, Move, behaviour_of, load_of, moves
from polypod.errors import InputError, PolypodError
from polypod.validate.conditions import QUANTISED, conditions
from polypod.validate.host import TOKENISING_S, Host, host_of, hosted
from polypod.validate.names import model_name, system_name
from polypod.validate.own import under
from polypod.validate.played import Played, Worker, play_load
from polypod.validate.rows import Row, Workers
from polypod.validate.scheduling import cache_of, scheduled, sent
from polypod.workload.config import read_model
from polypod.workload.layout import Layout, check_layout
from polypod.workload.model import Model
from polypod.workload.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a row's conditions should have given. Bands hold 80 % of what is measured."""

    ttft_s: float
    tpot_s: float
    ttft_band: Band
    tpot_band: Band
    evidence: Evidence
    notes: tuple[str, ...] = ()


def predict(
    row: Row,
    *,
    without: frozenset[str] = frozenset(),
    said: EngineArgs = NOTHING,
    own: bool = True,
) -> Prediction:
    """Predict one row; `without` are accelerators whose own measurements are not used, `said` overrules what the row's script set.

    `own` lets a person's calibrations correct it.

    Raises `InputError` (or one of its kinds) where the catalog lacks the system or the model, or the layout cannot be.
    """
    chip = load_accelerator(system_name(row.system))
    name = model_name(row.model)
    made = _made_of(row, chip.id, name, without)
    known = said.over(conditions(row, name))
    times = _times(row, name, made, known, _load(row, known))
    evidence = made[-1].calibration.evidence
    drafts = known.num_speculative_tokens and known.acceptance is None
    kind = f"{row.mode}-speculative" if drafts else row.mode
    found = Prediction(
        ttft_s=times.ttft_s,
        tpot_s=times.tpot_s,
        ttft_band=band_of(evidence, kind, "ttft"),
        tpot_band=band_of(evidence, kind, "tpot"),
        evidence=evidence,
        notes=row.repaired,
    )
    fits = own_fits() if own and chip.id not in without else {}
    return under(fits.get(group_of(row)), found, row) if fits else found


def played(
    row: Row,
    *,
    without: frozenset[str] = frozenset(),
    said: EngineArgs = NOTHING,
    host: Host | None = None,
) -> Played:
    """The row's benchmark played request by request, where `predict` has a formula; `host` stands in for what is known of the engine's.

    Raises `InputError` as `predict` does, and where a request does not fit into the cache.
    """
    name, made, known, load = _as_played(row, without, said)
    formula = _times(row, name, made, known, load)
    behaviour = behaviour_of(known, model_of(name), row.backend, row.concurrency)
    host = host_of(row) if host is None else host
    steps = scheduled(row, behaviour, host)
    steps = replace(
        steps,
        fixed_s=steps.fixed_s + TOKENISING_S * load.input_tokens,
        launch_s=0.0 if host.prompt_layer_s else steps.launch_s,  # its steps take it
        step_tokens=steps.step_tokens if said.max_num_batched_tokens is None else behaviour.step_tokens,
    )  # fmt: skip
    counts = (1,) if row.prefill is None or row.decode is None else (row.prefill.count, row.decode.count)  # fmt: skip
    workers = tuple(
        Worker(
            step=hosted(one.step, host, load.concurrency, model_of(name).num_layers),
            rank_tokens=one.rank_tokens(load),
            count=count,
            token_transfer_s=one.token_transfer_s,
        )
        for one, count in zip(made, counts, strict=True)
    )
    return play_load(workers, load, steps, formula)


def as_sent(
    row: Row, *, without: frozenset[str] = frozenset(), said: EngineArgs = NOTHING
) -> Times:
    """What the formula says of what is played, its load (`scheduling.sent`) and its cache: `predict` again, but for sweeps. Raises `InputError` as it does."""
    name, made, known, load = _as_played(row, without, said)
    return _times(row, name, made, known, load)


def with_load(row: Row, start: float, waves: float) -> Times:
    """What the formula says of a row, its cache as it was, where each prompt waits for `start` and each client sends `waves` requests. Raises `InputError` as `predict` does."""
    name, made, known, _ = _as_played(row, frozenset(), NOTHING)
    return _times(row, name, made, known, replace(_load(row, known), start=start, waves=waves))


def _as_played(
    row: Row, without: frozenset[str], said: EngineArgs
) -> tuple[str, tuple["_Made", ...], EngineArgs, Load]:
    """The model, its workers with the cache that they have in memory, their settings, and the load that was sent."""
    chip = load_accelerator(system_name(row.system))
    name = model_name(row.model)
    keys = (replace(key, kv=cache_of(row, key.kv)) for key in _keys_of(row, chip.id, name, without))
    known = said.over(conditions(row, name))
    load = sent(row, _load(row, known), said.requests_per_client)
    return name, tuple(_made(key) for key in keys), known, load


def kind_of(row: Row) -> str:
    """How a row was served: agg or disagg, with -speculative after it where tokens were drafted."""
    return f"{row.mode}{'-speculative' if row.speculative else ''}"


def group_of(row: Row) -> Key:
    """What one calibration holds for: chip and model by the catalog's ids, engine, weights and kind. Raises `InputError` as `predict` does."""
    chip = load_accelerator(system_name(row.system)).id
    name = model_name(row.model)
    weights = _key(row, row.workers, chip, name, frozenset()).weights
    return (chip, entry_id(name), row.backend, weights, kind_of(row))


def unsaid(
    row: Row, *, without: frozenset[str] = frozenset(), said: EngineArgs = NOTHING
) -> list[Move]:
    """What settings that neither the row nor `said` tells would change, the largest first."""
    chip = load_accelerator(system_name(row.system))
    name = model_name(row.model)
    made = _made_of(row, chip.id, name, without)
    known = said.over(conditions(row, name))

    def answer(args: EngineArgs) -> Times:
        return _times(row, name, made, args, _load(row, args))

    return moves(known, answer(known), answer, row.backend)


def _made_of(row: Row, chip: str, name: str, without: frozenset[str]) -> tuple["_Made", ...]:
    """The workers that serve a row: one kind, or prefill and decode."""
    return tuple(_made(key) for key in _keys_of(row, chip, name, without))


def _keys_of(row: Row, chip: str, name: str, without: frozenset[str]) -> tuple["_Key", ...]:
    if row.mode == "agg":
        return (_key(row, row.workers, chip, name, without),)
    if row.prefill is None or row.decode is None:
        msg = f"row {row.id} is disaggregated and says nothing of its workers"
        raise InputError(msg)
    return tuple(_key(row, workers, chip, name, without) for workers in (row.prefill, row.decode))


def _times(row: Row, name: str, made: tuple["_Made", ...], args: EngineArgs, load: Load) -> Times:
    behaviour = behaviour_of(args, model_of(name), row.backend, row.concurrency)
    if row.prefill is None or row.decode is None:
        return closed_loop(made[0].step, load, behaviour)
    prefill, decode = (
        Role(step=one.step, count=workers.count)
        for one, workers in zip(made, (row.prefill, row.decode), strict=True)
    )
    return apart(prefill, decode, load, behaviour, row.input_tokens * made[0].token_transfer_s)


@dataclass(frozen=True, slots=True)
class _Made:
    """A worker: its step time, and what the cache of a token takes out of it."""

    step: StepTime
    calibration: Calibration
    token_transfer_s: float
    deployment: Deployment

    def rank_tokens(self, load: Load) -> float:
        """Cached tokens that a data-parallel rank has room for."""
        return self.deployment.memory().tokens_of(load.context_tokens)


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
    weights = QUANTISED.get(row.precision)
    if weights is None:
        msg = f"precision {row.precision!r} is not understood; known are {', '.join(QUANTISED)}"
        raise InputError(msg)
    if "gpt-oss" in name:
        weights = "mxfp4"
    kv = "fp8" if weights != "bf16" and not row.sweep else "bf16"
    if "gpt-oss" in name and chip.startswith("nvidia-h") and row.backend == "vllm":
        kv = "bf16"
    return _Key(chip, name, row.backend, workers.layout, weights, kv, without)


@lru_cache(maxsize=4096)
def _made(key: _Key) -> _Made:
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
    if key.weights in {"fp8", "int8"} and key.weights not in have:
        compute = wide  # widened in the kernel: weights of 8 bits alone
    precision = Precision(weights=key.weights, kv=key.kv, compute=compute)
    deployment = Deployment.make(model, key.layout, precision, rank)
    return _Made(deployment.step_time(), rank.calibration, deployment.transfer_s(1.0), deployment)


@lru_cache(maxsize=256)
def rank_for(chip: str, backend: str, without: frozenset[str]) -> Rank:
    """One rank of a chip in its usual pod, timed by the engine's kernels where there are any of it."""
    calibration = for_chip(chip, backend if backend in BACKENDS else None, without)
    return rank_of(load_accelerator(chip), loose_tiers(chip), calibration)


@lru_cache(maxsize=256)
def model_of(name: str) -> Model:
    entry = load_model(name)
    return read_model(entry.config, entry.name, entry.path)


def _load(row: Row, args: EngineArgs) -> Load:
    load = load_of(
        args,
        row.backend,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        concurrency=row.concurrency,
    )
    return replace(load, start=2.7) if row.sweep else load


def reason_of(error: PolypodError) -> str:
    """One line for a row that cannot be predicted."""
    return str(error).splitlines()[0]
