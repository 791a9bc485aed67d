"""One model over unlike chips joined by a network: pipelines of unequal stages, and how many of each.

A *worker* is one rank, or a few cut by tp within their fabric. A *composition* says how many workers of each kind one pipeline has:
one A100 with 30 layers and two L4 with 15 each. Of a pipeline of S stages with m micro-batches of b sequences in flight,

    stage_s  = step(its layers; b sequences, and the prompts that keep b sequences coming: b * input / output tokens)
    send_s   = tokens of the step * 2 tensors * hidden * 2 bytes / bandwidth        of one worker, behind computation
    round_s  = max(m * max(stage_s, send_s), sum of stage_s + (S - 1) * send_s)     m <= S; every sequence gets one token
    tokens/s = m * b / round_s,  TPOT = round_s,  TTFT = round_s / 2 + max(1, output / (m * b)) * round_s

Layers are spread so that the slowest stage is the fastest it can be, where every stage's memory holds its layers and its part of the
cache of m * b sequences. The best sum of compositions within the ranks there are is a mixed-integer program.

The roomiest worker takes the head, the next the embedding. Left out: the network's latency, the spread of lengths, networks that are
not alike between all workers; and spreads that trade a slower slowest stage for a shorter way through, which only micro-batches of
single sequences on a crawling network were found to gain by (0.3 %).
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from polypod.errors import InfeasibleError
from polypod.plan.milp import Milp
from polypod.plan.search import Question
from polypod.plan.workers import Floats, Part, Worker
from polypod.units import show
from polypod.workload.model import Model, layer_parameters
from polypod.workload.ops import ACTIVATION_BYTES
from polypod.workload.precision import element_bytes

Bound = Literal["computing", "sending", "the way through"]

SIZES: Final[Floats] = np.unique(np.round(np.geomspace(1, 1024, num=56)))
"""Sequences of a micro-batch worth asking."""

SENT_TENSORS: Final = 2
"""Of the hidden size for each token: engines hand on the hidden state and the residual stream apart."""

MOST_COMPOSITIONS: Final = 5000
"""More are not looked at: pipelines stay as short as it takes."""

_IN_FLIGHT: Final = 8
"""How many numbers of micro-batches are tried at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a pipeline. `step_s` is of one micro-batch."""

    worker: Worker
    part: Part
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """One composition with its layers spread, at its best batch."""

    stages: tuple[Stage, ...]
    micro_batches: int
    micro_batch: int  # sequences in each
    send_s: float
    round_s: float
    ttft_s: float

    @property
    def sequences(self) -> int:
        return self.micro_batches * self.micro_batch

    @property
    def tokens_per_s(self) -> float:
        return self.sequences / self.round_s

    @property
    def slowest(self) -> Stage:
        return max(self.stages, key=lambda one: one.step_s)

    @property
    def bound(self) -> Bound:
        """What its round waits for: the slowest stage, the network, or the way of one micro-batch through all stages."""
        slowest_s = max(self.slowest.step_s, self.send_s)
        if self.round_s > self.micro_batches * slowest_s * (1 + 1e-9):
            return "the way through"
        return "computing" if self.slowest.step_s >= self.send_s else "sending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What came of it. `separate` is the best of pipelines of one island each; None where there is none."""

    pipelines: tuple[tuple[Pipeline, int], ...]
    separate: tuple[tuple[Pipeline, int], ...] | None
    bytes_per_s: float
    gap_fraction: float
    looked_at: int
    most_stages: int

    @property
    def tokens_per_s(self) -> float:
        return total_tokens_per_s(self.pipelines)

    @property
    def used(self) -> Counter[str]:
        """Ranks by island."""
        ranks: Counter[str] = Counter()
        for pipeline, count in self.pipelines:
            for stage in pipeline.stages:
                ranks[stage.worker.island.name] += count * stage.worker.tp
        return ranks


def total_tokens_per_s(pipelines: Sequence[tuple[Pipeline, int]]) -> float:
    """Of so many of each."""
    return sum(count * pipeline.tokens_per_s for pipeline, count in pipelines)


def plan_stages(
    question: Question, workers: Sequence[Worker], bytes_per_s: float, time_limit_s: float = 30.0
) -> Staged:
    """The pipelines of the highest throughput within the limits.

    Raises `InfeasibleError` where no pipeline holds the model, with what is missing, or none keeps the limits.
    """
    tables = _Tables(question=question, workers=workers, bytes_per_s=bytes_per_s)
    _check_room(tables)
    most_stages = _most_stages(tables)
    looked_at, found = 0, []
    for counts in _compositions(tables, most_stages):
        looked_at += 1
        pipeline = _spread(tables, counts)
        if pipeline is not None:
            found.append((counts, pipeline))
    if not found:
        limits = [f"{name} <= {show(limit, 's')}" for name, limit in (("TTFT", question.ttft_s), ("TPOT", question.tpot_s)) if limit is not None]  # fmt: skip
        why = f"keeps {' and '.join(limits)}" if limits else "holds it"
        msg = f"none of {looked_at} pipelines of up to {most_stages} stages of {question.model.name} {why}; loosen the limits or add chips"
        raise InfeasibleError(msg)
    chosen, gap = _counted(workers, found, time_limit_s)
    alone = [one for one in found if len({workers[j].island.name for j in one[0]}) == 1]
    return Staged(
        pipelines=chosen,
        separate=_counted(workers, alone, time_limit_s)[0] if alone else None,
        bytes_per_s=bytes_per_s,
        gap_fraction=gap,
        looked_at=looked_at,
        most_stages=most_stages,
    )


class _Tables:
    """Times and room of every part on every kind of worker, made when they are first asked for."""

    def __init__(self, question: Question, workers: Sequence[Worker], bytes_per_s: float) -> None:
        self.question = question
        self.workers = workers
        self.layers = question.model.num_layers
        tokens = SIZES * (1 + question.input_tokens / question.output_tokens)
        sent_bytes = SENT_TENSORS * ACTIVATION_BYTES * question.model.hidden * tokens
        self.send_s: Floats = sent_bytes / bytes_per_s
        self._known: dict[tuple[int, bool, bool], tuple[Floats, Floats]] = {}

    def of(self, kind: int, *, first: bool, last: bool) -> tuple[Floats, Floats]:
        """Seconds by layers (1 and more) and size of micro-batch, and sequences by layers."""
        key = (kind, first, last)
        if key not in self._known:
            worker = self.workers[kind]
            parts = [Part(layers=k, first=first, last=last) for k in range(1, self.layers + 1)]
            room = np.array([worker.sequences(part) for part in parts])
            seconds = np.full((self.layers, SIZES.size), np.inf)
            for row, part in enumerate(parts):
                if room[row] >= 1:
                    seconds[row] = worker.step_s(part, SIZES)
            self._known[key] = (np.maximum.accumulate(seconds, axis=0), room)
        return self._known[key]

    @cached_property
    def most_layers(self) -> list[int]:
        """That a worker of each kind holds beside one request, without embedding and head."""
        return [int((self.of(j, first=False, last=False)[1] >= 1).sum()) for j in range(len(self.workers))]  # fmt: skip


def _check_room(tables: _Tables) -> None:
    islands: dict[str, int] = {}
    for worker, most in zip(tables.workers, tables.most_layers, strict=True):
        name = worker.island.name
        islands[name] = max(islands.get(name, 0), worker.available * most)
    held, layers = sum(islands.values()), tables.layers
    if held >= layers:
        return
    worker = tables.workers[0]
    model = tables.question.model
    each_bytes = _layer_bytes(model, worker.weights)
    chips = " + ".join(dict.fromkeys(f"{worker.island.ranks} {worker.chip}" for worker in tables.workers))  # fmt: skip
    msg = (
        f"{model.name} has {layers} layers and {chips} hold {held} of them beside one request: "
        f"{show((layers - held) * each_bytes, 'bytes')} of weights are too many; add chips"
    )
    raise InfeasibleError(msg)


def _layer_bytes(model: Model, weights: str) -> float:
    total = sum(group.count * layer_parameters(group, model.hidden) for group in model.layers)
    return total * element_bytes(weights) / model.num_layers


def _most_stages(tables: _Tables) -> int:
    """The longest pipelines of which not too many compositions exist, but at least the shortest that is needed."""
    longest = min(sum(worker.available for worker in tables.workers), tables.layers)
    ways = np.zeros(longest + 1)
    ways[0] = 1
    for worker, most in zip(tables.workers, tables.most_layers, strict=True):
        here = np.zeros(longest + 1)
        for count in range(min(worker.available, longest) + 1 if most else 1):
            here[count:] += ways[: longest + 1 - count]
        ways = here
    within = np.flatnonzero(np.cumsum(ways[1:]) <= MOST_COMPOSITIONS) + 1
    fewest = math.ceil(tables.layers / max(tables.most_layers))
    return min(max(int(within.max(initial=1)), fewest), longest)


def _compositions(tables: _Tables, most_stages: int) -> Iterator[Counter[int]]:
    """Multisets of kinds that there are ranks for and that may hold all layers."""
    kinds = [j for j, most in enumerate(tables.most_layers) if most]
    for stages in range(1, most_stages + 1):
        for chosen in combinations_with_replacement(kinds, stages):
            counts = Counter(chosen)
            if sum(tables.most_layers[j] * count for j, count in counts.items()) < tables.layers:
                continue
            if all(used <= ranks for used, ranks in _ranks(tables.workers, counts).values()):
                yield counts


def _ranks(workers: Sequence[Worker], counts: Mapping[int, int]) -> dict[str, tuple[int, int]]:
    """Ranks used and there, by island."""
    found: dict[str, tuple[int, int]] = {}
    for j, count in counts.items():
        island = workers[j].island
        found[island.name] = (found.get(island.name, (0, 0))[0] + count * workers[j].tp, island.ranks)  # fmt: skip
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Like stages of one pipeline: a kind of worker with the same ends."""

    kind: int
    first: bool
    last: bool
    count: int


def _places(workers: Sequence[Worker], counts: Mapping[int, int]) -> list[_Place]:
    """In the order of the pipeline: the embedding's, those between, the head's."""
    order = sorted(counts, key=lambda j: (-workers[j].memory_bytes, -workers[j].island.rank.hbm_bytes_per_s, j))  # fmt: skip
    line = [j for j in order for _ in range(counts[j])]
    line = [*line[1:], line[0]]
    ends = [(j, n == 0, n == len(line) - 1) for n, j in enumerate(line)]
    return [
        _Place(kind=j, first=first, last=last, count=count)
        for (j, first, last), count in Counter(ends).items()
    ]


def _spread(tables: _Tables, counts: Mapping[int, int]) -> Pipeline | None:
    """The pipeline of a composition at its best micro-batches; None where none holds the model within the limits."""
    places = _places(tables.workers, counts)
    num_stages = sum(place.count for place in places)
    flights = np.unique(np.ceil(num_stages * np.arange(1, _IN_FLIGHT + 1) / _IN_FLIGHT))
    known = [tables.of(place.kind, first=place.first, last=place.last) for place in places]
    fastest = _fastest(places, known, flights, tables.layers)
    send_s = tables.send_s if num_stages > 1 else 0 * tables.send_s
    round_s = _round_s(places, known, flights, fastest, send_s)
    in_flight = flights[:, None] * SIZES[None, :]
    ttft_s = round_s / 2 + np.maximum(1, tables.question.output_tokens / in_flight) * round_s
    kept = _within(round_s, tables.question.tpot_s) & _within(ttft_s, tables.question.ttft_s)
    tokens_per_s = np.where(kept, in_flight / round_s, 0.0)
    m, b = np.unravel_index(int(np.argmax(tokens_per_s)), tokens_per_s.shape)
    if not tokens_per_s[m, b] > 0:
        return None
    return Pipeline(
        stages=tuple(_stages(tables.workers, places, known, fastest, (int(m), int(b)))),
        micro_batches=int(flights[m]),
        micro_batch=int(SIZES[b]),
        send_s=float(send_s[b]),
        round_s=float(round_s[m, b]),
        ttft_s=float(ttft_s[m, b]),
    )


def _within(values_s: Floats, limit_s: float | None) -> NDArray[np.bool_]:
    return np.isfinite(values_s) & (values_s <= (np.inf if limit_s is None else limit_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fastest:
    """Layers of each place's stages, over numbers and sizes of micro-batches; `surplus` stages of place `slow` have one less."""

    layers_PMB: NDArray[np.int64]
    slow_MB: NDArray[np.int64]
    surplus_MB: NDArray[np.int64]
    feasible_MB: NDArray[np.bool_]


def _fastest(
    places: Sequence[_Place],
    known: Sequence[tuple[Floats, Floats]],
    flights: Floats,
    layers: int,
) -> _Fastest:
    """The spread whose slowest stage is the fastest, where memory holds all sequences in flight.

    A stage's time grows with its layers. So every place's first, second, ... layer, sorted by the time of a stage with so
    many: where the layers so far suffice is the slowest stage of the fastest spread.
    """
    seconds_EB = np.concatenate([seconds for seconds, _ in known])
    room_E = np.concatenate([room for _, room in known])
    count_E = np.repeat([place.count for place in places], layers)
    allowed_EMB = room_E[:, None, None] >= flights[:, None] * SIZES
    order_EB = np.argsort(seconds_EB, axis=0, kind="stable")
    weights_EMB = np.take_along_axis(count_E[:, None, None] * allowed_EMB, order_EB[:, None, :], 0)
    so_far_EMB = np.cumsum(weights_EMB, axis=0)
    last_MB = np.argmax(so_far_EMB >= layers, axis=0)
    so_far_MB = np.take_along_axis(so_far_EMB, last_MB[None], 0)[0]
    position_EB = np.argsort(order_EB, axis=0)
    taken_EMB = allowed_EMB & (position_EB[:, None, :] <= last_MB)
    layers_PMB = taken_EMB.reshape(len(places), layers, *last_MB.shape).sum(axis=1)
    slow_MB = np.take_along_axis(order_EB, last_MB, 0) // layers
    surplus_MB = so_far_MB - layers
    fewest_PMB = layers_PMB - ((np.arange(len(places))[:, None, None] == slow_MB) & (surplus_MB > 0))  # fmt: skip
    return _Fastest(
        layers_PMB=layers_PMB,
        slow_MB=slow_MB,
        surplus_MB=surplus_MB,
        feasible_MB=(surplus_MB >= 0) & (fewest_PMB >= 1).all(axis=0),
    )


def _round_s(
    places: Sequence[_Place],
    known: Sequence[tuple[Floats, Floats]],
    flights: Floats,
    fastest: _Fastest,
    send_s: Floats,
) -> Floats:
    """Of one token for every sequence in flight; endless where the layers do not fit."""
    sizes = np.arange(SIZES.size)
    slowest_s = np.zeros(fastest.slow_MB.shape)
    through_s = (sum(place.count for place in places) - 1) * send_s + slowest_s
    for number, (place, (seconds, _)) in enumerate(zip(places, known, strict=True)):
        layers = np.maximum(fastest.layers_PMB[number], 1)
        stage_s = seconds[layers - 1, sizes]
        less_s = seconds[np.maximum(layers - 2, 0), sizes]
        lighter = np.where(fastest.slow_MB == number, fastest.surplus_MB, 0)
        slowest_s = np.maximum(slowest_s, stage_s)
        through_s = through_s + (place.count - lighter) * stage_s + lighter * less_s
    round_s = np.maximum(flights[:, None] * np.maximum(slowest_s, send_s), through_s)
    return np.where(fastest.feasible_MB, round_s, np.inf)


def _stages(
    workers: Sequence[Worker],
    places: Sequence[_Place],
    known: Sequence[tuple[Floats, Floats]],
    fastest: _Fastest,
    at: tuple[int, int],
) -> Iterator[Stage]:
    for number, place in enumerate(places):
        lighter = int(fastest.surplus_MB[at]) if number == fastest.slow_MB[at] else 0
        for n in range(place.count):
            layers = int(fastest.layers_PMB[number][at]) - (n >= place.count - lighter)
            yield Stage(
                worker=workers[place.kind],
                part=Part(layers=layers, first=place.first, last=place.last),
                step_s=float(known[number][0][layers - 1, at[1]]),
            )


def _counted(
    workers: Sequence[Worker], found: Sequence[tuple[Counter[int], Pipeline]], time_limit_s: float
) -> tuple[tuple[tuple[Pipeline, int], ...], float]:
    """How many of each composition serve the most within the ranks there are, and how far the best may be from it."""
    milp = Milp(maximise=True)
    rows: dict[str, dict[int, float]] = {}
    for counts, pipeline in found:
        column = milp.variable(cost=pipeline.tokens_per_s, whole=True)
        for name, (used, _) in _ranks(workers, counts).items():
            rows.setdefault(name, {})[column] = used
    have = {worker.island.name: worker.island.ranks for worker in workers}
    for name, terms in rows.items():
        milp.row(terms, high=have[name])
    solved = milp.solve(time_limit_s=time_limit_s)
    chosen = tuple(
        (pipeline, round(number))
        for number, (_, pipeline) in zip(solved.x, found, strict=True)
        if number > 0.5
    )
    return chosen, solved.gap
