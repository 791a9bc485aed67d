"""The shape of catalog files. An unknown key is a typo until proven otherwise.

Conventions. Peaks are dense. Bandwidth is one way, per rank, at the tier's ports. Memory and peaks are per accelerator (a
card or package); a *rank* is what an engine addresses, and an accelerator has `ranks` of them (two dies on an Ascend 910C).
An unknown number is left out, never zero.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

Kind = Literal["datasheet", "measured", "claimed", "estimated"]
Dtype = Literal["fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4"]

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Identifier = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9.-]*$")]


Source = Annotated[str, msgspec.Meta(min_length=8)]
"""Title and address, enough for a stranger to find the number again."""


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Refuses keys it does not know."""


class Conflict(Strict, frozen=True, kw_only=True):
    """Another source says otherwise, and why that one is not used."""

    value: Positive
    source: Source
    why_not: str


class Fact(Strict, frozen=True, kw_only=True):
    """One number, where a stranger finds it again, and how far to trust it."""

    value: Positive
    source: Source
    kind: Kind
    note: str | None = None
    odd_because: str | None = None  # why it is right although `plausible` doubts it
    conflicts: tuple[Conflict, ...] = ()


class Tier(Strict, frozen=True, kw_only=True):
    """Ranks that reach each other at one speed. A pod lists its tiers nearest first."""

    name: str
    ranks: Count | None = None  # how many ranks one instance joins; None: as many as there are
    bytes_per_s: Fact | None = None  # one way, per rank
    latency_s: Fact | None = None  # between two ranks, small message
    shares_port: bool = (
        False  # with the tier before: what leaves a rank for either leaves by the same port
    )
    blocking_ratio: Fact | None = (
        None  # ports of what one instance of the tier before joins, over its way into this tier; 1 blocks nobody
    )


class ScaleUp(Strict, frozen=True, kw_only=True):
    """The fabric of an accelerator's own kind, as servers and pods are built with it."""

    name: str
    accelerators: Count | None = None  # the most that it joins at this speed
    bytes_per_s: Fact | None = None  # one way, per accelerator, over all its links


class Accelerator(Strict, frozen=True, kw_only=True):
    """A card or package, as sold. What nobody published is left out; `cost.chip` says what it cannot plan without."""

    id: Identifier
    name: str
    vendor: str
    names: tuple[str, ...] = ()  # other names, Chinese ones among them
    year: int | None = None
    status: str | None = None
    ranks: Count = 1  # dies that an engine addresses one by one
    peak_flops_per_s: dict[Dtype, Fact] = {}  # dense, per accelerator
    memory_bytes: Fact | None = None
    memory_bytes_per_s: Fact | None = None
    power_w: Fact | None = None
    scale_up: ScaleUp | None = None
    memory_type: str | None = None
    software: str | None = None
    export_control: str | None = None  # who may buy it, by the rules at the date they name
    note: str | None = None

    def peak(self, dtype: str) -> Fact | None:
        """Dense FLOP/s (or OP/s) of the whole accelerator; None where unknown."""
        return self.peak_flops_per_s.get(dtype)  # type: ignore[call-overload, no-any-return]


class Claim(Strict, frozen=True, kw_only=True):
    """What a source says of the whole pod; `catalog.claims` sets the sum of its parts beside it."""

    what: str  # in the source's words
    quantity: Literal[
        "flops_per_s",
        "memory_bytes",
        "memory_bytes_per_s",
        "link_bytes_per_s_both_ways",  # in and out of every rank on the widest tier, summed
    ]
    value: Positive
    source: Source
    kind: Kind
    dtype: Dtype | None = None  # of flops_per_s
    note: str | None = None


class Published(Strict, frozen=True, kw_only=True):
    """A published result on this pod: the report sets a prediction beside it."""

    model: str  # the catalog's model that the prediction is made with
    paper_model: str  # what the source ran, in its words; of the same shape
    phase: Literal["prefill", "decode"]
    metric: Literal["tokens_per_s_per_accelerator"]
    value: Positive
    conditions: str
    source: Source
    kind: Kind
    accelerators: Count
    layout: dict[Literal["tp", "pp", "dp", "ep", "cp"], Count]
    precision: str
    sequences_per_rank: Positive | None = None
    tokens_per_rank: Positive | None = None
    context_tokens: Count
    tokens_per_step: Positive = 1.0  # above 1 where tokens are drafted (multi-token prediction)
    tpot_s: Positive | None = None


class Pod(Strict, frozen=True, kw_only=True):
    """Islands of one accelerator, joined by tiers."""

    id: Identifier
    name: str
    vendor: str
    accelerator: Identifier | None = None  # None: its maker does not say which
    accelerators: Count
    tiers: tuple[Tier, ...]
    names: tuple[str, ...] = ()
    year: int | None = None
    status: str | None = None
    power_w: Fact | None = None  # IT power of the whole pod
    pue: Fact | None = None
    claims: tuple[Claim, ...] = ()
    published: tuple[Published, ...] = ()
    note: str | None = None


class Interconnect(Strict, frozen=True, kw_only=True):
    """A fabric, whoever builds with it. Speeds and latencies are keyed by what they are of: a generation, a hop, a round trip."""

    id: Identifier
    name: str
    owner: str
    purpose: Literal["scale-up", "scale-out", "host", "memory"]
    openness: str
    names: tuple[str, ...] = ()
    per_link: str | None = None  # one link of it, in its owner's words
    bytes_per_s: dict[str, Fact] = {}  # one way, per accelerator, over all its links
    latency_s: dict[str, Fact] = {}
    accelerators: Count | None = None  # the most it joins in one domain
    reach: str | None = None  # where one number does not say how far it goes
    medium: str | None = None
    note: str | None = None


class ModelCard(Strict, frozen=True, kw_only=True):
    """Where a model's config.json came from, and what was published of it."""

    id: str
    config: str  # file name beside this one
    source: Source
    licence: str
    fidelity: Literal["verbatim", "rebuilt", "class-defaults", "shape-only"]
    aliases: tuple[str, ...] = ()
    parameters: Fact
    active_parameters: Fact | None = None
    kv_bytes_per_token_bf16: Fact | None = None
    note: str | None = None


def facts(value: object, place: str = "") -> Iterator[tuple[str, Fact]]:
    """Every figure with a source in an entry, wherever it is, with the path to it."""
    if isinstance(value, Fact):
        yield place, value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from facts(getattr(value, name), f"{place}.{name}".lstrip("."))
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from facts(inner, f"{place}.{name}".lstrip("."))
    elif isinstance(value, tuple):
        for index, inner in enumerate(value):
            yield from facts(inner, f"{place}[{index}]")
