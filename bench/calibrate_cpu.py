"""Turn raw engine samples into the calibrations that `polypod up` predicts from.

    python bench/engines_raw.py --json alone.json
    python bench/engines_raw.py --beside --json beside.json
    python bench/calibrate_cpu.py alone.json beside.json        rewrites src/polypod/cost/data/cpu-*.toml

For each engine, with b sequences of c cached tokens and prompts of n tokens,

    step_s(b, c)  =  curve(b) + kv_token_s b c              kv_token_s by least squares on relative error
    prompt_s(n)   =  first_token_s + curve(n) + pair_s n (n + 1) / 2

`curve` is kept as knots: the medians less the other terms, a larger step never taking less. `first_token_s` is what the fixed part of prompts exceeds the
fixed part of steps by: template, tokeniser, HTTP. A knot's memory share is the time to read the weights once at the measured
bandwidth, against the knot. The band is the 5th to 95th percentile of samples against the result, alone and beside the
other engine, and at least 25 % to each side: hosts differ in more than two rates, and so does one host from hour to hour.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from polypod.cost.cpu import cpu_class
from polypod.plan.host import engine_model
from polypod.serve.devices import find_cpu
from polypod.serve.engines import ENGINES
from polypod.serve.engines.embedded import MODEL_NAME
from polypod.serve.local import local_model
from polypod.workload.checkpoint import read_checkpoint
from polypod.workload.gguf import read_header

DATA = Path(__file__).parents[1] / "src" / "polypod" / "cost" / "data"
LEAST_BAND = 0.25
LEAST_S = 1e-3
ONE_BY_ONE = 20
"""An engine whose step of many sequences takes so many times its fixed part computes them one after another: their time goes by sequence, not by token."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="what engines_raw.py --json wrote; the first is the engine alone",
    )
    runs = [json.loads(path.read_bytes()) for path in parser.parse_args().files]
    for name in ENGINES:
        own = [run for run in runs if name in run["engines"]]
        if own:
            path = DATA / f"cpu-{name.replace('.', '-')}-{_class()}.toml"
            path.write_text(_toml(name, own), encoding="utf-8")
            print(f"wrote {path.name}")


def _class() -> str:
    cpu = find_cpu()
    return cpu_class(cpu.features, cpu.architecture)


def _fit(columns: list[list[float]], seconds: list[float]) -> list[float]:
    """Least squares on relative error, no coefficient below 0."""
    rows, target = np.array(columns) / np.array(seconds)[:, None], np.ones(len(seconds))
    kept = list(range(rows.shape[1]))
    while True:
        found = np.linalg.lstsq(rows[:, kept], target, rcond=None)[0]
        if (found >= 0).all():
            return [float(found[kept.index(i)]) if i in kept else 0.0 for i in range(rows.shape[1])]
        kept.pop(int(np.argmin(found)))


def _toml(name: str, runs: list[dict[str, Any]]) -> str:
    alone = runs[0]["engines"][name]
    steps, prompts = alone["steps"], [one for one in alone["prompts"] if one["tokens"] <= 512]
    step_s = [statistics.median(one["seconds"]) for one in steps]
    prompt_s = [statistics.median(one["seconds"]) for one in prompts]
    step_fixed, sequence_s, kv_token_s = _fit(
        [[1, o["sequences"], o["sequences"] * o["context"]] for o in steps], step_s
    )
    prompt_fixed, _, pair_s = _fit(
        [[1, o["tokens"], o["tokens"] * (o["tokens"] + 1) / 2] for o in prompts], prompt_s
    )
    outside_s = max(prompt_fixed - step_fixed, 1e-3)
    if step_s[-1] < ONE_BY_ONE * step_fixed:
        sequence_s = 0.0
    knots = {1: LEAST_S} if sequence_s else _knots(steps, step_s, kv_token_s)
    knots |= {
        o["tokens"]: s - outside_s - pair_s * o["tokens"] * (o["tokens"] + 1) / 2
        for o, s in zip(prompts, prompt_s, strict=True)
    }
    terms = {
        "kv_token_s": kv_token_s,
        "pair_s": pair_s,
        "first_token_s": outside_s,
        "sequence_s": sequence_s,
    }
    knots = dict(
        zip(sorted(knots), np.maximum.accumulate([knots[t] for t in sorted(knots)]), strict=True)
    )
    fast, slow = _band(name, runs, knots, terms)
    return _file(name, runs[0], knots, terms, (fast, slow))


def _knots(
    steps: list[dict[str, Any]], seconds: list[float], kv_token_s: float
) -> dict[int, float]:
    """The smallest context at each batch: the least of the cache to take off."""
    shortest = min(one["context"] for one in steps)
    return {
        one["sequences"]: s - kv_token_s * one["sequences"] * one["context"]
        for one, s in zip(steps, seconds, strict=True)
        if one["context"] == shortest
    }


def _band(
    name: str, runs: list[dict[str, Any]], knots: dict[int, float], terms: dict[str, float]
) -> tuple[float, float]:
    tokens, curve = np.array(list(knots)), np.array(list(knots.values()))
    ratios: list[float] = []
    for run in runs:
        engine = run["engines"][name]
        for one in engine["steps"]:
            b, c = one["sequences"], one["context"]
            likely = (
                float(np.interp(b, tokens, curve))
                + terms["kv_token_s"] * b * c
                + terms["sequence_s"] * b
            )
            ratios += [seconds / likely for seconds in one["seconds"]]
        for one in engine["prompts"]:
            n = one["tokens"]
            if n <= 512:
                own = float(np.interp(n, tokens, curve)) + terms["pair_s"] * n * (n + 1) / 2
                ratios += [seconds / (terms["first_token_s"] + own) for seconds in one["seconds"]]
    low, high = np.percentile(ratios, (5, 95))
    return min(float(low), 1 - LEAST_BAND), max(float(high), 1 + LEAST_BAND)


def _file(
    name: str,
    run: dict[str, Any],
    knots: dict[int, float],
    terms: dict[str, float],
    band: tuple[float, float],
) -> str:
    engine, host = ENGINES[name], run["host"]
    local = local_model(Path(run["weights"]) if "weights" in run else None)
    path = Path(local.weights)
    tensor_bytes = (
        read_checkpoint(path).tensor_bytes if path.is_dir() else read_header(path).tensor_bytes
    )
    shape = engine_model(local.model, engine.kv_bytes_per_element)
    gemm = next(
        r["flops_per_s"]["median"]
        for r in host["gemm"]
        if (r["dtype"], r["threads"]) == ("fp32", 1)
    )
    reads = [r for r in host["bandwidth"] if (r["kind"], r["threads"]) == ("read", 1)]
    read = min(reads, key=lambda r: r["buffer_bytes"])["bytes_per_s"]["median"]
    weights_s = tensor_bytes / read
    outside_s = terms["first_token_s"]
    listed = "\n".join(
        f"  {{tokens = {tokens}, seconds = {seconds:.4e}, memory_share = {min(1.0, weights_s / seconds):.3f}}},"
        for tokens, seconds in sorted(knots.items())
    )
    return f"""\
# Written by bench/calibrate_cpu.py from the samples of bench/engines_raw.py.
engine = "{name}"
engine_version = "{engine.version()}"
cpu_class = "{_class()}"
measured_utc = "{host["at"][:19]}+00:00"
source = "bench/engines_raw.py, one core, medians; {host["cpu"]}, Linux {host["kernel"].split("-")[0]}"
kv_token_s = {terms["kv_token_s"]:.3e}
pair_s = {terms["pair_s"]:.3e}
sequence_s = {terms["sequence_s"]:.3e}
first_token_s = [{outside_s / 2:.2e}, {outside_s:.2e}, {outside_s * 2:.2e}]
band = [{band[0]:.3f}, 1.0, {band[1]:.3f}]
load_s = {run["engines"][name]["load_s"]:.2f}
knots = [
{listed}
]

[reference]
cpu = "{host["cpu"]}"
cpu_class = "{_class()}"
cores = 1
gemm_flops_per_s = {gemm:.4e}
read_bytes_per_s = {read:.4e}
model = "{MODEL_NAME}"
matrix_parameters = {shape.matrix_parameters:.0f}
kv_bytes_per_token = {shape.kv_bytes_per_token}
attention_flops_per_pair = {shape.attention_flops_per_pair:.0f}
"""


if __name__ == "__main__":
    main()
