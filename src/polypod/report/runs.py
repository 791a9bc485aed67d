"""A run as a person reads it, and as a program does: from live and simulated records alike. Computes nothing new."""

from collections.abc import Sequence
from typing import Any

import msgspec

from polypod import units
from polypod.report.summary import Percentiles, RunSummary, Share, summarise
from polypod.report.tables import table

__all__ = ["run_json", "run_text", "summarise"]


def run_json(summary: RunSummary) -> dict[str, Any]:
    """The summary as one object, derived rates included; seconds, tokens, fractions of 1."""
    raw: dict[str, Any] = msgspec.to_builtins(summary, str_keys=True)
    raw["requests_per_s"] = summary.requests_per_s
    raw["output_tokens_per_s"] = summary.output_tokens_per_s
    for name, shares in (("replicas", summary.replicas), ("pools", summary.pools)):
        for share, entry in zip(shares, raw[name], strict=True):
            entry["busy_fraction"] = share.busy_fraction
    return raw


MOST_REPLICAS = 16
"""A table lists each replica up to this many, and pools beyond."""


def run_text(summary: RunSummary) -> str:
    """The summary as tables of at most 80 columns."""
    parts = [_counts(summary), _latencies(summary), _shares("pool", summary.pools)]
    if len(summary.pools) < len(summary.replicas) <= MOST_REPLICAS:
        parts.append(_shares("replica", summary.replicas))
    return "\n\n".join(part for part in parts if part)


def _counts(summary: RunSummary) -> str:
    rejected = ", ".join(f"{count} with {status}" for status, count in summary.rejected.items())
    rows = [
        ["requests", f"{summary.requests:,} in {units.show(summary.duration_s, 's')}"],
        ["finished", f"{summary.finished:,}{_rate(summary.requests_per_s)}"],
        ["rejected", rejected or "none"],
        ["output", f"{summary.output_tokens:,} tokens{_rate(summary.output_tokens_per_s)}"],
    ]
    extras = {"clients gone": summary.gone, "open": summary.open, "retries": summary.retries}
    rows += [[name, f"{count:,}"] for name, count in extras.items() if count]
    goodput = summary.goodput
    if goodput is not None:
        text = f"{goodput.requests:,}, {100 * goodput.fraction:.1f} %{_rate(goodput.per_s)}"
        rows.append(["inside the SLO", text])
    return table(["run", summary.kind], rows)


def _rate(per_s: float | None) -> str:
    return "" if per_s is None else f", {units.significant(per_s)}/s"


def _latencies(summary: RunSummary) -> str:
    rows = [
        [name, *(units.show(value, "s") for value in _values(spread))]
        for name, spread in (("TTFT", summary.ttft), ("TPOT", summary.tpot), ("E2E", summary.e2e))
        if spread is not None
    ]
    return table(["", "mean", "p50", "p90", "p99"], rows, right=(1, 2, 3, 4)) if rows else ""


def _values(spread: Percentiles) -> tuple[float, ...]:
    return spread.mean_s, spread.p50_s, spread.p90_s, spread.p99_s


def _shares(kind: str, shares: Sequence[Share]) -> str:
    rows = [
        [
            _short(share.name, 24),
            _short(share.model, 24),
            f"{share.requests:,}",
            f"{share.output_tokens:,}",
            "?" if share.busy_fraction is None else f"{100 * share.busy_fraction:.1f} %",
        ]
        for share in shares
    ]
    header = [kind, "model", "requests", "tokens out", "busy"]
    return table(header, rows, right=(2, 3, 4)) if rows else ""


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 3]}..."
