"""How one replica of a model is cut over ranks, and which cuts a model can have.

    tp   tensor parallel: heads, feed-forward columns and vocabulary are sliced
    pp   pipeline stages: consecutive layers
    dp   data-parallel attention: each of dp groups of tp ranks has sequences of its own, and all attention weights
    ep   expert parallel: whole experts are spread over ep groups of the stage's tp * dp ranks; the tp * dp / ep ranks of a
         group hold slices of the same experts
    cp   context parallel

Experts that ep does not divide leave slots over: each rank holds ceil(experts / ep), and the slots that are left hold copies of the
busiest experts, which is how large deployments even out their ranks (DeepSeek decodes on 144 ranks with 32 copies, LMSYS on 72).

world = tp * pp * dp * cp ranks; ep cuts the same ranks another way and adds none.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polypod.catalog.schema import Count, Strict
from polypod.errors import LayoutError
from polypod.workload.model import Dense, Gqa, LayerGroup, Model, Moe

Whole = NDArray[np.float64]
"""Whole numbers, as floats so that they broadcast with everything else."""


class Layout(Strict, frozen=True, kw_only=True, omit_defaults=True):
    """One cut. `Layout(tp=8)` is eight ranks that share every layer."""

    tp: Count = 1
    pp: Count = 1
    dp: Count = 1
    ep: Count = 1
    cp: Count = 1

    @property
    def world(self) -> int:
        return self.tp * self.pp * self.dp * self.cp


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutGrid:
    """Many cuts at once: arrays of whole numbers that broadcast together, for a search in one pass. `cp` is 1."""

    tp: Whole
    pp: Whole
    dp: Whole
    ep: Whole

    @property
    def world(self) -> Whole:
        return self.tp * self.pp * self.dp


AnyLayout = Layout | LayoutGrid


def check_layout(model: Model, layout: Layout) -> None:
    """Refuse a layout this model cannot have. Raises `LayoutError` with the thing, the value and the way out.

    Grouped-query keys and values are copied where tp exceeds their heads, and the latent cache of MLA always is, so neither
    is an error; each copy takes memory.
    """
    if layout.cp > 1:
        msg = (
            f"cp={layout.cp}: context parallelism is not modelled; use cp=1 and cut by tp, pp or dp"
        )
        raise LayoutError(msg)
    if layout.pp > model.num_layers:
        msg = f"pp={layout.pp} stages for the {model.num_layers} layers of {model.name}; make pp at most {model.num_layers}"
        raise LayoutError(msg)
    for group in model.layers:
        _check_attention(model, group, layout)
        if isinstance(group.feed_forward, Dense):
            _check_divides("tp", layout.tp, "feed-forward columns", group.feed_forward.intermediate)
        elif isinstance(group.feed_forward, Moe):
            _check_experts(model, group.feed_forward, layout)
    if not model.is_moe and layout.ep > 1:
        msg = f"ep={layout.ep}: {model.name} has no experts; use ep=1"
        raise LayoutError(msg)


def _check_attention(model: Model, group: LayerGroup, layout: Layout) -> None:
    attention = group.attention
    if attention is None:
        return
    _check_divides("tp", layout.tp, f"attention heads of {model.name}", attention.heads)
    if isinstance(attention, Gqa):
        small, large = sorted((attention.kv_heads, layout.tp))
        if large % small:
            msg = (
                f"tp={layout.tp} and {attention.kv_heads} key-value heads of {model.name}: neither divides the other; "
                f"take tp from {_divisors(attention.kv_heads)} or a multiple of {attention.kv_heads}"
            )
            raise LayoutError(msg)


def _check_experts(model: Model, moe: Moe, layout: Layout) -> None:
    stage, ep = layout.tp * layout.dp, layout.ep
    if stage % ep:
        msg = f"ep={ep} does not divide the tp*dp={stage} ranks of a stage; take ep from {_divisors(stage)}"
        raise LayoutError(msg)
    if ep > 1 and ep % layout.dp:
        msg = f"ep={ep} is no multiple of dp={layout.dp}; spread the experts over all ranks with ep={stage}"
        raise LayoutError(msg)
    if ep > 2 * moe.experts:
        msg = (
            f"ep={ep} for {moe.experts} experts of {model.name} leaves most ranks with copies alone; "
            f"make ep at most {2 * moe.experts}"
        )
        raise LayoutError(msg)
    _check_divides("tp*dp/ep", stage // ep, "columns of one expert", moe.expert_intermediate)
    if moe.shared_intermediate:
        _check_divides("tp", layout.tp, "columns of the shared experts", moe.shared_intermediate)


def leaves_copies(model: Model, layout: Layout) -> bool:
    """Whether ep is at most the experts of some layer and does not divide them, so that ranks hold copies by choice.

    >>> from polypod.workload.model import Model, LayerGroup
    >>> moe = LayerGroup(count=1, attention=None, feed_forward=Moe(experts=256, experts_per_token=8, expert_intermediate=1))
    >>> model = Model(name="", model_type="", hidden=1, vocab=1, tied=True, layers=(moe,), mtp_layers=0, context_tokens=None, weight_dtype="bf16")
    >>> [leaves_copies(model, Layout(dp=ep, ep=ep)) for ep in (32, 72, 144, 320)]
    [False, True, True, False]
    """
    counts = [group.feed_forward.experts for group in model.layers if isinstance(group.feed_forward, Moe)]  # fmt: skip
    return any(layout.ep <= experts and experts % layout.ep for experts in counts)


def _check_divides(axis: str, value: int, what: str, whole: int) -> None:
    if whole % value:
        msg = f"{axis}={value} does not divide the {whole} {what}; take {axis} from {_divisors(whole)}"
        raise LayoutError(msg)


def _divisors(whole: int, most: int = 8) -> str:
    found = [n for n in range(1, min(whole, 1024) + 1) if whole % n == 0]
    return ", ".join(map(str, found[:most])) + (", ..." if len(found) > most else "")


def describe(layout: Layout) -> str:
    """A layout in the field's shorthand: only what is cut.

    >>> describe(Layout(tp=2, dp=16, ep=32)), describe(Layout())
    ('tp2 dp16 ep32', 'tp1')
    """
    sizes = {key: getattr(layout, key) for key in ("tp", "pp", "dp", "ep", "cp")}
    return " ".join(f"{key}{size}" for key, size in sizes.items() if size > 1) or "tp1"
