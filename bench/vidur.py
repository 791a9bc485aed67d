"""Beside Vidur (MLSys 2024): the run whose curves its README shows, and 4,096 requests on 8 replicas, by our engines and by its own.

    python bench/vidur.py VIDUR [OUTPUT]

VIDUR is a checkout of https://github.com/microsoft/vidur (MIT), of which the lengths of a trace are read: data/processed_traces/splitwise_conv.csv, made of
Azure's conversation trace of 2023. Of the README (commit 7d4751311e) comes the command, 512 Poisson requests at 6.45 a second for Llama-3-8B on one A100 80GB under Sarathi's chunks of 512 tokens,
and the curves of TTFT, TPOT and E2E (assets/*.png), read off the pictures to about 2 % of an axis. That run is close to what one A100 can do, so seeds of arrivals and lengths differ much: ours
are drawn 40 times, and the share of them below each published figure is given. OUTPUT is a folder that Vidur wrote for the second run (simulator_output/TIME, its
request_metrics.csv and config.json), to set its distributions and ours side by side; arrivals and lengths are then those it drew.

Two things stand between them. Vidur's `lor` scheduler (least outstanding requests; vidur/scheduler/global_scheduler/lor_global_scheduler.py) counts those that wait, not those that run
(`num_pending_requests` is the length of the queue), and takes the first of equals: its first replica decodes some 70 sequences at once while its last is idle three quarters
of the time. Our router looks at what runs. With `--global_scheduler_config_type round_robin` each has every eighth request, and so have ours when the folder's
config.json says so: then the distributions agree, TPOT within 2 % at the median. And Vidur's profile of an A100 has a kernel that saves the cache at 0.4 ms a layer for 512 tokens, of 8 MB: 13 ms of a full step, which
engines have fused and we do not count. Its H100 set-up is not run here: the attention table of it (data/profiling/compute/h100/.../attention.csv) was not to be had.
"""

import csv
import json
import sys
import time
from pathlib import Path

import numpy as np

from polypod.catalog.load import load_accelerator
from polypod.cli.asking import model_of
from polypod.cost.calibration import for_chip
from polypod.cost.chip import rank_of
from polypod.cost.deployment import Deployment
from polypod.policy.events import ReplicaUp
from polypod.policy.settings import PolicySettings, ServiceSettings
from polypod.simulate.arriving import Blocks
from polypod.simulate.compiled import Session
from polypod.simulate.scenario import Scenario
from polypod.workload.layout import Layout
from polypod.workload.precision import Precision
from polypod.workload.traffic_rows import Trace

CHIP = "nvidia-a100-80g-sxm"
CHUNK_TOKENS, SEQUENCES = 512, 512
SHARES = (0.1, 0.5, 0.9, 0.99)
README = {
    "TTFT s": (0.13, 0.77, 1.70, 2.55),
    "TPOT ms": (30.2, 46.3, 52.2, 53.0),
    "E2E s": (3.1, 7.3, 21.0, 29.0),
}
"""Quantiles of `SHARES` on the README's curves."""
SEEDS = 40


def replicas(model: str, count: int) -> tuple[ReplicaUp, ...]:
    """In 16 bits, as many tokens cached as the memory leaves."""
    rank = rank_of(load_accelerator(CHIP), (), for_chip(CHIP, "vllm"))
    deployment = Deployment.make(
        model_of(model), Layout(), Precision(weights="fp16", kv="fp16"), rank
    )
    held = int(deployment.memory(CHUNK_TOKENS).kv_tokens)
    step = deployment.step_time()
    return tuple(
        ReplicaUp(
            at_s=0.0, replica=f"r{n}", epoch=1, model="m", pool="p", role="both", step_time=step, context_tokens=16_384,
            kv_capacity_tokens=held, max_sequences=SEQUENCES, max_step_tokens=CHUNK_TOKENS,
        )
        for n in range(count)
    )  # fmt: skip


def play(ups: tuple[ReplicaUp, ...], trace: Trace) -> dict[str, np.ndarray]:
    service = ServiceSettings(model="m", context_tokens=16_384)
    settings = PolicySettings(services=(service,), queue_requests=len(trace), queue_wait_s=1e9)
    session = Session(
        Scenario(replicas=ups, settings=settings, trace=()), Blocks(iter([trace])), share=0.0
    )
    rows = np.concatenate([turn.outcomes for turn in session.turns()])
    assert len(rows) == len(trace)
    several = rows["output_tokens"] > 1
    decoded_s = (rows["end_s"] - rows["first_s"])[several]
    return {
        "TTFT s": rows["first_s"] - rows["arrival_s"],
        "TPOT ms": 1e3 * decoded_s / (rows["output_tokens"][several] - 1),
        "E2E s": rows["end_s"] - rows["arrival_s"],
    }


def lengths(path: Path) -> np.ndarray:
    with path.open(encoding="utf-8") as file:
        return np.array(
            [
                (int(row["num_prefill_tokens"]), int(row["num_decode_tokens"]))
                for row in csv.DictReader(file)
            ]
        )


def trace_of(drawn: np.ndarray, arrival_s: np.ndarray) -> Trace:
    return Trace(
        name="splitwise_conv", arrival_s=arrival_s, input_tokens=np.maximum(drawn[:, 0], 1), output_tokens=np.maximum(drawn[:, 1], 1),
    )  # fmt: skip


def poisson(every: np.ndarray, requests: int, per_s: float, seed: int) -> Trace:
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(every)[:requests]
    return trace_of(drawn, np.cumsum(rng.exponential(1 / per_s, requests)))


def readme(every: np.ndarray) -> None:
    ups = replicas("meta-llama/Llama-3.1-8B", 1)
    runs = [play(ups, poisson(every, 512, 6.45, seed)) for seed in range(SEEDS)]
    print(
        f"Llama-3-8B on one A100, 512 requests at 6.45/s, {SEEDS} draws of ours\n\n         {'':10}{'p10':>9}{'p50':>9}{'p90':>9}{'p99':>9}"
    )
    for name, published in README.items():
        each = np.array([np.quantile(run[name], SHARES) for run in runs])
        middle, low, high = np.median(each, axis=0), each.min(axis=0), each.max(axis=0)
        for what, values in (("Vidur", published), ("ours, median draw", middle), ("least draw", low), ("most draw", high)):  # fmt: skip
            print(f"{name:8} {what:18}" + "".join(f"{value:9.3g}" for value in values))
        ratios = middle / np.array(published)
        print(f"{name:8} {'ours over Vidur':18}" + "".join(f"{value:9.2f}" for value in ratios))


def play_in_turn(ups: tuple[ReplicaUp, ...], trace: Trace) -> dict[str, np.ndarray]:
    """Each replica alone with every eighth request: a round robin."""
    found = []
    for turn, up in enumerate(ups):
        mine = slice(turn, None, len(ups))
        drawn = np.stack([trace.input_tokens[mine], trace.output_tokens[mine]], axis=1)
        found.append(play((up,), trace_of(drawn, trace.arrival_s[mine])))
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def eight(every: np.ndarray, output: Path | None) -> None:
    ups = replicas("meta-llama/Llama-2-7b-hf", 8)
    trace = poisson(every, 4096, 8 * 4.0, 0) if output is None else theirs(output)[0]
    in_turn = output is not None and scheduler_of(output) == "round_robin"
    run = play_in_turn if in_turn else play
    run(ups, trace)  # compiles
    start = time.process_time()
    ours = run(ups, trace)
    spent_s = time.process_time() - start
    print(f"\n{len(trace):,} requests on 8 replicas of Llama-2-7B: {spent_s:.3f} CPU-s of ours")
    if output is None:
        return
    for name, values in theirs(output)[1].items():
        for what, found in (("Vidur", values), ("ours", ours[name])):
            print(f"{name:8} {what:18}" + "".join(f"{value:9.3g}" for value in np.quantile(found, SHARES)))  # fmt: skip


def scheduler_of(output: Path) -> str:
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    return str(config["cluster_config"]["global_scheduler_config"]["name"])


def theirs(output: Path) -> tuple[Trace, dict[str, np.ndarray]]:
    """What Vidur was asked, and its distributions."""
    with (output / "request_metrics.csv").open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["Request Id"]))

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name] or 0) for row in rows])

    drawn = np.stack([column("request_num_prefill_tokens"), column("request_num_decode_tokens")], axis=1).astype(np.int64)  # fmt: skip
    trace = trace_of(drawn, np.cumsum(column("request_inter_arrival_delay")))
    return trace, {
        "TTFT s": column("prefill_e2e_time"),
        "TPOT ms": 1e3 * column("decode_time_execution_plus_preemption_normalized"),
        "E2E s": column("request_e2e_time"),
    }


def main() -> None:
    if len(sys.argv) < 2:
        print(__doc__)
        return
    every = lengths(Path(sys.argv[1]) / "data" / "processed_traces" / "splitwise_conv.csv")
    readme(every)
    eight(every, Path(sys.argv[2]) if len(sys.argv) > 2 else None)


if __name__ == "__main__":
    main()
