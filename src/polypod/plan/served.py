"""One configuration under a fixed number of requests in flight: TTFT, TPOT and tokens/s, their bands, and what nobody said.

What `engine.closed_loop` and `engine.apart` answer for step times, with the 80 % band of what the chip's figures rest on, and the settings that would
move the answer had they been said otherwise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from polypod.cost.bands import Band, Metric, band_of
from polypod.cost.deployment import Deployment
from polypod.cost.own import OwnFit, own_fit
from polypod.engine.apart import Role, apart
from polypod.engine.closed_loop import Behaviour, Load, Times, closed_loop
from polypod.engine.settings import NOTHING, EngineArgs, Move, behaviour_of, load_of, moves


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Requests of these mean lengths, so many in flight, and what was said of the engine."""

    input_tokens: float
    output_tokens: float
    concurrency: float
    backend: str | None = None
    engine_args: EngineArgs = NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """Replicas of one layout and role."""

    deployment: Deployment
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The answer: `moves` are the unsaid settings, those that change it most first."""

    times: Times
    ttft_band: Band
    tpot_band: Band
    tokens_per_s: float
    accelerators: float
    evidence: str
    moves: tuple[Move, ...]


def served(asked: Asked, workers: Workers) -> Served:
    """Replicas that prefill and decode, the requests shared out evenly."""
    step, share = workers.deployment.step_time(), asked.concurrency / workers.count

    def answer(args: EngineArgs) -> Times:
        return closed_loop(step, *_conditions(asked, args, workers, share))

    return _served(asked, answer, workers, (workers,), "agg")


def served_apart(asked: Asked, prefill: Workers, decode: Workers) -> Served:
    """Workers that prefill and hand their cache to workers that decode."""
    roles = [Role(step=one.deployment.step_time(), count=one.count) for one in (prefill, decode)]
    transfer_s = prefill.deployment.transfer_s(asked.input_tokens)

    def answer(args: EngineArgs) -> Times:
        conditions = _conditions(asked, args, decode, asked.concurrency)
        return apart(roles[0], roles[1], *conditions, transfer_s)

    return _served(asked, answer, decode, (prefill, decode), "disagg")


def _conditions(
    asked: Asked, args: EngineArgs, workers: Workers, concurrency: float
) -> tuple[Load, Behaviour]:
    load = load_of(
        args,
        asked.backend,
        input_tokens=asked.input_tokens,
        output_tokens=asked.output_tokens,
        concurrency=concurrency,
    )
    model = workers.deployment.model
    return load, behaviour_of(args, model, asked.backend, concurrency)


def _served(
    asked: Asked,
    answer: Callable[[EngineArgs], Times],
    decode: Workers,
    workers: tuple[Workers, ...],
    mode: str,
) -> Served:
    plain = answer(asked.engine_args)
    drafts = asked.engine_args.num_speculative_tokens
    kind = f"{mode}-speculative" if drafts and asked.engine_args.acceptance is None else mode
    own = own_of(decode.deployment, asked.backend, kind)
    times = plain if own is None else replace(
        plain, ttft_s=plain.ttft_s * own.ttft_factor, tpot_s=plain.tpot_s * own.tpot_factor
    )  # fmt: skip
    whole_s = times.ttft_s + asked.output_tokens * times.tpot_s
    evidence = decode.deployment.served.calibration.evidence
    return Served(
        times=times,
        ttft_band=band_under(own, evidence, kind, "ttft"),
        tpot_band=band_under(own, evidence, kind, "tpot"),
        tokens_per_s=asked.concurrency * asked.output_tokens / whole_s,
        accelerators=sum(one.count * one.deployment.accelerators for one in workers),
        evidence="calibrated" if own else evidence,
        moves=tuple(moves(asked.engine_args, plain, answer, asked.backend)),
    )


def own_of(deployment: Deployment, backend: str | None, kind: str = "agg") -> OwnFit | None:
    """The person's own calibration of this model, chip, engine and precision, if there is one."""
    if backend is None:
        return None
    model, chip = deployment.model.name, deployment.rank.chip
    return own_fit(chip, model, backend, deployment.precision.weights, kind)


def band_under(own: OwnFit | None, evidence: str, kind: str, metric: Metric) -> Band:
    """The 80 % band: of the person's own calibration where it has the metric, else of what the prediction rests on."""
    fit = None if own is None else own.tpot if metric == "tpot" else own.ttft
    if fit is None:
        return band_of(evidence, kind, metric)
    return Band(math.exp(fit.log_low), math.exp(fit.log_high))
