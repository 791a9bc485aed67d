"""What it costs to choose a replica: the policy's answer to an arriving request, over more and more replicas.

    python bench/routing.py

The policy is a serving node's, with its rows in C where there is a compiler, and numpy's definition of the same beside it. Every replica has requests
running and prompts of late, no two alike; half the requests are streamed. `answer` is all of `Policy.handle` of a `RequestArrived` that is answered with a
`Dispatch`; `choice` is what of it grows with the fleet, `ReplicaTable.best`. CPU time of the process. Bounded: about 20 s.
"""

import time
from statistics import median

from polypod.cost.steptime import StepTime
from polypod.policy import Policy, PolicySettings, ServiceSettings
from polypod.policy.actions import Dispatch
from polypod.policy.compiled import Functions, functions
from polypod.policy.events import ReplicaUp, RequestArrived, RequestFinished
from polypod.policy.requests import Ask
from polypod.policy.router import ReplicaTable

REPLICAS = (1, 8, 64, 512, 2000)
REQUESTS = 2000
ROUNDS = 5
MODEL = "tiny"


def replica_up(number: int) -> ReplicaUp:
    factor = 1 + number % 7 / 10
    return ReplicaUp(
        at_s=0.0,
        replica=f"ghost-{number}",
        epoch=1,
        model=MODEL,
        pool="main",
        role="both",
        step_time=StepTime(
            tokens=(1, 64, 512),
            seconds=(0.01 * factor, 0.012 * factor, 0.05 * factor),
            kv_token_s=1e-8,
            pair_s=1e-10,
        ),
        context_tokens=32_768,
        kv_capacity_tokens=400_000,
        max_sequences=64,
        max_step_tokens=512,
    )


def arrival_us(replicas: int, compiled: Functions | None) -> float:
    """Median over rounds of the mean time of an arrival."""
    settings = PolicySettings(services=(ServiceSettings(model=MODEL, context_tokens=32_768),))
    policy = Policy(settings, compiled=compiled)
    for number in range(replicas):
        policy.handle(replica_up(number))
    running: list[tuple[int, Dispatch]] = []
    request, rounds_us = 0, []
    for _ in range(ROUNDS + 1):
        spent_s = 0.0
        for _ in range(REQUESTS // ROUNDS):
            request += 1
            at_s = request * 1e-3
            arrived = RequestArrived(
                at_s=at_s,
                request=request,
                model=MODEL,
                input_tokens=50 + request % 400,
                is_streamed=request % 2 == 0,
            )
            began_s = time.process_time()
            actions = policy.handle(arrived)
            spent_s += time.process_time() - began_s
            assert isinstance(actions[0], Dispatch)
            running.append((request, actions[0]))
            if len(running) > 10 * replicas:
                finish(policy, at_s, *running.pop(0))
        rounds_us.append(1e6 * spent_s / (REQUESTS // ROUNDS))
    return median(rounds_us[1:])


def choice_us(replicas: int, compiled: Functions | None) -> float:
    """Median time of choosing one of them, with ten requests on each."""
    table = ReplicaTable(compiled=compiled)
    for number in range(replicas):
        table.add(replica_up(number))
    times_us = []
    for number in range(10 * replicas + REQUESTS // 4):
        at_s = 1e-3 * number
        ask = Ask(input_tokens=50 + number % 400, output_tokens=100.0, need_tokens=551)
        began_s = time.process_time()
        choice = table.best(ask, None, at_s)
        times_us.append(1e6 * (time.process_time() - began_s))
        if number < 10 * replicas:
            table.dispatched(int(choice.rows[0]), ask, choice, at_s)
    return median(times_us[10 * replicas :])


def finish(policy: Policy, at_s: float, request: int, where: Dispatch) -> None:
    policy.handle(
        RequestFinished(
            at_s=at_s,
            request=request,
            attempt=where.attempt,
            replica=where.replica,
            epoch=where.epoch,
            output_tokens=100,
        )
    )


def main() -> None:
    clock_us = 1e6 * min(_empty_s() for _ in range(100))
    compiled = functions()
    if compiled is None:
        print("no C compiler is here: the first two columns are numpy's as well")
    print(f"us, less {clock_us:.1f} us of the clock")
    print(f"{'':8}{'in C':>16}{'in numpy':>20}")
    print(f"{'replicas':8}{'choice':>10}{'answer':>10}{'choice':>10}{'answer':>10}")
    for replicas in REPLICAS:
        shown = [
            f"{took(replicas, twin) - clock_us:10.1f}"
            for twin in (compiled, None)
            for took in (choice_us, arrival_us)
        ]
        print(f"{replicas:8}{''.join(shown)}")


def _empty_s() -> float:
    began_s = time.process_time()
    return time.process_time() - began_s


if __name__ == "__main__":
    main()
