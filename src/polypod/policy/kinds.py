"""Replicas of a kind share a step time and a chunk budget, and with them the time of a prompt, computed once for all."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polypod.cost.steptime import StepTime, causal_pairs
from polypod.policy.events import ReplicaUp

Floats = npt.NDArray[np.float64]


@dataclass(slots=True, eq=False)
class Kind:
    """A step time, a chunk budget, and how many replicas have them."""

    step_time: StepTime
    budget: int
    replicas: int = 0

    def prompt(self, tokens: int, cached: int = 0) -> tuple[float, int]:
        """Seconds of a prompt computed alone after what of it is cached, and in how many steps.

        >>> step = StepTime(tokens=(1, 101), seconds=(0.01, 0.02), kv_token_s=0.0, pair_s=0.0)
        >>> seconds, steps = Kind(step, budget=101).prompt(203)  # 20 ms, 20 ms, and 10 ms for the last token
        >>> round(seconds, 3), steps
        (0.05, 3)
        """
        full, rest = divmod(tokens - cached, self.budget)
        step = self.step_time
        chunks_s = full * step.curve_s(self.budget) + step.curve_s(rest)
        pairs = causal_pairs(tokens - cached, cached)
        return chunks_s + step.pair_s * pairs, full + (rest > 0)

    def prompt_token_s(self) -> float:
        """Seconds per token of prompts without end."""
        return self.step_time.curve_s(self.budget) / self.budget


class Kinds:
    """The kinds in use, by number; one that no replica has any more gives its number to the next."""

    def __init__(self) -> None:
        self._kinds: list[Kind] = []
        self.version = 0  # of which numbers are in use, and for what

    def __getitem__(self, number: int) -> Kind:
        return self._kinds[number]

    def __len__(self) -> int:
        return len(self._kinds)

    def take(self, up: ReplicaUp) -> int:
        """The replica's kind; counts it in."""
        unused = len(self._kinds)
        for number, kind in enumerate(self._kinds):
            if not kind.replicas:
                unused = min(unused, number)
            elif kind.step_time == up.step_time and kind.budget == up.max_step_tokens:
                kind.replicas += 1
                return number
        self.version += 1
        self._kinds[unused : unused + 1] = [Kind(up.step_time, up.max_step_tokens, replicas=1)]
        return unused

    def release(self, number: int) -> None:
        self._kinds[number].replicas -= 1
        self.version += not self._kinds[number].replicas

    def prompts(self, tokens: int) -> tuple[Floats, Floats]:
        """Seconds and steps of a prompt, for every kind."""
        pairs = [kind.prompt(tokens) if kind.replicas else (0.0, 0) for kind in self._kinds]
        prompt_s_K, steps_K = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return prompt_s_K, steps_K
