"""What was predicted of each replica's requests, and what came: means of late, to be shown side by side.

Corrections (`corrections`) follow steps and times per token; these follow whole requests as the router predicted them, corrections included, so that a
ratio that stays away from 1 says what the router still gets wrong.
"""

from collections.abc import ItemsView, Mapping
from dataclasses import dataclass
from typing import Final

from polypod.policy.requests import Tracked

LATEST_WEIGHT: Final = 0.05
"""Weight of one request in a mean; the n-th weighs 1 / n while that is more."""


@dataclass(slots=True, eq=False)
class Forecast:
    """One replica's means. Times to the first token are from the dispatch on; to the end, at the length that the answer turned out to have."""

    first_tokens: int = 0
    finishes: int = 0
    predicted_first_token_s: float = 0.0
    measured_first_token_s: float = 0.0
    predicted_finish_s: float = 0.0
    measured_finish_s: float = 0.0


MEASURES: Final = (
    "predicted_first_token_s", "measured_first_token_s", "predicted_finish_s", "measured_finish_s", "prefill_correction_ratio",
    "decode_correction_ratio",
)  # fmt: skip
"""What is shown of a replica, and written into a live run's record: corrections are measured over predicted step times."""


def shown(
    forecasts: Mapping[str, Forecast], corrections: Mapping[tuple[str, str], float]
) -> dict[str, dict[str, float]]:
    """By replica, what is known of `MEASURES`."""
    found: dict[str, dict[str, float]] = {}
    for name, one in forecasts.items():
        known = found.setdefault(name, {})
        if one.first_tokens:
            known["predicted_first_token_s"] = one.predicted_first_token_s
            known["measured_first_token_s"] = one.measured_first_token_s
        if one.finishes:
            known["predicted_finish_s"] = one.predicted_finish_s
            known["measured_finish_s"] = one.measured_finish_s
    for (name, phase), factor in corrections.items():
        found.setdefault(name, {})[f"{phase}_correction_ratio"] = factor
    return found


class Forecasts:
    """By replica, from its first request on; a replica that comes back under its name goes on where it was."""

    def __init__(self) -> None:
        self._by_replica: dict[str, Forecast] = {}

    def items(self) -> ItemsView[str, Forecast]:
        return self._by_replica.items()

    def begun(self, tracked: Tracked, now_s: float) -> None:
        """The first token of the attempt that runs is here. Of an answer in one piece nobody hears it, nor of one decoded apart when it was due."""
        assert tracked.place is not None
        if not tracked.arrived.is_streamed or tracked.phase != "whole":
            return
        known = self._of(tracked.place.replica)
        known.first_tokens += 1
        weight = max(1 / known.first_tokens, LATEST_WEIGHT)
        predicted_s, measured_s = tracked.place.load.first_token_s, now_s - tracked.placed_s
        known.predicted_first_token_s += weight * (predicted_s - known.predicted_first_token_s)
        known.measured_first_token_s += weight * (measured_s - known.measured_first_token_s)

    def finished(self, tracked: Tracked, own_tokens: int, now_s: float) -> None:
        """The attempt that runs has ended its answer with so many tokens of its own."""
        assert tracked.place is not None
        if tracked.phase != "whole" or own_tokens < 1:
            return
        known = self._of(tracked.place.replica)
        known.finishes += 1
        weight = max(1 / known.finishes, LATEST_WEIGHT)
        load = tracked.place.load
        predicted_s = load.first_token_s + (own_tokens - 1) * load.token_s
        measured_s = now_s - tracked.placed_s
        known.predicted_finish_s += weight * (predicted_s - known.predicted_finish_s)
        known.measured_finish_s += weight * (measured_s - known.measured_finish_s)

    def _of(self, replica: str) -> Forecast:
        known = self._by_replica.get(replica)
        if known is None:
            known = self._by_replica[replica] = Forecast()
        return known
