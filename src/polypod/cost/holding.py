"""Which accelerators hold a model, in how many cards: memory alone, before any speed.

A chip holds a model cut tp ways if weights and the cache of one sequence fit into the fraction of each rank's memory that an
engine lets them fill. tp is a power of two that the model can be cut by; a card of two ranks counts once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from polypod.catalog.schema import Accelerator
from polypod.cost.calibration import for_chip
from polypod.cost.deployment import precision_in
from polypod.errors import InputError, LayoutError
from polypod.workload.layout import Layout, check_layout
from polypod.workload.memory import (
    kv_bytes_per_token_per_rank,
    state_bytes_per_sequence_per_rank,
    weight_bytes_per_rank,
    window_bytes_per_token_per_rank,
)
from polypod.workload.model import Model
from polypod.workload.precision import Precision

SEQUENCE_TOKENS: Final = 8192
"""Context of the one sequence whose cache must fit, or the model's own where that is shorter."""

_MOST_WAYS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A model cut `tp` ways: what each rank then keeps."""

    tp: int
    per_rank_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """A chip and the fewest cards of it that hold a model; why not, where `cards` is None."""

    chip: str
    weights: str | None = None  # what the weights are stored in there
    tp: int | None = None
    cards: int | None = None
    why_not: str | None = None


def sequence_tokens(model: Model) -> int:
    return min(model.context_tokens or SEQUENCE_TOKENS, SEQUENCE_TOKENS)


def cuts(model: Model, precision: Precision) -> list[Cut]:
    """Every power of two that a model can be cut by, fewest first."""
    return list(_cuts(model, precision))


def _cuts(model: Model, precision: Precision) -> Iterator[Cut]:
    tp = 1
    while tp <= _MOST_WAYS:
        layout = Layout(tp=tp)
        try:
            check_layout(model, layout)
        except LayoutError:
            return
        yield Cut(tp=tp, per_rank_bytes=_kept_bytes(model, layout, precision))
        tp *= 2


def _kept_bytes(model: Model, layout: Layout, precision: Precision) -> float:
    """Weights of a rank, and its part of one sequence's cache."""
    tokens = sequence_tokens(model)
    windows = window_bytes_per_token_per_rank(model, layout, precision)
    return float(
        weight_bytes_per_rank(model, layout, precision)
        + tokens * kv_bytes_per_token_per_rank(model, layout, precision)
        + sum(min(tokens, width) * each for width, each in windows.items())
        + state_bytes_per_sequence_per_rank(model, layout)
    )


def holdings(model: Model, chips: list[Accelerator]) -> list[Holding]:
    """One for each chip whose memory is on record, fewest cards first, then by id; those that cannot, last."""
    found: list[Holding] = []
    known: dict[str, list[Cut]] = {}
    for chip in chips:
        if chip.memory_bytes is None:
            continue
        try:
            precision = precision_in(model, chip.id, chip.peak_flops_per_s)
        except InputError as error:
            found.append(Holding(chip=chip.id, why_not=str(error)))
            continue
        if precision.weights not in known:
            known[precision.weights] = cuts(model, precision)
        found.append(_held(model, chip, precision.weights, known[precision.weights]))
    return sorted(found, key=lambda one: (one.cards is None, one.cards or 0, one.chip))


def _held(model: Model, chip: Accelerator, weights: str, by_tp: list[Cut]) -> Holding:
    assert chip.memory_bytes is not None
    fraction = for_chip(chip.id).engine.memory_fraction
    usable_bytes = chip.memory_bytes.value / chip.ranks * fraction
    for cut in by_tp:
        if cut.per_rank_bytes <= usable_bytes:
            cards = -(-cut.tp // chip.ranks)
            return Holding(chip=chip.id, weights=weights, tp=cut.tp, cards=cards)
    last = by_tp[-1]
    why_not = (
        f"cut {last.tp} ways, as far as tp goes for {model.name}, a rank keeps {last.per_rank_bytes / 1e9:.1f} GB in {weights}; "
        f"{chip.id} has {usable_bytes / 1e9:.1f}"
    )
    return Holding(chip=chip.id, weights=weights, why_not=why_not)
