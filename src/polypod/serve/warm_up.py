"""A replica is measured before anybody waits for it: one request to load its pages, three to time its prompt and its decode steps."""

import secrets
from dataclasses import dataclass
from statistics import median
from typing import Final

from polypod.cost.cpu import CpuCalibration
from polypod.policy.events import ReplicaUp, StepObserved
from polypod.serve.ask import Asker
from polypod.serve.supervise import Up

WARM_UP_TOKENS: Final = 12
WARM_UPS: Final = 3
_FILLER: Final = "The warm-up measures how fast this replica computes a prompt and how fast it answers, before anybody waits for it. "


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmUp:
    """How a replica's measured steps compare with the predicted ones; above 1 is slower than predicted."""

    replica: str
    epoch: int
    load_s: float
    prefill_ratio: float
    decode_ratio: float


async def warm_up(
    news: Up, predicted: ReplicaUp, calibration: CpuCalibration | None
) -> tuple[StepObserved, StepObserved]:
    """Ask once to load, then three times to measure; a prompt's step and a decode step as they took, in the median."""
    endpoint = news.endpoint
    async with Asker(
        endpoint.origin,
        socket=endpoint.socket,
        headers=endpoint.headers,
        path_prefix=endpoint.path_prefix,
    ) as asker:
        await asker.ask(predicted.model, f"{secrets.token_hex(4)} Hello!", max_tokens=4)
        several = [
            await asker.ask(
                predicted.model, f"{secrets.token_hex(4)} {_FILLER * 2}", max_tokens=WARM_UP_TOKENS
            )
            for _ in range(WARM_UPS)
        ]
    asked = several[0]
    outside_s = calibration.first_token_s[1] if calibration else 0.0
    prompt_s = max(median(one.ttft_s for one in several) - outside_s, 1e-4)
    decode_s = median(prompt_s if one.tpot_s is None else one.tpot_s for one in several)
    return (
        StepObserved(
            at_s=0.0,
            replica=news.replica,
            epoch=news.epoch,
            prompt_tokens=asked.input_tokens,
            sequences=0,
            kv_tokens=0,
            step_s=prompt_s,
        ),
        StepObserved(
            at_s=0.0,
            replica=news.replica,
            epoch=news.epoch,
            prompt_tokens=0,
            sequences=1,
            kv_tokens=asked.input_tokens + asked.output_tokens // 2,
            step_s=decode_s,
        ),
    )


def ratio(step: StepObserved, predicted: ReplicaUp) -> float:
    """How long a measured step took over what was predicted of it."""
    times = predicted.step_time
    expected = (
        times.prompt_s(step.prompt_tokens)
        if step.prompt_tokens
        else times.step_s(tokens=1, kv_tokens=step.kv_tokens, sequences=1)
    )
    return step.step_s / expected
