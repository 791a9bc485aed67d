"""A plan as a person reads it, and as a program does. Computes nothing new."""

from collections.abc import Sequence
from typing import Any

import msgspec

from polypod import units
from polypod.cost.bands import METRICS, Metric
from polypod.engine.settings import Move
from polypod.plan.compose import Answer, BesidePublished, Choice, cache_bytes
from polypod.plan.spec import Spread
from polypod.report.running import running_json, running_lines
from polypod.report.tables import entry
from polypod.workload.layout import describe


def plan_text(answer: Answer, beside: list[BesidePublished]) -> str:
    """The whole answer, at most 80 columns wide."""
    question = answer.question
    lines = [
        f"{question.model.name}  input {question.input_tokens}, output {question.output_tokens} tokens"
        f"{_limits(answer)}",
        "",
    ]
    for choice in answer.choices:
        lines += [*_choice(answer, choice), ""]
    lines += _totals(answer)
    pruned = ", ".join(f"{count} {why}" for why, count in answer.pruned.most_common())
    lines.append(entry("looked at", f"{answer.looked_at} layouts; left out: {pruned or 'none'}"))
    lines += [entry("assumed", note) for note in answer.assumptions]
    lines += [line for one in beside for line in _beside(one)]
    return "\n".join(lines)


def plan_json(answer: Answer, beside: list[BesidePublished]) -> dict[str, Any]:
    """The same as one object: `plan` is the plan file's content."""
    return {
        "plan": {"polypod": 1, **msgspec.to_builtins(answer.plan)},
        "pools": [_choice_json(answer, choice) for choice in answer.choices],
        "looked_at": answer.looked_at,
        "pruned": dict(answer.pruned),
        "assumptions": list(answer.assumptions),
        "in_all": running_json(answer.in_all),
        "published": [_beside_json(one) for one in beside],
    }


def _limits(answer: Answer) -> str:
    question = answer.question
    limits = []
    if question.ttft_s is not None:
        limits.append(f"TTFT <= {units.show(question.ttft_s, 's')}")
    if question.tpot_s is not None:
        limits.append(f"TPOT <= {units.show(question.tpot_s, 's')}")
    return f"\n{' and '.join(limits)} for {question.percentile:g} % of requests" if limits else ""


def _choice(answer: Answer, choice: Choice) -> list[str]:
    question, confirmed = answer.question, choice.confirmed
    candidate = confirmed.candidate
    pool = next(pool for pool in answer.plan.services[0].pools if pool.on == choice.island.name)
    predicted = pool.predicted
    assert predicted is not None
    per_package = choice.island.rank.ranks_per_accelerator
    memory = candidate.deployment.memory()
    where = choice.island.pod.id if choice.island.pod else choice.island.rank.chip
    used = choice.replicas * candidate.deployment.accelerators
    cache = cache_bytes(question, candidate)
    lines = [
        entry(
            "pool",
            f"{choice.replicas} x [{describe(pool.layout)}] on {used:g} of {choice.island.accelerators} {choice.island.rank.chip} ({where}), {pool.state}",
        ),
        entry(
            "precision",
            f"weights {pool.precision.weights}, cache {pool.precision.kv}, arithmetic {pool.precision.compute or pool.precision.weights}",
        ),
        entry(
            "batch",
            f"{candidate.sequences} sequences a replica, up to {candidate.max_step_tokens} tokens a step and rank",
        ),
        entry(
            "memory",
            f"{predicted.memory_per_accelerator} an accelerator: weights {units.show(memory.weight_bytes * per_package, 'bytes')}, "
            f"cache {units.show(cache * per_package, 'bytes')} (room for {units.show(memory.kv_bytes * per_package, 'bytes')}), "
            f"activations {units.show(memory.activation_bytes * per_package, 'bytes')}",
        ),
        entry("TTFT", _spread(predicted.ttft)),
        entry("TPOT", _spread(predicted.tpot)),
        entry("throughput", _throughput(answer, choice)),
        entry("prefill waits", "for " + predicted.bound["prefill"]),
        entry("decode waits", "for " + predicted.bound["decode"]),
    ]
    lines += unsaid_lines(choice.unsaid)
    if choice.runner_up is not None:
        layout = describe(choice.runner_up.candidate.deployment.layout)
        what = "requests/s in all" if choice.whole_island else "requests/s per accelerator"
        lines.append(
            entry("runner-up", f"{layout}, {100 * choice.lost_fraction:.1f} % fewer {what}")
        )
    return lines


MOST_UNSAID = 3


def unsaid_lines(moves: Sequence[Move], most: int = MOST_UNSAID) -> list[str]:
    """The settings that nobody said and that move the answer most, one to a line."""
    return [
        entry(
            "unsaid" if number == 0 else "", f"{one.setting} = {one.value} would make {moved(one)}"
        )
        for number, one in enumerate(moves[:most])
    ]


def moved(move: Move) -> str:
    """By how much, leaving out what stays.

    >>> moved(Move(setting="prefix_hits", value="0.5", ttft_ratio=0.55, tpot_ratio=1.001))
    'TTFT -45%'
    """
    ratios = (("TTFT", move.ttft_ratio), ("TPOT", move.tpot_ratio))
    return " and ".join(
        f"{name} {ratio - 1:+.0%}" for name, ratio in ratios if abs(ratio - 1) >= 0.005
    )


def unsaid_json(moves: Sequence[Move]) -> list[dict[str, Any]]:
    """All of them."""
    return [
        {"setting": one.setting, "value": one.value, "ttft_ratio": one.ttft_ratio, "tpot_ratio": one.tpot_ratio}
        for one in moves
    ]  # fmt: skip


def _throughput(answer: Answer, choice: Choice) -> str:
    output = answer.question.output_tokens
    each = choice.confirmed.tokens_per_s_per_accelerator(output)
    rate = choice.replicas * choice.confirmed.outcome.rate_per_s
    return (
        f"{units.significant(each, 4)} output tokens/s per accelerator, {units.significant(rate * output, 4)} in all; "
        f"{units.significant(rate, 4)} requests/s inside the SLO"
    )


def _totals(answer: Answer) -> list[str]:
    predicted = answer.plan.predicted
    if predicted is None or predicted.tokens_per_s is None:
        return []
    text = f"{units.significant(predicted.tokens_per_s, 4)} output tokens/s, goodput {predicted.goodput}"
    return [entry("in all", text), *running_lines(answer.in_all)]


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "?"
    tail = f", {spread.p99} at the 99th percentile" if spread.p99 else ""
    return (
        f"{spread.p50} median{tail}; 80 % band of the median {spread.band[0]} to {spread.band[1]}"
    )


def _beside(one: BesidePublished) -> list[str]:
    published = one.published
    off = one.predicted / published.value - 1
    return [
        "",
        entry(
            "published",
            f"{published.phase}: {units.significant(published.value, 4)} tokens/s per accelerator ({published.conditions}; {published.source})",
        ),
        entry(
            "predicted",
            f"{units.significant(one.predicted, 4)} under the same conditions ({100 * off:+.0f} %), band {units.significant(one.slow, 3)} to {units.significant(one.fast, 3)}",
        ),
    ]


def _choice_json(answer: Answer, choice: Choice) -> dict[str, Any]:
    question, candidate = answer.question, choice.confirmed.candidate
    outcome, memory = choice.confirmed.outcome, candidate.deployment.memory()
    percentiles = {
        f"{what}_s": dict(
            zip(("p50", "p90", "p99"), outcome.percentiles_s(what, (50, 90, 99)), strict=True)
        )
        for what in ("ttft", "tpot")
    }
    return {
        "on": choice.island.name,
        "chip": choice.island.rank.chip,
        "evidence": choice.island.rank.calibration.evidence,
        "layout": msgspec.structs.asdict(candidate.deployment.layout),
        "replicas": choice.replicas,
        "accelerators": choice.replicas * candidate.deployment.accelerators,
        "sequences_per_replica": candidate.sequences,
        "max_step_tokens": candidate.max_step_tokens,
        "goodput_per_s": choice.replicas * outcome.rate_per_s,
        "output_tokens_per_s_per_accelerator": choice.confirmed.tokens_per_s_per_accelerator(
            question.output_tokens
        ),
        **percentiles,
        "band": {what: _band_json(choice, what) for what in METRICS},
        "unsaid": unsaid_json(choice.unsaid),
        "memory_per_rank_bytes": {
            "weights": memory.weight_bytes,
            "cache": cache_bytes(question, candidate),
            "cache_room": memory.kv_bytes,
            "activations": memory.activation_bytes,
        },
    }


def _band_json(choice: Choice, what: Metric) -> dict[str, float]:
    """Ratios of measured to predicted that hold four of five measurements."""
    band = choice.band(what)
    return {"low": band.low, "high": band.high}


def _beside_json(one: BesidePublished) -> dict[str, Any]:
    return {
        "published": msgspec.to_builtins(one.published),
        "predicted": one.predicted,
        "fast": one.fast,
        "slow": one.slow,
        "difference_fraction": one.predicted / one.published.value - 1,
    }
