"""How far measurements lie from predictions, by what the predictions rest on: the 80 % bands.

`low` and `high` are the ratios of measured to predicted that leave out a tenth of the measured rows each. They are data
(`data/bands.toml`), taken from the residuals of rows whose chip was known as the class says; a class without rows of its own takes the next
wider one's.
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final, Literal, get_args

from polypod.errors import InputError

Metric = Literal["tpot", "ttft"]
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)


@dataclass(frozen=True, slots=True)
class Band:
    """Ratios of measured to predicted that hold four of five measurements."""

    low: float
    high: float

    @property
    def ratio(self) -> float:
        """How wide it is: high over low."""
        return self.high / self.low


def band_of(evidence: str, kind: str, metric: Metric) -> Band:
    """The band of one metric. `kind` is agg, disagg, or one of them with -speculative after it.

    Raises `InputError` for a class the data does not have.
    """
    known = _bands()
    for key in (f"{evidence}/{kind}", evidence):
        if key in known and metric in known[key]:
            low, high = known[key][metric]
            return Band(low, high)
    msg = f"no band for evidence {evidence!r}; there are {', '.join(sorted(known))}"
    raise InputError(msg)


@cache
def _bands() -> dict[str, dict[str, tuple[float, float]]]:
    text = resources.files("polypod.cost").joinpath("data", "bands.toml").read_text("utf-8")
    raw = tomllib.loads(text)
    return {
        name: {metric: (pair[0], pair[1]) for metric, pair in found.items() if metric != "source"}
        for name, found in raw.items()
    }
