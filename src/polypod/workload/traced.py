"""What a trace of a model says, and whether it can be right.

A trace runs an architecture of `transformers` on tensors without data (`workload/trace`) and counts what it would compute. Here are the
figures it leaves and the laws they have to obey; nothing here needs torch.

FLOPs are counted twice for a multiplication with its addition, once for every other arithmetic operation:

    gemm         a weight times activations, the routed experts' apart
    experts      the routed experts' weights times the tokens that chose them
    attention    activations times activations: scores and values of every pair, the masked ones too, no window cut
    scan         the same inside a recurrent mixer
    conv         convolutions
    elementwise  one for each element of each pointwise result, a recurrence written in such steps among them

`n` is a length: tokens of one sequence, or, where `unit` is "inputs", whole inputs (images, sounds) of the size that the config says.
"""

from collections.abc import Callable
from typing import Final, Literal

import msgspec

TOLERANCE: Final = 0.01

ENCODER: Final = "encoder and decoder"
LATENT: Final = "makes keys of cached latents at every step"


class Flops(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """FLOPs of one forward pass by kind."""

    gemm: int = 0
    experts: int = 0
    attention: int = 0
    scan: int = 0
    conv: int = 0
    elementwise: int = 0

    @property
    def matrix(self) -> int:
        """What a matrix unit does: all but the elementwise ones."""
        return self.gemm + self.experts + self.attention + self.scan + self.conv


class Pass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One forward pass, and what was counted beside it by another way."""

    n: int  # tokens of a prompt, cached tokens before a decode step, or inputs at once
    flops: Flops
    linear_flops: int = (
        0  # 2 x inputs x outputs x rows of every linear layer called, by forward hooks
    )
    cache_bytes: int = 0  # that the pass leaves, of a prompt


class Traced(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One architecture with one config, as traced."""

    model_type: str
    architecture: str  # the class
    transformers: str  # versions
    torch: str
    unit: Literal["tokens", "inputs"] = "tokens"
    parameters: int  # tied ones once
    used_parameters: int = (
        0  # those that the pass read: without an encoder of images beside a pass of text
    )
    expert_parameters: int = 0  # of the routed experts
    weight_bytes: int  # in bf16, buffers left out
    prompt: tuple[Pass, Pass]  # of two lengths, the second twice the first
    decode: tuple[Pass, ...] = ()  # one token after each of those lengths; none without a cache
    experts: int | None = None  # routed ones in a layer, by the config
    experts_per_token: int | None = None
    formula_cache_bytes: int | None = (
        None  # a token's keys and values by the config's shape, where attention is standard
    )
    how: tuple[str, ...] = ()  # what it took to trace it

    @property
    def active_parameters(self) -> int:
        """Those one token passes through: all that are used but the routed experts that it does not choose. Of inputs: all used."""
        first = self.prompt[0]
        if not self.expert_parameters or self.unit == "inputs":
            return self.used_parameters
        chosen = round(first.flops.experts / (2 * first.n))
        return self.used_parameters - self.expert_parameters + chosen

    @property
    def cache_bytes_per_token(self) -> float:
        """What each further token adds between the two lengths; a layer with a wider window than both counts like a full one."""
        first, second = self.prompt
        return (second.cache_bytes - first.cache_bytes) / (second.n - first.n)

    @property
    def cache_bytes_per_sequence(self) -> float:
        """What is kept of a sequence whatever its length: states of recurrent layers."""
        return self.prompt[0].cache_bytes - self.prompt[0].n * self.cache_bytes_per_token


def agree(one: float, other: float, tolerance: float = TOLERANCE) -> bool:
    """Whether two counts are the same within a share of the greater.

    >>> agree(100, 100.9), agree(100, 102), agree(0, 0)
    (True, False, True)
    """
    return abs(one - other) <= tolerance * max(abs(one), abs(other))


def checks(traced: Traced) -> dict[str, bool]:
    """Every law that speaks of this trace, and whether it holds. What a law does not speak of is not in the answer.

    linear     the gemm FLOPs are those of the linear layers by hooks
    gemm       twice the length, twice the gemm FLOPs
    experts    twice the length, twice the experts' FLOPs
    chosen     those are the share of the experts' parameters that the config says a token chooses
    attention  twice the length, four times the attention FLOPs; twice the inputs, twice
    decode     a step does one token's share of the prompt's gemm and experts' FLOPs
    context    its attention FLOPs are those of one row of the prompt's: attention / n x (n + 1) / n
    cache      a token's cache is what the config's formula says
    """
    return {name: law(traced) for name, (speaks, law) in _LAWS.items() if speaks(traced)}


def is_checked(traced: Traced) -> bool:
    """Whether the independent count and every other law that speaks of this trace hold."""
    found = checks(traced)
    return "linear" in found and all(found.values())


def _linear(traced: Traced) -> bool:
    return all(agree(one.flops.gemm, one.linear_flops) for one in (*traced.prompt, *traced.decode))


def _grows(kind: str, traced: Traced, by: int) -> bool:
    first, second = (getattr(one.flops, kind) for one in traced.prompt)
    return agree(by * first, second)


def _chosen(traced: Traced) -> bool:
    assert traced.experts is not None
    assert traced.experts_per_token is not None
    share = traced.experts_per_token / traced.experts
    return all(
        agree(one.flops.experts, 2 * one.n * share * traced.expert_parameters)
        for one in traced.prompt
    )


def _decode(traced: Traced) -> bool:
    return all(
        agree(
            step.flops.gemm + step.flops.experts,
            (whole.flops.gemm + whole.flops.experts) / whole.n,
        )
        for step, whole in zip(traced.decode, traced.prompt, strict=True)
    )


def _context(traced: Traced) -> bool:
    return all(
        agree(step.flops.attention, whole.flops.attention / whole.n * (whole.n + 1) / whole.n)
        for step, whole in zip(traced.decode, traced.prompt, strict=True)
    )


def _is_decoder(traced: Traced) -> bool:
    """Whether a step can be compared with a prompt: not behind an encoder, nor where each step makes keys of latents anew."""
    return bool(traced.decode) and not {ENCODER, LATENT}.intersection(traced.how)


_Law = Callable[[Traced], bool]
_LAWS: Final[dict[str, tuple[_Law, _Law]]] = {
    "linear": (lambda t: t.prompt[0].flops.gemm > 0, _linear),
    "gemm": (lambda t: t.prompt[0].flops.gemm > 0, lambda t: _grows("gemm", t, 2)),
    "experts": (lambda t: t.prompt[0].flops.experts > 0, lambda t: _grows("experts", t, 2)),
    "chosen": (
        lambda t: bool(t.experts and t.experts_per_token and t.prompt[0].flops.experts),
        _chosen,
    ),
    "attention": (
        lambda t: t.prompt[0].flops.attention > 0,
        lambda t: _grows("attention", t, 4 if t.unit == "tokens" else 2),
    ),
    "decode": (_is_decoder, _decode),
    "context": (lambda t: _is_decoder(t) and t.prompt[0].flops.attention > 0, _context),
    "cache": (
        lambda t: t.formula_cache_bytes is not None,
        lambda t: t.cache_bytes_per_token == t.formula_cache_bytes,
    ),
}
