"""Kinds of workers that a pipeline's stages run on: how long a part of a model takes on one, and how many sequences fit beside it.

Every step computes its decode and the prompts that keep as many sequences coming: input / output tokens for each sequence. A part is
timed as a model of its layers alone, the embedding and the head where it has them; layers of unlike kinds count as evenly spread.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from polypod.cost.calibration import of
from polypod.cost.deployment import Deployment, Memory, native_precision
from polypod.cost.roofline import Number
from polypod.errors import InputError, LayoutError
from polypod.plan.place import Island
from polypod.plan.search import Question, own_scale
from polypod.workload.forward import Op
from polypod.workload.layout import Layout, check_layout
from polypod.workload.model import Model
from polypod.workload.precision import KEPT, element_bytes

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one stage holds."""

    layers: int
    first: bool = False  # the embedding
    last: bool = False  # the head


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One kind of worker: as many ranks of an island as one stage takes."""

    island: Island
    tp: int
    weights: str
    step_s: Callable[[Part, Floats], Floats]  # by the sequences of a micro-batch
    sequences: Callable[[Part], float]  # whose cache fits beside the part

    @property
    def chip(self) -> str:
        return self.island.rank.chip

    @property
    def available(self) -> int:
        return self.island.ranks // self.tp

    @property
    def memory_bytes(self) -> float:
        return self.tp * self.island.rank.memory_bytes


def fabric_bytes_per_s(places: Sequence[Island]) -> float:
    """Of one rank to any other: the narrowest of the islands' outermost tiers, where these lead out of the island.

    An island by itself needs none that leads further than its own ranks. Raises `InputError` where one is not on record.
    """
    ways = {place.rank.chip: _way_bytes_per_s(place, alone=len(places) == 1) for place in places}
    unknown = [chip for chip, way in ways.items() if way is None]
    if unknown:
        msg = f"no network bandwidth is on record between {', '.join(sorted(unknown))} and others; say it, as --fabric 10Gb/s"
        raise InputError(msg)
    return min(way for way in ways.values() if way is not None)


def _way_bytes_per_s(place: Island, *, alone: bool) -> float | None:
    if not place.rank.tiers:
        return None
    last = place.rank.tiers[-1]
    if last.bytes_per_s is None or not (last.ranks is None or (alone and place.ranks <= last.ranks)):  # fmt: skip
        return None
    return last.bytes_per_s.value


def workers_of(question: Question, places: Sequence[Island], most_tp: int = 1) -> list[Worker]:
    """Every kind of worker on these islands, timed by the cost model.

    Raises `InputError` for a chip that cannot compute the model in any format on record.
    """
    found = []
    for place in places:
        tp = 1
        while tp <= min(most_tp, place.ranks, place.rank.reach or most_tp):
            if _divides(question.model, tp):
                found.append(_worker(question, place, tp))
            tp *= 2
    return found


def _divides(model: Model, tp: int) -> bool:
    try:
        check_layout(model, Layout(tp=tp))
    except LayoutError:
        return False
    return True


def _worker(question: Question, place: Island, tp: int) -> Worker:
    precision = native_precision(question.model, place.rank)
    scale = own_scale(question, place, precision)
    cut = partial(cut_out, question.model, place, tp, scale=scale)

    return Worker(
        island=place,
        tp=tp,
        weights=precision.weights,
        step_s=lambda part, sizes: _part_step_s(question, cut(part), part, sizes),
        sequences=lambda part: _part_sequences(question, cut(part), part),
    )


def cut_out(model: Model, place: Island, tp: int, part: Part, *, scale: float = 1.0) -> Deployment:
    """A model of the part's layers alone, embedding and head in it, on so many ranks of the island; steps take `scale` times as long."""
    counts = Counter(_kinds(model)[: part.layers])
    layers = tuple(
        replace(group, count=counts[number])
        for number, group in enumerate(model.layers)
        if counts[number]
    )
    precision = native_precision(model, place.rank)
    own = replace(model, layers=layers)
    return Deployment.make(own, Layout(tp=tp), precision, place.rank, scale)


def _kinds(model: Model) -> list[int]:
    """The kind of each layer, with all kinds spread evenly."""
    at = [((n + 0.5) / group.count, number) for number, group in enumerate(model.layers) for n in range(group.count)]  # fmt: skip
    return [number for _, number in sorted(at)]


def _part_step_s(question: Question, deployment: Deployment, part: Part, sizes: Floats) -> Floats:
    prompt_tokens = sizes * question.input_tokens / question.output_tokens
    return part_s(
        deployment,
        part,
        sequences=sizes,
        kv_tokens=sizes * (question.input_tokens + question.output_tokens / 2),
        prompt_tokens=prompt_tokens,
        pairs=prompt_tokens * question.input_tokens / 2,
    )


def part_s(deployment: Deployment, part: Part, *, sequences: Floats, kv_tokens: Floats, prompt_tokens: Floats, pairs: Floats) -> Floats:  # fmt: skip
    """Seconds of one micro-batch of a part."""
    ops = part_ops(deployment, part, sequences=sequences, kv_tokens=kv_tokens, prompt_tokens=prompt_tokens, pairs=pairs)  # fmt: skip
    fits = deployment.served.calibration
    sampling_s = of(fits.engine.sequence_s, "likely") * sequences if part.last else 0.0
    kept = deployment.cost(ops).total_s
    return np.asarray(
        deployment.scale * of(fits.step_factor, "likely") * (kept + sampling_s), dtype=float
    )


def part_ops(deployment: Deployment, part: Part, *, sequences: Number, kv_tokens: Number, prompt_tokens: Number, pairs: Number) -> list[Op]:  # fmt: skip
    """The operators of one micro-batch of a part, which has the embedding and the head or not."""
    ops = deployment.ops(
        sequences=sequences, kv_tokens=kv_tokens, prompt_tokens=prompt_tokens, pairs=pairs
    )
    gone = {name for name, has in (("embedding", part.first), ("head", part.last)) if not has}
    return [op for op in ops if op.name not in gone]


def _part_sequences(question: Question, deployment: Deployment, part: Part) -> float:
    whole = question.input_tokens + question.output_tokens
    memory = part_memory(deployment, part, whole)
    if memory.tokens_of(whole) < whole:
        return 0.0
    half = question.input_tokens + question.output_tokens / 2
    return memory.tokens_of(half) // half


def part_memory(deployment: Deployment, part: Part, step_tokens: int) -> Memory:
    """What fills a rank of the part, which has the embedding and the head or not."""
    model = deployment.model
    memory = deployment.memory(step_tokens)
    tables = part.first + part.last - (1 if model.tied else 2)
    if model.tied and part.first and part.last:
        tables = 0
    table_bytes = model.embedding_parameters * element_bytes(KEPT) / deployment.layout.tp
    return replace(memory, weight_bytes=memory.weight_bytes + tables * table_bytes)


def by_layer(
    worker: Worker,
    question: Question,
    decode_s: tuple[Floats, Floats],
    prompt_s: tuple[Floats, Floats],
) -> Worker:
    """The same worker timed by measured curves of one layer, each from nothing on: by sequences in decode, by tokens of prompts.

    Between points a straight line, beyond them the last stretch's.
    """

    def step_s(part: Part, sizes: Floats) -> Floats:
        prompt_tokens = sizes * question.input_tokens / question.output_tokens
        return part.layers * (_along(decode_s, sizes) + _along(prompt_s, prompt_tokens))

    return replace(worker, step_s=step_s)


def _along(curve: tuple[Floats, Floats], at: Floats) -> Floats:
    x, y = curve
    beyond = np.maximum(at - x[-1], 0) * (y[-1] - y[-2]) / (x[-1] - x[-2])
    return np.asarray(np.interp(at, x, y) + beyond, dtype=float)
