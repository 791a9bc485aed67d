"""Pipelines of unequal stages as a plan file."""

from collections.abc import Mapping

from polypod import units
from polypod.cost.deployment import native_precision
from polypod.plan.search import Question
from polypod.plan.spec import (
    Plan,
    Pool,
    PoolStage,
    Predicted,
    Service,
    Slo,
    Source,
    Traffic,
)
from polypod.plan.stages import Pipeline, Staged
from polypod.workload.layout import Layout


def staged_plan(question: Question, fleet: Mapping[str, Source], found: Staged, slo: Slo) -> Plan:
    """One pool of each composition. Its `on`, layout and precision are those of its first stage."""
    pools = tuple(
        _pool(question, pipeline, count, f"pipeline-{number}", found.bytes_per_s)
        for number, (pipeline, count) in enumerate(found.pipelines, start=1)
    )
    service = Service(
        model=question.model.name,
        pools=pools,
        slo=slo,
        traffic=Traffic(
            input=question.input_tokens,
            output=question.output_tokens,
            rate=f"{found.tokens_per_s / question.output_tokens:.4g} /s",
        ),
    )
    return Plan(
        polypod=1,
        fleet=dict(fleet),
        services=(service,),
        predicted=Predicted(tokens_per_s=round(found.tokens_per_s, 1)),
    )


def _pool(
    question: Question, pipeline: Pipeline, count: int, name: str, bytes_per_s: float
) -> Pool:
    first = pipeline.stages[0].worker
    return Pool(
        role="both",
        on=first.island.name,
        name=name,
        layout=Layout(tp=first.tp, pp=len(pipeline.stages)),
        replicas=count,
        precision=native_precision(question.model, first.island.rank),
        state="modelled",
        max_sequences=pipeline.sequences,
        max_step_tokens=_step_tokens(question, pipeline),
        micro_batches=pipeline.micro_batches,
        link=units.show(bytes_per_s, "bytes_per_s", 4),
        stages=tuple(
            PoolStage(on=stage.worker.island.name, layers=stage.part.layers, ranks=stage.worker.tp)
            for stage in pipeline.stages
        ),
    )


def _step_tokens(question: Question, pipeline: Pipeline) -> int:
    """Of one micro-batch: its sequences, and the prompts that keep them coming."""
    prompts = pipeline.micro_batch * question.input_tokens / question.output_tokens
    return pipeline.micro_batch + max(round(prompts), 1)
