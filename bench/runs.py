"""How fast reports come from a record: python bench/runs.py [REQUESTS].

The record is made up: Poisson arrivals on 1,000 replicas of four pools, three lines a request, as a large simulated run writes them.
"""

import io
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from polypod.cost.steptime import StepTime
from polypod.policy import PolicySettings, ServiceSettings
from polypod.policy.actions import Dispatch
from polypod.policy.events import FirstToken, ReplicaUp, RequestArrived, RequestFinished
from polypod.record import Header, Step, Writer
from polypod.report.diff import diff
from polypod.report.faults_cost import fault_costs
from polypod.report.fold import read_outcomes
from polypod.report.perfetto import write_perfetto
from polypod.report.series import over_time
from polypod.report.slowest import slowest
from polypod.report.summary import summary_of

REPLICAS = 1000
STEP = StepTime(tokens=(1, 64), seconds=(0.01, 0.02), kv_token_s=0.0, pair_s=0.0)
PLAN = {
    "services": [{"model": "m", "slo": {"ttft": "200 ms", "tpot": "30 ms", "percentile": 99.0}}]
}


def write(path: Path, requests: int) -> None:
    """Lines in the order of their times."""
    generator = np.random.default_rng(0)
    settings = PolicySettings(services=(ServiceSettings(model="m", context_tokens=9000),))
    arrival_s = np.cumsum(generator.exponential(3600 / requests, requests))
    first_s = arrival_s + generator.lognormal(-2, 0.5, requests)
    end_s = first_s + generator.lognormal(1, 0.5, requests)
    at_s = np.concatenate([arrival_s, first_s, end_s])
    with path.open("wb") as file:
        writer = Writer(file)
        writer.write(Header(kind="simulated", polypod="0", policy=settings, plan=PLAN, seed=0))
        for n in range(REPLICAS):
            up = ReplicaUp(
                at_s=0.0, replica=f"r{n}", epoch=1, model="m", pool=f"p{n % 4}", role="both", step_time=STEP, context_tokens=9000,
                kv_capacity_tokens=400_000, max_sequences=256, max_step_tokens=2048,
            )  # fmt: skip
            writer.write(Step(event=up))
        for entry in np.argsort(at_s, kind="stable").tolist():
            what, request = divmod(entry, requests)
            about = {"request": request, "attempt": 1, "replica": f"r{request % REPLICAS}", "epoch": 1}  # fmt: skip
            now_s = float(at_s[entry])
            if what == 0:
                event = RequestArrived(at_s=now_s, request=request, model="m", input_tokens=1000)
                action = Dispatch(**about, predicted_first_token_s=0.13, predicted_token_s=0.02)
                writer.write(Step(event=event, actions=[action]))
            elif what == 1:
                writer.write(Step(event=FirstToken(at_s=now_s, **about)))
            else:
                writer.write(Step(event=RequestFinished(at_s=now_s, **about, output_tokens=200)))


def timed(name, call):
    start = time.process_time()
    result = call()
    print(f"{name:<10} {time.process_time() - start:6.2f} s")
    return result


def main() -> None:
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record.jsonl"
        write(path, requests)
        print(f"{requests:,} requests, {path.stat().st_size / 1e6:,.0f} MB, seconds of one core:\n")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcomes = timed("read", lambda: read_outcomes(path))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timed("summary", lambda: summary_of(outcomes))
    timed("series", lambda: over_time(outcomes))
    timed("slowest", lambda: slowest(outcomes))
    timed("faults", lambda: fault_costs(outcomes))
    timed("diff", lambda: diff(outcomes, outcomes))
    timed("perfetto", lambda: write_perfetto(outcomes, io.BytesIO()))
    print(f"\nreading took at most {(after - before) / 1024:,.0f} MB more")


if __name__ == "__main__":
    main()
