"""Unequal stages beside Helix (ASPLOS 2025): its profiles of a layer, and what its prototype served on 24 unlike GPUs.

    python bench/stages.py

LLaMA-30B on 4 A100 40GB, 8 L4 and 12 T4 joined at 10 Gb/s, prompts of 763 tokens and answers of 232 in the mean, offline. Measured in tokens/s of decode
(ae_readme.md of https://github.com/Thesys-lab/Helix-ASPLOS25, commit 148b733080): Helix 321.2, pipelines of one kind each 295.1, Swarm 142.9; its simulator says
339.6, 309.0 and 151.6. Helix's own placement is three pipelines of one kind each as well: what it gains over them it gains by scheduling.
The profiles are in tests/data/helix. Nothing here is fitted to any of them.

Last, the same pipelines played request by request: clients who go round, as many as the pipelines hold, and as many as Helix's prototype had in flight by Little's law; tokens/s
of the middle half of the run.
"""

import subprocess
import sys
import tempfile
from dataclasses import replace
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
