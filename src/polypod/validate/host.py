"""What an engine's host makes its chips wait for, of the engines whose rows tell it: times that no kernel table has and the closed form does not know.

* `prompt_layer_s`: a step that has a prompt in it is launched kernel by kernel from Python, as no captured graph replays it. It takes at least so long a layer.
* `gap_s`, `gap_sequence_s`: where the next batch is made only after a step has ended, the chip is idle meanwhile: so long a step, and so much more a decoding sequence.
* `spare_tokens`: what the tokens of a step have room for beside a prompt and one token a client. That of a prompt and 1,000 more, two of 1,024 do not fit into a step. The
  generator's code adds 1,500 under a comment that says 1,000.

These are estimated on TPOT of sweeps and on nothing else: of each grid below what has the least median error. TTFT is judged by them and had no part in it. With each model
left out the others choose the same of `spare_tokens`, and 0.7 or 0.8 ms a layer; with one chip or four left out, 500 tokens (`held_out_play`; `python scripts/accuracy.py --held-out`
prints it).

Tokenising is of all engines, and published: 100,000 tokens in 220 ms on one core.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Final

import msgspec

from polypod.cost.steptime import StepTime
from polypod.validate.rows import Row

TOKENISING_S: Final = 2.2e-6
"""Of a prompt's token: "100k tokens costs only 220ms (~500k tok/s on a single CPU core)", vLLM 0.19 and the tokenizer of MiniMax-M2.5.
https://andyluo7.github.io/llm/amd/mi300x/vllm/lmcache/performance/2026/05/14/cpu-gpu-codesign-agentic-inference-mi300x/"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Of one version of an engine. What nothing is known of waits for nothing."""

    prompt_layer_s: float = 0.0
    gap_s: float = 0.0
    gap_sequence_s: float = 0.0
    spare_tokens: int = 1500


UNKNOWN: Final = Host()

HOSTS: Final = {
    ("trtllm", "1.0.0rc3"): Host(prompt_layer_s=0.8e-3, spare_tokens=1000),
    ("vllm", "0.12.0"): Host(gap_s=1.5e-3, gap_sequence_s=40e-6),
}
"""By engine and version, as the sweeps of Qwen3-235B-A22B, Qwen3-32B and Llama-3.1-8B tell them, and those of Qwen3-32B."""

GRIDS: Final = {
    ("trtllm", "1.0.0rc3"): tuple(
        Host(prompt_layer_s=layer_ms / 1e3, spare_tokens=spare)
        for layer_ms in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9)
        for spare in (500, 1000, 1500)
    ),
    ("vllm", "0.12.0"): tuple(
        Host(gap_s=gap_ms / 1e3, gap_sequence_s=sequence_us / 1e6)
        for gap_ms in (0.0, 1.0, 1.5, 2.0)
        for sequence_us in (0.0, 20.0, 40.0, 60.0)
    ),
}
"""What was tried, of those that rows tell."""


def host_of(row: Row) -> Host:
    """What is known of a sweep's engine."""
    return HOSTS.get((row.backend, row.version), UNKNOWN) if row.sweep else UNKNOWN


def hosted(step: StepTime, host: Host, clients: float, layers: int) -> StepTime:
    """The step time with what its host takes; steps of more tokens than a rank has clients are those with a prompt.

        curve' = max(curve, prompt_layer_s * layers) + gap_s    above clients, curve + gap_s up to them
        sequence_s' = sequence_s + gap_sequence_s

    A prompt so short that with those that decode it has no more tokens than clients is taken for decode.

    >>> step = StepTime(tokens=(1, 101), seconds=(0.010, 0.020), kv_token_s=0.0, pair_s=0.0)
    >>> slower = hosted(step, Host(prompt_layer_s=0.5e-3, gap_s=1e-3), clients=11, layers=30)
    >>> [round(slower.curve_s(tokens), 4) for tokens in (1, 11, 12, 51, 101)]  # 15 ms at least with a prompt
    [0.011, 0.012, 0.016, 0.016, 0.021]
    """
    if host == UNKNOWN:
        return step
    least_s = host.prompt_layer_s * layers
    decoding = float(max(math.ceil(clients / step.data_ranks), 1))
    knots = sorted({*step.tokens, decoding, decoding + 1, *_crossings(step, least_s)})
    return msgspec.structs.replace(
        step,
        tokens=tuple(knots),
        seconds=tuple(
            max(step.curve_s(tokens), least_s if tokens > decoding else 0.0) + host.gap_s
            for tokens in knots
        ),
        sequence_s=step.sequence_s + host.gap_sequence_s,
    )


def _crossings(step: StepTime, least_s: float) -> list[float]:
    """Tokens between two knots at which the curve passes `least_s`."""
    points = list(zip(step.tokens, step.seconds, strict=True))
    return [
        left + (right - left) * (least_s - low_s) / (high_s - low_s)
        for (left, low_s), (right, high_s) in itertools.pairwise(points)
        if low_s < least_s < high_s
    ]
