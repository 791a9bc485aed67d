"""The frontier as a table and as JSON."""

from collections.abc import Sequence
from typing import Any

import msgspec

from polypod import units
from polypod.plan.frontier import Point, thinned
from polypod.report.tables import entry, table
from polypod.workload.layout import describe

_MOST = 24


def frontier_text(points: Sequence[Point]) -> str:
    """At most two dozen of them, spread over TPOT, in 80 columns."""
    rows = [
        [
            units.show(one.tpot_s, "s"), units.show(one.ttft_s, "s"), units.significant(one.tokens_per_s_per_accelerator, 4),
            _known(one.usd_per_million_tokens, 1.0), _known(one.joules_per_million_tokens, 1e-6),
            one.island.rank.chip[:18], describe(one.deployment.layout)[:14], f"{one.sequences_per_rank * one.deployment.layout.dp}",
        ]
        for one in thinned(points, _MOST)
    ]  # fmt: skip
    shown = entry("shown", f"{len(rows)} of {len(points)} deployments that none beats in all five at once; --json has them all")  # fmt: skip
    header = ["TPOT", "TTFT", "tok/s/card", "USD/M", "J/tok", "chip", "layout", "batch"]
    return f"{table(header, rows, right=[0, 1, 2, 3, 4, 7])}\n\n{shown}"


def _known(value: float | None, scale: float) -> str:
    return "?" if value is None else units.significant(scale * value, 3)


def frontier_json(points: Sequence[Point]) -> list[dict[str, Any]]:
    """All of them."""
    return [
        {
            "ttft_s": one.ttft_s,
            "tpot_s": one.tpot_s,
            "tokens_per_s_per_accelerator": one.tokens_per_s_per_accelerator,
            "usd_per_million_tokens": one.usd_per_million_tokens,
            "joules_per_million_tokens": one.joules_per_million_tokens,
            "chip": one.island.rank.chip,
            "on": one.island.name,
            "layout": msgspec.structs.asdict(one.deployment.layout),
            "sequences": one.sequences_per_rank * one.deployment.layout.dp,
            "max_step_tokens": one.max_step_tokens,
            "accelerators": one.deployment.accelerators,
            "evidence": one.island.rank.calibration.evidence,
        }
        for one in points
    ]
