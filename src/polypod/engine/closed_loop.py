"""TTFT and TPOT of an engine at a fixed number of requests in flight, in closed form.

What a benchmark at fixed concurrency does: `concurrency` clients each send a request, wait for its last token, and send the next. Of the
time between, a share `f` goes by in decode, so `concurrency * f` sequences decode at once. Each step of theirs takes `T_decode`; prompts of
the others are computed in between, and every decoding sequence waits for them:

    T_decode = step(n, n * context)                 n = concurrency * f,  context = input + output / 2
    dT       = what one prompt adds to the steps it shares (mixed batches), or the time of a step of its own (exclusive prefill)
    TPOT     = T_decode + (concurrency - 1) * f * dT / output
    TTFT     = fixed + (poll / 2 + wait) * T_decode + own * (start + (concurrency - 1) / (2 * waves))
    f        = output * TPOT / (output * TPOT + TTFT)

solved for `f` by iteration. With drafted tokens a step verifies `1 + drafts` of each sequence and gives `tokens_per_step`; a share of each prompt may
be in the cache already (`prefix_hits`). `own` is the prompt's own time, never under what launching its kernels takes. The last term of TTFT is the
benchmark's start, when all clients send at once: a queue of half the others, averaged over the `waves` of requests that each client sends.
The mean over a benchmark's requests is made mostly of that burst above 20 clients, so it belongs to the conditions and not to the engine.
An engine that computes prompts alone keeps clients of one length in one wave, because all of a wave finish together.
"""

from dataclasses import dataclass

from polypod.cost.steptime import StepTime, causal_pairs

_ROUNDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a benchmark asks. Lengths are means.

    `waves`: requests that each client sends; `start`: prompts that one waits for when it comes alone; `length_spread`: half the range of
    lengths over their mean, 1/9 for lengths drawn from 0.8 to 1.0 of a nominal one; `cold_s`: what the first wave waits for an engine that
    was not warmed up.
    """

    input_tokens: float
    output_tokens: float
    concurrency: float
    waves: float = 10.0
    start: float = 1.2
    length_spread: float = 1 / 9
    cold_s: float = 0.0

    def queued(self, behaviour: "Behaviour") -> float:
        """Prompts that one waits for in the mean, its own included."""
        locked = behaviour.exclusive_prefill and self.length_spread == 0
        return self.start + (self.concurrency - 1) / (2 * (1.0 if locked else self.waves))

    @property
    def context_tokens(self) -> float:
        """Cached by a sequence in the mean, half of its answer given."""
        return self.input_tokens + self.output_tokens / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How an engine schedules: settings that a benchmark's columns do not tell, with what the engine does by default.

    Prompts wait for the scheduler to look for new ones, which it does every `poll_steps` steps, and to fill a batch, `wait_steps` steps. Tokens are
    sent to the client `stream_interval` at a time, the first alone and at once: SGLang's `stream_output` sends where the count is 1 modulo the
    interval, TensorRT-LLM's `_handle_responses` where it is 1 or a multiple. Decode workers apart get it with the prompt and send it with the others. `tokens_per_step` is above 1 where tokens are
    drafted and accepted; `drafts` are verified in each step, each after `draft_share` of a step that made it: both 0 where `tokens_per_step` is
    already net of what drafting costs. `launch_s` is the least that a prompt's kernels take to launch.

    `schedules_ahead`: the host makes the batch of a step while the step before it runs, as it begins, so that what comes meanwhile waits for one step
    more; an idle engine begins at once. TensorRT-LLM's and SGLang's overlap scheduler and vLLM's async scheduling do. `whole_prompts`: a prompt is not cut to
    fill up a step that has another, as TensorRT-LLM without chunked context. `balance_steps`: of several data-parallel ranks, prompts wait until every rank has one, or for that many steps, as with
    TensorRT-LLM's `attention_dp_config` (`_balance_adp_requests` of its PyExecutor); 0 waits for nobody. The closed form knows none of them.
    """

    exclusive_prefill: bool = False
    step_tokens: float = 8192.0
    stream_interval: float = 0.0
    poll_steps: float = 0.0
    wait_steps: float = 0.0
    fixed_s: float = 0.0
    launch_s: float = 0.0
    tokens_per_step: float = 1.0
    drafts: float = 0.0
    draft_share: float = 0.0
    prefix_hits: float = 0.0
    schedules_ahead: bool = False
    whole_prompts: bool = False
    balance_steps: int = 0


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
    own_s = own_prompt_s(step, load, behaviour)
    decoding = 1.0
    tpot_s = ttft_s = 0.0
    for _ in range(_ROUNDS):
        sequences = max(load.concurrency * decoding, 1.0)
        decode_s = decode_step_s(step, load, behaviour, sequences)
        each_s = _interference_s(step, load, behaviour, sequences)
        waiting_s = (load.concurrency - 1) * decoding * each_s / load.output_tokens
        tpot_s = decode_s / behaviour.tokens_per_step + waiting_s
        held_s = held_steps(behaviour) * decode_s
        ttft_s = (
            behaviour.fixed_s + load.cold_s / load.waves + held_s + own_s * load.queued(behaviour)
        )
        answer_s = load.output_tokens * tpot_s
        decoding = 0.5 * decoding + 0.5 * answer_s / (answer_s + ttft_s)
    return Times(ttft_s=ttft_s, tpot_s=tpot_s, decoding=decoding)


def held_steps(behaviour: Behaviour) -> float:
    """Decode steps that a prompt waits for nothing but the engine's settings."""
    return behaviour.poll_steps / 2 + behaviour.wait_steps


def own_prompt_s(step: StepTime, load: Load, behaviour: Behaviour) -> float:
    """A prompt of the load computed alone: never faster than its kernels are launched."""
    return max(prompt_s(step, load.input_tokens, behaviour), behaviour.launch_s)


def busy_prompt_s(step: StepTime, load: Load, behaviour: Behaviour) -> float:
    """What a prompt takes of an engine that has more of them: kernels are launched once for as many as a step's budget holds."""
    share = min(load.input_tokens / behaviour.step_tokens, 1.0)
    return max(prompt_s(step, load.input_tokens, behaviour), share * behaviour.launch_s)


def prompt_s(step: StepTime, tokens: float, behaviour: Behaviour) -> float:
    """A prompt computed alone, in chunks of the engine's budget; what hits the cache is read and not computed.

    Chunks follow each other through the pipeline's stages, so that all but the last one's passage overlap.
    """
    done = behaviour.prefix_hits * tokens
    total_s = pass_s = 0.0
    while done < tokens:
        chunk = min(behaviour.step_tokens, tokens - done)
        pass_s = step.prompt_s(chunk, cached=done)
        total_s += pass_s / step.stages
        done += chunk
    return total_s + pass_s * (1 - 1 / step.stages)


def decode_step_s(step: StepTime, load: Load, behaviour: Behaviour, sequences: float) -> float:
    """A decode step of so many sequences over all ranks, drafts made and verified in it."""
    made = 1 + behaviour.drafts * behaviour.draft_share
    return _verify_s(step, load, behaviour, sequences) * made


def _verify_s(
    step: StepTime,
    load: Load,
    behaviour: Behaviour,
    sequences: float,
    prompt: tuple[float, float] = (0.0, 0.0),
) -> float:
    """A step of the model itself, with so many tokens and pairs of a prompt in it. A pipeline's stages each have a sequence, or wait."""
    per_rank = max(sequences / min(step.data_ranks, sequences), 1.0 * step.stages)
    tokens, pairs = prompt
    return step.step_s(
        tokens=per_rank * (1 + behaviour.drafts) + step.stages * tokens,
        kv_tokens=per_rank * load.context_tokens,
        sequences=per_rank,
        pairs=step.stages * pairs,
    )


def _interference_s(step: StepTime, load: Load, behaviour: Behaviour, sequences: float) -> float:
    """What one prompt adds to the steps of those who decode.

    Data-parallel ranks step together and compute prompts side by side, so that as many share one delay.
    """
    together = min(step.data_ranks, max(load.concurrency / 2, 1.0))
    if behaviour.exclusive_prefill:
        return prompt_s(step, load.input_tokens, behaviour) / together
    cached = behaviour.prefix_hits * load.input_tokens
    fresh = load.input_tokens - cached
    tokens = min(fresh, behaviour.step_tokens)
    chunks = fresh / tokens
    alone_s = _verify_s(step, load, behaviour, sequences)
    prompt = (tokens, causal_pairs(fresh, cached) / chunks)
    mixed_s = _verify_s(step, load, behaviour, sequences, prompt)
    return chunks * max(mixed_s - alone_s, 0.0) / together
