"""Unequal stages beside Helix (ASPLOS 2025): its profiles of a layer, and what its prototype served on 24 unlike GPUs.

    python bench/stages.py

LLaMA-30B on 4 A100 40GB, 8 L4 and 12 T4 joined at 10 Gb/s, prompts of 763 tokens and answers of 232 in the mean, offline. Measured in tokens/s of decode
(ae_readme.md of https://github.com/Thesys-lab/Helix-ASPLOS25, commit 148b733080): Helix 321.2, pipelines of one kind each 295.1, Swarm 142.9; its simulator says
339.6, 309.0 and 151.6. Helix's own placement is three pipelines of one kind each as well: what it gains over them it gains by scheduling.
The profiles are in tests/data/helix. Nothing here is fitted to any of them.

Then the same pipelines played request by request: clients who go round, as many as the pipelines hold, and as many as Helix's prototype had in flight by Little's law; tokens/s
of the middle half of the run.

Last, as Helix runs them (`simulator/event_simulator` and `simulator/scheduler` of the same commit): nobody keeps micro-batches apart. A stage takes whatever has come to it, prompts and
decoding sequences in one step that lasts as long as both, up to some prompts and sequences; requests are let in while 0.8 of the cache's blocks are expected to be full, of
so many blocks of 16 tokens as vLLM finds beside so many layers, and of requests of 990 tokens. All of this is from the artifact, with its profiles and its 1 ms between
machines; nothing is fitted. Its simulator also has what comes to a stage put together and copied to the GPU, at "4 * gbps" and "5 * gbps"; here once without and once with
that, in bits as the name has it and as its 10 gbps network is (its own code divides bytes by it).
"""

import heapq
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from msgspec.structs import replace as replace_struct

from polypod.cli.asking import model_of
from polypod.cost.deployment import Deployment, native_precision
from polypod.plan.place import Island, joined_by_network
from polypod.plan.predict import policy_settings, pool_replicas
from polypod.plan.search import Question
from polypod.plan.spec import Plan, Source, read_plan
from polypod.plan.stages import Pipeline, Staged, plan_stages, total_tokens_per_s
from polypod.plan.workers import Worker, by_layer, workers_of
from polypod.simulate.arriving import Looped
from polypod.simulate.compiled import Session
from polypod.simulate.scenario import Scenario
from polypod.workload.layout import Layout
from polypod.workload.traffic_loop import ClosedLoop
from polypod.workload.traffic_rows import Trace

DATA = Path(__file__).parents[1] / "tests" / "data" / "helix"
CHIPS = {"a100": ("nvidia-a100-40g-sxm", 4), "l4": ("nvidia-l4", 8), "t4": ("nvidia-t4", 12)}
FABRIC_BYTES_PER_S = 1.25e9
KINDS = {"a100": (198.9, 0.169), "l4": (64.8, 0.533), "t4": (57.5, 0.697)}
"""What Helix's prototype measured of each kind: tokens/s, and mean seconds between a sequence's tokens."""
MEASURED, MEASURED_SEPARATE = 321.2, 295.1
IN_FLIGHT = round(sum(tokens_per_s * tpot_s for tokens_per_s, tpot_s in KINDS.values()))
EXPECTED_TOKENS, FULL_FRACTION, BLOCK_TOKENS = 750 + 240, 0.8, 16
"""Of a request, of the cache when no more are let in, and of a block: `AVG_INPUT_LEN`, `AVG_OUTPUT_LEN`, `feed_hwm` and `VLLM_BLOCK_SIZE` of the artifact."""
LATENCY_S = 0.001
COPIES_S_PER_BYTE = 8 / 4e9 + 8 / 5e9
SIMULATED, SIMULATED_SEPARATE = 339.6, 309.0
QUESTION = Question(model=model_of("huggyllama/llama-30b"), input_tokens=763, output_tokens=232)


def main() -> None:
    print(
        "chip  phase   points  median |error|  median error  of our cost model against a profile of one layer"
    )
    for name, place in places().items():
        for phase in ("decode", "prompt"):
            errors = layer_errors(name, place, phase)
            print(
                f"{name:<5} {phase:<7} {errors.size:>6}  {np.median(np.abs(errors)):>14.0%}  {np.median(errors):>+12.0%}"
            )
    print(f"\n{'tokens/s of decode':<44}{'unlike chips':>14}{'one kind each':>15}{'gain':>7}")
    rows = [
        ("measured by Helix's prototype", MEASURED, MEASURED_SEPARATE),
        ("Helix's simulator", SIMULATED, SIMULATED_SEPARATE),
        (
            "ours, with our cost model",
            *both(planned(workers_of(QUESTION, list(places().values())))),
        ),
        ("ours, with their profiles of a layer", *both(planned(profiled()))),
    ]
    for what, mixed, separate in rows:
        print(f"{what:<44}{mixed:>14.1f}{separate:>15.1f}{mixed / separate - 1:>7.1%}")
    print(
        "\nkind  layers        measured            ours, cost model    ours, profiles      ours, profiles, as many in flight"
    )
    print(
        "      of a stage    tokens/s  in flight  tokens/s  in flight  tokens/s  in flight  tokens/s  micro-batches"
    )
    for name, (tokens_per_s, tpot_s) in KINDS.items():
        in_flight = tokens_per_s * tpot_s  # Little's law
        [own], [theirs] = (
            alone(one) for one in (workers_of(QUESTION, [places()[name]]), profiled(name))
        )
        capped = [at_most(one, round(in_flight)) for one in profiled(name)]
        [held] = alone(capped)
        layers = sorted({stage.part.layers for stage in own.stages})
        print(
            f"{name:<5} {'-'.join(map(str, layers)):<12}{tokens_per_s:>10.1f}{in_flight:>11.0f}{own.tokens_per_s:>10.1f}{own.sequences:>11}{theirs.tokens_per_s:>10.1f}{theirs.sequences:>11}{held.tokens_per_s:>10.1f}{f'{held.micro_batches} of {held.micro_batch}':>15}"
        )
    mixed, separate = rows[-1][1:]
    print(
        f"\nours with their profiles over measured: {mixed / MEASURED:.2f}, one kind each {separate / MEASURED_SEPARATE:.2f}"
    )
    print(f"\n{'played, tokens/s of decode':<44}{'in flight':>14}{'tokens/s':>15}")
    all_kinds = dict(CHIPS.values())
    for what, chips, clients in (
        ("unlike chips, full", all_kinds, None),
        ("unlike chips, as many as Helix", all_kinds, IN_FLIGHT),
        *((f"{name} alone, full", {chip: count}, None) for name, (chip, count) in CHIPS.items()),
        *((f"{name} alone, as many as Helix", {chip: count}, round(KINDS[name][0] * KINDS[name][1])) for name, (chip, count) in CHIPS.items()),
    ):  # fmt: skip
        in_flight, tokens_per_s = played(written(chips), clients)
        print(f"{what:<44}{in_flight:>14}{tokens_per_s:>15.1f}")
    print(f"\n{'as Helix runs them, its profiles':<34}{'in flight':>10}{'tokens/s':>10}{'measured':>10}{'ratio':>7}{'TPOT, s':>9}{'measured':>10}{'sequences a step':>18}")  # fmt: skip
    for copies_s in (0.0, COPIES_S_PER_BYTE):
        total = 0.0
        for name, stages in FIRST_COME.items():
            tokens_per_s, tpot_s, batch = FirstCome(stages, copies_s).run()
            measured_per_s, measured_s = KINDS[name]
            total += tokens_per_s
            what = f"{name}{' with copies' if copies_s else ''}"
            print(f"{what:<34}{stages.in_flight:>10}{tokens_per_s:>10.1f}{measured_per_s:>10.1f}{tokens_per_s / measured_per_s:>7.2f}{tpot_s:>9.3f}{measured_s:>10.3f}{batch:>18.1f}")  # fmt: skip
        print(f"{'all three':<34}{'':>10}{total:>10.1f}{MEASURED:>10.1f}{total / MEASURED:>7.2f}")


def written(chips: dict[str, int]) -> Plan:
    """The plan of pipelines that the command line writes for these chips."""
    on = "+".join(f"{chip}:{count}" for chip, count in chips.items())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.yaml"
        asked = ("plan", "llama-30b", "--on", on, "--stages", "--fabric", "10Gb/s", "--input", "763", "--output", "232", "-o", str(path))  # fmt: skip
        subprocess.run([sys.executable, "-m", "polypod", *asked], check=True, capture_output=True)
        return read_plan(path)


def played(plan: Plan, clients: int | None) -> tuple[int, float]:
    """Clients, each with one request in flight, and what they are given; None: as many as the pipelines hold."""
    ups = tuple(pool_replicas(plan))
    clients = clients or sum(up.max_sequences for up in ups)
    number = 24 * clients
    rng = np.random.default_rng(0)
    spread = [rng.uniform(0.8, 1.2, number) * mean for mean in (763, 232)]
    asked, answers = (np.rint(each).astype(np.int64) for each in spread)
    trace = Trace(
        name="helix", arrival_s=np.zeros(number), input_tokens=asked, output_tokens=answers
    )
    loop = ClosedLoop(users=clients, trace=trace, think_s=np.zeros(number))
    settings = replace_struct(policy_settings(plan), queue_requests=clients, queue_wait_s=1e9)
    session = Session(
        Scenario(replicas=ups, settings=settings, trace=(), loop=loop), Looped(loop), share=0.0
    )
    rows = np.concatenate([turn.outcomes for turn in session.turns()])
    at_s = np.quantile(rows["end_s"], (0.25, 0.75))
    inside = (rows["end_s"] > at_s[0]) & (rows["end_s"] <= at_s[1])
    return clients, float(rows["output_tokens"][inside].sum() / (at_s[1] - at_s[0]))


@dataclass(frozen=True)
class Stages:
    """A pipeline of one kind as Helix placed it, and what a step of its artifact's engine may hold: `llama1_30b_<kind>.py`."""

    name: str
    layers: tuple[int, ...]
    prompts: int
    sequences: int
    blocks: int  # beside the most layers that a stage has

    @property
    def in_flight(self) -> int:
        return int(FULL_FRACTION * self.blocks * BLOCK_TOKENS / EXPECTED_TOKENS)


FIRST_COME = {
    one.name: one
    for one in (
        Stages("a100", (15,) * 4, 3, 50, 3021),
        Stages("l4", (7,) * 4 + (8,) * 4, 3, 50, 2943),
        Stages("t4", (5,) * 12, 1, 60, 3353),
    )
}


@dataclass
class Asked:
    """A request: what is left of it, and when its last token came."""

    prompt_tokens: int
    answer_tokens: int
    is_prompt: bool = True
    last_s: float = 0.0


def token_bytes(one: Asked) -> int:
    """What goes from a stage to the next."""
    return 2 * QUESTION.model.hidden * (one.prompt_tokens if one.is_prompt else 1)


@dataclass
class FirstCome:
    """Stages that take what has come. Events are requests that come to a stage, and steps that end."""

    stages: Stages
    copies_s_per_byte: float = 0.0
    until_s: float = 900.0
    warm_s: float = 150.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.times = {phase: curve(self.stages.name, phase) for phase in ("prompt", "decode")}
        self.queues: list[list[Asked]] = [[] for _ in self.stages.layers]
        self.busy = [False] * len(self.stages.layers)
        self.agenda: list[tuple[float, int, int, list[Asked], bool]] = []
        self.gaps_s: list[float] = []
        self.batches: list[int] = []
        self.pushed = 0

    def run(self) -> tuple[float, float, float]:
        """Tokens/s of decode, mean seconds between a sequence's tokens, and sequences of a decoding step."""
        for client in range(self.stages.in_flight):
            self.come(0.1 * client, 0, self.drawn())
        while self.agenda[0][0] <= self.until_s:
            now_s, _, stage, several, ended = heapq.heappop(self.agenda)
            if ended:
                self.busy[stage] = False
                for one in several:
                    self.passed(now_s, stage, one)
            else:
                self.queues[stage] += several
            self.start(now_s, stage)
        return len(self.gaps_s) / (self.until_s - self.warm_s), float(np.mean(self.gaps_s)), float(np.mean(self.batches))  # fmt: skip

    def drawn(self) -> Asked:
        prompt, answer = (round(mean * self.rng.uniform(0.8, 1.2)) for mean in (763, 232))
        return Asked(prompt, answer)

    def push(self, at_s: float, stage: int, several: list[Asked], *, ended: bool) -> None:
        self.pushed += 1
        heapq.heappush(self.agenda, (at_s, self.pushed, stage, several, ended))

    def come(self, at_s: float, stage: int, one: Asked) -> None:
        way_s = LATENCY_S + (token_bytes(one) / FABRIC_BYTES_PER_S if stage else 0.0)
        self.push(at_s + way_s, stage, [one], ended=False)

    def start(self, now_s: float, stage: int) -> None:
        if self.busy[stage] or not self.queues[stage]:
            return
        queue = self.queues[stage]
        prompts = [one for one in queue if one.is_prompt][: self.stages.prompts]
        sequences = [one for one in queue if not one.is_prompt][: self.stages.sequences]
        self.queues[stage] = [one for one in queue if all(one is not other for other in (*prompts, *sequences))]  # fmt: skip
        tokens = {"prompt": sum(one.prompt_tokens for one in prompts), "decode": len(sequences)}
        layer_s = sum(float(np.interp(tokens[phase], *self.times[phase])) for phase in tokens)
        if sequences and now_s > self.warm_s:
            self.batches.append(len(sequences))
        self.busy[stage] = True
        several = [*prompts, *sequences]
        copied_s = self.copies_s_per_byte * sum(map(token_bytes, several)) if stage else 0.0
        self.push(now_s + copied_s + self.stages.layers[stage] * layer_s, stage, several, ended=True)  # fmt: skip

    def passed(self, now_s: float, stage: int, one: Asked) -> None:
        """On to the next stage; from the last one back to the first, by the coordinator, or the next request in its place."""
        if stage < len(self.stages.layers) - 1:
            self.come(now_s, stage + 1, one)
            return
        if not one.is_prompt and now_s > self.warm_s:
            self.gaps_s.append(now_s - one.last_s)
        one.is_prompt, one.last_s = False, now_s
        one.answer_tokens -= 1
        self.come(now_s + LATENCY_S, 0, one if one.answer_tokens > 0 else self.drawn())


def places() -> dict[str, Island]:
    return {
        name: joined_by_network(name, Source(accelerator=chip, count=count), None)
        for name, (chip, count) in CHIPS.items()
    }


def curve(name: str, phase: str) -> tuple[np.ndarray, np.ndarray]:
    """A profile: sequences or tokens, and seconds of one layer."""
    table = np.loadtxt(DATA / f"llama1_30b__{name}__{phase}_bs2time.csv", delimiter=",")
    return table[:, 0], table[:, 1] / 1000


def profiled(*names: str) -> list[Worker]:
    """Workers timed by Helix's profiles: of all kinds, or of these."""
    workers = workers_of(
        QUESTION, [place for name, place in places().items() if name in (names or CHIPS)]
    )
    return [
        by_layer(one, QUESTION, curve(one.island.name, "decode"), curve(one.island.name, "prompt"))
        for one in workers
    ]


def planned(workers: list[Worker]) -> Staged:
    return plan_stages(QUESTION, workers, FABRIC_BYTES_PER_S)


def at_most(worker: Worker, in_flight: int) -> Worker:
    return replace(worker, sequences=lambda part: min(worker.sequences(part), in_flight))


def alone(workers: list[Worker]) -> list[Pipeline]:
    return [pipeline for pipeline, _ in planned(workers).pipelines]


def both(found: Staged) -> tuple[float, float]:
    return found.tokens_per_s, total_tokens_per_s(found.separate or ())


def layer_errors(name: str, place: Island, phase: str) -> np.ndarray:
    """Of the time of one more layer, relative to the profile: contexts of prompt and half an answer, whole prompts at once."""
    at, measured_s = (column[1:] for column in curve(name, phase))
    length = float(QUESTION.input_tokens)
    asked = (
        {"sequences": at, "kv_tokens": at * (length + QUESTION.output_tokens / 2)}
        if phase == "decode"
        else {"prompt_tokens": at, "pairs": at * length / 2}
    )
    whole_s, half_s = (deployment(place, layers).step_s(**asked) for layers in (60, 30))
    return (whole_s - half_s) / 30 / measured_s - 1


def deployment(place: Island, layers: int) -> Deployment:
    model = replace(QUESTION.model, layers=(replace(QUESTION.model.layers[0], count=layers),))
    return Deployment.make(model, Layout(), native_precision(model, place.rank), place.rank)


if __name__ == "__main__":
    main()
