"""How long the policy takes to decide, and how long a trace takes to simulate.

    python bench/simulate.py [TRACE]

TRACE is a file that `polypod simulate --trace` takes, such as AzureLLMInferenceTrace_conv_2023.csv (19,366 requests in an
hour); without one, as many Poisson arrivals of 1,000 tokens in and 200 out. Times are CPU seconds of one core, the least of several
rounds. Bounded: about 30 s of an idle core.
"""

import io
import sys
import time
from pathlib import Path

from polypod.cost.steptime import StepTime
from polypod.policy import Policy, PolicySettings, ServiceSettings
from polypod.policy.actions import Dispatch
from polypod.policy.events import FirstToken, ReplicaUp, RequestArrived, RequestFinished
from polypod.report.runs import run_text, summarise
from polypod.simulate import Scenario, arrivals, play, replay
from polypod.workload.traffic import poisson, read_trace

MODEL = "m"
STEP = StepTime(
    tokens=(1, 64, 256, 1024, 8192),
    seconds=(0.010, 0.011, 0.015, 0.040, 0.300),
    kv_token_s=1e-8,
    pair_s=1e-10,
)
SETTINGS = PolicySettings(services=(ServiceSettings(model=MODEL, context_tokens=16_384),))
ROUNDS = 5
DECISIONS = 1000


def fleet(replicas: int) -> list[ReplicaUp]:
    """Every other one is half as fast."""
    return [
        ReplicaUp(
            at_s=0.0, replica=f"r{n}", epoch=1, model=MODEL, pool=("fast", "slow")[n % 2], role="both",
            step_time=STEP.scaled(1 + n % 2), context_tokens=16_384, kv_capacity_tokens=400_000,
            max_sequences=256, max_step_tokens=2048,
        )
        for n in range(replicas)
    ]  # fmt: skip


def decide(replicas: int) -> tuple[float, float, float]:
    """Seconds to answer an arrival, a first token and a finish, with half the requests still running."""
    policy = Policy(SETTINGS)
    for up in fleet(replicas):
        policy.handle(up)
    spent = {RequestArrived: 0.0, FirstToken: 0.0, RequestFinished: 0.0}

    def timed(event):
        start = time.process_time()
        actions = policy.handle(event)
        spent[type(event)] += time.process_time() - start
        return actions

    for request in range(DECISIONS):
        at_s = request * 0.02 / replicas
        (action,) = timed(RequestArrived(at_s=at_s, request=request, model=MODEL, input_tokens=500))
        assert isinstance(action, Dispatch)
        about = {"request": request, "attempt": 1, "replica": action.replica, "epoch": 1}
        timed(FirstToken(at_s=at_s, **about))
        if request % 2 or request > 100:
            timed(RequestFinished(at_s=at_s, **about, output_tokens=50))
    return tuple(seconds / DECISIONS for seconds in spent.values())


def main() -> None:
    print(
        f"{'replicas':>8}  {'arrival':>9}  {'first token':>11}  {'finish':>9}   of the policy, in us"
    )
    for replicas in (1, 8, 64, 2000):
        rounds = [decide(replicas) for _ in range(ROUNDS)]
        arrival, first, finish = (1e6 * min(column) for column in zip(*rounds, strict=True))
        print(f"{replicas:>8}  {arrival:>9.1f}  {first:>11.1f}  {finish:>9.1f}")

    if len(sys.argv) > 1:
        trace = arrivals(read_trace(Path(sys.argv[1])), MODEL)
    else:
        trace = arrivals(poisson(5.4, 19_366, 1000, 200, seed=0), MODEL)
    scenario = Scenario(replicas=tuple(fleet(8)), settings=SETTINGS, trace=trace)
    best_s = float("inf")
    for _ in range(2):
        file, start = io.BytesIO(), time.process_time()
        run = play(scenario, file)
        best_s = min(best_s, time.process_time() - start)
    print(
        f"\n{len(trace):,} requests on 8 replicas: {best_s:.2f} s for {run.end_s:,.0f} s, {run.events:,} events "
        f"({1e6 * best_s / run.events:.0f} us each), a record of {len(file.getvalue()) / 1e6:.1f} MB"
    )
    lines = play(scenario).lines
    start = time.process_time()
    assert replay(lines) is None
    print(f"replayed in {time.process_time() - start:.2f} s, every answer the same\n")
    print(run_text(summarise(lines)))


if __name__ == "__main__":
    main()
