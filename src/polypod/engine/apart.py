"""TTFT and TPOT of prefill workers and decode workers apart, at a fixed number of requests in flight, in closed form.

Clients go round: a prompt queues for a prefill worker, its cache moves, its answer is decoded among those of the other clients, and the next
prompt follows. Of a round a share `f` goes by in decode, so that `concurrency * f` sequences decode at once, interrupted by nothing:

    T_decode = step(n, n * context)            n = concurrency * f over the decode workers,  context = input + output / 2
    TPOT     = T_decode / tokens a step
    TTFT     = fixed + transfer + own + busy * (waiting / 2 + burst) + (poll / 2 + wait + interval) * T_decode
    waiting  = (concurrency - 1) * (1 - f) / servers,   burst = (concurrency - 1) / (2 * waves * servers)
    round    = max(TTFT + output * TPOT, concurrency * busy / servers)     prompts are not served faster than they are computed
    f        = output * TPOT / round

`own` is a prompt alone, `busy` one among others, whose kernels are launched together; `burst` is the start, when all clients send at once, averaged over
the `waves` of requests that each sends.

A prefill worker serves as many prompts at once as it has data-parallel ranks, eight at most. Left out: cold starts, routers that look at
prefixes, and transfers that wait for each other. The first token comes to the decode worker with the prompt and leaves it a whole stream
interval later (`Behaviour`).
"""

from dataclasses import dataclass
from typing import Final

from polypod.cost.steptime import StepTime
from polypod.engine.closed_loop import (
    Behaviour,
    Load,
    Times,
    busy_prompt_s,
    decode_step_s,
    held_steps,
    own_prompt_s,
)

_ROUNDS: Final = 30
_MOST_SERVERS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Like workers of one phase."""

    step: StepTime
    count: int = 1


def apart(
    prefill: Role, decode: Role, load: Load, behaviour: Behaviour, transfer_s: float = 0.0
) -> Times:
    """Mean TTFT and TPOT; `transfer_s` is what a prompt's cache takes from one worker to the other.

    >>> step = StepTime(tokens=(1, 8192), seconds=(0.010, 0.500), kv_token_s=0.0, pair_s=0.0)
    >>> one = Load(input_tokens=1000, output_tokens=100, concurrency=1)
    >>> times = apart(Role(step=step), Role(step=step), one, Behaviour(), transfer_s=0.005)
    >>> round(times.tpot_s, 4), round(times.ttft_s, 3)  # alone: a prompt and its transfer, then decode steps
    (0.01, 0.075)
    """
    own_s = own_prompt_s(prefill.step, load, behaviour)
    busy_s = busy_prompt_s(prefill.step, load, behaviour)
    servers = prefill.count * min(prefill.step.data_ranks, _MOST_SERVERS)
    burst = (load.concurrency - 1) / (2 * load.waves * servers)
    decoding, tpot_s, ttft_s = 1.0, 0.0, 0.0
    for _ in range(_ROUNDS):
        each = max(load.concurrency * decoding / decode.count, decode.step.data_ranks)
        step_s = decode_step_s(decode.step, load, behaviour, each)
        tpot_s = step_s / behaviour.tokens_per_step
        waiting = (load.concurrency - 1) * (1 - decoding) / servers
        ttft_s = (
            behaviour.fixed_s
            + load.cold_s / load.waves
            + transfer_s
            + own_s
            + busy_s * (waiting / 2 + burst)
            + (held_steps(behaviour) + behaviour.stream_interval) * step_s
        )
        round_s = max(ttft_s + load.output_tokens * tpot_s, load.concurrency * busy_s / servers)
        ttft_s = max(ttft_s, round_s - load.output_tokens * tpot_s)
        decoding = 0.5 * decoding + 0.5 * load.output_tokens * tpot_s / round_s
    return Times(ttft_s=ttft_s, tpot_s=tpot_s, decoding=decoding)
