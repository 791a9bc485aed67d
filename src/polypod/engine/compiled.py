"""One engine under arrivals of one length, in C: what `engine.trial` does, to the bit, a hundred times faster."""

import ctypes
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.cost.steptime import StepTime
from polypod.engine.native.build import library
from polypod.engine.native.structs import KIND, REPLICA, TRIAL
from polypod.engine.replica import EngineLimits
from polypod.engine.trial import Phase, Trial, Tried
from polypod.errors import RunError

_PLAYED, _GIVEN_UP, _NO_MEMORY = range(3)


_ROLES: Final[dict[Phase, int]] = {"both": 0, "prefill": 1, "decode": 2}
"""`Role` of the core."""


def emulate(step_time: StepTime, limits: EngineLimits, trial: Trial) -> Tried | None:
    """Play all requests; None where too many have missed a limit before the end.

    Raises `RunError` where the core cannot be compiled, or there is too little memory.
    """
    count, busy_s = len(trial.arrivals_s), np.zeros(1)
    first_s, last_s = np.full(count, math.nan), np.full(count, math.nan)
    arrivals_s = np.ascontiguousarray(trial.arrivals_s)
    arrays = [
        _kind(step_time, limits), np.array(step_time.tokens, dtype=np.float64), np.array(step_time.seconds), _replica(limits), _trial(trial),
        arrivals_s, arrivals_s if trial.asked_s is None else np.ascontiguousarray(trial.asked_s),
    ]  # fmt: skip
    found = [first_s, last_s, busy_s]
    run = library("emulate").core_emulate
    run.restype, run.argtypes = ctypes.c_int, [ctypes.c_void_p] * 7 + [ctypes.c_int64] + [ctypes.c_void_p] * 3  # fmt: skip
    status = run(*(one.ctypes.data for one in arrays), count, *(one.ctypes.data for one in found))
    if status == _NO_MEMORY:
        msg = f"emulating {count:,} requests needs more memory than this machine gives; ask for shorter ones"
        raise RunError(msg)
    if status == _GIVEN_UP:
        return None
    return Tried(first_s=first_s, last_s=last_s, busy_s=float(busy_s[0]))


def _kind(step: StepTime, limits: EngineLimits) -> NDArray[np.void]:
    row = (
        0, len(step.tokens), step.kv_token_s, step.pair_s, step.sequence_s, step.data_ranks, step.stages, limits.max_step_tokens,
    )  # fmt: skip
    return np.array([row], dtype=KIND)


def _replica(limits: EngineLimits) -> NDArray[np.void]:
    spec, engine = np.zeros(1, dtype=REPLICA), limits.behaviour
    values = {
        "kv_capacity_tokens": limits.kv_capacity_tokens,
        "max_sequences": limits.max_sequences,
        "max_step_tokens": limits.max_step_tokens,
        "exclusive_prefill": engine.exclusive_prefill,
        "schedules_ahead": engine.schedules_ahead,
        "whole_prompts": engine.whole_prompts,
        "balance_steps": engine.balance_steps,
        "tokens_per_step": engine.tokens_per_step,
        "drafts": engine.drafts,
        "draft_share": engine.draft_share,
        "prefix_hits": engine.prefix_hits,
    }
    for name, value in values.items():
        spec[name] = value
    return spec


def _trial(trial: Trial) -> NDArray[np.void]:
    limits_s = (math.inf if one is None else one for one in (trial.ttft_s, trial.tpot_s))
    whole = (
        trial.prompt_tokens,
        trial.output_tokens,
        trial.warm,
        trial.allowed,
        _ROLES[trial.phase],
    )
    return np.array([(*whole, *limits_s, trial.way_s)], dtype=TRIAL)
