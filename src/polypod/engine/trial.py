"""One engine under arrivals of one length, up to the moment that too many have missed a limit: `engine.compiled` does the same in C."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polypod.cost.steptime import StepTime
from polypod.engine.replica import EngineLimits, Progress, ReplicaEmulation

Floats = NDArray[np.float64]
Phase = Literal["both", "prefill", "decode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What arrives, and what it has to keep. Of those from `warm` on so many may miss a limit; a limit of None does not bind.

    A `prefill` engine computes prompts and keeps each one's cache for `way_s` longer. To a `decode` engine caches arrive; TTFT counts from `asked_s`,
    when their requests came to be.
    """

    arrivals_s: Floats
    prompt_tokens: int
    output_tokens: int
    warm: int
    allowed: int
    ttft_s: float | None
    tpot_s: float | None
    phase: Phase = "both"
    way_s: float = 0.0
    asked_s: Floats | None = None  # None: as they arrive


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """When each request gave its first and its last token, both when its prompt was computed where that is all; and for how long the engine was busy."""

    first_s: Floats
    last_s: Floats
    busy_s: float


def tried(step_time: StepTime, limits: EngineLimits, trial: Trial) -> Tried | None:
    """Play all requests; None where too many have missed a limit before the end.

    >>> step = StepTime(tokens=(1, 101), seconds=(0.01, 0.02), kv_token_s=0.0, pair_s=0.0)
    >>> limits = EngineLimits(max_sequences=8, max_step_tokens=512, kv_capacity_tokens=10_000)
    >>> prompts = Trial(arrivals_s=np.array([0.0, 0.03]), prompt_tokens=101, output_tokens=1, warm=0, allowed=0, ttft_s=0.1, tpot_s=None, phase="prefill")
    >>> tried(step, limits, prompts).first_s  # computed in 20 ms each
    array([0.02, 0.05])
    """
    played = _Played(step_time, limits, trial)
    for request, at_s in enumerate(trial.arrivals_s.tolist()):
        played.until(at_s)
        if played.is_lost:
            return None
        played.submit(request, at_s)
    played.until(math.inf)
    if played.is_lost:
        return None
    return Tried(first_s=played.first_s, last_s=played.last_s, busy_s=played.replica.busy_s)


class _Played:
    """The engine, when requests gave their first and last tokens, and how many of those counted have missed a limit."""

    def __init__(self, step_time: StepTime, limits: EngineLimits, trial: Trial) -> None:
        self.replica = ReplicaEmulation(step_time, limits)
        self.trial = trial
        self.asked_s = trial.arrivals_s if trial.asked_s is None else trial.asked_s
        self.first_s, self.last_s = np.full_like(trial.arrivals_s, np.nan), np.full_like(trial.arrivals_s, np.nan)  # fmt: skip
        self._steps = max(trial.output_tokens - 1, 1)
        self._kept: deque[tuple[float, int]] = deque()  # computed prompts, until their caches go
        self._missed: set[int] = set()

    @property
    def is_lost(self) -> bool:
        """Whether too many have missed."""
        return len(self._missed) > self.trial.allowed

    def submit(self, request: int, at_s: float) -> None:
        prompt_tokens, output_tokens = self.trial.prompt_tokens, self.trial.output_tokens
        if self.trial.phase == "prefill":
            self.replica.prefill(at_s, request=request, prompt_tokens=prompt_tokens)
        else:
            enter = self.replica.submit if self.trial.phase == "both" else self.replica.decode
            enter(at_s, request=request, prompt_tokens=prompt_tokens, output_tokens=output_tokens)

    def until(self, to_s: float) -> None:
        """Play on; of one moment, what the engine does goes before the caches that go."""
        while True:
            now_s = self.replica.next_s
            gone_s = self._kept[0][0] if self._kept else math.inf
            if min(now_s, gone_s) > to_s or now_s == gone_s == math.inf:
                return
            if now_s <= gone_s:
                for progress in self.replica.advance(now_s):
                    self._note(progress)
            else:
                self.replica.release(*self._kept.popleft())

    def _note(self, progress: Progress) -> None:
        limits, request, at_s = self.trial, progress.request, progress.at_s
        if progress.kind == "finished":
            self.last_s[request] = at_s
            token_s = (at_s - self.first_s[request]) / self._steps
            late = limits.tpot_s is not None and token_s > limits.tpot_s
        else:
            self.first_s[request] = at_s
            late = limits.ttft_s is not None and at_s - self.asked_s[request] > limits.ttft_s
            if progress.kind == "prefilled":
                self.last_s[request] = at_s
                self._kept.append((at_s + limits.way_s, request))
        if late and request >= limits.warm:
            self._missed.add(request)
