"""Pipelines of unequal stages as a person reads them, and as a program does. Computes nothing new."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from polypod import units
from polypod.plan.place import Island
from polypod.plan.search import Question
from polypod.plan.stages import Pipeline, Stage, Staged, total_tokens_per_s
from polypod.report.tables import entry, table


def stages_text(question: Question, places: Sequence[Island], found: Staged) -> str:
    """The whole answer, at most 80 columns wide."""
    limits = [f"{name} <= {units.show(limit, 's')}" for name, limit in (("TTFT", question.ttft_s), ("TPOT", question.tpot_s)) if limit is not None]  # fmt: skip
    lines = [
        question.model.name,
        entry("asked", f"input {question.input_tokens}, output {question.output_tokens} tokens{'; ' if limits else ''}{' and '.join(limits)}"),
        entry("network", f"{units.show(found.bytes_per_s, 'bytes_per_s')} of every worker"),
        "",
    ]  # fmt: skip
    for pipeline, count in found.pipelines:
        lines += [*_pipeline(pipeline, count), ""]
    used = found.used
    chips = ", ".join(f"{used[place.name]} of {place.ranks} {place.rank.chip}" for place in places)
    lines += [
        entry("in all", f"{_tokens(found.tokens_per_s)} on {chips}"),
        entry("one kind each", _separate(found)),
        entry("looked at", f"{found.looked_at:,} composition{'' if found.looked_at == 1 else 's'} of up to {found.most_stages} stages; {_proven(found)}"),
        *_weights(found),
        *_assumed(places),
    ]  # fmt: skip
    return "\n".join(lines)


def _weights(found: Staged) -> list[str]:
    """What chips store weights in, where they differ."""
    stored = {stage.worker.chip: stage.worker.weights for pipeline, _ in found.pipelines for stage in pipeline.stages}  # fmt: skip
    if len(set(stored.values())) == 1:
        return []
    return [entry("weights", ", ".join(f"{dtype} on {chip}" for chip, dtype in sorted(stored.items())))]  # fmt: skip


def _tokens(tokens_per_s: float) -> str:
    return f"{units.significant(tokens_per_s, 4)} output tokens/s"


def _proven(found: Staged) -> str:
    return "proven best of them" if found.gap_fraction < 1e-4 else f"at most {found.gap_fraction:.1%} from the best of them"  # fmt: skip


def _separate(found: Staged) -> str:
    if found.separate is None:
        return "no kind of chip holds the model alone"
    separate = total_tokens_per_s(found.separate)
    change = separate / found.tokens_per_s - 1
    return f"{_tokens(separate)} from pipelines of one kind of chip each ({change:+.1%})"


def _pipeline(pipeline: Pipeline, count: int) -> list[str]:
    each = "" if count == 1 else " each"
    rows = []
    for (chip, tp, layers), like in groupby(pipeline.stages, key=_likeness):
        stages = list(like)
        times = sorted({units.show(stage.step_s, "s") for stage in stages})
        rows.append([chip, str(tp), str(len(stages)), str(layers), " to ".join(times[:: max(len(times) - 1, 1)]), _ends(stages)])  # fmt: skip
    return [
        entry("pipeline", f"{count} x {len(pipeline.stages)} stages: {_tokens(pipeline.tokens_per_s)}{each}, {pipeline.micro_batches} micro-batches of {pipeline.micro_batch} sequences in flight"),
        entry("", f"TTFT {units.show(pipeline.ttft_s, 's')} without queueing, TPOT {units.show(pipeline.round_s, 's')}; waits for {_bound(pipeline)}"),
        *(f"  {line}" for line in table(["chip", "ranks", "stages", "layers", "a micro-batch", ""], rows, right=[1, 2, 3]).splitlines()),
        *([entry("", f"layers {_partition(pipeline)}")] if len(pipeline.stages) > 1 else []),
    ]  # fmt: skip


def _likeness(stage: Stage) -> tuple[str, int, int]:
    return stage.worker.chip, stage.worker.tp, stage.part.layers


def _ends(stages: Sequence[Stage]) -> str:
    names = (("embedding", stages[0].part.first), ("head", stages[-1].part.last))
    return " and ".join(name for name, has in names if has)


def _partition(pipeline: Pipeline) -> str:
    """As vLLM takes it in VLLM_PP_LAYER_PARTITION."""
    return ",".join(str(stage.part.layers) for stage in pipeline.stages)


def _bound(pipeline: Pipeline) -> str:
    if pipeline.bound == "computing":
        return f"{pipeline.slowest.worker.chip}"
    if pipeline.bound == "sending":
        return f"the network ({units.show(pipeline.send_s, 's')} a hop)"
    return "a micro-batch's way through all stages"


def _assumed(places: Sequence[Island]) -> list[str]:
    fits = {place.rank.chip: place.rank.calibration for place in places}
    return [
        *(entry("assumed", f"{chip}: efficiencies are {fit.evidence} ({fit.id})") for chip, fit in fits.items()),
        entry("assumed", "the network's latency is left out; sending hides behind computing"),
    ]  # fmt: skip


def stages_json(question: Question, places: Sequence[Island], found: Staged) -> dict[str, Any]:
    """The same for programs, in SI units."""
    used = found.used
    return {
        "model": question.model.name,
        "input_tokens": question.input_tokens,
        "output_tokens": question.output_tokens,
        "fabric_bytes_per_s": found.bytes_per_s,
        "tokens_per_s": found.tokens_per_s,
        "separate_tokens_per_s": None if found.separate is None else total_tokens_per_s(found.separate),
        "gap_fraction": found.gap_fraction,
        "looked_at": found.looked_at,
        "most_stages": found.most_stages,
        "islands": [{"name": place.name, "chip": place.rank.chip, "ranks": place.ranks, "used_ranks": used[place.name]} for place in places],
        "pipelines": [_pipeline_json(pipeline, count) for pipeline, count in found.pipelines],
    }  # fmt: skip


def _pipeline_json(pipeline: Pipeline, count: int) -> dict[str, Any]:
    return {
        "count": count,
        "tokens_per_s": pipeline.tokens_per_s,
        "micro_batches": pipeline.micro_batches,
        "sequences_per_micro_batch": pipeline.micro_batch,
        "ttft_s": pipeline.ttft_s,
        "tpot_s": pipeline.round_s,
        "send_s": pipeline.send_s,
        "bound": pipeline.bound,
        "layer_partition": _partition(pipeline),
        "stages": [
            {
                "on": stage.worker.island.name,
                "chip": stage.worker.chip,
                "ranks": stage.worker.tp,
                "layers": stage.part.layers,
                "weights": stage.worker.weights,
                "embedding": stage.part.first,
                "head": stage.part.last,
                "step_s": stage.step_s,
            }
            for stage in pipeline.stages
        ],
    }
