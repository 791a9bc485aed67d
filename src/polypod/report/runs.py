"""A run as a person reads it, on one screen, and as a program does: from live and simulated records alike. Computes nothing new."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from polypod import units
from polypod.report.foresight import foresight_text
from polypod.report.summary import Group, Limit, Percentiles, Power, RunSummary, Share, summarise
from polypod.report.tables import WIDTH, table

__all__ = ["run_json", "run_text", "summarise"]


def run_json(summary: RunSummary) -> dict[str, Any]:
    """The summary as one object, derived rates included; seconds, tokens, fractions of 1."""
    raw: dict[str, Any] = msgspec.to_builtins(summary, str_keys=True)
    raw["requests_per_s"] = summary.requests_per_s
    raw["output_tokens_per_s"] = summary.output_tokens_per_s
    for name in ("replicas", "pools", "islands"):
        for share, entry in zip(getattr(summary, name), raw[name], strict=True):
            entry["busy_fraction"] = share.busy_fraction
    for group, entry in zip(summary.models, raw["models"], strict=True):
        for name in ("ttft_limit", "tpot_limit"):
            limit = getattr(group, name)
            if limit is not None:
                entry[name]["is_kept"] = limit.is_kept
    return raw


SCREEN_LINES: Final = 24
"""The whole text is no longer, unless more is asked for."""

MOST_REPLICAS: Final = 16
"""A table lists each replica up to this many, and pools beyond."""

_WORTH: Final = 0.5
"""Requests that a fault must have cost to be pointed at."""


@dataclass(slots=True, eq=False)
class _Part:
    """A part of the screen: a table loses its last rows first, down to so many lines; where that is 0 the whole part may go."""

    lines: list[str]
    least: int
    hidden: int = 0

    @property
    def height(self) -> int:
        return len(self.lines) - self.hidden

    def cut(self) -> bool:
        """Give up a line, or all; False where nothing can be given up."""
        if self.height <= max(self.least, 2):
            if self.least or not self.height:
                return False
            self.hidden = len(self.lines)
            return True
        self.hidden += 2 if not self.hidden and self.height > 3 else 1
        return True

    def text(self) -> str:
        kept = self.lines[: self.height]
        if self.hidden and self.height:
            kept.append(f"... and {self.hidden} more: --json")
        return "\n".join(kept)


def run_text(summary: RunSummary, run: str = "RUN", *, lines: int = SCREEN_LINES) -> str:
    """The summary as tables of at most 80 columns and so many lines, and what to look at next. `run` is the record as commands name it."""
    few = len(summary.pools) < len(summary.replicas) <= MOST_REPLICAS
    islands = summary.islands if len(summary.islands) < len(summary.pools) else ()
    several = len({share.model for share in summary.pools}) > 1
    parts = [
        _part(_counts(summary), 99),
        _part(_latencies(summary), 99),
        _part(_groups("model", summary.models), 3),
        _part(_groups("tenant", summary.tenants), 0),
        _part(_shares("pool", summary.pools, several=several), 3),
        _part(_shares("island", islands, several=several), 0),
        _part(_shares("replica", summary.replicas if few else (), several=several), 0),
        _part(foresight_text(summary.replica_foresight[:MOST_REPLICAS]), 0),
        _part(_measured(summary), 99),
        _part(_next(summary, run), 99),
    ]
    parts = [part for part in parts if part.lines]
    for between in ("\n\n", "\n"):
        text = _fitted(parts, lines, between)
        if len(text.splitlines()) <= lines:
            break
    return text


def _part(text: str, least: int) -> _Part:
    return _Part(text.splitlines(), least)


def _fitted(parts: Sequence[_Part], lines: int, between: str) -> str:
    """Shorten the tables, those that may go first, of these the longest, the last among equals, until all fits or nothing can go."""
    for part in parts:
        part.hidden = 0
    while True:
        text = between.join(part.text() for part in parts if part.height)
        order = sorted(range(len(parts)), key=lambda n: (parts[n].least > 0, -parts[n].height, -n))
        if len(text.splitlines()) <= lines or not any(parts[n].cut() for n in order):
            return text


def _counts(summary: RunSummary) -> str:
    rejected = ", ".join(f"{count} with {status}" for status, count in summary.rejected.items())
    codes = ", ".join(f"{code} {count}" for code, count in summary.rejected_codes.items())
    head = f"{summary.kind}, {summary.requests:,} requests in {units.show(summary.duration_s, 's')}".removeprefix(", ")  # fmt: skip
    rows = [
        [
            "finished",
            f"{summary.finished:,}{_rate(summary.requests_per_s)}; {summary.output_tokens:,} tokens{_rate(summary.output_tokens_per_s)}",
        ],
        ["rejected", f"{rejected} ({codes})" if codes else rejected or "none"],
    ]
    extras = {"clients gone": summary.gone, "open": summary.open, "retries": summary.retries}
    if any(extras.values()):
        rows.append(["besides", ", ".join(f"{count:,} {name}" for name, count in extras.items() if count)])  # fmt: skip
    goodput = summary.goodput
    if goodput is not None:
        text = f"{goodput.requests:,}, {100 * goodput.fraction:.1f} %{_rate(goodput.per_s)}"
        rows.append(["inside the SLO", text])
    if summary.note:
        rows.append(["note", summary.note])
    return "\n".join(_cut(line) for line in table(["run", head], rows).splitlines())


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."


def _rate(per_s: float | None) -> str:
    return "" if per_s is None else f", {units.significant(per_s)}/s"


def _latencies(summary: RunSummary) -> str:
    """Of all requests; with their limits where there is one model."""
    one = summary.models[0] if len(summary.models) == 1 else None
    limits = {"TTFT": one.ttft_limit, "TPOT": one.tpot_limit} if one is not None else {}
    has_limits = any(limit is not None for limit in limits.values())
    rows = [
        [name, *(units.show(value, "s") for value in _values(spread)), *(_limit(limits.get(name)) if has_limits else [])]
        for name, spread in (("TTFT", summary.ttft), ("TPOT", summary.tpot), ("E2E", summary.e2e))
        if spread is not None
    ]  # fmt: skip
    header = ["", "mean", "p50", "p90", "p99", *(["limit", "inside"] if has_limits else [])]
    return table(header, rows, right=range(1, len(header))) if rows else ""


def _limit(limit: Limit | None) -> list[str]:
    if limit is None:
        return ["", ""]
    at = f"p{limit.percentile:g} {units.show(limit.limit_s, 's')}"
    return [at, _percent(limit.inside_fraction)]


def _percent(fraction: float | None) -> str:
    if fraction is None:
        return "?"
    return f"{100 * fraction:.1f} %" if fraction < 10 else f"{100 * fraction:.0e} %"


def _values(spread: Percentiles) -> tuple[float, ...]:
    return spread.mean_s, spread.p50_s, spread.p90_s, spread.p99_s


def _groups(kind: str, groups: Sequence[Group]) -> str:
    """Several models or tenants, the one with the least goodput first."""
    if len(groups) < 2:
        return ""
    worst = sorted(groups, key=lambda group: 1.0 if group.goodput is None else group.goodput.fraction)  # fmt: skip
    rows = [
        [
            _short(group.name or "(none)", 22),
            f"{group.requests:,}",
            "?" if group.goodput is None else _percent(group.goodput.fraction),
            _at_p99(group.ttft),
            _of(group.ttft_limit),
            _at_p99(group.tpot),
            _of(group.tpot_limit),
        ]
        for group in worst
    ]
    header = [kind, "requests", "in SLO", "TTFT p99", "of", "TPOT p99", "of"]
    return table(header, rows, right=(1, 2, 3, 4, 5, 6))


def _at_p99(spread: Percentiles | None) -> str:
    return "" if spread is None else units.show(spread.p99_s, "s")


def _of(limit: Limit | None) -> str:
    return "" if limit is None else units.show(limit.limit_s, "s")


def _shares(kind: str, shares: Sequence[Share], *, several: bool) -> str:
    """The fullest first, unless these are replicas; with their models where there are several."""
    ordered = shares if kind == "replica" else sorted(shares, key=lambda share: -fullness(share))
    rows = [
        [
            _short(share.name, 16 if several else 32),
            *([_short(share.model or "(several)", 16)] if several else []),
            f"{share.requests:,}",
            _brief(share.output_tokens),
            _percent(share.busy_fraction),
            _percent(share.slots_fraction),
            _percent(share.kv_fraction),
        ]
        for share in ordered
    ]
    header = [kind, *(["model"] if several else []), "requests", "tokens", "busy", "slots", "KV"]
    return table(header, rows, right=range(len(header) - 5, len(header))) if rows else ""


def _brief(count: int) -> str:
    """
    >>> _brief(4_000_000), _brief(123)
    ('4 M', '123')
    """
    for scale, suffix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= scale:
            return f"{units.significant(count / (10**3 if suffix == 'k' else scale))} {suffix}"
    return f"{count:,}"


def fullness(share: Share) -> float:
    """What it has least left of: slots or cache; 0 where neither is known."""
    return max(share.slots_fraction or 0.0, share.kv_fraction or 0.0)


def _measured(summary: RunSummary) -> str:
    lines = []
    seen = summary.foresight
    if seen is not None and seen.p50_ratio is not None:
        ratios = f"{_times(seen.p50_ratio)} (p10 {_times(seen.p10_ratio)}, p90 {_times(seen.p90_ratio)})"  # fmt: skip
        lines.append(f"router    first tokens came in {ratios} of the predicted time")
    if any(summary.cached_tokens.values()):
        lines.append(f"prefixes  {_prefixes(summary)}")
    power = summary.power
    if power is not None:
        token = "" if power.joules_per_token is None else f", {units.significant(power.joules_per_token)} J/token"  # fmt: skip
        pue = "" if power.pue_ratio is None else f", PUE {power.pue_ratio:.2f}"
        lines.append(f"power     {units.show(power.mean_w, 'w')} mean, {units.show(power.most_w, 'w')} most{token}{pue}")  # fmt: skip
        lines += _site(power)
    if summary.traffic_bytes:
        lines.append(f"traffic   {_traffic(summary.traffic_bytes)}")
    return "\n".join(_cut(line) for line in lines)


def _site(power: Power) -> list[str]:
    """The same with cooling."""
    if power.site_mean_w is None:
        return []
    token = "" if power.site_joules_per_token is None else f", {units.significant(power.site_joules_per_token)} J/token"  # fmt: skip
    co2 = "" if power.kg_co2_per_million_tokens is None else f", {units.significant(power.kg_co2_per_million_tokens)} kg CO2 a million tokens"  # fmt: skip
    return [f"site      {units.show(power.site_mean_w, 'w')} mean{token}{co2}"]


def _prefixes(summary: RunSummary) -> str:
    """Of the finished requests' prompts; attempts that came to nothing found some too."""
    asked = max(summary.input_tokens, 1)
    parts = [f"{100 * count / asked:.1f} % in {_TIERS[tier]}" for tier, count in summary.cached_tokens.items() if count]  # fmt: skip
    return f"of prompt tokens were found cached {', '.join(parts)}"


def _times(ratio: float | None) -> str:
    return "?" if ratio is None else f"{ratio:.2f}"


def _traffic(traffic_bytes: Mapping[str, float]) -> str:
    most = sorted(traffic_bytes.items(), key=lambda item: -item[1])
    return ", ".join(f"{tier} {units.show(count, 'bytes')}" for tier, count in most)


_TIERS: Final = {"hbm": "HBM", "host": "host memory", "remote": "the remote store"}


# ---- what next


def _next(summary: RunSummary, run: str) -> str:
    """The model that misses its SLO most, the fault that cost most, the fullest pool: each with the command that shows more."""
    found = [_worst_model(summary), _worst_fault(summary), _worst_pool(summary)]
    rows = [pair for pair in found if pair]
    if not rows:
        return ""
    command = f"look at: polypod report {run} ..."
    lines = [command if len(command) <= WIDTH else "look at: polypod report RUN ..."]
    return "\n".join([*lines, *(_cut(f"  {flags:<20}  {text}") for flags, text in rows)])


def _worst_model(summary: RunSummary) -> tuple[str, str] | None:
    missed = [
        (limit.inside_fraction, group.name, name, limit)
        for group in summary.models
        for name, limit in (("TTFT", group.ttft_limit), ("TPOT", group.tpot_limit))
        if limit is not None and not limit.is_kept
    ]
    if not missed:
        return None
    _, model, name, limit = min(missed, key=lambda one: one[:3])
    text = f"{name} p{limit.percentile:g} is {units.show(limit.reached_s, 's')} of {units.show(limit.limit_s, 's')}: {_short(model, 22)}"  # fmt: skip
    return f"--slowest --by {name.lower()}", text


def _worst_fault(summary: RunSummary) -> tuple[str, str] | None:
    if not summary.faults:
        return None
    worst = max(summary.faults, key=lambda cost: cost.lost_requests)
    if worst.lost_requests < _WORTH and not worst.retried:
        return None
    text = f"fault {_short(worst.id, 12)} ({_short(worst.what, 12)}) cost {worst.lost_requests:,.0f} requests, {worst.retried:,} retries"  # fmt: skip
    return "--faults", text


def _worst_pool(summary: RunSummary) -> tuple[str, str] | None:
    if not summary.pools:
        return None
    worst = max(summary.pools, key=fullness)
    text = f"{_short(worst.name, 24)} is fullest: {_percent(worst.slots_fraction)} of slots, {_percent(worst.kv_fraction)} of cache"  # fmt: skip
    return "--series", text


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."
