"""How a row's engine put its steps together, and what its benchmark sent: what scripts and defaults say, which the closed form does not read.

* Overlap: TensorRT-LLM's and SGLang's schedulers make a step's batch while the step before it runs, by default; aiconfigurator leaves it on for servers of
  both phases. InferenceX's vLLM scripts set `async-scheduling`; vLLM 0.12, which the sweeps ran, is without it by default.
* Whole prompts: TensorRT-LLM without `enable_chunked_context`, which no script sets.
* Balance: InferenceX's TensorRT-LLM scripts set `attention_dp_config.enable_balance` where attention is data-parallel: prompts wait until every rank has one, for 60 steps at
  most with DeepSeek, elsewhere for 50, the default of `timeout_iters`.
* Tokens of a step: of InferenceX's TensorRT-LLM scripts `max_num_tokens`: for DeepSeek clients (a quarter of them with data-parallel attention in those that draft,
  each with its drafts) and a prompt and 64 in full 64s, since 21 January 2026 8,192 at least but where they draft; for gpt-oss 20,000, for Llama 16,384. Sweeps were run on what
  aiconfigurator generates: a prompt, as many as the batch, and 1,500, or what `host` has in its place.
* Sweeps send as many requests a client as their means tell, all of one length, after two that warm up. genai-perf takes a mean over nanoseconds, so that mean * requests is whole:
  of 20 a client and 2,000 in all in 556 of 563 rows of TensorRT-LLM 1.0.0rc3 and SGLang 0.5.1 and 0.5.8, of 10 in 90 of 93 of vLLM 0.12; in 36 rows of Llama-3.1-8B one or two are
  missing from the mean. Where the means do not tell, ten, which aiconfigurator's runner asks for
  (eval/benchmarks/genai_perf_runner.py at 3a40d4eaf, 2025-09). The closed form reads instead what was set while looking at these rows: 8.5 requests a client, and that one who comes
  alone waits for 2.7 prompts.
* The same runner asks the chat endpoint, whose template adds to each prompt: 8 tokens with Qwen3, 35 with Llama 3.1 (with a system message of the day), 3 with DeepSeek. With 8,192 tokens a step,
  prompts of 1,024 then fit seven and a piece at a time and not eight.
* The cache of sweeps is of 8 bits where weights are, as aiconfigurator asks on Hopper and later; steps read it as it lies in memory, where the closed form reads 16.

Read off https://github.com/SemiAnalysisAI/InferenceX (benchmarks/, Apache-2.0) and https://github.com/ai-dynamo/aiconfigurator
(src/aiconfigurator/generator, sdk/task.py, Apache-2.0) as of the rows' months; nothing here was fitted but what comes of `host`.
"""

from dataclasses import replace
from typing import Final

from polypod.engine.closed_loop import Behaviour, Load
from polypod.validate.host import Host
from polypod.validate.rows import DRAWN_LENGTHS, Row

_SWEEP_REQUESTS: Final = 10.0
"""That each client of a sweep sends, as the runner has it."""

COUNTED_REQUESTS: Final = {
    ("trtllm", "1.0.0rc3"): 20.0,
    ("sglang", "0.5.1.post1"): 20.0,
    ("sglang", "0.5.8.post1"): 20.0,
    ("vllm", "0.12.0"): 10.0,
}
"""The same, of those whose means tell it."""

MOST_REQUESTS: Final = 2000
"""Of all clients of a sweep together, as its means tell too."""

_TEMPLATE_TOKENS: Final = {"qwen3": 8.0, "llama-3.1": 35.0, "deepseek": 3.0}
"""What a chat's template puts around a message."""

_FLOOR_SINCE: Final = "2026-02"
"""The first whole month in which InferenceX's TensorRT-LLM scripts for DeepSeek ask for 8,192 tokens at least."""


def sent(row: Row, load: Load, requests_per_client: float | None = None) -> Load:
    """The load as its benchmark sends it: a sweep without what was set on sweeps. `requests_per_client` is what a user says of it."""
    if not row.sweep:
        return load
    return Load(
        input_tokens=load.input_tokens + _template_tokens(row),
        output_tokens=load.output_tokens,
        concurrency=load.concurrency,
        waves=requests_sent(row) if requests_per_client is None else requests_per_client,
        length_spread=load.length_spread,
        cold_s=load.cold_s,
    )


def requests_sent(row: Row) -> float:
    """That each client of a sweep sent."""
    each = COUNTED_REQUESTS.get((row.backend, row.version), _SWEEP_REQUESTS)
    return min(each, MOST_REQUESTS / row.concurrency)


def _template_tokens(row: Row) -> float:
    model = row.model.casefold()
    return next((tokens for name, tokens in _TEMPLATE_TOKENS.items() if name in model), 0.0)


def scheduled(row: Row, behaviour: Behaviour, host: Host) -> Behaviour:
    """The same engine, with how it puts steps together."""
    step_tokens = _step_tokens(row, host)
    return replace(
        behaviour,
        schedules_ahead=row.backend in {"trtllm", "sglang"}
        or (row.backend == "vllm" and not row.sweep),
        whole_prompts=row.backend == "trtllm",
        balance_steps=_balance_steps(row),
        step_tokens=behaviour.step_tokens if step_tokens is None else step_tokens,
    )


def _balance_steps(row: Row) -> int:
    if row.backend != "trtllm" or row.mode != "agg" or row.sweep or row.workers.layout.dp == 1:
        return 0
    return 60 if "deepseek" in row.model.casefold() else 50


def cache_of(row: Row, kv: str) -> str:
    """The format of a cached token in memory, where `kv` is what steps are timed with."""
    is_small = row.sweep and row.backend == "trtllm" and row.precision.startswith("fp8")
    return "fp8" if is_small else kv


def _step_tokens(row: Row, host: Host) -> float | None:
    """None: what `predict` takes."""
    if row.mode != "agg" or row.backend == "sglang":
        return None
    if row.sweep:
        return row.concurrency + row.input_tokens + host.spare_tokens
    if row.backend != "trtllm":
        return None
    model = row.model.casefold()
    if "gpt-oss" in model:
        return 20_000.0
    if "llama" in model:
        return 16_384.0
    return _deepseek_tokens(row) if "deepseek" in model else None


def _deepseek_tokens(row: Row) -> float:
    spread = row.workers.layout.dp > 1
    sequences = row.concurrency / 4 if spread and row.speculative else row.concurrency
    each = 1.0 if not row.speculative else 2.0 if spread else 4.0
    prompt = round(row.input_tokens / DRAWN_LENGTHS)
    asked = (each * sequences + prompt + 64 + 63) // 64 * 64
    is_floored = row.measured >= _FLOOR_SINCE and not row.speculative
    return max(asked, 8192.0) if is_floored else asked
