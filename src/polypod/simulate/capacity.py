"""What a fleet can carry at given lengths, roughly, so that a run which must fail is known for it before it is played.

A rank with n sequences in decode gives n tokens a step, and takes a prompt's tokens into those steps, each for what a full step takes more than one of
decode alone. With P prompt and O output tokens, B the step's budget and T(...) the step time,

    seconds of a request = P * (T(B) - T(n)) / B + O / n * T(n, n * (P + O / 2))
    requests a second    = data-parallel ranks / seconds of a request

with as many sequences as slots and cache hold. Prefill replicas have the first term alone, with T(B) whole; decode replicas the second. Cached prefixes,
waiting and unevenness are left out: what is found is within some ten percent of what a run reaches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from polypod.cost.steptime import causal_pairs
from polypod.engine.replica import PLAIN
from polypod.policy.events import ReplicaUp


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Mean lengths of one model's requests, and how many come in a second."""

    rate_per_s: float
    input_tokens: float
    output_tokens: float


def held_tokens(replicas: Sequence[ReplicaUp], model: str) -> int:
    """The longest request, prompt and answer, that any replica of the model holds; of those for one phase the least of both phases."""
    limits: dict[str, int] = {}
    for up in replicas:
        if up.model == model:
            limit = min(up.context_tokens, up.kv_capacity_tokens // up.step_time.data_ranks)
            limits[up.role] = max(limits.get(up.role, 0), limit)
    apart = min(limits.get("prefill", 0), limits.get("decode", 0))
    return max(limits.get("both", 0), apart)


def capacity_per_s(replicas: Sequence[ReplicaUp], model: str, lengths: Lengths) -> float:
    """Requests of these lengths that the model's replicas finish in a second, about."""
    rates = {"both": 0.0, "prefill": 0.0, "decode": 0.0}
    for up in replicas:
        if up.model == model:
            rates[up.role] += up.step_time.data_ranks / _request_s(up, lengths)
    return rates["both"] + min(rates["prefill"], rates["decode"])


def _request_s(up: ReplicaUp, lengths: Lengths) -> float:
    """Seconds of one data-parallel rank that a request takes."""
    step, engine = up.step_time, up.engine or PLAIN
    asked = max(lengths.input_tokens * (1 - engine.prefix_hits), 1.0)
    budget = min(float(up.max_step_tokens), asked)
    pairs = causal_pairs(budget, (asked - budget) / 2)
    full_s = step.step_s(tokens=budget, pairs=pairs)
    if up.role == "prefill":
        return asked / budget * full_s
    mean_tokens = lengths.input_tokens + lengths.output_tokens / 2
    room = up.kv_capacity_tokens / step.data_ranks / mean_tokens
    sequences = max(min(up.max_sequences / step.data_ranks, room), 1.0)
    checked = sequences * (1 + engine.drafts)
    alone_s = step.step_s(tokens=checked, kv_tokens=sequences * mean_tokens, sequences=sequences)
    decode_s = lengths.output_tokens / engine.tokens_per_step / sequences * alone_s
    if up.role == "decode":
        return decode_s
    shared_s = step.curve_s(budget + checked) - step.curve_s(checked) + step.pair_s * pairs
    return decode_s + asked / budget * (full_s if engine.exclusive_prefill else shared_s)
