"""A plan over a fleet as a person reads it, and as a program does. Computes nothing new."""

from dataclasses import replace
from typing import Any

import msgspec

from polypod import units
from polypod.plan.compose_fleet import FleetAnswer
from polypod.plan.fleet import Short, Used
from polypod.plan.fleet_offers import MAXIMISED
from polypod.plan.money import Running
from polypod.plan.search import Question
from polypod.plan.shapes import shape_band
from polypod.plan.spec import Pool, Spread
from polypod.report.plans import unsaid_json, unsaid_lines
from polypod.report.running import running_json, running_lines
from polypod.report.tables import entry, table
from polypod.workload.layout import describe

_SAME = "no change"


def fleet_text(answer: FleetAnswer) -> str:
    """The whole answer, at most 80 columns wide."""
    lines: list[str] = []
    for m, question in enumerate(answer.questions):
        lines += [*_model(answer, m, question), ""]
    lines += _fleet(answer)
    chosen = answer.chosen
    unit = (
        "times what was asked"
        if _is_stretch(answer)
        else "requests/s inside the limits"
        if answer.objective == "goodput"
        else "requests/s"
        if _is_rate(answer)
        else {"cost": "USD an hour", "energy": "W with cooling"}.get(
            answer.objective, "cards' worth"
        )
    )
    proven = (
        "proven best"
        if chosen.gap < 1e-4
        else f"at most {chosen.gap:.2%} from the best there can be ({chosen.status})"
    )
    lines += ["", entry("objective", f"{units.significant(chosen.value, 4)} {unit}, {proven}")]
    if chosen.without is not None:
        other = (
            "nothing else would do"
            if chosen.runner_up is None
            else "the same"
            if abs(chosen.runner_up - chosen.value) < 1e-6 * abs(chosen.value)
            else f"{units.significant(chosen.runner_up, 4)}"
        )
        how = " (by the relaxation)" if chosen.by_duals else ""
        lines.append(entry("runner-up", f"without {chosen.without}: {other}{how}"))
    lines += _one_card(answer)
    if len(answer.questions) > 1:
        lines += running_lines(replace(answer.in_all, notes=(), unknown=()))
    pruned = ", ".join(
        f"{count} {why}" for why, count in sorted(chosen.pruned.items(), key=lambda one: -one[1])
    )
    lines.append(entry("looked at", f"{chosen.looked_at} layouts; left out: {pruned or 'none'}"))
    lines += [entry("assumed", note) for note in answer.assumptions]
    lines += [entry("taken", note) for note in answer.in_all.notes]
    lines += [entry("not used", note) for note in chosen.refused_pairs[:3]]
    if len(chosen.refused_pairs) > 3:
        lines.append(
            entry(
                "", f"and {len(chosen.refused_pairs) - 3} more ways of a cache; --json lists them"
            )
        )
    return "\n".join(lines)  # fmt: skip


def _is_stretch(answer: FleetAnswer) -> bool:
    return answer.objective == "throughput" and all(q.rate_per_s is not None for q in answer.questions)  # fmt: skip


def _is_rate(answer: FleetAnswer) -> bool:
    return answer.objective in MAXIMISED


def _model(answer: FleetAnswer, m: int, question: Question) -> list[str]:
    served = answer.chosen.served_per_s[m]
    asked = "" if question.rate_per_s is None else f" of {question.rate_per_s:g} asked"
    room = ""
    if question.rate_per_s is not None and served > 1.005 * question.rate_per_s:
        room = f", room for {units.significant(served, 4)}"
        served = question.rate_per_s
    limits = [f"{name} <= {units.show(limit, 's')}" for name, limit in (("TTFT", question.ttft_s), ("TPOT", question.tpot_s)) if limit is not None]  # fmt: skip
    lines = [
        question.model.name,
        entry("asked", f"input {question.input_tokens}, output {question.output_tokens} tokens{'; ' if limits else ''}{' and '.join(limits)}"),
        entry("serves", f"{units.significant(served, 4)}{asked} requests/s{room}; {units.significant(served * question.output_tokens, 4)} output tokens/s"),
    ]  # fmt: skip
    pools = answer.plan.services[m].pools
    for used, pool in zip((one for one in answer.chosen.used if one.model == m), pools, strict=True):  # fmt: skip
        lines += _pool(used, pool)
    flows = {key: rate for key, rate in answer.chosen.flows_per_s.items() if key[0] == m}
    lines += [
        entry("hand-over", f"{units.significant(rate, 3)} requests/s prefilled on {start}, decoded on {end}")
        for (_, start, end), rate in flows.items()
    ]  # fmt: skip
    moves = ", ".join(f"{one.what} {one.change_fraction:+.0%}" for one in answer.sensitivities[m])
    run = answer.running[m]
    lines += running_lines(replace(run, notes=()))
    lines += _dearer(run)
    lines.append(entry("a fifth less", f"of this would serve so much less on the same cards: {moves}"))  # fmt: skip
    return [*lines, *unsaid_lines(answer.unsaid[m])]


def _dearer(run: Running) -> list[str]:
    """What prices a fifth higher would add to a token's cost; nothing for rent, which has its power in it."""
    whole, power = run.usd_per_million_tokens, run.power_usd_per_million_tokens
    if whole is None or power is None or power.likely == 0:
        return []
    share = power.likely / whole.likely
    return [entry("a fifth more", f"for electricity would add {0.2 * share:.1%} to a token's cost, for accelerators and hosting {0.2 * (1 - share):.1%}")]  # fmt: skip


def _pool(used: Used, pool: Pool) -> list[str]:
    predicted = pool.predicted
    assert predicted is not None
    role = {"both": "pool", "prefill": "prefill", "decode": "decode"}[pool.role]
    shape = used.shape
    where = f"{used.replicas * shape.ranks / shape.island.rank.ranks_per_accelerator:g} {shape.island.rank.chip} ({pool.on})"
    if shape.split is not None:
        also, ranks = shape.also[0]
        experts = used.replicas * ranks / also.rank.ranks_per_accelerator
        where = f"{where} for attention, experts on {experts:g} {also.rank.chip} ({also.name}), {shape.split.micro_batches} micro-batches"
    lines = [
        entry(role, f"{pool.replicas} x [{describe(pool.layout)}] on {where}, {pool.precision.weights} weights, {_batch(pool)}, {pool.state}"),
    ]  # fmt: skip
    times = [text for name, spread in (("TTFT", predicted.ttft), ("TPOT", predicted.tpot)) if (text := _spread(name, spread))]  # fmt: skip
    if times:
        lines.append(entry("", "; ".join(times)))
    bounds = "; ".join(f"{phase} waits for {what}" for phase, what in predicted.bound.items())
    return [*lines, entry("", bounds)]


def _batch(pool: Pool) -> str:
    what = "prompt" if pool.role == "prefill" else "sequence"
    return f"up to {pool.max_sequences} {what}{'s' if pool.max_sequences > 1 else ''}"


def _spread(name: str, spread: Spread | None) -> str:
    if spread is None:
        return ""
    tail = f", {spread.p99} at the 99th percentile" if spread.p99 else ""
    return f"{name} {spread.p50} median{tail} (80 % band of the median {spread.band[0]} to {spread.band[1]})"


def _fleet(answer: FleetAnswer) -> list[str]:
    rows = []
    for island in answer.islands:
        used = sum(one.accelerators_on(island) for one in answer.chosen.used)
        rows.append([island.name, island.rank.chip, f"{used:g}", f"{island.accelerators - used:g}", f"{island.accelerators}"])  # fmt: skip
    return [table(["island", "chip", "used", "free", "of"], rows, right=[2, 3, 4])]


def _one_card(answer: FleetAnswer) -> list[str]:
    """What a card more or less of each island changes; those that change nothing in one word."""
    chosen = answer.chosen
    parts, same = [], []
    for island in answer.islands:
        more, less = (
            _difference(found[island.name], chosen.value)
            for found in (chosen.one_more, chosen.one_less)
        )
        if more == less == _SAME:
            same.append(island.name)
        else:
            parts.append(f"{island.name}: {more} with one more, {less} with one less")
    if same:
        parts.append(f"{', '.join(same)}: {_SAME} with one more or one less")
    how = "duals of the relaxation" if chosen.by_duals else "solved anew"
    return [entry("one card", f"{'; '.join(parts)} ({how})")]


def _difference(value: float, before: float) -> str:
    if value != value:
        return "not enough"
    change = value - before
    return _SAME if abs(change) < 1e-6 * max(abs(before), 1.0) else f"{change:+.4g}"


def short_text(short: Short, questions: tuple[Question, ...]) -> str:
    """Why nothing serves all, and how near it comes."""
    if short.without_shape:
        m = short.without_shape[0]
        near = ""
        if m in short.nearest:
            chip, miss = short.nearest[m]
            near = f"; nearest is {describe(miss.layout)} on {chip} with TTFT {units.show(miss.ttft_s, 's')} and TPOT {units.show(miss.tpot_s, 's')}, over by a factor of {units.significant(miss.factor)}"  # fmt: skip
        return f"no part of this fleet serves {questions[m].model.name} inside its limits{near} (of the layouts looked at, {short.reasons[m]})"  # fmt: skip
    found = "; ".join(
        f"{question.model.name} {units.significant(rate, 3)} of {question.rate_per_s:g} /s"
        for question, rate in zip(questions, short.served_per_s, strict=True)
        if question.rate_per_s is not None
    )
    idle = "".join(f"; island {name} serves nothing: {why}" for name, why in short.idle.items())
    against = "".join(f"; the demand and {rule} contradict each other here: without it the demand is met" for rule in short.against)  # fmt: skip
    return f"this fleet serves {max(short.fraction, 0.0):.1%} of every demand at once at most ({found}): lower the rates, relax the limits, or add cards{against}{idle}"  # fmt: skip


def fleet_json(answer: FleetAnswer) -> dict[str, Any]:
    """The same as one object: `plan` is the plan file's content."""
    chosen = answer.chosen
    return {
        "plan": {"polypod": 1, **msgspec.to_builtins(answer.plan)},
        "models": [
            {
                "model": question.model.name,
                "served_per_s": chosen.served_per_s[m],
                "asked_per_s": question.rate_per_s,
                "pools": [_used_json(question, one) for one in chosen.used if one.model == m],
                "running": running_json(answer.running[m]),
                "sensitivity": {one.what: one.change_fraction for one in answer.sensitivities[m]},
                "unsaid": unsaid_json(answer.unsaid[m]),
            }
            for m, question in enumerate(answer.questions)
        ],
        "hand_overs": [
            {"model": answer.questions[m].model.name, "prefill": start, "decode": end, "requests_per_s": rate}
            for (m, start, end), rate in chosen.flows_per_s.items()
        ],
        "objective": {"value": chosen.value, "gap_fraction": chosen.gap, "status": chosen.status, "runner_up": chosen.runner_up, "without": chosen.without},
        "one_accelerator_more": dict(chosen.one_more),
        "one_accelerator_less": dict(chosen.one_less),
        "one_accelerator_by": "duals" if chosen.by_duals else "solved anew",
        "running": running_json(answer.in_all),
        "not_used": list(chosen.refused_pairs),
        "looked_at": chosen.looked_at,
        "pruned": dict(chosen.pruned),
        "assumptions": list(answer.assumptions),
    }  # fmt: skip


def _used_json(question: Question, one: Used) -> dict[str, Any]:
    shape = one.shape
    bands = {what: shape_band(question, shape, what) for what in ("ttft", "tpot")}
    experts = None if shape.split is None else {
        "on": shape.also[0][0].name,
        "chip": shape.split.experts.chip,
        "ranks": shape.split.expert_ranks,
        "micro_batches": shape.split.micro_batches,
        "weights": shape.split.expert_precision.weights,
        "weight_bytes_per_rank": shape.split.expert_weight_bytes,
        "free_bytes_per_rank": shape.split.expert_free_bytes,
    }  # fmt: skip
    return {
        "role": shape.role,
        "on": shape.island.name,
        "chip": shape.island.rank.chip,
        "evidence": shape.island.rank.calibration.evidence,
        "layout": msgspec.structs.asdict(shape.deployment.layout),
        "replicas": one.replicas,
        "accelerators": one.accelerators,
        "experts_apart": experts,
        "requests_per_s_per_replica": shape.rate_per_s,
        "emulated": shape.confirmed,
        "ttft_s": shape.ttft_s,
        "tpot_s": shape.tpot_s,
        "band": {what: {"low": band.low, "high": band.high} for what, band in bands.items()},
    }
