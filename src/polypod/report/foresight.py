"""What the router predicted of each replica beside what came, as a live run's record ends with it."""

from dataclasses import dataclass

from polypod.policy.forecasts import MEASURES
from polypod.report.outcomes import Outcomes
from polypod.report.tables import table


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaForesight:
    """Means of late: to the first token and to the end from the dispatch on; step times measured over predicted. None where nothing was heard."""

    name: str
    predicted_first_token_s: float | None = None
    measured_first_token_s: float | None = None
    predicted_finish_s: float | None = None
    measured_finish_s: float | None = None
    prefill_correction_ratio: float | None = None
    decode_correction_ratio: float | None = None


def foresight_of(outcomes: Outcomes) -> tuple[ReplicaForesight, ...]:
    """The last word on each replica; none in a record without."""
    known: dict[str, dict[str, float]] = {}
    for name in MEASURES:
        for replica, series in outcomes.measured(name).items():
            known.setdefault(replica, {})[name] = float(series.value[-1])
    return tuple(ReplicaForesight(name=name, **values) for name, values in known.items())


def foresight_text(seen: tuple[ReplicaForesight, ...]) -> str:
    """A table; empty where there is nothing to show."""
    if not seen:
        return ""
    head = ["foresight", "first token", "came in", "end", "came in", "prefill x", "decode x"]
    rows = [
        [
            one.name,
            *(_seconds(value) for value in (one.predicted_first_token_s, one.measured_first_token_s, one.predicted_finish_s, one.measured_finish_s)),
            *(_ratio(value) for value in (one.prefill_correction_ratio, one.decode_correction_ratio)),
        ]
        for one in seen
    ]  # fmt: skip
    return table(head, rows)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
