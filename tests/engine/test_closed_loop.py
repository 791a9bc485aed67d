"""The closed form beside the emulation of the same engine, step by step, and at limits where the answer is known."""

import heapq

import pytest

from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import Behaviour, Load, closed_loop, prompt_s
from polypod.engine.replica import EngineLimits, ReplicaEmulation

STEP = StepTime(
    tokens=(1, 64, 512, 8192), seconds=(0.008, 0.009, 0.012, 0.160), kv_token_s=8e-9, pair_s=2e-10, sequence_s=5e-6
)  # fmt: skip


def emulated(load: Load, waves: int) -> tuple[float, float]:
    """Mean TTFT and TPOT of clients that each send `waves` requests, one after another."""
    replica = ReplicaEmulation(STEP, EngineLimits(max_sequences=512, max_step_tokens=8192, kv_capacity_tokens=10**7))  # fmt: skip
    clients = int(load.concurrency)
    left = dict.fromkeys(range(clients), waves - 1)
    sent: dict[int, tuple[float, int]] = {}
    first: dict[int, float] = {}
    ttft, tpot, numbers = [], [], iter(range(10**6))

    def send(at_s: float, client: int) -> None:
        request = next(numbers)
        sent[request] = (at_s, client)
        replica.submit(at_s, request=request, prompt_tokens=int(load.input_tokens), output_tokens=int(load.output_tokens))  # fmt: skip

    for client in range(clients):
        send(0.0, client)
    while replica.running or replica.waiting:
        again: list[tuple[float, int]] = []
        for what in replica.advance(replica.next_s):
            if what.kind == "first":
                first[what.request] = what.at_s
                ttft.append(what.at_s - sent[what.request][0])
            else:
                tpot.append((what.at_s - first[what.request]) / (load.output_tokens - 1))
                heapq.heappush(again, (what.at_s, sent[what.request][1]))
        for at_s, client in again:
            if left[client]:
                left[client] -= 1
                send(at_s, client)
    return sum(ttft) / len(ttft), sum(tpot) / len(tpot)


@pytest.mark.parametrize("concurrency", [1, 4, 16, 64])
@pytest.mark.parametrize(("tokens_in", "tokens_out"), [(1000, 200), (4000, 500), (200, 1000)])
def test_tpot_is_that_of_the_emulated_loop(
    concurrency: int, tokens_in: int, tokens_out: int
) -> None:
    load = Load(input_tokens=tokens_in, output_tokens=tokens_out, concurrency=concurrency, waves=10)
    _, tpot_s = emulated(load, 10)
    assert closed_loop(STEP, load, Behaviour()).tpot_s == pytest.approx(tpot_s, rel=0.12)


def test_alone_it_is_a_step_and_a_prompt() -> None:
    load = Load(input_tokens=1000, output_tokens=100, concurrency=1, start=1.0)
    times = closed_loop(STEP, load, Behaviour(stream_interval=0.0))
    assert times.tpot_s == pytest.approx(STEP.step_s(tokens=1, kv_tokens=1050, sequences=1))
    assert times.ttft_s == pytest.approx(STEP.prompt_s(1000))


def test_more_clients_never_make_it_faster() -> None:
    found = [
        closed_loop(STEP, Load(input_tokens=1000, output_tokens=200, concurrency=n), Behaviour())
        for n in (1, 2, 8, 32, 128, 512)
    ]
    assert [one.tpot_s for one in found] == sorted(one.tpot_s for one in found)
    assert [one.ttft_s for one in found] == sorted(one.ttft_s for one in found)


def test_accepted_drafts_divide_the_step_and_not_the_waiting() -> None:
    load = Load(input_tokens=1000, output_tokens=200, concurrency=1)
    plain = closed_loop(STEP, load, Behaviour())
    drafted = closed_loop(STEP, load, Behaviour(tokens_per_step=2.0))
    assert drafted.tpot_s == pytest.approx(plain.tpot_s / 2)


def test_a_prompt_is_never_faster_than_its_kernels_launch() -> None:
    load = Load(input_tokens=1, output_tokens=10, concurrency=1, start=1.0)
    times = closed_loop(STEP, load, Behaviour(launch_s=0.5, stream_interval=0.0))
    assert times.ttft_s == 0.5


def test_a_smaller_budget_cuts_a_prompt_into_more_steps() -> None:
    whole = prompt_s(STEP, 8000, Behaviour(step_tokens=8192))
    cut = prompt_s(STEP, 8000, Behaviour(step_tokens=64))
    assert cut > whole
    assert cut > 8000 / 64 * STEP.curve_s(64)
