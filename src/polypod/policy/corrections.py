"""Measurement corrects the cost model: two factors for each replica, one for prompts and one for decoding."""

import math
from typing import Final

from polypod.cost.steptime import StepTime, causal_pairs
from polypod.policy.events import StepObserved
from polypod.policy.kinds import Floats
from polypod.policy.requests import Load
from polypod.policy.router import ReplicaTable

FACTOR_LIMIT: Final = 16.0
"""A measurement that says more than this times the model, or less than its inverse, is cut to it."""

STEP_WEIGHT: Final = 0.2
"""Weight of a timed step after the first, which counts alone."""

REQUEST_WEIGHT: Final = 0.02
"""Weight of one request's time per token, in the long run: it holds more than decode steps, so it pulls gently."""

FIRST_REQUESTS: Final = 10
"""The n-th request's time per token weighs 1 / (n + this) while that is more."""


def step_observed(table: ReplicaTable, row: int, event: StepObserved) -> None:
    """Correct the prompt factor by a step that computed prompts, the decode factor by one that did not."""
    model_s = model_step_s(table.at(row).step_time, event)
    if model_s <= 0 or not 0 < event.step_s < math.inf:
        return
    is_prompt = event.prompt_tokens > 0
    measured = (row, "prompt" if is_prompt else "decode")
    weight = STEP_WEIGHT if measured in table.measured else 1.0
    table.measured.add(measured)
    factor_R = table.prompt_factor_R if is_prompt else table.decode_factor_R
    _correct(factor_R, row, event.step_s / model_s, weight)
    table.refresh(row)


def model_step_s(step: StepTime, event: StepObserved) -> float:
    """What the cost model says of an observed step."""
    ranks = step.data_ranks
    return step.step_s(
        tokens=(event.prompt_tokens + event.sequences) / ranks,
        kv_tokens=event.kv_tokens / ranks,
        pairs=causal_pairs(event.prompt_tokens / ranks),
        sequences=event.sequences / ranks,
    )


def token_time_observed(table: ReplicaTable, load: Load, token_s: float) -> None:
    """Correct the decode factor by the mean time per token that a whole request saw."""
    if load.model_token_s <= 0 or not 0 < token_s < math.inf:
        return
    table.requests_R[load.row] += 1
    weight = max(1 / (int(table.requests_R[load.row]) + FIRST_REQUESTS), REQUEST_WEIGHT)
    _correct(table.decode_factor_R, load.row, token_s / load.model_token_s, weight)
    table.refresh(load.row)


def _correct(factor_R: Floats, row: int, ratio: float, weight: float) -> None:
    blended = factor_R[row] + weight * (ratio - factor_R[row])
    factor_R[row] = min(max(blended, 1 / FACTOR_LIMIT), FACTOR_LIMIT)
