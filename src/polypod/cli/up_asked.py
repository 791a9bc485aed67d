"""The question that `up` puts to every replica, and what was predicted for just that question."""

from dataclasses import replace
from typing import Final

from polypod.cli.up_text import Answered, HandedOver
from polypod.cost.bands import Band, band_of
from polypod.cost.calibration import Case
from polypod.cost.steptime import StepTime
from polypod.errors import RunError
from polypod.plan.host import RequestTime, request_time
from polypod.plan.host_stages import pool_step_times
from polypod.plan.predict import evidence, service_model
from polypod.policy.events import ReplicaUp
from polypod.serve.ask import Asked
from polypod.serve.node import LiveNode, Prepared, WarmUp

QUESTION: Final = "What is the capital of France? Answer in one sentence."
ANSWER_TOKENS: Final = 48


async def ask_all(
    node: LiveNode, prepared: Prepared, warm_ups: dict[str, WarmUp]
) -> list[Answered]:
    """Put the same question, through the endpoint, to every replica that answers."""
    answers = []
    for up in prepared.ups:
        if up.role == "prefill":
            continue
        asked = await node.ask(QUESTION, max_tokens=ANSWER_TOKENS, replica=up.replica)
        if asked.replica != up.replica:
            msg = f"{up.replica} was asked and {asked.replica} answered"
            raise RunError(msg)
        answered = _answered(prepared, up, asked, warm_ups)
        if up.role == "decode":
            answered = replace(answered, handover=_handed_over(node, up))
        answers.append(answered)
    return answers


def _answered(
    prepared: Prepared, up: ReplicaUp, asked: Asked, warm_ups: dict[str, WarmUp]
) -> Answered:
    """With prefill apart, the prompt is predicted where it is computed, and the cache on its way."""
    predicted, warm_up = _predicted(prepared, up, asked), warm_ups[up.replica]
    if up.role == "decode":
        first = next(one for one in prepared.ups if one.role == "prefill" and one.model == up.model)
        way_s = up.kv_link_latency_s
        way_s += asked.input_tokens * up.kv_token_bytes / up.kv_link_bytes_per_s
        prompt_s = _predicted(prepared, first, asked).ttft_s
        ttft_s = {case: seconds + way_s for case, seconds in prompt_s.items()}
        predicted = replace(predicted, ttft_s=ttft_s)
        warm_up = replace(warm_up, prefill_ratio=warm_ups[first.replica].prefill_ratio)
    return Answered(asked=asked, predicted=predicted, warm_up=warm_up)


def _handed_over(node: LiveNode, up: ReplicaUp) -> HandedOver | None:
    latest = node.latest_handover
    if latest is None:  # it was lost, and the prompt computed again
        return None
    saved, restore_s = latest
    predicted_s = up.kv_link_latency_s + saved.size_bytes / up.kv_link_bytes_per_s
    return HandedOver(
        size_bytes=saved.size_bytes,
        save_s=saved.save_s,
        restore_s=restore_s,
        predicted_restore_s=predicted_s,
    )


def _predicted(prepared: Prepared, up: ReplicaUp, asked: Asked) -> RequestTime:
    if up.replica not in prepared.calibrations:
        return _on_devices(prepared, up, asked)
    return request_time(
        prepared.calibrations[up.replica],
        _step_times(prepared, up),
        input_tokens=asked.input_tokens,
        output_tokens=asked.output_tokens,
        max_step_tokens=up.max_step_tokens,
    )


def _on_devices(prepared: Prepared, up: ReplicaUp, asked: Asked) -> RequestTime:
    """By the catalog's figures, with the band of what they rest on."""
    rests_on = evidence(prepared.plan)[up.pool]
    times = up.step_time
    alone_s = times.step_s(
        tokens=1, kv_tokens=asked.input_tokens + asked.output_tokens / 2, sequences=1
    )
    return RequestTime(
        ttft_s=_banded(times.prompt_s(asked.input_tokens), band_of(rests_on, "agg", "ttft")),
        tpot_s=_banded(alone_s, band_of(rests_on, "agg", "tpot")),
    )


def _banded(likely_s: float, band: Band) -> dict[Case, float]:
    return {"fast": band.low * likely_s, "likely": likely_s, "slow": band.high * likely_s}


def _step_times(prepared: Prepared, up: ReplicaUp) -> dict[Case, StepTime]:
    service = next(one for one in prepared.plan.services if one.model == up.model)
    pool = next(one for one in service.pools if one.name == up.pool)
    _, times = pool_step_times(service_model(service), pool, prepared.plan.fleet)
    return times
