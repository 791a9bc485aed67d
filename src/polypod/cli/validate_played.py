"""What `polypod validate --simulate` prints: errors of the closed form and of the play, side by side."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from polypod.report.tables import entry, table
from polypod.validate.beside import Beside, Pair, by_cell, by_kind

PLAYED_HEADER: Final = (
    "played_ttft_ms", "played_tpot_ms", "played_ttft_p50_ms", "played_ttft_p99_ms", "played_tpot_p50_ms", "played_tpot_p99_ms",
)  # fmt: skip
"""Columns of `--rows` beside those of the predictions: means, medians and 99th percentiles over the requests played."""


def played_text(pairs: Sequence[Pair], reasons: Counter[str]) -> str:
    """Two tables in 80 columns, and why rows were not played."""
    kinds = by_kind(pairs)
    blocks = [_table("played request by request", kinds), *_sweeps(kinds), _table("", by_cell(pairs))]  # fmt: skip
    if reasons:
        lines = ["not played"]
        lines += [entry(f"{n:>5} rows", why, indent=12) for why, n in reasons.most_common(10)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _sweeps(kinds: Sequence[Beside]) -> list[str]:
    """How far off the formula is without what was set on the sweeps, where there are any."""
    lines = [
        f"{one.metric.upper()} of {one.name}: {one.as_sent.median_abs_error:.1%}"
        for metric in ("ttft", "tpot")
        for one in kinds
        if one.metric == metric and one.name in {"all", "sweeps"}
    ]
    if not any(one.name == "sweeps" for one in kinds):
        return []
    said = f"two constants of the formula were set while looking at TTFT of the sweeps, and none of the play; with the load that is played instead it is off by {', '.join(lines)}"
    return [entry("formula", said, indent=12)]


def _table(title: str, lines: Sequence[Beside]) -> str:
    rows = [
        [
            one.name[:42], one.metric.upper(), f"{one.formula.n}", f"{one.formula.median_abs_error:.1%}", f"{one.formula.within_20:.0%}",
            f"{one.of_play.median_abs_error:.1%}", f"{one.of_play.within_20:.0%}",
        ]
        for one in lines
    ]  # fmt: skip
    header = [title or "system, engine, model", "", "n", "formula", "<=20%", "played", "<=20%"]
    return table(header, rows, right=[2, 3, 4, 5, 6])


def played_json(pairs: Sequence[Pair], reasons: Counter[str]) -> dict[str, Any]:
    return {
        "by_kind": [asdict(one) for one in by_kind(pairs)],
        "by_cell": [asdict(one) for one in by_cell(pairs)],
        "not_played": [{"reason": why, "rows": n} for why, n in reasons.most_common()],
    }


def played_cells(one: Pair | None) -> tuple[str, ...]:
    """What `PLAYED_HEADER` names; empty for a row that was not played."""
    if one is None:
        return ("",) * len(PLAYED_HEADER)
    ttft_s_N, tpot_s_N = one.play.ttft_s_N, one.play.tpot_s_N
    values = (
        ttft_s_N.mean(), tpot_s_N.mean(), *np.percentile(ttft_s_N, (50, 99)), *np.percentile(tpot_s_N, (50, 99)),
    )  # fmt: skip
    return tuple(f"{1e3 * value:.6g}" for value in values)
