"""How many configurations the cost model times per CPU second when they come as arrays, beside the target of 100,000.

    python bench/cost.py

A configuration is a model in a layout on a chip under an engine's kernels, with a batch and a context; batch and context
come as arrays. CPU seconds of this process, making the deployments included, the best of five.
"""

import time
from itertools import product

import numpy as np

from polypod.catalog.load import load_model
from polypod.cost.deployment import Deployment, native_precision
from polypod.plan.place import island, parse_fleet
from polypod.workload.config import read_model
from polypod.workload.layout import Layout

TARGET_PER_S = 100_000
MODELS = ("llama-3.1-8b", "qwen3-32b", "deepseek-v3")
PODS = ("nvidia-hgx-h100", "nvidia-hgx-h200", "nvidia-gb200-nvl72")
LAYOUTS = (Layout(tp=1), Layout(tp=4), Layout(tp=8), Layout(dp=8, ep=8))
BACKENDS = (None, "vllm", "sglang")
BATCHES = np.unique(np.geomspace(1, 1024, 40).round())
CONTEXTS = np.geomspace(256, 131072, 50)


def cost_all() -> int:
    """Everything once; how many configurations that was."""
    sequences, contexts = (one.ravel() for one in np.meshgrid(BATCHES, CONTEXTS))
    count = 0
    for name, pod in product(MODELS, PODS):
        entry = load_model(name)
        model = read_model(entry.config, name=entry.name, path=entry.path)
        rank = island("a", parse_fleet(pod)["a"]).rank
        precision = native_precision(model, rank)
        for layout, backend in product(LAYOUTS, BACKENDS):
            place = Deployment(
                model=model, layout=layout, precision=precision, rank=rank, backend=backend
            )
            step_s = place.step_s(sequences=sequences, kv_tokens=sequences * contexts)
            assert np.all(step_s > 0)
            count += sequences.size
    return count


def main() -> None:
    best_s, count = float("inf"), 0
    for _ in range(5):
        start_s = time.process_time()
        count = cost_all()
        best_s = min(best_s, time.process_time() - start_s)
    rate = count / best_s
    print(
        f"{count} configurations in {best_s:.2f} s CPU: {rate:,.0f} per second, {rate / TARGET_PER_S:.1f} of the target"
    )


if __name__ == "__main__":
    main()
