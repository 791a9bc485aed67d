"""One model, in one layout and precision, on one kind of rank: everything a step of it costs.

With pipeline stages the batch is cut into as many micro-batches, and a round of all of them takes
`pp * stage(batch / pp)`: the pipeline is full, and bubbles at its ends are left out. An engine that overlaps exchanges with
computation (`two_batches`) cuts each of them in two halves once more (`cost.step`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from polypod.cost.calibration import Case, for_chip, of
from polypod.cost.chip import Rank
from polypod.cost.roofline import Number
from polypod.cost.step import StepCost, floor_s, step_cost
from polypod.cost.steptime import StepTime
from polypod.errors import InputError, LayoutError
from polypod.workload.forward import Op, StepShape, step_ops
from polypod.workload.layout import Layout
from polypod.workload.memory import (
    kv_bytes_per_token_per_rank,
    state_bytes_per_sequence_per_rank,
    weight_bytes_per_rank,
    window_bytes_per_token_per_rank,
)
from polypod.workload.model import Model
from polypod.workload.precision import Precision

KNOTS = (
    1,
    2,
    4,
    8,
    16,
    32,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
    6144,
    8192,
    16384,
    32768,
)


NOMINAL_CONTEXT_TOKENS = 8192.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What fills a rank's memory."""

    weight_bytes: float
    activation_bytes: float
    usable_bytes: float
    kv_bytes_per_token: float  # past every window
    window_bytes_per_token: Mapping[int, float] = field(default_factory=dict)  # by its width
    state_bytes_per_sequence: float = 0.0

    @property
    def kv_bytes(self) -> float:
        """What is left for the cache; negative where the weights do not fit."""
        return self.usable_bytes - self.weight_bytes - self.activation_bytes

    def fixed_bytes(self, context_tokens: float) -> float:
        """What one sequence keeps beside its growing cache: full or part-filled windows, and states."""
        windows = self.window_bytes_per_token.items()
        return self.state_bytes_per_sequence + sum(
            min(width, context_tokens) * each for width, each in windows
        )

    def cache_bytes(self, *, sequences: float, context_tokens: float) -> float:
        """Everything that is kept of sequences of one length."""
        grown = sequences * context_tokens * self.kv_bytes_per_token
        return grown + sequences * self.fixed_bytes(context_tokens)

    def tokens_of(self, context_tokens: float) -> float:
        """Tokens of sequences of one length that one rank holds; never negative.

        Where windows and states are kept, long sequences take less for each token than short ones.
        """
        each = self.kv_bytes_per_token + self.fixed_bytes(context_tokens) / context_tokens
        return max(self.kv_bytes, 0.0) / each

    @property
    def kv_tokens(self) -> float:
        """The same of sequences of 8,192 tokens; without windows and states, of any."""
        return self.tokens_of(NOMINAL_CONTEXT_TOKENS)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A model cut onto ranks. Raises `LayoutError` where no tier of known bandwidth joins so many."""

    model: Model
    layout: Layout
    precision: Precision
    rank: Rank
    backend: str | None = None  # whose kernels; None: the rank's own calibration
    scale: float = 1.0  # on every step: a person's own calibration
    two_batches: bool = False  # the engine exchanges one half's tokens while it computes the other

    def __post_init__(self) -> None:
        reach = self.rank.reach
        if reach is not None and self.layout.world > reach:
            msg = (
                f"{self.layout.world} ranks of {self.rank.chip} are more than its links of known bandwidth join; "
                f"use at most {reach} together"
            )
            raise LayoutError(msg)

    @cached_property
    def served(self) -> Rank:
        """The rank under the engine's kernels. Raises `InputError` for an unknown engine."""
        if self.backend is None:
            return self.rank
        return replace(self.rank, calibration=for_chip(self.rank.chip, self.backend))

    @classmethod
    def make(
        cls, model: Model, layout: Layout, precision: Precision, rank: Rank, scale: float = 1.0
    ) -> Self:
        return cls(model=model, layout=layout, precision=precision, rank=rank, scale=scale)

    def ops(
        self,
        *,
        sequences: Number = 0.0,
        kv_tokens: Number = 0.0,
        prompt_tokens: Number = 0.0,
        pairs: Number = 0.0,
        drafts: float = 0.0,
    ) -> list[Op]:
        """The operators of one stage's micro-batch, on the busiest rank; of either half of it with `two_batches`."""
        pieces = self.layout.pp * self._halves
        shape = StepShape(
            prompt_tokens=prompt_tokens / pieces,
            decode_sequences=sequences / pieces,
            kv_tokens=kv_tokens / pieces,
            pairs=pairs / pieces,
            drafts=drafts,
        )
        return step_ops(self.model, self.layout, self.precision, shape)

    def cost(self, ops: list[Op], case: Case = "likely") -> StepCost:
        """The step with its reasons."""
        return step_cost(ops, self.served, self.layout, case, two_batches=self.two_batches)

    @property
    def _halves(self) -> int:
        return 2 if self.two_batches else 1

    def step_s(
        self,
        *,
        sequences: Number = 0.0,
        kv_tokens: Number = 0.0,
        prompt_tokens: Number = 0.0,
        pairs: Number = 0.0,
        drafts: float = 0.0,
        case: Case = "likely",
    ) -> Number:
        """Seconds of one step; arrays broadcast. All quantities are per data-parallel rank."""
        ops = self.ops(
            sequences=sequences,
            kv_tokens=kv_tokens,
            prompt_tokens=prompt_tokens,
            pairs=pairs,
            drafts=drafts,
        )
        fits = self.served.calibration
        sampling_s = of(fits.engine.sequence_s, case) * sequences
        factor = self.scale * of(fits.step_factor, case)
        return factor * (self.cost(ops, case).total_s + sampling_s)

    def floor_s(self, ops: list[Op]) -> Number:
        """What no kernel and no engine can beat on this chip's specification."""
        return self._halves * floor_s(ops, self.served, self.layout)

    def memory(self, step_tokens: int = 8192) -> Memory:
        """What fills a rank, with activations for `step_tokens` tokens at once."""
        return Memory(
            weight_bytes=float(weight_bytes_per_rank(self.model, self.layout, self.precision)),
            activation_bytes=4.0 * 2 * self.model.hidden * min(step_tokens, 16384),
            usable_bytes=self.rank.memory_bytes * self.served.calibration.engine.memory_fraction,
            kv_bytes_per_token=float(
                kv_bytes_per_token_per_rank(self.model, self.layout, self.precision)
            ),
            window_bytes_per_token={
                width: float(each)
                for width, each in window_bytes_per_token_per_rank(
                    self.model, self.layout, self.precision
                ).items()
            },
            state_bytes_per_sequence=float(
                state_bytes_per_sequence_per_rank(self.model, self.layout)
            ),
        )

    def step_time(self, case: Case = "likely") -> StepTime:
        """The coefficients that the emulation and the router read.

        The curve is taken with every token of the step in decode, one row per sequence at the head; a prompt's tokens then
        cost what its GEMMs and exchanges cost, its pairs and the cache reads their own terms.
        """
        tokens = np.array(KNOTS, dtype=float)
        bare = np.asarray(self.step_s(prompt_tokens=tokens, sequences=0.0, case=case), dtype=float)
        many = 1e6
        base = float(self.step_s(sequences=1.0, case=case))
        prompt = float(self.step_s(prompt_tokens=1.0, case=case))
        if self.model.is_bounded:
            kv_token_s, window_s, pair_s = self._bounded(base, case)
        else:
            window_s = 0.0
            read_s = float(self.step_s(sequences=1.0, kv_tokens=many, case=case)) - base
            kv_token_s = read_s / many
            paired_s = float(self.step_s(prompt_tokens=1.0, pairs=many**2, case=case)) - prompt
            pair_s = paired_s / many**2
        head_s = float(self.step_s(sequences=256.0, case=case)) - float(bare[KNOTS.index(256)])
        attend_s = max(base - prompt, 0.0)
        return StepTime(
            tokens=tuple(float(knot) for knot in KNOTS),
            seconds=tuple(float(second) + attend_s for second in bare),
            kv_token_s=max(kv_token_s, 0.0),
            pair_s=max(pair_s, 0.0),
            sequence_s=max((head_s - attend_s) / 256, 0.0) + window_s,
            data_ranks=self.layout.dp,
            stages=self.layout.pp,
        )

    def _bounded(self, base: float, case: Case) -> tuple[float, float, float]:
        """Seconds per cached token, per sequence and per pair of a model whose layers do not all attend to everything.

        A token of context costs what it costs past every bound, and each sequence the bounded layers' whole width: right
        beyond the width, high below it. Pairs are those of a prompt of 8,192 tokens, as a straight line through it.
        """
        many = 1e6
        one, two = (
            float(self.step_s(sequences=1.0, kv_tokens=kv_tokens, case=case))
            for kv_tokens in (many, 2 * many)
        )
        kv_token_s = max(two - one, 0.0) / many
        window_s = max(one - base - kv_token_s * many, 0.0)
        prompt, pairs = NOMINAL_CONTEXT_TOKENS, NOMINAL_CONTEXT_TOKENS**2 / 2
        bare, paired = (
            float(self.step_s(prompt_tokens=prompt, pairs=count, case=case))
            for count in (0.0, pairs)
        )
        return kv_token_s, window_s, max(paired - bare, 0.0) / pairs

    def transfer_s(self, tokens: float) -> float:
        """Seconds that the cache of so many tokens takes out of the replica: every rank sends its share over the outermost link of known bandwidth.

        0 where no link is known: one accelerator alone hands its cache to nobody.
        """
        links = self.served.links(self.served.calibration.reduction, "likely")
        if not links:
            return 0.0
        return tokens * self.memory().kv_bytes_per_token / links[-1].bytes_per_s

    @cached_property
    def accelerators(self) -> float:
        """Packages one replica takes; a fraction where a package holds several replicas."""
        return self.layout.world / self.rank.ranks_per_accelerator


def native_precision(model: Model, rank: Rank) -> Precision:
    """The precision a model is served at on a rank; see `precision_in`."""
    return precision_in(model, rank.chip, rank.peak_flops_per_s)


def precision_in(model: Model, chip: str, have: Collection[str]) -> Precision:
    """The precision a model is served at where a chip computes in the formats of `have`: its own, else the nearest it can.

    8-bit weights run as fp8 where there is an fp8 peak, as int8 where there is that one, else widened to bf16. 4-bit weights
    stay in 4 bits: floating ones compute in fp4 where there is an fp4 peak, and all others are widened in the kernel.

    Raises `InputError` where nothing on record is wide enough.
    """
    wide = next((dtype for dtype in ("bf16", "fp16", "fp32") if dtype in have), "")
    if model.weight_dtype in {"int4", "mxfp4", "nvfp4"}:
        floating = model.weight_dtype != "int4"
        compute = "fp4" if floating and "fp4" in have else wide
        if compute:
            return Precision(weights=model.weight_dtype, kv="bf16", compute=compute)
    if model.weight_dtype in have:
        compute = model.weight_dtype
    elif model.weight_dtype in {"fp8", "int8"} and "int8" in have:
        compute = "int8"
    else:
        compute = wide
    if not compute:
        known = ", ".join(sorted(have)) or "none"
        msg = f"{chip} has no peak on record that {model.name} can compute in; it has {known}"
        raise InputError(msg)
    return Precision(weights=compute, kv="bf16")
