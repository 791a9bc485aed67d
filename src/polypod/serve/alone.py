"""Prompts that a replica computes while it has nothing else to do: how long they take corrects what is predicted of prompts.

The warm-up measures a replica once; a machine that was busy then would stand in its way for good. From the dispatch of a streamed request to an idle replica
until its first token, while nothing else is sent there, passes its prompt and what any request costs, so that moment is told as a step
(`StepObserved`), of as many tokens as the router took the prompt for: what it guesses wrong of lengths is corrected with it. A replica that is never idle tells nothing.
"""

from collections.abc import Mapping
from typing import Final

LEAST_S: Final = 0.1
"""A prompt that took less says more of timers and connections than of prompts."""


class Alone:
    """Counts requests at replicas. `outside_s` is what a request costs beside its steps, by replica."""

    def __init__(self, outside_s: Mapping[str, float] | None = None) -> None:
        self._outside_s = dict(outside_s or {})
        self._aboard: dict[str, int] = {}
        self._starts: dict[str, int] = {}

    def know(self, replica: str, outside_s: float) -> None:
        """One more replica may come, with what a request costs there beside its steps."""
        self._outside_s[replica] = outside_s

    def begun(self, replica: str) -> int:
        """A request is sent there. Its number, where it found the replica idle; else 0, which is nobody's."""
        is_idle = not self._aboard.get(replica)
        self._aboard[replica] = self._aboard.get(replica, 0) + 1
        self._starts[replica] = self._starts.get(replica, 0) + 1
        return self._starts[replica] if is_idle else 0

    def ended(self, replica: str) -> None:
        """One that was sent there is over, however it ended."""
        self._aboard[replica] -= 1

    def prompt_s(self, replica: str, number: int, first_token_s: float) -> float | None:
        """How long the prompt of that number took, whose first token came so long after it was sent; None where others came, or it says too little.

        >>> alone = Alone({"a": 0.02})
        >>> first = alone.begun("a")
        >>> round(alone.prompt_s("a", first, 0.52), 3), alone.prompt_s("a", first, 0.1)
        (0.5, None)
        >>> alone.begun("a"), alone.prompt_s("a", first, 0.52)
        (0, None)
        """
        taken_s = first_token_s - self._outside_s.get(replica, 0.0)
        is_alone = self._starts.get(replica) == number
        return taken_s if is_alone and taken_s >= LEAST_S else None
