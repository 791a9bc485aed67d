"""Pods side by side as a person and a program read them. Computes nothing new."""

from collections.abc import Sequence
from typing import Any

import msgspec

from polypod import units
from polypod.plan.compare import Comparison, Placed
from polypod.plan.energy import Estimate
from polypod.report.export import Cell, csv_text, markdown_text
from polypod.report.running import running_json, running_lines, spanned
from polypod.report.tables import entry, table
from polypod.workload.layout import describe

HEADER = ("pod", "used", "each", "all", "/kW", "/USD", "TPOT", "fits", "by")
LEGEND = (
    "each, all: output tokens/s of an accelerator, of all used; /kW: for each kilowatt with cooling; /USD: for each dollar an hour; "
    "TPOT: ms, of one stream alone; fits: tokens of context that one sequence may have; ?: a figure it needs is not on record (--why)"
)
LETTERS = {
    "own kernels": "o",
    "same family": "f",
    "transferred": "t",
    "published kernels": "p",
    "specification only": "s",
    "calibrated": "c",
}


def compare_text(found: Comparison, *, why: bool = False) -> str:
    """A row for each pod, at most 80 columns wide, then those without a plan; with `why` a block for each."""
    question = found.question
    lines = [
        f"{question.model.name}  input {question.input_tokens}, output {question.output_tokens} tokens{_limits(found)}",
        "",
        table(HEADER, [_row(one) for one in found.placed], right=range(1, 8)),
        "",
        *_legend(found),
    ]
    if why:
        lines += [line for one in found.placed for line in ("", *_reasons(one))]
    if found.missing:
        lines += ["", "no plan on"]
        lines += [entry(f"  {one.name}", one.why, indent=32) for one in found.missing]
    return "\n".join(lines)


def _limits(found: Comparison) -> str:
    question = found.question
    limits = [
        f"{name} <= {units.show(limit_s, 's')}"
        for name, limit_s in (("TTFT", question.ttft_s), ("TPOT", question.tpot_s))
        if limit_s is not None
    ]
    return f"\n{' and '.join(limits)} for {question.percentile:g} % of requests" if limits else ""


def _legend(found: Comparison) -> list[str]:
    used = dict.fromkeys(one.evidence for one in found.placed)
    classes = ", ".join(f"{_letter(name)} {name}" for name in used)
    lines = [entry("", LEGEND, indent=2)]
    if classes:
        bands = ", ".join(
            dict.fromkeys(f"{_letter(one.evidence)} {_apart(one)}" for one in found.placed)
        )
        lines.append(entry("", f"by: what times rest on: {classes}; 80 % bands of rates over what is shown: {bands}", indent=2))  # fmt: skip
    if found.tried == 1:
        lines.append(entry("", "the best layout by the closed form of each was emulated; polypod plan tries three, and may find a little more", indent=2))  # fmt: skip
    return lines


def _letter(evidence: str) -> str:
    return LETTERS.get(evidence, "?")


def _apart(one: Placed) -> str:
    """How far its rates may lie off: the other way round than times do."""
    return f"{1 / one.band.high:.2f} to {1 / one.band.low:.2f}"


def _row(one: Placed) -> list[str]:
    return [
        one.name,
        _counted(one.accelerators),
        short(one.per_accelerator.likely),
        short(one.tokens_per_s.likely),
        _known(one.per_kw_site),
        _known(one.per_usd_h),
        "?" if one.stream is None else short(one.stream.tpot_s.likely * 1e3),
        "any" if one.context_tokens is None else short(one.context_tokens),
        _letter(one.evidence),
    ]


def short(value: float) -> str:
    """Three figures in at most five characters.

    >>> [short(v) for v in (0.5, 85.12, 1234.6, 12345.0, 6.91e6, 4.4e8)]
    ['0.5', '85.1', '1235', '12.3k', '6.91M', '440M']
    """
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if value >= (scale if letter == "M" else 10 * scale):
            return units.significant(value / scale).replace(",", "") + letter
    if value >= 1000:
        return f"{value:.0f}"
    return units.significant(value)


def _counted(accelerators: float) -> str:
    return f"{accelerators / 1e3:.0f}k" if accelerators >= 1e4 else f"{accelerators:.4g}"


def _known(value: Estimate | None) -> str:
    return "?" if value is None else short(value.likely)


def _reasons(one: Placed) -> list[str]:
    """What was chosen on one pod, every figure with its ends, and what it rests on."""
    candidate = one.confirmed.candidate
    run = one.running
    where = f"{one.island.rank.chip}, timed by {one.evidence}"
    rates = [
        f"{spanned(value, '').strip()} {what}"
        for value, what in (
            (one.tokens_per_s, "in all"),
            (one.per_accelerator, "an accelerator"),
            (one.per_kw_it, "a kW of IT"),
            (one.per_kw_site, "a kW with cooling"),
            (one.per_usd_h, "a USD-hour"),
        )
        if value is not None
    ]
    lines = [
        f"{one.name}  {where}",
        entry("  layout", f"{candidate.replicas} x [{describe(candidate.deployment.layout)}] on {one.accelerators:g} of {one.island.accelerators}, {candidate.sequences} sequences a replica; {one.looked_at} looked at"),
        entry("  tokens/s", "; ".join(rates)),
        entry("  prefill waits", "for " + one.bound["prefill"], indent=16),
        entry("  decode waits", "for " + one.bound["decode"], indent=16),
    ]  # fmt: skip
    if one.stream is not None:
        spread_ms = spanned(one.stream.tpot_s * 1e3, "ms")
        lines.append(entry("  one stream", f"{spread_ms} a token on {describe(one.stream.layout)}"))
    evidence = [
        f"{what} {kind}"
        for what, kind in (("power", run.power_evidence), ("price", run.price_evidence))
        if kind
    ]
    if evidence:
        lines.append(entry("  rests on", ", ".join(evidence)))
    return [*lines, *("  " + line.replace("\n", "\n  ") for line in running_lines(run, width=78))]


CSV_HEADER = (
    "pod", "chip", "evidence", "accelerators", "used", "layout", "replicas",
    "tokens_per_s", "tokens_per_s_low", "tokens_per_s_high",
    "tokens_per_s_per_accelerator", "tokens_per_s_per_kw_it", "tokens_per_s_per_kw", "tokens_per_s_per_usd_h",
    "stream_tpot_s", "context_tokens", "joules_per_million_tokens", "usd_per_million_tokens", "kg_co2_per_million_tokens",
    "power_evidence", "price_evidence", "prefill_bound", "decode_bound", "missing",
)  # fmt: skip


def compare_csv(found: Comparison) -> str:
    """SI numbers, one row for each pod; what is not known is empty, and `missing` says why."""
    rows = [_cells(one) for one in found.placed]
    empty = len(CSV_HEADER) - 2
    rows += [[one.name, *[None] * empty, one.why] for one in found.missing]
    return csv_text(CSV_HEADER, rows)


def _cells(one: Placed) -> list[Cell]:
    candidate, run = one.confirmed.candidate, one.running
    return [
        one.name, one.island.rank.chip, one.evidence, one.island.accelerators, one.accelerators,
        describe(candidate.deployment.layout), candidate.replicas,
        one.tokens_per_s.likely, one.tokens_per_s.low, one.tokens_per_s.high,
        *(_likely(value) for value in (one.per_accelerator, one.per_kw_it, one.per_kw_site, one.per_usd_h)),
        None if one.stream is None else one.stream.tpot_s.likely, one.context_tokens,
        *(_likely(value) for value in (run.joules_per_million_tokens, run.usd_per_million_tokens, run.kg_co2_per_million_tokens)),
        run.power_evidence, run.price_evidence, one.bound["prefill"], one.bound["decode"], "; ".join(run.unknown),
    ]  # fmt: skip


def _likely(value: Estimate | None) -> float | None:
    return None if value is None else value.likely


def compare_markdown(found: Comparison) -> str:
    """The table for a page, pods without a plan at its end."""
    rows: list[Sequence[Cell]] = [[*_row(one)[:-1], one.evidence] for one in found.placed]
    rows += [[one.name, *["-"] * (len(HEADER) - 2), one.why] for one in found.missing]
    return markdown_text(HEADER, rows)


def compare_json(found: Comparison) -> dict[str, Any]:
    """Everything, rates and costs as low, likely and high; null where it is not known."""
    question = found.question
    return {
        "model": question.model.name,
        "input_tokens": question.input_tokens,
        "output_tokens": question.output_tokens,
        "ttft_s": question.ttft_s,
        "tpot_s": question.tpot_s,
        "percentile": question.percentile,
        "by": found.by,
        "layouts_emulated": found.tried,
        "pods": [_json(one) for one in found.placed],
        "missing": [{"pod": one.name, "why": one.why} for one in found.missing],
    }


def _json(one: Placed) -> dict[str, Any]:
    candidate = one.confirmed.candidate
    return {
        "pod": one.name,
        "chip": one.island.rank.chip,
        "accelerators": one.island.accelerators,
        "used": one.accelerators,
        "layout": msgspec.structs.asdict(candidate.deployment.layout),
        "replicas": candidate.replicas,
        "evidence": {
            "times": one.evidence,
            "power": one.running.power_evidence or None,
            "price": one.running.price_evidence or None,
        },
        "tokens_per_s": _ends(one.tokens_per_s),
        "tokens_per_s_per_accelerator": _ends(one.per_accelerator),
        "tokens_per_s_per_kw_it": _ends(one.per_kw_it),
        "tokens_per_s_per_kw": _ends(one.per_kw_site),
        "tokens_per_s_per_usd_h": _ends(one.per_usd_h),
        "stream": None
        if one.stream is None
        else {"tpot_s": _ends(one.stream.tpot_s), "layout": msgspec.structs.asdict(one.stream.layout)},
        "context_tokens": one.context_tokens,
        "bound": dict(one.bound),
        "in_all": running_json(one.running),
    }  # fmt: skip


def _ends(value: Estimate | None) -> object:
    return None if value is None else msgspec.to_builtins(value)
