"""Traces that are kept in one file, and beside them what Polypod's own description of the same model says."""

from typing import Final, Literal

import msgspec

from polypod.workload.forward import StepShape, step_ops
from polypod.workload.layout import Layout
from polypod.workload.model import Model, active_parameters, parameters
from polypod.workload.precision import Precision
from polypod.workload.traced import LATENT, Traced, agree, checks, is_checked


class Native(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same figures from the description, as far as they can be compared: matrix products, without a recurrence's."""

    parameters: int
    active_parameters: int
    prompt_flops: int  # of the trace's second length, every position's logits, every pair
    step_flops: int  # one token after as many
    agrees: dict[str, bool]
    differs: dict[str, str]  # why, of what does not


class Row(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One architecture with default config, or one model of the catalog."""

    kind: Literal["model", "type"]
    name: str
    traced: Traced | None = None
    problem: str = ""  # why it cannot be traced
    native: Native | None = None


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file: one row a line."""

    rows: list[Row]


def read_kept(text: bytes) -> Kept:
    """Raises `msgspec.ValidationError` for a file of another form."""
    return msgspec.json.decode(text, type=Kept)


def write_kept(kept: Kept) -> bytes:
    """JSON with a line for each row, so that a change of one is seen as one."""
    lines = b",\n".join(msgspec.json.encode(row) for row in kept.rows)
    return b'{"rows":[\n' + lines + b"\n]}\n"


def distinct_checked(rows: list[Row]) -> int:
    """Architecture classes with at least one trace that passed every check that speaks of it."""
    return len({row.traced.architecture for row in rows if row.traced and is_checked(row.traced)})


def native_flops(model: Model, shape: StepShape) -> float:
    """FLOPs of a step of a whole model on one rank, without what a recurrence does between its projections.

    >>> from polypod.workload.model import Dense, Gqa, LayerGroup
    >>> layer = LayerGroup(count=1, attention=Gqa(heads=1, kv_heads=1, head_dim=4), feed_forward=Dense(intermediate=8))
    >>> tiny = Model(name="tiny", model_type="llama", hidden=4, vocab=10, tied=True, layers=(layer,), mtp_layers=0,
    ...              context_tokens=None, weight_dtype="bf16")
    >>> native_flops(tiny, StepShape(prompt_tokens=1, pairs=1, finished_prompts=1))  # 64 + 96 weights, 4 x 10 of the head
    416.0
    """
    ops = step_ops(model, Layout(), Precision(weights="bf16", kv="bf16"), shape)
    return float(sum(op.count * op.flops for op in ops if not op.name.endswith("recurrence")))


def compared(traced: Traced, model: Model) -> Native:
    """A trace beside a description: parameters, and FLOPs of the second prompt and of the step after it.

    A trace computes every pair, the masked ones too, and every position's logits; the description is asked for the same.
    """
    whole = traced.prompt[1]
    n = whole.n
    prompt = native_flops(model, StepShape(prompt_tokens=n, pairs=n * n, finished_prompts=n))
    step = native_flops(model, StepShape(decode_sequences=1, kv_tokens=n + 1))
    pairs = {
        "parameters": (_described_parameters(traced, parameters(model)), parameters(model)),
        "active": (traced.active_parameters, active_parameters(model)),
        "prompt": (_products(traced, 0), prompt),
    }
    if traced.decode:
        pairs["step"] = (_products(traced, 1), step)
    agrees = {
        name: one == other if name == "parameters" else agree(one, other)
        for name, (one, other) in pairs.items()
    }
    return Native(
        parameters=parameters(model),
        active_parameters=active_parameters(model),
        prompt_flops=round(prompt),
        step_flops=round(step),
        agrees=agrees,
        differs={
            name: _why(name, traced, *pairs[name]) for name, same in agrees.items() if not same
        },
    )


def _described_parameters(traced: Traced, described: int) -> int:
    """Weights that operators read; all of them where those are the description's, as so short a prompt leaves some unread."""
    return described if traced.parameters == described else traced.used_parameters


def _products(traced: Traced, which: int) -> int:
    one = (traced.prompt[1], traced.decode[-1] if traced.decode else traced.prompt[1])[which]
    return one.flops.gemm + one.flops.experts + one.flops.attention


_LEFT_OUT: Final = {
    "falcon": "the bias of the last norm",
    "phimoe": "the biases of the last norm and, where there is one, of the head",
    "gpt_oss": "the routers' biases",
    "gemma4": "one scale for each expert",
}
"""Vectors that a description leaves out, less than a hundred-thousandth of the model, by the trace's model type."""


def _why(name: str, traced: Traced, one: float, other: float) -> str:
    """What is known to make the difference, with its size."""
    size = f"{one / other - 1:+.2%} traced"
    if name == "parameters":
        reason = _LEFT_OUT.get(traced.model_type) if agree(one, other, 1e-5) else None
        return f"{one - other:+,} traced: {reason or 'not explained'}"
    if name == "step" and LATENT in traced.how:
        return f"{size}: transformers makes keys and values of all cached latents at every step; described is the step in the latent space"
    if checks(traced).get("chosen") is False:
        return f"{size}: transformers runs every expert on every token; described is the choice"
    return f"{size}: not explained"
