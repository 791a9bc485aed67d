"""TTFT and TPOT of an engine at a fixed number of requests in flight, in closed form.

What a benchmark at fixed concurrency does: `concurrency` clients each send a request, wait for its last token, and send the next. Of the
time between, a share `f` goes by in decode, so `concurrency * f` sequences decode at once. Each step of theirs takes `T_decode`; prompts of
the others are computed in between, and every decoding sequence waits for them:

    T_decode = step(n, n * context)                 n = concurrency * f,  context = input + output / 2
    dT       = what one prompt adds to the steps it shares (mixed batches), or the time of a step of its own (exclusive prefill)
    TPOT     = T_decode + (concurrency - 1) * f * dT / output
    TTFT     = fixed + (interval / 2 + poll / 2 + wait) * T_decode + own * (start + (concurrency - 1) / (2 * waves))
    f        = output * TPOT / (output * TPOT + TTFT)

solved for `f` by iteration. `own` is the prompt's own time, never under what launching its kernels takes. The last term of TTFT is the
benchmark's start, when all clients send at once: a queue of half the others, averaged over the `waves` of requests that each client sends.
The mean over a benchmark's requests is made mostly of that burst above 20 clients, so it belongs to the conditions and not to the engine.
"""

from dataclasses import dataclass

from polypod.cost.steptime import StepTime, causal_pairs

_ROUNDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a benchmark asks. `waves`: requests that each client sends; `start`: prompts that one waits for when it comes alone."""

    input_tokens: float
    output_tokens: float
    concurrency: float
    waves: float = 10.0
    start: float = 1.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How an engine schedules: settings that a benchmark's columns do not tell, with what the engine does by default.

    Prompts wait for the scheduler to look for new ones, which it does every `poll_steps` steps, and to fill a batch, `wait_steps` steps; their
    first tokens wait in the server until `stream_interval` have come, half of that in the mean. `tokens_per_step` is above 1 where tokens are drafted and accepted; `launch_s` is the least that a prompt's kernels take to launch.
    """

    exclusive_prefill: bool = False
    step_tokens: float = 8192.0
    stream_interval: float = 0.0
    poll_steps: float = 0.0
    wait_steps: float = 0.0
    fixed_s: float = 0.0
    launch_s: float = 0.0
    tokens_per_step: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Means over the benchmark, and the share of time that a request decodes."""

    ttft_s: float
    tpot_s: float
    decoding: float


def closed_loop(step: StepTime, load: Load, behaviour: Behaviour) -> Times:
    """Mean TTFT and TPOT at fixed concurrency.

    >>> step = StepTime(tokens=(1, 8192), seconds=(0.010, 0.500), kv_token_s=0.0, pair_s=0.0)
    >>> one = Load(input_tokens=1000, output_tokens=100, concurrency=1, start=1.0)
    >>> times = closed_loop(step, one, Behaviour())
    >>> round(times.tpot_s, 4), round(times.ttft_s, 3)  # alone: a decode step, and its own prompt
    (0.01, 0.07)
    """
    own_s = max(prompt_s(step, load.input_tokens, behaviour), behaviour.launch_s)
    decoding = 1.0
    tpot_s = ttft_s = 0.0
    for _ in range(_ROUNDS):
        sequences = max(load.concurrency * decoding, 1.0)
        decode_s = _decode_s(step, load, sequences)
        each_s = _interference_s(step, load, behaviour, sequences, decode_s)
        waiting_s = (load.concurrency - 1) * decoding * each_s / load.output_tokens
        tpot_s = decode_s / behaviour.tokens_per_step + waiting_s
        queue = load.start + (load.concurrency - 1) / (2 * load.waves)
        held_s = held_steps(behaviour) * decode_s
        ttft_s = behaviour.fixed_s + held_s + own_s * queue
        answer_s = load.output_tokens * tpot_s
        decoding = 0.5 * decoding + 0.5 * answer_s / (answer_s + ttft_s)
    return Times(ttft_s=ttft_s, tpot_s=tpot_s, decoding=decoding)


def held_steps(behaviour: Behaviour) -> float:
    """Decode steps that a prompt, and then its first token, waits for nothing but the engine's settings."""
    return (behaviour.stream_interval + behaviour.poll_steps) / 2 + behaviour.wait_steps


def prompt_s(step: StepTime, tokens: float, behaviour: Behaviour) -> float:
    """A prompt computed alone, in chunks of the engine's budget."""
    total_s, done = 0.0, 0.0
    while done < tokens:
        chunk = min(behaviour.step_tokens, tokens - done)
        total_s += step.prompt_s(chunk, cached=done)
        done += chunk
    return total_s


def _decode_s(step: StepTime, load: Load, sequences: float) -> float:
    per_rank = sequences / min(step.data_ranks, sequences)
    context = load.input_tokens + load.output_tokens / 2
    return step.step_s(tokens=per_rank, kv_tokens=per_rank * context, sequences=per_rank)


def _interference_s(
    step: StepTime, load: Load, behaviour: Behaviour, sequences: float, decode_s: float
) -> float:
    """What one prompt adds to the steps of those who decode.

    Data-parallel ranks step together and compute prompts side by side, so that as many share one delay.
    """
    alone_s = prompt_s(step, load.input_tokens, behaviour)
    together = min(step.data_ranks, max(load.concurrency / 2, 1.0))
    if behaviour.exclusive_prefill:
        return alone_s / together
    per_rank = sequences / min(step.data_ranks, sequences)
    context = load.input_tokens + load.output_tokens / 2
    tokens = min(load.input_tokens, behaviour.step_tokens)
    chunks = load.input_tokens / tokens
    mixed_s = step.step_s(
        tokens=per_rank + tokens,
        kv_tokens=per_rank * context,
        sequences=per_rank,
        pairs=causal_pairs(load.input_tokens) / chunks,
    )
    return chunks * max(mixed_s - decode_s, 0.0) / together
