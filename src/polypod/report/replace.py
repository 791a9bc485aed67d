"""What replaces what, as a person reads it and as a program does. Computes nothing new."""

from dataclasses import replace
from typing import Any

from polypod import units
from polypod.catalog.market_schema import Event
from polypod.plan.fleet import Chosen, Short
from polypod.plan.replace import Option, Replaced, Risk
from polypod.report.running import running_json, running_lines
from polypod.report.tables import WIDTH, entry, table
from polypod.workload.layout import describe

_MOST_EVENTS = 5


def replaced_text(answer: Replaced) -> str:
    """The whole answer, at most 80 columns wide."""
    lines: list[str] = []
    for question, speed in zip(answer.questions, answer.speeds, strict=True):
        lines.append(f"{question.model.name}  input {question.input_tokens}, output {question.output_tokens} tokens, {question.rate_per_s:.4g} requests/s")  # fmt: skip
        lines.append(entry("today", f"TTFT {units.show(speed.ttft_s, 's')}, TPOT {units.show(speed.tpot_s, 's')} on {_cards(answer.today)}"))  # fmt: skip
    lines += ["", _options(answer)]
    for option in answer.options:
        lines += ["", *_option(answer, option)]
    for risk in answer.risks:
        lines += ["", *_risk(risk)]
    return "\n".join(lines)


def _cards(found: Chosen) -> str:
    total: dict[str, float] = {}
    for one in found.used:
        chip = one.shape.island.rank.chip
        total[chip] = total.get(chip, 0.0) + one.accelerators
    return " and ".join(f"{count:g} {chip}" for chip, count in total.items())


def _name(option: Option) -> str:
    if len(option.chips) > 1:
        return "all of them together"
    return "".join(option.chips) or "what stays alone"


def _options(answer: Replaced) -> str:
    rows = []
    for option in answer.options:
        if not isinstance(option.found, Chosen):
            rows.append([_name(option), "does not do", "", "", "", ""])
            continue
        tpot = _over([(new.tpot_s, old.tpot_s) for new, old in zip(option.speeds, answer.speeds, strict=True)])  # fmt: skip
        ttft = _over([(new.ttft_s, old.ttft_s) for new, old in zip(option.speeds, answer.speeds, strict=True)])  # fmt: skip
        rows.append(
            [_name(option), f"{option.cards:g}", _power(option), _money(option), ttft, tpot]
        )
    return table(
        ["comes", "new cards", "their power", "USD/h", "TTFT", "TPOT"], rows, right=[1, 2, 3, 4, 5]
    )


def _power(option: Option) -> str:
    """Of the new cards at work, with cooling."""
    if option.running is None:
        return "-"
    return "?" if option.running.site_w is None else units.show(option.running.site_w.likely, "w")


def _money(option: Option) -> str:
    if option.running is None:
        return "-"
    return "?" if option.running.usd_per_h is None else units.significant(option.running.usd_per_h.likely)  # fmt: skip


def _over(pairs: list[tuple[float, float]]) -> str:
    """The largest change over the models, as a factor of today's."""
    ratios = [new / old for new, old in pairs if old > 0 and new > 0]
    return f"x {max(ratios):.2f}" if ratios else "-"


def _option(answer: Replaced, option: Option) -> list[str]:
    name = _name(option)
    if isinstance(option.found, Short):
        short = option.found
        idle = [f"{island.removeprefix('new-')} serves nothing: {reason}" for island, reason in short.idle.items()]  # fmt: skip
        most = f"{short.fraction:.0%} of the demand at most, at the number tried"
        why = "; ".join([*short.reasons.values(), *idle] or [most])
        return [entry(name, why, indent=max(len(name) + 2, 14))]
    alone = next((other for other in answer.options if len(option.chips) > 1 and (other.new_cards.keys(), other.cards) == (option.new_cards.keys(), option.cards) and other is not option), None)  # fmt: skip
    if alone is not None:
        return [entry(name, f"as {_name(alone)} alone", indent=len(name) + 2)]
    lines = [name]
    for one in option.found.used:
        shape = one.shape
        model = answer.questions[one.model].model.name.rpartition("/")[2]
        lines.append(entry(f"  {shape.role}", f"{one.replicas} x [{describe(shape.deployment.layout)}] of {model} on {one.accelerators:g} {shape.island.rank.chip}"))  # fmt: skip
    if option.running is not None:
        lines += [
            f"  {line}" for line in running_lines(replace(option.running, notes=()), WIDTH - 2)
        ]
    for number, step in enumerate(option.steps, start=1):
        lines.append(entry(f"  step {number}", f"{step.what}: {min(step.share, 9.99):.0%} of the demand is up"))  # fmt: skip
    return lines


def _risk(risk: Risk) -> list[str]:
    lines = [risk.chip]
    engines = [f"{one.engine} {one.state}" for one in risk.engines]
    lines.append(entry("  engines", ", ".join(engines) or "none on record"))
    lines += [entry("  runs", f"{name}: {state}, {why}") for name, state, why in risk.models]
    lines.append(entry("  kernels", risk.kernels))
    lines += [entry("  stands", f"{one.what}: {one.planner_state}") for one in risk.regimes[:2]]
    lines += [entry(f"  {one.date}", _event(one)) for one in risk.events[:_MOST_EVENTS]]
    if not risk.events:
        lines.append(entry("  events", "none on record"))
    elif len(risk.events) > _MOST_EVENTS:
        lines.append(entry("", f"and {len(risk.events) - _MOST_EVENTS} earlier: polypod catalog show {risk.chip}"))  # fmt: skip
    return lines


def _event(event: Event) -> str:
    return f"{event.kind}, {event.effect}: {event.what} ({event.sources[0].title})"


def replaced_json(answer: Replaced) -> dict[str, Any]:
    """All of it."""
    return {
        "models": [
            {"model": question.model.name, "rate_per_s": question.rate_per_s, "today_ttft_s": speed.ttft_s, "today_tpot_s": speed.tpot_s}
            for question, speed in zip(answer.questions, answer.speeds, strict=True)
        ],
        "options": [_option_json(one) for one in answer.options],
        "risks": [
            {
                "chip": risk.chip,
                "engines": [{"engine": one.engine, "state": one.state, "reason": one.reason} for one in risk.engines],
                "models": [{"model": name, "state": state, "reason": why} for name, state, why in risk.models],
                "kernels": risk.kernels,
                "regimes": [{"what": one.what, "planner_state": one.planner_state} for one in risk.regimes],
                "events": [{"id": one.id, "date": one.date, "kind": one.kind, "effect": one.effect, "what": one.what} for one in risk.events],
            }
            for risk in answer.risks
        ],
    }  # fmt: skip


def _option_json(option: Option) -> dict[str, Any]:
    if isinstance(option.found, Short):
        return {"chips": list(option.chips), "holds": False, "fraction": option.found.fraction, "reasons": list(option.found.reasons.values())}  # fmt: skip
    return {
        "chips": list(option.chips),
        "holds": True,
        "new_cards": dict(option.new_cards),
        "running": None if option.running is None else running_json(option.running),
        "ttft_s": [one.ttft_s for one in option.speeds],
        "tpot_s": [one.tpot_s for one in option.speeds],
        "pools": [
            {"model": one.model, "role": one.shape.role, "chip": one.shape.island.rank.chip, "replicas": one.replicas, "accelerators": one.accelerators}
            for one in option.found.used
        ],
        "steps": [{"what": step.what, "share_of_demand": step.share} for step in option.steps],
    }  # fmt: skip
