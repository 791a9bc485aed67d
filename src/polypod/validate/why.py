"""Why a prediction may miss: what is known against the row, which unsaid setting would have met it, whether all rows like it miss alike.

Only explanations look at a measurement. No prediction does.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from polypod.cost.bands import Metric
from polypod.engine.settings import ALTERNATIVES, NOTHING, EngineArgs, has_setting
from polypod.errors import PolypodError
from polypod.validate.predict import predict
from polypod.validate.rows import Row
from polypod.validate.scores import Scored

WARMED_SINCE: Final = "2025-12"
"""From when InferenceX's scripts warm an engine up before they measure; SGLang's rows of the month before show first waves of minutes."""

_LIKE: Final = 0.05
"""A whole group that misses by more than this misses for a reason of its own."""


class Reasons:
    """Reasons for misses among these rows; `without` and `said` as they were predicted."""

    def __init__(
        self,
        rows: Sequence[Scored],
        without: frozenset[str] = frozenset(),
        said: EngineArgs = NOTHING,
    ) -> None:
        self._without, self._said = without, said
        self._groups: dict[tuple[object, ...], list[Scored]] = defaultdict(list)
        for one in rows:
            self._groups[_group(one.row)].append(one)

    def of(self, one: Scored, metric: Metric) -> str:
        """One line; "nothing known explains it" where nothing does."""
        times = one.times(metric)
        if times is None:
            return one.reason
        measured_s, predicted_s, _ = times
        said = [*_against(one.row, metric), *_capped(one)]
        setting = self._setting(one.row, metric, measured_s)
        if setting and abs(measured_s / predicted_s - 1) > 0.2:
            said.append(setting)
        if shared := self._shared(one, metric):
            said.append(shared)
        return "; ".join(said) or "nothing known explains it"

    def _setting(self, row: Row, metric: Metric, measured_s: float) -> str | None:
        """The unsaid setting under which the prediction comes nearest, where that is within a fifth."""
        nearest: tuple[float, str] | None = None
        for name, values in ALTERNATIVES.items():
            if not has_setting(row.backend, name) or getattr(self._said, name) is not None:
                continue
            for other in values:
                try:
                    found = predict(row, without=self._without, said=other.over(self._said), own=False)  # fmt: skip
                except PolypodError:
                    continue
                off = abs((found.tpot_s if metric == "tpot" else found.ttft_s) / measured_s - 1)
                if nearest is None or off < nearest[0]:
                    nearest = (off, f"{name} = {getattr(other, name):g}" if not isinstance(getattr(other, name), str) else f"{name} = {getattr(other, name)}")  # fmt: skip
        if nearest is None or nearest[0] > 0.2:
            return None
        return f"as if {nearest[1]}, which no column tells"

    def _shared(self, one: Scored, metric: Metric) -> str | None:
        like = [pair for other in self._groups[_group(one.row)] if (pair := other.times(metric))]
        if len(like) < 6:
            return None
        bias = statistics.median(predicted / measured for measured, predicted, _ in like) - 1
        return f"all {len(like)} rows like it: {bias:+.0%}" if abs(bias) > _LIKE else None


def _capped(one: Scored) -> list[str]:
    """Few requests that run fast while the others wait for long: the engine let fewer in than were sent."""
    ttft, tpot = one.times("ttft"), one.times("tpot")
    if ttft is None or tpot is None or ttft[0] < 5 * ttft[1]:
        return []
    if tpot[0] < 0.7 * tpot[1]:
        return ["fewer requests ran at once than were sent: a limit of sequences, or a full cache"]
    return ["requests waited for something beside prompts: a stall, or a full cache"]


def _group(row: Row) -> tuple[object, ...]:
    return (row.system, row.model, row.backend, row.precision, row.mode, row.speculative)


def _against(row: Row, metric: Metric) -> list[str]:
    """What is known of the row's conditions, whatever it measured."""
    found = []
    if metric == "ttft" and row.backend == "sglang" and row.measured and row.measured < WARMED_SINCE:  # fmt: skip
        found.append("the engine was not warmed up")
    if row.sweep and row.concurrency > 128:
        found.append("more clients than the sweep's engine may have admitted")
    if row.mode == "disagg" and row.decode is not None and row.decode.layout.world > 8:
        found.append("decode workers of two nodes, whose exchanges between nodes are not measured")
    return [*found, *row.repaired]
