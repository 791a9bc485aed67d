"""A row's benchmark played: as many clients as it had, request by request, on the emulated engines.

Step times, load and behaviour are those of `predict`, with what `scheduling` knows beside them, and the cache is what the memory has room for; the compiled driver plays a
closed loop of `concurrency` users over prefill, decode or whole replicas. Lengths are drawn as the benchmark draws them, and as many
requests sent, the burst at the start among them. Nothing is fitted to a row here.

The emulation knows no front end. What of TTFT goes by outside a step is taken over from the closed form, and each client waits for it before its
request is with the engine:

    front = fixed + cold / waves + (poll / 2 + wait) * T_decode + (own - prompt) * queued

`own - prompt` is what launching a prompt's kernels takes beyond computing it, 0 for most; measured TPOT shows that decode does not wait for it. A client's way back and its way
in again are two waits in series, each exponential and half of it in the mean: clients that come back in step would stay so if it were fixed, and scatter if it were one.
Apart, a first token leaves a stream interval later.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import (
    Behaviour,
    Load,
    Times,
    decode_step_s,
    held_steps,
    own_prompt_s,
    prompt_s,
)
from polypod.errors import InputError
from polypod.policy.events import ReplicaUp, Role
from polypod.policy.settings import PolicySettings, ServiceSettings
from polypod.simulate.arriving import Looped
from polypod.simulate.compiled import Session
from polypod.simulate.native.layout import ENDED_WELL, Rows
from polypod.simulate.scenario import Scenario
from polypod.workload.traffic_loop import ClosedLoop
from polypod.workload.traffic_rows import Trace

Floats = NDArray[np.float64]

_MODEL: Final = "model"
_SEED: Final = 0
_NEVER_S: Final = 1e9
"""No client gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Replicas alike: how long their steps take, tokens of cache on each data-parallel rank, and what the cache of a token takes on the way out."""

    step: StepTime
    rank_tokens: float
    count: int = 1
    token_transfer_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """Of every request that was sent, in the order they ended; those of one token have no TPOT."""

    ttft_s_N: Floats
    tpot_s_N: Floats

    @property
    def ttft_s(self) -> float:
        """The mean."""
        return float(self.ttft_s_N.mean())

    @property
    def tpot_s(self) -> float:
        """The mean over requests, as benchmarks take it."""
        return float(self.tpot_s_N.mean())


def play_load(
    workers: tuple[Worker, ...], load: Load, behaviour: Behaviour, formula: Times
) -> Played:
    """Play a load on whole replicas, or on prefill and decode replicas; `formula` is what the closed form says of the same.

    Raises `InputError` where a request does not fit into the cache.
    """
    last = workers[-1]
    sequences = max(load.concurrency * formula.decoding / last.count, last.step.data_ranks)
    decode_s = decode_step_s(last.step, load, behaviour, sequences)
    front_s = _front_s(workers, load, behaviour, decode_s)
    after_s = behaviour.stream_interval * decode_s if len(workers) > 1 else 0.0
    rows = _outcomes(_replicas(workers, load, behaviour), load, front_s)
    answers_N = rows["output_tokens"]
    several_N = answers_N > 1
    decoded_s_N = (rows["end_s"] - rows["first_s"])[several_N]
    return Played(
        ttft_s_N=rows["first_s"] - rows["arrival_s"] + front_s + after_s,
        tpot_s_N=decoded_s_N / (answers_N[several_N] - 1),
    )


def _front_s(
    workers: tuple[Worker, ...], load: Load, behaviour: Behaviour, decode_s: float
) -> float:
    """What a request waits for outside the engine's steps, in the mean."""
    step = workers[0].step
    launching_s = own_prompt_s(step, load, behaviour) - prompt_s(step, load.input_tokens, behaviour)
    queued = load.queued(behaviour) if len(workers) == 1 else 1.0
    return (
        behaviour.fixed_s
        + load.cold_s / load.waves
        + held_steps(behaviour) * decode_s
        + launching_s * queued
    )


def drawn(load: Load) -> Trace:
    """The benchmark's requests: lengths uniform about their means."""
    number = max(round(load.waves * load.concurrency), 1)
    rng = np.random.default_rng(_SEED)
    low, high = 1 - load.length_spread, 1 + load.length_spread
    lengths_N = [
        np.maximum(np.rint(mean * rng.uniform(low, high, number)), 1).astype(np.int64)
        for mean in (load.input_tokens, load.output_tokens)
    ]
    return Trace(
        name="a benchmark's requests",
        arrival_s=np.zeros(number),
        input_tokens=lengths_N[0],
        output_tokens=lengths_N[1],
    )


def _clients(load: Load) -> int:
    return max(round(load.concurrency), 1)


def _longest(load: Load) -> int:
    """Tokens of the longest request there may be."""
    mean = load.input_tokens + load.output_tokens
    return math.ceil(mean * (1 + load.length_spread)) + 2


def _replicas(
    workers: tuple[Worker, ...], load: Load, behaviour: Behaviour
) -> tuple[ReplicaUp, ...]:
    roles: tuple[Role, ...] = ("both",) if len(workers) == 1 else ("prefill", "decode")
    return tuple(
        _replica(worker, role, number, load, behaviour)
        for worker, role in zip(workers, roles, strict=True)
        for number in range(worker.count)
    )


def _replica(
    worker: Worker, role: Role, number: int, load: Load, behaviour: Behaviour
) -> ReplicaUp:
    step, longest = worker.step, _longest(load)
    if worker.rank_tokens < longest:
        msg = f"a rank's cache has room for {max(worker.rank_tokens, 0):,.0f} tokens, a request fills up to {longest:,}; raise tp, or lower the precision"
        raise InputError(msg)
    most = longest * (_clients(load) + 1)  # more is never used
    ranks, transfer_s = step.data_ranks, worker.token_transfer_s
    return ReplicaUp(
        at_s=0.0,
        replica=f"{role}-{number}",
        epoch=1,
        model=_MODEL,
        pool=role,
        role=role,
        step_time=step,
        context_tokens=longest,
        kv_capacity_tokens=int(min(worker.rank_tokens, most)) * ranks,
        max_sequences=_clients(load) * ranks,
        max_step_tokens=max(int(behaviour.step_tokens), 1),
        engine=without_front(behaviour),
        kv_token_bytes=1.0,
        kv_link_bytes_per_s=ranks / transfer_s if transfer_s else 0.0,
    )


def _outcomes(replicas: tuple[ReplicaUp, ...], load: Load, front_s: float) -> Rows:
    """What became of every request."""
    trace = drawn(load)
    rng = np.random.default_rng([_SEED, 1])
    think_s = rng.exponential(front_s / 2, (len(trace), 2)).sum(axis=1)
    loop = ClosedLoop(users=_clients(load), trace=trace, think_s=think_s)
    service = ServiceSettings(
        model=_MODEL, context_tokens=_longest(load), mean_output_tokens=load.output_tokens
    )
    scenario = Scenario(
        replicas=replicas,
        settings=PolicySettings(
            services=(service,),
            queue_requests=_clients(load),
            queue_wait_s=_NEVER_S,
            kv_wait_s=_NEVER_S,
        ),
        trace=(),
        loop=loop,
    )
    session = Session(scenario, Looped(loop), share=0.0)
    rows = np.concatenate([turn.outcomes for turn in session.turns()])
    assert len(rows) == len(trace), f"{len(trace)} requests were sent, {len(rows)} ended"
    assert (rows["status"] == ENDED_WELL).all(), "a request of a benchmark was refused"
    return rows


def without_front(behaviour: Behaviour) -> Behaviour:
    """What of it an engine's steps show."""
    return replace(behaviour, fixed_s=0.0, stream_interval=0.0, poll_steps=0.0, wait_steps=0.0, launch_s=0.0)  # fmt: skip
