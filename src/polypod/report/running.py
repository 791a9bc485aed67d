"""Power, money and carbon of accelerators at work, as text and as JSON. Computes nothing new."""

import msgspec

from polypod import units
from polypod.plan.energy import Estimate
from polypod.plan.money import Running
from polypod.report.tables import WIDTH, entry


def running_lines(run: Running, width: int = WIDTH) -> list[str]:
    """What they draw and cost, each with its ends, what that rests on, and what is not known."""
    lines = []
    if run.site_w is not None and run.it_w is not None:
        lines.append(
            entry(
                "power",
                f"{spanned(run.site_w, 'W')} with cooling, {spanned(run.it_w, 'W')} of IT",
                width=width,
            )
        )
    per_million = [
        spanned(value, unit)
        for value, unit in (
            (run.joules_per_million_tokens, "J"),
            (run.usd_per_million_tokens, "USD"),
            (run.kg_co2_per_million_tokens, "kg CO2"),
        )
        if value is not None
    ]
    if per_million:
        lines.append(entry("a million", f"output tokens: {', '.join(per_million)}", width=width))
    lines += [entry("not known", why, width=width) for why in run.unknown]
    return [*lines, *(entry("taken", note, width=width) for note in run.notes)]


_LARGE = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def spanned(value: Estimate, unit: str) -> str:
    """A figure and its ends, in one scale.

    >>> spanned(Estimate(180e3, 250e3, 310e3), "W"), spanned(Estimate(0.11, 0.2, 0.44), "USD")
    ('250 [180, 310] kW', '0.2 [0.11, 0.44] USD')
    """
    scale, prefix = next(
        ((by, letter) for by, letter in _LARGE if unit in {"W", "J"} and value.likely >= by),
        (1.0, ""),
    )
    likely, low, high = (
        units.significant(end / scale) for end in (value.likely, value.low, value.high)
    )
    return f"{likely} [{low}, {high}] {prefix}{unit}"


def running_json(run: Running) -> dict[str, object]:
    """Every figure as low, likely and high; null where it is not known, with the reason in `unknown`."""
    raw = msgspec.to_builtins(run)
    assert isinstance(raw, dict)
    return raw
