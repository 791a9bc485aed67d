"""How busy an engine says it is, read from its /metrics by the names that are on record of it.

One series a data-parallel rank adds up; the copies that tensor-parallel ranks write of one number do not. Series of histograms and those
split by a reason have names of their own, and are not taken for the gauge.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

from polypod.serve.engines.facts import LoadNames, known_loads

_LINE: Final = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{([^}]*)\})?\s+(\S+)", re.ASCII | re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_COPIES: Final = ("tp_rank", "pp_rank", "moe_ep_rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What one engine said of itself."""

    running: int
    waiting: int
    kv_fraction: float | None  # the fullest rank's; None where the engine does not say


def read_load(text: str, names: LoadNames) -> EngineLoad | None:
    """Read Prometheus text; None where the engine's count of running requests is not in it.

    >>> text = 'up 1\\nx:run{dp="0",tp_rank="0"} 2.0\\nx:run{dp="0",tp_rank="1"} 2.0\\nx:run{dp="1"} 1'
    >>> read_load(text, LoadNames(running="x:run"))
    EngineLoad(running=3, waiting=0, kv_fraction=None)
    """
    series = {name: _series(text, name) for name in (names.running, names.waiting, names.kv_usage) if name}  # fmt: skip
    running = series[names.running]
    if not running:
        return None
    waiting = series[names.waiting] if names.waiting else {}
    usage = series[names.kv_usage] if names.kv_usage else {}
    return EngineLoad(
        running=round(sum(running.values())),
        waiting=round(sum(waiting.values())),
        kv_fraction=min(max(usage.values()), 1.0) if usage else None,
    )


def read_any(text: str) -> EngineLoad | None:
    """The same of an engine that did not say which it is; None where its names are nobody's."""
    loads = (read_load(text, names) for names in known_loads())
    return next((load for load in loads if load is not None), None)


def _series(text: str, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Values by labels, with those of copies left out."""
    found: dict[tuple[tuple[str, str], ...], float] = {}
    for match in _LINE.finditer(text):
        if match[1] != name:
            continue
        value = _number(match[3])
        if value is not None:
            labels = [pair for pair in _LABEL.findall(match[2] or "") if pair[0] not in _COPIES]
            key = tuple(sorted(labels))
            found[key] = max(found.get(key, 0.0), value)
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
